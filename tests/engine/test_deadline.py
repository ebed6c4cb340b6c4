"""A deadline holds whatever the client does, and an answer is taken for nothing but what it validates as."""

import asyncio
import contextlib
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervision.engine.context import JudgingState
from supervision.engine.llm.deadline import (
    MAX_ANSWER_CHARS,
    Answer,
    DeadlineAsker,
    InvalidAnswer,
    exact_keys,
    parse_object,
    score_of,
    text_of,
)
from supervision.engine.llm.protocol import LLMRejected, LLMTimeout, LLMUnreachable
from tests.engine.llms import CLEAN, ScriptedLLM
from tests.support.virtual_time import elapsed_s, virtual_time


async def ask(llm: Any, seconds: float = 4.0, asker: DeadlineAsker | None = None) -> Answer[dict[str, Any]]:
    return await (asker or DeadlineAsker(llm)).ask(
        system="rules",
        user="{}",
        schema_name="mirror_turn",
        schema={},
        max_tokens=100,
        deadline=asyncio.get_running_loop().time() + seconds,
        validate=lambda value: value,
    )


@virtual_time
async def test_an_answer_in_time_is_judged_with_its_latency() -> None:
    answer = await ask(ScriptedLLM(delay_s=0.3))
    assert (answer.state, answer.value, answer.detail) == (JudgingState.JUDGED, CLEAN, "")
    assert answer.latency_ms == 300
    assert answer.usage.prompt_tokens == 100


@virtual_time
async def test_the_client_is_told_how_long_it_has() -> None:
    llm = ScriptedLLM()
    await ask(llm, 1.25)
    assert llm.asked[0].timeout_s == pytest.approx(1.25)


@virtual_time
async def test_at_the_deadline_the_question_is_cancelled_and_timed_out() -> None:
    llm = ScriptedLLM(delay_s=60)
    answer = await ask(llm, 4.0)
    assert answer.state is JudgingState.TIMED_OUT
    assert answer.latency_ms == 4000
    await asyncio.sleep(0)
    assert llm.asked[0].cancelled


@virtual_time
async def test_a_client_that_cannot_be_cancelled_costs_no_time_and_its_answer_is_dropped_as_late(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="supervision")
    llm = ScriptedLLM(delay_s=30, ignores_cancellation=True)
    asker = DeadlineAsker(llm)
    assert await elapsed_s(ask(llm, 2.0, asker)) == pytest.approx(2.0)
    assert "late" not in caplog.text
    assert await elapsed_s(asker.aclose()) == pytest.approx(28.0)
    assert "late: an answer to 'ask mirror_turn' came after its deadline and was dropped" in caplog.text


@virtual_time
async def test_a_client_that_fails_after_the_deadline_is_not_reported_as_late(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="supervision")
    asker = DeadlineAsker(llm := ScriptedLLM(delay_s=30, ignores_cancellation=True, turn=KeyError("what was said")))
    assert (await ask(llm, 2.0, asker)).state is JudgingState.TIMED_OUT
    await asker.aclose()
    await asyncio.sleep(0)
    assert "ended with KeyError after its deadline" in caplog.text
    assert "what was said" not in caplog.text


@virtual_time
async def test_with_no_time_left_nothing_is_asked() -> None:
    llm = ScriptedLLM()
    for seconds in (0.0, -1.0):
        assert (await ask(llm, seconds)).state is JudgingState.TIMED_OUT
    assert not llm.asked


@virtual_time
async def test_cancelling_the_asker_cancels_the_question() -> None:
    llm = ScriptedLLM(delay_s=60)
    asking = asyncio.create_task(ask(llm))
    await asyncio.sleep(1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.sleep(0)
    assert llm.asked[0].cancelled


@pytest.mark.parametrize(
    ("error", "state", "detail"),
    [
        (LLMTimeout("the model did not answer in time"), JudgingState.TIMED_OUT, "did not answer in time"),
        (LLMUnreachable("cannot be reached"), JudgingState.FAILED, "cannot be reached"),
        (LLMRejected("HTTP 401: check the API key", status=401), JudgingState.FAILED, "check the API key"),
        (KeyError("what the caller said"), JudgingState.FAILED, "the LLM client raised KeyError"),
        (TypeError(), JudgingState.FAILED, "the LLM client raised TypeError"),
        (asyncio.CancelledError(), JudgingState.FAILED, "gave the question up"),
    ],
)
@virtual_time
async def test_what_the_client_raises_becomes_a_state_and_a_detail(
    error: BaseException, state: JudgingState, detail: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await ask(ScriptedLLM(turn=error))
    assert (answer.state, answer.value) == (state, None)
    assert detail in answer.detail
    assert "what the caller said" not in answer.detail + caplog.text


@pytest.mark.parametrize("returned", [None, "text", {"score": 1}])
@virtual_time
async def test_a_client_that_returns_something_else_has_failed(returned: Any) -> None:
    class Wrong(ScriptedLLM):
        async def complete_json(self, **_kwargs: Any) -> Any:
            return returned

    answer = await ask(Wrong())
    assert answer.state is JudgingState.FAILED
    assert "LLMResult" in answer.detail


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Certainly! Here is my verdict.",
        '```json\n{"score": 0}\n```',
        '{"score": 0} ',
        "[1]",
        '"high"',
        "85",
        "NaN",
        "null",
        "true",
        '{"score": NaN}',
        '{"score": Infinity}',
        '{"score": 0',
        "[" * 100_000,
        '{"score": ' + "[" * 100_000,
        '{"a": "' + "x" * MAX_ANSWER_CHARS + '"}',
    ],
)
def test_j4_what_is_not_one_json_object_is_invalid(text: str) -> None:
    if text == '{"score": 0} ':
        assert parse_object(text) == {"score": 0}
        return
    with pytest.raises(InvalidAnswer):
        parse_object(text)


@pytest.mark.parametrize(
    "score", ["high", "0.5", 85, -0.1, 1.0001, float("nan"), float("inf"), True, False, None, [], {}]
)
def test_j4_what_is_not_a_number_from_0_to_1_is_no_score(score: Any) -> None:
    with pytest.raises(InvalidAnswer):
        score_of(score)


@pytest.mark.parametrize("score", [0, 1, 0.0, 0.7, 1.0])
def test_a_number_from_0_to_1_is_a_score(score: float) -> None:
    assert score_of(score) == float(score)


def test_an_object_has_exactly_the_fields_that_were_asked_for() -> None:
    keys = frozenset({"a", "b"})
    assert exact_keys({"b": 1, "a": 2}, keys) == {"b": 1, "a": 2}
    with pytest.raises(InvalidAnswer, match="lacks b"):
        exact_keys({"a": 1}, keys)
    with pytest.raises(InvalidAnswer, match="not asked for"):
        exact_keys({"a": 1, "b": 2, "c": 3}, keys)
    with pytest.raises(InvalidAnswer, match="not a JSON object"):
        exact_keys([1], keys)


def test_texts_are_stripped_and_cut() -> None:
    assert text_of("  abc  ", "reason", 2) == "ab"
    with pytest.raises(InvalidAnswer, match="reason has to be a string"):
        text_of(None, "reason", 2)


@given(st.text())
def test_any_text_either_parses_to_an_object_or_is_invalid(text: str) -> None:
    with contextlib.suppress(InvalidAnswer):
        assert isinstance(parse_object(text), dict)
