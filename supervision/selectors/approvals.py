"""Tool calls that wait, or waited, for a person."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from django.db.models.functions import Now

from mirror_saas.errors import NotFound
from supervision.models import Approval

MOST_WAITING: Final = 100


class ApprovalNotFound(NotFound):
    """No tool call of the current tenant with this decision id waits, or waited, for a person."""

    def __init__(self) -> None:
        super().__init__("There is no such tool call that needs an approval.")


def approval_get(*, decision_id: UUID) -> Approval:
    """One tool call that waits, or waited. Raises ApprovalNotFound."""
    approval = Approval.objects.select_related("agent").filter(id=decision_id).first()
    if approval is None:
        raise ApprovalNotFound
    return approval


def approvals_waiting() -> list[Approval]:
    """The current tenant's tool calls that wait for a person now, the one with the least time first; at most 100."""
    waiting = Approval.objects.filter(state=Approval.State.WAITING, expires_at__gt=Now())
    return list(waiting.select_related("agent").order_by("expires_at", "id")[:MOST_WAITING])
