"""How many questions may be with a model at a time, where somebody has to bound it, and which of them matter most."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from enum import IntEnum
from typing import Protocol


class Risk(IntEnum):
    """What hangs on a question. Under overload the lowest is shed first; `IRREVERSIBLE` is never shed."""

    BACKGROUND = 0
    """Asked once per policy, for turns to come."""
    SHADOW = 1
    """A turn or tool of a policy that only watches: whatever the answer, nothing is done."""
    CLAUSE = 2
    """A part of a turn, which is judged as a whole at its end."""
    REVIEW = 3
    """A turn outside calls, of somebody who asked for a verdict and not for an intervention."""
    TURN = 4
    """A turn that the caller is hearing."""
    HELD = 5
    """A turn that the caller waits for."""
    CORRECTION = 6
    """What to say in place of a turn that was cut: the caller hears a buffer line meanwhile."""
    TOOL = 7
    """Tool calls that can be taken back; the agent waits."""
    IRREVERSIBLE = 8
    """Tool calls of which at least one cannot be taken back."""

    @property
    def is_patient(self) -> bool:
        """Whether the question waits for its place to its deadline, because what waits for it waits as long anyway."""
        return self >= Risk.CORRECTION


_asking: ContextVar[Risk] = ContextVar("risk of questions", default=Risk.TURN)


@contextlib.contextmanager
def asking(risk: Risk) -> Iterator[None]:
    """What hangs on the questions that are asked inside, by tasks that begin inside, too. A question that says so
    itself, such as the tool gate's, is not changed by it."""
    before = _asking.set(risk)
    try:
        yield
    finally:
        _asking.reset(before)


def risk_here() -> Risk:
    """What `asking` said; `TURN` without."""
    return _asking.get()


class QuestionLimiter(Protocol):
    """Gives out places for questions to a model. `ScoringPool.share` makes one for each tenant."""

    async def acquire(self, *, within_s: float, risk: Risk) -> bool:
        """Waits for a place for at most `within_s` seconds; False when there was none, or the question was shed for a
        riskier one. Raises nothing but `asyncio.CancelledError`, and then no place was taken."""
        ...

    def release(self) -> None:
        """Gives a place back."""
        ...
