"""Which tenant a signed-in person's request is about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.db import transaction
from django.http import HttpRequest, HttpResponse

from tenants.actors import actor_context, actor_of_request
from tenants.context import tenant_context, tenant_context_current
from tenants.selectors.memberships import MembershipRef, membership_get

SESSION_TENANT = "tenant_id"


class TenantMiddleware:
    """Set `request.tenant` and `request.membership`, and run the view in that tenant's context.

    They are a TenantRef and a MembershipRef (role, scopes), or None for somebody who is not signed in or belongs to
    no tenant. The tenant is the one chosen in the session, else the person's oldest. Programs with an API key are
    not known here: the API finds their tenant itself.
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
        with actor_context(actor), tenant_context(membership.tenant.id):
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
        chosen = request.session.get(SESSION_TENANT)
        return membership_get(user_id=user.pk, tenant_id=UUID(chosen) if chosen else None)
