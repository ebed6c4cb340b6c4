"""Whole calls with the pre-gate in front of the judge, on virtual time: what is skipped, what is not, what is told."""

from __future__ import annotations

import pytest

from tests.e2e.agents import AgentCall
from tests.stream.test_session_virtual import end_played, finish
from tests.stream.world import BAD, GOOD, World, order, say_turn
from tests.support.virtual_time import virtual_time

ASKS = "Could you please give me your order number?"
STATES = "Your parcel is on the van."


@virtual_time
async def test_a_turn_that_only_asks_is_heard_without_asking_the_judge_and_everyone_learns_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", ASKS, 1.0, customer_text="Where is my parcel?")
        verdict = await agent.wait("mirror.verdict", turn_id="t1")
        assert verdict == {
            "event": "mirror.verdict",
            "turn_id": "t1",
            "state": "skipped",
            "score": None,
            "intervene": False,
            "acted": False,
            "withheld": None,
            "rule": None,
            "reason": "only asks",
            "latency_ms": 0,
        }
        await say_turn(agent, "t2", STATES, 1.0, customer_text="It is number twelve.")
        assert (await agent.wait("mirror.verdict", turn_id="t2"))["state"] == "judged"
        await finish(agent)

    record = await world.call(script, end_played)
    assert order(record.heard) == [ASKS, STATES]
    assert [asked.user["agent_text"] for asked in world.llm.of("mirror_turn")] == [STATES]
    first, second = world.record.of("turn.judged")
    assert (first["state"], first["score"], first["detail"]) == ("skipped", None, "only asks")
    assert (second["state"], second["detail"]) == ("judged", "")
    end = world.record.one("call.ended")
    assert (end["skipped"], end["judged"]) == (1, 1)
    assert (end["coverage"], end["coverage_state"]) == (1.0, "full")


@virtual_time
async def test_the_turn_after_an_intervention_is_judged_and_the_one_after_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 6.0, customer_text="Give me my money back.")
        await agent.wait("mirror.intervention", phase="completed")
        seen = agent.of("mirror.note")[-1]["id"]
        for ref in ("t2", "t3"):
            await say_turn(agent, ref, ASKS, 1.0, seen=seen)
            await agent.wait("mirror.verdict", turn_id=ref)
        await finish(agent)

    await world.call(script, end_played)
    assert [judged["state"] for judged in world.record.of("turn.judged")] == ["judged", "judged", "skipped"]


@virtual_time
async def test_a_turn_with_a_tool_that_may_change_something_is_judged_whatever_its_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        charge = {"id": "c1", "name": "charge_card", "args": {"amount": 1}}
        await say_turn(agent, "t1", ASKS, 1.0, tool_calls=[charge])
        await agent.wait("mirror.tool_verdict", id="c1")
        look_up = {"id": "c2", "name": "get_order", "args": {}}
        await say_turn(agent, "t2", ASKS, 1.0, tool_calls=[look_up])
        assert (await agent.wait("mirror.tool_verdict", id="c2"))["allow"] is True
        await finish(agent)

    await world.call(script, end_played)
    assert [judged["state"] for judged in world.record.of("turn.judged")] == ["judged", "skipped"]
    # The tool of a turn that needs no judge is still gated.
    assert len(world.llm.of("mirror_tools")) == 2


@virtual_time
@pytest.mark.parametrize(
    "config", [{"tiered_scoring_enabled": False}, {"pregate_always": ["question"]}], ids=["off", "questions forced"]
)
async def test_a_policy_can_have_every_turn_judged_or_all_of_a_class(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, object]
) -> None:
    world = World(monkeypatch, config=config)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", ASKS, 1.0)
        assert (await agent.wait("mirror.verdict", turn_id="t1"))["state"] == "judged"
        await say_turn(agent, "t2", GOOD, 1.0)
        await finish(agent)

    await world.call(script, end_played)
    assert world.record.of("turn.judged")[0]["state"] == "judged"
    assert world.record.one("call.ended")["coverage"] == 1.0
