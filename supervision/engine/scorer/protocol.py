"""What scores turns: one protocol, and what is the same however it is done."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from supervision.engine.config import PolicyConfig
from supervision.engine.context import JudgingState, TurnPayload, Verdict
from supervision.engine.policy.compiler import MAX_TURN_CHARS


@runtime_checkable
class TurnScorer(Protocol):
    """Judges turns by one policy. Shared by all calls under that policy; keeps nothing of any of them.

    `LLMScorer` (`scoring="json"`) and `LogprobScorer` (`scoring="logprob"`) are the engine's own.
    """

    async def score(self, payload: TurnPayload, *, timeout_s: float | None = None) -> Verdict:
        """Judges a turn within `timeout_s` seconds (by default the policy's `semantic_review_timeout_s`).

        Raises nothing but `asyncio.CancelledError`: what goes wrong is a verdict's state and detail.
        """
        ...


def not_asked(payload: TurnPayload, config: PolicyConfig) -> Verdict | None:
    """The verdict on a turn about which no model needs to be asked, or can be; None for every other turn."""
    if not payload.agent_text.strip():
        return unjudged(payload, config, JudgingState.SKIPPED, "no speech")
    if len(payload.agent_text) > MAX_TURN_CHARS:
        detail = f"the turn has {len(payload.agent_text)} characters; at most {MAX_TURN_CHARS} can be judged at once"
        return unjudged(payload, config, JudgingState.FAILED, detail)
    return None


def unjudged(payload: TurnPayload, config: PolicyConfig, state: JudgingState, detail: str) -> Verdict:
    """A verdict that cost nothing, in a state other than `judged`."""
    return Verdict(payload.turn_id, state, None, None, "", "", config.intervention_threshold, 0, detail=detail)
