"""The review queue: what reviewers are shown next, what an item needs to be judged by, and how much is left.

The queue is asked for anew each time: what is labelled has left it, what comes of calls has joined it. Every function
runs inside `tenants.context.tenant_context` and raises TenantContextMissing outside of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from itertools import islice
from typing import Any, Final
from uuid import UUID

from django.db.models import (
    BooleanField,
    Case,
    Exists,
    F,
    Func,
    IntegerField,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    TextField,
    Value,
    When,
)

from mirror_saas.errors import NotFound
from mirror_saas.ids import uuid7_floor, uuid7_time
from supervision.models import Call, Intervention, Label, ReviewReservation, ToolDecision, Turn, Verdict

# A score that stays less than this below its threshold is a close call. The index verdict_tenant_near has it too.
NEAR: Final = 0.2
# One of 51 verdicts that let a turn pass is sampled: those whose id ends in a byte below this. An id's last 62 bits
# are random and known to nobody before, so neither the judge nor the agent can tell; the index verdict_tenant_sampled
# and supervision.selectors.label_statistics have the same rule.
SAMPLED_BELOW: Final = 5
# Further than this neither what is left is counted, nor what was done on a day.
COUNTED: Final = 200
COUNTED_OF_A_DAY: Final = 1_000
_TEXT_CHARS: Final = 240


class Kind(StrEnum):
    """Why an item is in the queue; the queue has them in this order, the newest first in each."""

    INTERVENTION = "intervention"
    TOOL = "tool"
    VIOLATION = "violation"
    NEAR = "near"
    SAMPLED = "sampled"


@dataclass(frozen=True, slots=True)
class ReviewFilters:
    """Which items; None leaves a filter out. `made_from` is inclusive, `made_to` is not.

    `label` None is the queue itself: what nobody has said anything of. A label's value shows what was labelled so.
    """

    kind: Kind | None = None
    agent_id: UUID | None = None
    label: str | None = None
    test: bool = False
    made_from: datetime | None = None
    made_to: datetime | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where an item stands in the queue: its kind, and the id of the row that brought it there."""

    kind: Kind
    row_id: UUID


@dataclass(frozen=True, slots=True)
class QueueItem:
    """An item of the queue. `text` is the rule, the tool's name, or what the agent said, cut short."""

    item_id: UUID
    place: Place
    call_id: UUID
    agent: str
    text: str
    score: float | None
    threshold: float | None

    @property
    def at(self) -> datetime:
        """When it happened."""
        return uuid7_time(self.place.row_id)


class ReviewItemNotFound(NotFound):
    """The current tenant has nothing with this id that could be reviewed."""

    def __init__(self) -> None:
        super().__init__("There is nothing to review with this id; its call may have been erased.")


@dataclass(frozen=True, slots=True)
class ReviewItem:
    """An item with all that it takes to say whether Mirror was right.

    `turns` are the turns around it in order, `turn` (if there is one) among them; `verdicts`, `interventions` and
    `tool_decisions` are those of these turns, and the item's own.
    """

    item_id: UUID
    place: Place
    call: Call
    turn: Turn | None
    intervention: Intervention | None
    tool_decision: ToolDecision | None
    turns: list[Turn]
    verdicts: list[Verdict]
    interventions: list[Intervention]
    tool_decisions: list[ToolDecision]
    label: Label | None

    @property
    def passed(self) -> bool:
        """Whether Mirror let it pass and saw nothing wrong in it."""
        return self.place.kind in (Kind.NEAR, Kind.SAMPLED)


def review_queue(
    *,
    filters: ReviewFilters,
    now: datetime,
    reviewer_id: UUID | None,
    after: Place | None = None,
    limit: int,
) -> list[QueueItem]:
    """The next `limit` items, from the start or behind `after`, but for those that somebody else looks at."""
    found = review_candidates(filters=filters, now=now, reviewer_id=reviewer_id, after=after, batch=limit)
    return list(islice(found, limit))


def review_queue_before(
    *, filters: ReviewFilters, now: datetime, reviewer_id: UUID | None, before: Place, limit: int
) -> list[QueueItem]:
    """The `limit` items that stand before `before`, in the queue's order; those of others are left out."""
    found: list[QueueItem] = []
    for kind in reversed(_kinds_from(filters, before.kind, backward=True)):
        rows = _shown(kind, filters, now, reviewer_id)
        if kind is before.kind:
            rows = rows.filter(id__gt=before.row_id)
        found += _items(kind, rows.order_by("id")[: limit - len(found)])
        if len(found) >= limit:
            break
    return found[::-1]


def review_candidates(
    *, filters: ReviewFilters, now: datetime, reviewer_id: UUID | None, after: Place | None = None, batch: int = 30
) -> Iterator[QueueItem]:
    """All items in the queue's order, read from the database a few at a time as they are taken."""
    for kind in _kinds_from(filters, after.kind if after else None):
        last = after.row_id if after is not None and after.kind is kind else None
        while True:
            rows = _shown(kind, filters, now, reviewer_id)
            if last is not None:
                rows = rows.filter(id__lt=last)
            items = _items(kind, rows.order_by("-id")[:batch])
            yield from items
            if len(items) < batch:
                break
            last = items[-1].place.row_id


def review_left(*, filters: ReviewFilters) -> dict[Kind, int]:
    """How many items of each kind nobody has labelled, whatever kind and label are filtered for; COUNTED at most."""
    unlabelled = replace(filters, label=None)
    return {kind: _count(_rows(kind, unlabelled)) for kind in Kind}


def review_reserved(*, filters: ReviewFilters, now: datetime, reviewer_id: UUID | None) -> int:
    """How many items others look at right now, under these filters but for the kind."""
    return _of_others(now, reviewer_id).filter(call_id__in=_calls(filters)).count()


def review_item(*, item_id: UUID, around: int = 4) -> ReviewItem:
    """An intervention, a tool decision or a turn, with up to `around` turns before it and as many after it.

    Raises ReviewItemNotFound.
    """
    intervention = Intervention.objects.filter(id=item_id).first()
    decision = None if intervention else ToolDecision.objects.filter(id=item_id).first()
    subject: Intervention | ToolDecision | None = intervention or decision
    turn_id = subject.turn_id if subject else item_id
    turn = Turn.objects.filter(id=turn_id).first() if turn_id else None
    if subject is None and turn is None:
        raise ReviewItemNotFound
    call_id = subject.call_id if subject else turn.call_id  # type: ignore[union-attr]
    turns = _turns_around(call_id, turn, subject, around)
    ids = [each.id for each in turns]
    verdicts = list(Verdict.objects.filter(turn_id__in=ids).order_by("at_ms", "id"))
    interventions = list(Intervention.objects.filter(turn_id__in=ids).order_by("at_ms", "id"))
    return ReviewItem(
        item_id=item_id,
        place=_place(item_id, intervention, decision, verdicts),
        call=Call.objects.select_related("agent", "policy").get(id=call_id),
        turn=turn,
        intervention=intervention,
        tool_decision=decision,
        turns=turns,
        verdicts=verdicts,
        interventions=interventions,
        tool_decisions=list(ToolDecision.objects.filter(turn_id__in=ids).order_by("at_ms", "id")),
        label=_label(item_id, intervention, decision),
    )


def review_begun() -> bool:
    """Whether anybody has labelled anything."""
    return Label.objects.exists()


def review_label_newest(*, labelled_by: str, since: datetime) -> Label | None:
    """What somebody labelled last, if they did since then."""
    mine = Label.objects.filter(labelled_by=labelled_by, updated_at__gte=since)
    return mine.select_related("call", "call__agent").order_by("-updated_at", "-id").first()


def review_labels_since(*, since: datetime, labelled_by: str) -> tuple[int, int]:
    """How many items were labelled since then: by this person, and by everybody; each COUNTED_OF_A_DAY at most."""
    newest = Label.objects.filter(updated_at__gte=since)
    return _count(newest.filter(labelled_by=labelled_by), COUNTED_OF_A_DAY), _count(newest, COUNTED_OF_A_DAY)


# -- what is in the queue ------------------------------------------------------------------------------------------


class _LastByte(Func):
    """The last byte of a row's id, in the words of the index verdict_tenant_sampled."""

    function = "get_byte"
    template = "get_byte(uuid_send(%(expressions)s), 15)"
    output_field = IntegerField()


# In the words of the index verdict_tenant_near. Whether Mirror acted on a violation is another question.
_CLOSE: Final = Q(state="judged", score__gte=F("threshold") - NEAR)


def _rows(kind: Kind, filters: ReviewFilters) -> QuerySet[Any]:
    """The rows that bring items of a kind into the queue."""
    rows: QuerySet[Any]
    value = filters.label
    wanted = value is not None
    if kind is Kind.INTERVENTION:
        # One that is going on is not over yet.
        rows = Intervention.objects.exclude(outcome="", call__state=Call.State.LIVE)
        # What is said of its turn is said of it. Labels are few, interventions many, so those that have one are looked
        # up by theirs: an OR would ask every intervention.
        own = _of(value).filter(intervention_id__isnull=False).values("intervention_id")
        by_turn = Intervention.objects.filter(turn_id__in=_of(value).filter(turn_id__isnull=False).values("turn_id"))
        rows = (
            rows.filter(id__in=own.union(by_turn.values("id")))
            if wanted
            else rows.filter(
                ~Exists(Label.objects.filter(intervention_id=OuterRef("pk"))),
                ~Exists(Label.objects.filter(turn_id=OuterRef("turn_id"))),
            )
        )
    elif kind is Kind.TOOL:
        # What was blocked for another reason than a rule was no judgement.
        rows = ToolDecision.objects.filter(allow=False, code="policy")
        rows = rows.filter(_has(_of(value).filter(tool_decision_id=OuterRef("pk")), wanted))
    else:
        rows = _verdicts(kind).filter(_has(_of(value).filter(turn_id=OuterRef("turn_id")), wanted))
    if filters.made_from is not None:
        rows = rows.filter(id__gte=uuid7_floor(filters.made_from))
    if filters.made_to is not None:
        rows = rows.filter(id__lt=uuid7_floor(filters.made_to))
    if filters.agent_id is not None:
        rows = rows.filter(call__agent_id=filters.agent_id)
    return rows.filter(call__test=filters.test)


def _verdicts(kind: Kind) -> QuerySet[Verdict]:
    if kind is Kind.VIOLATION:
        acted = Intervention.objects.filter(turn_id=OuterRef("turn_id"))
        return Verdict.objects.filter(_CLOSE, ~Exists(acted), score__gte=F("threshold"))
    first = Verdict.objects.filter(late=False)
    if kind is Kind.NEAR:
        return first.filter(_CLOSE, score__lt=F("threshold"))
    close = Case(When(_CLOSE, then=Value(True)), default=Value(False), output_field=BooleanField())
    return first.alias(byte=_LastByte("id"), close=close).filter(byte__lt=SAMPLED_BELOW, close=False)


def _of(value: str | None) -> QuerySet[Label]:
    """Labels that say `value`, or anything."""
    return Label.objects.all() if value is None else Label.objects.filter(value=value)


def _has(labels: QuerySet[Label], wanted: bool) -> Q:
    return Q(Exists(labels)) if wanted else ~Q(Exists(labels))


def _calls(filters: ReviewFilters) -> QuerySet[Call]:
    calls = Call.objects.filter(test=filters.test)
    return calls if filters.agent_id is None else calls.filter(agent_id=filters.agent_id)


def _shown(kind: Kind, filters: ReviewFilters, now: datetime, reviewer_id: UUID | None) -> QuerySet[Any]:
    item = OuterRef("pk" if kind in (Kind.INTERVENTION, Kind.TOOL) else "turn_id")
    return _rows(kind, filters).filter(~Exists(_of_others(now, reviewer_id).filter(item_id=item)))


def _of_others(now: datetime, reviewer_id: UUID | None) -> QuerySet[ReviewReservation]:
    reserved = ReviewReservation.objects.filter(expires_at__gt=now)
    return reserved if reviewer_id is None else reserved.exclude(reviewer_id=reviewer_id)


def _kinds_from(filters: ReviewFilters, kind: Kind | None, *, backward: bool = False) -> list[Kind]:
    """The kinds that are asked for, from `kind` on; `backward`: those up to it."""
    kinds = [each for each in Kind if filters.kind in (None, each)]
    if kind is None:
        return kinds
    order = list(Kind)
    place = order.index(kind)
    return [each for each in kinds if (order.index(each) <= place if backward else order.index(each) >= place)]


def _items(kind: Kind, rows: QuerySet[Any]) -> list[QueueItem]:
    said = Subquery(Turn.objects.filter(id=OuterRef("turn_id")).values("text")[:1], output_field=TextField())
    agent = F("call__agent__name")
    none = Value(None, output_field=IntegerField())
    if kind is Kind.INTERVENTION:
        found = rows.values_list("id", "id", "call_id", agent, "rule", "verdict__score", "verdict__threshold")
    elif kind is Kind.TOOL:
        found = rows.values_list("id", "id", "call_id", agent, "name", "score", none)
    elif kind is Kind.VIOLATION:
        found = rows.values_list("turn_id", "id", "call_id", agent, "rule", "score", "threshold")
    else:
        found = rows.values_list("turn_id", "id", "call_id", agent, said, "score", "threshold")
    return [
        QueueItem(item_id, Place(kind, row_id), call_id, agent_name, (text or "")[:_TEXT_CHARS], score, threshold)
        for item_id, row_id, call_id, agent_name, text, score, threshold in found
    ]


def _count(rows: QuerySet[Any], most: int = COUNTED) -> int:
    return rows.order_by()[:most].count()


# -- one item ------------------------------------------------------------------------------------------------------


def _turns_around(
    call_id: UUID, turn: Turn | None, subject: Intervention | ToolDecision | None, around: int
) -> list[Turn]:
    turns = Turn.objects.filter(call_id=call_id)
    if turn is not None:
        nearby = turns.filter(index__gte=turn.index - around, index__lte=turn.index + around)
        return list(nearby.order_by("index", "id"))
    # A tool call that named no turn stands between two.
    at_ms = subject.at_ms if subject is not None else 0
    before = turns.filter(at_ms__lte=at_ms).order_by("-at_ms", "-id")[:around]
    after = turns.filter(at_ms__gt=at_ms).order_by("at_ms", "id")[:around]
    return [*reversed(before), *after]


def _place(
    item_id: UUID,
    intervention: Intervention | None,
    decision: ToolDecision | None,
    verdicts: Iterable[Verdict],
) -> Place:
    if intervention is not None:
        return Place(Kind.INTERVENTION, item_id)
    if decision is not None:
        return Place(Kind.TOOL, item_id)
    mine = [verdict for verdict in verdicts if verdict.turn_id == item_id]
    kinds: list[tuple[Kind, Callable[[Verdict], bool]]] = [
        (Kind.VIOLATION, lambda verdict: _reaches(verdict, 0.0)),
        (Kind.NEAR, lambda verdict: not verdict.late and _reaches(verdict, NEAR)),
        (Kind.SAMPLED, lambda verdict: not verdict.late),
    ]
    for kind, is_one in kinds:
        found = next((verdict for verdict in mine if is_one(verdict)), None)
        if found is not None:
            return Place(kind, found.id)
    # It is being judged still.
    return Place(Kind.SAMPLED, item_id)


def _reaches(verdict: Verdict, margin: float) -> bool:
    if verdict.state != "judged" or verdict.score is None or verdict.threshold is None:
        return False
    return verdict.score >= verdict.threshold - margin


def _label(item_id: UUID, intervention: Intervention | None, decision: ToolDecision | None) -> Label | None:
    if decision is not None:
        return Label.objects.filter(tool_decision_id=item_id).first()
    if intervention is None:
        return Label.objects.filter(turn_id=item_id).first()
    own = Label.objects.filter(intervention_id=item_id).first()
    if own is not None or intervention.turn_id is None:
        return own
    return Label.objects.filter(turn_id=intervention.turn_id).first()
