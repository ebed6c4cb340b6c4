"""A tool call that waits for a person, as the calls page pins it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from supervision.models import Approval


@dataclass(frozen=True, slots=True)
class ApprovalView:
    """One of them. `left_ms` is how long there is to decide."""

    id: UUID
    call_id: UUID
    agent: str
    tool: str
    args: Any
    irreversible: bool
    left_ms: int
    silence: str

    @property
    def dom_id(self) -> str:
        return f"approval-{self.id.hex}"


def approval_view(approval: Approval, now: datetime) -> ApprovalView:
    """`approval` with its agent's name."""
    allowed = approval.on_silence == "allow"
    return ApprovalView(
        id=approval.id,
        call_id=approval.call_id,
        agent=approval.agent.name,
        tool=approval.tool,
        args=approval.args,
        irreversible=approval.irreversible,
        left_ms=max(0, (approval.expires_at - now) // timedelta(milliseconds=1)),
        silence="It runs if nobody decides." if allowed else "It does not run if nobody decides.",
    )
