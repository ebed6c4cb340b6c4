"""Tools that wait for a person during a call: what the agent, the caller and the record learn of it."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from supervision.engine.intervention.templates import hold_lines
from tests.e2e.agents import AgentCall
from tests.stream.test_outside_turns import Letterbox
from tests.stream.test_session_tools import CHARGE, LOOK_UP, ask, tools
from tests.stream.world import BAD, GOOD, MemoryApprovals, Voice, World, ears, say_turn
from tests.support.virtual_time import virtual_time

FIRST, SECOND = hold_lines("en")


def world_of(monkeypatch: pytest.MonkeyPatch, **config: Any) -> tuple[World, MemoryApprovals]:
    world = World(monkeypatch, config={"approval_tools": ["Charge_Card"], **config})
    return world, world.runtime.approvals  # type: ignore[return-value]


async def waits(approvals: MemoryApprovals, number: int = 1) -> None:
    async with asyncio.timeout(10):
        while len(approvals.asked) < number:  # noqa: ASYNC110 (virtual time)
            await asyncio.sleep(0.01)


async def asked(world: World, approvals: MemoryApprovals, agent: AgentCall, **tool: Any) -> None:
    await agent.send("mirror.tool", id="c1", **{**CHARGE, **tool})
    await waits(approvals)


def holds(record: Any) -> list[Voice]:
    return [voice for voice in ears(record.heard) if voice.label in (FIRST, SECOND)]


@virtual_time
async def test_a_tool_waits_for_a_person_and_the_caller_hears_why(monkeypatch: pytest.MonkeyPatch) -> None:
    world, approvals = world_of(monkeypatch)
    box = world.runtime.mailbox = Letterbox()  # type: ignore[assignment]
    answered: list[float] = []

    async def script(agent: AgentCall) -> None:
        await asked(world, approvals, agent, args={"amount": 99, "card": "4111 1111 1111 1111"})
        await ask(agent, "l1", **LOOK_UP)  # nobody else waits
        await asyncio.sleep(20)
        decision_id = approvals.decide("approved", note="Spoke to her.")
        [deliver] = box.deliver.values()
        told_at = asyncio.get_running_loop().time()
        assert await deliver({"approval": str(decision_id)}) == {"taken": True}
        verdict = await agent.wait("mirror.tool_verdict", id="c1")
        answered.append(asyncio.get_running_loop().time() - told_at)
        assert (verdict["allow"], verdict["code"]) == (True, "ok")
        assert await deliver({"approval": str(decision_id)}) == {"taken": False}

    record = await tools(world, script)
    assert answered[0] < 0.1
    (row,) = approvals.asked
    assert (row.tool, row.ref, row.irreversible, row.on_silence) == ("charge_card", "c1", True, "deny")
    assert row.within_s == pytest.approx(60, abs=1)
    assert row.args == {"amount": 99, "card": "[card number]"}  # as the tenant wants it stored
    requested, decided = world.record.one("approval.requested"), world.record.one("approval.decided")
    assert requested["decision_id"] == decided["decision_id"] == str(row.decision_id)
    assert (decided["outcome"], decided["by"], decided["note"]) == ("approved", "alice@example.com", "Spoke to her.")
    assert decided["waited_ms"] == pytest.approx(20_000, abs=500)
    tool = next(event for event in world.record.of("tool.decided") if event["ref"] == "c1")
    assert (tool["allow"], tool["reason"]) == (True, "approved by alice@example.com: Spoke to her.")
    heard = holds(record)
    assert [voice.label for voice in heard] == [FIRST, SECOND, SECOND]
    assert all(after.start - before.start >= 7.9 for before, after in itertools.pairwise(heard))


@virtual_time
async def test_the_agent_is_told_which_tools_may_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    world, _ = world_of(monkeypatch, approval_timeout_ms=30_000)

    async def script(agent: AgentCall) -> None:
        ready = agent.of("mirror.ready")[0]
        assert ready["approvals"] == {"tools": ["Charge_Card"], "timeout_ms": 30_000}
        assert {"place_order", "Charge_Card"} <= set(ready["gated_tools"])

    await tools(world, script)


@virtual_time
async def test_a_hold_line_never_speaks_over_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    world, approvals = world_of(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await say_turn(agent, "t1", GOOD, 6.0, paced=False)
        await asked(world, approvals, agent, turn_id="t1")
        await asyncio.sleep(9)
        approvals.decide("denied")
        await agent.wait("mirror.tool_verdict", id="c1")

    voices = ears((await tools(world, script)).heard)
    assert [voice.label for voice in voices] == [GOOD, FIRST]
    assert voices[1].start - voices[0].end >= 0.6


@virtual_time
async def test_a_hold_line_ends_when_the_agent_hears_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    world, approvals = world_of(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await asked(world, approvals, agent)
        async with asyncio.timeout(10):
            while not world.record.of("transcript.noted"):  # noqa: ASYNC110 (virtual time)
                await asyncio.sleep(0.01)
        await asyncio.sleep(1.0)
        await agent.send("clearAudio", streamId=agent.stream_id)
        await asyncio.sleep(5)
        approvals.decide("denied")
        await agent.wait("mirror.tool_verdict", id="c1")

    (hold,) = holds(await tools(world, script))
    assert 0.9 <= hold.seconds <= 1.2


@virtual_time
async def test_a_call_that_is_told_nothing_looks_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    world, approvals = world_of(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await asked(world, approvals, agent)
        approvals.decide("denied", note="Not on this card.")
        denied_at = asyncio.get_running_loop().time()
        verdict = await agent.wait("mirror.tool_verdict", id="c1")
        assert asyncio.get_running_loop().time() - denied_at <= 1.1
        assert (verdict["allow"], verdict["code"]) == (False, "denied")
        assert verdict["reason"] == "a person denied it: Not on this card."
        approvals.down = False
        await agent.send("mirror.tool", id="c2", **CHARGE)  # nothing ran: it may be asked for again
        await waits(approvals, 2)
        approvals.decide("approved")
        assert (await agent.wait("mirror.tool_verdict", id="c2"))["allow"] is True

    await tools(world, script)


@pytest.mark.parametrize("on_silence", ["deny", "allow"])
@virtual_time
async def test_silence_decides_as_the_policy_says(monkeypatch: pytest.MonkeyPatch, on_silence: str) -> None:
    world, approvals = world_of(monkeypatch, approval_on_silence=on_silence, approval_timeout_ms=5_000)

    async def script(agent: AgentCall) -> None:
        began = asyncio.get_running_loop().time()
        await asked(world, approvals, agent)
        verdict = await agent.wait("mirror.tool_verdict", id="c1")
        assert asyncio.get_running_loop().time() - began == pytest.approx(5, abs=0.2)
        assert verdict["allow"] is (on_silence == "allow")
        if on_silence == "deny":
            assert (verdict["code"], verdict["reason"]) == ("timeout", "nobody approved it in time")

    await tools(world, script)
    assert [row.state for row in approvals.rows.values()] == ["expired"]
    assert world.record.one("approval.decided")["outcome"] == "expired"


@virtual_time
async def test_a_grant_after_the_agents_patience_is_void_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    world, approvals = world_of(monkeypatch)
    close = approvals.close

    async def slow(*args: Any, **more: Any) -> Any:
        if more["state"] == "expired":
            # The person was first, and the database takes its time to say so.
            approvals.decide("approved")
            await asyncio.sleep(0.9)
        return await close(*args, **more)

    monkeypatch.setattr(approvals, "close", slow)

    async def script(agent: AgentCall) -> None:
        await asked(world, approvals, agent, timeout_ms=4_000)
        verdict = await agent.wait("mirror.tool_verdict", id="c1")
        assert (verdict["allow"], verdict["code"]) == (False, "timeout")
        assert "void" in verdict["reason"]

    await tools(world, script)
    assert [row.state for row in approvals.rows.values()] == ["void"]
    assert world.record.one("approval.decided")["outcome"] == "void"
    assert world.record.one("tool.decided")["allow"] is False


@virtual_time
async def test_an_agent_that_hardly_waits_is_not_kept_for_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    world, approvals = world_of(monkeypatch)

    async def script(agent: AgentCall) -> None:
        verdict = await ask(agent, "c1", **CHARGE, timeout_ms=1_500)
        assert (verdict["allow"], verdict["code"]) == (False, "timeout")
        assert "timeout_ms" in verdict["reason"]

    await tools(world, script)
    assert approvals.asked == []


@virtual_time
async def test_a_caller_who_hangs_up_needs_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    world, approvals = world_of(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await agent.send("mirror.tool", id="c1", **CHARGE)

    async def until_it_waits(call: Any) -> None:
        await waits(approvals)

    await world.call(script, until_it_waits)
    assert [row.state for row in approvals.rows.values()] == ["cancelled"]
    assert world.record.one("approval.decided")["outcome"] == "cancelled"
    assert world.record.one("tool.decided")["code"] == "cancelled"
    assert world.runtime.ledger.rows == {}  # type: ignore[attr-defined]


@virtual_time
async def test_an_agent_may_withdraw_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    world, approvals = world_of(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await asked(world, approvals, agent)
        await agent.send("mirror.tool_done", id="c1", ok=False, cancelled=True)
        assert (await agent.wait("mirror.tool_verdict", id="c1"))["code"] == "cancelled"

    await tools(world, script)
    assert [row.state for row in approvals.rows.values()] == ["cancelled"]


@virtual_time
async def test_nobody_is_asked_for_a_turn_that_broke_a_rule_and_none_that_does_meanwhile_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, approvals = world_of(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await say_turn(agent, "t1", BAD, 1.0, tool_calls=[{"id": "c1", **CHARGE}])
        assert (await agent.wait("mirror.tool_verdict", id="c1"))["code"] == "denied"
        assert approvals.asked == []
        await asyncio.sleep(10)  # the intervention is over
        await agent.send("mirror.tool", id="c2", turn_id="t2", **CHARGE)
        await waits(approvals)
        await say_turn(agent, "t2", BAD, 1.0)
        await agent.wait("mirror.verdict", turn_id="t2")
        approvals.decide("approved")
        await agent.wait("mirror.tool_verdict", id="c2")

    await tools(world, script, seconds=60)


@pytest.mark.parametrize("on_failure", ["block", "allow"])
@virtual_time
async def test_when_nobody_can_be_asked_the_gates_policy_decides(
    monkeypatch: pytest.MonkeyPatch, on_failure: str
) -> None:
    world, approvals = world_of(monkeypatch, tool_gate_on_failure=on_failure)
    approvals.down = True

    async def script(agent: AgentCall) -> None:
        verdict = await ask(agent, "c1", **CHARGE)
        assert verdict["allow"] is (on_failure == "allow")

    await tools(world, script)
    assert world.record.one("approval.decided")["outcome"] == "unasked"


@virtual_time
async def test_shadow_mode_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, mode="shadow", config={"approval_tools": ["charge_card"]})

    async def script(agent: AgentCall) -> None:
        assert (await ask(agent, "c1", **CHARGE))["allow"] is True

    await tools(world, script)
    assert world.record.of("approval.requested") == []
