"""How many questions may be with a model at a time, where somebody has to bound it."""

from __future__ import annotations

from typing import Protocol


class QuestionLimiter(Protocol):
    """Gives out places for questions to a model. Belongs to one event loop."""

    async def acquire(self, *, within_s: float, urgent: bool) -> bool:
        """Waits for a place for at most `within_s` seconds; False when there was none. `urgent` ones go first.

        Raises nothing but `asyncio.CancelledError`, and then no place was taken.
        """
        ...

    def release(self) -> None:
        """Gives a place back."""
        ...
