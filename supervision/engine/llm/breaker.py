"""Not asking a model's endpoint that does not answer, and finding out when it does again.

    breaker = CircuitBreaker(clock=loop.time)
    ticket = breaker.admit()              # raises BreakerOpen
    ...
    breaker.answered(ticket)              # or failed(ticket, why), or dropped(ticket)

It is closed until questions fail: of the last 20, no older than 30 s, at least 5 and at least half. Then it is open,
for 5 s at first; after that it is half-open: one question at a time goes as a probe, the others do not. Probes that are
answered close it, one that fails opens it again for twice as long, a minute at most (M. Nygard, "Release It!", 2nd ed.
2018, "Circuit Breaker"). An endpoint that says how long it wants to be left alone (HTTP 429 or 503 with Retry-After)
is, for so long, at most five minutes; it is not sick, so everything is asked again after that.

Pure: no I/O, no timers, and time as the clock has it. Not thread-safe; one event loop uses it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from supervision.engine.llm.protocol import LLMError

FAILURES = 5
FAILED_SHARE = 0.5
WINDOW = 20
WINDOW_S = 30.0
OPEN_S = 5.0
MOST_OPEN_S = 60.0
MOST_REST_S = 300.0
PROBES = 2
"""So many probes in a row have to be answered before everything is asked again."""


class BreakerState(StrEnum):
    """What a breaker lets through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class BreakerOpen(LLMError):
    """The endpoint was not asked, because it did not answer just now. `retry_after_s`: when it will be again, in
    seconds."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Ticket:
    """A question that was let through. `period` tells those from before a change of state from later ones."""

    period: int
    probe: bool = False


@dataclass(slots=True)
class BreakerCounts:
    """What a breaker did since it was made."""

    opened: int = 0
    refused: int = 0
    probes_answered: int = 0
    probes_failed: int = 0


class CircuitBreaker:
    """See the module's docstring."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, name: str = "the model's endpoint") -> None:
        """`clock` gives seconds; `name` is what messages call the endpoint."""
        self.counts = BreakerCounts()
        self.why = ""
        """What went wrong last, fit for people; empty while it is closed."""
        self._clock = clock
        self._name = name
        self._period = 0
        self._outcomes: deque[tuple[float, bool]] = deque(maxlen=WINDOW)
        self._open_until: float | None = None
        self._open_s = OPEN_S
        self._probing = False
        self._answered_probes = 0
        self._resting = False

    @property
    def state(self) -> BreakerState:
        """What it lets through now."""
        if self._open_until is None:
            return BreakerState.CLOSED
        if self._clock() < self._open_until:
            return BreakerState.OPEN
        return BreakerState.CLOSED if self._resting else BreakerState.HALF_OPEN

    @property
    def is_ready(self) -> bool:
        """Whether `admit` would let a question through now."""
        state = self.state
        return state is BreakerState.CLOSED or (state is BreakerState.HALF_OPEN and not self._probing)

    @property
    def rests_for_s(self) -> float | None:
        """For how much longer the endpoint wants to be left alone, in seconds; None when that is not why it is not
        asked, or it is."""
        if not self._resting or self.state is BreakerState.CLOSED:
            return None
        assert self._open_until is not None
        return max(0.0, self._open_until - self._clock())

    def admit(self) -> Ticket:
        """Lets a question through; how it ends has to be said with its ticket. Raises `BreakerOpen`."""
        state = self.state
        if state is BreakerState.CLOSED:
            if self._open_until is not None:
                self._close()  # the rest is over
            return Ticket(self._period)
        if state is BreakerState.HALF_OPEN and not self._probing:
            self._probing = True
            return Ticket(self._period, probe=True)
        self.counts.refused += 1
        assert self._open_until is not None
        after_s = max(0.0, self._open_until - self._clock())
        when = f"it is asked again in {after_s:.0f} s" if after_s >= 0.5 else "it is being tried again"
        raise BreakerOpen(f"{self._name} was not asked: {self.why}; {when}", retry_after_s=after_s)

    def is_current(self, ticket: Ticket) -> bool:
        """Whether nothing changed since the question was let through; else it has to be let through again before it is
        sent once more."""
        return ticket.period == self._period

    def answered(self, ticket: Ticket) -> None:
        """The endpoint answered, whatever it said about the question itself."""
        if ticket.period != self._period:
            return
        if not ticket.probe:
            self._outcomes.append((self._clock(), True))
            return
        self._probing = False
        self.counts.probes_answered += 1
        self._answered_probes += 1
        if self._answered_probes >= PROBES:
            self._close()

    def failed(self, ticket: Ticket, why: str) -> None:
        """The endpoint could not be reached, did not answer in time, or answered that it cannot. `why` is fit for
        people, and completes "… was not asked: "."""
        if ticket.period != self._period:
            return
        if ticket.probe:
            self.counts.probes_failed += 1
            self._open_s = min(2 * self._open_s, MOST_OPEN_S)
            self._open(self._open_s, why, resting=False)
            return
        now = self._clock()
        self._outcomes.append((now, False))
        recent = [ok for at, ok in self._outcomes if now - at <= WINDOW_S]
        failures = recent.count(False)
        if failures >= FAILURES and failures >= FAILED_SHARE * len(recent):
            self._open(self._open_s, f"{failures} of the last {len(recent)} questions failed ({why})", resting=False)

    def rest(self, seconds: float, why: str) -> None:
        """The endpoint wants to be left alone for so long; it is, at once."""
        seconds = min(seconds, MOST_REST_S)
        until = self._clock() + seconds
        if seconds > 0 and (self._open_until is None or until > self._open_until):
            self._open(seconds, why, resting=True)

    def dropped(self, ticket: Ticket) -> None:
        """Whoever asked gave up before it was known how the question ends; that says nothing about the endpoint."""
        if ticket.period == self._period and ticket.probe:
            self._probing = False

    def _open(self, seconds: float, why: str, *, resting: bool) -> None:
        self.counts.opened += 1
        self.why = why
        self._period += 1
        self._open_until = self._clock() + seconds
        self._probing, self._answered_probes = False, 0
        self._resting = resting
        self._outcomes.clear()

    def _close(self) -> None:
        self.why = ""
        self._period += 1
        self._open_until = None
        self._open_s = OPEN_S
        self._probing, self._answered_probes = False, 0
        self._resting = False
