"""The agent's own turn, supervised from the inside: its model calls tools, each is gated before it runs, and the words
that come out are judged before they are spoken.

    result = await sup.run_supervised_loop(
        llm_client=AsyncOpenAI(), model="gpt-4o", system_prompt=..., customer_text="Charge my card, please.",
        tool_specs=[{"type": "function", "function": {"name": "charge_card", "parameters": {...}}}],
        tool_executors={"charge_card": charge_card},
    )
    if not result.blocked:
        await sup.speak(result.text)

Per round one question to the agent's model; all tool calls of its answer are one question to the gate. What the gate
lets pass runs, in order; its result goes back to the model and into the call's ledger and history.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from supervision.engine.context import ToolCallIntent, ToolCode, ToolVerdict, TurnPayload, Verdict

if TYPE_CHECKING:
    from supervision.engine.supervisor import CallSupervisor

logger = logging.getLogger(__name__)

ToolExecutor = Callable[[dict[str, Any]], Any | Awaitable[Any]]
"""Runs a tool: takes its arguments, returns its result. An async function, or a plain one, which runs in a thread."""

MAX_RESULT_CHARS = 32_000
# Outcomes that the agent's model can go on from by itself; any other refusal ends the turn.
_MODEL_GOES_ON = frozenset({ToolCode.DUPLICATE, ToolCode.BAD_ARGS})


class AgentModelError(Exception):
    """The agent's own model could not be asked, or answered with something that is no chat completion. The message
    names the exception's type, never what was said."""


class ToolNotRun(Exception):
    """Raised by a tool's executor to say that the tool surely had no effect: an irreversible call that ends like this
    may be tried again. The message is shown to the agent's model. After any other exception it is in doubt."""


@dataclass(frozen=True, slots=True)
class LoopResult:
    """What an agent's turn came to.

    `text` is what may be spoken: the model's final words or, when `blocked`, what was or may be said in their place
    (empty when there is nothing). `blocked`: a tool call was refused, or the final words call for an intervention; then
    `block_verdict` says why, and where the call has a voice it has spoken already. `verdict` is the final words', None
    when it did not come to that. `tool_intents` are all tool calls that the model asked for, `tools` the gate's verdict
    on each, `rounds` how many times the model was asked. `agent_text` are the model's own final words, spoken or not.
    `messages` is the conversation with the model, for the next turn, without system messages.
    """

    text: str
    blocked: bool = False
    tool_intents: tuple[ToolCallIntent, ...] = ()
    block_verdict: Verdict | None = None
    verdict: Verdict | None = None
    tools: tuple[ToolVerdict, ...] = ()
    rounds: int = 0
    agent_text: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()


@dataclass(slots=True)
class _Turn:
    """An agent's turn under way."""

    payload: TurnPayload
    messages: list[dict[str, Any]]
    intents: list[ToolCallIntent] = field(default_factory=list)
    tools: list[ToolVerdict] = field(default_factory=list)
    rounds: int = 0


async def run_tool_loop(
    call: CallSupervisor,
    *,
    llm_client: Any,
    model: str,
    system_prompt: str,
    tool_specs: Sequence[Mapping[str, Any]],
    tool_executors: Mapping[str, ToolExecutor],
    customer_text: str,
    turn_id: str,
    extra_system_note: str | None = None,
    irreversible: Iterable[str] = (),
    messages: Sequence[Mapping[str, Any]] | None = None,
    max_rounds: int = 8,
    llm_timeout_s: float = 30.0,
    tool_timeout_s: float = 30.0,
    language: str = "en",
    request: Mapping[str, Any] | None = None,
) -> LoopResult:
    """Has the agent's model answer the customer, every tool call gated before it runs and the final words judged.

    `llm_client` is an `AsyncOpenAI` or `OpenAI` client, or anything with their `chat.completions.create`; `request` is
    added to each request. `tool_specs` are OpenAI's. `tool_executors` run the tools by name: `fn(args)`, sync (in a
    thread) or async. `irreversible` names tools beyond `MirrorConfig.irreversible_tools`. `messages` is the
    conversation before this turn, as the model gets it; by default the call's own history. `extra_system_note`, and
    the call's override if one waits, go to the model as system messages.

    - A refused tool never runs, nor does any other of the same answer; the turn ends `blocked`, and the correction is
      spoken where there is a voice. In shadow mode it runs.
    - Malformed arguments, unknown tools and exceptions of an executor go back to the model, which may go on; a
      duplicate gets the first run's result. An irreversible tool whose executor raised (other than `ToolNotRun`) or
      did not end within `tool_timeout_s` seconds is in doubt: it does not run again in this call.
    - After `max_rounds` answers with tool calls the model is asked once more, without tools.
    - The final words are judged like any turn. If they call for an intervention, the turn ends `blocked` likewise.

    Raises `AgentModelError` when the model fails or has not answered within `llm_timeout_s` seconds, `ValueError` for
    `max_rounds` below 1, and `TypeError` for a client that is none.
    """
    create = _create_of(llm_client)
    if max_rounds < 1:
        raise ValueError("max_rounds: at least one round is needed")
    named = {name.strip().casefold() for name in irreversible}
    history = call.payload(customer_text=customer_text, agent_text="", turn_id=turn_id, language=language)
    override = await call.consume_override()
    call.note_customer(customer_text)
    conversation: list[dict[str, Any]] = [{"role": "system", "content": system_prompt}]
    conversation += map(dict, messages) if messages is not None else _as_messages(history)
    conversation += [{"role": "system", "content": note} for note in (extra_system_note, override) if note]
    conversation.append({"role": "user", "content": customer_text})
    turn = _Turn(history, conversation)
    for last in (*[False] * max_rounds, True):
        asked = {"model": model, "messages": turn.messages, **(request or {})}
        if tool_specs and not last:
            asked["tools"] = list(tool_specs)
        message = await _answer(create, asked, llm_timeout_s)
        turn.rounds += 1
        words = _field(message, "content")
        words = words.strip() if isinstance(words, str) else ""
        calls = [] if last else list(_field(message, "tool_calls") or ())
        if not calls:
            return await _end(call, turn, words)
        intents = [
            replace(intent, irreversible=intent.irreversible or intent.name.strip().casefold() in named)
            for intent in call.intents(calls)
        ]
        turn.messages.append(_assistant_message(words, intents, calls))
        blocked = await _run_tools(call, turn, intents, words, tool_executors, tool_timeout_s)
        if blocked is not None:
            return blocked
    raise AssertionError("the last round asks without tools")  # pragma: no cover


async def _run_tools(
    call: CallSupervisor,
    turn: _Turn,
    intents: list[ToolCallIntent],
    words: str,
    executors: Mapping[str, ToolExecutor],
    timeout_s: float,
) -> LoopResult | None:
    """Gates and runs the tool calls of one answer. The result of a turn that ends here, None when the model goes on."""
    known = [intent for intent in intents if intent.name in executors]
    verdict = await call.gate_tool_call(
        customer_text=turn.payload.customer_text,
        intents=known,
        agent_text=words,
        turn_id=turn.payload.turn_id,
    )
    turn.intents += intents
    turn.tools += verdict.tools
    decided = {tool.id: tool for tool in verdict.tools}
    if any(tool.code not in _MODEL_GOES_ON for tool in verdict.refused_tools):
        for tool in verdict.tools:
            if tool.allow:
                call.tool_done(tool.id, False, cancelled=True)
        payload = call.payload(
            customer_text=turn.payload.customer_text,
            agent_text=words,
            tool_calls=intents,
            turn_id=turn.payload.turn_id,
            language=turn.payload.language,
        )
        return await _blocked(call, turn, payload, verdict)
    running: str | None = None
    try:
        for intent in intents:
            allowed = decided.get(intent.id)
            running = intent.id if allowed is not None and allowed.allow else None
            result = await _tool_result(call, intent, allowed, executors, timeout_s)
            running = None
            decided.pop(intent.id, None)
            turn.messages.append({"role": "tool", "tool_call_id": intent.id, "content": _as_text(result)})
    finally:
        # Cancelled (the caller interrupted, or hung up): what had begun is in doubt, what had not begun is not.
        for tool in decided.values():
            if tool.allow and tool.id != running:
                call.tool_done(tool.id, False, cancelled=True)
    return None


async def _tool_result(
    call: CallSupervisor,
    intent: ToolCallIntent,
    verdict: ToolVerdict | None,
    executors: Mapping[str, ToolExecutor],
    timeout_s: float,
) -> Any:
    """What the agent's model is told about a tool call."""
    if verdict is None:
        known = ", ".join(sorted(executors)) or "none"
        return {"error": f"there is no tool of this name; there are: {known}"}
    if not verdict.allow:
        if verdict.code is ToolCode.DUPLICATE and verdict.stored_result is not None:
            return verdict.stored_result
        return {"error": verdict.reason, "instruction": verdict.instruction}
    if intent.args is None:
        # Only in shadow mode, where the gate stops nothing. There is nothing that the tool could be called with.
        call.tool_done(intent.id, False, cancelled=True)
        return {"error": f"the arguments cannot be read: {intent.error}"}
    try:
        async with asyncio.timeout(timeout_s):
            result = await _execute(executors[intent.name], intent.args)
    except ToolNotRun as error:
        outcome = {"error": str(error) or "it did not run"}
        call.tool_done(intent.id, False, outcome)
        return outcome
    except Exception as error:
        logger.error("the executor of tool %s raised %s", intent.name[:100], type(error).__name__)
        what = (
            f"took longer than {timeout_s:g} s" if isinstance(error, TimeoutError) else f"raised {type(error).__name__}"
        )
        return call.tool_broke(intent.id, what)
    call.tool_done(intent.id, True, _as_json(result))
    return result


async def _execute(executor: ToolExecutor, args: dict[str, Any]) -> Any:
    if _is_async(executor):
        result = executor(args)
    else:
        result = await asyncio.to_thread(executor, args)
    return await result if inspect.isawaitable(result) else result


async def _end(call: CallSupervisor, turn: _Turn, words: str) -> LoopResult:
    """Judges the final words."""
    payload = call.payload(
        customer_text=turn.payload.customer_text,
        agent_text=words,
        turn_id=turn.payload.turn_id,
        language=turn.payload.language,
    )
    verdict = await call.review_final(payload)
    if verdict.should_intervene:
        return replace(await _blocked(call, turn, payload, verdict), verdict=verdict, agent_text=words)
    turn.messages.append({"role": "assistant", "content": words})
    return LoopResult(
        text=words,
        tool_intents=tuple(turn.intents),
        verdict=verdict,
        tools=tuple(turn.tools),
        rounds=turn.rounds,
        agent_text=words,
        messages=tuple(message for message in turn.messages if message["role"] != "system"),
    )


async def _blocked(call: CallSupervisor, turn: _Turn, payload: TurnPayload, verdict: Verdict) -> LoopResult:
    spoken = await call.spoke_instead(payload, verdict)
    if spoken is None:
        spoken = (await call.correct(payload, verdict)).text
        call.note_instead(spoken)
    # The conversation goes on from what is said to the customer; calls without results are no conversation.
    messages = [message for message in turn.messages[1:] if message["role"] in ("user", "assistant")]
    messages = [message for message in messages if not message.get("tool_calls")]
    if spoken:
        messages.append({"role": "assistant", "content": spoken})
    return LoopResult(
        text=spoken,
        blocked=True,
        tool_intents=tuple(turn.intents),
        block_verdict=verdict,
        tools=tuple(turn.tools),
        rounds=turn.rounds,
        agent_text=payload.agent_text,
        messages=tuple(messages),
    )


# The agent's model


def _create_of(client: Any) -> Callable[..., Any]:
    create: Callable[..., Any] | None = getattr(
        getattr(getattr(client, "chat", None), "completions", None), "create", None
    )
    if not callable(create):
        raise TypeError(
            "llm_client: give an AsyncOpenAI or OpenAI client, or an object with chat.completions.create; "
            f"got {type(client).__name__}"
        )
    return create


async def _answer(create: Callable[..., Any], request: Mapping[str, Any], timeout_s: float) -> Any:
    try:
        async with asyncio.timeout(timeout_s):
            if _is_async(create):
                answer = create(**request)
            else:
                answer = await asyncio.to_thread(create, **request)
            if inspect.isawaitable(answer):
                answer = await answer
    except TimeoutError as error:
        raise AgentModelError(f"the agent's model did not answer within {timeout_s:g} s") from error
    except Exception as error:
        raise AgentModelError(f"the agent's model could not be asked: {type(error).__name__}") from error
    choices = _field(answer, "choices")
    message = _field(choices[0], "message") if choices else None
    if message is None:
        raise AgentModelError("the agent's model answered with something that is no chat completion")
    return message


def _is_async(function: Any) -> bool:
    """Whether calling it makes a coroutine. Clients wrap their methods, so the innermost function says it."""
    return inspect.iscoroutinefunction(inspect.unwrap(function)) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object whose __call__ is async
    )


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _as_messages(payload: TurnPayload) -> list[dict[str, Any]]:
    """The call so far as the agent's model knows it. Tools are left out: their results without their calls would be
    refused, and what came of them is in what the agent said."""
    roles = {"customer": "user", "agent": "assistant", "mirror": "assistant"}
    return [{"role": roles[entry.role], "content": entry.text} for entry in payload.history if entry.role in roles]


def _assistant_message(words: str, intents: Sequence[ToolCallIntent], calls: Sequence[Any]) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": words or None,
        "tool_calls": [
            {
                "id": intent.id,
                "type": "function",
                "function": {"name": intent.name, "arguments": _arguments_text(call)},
            }
            for intent, call in zip(intents, calls, strict=True)
        ],
    }


def _arguments_text(call: Any) -> str:
    arguments = _field(_field(call, "function"), "arguments")
    return arguments if isinstance(arguments, str) else json.dumps(arguments)


def _as_json(result: Any) -> Any:
    """A tool's result as it can be kept and sent: itself where it is JSON, else its text."""
    with contextlib.suppress(TypeError, ValueError, RecursionError):
        json.dumps(result, allow_nan=False)
        return result
    return str(result)


def _as_text(result: Any) -> str:
    result = _as_json(result)
    text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
    return text if len(text) <= MAX_RESULT_CHARS else f"{text[:MAX_RESULT_CHARS]} … [cut off]"
