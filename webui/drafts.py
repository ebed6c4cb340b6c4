"""What was typed into a dangerous form before the person had to confirm who they are, for when they come back."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, cast

from django.http import HttpResponse, QueryDict

from tenants.authentication import recently_authenticated
from webui.access import MemberRequest, to_confirm

P = ParamSpec("P")
View = Callable[Concatenate[MemberRequest, P], HttpResponse]
# What may wait in the session of what was sent: bounded, and without secrets.
Draft = Callable[[QueryDict], dict[str, Any]]

_KEY = "form_draft"


def reauthenticated_with_draft(draft: Draft) -> Callable[[View[P]], View[P]]:
    """`webui.access.reauthenticated` for a page with a form: what was sent to it is kept as `draft` makes it, and its
    view finds it with `draft_take` when the person has said who they are. Stands below `member_view`, above `once`."""

    def decorate(view: View[P]) -> View[P]:
        @wraps(view)
        def wrapped(request: MemberRequest, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
            if recently_authenticated(request):
                return view(request, *args, **kwargs)
            if request.method == "POST":
                request.session[_KEY] = {"page": request.path, "typed": draft(request.POST)}
            return to_confirm(request.get_full_path() if request.method != "POST" else request.path)

        return cast(View[P], wrapped)

    return decorate


def draft_take(request: MemberRequest) -> dict[str, Any] | None:
    """What was typed into this page's form, once; None when nothing waits for it."""
    kept = request.session.get(_KEY)
    if not isinstance(kept, dict) or kept.get("page") != request.path:
        return None
    del request.session[_KEY]
    typed: dict[str, Any] = kept["typed"]
    return typed
