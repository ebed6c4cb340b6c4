"""A form that is sent twice is done once: a double click, an impatient reload, a page that was gone back to.

A form that creates or starts something carries `{% once %}`, a hidden token of that one rendering, and its view is
decorated:

    @require_http_methods(["GET", "HEAD", "POST"])
    @member_view(scope="policies:write")
    @once
    def policy_new(request: MemberRequest) -> HttpResponse: ...

The first sending that ends in a redirect is remembered for a day, in the transaction of what it did (ADR 0020): the
second one waits for it, does nothing, and is sent to the same place. The same token with other fields is something new:
whoever goes back, types another name and sends the form means it. Forms without a token are as if nobody had decorated
anything; so are forms that are refused, whose redirect never came.

It is for what would otherwise be there twice. What leads to the same end however often it is said (a switch, a revoked
key) needs none. Nor is it for work that waits for others, such as a request to a tenant's server: the tenant's
transaction is held meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from http import HTTPStatus
from typing import Concatenate, ParamSpec, cast
from urllib.parse import urlsplit
from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse

from tenants.services.idempotency import (
    StoredAnswer,
    WriteRuns,
    idempotency_begin,
    idempotency_store,
    request_fingerprint,
)
from webui.access import MemberRequest

P = ParamSpec("P")
View = Callable[Concatenate[MemberRequest, P], HttpResponse]

FIELD = "once"
# Not of the form's meaning: a page that is loaded anew has others of them.
_OF_THE_PAGE = frozenset({"csrfmiddlewaretoken", FIELD})
# How long a second sending waits for the first one's end.
WAIT_S = 10.0
WAIT_STEP_S = 0.05


def once(view: View[P]) -> View[P]:
    """Do what a form asks for once, however often this rendering of it is sent.

    It stands below `member_view` and `reauthenticated`.
    """

    @wraps(view)
    def wrapped(request: MemberRequest, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
        token = _token(request)
        if token is None:
            return view(request, *args, **kwargs)
        fingerprint = _fingerprint(request)
        # The fields are part of the key: the token alone would refuse a form that was gone back to and changed.
        key = f"form:{token}:{fingerprint.hex()}"
        try:
            stored = _begin(key, request.user.id, fingerprint)
        except WriteRuns:
            return render(request, "409.html", status=HTTPStatus.CONFLICT)
        if stored is not None:
            messages.info(request, "You sent this form before. It was done once.")
            return HttpResponseRedirect(stored.headers["Location"])
        response = view(request, *args, **kwargs)
        if 300 <= response.status_code < 400 and not _asks_who_it_is(response):
            # Saved with it: whoever sends the form twice may be back before this answer is out.
            if request.session.modified:
                request.session.save()
            idempotency_store(
                key=key,
                actor_id=request.user.id,
                fingerprint=fingerprint,
                answer=StoredAnswer(
                    status=response.status_code, headers={"Location": response.headers["Location"]}, body=""
                ),
            )
        return response

    wrapped.sent_once = True  # type: ignore[attr-defined]
    return cast(View[P], wrapped)


def _asks_who_it_is(response: HttpResponse) -> bool:
    """Whether nothing was done, because the person has to sign in or confirm who they are before."""
    path = urlsplit(response.headers["Location"]).path
    return path in (reverse("webui:sign_in"), reverse("webui:confirm"))


def _token(request: MemberRequest) -> str | None:
    if request.method != "POST":
        return None
    try:
        return UUID(request.POST.get(FIELD, "")).hex
    except ValueError:
        return None


def _fingerprint(request: MemberRequest) -> bytes:
    parts = [request.get_full_path().encode()]
    for name, values in sorted(request.POST.lists()):
        if name not in _OF_THE_PAGE:
            parts += [name.encode(), *(value.encode() for value in values), b""]
    for name, files in sorted(request.FILES.lists()):
        for file in files:
            parts += [name.encode(), (file.name or "").encode(), file.read()]
            file.seek(0)
    return request_fingerprint(*parts)


def _begin(key: str, user_id: UUID, fingerprint: bytes) -> StoredAnswer | None:
    """Take the key, once whoever has it is done. Raises WriteRuns when that takes too long."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            return idempotency_begin(key=key, actor_id=user_id, fingerprint=fingerprint)
        except WriteRuns:
            if time.monotonic() >= deadline:
                raise
            time.sleep(WAIT_STEP_S)
