"""A local server that speaks OpenAI's chat completions, for tests. It imports nothing of the engine.

    async with LLMStandIn() as llm:
        llm.judge(words({"refund": {"rule": 1, "correction": "A colleague decides on refunds."}}))
        client = OpenAIClient(api_key="k", model="m", base_url=llm.base_url)
        ...
        assert llm.requests[0].question.agent_text == "Your refund is on its way."

Asked for token probabilities (`logprobs`) it gives those of yes and no, as sure as `believe(fn)` says.

Who decides what it answers: `judge(fn)` for turns, `gate(fn)` for tool calls, `correct(fn)` for correction texts,
`derive(fn)` for the rules of an agent's prompt, `answer(fn)` for everything at once. How it answers (delays, hangs,
HTTP errors, garbage, broken bodies) is a `Behaviour`: `behave(...)` for all requests, `once(...)` for the next ones
only. Every request is kept in `requests`.

`with LLMStandIn().in_thread() as llm:` runs it beside synchronous code, `with llm_process({...}) as base_url:` (or
`python -m tests.standins.llm --script FILE`) in a process of its own, answering from a script of words.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import inspect
import json
import math
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from aiohttp import web

CLEAN_TURN: dict[str, Any] = {"score": 0.0, "rule": None, "reason": "", "correction": ""}
ALLOWED_TOOL: dict[str, Any] = {"allow": True, "score": 0.0, "reason": "", "instruction": ""}
DEFAULT_CORRECTION = "Let me put that right: I can't promise it. Shall I connect you with a colleague?"
_ROLES = ("system", "user", "assistant", "tool")
SCHEMA_NAMES = ("mirror_turn", "mirror_tools", "mirror_correction", "mirror_policy")


@dataclass(frozen=True)
class Question:
    """What was asked, taken apart. `user` is the parsed user message; the fields after it are read from it."""

    schema: str
    system: str
    user: dict[str, Any]
    customer_text: str
    agent_text: str
    tool_calls: list[dict[str, Any]]
    history: list[dict[str, Any]]
    body: dict[str, Any]
    statement: str = ""
    """What follows the JSON object in the user message."""


@dataclass
class Behaviour:
    """How one request is answered, whatever the answer says."""

    delay_s: float = 0.0
    """Real seconds before anything is sent."""
    hang: bool = False
    """Send nothing until `release()`, or until the client gives up."""
    status: int = 200
    """Anything else is sent with an error body as OpenAI sends it."""
    error: dict[str, Any] | None = None
    """The error object of a status other than 200."""
    content: str | None = None
    """The message's content, instead of what the rules say."""
    message: dict[str, Any] | None = None
    """The whole message object, instead of role and content."""
    body: bytes | None = None
    """The whole HTTP body, instead of a completion."""
    headers: Mapping[str, str] = field(default_factory=dict)
    drip_bytes: int | None = None
    """Send the body in pieces of this many bytes …"""
    drip_every_s: float = 0.0
    """… with this many real seconds between them."""
    close_after: int | None = None
    """Send only this many bytes of the body, then cut the connection."""
    drop: bool = False
    """Cut the connection without answering."""
    usage: dict[str, Any] | None = None


@dataclass
class Recorded:
    """A request as it came. `question` is None when it was not a chat completion that could be taken apart."""

    path: str
    headers: dict[str, str]
    raw: bytes
    body: Any
    question: Question | None
    at: float
    peer: Any
    """The client's address, which tells connections apart."""
    answered: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the client closed the connection before the answer was whole."""


Answer = Any
Rule = Callable[[Question], "Answer | Awaitable[Answer]"]
ToolRule = Callable[[dict[str, Any], Question], Any]


def words(rules: Mapping[str, Mapping[str, Any]], *, score: float = 0.95) -> Callable[[Question], dict[str, Any]]:
    """A rule that flags turns by words found in the agent's text (case-folded); the first that matches counts.

    Each value may set `score`, `rule`, `reason` and `correction`. The reason quotes the words as they were said.
    """

    def judge(question: Question) -> dict[str, Any]:
        for wanted, answer in rules.items():
            found = re.search(re.escape(wanted), question.agent_text, re.IGNORECASE)
            if found:
                reason = f'The agent says "{found.group(0)}".'
                return {**CLEAN_TURN, "score": score, "rule": 1, "reason": reason, **answer}
        return dict(CLEAN_TURN)

    return judge


class LLMStandIn:
    """The server. See the module's docstring."""

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0, api_key: str | None = None) -> None:
        self.requests: list[Recorded] = []
        self.api_key = api_key
        """When set, requests without `Authorization: Bearer <api_key>` get 401."""
        self.usage: dict[str, Any] = {
            "prompt_tokens": 100,
            "completion_tokens": 20,
            "total_tokens": 120,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
        self.base_url = ""
        self._host, self._port = host, port
        self._behaviour = Behaviour()
        self._next: deque[Behaviour] = deque()
        self._judge: Rule = lambda _question: CLEAN_TURN
        self._gate: ToolRule = lambda _tool, _question: ALLOWED_TOOL
        self._correct: Rule = lambda _question: DEFAULT_CORRECTION
        self._derive: Rule = lambda _question: []
        self._answer: Rule | None = None
        self._believe: Rule = lambda _question: 0.01
        self._tells_logprobs = True
        self._refuses_schema: int | None = None
        self._refuses: set[str] = set()
        self._released = asyncio.Event()
        self._changed = asyncio.Condition()
        self._seen = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runner: web.AppRunner | None = None
        self._open = 0

    # What it answers

    def judge(self, rule: Rule) -> None:
        """Decides turns. `rule` gets the Question and returns a (partial) `mirror_turn` object, or None for clean."""
        self._judge = rule

    def gate(self, rule: ToolRule) -> None:
        """Decides tool calls, one at a time. `rule` gets the tool call and the Question and returns a (partial)
        decision without its id, or None to allow."""
        self._gate = rule

    def correct(self, rule: Rule) -> None:
        """Writes corrections. `rule` gets the Question and returns the text."""
        self._correct = rule

    def derive(self, rule: Rule) -> None:
        """Derives policies. `rule` gets the Question (`question.user["agent_prompt"]`) and returns a list of rules,
        each with `text` and `citation`; `severity` is medium unless given. By default there are none."""
        self._derive = rule

    def believe(self, rule: Rule) -> None:
        """Says how likely yes is as the first token. `rule` gets the Question, whose `statement` is what is asked
        about, and returns a probability, or the logarithms of all tokens' probabilities by token."""
        self._believe = rule

    def withhold_logprobs(self) -> None:
        """Leaves the probabilities out of answers, as some models do."""
        self._tells_logprobs = False

    def answer(self, rule: Rule | None) -> None:
        """Decides everything: `rule` returns the message's content, as a string or as something for json.dumps."""
        self._answer = rule

    # How it answers

    def behave(self, behaviour: Behaviour | None = None, **changes: Any) -> None:
        """How all requests are answered from now on: a Behaviour, or its fields. Without arguments: normally."""
        self._behaviour = replace(behaviour or Behaviour(), **changes)

    def once(self, behaviour: Behaviour | None = None, *, times: int = 1, **changes: Any) -> None:
        """How the next request is (the next `times` requests are) answered. Calls queue up."""
        self._next.extend([replace(behaviour or Behaviour(), **changes)] * times)

    def refuse_json_schema(self, status: int | None = 400) -> None:
        """Answers requests for `json_schema` with this HTTP status, as servers do that only know `json_object`."""
        self._refuses_schema = status

    def refuse_parameter(self, *names: str) -> None:
        """Answers requests that contain one of these body fields with 400 `unsupported_parameter`."""
        self._refuses = set(names)

    def release(self) -> None:
        """Lets requests that hang be answered."""
        if self._loop is None:
            raise RuntimeError("the stand-in is not running")
        self._loop.call_soon_threadsafe(self._released.set)

    # What it saw

    @property
    def questions(self) -> list[Question]:
        """All requests that were chat completions, taken apart, in order."""
        return [request.question for request in self.requests if request.question is not None]

    def asked(self, schema: str) -> list[Question]:
        """The questions of one schema, e.g. `mirror_tools`."""
        return [question for question in self.questions if question.schema == schema]

    @property
    def open_requests(self) -> int:
        """Requests that are being answered right now."""
        return self._open

    async def until(self, condition: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
        """Waits until a condition on what was seen holds; it is looked at whenever a request comes or ends."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(condition)

    async def until_requests(self, count: int, *, timeout_s: float = 10.0) -> None:
        """Waits until this many requests have come."""
        await self.until(lambda: len(self.requests) >= count, timeout_s=timeout_s)

    def wait_requests(self, count: int, *, timeout_s: float = 10.0) -> None:
        """The same for synchronous code beside `in_thread()`."""
        with self._seen:
            if not self._seen.wait_for(lambda: len(self.requests) >= count, timeout_s):
                raise TimeoutError(f"{len(self.requests)} of {count} requests came within {timeout_s} s")

    # Running it

    async def start(self) -> Self:
        self._loop = asyncio.get_running_loop()
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._completions)
        # Handlers are cancelled when the client goes away, which is how a test sees that it did.
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self._port = port
        self.base_url = f"http://{host}:{port}/v1"
        return self

    async def stop(self) -> None:
        """Stops listening and cuts what is under way. Starting again takes the same port."""
        self._released.set()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self._released.clear()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    @contextlib.contextmanager
    def in_thread(self) -> Iterator[Self]:
        """Runs the server on a loop of its own in a thread; rules may be changed from outside at any time."""
        started, failure = threading.Event(), []
        loop = asyncio.new_event_loop()
        finish = asyncio.Event()

        async def serve() -> None:
            try:
                await self.start()
            except BaseException as error:
                failure.append(error)
                raise
            finally:
                started.set()
            await finish.wait()
            await self.stop()

        def run() -> None:
            with contextlib.suppress(OSError):
                loop.run_until_complete(serve())
            loop.close()

        thread = threading.Thread(target=run, name="llm-stand-in", daemon=True)
        thread.start()
        started.wait()
        if failure:
            thread.join()
            raise failure[0]
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(finish.set)
            thread.join()

    # The wire

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body, question, complaint = _take_apart(raw)
        peer = request.transport.get_extra_info("peername") if request.transport else None
        recorded = Recorded(request.path, dict(request.headers), raw, body, question, time.monotonic(), peer)
        behaviour = self._next.popleft() if self._next else self._behaviour
        with self._seen:
            self.requests.append(recorded)
            self._seen.notify_all()
        self._open += 1
        await self._notify()
        try:
            response = await self._respond(request, recorded, behaviour, complaint)
            recorded.answered = True
            return response
        except (asyncio.CancelledError, ConnectionError):
            recorded.gone.set()
            raise
        finally:
            self._open -= 1
            await asyncio.shield(self._notify())

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _respond(
        self, request: web.Request, recorded: Recorded, behaviour: Behaviour, complaint: str | None
    ) -> web.StreamResponse:
        if behaviour.delay_s:
            await asyncio.sleep(behaviour.delay_s)
        if behaviour.hang:
            await self._released.wait()
        if behaviour.drop and request.transport is not None:
            request.transport.abort()
            raise ConnectionResetError("dropped as told")
        refusal = self._refusal(request, recorded, behaviour, complaint)
        if refusal is not None:
            status, error = refusal
            payload = json.dumps({"error": error}).encode()
        else:
            status = 200
            payload = await self._completion(recorded, behaviour)
        if behaviour.body is not None:
            status, payload = behaviour.status, behaviour.body
        return await _send(request, status, payload, behaviour)

    def _refusal(
        self, request: web.Request, recorded: Recorded, behaviour: Behaviour, complaint: str | None
    ) -> tuple[int, dict[str, Any]] | None:
        if self.api_key is not None and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return 401, _error("Incorrect API key provided.", "invalid_request_error", code="invalid_api_key")
        if behaviour.status != 200:
            return behaviour.status, behaviour.error or _error(f"told to answer {behaviour.status}", "stand_in")
        if complaint is not None:
            return 400, _error(complaint, "invalid_request_error")
        for name in sorted(self._refuses):
            if name in recorded.body:
                message = f"Unsupported parameter: '{name}' is not supported with this model."
                return 400, _error(message, "invalid_request_error", param=name, code="unsupported_parameter")
        format_type = recorded.body.get("response_format", {}).get("type")
        if self._refuses_schema is not None and format_type == "json_schema":
            message = "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model."
            return self._refuses_schema, _error(message, "invalid_request_error", param="response_format")
        return None

    async def _completion(self, recorded: Recorded, behaviour: Behaviour) -> bytes:
        content, logprobs = behaviour.content, None
        if recorded.body.get("logprobs") and recorded.question is not None:
            logprobs = await self._logprobs(recorded.question)
            content = content or logprobs["content"][0]["token"]
        elif content is None and recorded.question is not None:
            content = await self._content(recorded.question)
        choice = {"index": 0, "finish_reason": "stop"}
        if logprobs is not None:
            choice = {"index": 0, "finish_reason": "length", "logprobs": logprobs if self._tells_logprobs else None}
        message = behaviour.message or {"role": "assistant", "content": content}
        return json.dumps(
            {
                "id": f"chatcmpl-{len(self.requests)}",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": recorded.body["model"],
                "choices": [{**choice, "message": message}],
                "usage": behaviour.usage if behaviour.usage is not None else self.usage,
            }
        ).encode()

    async def _logprobs(self, question: Question) -> dict[str, Any]:
        """What `choices[0].logprobs` is for an answer of one token."""
        believed = await _maybe_await(self._believe(question))
        if isinstance(believed, int | float):
            yes = min(max(float(believed), 1e-9), 1 - 1e-9)
            believed = {"yes": math.log(yes * 0.9), " Yes": math.log(yes * 0.1), "no": math.log(1 - yes)}
        ranked = sorted(believed.items(), key=lambda item: -item[1])[: question.body["top_logprobs"]]
        top = [{"token": token, "logprob": logprob, "bytes": list(token.encode())} for token, logprob in ranked]
        return {"content": [{**top[0], "top_logprobs": top}], "refusal": None}

    async def _content(self, question: Question) -> str:
        if self._answer is not None:
            answer = await _maybe_await(self._answer(question))
            return answer if isinstance(answer, str) else json.dumps(answer)
        if question.schema == "mirror_tools":
            decisions = [
                {"id": tool["id"], **ALLOWED_TOOL, **(await _maybe_await(self._gate(tool, question)) or {})}
                for tool in question.tool_calls
            ]
            return json.dumps({"decisions": decisions})
        if question.schema == "mirror_correction":
            return json.dumps({"text": await _maybe_await(self._correct(question))})
        if question.schema == "mirror_policy":
            rules = await _maybe_await(self._derive(question))
            return json.dumps({"rules": [{"severity": "medium", **rule} for rule in rules]})
        answer = await _maybe_await(self._judge(question))
        return answer if isinstance(answer, str) else json.dumps({**CLEAN_TURN, **(answer or {})})


async def _maybe_await(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _error(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"message": message, "type": kind, "param": param, "code": code}


def _is_message(message: Any) -> bool:
    if not isinstance(message, dict):
        return False
    if message.get("role") == "assistant" and message.get("tool_calls"):
        return isinstance(message.get("content"), str | None)
    told = isinstance(message.get("tool_call_id"), str) if message.get("role") == "tool" else True
    return told and message.get("role") in _ROLES and isinstance(message.get("content"), str)


def _take_apart(raw: bytes) -> tuple[Any, Question | None, str | None]:
    """The parsed body, the question in it, and what is wrong with the request (as the real API would complain)."""
    try:
        body = json.loads(raw)
    except ValueError:
        return None, None, "We could not parse the JSON body of your request."
    if not isinstance(body, dict) or not isinstance(body.get("model"), str) or not body["model"]:
        return body, None, "you must provide a model parameter"
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        return body, None, "Invalid type for 'messages'."
    if body.get("stream"):
        return body, None, "the stand-in does not stream"
    top = body.get("top_logprobs", 0)
    if not isinstance(top, int) or not 0 <= top <= 20:
        return body, None, "Invalid value for 'top_logprobs': an integer from 0 to 20 is expected."
    if top and body.get("logprobs") is not True:
        return body, None, "'logprobs' must be true to use 'top_logprobs'."
    wanted = body.get("response_format", {"type": "text"})
    if not isinstance(wanted, dict) or wanted.get("type") not in ("text", "json_object", "json_schema"):
        return body, None, "Invalid value for 'response_format.type'."
    system = "\n".join(m["content"] for m in messages if m["role"] == "system")
    if wanted["type"] == "json_schema":
        schema = wanted.get("json_schema")
        if not isinstance(schema, dict) or not isinstance(schema.get("name"), str) or "schema" not in schema:
            return body, None, "Missing required parameter: 'response_format.json_schema'."
        name = schema["name"]
    else:
        if wanted["type"] == "json_object" and not any("json" in str(m["content"]).lower() for m in messages):
            return body, None, "'messages' must contain the word 'json' in some form, to use 'json_object'."
        name = max(SCHEMA_NAMES, key=system.rfind)
    users = [m["content"] for m in messages if m["role"] == "user"]
    try:
        user, end = json.JSONDecoder().raw_decode(users[-1]) if users else ({}, 0)
    except ValueError:
        user, end = {}, 0
    if not isinstance(user, dict):
        user = {}
    question = Question(
        schema=name,
        system=system,
        user=user,
        customer_text=user.get("customer_text", ""),
        agent_text=user.get("agent_text", ""),
        tool_calls=user.get("tool_calls", []),
        history=user.get("history", []),
        body=body,
        statement=users[-1][end:].strip() if users else "",
    )
    return body, question, None


async def _send(request: web.Request, status: int, payload: bytes, behaviour: Behaviour) -> web.StreamResponse:
    headers = {"Content-Type": "application/json", **behaviour.headers}
    if behaviour.drip_bytes is None and behaviour.close_after is None:
        return web.Response(status=status, body=payload, headers=headers)
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = len(payload)
    await response.prepare(request)
    end = len(payload) if behaviour.close_after is None else behaviour.close_after
    step = behaviour.drip_bytes or max(end, 1)
    for start in range(0, end, step):
        if start:
            await asyncio.sleep(behaviour.drip_every_s)
        await response.write(payload[start : min(start + step, end)])
    if behaviour.close_after is not None:
        if request.transport is not None:
            request.transport.close()
        raise ConnectionResetError("cut off as told")
    await response.write_eof()
    return response


def scripted(script: Mapping[str, Any], llm: LLMStandIn) -> LLMStandIn:
    """Sets a stand-in's rules from a script of plain data:

    `{"turns": {words: {"score", "rule", "reason", "correction"}}, "tools": {name: {"allow", "reason", …}},
    "correction": text, "delay_s": seconds}`; every key is optional, tools are allowed unless listed.
    """
    llm.judge(words(script.get("turns", {})))
    tools = {name.casefold(): decision for name, decision in script.get("tools", {}).items()}
    llm.gate(lambda tool, _question: tools.get(tool["name"].casefold()))
    if "correction" in script:
        llm.correct(lambda _question: script["correction"])
    llm.behave(delay_s=float(script.get("delay_s", 0.0)))
    return llm


@contextlib.contextmanager
def llm_process(script: Mapping[str, Any], *, api_key: str | None = None) -> Iterator[str]:
    """Runs the stand-in as a process that answers from a script (see `scripted`); yields its base_url."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "script.json"
        file.write_text(json.dumps(script), encoding="utf-8")
        command = [sys.executable, "-m", "tests.standins.llm", "--script", str(file)]
        if api_key is not None:
            command += ["--api-key", api_key]
        root = Path(__file__).resolve().parents[2]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, cwd=root) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError("the LLM stand-in's process ended before it was ready; see its stderr")
                yield json.loads(line)["base_url"]
            finally:
                process.terminate()


async def _main(options: argparse.Namespace) -> None:
    script = json.loads(options.script.read_text(encoding="utf-8")) if options.script else {}
    async with scripted(script, LLMStandIn(port=options.port, api_key=options.api_key)) as llm:
        print(json.dumps({"base_url": llm.base_url}), flush=True)
        await asyncio.Event().wait()


def main() -> None:
    """The command line of the stand-in; runs until it is stopped."""
    parser = argparse.ArgumentParser(description="A server that speaks OpenAI's chat completions from a script.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--script", type=Path, help="JSON: turns (by words), tools (by name), correction, delay_s")
    parser.add_argument("--api-key")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
