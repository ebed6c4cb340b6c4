"""The whole page of a call."""

from __future__ import annotations

from collections.abc import Iterable
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
        loose = [tool for tool in self.tools if tool.loose]
        return sorted([*self.turns, *loose], key=lambda item: item.order)


def call_page(record: CallRecord, now: datetime) -> CallPage:
    """Everything that a call's page shows."""
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

    turns = tuple(turn_view(turn, by_turn[turn.id], live) for turn in record.turns)
    return CallPage(
        head=call_head(record.call, now, record.judge_model),
        highlights=tuple(highlights_of(turns, interventions, tools)),
        no_highlights=no_highlights_words(record.call, bool(turns or tools)),
        turns=turns,
        interventions=tuple(interventions),
        tools=tuple(tools),
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
        )
        for shown in interventions
    ]
    found += [
        Highlight(
            tool.dom_id, tool.at_ms, Badge("Tool blocked", "ban", "bad"), tool.name, tool.reason or tool.why, None
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
                )
            )
    return sorted(found, key=lambda highlight: highlight.at_ms)
