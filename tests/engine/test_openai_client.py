"""`OpenAIClient` over the real wire: the real openai package against a local server that speaks the API."""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import httpx2
import openai
import pytest

from supervision.engine import Usage
from supervision.engine.llm.openai import OpenAIClient, OpenAIPool
from supervision.engine.llm.protocol import (
    LLMBadAnswer,
    LLMClient,
    LLMClosed,
    LLMError,
    LLMRejected,
    LLMResult,
    LLMTimeout,
    LLMUnreachable,
)
from supervision.engine.policy.compiler import TURN_SCHEMA
from tests.standins.llm import LLMStandIn

USER = json.dumps({"customer_text": "Hi", "agent_text": "Hello", "tool_calls": [], "history": []})


@pytest.fixture
async def llm() -> AsyncIterator[LLMStandIn]:
    async with LLMStandIn() as standin:
        yield standin


@pytest.fixture
async def client(llm: LLMStandIn) -> AsyncIterator[OpenAIClient]:
    made = OpenAIClient(api_key="sk-secret", model="judge-1", base_url=llm.base_url)
    yield made
    await made.aclose()


async def ask(client: LLMClient, *, timeout_s: float = 10.0, user: str = USER, max_tokens: int = 300) -> LLMResult:
    return await client.complete_json(
        system="The rules.",
        user=user,
        schema_name="mirror_turn",
        schema=TURN_SCHEMA,
        max_tokens=max_tokens,
        timeout_s=timeout_s,
    )


async def refused(client: LLMClient, **kwargs: Any) -> LLMError:
    with pytest.raises(LLMError) as raised:
        await ask(client, **kwargs)
    return raised.value


async def test_the_request_is_a_chat_completion_with_a_strict_json_schema(
    llm: LLMStandIn, client: OpenAIClient
) -> None:
    result = await ask(client)
    assert json.loads(result.text)["score"] == 0.0
    (request,) = llm.requests
    assert request.headers["Authorization"] == "Bearer sk-secret"
    assert request.body == {
        "model": "judge-1",
        "messages": [{"role": "system", "content": "The rules."}, {"role": "user", "content": USER}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "mirror_turn", "strict": True, "schema": TURN_SCHEMA},
        },
        "max_tokens": 300,
        "temperature": 0,
    }


async def test_the_result_has_the_text_and_what_it_cost(llm: LLMStandIn, client: OpenAIClient) -> None:
    llm.usage = {"prompt_tokens": 900, "completion_tokens": 40, "prompt_tokens_details": {"cached_tokens": 768}}
    llm.once(content='{"score": 1}')
    assert await ask(client) == LLMResult('{"score": 1}', Usage(900, 40, 768))


@pytest.mark.parametrize(
    "usage", [{}, {"prompt_tokens": "many", "prompt_tokens_details": 3}, {"prompt_tokens": -1}, []]
)
async def test_a_provider_that_counts_nothing_or_nonsense_costs_nothing(
    llm: LLMStandIn, client: OpenAIClient, usage: Any
) -> None:
    llm.once(usage=usage)
    assert (await ask(client)).usage == Usage(0, 0, 0)


async def test_what_is_added_to_every_request_is_sent(llm: LLMStandIn) -> None:
    client = OpenAIClient(api_key="k", model="m", base_url=llm.base_url, extra_body={"seed": 7, "temperature": 0.5})
    await ask(client)
    assert (llm.requests[0].body["seed"], llm.requests[0].body["temperature"]) == (7, 0.5)
    await client.aclose()


async def test_unicode_survives(llm: LLMStandIn, client: OpenAIClient) -> None:
    llm.judge(lambda question: {"reason": question.agent_text})
    text = "Ça coûte 5 € — नमस्ते 😀"
    result = await ask(client, user=json.dumps({"agent_text": text}, ensure_ascii=False))
    assert json.loads(result.text)["reason"] == text


# Endpoints that want something else


@pytest.mark.parametrize("status", [400, 404, 422])
async def test_an_endpoint_that_refuses_json_schema_gets_json_object_and_the_schema_in_the_prompt(
    llm: LLMStandIn, client: OpenAIClient, status: int
) -> None:
    llm.refuse_json_schema(status)
    await ask(client)
    await ask(client)
    formats = [request.body["response_format"]["type"] for request in llm.requests]
    assert formats == ["json_schema", "json_object", "json_object"], "refused once, remembered from then on"
    prompt = llm.requests[-1].body["messages"][0]["content"]
    assert prompt.startswith("The rules.\n")
    assert json.dumps(TURN_SCHEMA) in prompt
    assert llm.questions[-1].schema == "mirror_turn"


@pytest.mark.parametrize(
    ("refuses", "then"),
    [
        (("max_tokens",), {"max_completion_tokens": 300, "temperature": 0}),
        (("temperature",), {"max_tokens": 300}),
        (("max_tokens", "temperature"), {"max_completion_tokens": 300}),
    ],
)
async def test_a_model_that_refuses_a_parameter_is_asked_without_it_from_then_on(
    llm: LLMStandIn, client: OpenAIClient, refuses: tuple[str, ...], then: dict[str, Any]
) -> None:
    llm.refuse_parameter(*refuses)
    await ask(client)
    first = len(llm.requests)
    await ask(client)
    assert first == 1 + len(refuses)
    assert len(llm.requests) == first + 1
    body = llm.requests[-1].body
    assert {k: body[k] for k in ("max_tokens", "max_completion_tokens", "temperature") if k in body} == then
    assert body["response_format"]["type"] == "json_schema"


async def test_a_refusal_that_nothing_helps_against_is_reported_as_it_was_at_first(
    llm: LLMStandIn, client: OpenAIClient
) -> None:
    llm.behave(status=400, error={"message": "no", "type": "t", "code": "content_policy"})
    error = await refused(client)
    assert isinstance(error, LLMRejected)
    assert (error.status, len(llm.requests)) == (400, 2)
    assert "content_policy" in str(error)
    llm.behave()
    await ask(client)
    assert llm.requests[-1].body["response_format"]["type"] == "json_schema", "nothing was learnt from it"


async def test_a_model_that_does_not_exist_is_not_asked_again(llm: LLMStandIn, client: OpenAIClient) -> None:
    llm.behave(status=404, error={"message": "The model does not exist", "type": "t", "code": "model_not_found"})
    error = await refused(client)
    assert "base_url and the model's name" in str(error)
    assert len(llm.requests) == 1


# What can go wrong


@pytest.mark.parametrize(
    ("status", "hint"),
    [(401, "API key"), (403, "API key"), (413, "HTTP 413"), (302, "HTTP 302")],
)
async def test_an_http_error_is_reported_at_once_with_what_to_do(
    llm: LLMStandIn, client: OpenAIClient, status: int, hint: str
) -> None:
    llm.behave(status=status, headers={"Location": "http://127.0.0.1:1/elsewhere"})
    error = await refused(client)
    assert isinstance(error, LLMRejected)
    assert error.status == status
    assert hint in str(error)
    assert len(llm.requests) == 1


async def test_errors_and_reprs_keep_the_key_and_the_conversation_to_themselves(
    llm: LLMStandIn, client: OpenAIClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="supervision")
    for status in (400, 401, 500):
        message = f"Incorrect API key sk-secret for the prompt {USER}"
        llm.behave(status=status, error={"message": message, "type": "t", "code": f"sk-secret {USER}"})
        error = await refused(client, timeout_s=0.3)
        assert "sk-secret" not in str(error)
        assert "Hello" not in str(error)
    assert "sk-secret" not in repr(client)
    assert "sk-secret" not in caplog.text
    assert "Hello" not in caplog.text


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_passing_problem_is_tried_again(llm: LLMStandIn, client: OpenAIClient, status: int) -> None:
    llm.once(status=status, times=2)
    await ask(client)
    assert len(llm.requests) == 3


async def test_a_lasting_problem_is_given_up_after_three_tries(llm: LLMStandIn, client: OpenAIClient) -> None:
    llm.behave(status=500)
    error = await refused(client)
    assert isinstance(error, LLMRejected)
    assert (error.status, len(llm.requests)) == (500, 3)


async def test_nothing_is_tried_again_that_cannot_be_answered_in_time(llm: LLMStandIn, client: OpenAIClient) -> None:
    llm.behave(status=429, headers={"Retry-After": "30"})
    error = await refused(client, timeout_s=5)
    assert isinstance(error, LLMRejected)
    assert len(llm.requests) == 1


@pytest.mark.parametrize("headers", [{"Retry-After": "0.01"}, {"retry-after-ms": "10"}, {"Retry-After": "tomorrow"}])
async def test_retry_after_is_read_in_seconds_or_milliseconds(
    llm: LLMStandIn, client: OpenAIClient, headers: dict[str, str]
) -> None:
    llm.once(status=503, headers=headers)
    await ask(client)
    assert len(llm.requests) == 2


@pytest.mark.parametrize("broken", [{"drop": True}, {"close_after": 0}, {"close_after": 40}])
async def test_a_connection_that_breaks_is_tried_again_and_then_reported(
    llm: LLMStandIn, client: OpenAIClient, broken: dict[str, Any]
) -> None:
    llm.once(**broken)
    await ask(client)
    assert len(llm.requests) == 2
    llm.behave(**broken)
    assert isinstance(await refused(client), LLMUnreachable)
    assert len(llm.requests) == 5


async def test_nobody_at_the_address_is_unreachable() -> None:
    async with LLMStandIn() as gone:
        base_url = gone.base_url
    client = OpenAIClient(api_key="k", model="m", base_url=base_url)
    assert isinstance(await refused(client), LLMUnreachable)
    await client.aclose()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{}]}',
        b'{"choices": [{"message": null}]}',
        b'{"choices": [{"message": {"content": null}}]}',
        b'{"choices": [{"message": {"content": ["x"]}}]}',
        b'{"choices": [{"message": {"content": "  "}}]}',
        b'{"choices": [{"message": {"content": null, "refusal": "I cannot help with that."}}]}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
    ],
)
async def test_a_body_that_is_no_chat_completion_is_a_bad_answer(
    llm: LLMStandIn, client: OpenAIClient, body: bytes
) -> None:
    llm.behave(body=body)
    error = await refused(client)
    assert isinstance(error, LLMBadAnswer)
    assert "cannot help" not in str(error)


async def test_an_answer_that_was_cut_off_is_a_bad_answer_that_says_so(llm: LLMStandIn, client: OpenAIClient) -> None:
    choice = {"message": {"content": '{"score": 0.'}, "finish_reason": "length"}
    llm.behave(body=json.dumps({"choices": [choice]}).encode())
    assert "cut off at 77 tokens" in str(await refused(client, max_tokens=77))


# Deadlines and connections


@pytest.mark.parametrize("slow", [{"hang": True}, {"delay_s": 60}, {"drip_bytes": 1, "drip_every_s": 1}])
async def test_no_answer_in_time_is_a_timeout_and_closes_the_connection(
    llm: LLMStandIn, client: OpenAIClient, slow: dict[str, Any]
) -> None:
    llm.behave(**slow)
    loop = asyncio.get_running_loop()
    started = loop.time()
    assert isinstance(await refused(client, timeout_s=0.2), LLMTimeout)
    assert loop.time() - started < 2
    await asyncio.wait_for(llm.requests[0].gone.wait(), 10)
    llm.behave()
    await ask(client)
    assert llm.requests[0].peer != llm.requests[1].peer, "the connection that timed out is not used again"


async def test_a_cancelled_question_closes_its_connection(llm: LLMStandIn, client: OpenAIClient) -> None:
    llm.behave(hang=True)
    asking = asyncio.create_task(ask(client))
    await llm.until_requests(1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.wait_for(llm.requests[0].gone.wait(), 10)


async def test_connections_are_used_again(llm: LLMStandIn, client: OpenAIClient) -> None:
    for _ in range(5):
        await ask(client)
    assert len({request.peer for request in llm.requests}) == 1


async def test_questions_do_not_wait_for_each_other(llm: LLMStandIn, client: OpenAIClient) -> None:
    llm.behave(hang=True)
    asking = [asyncio.create_task(ask(client)) for _ in range(150)]
    await llm.until(lambda: llm.open_requests == 150)
    llm.release()
    assert len(await asyncio.gather(*asking)) == 150


async def test_j12_closing_waits_for_questions_under_way_and_refuses_later_ones(
    llm: LLMStandIn, client: OpenAIClient
) -> None:
    llm.behave(hang=True)
    asking = asyncio.create_task(ask(client))
    await llm.until_requests(1)
    closing = asyncio.create_task(client.aclose())
    await asyncio.sleep(0)
    assert not closing.done()
    assert isinstance(await refused(client), LLMClosed)
    llm.release()
    assert json.loads((await asking).text)["score"] == 0.0
    await closing
    await client.aclose()


async def test_an_http_client_of_ones_own_is_used_and_left_open(llm: LLMStandIn) -> None:
    seen: list[str] = []

    async def note(request: httpx2.Request) -> None:
        seen.append(request.url.path)

    async with httpx2.AsyncClient(event_hooks={"request": [note]}) as http:
        client = OpenAIClient(api_key="k", model="m", base_url=llm.base_url, http_client=http)
        await ask(client)
        await client.aclose()
        assert seen == ["/v1/chat/completions"]
        assert not http.is_closed


# The pool


async def test_clients_of_one_endpoint_and_key_share_its_connections(llm: LLMStandIn) -> None:
    pool = OpenAIPool()
    for model in ("a", "b", "a"):
        client = pool.client(api_key="k", model=model, base_url=llm.base_url)
        await ask(client)
        await client.aclose()
    other = pool.client(api_key="k2", model="a", base_url=llm.base_url)
    await ask(other)
    await other.aclose()
    peers = [request.peer for request in llm.requests]
    assert len(set(peers[:3])) == 1
    assert peers[3] not in peers[:3], "another key never travels on the connections of the first"
    assert [request.body["model"] for request in llm.requests] == ["a", "b", "a", "a"]
    await pool.aclose()


async def test_what_an_endpoint_refuses_is_remembered_for_the_model_by_the_pool(llm: LLMStandIn) -> None:
    llm.refuse_json_schema()
    pool = OpenAIPool()
    for _ in range(2):
        client = pool.client(api_key="k", model="a", base_url=llm.base_url)
        await ask(client)
        await client.aclose()
    formats = [request.body["response_format"]["type"] for request in llm.requests]
    assert formats == ["json_schema", "json_object", "json_object"]
    await pool.aclose()


async def test_j12_rotating_a_key_lets_running_questions_end_and_hangs_none(llm: LLMStandIn) -> None:
    pool = OpenAIPool()
    old = pool.client(api_key="old", model="m", base_url=llm.base_url)
    llm.behave(hang=True)
    running = [asyncio.create_task(ask(old)) for _ in range(40)]
    await llm.until(lambda: llm.open_requests == 40)
    closing = asyncio.create_task(old.aclose())
    new = pool.client(api_key="new", model="m", base_url=llm.base_url)
    later = [asyncio.create_task(ask(new)) for _ in range(200)]
    await llm.until(lambda: llm.open_requests == 240)
    llm.release()
    assert len(await asyncio.gather(*running, *later)) == 240
    await closing
    keys = [request.headers["Authorization"] for request in llm.requests]
    assert (keys.count("Bearer old"), keys.count("Bearer new")) == (40, 200)
    await new.aclose()
    await pool.aclose()


async def test_an_endpoint_that_nobody_uses_any_more_is_closed(llm: LLMStandIn) -> None:
    made: list[httpx2.AsyncClient] = []

    def http_client() -> httpx2.AsyncClient:
        made.append(httpx2.AsyncClient())
        return made[-1]

    pool = OpenAIPool(http_client=http_client, idle_s=0)
    first = pool.client(api_key="k", model="m", base_url=llm.base_url)
    second = pool.client(api_key="k", model="m", base_url=llm.base_url)
    await ask(first)
    await first.aclose()
    other = pool.client(api_key="k2", model="m", base_url=llm.base_url)
    assert not made[0].is_closed, "the second client still uses it"
    await second.aclose()
    again = pool.client(api_key="k2", model="m", base_url=llm.base_url)
    await other.aclose()
    await again.aclose()
    await pool.aclose()
    assert [client.is_closed for client in made] == [True, True]


# Construction


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"api_key": " "}, "api_key"),
        ({"api_key": None}, "api_key"),
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"base_url": "api.openai.com/v1"}, "base_url"),
        ({"base_url": "ftp://x"}, "base_url"),
        ({"base_url": "http://"}, "base_url"),
    ],
)
def test_j13_a_client_is_refused_at_construction_with_the_arguments_name(wrong: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        OpenAIClient(**{"api_key": "k", "model": "m", "base_url": "http://127.0.0.1:1/v1", **wrong})


async def test_it_is_an_llm_client() -> None:
    client = OpenAIClient(api_key="k", model="m")
    assert isinstance(client, LLMClient)
    await client.aclose()


async def test_j11_a_question_costs_less_than_half_of_what_the_package_costs_by_itself(llm: LLMStandIn) -> None:
    # Counted in function calls, which other processes cannot disturb; the benchmark has the milliseconds.
    client = OpenAIClient(api_key="k", model="m", base_url=llm.base_url)
    sdk = openai.AsyncOpenAI(api_key="k", base_url=llm.base_url, max_retries=0)
    messages: Any = [{"role": "system", "content": "The rules."}, {"role": "user", "content": USER}]

    async def calls_of(question: Callable[[], Awaitable[Any]]) -> int:
        await question()  # connects
        calls = 0

        def count(_frame: Any, event: str, _arg: Any) -> None:
            nonlocal calls
            calls += event == "call"

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            await question()
        finally:
            sys.setprofile(before)
        return calls

    async with aiohttp.ClientSession() as session:

        async def bare() -> None:
            async with session.post(f"{llm.base_url}/chat/completions", json={"messages": messages}) as response:
                await response.json()

        floor = await calls_of(bare)
    ours = await calls_of(lambda: ask(client))
    theirs = await calls_of(lambda: sdk.chat.completions.create(model="m", messages=messages))
    # The server runs on the same loop, so its share is in all three.
    assert ours - floor < (theirs - floor) / 2, (ours, theirs, floor)
    await client.aclose()
    await sdk.close()
