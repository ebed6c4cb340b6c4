"""Tool calls that wait, or waited, for a person: pinned above pages, and in their list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from supervision.models import Approval
from webui.presenters.pieces import Badge

STATES: Final[Mapping[str, Badge]] = {
    "approved": Badge("Approved", "check", "good"),
    "denied": Badge("Denied", "ban", "bad"),
    "expired": Badge("Nobody decided", "clock", "warn"),
    "cancelled": Badge("Withdrawn", "cross", "plain", "The caller hung up, or the agent withdrew it."),
    "void": Badge("Approved too late", "clock", "warn", "The agent had stopped waiting."),
}


@dataclass(frozen=True, slots=True)
class ApprovalView:
    """One that waits. `left_ms` is how long there is to decide."""

    id: UUID
    call_id: UUID
    agent: str
    tool: str
    args: Any
    irreversible: bool
    left_ms: int
    silence: str
    note: str = ""
    """What was typed, when it cannot be stored as it is."""
    error: str = ""
    """What is wrong with the note."""

    @property
    def dom_id(self) -> str:
        return f"approval-{self.id.hex}"


def approval_view(approval: Approval, now: datetime, *, note: str = "", error: str = "") -> ApprovalView:
    """`approval` with its agent's name."""
    return ApprovalView(
        id=approval.id,
        call_id=approval.call_id,
        agent=approval.agent.name,
        tool=approval.tool,
        args=approval.args,
        irreversible=approval.irreversible,
        left_ms=max(0, (approval.expires_at - now) // timedelta(milliseconds=1)),
        silence="It runs if nobody decides." if _allowed(approval) else "It does not run if nobody decides.",
        note=note,
        error=error,
    )


@dataclass(frozen=True, slots=True)
class DecidedView:
    """One that waited."""

    id: UUID
    call_id: UUID
    requested_at: datetime
    agent: str
    tool: str
    args: Any
    irreversible: bool
    badge: Badge
    by: str
    """Who decided; empty when nobody did."""
    silence: str
    """What that meant."""
    waited_ms: int | None
    note: str


def decided_view(approval: Approval) -> DecidedView:
    """`approval` with its agent's name, and what became of it."""
    state = "expired" if approval.state == Approval.State.WAITING else approval.state
    decided_at = approval.decided_at or (approval.expires_at if state == "expired" else None)
    waited = None if decided_at is None else max(0, (decided_at - approval.requested_at) // timedelta(milliseconds=1))
    return DecidedView(
        id=approval.id,
        call_id=approval.call_id,
        requested_at=approval.requested_at,
        agent=approval.agent.name,
        tool=approval.tool,
        args=approval.args,
        irreversible=approval.irreversible,
        badge=STATES[state],
        by=approval.decided_by,
        silence="" if state != "expired" else "It ran." if _allowed(approval) else "It did not run.",
        waited_ms=waited,
        note=approval.note,
    )


def _allowed(approval: Approval) -> bool:
    return approval.on_silence == "allow"
