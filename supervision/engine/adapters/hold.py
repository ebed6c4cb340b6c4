"""When a frame of a held turn may go to the caller.

A turn that is held waits at Mirror until its first words are judged, or for its budget, counted from the first held
byte. From then on it is never stopped again, but its lead stays here: what is judged goes at most `RELEASE_LEAD_S`
ahead of the caller's ear, what is not judged yet only when Plivo is about to run dry. So the verdict on a later clause
mostly finds that clause still at Mirror, where it can be discarded unheard.

Times are seconds of the running loop, positions seconds of the turn's audio.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

RELEASE_LEAD_S: Final = 0.2
STARVING_LEAD_S: Final = 0.06  # whatever is known of it: audio goes when Plivo has no more than this left
_ROUNDING_S: Final = 0.001
SPEECH_CHARS_PER_S: Final = 14.0  # for placing judged words in audio that has no marks; decides on 140 ms of lead only


@dataclass(slots=True, eq=False)
class Hold:
    """The hold of one turn. ``budget_s`` bounds how long its first byte may wait."""

    budget_s: float
    since: float | None = None
    """When the first byte was held."""
    released_at: float | None = None
    """When the first byte was let go, or all of it was discarded."""
    by_verdict: bool = False
    """Whether a verdict let it go; else the budget had ended, or it was never kept waiting."""
    decided_s: float = 0.0
    """Audio up to this position says words that may be heard."""

    def begin(self, now: float) -> None:
        """The turn's first byte is here."""
        if self.since is None:
            self.since = now

    def decide(self, until_s: float = math.inf) -> None:
        """Audio up to ``until_s`` may be heard."""
        self.decided_s = max(self.decided_s, until_s)

    def passes(self, position_s: float, duration_s: float, lead_s: float, now: float) -> bool:
        """Whether the frame at ``position_s`` may go, with so much audio at Plivo; notes the release if it may."""
        if self.released_at is None and not self._over(position_s, now):
            return False
        if lead_s > STARVING_LEAD_S and lead_s + duration_s > self._lead_s(position_s) + _ROUNDING_S:
            return False
        if self.released_at is None:
            self.released_at = now
            self.by_verdict = position_s < self.decided_s
        return True

    def next_at(self, position_s: float, duration_s: float, empty_at: float, refill_s: float) -> float:
        """When to look again at the frame at ``position_s``; at ``empty_at`` Plivo has nothing left."""
        refilled_s = self._lead_s(position_s) - max(refill_s, duration_s)
        may_go = empty_at - max(STARVING_LEAD_S, refilled_s)
        if self.released_at is None and position_s >= self.decided_s:
            return max(may_go, (self.since or 0.0) + self.budget_s)
        return may_go

    @property
    def held_s(self) -> float | None:
        """How long the hold kept the turn's first byte; None while it waits, or when none came."""
        if self.since is None or self.released_at is None:
            return None
        return max(0.0, self.released_at - self.since)

    def _over(self, position_s: float, now: float) -> bool:
        return position_s < self.decided_s or self.since is None or now >= self.since + self.budget_s

    def _lead_s(self, position_s: float) -> float:
        return RELEASE_LEAD_S if position_s < self.decided_s else STARVING_LEAD_S


def position_of(chars: int, marks: Sequence[tuple[float, int]]) -> float:
    """About where in a turn's audio its first ``chars`` characters have been said: by the agent's ``marks`` (position,
    characters) as far as they go, at an average pace behind them."""
    before = max((mark for mark in marks if mark[1] <= chars), default=(0.0, 0), key=lambda mark: mark[1])
    after = min((mark for mark in marks if mark[1] > chars), default=None, key=lambda mark: mark[1])
    if after is None:
        return before[0] + (chars - before[1]) / SPEECH_CHARS_PER_S
    return before[0] + (after[0] - before[0]) * (chars - before[1]) / (after[1] - before[1])
