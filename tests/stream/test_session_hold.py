"""Delivery modes on virtual time: which turns wait for their verdict, for how long, and what the caller hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from supervision.plivo.simulator import CallRecord, PlivoSwitches
from tests.e2e.agents import AgentCall
from tests.engine.llms import Asked
from tests.stream.test_session_pregate import ASKS, STATES
from tests.stream.test_session_virtual import after_intervention, end_played, finish
from tests.stream.world import BAD, BUFFER, CORRECTION, GOOD, World, ears, order, say_turn, tone
from tests.support.virtual_time import virtual_time


def begins(world: World, record: CallRecord, label: str, *, nth: int = 0) -> float:
    """Seconds from the first audio of the agent to the moment at which this voice is first heard."""
    voices = [voice for voice in ears(record.heard) if voice.label == label]
    return voices[nth].start - world.first_audio_at[label][nth]


def first_in(seconds: float) -> Callable[[Asked], float]:
    """The judge's time for the first turn; later questions, such as for the correction, take 0.1 s."""
    first: list[Asked] = []

    def delay_s(asked: Asked) -> float:
        first.append(asked)
        return seconds if len(first) == 1 else 0.1

    return delay_s


class HoldWorld(World):
    """A world that knows when the agent began to send each turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, delivery: str, **config: Any) -> None:
        super().__init__(monkeypatch, config={"delivery": delivery, **config}, mode=config.pop("mode", "live"))
        self.first_audio_at: dict[str, list[float]] = {}

    async def say(self, agent: AgentCall, ref: str, text: str, seconds: float, **more: Any) -> None:
        assert self.simulated is not None
        at = asyncio.get_running_loop().time() - self.simulated.record.began_at
        self.first_audio_at.setdefault(text, []).append(at)
        await say_turn(agent, ref, text, seconds, **more)


@pytest.mark.parametrize("delivery", ["hold_risky", "hold_all"])
@virtual_time
async def test_a_wrong_turn_that_is_judged_within_the_budget_is_never_heard(
    monkeypatch: pytest.MonkeyPatch, delivery: str
) -> None:
    world = HoldWorld(monkeypatch, delivery)
    world.llm.delay_s = first_in(0.6)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await world.say(agent, "t1", BAD, 6.0)
        await agent.wait("mirror.intervention", phase="completed")
        await world.say(agent, "t2", GOOD, 2.0, seen=agent.of("mirror.note")[-1]["id"])
        await finish(agent)

    record = await world.call(script, end_played)
    assert order(record.heard) == [BUFFER, CORRECTION, GOOD]
    assert not record.of("clearAudio")
    assert world.record.one("call.started")["delivery"] == delivery
    assert world.record.one("intervention.started")["plan"] == "replace_held"
    ended = world.record.one("intervention.ended")
    assert (ended["heard_ms"], ended["violation_heard_ms"], ended["silence_proof"]) == (0, 0, "not_needed")
    held = world.record.of("turn.held")[0]
    assert (held["ended_by"], held["held_ms"]) == ("discarded", pytest.approx(600, abs=40))


@virtual_time
async def test_a_held_turn_begins_with_its_verdict_and_plays_without_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    world = HoldWorld(monkeypatch, "hold_all")
    world.llm.delay_s = 0.5

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await world.say(agent, "t1", STATES, 3.0)
        await finish(agent)

    record = await world.call(script, end_played, PlivoSwitches(delay_s=0.03))
    (heard,) = ears(record.heard)
    assert heard.seconds == pytest.approx(3.0, abs=0.021)
    assert begins(world, record, STATES) == pytest.approx(0.5, abs=0.1)
    held = world.record.one("turn.held")
    assert (held["ended_by"], held["held_ms"]) == ("verdict", pytest.approx(500, abs=40))
    assert world.record.one("turn.heard")["heard_text"] == STATES


@virtual_time
async def test_a_turn_is_held_no_longer_than_its_budget_and_is_cut_like_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = HoldWorld(monkeypatch, "hold_all", hold_budget_ms=300)
    world.llm.delay_s = first_in(0.8)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await world.say(agent, "t1", BAD, 6.0)
        await agent.wait("mirror.intervention", phase="completed")

    record = await world.call(script, after_intervention(world))
    bad, buffer, correction = ears(record.heard)
    assert [bad.label, buffer.label, correction.label] == [BAD, BUFFER, CORRECTION]
    assert begins(world, record, BAD) == pytest.approx(0.3, abs=0.06)
    assert bad.seconds == pytest.approx(0.5, abs=0.06)
    # What is not judged goes only when Plivo has next to nothing left, so next to nothing had to be thrown away.
    assert record.cleared_bytes <= 8 * 100
    assert world.record.one("turn.held")["ended_by"] == "budget"


@virtual_time
async def test_hold_risky_leaves_alone_what_needs_no_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: dict[str, list[float]] = {}
    for delivery in ("stream_first", "hold_risky"):
        world = HoldWorld(monkeypatch, delivery)
        world.llm.delay_s = 0.4

        async def script(agent: AgentCall, world: HoldWorld = world) -> None:
            await agent.hello()
            await world.say(agent, "t1", ASKS, 1.0)
            await asyncio.sleep(2.0)
            await world.say(agent, "t2", STATES, 1.0)
            await finish(agent)

        record = await world.call(script, end_played)
        assert order(record.heard) == [ASKS, STATES]
        starts[delivery] = [begins(world, record, label) for label in (ASKS, STATES)]
        if delivery == "hold_risky":
            reported = [event["turn_id"] for event in world.record.of("turn.reported")]
            assert [event["turn_id"] for event in world.record.of("turn.held")] == reported[1:]
    assert starts["hold_risky"][0] == starts["stream_first"][0]
    assert starts["hold_risky"][1] - starts["stream_first"][1] == pytest.approx(0.4, abs=0.04)


@virtual_time
async def test_the_turn_after_an_intervention_is_held_though_the_pre_gate_would_skip_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = HoldWorld(monkeypatch, "hold_risky")

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await world.say(agent, "t1", BAD, 2.0)
        await agent.wait("mirror.intervention", phase="completed")
        await asyncio.sleep(1.0)
        for ref in ("t2", "t3"):
            await world.say(agent, ref, ASKS, 1.0)
            await asyncio.sleep(2.5)
        await finish(agent)

    record = await world.call(script, end_played)
    assert begins(world, record, ASKS) == pytest.approx(0.2, abs=0.05)  # the judge's time
    assert begins(world, record, ASKS, nth=1) == pytest.approx(0.0, abs=0.05)
    assert [event["state"] for event in world.record.of("turn.judged")] == ["judged", "judged", "skipped"]


@virtual_time
async def test_the_agents_clear_empties_what_is_held_and_is_answered_by_plivo(monkeypatch: pytest.MonkeyPatch) -> None:
    world = HoldWorld(monkeypatch, "hold_all")
    world.llm.delay_s = 0.6

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await world.say(agent, "t1", STATES, 2.0)
        await agent.send("checkpoint", streamId=agent.stream_id, name="unheard")
        await asyncio.sleep(0.2)
        await agent.send("clearAudio", streamId=agent.stream_id)
        await agent.wait("clearedAudio")
        await world.say(agent, "t2", GOOD, 1.0)
        await finish(agent)

    record = await world.call(script, end_played)
    assert order(record.heard) == [GOOD]
    assert len(record.of("clearAudio")) == 1
    # Plivo is silent about checkpoints whose audio was cleared, and so is Mirror about those that it held.
    assert [event["name"] for event in world.agent.of("playedStream")] == ["end"]
    assert world.record.of("turn.heard")[0]["heard_ms"] == 0


@virtual_time
async def test_audio_that_nobody_reported_is_held_until_its_words_come_or_the_budget_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = HoldWorld(monkeypatch, "hold_risky", hold_budget_ms=600)
    world.llm.delay_s = 0.1
    unreported = "nobody says what this is"

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        now = asyncio.get_running_loop().time
        assert world.simulated is not None
        began = world.simulated.record.began_at
        for text, waits_s in ((STATES, 0.2), (ASKS, 0.3), (unreported, None)):
            world.first_audio_at[text] = [now() - began]
            await agent.speak(tone(text, 2.0))
            if waits_s is not None:
                await asyncio.sleep(waits_s)
                await agent.send("mirror.delta", turn_id=text, text=text, final=True)
            await asyncio.sleep(4.0)
        await finish(agent)

    record = await world.call(script, end_played)
    voices = ears(record.heard)
    assert [voice.label for voice in voices] == [STATES, ASKS, unreported]
    assert [round(voice.seconds, 1) for voice in voices] == [2.0, 2.0, 2.0]
    assert begins(world, record, STATES) == pytest.approx(0.3, abs=0.06)  # its words, and the judge's time
    assert begins(world, record, ASKS) == pytest.approx(0.3, abs=0.06)  # its words, which need no judge
    assert begins(world, record, unreported) == pytest.approx(0.6, abs=0.06)
    heard = {event["turn_id"]: event["heard_text"] for event in world.record.of("turn.heard")}
    assert list(heard.values()) == [STATES, ASKS]


@virtual_time
async def test_words_that_come_after_their_audio_replace_it_unheard_when_they_are_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A speech-to-speech agent: the transcript follows the voice."""
    world = HoldWorld(monkeypatch, "hold_risky")

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        speaking = asyncio.create_task(agent.speak(tone(BAD, 6.0), paced=True))
        await asyncio.sleep(0.3)
        await agent.send("mirror.delta", turn_id="t1", text=BAD, final=True)
        await agent.wait("mirror.intervention", phase="completed")
        speaking.cancel()

    record = await world.call(script, after_intervention(world))
    assert order(record.heard) == [BUFFER, CORRECTION]
    assert not record.of("clearAudio")


@virtual_time
async def test_shadow_mode_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = HoldWorld(monkeypatch, "hold_all", mode="shadow")
    world.llm.delay_s = 0.6

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await world.say(agent, "t1", BAD, 1.0)
        await finish(agent)

    record = await world.call(script, end_played)
    assert begins(world, record, BAD) == pytest.approx(0.0, abs=0.05)
    assert not world.record.of("turn.held")
    assert world.record.one("call.started")["delivery"] == "stream_first"


@pytest.mark.parametrize("problem", ["no answer", "no policy"])
@virtual_time
async def test_a_turn_that_cannot_be_judged_is_heard(monkeypatch: pytest.MonkeyPatch, problem: str) -> None:
    world = HoldWorld(monkeypatch, "hold_all", semantic_review_timeout_s=0.2)
    if problem == "no policy":
        world.runtime.binding = replace(world.binding, policy_version_id=None)
    world.llm.delay_s = 60.0

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await world.say(agent, "t1", STATES, 1.0)
        await finish(agent)

    record = await world.call(script, end_played)
    assert begins(world, record, STATES) == pytest.approx(0.2 if problem == "no answer" else 0.0, abs=0.06)


@virtual_time
async def test_an_agent_that_sends_ten_minutes_at_once_loses_nothing_of_a_held_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = HoldWorld(monkeypatch, "hold_all")

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await agent.send("mirror.turn", turn_id="t1", customer_text="", text=STATES)
        await agent.speak(tone(STATES, 60.0), frame_ms=1000)
        await finish(agent)

    record = await world.call(script, end_played)
    (heard,) = ears(record.heard)
    assert heard.seconds == pytest.approx(60.0, abs=0.05)
    assert not world.record.of("media.dropped")
