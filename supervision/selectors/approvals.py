"""Tool calls that wait, or waited, for a person."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from django.db.models import Q
from django.db.models.functions import Now

from mirror_saas.errors import NotFound
from supervision.models import Approval
from supervision.selectors.pages import DEFAULT_LIMIT, BadCursor, Page, cursor_decode, cursor_encode, limit_check

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


def approval_list(*, cursor: str | None = None, limit: int = DEFAULT_LIMIT, state: str | None = None) -> Page[Approval]:
    """The current tenant's tool calls that wait for nobody any more, those that were asked for last first; only those
    that ended in `state` if it is given.

    One whose time is over counts as such before its own call says so. Raises InvalidInput (limit) and BadCursor.
    """
    limit_check(limit)
    waiting = Q(state=Approval.State.WAITING)
    over = waiting & Q(expires_at__lte=Now())
    found = Approval.objects.select_related("agent").order_by("-requested_at", "-id")
    if state is None:
        found = found.filter(~waiting | over)
    elif state == Approval.State.EXPIRED:
        found = found.filter(Q(state=state) | over)
    else:
        found = found.filter(state=state)
    if cursor is not None:
        requested_at, decision_id = _key(cursor)
        found = found.filter(requested_at__lte=requested_at).filter(
            Q(requested_at__lt=requested_at) | Q(id__lt=decision_id)
        )
    rows = list(found[: limit + 1])
    if len(rows) <= limit:
        return Page(items=rows, next=None)
    last = rows[limit - 1]
    return Page(items=rows[:limit], next=cursor_encode(last.requested_at.astimezone(UTC).isoformat(), str(last.id)))


def _key(cursor: str) -> tuple[datetime, UUID]:
    requested_at, decision_id = cursor_decode(cursor, str, str)
    try:
        when, row_id = datetime.fromisoformat(str(requested_at)), UUID(str(decision_id))
    except ValueError as error:
        raise BadCursor from error
    if when.tzinfo is None:
        raise BadCursor
    return when, row_id
