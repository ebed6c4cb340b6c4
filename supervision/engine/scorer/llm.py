"""Scoring a turn: one question to the model, all rules at once, and a verdict in every case."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from supervision.engine.config import PolicyConfig
from supervision.engine.context import ToolCallIntent, TurnPayload, Verdict
from supervision.engine.llm.deadline import DeadlineAsker, InvalidAnswer, exact_keys, score_of, text_of
from supervision.engine.policy.compiler import TURN_SCHEMA, CompiledPolicy, turn_message
from supervision.engine.scorer.protocol import not_asked

MAX_REASON_CHARS = 1_000
MAX_CORRECTION_CHARS = 500

_TURN_KEYS = frozenset(TURN_SCHEMA["properties"])


@dataclass(frozen=True, slots=True)
class Judgement:
    """A `mirror_turn` answer that validates. `rule` is the rule's number or text as the judge gave it."""

    score: float
    rule: Any
    reason: str
    correction: str


def judgement(answer: dict[str, Any]) -> Judgement:
    """Takes a `mirror_turn` answer apart. Raises `InvalidAnswer`."""
    exact_keys(answer, _TURN_KEYS)
    rule = answer["rule"]
    if rule is not None and (isinstance(rule, bool) or not isinstance(rule, str | int)):
        raise InvalidAnswer("rule has to be a string or null")
    return Judgement(
        score_of(answer["score"]),
        rule,
        text_of(answer["reason"], "reason", MAX_REASON_CHARS),
        text_of(answer["correction"], "correction", MAX_CORRECTION_CHARS),
    )


class LLMScorer:
    """Judges turns by a policy. Shared by all calls under that policy; keeps nothing of any of them."""

    def __init__(
        self,
        asker: DeadlineAsker,
        policy: CompiledPolicy,
        config: PolicyConfig,
        irreversible: Callable[[ToolCallIntent], bool],
    ) -> None:
        self._asker = asker
        self._policy = policy
        self._config = config
        self._irreversible = irreversible

    async def score(self, payload: TurnPayload, *, timeout_s: float | None = None) -> Verdict:
        """Judges a turn within `timeout_s` seconds (by default the policy's `semantic_review_timeout_s`).

        Raises nothing but `asyncio.CancelledError`: what goes wrong is a verdict's state and detail.
        """
        verdict = not_asked(payload, self._config)
        if verdict is not None:
            return verdict
        if timeout_s is None:
            timeout_s = self._config.semantic_review_timeout_s
        answer = await self._asker.ask(
            system=self._policy.turn_prompt,
            user=turn_message(payload, map(self._irreversible, payload.tool_calls)),
            schema_name="mirror_turn",
            schema=TURN_SCHEMA,
            max_tokens=self._config.judge_max_tokens,
            deadline=asyncio.get_running_loop().time() + timeout_s,
            validate=judgement,
        )
        judged = answer.value
        return Verdict(
            turn_id=payload.turn_id,
            state=answer.state,
            score=judged.score if judged else None,
            rule=self._policy.rule_text(judged.rule) if judged else None,
            reason=judged.reason if judged else "",
            correction=judged.correction if judged else "",
            threshold=self._config.intervention_threshold,
            latency_ms=answer.latency_ms,
            usage=answer.usage,
            detail=answer.detail,
            model=answer.model,
            fallback=answer.fallback,
        )
