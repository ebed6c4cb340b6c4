"""The review page: an item with what it takes to judge it, its place in the queue, and how far the queue is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from uuid import UUID

from django.urls import reverse

from supervision.models import Intervention, Label, ToolDecision, Turn, Verdict
from supervision.selectors.label_statistics import LabelStatistics, Proportion
from supervision.selectors.reviews import COUNTED, Kind, QueueItem, ReviewItem
from supervision.services.labels import label_subject
from webui.formats import count_of, score
from webui.pager import Query, list_url
from webui.presenters.calls import policy_version_words
from webui.presenters.evidence import evidence_of
from webui.presenters.interventions import InterventionView, intervention_view
from webui.presenters.labels import LABELS, LabelOption, Subject, label_view
from webui.presenters.pieces import Badge
from webui.presenters.tools import ToolView, tool_view
from webui.presenters.turns import VERDICT_BADGES, WITHHELD, Heard, heard_spans, heard_words

KEYS: Mapping[str, str] = {"confirmed": "1", "false_alarm": "2", "unsure": "3", "missed": "M"}

# What each kind of item is called, for many of them.
KIND_NAMES: Mapping[Kind, str] = {
    Kind.INTERVENTION: "Interventions",
    Kind.TOOL: "Blocked tools",
    Kind.VIOLATION: "Violations let pass",
    Kind.NEAR: "Close calls",
    Kind.SAMPLED: "Samples",
}

BADGES: Mapping[Kind, Badge] = {
    Kind.INTERVENTION: Badge("Intervention", "mirror", "mirror"),
    Kind.TOOL: Badge("Tool blocked", "ban", "bad"),
    Kind.VIOLATION: Badge("Violation let pass", "alert", "bad"),
    Kind.NEAR: Badge("Close call", "info", "warn"),
    Kind.SAMPLED: Badge("Sample", "dash"),
}


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of what the agent said: whether the caller heard it, and whether the judge quoted it."""

    kind: Heard
    text: str
    quoted: bool


@dataclass(frozen=True, slots=True)
class ContextTurn:
    """A turn around the item, or the item's own."""

    id: UUID
    number: int
    at_ms: int
    customer_text: str
    pieces: tuple[Piece, ...]
    heard: str
    badge: Badge | None
    score: float | None
    tools: tuple[ToolView, ...]
    interventions: tuple[InterventionView, ...]
    own: bool


@dataclass(frozen=True, slots=True)
class Judged:
    """What the judge said: the score against its threshold, the rule, the reason, and what was not done about it."""

    badge: Badge
    score: float | None
    threshold: float | None
    words: str
    rule: str
    reason: str
    detail: str
    withheld: str
    latency_ms: int | None
    late: bool


@dataclass(frozen=True, slots=True)
class Said:
    """What was said of an item so far."""

    badge: Badge
    by: str
    at: datetime
    note: str


@dataclass(frozen=True, slots=True)
class KeyedOption:
    """A label that can be given, and its key."""

    option: LabelOption
    key: str
    chosen: bool


@dataclass(frozen=True, slots=True)
class ItemPage:
    """One item."""

    id: UUID
    badge: Badge
    why: str
    title: str
    call_url: str
    agent: str
    at: datetime
    at_ms: int
    policy: str
    judged: Judged | None
    turns: tuple[ContextTurn, ...]
    tool: ToolView | None
    intervention: InterventionView | None
    question: str
    options: tuple[KeyedOption, ...]
    said: Said | None
    seen: str
    not_stored: bool


@dataclass(frozen=True, slots=True)
class QueueRow:
    """An item in the list beside."""

    url: str
    badge: Badge
    text: str
    agent: str
    at: datetime
    score: str
    current: bool


@dataclass(frozen=True, slots=True)
class ProgressRow:
    """How many items of a kind are left; `url` shows them alone."""

    name: str
    url: str
    left: str
    current: bool


@dataclass(frozen=True, slots=True)
class ProgressView:
    """How far the queue is today, by everybody's labels."""

    rows: tuple[ProgressRow, ...]
    left: int
    labelled: int
    words: str

    @property
    def total(self) -> int:
        return self.left + self.labelled


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of labels with its interval, in words."""

    name: str
    value: str
    why: str


@dataclass(frozen=True, slots=True)
class Last:
    """What the reviewer said last, to go back to or to take back."""

    label_id: UUID
    badge: Badge
    url: str
    agent: str
    at: str
    may_undo: bool


def item_page(item: ReviewItem, *, chosen: str = "") -> ItemPage:
    """`chosen` is the label of a form that comes back with an error."""
    subject: Subject = "intervention" if item.intervention else "tool_decision" if item.tool_decision else "turn"
    labels = [item.label] if item.label is not None else []
    offered = label_view(subject, item.item_id, labels, alarm=not item.passed)
    verdict = _own_verdict(item)
    judged = None if verdict is None else _judged(verdict)
    shown = None if item.intervention is None else intervention_view(item.intervention, verdict=verdict)
    tool = None if item.tool_decision is None else tool_view(item.tool_decision)
    turn = [("turn", str(item.turn.id))] if item.turn is not None else []
    at_ms = next(row.at_ms for row in (item.intervention, item.tool_decision, item.turn) if row is not None)
    return ItemPage(
        id=item.item_id,
        badge=BADGES[item.place.kind],
        why=_why(item, verdict),
        title=_title(item, verdict),
        call_url=list_url(reverse("webui:call", args=[item.call.id]), turn),
        agent=item.call.agent.name,
        at=item.call.started_at + timedelta(milliseconds=at_ms),
        at_ms=at_ms,
        policy=policy_version_words(item.call),
        judged=judged,
        turns=tuple(_context(item, turn, judged.reason if judged else "") for turn in item.turns),
        tool=tool,
        intervention=shown,
        question=offered.question,
        options=tuple(
            KeyedOption(option, KEYS[option.value], option.value == (chosen or (labels[0].value if labels else "")))
            for option in offered.options
        ),
        said=None if item.label is None else _said(item.label),
        seen="" if item.label is None else item.label.updated_at.isoformat(),
        not_stored=item.call.storage_limit,
    )


def queue_rows(items: Iterable[QueueItem], *, current: UUID | None, query: Query) -> tuple[QueueRow, ...]:
    return tuple(
        QueueRow(
            url=item_url(item.item_id, query),
            badge=BADGES[item.place.kind],
            text=item.text or "no words",
            agent=item.agent,
            at=item.at,
            score="" if item.score is None else score(item.score),
            current=item.item_id == current,
        )
        for item in items
    )


def item_url(item_id: UUID, query: Query) -> str:
    return list_url(reverse("webui:review_item", args=[item_id]), query)


def progress_view(left: Mapping[Kind, int], *, labelled: int, kind: Kind | None, query: Query) -> ProgressView:
    """`left` by kind, and how many were `labelled` today; `kind` is the one that is filtered for, if any."""
    url = reverse("webui:review")
    rest = [(name, value) for name, value in query if name not in ("kind", "label")]
    asked = {each: count for each, count in left.items() if kind in (None, each)}
    total = sum(asked.values())
    more = " or more" if COUNTED in asked.values() else ""
    return ProgressView(
        rows=tuple(
            ProgressRow(KIND_NAMES[each], list_url(url, [*rest, ("kind", each.value)]), _capped(count), each is kind)
            for each, count in left.items()
        ),
        left=total,
        labelled=labelled,
        words=f"{count_of(total, 'item')}{more} left, {count_of(labelled, 'labelled', 'labelled')} today",
    )


def rates_of(statistics: LabelStatistics) -> tuple[Rate, ...]:
    """The rates that labels give; those without labels say what is missing."""
    return (
        _rate(
            "False alarms",
            statistics.alarms.false_alarms,
            "reviewed alarm",
            "Label an intervention or a blocked tool, and this says how often Mirror is wrong.",
        ),
        _rate(
            "Missed",
            statistics.sampled.misses,
            "reviewed sample",
            "Label a sample, and this says how often Mirror lets pass what it should not.",
        ),
    )


def last_view(label: Label, query: Query) -> Last:
    """Needs `call` and its `agent` loaded."""
    return Last(
        label_id=label.id,
        badge=LABELS[label.value],
        url=item_url(label_subject(label)[1], query),
        agent=label.call.agent.name,
        at=label.updated_at.isoformat(),
        # What replaced somebody's word is changed on its page; taking it back would take back theirs as well.
        may_undo=label.created_at == label.updated_at,
    )


# -- one item ------------------------------------------------------------------------------------------------------


def _own_verdict(item: ReviewItem) -> Verdict | None:
    """The verdict that the item is about."""
    if item.tool_decision is not None:
        return None
    if item.intervention is not None:
        wanted = item.intervention.verdict_id
        return next((verdict for verdict in item.verdicts if verdict.id == wanted), None)
    return next((verdict for verdict in item.verdicts if verdict.id == item.place.row_id), None)


def _title(item: ReviewItem, verdict: Verdict | None) -> str:
    if item.tool_decision is not None:
        return item.tool_decision.name
    if item.intervention is not None and item.intervention.rule:
        return item.intervention.rule
    if item.place.kind in (Kind.VIOLATION, Kind.INTERVENTION):
        return (verdict.rule if verdict is not None else "") or "A rule was broken"
    return f"Turn {item.turn.index}" if item.turn is not None else "A turn"


def _why(item: ReviewItem, verdict: Verdict | None) -> str:
    kind = item.place.kind
    if kind is Kind.INTERVENTION:
        return "Mirror objected to this turn."
    if kind is Kind.TOOL:
        return "Mirror kept the agent from running this tool."
    if kind is Kind.VIOLATION:
        return "The judge found this turn against a rule, and Mirror did nothing about it."
    if kind is Kind.NEAR and verdict is not None and verdict.score is not None and verdict.threshold is not None:
        return f"Mirror let this turn pass: it stayed {score(verdict.threshold - verdict.score)} below the threshold."
    return "Picked at random from what Mirror let pass, so that you learn what it misses."


def _reaches(verdict: Verdict) -> bool:
    known = verdict.state == "judged" and verdict.score is not None and verdict.threshold is not None
    return known and verdict.score >= verdict.threshold  # type: ignore[operator]


def _verdict_badge(verdict: Verdict) -> Badge:
    if verdict.state == "judged":
        return Badge("Violation", "alert", "bad") if _reaches(verdict) else Badge("Clean", "check", "good")
    return VERDICT_BADGES.get(verdict.state, Badge(verdict.state))


def _judged(verdict: Verdict) -> Judged:
    words = ""
    if verdict.score is not None:
        relation = "reaches" if _reaches(verdict) else "below"
        words = f"{score(verdict.score)} {relation} threshold {score(verdict.threshold)}"
    withheld = "" if verdict.acted or not _reaches(verdict) else WITHHELD.get(verdict.withheld, "")
    return Judged(
        badge=_verdict_badge(verdict),
        score=verdict.score,
        threshold=verdict.threshold,
        words=words,
        rule=verdict.rule or "",
        reason=verdict.reason,
        detail=verdict.detail,
        withheld=withheld,
        latency_ms=None if verdict.state == "skipped" else verdict.latency_ms,
        late=verdict.late,
    )


def _context(item: ReviewItem, turn: Turn, reason: str) -> ContextTurn:
    own = item.turn is not None and turn.id == item.turn.id
    verdicts = [verdict for verdict in item.verdicts if verdict.turn_id == turn.id and not verdict.late]
    decisions: list[ToolDecision] = [row for row in item.tool_decisions if row.turn_id == turn.id]
    acted: list[Intervention] = [row for row in item.interventions if row.turn_id == turn.id]
    return ContextTurn(
        id=turn.id,
        number=turn.index,
        at_ms=turn.at_ms,
        customer_text=turn.customer_text,
        pieces=tuple(said_pieces(turn, reason if own else "")),
        heard=heard_words(turn) if own else "",
        badge=_verdict_badge(verdicts[-1]) if verdicts else None,
        score=verdicts[-1].score if verdicts else None,
        tools=tuple(tool_view(row) for row in decisions),
        interventions=tuple(intervention_view(row) for row in acted),
        own=own,
    )


def said_pieces(turn: Turn, reason: str) -> Iterable[Piece]:
    """A turn's words in the order spoken, cut where hearing changes and where the judge's quotes begin and end."""
    marks: list[tuple[int, int]] = []
    at = 0
    for evidence in evidence_of(turn.text, reason) if turn.text else ():
        if evidence.quoted:
            marks.append((at, at + len(evidence.text)))
        at += len(evidence.text)
    done = 0
    for span in heard_spans(turn):
        found = turn.text.find(span.text, done)
        if found < 0:
            # What was heard is not word for word what the agent reported: quotes are looked for in the stretch alone.
            for evidence in evidence_of(span.text, reason):
                yield Piece(span.kind, evidence.text, evidence.quoted)
            yield Piece("said", " ", quoted=False)
            continue
        stretches: list[tuple[Heard, int, int]] = [
            ("said", done, found),
            (span.kind, found, found + len(span.text)),
        ]
        for kind, begin, stop in stretches:
            cuts = {begin, stop, *(place for mark in marks for place in mark if begin < place < stop)}
            for start, end in pairwise(sorted(cuts)):
                quoted = any(first <= start and end <= last for first, last in marks)
                yield Piece(kind, turn.text[start:end], quoted)
        done = found + len(span.text)


def _said(label: Label) -> Said:
    return Said(LABELS[label.value], label.labelled_by, label.updated_at, label.note)


def _capped(count: int) -> str:
    return f"{COUNTED:,}+".replace(",", "\u202f") if count >= COUNTED else str(count)


def _rate(name: str, found: Proportion | None, of: str, missing: str) -> Rate:
    if found is None:
        return Rate(name, "not known yet", missing)
    low, high = (f"{100 * value:.0f}" for value in (found.low, found.high))
    return Rate(
        name,
        f"{100 * found.share:.0f} %",
        f"{low} to {high} % with 95 % confidence, from {count_of(found.of, of)} of the last 30 days",
    )
