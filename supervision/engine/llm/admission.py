"""Letting questions through a circuit breaker, and telling it how they ended."""

from __future__ import annotations

import asyncio
from collections import Counter

from supervision.engine.llm.breaker import BreakerOpen, CircuitBreaker, Ticket
from supervision.engine.llm.protocol import LLMBadAnswer, LLMError, LLMRejected, LLMTimeout, LLMUnreachable

# With less time than this left, no answer comes any more.
MIN_ANSWER_S = 0.1
# What says that asking this endpoint with this key is of no use now, whatever the question.
FAILING_STATUSES = frozenset({401, 403, 408, 429, 500, 502, 503, 504, 529})
# A question that was given up after this part of its time was not answered in time; before, somebody changed their
# mind.
TIMED_OUT_PART = 0.9
# With less time than this, an answer that did not come says nothing about the endpoint.
FAIR_TIME_S = 0.4


class Admission:
    """A question's way through the breaker of its endpoint and model; needs a running event loop."""

    def __init__(self, breaker: CircuitBreaker, outcomes: Counter[str], deadline: float) -> None:
        """`outcomes` counts how questions end; `deadline` is in seconds of the running loop's clock."""
        self.breaker = breaker
        self.deadline = deadline
        self._outcomes = outcomes
        self._asked_at = asyncio.get_running_loop().time()
        self._ticket: Ticket | None = None

    async def admit(self) -> None:
        """Before each try. Waits while the endpoint wants to be left alone, if that ends in time. Raises `BreakerOpen`,
        and then nothing was sent."""
        breaker, loop = self.breaker, asyncio.get_running_loop()
        if self._ticket is not None and breaker.is_current(self._ticket):
            return
        while (rest_s := breaker.rests_for_s) is not None and loop.time() + rest_s + MIN_ANSWER_S <= self.deadline:  # noqa: ASYNC110
            await asyncio.sleep(rest_s)  # which somebody may have made longer meanwhile
        self._ticket = breaker.admit()

    def ended(self, error: BaseException | None) -> None:
        """Tells the breaker how it ended: with an answer, or with this."""
        outcome = self._outcome(error)
        self._outcomes[outcome] += 1
        if self._ticket is None or outcome == "not_asked":
            return
        if outcome in ("timed_out", "unreachable", "failing"):
            why = str(error) if isinstance(error, LLMError) else "it did not answer in time"
            self.breaker.failed(self._ticket, why)
        elif outcome == "dropped":
            self.breaker.dropped(self._ticket)
        else:
            self.breaker.answered(self._ticket)

    def _outcome(self, error: BaseException | None) -> str:
        if error is None:
            return "answered"
        if isinstance(error, BreakerOpen):
            return "not_asked"
        if isinstance(error, LLMTimeout | asyncio.CancelledError):
            # A deadline kept by somebody else is over a moment before ours, and then we are cancelled.
            allowed_s = self.deadline - self._asked_at
            took_s = asyncio.get_running_loop().time() - self._asked_at
            return "timed_out" if allowed_s >= FAIR_TIME_S and took_s >= TIMED_OUT_PART * allowed_s else "dropped"
        if isinstance(error, LLMUnreachable):
            return "unreachable"
        if isinstance(error, LLMRejected):
            return "failing" if error.status in FAILING_STATUSES else "rejected"
        return "bad_answer" if isinstance(error, LLMBadAnswer) else "dropped"
