"""Engines are shared by what they judge by, and let go of their models' clients when nothing uses them any more."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from mirror_saas.ids import uuid7
from supervision.engine import JudgingState, SupervisorContext, Verdict
from supervision.engine.llm.openai import OpenAIPool
from supervision.engine.llm.pool import ScoringPool
from supervision.engine.llm.protocol import LLMRejected
from supervision.plivo.simulator import SimulatedCall
from supervision.stream.directory import AgentBinding, ProviderSettings
from supervision.stream.supervisors import Supervisors
from tests.e2e.agents import AgentCall
from tests.engine.llms import ScriptedLLM
from tests.stream.world import World, say_turn
from tests.support.virtual_time import virtual_time

FIRST = ProviderSettings("http://127.0.0.1:9/v1", "judge-1", "sk-first")
SECOND = ProviderSettings("http://127.0.0.1:9/v2", "judge-2", "sk-second")


@pytest.fixture
def binding(monkeypatch: pytest.MonkeyPatch) -> AgentBinding:
    return replace(World(monkeypatch).binding, llm=FIRST)


def clients(llms: OpenAIPool) -> dict[str, int]:
    return {address.url: endpoint.clients for (address, _), endpoint in llms._endpoints.items()}


@virtual_time
async def test_versions_share_connections_by_address_and_key_and_engines_by_version(binding: AgentBinding) -> None:
    llms = OpenAIPool()
    supervisors = Supervisors(llms, ScoringPool())
    one = supervisors.get(binding)
    assert supervisors.get(replace(binding)) is one
    other = supervisors.get(replace(binding, policy_version_id=uuid7()))
    stranger = supervisors.get(replace(binding, tenant_id=uuid7(), policy_version_id=uuid7()))
    assert len({id(one), id(other), id(stranger)}) == 3
    supervisors.get(replace(binding, policy_version_id=uuid7(), fallback_llm=SECOND))
    assert clients(llms) == {FIRST.base_url: 4, SECOND.base_url: 1}
    await supervisors.aclose()
    assert clients(llms) == {FIRST.base_url: 0, SECOND.base_url: 0}
    await llms.aclose()


@virtual_time
async def test_a_version_that_is_forgotten_lets_go_when_its_last_call_has_ended(binding: AgentBinding) -> None:
    llms = OpenAIPool(idle_s=0.0)
    supervisors = Supervisors(llms, ScoringPool(), most=2)
    first = supervisors.get(binding)
    assert first is not None
    call = first.call(SupervisorContext(call_id="c"))
    del first
    for number in range(5):
        settings = ProviderSettings(f"http://127.0.0.1:9/other{number}", "judge", "sk")
        assert supervisors.get(replace(binding, policy_version_id=uuid7(), llm=settings)) is not None
        await asyncio.sleep(0.01)
    assert clients(llms).pop(FIRST.base_url) == 1, "a call goes on with it"
    assert len(clients(llms)) <= 4, "the two that are kept, one that the next use closes, and the call's"
    again = supervisors.get(binding)
    assert clients(llms)[FIRST.base_url] == 2, "the call's is forgotten: a new call gets a new one"
    del call, again
    gc.collect()
    await asyncio.sleep(0.01)
    assert clients(llms)[FIRST.base_url] == 1
    await supervisors.aclose()
    await llms.aclose()


@virtual_time
async def test_a_version_that_cannot_be_used_keeps_no_client(
    binding: AgentBinding, caplog: pytest.LogCaptureFixture
) -> None:
    llms = OpenAIPool()
    supervisors = Supervisors(llms, ScoringPool())
    for unusable in (
        replace(binding, config={"intervention_threshold": 7}),
        replace(binding, fallback_llm=replace(SECOND, base_url="nowhere")),
    ):
        with caplog.at_level(logging.CRITICAL):
            assert supervisors.get(unusable) is None
        await asyncio.sleep(0)
    assert supervisors.get(replace(binding, llm=None, fallback_llm=SECOND)) is None, "a second needs a first"
    await supervisors.aclose()
    assert set(clients(llms).values()) == {0}
    await llms.aclose()


@virtual_time
async def test_a_noisy_tenants_reviews_delay_no_verdict_of_another_tenants_calls(binding: AgentBinding) -> None:
    config = {"tiered_scoring_enabled": False, "semantic_review_timeout_s": 4.0}
    quiet_llm, noisy_llm = ScriptedLLM(delay_s=0.5), ScriptedLLM(delay_s=30.0)
    models = {FIRST.model: quiet_llm, SECOND.model: noisy_llm}
    llms: Any = SimpleNamespace(client=lambda *, model, **_: models[model])
    pool = ScoringPool(limit=64)
    # Calls and reviews have engines of their own, and the places in common.
    calls, reviews = Supervisors(llms, pool), Supervisors(llms, pool)
    quiet = replace(binding, config=config)
    noisy = replace(binding, tenant_id=uuid7(), policy_version_id=uuid7(), llm=SECOND, config=config)

    async def judged(supervisors: Supervisors, whose: AgentBinding, turns: int) -> list[Verdict]:
        engine = supervisors.get(whose)
        assert engine is not None
        return await asyncio.gather(
            *(engine.review(customer_text="Hi", primary_text=f"Hello, turn {turn}.") for turn in range(turns))
        )

    storm = asyncio.create_task(judged(reviews, noisy, 500))
    await asyncio.sleep(0.2)
    for _ in range(20):
        verdicts = await judged(calls, quiet, 5)
        assert {(verdict.state, verdict.latency_ms) for verdict in verdicts} == {(JudgingState.JUDGED, 500)}
    states = Counter(verdict.state for verdict in await storm)
    assert set(states) == {JudgingState.TIMED_OUT, JudgingState.SHED}
    assert states[JudgingState.TIMED_OUT] == 56, "as many as its share and what nobody else wanted"


async def call_of_two_models(monkeypatch: pytest.MonkeyPatch, first: Any, second: Any) -> World:
    """A call with one turn and one tool call, judged by two models."""
    world = World(monkeypatch, config={"tiered_scoring_enabled": False})
    models = {FIRST.model: first, SECOND.model: second}
    llms: Any = SimpleNamespace(client=lambda *, model, **_: models[model])
    world.runtime.supervisors = Supervisors(llms, ScoringPool())
    world.runtime.binding = world.binding = replace(world.binding, llm=FIRST, fallback_llm=SECOND)

    async def agent(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", "Your parcel is on its way.", 0.5)
        await agent.send("mirror.tool", id="1", name="charge_card", args={"amount": 5}, customer_text="Pay.")
        await asyncio.sleep(6)

    async def during(call: SimulatedCall) -> None:
        await asyncio.sleep(7)

    await world.call(agent, during)
    return world


@virtual_time
async def test_the_record_says_which_model_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    class Named(ScriptedLLM):
        async def complete_json(self, **question: Any) -> Any:
            return replace(await super().complete_json(**question), model="judge-2")

    down = LLMRejected("the model's endpoint answered HTTP 500", status=500)
    world = await call_of_two_models(monkeypatch, ScriptedLLM(turn=down, tools=down), Named())
    [judged], [decided] = world.record.of("turn.judged"), world.record.of("tool.decided")
    for event in (judged, decided):
        assert (event["state"], event["model"], event["fallback"]) == ("judged", "judge-2", True)
    assert world.record.one("call.ended")["coverage_state"] == "full"


@virtual_time
async def test_coverage_says_what_kept_the_model_from_being_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from supervision.engine.llm.breaker import BreakerOpen

    broken = BreakerOpen("the model's endpoint was not asked: it answered HTTP 401: check the API key", retry_after_s=9)
    world = await call_of_two_models(monkeypatch, ScriptedLLM(turn=broken), ScriptedLLM(turn=broken))
    [judged] = world.record.of("turn.judged")
    assert (judged["state"], judged["model"], judged["fallback"]) == ("failed", "", False)
    ended = world.record.one("call.ended")
    assert (ended["coverage_state"], ended["coverage"]) == ("partial", 0.0)
    assert ended["coverage_reason"].startswith("not judged: 1 failed (the model's endpoint was not asked: it answered")
