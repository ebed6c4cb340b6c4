"""What webhooks are told, as shapes: the messages of `supervision.recorder.outbox`, for the API's document.

Ids and facts only. Fields may come; those that are there stay.
"""

from __future__ import annotations

from typing import Any, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict

_ID = "0199d1a2-7c3e-7b1a-9f00-3d2c1b0a9e8d"


def _example(**facts: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [facts]})


class Told(BaseModel):
    """Facts of an event."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class CallTold(Told):
    """Which call."""

    call_id: UUID
    agent_id: UUID
    test: bool
    """A member placed the call from the console."""


class CallStartedTold(CallTold):
    """A call that began, and what judges it."""

    model_config = _example(call_id=_ID, agent_id=_ID, test=False, policy_id=_ID, policy_version=3, mode="live")

    policy_id: UUID | None
    policy_version: int | None
    mode: Literal["live", "shadow"]


class CoverageTold(CallTold):
    """How much of a call was judged."""

    coverage_state: Literal["full", "partial", "none"] | None
    """Null while the call runs."""
    coverage_reason: str
    coverage: float | None
    turn_count: int
    judged_count: int
    skipped_count: int
    timed_out_count: int
    failed_count: int
    shed_count: int


class CallEndedTold(CoverageTold):
    """A call that ended."""

    model_config = _example(
        call_id=_ID,
        agent_id=_ID,
        test=False,
        coverage_state="full",
        coverage_reason="",
        coverage=1.0,
        turn_count=12,
        judged_count=8,
        skipped_count=4,
        timed_out_count=0,
        failed_count=0,
        shed_count=0,
        outcome="completed",
        ended_by="caller",
        duration_ms=184000,
        intervention_count=1,
        tools_blocked_count=0,
    )

    outcome: Literal["completed", "failed"]
    ended_by: Literal["caller", "agent", "mirror"]
    duration_ms: int | None
    intervention_count: int
    tools_blocked_count: int


class CoverageAlarmTold(CoverageTold):
    """A call of which too little is judged, or was."""

    model_config = _example(
        call_id=_ID,
        agent_id=_ID,
        test=False,
        coverage_state=None,
        coverage_reason="",
        coverage=0.75,
        turn_count=12,
        judged_count=5,
        skipped_count=4,
        timed_out_count=3,
        failed_count=0,
        shed_count=0,
        alarm="degraded",
    )

    alarm: Literal["degraded", "low", "ended"]
    """`degraded`: the newest three turns of a call that runs were not judged; `low`: of a call that runs, less than
    80 % of at least five turns were judged or skipped on purpose; `ended`: it ended with less than all."""


class InterventionStartedTold(CallTold):
    """An intervention that began."""

    model_config = _example(
        call_id=_ID,
        agent_id=_ID,
        test=False,
        intervention_id=_ID,
        turn_id=_ID,
        verdict_id=_ID,
        plan="cut_now",
        at_ms=41200,
    )

    intervention_id: UUID
    turn_id: UUID
    verdict_id: UUID | None
    plan: str
    at_ms: int


class InterventionEndedTold(CallTold):
    """An intervention that ended, and what the caller heard."""

    model_config = _example(
        call_id=_ID,
        agent_id=_ID,
        test=False,
        intervention_id=_ID,
        outcome="completed",
        heard_ms=800,
        violation_heard_ms=300,
        gap_ms_cut_to_buffer=60,
        gap_ms_buffer_to_correction=20,
        at_ms=46900,
    )

    intervention_id: UUID
    outcome: str
    heard_ms: int | None
    violation_heard_ms: int | None
    gap_ms_cut_to_buffer: int | None
    gap_ms_buffer_to_correction: int | None
    at_ms: int


class ToolBlockedTold(CallTold):
    """A tool call that was not allowed."""

    model_config = _example(
        call_id=_ID,
        agent_id=_ID,
        test=False,
        decision_id=_ID,
        turn_id=_ID,
        name="refund",
        irreversible=True,
        code="policy",
        at_ms=41150,
    )

    decision_id: UUID
    turn_id: UUID | None
    name: str
    irreversible: bool
    code: str
    at_ms: int


class ApprovalRequestedTold(CallTold):
    """A tool call that waits for a person. `decision_id` is what `/tool-decisions/{id}/approval` names."""

    model_config = _example(
        call_id=_ID,
        agent_id=_ID,
        test=False,
        decision_id=_ID,
        turn_id=_ID,
        name="charge_card",
        irreversible=True,
        on_silence="deny",
        within_ms=30000,
        at_ms=41150,
    )

    decision_id: UUID
    turn_id: UUID | None
    name: str
    irreversible: bool
    on_silence: Literal["deny", "allow"]
    """What becomes of the tool call when nobody decides."""
    within_ms: int
    at_ms: int


class ApprovalDecidedTold(CallTold):
    """A tool call that does not wait for a person any more."""

    model_config = _example(
        call_id=_ID, agent_id=_ID, test=False, decision_id=_ID, outcome="approved", waited_ms=6200, at_ms=47350
    )

    decision_id: UUID
    outcome: Literal["approved", "denied", "expired", "cancelled", "void", "unasked"]
    """`expired`: nobody decided in time. `cancelled`: the call ended, or the agent withdrew the tool call. `void`: it
    was approved when the agent had stopped waiting. `unasked`: nobody could be asked."""
    waited_ms: int
    at_ms: int


class WebhookTestTold(Told):
    """Only a test."""

    model_config = _example(webhook_id=_ID)

    webhook_id: UUID
    """The endpoint that it is a test of."""


MESSAGES: Final[dict[str, type[Told]]] = {
    "call.started": CallStartedTold,
    "call.ended": CallEndedTold,
    "coverage.alarm": CoverageAlarmTold,
    "intervention.started": InterventionStartedTold,
    "intervention.ended": InterventionEndedTold,
    "tool.blocked": ToolBlockedTold,
    "approval.requested": ApprovalRequestedTold,
    "approval.decided": ApprovalDecidedTold,
    "webhook.test": WebhookTestTold,
}
