"""The stand-in for a model's API: what it says and does, seen by the real openai client."""

import asyncio
import json
from typing import Any

import httpx2
import openai
import pytest

from tests.standins.llm import LLMStandIn, Question, llm_process, words

TURN = {"customer_text": "Where is it?", "agent_text": "It will be there by NOON.", "tool_calls": [], "history": []}


def sdk(base_url: str, api_key: str = "k") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key=api_key, base_url=base_url, max_retries=0, timeout=10)


def request(schema: str = "mirror_turn", user: Any = TURN, **more: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "messages": [{"role": "system", "content": "rules"}, {"role": "user", "content": json.dumps(user)}],
        "response_format": {"type": "json_schema", "json_schema": {"name": schema, "strict": True, "schema": {}}},
        **more,
    }


async def ask(client: openai.AsyncOpenAI, *args: Any, **kwargs: Any) -> Any:
    answer = await client.chat.completions.create(**request(*args, **kwargs))
    content = answer.choices[0].message.content
    assert content is not None
    return json.loads(content)


async def test_it_answers_turns_tools_and_corrections_by_their_rules() -> None:
    async with LLMStandIn() as llm, sdk(llm.base_url) as client:
        assert await ask(client) == {"score": 0.0, "rule": None, "reason": "", "correction": ""}
        llm.judge(words({"by noon": {"rule": "2", "correction": "It is on its way."}}))
        assert await ask(client) == {
            "score": 0.95,
            "rule": "2",
            "reason": 'The agent says "by NOON".',
            "correction": "It is on its way.",
        }
        llm.gate(lambda tool, _question: {"allow": False, "reason": "no"} if tool["name"] == "pay" else None)
        tools = {**TURN, "tool_calls": [{"id": "1", "name": "pay"}, {"id": "2", "name": "look"}]}
        answer = await ask(client, "mirror_tools", tools)
        assert [(d["id"], d["allow"], d["reason"]) for d in answer["decisions"]] == [
            ("1", False, "no"),
            ("2", True, ""),
        ]
        llm.correct(lambda question: f"Not {question.agent_text}")
        assert await ask(client, "mirror_correction") == {"text": "Not It will be there by NOON."}
        assert [q.schema for q in llm.questions] == ["mirror_turn", "mirror_turn", "mirror_tools", "mirror_correction"]
        assert len(llm.asked("mirror_turn")) == 2


async def test_rules_may_be_async_and_may_say_everything() -> None:
    async def judge(question: Question) -> dict[str, Any]:
        return {"score": len(question.history) / 10}

    async with LLMStandIn() as llm, sdk(llm.base_url) as client:
        llm.judge(judge)
        assert (await ask(client, user={**TURN, "history": [{}, {}]}))["score"] == 0.2
        llm.answer(lambda _question: [1, 2])
        assert await ask(client) == [1, 2]
        llm.answer(lambda _question: '"words"')
        assert await ask(client) == "words"


async def test_requests_are_kept_as_they_came() -> None:
    async with LLMStandIn(api_key="secret") as llm, sdk(llm.base_url, "secret") as client:
        await ask(client, temperature=0)
        (kept,) = llm.requests
        assert kept.path == "/v1/chat/completions"
        assert kept.headers["Authorization"] == "Bearer secret"
        assert kept.body["temperature"] == 0
        assert kept.question is not None
        assert kept.question.user == TURN
        assert kept.answered


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
    ],
)
async def test_http_errors_are_openais(status: int, error: type[openai.APIStatusError]) -> None:
    async with LLMStandIn() as llm, sdk(llm.base_url) as client:
        llm.once(status=status, headers={"Retry-After": "7"})
        with pytest.raises(error) as raised:
            await ask(client)
        assert raised.value.response.headers["retry-after"] == "7"
        await ask(client)


async def test_a_wrong_key_is_401_and_a_wrong_request_is_400() -> None:
    async with LLMStandIn(api_key="right") as llm:
        async with sdk(llm.base_url, "wrong") as client:
            with pytest.raises(openai.AuthenticationError):
                await ask(client)
        async with sdk(llm.base_url, "right") as client:
            for wrong in ({"model": ""}, {"messages": "hi"}, {"stream": True}, {"response_format": {"type": "xml"}}):
                body: Any = request(**wrong)
                with pytest.raises(openai.BadRequestError):
                    await client.post("/chat/completions", body=body, cast_to=object)


async def test_json_schema_and_parameters_can_be_refused() -> None:
    async with LLMStandIn() as llm, sdk(llm.base_url) as client:
        llm.refuse_json_schema(422)
        with pytest.raises(openai.UnprocessableEntityError, match="response_format"):
            await ask(client)
        llm.refuse_json_schema(None)
        llm.refuse_parameter("max_tokens")
        with pytest.raises(openai.BadRequestError, match="max_tokens"):
            await ask(client, max_tokens=5)
        await ask(client)


async def test_bodies_and_contents_can_be_anything() -> None:
    async with LLMStandIn() as llm, httpx2.AsyncClient() as http:
        for body in (b"", b"\xff\xfe", b"[]"):
            llm.once(body=body)
            answer = await http.post(f"{llm.base_url}/chat/completions", json=request())
            assert (answer.status_code, answer.content) == (200, body)
        llm.once(content="certainly!", usage={"prompt_tokens": 7})
        answer = await http.post(f"{llm.base_url}/chat/completions", json=request())
        assert answer.json()["choices"][0]["message"]["content"] == "certainly!"
        assert answer.json()["usage"] == {"prompt_tokens": 7}
        answer = await http.post(f"{llm.base_url}/chat/completions", content=b"{nonsense")
        assert answer.status_code == 400
        assert llm.requests[-1].question is None


async def test_a_body_can_drip_and_still_arrives_whole() -> None:
    async with LLMStandIn() as llm, sdk(llm.base_url) as client:
        llm.once(drip_bytes=7)
        assert (await ask(client))["score"] == 0.0


@pytest.mark.parametrize("broken", [{"drop": True}, {"close_after": 0}, {"close_after": 15}])
async def test_a_connection_can_break(broken: dict[str, Any]) -> None:
    async with LLMStandIn() as llm, sdk(llm.base_url) as client:
        llm.once(**broken)
        with pytest.raises(openai.APIConnectionError):
            await ask(client)
        await ask(client)


async def test_a_request_hangs_until_it_is_released() -> None:
    async with LLMStandIn() as llm, sdk(llm.base_url) as client:
        llm.once(hang=True)
        asking = asyncio.create_task(ask(client))
        await llm.until_requests(1)
        assert llm.open_requests == 1
        assert not asking.done()
        llm.release()
        assert (await asking)["score"] == 0.0


async def test_it_sees_when_a_client_gives_up() -> None:
    async with LLMStandIn() as llm, sdk(llm.base_url) as client:
        llm.behave(hang=True)
        asking = asyncio.create_task(ask(client))
        await llm.until_requests(1)
        asking.cancel()
        await asyncio.wait_for(llm.requests[0].gone.wait(), 10)
        assert not llm.requests[0].answered


def test_it_runs_in_a_thread_beside_synchronous_code() -> None:
    with LLMStandIn().in_thread() as llm:
        llm.judge(words({"noon": {}}))
        answer = httpx2.post(f"{llm.base_url}/chat/completions", json=request())
        llm.wait_requests(1)
    assert json.loads(answer.json()["choices"][0]["message"]["content"])["score"] == 0.95
    with pytest.raises(httpx2.ConnectError):
        httpx2.post(f"{llm.base_url}/chat/completions", json=request())


async def test_it_runs_in_a_process_from_a_script() -> None:
    script = {"turns": {"noon": {"rule": "1"}}, "tools": {"Pay": {"allow": False}}, "correction": "Soon?", "delay_s": 0}
    with llm_process(script, api_key="k") as base_url:
        async with sdk(base_url) as client:
            assert (await ask(client))["rule"] == "1"
            answer = await ask(client, "mirror_tools", {**TURN, "tool_calls": [{"id": "1", "name": "pay"}]})
            assert answer["decisions"][0]["allow"] is False
            assert await ask(client, "mirror_correction") == {"text": "Soon?"}
