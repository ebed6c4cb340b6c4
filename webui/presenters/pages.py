"""The whole page of a call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from supervision.models import Call
from supervision.selectors.call_pages import CallRecord
from webui.presenters.calls import CallHead, call_head
from webui.presenters.events import EventView, NoteView, event_view, note_view
from webui.presenters.interventions import InterventionView, intervention_view
from webui.presenters.pieces import Badge
from webui.presenters.tools import ToolView, tool_view
from webui.presenters.turns import TurnRows, TurnView, turn_view


@dataclass(frozen=True, slots=True)
class Highlight:
    """What a viewer looks at first: an intervention, a blocked tool, a violation that was let pass."""

    target: str
    at_ms: int
    badge: Badge
    title: str
    text: str
    outcome: Badge | None
    turn_id: UUID | None = None
    """The turn that shows it; None: the one during which it was."""

    @property
    def query(self) -> str:
        """Where on the call's page it is shown."""
        where = f"at={self.at_ms}" if self.turn_id is None else f"turn={self.turn_id}"
        return f"{where}#{self.target}"


@dataclass(frozen=True, slots=True)
class Pieces:
    """Turns with their verdicts, tools and interventions, and all tools and interventions."""

    turns: tuple[TurnView, ...]
    interventions: tuple[InterventionView, ...]
    tools: tuple[ToolView, ...]

    @property
    def story(self) -> list[TurnView | ToolView]:
        """Turns, and the tools that belong to none of them, in the order in which they came."""
        return story_of(self.turns, self.tools)


@dataclass(frozen=True, slots=True)
class CallPage:
    head: CallHead
    highlights: tuple[Highlight, ...]
    no_highlights: str
    """What to say when there are none."""
    turns: tuple[TurnView, ...]
    interventions: tuple[InterventionView, ...]
    tools: tuple[ToolView, ...]
    notes: tuple[NoteView, ...]
    events: tuple[EventView, ...]
    seq: int

    @property
    def story(self) -> list[TurnView | ToolView]:
        """Turns, and the tools that belong to none of them, in the order in which they came."""
        return story_of(self.turns, self.tools)

    @property
    def no_turns(self) -> str:
        """What to say when there are none, and what to do about it."""
        if self.head.live:
            return (
                "No turn yet. Turns appear as the agent reports them; an agent that does not use supervision.client "
                "reports none."
            )
        if self.head.agent_failed:
            return "The agent failed before it reported a turn."
        return (
            "The agent reported no turn in this call. Wrap its socket with supervision.client to have its turns judged."
        )


def story_of(turns: Iterable[TurnView], tools: Iterable[ToolView]) -> list[TurnView | ToolView]:
    """Turns and loose tools, in the order in which they came."""
    return sorted([*turns, *(tool for tool in tools if tool.loose)], key=lambda item: item.order)


def pieces_of(record: CallRecord) -> Pieces:
    """The rows of `record` as they are shown, each with what belongs to it."""
    live = record.call.state == Call.State.LIVE
    turn_of = {turn.id: turn for turn in record.turns}
    verdict_of = {verdict.id: verdict for verdict in record.verdicts}
    by_turn: dict[UUID, TurnRows] = {turn.id: TurnRows() for turn in record.turns}
    for verdict in record.verdicts:
        if verdict.turn_id in by_turn:
            by_turn[verdict.turn_id].verdicts.append(verdict)

    tools = []
    for decision in record.tool_decisions:
        turn = turn_of.get(decision.turn_id) if decision.turn_id else None
        view = tool_view(decision, turn.index if turn else None)
        tools.append(view)
        if turn is not None:
            by_turn[turn.id].tools.append(view)

    interventions = []
    for intervention in record.interventions:
        turn = turn_of.get(intervention.turn_id) if intervention.turn_id else None
        shown = intervention_view(
            intervention,
            turn_number=turn.index if turn else None,
            verdict=verdict_of.get(intervention.verdict_id) if intervention.verdict_id else None,
        )
        interventions.append(shown)
        if turn is not None:
            by_turn[turn.id].interventions.append(shown)

    return Pieces(
        turns=tuple(turn_view(turn, by_turn[turn.id], live) for turn in record.turns),
        interventions=tuple(interventions),
        tools=tuple(tools),
    )


def call_page(record: CallRecord, now: datetime, highlights: Sequence[Highlight] | None = None) -> CallPage:
    """What a call's page shows of the rows of `record`. `highlights` are those of the whole call, where `record` is
    only a part of it."""
    pieces = pieces_of(record)
    if highlights is None:
        highlights = highlights_of(pieces.turns, pieces.interventions, pieces.tools)
    supervised = bool(record.call.turn_count or pieces.turns or pieces.tools)
    return CallPage(
        head=call_head(record.call, now, record.judge_model),
        highlights=tuple(highlights),
        no_highlights=no_highlights_words(record.call, supervised),
        turns=pieces.turns,
        interventions=pieces.interventions,
        tools=pieces.tools,
        notes=tuple(note_view(note) for note in record.notes),
        events=tuple(event_view(event, record.call.started_at) for event in record.events),
        seq=record.seq,
    )


def no_highlights_words(call: Call, supervised: bool) -> str:
    """That nothing stood out, no stronger than what was looked at allows."""
    if call.state == Call.State.LIVE:
        return "Nothing to look at so far: no violation, no blocked tool."
    if not supervised:
        return "The agent reported nothing to judge, so nothing could stand out."
    if call.timed_out_count + call.failed_count + call.shed_count:
        return "No violation among the turns that were judged, no blocked tool."
    return "Nothing stood out: no violation, no blocked tool."


def highlights_of(
    turns: Iterable[TurnView], interventions: Iterable[InterventionView], tools: Iterable[ToolView]
) -> list[Highlight]:
    """Interventions, blocked tools, and violations on which nothing was done, in the order they happened."""
    found = [
        Highlight(
            shown.dom_id,
            shown.at_ms,
            Badge("Intervention", "mirror", "mirror") if shown.acted else Badge("Not acted on", "note", "warn"),
            shown.rule or "A rule was broken",
            f"“{shown.correction_text}”" if shown.correction_text else shown.plan,
            shown.badge,
            shown.turn_id,
        )
        for shown in interventions
    ]
    found += [
        Highlight(
            tool.dom_id,
            tool.at_ms,
            Badge("Tool blocked", "ban", "bad"),
            tool.name,
            tool.reason or tool.why,
            None,
            tool.turn_id,
        )
        for tool in tools
        if tool.blocked
    ]
    for turn in turns:
        verdict = next((verdict for verdict in turn.verdicts if verdict.violation), None)
        if verdict is not None and not turn.interventions:
            text = verdict.withheld or verdict.reason
            found.append(
                Highlight(
                    turn.dom_id,
                    turn.at_ms,
                    Badge("Violation", "alert", "bad"),
                    verdict.rule or "A rule was broken",
                    text,
                    Badge("Late answer", "clock", "warn") if verdict.late else None,
                    turn.id,
                )
            )
    return sorted(found, key=lambda highlight: highlight.at_ms)
