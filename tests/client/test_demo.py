"""The demo's parts agree with each other, and its judge is a server that the engine can ask."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from aiohttp import web

from mirror_saas.demo.conversation import EXCHANGES, agent_lines
from mirror_saas.demo.judge import MODEL, UNKNOWN_LINE, UNKNOWN_TOOL, VIOLATIONS, application
from supervision.engine import MirrorConfig, Supervisor, SupervisorContext, ToolCallIntent
from supervision.engine.llm.openai import OpenAIClient

DEMO = Path(__file__).parents[2] / "mirror_saas" / "demo"
RULES = [line for line in (DEMO / "policies.txt").read_text().splitlines() if line.strip() and line[0] != "#"]
WRONG = EXCHANGES[0].says


@pytest.fixture
async def base_url() -> AsyncIterator[str]:
    runner = web.AppRunner(application())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    await runner.cleanup()


@pytest.fixture
async def supervisor(base_url: str) -> AsyncIterator[Supervisor]:
    llm = OpenAIClient(api_key="any", model=MODEL, base_url=base_url)
    made = Supervisor(MirrorConfig(llm=llm, policies=RULES, tiered_scoring_enabled=False))
    yield made
    await made.aclose()


def test_the_caller_says_what_the_agent_takes_them_to_say() -> None:
    script = yaml.safe_load((DEMO / "call.yaml").read_text())
    assert [step["say"] for step in script["steps"] if "say" in step] == [item.customer for item in EXCHANGES]


def test_the_rules_that_are_broken_are_in_the_policy() -> None:
    assert [sum(rule.startswith(violation.rule) for rule in RULES) for violation in VIOLATIONS] == [1, 1]


async def test_the_engine_gets_its_verdicts_from_the_script(supervisor: Supervisor) -> None:
    call = supervisor.call(SupervisorContext(call_id="c"))
    for line in agent_lines():
        verdict = await call.judge_turn(call.payload(customer_text="", agent_text=line))
        violation = next((item for item in VIOLATIONS if item.phrase in line), None)
        assert verdict.state == "judged"
        assert verdict.should_intervene is (violation is not None)
        assert verdict.reason == (violation.reason if violation else "")
        if violation:
            assert str(verdict.rule).startswith(violation.rule)
            assert verdict.rule in RULES


async def test_corrections_are_the_scripts_and_pass_its_own_judgement(supervisor: Supervisor) -> None:
    call = supervisor.call(SupervisorContext(call_id="c"))
    for line in (WRONG, EXCHANGES[1].when_done):
        payload = call.payload(customer_text="", agent_text=line)
        correction = await call.correct(payload, await call.judge_turn(payload))
        assert (correction.source, correction.detail) == ("llm", "")
        assert correction.text in [violation.correction for violation in VIOLATIONS]


async def test_the_wrong_charge_is_blocked_and_the_order_passes(supervisor: Supervisor) -> None:
    call = supervisor.call(SupervisorContext(call_id="c"))
    tools = [exchange.tool for exchange in EXCHANGES if exchange.tool]
    intents = [ToolCallIntent(tool.name, tool.name, tool.args) for tool in tools]
    intents.append(ToolCallIntent("right", "charge_card", {"amount_usd": 12}))
    intents.append(ToolCallIntent("other order", "place_order", {"item": "calzone"}))
    intents.append(ToolCallIntent("unknown", "send_email", {}))
    verdicts = await call.gate_tools(intents, customer_text=EXCHANGES[1].customer)
    assert {verdict.id: verdict.allow for verdict in verdicts} == {
        "charge_card": False,
        "place_order": True,
        "right": True,
        "other order": False,
        "unknown": True,
    }
    assert all(verdict.instruction for verdict in verdicts if not verdict.allow)
    assert verdicts[-1].reason == UNKNOWN_TOOL


async def test_what_is_not_in_the_script_scores_nothing_and_says_so(supervisor: Supervisor) -> None:
    call = supervisor.call(SupervisorContext(call_id="c"))
    verdict = await call.judge_turn(call.payload(customer_text="", agent_text="Your money is on its way back to you."))
    assert (verdict.state, verdict.score, verdict.reason) == ("judged", 0.0, UNKNOWN_LINE)


async def test_a_policy_without_the_rule_is_not_violated(base_url: str) -> None:
    llm = OpenAIClient(api_key="any", model=MODEL, base_url=base_url)
    supervisor = Supervisor(MirrorConfig(llm=llm, policies=["Never swear."], tiered_scoring_enabled=False))
    call = supervisor.call(SupervisorContext(call_id="c"))
    verdict = await call.judge_turn(call.payload(customer_text="", agent_text=WRONG))
    assert (verdict.state, verdict.score) == ("judged", 0.0)
    await supervisor.aclose()


async def test_it_says_what_it_is_and_refuses_what_it_is_not_for(base_url: str) -> None:
    async with openai.AsyncOpenAI(api_key="any", base_url=base_url, max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == [MODEL]
        with pytest.raises(openai.BadRequestError, match="must be one JSON object"):
            await client.chat.completions.create(model="gpt", messages=[{"role": "user", "content": "Hello"}])
        with pytest.raises(openai.BadRequestError, match="must be mirror_turn"):
            await client.chat.completions.create(model="gpt", messages=[{"role": "user", "content": "{}"}])
        schema: Any = {"type": "json_schema", "json_schema": {"name": "mirror_turn", "schema": {}}}
        raw = await client.chat.completions.with_raw_response.create(
            model="gpt", messages=[{"role": "user", "content": '{"agent_text": "Hi"}'}], response_format=schema
        )
        assert raw.headers["X-Judge"] == MODEL
        assert raw.parse().model == MODEL


def test_the_script_has_one_of_each() -> None:
    """A clean turn, a violation, a tool call that is blocked and one that passes."""
    assert [(bool(item.says), item.tool.name if item.tool else None) for item in EXCHANGES] == [
        (True, None),
        (False, "charge_card"),
        (False, "place_order"),
        (True, None),
    ]
    assert all(dataclasses.asdict(item)["customer"] for item in EXCHANGES)
