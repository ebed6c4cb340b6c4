"""What trying a policy on a turn came to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from supervision.engine.config import PolicyConfig
from supervision.engine.context import ToolVerdict, TurnPayload, Verdict
from supervision.engine.policy.compiler import CompiledPolicy, compile_policy, turn_message
from supervision.engine.policy.statements import plain_statement
from supervision.models import Verdict as RecordedVerdict
from supervision.selectors.turn_scenes import PastTurn
from supervision.selectors.usage import Price
from webui.formats import count_of, duration, score
from webui.presenters.pieces import Badge
from webui.presenters.tools import TOOL_CODES
from webui.presenters.turns import VERDICT_BADGES

VIOLATION: Final = Badge("Violation", "alert", "bad")


@dataclass(frozen=True, slots=True)
class TriedTool:
    name: str
    badge: Badge
    why: str
    instruction: str


@dataclass(frozen=True, slots=True)
class Tried:
    """A verdict of the panel."""

    badge: Badge
    score: float | None
    threshold: float
    score_words: str
    rule: str
    reason: str
    correction: str
    detail: str
    withheld: str
    latency: str
    tokens: str
    cost: str
    model: str
    tools: tuple[TriedTool, ...]
    skipped: bool
    asked: str
    """The user message that the judge got."""


@dataclass(frozen=True, slots=True)
class PastRow:
    """A turn of a past call: what was said of it then, and now if it was tried."""

    id: UUID
    number: int
    customer_text: str
    text: str
    tools: str
    then: Badge
    then_score: str
    now: Tried | None
    flips: bool
    """Whether one of the two verdicts is a violation, and the other is not."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """What the judge is told; `statements` are asked about one by one where turns are scored by probabilities."""

    turn: str
    tools: str
    correction: str
    statements: tuple[tuple[str, str], ...]


def prompts_of(config: PolicyConfig) -> Prompts:
    compiled: CompiledPolicy = compile_policy(config)
    statements: tuple[tuple[str, str], ...] = ()
    if config.scoring == "logprob":
        statements = tuple(
            (rule.text, rule.statement or plain_statement(rule.text) or "The model makes a statement of it.")
            for rule in config.rules
        )
    return Prompts(compiled.turn_prompt, compiled.tools_prompt, compiled.correction_prompt, statements)


def tried(verdict: Verdict, payload: TurnPayload, config: PolicyConfig, price: Price | None) -> Tried:
    usage = verdict.usage
    for tool in verdict.tools:
        usage = usage + tool.usage
    reached = verdict.violates
    words = ""
    if verdict.score is not None:
        words = f"{score(verdict.score)} {'reaches' if reached else 'below'} threshold {score(verdict.threshold)}"
    irreversible = {name.casefold() for name in config.irreversible_tools}
    message = turn_message(
        payload, [tool.irreversible or tool.name.strip().casefold() in irreversible for tool in payload.tool_calls]
    )
    return Tried(
        badge=_badge(verdict),
        score=verdict.score,
        threshold=verdict.threshold,
        score_words=words,
        rule=verdict.rule or "",
        reason=verdict.reason if reached or verdict.score is not None else "",
        correction=verdict.correction if reached else "",
        detail=verdict.detail,
        withheld="In shadow mode: it would not be acted upon." if verdict.withheld == "shadow" else "",
        latency=duration(verdict.latency_ms),
        tokens=_tokens(usage.prompt_tokens, usage.completion_tokens),
        cost=_cost(usage.prompt_tokens, usage.completion_tokens, price),
        model=verdict.model,
        tools=tuple(_tool(tool) for tool in verdict.tools),
        skipped=verdict.state == "skipped",
        asked=json.dumps(json.loads(message), indent=2, ensure_ascii=False),
    )


def past_row(past: PastTurn, now: Tried | None = None) -> PastRow:
    then = past.verdict
    return PastRow(
        id=past.turn.id,
        number=past.turn.index,
        customer_text=past.turn.customer_text,
        text=past.turn.text,
        tools=", ".join(str(tool.get("name", "")) for tool in past.turn.tool_calls if isinstance(tool, dict)),
        then=_recorded(then),
        then_score=score(then.score) if then is not None and then.score is not None else "",
        now=now,
        flips=now is not None and (now.badge == VIOLATION) != (_recorded(then) == VIOLATION),
    )


def _badge(verdict: Verdict) -> Badge:
    if verdict.violates:
        return VIOLATION
    if verdict.state == "judged":
        return Badge("Clean", "check", "good")
    return VERDICT_BADGES[verdict.state.value]


def _recorded(verdict: RecordedVerdict | None) -> Badge:
    if verdict is None:
        return Badge("Not judged")
    if verdict.state != "judged":
        return VERDICT_BADGES.get(verdict.state, Badge("Not judged"))
    over = verdict.score is not None and verdict.threshold is not None and verdict.score >= verdict.threshold
    return VIOLATION if over else Badge("Clean", "check", "good")


def _tool(tool: ToolVerdict) -> TriedTool:
    badge = Badge("Allowed", "check", "good") if tool.allow else Badge("Blocked", "ban", "bad")
    if tool.allow and tool.state not in ("judged", "skipped"):
        badge = Badge("Allowed unchecked", "alert", "warn")
    why = tool.reason or TOOL_CODES.get(tool.code.value, "")
    return TriedTool(tool.name, badge, why, "" if tool.allow else tool.instruction)


def _tokens(prompt: int, completion: int) -> str:
    if not prompt and not completion:
        return "no tokens counted"
    return f"{count_of(prompt, 'token')} in, {count_of(completion, 'token')} out"


def _cost(prompt: int, completion: int, price: Price | None) -> str:
    if not prompt and not completion:
        return "no cost"
    if price is None:
        return "no price is set for this model"
    return f"${price.of(prompt, completion):f}".rstrip("0").rstrip(".")
