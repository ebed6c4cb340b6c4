"""A call as its page shows it: a window of turns around the chosen one, the chosen turn, and the timeline of it all.

However long a call is, its page is one window long; what is beyond comes when it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from supervision.models import Call
from supervision.selectors.call_pages import (
    CallOutline,
    CallRecord,
    CallTurnNotFound,
    TurnMark,
    call_events_before,
    call_highlights,
    call_outline,
    call_part,
    call_seq,
    call_turn,
    call_turn_marks,
    outline_of,
)
from supervision.selectors.calls import call_get
from supervision.selectors.search import turn_saying
from webui.presenters.calls import elapsed_ms
from webui.presenters.chosen import ChosenTurn, chosen_turn
from webui.presenters.events import EventView, event_view
from webui.presenters.labels import Refused
from webui.presenters.lanes import items_of
from webui.presenters.pages import CallPage, Highlight, call_page, highlights_of, pieces_of, story_of
from webui.presenters.tools import ToolView
from webui.presenters.turns import TurnView

TURNS_SHOWN: Final = 60
EVENTS_SHOWN: Final = 100


@dataclass(frozen=True, slots=True)
class TurnWindow:
    """Some of a call's turns. `earlier` and `later` count those that are not among them."""

    story: list[TurnView | ToolView]
    first_id: UUID | None
    last_id: UUID | None
    earlier_id: UUID | None
    later_id: UUID | None
    earlier: int
    later: int


@dataclass(frozen=True, slots=True)
class EventWindow:
    """The newest events before some number. `earlier_seq` is where older ones begin; None without any."""

    events: tuple[EventView, ...]
    earlier_seq: int | None


@dataclass(frozen=True, slots=True)
class CallShown:
    """The page of a call. `chosen_here` is whether the URL named the chosen turn."""

    page: CallPage
    window: TurnWindow
    chosen: ChosenTurn
    chosen_here: bool
    events_earlier_seq: int | None
    timeline: dict[str, Any]


def call_shown(
    *,
    call_id: UUID,
    turn_id: UUID | None,
    at_ms: int | None,
    now: datetime,
    said: str = "",
    events_before_seq: int | None = None,
    refused: Refused | None = None,
) -> CallShown:
    """The page of a call around the turn `turn_id`, else the one during which `at_ms` was, else the first one in which
    `said` was said, else the one to begin with.

    A turn that is none of the call's is as if none was named. The log ends with the newest event, or with the one
    before `events_before_seq`. Raises CallNotFound.
    """
    # Before the rows: what comes meanwhile is sent once more, and not left out.
    seq = call_seq(call_id=call_id) or 0
    call = call_get(call_id=call_id)
    outline = call_outline(call_id=call_id)
    highlights = highlights_in(call)
    marks = outline.turns
    named = _place(marks, turn_id, at_ms)
    if named is None and said:
        named = _place(marks, turn_saying(call_id=call_id, text=said), None)
    place = _first_place(call, marks, highlights) if named is None else named
    window_marks, begins_ms, ends_ms, first = _around(marks, place)
    events, older = call_events_before(call_id=call_id, before_seq=events_before_seq, limit=EVENTS_SHOWN)
    record = call_part(call=call, marks=window_marks, begins_ms=begins_ms, ends_ms=ends_ms)
    page = call_page(replace(record, events=events, seq=seq), now, highlights)
    found = call_turn(call=call, turn_id=marks[place].id if marks else None, judge_model=record.judge_model)
    return CallShown(
        page=page,
        window=_window(page.story, marks, first, len(window_marks)),
        chosen=chosen_turn(found, refused=refused),
        chosen_here=named is not None,
        events_earlier_seq=events[0].seq if older else None,
        timeline=_timeline(call, outline, now),
    )


def highlights_in(call: Call) -> tuple[Highlight, ...]:
    """What stands out in the whole call, in the order in which it happened."""
    found = pieces_of(call_highlights(call=call))
    return tuple(highlights_of(found.turns, found.interventions, found.tools))


def timeline_news(record: CallRecord, *, now: datetime) -> dict[str, Any]:
    """What a timeline has to draw anew when the rows of `record` changed."""
    return _timeline(record.call, outline_of(record), now)


def turn_shown(*, call_id: UUID, turn_id: UUID | None, refused: Refused | None = None) -> ChosenTurn:
    """One turn's panel. Raises CallNotFound and CallTurnNotFound."""
    return chosen_turn(call_turn(call=call_get(call_id=call_id), turn_id=turn_id), refused=refused)


def turns_around(*, call_id: UUID, turn_id: UUID | None) -> TurnWindow:
    """The window of turns around one, or around the first one. Raises CallNotFound and CallTurnNotFound."""
    call = call_get(call_id=call_id)
    marks = call_turn_marks(call=call)
    place = 0 if turn_id is None else _index(marks, turn_id)
    if place is None:
        raise CallTurnNotFound
    window_marks, begins_ms, ends_ms, first = _around(marks, place)
    pieces = pieces_of(call_part(call=call, marks=window_marks, begins_ms=begins_ms, ends_ms=ends_ms))
    return _window(story_of(pieces.turns, pieces.tools), marks, first, len(window_marks))


def turns_beyond(*, call_id: UUID, before: UUID | None = None, after: UUID | None = None) -> TurnWindow:
    """The turns next to a window: before its first one, or after its last one.

    Raises CallNotFound and CallTurnNotFound.
    """
    call = call_get(call_id=call_id)
    marks = call_turn_marks(call=call)
    place = _index(marks, before or after)
    if place is None:
        raise CallTurnNotFound
    first, last = (max(0, place - TURNS_SHOWN), place) if before else (place + 1, place + 1 + TURNS_SHOWN)
    part = marks[first:last]
    pieces = pieces_of(
        call_part(
            call=call,
            marks=part,
            begins_ms=marks[first].at_ms if first and part else None,
            ends_ms=marks[last].at_ms if last < len(marks) else None,
        )
    )
    return _window(story_of(pieces.turns, pieces.tools) if part else [], marks, first, len(part))


def events_before(*, call_id: UUID, before_seq: int | None) -> EventWindow:
    """The newest events before `before_seq` (None: of all), as far as a page goes. Raises CallNotFound."""
    call = call_get(call_id=call_id)
    events, older = call_events_before(call_id=call_id, before_seq=before_seq, limit=EVENTS_SHOWN)
    shown = tuple(event_view(event, call.started_at) for event in events)
    return EventWindow(shown, events[0].seq if older else None)


def _timeline(call: Call, outline: CallOutline, now: datetime) -> dict[str, Any]:
    return {
        "live": call.state == Call.State.LIVE,
        "ms": elapsed_ms(call, now),
        "items": [item.as_json() for item in items_of(outline)],
    }


def _place(marks: Sequence[TurnMark], turn_id: UUID | None, at_ms: int | None) -> int | None:
    if turn_id is not None and (place := _index(marks, turn_id)) is not None:
        return place
    if at_ms is None or not marks:
        return None
    return max(0, sum(1 for mark in marks if mark.at_ms <= at_ms) - 1)


def _first_place(call: Call, marks: Sequence[TurnMark], highlights: Sequence[Highlight]) -> int:
    """Where to begin: with a running call at its end, else at the first thing that stands out."""
    if call.state == Call.State.LIVE:
        return max(0, len(marks) - 1)
    if highlights:
        return _place(marks, highlights[0].turn_id, highlights[0].at_ms) or 0
    return 0


def _index(marks: Sequence[TurnMark], turn_id: UUID | None) -> int | None:
    return next((place for place, mark in enumerate(marks) if mark.id == turn_id), None)


def _around(marks: Sequence[TurnMark], place: int) -> tuple[Sequence[TurnMark], int | None, int | None, int]:
    """The window around a turn: its turns, from when until when it is, and the place of its first turn."""
    first = max(0, min(place - TURNS_SHOWN // 2, len(marks) - TURNS_SHOWN))
    last = first + TURNS_SHOWN
    begins_ms = marks[first].at_ms if first else None
    ends_ms = marks[last].at_ms if last < len(marks) else None
    return marks[first:last], begins_ms, ends_ms, first


def _window(story: list[TurnView | ToolView], marks: Sequence[TurnMark], first: int, count: int) -> TurnWindow:
    last = first + count
    return TurnWindow(
        story=story,
        first_id=marks[first].id if count else None,
        last_id=marks[last - 1].id if count else None,
        earlier_id=marks[first - 1].id if first and count else None,
        later_id=marks[last].id if last < len(marks) and count else None,
        earlier=first if count else 0,
        later=len(marks) - last if count else 0,
    )
