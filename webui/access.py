"""Who may see a page, and which tenant a session has chosen."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, cast
from uuid import UUID

from django.contrib.auth.views import redirect_to_login
from django.contrib.sessions.backends.base import SessionBase
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse

from tenants.middleware import SESSION_TENANT
from tenants.models import User
from tenants.selectors.memberships import MembershipRef

P = ParamSpec("P")


class MemberRequest(HttpRequest):
    """A request of a member; the view runs as the membership's tenant (see tenants.middleware)."""

    membership: MembershipRef
    user: User


def chosen_tenant_id(session: SessionBase) -> UUID | None:
    """The tenant that a session chose, or None. Anything malformed counts as no choice."""
    try:
        return UUID(str(session.get(SESSION_TENANT)))
    except ValueError:
        return None


def member_view(
    *, scope: str
) -> Callable[
    [Callable[Concatenate[MemberRequest, P], HttpResponse]], Callable[Concatenate[HttpRequest, P], HttpResponse]
]:
    """Let a signed-in member see a view whose role has `scope`.

    Without a session: to sign-in, and back after it. Member of no tenant: to the page that says so. A role without
    the scope: 403.
    """

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
            if scope not in membership.scopes:
                raise PermissionDenied(f"The role {membership.role} lacks {scope}.")
            return view(cast(MemberRequest, request), *args, **kwargs)

        return cast(Callable[Concatenate[HttpRequest, P], HttpResponse], wrapped)

    return decorate
