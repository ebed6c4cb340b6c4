"""A call whose stream comes back on another socket of the same process, on virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from mirror_saas.ids import uuid7
from supervision.plivo.simulator import PlivoSwitches, SimulatedCall
from supervision.stream import consumer as consumer_module
from supervision.stream import token as token_module
from supervision.stream.owners import KNOWN_FOR_S
from supervision.stream.session import RETURN_WITHIN_S
from supervision.stream.token import FIRST_USE_S, token_make
from tests.e2e.agents import AgentCall
from tests.stream.world import BAD, GOOD, KEY, SLUG, World, say_turn
from tests.support.virtual_time import virtual_time

CALL = "11111111-2222-4333-8444-555566667777"
REDIALS = PlivoSwitches(reconnects=1, reconnect_delay_s=0.5)
URL = f"wss://mirror.example/stream/{SLUG}/{KEY}"


def epochs(world: World) -> list[tuple[str, int]]:
    kinds = ("call.started", "call.moved", "call.resumed", "call.ended")
    return [(event.kind, event.epoch) for event in world.record.events if event.kind in kinds]


def resumed(world: World, agents: int = 2) -> Any:
    """Wait until the call has come back and its agent is ready."""

    async def wait(call: SimulatedCall) -> None:
        await call.wait_for(lambda record: len(world.agents) == agents and world.agents[-1].of("mirror.ready"), 60)

    return wait


@virtual_time
async def test_a_stream_that_breaks_and_comes_back_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, config={"tiered_scoring_enabled": False})

    async def script(agent: AgentCall) -> None:
        first = len(world.agents) == 1
        await agent.hello()
        await say_turn(agent, "t1" if first else "t2", GOOD, 0.5, customer_text="Where is it?" if first else "And now?")
        await agent.wait("mirror.verdict")

    async def during(call: SimulatedCall) -> None:
        await call.wait_for(lambda record: world.record.of("turn.judged"))
        call.drop_connection()
        await call.wait_for(lambda record: len(world.record.of("turn.judged")) == 2, 60)

    record = await world.call(script, during, REDIALS)
    assert record.outcome == "completed"
    old, new = world.agents
    assert old.closed == 1000
    assert old.connection.closed_at < record.began_at + 60
    assert epochs(world) == [("call.started", 1), ("call.moved", 1), ("call.resumed", 2), ("call.ended", 2)]
    assert {event.call_id for event in world.record.events} == {world.record.events[0].call_id}
    assert (old.of("mirror.ready")[0]["resumed"], new.of("mirror.ready")[0]["resumed"]) == (False, True)
    assert new.of("start")[0]["start"]["callId"] == old.of("start")[0]["start"]["callId"]
    # Time goes on, and so does the conversation.
    at = [event["at_ms"] for event in world.record.of("turn.reported")]
    assert at[1] - at[0] >= 500
    assert [event["index"] for event in world.record.of("turn.reported")] == [1, 2]
    history = world.llm.asked[-1].user["history"]
    assert [entry["text"] for entry in history] == ["Where is it?", GOOD]
    ended = world.record.one("call.ended")
    assert (ended["turns"], ended["coverage"], ended["outcome"]) == (None, None, "completed")


@virtual_time
async def test_a_new_socket_takes_a_call_over_whose_old_one_still_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network broke on Plivo's side only: nobody has told Mirror."""
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()

    world.script = script
    first = SimulatedCall(URL, switches=PlivoSwitches(), call_id=CALL)
    running = asyncio.create_task(first.run())
    await first.wait_for(lambda record: world.agents and world.agents[0].of("mirror.ready"))
    second = SimulatedCall(URL, switches=PlivoSwitches(hang_up_at_s=2.0), call_id=CALL)
    record = await second.run()
    lost = await running
    assert (record.outcome, lost.close_code) == ("completed", 1000)
    assert [agent.closed for agent in world.agents] == [1000, 1000]
    assert epochs(world) == [("call.started", 1), ("call.moved", 1), ("call.resumed", 2), ("call.ended", 2)]
    await asyncio.gather(*world.apps)


@virtual_time
async def test_the_newest_of_many_sockets_has_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()

    world.script = script
    calls = [SimulatedCall(URL, switches=PlivoSwitches(hang_up_at_s=5.0), call_id=CALL) for _ in range(5)]
    await asyncio.gather(*(call.run() for call in calls))
    await asyncio.gather(*world.apps)
    assert [epoch for kind, epoch in epochs(world) if kind == "call.resumed"] == [2, 3, 4, 5]
    assert [kind for kind, _ in epochs(world)].count("call.ended") == 1
    assert len({event.call_id for event in world.record.events}) == 1
    assert sum(call.record.close_code == 1000 for call in calls) == 5


@virtual_time
async def test_an_intervention_that_was_running_has_failed_and_its_note_waits_for_the_agent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        if len(world.agents) == 1:
            await say_turn(agent, "t1", BAD, 6.0, customer_text="Give me my money back.")

    async def during(call: SimulatedCall) -> None:
        await call.wait_for(lambda record: "buffer_played" in world.record.steps(), 30)
        call.drop_connection()
        await resumed(world)(call)

    await world.call(script, during, REDIALS)
    assert world.record.one("intervention.ended")["outcome"] == "failed"
    (note,) = world.agents[1].of("mirror.ready")[0]["notes"]
    sent = world.record.of("note.sent")
    assert (note["id"], note["rev"]) == (sent[-1]["note_id"], len(sent))
    assert "Never confirm a refund." in note["text"]
    assert note["turn_id"] == "t1"


@virtual_time
async def test_an_intervention_of_a_caller_who_does_not_come_back_ends_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 6.0)

    async def during(call: SimulatedCall) -> None:
        await call.wait_for(lambda record: "buffer_played" in world.record.steps(), 30)
        call.drop_connection()

    await world.call(script, during, hang_up=False)
    assert world.record.one("intervention.ended")["outcome"] == "caller_gone"
    assert epochs(world) == [("call.started", 1), ("call.ended", 1)]
    # It was over when the connection broke, not when nobody came.
    ended = world.record.one("call.ended")
    assert ended["duration_ms"] < world.record.one("intervention.ended")["at_ms"] <= ended["duration_ms"] + 6000


@virtual_time
async def test_a_stream_that_breaks_after_its_stop_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plivo said goodbye, so it does not come back; if it does all the same, that is another call."""
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()

    async def during(call: SimulatedCall) -> None:
        await call.wait_for(lambda record: world.agents and world.agents[0].of("mirror.ready"))
        call.send_raw('{"event": "stop"}')
        call.drop_connection()

    broke = asyncio.get_running_loop().time()
    await world.call(script, during, hang_up=False)
    assert world.over_at - broke < RETURN_WITHIN_S
    assert epochs(world) == [("call.started", 1), ("call.ended", 1)]
    assert [event["event"] for event in world.agents[0].events if event["event"] != "media"][-1] == "stop"
    await SimulatedCall(URL, switches=PlivoSwitches(hang_up_at_s=0.5), call_id=world.simulated.record.call_id).run()
    await asyncio.gather(*world.apps)
    assert epochs(world)[2:] == [("call.started", 1), ("call.ended", 1)]


@virtual_time
async def test_a_verdict_that_comes_while_nobody_is_on_the_line_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.llm.delay_s = 0.3

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        if len(world.agents) == 1:
            await say_turn(agent, "t1", BAD, 1.0)

    async def during(call: SimulatedCall) -> None:
        await call.wait_for(lambda record: world.record.of("turn.reported"))
        call.drop_connection()
        await resumed(world)(call)

    await world.call(script, during, REDIALS)
    judged = world.record.one("turn.judged")
    assert (judged["intervene"], judged["acted"], judged["withheld"]) == (True, False, "late")
    assert world.record.one("intervention.ended")["outcome"] == "late"
    (note,) = world.agents[1].of("mirror.ready")[0]["notes"]
    assert note["turn_id"] == "t1"


@virtual_time
async def test_a_note_that_was_answered_is_not_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        if len(world.agents) == 1:
            await say_turn(agent, "t1", BAD, 6.0)
            await agent.wait("mirror.intervention", phase="completed")
            await say_turn(agent, "t2", GOOD, 0.5, seen=agent.of("mirror.note")[-1]["id"])

    async def during(call: SimulatedCall) -> None:
        await call.wait_for(lambda record: len(world.record.of("turn.judged")) == 2, 60)
        call.drop_connection()
        await resumed(world)(call)

    await world.call(script, during, REDIALS)
    assert world.agents[1].of("mirror.ready")[0]["notes"] == []


@virtual_time
async def test_t5_a_charge_before_a_reconnect_does_not_run_again_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    charge = {"name": "charge_card", "args": {"amount": 9}}

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        if len(world.agents) == 1:
            await agent.send("mirror.tool", id="c1", customer_text="Charge me.", **charge)
            await agent.wait("mirror.tool_verdict", id="c1", allow=True)
        else:
            # It ran, and the stream broke before the agent could say so.
            await agent.send("mirror.tool_done", id="c1", ok=True, result={"receipt": 7})
            await agent.send("mirror.tool", id="c2", customer_text="Charge me.", **charge)
            await agent.wait("mirror.tool_verdict", id="c2")

    async def during(call: SimulatedCall) -> None:
        await call.wait_for(lambda record: world.record.of("tool.decided"))
        call.drop_connection()
        await call.wait_for(lambda record: len(world.record.of("tool.decided")) == 2, 60)

    await world.call(script, during, REDIALS)
    (again,) = world.agents[1].of("mirror.tool_verdict")
    assert (again["allow"], again["code"], again["stored_result"]) == (False, "duplicate", {"receipt": 7})
    assert world.record.one("tool.done")["decision_id"] == world.record.of("tool.decided")[0]["decision_id"]


@virtual_time
async def test_a_turn_that_was_reported_before_is_the_same_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    answers: list[dict[str, Any]] = []

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        if len(world.agents) == 1:
            await agent.send("mirror.turn", turn_id="t1", customer_text="", text=GOOD)
        else:
            await agent.send("mirror.turn", turn_id="t1", customer_text="", text=GOOD)
            await agent.wait("mirror.error", code="duplicate_turn", ref="t1")

    async def during(call: SimulatedCall) -> None:
        await call.wait_for(lambda record: world.record.of("turn.judged"))
        call.drop_connection()
        await resumed(world)(call)
        await call.wait_for(lambda record: world.agents[1].of("mirror.error"))
        (session,) = world.runtime.takeovers._calls.values()
        for text in (GOOD, BAD):
            turn = {"turn_id": "t1", "text": text}
            answers.append(await session._from_outside({"turn": turn, "wait_ms": 0}))  # type: ignore[attr-defined]

    await world.call(script, during, REDIALS)
    assert [answer["taken"] for answer in answers] == [True, False]
    assert answers[1]["code"] == "duplicate_turn"
    assert len(world.record.of("turn.reported")) == 1


@virtual_time
async def test_a_call_keeps_its_policy_version_whatever_is_published_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    pinned = world.binding.policy_version_id

    async def script(agent: AgentCall) -> None:
        await agent.hello()

    async def during(call: SimulatedCall) -> None:
        await call.wait_for(lambda record: world.agents and world.agents[0].of("mirror.ready"))
        world.runtime.binding = replace(world.binding, policy_version_id=uuid7(), policy_version=2)
        call.drop_connection()
        await resumed(world)(call)

    await world.call(script, during, REDIALS)
    versions = [world.record.one(kind)["policy_version_id"] for kind in ("call.started", "call.resumed")]
    assert versions == [str(pinned)] * 2
    assert [agent.of("mirror.ready")[0]["policy"]["version"] for agent in world.agents] == [1, 1]


@virtual_time
async def test_two_agents_with_streams_of_one_call_are_two_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()

    world.script = script
    first = SimulatedCall(URL, switches=PlivoSwitches(hang_up_at_s=3.0), call_id=CALL)
    running = asyncio.create_task(first.run())
    await first.wait_for(lambda record: world.agents)
    world.runtime.binding = replace(world.binding, agent_id=uuid7())
    second = await SimulatedCall(URL, switches=PlivoSwitches(hang_up_at_s=1.0), call_id=CALL).run()
    assert {(await running).outcome, second.outcome} == {"completed"}
    assert sorted(kind for kind, _ in epochs(world)) == ["call.ended"] * 2 + ["call.started"] * 2
    await asyncio.gather(*world.apps)


# -- the call's token


@virtual_time
@pytest.mark.parametrize(
    ("claims", "after_s", "status"),
    [
        (CALL, FIRST_USE_S - 1, "taken"),
        (CALL, FIRST_USE_S + 1000, "taken"),  # the call still runs
        ("99999999-2222-4333-8444-555566667777", 10, "refused"),
        ("99999999-2222-4333-8444-555566667777", FIRST_USE_S + 1000, "refused"),
    ],
)
async def test_a_token_is_good_for_its_own_call_while_that_runs(
    monkeypatch: pytest.MonkeyPatch, claims: str, after_s: float, status: str
) -> None:
    world = World(monkeypatch)
    now = [1_800_000_000.0]
    monkeypatch.setattr(consumer_module, "now_unix", lambda: int(now[0]))
    monkeypatch.setattr(token_module.time, "time", lambda: now[0])
    url = f"{URL}?mt={made(world, CALL)}"

    async def script(agent: AgentCall) -> None:
        await agent.hello()

    world.script = script
    first = SimulatedCall(url, switches=PlivoSwitches(hang_up_at_s=5.0), call_id=CALL)
    running = asyncio.create_task(first.run())
    await first.wait_for(lambda record: world.agents)
    now[0] += after_s
    again = await SimulatedCall(url, switches=PlivoSwitches(hang_up_at_s=1.0), call_id=claims).run()
    assert (again.outcome, again.close_code) == (("completed", 1000) if status == "taken" else ("failed", 1008))
    await running
    await asyncio.gather(*world.apps)


@virtual_time
@pytest.mark.parametrize(("after_s", "taken"), [(KNOWN_FOR_S - 5, True), (KNOWN_FOR_S + 5, False)])
async def test_a_token_is_good_until_a_minute_after_its_call(
    monkeypatch: pytest.MonkeyPatch, after_s: float, taken: bool
) -> None:
    world = World(monkeypatch)
    now = [1_800_000_000.0]
    monkeypatch.setattr(consumer_module, "now_unix", lambda: int(now[0]))
    monkeypatch.setattr(token_module.time, "time", lambda: now[0])
    monkeypatch.setattr(world.runtime.takeovers._owners, "now", lambda: now[0])
    url = f"{URL}?mt={made(world, CALL)}"

    async def script(agent: AgentCall) -> None:
        await agent.hello()

    world.script = script
    await SimulatedCall(url, switches=PlivoSwitches(hang_up_at_s=1.0), call_id=CALL).run()
    await asyncio.gather(*world.apps)
    now[0] += FIRST_USE_S + after_s
    world.runtime.takeovers._over = {key: at + FIRST_USE_S for key, at in world.runtime.takeovers._over.items()}
    again = await SimulatedCall(url, switches=PlivoSwitches(hang_up_at_s=1.0), call_id=CALL).run()
    assert again.close_code == (1000 if taken else 1008)
    await asyncio.gather(*world.apps)
    if taken:
        # The caller had hung up: it is a call of its own.
        assert [kind for kind, _ in epochs(world)] == ["call.started", "call.ended"] * 2


def made(world: World, call_id: str) -> str:
    return token_make(
        tenant_id=world.binding.tenant_id,
        agent_id=world.binding.agent_id,
        call_id=call_id,
        from_number="+15550100",
        to_number="+15550199",
    )


def test_a_broken_stream_is_waited_for_no_longer_than_a_caller_would() -> None:
    assert 1.0 <= RETURN_WITHIN_S <= 10.0
