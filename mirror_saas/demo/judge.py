"""A local server that speaks OpenAI's chat completions API from a script, for the demo's call. It is no model.

    python -m mirror_saas.demo.judge --port 8001

It knows the lines of `mirror_saas.demo.conversation` and the tool calls in it, and nothing else: any other turn scores
0 with the reason "the demo script knows no such line", any other tool call is let through with a reason that says so.
Its model is called `demo-script` in every answer, so that nobody takes its verdicts for judgement.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import time
import uuid
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from mirror_saas.demo.conversation import EXCHANGES, agent_lines

MODEL = "demo-script"
UNKNOWN_LINE = "the demo script knows no such line"
UNKNOWN_TOOL = "the demo script knows no such tool call"
JUDGE_HEADER = "X-Judge"


@dataclass(frozen=True, slots=True)
class Violation:
    """A phrase of the agent's that breaks a rule. `rule` is how the rule begins, as the policy has it."""

    phrase: str
    rule: str
    reason: str
    correction: str


VIOLATIONS = (
    Violation(
        phrase="refunded the full price",
        rule="Never confirm or promise a refund",
        reason='It says "refunded the full price", which confirms a refund.',
        correction="I can't confirm that myself; a colleague will decide. Shall I pass on your complaint?",
    ),
    Violation(
        phrase="charged forty-five dollars",
        rule="Never charge a card with an amount",
        reason='It says "charged forty-five dollars", and the customer said twelve.',
        correction="Let me get the amount right first. Which pizza would you like for twelve dollars?",
    ),
)

AMOUNT_NAMED_USD = 12
WRONG_AMOUNT = "Say that the card was not charged, and ask which pizza the customer would like for twelve dollars."
WRONG_ORDER = "Repeat the order to the customer and ask whether it is right."

KNOWN_LINES = frozenset(agent_lines()) | {violation.correction for violation in VIOLATIONS}


class BadRequest(Exception):
    """A request that OpenAI's API would refuse too; the message says what to send."""


def turn_judged(question: dict[str, Any], rules: str) -> dict[str, Any]:
    """The answer to `mirror_turn`. `rules` is the system message, in which the policy's rules stand a line each."""
    text = _folded(str(question.get("agent_text", "")))
    for violation in VIOLATIONS:
        if violation.phrase in text:
            rule = _rule(violation.rule, rules)
            if rule is None:
                break
            return {"score": 1.0, "rule": rule, "reason": violation.reason, "correction": violation.correction}
    known = any(text and (text in _folded(line) or _folded(line) in text) for line in KNOWN_LINES)
    return {"score": 0.0, "rule": None, "reason": "" if known else UNKNOWN_LINE, "correction": ""}


def tools_decided(question: dict[str, Any]) -> dict[str, Any]:
    """The answer to `mirror_tools`: a decision for every tool call asked about."""
    calls = question.get("tool_calls")
    return {"decisions": [_tool_decided(call) for call in calls if isinstance(call, dict)] if calls else []}


def correction_written(question: dict[str, Any]) -> dict[str, Any]:
    """The answer to `mirror_correction`: the line for the phrase that was wrong, else what the verdict suggested."""
    text = _folded(str(question.get("agent_text", "")))
    for violation in VIOLATIONS:
        if violation.phrase in text:
            return {"text": violation.correction}
    return {"text": _suggestion(question.get("history"))}


def _suggestion(history: Any) -> str:
    """What the verdict suggested: it is the last entry of a correction's history, as JSON."""
    last = history[-1] if isinstance(history, list) and history else None
    if not isinstance(last, dict) or last.get("role") != "verdict":
        return ""
    try:
        verdict = json.loads(str(last.get("text")))
    except ValueError:
        return ""
    return str(verdict.get("suggestion", "")) if isinstance(verdict, dict) else ""


def _tool_decided(call: dict[str, Any]) -> dict[str, Any]:
    name, args = str(call.get("name", "")).casefold(), call.get("args")
    reason, instruction = "", ""
    known = {exchange.tool.name: exchange.tool.args for exchange in EXCHANGES if exchange.tool}
    if name == "charge_card" and isinstance(args, dict):
        amount = args.get("amount_usd")
        if amount != AMOUNT_NAMED_USD:
            reason = f'The customer said "twelve dollars", the amount is "{amount}".'
            instruction = WRONG_AMOUNT
    elif name in known:
        if args != known[name]:
            reason, instruction = "The order is not the one that the customer asked for.", WRONG_ORDER
    else:
        return {"id": call.get("id"), "allow": True, "score": 0.0, "reason": UNKNOWN_TOOL, "instruction": ""}
    return {
        "id": call.get("id"),
        "allow": not reason,
        "score": 1.0 if reason else 0.0,
        "reason": reason,
        "instruction": instruction,
    }


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def _rule(beginning: str, rules: str) -> str | None:
    """The whole rule that begins so, if the policy has it."""
    match = re.search(rf"^\s*(?:\d+\.\s*)?({re.escape(beginning)}.*?)\s*$", rules, re.MULTILINE)
    return match.group(1) if match else None


def answer(body: Any) -> dict[str, Any]:
    """The content of the assistant's message for one request. Raises BadRequest."""
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
        raise BadRequest("messages: must be a list of messages")
    contents = {
        message.get("role"): message.get("content") for message in body["messages"] if isinstance(message, dict)
    }
    try:
        question = json.loads(contents.get("user") or "")
    except (TypeError, ValueError):
        question = None
    if not isinstance(question, dict):
        raise BadRequest("messages: the user message must be one JSON object, as Mirror's judge gets it")
    schema = body.get("response_format")
    schema = schema.get("json_schema") if isinstance(schema, dict) else None
    match schema.get("name") if isinstance(schema, dict) else None:
        case "mirror_turn":
            return turn_judged(question, str(contents.get("system") or ""))
        case "mirror_tools":
            return tools_decided(question)
        case "mirror_correction":
            return correction_written(question)
        case name:
            raise BadRequest(
                f"response_format.json_schema.name: must be mirror_turn, mirror_tools or mirror_correction, not {name}"
            )


async def chat_completions(request: web.Request) -> web.Response:
    """POST /v1/chat/completions, without streaming."""
    try:
        body = await request.json()
        content = json.dumps(answer(body))
    except BadRequest as error:
        return _refusal(str(error))
    except ValueError:
        return _refusal("the body must be JSON")
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content, "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }
    return web.json_response(
        {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": MODEL,
            "choices": [choice],
            # No model has read anything.
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        },
        headers={JUDGE_HEADER: MODEL},
    )


async def models(request: web.Request) -> web.Response:
    """GET /v1/models."""
    model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "mirror-demo"}
    return web.json_response({"object": "list", "data": [model]}, headers={JUDGE_HEADER: MODEL})


def _refusal(message: str) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return web.json_response({"error": error}, status=400, headers={JUDGE_HEADER: MODEL})


def application() -> web.Application:
    """The server's routes."""
    app = web.Application(client_max_size=4 * 1024 * 1024)
    app.router.add_post("/v1/chat/completions", chat_completions)
    app.router.add_get("/v1/models", models)
    return app


async def main(port: int) -> None:
    """Serve on 127.0.0.1 until SIGTERM or SIGINT; prints a line with "ready" once it listens."""
    stopped = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stopped.set)
    runner = web.AppRunner(application(), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        print(f"demo judge ready on http://127.0.0.1:{port}/v1; it answers from a script and is no model", flush=True)
        await stopped.wait()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Answer the demo's judging questions from a script.")
    parser.add_argument("--port", type=int, required=True)
    asyncio.run(main(parser.parse_args().port))
