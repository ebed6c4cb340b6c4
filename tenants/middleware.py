"""Which tenant a signed-in person's request is about."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from uuid import UUID

from django.contrib.sessions.backends.base import SessionBase
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import rotate_token
from django.urls import Resolver404, resolve

from tenants.actors import actor_context, actor_of_request
from tenants.context import tenant_context, tenant_context_current
from tenants.selectors.memberships import MembershipRef, membership_get

SESSION_TENANT = "tenant_id"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class TenantMiddleware:
    """Set `request.tenant` and `request.membership`, and run the view in that tenant's context.

    They are a TenantRef and a MembershipRef (role, scopes), or None for somebody who is not signed in or belongs to
    no tenant. The tenant is the one that the session keeps: first the person's oldest, later the one they switch to.
    When their membership of it has ended, reading goes on in their oldest one, and a request that writes has no tenant
    at all: what somebody wrote for one tenant is never done in another. Programs with an API key are not known here:
    the API finds their tenant itself. A view whose `in_transaction` is False opens the context itself.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        membership = self._membership(request)
        request.membership = membership  # type: ignore[attr-defined]
        request.tenant = membership.tenant if membership else None  # type: ignore[attr-defined]
        if membership is None:
            return self.get_response(request)
        user: Any = request.user
        actor = actor_of_request(request, kind="user", actor_id=user.pk, label=user.email)
        context = tenant_context(membership.tenant.id) if _in_transaction(request) else nullcontext()
        with actor_context(actor), context:
            return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> None:
        # Django has turned the exception into a response by the time it reaches __call__, so the transaction would
        # commit what the failed view had written.
        if tenant_context_current() is not None:
            transaction.set_rollback(True)

    def _membership(self, request: HttpRequest) -> MembershipRef | None:
        user = request.user
        if not user.is_authenticated:
            return None
        chosen = session_tenant_id(request.session)
        membership = membership_get(user_id=user.pk, tenant_id=chosen)
        if membership is None or membership.tenant.id == chosen:
            return membership
        if chosen is not None and request.method not in SAFE_METHODS:
            return None
        session_tenant_set(request, membership.tenant.id)
        return membership


def _in_transaction(request: HttpRequest) -> bool:
    try:
        view = resolve(request.path_info).func
    except Resolver404:
        return True
    return getattr(view, "in_transaction", True) is not False


def session_tenant_id(session: SessionBase) -> UUID | None:
    """The tenant that a session keeps, or None. Anything malformed counts as none."""
    try:
        return UUID(str(session.get(SESSION_TENANT)))
    except ValueError:
        return None


def session_tenant_set(request: HttpRequest, tenant_id: UUID) -> None:
    """Keep `tenant_id` as the tenant of the request's session.

    Forms on pages of another tenant, open in other tabs, do not work after that: their CSRF token is an old one.
    """
    if session_tenant_id(request.session) not in (None, tenant_id):
        rotate_token(request)
    request.session[SESSION_TENANT] = str(tenant_id)
