"""How many questions of a tenant are with judges at a time: turns are shed, tool calls wait."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from mirror_saas.limits import NO_LIMITS
from supervision.engine import JudgingState, MirrorConfig, Supervisor, SupervisorContext, ToolCallIntent, ToolCode
from supervision.engine.llm.limiter import Risk
from supervision.engine.llm.pool import PoolShare, ScoringPool
from supervision.plivo.simulator import SimulatedCall
from tenants.limits_refused import REFUSALS
from tests.e2e.agents import AgentCall
from tests.engine.llms import ScriptedLLM
from tests.stream.world import World, say_turn
from tests.support.virtual_time import virtual_time


class Refusals:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def places(limit: int | None, refused: Refusals) -> PoolShare:
    """The places of one tenant in a pool with room for everybody."""
    return ScoringPool().share("alice", limit=limit, on_limit=refused)


def supervisor(llm: ScriptedLLM, slots: PoolShare, **config: object) -> Supervisor:
    made = {"policies": ["Never confirm a refund."], "semantic_review_timeout_s": 2.0, "tiered_scoring_enabled": False}
    return Supervisor(MirrorConfig(llm=llm, **(made | config)), limiter=slots)  # type: ignore[arg-type]


@virtual_time
async def test_turns_beyond_the_limit_wait_shortly_and_are_shed() -> None:
    refused = Refusals()
    slots = places(2, refused)
    call = supervisor(ScriptedLLM(delay_s=1.0), slots).call(SupervisorContext(call_id="c"))
    loop = asyncio.get_running_loop()
    began = loop.time()
    verdicts = await asyncio.gather(*(call.review_turn(customer_text="", primary_text=f"turn {n}") for n in range(5)))
    states = [verdict.state for verdict in verdicts]
    assert states.count(JudgingState.JUDGED) == 2
    assert states.count(JudgingState.SHED) == 3
    assert refused.count == 3
    shed = [verdict for verdict in verdicts if verdict.state is JudgingState.SHED]
    assert all(verdict.latency_ms == 500 for verdict in shed), "a quarter of the deadline"
    assert all(verdict.detail == "too many questions are with the judge already" for verdict in shed)
    assert call.states[JudgingState.SHED] == 3
    assert call.coverage == 2 / 5
    assert slots.in_flight == 0
    assert loop.time() - began == pytest.approx(1.0)


@virtual_time
async def test_a_place_that_becomes_free_in_time_is_taken() -> None:
    refused = Refusals()
    call = supervisor(ScriptedLLM(delay_s=0.3), places(1, refused)).call(SupervisorContext(call_id="c"))
    verdicts = await asyncio.gather(*(call.review_turn(customer_text="", primary_text=f"turn {n}") for n in range(2)))
    assert [verdict.state for verdict in verdicts] == [JudgingState.JUDGED] * 2
    assert refused.count == 0


@virtual_time
async def test_a_tool_call_waits_to_its_deadline_and_goes_before_turns() -> None:
    llm = ScriptedLLM(delay_s=0.8)
    call = supervisor(llm, places(1, Refusals()), tool_gate_timeout_ms=2000).call(SupervisorContext(call_id="c"))
    first = asyncio.create_task(call.review_turn(customer_text="", primary_text="the first turn"))
    await asyncio.sleep(0.4)
    second = asyncio.create_task(call.review_turn(customer_text="", primary_text="the second turn"))
    await asyncio.sleep(0.1)
    (tool,) = await call.gate_tools([ToolCallIntent("t", "process_payment", {"amount": 5})], customer_text="")
    assert (tool.allow, tool.code, tool.state) == (True, ToolCode.OK, JudgingState.JUDGED)
    assert (await first).state is JudgingState.JUDGED
    assert (await second).state is JudgingState.SHED, "the tool call got the place that the turn had waited for longer"


@virtual_time
async def test_a_tool_call_that_gets_no_place_is_decided_as_configured() -> None:
    slots = places(0, Refusals())
    tool = ToolCallIntent("t", "process_payment", {"amount": 5})
    for on_failure, allowed in (("block", False), ("allow", True)):
        made = supervisor(ScriptedLLM(), slots, tool_gate_timeout_ms=1000, tool_gate_on_failure=on_failure)
        call = made.call(SupervisorContext(call_id=on_failure))
        (verdict,) = await call.gate_tools([tool], customer_text="")
        assert (verdict.allow, verdict.code, verdict.state) == (allowed, ToolCode.TIMEOUT, JudgingState.TIMED_OUT)
        assert verdict.latency_ms == 1000


@virtual_time
async def test_a_judge_that_does_not_stop_keeps_its_place() -> None:
    slots = places(1, Refusals())
    llm = ScriptedLLM(delay_s=5.0, ignores_cancellation=True)
    call = supervisor(llm, slots).call(SupervisorContext(call_id="c"))
    assert (await call.review_turn(customer_text="", primary_text="one")).state is JudgingState.TIMED_OUT
    assert slots.in_flight == 1
    assert (await call.review_turn(customer_text="", primary_text="two")).state is JudgingState.SHED
    await asyncio.sleep(5.0)
    assert slots.in_flight == 0


@virtual_time
async def test_who_is_cancelled_while_waiting_takes_no_place() -> None:
    slots = places(1, Refusals())
    assert await slots.acquire(within_s=1.0, risk=Risk.TURN)
    waiting = [
        asyncio.create_task(slots.acquire(within_s=9.0, risk=Risk.TOOL if n % 2 else Risk.TURN)) for n in range(4)
    ]
    await asyncio.sleep(0.1)
    waiting[0].cancel()
    slots.release()
    # The place is given to an urgent one in the same moment in which that is cancelled.
    waiting[1].cancel()
    await asyncio.sleep(0.1)
    assert waiting[3].done()
    assert waiting[3].result() is True
    assert not waiting[2].done()
    slots.release()
    assert await waiting[2] is True
    slots.release()
    assert slots.in_flight == 0


@virtual_time
async def test_a_higher_limit_lets_those_who_wait_in() -> None:
    slots = places(0, Refusals())
    waiting = [asyncio.create_task(slots.acquire(within_s=1.0, risk=Risk.TURN)) for _ in range(3)]
    await asyncio.sleep(0.1)
    slots.allow(2)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert slots.in_flight == 2
    slots.allow(None)
    assert [await task for task in waiting] == [True] * 3


@virtual_time
async def test_a_call_records_what_was_shed_and_its_tenant_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, config={"tiered_scoring_enabled": False, "semantic_review_timeout_s": 1.0})
    world.runtime.binding = world.binding = replace(world.binding, limits=replace(NO_LIMITS, judge_calls=0))

    async def agent(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", "Your parcel is on its way.", 0.5)
        await asyncio.sleep(3)

    async def during(call: SimulatedCall) -> None:
        await asyncio.sleep(4)

    await world.call(agent, during)
    (judged,) = world.record.of("turn.judged")
    assert judged["state"] == "shed"
    ended = world.record.one("call.ended")
    assert (ended["shed"], ended["judged"], ended["coverage"]) == (1, 0, 0.0)
    assert REFUSALS.pending(world.binding.tenant_id)["judge_calls"] >= 1


@virtual_time
async def test_a_strangers_questions_take_no_place_of_the_tenants(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    runtime = world.runtime
    from mirror_saas.ids import uuid7

    limits = replace(NO_LIMITS, judge_calls=1)
    own = replace(world.binding, limits=limits)
    stranger = replace(world.binding, tenant_id=uuid7(), policy_version_id=uuid7(), limits=limits)
    slots, strangers = runtime.supervisors._share(own), runtime.supervisors._share(stranger)
    assert slots is not strangers
    assert slots is runtime.supervisors._share(replace(own, policy_version_id=uuid7()))
    assert await strangers.acquire(within_s=1.0, risk=Risk.TURN)
    assert not await strangers.acquire(within_s=1.0, risk=Risk.TURN)
    assert await slots.acquire(within_s=1.0, risk=Risk.TURN)
