"""What the API says of calls: the models' fields under their own names."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import BeforeValidator

from mirror_saas.ids import uuid7_time
from mirror_saas.schemas import Out
from supervision.models import Approval, Call, Intervention, Label, ToolDecision, Verdict
from supervision.selectors.calls import TurnDetail

# A word that is not there yet, or not at all, is null: as in the frames that an agent gets.
Word = Annotated[str | None, BeforeValidator(lambda value: value or None)]


class CallOut(Out):
    """A call: what Plivo, the agent and Mirror said of it, how it ended, and how much of it was judged."""

    id: UUID
    agent_id: UUID
    agent_name: str
    policy_id: UUID | None
    policy_version_id: UUID | None
    policy_version: int | None
    state: str
    started_at: datetime
    ended_at: datetime | None
    plivo_call_id: str
    stream_id: str
    account_id: str
    from_number: str
    to_number: str
    mode: str
    delivery: str
    encoding: str
    sample_rate: int | None
    node: str
    hello_at_ms: int | None
    sdk: str
    language: str
    wants: list[Any]
    marks: bool
    agent_connected_at_ms: int | None
    dial_ms: int | None
    agent_failed_at_ms: int | None
    agent_failure: str
    outcome: Word
    ended_by: str
    close_code: int | None
    reason: str
    coverage_state: str
    coverage_reason: str
    coverage: float | None
    turn_count: int
    judged_count: int
    skipped_count: int
    timed_out_count: int
    failed_count: int
    shed_count: int
    intervention_count: int
    tools_blocked_count: int
    duration_ms: int | None
    dropped_media_ms: int
    storage_limit: bool
    """The tenant's storage was used up when the call began: what was said in it is not stored."""
    test: bool
    """A member placed the call from the console, without a telephone."""

    @classmethod
    def values(cls, call: Call) -> dict[str, Any]:
        """The fields of `call`, which has its agent loaded."""
        derived = {"agent_name": call.agent.name, "policy_version_id": call.pinned_version_id}
        return derived | {name: getattr(call, name) for name in CallOut.model_fields if name not in derived}

    @classmethod
    def of(cls, call: Call) -> CallOut:
        return CallOut(**cls.values(call))


class LabelOut(Out):
    """What a reviewer said of a turn, an intervention or a tool decision: one of the three ids is not null."""

    id: UUID
    call_id: UUID
    turn_id: UUID | None
    intervention_id: UUID | None
    tool_decision_id: UUID | None
    label: str
    note: str
    labelled_by: str
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, label: Label) -> LabelOut:
        return cls(
            label=label.value,
            **_row_fields(LabelOut, label, "label"),
        )


class ApprovalOut(Out):
    """A tool call that waits, or waited, for a person. `state` is `waiting`, `approved`, `denied`, `expired` (nobody
    decided in time: `on_silence` says what that meant), `cancelled` (the call ended, or the agent withdrew it) or
    `void` (approved when the agent had stopped waiting). `id` is that of the tool decision."""

    id: UUID
    call_id: UUID
    agent_id: UUID
    ref: str
    tool: str
    args: Any
    irreversible: bool
    on_silence: str
    state: str
    requested_at: datetime
    expires_at: datetime
    decided_at: datetime | None
    decided_by: str
    note: str

    @classmethod
    def of(cls, approval: Approval, now: datetime) -> ApprovalOut:
        # Nobody is left to say so when the process that asked has died.
        over = approval.state == Approval.State.WAITING and approval.expires_at <= now
        return cls(state="expired" if over else approval.state, **_row_fields(ApprovalOut, approval, "state"))


class VerdictOut(Out):
    """What the judge said of a turn, and what came of it."""

    id: UUID
    turn_id: UUID
    state: str
    score: float | None
    threshold: float | None
    rule: str | None
    reason: str
    correction: str
    intervene: bool
    acted: bool
    withheld: Word
    latency_ms: int | None
    prompt_tokens: int
    completion_tokens: int
    model: str
    fallback: bool
    late: bool
    detail: str
    at_ms: int


class ToolDecisionOut(Out):
    """A tool call that the agent wanted to make, and whether it was let through."""

    id: UUID
    turn_id: UUID | None
    ref: str
    name: str
    args: dict[str, Any] | None
    irreversible: bool
    allow: bool
    code: str
    state: str
    score: float | None
    reason: str
    instruction: str
    latency_ms: int | None
    prompt_tokens: int
    completion_tokens: int
    model: str
    fallback: bool
    at_ms: int
    ok: bool | None
    result: Any
    cancelled: bool
    done_at_ms: int | None


class StepOut(Out):
    """A step of an intervention. `at_ms` counts from the call's start."""

    step: str
    at_ms: int
    detail: Any = None


class InterventionOut(Out):
    """What Mirror did about a turn: silence it, bridge the gap, say a correction. Times count from the call's start."""

    id: UUID
    turn_id: UUID | None
    verdict_id: UUID | None
    rule: str | None
    plan: str
    at_ms: int
    steps: list[StepOut]
    outcome: Word
    ended_at_ms: int | None
    buffer_text: str
    correction_text: str
    correction_source: Word
    heard_ms: int | None
    violation_heard_ms: int | None
    violation_basis: Word
    silence_proof: Word
    gap_ms_cut_to_buffer: int | None
    gap_ms_buffer_to_correction: int | None
    detail: str
    label: LabelOut | None = None

    @classmethod
    def of(cls, intervention: Intervention, label: Label | None) -> InterventionOut:
        return cls(
            **_row_fields(InterventionOut, intervention, "label"),
            label=LabelOut.of(label) if label is not None else None,
        )


class AgentNoteOut(Out):
    """What the agent was told of an intervention, for its context."""

    id: UUID
    turn_id: UUID | None
    intervention_id: UUID | None
    rev: int
    text: str
    said: str
    heard_text: str
    heard_ms: int | None
    dropped: list[Any]
    expires_turns: int | None
    at_ms: int


class CallDetailOut(CallOut):
    """A call with its counts and every tool decision in order; those that named a turn are also with their turn."""

    policy_name: str | None
    tool_decisions: list[ToolDecisionOut]

    @classmethod
    def of_call(cls, call: Call, tool_decisions: list[ToolDecision]) -> CallDetailOut:
        return cls(
            **cls.values(call),
            policy_name=call.policy.name if call.policy else None,
            tool_decisions=[ToolDecisionOut.model_validate(decision) for decision in tool_decisions],
        )


class TurnOut(Out):
    id: UUID
    call_id: UUID
    ref: str
    index: int
    customer_text: str
    text: str
    tool_calls: list[Any]
    language: str
    at_ms: int
    audio_ms: int | None
    heard_ms: int | None
    heard_text: str
    uncertain_text: str
    unheard_text: str
    heard_basis: Word
    heard_at_ms: int | None


class TurnDetailOut(TurnOut):
    """A turn with what the judge said of it and what Mirror did. `verdict` is null while it is being judged."""

    label: LabelOut | None
    verdict: VerdictOut | None
    late_verdicts: list[VerdictOut]
    tool_decisions: list[ToolDecisionOut]
    interventions: list[InterventionOut]
    notes: list[AgentNoteOut]

    @classmethod
    def of(cls, detail: TurnDetail) -> TurnDetailOut:
        return cls(
            **TurnOut.model_validate(detail.turn).model_dump(),
            label=LabelOut.of(detail.label) if detail.label else None,
            verdict=VerdictOut.model_validate(detail.verdict) if detail.verdict else None,
            late_verdicts=[VerdictOut.model_validate(verdict) for verdict in detail.late_verdicts],
            tool_decisions=[ToolDecisionOut.model_validate(decision) for decision in detail.tool_decisions],
            interventions=[
                InterventionOut.of(intervention, detail.intervention_labels.get(intervention.id))
                for intervention in detail.interventions
            ],
            notes=[AgentNoteOut.model_validate(note) for note in detail.notes],
        )


class CallEventOut(Out):
    """Something that happened in a call; `kind` says what, and what is in `data`."""

    id: UUID
    seq: int
    at: datetime
    kind: str
    data: dict[str, Any]


def _row_fields(schema: type[Out], row: Any, *but: str) -> dict[str, Any]:
    return {name: getattr(row, name) for name in schema.model_fields if name not in but}


class VerdictRowOut(VerdictOut):
    """A verdict in a list across calls; `at` is when it was given, `at_ms` is within its call."""

    call_id: UUID
    agent_id: UUID
    at: datetime

    @classmethod
    def of(cls, verdict: Verdict) -> VerdictRowOut:
        return cls(**_row_fields(cls, verdict, "at"), at=uuid7_time(verdict.id))


class ToolDecisionRowOut(ToolDecisionOut):
    """A tool decision in a list across calls; `at` is when the tool was asked about, `at_ms` is within its call."""

    call_id: UUID
    agent_id: UUID
    at: datetime
    label: LabelOut | None = None

    @classmethod
    def of_row(cls, decision: ToolDecision, label: Label | None) -> ToolDecisionRowOut:
        return cls(
            **_row_fields(cls, decision, "at", "label"),
            label=LabelOut.of(label) if label is not None else None,
            at=uuid7_time(decision.id),
        )


class InterventionRowOut(InterventionOut):
    """An intervention in a list across calls; `at` is when it began, `at_ms` is within its call."""

    call_id: UUID
    agent_id: UUID
    at: datetime

    @classmethod
    def of_row(cls, intervention: Intervention, label: Label | None) -> InterventionRowOut:
        return cls(
            **_row_fields(cls, intervention, "at", "label"),
            label=LabelOut.of(label) if label is not None else None,
            at=uuid7_time(intervention.id),
        )
