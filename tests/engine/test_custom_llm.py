"""The example of an LLM client of one's own, against a server that speaks the Messages API."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from examples.custom_llm.messages_llm import MAX_ANSWER_BYTES, MessagesLLM
from supervision.engine import JudgingState, MirrorConfig, Supervisor, SupervisorContext, ToolCallIntent, Usage
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

BAD = {"score": 0.9, "rule": "1", "reason": 'It says "confirmed".', "correction": "A colleague decides. Shall I ask?"}
CLEAN = {"score": 0.0, "rule": None, "reason": "", "correction": ""}


@dataclass
class MessagesServer:
    """`/v1/messages` as far as forced tool calls go: it checks what the API checks and answers from `judge`."""

    judge: Callable[[str, dict[str, Any]], Any] = lambda _tool, _user: CLEAN
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    answer: Callable[[web.Request], Any] | None = None

    async def __aenter__(self) -> "MessagesServer":
        app = web.Application()
        app.router.add_post("/v1/messages", self._messages)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._runner.cleanup()

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("x-api-key") != "key" or "anthropic-version" not in request.headers:
            error = {"type": "error", "error": {"type": "authentication_error", "message": "invalid x-api-key"}}
            return web.json_response(error, status=401)
        body = await request.json()
        self.bodies.append(body)
        if self.answer is not None:
            answered: web.StreamResponse = await self.answer(request)
            return answered
        (tool,) = body["tools"]
        assert body["tool_choice"] == {"type": "tool", "name": tool["name"]}
        assert tool["input_schema"]["type"] == "object"
        assert [message["role"] for message in body["messages"]] == ["user"]
        said = self.judge(tool["name"], json.loads(body["messages"][0]["content"]))
        return web.json_response(message({"type": "tool_use", "id": "tu", "name": tool["name"], "input": said}))


def message(*content: Any, **more: Any) -> dict[str, Any]:
    usage = {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 90, "cache_creation_input_tokens": 0}
    return {"type": "message", "content": list(content), "stop_reason": "tool_use", "usage": usage, **more}


@pytest.fixture
async def server() -> AsyncIterator[MessagesServer]:
    async with MessagesServer() as running:
        yield running


async def ask(llm: LLMClient, timeout_s: float = 10.0) -> LLMResult:
    return await llm.complete_json(
        system="Rules", user="{}", schema_name="mirror_turn", schema=TURN_SCHEMA, max_tokens=99, timeout_s=timeout_s
    )


async def test_it_judges_turns_and_gates_tools_like_any_other_client(server: MessagesServer) -> None:
    def judge(tool: str, user: dict[str, Any]) -> Any:
        if tool == "mirror_tools":
            refused = {"allow": False, "score": 1.0, "reason": "Not agreed.", "instruction": "Ask first."}
            return {"decisions": [{"id": call["id"], **refused} for call in user["tool_calls"]]}
        return BAD if "confirmed" in user["agent_text"] else CLEAN

    server.judge = judge
    llm = MessagesLLM(api_key="key", model="m-1", base_url=server.url)
    assert isinstance(llm, LLMClient)
    config = MirrorConfig(llm=llm, policies=["Never confirm a refund."], tiered_scoring_enabled=False)
    supervisor = Supervisor(config)
    call = supervisor.call(SupervisorContext(call_id="c"))
    flagged = await call.judge_turn(call.payload(customer_text="My money?", agent_text="Your refund is confirmed."))
    clean = await call.judge_turn(call.payload(customer_text="My money?", agent_text="Let me ask a colleague."))
    charge = ToolCallIntent("t1", "charge_card", {"amount": 5})
    (gated,) = await call.gate_tools([charge], customer_text="No!")
    assert (flagged.should_intervene, flagged.usage) == (True, Usage(100, 5, 90))
    assert (clean.state, clean.should_intervene) == (JudgingState.JUDGED, False)
    assert not gated.allow
    # The policy is the stable part, marked for the provider's cache; what was said is in the user message only.
    assert server.bodies[0]["system"] == server.bodies[1]["system"]
    assert "confirmed." not in json.dumps(server.bodies[0]["system"])
    await supervisor.aclose()
    with pytest.raises(LLMClosed):
        await ask(llm)


async def test_a_client_with_one_method_is_enough() -> None:
    class OneMethod:
        async def complete_json(self, **_question: Any) -> LLMResult:
            return LLMResult(json.dumps(CLEAN))

    supervisor = Supervisor(MirrorConfig(llm=OneMethod(), policies=["No refunds."], tiered_scoring_enabled=False))
    assert (await supervisor.review(customer_text="Hi", primary_text="Hello there.")).state is JudgingState.JUDGED
    await supervisor.aclose()


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (lambda: web.json_response({}), LLMBadAnswer, "no message"),
        (lambda: web.json_response(message({"type": "text", "text": "Hi"})), LLMBadAnswer, "did not call"),
        (lambda: web.json_response(message(stop_reason="max_tokens")), LLMBadAnswer, "cut off"),
        (lambda: web.Response(text="<html>"), LLMBadAnswer, "not answer with JSON"),
        (lambda: web.Response(body=b" " * (MAX_ANSWER_BYTES + 1)), LLMBadAnswer, "too much"),
        (lambda: web.json_response({}, status=529), LLMRejected, "HTTP 529"),
    ],
)
async def test_what_can_go_wrong_is_an_error_of_the_engines(
    server: MessagesServer, answer: Callable[[], web.Response], error: type[LLMError], words: str
) -> None:
    async def answered(_request: web.Request) -> web.Response:
        return answer()

    server.answer = answered
    llm = MessagesLLM(api_key="key", model="m", base_url=server.url)
    with pytest.raises(error, match=words):
        await ask(llm)
    await llm.aclose()
    await llm.aclose()


async def test_a_late_answer_a_wrong_key_and_nobody_there(server: MessagesServer, unused_tcp_port: int) -> None:
    released = asyncio.Event()

    async def hang(_request: web.Request) -> web.Response:
        await released.wait()
        return web.Response()

    server.answer = hang
    llm = MessagesLLM(api_key="key", model="m", base_url=server.url)
    with pytest.raises(LLMTimeout):
        await ask(llm, timeout_s=0.05)
    released.set()
    wrong = MessagesLLM(api_key="wrong", model="m", base_url=server.url)
    with pytest.raises(LLMRejected, match="401"):
        await ask(wrong)
    nobody = MessagesLLM(api_key="key", model="m", base_url=f"http://127.0.0.1:{unused_tcp_port}")
    with pytest.raises(LLMUnreachable):
        await ask(nobody)
    for client in (llm, wrong, nobody):
        await client.aclose()
    with pytest.raises(ValueError, match="must not be blank"):
        MessagesLLM(api_key=" ", model="m")


async def test_closing_waits_for_the_question_under_way(server: MessagesServer) -> None:
    asked, released = asyncio.Event(), asyncio.Event()

    async def slow(_request: web.Request) -> web.Response:
        asked.set()
        await released.wait()
        return web.json_response(message({"type": "tool_use", "input": CLEAN}))

    server.answer = slow
    llm = MessagesLLM(api_key="key", model="m", base_url=server.url)
    asking = asyncio.create_task(ask(llm))
    await asked.wait()
    closing = asyncio.create_task(llm.aclose())
    released.set()
    assert json.loads((await asking).text) == CLEAN
    await closing
