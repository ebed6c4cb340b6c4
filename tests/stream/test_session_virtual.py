"""Whole calls on virtual time: which audio is cut, held, dropped or released, and what agent and record learn of it."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from typing import Any

import pytest

from supervision.engine.intervention.templates import buffer_lines
from supervision.plivo.simulator import L16_8K, L16_16K, CallRecord, PlivoSwitches, SimulatedCall, WireFormat
from supervision.plivo.simulator import tone as simulator_tone
from tests.e2e.agents import AgentCall
from tests.engine.llms import CLEAN
from tests.stream.world import (
    BAD,
    BUFFER,
    CORRECTION,
    GOOD,
    VIOLATION,
    ToneTTS,
    World,
    ears,
    judge_refunds,
    order,
    say_turn,
    tone,
)
from tests.support.speech import say
from tests.support.virtual_time import virtual_time

INNOCENT = "Let me look at your account for a moment."
STALE = "Your card will show it on Monday."
CALLER = say("Wait, no, hold on a second, that is not what I asked you about at all.")


def end_played(call: SimulatedCall) -> Any:
    return call.wait_for(lambda record: record.played("end"), 90)


async def finish(agent: AgentCall) -> None:
    await agent.send("checkpoint", streamId=agent.stream_id, name="end")


def phases(agent: AgentCall) -> list[str]:
    return [event["phase"] for event in agent.of("mirror.intervention")]


def after_intervention(world: World) -> Any:
    async def wait(call: SimulatedCall) -> None:
        await call.wait_for(lambda record: world.record.of("intervention.ended"), 90)
        await asyncio.sleep(1.0)

    return wait


# The course of an intervention


@virtual_time
async def test_a_violating_turn_is_replaced_and_the_agent_goes_on_from_its_note(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 6.0, customer_text="Give me my money back.")
        await agent.wait("mirror.intervention", phase="completed")
        await say_turn(agent, "t2", GOOD, 2.0, seen=agent.of("mirror.note")[-1]["id"])
        await finish(agent)

    record = await world.call(script, end_played)
    bad, buffer, correction, good = ears(record.heard)
    assert [bad.label, buffer.label, correction.label, good.label] == [BAD, BUFFER, CORRECTION, GOOD]
    assert bad.seconds == pytest.approx(0.2, abs=0.03)  # the judge's time
    assert buffer.start - bad.end < 0.35
    assert correction.start - buffer.end < 0.3
    assert phases(world.agent) == ["started", "buffer", "correction", "completed"]
    told = [event["event"] for event in world.agent.events if event["event"].startswith("mirror.")]
    assert told.index("mirror.note") < len(told) - 1
    note = world.agent.of("mirror.note")[0]
    assert note["said"] == f"{BUFFER} {CORRECTION}"
    events = world.agent.events
    order_told = [event.get("phase", event["event"]) for event in events if event["event"] != "media"]
    assert order_told.index("mirror.note") < order_told.index("correction")
    intervention = world.record.one("intervention.ended")
    assert intervention["violation_heard_ms"] == 0  # "refunded the money" begins later
    assert (intervention["heard_ms"], intervention["silence_proof"]) == (pytest.approx(180, abs=40), "cleared")
    assert world.record.of("turn.heard")[0]["unheard_text"].endswith("refunded the money to your card.")


@virtual_time
async def test_an_agent_that_streams_in_real_time_stays_mute_for_the_rest_of_the_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 20.0, paced=True)
        await finish(agent)

    record = await world.call(script, lambda call: asyncio.sleep(25))
    assert order(record.heard) == [BAD, BUFFER, CORRECTION]
    assert world.agent.of("playedStream")[0]["name"] == "end"  # muted with its turn, and answered all the same


@virtual_time
async def test_a_verdict_faster_than_the_audio_replaces_it_unheard(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.llm.delay_s = 0.05

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await agent.send("mirror.turn", turn_id="t1", customer_text="", text=BAD)
        await asyncio.sleep(0.4)
        await agent.speak(b"".join([tone(BAD, 6.0)]))
        await agent.wait("mirror.intervention", phase="completed")

    record = await world.call(script, after_intervention(world))
    assert order(record.heard) == [BUFFER, CORRECTION]
    assert not record.of("clearAudio")
    started = world.record.one("intervention.started")
    ended = world.record.one("intervention.ended")
    assert (started["plan"], ended["silence_proof"], ended["heard_ms"]) == ("replace_held", "not_needed", 0)


@virtual_time
async def test_a_correction_waits_behind_innocent_audio_that_mirror_still_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two turns, all at once: the first plays to its end, the correction takes the second one's place."""
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello(marks=True)
        for ref, text in (("t1", INNOCENT), ("t2", BAD)):
            await agent.send("mirror.turn", turn_id=ref, customer_text="", text=text)
            await agent.send("mirror.audio", turn_id=ref, state="start")
            await agent.speak(tone(text, 4.0))
            await agent.send("mirror.audio", turn_id=ref, state="end")
        await agent.wait("mirror.intervention", phase="completed")

    record = await world.call(script, after_intervention(world))
    innocent, buffer, correction = ears(record.heard)
    assert [innocent.label, buffer.label, correction.label] == [INNOCENT, BUFFER, CORRECTION]
    assert innocent.seconds == pytest.approx(4.0, abs=0.03)
    assert buffer.start - innocent.end < 0.1
    assert not record.of("clearAudio")
    assert world.record.one("intervention.started")["plan"] == "replace_held"
    heard = {event["turn_id"]: event for event in world.record.of("turn.heard")}
    first, second = (turn["turn_id"] for turn in world.record.of("turn.reported"))
    assert heard[first]["heard_text"] == INNOCENT
    assert second not in heard or heard[second]["heard_ms"] == 0


@virtual_time
async def test_words_at_plivo_behind_innocent_audio_are_cut_when_they_are_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.llm.delay_s = 0.1

    async def script(agent: AgentCall) -> None:
        await agent.hello(marks=True)
        for ref, text in (("t1", INNOCENT), ("t2", BAD)):
            await agent.send("mirror.turn", turn_id=ref, customer_text="", text=text)
            await agent.send("mirror.audio", turn_id=ref, state="start")
            await agent.speak(tone(text, 0.3 if text == INNOCENT else 5.0))
            await agent.send("mirror.audio", turn_id=ref, state="end")
        await agent.wait("mirror.intervention", phase="completed")

    record = await world.call(script, after_intervention(world), PlivoSwitches(delay_s=0.05))
    assert world.record.one("intervention.started")["plan"] == "cut_when_reached"
    voices = ears(record.heard)
    assert [voice.label for voice in voices if voice.seconds > 0.05] == [INNOCENT, BUFFER, CORRECTION]
    assert voices[0].seconds > 0.25  # nothing much of the innocent turn was lost
    assert sum(voice.seconds for voice in voices if voice.label == BAD) <= 0.06


@virtual_time
async def test_a_turn_that_was_just_played_is_taken_back_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.llm.delay_s = lambda asked: 2.0 if asked.at < 1_001 else 0.1

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 1.0)
        await agent.wait("mirror.intervention", phase="completed")

    record = await world.call(script, after_intervention(world))
    assert not record.of("clearAudio")
    ended = world.record.one("intervention.ended")
    assert world.record.one("intervention.started")["plan"] == "retract"
    assert order(record.heard) == [BAD, ended["buffer_text"], ended["correction_text"]]
    assert ended["buffer_text"] != BUFFER
    assert (ended["heard_ms"], ended["silence_proof"]) == (1_000, "not_needed")
    assert ended["violation_heard_ms"] > 0
    assert world.agent.of("mirror.note")[0]["heard_text"] == BAD


@virtual_time
async def test_a_turn_that_played_faster_than_its_words_take_was_heard_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.llm.delay_s = lambda asked: 1.5 if asked.at < 1_001 else 0.1

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 0.6)
        await agent.wait("mirror.intervention", phase="completed")

    await world.call(script, after_intervention(world))
    assert world.record.one("intervention.started")["plan"] == "retract"
    # The violating words end the turn, and all of it has played.
    assert 0 < world.record.one("intervention.ended")["violation_heard_ms"] <= 600
    assert world.record.one("turn.heard")["heard_text"] == BAD


@virtual_time
async def test_a_verdict_in_time_is_no_late_answer_even_when_it_comes_too_late_to_act_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.llm.delay_s = 3.5

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 1.0)
        await agent.wait("mirror.note")

    await world.call(script, lambda call: asyncio.sleep(6.0))
    judged = world.record.one("turn.judged")
    assert (judged["state"], judged["withheld"], judged["late"]) == ("judged", "late", False)


@virtual_time
async def test_the_note_does_not_call_unheard_what_may_have_been_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 6.0)
        await agent.wait("mirror.intervention", phase="completed")

    await world.call(script, after_intervention(world))
    heard = world.record.one("turn.heard")
    assert heard["heard_text"] == ""
    assert heard["uncertain_text"] != ""
    text = world.agent.of("mirror.note")[0]["text"]
    assert "heard none of it" not in text
    assert f'may have heard: "{heard["uncertain_text"].split()[0]}' in text


@virtual_time
async def test_a_turn_that_the_agent_itself_has_cut_short_is_not_cut_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.llm.delay_s = lambda asked: 3.0 if asked.at < 1_001 else 0.1

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 30.0)
        await asyncio.sleep(0.5)
        await agent.send("clearAudio", streamId=agent.stream_id)
        await agent.wait("mirror.verdict")

    record = await world.call(script, lambda call: asyncio.sleep(6.0))
    assert len(record.of("clearAudio")) == 1
    assert order(record.heard) == [BAD]
    assert world.record.one("intervention.ended")["outcome"] == "late"
    assert world.record.one("intervention.ended")["heard_ms"] == pytest.approx(500, abs=60)


@virtual_time
async def test_a_turn_behind_one_that_stayed_silent_is_cut_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without marks nobody says whose audio it is; when it may be the wrong turn's, it is cut."""
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await agent.send("mirror.turn", turn_id="silent", customer_text="", text=INNOCENT)
        await asyncio.sleep(1.0)
        await say_turn(agent, "bad", BAD, 6.0)
        await agent.wait("mirror.intervention", phase="completed")
        assert agent.of("mirror.intervention")[0]["turn_id"] == "bad"

    record = await world.call(script, after_intervention(world))
    assert order(record.heard) == [BAD, BUFFER, CORRECTION]
    assert ears(record.heard)[0].seconds < 0.3
    silent, bad = world.record.of("turn.reported")
    assert [event["turn_id"] for event in world.record.of("turn.heard")] == [bad["turn_id"]]
    assert silent["ref"] == "silent"


@virtual_time
async def test_turns_that_are_reported_ahead_of_their_audio_are_never_heard_when_they_are_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        for ref, text in (("t1", INNOCENT), ("t2", BAD)):
            await agent.send("mirror.turn", turn_id=ref, customer_text="", text=text)
        for text in (INNOCENT, BAD):
            await agent.speak(tone(text, 1.0), paced=True)
            await asyncio.sleep(0.4)
        await agent.wait("mirror.intervention", phase="completed")

    record = await world.call(script, after_intervention(world))
    assert BAD not in order(record.heard)
    assert order(record.heard)[-2:] == [BUFFER, CORRECTION]


@virtual_time
async def test_a_turn_given_up_before_its_audio_does_not_shift_those_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    texts = ["One.", "Two.", "Three."]

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await agent.send("mirror.turn", turn_id="given up", customer_text="", text=INNOCENT)
        await agent.send("clearAudio", streamId=agent.stream_id)
        for ref in texts:
            await say_turn(agent, ref, ref, 0.6, paced=True)
            await asyncio.sleep(0.5)
        await agent.send("mirror.turn", turn_id="silent", customer_text="", text=INNOCENT)
        await asyncio.sleep(4.0)
        await say_turn(agent, "last", GOOD, 0.6)
        await finish(agent)

    await world.call(script, end_played)
    turns = {turn["turn_id"]: turn["ref"] for turn in world.record.of("turn.reported")}
    heard = {turns[event["turn_id"]]: event["heard_ms"] for event in world.record.of("turn.heard")}
    assert heard == dict.fromkeys([*texts, "last"], 600)


# Later turns


@virtual_time
async def test_later_turns_are_held_and_those_from_before_the_note_are_dropped_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 6.0)
        await agent.wait("mirror.intervention", phase="buffer")
        await agent.send("clearAudio", streamId=agent.stream_id)
        await say_turn(agent, "stale", STALE, 1.0)  # generated before the note
        note = await agent.wait("mirror.note")
        await asyncio.sleep(0.5)
        await say_turn(agent, "fresh", GOOD, 1.0, seen=note["id"])
        await finish(agent)
        await agent.wait("mirror.intervention", phase="completed")

    record = await world.call(script, end_played)
    assert order(record.heard) == [BAD, BUFFER, CORRECTION, GOOD]
    first, second = world.agent.of("mirror.note")
    assert (first["rev"], first["dropped"]) == (1, [])
    assert (second["rev"], second["dropped"], second["id"]) == (2, ["stale"], first["id"])
    assert [note["dropped"] for note in world.record.of("note.sent")] == [[], ["stale"]]
    # The agent's own clearAudio was answered by Mirror and did not cut the buffer line.
    assert len(world.agent.of("clearedAudio")) == 1
    assert len(record.of("clearAudio")) == 1


@virtual_time
async def test_a_turn_without_seen_is_told_from_when_it_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 6.0)
        await agent.wait("mirror.intervention", phase="started")
        await asyncio.sleep(0.25)
        await say_turn(agent, "before", STALE, 1.0)
        await agent.wait("mirror.note")
        await asyncio.sleep(1.5)
        await say_turn(agent, "after", GOOD, 1.0)
        await finish(agent)

    record = await world.call(script, end_played)
    assert order(record.heard) == [BAD, BUFFER, CORRECTION, GOOD]
    assert world.agent.of("mirror.note")[-1]["dropped"] == ["before"]


@virtual_time
async def test_fresh_turns_are_released_in_order_with_their_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    more = "Is there anything else?"

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 6.0)
        note = await agent.wait("mirror.note")
        await asyncio.sleep(0.3)
        await say_turn(agent, "t2", GOOD, 1.0, seen=note["id"])
        await agent.send("checkpoint", streamId=agent.stream_id, name="good")
        await asyncio.sleep(0.3)
        await say_turn(agent, "t3", more, 1.0, seen=note["id"])
        await finish(agent)

    record = await world.call(script, end_played)
    assert order(record.heard) == [BAD, BUFFER, CORRECTION, GOOD, more]
    assert [event["name"] for event in world.agent.of("playedStream")] == ["good", "end"]
    good = ears(record.heard)[3]
    assert record.played("good").t == pytest.approx(good.end, abs=0.03)  # type: ignore[union-attr]


@virtual_time
async def test_a_fresh_turn_is_released_only_when_it_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.llm.delay_s = lambda asked: 2.0 if asked.user["agent_text"] == GOOD else 0.2

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 6.0)
        note = await agent.wait("mirror.note")
        await asyncio.sleep(4.0)
        await say_turn(agent, "t2", GOOD, 1.0, seen=note["id"])
        await finish(agent)

    record = await world.call(script, end_played)
    assert order(record.heard) == [BAD, BUFFER, CORRECTION, GOOD]
    judged = [event["at_ms"] for event in world.record.of("turn.judged")]
    assert ears(record.heard)[-1].start >= judged[-1] / 1000


@virtual_time
async def test_a_fresh_turn_that_is_wrong_again_is_never_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    again = "As I said, it was refunded yesterday."

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 6.0)
        note = await agent.wait("mirror.note")
        await asyncio.sleep(0.5)
        await say_turn(agent, "t2", again, 2.0, seen=note["id"])
        await agent.wait("mirror.intervention", phase="completed")

    record = await world.call(script, after_intervention(world))
    assert again not in order(record.heard)
    judged = world.record.of("turn.judged")[1]
    assert judged["intervene"] is True
    assert judged["acted"] is False
    assert "t2" in world.agent.of("mirror.note")[-1]["dropped"]


@virtual_time
async def test_a_second_wrong_turn_joins_the_note_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    again = "The money was refunded, I promise."

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 1.0)
        await asyncio.sleep(0.1)
        await agent.send("mirror.turn", turn_id="t2", customer_text="", text=again)
        await agent.wait("mirror.intervention", phase="completed")

    record = await world.call(script, after_intervention(world))
    assert order(record.heard) == [BAD, BUFFER, CORRECTION]
    assert len(world.record.of("intervention.started")) == 1
    assert len(record.of("clearAudio")) == 1
    assert world.agent.of("mirror.note")[-1]["dropped"] == ["t2"]


@pytest.mark.parametrize(("severity", "corrected"), [("medium", 1), ("high", 2)])
@virtual_time
async def test_the_cooldown_spares_the_same_rule_unless_its_severity_is_high(
    monkeypatch: pytest.MonkeyPatch, severity: str, corrected: int
) -> None:
    world = World(
        monkeypatch, config={"cooldown_s": 30.0}, rules=[{"text": "Never confirm a refund.", "severity": severity}]
    )

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        for ref in ("t1", "t2"):
            await say_turn(agent, ref, BAD, 3.0, seen=agent.of("mirror.note")[-1]["id"] if ref == "t2" else None)
            await asyncio.sleep(10)

    record = await world.call(script, lambda call: asyncio.sleep(22))
    assert order(record.heard).count(CORRECTION) == corrected
    assert len(world.record.of("intervention.started")) == corrected
    second = world.record.of("turn.judged")[1]
    assert (second["acted"], second["withheld"]) == ((True, None) if corrected == 2 else (False, "cooldown"))
    if corrected == 2:
        # No buffer line is said twice while there is another.
        buffers = [event["buffer_text"] for event in world.record.of("intervention.ended")]
        assert len(set(buffers)) == 2


@virtual_time
async def test_after_the_last_allowed_intervention_only_notes_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, config={"max_interventions_per_call": 1, "cooldown_s": 0.0})

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        for ref in ("t1", "t2"):
            await say_turn(agent, ref, BAD, 3.0)
            await asyncio.sleep(10)

    record = await world.call(script, lambda call: asyncio.sleep(21))
    assert order(record.heard) == [BAD, BUFFER, CORRECTION, BAD]
    assert [event["outcome"] for event in world.record.of("intervention.ended")] == ["completed", "limit"]
    assert len({note["id"] for note in world.agent.of("mirror.note")}) == 2


# The caller


@virtual_time
async def test_the_callers_voice_ends_a_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 6.0)
        await agent.wait("mirror.intervention", phase="interrupted")
        await say_turn(agent, "t2", GOOD, 1.0, seen=agent.of("mirror.note")[-1]["id"])
        await finish(agent)

    async def during(call: SimulatedCall) -> None:
        await call.wait_for(lambda r: CORRECTION in order(r.heard), 30)
        call.say(CALLER)
        await end_played(call)

    record = await world.call(script, during, PlivoSwitches(delay_s=0.03))
    voices = ears(record.heard)
    assert [voice.label for voice in voices] == [BAD, BUFFER, CORRECTION, GOOD]
    assert 0.4 < voices[2].seconds < 1.2  # of 3.66 s
    ended = world.record.one("intervention.ended")
    assert ended["outcome"] == "interrupted"
    first, second = world.agent.of("mirror.note")
    assert second["rev"] == 2
    assert second["said"].startswith(BUFFER)
    assert len(second["said"]) < len(first["said"])
    assert phases(world.agent)[-1] == "interrupted"


@virtual_time
async def test_a_key_ends_a_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 6.0)
        await agent.wait("mirror.intervention", phase="interrupted")

    async def during(call: SimulatedCall) -> None:
        await call.wait_for(lambda r: CORRECTION in order(r.heard), 30)
        call.press("1")
        await asyncio.sleep(1.0)

    record = await world.call(script, during)
    assert ears(record.heard)[2].seconds < 0.1
    assert world.record.one("intervention.ended")["outcome"] == "interrupted"
    assert world.agent.of("dtmf")


@virtual_time
async def test_a_key_pressed_before_the_buffer_line_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 6.0)
        await agent.wait("mirror.intervention", phase="interrupted")

    async def during(call: SimulatedCall) -> None:
        await call.wait_for(lambda r: r.of("clearAudio"), 30)
        call.press("1")
        await asyncio.sleep(2.0)

    record = await world.call(script, during, PlivoSwitches(delay_s=0.1, cleared_audio="lost"))
    assert CORRECTION not in order(record.heard)
    assert world.record.one("intervention.ended")["outcome"] == "interrupted"
    assert world.agent.of("mirror.note")[-1]["said"] in ("", BUFFER.split()[0])


@virtual_time
async def test_the_agents_clear_alone_does_not_cut_mirror_off(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 6.0)
        await agent.wait("mirror.intervention", phase="correction")
        for _ in range(3):
            await agent.send("clearAudio", streamId=agent.stream_id)
            await asyncio.sleep(0.5)
        await agent.wait("mirror.intervention", phase="completed")

    record = await world.call(script, after_intervention(world))
    assert order(record.heard) == [BAD, BUFFER, CORRECTION]
    assert len(record.of("clearAudio")) == 1
    assert len(world.agent.of("clearedAudio")) == 3


@virtual_time
async def test_with_the_agents_clear_half_as_much_speech_is_a_barge_in(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = {}
    for clears in (False, True):
        world = World(monkeypatch)

        async def script(agent: AgentCall, clears: bool = clears) -> None:
            await agent.hello()
            await say_turn(agent, "t1", BAD, 6.0)
            await agent.wait("mirror.intervention", phase="correction")
            if clears:
                await agent.send("clearAudio", streamId=agent.stream_id)
            await agent.wait("mirror.intervention", phase="interrupted")

        async def during(call: SimulatedCall, world: World = world) -> None:
            await call.wait_for(lambda r: CORRECTION in order(r.heard), 30)
            call.say(CALLER)
            await after_intervention(world)(call)

        record = await world.call(script, during)
        durations[clears] = ears(record.heard)[2].seconds
    assert durations[True] < durations[False] - 0.15


@virtual_time
async def test_nothing_is_said_over_a_caller_who_speaks_when_the_verdict_arrives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.llm.delay_s = 1.5

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 6.0)
        note = await agent.wait("mirror.note")
        assert note["said"] == ""
        await asyncio.sleep(3)
        await say_turn(agent, "t2", GOOD, 1.0, seen=note["id"])
        await finish(agent)

    async def during(call: SimulatedCall) -> None:
        await asyncio.sleep(0.5)
        call.say(CALLER)
        await end_played(call)

    record = await world.call(script, during)
    voices = ears(record.heard)
    assert [voice.label for voice in voices] == [BAD, GOOD]
    assert voices[0].seconds == pytest.approx(1.5, abs=0.05)
    ended = world.record.one("intervention.ended")
    assert (ended["outcome"], ended["buffer_text"], ended["correction_text"]) == ("caller_speaking", "", "")
    assert phases(world.agent) == []


@virtual_time
async def test_a_transcript_of_mirrors_own_words_is_not_taken_for_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 6.0)
        await agent.wait("mirror.intervention", phase="correction")
        await agent.send("mirror.transcript", role="customer", text=CORRECTION, final=True)
        await agent.send("mirror.transcript", role="customer", text="Yes please.", final=True)
        await agent.wait("mirror.intervention", phase="completed")
        await agent.send("mirror.turn", turn_id="t2", text=GOOD, seen=agent.of("mirror.note")[-1]["id"])

    await world.call(script, after_intervention(world))
    assert world.record.of("turn.reported")[1]["customer_text"] == "Yes please."


# Voice


@virtual_time
async def test_without_a_voice_a_violation_gives_a_note_only(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, speaks=False)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 2.0)
        await finish(agent)

    record = await world.call(script, end_played)
    assert order(record.heard) == [BAD]
    assert not record.of("clearAudio")
    ended = world.record.one("intervention.ended")
    assert (ended["outcome"], ended["detail"]) == ("unarmed", "no speech provider is configured")
    assert ended["heard_ms"] == 2_000  # as it was in the end, not when the verdict came
    assert 0 < ended["violation_heard_ms"] < 2_000
    assert world.agent.of("mirror.note")[0]["said"] == ""
    assert world.record.one("turn.judged")["withheld"] == "unarmed"


@virtual_time
async def test_lines_that_are_not_rendered_yet_leave_the_call_unarmed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, tts=ToneTTS(delay_s=5.0))

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 2.0)
        await finish(agent)

    record = await world.call(script, end_played)
    assert order(record.heard) == [BAD]
    assert world.record.one("intervention.ended")["outcome"] == "unarmed"


@pytest.mark.parametrize("delay_s", [0.0, 1.0])
@virtual_time
async def test_a_language_without_a_voice_is_never_answered_in_another_one(
    monkeypatch: pytest.MonkeyPatch, delay_s: float
) -> None:
    world = World(monkeypatch, tts=ToneTTS(delay_s=delay_s))

    async def script(agent: AgentCall) -> None:
        await asyncio.sleep(0.5)
        await agent.hello(language="de-DE")
        await asyncio.sleep(10)
        await say_turn(agent, "t1", BAD, 2.0)
        await finish(agent)

    record = await world.call(script, end_played)
    assert order(record.heard) == [BAD]
    ended = world.record.one("intervention.ended")
    assert (ended["outcome"], ended["detail"]) == ("unarmed", "the speech provider does not speak de-DE")


@virtual_time
async def test_a_change_of_language_while_lines_are_rendered_does_not_mix_them(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, tts=ToneTTS(delay_s=0.5, languages=None))

    async def script(agent: AgentCall) -> None:
        await asyncio.sleep(0.7)
        await agent.hello(language="de")
        await asyncio.sleep(10)
        await say_turn(agent, "t1", BAD, 4.0)
        await agent.wait("mirror.intervention", phase="completed")

    await world.call(script, after_intervention(world))
    ended = world.record.one("intervention.ended")
    assert ended["buffer_text"] in buffer_lines("de")


# History, codec


@virtual_time
async def test_the_judge_is_told_what_was_heard_and_what_mirror_said(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 6.0, customer_text="Give me my money back.")
        await agent.wait("mirror.intervention", phase="completed")
        await agent.send("mirror.turn", turn_id="t2", customer_text="Yes, please.", text=GOOD)
        await agent.wait("mirror.verdict", turn_id="t2")

    await world.call(script, after_intervention(world))
    asked = world.llm.of("mirror_turn")[-1]
    assert asked.user["agent_text"] == GOOD
    customer, bad, mirror = asked.user["history"]
    assert customer == {"role": "customer", "text": "Give me my money back."}
    assert bad["role"] == "agent"
    assert "refunded" not in bad["text"]  # the caller never heard it
    assert "cut off" in bad["text"]
    assert mirror == {"role": "mirror", "text": f"{BUFFER} {CORRECTION}"}


@pytest.mark.parametrize("wire", [L16_8K, L16_16K], ids=["8 kHz", "16 kHz"])
@virtual_time
async def test_mirror_speaks_in_the_streams_own_codec(monkeypatch: pytest.MonkeyPatch, wire: WireFormat) -> None:
    world = World(monkeypatch)
    bad = wire.encode(simulator_tone(300, 6.0, wire.sample_rate), wire.sample_rate)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await agent.send("mirror.turn", turn_id="t1", customer_text="", text=BAD)
        for offset in range(0, len(bad), wire.frame_bytes):
            payload = b64encode(bad[offset : offset + wire.frame_bytes]).decode()
            media = {"contentType": wire.encoding, "sampleRate": wire.sample_rate, "payload": payload}
            await agent.send("playAudio", media=media)
        await agent.wait("mirror.intervention", phase="completed")

    record = await world.call(script, after_intervention(world), media_format=wire)
    assert not record.of("ignored")
    seconds = len(bytes(record.heard.audio)) / wire.bytes_per_second
    assert seconds == pytest.approx(0.2 + 1.14 + 3.66, abs=0.1)
    ended = world.record.one("intervention.ended")
    assert (ended["outcome"], ended["heard_ms"]) == ("completed", pytest.approx(180, abs=40))
    assert world.record.one("call.started")["encoding"] == wire.encoding


# Marks, shadow, wire


@virtual_time
async def test_marks_tell_what_was_heard_word_by_word(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.llm.delay_s = lambda asked: 1.0 if asked.at < 1_001 else 0.1
    text = "First this. Then that. And refunded at last."

    async def script(agent: AgentCall) -> None:
        await agent.hello(marks=True)
        await agent.speak(tone("hold music", 0.5))  # belongs to no turn
        await agent.send("mirror.turn", turn_id="t1", customer_text="", text=text)
        await agent.send("mirror.audio", turn_id="t1", state="start")
        for chars in (11, 22, len(text)):
            await agent.speak(tone(text, 0.9))
            await agent.send("mirror.audio", turn_id="t1", state="mark", chars=chars)
        await agent.send("mirror.audio", turn_id="t1", state="end")
        await agent.wait("mirror.intervention", phase="completed")

    record = await world.call(script, after_intervention(world))
    heard = world.record.one("turn.heard")
    assert heard["basis"] == "marks"
    assert heard["audio_ms"] == 2_700
    assert "refunded" in heard["unheard_text"]
    assert order(record.heard)[-2:] == [BUFFER, CORRECTION]


@virtual_time
async def test_shadow_mode_watches_and_never_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, mode="shadow")

    async def script(agent: AgentCall) -> None:
        ready = await agent.hello()
        assert ready["mode"] == "shadow"
        await say_turn(agent, "t1", BAD, 2.0)
        await finish(agent)

    record = await world.call(script, end_played)
    assert order(record.heard) == [BAD]
    assert not record.of("clearAudio")
    judged = world.record.one("turn.judged")
    assert (judged["intervene"], judged["acted"], judged["withheld"]) == (True, False, "shadow")
    assert world.record.of("intervention.started") == []
    assert world.agent.of("mirror.note") == []
    assert world.record.one("call.ended")["interventions"] == 0


@virtual_time
async def test_an_agent_that_says_nothing_to_mirror_is_relayed_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.wait("start")
        await agent.speak(tone(GOOD, 3.0))
        await finish(agent)

    record = await world.call(script, end_played)
    assert order(record.heard) == [GOOD]
    assert [event for event in world.agent.events if event["event"].startswith("mirror.")] == []
    end = world.record.one("call.ended")
    assert (end["coverage_state"], end["coverage"]) == ("none", None)
    assert "mirror.hello" in end["coverage_reason"]
    sent = [frame.payload for frame in record.raw_received]
    assert len(sent) == 151  # 3 s and a checkpoint, and nothing of Mirror's


WIRES = {
    "slow": PlivoSwitches(delay_s=0.2),
    "jittery": PlivoSwitches(delay_s=0.05, jitter_s=0.15, seed=3),
    "cleared lost": PlivoSwitches(delay_s=0.03, cleared_audio="lost"),
    "cleared late": PlivoSwitches(delay_s=0.03, cleared_audio="late"),
    "cleared doubled": PlivoSwitches(delay_s=0.03, cleared_audio="double"),
    "nothing answered": PlivoSwitches(delay_s=0.2, cleared_audio="lost", checkpoint_on_empty="never"),
    "acks late": PlivoSwitches(delay_s=0.03, pending_checkpoints_on_clear="fire_late"),
    "acks now": PlivoSwitches(delay_s=0.03, pending_checkpoints_on_clear="fire_now"),
    "no sequence": PlivoSwitches(played_seq=False, seq_start=0, extra_headers="absent"),
}


@pytest.mark.parametrize("wire", WIRES)
@virtual_time
async def test_whatever_the_wire_does_the_caller_hears_it_in_order(monkeypatch: pytest.MonkeyPatch, wire: str) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await asyncio.sleep(1.0)  # the round trip is measured by now
        await say_turn(agent, "t1", BAD, 6.0)
        await agent.send("checkpoint", streamId=agent.stream_id, name="bad")
        await agent.wait("mirror.intervention", phase="completed")
        await say_turn(agent, "t2", GOOD, 2.0, seen=agent.of("mirror.note")[-1]["id"])
        await finish(agent)

    record: CallRecord = await world.call(script, end_played, WIRES[wire])
    bad, *rest = ears(record.heard)
    buffers = [voice for voice in rest if voice.label == BUFFER]
    correction = [voice for voice in rest if voice.label == CORRECTION]
    heard = [label for index, label in enumerate(order(record.heard)) if label not in order(record.heard)[:index]]
    assert heard == [BAD, BUFFER, CORRECTION, GOOD]
    delay = WIRES[wire].delay_s + WIRES[wire].jitter_s
    assert bad.seconds < 0.2 + 2 * delay + 0.06
    assert buffers[0].start - bad.end < 0.35 + 2 * delay
    assert correction[0].start - buffers[-1].end < 0.3
    assert sum(voice.seconds for voice in correction) == pytest.approx(3.66, abs=0.05)
    # The agent asked for no clear and got no answer to one; its muted checkpoint was answered exactly once.
    assert world.agent.of("clearedAudio") == []
    assert [event["name"] for event in world.agent.of("playedStream")] == ["bad", "end"]
    ended = world.record.one("intervention.ended")
    expected = {"cleared lost": "fence", "cleared late": "fence", "nothing answered": "unproven"}
    assert ended["silence_proof"] == expected.get(wire, "cleared")
    assert abs(ended["heard_ms"] - bad.seconds * 1000) < 60 + 2 * delay * 1000


def test_the_judge_of_these_tests_flags_refunds() -> None:
    asked: Any = type("Asked", (), {"user": {"agent_text": BAD}})
    assert judge_refunds(asked) == VIOLATION
    asked.user = {"agent_text": GOOD}
    assert judge_refunds(asked) == CLEAN
