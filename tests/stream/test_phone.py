"""Test calls, from the caller's first word to the record, on virtual time."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from mirror_saas.limits import NO_LIMITS
from supervision.audio.format import L16, MULAW, MediaFormat
from supervision.engine.tts.protocol import TTSError, TTSFailure
from supervision.plivo.rest import PlivoAccount
from supervision.plivo.simulator import CallEnded, Event
from supervision.stream.caller_voice import LEVEL_DBFS, CallerVoice
from supervision.stream.failure import FailurePolicy
from supervision.stream.limits import lease_name
from supervision.stream.phone import MAX_S, CallsLimitReached, Phone
from tests.e2e.agents import AgentCall
from tests.stream.world import BAD, BUFFER, CORRECTION, GOOD, ToneTTS, World, order, say_turn
from tests.support.virtual_time import virtual_time

LINES = ("I want my money back.", "Thank you.")


class Ringing:
    """A phone of this world's agent, and what it told."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.calls: list[UUID] = []
        self.events: list[Event] = []
        self.problems: list[str] = []
        self.phone = Phone(
            world.runtime,
            world.runtime.binding,
            on_call=self.calls.append,
            on_event=self.events.append,
            on_problem=self.problems.append,
        )

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event.data for event in self.events if event.kind == kind]


async def answers(agent: AgentCall) -> None:
    await agent.hello()
    await say_turn(agent, "t1", GOOD, 1.0)
    await agent.wait("never", timeout_s=None)  # type: ignore[arg-type]


def said_by_caller(agent: AgentCall) -> np.ndarray[Any, Any]:
    payloads = [base64.b64decode(event["media"]["payload"]) for event in agent.of("media")]
    return MediaFormat().decode(b"".join(payloads))


@virtual_time
async def test_a_script_speaks_when_the_agent_is_silent_and_the_call_is_supervised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)

    async def agent(call: AgentCall) -> None:
        await call.hello()
        await say_turn(call, "t1", GOOD, 1.0)
        await asyncio.sleep(6)
        await say_turn(call, "t2", BAD, 8.0)
        await call.wait("never", timeout_s=None)  # type: ignore[arg-type]

    world.script = agent
    ringing = Ringing(world)
    record = await ringing.phone.run(LINES)
    assert (record.outcome, record.ended_by) == ("completed", "caller")
    assert [said["label"] for said in ringing.of("caller_speaks")] == list(LINES)
    assert order(record.heard)[-2:] == [BUFFER, CORRECTION]
    assert ringing.problems == []
    started = world.record.one("call.started")
    assert started["test"] is True
    assert started["plivo_call_id"] == record.call_id
    assert [event.call_id for event in world.record.events] == ringing.calls * len(world.record.events)
    assert world.record.one("call.ended")["interventions"] == 1
    # The agent heard two lines and no more.
    loud = np.abs(said_by_caller(world.agent).astype(int)) > 2000
    assert 0.5 < loud.sum() / 8000 < 5


@virtual_time
async def test_a_person_speaks_presses_keys_and_hangs_up(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.script = answers
    ringing = Ringing(world)
    phone = ringing.phone
    running = asyncio.create_task(phone.run(None))
    phone.speak_live(b"\x11" * 1600)  # before the call: nobody hears it
    await asyncio.sleep(0.5)
    assert ringing.of("start")
    heard = b""
    for _ in range(100):
        phone.speak_live(b"\x22" * 160)
        await asyncio.sleep(0.02)
        heard += phone.heard()
    await phone.say("Typed.")
    phone.press("5#")
    await asyncio.sleep(3)
    heard += phone.heard()
    phone.hang_up()
    record = await running
    phone.hang_up()
    assert (record.outcome, record.reason) == ("completed", "the caller hung up")
    assert [event["dtmf"]["digit"] for event in world.agent.of("dtmf")] == ["5", "#"]
    raw = b"".join(base64.b64decode(event["media"]["payload"]) for event in world.agent.of("media"))
    assert b"\x11" not in raw
    assert raw.count(b"\x22") >= 95 * 160
    assert [said["label"] for said in ringing.of("caller_speaks")] == ["Typed."]
    assert heard == record.heard.audio
    assert phone.heard() == b""


@virtual_time
async def test_plivo_is_not_asked_for_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's failure policy says to hang up, which a call of Plivo's is by REST."""
    world = World(monkeypatch)
    world.runtime.binding = replace(
        world.binding,
        failure=FailurePolicy(redials=0, message="", then="hangup", transfer_url=""),
        plivo_accounts=(PlivoAccount("MAREAL", "token", "https://api.plivo.example"),),
    )

    async def asked(*arguments: Any) -> Any:
        raise AssertionError("Plivo was asked")

    monkeypatch.setattr(world.runtime.plivo, "request", asked)

    async def fails(call: AgentCall) -> None:
        await call.wait("start")
        await call.connection.close(1011)

    world.script = fails
    record = await Ringing(world).phone.run(None)
    assert (record.outcome, record.ended_by, record.close_code) == ("failed", "agent", 1011)
    assert world.record.one("call.ended")["outcome"] == "failed"


@virtual_time
async def test_a_test_call_counts_among_the_tenants_and_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.runtime.binding = binding = replace(world.binding, limits=replace(NO_LIMITS, calls=1))
    world.script = answers
    calls = world.runtime.calls
    held = await calls.take(binding.tenant_id, limit=1, call=lease_name(binding.agent_id, "another"))
    assert held is not None
    with pytest.raises(CallsLimitReached, match="1 calls run now"):
        await Ringing(world).phone.run(None)
    assert world.record.events == []
    await calls.release(held)
    ringing = Ringing(world)
    running = asyncio.create_task(ringing.phone.run(None))
    await asyncio.sleep(1)
    assert await calls.take(binding.tenant_id, limit=1) is None
    ringing.phone.hang_up()
    await running
    assert await calls.take(binding.tenant_id, limit=1) is not None


@virtual_time
async def test_a_call_that_nobody_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.script = answers
    began = asyncio.get_running_loop().time()
    record = await Ringing(world).phone.run(None)
    assert (record.outcome, record.ended_by) == ("completed", "plivo")
    assert asyncio.get_running_loop().time() - began == pytest.approx(MAX_S, abs=2)


@virtual_time
async def test_a_call_that_is_hung_up_while_its_lines_are_rendered_never_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch, tts=ToneTTS(delay_s=2))
    ringing = Ringing(world)
    running = asyncio.create_task(ringing.phone.run(LINES))
    await asyncio.sleep(1)
    ringing.phone.hang_up()
    with pytest.raises(CallEnded):
        await running
    assert world.record.events == []
    assert await world.runtime.calls.take(world.binding.tenant_id, limit=1) is not None


@virtual_time
async def test_a_call_with_the_same_agent_is_another_call_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.script = answers
    first, second = [await Ringing(world).phone.run(["Hello."]) for _ in range(2)]
    assert first.call_id != second.call_id
    assert len({event.call_id for event in world.record.events}) == 2


# -- the caller's voice


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (None, ""),
        (TTSError(TTSFailure.LANGUAGE, "it speaks English only"), "it speaks English only"),
        (RuntimeError("secret words"), "the voice failed: RuntimeError"),
    ],
    ids=["speaks", "refuses", "breaks"],
)
@virtual_time
async def test_a_line_is_spoken_or_beeped_and_it_says_which(error: Exception | None, problem: str) -> None:
    tts = ToneTTS()
    tts.error = error
    media_format = MediaFormat(L16, 16000)
    spoken = await CallerVoice(tts, language="en", media_format=media_format).spoken("one two three")
    assert spoken.problem == problem
    samples = media_format.decode(spoken.audio)
    assert len(samples) > 16000 * 0.5
    loud = samples[np.abs(samples.astype(int)) > 500]
    assert 20 * np.log10(np.sqrt(np.mean(loud.astype(float) ** 2)) / 32768) == pytest.approx(LEVEL_DBFS, abs=4)


@virtual_time
async def test_beeps_are_one_a_word_with_pauses_shorter_than_an_agent_waits_for() -> None:
    media_format = MediaFormat(MULAW, 8000)
    spoken = await CallerVoice(None, language="en", media_format=media_format).spoken("one two three four")
    assert spoken.problem == "no voice is installed or configured here"
    samples = np.abs(media_format.decode(spoken.audio).astype(int))
    frames = samples[: len(samples) // 80 * 80].reshape(-1, 80).max(axis=1) > 500
    starts = np.flatnonzero(np.diff(frames.astype(int), prepend=0) == 1)
    assert len(starts) == 4
    quiet = np.flatnonzero(np.diff(frames.astype(int)) == -1)
    assert (starts[1:] - quiet[:3]).max() * 10 < 200


@virtual_time
async def test_a_voice_that_does_not_answer_is_not_waited_for() -> None:
    tts = ToneTTS(delay_s=1000)
    spoken = await CallerVoice(tts, language="en", media_format=MediaFormat()).spoken("hello")
    assert spoken.problem == "the voice did not answer within 20 s"
    assert spoken.audio
