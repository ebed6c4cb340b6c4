"""Labelled calls on virtual time, for `bench_delivery`: what the caller hears of bad turns, and when turns begin.

The consumer, session, relay, engine and pre-gate are the real ones; sockets, Plivo (the stand-in) and time are not. The
judge knows the labels and answers after a given time, and so does the model that writes corrections. Speech is tones,
one for words that a label quotes as bad (of a bad turn without a quote: for all of it) and one for all others, at 14
characters a second with a pause behind each sentence; what was heard is told from the tones that came out of Plivo.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import pytest

from benchmarks.labelled_calls import LabelledTurn
from supervision.audio.heard import find_span
from supervision.plivo.simulator import PlivoSwitches, SimulatedCall
from tests.e2e.agents import AgentCall
from tests.engine.llms import CLEAN, Asked
from tests.stream.world import Voice, World, ears, tone
from tests.support.virtual_time import VirtualTimeLoop

KINDS: Final = {
    "turn": "turns reported whole, their audio all at once",
    "paced": "turns reported whole, their audio at the pace of speech",
    "delta": "turns told word by word (25 a second), their audio at the pace of speech from the first sentence on",
}
CHARS_PER_S: Final = 14.0
WORD_EVERY_S: Final = 0.04
TTS_S: Final = 0.15  # from the end of a turn's first sentence, told word by word, to its first audio
PAUSE_S: Final = 0.18  # behind a sentence
OTHER_S: Final = 1.0  # of a turn that is not bad, that much is spoken: only when it begins is measured
WIRE_S: Final = 0.03  # between Mirror and Plivo, each way
BETWEEN_S: Final = 0.8  # from the end of a turn to the next
MAX_SPOKEN_S: Final = 40.0
GOOD, BAD = "words that may be said", "words that a label calls bad"


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of a labelled call; ``quote`` are the characters that its label quotes as bad."""

    text: str
    customer_text: str
    tool_calls: tuple[Mapping[str, Any], ...]
    bad: bool
    quote: tuple[int, int] | None


@dataclass(slots=True)
class Outcome:
    """What became of one turn, in seconds; ``begins_s`` from its first audio to the caller's ear, None: never."""

    turn: Turn
    held_s: float
    state: str
    withheld: str | None
    plan: str
    begins_s: float | None = None
    bad_heard_s: float = 0.0
    cut_to_buffer_s: float | None = None
    buffer_to_correction_s: float | None = None


@dataclass(slots=True)
class _Said:
    turn: Turn
    at: float
    ref: str = ""


@dataclass(slots=True)
class _Script:
    turns: list[Turn]
    kind: str
    said: list[_Said] = field(default_factory=list)
    world: World | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, agent: AgentCall) -> None:
        await agent.hello()
        now = asyncio.get_running_loop().time
        assert self.world is not None
        assert self.world.simulated is not None
        began = self.world.simulated.record.began_at
        for number, turn in enumerate(self.turns):
            ref = f"t{number}"
            telling = None
            if self.kind == "delta":
                telling = asyncio.create_task(_tell(agent, ref, turn))
                first = re.match(r".*?[.!?](?=\s|$)", turn.text, re.DOTALL)
                words = len((first[0] if first else turn.text).split())
                await asyncio.sleep(words * WORD_EVERY_S + TTS_S)
            else:
                await agent.send(
                    "mirror.turn",
                    turn_id=ref,
                    customer_text=turn.customer_text,
                    text=turn.text,
                    tool_calls=list(turn.tool_calls),
                )
            self.said.append(_Said(turn, now() - began, ref))
            await agent.speak(spoken(turn), paced=self.kind != "turn")
            if telling is not None:
                await telling
            await agent.send("checkpoint", streamId=agent.stream_id, name=ref)
            await agent.wait("playedStream", name=ref, timeout_s=120.0)
            for begun in agent.of("mirror.intervention"):
                if begun["phase"] == "started":
                    await agent.wait("mirror.intervention", id=begun["id"], phase="completed", timeout_s=30.0)
            await asyncio.sleep(BETWEEN_S)
        self.over.set()


async def _tell(agent: AgentCall, ref: str, turn: Turn) -> None:
    words = re.findall(r"\S+\s*", turn.text) or [turn.text]
    for number, word in enumerate(words):
        more = {"customer_text": turn.customer_text} if number == 0 else {}
        final = {"final": True} if number == len(words) - 1 else {}
        await agent.send("mirror.delta", turn_id=ref, text=word, **more, **final)
        await asyncio.sleep(WORD_EVERY_S)


def spoken(turn: Turn) -> bytes:
    """The turn's audio, mu-law at 8 kHz."""
    if not turn.bad:
        return tone(GOOD, OTHER_S)
    start, end = turn.quote or (0, len(turn.text))
    edges = sorted({0, start, end, len(turn.text), *(found.end() for found in re.finditer(r"[.!?]\s", turn.text))})
    parts, seconds = [], 0.0
    for begins, ends in pairwise(edges):
        lasts = max(0.02, round((ends - begins) / CHARS_PER_S / 0.02) * 0.02)
        parts.append(tone(BAD if start <= begins < end else GOOD, lasts))
        if turn.text[ends - 1 : ends].isspace():
            parts.append(b"\xff" * int(PAUSE_S * 8000))
        seconds += lasts
        if seconds > MAX_SPOKEN_S:
            break
    return b"".join(parts)


def judge_of(turns: Iterable[Turn]) -> Any:
    """A judge that knows the labels: a bad turn is one from where its quote is complete, or as a whole."""
    bad = [turn for turn in turns if turn.bad]

    def judge(asked: Asked) -> dict[str, Any]:
        said = asked.user["agent_text"]
        for turn in bad:
            if not said or not turn.text.startswith(said.rstrip()):
                continue
            if turn.quote is not None and len(said) >= turn.quote[1]:
                quote = turn.text[slice(*turn.quote)].replace('"', "")
                return {"score": 0.95, "rule": "1", "reason": f'It says "{quote}".', "correction": ""}
            if turn.quote is None and said.strip() == turn.text.strip():
                return {"score": 0.95, "rule": "1", "reason": "The label says so.", "correction": ""}
        return dict(CLEAN)

    return judge


def outcomes(turns: list[Turn], delivery: str, delay_s: float, kind: str) -> list[Outcome]:
    """Play one call and listen: what became of each of its turns."""
    patch = pytest.MonkeyPatch()
    try:
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            return runner.run(_outcomes(patch, turns, delivery, delay_s, kind))
    finally:
        patch.undo()


async def _outcomes(
    patch: pytest.MonkeyPatch, turns: list[Turn], delivery: str, delay_s: float, kind: str
) -> list[Outcome]:
    # Without cooldown and limit: they are the policy's own, and would hide what delivery does.
    config = {"delivery": delivery, "cooldown_s": 0, "max_interventions_per_call": 100}
    world = World(patch, config=config, rules=[{"text": "Follow the policy.", "severity": "high"}])
    world.llm.turn = judge_of(turns)
    world.llm.correction = {"text": "That was not right, sorry. May I look again?"}
    world.llm.delay_s = delay_s
    script = _Script(turns, kind, world=world)

    async def caller(call: SimulatedCall) -> None:
        await script.over.wait()

    record = await world.call(script, caller, PlivoSwitches(delay_s=WIRE_S))
    voices = ears(record.heard)
    reported = {event["ref"]: event["turn_id"] for event in world.record.of("turn.reported")}
    held = {event["turn_id"]: event["held_ms"] / 1000 for event in world.record.of("turn.held")}
    judged = {event["turn_id"]: event for event in world.record.of("turn.judged")}
    plans = {event["turn_id"]: event["plan"] for event in world.record.of("intervention.started")}
    found = []
    for said, following in zip(script.said, [*script.said[1:], None], strict=True):
        until = following.at if following is not None else float("inf")
        heard = [voice for voice in voices if said.at <= voice.start < until]
        turn_id = reported[said.ref]
        verdict = judged[turn_id]
        outcome = Outcome(
            said.turn, held.get(turn_id, 0.0), verdict["state"], verdict["withheld"], plans.get(turn_id, "")
        )
        _listen(outcome, heard, said.at)
        found.append(outcome)
    return found


def _listen(outcome: Outcome, heard: list[Voice], said_at: float) -> None:
    own = [voice for voice in heard if voice.label in (GOOD, BAD)]
    if own:
        outcome.begins_s = own[0].start - said_at - WIRE_S
    outcome.bad_heard_s = sum(voice.seconds for voice in own if voice.label == BAD) if outcome.turn.bad else 0.0
    mirror = [voice for voice in heard if voice.label not in (GOOD, BAD)]
    if len(mirror) >= 2:
        outcome.buffer_to_correction_s = mirror[1].start - mirror[0].end
    if mirror and own and outcome.plan in ("cut_now", "cut_when_reached"):
        outcome.cut_to_buffer_s = mirror[0].start - own[-1].end


def turns_of(call: Iterable[LabelledTurn]) -> Iterator[Turn]:
    """The spoken turns of a labelled call."""
    for labelled in call:
        text = labelled.payload.agent_text
        if not text.strip():
            continue
        spans = [span for quote in labelled.quotes if (span := find_span(text, quote)) is not None]
        tools = tuple(
            {"id": f"{labelled.payload.turn_id}-{intent.id}", "name": intent.name, "args": intent.args or {}}
            for intent in labelled.payload.tool_calls
        )
        yield Turn(text, labelled.payload.customer_text, tools, labelled.bad, spans[0] if spans else None)
