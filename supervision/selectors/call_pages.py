"""What the console's pages of a call read beside `selectors.calls`: the whole of it in outline, parts of it in full.

A call can last for hours and have thousands of turns, so nothing here reads all rows of one in full: a page shows a
window of turns, and every turn's place and state on its timeline.

Every function runs inside `tenants.context.tenant_context` and raises TenantContextMissing outside of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from uuid import UUID

from django.db.models import Exists, IntegerField, Max, OuterRef, Q, QuerySet
from django.db.models.fields.json import KT
from django.db.models.functions import Cast, Length

from supervision.errors import NotFound
from supervision.models import (
    Agent,
    AgentNote,
    Call,
    CallEvent,
    Intervention,
    Label,
    Policy,
    PolicyVersion,
    ToolDecision,
    Turn,
    Verdict,
)

# How a transcript names the caller.
CUSTOMER: Final = "customer"
# More than anybody looks at; a call in shadow mode can have one in every turn.
MOST_HIGHLIGHTS: Final = 200


class CallTurnNotFound(NotFound):
    """The call has no turn with this id."""

    def __init__(self) -> None:
        super().__init__("There is no such turn in this call.")


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A call and rows of it, all or some, each kind in the order in which it happened.

    `events` are those after a seq that was asked for; `seq` is the newest of them, or the asked-for one without any.
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


class TurnMark(NamedTuple):
    """A turn's place in its call."""

    id: UUID
    number: int
    at_ms: int
    customer_chars: int
    audio_ms: int | None
    heard_ms: int | None
    heard_at_ms: int | None


class VerdictMark(NamedTuple):
    turn_id: UUID
    state: str
    intervene: bool
    late: bool
    at_ms: int
    latency_ms: int | None


class ToolMark(NamedTuple):
    id: UUID
    turn_id: UUID | None
    allow: bool
    at_ms: int
    latency_ms: int | None
    done_at_ms: int | None


class SpeechMark(NamedTuple):
    """Something that was said when no turn of the agent was: by the caller, or by Mirror while a tool waits."""

    seq: int
    role: str
    at_ms: int
    chars: int


@dataclass(frozen=True, slots=True)
class CallOutline:
    """What a timeline draws, without what was said. Turns come in the order of the call."""

    turns: list[TurnMark] = field(default_factory=list)
    verdicts: list[VerdictMark] = field(default_factory=list)
    tools: list[ToolMark] = field(default_factory=list)
    interventions: list[Intervention] = field(default_factory=list)
    speech: list[SpeechMark] = field(default_factory=list)
    # Whether callers have a transcript of their own, beside what turns say that they answer to.
    transcribed: bool = False


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """One turn with all that concerns it, what came with it without naming a turn, and its neighbours."""

    record: CallRecord
    turn: Turn | None
    before_id: UUID | None
    after_id: UUID | None
    labels: list[Label]
    # How long its beginning was kept from the caller, and what ended that; None when it was not held.
    held_ms: int | None = None
    hold_ended_by: str = ""


# -- all of a call ------------------------------------------------------------------------------------------------


def call_outline(*, call_id: UUID) -> CallOutline:
    """The whole call in outline."""
    transcripts = CallEvent.objects.filter(call_id=call_id, kind="transcript.noted", data__final=True)
    speech = [
        SpeechMark(*row)
        for row in transcripts.annotate(
            at_ms=Cast(KT("data__at_ms"), IntegerField()), chars=Length(KT("data__text")), role=KT("data__role")
        )
        .order_by("seq", "id")
        .values_list("seq", "role", "at_ms", "chars")
    ]
    return CallOutline(
        turns=[TurnMark(*row) for row in _turn_marks(Turn.objects.filter(call_id=call_id))],
        verdicts=[
            VerdictMark(*row)
            for row in Verdict.objects.filter(call_id=call_id)
            .order_by("at_ms", "id")
            .values_list("turn_id", "state", "intervene", "late", "at_ms", "latency_ms")
        ],
        tools=[
            ToolMark(*row)
            for row in ToolDecision.objects.filter(call_id=call_id)
            .order_by("at_ms", "id")
            .values_list("id", "turn_id", "allow", "at_ms", "latency_ms", "done_at_ms")
        ],
        interventions=list(Intervention.objects.filter(call_id=call_id).order_by("at_ms", "id")),
        speech=speech,
        transcribed=any(said.role == CUSTOMER for said in speech),
    )


def outline_of(record: CallRecord) -> CallOutline:
    """The rows of `record` in outline, and what was said according to its events."""
    said = [event for event in record.events if event.kind == "transcript.noted" and event.data.get("final")]
    speech = [SpeechMark(event.seq, event.data["role"], event.data["at_ms"], len(event.data["text"])) for event in said]
    # Whether the call has transcripts matters for turns that say what the caller said.
    transcribed = any(mark.role == CUSTOMER for mark in speech)
    if not transcribed and any(turn.customer_text for turn in record.turns):
        transcribed = CallEvent.objects.filter(
            call=record.call, kind="transcript.noted", data__final=True, data__role=CUSTOMER
        ).exists()
    return CallOutline(
        turns=[
            TurnMark(
                turn.id,
                turn.index,
                turn.at_ms,
                len(turn.customer_text),
                turn.audio_ms,
                turn.heard_ms,
                turn.heard_at_ms,
            )
            for turn in record.turns
        ],
        verdicts=[
            VerdictMark(row.turn_id, row.state, row.intervene, row.late, row.at_ms, row.latency_ms)
            for row in record.verdicts
        ],
        tools=[
            ToolMark(row.id, row.turn_id, row.allow, row.at_ms, row.latency_ms, row.done_at_ms)
            for row in record.tool_decisions
        ],
        interventions=record.interventions,
        speech=speech,
        transcribed=transcribed,
    )


def call_turn_marks(*, call: Call) -> list[TurnMark]:
    """The places of all turns of a call, in its order."""
    return [TurnMark(*row) for row in _turn_marks(Turn.objects.filter(call=call))]


def call_highlights(*, call: Call) -> CallRecord:
    """The rows of a call that stand out: interventions, blocked tools, violations; at most 200 of a kind."""
    interventions = list(Intervention.objects.filter(call=call).order_by("at_ms", "id")[:MOST_HIGHLIGHTS])
    tools = list(ToolDecision.objects.filter(call=call, allow=False).order_by("at_ms", "id")[:MOST_HIGHLIGHTS])
    verdicts = list(Verdict.objects.filter(call=call, intervene=True).order_by("at_ms", "id")[:MOST_HIGHLIGHTS])
    named: list[Intervention | ToolDecision | Verdict] = [*interventions, *tools, *verdicts]
    turn_ids = {row.turn_id for row in named if row.turn_id is not None}
    return _bag(
        call,
        turns=Turn.objects.filter(call=call, id__in=turn_ids).order_by("at_ms", "id"),
        verdicts=verdicts,
        tool_decisions=tools,
        interventions=interventions,
        # Nothing that stands out says who judged.
        judge_model="",
    )


# -- parts of a call ----------------------------------------------------------------------------------------------


def call_part(
    *,
    call: Call,
    marks: Sequence[TurnMark],
    begins_ms: int | None,
    ends_ms: int | None,
    judge_model: str | None = None,
) -> CallRecord:
    """These turns in full, and what names no turn and came from `begins_ms` until before `ends_ms` (None: no bound).

    `judge_model` is the model that judges the call, for whoever knows it already.
    """
    ids = [mark.id for mark in marks]
    about = Q(turn_id__in=ids) | _of_no_turn(begins_ms, ends_ms)
    return _bag(
        call,
        turns=Turn.objects.filter(call=call, id__in=ids).order_by("at_ms", "id"),
        verdicts=Verdict.objects.filter(call=call, turn_id__in=ids).order_by("at_ms", "id"),
        tool_decisions=ToolDecision.objects.filter(about, call=call).order_by("at_ms", "id"),
        interventions=Intervention.objects.filter(about, call=call).order_by("at_ms", "id"),
        notes=AgentNote.objects.filter(about, call=call).order_by("at_ms", "id"),
        judge_model=judge_model,
    )


def call_turn(*, call: Call, turn_id: UUID | None, judge_model: str | None = None) -> TurnRecord:
    """One turn, and what came until the next one without naming a turn; for the first one, also what came before it.

    None: what names no turn at all, of a call without turns. Raises CallTurnNotFound.
    """
    if turn_id is None:
        record = call_part(call=call, marks=[], begins_ms=None, ends_ms=None, judge_model=judge_model)
        return TurnRecord(record, None, None, None, _labels_of(record))
    turns = Turn.objects.filter(call=call)
    mark = turns.filter(id=turn_id).values_list("at_ms", flat=True).first()
    if mark is None:
        raise CallTurnNotFound
    earlier = turns.filter(at_ms__lte=mark).filter(Q(at_ms__lt=mark) | Q(id__lt=turn_id))
    later = turns.filter(at_ms__gte=mark).filter(Q(at_ms__gt=mark) | Q(id__gt=turn_id))
    before = earlier.order_by("-at_ms", "-id").values_list("id", flat=True).first()
    after = later.order_by("at_ms", "id").values_list("id", "at_ms").first()
    chosen = TurnMark(turn_id, 0, mark, 0, None, None, None)
    record = call_part(
        call=call,
        marks=[chosen],
        begins_ms=None if before is None else mark,
        ends_ms=None if after is None else after[1],
        judge_model=judge_model,
    )
    held = (
        CallEvent.objects.filter(call=call, kind="turn.held", data__turn_id=str(turn_id))
        .order_by("-seq")
        .values_list("data", flat=True)
        .first()
    )
    return TurnRecord(
        record=record,
        turn=record.turns[0],
        before_id=before,
        after_id=None if after is None else after[0],
        labels=_labels_of(record),
        held_ms=None if held is None else held.get("held_ms"),
        hold_ended_by="" if held is None else str(held.get("ended_by", "")),
    )


def call_changes(*, call: Call, after_seq: int, limit: int) -> CallRecord:
    """At most `limit` events after `after_seq`, and the rows that they are about, with their turns.

    Events are read first: a row that changes meanwhile is then newer than `seq` says, never older. The end of a call
    also shows on what had been open: turns without a verdict, interventions without an outcome.
    """
    events = list(CallEvent.objects.filter(call=call, seq__gt=after_seq).order_by("seq", "id")[: limit + 1])
    more = len(events) > limit
    events = events[:limit]
    ended = any(event.kind == "call.ended" for event in events)
    turn_ids = _ids_of(events, "turn_id")
    decision_ids = _ids_of(events, "decision_id")
    intervention_ids = _ids_of(events, "intervention_id")
    # Most events name the turn themselves.
    for ids, rows in (
        (decision_ids, ToolDecision.objects.filter(call=call, id__in=decision_ids)),
        (intervention_ids, Intervention.objects.filter(call=call, id__in=intervention_ids)),
    ):
        if ids:
            turn_ids.update(rows.filter(turn_id__isnull=False).values_list("turn_id", flat=True))
    if ended:
        judged = Verdict.objects.filter(turn_id=OuterRef("pk"))
        turn_ids.update(Turn.objects.filter(~Exists(judged), call=call).values_list("id", flat=True))
        turn_ids.update(
            Intervention.objects.filter(call=call, outcome="", turn_id__isnull=False).values_list("turn_id", flat=True)
        )
    ids = decision_ids | intervention_ids | _ids_of(events, "note_id")
    about = Q(id__in=ids) | Q(turn_id__in=turn_ids)
    return _bag(
        call,
        turns=Turn.objects.filter(call=call, id__in=turn_ids).order_by("at_ms", "id"),
        verdicts=Verdict.objects.filter(call=call, turn_id__in=turn_ids).order_by("at_ms", "id"),
        tool_decisions=ToolDecision.objects.filter(about, call=call).order_by("at_ms", "id"),
        interventions=Intervention.objects.filter(about, call=call).order_by("at_ms", "id"),
        notes=AgentNote.objects.filter(about, call=call).order_by("at_ms", "id"),
        events=events,
        seq=events[-1].seq if events else after_seq,
        more_events=more,
    )


def call_events_before(*, call_id: UUID, before_seq: int | None, limit: int) -> tuple[list[CallEvent], bool]:
    """The newest `limit` events before `before_seq` (None: of all), in order, and whether there are older ones."""
    events = CallEvent.objects.filter(call_id=call_id)
    if before_seq is not None:
        events = events.filter(seq__lt=before_seq)
    found = list(events.order_by("-seq", "-id")[: limit + 1])
    return found[:limit][::-1], len(found) > limit


def call_seq(*, call_id: UUID) -> int | None:
    """The newest event's seq, 0 before the first event; None when the tenant has no such call."""
    if not Call.objects.filter(id=call_id).exists():
        return None
    newest: int | None = CallEvent.objects.filter(call_id=call_id).aggregate(newest=Max("seq"))["newest"]
    return newest or 0


# -- beside calls -------------------------------------------------------------------------------------------------


def judge_models(*, version_ids: Iterable[UUID | None]) -> dict[UUID | None, str]:
    """The model that judges by each policy version; versions without one are left out."""
    wanted = {version_id for version_id in version_ids if version_id is not None}
    if not wanted:
        return {}
    rows = PolicyVersion.objects.filter(id__in=wanted, llm_credential__isnull=False)
    return dict(rows.values_list("id", "llm_credential__model"))


def policy_names(*, policy_ids: Iterable[UUID | None]) -> dict[UUID | None, str]:
    """The names of these policies, archived ones too."""
    return dict(Policy.objects.filter(id__in={each for each in policy_ids if each}).values_list("id", "name"))


def agent_names() -> list[tuple[UUID, str]]:
    """Every agent of the tenant, archived ones too (their calls are still there), by name."""
    return list(Agent.objects.order_by("name", "id").values_list("id", "name"))


def _ids_of(events: Iterable[CallEvent], name: str) -> set[UUID]:
    """What events say under `name`, of the rows that they are about."""
    datas = [event.data for event in events if isinstance(event.data, dict)]
    return {UUID(str(data[name])) for data in datas if data.get(name)}


def _turn_marks(turns: QuerySet[Turn]) -> QuerySet[Turn, tuple[Any, ...]]:
    return turns.order_by("at_ms", "id").values_list(
        "id", "index", "at_ms", Length("customer_text"), "audio_ms", "heard_ms", "heard_at_ms"
    )


def _labels_of(record: CallRecord) -> list[Label]:
    about = (
        Q(turn_id__in=[turn.id for turn in record.turns])
        | Q(intervention_id__in=[intervention.id for intervention in record.interventions])
        | Q(tool_decision_id__in=[decision.id for decision in record.tool_decisions])
    )
    return list(Label.objects.filter(about, call=record.call))


def _of_no_turn(begins_ms: int | None, ends_ms: int | None) -> Q:
    about = Q(turn_id__isnull=True)
    if begins_ms is not None:
        about &= Q(at_ms__gte=begins_ms)
    if ends_ms is not None:
        about &= Q(at_ms__lt=ends_ms)
    return about


def _bag(
    call: Call,
    *,
    turns: Iterable[Turn] = (),
    verdicts: Iterable[Verdict] = (),
    tool_decisions: Iterable[ToolDecision] = (),
    interventions: Iterable[Intervention] = (),
    notes: Iterable[AgentNote] = (),
    events: Iterable[CallEvent] = (),
    seq: int = 0,
    more_events: bool = False,
    judge_model: str | None = None,
) -> CallRecord:
    if judge_model is None:
        judge_model = judge_models(version_ids=[call.pinned_version_id]).get(call.pinned_version_id, "")
    return CallRecord(
        call=call,
        judge_model=judge_model,
        turns=list(turns),
        verdicts=list(verdicts),
        tool_decisions=list(tool_decisions),
        interventions=list(interventions),
        notes=list(notes),
        events=list(events),
        seq=seq,
        more_events=more_events,
    )
