"""`mirror.say`: the agent speaks Mirror's lines, and is given up when it does not begin in time."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from typing import Any

import pytest

from supervision.engine.adapters.relay import LINE_MAX_S
from supervision.engine.tts.protocol import TTSError, TTSFailure
from supervision.plivo.simulator import SimulatedCall
from tests.e2e.agents import AgentCall
from tests.engine.llms import CLEAN
from tests.stream.world import BAD, BUFFER, CORRECTION, GOOD, World, ears, order, say_turn, tone
from tests.support.speech import say as speech
from tests.support.virtual_time import virtual_time

WANTS = ["verdicts", "notes", "say"]
CALLER = speech("Wait, no, hold on a second, that is not what I asked you about at all.")
OWN = {"buffer": "the agent: one moment", "correction": "the agent: I cannot refund that"}


async def say_lines(agent: AgentCall, *, after_s: float = 0.1, seconds: float = 1.2, stray: bytes = b"") -> None:
    """Speak whatever Mirror asks for, as a voice of its own."""
    for number in (1, 2):
        asked = await agent.wait("mirror.say", count=number)
        await asyncio.sleep(after_s)
        await say_line(agent, asked, seconds)


async def say_line(agent: AgentCall, asked: dict[str, Any], seconds: float, *, end: bool = True) -> None:
    await agent.send("mirror.audio", say=asked["id"], state="start")
    await agent.speak(tone(OWN[asked["role"]], seconds))
    if end:
        await agent.send("mirror.audio", say=asked["id"], state="end")
        await agent.send("mirror.said", id=asked["id"])


def ended(world: World) -> Any:
    async def wait(call: SimulatedCall) -> None:
        await call.wait_for(lambda record: world.record.of("intervention.ended"), 90)
        await asyncio.sleep(1.0)

    return wait


def steps(world: World) -> list[str]:
    return [step for step in world.record.steps() if step.startswith("sa")]


@virtual_time
async def test_the_caller_hears_the_agents_own_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello(wants=WANTS)
        await say_turn(agent, "t1", BAD, 6.0)
        await say_lines(agent)
        await agent.wait("mirror.intervention", phase="completed")
        await say_turn(agent, "t2", GOOD, 2.0, seen=agent.of("mirror.note")[-1]["id"])

    record = await world.call(script, lambda call: asyncio.sleep(12))
    assert order(record.heard) == [BAD, OWN["buffer"], OWN["correction"], GOOD]
    bad, buffer, correction, _ = ears(record.heard)
    assert buffer.start - bad.end < 0.35
    assert correction.start - buffer.end < 0.3
    first, second = world.agent.of("mirror.say")
    assert (first["role"], first["text"], first["language"], first["deadline_ms"]) == ("buffer", BUFFER, "en", 500)
    assert (second["role"], second["text"]) == ("correction", CORRECTION)
    assert steps(world) == ["say_asked", "say_begun", "said", "say_asked", "say_begun", "said"]
    (intervention,) = world.record.of("intervention.ended")
    assert (intervention["outcome"], intervention["correction_text"]) == ("completed", CORRECTION)
    assert intervention["gap_ms_cut_to_buffer"] < 200
    assert not world.agent.of("mirror.error")
    note = world.agent.of("mirror.note")[0]
    assert note["said"] == f"{BUFFER} {CORRECTION}"


@virtual_time
async def test_the_note_reaches_the_agent_before_it_is_asked_for_the_correction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello(wants=WANTS)
        await say_turn(agent, "t1", BAD, 6.0)
        await say_lines(agent)

    await world.call(script, ended(world))
    told = [(event["event"], event.get("role")) for event in world.agent.events]
    assert told.index(("mirror.note", None)) < told.index(("mirror.say", "correction"))


@virtual_time
async def test_an_agent_that_does_not_begin_in_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello(wants=WANTS)
        await say_turn(agent, "t1", BAD, 6.0)
        asked = await agent.wait("mirror.say")
        await asyncio.sleep(0.7)
        await say_line(agent, asked, 1.0)
        await agent.wait("mirror.intervention", phase="completed")
        await say_turn(agent, "t2", GOOD, 2.0, seen=agent.of("mirror.note")[-1]["id"])

    record = await world.call(script, lambda call: asyncio.sleep(14))
    assert order(record.heard) == [BAD, BUFFER, CORRECTION, GOOD]
    (error,) = world.agent.of("mirror.error")
    assert (error["code"], error["ref"]) == ("say_expired", world.agent.of("mirror.say")[0]["id"])
    assert steps(world).count("say_given_up") == 1  # and one voice to the end of the intervention
    bad, buffer, correction, _ = ears(record.heard)
    assert buffer.start - bad.end < 0.7
    assert correction.start - buffer.end < 0.3


@virtual_time
async def test_an_agent_that_never_begins_is_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, config={"cooldown_s": 0.0})

    async def script(agent: AgentCall) -> None:
        await agent.hello(wants=WANTS)
        for number in (1, 2, 3):
            await say_turn(agent, f"t{number}", BAD, 3.0)
            await agent.wait("mirror.intervention", phase="completed", count=number)
            await say_turn(agent, f"g{number}", GOOD, 0.5, seen=agent.of("mirror.note")[-1]["id"])
            await agent.wait("mirror.verdict", turn_id=f"g{number}")
            await asyncio.sleep(1.0)

    await world.call(script, lambda call: asyncio.sleep(45))
    assert len(world.record.of("intervention.ended")) == 3
    assert [asked["role"] for asked in world.agent.of("mirror.say")] == ["buffer", "correction"] * 2


@virtual_time
async def test_only_the_audio_between_begin_and_end_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the agent had on its way before and after is the wrong turn's, and stays mute."""
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello(wants=WANTS)
        await say_turn(agent, "t1", BAD, 1.0)
        for number in (1, 2):
            asked = await agent.wait("mirror.say", count=number)
            await agent.speak(tone(BAD, 0.5))
            await say_line(agent, asked, 1.0)
            await agent.speak(tone(BAD, 0.5))

    record = await world.call(script, ended(world))
    assert order(record.heard) == [BAD, OWN["buffer"], OWN["correction"]]
    assert ears(record.heard)[0].seconds < 0.3


@virtual_time
async def test_the_agents_checkpoints_within_a_line_are_plivos_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello(wants=WANTS)
        await say_turn(agent, "t1", BAD, 6.0)
        asked = await agent.wait("mirror.say")
        await agent.send("mirror.audio", say=asked["id"], state="start")
        await agent.speak(tone(OWN["buffer"], 1.0))
        await agent.send("checkpoint", streamId=agent.stream_id, name="mine")
        await agent.send("mirror.audio", say=asked["id"], state="end")
        said_at = asyncio.get_running_loop().time()
        await agent.wait("playedStream", name="mine")
        assert asyncio.get_running_loop().time() - said_at == pytest.approx(1.0, abs=0.1)

    await world.call(script, ended(world))
    assert len(world.agent.of("playedStream")) == 1


@virtual_time
async def test_a_line_without_an_end_does_not_silence_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello(wants=WANTS)
        await say_turn(agent, "t1", BAD, 6.0)
        for number in (1, 2):
            await say_line(agent, await agent.wait("mirror.say", count=number), 1.0, end=False)
        await agent.wait("mirror.intervention", phase="completed")
        await say_turn(agent, "t2", GOOD, 2.0, seen=agent.of("mirror.note")[-1]["id"])

    record = await world.call(script, lambda call: asyncio.sleep(16))
    assert order(record.heard) == [BAD, OWN["buffer"], OWN["correction"], GOOD]
    assert world.record.one("intervention.ended")["outcome"] == "completed"


@virtual_time
async def test_a_line_is_heard_for_ten_seconds_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello(wants=WANTS)
        await say_turn(agent, "t1", BAD, 6.0)
        await say_line(agent, await agent.wait("mirror.say"), 1.0)
        await say_line(agent, await agent.wait("mirror.say", count=2), 60.0)

    record = await world.call(script, ended(world))
    assert ears(record.heard)[-1].seconds == pytest.approx(LINE_MAX_S, abs=0.1)


@virtual_time
async def test_a_caller_who_speaks_ends_a_line_of_the_agents_too(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello(wants=WANTS)
        await say_turn(agent, "t1", BAD, 6.0)
        await say_line(agent, await agent.wait("mirror.say"), 1.0)
        asked = await agent.wait("mirror.say", count=2)
        await agent.send("mirror.audio", say=asked["id"], state="start")
        await agent.speak(tone(OWN["correction"], 6.0), paced=True)

    async def caller(call: SimulatedCall) -> None:
        await call.wait_for(lambda record: "say_begun" in steps(world)[2:], 30)
        await asyncio.sleep(0.5)
        await call.say(CALLER)
        await asyncio.sleep(3.0)

    record = await world.call(script, caller)
    assert world.record.one("intervention.ended")["outcome"] == "interrupted"
    assert ears(record.heard)[-1].seconds < 2.5


@virtual_time
async def test_an_agent_is_a_voice_where_nothing_else_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, speaks=False)

    async def script(agent: AgentCall) -> None:
        await agent.hello(wants=WANTS)
        await say_turn(agent, "t1", BAD, 6.0)
        await say_lines(agent)

    record = await world.call(script, ended(world))
    assert order(record.heard) == [BAD, OWN["buffer"], OWN["correction"]]


@virtual_time
async def test_with_no_voice_at_all_the_agent_goes_on_with_its_note(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, speaks=False)

    async def script(agent: AgentCall) -> None:
        await agent.hello(wants=WANTS)
        await say_turn(agent, "t1", BAD, 6.0)
        await agent.wait("mirror.intervention", phase="failed")
        await say_turn(agent, "t2", GOOD, 2.0, seen=agent.of("mirror.note")[-1]["id"])

    record = await world.call(script, lambda call: asyncio.sleep(12))
    assert order(record.heard) == [BAD, GOOD]
    failed = world.record.one("intervention.ended")
    assert failed["outcome"] == "failed"
    assert "no speech provider" in failed["detail"]


@virtual_time
async def test_a_voice_that_fails_with_the_agent_is_a_failed_intervention(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.tts.error = TTSError(TTSFailure.CONNECTION, "the voice is down")

    async def script(agent: AgentCall) -> None:
        await agent.hello(wants=WANTS)
        await say_turn(agent, "t1", BAD, 6.0)
        await agent.wait("mirror.intervention", phase="failed")

    await world.call(script, ended(world))
    assert "the voice is down" in world.record.one("intervention.ended")["detail"]


@virtual_time
async def test_lines_that_were_never_asked_for_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello(wants=WANTS)
        for fields in (
            {"say": "s1", "state": "start"},
            {"say": "s1", "state": "end"},
            {"say": "s1", "turn_id": "t1", "state": "start"},
            {"say": "", "state": "start"},
            {"say": 7, "state": "start"},
            {"say": "s1", "state": "sung"},
        ):
            await agent.send("mirror.audio", **fields)
        await agent.send("mirror.said", id="s1")
        await agent.send("mirror.said")
        await agent.wait("mirror.error", count=8)
        await say_turn(agent, "t2", GOOD, 1.0)

    record = await world.call(script, lambda call: asyncio.sleep(4))
    codes = [error["code"] for error in world.agent.of("mirror.error")]
    assert codes == ["unknown_id", "unknown_id", *["bad_field"] * 4, "unknown_id", "bad_field"]
    assert order(record.heard) == [GOOD]


@virtual_time
async def test_an_agent_that_does_not_want_to_say_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 6.0)

    await world.call(script, ended(world))
    assert not world.agent.of("mirror.say")


@virtual_time
async def test_a_line_is_sent_whole_whatever_its_frames_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """One frame of a second, and fields that only the agent knows: byte for byte as the agent sent them."""
    world = World(monkeypatch)
    world.llm.turn = lambda asked: (
        dict(CLEAN)
        if "refunded" not in asked.user["agent_text"]
        else {"score": 0.9, "rule": "1", "reason": "", "correction": ""}
    )
    sent: list[str] = []

    async def script(agent: AgentCall) -> None:
        await agent.hello(wants=WANTS)
        await say_turn(agent, "t1", BAD, 6.0)
        asked = await agent.wait("mirror.say")
        await agent.send("mirror.audio", say=asked["id"], state="start")
        payload = b64encode(tone(OWN["buffer"], 1.0)).decode()
        sent.append(
            json.dumps(
                {
                    "event": "playAudio",
                    "own": [1],
                    "media": {"payload": payload, "sampleRate": 8000, "contentType": "audio/x-mulaw"},
                }
            )
        )
        await agent.connection.send(sent[0])
        await agent.send("mirror.audio", say=asked["id"], state="end")

    record = await world.call(script, ended(world))
    assert ears(record.heard)[1].seconds == pytest.approx(1.0, abs=0.03)
