"""A second provider, for when the first does not answer.

    llm = with_fallback(OpenAIClient(model="gpt-4o-mini", ...), OpenAIClient(model="llama-3.3-70b", base_url=..., ...))

The first is asked, and has 60 % of a question's time; what it leaves, and all of it when its circuit breaker is open,
is the second's. The second is asked only when the first did not answer: not when an answer is not what was asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from supervision.engine.llm.admission import MIN_ANSWER_S
from supervision.engine.llm.breaker import BreakerOpen
from supervision.engine.llm.protocol import (
    FirstToken,
    LLMClient,
    LLMClosed,
    LLMError,
    LLMResult,
    LLMTimeout,
    LogprobClient,
    close_client,
)
from supervision.engine.llm.secrets import SecretResolver

FIRST_SHARE = 0.6
"""Of a question's time, how much the first provider has before the second is asked."""


@dataclass
class FallbackCounts:
    """How questions to second providers ended, of all clients of this process."""

    answered: int = 0
    failed: int = 0


COUNTS = FallbackCounts()


class FallbackClient:
    """An `LLMClient` of two. Closes both. Made by `with_fallback`."""

    def __init__(self, first: LLMClient, second: LLMClient) -> None:
        self.first = first
        self.second = second

    def __repr__(self) -> str:
        return f"FallbackClient({self.first!r}, {self.second!r})"

    @property
    def needs_secrets(self) -> str | None:
        """The name of the first secret that nobody has said how to look up."""
        return getattr(self.first, "needs_secrets", None) or getattr(self.second, "needs_secrets", None)

    def use_secrets(self, resolver: SecretResolver) -> None:
        """Says how keys are looked up that are given as a `Secret`."""
        for client in (self.first, self.second):
            use = getattr(client, "use_secrets", None)
            if callable(use):
                use(resolver)

    async def complete_json(
        self, *, system: str, user: str, schema_name: str, schema: dict[str, Any], max_tokens: int, timeout_s: float
    ) -> LLMResult:
        """See `LLMClient.complete_json`. When neither answers, the error says what was wrong with both."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        fields: dict[str, Any] = {
            "system": system,
            "user": user,
            "schema_name": schema_name,
            "schema": schema,
            "max_tokens": max_tokens,
        }
        try:
            return await self._first(fields, timeout_s)
        except LLMClosed:
            raise
        except LLMError as error:
            left_s = deadline - loop.time()
            if left_s < MIN_ANSWER_S:
                raise
            try:
                answer = await self.second.complete_json(**fields, timeout_s=left_s)
            except LLMError as other:
                COUNTS.failed += 1
                kind = LLMTimeout if isinstance(other, LLMTimeout) else LLMError
                raise kind(f"{error}; and the second provider: {other}") from error
            COUNTS.answered += 1
            return replace(answer, fallback=True)

    async def _first(self, fields: dict[str, Any], timeout_s: float) -> LLMResult:
        if not getattr(self.first, "is_ready", True) and getattr(self.second, "is_ready", True):
            # Without waiting for a rest to end, which the second need not.
            raise BreakerOpen(f"the first provider was not asked: {_why(self.first)}", retry_after_s=0.0)
        try:
            # Clients keep their time themselves, but it is for the engine to see that they do.
            async with asyncio.timeout(timeout_s * FIRST_SHARE):
                return await self.first.complete_json(**fields, timeout_s=timeout_s * FIRST_SHARE)
        except TimeoutError as error:
            raise LLMTimeout("the model did not answer in time") from error

    async def aclose(self) -> None:
        """See `LLMClient`."""
        try:
            await close_client(self.first)
        finally:
            await close_client(self.second)


class FallbackLogprobClient(FallbackClient):
    """Of two clients of which the first tells token probabilities. Those are asked of the first alone: what a rule's
    probabilities mean is measured on one model, and another one's cannot be compared with that."""

    async def first_token_logprobs(
        self, *, system: str, examples: Sequence[tuple[str, str]], user: str, top: int, timeout_s: float
    ) -> FirstToken:
        """See `LogprobClient.first_token_logprobs`."""
        first = cast(LogprobClient, self.first)
        return await first.first_token_logprobs(
            system=system, examples=examples, user=user, top=top, timeout_s=timeout_s
        )


def with_fallback(first: LLMClient, second: LLMClient) -> FallbackClient:
    """A client that asks `second` when `first` does not answer."""
    return (FallbackLogprobClient if isinstance(first, LogprobClient) else FallbackClient)(first, second)


def _why(client: LLMClient) -> str:
    breaker = getattr(client, "breaker", None)
    return str(getattr(breaker, "why", "")) or "it is not ready"
