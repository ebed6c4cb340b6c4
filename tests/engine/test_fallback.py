"""A second provider for when the first does not answer, on virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from supervision.engine import JudgingState, MirrorConfig, Supervisor, SupervisorContext, ToolCallIntent
from supervision.engine.llm.fallback import COUNTS, FIRST_SHARE, FallbackClient, FallbackLogprobClient, with_fallback
from supervision.engine.llm.openai import OpenAIClient
from supervision.engine.llm.protocol import LLMError, LLMRejected, LLMTimeout, LogprobClient
from supervision.engine.llm.secrets import Secret
from supervision.engine.supervisor import CallSupervisor
from tests.engine.llms import BAD, ScriptedLLM
from tests.support.virtual_time import elapsed_s, virtual_time

DOWN = LLMRejected("the first answered HTTP 500", status=500)


def call_with(first: Any, second: Any) -> CallSupervisor:
    config = MirrorConfig(
        llm=with_fallback(first, second),
        policies=["Never confirm a refund."],
        tiered_scoring_enabled=False,
        semantic_review_timeout_s=4.0,
    )
    return Supervisor(config).call(SupervisorContext(call_id="c"))


@virtual_time
async def test_the_second_is_asked_when_the_first_fails_and_the_verdict_says_so() -> None:
    first, second = ScriptedLLM(turn=DOWN, tools=DOWN), ScriptedLLM(turn=BAD)
    before = replace(COUNTS)
    call = call_with(first, second)
    verdict = await call.review_turn(customer_text="Hi", primary_text="Your refund is confirmed.")
    assert (verdict.state, verdict.violates, verdict.fallback) == (JudgingState.JUDGED, True, True)
    (tool,) = await call.gate_tools([ToolCallIntent("1", "charge_card", {})], customer_text="Hi")
    assert (tool.allow, tool.fallback) == (True, True)
    assert len(first.asked) == len(second.asked) == 2
    assert replace(before, answered=before.answered + 2) == COUNTS


@virtual_time
async def test_the_second_is_not_asked_while_the_first_answers() -> None:
    first, second = ScriptedLLM(turn=BAD, delay_s=2.0), ScriptedLLM()
    verdict = await call_with(first, second).review_turn(customer_text="Hi", primary_text="Refunded.")
    assert (verdict.violates, verdict.fallback) == (True, False)
    assert not second.asked


@virtual_time
async def test_a_first_that_hangs_leaves_the_second_its_time() -> None:
    first, second = ScriptedLLM(delay_s=60.0), ScriptedLLM(delay_s=1.0)
    call = call_with(first, second)
    assert await elapsed_s(call.review_turn(customer_text="Hi", primary_text="Hello.")) == pytest.approx(
        4.0 * FIRST_SHARE + 1.0
    )
    assert call.states[JudgingState.JUDGED] == 1
    assert first.asked[0].cancelled
    assert second.asked[0].timeout_s == pytest.approx(4.0 * (1 - FIRST_SHARE))


@virtual_time
async def test_the_deadline_holds_when_both_hang() -> None:
    call = call_with(ScriptedLLM(delay_s=60.0), ScriptedLLM(delay_s=60.0))
    assert await elapsed_s(call.review_turn(customer_text="Hi", primary_text="Hello.")) == pytest.approx(4.0)
    assert call.states[JudgingState.TIMED_OUT] == 1


@virtual_time
async def test_what_went_wrong_with_both_is_told() -> None:
    before = replace(COUNTS)
    call = call_with(ScriptedLLM(turn=DOWN), ScriptedLLM(turn=LLMTimeout("the second did not answer in time")))
    verdict = await call.review_turn(customer_text="Hi", primary_text="Hello.")
    assert verdict.state is JudgingState.TIMED_OUT
    assert verdict.detail == ("the first answered HTTP 500; and the second provider: the second did not answer in time")
    assert not verdict.fallback
    assert replace(before, failed=before.failed + 1) == COUNTS


@virtual_time
async def test_a_first_whose_breaker_is_open_costs_no_time() -> None:
    class Resting(ScriptedLLM):
        is_ready = False

    first, second = Resting(), ScriptedLLM(delay_s=3.5)
    call = call_with(first, second)
    verdict = await call.review_turn(customer_text="Hi", primary_text="Hello.")
    assert (verdict.state, verdict.fallback) == (JudgingState.JUDGED, True)
    assert not first.asked


@virtual_time
async def test_an_answer_that_is_not_valid_is_no_reason_to_ask_another() -> None:
    first, second = ScriptedLLM(turn={"score": "high"}), ScriptedLLM()
    verdict = await call_with(first, second).review_turn(customer_text="Hi", primary_text="Hello.")
    assert verdict.state is JudgingState.FAILED
    assert not second.asked


async def test_probabilities_are_asked_of_the_first_alone_and_only_if_it_tells_them() -> None:
    openai = OpenAIClient(api_key=Secret("judge"), model="m", base_url="http://127.0.0.1:9/v1")
    both = with_fallback(openai, ScriptedLLM())
    assert isinstance(both, FallbackLogprobClient)
    assert isinstance(both, LogprobClient)
    assert both.needs_secrets == "judge"
    both.use_secrets(lambda _: "k")
    assert both.needs_secrets is None
    with pytest.raises(LLMError, match="cannot be reached"):
        await both.first_token_logprobs(system="s", examples=(), user="u", top=5, timeout_s=0.5)
    other = with_fallback(ScriptedLLM(), openai)
    assert type(other) is FallbackClient
    assert not isinstance(other, LogprobClient)
    await both.aclose()


async def test_both_are_closed() -> None:
    class Broken(ScriptedLLM):
        async def aclose(self) -> None:
            raise RuntimeError("the first cannot be closed")

    second = ScriptedLLM()
    with pytest.raises(RuntimeError):
        await with_fallback(Broken(), second).aclose()
    assert second.closed == 1


@virtual_time
async def test_cancelling_the_question_asks_nobody_else() -> None:
    first, second = ScriptedLLM(delay_s=60.0), ScriptedLLM()
    asked = asyncio.create_task(
        with_fallback(first, second).complete_json(
            system="s", user="{}", schema_name="mirror_turn", schema={}, max_tokens=5, timeout_s=10.0
        )
    )
    await asyncio.sleep(0.1)
    asked.cancel()
    await asyncio.wait({asked})
    assert asked.cancelled()
    assert not second.asked
