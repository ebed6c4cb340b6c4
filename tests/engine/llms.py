"""LLM clients for tests on virtual time, where no socket can be: they implement the engine's protocol directly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from supervision.engine import MirrorConfig, Supervisor, SupervisorContext, ToolCallIntent, Usage
from supervision.engine.llm.protocol import LLMResult
from supervision.engine.supervisor import CallSupervisor

CLEAN: dict[str, Any] = {"score": 0.0, "rule": None, "reason": "", "correction": ""}
BAD: dict[str, Any] = {
    "score": 0.9,
    "rule": "1",
    "reason": 'It says "your refund is confirmed".',
    "correction": "A colleague decides on refunds. Shall I connect you?",
}


def decisions(*ids: str, allow: bool = True, **more: Any) -> dict[str, Any]:
    """A `mirror_tools` answer that says the same of all these ids."""
    one = {"allow": allow, "score": 0.0 if allow else 0.9, "reason": "", "instruction": "", **more}
    return {"decisions": [{"id": tool_id, **one} for tool_id in ids]}


@dataclass
class Asked:
    """One question as the client got it."""

    system: str
    user: dict[str, Any]
    schema_name: str
    schema: dict[str, Any]
    max_tokens: int
    timeout_s: float
    at: float
    cancelled: bool = False


@dataclass
class ScriptedLLM:
    """Answers by schema name after `delay_s` seconds of the loop's time.

    An answer is an object, a text, an exception to raise, or a function of the question that returns one of these.
    """

    turn: Any = field(default_factory=lambda: dict(CLEAN))
    tools: Any = field(default_factory=lambda: lambda asked: decisions(*(t["id"] for t in asked.user["tool_calls"])))
    correction: Any = field(default_factory=lambda: {"text": "I can connect you with a colleague. Shall I do that?"})
    delay_s: float | Callable[[Asked], float] = 0.0
    ignores_cancellation: bool = False
    asked: list[Asked] = field(default_factory=list)
    closed: int = 0

    async def complete_json(
        self, *, system: str, user: str, schema_name: str, schema: dict[str, Any], max_tokens: int, timeout_s: float
    ) -> LLMResult:
        loop = asyncio.get_running_loop()
        asked = Asked(system, json.loads(user), schema_name, schema, max_tokens, timeout_s, loop.time())
        self.asked.append(asked)
        delay = self.delay_s(asked) if callable(self.delay_s) else self.delay_s
        until = loop.time() + delay
        while loop.time() < until:
            try:
                await asyncio.sleep(until - loop.time())
            except asyncio.CancelledError:
                asked.cancelled = True
                if not self.ignores_cancellation:
                    raise
        answer = {"mirror_turn": self.turn, "mirror_tools": self.tools, "mirror_correction": self.correction}[
            schema_name
        ]
        if callable(answer) and not isinstance(answer, type):
            answer = answer(asked)
        if isinstance(answer, BaseException):
            raise answer
        text = answer if isinstance(answer, str) else json.dumps(answer)
        return LLMResult(text, Usage(100, 20, 50))

    async def aclose(self) -> None:
        self.closed += 1

    def of(self, schema_name: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.schema_name == schema_name]


def make_call(llm: Any, **config: Any) -> CallSupervisor:
    """A supervised call under two rules, with configuration fields changed as given. The pre-gate is off: the turns of
    most tests are harmless, and what is tested is what becomes of those that are judged."""
    config.setdefault("tiered_scoring_enabled", False)
    config.setdefault("policies", ["Never confirm a refund.", "Do not promise delivery times."])
    return Supervisor(MirrorConfig(llm=llm, **config)).call(SupervisorContext(call_id="call-1"))


def charge(tool_id: str = "t1", amount: Any = 99, name: str = "charge_card", **more: Any) -> ToolCallIntent:
    """An irreversible tool call."""
    return ToolCallIntent(tool_id, name, {"amount": amount}, **more)


def look_up(tool_id: str = "l1", order: str = "A7") -> ToolCallIntent:
    """A tool call that can be repeated as often as one likes."""
    return ToolCallIntent(tool_id, "get_order", {"order": order})
