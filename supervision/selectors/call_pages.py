"""What the console's pages of calls need beside `selectors.calls`: one call's rows at once, and who judged calls.

Every function runs inside `tenants.context.tenant_context` and raises TenantContextMissing outside of one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from django.db.models import Max

from supervision.models import (
    Agent,
    AgentNote,
    Call,
    CallEvent,
    Intervention,
    PolicyVersion,
    ToolDecision,
    Turn,
    Verdict,
)
from supervision.selectors.calls import call_get


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A call and its rows, each kind in the order in which it happened.

    `events` are those after the asked-for seq; `seq` is the newest of them, or the asked-for one without any.
    """

    call: Call
    judge_model: str
    turns: list[Turn]
    verdicts: list[Verdict]
    tool_decisions: list[ToolDecision]
    interventions: list[Intervention]
    notes: list[AgentNote]
    events: list[CallEvent]
    seq: int
    more_events: bool


def call_record(*, call_id: UUID, after_seq: int = 0, event_limit: int | None = None) -> CallRecord:
    """The call with all its rows, and its events after `after_seq`. Raises CallNotFound.

    Events are read first: a row that changes meanwhile is then newer than `seq` says, never older.
    """
    limit = None if event_limit is None else event_limit + 1
    events = list(CallEvent.objects.filter(call_id=call_id, seq__gt=after_seq).order_by("seq", "id")[:limit])
    more = event_limit is not None and len(events) > event_limit
    if more:
        events = events[:event_limit]
    call = call_get(call_id=call_id)
    models = judge_models(version_ids=[call.pinned_version_id])
    return CallRecord(
        call=call,
        judge_model=models.get(call.pinned_version_id, ""),
        turns=list(Turn.objects.filter(call_id=call_id).order_by("at_ms", "id")),
        verdicts=list(Verdict.objects.filter(call_id=call_id).order_by("at_ms", "id")),
        tool_decisions=list(ToolDecision.objects.filter(call_id=call_id).order_by("at_ms", "id")),
        interventions=list(Intervention.objects.filter(call_id=call_id).order_by("at_ms", "id")),
        notes=list(AgentNote.objects.filter(call_id=call_id).order_by("at_ms", "id")),
        events=events,
        seq=events[-1].seq if events else after_seq,
        more_events=more,
    )


def call_seq(*, call_id: UUID) -> int | None:
    """The newest event's seq, 0 before the first event; None when the tenant has no such call."""
    if not Call.objects.filter(id=call_id).exists():
        return None
    newest: int | None = CallEvent.objects.filter(call_id=call_id).aggregate(newest=Max("seq"))["newest"]
    return newest or 0


def judge_models(*, version_ids: Iterable[UUID | None]) -> dict[UUID | None, str]:
    """The model that judges by each policy version; versions without one are left out."""
    wanted = {version_id for version_id in version_ids if version_id is not None}
    if not wanted:
        return {}
    rows = PolicyVersion.objects.filter(id__in=wanted, llm_credential__isnull=False)
    return dict(rows.values_list("id", "llm_credential__model"))


def agent_names() -> list[tuple[UUID, str]]:
    """Every agent of the tenant, archived ones too (their calls are still there), by name."""
    return list(Agent.objects.order_by("name", "id").values_list("id", "name"))
