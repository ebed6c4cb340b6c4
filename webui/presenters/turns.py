"""A turn of the agent: what was heard of it, and what the judge said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from supervision.models import Turn, Verdict
from webui.formats import duration, score, sentence_of
from webui.presenters.interventions import InterventionView
from webui.presenters.pieces import Badge, order_key
from webui.presenters.tools import ToolView

NOT_JUDGED = ("timed_out", "failed", "shed")

Heard = Literal["said", "heard", "uncertain", "unheard"]


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a turn's text and whether the caller heard it. `said`: playout was not followed."""

    kind: Heard
    text: str


def heard_spans(turn: Turn) -> tuple[Span, ...]:
    """The turn's text in the order spoken, cut where hearing changes."""
    if not turn.heard_basis:
        return (Span("said", turn.text),) if turn.text else ()
    parts: list[tuple[Heard, str]] = [
        ("heard", turn.heard_text),
        ("uncertain", turn.uncertain_text),
        ("unheard", turn.unheard_text),
    ]
    return tuple(Span(kind, text.strip()) for kind, text in parts if text.strip())


def heard_words(turn: Turn) -> str:
    """One line on how much was heard and how we know."""
    if not turn.heard_basis:
        return ""
    basis = {
        "marks": "by the agent's marks",
        "pauses": "estimated from pauses in the audio",
        "estimated": "estimated from the play clock",
    }.get(turn.heard_basis, turn.heard_basis)
    if turn.heard_ms is not None and turn.audio_ms is not None:
        if not turn.uncertain_text and not turn.unheard_text:
            return f"heard in full, {duration(turn.audio_ms)}"
        return f"{duration(turn.heard_ms)} of {duration(turn.audio_ms)} heard, {basis}"
    return basis


WITHHELD = {
    "cooldown": "Did not step in: same rule as moments ago (cooldown).",
    "shadow": "Did not step in: shadow mode only watches.",
    "late": "Did not step in: the verdict came too late, the agent has a note.",
    "limit": "Did not step in: this call has had its limit of interventions.",
    "in_progress": "Did not step in: an intervention was already running; this joined its note.",
    "unarmed": "Did not step in: no voice for this language was ready; the agent has a note.",
}

VERDICT_BADGES: Mapping[str, Badge] = {
    "skipped": Badge("Skipped", "skip"),
    "timed_out": Badge("Timed out", "clock", "warn"),
    "failed": Badge("Judging failed", "alert", "warn"),
    "shed": Badge("Shed under load", "alert", "warn"),
}


@dataclass(frozen=True, slots=True)
class VerdictView:
    badge: Badge
    score: float | None
    threshold: float | None
    violation: bool
    score_words: str
    rule: str
    reason: str
    withheld: str
    latency_ms: int | None
    late: bool
    skipped: bool
    """There was no need to ask the judge, for the reason in `detail`."""
    detail: str


def verdict_view(verdict: Verdict) -> VerdictView:
    over = verdict.state == "judged" and verdict.intervene
    if verdict.state == "judged":
        badge = Badge("Violation", "alert", "bad") if over else Badge("Clean", "check", "good")
    else:
        badge = VERDICT_BADGES.get(verdict.state, Badge(sentence_of(verdict.state)))
    words = ""
    if verdict.score is not None:
        relation = "reaches" if verdict.threshold is not None and verdict.score >= verdict.threshold else "below"
        words = f"{score(verdict.score)} {relation} threshold {score(verdict.threshold)}"
    withheld = (
        ""
        if verdict.acted or not verdict.withheld
        else WITHHELD.get(verdict.withheld, f"Did not step in: {verdict.withheld}.")
    )
    return VerdictView(
        badge=badge,
        score=verdict.score,
        threshold=verdict.threshold,
        violation=over,
        score_words=words,
        rule=verdict.rule or "",
        reason=verdict.reason,
        withheld=withheld,
        latency_ms=verdict.latency_ms,
        late=verdict.late,
        skipped=verdict.state == "skipped",
        detail=verdict.detail,
    )


@dataclass(frozen=True, slots=True)
class TurnView:
    id: UUID
    call_id: UUID
    number: int
    at_ms: int
    customer_text: str
    spans: tuple[Span, ...]
    heard: str
    verdicts: tuple[VerdictView, ...]
    """Empty while the turn is being judged; a late answer comes second."""
    tools: tuple[ToolView, ...]
    interventions: tuple[InterventionView, ...]
    live: bool

    @property
    def dom_id(self) -> str:
        return f"turn-{self.id.hex}"

    @property
    def order(self) -> str:
        return order_key(self.at_ms, self.id)

    @property
    def violation(self) -> bool:
        return any(verdict.violation for verdict in self.verdicts)

    @property
    def judging(self) -> bool:
        return not self.verdicts


@dataclass(slots=True)
class TurnRows:
    verdicts: list[Verdict] = field(default_factory=list)
    tools: list[ToolView] = field(default_factory=list)
    interventions: list[InterventionView] = field(default_factory=list)


def turn_view(turn: Turn, about: TurnRows, live: bool) -> TurnView:
    verdicts = sorted(about.verdicts, key=lambda verdict: (verdict.late, verdict.at_ms))
    return TurnView(
        id=turn.id,
        call_id=turn.call_id,
        number=turn.index,
        at_ms=turn.at_ms,
        customer_text=turn.customer_text,
        spans=heard_spans(turn),
        heard=heard_words(turn),
        verdicts=tuple(verdict_view(verdict) for verdict in verdicts),
        tools=tuple(about.tools),
        interventions=tuple(about.interventions),
        live=live,
    )
