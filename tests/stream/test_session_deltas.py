"""Turns that arrive in deltas, on virtual time: what is asked when, what of a turn is heard, and what is recorded."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from supervision.plivo.simulator import PlivoSwitches
from tests.e2e.agents import AgentCall
from tests.engine.llms import CLEAN, Asked
from tests.stream.test_session_virtual import after_intervention, end_played, finish, phases
from tests.stream.world import (
    BAD,
    BUFFER,
    CORRECTION,
    GOOD,
    VIOLATION,
    World,
    ears,
    judge_refunds,
    order,
    say_turn,
    tone,
)
from tests.support.virtual_time import virtual_time

FIRST = "I am looking at the booking of yours right now."
SECOND = "It was made on the fourth of May."
PAUSE = b"\xff" * (8 * 240)


async def stream(agent: AgentCall, ref: str, *texts: str, final: bool = True, step_s: float = 0.0, **more: Any) -> None:
    """Send a turn word by word."""
    words = re.findall(r"\S+\s*", " ".join(texts))
    for number, word in enumerate(words):
        first = more if number == 0 else {}
        await agent.send("mirror.delta", turn_id=ref, text=word, **first)
        if step_s:
            await asyncio.sleep(step_s)
    if final:
        await agent.send("mirror.delta", turn_id=ref, final=True)


def asked_about(world: World) -> list[str]:
    return [asked.user["agent_text"] for asked in world.llm.of("mirror_turn") if CORRECTION not in str(asked.user)]


@virtual_time
async def test_each_clause_is_judged_with_the_turn_so_far_and_the_tail_always(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, config={"tiered_scoring_enabled": False})
    world.llm.delay_s = 1.0

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await stream(
            agent, "t1", FIRST, SECOND, "And one more", step_s=0.05, customer_text="When was it?", language="de"
        )
        verdict = await agent.wait("mirror.verdict", turn_id="t1")
        assert (verdict["state"], verdict["intervene"]) == ("judged", False)
        await finish(agent)

    await world.call(script, end_played)
    texts = [f"{FIRST}", f"{FIRST} {SECOND}", f"{FIRST} {SECOND} And one more"]
    assert [text.strip() for text in asked_about(world)] == texts
    questions = world.llm.of("mirror_turn")
    assert questions[1].at - questions[0].at < 1.0  # it did not wait for the first one's answer
    assert {asked.user["customer_text"] for asked in questions} == {"When was it?"}
    reported = world.record.one("turn.reported")
    assert (reported["text"], reported["customer_text"], reported["language"]) == ("I ", "When was it?", "de")
    assert world.record.one("turn.completed")["text"] == texts[-1]
    end = world.record.one("call.ended")
    assert (end["turns"], end["judged"], end["coverage"]) == (1, 1, 1.0)


@virtual_time
async def test_a_wrong_clause_is_cut_at_the_end_of_the_word_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its words are at Plivo already, behind innocent ones: those are heard to their end."""
    world = World(monkeypatch)
    world.llm.delay_s = 0.1
    good_clause = "Okay."

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await agent.send("mirror.delta", turn_id="t1", text=f"{good_clause} ")
        await agent.speak(tone(FIRST, 0.3) + PAUSE[:960] + tone(BAD, 4.0))
        await agent.send("mirror.delta", turn_id="t1", text=BAD, final=True)
        await agent.wait("mirror.intervention", phase="completed")

    record = await world.call(script, after_intervention(world), PlivoSwitches(delay_s=0.02))
    assert world.record.one("intervention.started")["plan"] == "cut_when_reached"
    voices = ears(record.heard)
    assert [voice.label for voice in voices if voice.seconds > 0.03] == [FIRST, BUFFER, CORRECTION]
    assert voices[0].seconds == pytest.approx(0.3, abs=0.02)
    ended = world.record.one("intervention.ended")
    assert ended["violation_heard_ms"] <= 40
    assert world.agent.of("mirror.note")[0]["heard_text"] in ("", good_clause)


@virtual_time
async def test_a_wrong_clause_that_is_still_at_mirror_is_discarded_without_a_clear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.llm.delay_s = 0.3

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await stream(agent, "t1", FIRST + " ", final=False)
        await agent.speak(tone(FIRST, 3.0) + PAUSE)
        await stream(agent, "t1", BAD)
        await agent.speak(tone(BAD, 3.0))
        await agent.wait("mirror.intervention", phase="completed")

    record = await world.call(script, after_intervention(world))
    innocent, buffer, correction = ears(record.heard)
    assert [innocent.label, buffer.label, correction.label] == [FIRST, BUFFER, CORRECTION]
    assert innocent.seconds == pytest.approx(3.0, abs=0.03)
    assert buffer.start - innocent.end < 0.35
    assert not record.of("clearAudio")
    assert world.record.one("intervention.started")["plan"] == "replace_held"
    assert world.record.one("intervention.ended")["violation_heard_ms"] == 0
    heard = world.record.one("turn.heard")
    assert heard["heard_text"]
    assert FIRST.startswith(heard["heard_text"])
    assert heard["unheard_text"].endswith("your card.")


@virtual_time
async def test_words_that_are_audible_are_cut_at_once_and_the_rest_of_the_turn_stays_mute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.llm.delay_s = 0.4

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        speaking = asyncio.create_task(agent.speak(tone(BAD, 8.0), paced=True))
        await stream(agent, "t1", BAD, "More of it comes later.", step_s=0.1, final=False)
        await agent.wait("mirror.intervention", phase="completed")
        await agent.send("mirror.delta", turn_id="t1", text="And more.")  # sent before it had heard of the cut
        await speaking
        await agent.send("mirror.delta", turn_id="t1", final=True)

    record = await world.call(script, lambda call: asyncio.sleep(12.0))
    assert order(record.heard) == [BAD, BUFFER, CORRECTION]
    assert world.record.one("intervention.started")["plan"] == "cut_now"
    assert not world.agent.of("mirror.error")
    assert len(world.record.of("turn.completed")) == 1


@virtual_time
async def test_a_held_turn_begins_with_its_first_clean_clause_and_a_wrong_one_behind_it_is_never_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch, config={"delivery": "hold_all", "tiered_scoring_enabled": False})
    world.llm.delay_s = 0.5

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await stream(agent, "t1", FIRST, BAD)
        await agent.speak(tone(FIRST, 3.0) + PAUSE + tone(BAD, 4.0))
        await agent.wait("mirror.intervention", phase="completed")

    record = await world.call(script, after_intervention(world))
    innocent, buffer, correction = ears(record.heard)
    assert [innocent.label, buffer.label, correction.label] == [FIRST, BUFFER, CORRECTION]
    assert innocent.seconds == pytest.approx(3.0, abs=0.03)
    assert not record.of("clearAudio")
    assert world.record.one("intervention.ended")["violation_heard_ms"] == 0


@virtual_time
async def test_a_held_stream_keeps_its_lead_at_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each clause is judged while the one before it plays."""
    world = World(monkeypatch, config={"delivery": "hold_all", "tiered_scoring_enabled": False})
    world.llm.delay_s = 0.4

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        speaking = asyncio.create_task(agent.speak(tone(FIRST, 2.4) + PAUSE + tone(BAD, 4.0), paced=True))
        await stream(agent, "t1", FIRST, BAD, step_s=0.15)
        await agent.wait("mirror.intervention", phase="completed")
        await speaking

    record = await world.call(script, after_intervention(world))
    assert order(record.heard)[0] == FIRST
    assert sum(voice.seconds for voice in ears(record.heard) if voice.label == BAD) <= 0.4
    assert order(record.heard)[-2:] == [BUFFER, CORRECTION]


@pytest.mark.parametrize("ends", ["another turn", "another stream", "clear", "hang-up"])
@virtual_time
async def test_the_tail_of_a_turn_that_was_left_open_is_judged(monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    world = World(monkeypatch, config={"tiered_scoring_enabled": False})

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await stream(agent, "t1", "There is no stop in these words", final=False)
        await agent.speak(tone(FIRST, 0.4))
        await asyncio.sleep(0.5)
        if ends == "clear":
            await agent.send("clearAudio", streamId=agent.stream_id)
        elif ends != "hang-up":
            await asyncio.sleep(0.5)
            await agent.send("mirror.turn" if ends == "another turn" else "mirror.delta", turn_id="t2", text=GOOD)
            await agent.speak(tone(GOOD, 1.0))

    await world.call(script, lambda call: asyncio.sleep(4.0))
    assert "There is no stop in these words" in asked_about(world)
    assert world.record.of("turn.judged")[0]["state"] == "judged"
    if ends.startswith("another"):
        asked = next(asked for asked in world.llm.of("mirror_turn") if GOOD in asked.user["agent_text"])
        assert [entry["text"] for entry in asked.user["history"]] == ["There is no stop in these words"]


@virtual_time
async def test_a_tool_waits_for_the_words_that_its_turn_sent_before_it_and_for_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch, config={"tiered_scoring_enabled": False})
    world.llm.delay_s = lambda asked: 0.5 if asked.schema_name == "mirror_turn" else 0.1

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await stream(agent, "t1", FIRST, "and the order ", final=False)
        now = asyncio.get_running_loop().time
        asked_at = now()
        await agent.send("mirror.tool", id="one", turn_id="t1", name="place_order", args={"item": "pizza"})
        verdict = await agent.wait("mirror.tool_verdict", id="one")
        assert verdict["allow"], verdict
        assert 0.45 < now() - asked_at < 0.7  # the clause that had not ended was asked about
        await agent.send("mirror.tool_done", id="one", ok=True, result={})
        await stream(agent, "t1", "now. " + BAD, final=False)
        await agent.send("mirror.tool", id="two", turn_id="t1", name="send_email", args={"to": "me"})
        verdict = await agent.wait("mirror.tool_verdict", id="two")
        assert (verdict["allow"], verdict["code"]) == (False, "denied")
        await agent.send("mirror.tool", id="three", turn_id="t1", name="book_flight", args={"to": "Rome"})
        assert (await agent.wait("mirror.tool_verdict", id="three"))["code"] == "denied"

    await world.call(script, lambda call: asyncio.sleep(8.0))
    assert [asked for asked in asked_about(world) if asked.strip() == f"{FIRST} and the order"]


@virtual_time
async def test_the_judge_of_a_clause_knows_what_became_of_the_turns_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, config={"tiered_scoring_enabled": False})
    refusal = {"id": "one", "score": 0.9, "rule": "1", "reason": "nobody ordered it", "instruction": "Ask first."}
    world.llm.tools = {"decisions": [refusal]}

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await stream(agent, "t1", FIRST + " ", final=False)
        await agent.send("mirror.tool", id="one", turn_id="t1", name="place_order", args={"item": "pizza"})
        assert not (await agent.wait("mirror.tool_verdict", id="one"))["allow"]
        await stream(agent, "t1", "Your pizza is on its way.")
        await agent.wait("mirror.verdict", turn_id="t1")

    await world.call(script, lambda call: asyncio.sleep(4.0))
    last = world.llm.of("mirror_turn")[-1].user
    assert last["agent_text"] == f"{FIRST} Your pizza is on its way."
    assert any("place_order" in entry["text"] and "did not run" in entry["text"] for entry in last["history"])


@virtual_time
async def test_a_clause_that_may_not_be_acted_upon_does_not_end_the_judging(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, mode="shadow", config={"tiered_scoring_enabled": False})

    def judge(asked: Asked) -> dict[str, Any]:
        if "promise" in asked.user["agent_text"]:
            return {**VIOLATION, "score": 0.99, "reason": "It promises."}
        return judge_refunds(asked)

    world.llm.turn = judge

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await stream(agent, "t1", BAD, "And I promise it.", step_s=0.1)
        await agent.wait("mirror.verdict", turn_id="t1")

    await world.call(script, lambda call: asyncio.sleep(4.0))
    judged = world.record.one("turn.judged")
    assert (judged["withheld"], judged["score"], judged["reason"]) == ("shadow", 0.99, "It promises.")


@virtual_time
async def test_a_policy_can_have_streams_judged_only_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, config={"tiered_scoring_enabled": False, "streaming_mode": False})

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await stream(agent, "t1", FIRST, SECOND, step_s=0.1)
        await agent.wait("mirror.verdict", turn_id="t1")

    await world.call(script, lambda call: asyncio.sleep(3.0))
    assert [text.strip() for text in asked_about(world)] == [f"{FIRST} {SECOND}"]


@virtual_time
async def test_deltas_that_fit_no_turn_are_refused_and_harm_none(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await stream(agent, "t1", GOOD)
        await agent.send("mirror.delta", turn_id="t1", text="And more.")
        assert (await agent.wait("mirror.error", count=1))["code"] == "duplicate_turn"
        await say_turn(agent, "t2", GOOD, 0.5)
        await agent.send("mirror.delta", turn_id="t2", text="And more.")
        assert (await agent.wait("mirror.error", count=2))["code"] == "duplicate_turn"
        for _ in range(5):
            await agent.send("mirror.delta", turn_id="t3", text="a word of it. " * 500)
        error = await agent.wait("mirror.error", count=3)
        assert (error["code"], error["ref"]) == ("bad_field", "t3")
        assert "32000" in error["message"]
        await agent.send("mirror.turn", turn_id="t3", text="again")
        assert (await agent.wait("mirror.error", count=4))["code"] == "duplicate_turn"
        await agent.send("mirror.delta", turn_id="t4", text="", final=True)
        await agent.send("mirror.delta", turn_id="t5", text="\ud83d")
        await agent.send("mirror.delta", turn_id="t5", text="\ude00 is a face.", final=True)
        await agent.wait("mirror.verdict", turn_id="t5")
        await finish(agent)

    await world.call(script, end_played)
    assert len(world.record.of("turn.completed")) == 4


@virtual_time
async def test_without_a_policy_deltas_are_recorded_and_nothing_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, governed=False)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await stream(agent, "t1", BAD)
        await agent.speak(tone(BAD, 1.0))
        assert (await agent.wait("mirror.verdict", turn_id="t1"))["state"] == "failed"
        await finish(agent)

    record = await world.call(script, end_played)
    assert order(record.heard) == [BAD]
    assert not phases(world.agent)
    assert world.record.one("turn.completed")["text"].strip() == BAD


@virtual_time
async def test_a_fresh_stream_after_an_intervention_is_heard_when_its_first_words_are_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.llm.turn = lambda asked: judge_refunds(asked) if FIRST not in asked.user["agent_text"] else dict(CLEAN)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 3.0)
        note = await agent.wait("mirror.note")
        await stream(agent, "t2", FIRST, "and", final=False, seen=note["id"])
        await agent.speak(tone(FIRST, 2.0))
        await agent.wait("mirror.intervention", phase="completed")
        await asyncio.sleep(3.0)
        await finish(agent)

    record = await world.call(script, end_played)
    assert order(record.heard) == [BAD, BUFFER, CORRECTION, FIRST]
