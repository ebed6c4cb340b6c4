"""Reading calls of the current tenant: the list, one call, its turns and its timeline.

Every function runs inside `tenants.context.tenant_context` and raises TenantContextMissing outside of one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar
from uuid import UUID

from django.db.models import Q

from supervision.errors import NotFound
from supervision.models import AgentNote, Call, CallEvent, Intervention, Label, ToolDecision, Turn, Verdict
from supervision.selectors.pages import DEFAULT_LIMIT, BadCursor, Page, cursor_decode, cursor_encode, limit_check
from supervision.selectors.search import calls_saying

Row = TypeVar("Row")


class CallNotFound(NotFound):
    """The current tenant has no call with this id."""

    def __init__(self) -> None:
        super().__init__("There is no such call.")


@dataclass(frozen=True, slots=True)
class CallFilters:
    """Which calls a list shows; None leaves a filter out. `started_from` is inclusive, `started_to` is not."""

    agent_id: UUID | None = None
    state: str | None = None
    outcome: str | None = None
    # `full`, `partial` or `none`.
    coverage: str | None = None
    # Whether Mirror stepped in.
    interventions: bool | None = None
    # Whether it was placed from the console.
    test: bool | None = None
    # What was said in it; see `selectors.search`.
    text: str | None = None
    started_from: datetime | None = None
    started_to: datetime | None = None
    # Only these calls: what a viewer of the list is told of when they change.
    ids: frozenset[UUID] | None = None


@dataclass(frozen=True, slots=True)
class TurnDetail:
    """A turn with all that Mirror said and did about it."""

    turn: Turn
    # What counts for the turn: the verdict that was in time. None while the turn is being judged.
    verdict: Verdict | None = None
    late_verdicts: list[Verdict] = field(default_factory=list)
    tool_decisions: list[ToolDecision] = field(default_factory=list)
    interventions: list[Intervention] = field(default_factory=list)
    notes: list[AgentNote] = field(default_factory=list)
    label: Label | None = None
    # What reviewers said of the interventions, by the intervention's id.
    intervention_labels: dict[UUID, Label] = field(default_factory=dict)


_ALL_CALLS = CallFilters()


def call_list(
    *, cursor: str | None = None, limit: int = DEFAULT_LIMIT, filters: CallFilters = _ALL_CALLS
) -> Page[Call]:
    """Calls, newest first, each with its agent.

    `limit` is 1 to 200. Raises InvalidInput for another limit or a text that cannot be searched for, and BadCursor for
    a cursor that is none.
    """
    limit_check(limit)
    calls = Call.objects.select_related("agent").order_by("-started_at", "-id")
    if filters.agent_id is not None:
        calls = calls.filter(agent_id=filters.agent_id)
    if filters.state is not None:
        calls = calls.filter(state=filters.state)
    if filters.outcome is not None:
        calls = calls.filter(outcome=filters.outcome)
    if filters.coverage is not None:
        calls = calls.filter(coverage_state=filters.coverage)
    if filters.interventions is not None:
        calls = calls.filter(intervention_count__gt=0) if filters.interventions else calls.filter(intervention_count=0)
    if filters.test is not None:
        calls = calls.filter(test=filters.test)
    if filters.started_from is not None:
        calls = calls.filter(started_at__gte=filters.started_from)
    if filters.started_to is not None:
        calls = calls.filter(started_at__lt=filters.started_to)
    if filters.ids is not None:
        calls = calls.filter(id__in=filters.ids)
    if cursor is not None:
        started_at, call_id = _call_key(cursor)
        # The first condition is implied by the second; it is what lets the index start at the right row.
        calls = calls.filter(started_at__lte=started_at).filter(Q(started_at__lt=started_at) | Q(id__lt=call_id))
    if filters.text is not None:
        calls = calls_saying(calls, filters.text)
    rows = list(calls[: limit + 1])
    if len(rows) <= limit:
        return Page(items=rows, next=None)
    last = rows[limit - 1]
    return Page(items=rows[:limit], next=cursor_encode(last.started_at.astimezone(UTC).isoformat(), str(last.id)))


def call_get(*, call_id: UUID) -> Call:
    """One call with its agent and policy. Raises CallNotFound."""
    call = Call.objects.select_related("agent", "policy").filter(id=call_id).first()
    if call is None:
        raise CallNotFound
    return call


def call_turns(*, call_id: UUID, after_index: int | None = None, limit: int | None = None) -> list[TurnDetail]:
    """The call's turns in the order in which the agent reported them; `after_index` and `limit` take a slice.

    Raises CallNotFound. Seven queries, however many turns.
    """
    _call_required(call_id)
    turns = Turn.objects.filter(call_id=call_id).order_by("index", "id")
    if after_index is not None:
        turns = turns.filter(index__gt=after_index)
    rows = list(turns if limit is None else turns[:limit])
    ids = [turn.id for turn in rows]

    def turn_id_of(row: Verdict | ToolDecision | Intervention | AgentNote) -> UUID | None:
        turn_id: UUID | None = row.turn_id
        return turn_id

    verdicts = _grouped(Verdict.objects.filter(turn_id__in=ids).order_by("at_ms", "id"), turn_id_of)
    decisions = _grouped(ToolDecision.objects.filter(turn_id__in=ids).order_by("at_ms", "id"), turn_id_of)
    interventions = _grouped(Intervention.objects.filter(turn_id__in=ids).order_by("at_ms", "id"), turn_id_of)
    notes = _grouped(AgentNote.objects.filter(turn_id__in=ids).order_by("at_ms", "id"), turn_id_of)
    labels = list(Label.objects.filter(call_id=call_id))
    turn_labels = {label.turn_id: label for label in labels if label.turn_id is not None}
    intervention_labels = {label.intervention_id: label for label in labels if label.intervention_id is not None}
    return [
        TurnDetail(
            turn=turn,
            verdict=next((verdict for verdict in reversed(verdicts[turn.id]) if not verdict.late), None),
            late_verdicts=[verdict for verdict in verdicts[turn.id] if verdict.late],
            tool_decisions=decisions[turn.id],
            interventions=interventions[turn.id],
            notes=notes[turn.id],
            label=turn_labels.get(turn.id),
            intervention_labels=intervention_labels,
        )
        for turn in rows
    ]


def call_tool_decisions(*, call_id: UUID) -> list[ToolDecision]:
    """The call's tool decisions in order, also of tools that named no turn. Raises CallNotFound."""
    _call_required(call_id)
    return list(ToolDecision.objects.filter(call_id=call_id).order_by("at_ms", "id"))


def call_interventions(*, call_id: UUID) -> list[Intervention]:
    """The call's interventions in order. Raises CallNotFound."""
    _call_required(call_id)
    return list(Intervention.objects.filter(call_id=call_id).order_by("at_ms", "id"))


def call_timeline(
    *, call_id: UUID, after_seq: int = 0, after_id: UUID | None = None, limit: int | None = None
) -> list[CallEvent]:
    """Everything that happened in the call, in order, after the event `after_seq` (0: from the start).

    `after_id` tells events of the same `seq` apart. Raises CallNotFound.
    """
    _call_required(call_id)
    events = CallEvent.objects.filter(call_id=call_id).order_by("seq", "id")
    if after_id is None:
        events = events.filter(seq__gt=after_seq)
    else:
        events = events.filter(seq__gte=after_seq).filter(Q(seq__gt=after_seq) | Q(id__gt=after_id))
    return list(events if limit is None else events[:limit])


def _call_required(call_id: UUID) -> None:
    if not Call.objects.filter(id=call_id).exists():
        raise CallNotFound


def _call_key(cursor: str) -> tuple[datetime, UUID]:
    started_at, call_id = cursor_decode(cursor, str, str)
    try:
        when, row_id = datetime.fromisoformat(str(started_at)), UUID(str(call_id))
    except ValueError as error:
        raise BadCursor from error
    if when.tzinfo is None:
        raise BadCursor
    return when, row_id


def _grouped(rows: Iterable[Row], key: Callable[[Row], UUID | None]) -> defaultdict[UUID | None, list[Row]]:
    groups: defaultdict[UUID | None, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups
