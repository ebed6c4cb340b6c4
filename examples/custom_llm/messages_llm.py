"""A judge behind another provider's wire: how to bring an LLM client of your own.

    llm = MessagesLLM(api_key="…", model="…", base_url="https://api.anthropic.com")
    supervisor = Supervisor(MirrorConfig(llm=llm, policies=["Never confirm a refund."]))

One async method is all that the engine asks for: `complete_json`, which puts one question and returns the model's text.
This one speaks Anthropic's Messages API over aiohttp. That wire has no `response_format`, so the answer is asked for as
the input of a tool that the model has to call, whose schema is the engine's: a way that many providers have.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp

from supervision.engine import Usage
from supervision.engine.llm.protocol import (
    LLMBadAnswer,
    LLMClosed,
    LLMRejected,
    LLMResult,
    LLMTimeout,
    LLMUnreachable,
)

MAX_ANSWER_BYTES = 1024 * 1024


class MessagesLLM:
    """An `LLMClient` for the Messages API. Safe to share between calls; connections are pooled."""

    def __init__(self, *, api_key: str, model: str, base_url: str = "https://api.anthropic.com") -> None:
        if not api_key.strip() or not model.strip():
            raise ValueError("api_key and model must not be blank")
        self._url = f"{base_url.rstrip('/')}/v1/messages"
        self._headers = {"x-api-key": api_key, "anthropic-version": "2023-06-01"}
        self._model = model
        self._session: aiohttp.ClientSession | None = None
        self._running: set[asyncio.Future[None]] = set()
        self._closed = False

    async def complete_json(
        self, *, system: str, user: str, schema_name: str, schema: dict[str, Any], max_tokens: int, timeout_s: float
    ) -> LLMResult:
        """Asks once, within `timeout_s` seconds; raises an `LLMError` that says what went wrong.

        The engine stops waiting at the deadline by itself and checks the answer against `schema`, so a client need do
        neither; this one keeps the deadline too, so that the connection is closed in time.
        """
        if self._closed:
            raise LLMClosed("this LLM client is closed")
        body = {
            "model": self._model,
            "max_tokens": max_tokens,
            "temperature": 0,
            # The policy comes first and stays the same: marked so, the provider keeps it between questions.
            "system": [{"type": "text", "text": system, "cache_control": {"type": "ephemeral"}}],
            "messages": [{"role": "user", "content": user}],
            "tools": [{"name": schema_name, "description": "Gives the answer.", "input_schema": schema}],
            "tool_choice": {"type": "tool", "name": schema_name},
        }
        under_way = asyncio.get_running_loop().create_future()
        self._running.add(under_way)
        try:
            async with asyncio.timeout(timeout_s):
                return _result(await self._post(body), schema_name)
        except TimeoutError as error:
            raise LLMTimeout("the model did not answer in time") from error
        except aiohttp.ClientError as error:
            raise LLMUnreachable("the model's endpoint cannot be reached, or broke the connection off") from error
        finally:
            self._running.discard(under_way)
            under_way.set_result(None)

    async def aclose(self) -> None:
        """Waits for questions under way, then closes the connections. Optional: a client may do without."""
        self._closed = True
        if self._running:
            await asyncio.wait(self._running)
        if self._session is not None:
            await self._session.close()

    async def _post(self, body: dict[str, Any]) -> Any:
        if self._session is None:
            # Here, because a session belongs to the loop that is running when it is made.
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        async with self._session.post(self._url, json=body, headers=self._headers, allow_redirects=False) as response:
            raw = await response.content.read(MAX_ANSWER_BYTES)
            while chunk := await response.content.read(MAX_ANSWER_BYTES):
                raw += chunk
                if len(raw) > MAX_ANSWER_BYTES:
                    raise LLMBadAnswer("the model's endpoint sent too much")
            if response.status != 200:
                # Its message is not passed on: it may repeat what was said in the call.
                raise LLMRejected(f"the model's endpoint answered HTTP {response.status}", status=response.status)
        try:
            return json.loads(raw)
        except ValueError as error:
            raise LLMBadAnswer("the model's endpoint did not answer with JSON") from error


def _result(answer: Any, schema_name: str) -> LLMResult:
    try:
        called = [block["input"] for block in answer["content"] if block["type"] == "tool_use"]
        usage = answer["usage"]
        cached = usage.get("cache_read_input_tokens") or 0
        prompt = usage["input_tokens"] + cached + (usage.get("cache_creation_input_tokens") or 0)
        counted = Usage(prompt, usage["output_tokens"], cached)
    except (LookupError, TypeError, AttributeError) as error:
        raise LLMBadAnswer("the model's endpoint answered with something that is no message") from error
    if answer.get("stop_reason") == "max_tokens":
        raise LLMBadAnswer("the model's answer was cut off; allow it more tokens (judge_max_tokens)")
    if not called:
        raise LLMBadAnswer(f"the model did not call {schema_name}")
    return LLMResult(json.dumps(called[0]), counted)
