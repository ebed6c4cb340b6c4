"""Audit events of a person's own account: sign-ins, passwords, second factors, sessions.

People belong to no tenant, so the event is written to the log of every tenant that the account opens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tenants.context import tenant_context
from tenants.models import User
from tenants.selectors.memberships import membership_list
from tenants.services.audit import auditevent_record


def personevent_record(
    *,
    user: User,
    action: str,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Record in each tenant of `user` that the current actor did `action` (`user.sign_in`) to their account.

    Tenants are visited in the order of their ids, so that two such transactions never wait for each other's logs.
    """
    for tenant_id in sorted(membership.tenant.id for membership in membership_list(user_id=user.pk)):
        with tenant_context(tenant_id):
            auditevent_record(action=action, object_id=user.pk, object_label=user.email, before=before, after=after)
