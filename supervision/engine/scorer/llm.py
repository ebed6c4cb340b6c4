"""Scoring a turn: one question to the model, all rules at once, and a verdict in every case."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from supervision.engine.config import PolicyConfig
from supervision.engine.context import NO_USAGE, JudgingState, ToolCallIntent, TurnPayload, Verdict
from supervision.engine.llm.deadline import DeadlineAsker, InvalidAnswer, exact_keys, score_of, text_of
from supervision.engine.policy.compiler import MAX_TURN_CHARS, TURN_SCHEMA, CompiledPolicy, turn_message

MAX_REASON_CHARS = 1_000
MAX_CORRECTION_CHARS = 500

_TURN_KEYS = frozenset(TURN_SCHEMA["properties"])


@dataclass(frozen=True, slots=True)
class _Judgement:
    score: float
    rule: Any
    reason: str
    correction: str


def _judgement(answer: dict[str, Any]) -> _Judgement:
    exact_keys(answer, _TURN_KEYS)
    rule = answer["rule"]
    if rule is not None and (isinstance(rule, bool) or not isinstance(rule, str | int)):
        raise InvalidAnswer("rule has to be a string or null")
    return _Judgement(
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
        if not payload.agent_text.strip():
            return self._verdict(payload, JudgingState.SKIPPED, "no speech")
        if len(payload.agent_text) > MAX_TURN_CHARS:
            detail = (
                f"the turn has {len(payload.agent_text)} characters; at most {MAX_TURN_CHARS} can be judged at once"
            )
            return self._verdict(payload, JudgingState.FAILED, detail)
        if timeout_s is None:
            timeout_s = self._config.semantic_review_timeout_s
        answer = await self._asker.ask(
            system=self._policy.turn_prompt,
            user=turn_message(payload, map(self._irreversible, payload.tool_calls)),
            schema_name="mirror_turn",
            schema=TURN_SCHEMA,
            max_tokens=self._config.judge_max_tokens,
            deadline=asyncio.get_running_loop().time() + timeout_s,
            validate=_judgement,
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
        )

    def _verdict(self, payload: TurnPayload, state: JudgingState, detail: str) -> Verdict:
        threshold = self._config.intervention_threshold
        return Verdict(payload.turn_id, state, None, None, "", "", threshold, 0, NO_USAGE, detail)
