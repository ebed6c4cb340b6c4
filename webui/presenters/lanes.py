"""A call on lanes, to scale: who spoke when, what of it was heard, what Mirror and its judge did meanwhile.

Positions are milliseconds from the start of the call. The browser draws them (js/timeline.js); what it draws is decided
here. When the agent's audio of a turn began is nowhere recorded: it is counted back from when it ended or was cut, and
not before the turn was reported. Of callers there are words with the moment at which they had been said; how long they
took is estimated from their length.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from supervision.models import Intervention
from supervision.selectors.call_pages import CallOutline, SpeechMark, ToolMark, TurnMark, VerdictMark
from webui.presenters.waterfall import step_times

CALLER, HEARD, CUT, MIRROR, TOOLS, VERDICTS = range(6)

# Telephone speech runs at about 15 characters a second.
MS_PER_CHAR: Final = 65
SHORTEST_SPEECH_MS: Final = 300
# How long after a turn's end it is known and recorded what was heard of it (stream/supervised.py).
SETTLES_MS: Final = 500

_PROOFS: Final = ("silence_proved", "cleared", "fence", "silence_unproven")
_NOT_JUDGED: Final = ("timed_out", "failed", "shed")


@dataclass(frozen=True, slots=True)
class Mark:
    """A stretch of a lane; `to_ms` is None while it goes on, and equal to `from_ms` for a moment."""

    lane: int
    kind: str
    from_ms: int
    to_ms: int | None


@dataclass(frozen=True, slots=True)
class Item:
    """What one thing of a call draws. `turn_id` is the turn it belongs to; `number` is a turn's own."""

    id: str
    turn_id: UUID | None
    at_ms: int
    marks: tuple[Mark, ...]
    number: int | None = None

    def as_json(self) -> dict[str, Any]:
        """As js/timeline.js takes it; what is None is left out, and the turn of a turn, since there are thousands."""
        found: dict[str, Any] = {"id": self.id, "at": self.at_ms}
        if self.number is not None:
            found["n"] = self.number
        elif self.turn_id is not None:
            found["turn"] = str(self.turn_id)
        found["marks"] = [[mark.lane, mark.kind, mark.from_ms, mark.to_ms] for mark in self.marks]
        return found


def items_of(outline: CallOutline) -> tuple[Item, ...]:
    """Everything that a timeline draws of `outline`."""
    verdicts: dict[UUID, list[VerdictMark]] = {}
    for verdict in outline.verdicts:
        verdicts.setdefault(verdict.turn_id, []).append(verdict)
    interventions: dict[UUID | None, list[Intervention]] = {}
    for intervention in outline.interventions:
        interventions.setdefault(intervention.turn_id, []).append(intervention)
    items = [
        Item(
            str(turn.id),
            turn.id,
            turn.at_ms,
            (
                *(() if outline.transcribed else _caller_of(turn)),
                *_audio_of(turn, interventions.get(turn.id, [])),
                *map(_verdict, verdicts.get(turn.id, [])),
            ),
            turn.number,
        )
        for turn in outline.turns
    ]
    items += [Item(each.id.hex, each.turn_id, each.at_ms, tuple(_mirror(each))) for each in outline.interventions]
    items += [Item(tool.id.hex, tool.turn_id, tool.at_ms, (_tool(tool),)) for tool in outline.tools]
    items += [_speech(said, before) for said, before in _with_before(outline.speech)]
    return tuple(items)


def begins_ms(turn: TurnMark, interventions: Iterable[Intervention]) -> int | None:
    """When the turn's audio began to play, as far as that can be counted back; None when playout was not followed."""
    if turn.heard_ms is None:
        return None
    ends = [turn.heard_at_ms - SETTLES_MS] if turn.heard_at_ms is not None else []
    for intervention in interventions:
        times = step_times(intervention)
        if "clear_sent" in times:
            ends.append(min((times[name] for name in _PROOFS if name in times), default=times["clear_sent"]))
        elif intervention.plan == "retract":
            ends.append(intervention.at_ms)
    return max(turn.at_ms, min(ends) - turn.heard_ms) if ends else turn.at_ms


def _audio_of(turn: TurnMark, interventions: list[Intervention]) -> Iterable[Mark]:
    begins = begins_ms(turn, interventions)
    if begins is None or turn.heard_ms is None:
        yield Mark(HEARD, "reported", turn.at_ms, turn.at_ms)
        return
    cut_at = begins + turn.heard_ms
    if turn.heard_ms:
        yield Mark(HEARD, "heard", begins, cut_at)
    if turn.audio_ms is not None and turn.audio_ms > turn.heard_ms:
        yield Mark(CUT, "cut", cut_at, begins + turn.audio_ms)


def _caller_of(turn: TurnMark) -> Iterable[Mark]:
    """What the caller said before the turn, for a call without transcripts of their own."""
    if turn.customer_chars:
        yield Mark(CALLER, "caller", max(0, turn.at_ms - _speech_ms(turn.customer_chars)), turn.at_ms)


def _speech(said: SpeechMark, before: SpeechMark | None) -> Item:
    takes = _speech_ms(said.chars)
    if said.role == "mirror":
        mark = Mark(MIRROR, "hold-line", said.at_ms, said.at_ms + takes)
    else:
        after = before.at_ms if before is not None else 0
        mark = Mark(CALLER, "caller", max(0, min(said.at_ms, max(after, said.at_ms - takes))), said.at_ms)
    return Item(f"speech-{said.seq}", None, said.at_ms, (mark,))


def _with_before(speech: list[SpeechMark]) -> Iterable[tuple[SpeechMark, SpeechMark | None]]:
    before: dict[str, SpeechMark] = {}
    for said in speech:
        yield said, before.get(said.role)
        before[said.role] = said


def _speech_ms(chars: int) -> int:
    return max(SHORTEST_SPEECH_MS, chars * MS_PER_CHAR)


def _verdict(verdict: VerdictMark) -> Mark:
    if verdict.state in _NOT_JUDGED:
        kind = "not-judged"
    elif verdict.state == "skipped":
        kind = "skipped"
    else:
        kind = "violation" if verdict.intervene else "clean"
    return Mark(VERDICTS, kind, max(0, verdict.at_ms - (verdict.latency_ms or 0)), verdict.at_ms)


def _tool(tool: ToolMark) -> Mark:
    begins = max(0, tool.at_ms - (tool.latency_ms or 0))
    if not tool.allow:
        return Mark(TOOLS, "blocked", begins, tool.at_ms)
    return Mark(TOOLS, "tool", begins, tool.at_ms if tool.done_at_ms is None else tool.done_at_ms)


def _mirror(intervention: Intervention) -> Iterable[Mark]:
    times = step_times(intervention)
    over = intervention.ended_at_ms
    buffer = times.get("buffer_sent")
    played = times.get("buffer_played")
    if buffer is not None:
        yield Mark(MIRROR, "buffer", buffer, played if played is not None else over)
    if (sent := times.get("correction_sent")) is not None:
        begins = max(sent, played or 0)
        ends = [times[name] for name in ("correction_played", "correction_unacknowledged") if name in times]
        yield Mark(MIRROR, "correction", begins, min(ends) if ends else over)
    if buffer is None and sent is None:
        yield Mark(MIRROR, "note", intervention.at_ms, intervention.at_ms)
