"""Who may see a page."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar, cast
from urllib.parse import urlsplit, urlunsplit

from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse

from tenants.authentication import recently_authenticated
from tenants.models import User
from tenants.roles import CapabilityMissing, capability_known
from tenants.selectors.memberships import MembershipRef

P = ParamSpec("P")
R = TypeVar("R", bound=HttpRequest)


class MemberRequest(HttpRequest):
    """A request of a member; the view runs as the membership's tenant (see tenants.middleware)."""

    membership: MembershipRef
    user: User


class PersonRequest(HttpRequest):
    """A request of somebody who is signed in, member of a tenant or not."""

    user: User


def member_view(
    *, scope: str, in_transaction: bool = True
) -> Callable[
    [Callable[Concatenate[MemberRequest, P], HttpResponse]], Callable[Concatenate[HttpRequest, P], HttpResponse]
]:
    """Let a signed-in member see a view whose role has `scope`: a scope, or a capability that no scope covers.

    Without a session: to sign-in, and back after it. Member of no tenant: to the page that says so. A role without
    it: 403. Without `in_transaction` the view opens its tenant's context itself, for the moments in which it needs the
    database: it waits for somebody else's server in between.
    """
    capability_known(scope)

    def decorate(
        view: Callable[Concatenate[MemberRequest, P], HttpResponse],
    ) -> Callable[Concatenate[HttpRequest, P], HttpResponse]:
        @wraps(view)
        def wrapped(request: HttpRequest, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
            if not request.user.is_authenticated:
                return redirect_to_login(request.get_full_path(), reverse("webui:sign_in"))
            membership: MembershipRef | None = getattr(request, "membership", None)
            if membership is None:
                return redirect("webui:no_tenant")
            if scope not in membership.capabilities:
                raise PermissionDenied(f"The role {membership.role} lacks {scope}.")
            try:
                return view(cast(MemberRequest, request), *args, **kwargs)
            except CapabilityMissing as error:
                raise PermissionDenied(str(error)) from error

        wrapped.capability = scope  # type: ignore[attr-defined]
        wrapped.in_transaction = in_transaction  # type: ignore[attr-defined]
        return cast(Callable[Concatenate[HttpRequest, P], HttpResponse], wrapped)

    return decorate


def person_view(
    view: Callable[Concatenate[PersonRequest, P], HttpResponse],
) -> Callable[Concatenate[HttpRequest, P], HttpResponse]:
    """Let whoever is signed in see a view that is about nobody but them; others go to sign-in, and back after it."""

    @wraps(view)
    def wrapped(request: HttpRequest, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
        if not request.user.is_authenticated:
            back = request.get_full_path() if request.method in ("GET", "HEAD") else reverse("webui:account")
            return redirect_to_login(back, reverse("webui:sign_in"))
        return view(cast(PersonRequest, request), *args, **kwargs)

    return cast(Callable[Concatenate[HttpRequest, P], HttpResponse], wrapped)


def reauthenticated(
    view: Callable[Concatenate[R, P], HttpResponse],
) -> Callable[Concatenate[R, P], HttpResponse]:
    """Ask a signed-in person to confirm who they are before a dangerous view, unless they did within five minutes.

    It stands below `member_view`, which sends people without a session to sign-in. After the confirmation they come
    back: to the same page, or for a form that was sent, to the page that it stood on.
    """

    @wraps(view)
    def wrapped(request: R, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
        if recently_authenticated(request):
            return view(request, *args, **kwargs)
        back = request.get_full_path() if request.method in ("GET", "HEAD") else _page_of_form(request)
        return to_confirm(back)

    return cast(Callable[Concatenate[R, P], HttpResponse], wrapped)


def to_confirm(back: str) -> HttpResponse:
    """To the page where a signed-in person confirms who they are, and from there to the path `back`."""
    return redirect_to_login(back, reverse("webui:confirm"))


def _page_of_form(request: HttpRequest) -> str:
    """Path and query of the page of ours that sent a form; the first page if nobody says."""
    try:
        page = urlsplit(request.headers.get("Referer", ""))
    except ValueError:
        return "/"
    return urlunsplit(("", "", page.path, page.query, "")) if page.netloc == request.get_host() else "/"
