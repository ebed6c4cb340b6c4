"""Tool calls of the agent and what the gate said of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from supervision.models import ToolDecision
from webui.formats import sentence_of
from webui.presenters.pieces import Badge, order_key

TOOL_CODES = {
    "ok": "allowed",
    "policy": "against a rule",
    "duplicate": "ran already: the first result was given back",
    "in_doubt": "an earlier identical call has not answered",
    "timeout": "the judge did not answer in time",
    "failed": "the judge failed",
    "cancelled": "cancelled by an intervention",
    "bad_args": "the arguments are not valid JSON",
    "denied": "denied",
}


@dataclass(frozen=True, slots=True)
class ToolView:
    id: UUID
    call_id: UUID
    ref: str
    name: str
    args: Any
    badge: Badge
    code: str
    why: str
    reason: str
    instruction: str
    irreversible: bool
    blocked: bool
    latency_ms: int | None
    at_ms: int
    done: Badge | None
    result: Any
    turn_id: UUID | None
    turn_number: int | None
    """None for a tool that belongs to no turn that was reported; it then stands between the turns by itself."""

    @property
    def dom_id(self) -> str:
        return f"tool-{self.id.hex}"

    @property
    def loose(self) -> bool:
        return self.turn_number is None

    @property
    def loose_dom_id(self) -> str:
        return f"loose-{self.dom_id}"

    @property
    def order(self) -> str:
        return order_key(self.at_ms, self.id)


def tool_view(decision: ToolDecision, turn_number: int | None = None) -> ToolView:
    badge = Badge("Allowed", "check", "good") if decision.allow else Badge("Blocked", "ban", "bad")
    if decision.allow and decision.code not in ("ok", ""):
        # Fails open: it ran without a verdict, which must not look like a clean bill.
        badge = Badge("Allowed unchecked", "alert", "warn")
    done: Badge | None = None
    if decision.cancelled:
        done = Badge("Cancelled", "cross")
    elif decision.ok is not None:
        done = Badge("Ran", "check", "good") if decision.ok else Badge("Ran and failed", "cross", "warn")
    return ToolView(
        id=decision.id,
        call_id=decision.call_id,
        ref=decision.ref,
        name=decision.name,
        args=decision.args,
        badge=badge,
        code=decision.code,
        why=TOOL_CODES.get(decision.code, sentence_of(decision.code)),
        reason=decision.reason,
        instruction=decision.instruction,
        irreversible=decision.irreversible,
        blocked=not decision.allow,
        latency_ms=decision.latency_ms,
        at_ms=decision.at_ms,
        done=done,
        result=decision.result,
        turn_id=decision.turn_id,
        turn_number=turn_number,
    )
