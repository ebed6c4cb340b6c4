"""The play clock: what Plivo still has to play, and how much of a turn has been played.

Plivo tells nothing but ``playedStream`` and ``clearedAudio``. Between those, its queue is predictable: one FIFO that
plays in real time. All times are seconds of the running loop's clock, at which audio leaves Plivo's queue; positions
and durations are seconds of audio.
"""

from __future__ import annotations

_GAP_S = 0.003  # smaller gaps between two frames are the timer's noise, not silence that a caller could hear


class AudioRuns:
    """When each stretch of one speaker's audio plays: positions in the audio against times on the clock."""

    __slots__ = ("_runs", "total_s")

    def __init__(self) -> None:
        self._runs: list[list[float]] = []  # [time it starts, position it starts at, duration]
        self.total_s = 0.0

    def add(self, start: float, duration: float) -> bool:
        """Append ``duration`` seconds of audio that will start at time ``start``; returns whether it is the first."""
        runs = self._runs
        if runs:
            run = runs[-1]
            if -_GAP_S < run[0] + run[2] - start < _GAP_S:
                run[2] += duration
                self.total_s += duration
                return False
        runs.append([start, self.total_s, duration])
        self.total_s += duration
        return len(runs) == 1

    @property
    def starts_at(self) -> float | None:
        """Time at which the first sample plays, or None before any audio was sent."""
        return self._runs[0][0] if self._runs else None

    @property
    def ends_at(self) -> float | None:
        """Time at which the last sample has played, or None before any audio was sent."""
        if not self._runs:
            return None
        start, _, duration = self._runs[-1]
        return start + duration

    def position(self, at: float) -> float:
        """Seconds of this audio that have played by time ``at``."""
        played = 0.0
        for start, position, duration in reversed(self._runs):
            if at > start:
                played = position + min(at - start, duration)
                break
        return played

    def time_at(self, position: float) -> float | None:
        """Time at which this audio reaches ``position`` seconds; None when that much of it was never sent."""
        for start, begins, duration in self._runs:
            if position < begins + duration:
                return start + max(0.0, position - begins)
        return None

    def shift(self, delta: float) -> None:
        """Move the whole plan by ``delta`` seconds: an acknowledgement showed when the audio really played."""
        self._runs = [[start + delta, position, duration] for start, position, duration in self._runs]

    def cut(self, at: float) -> None:
        """Forget what would have played after time ``at``: the queue was cleared."""
        self._runs = [
            [start, position, min(duration, at - start)] for start, position, duration in self._runs if start < at
        ]


class PlayClock:
    """How far ahead of the caller's ear the audio sent so far reaches."""

    __slots__ = ("_measured", "end_at", "round_trip_s")

    def __init__(self, round_trip_s: float = 0.1) -> None:
        self.end_at = 0.0
        self.round_trip_s = round_trip_s
        self._measured = False

    @property
    def one_way_s(self) -> float:
        """Assumed delay from here to Plivo: half the measured round trip."""
        return self.round_trip_s / 2

    def sent(self, duration: float, now: float) -> float:
        """Account for ``duration`` seconds of audio sent ``now``; returns the time at which it begins to play."""
        start = now + self.round_trip_s / 2
        if start < self.end_at:
            start = self.end_at
        self.end_at = start + duration
        return start

    def lead(self, now: float) -> float:
        """Seconds of audio that Plivo will still have queued when something sent ``now`` arrives."""
        return max(0.0, self.end_at - now - self.one_way_s)

    def cleared(self, now: float) -> None:
        """The queue was cleared by a frame sent ``now``."""
        self.end_at = min(self.end_at, now + self.one_way_s)

    def anchored(self, delta: float) -> None:
        """Shift what is still to play by ``delta`` seconds, as an acknowledgement showed."""
        self.end_at += delta

    def measured(self, round_trip_s: float) -> None:
        """Take in a measured round trip, in seconds: the first replaces the assumption, later ones are smoothed in."""
        weight = 0.25 if self._measured else 1.0
        self.round_trip_s += weight * (max(0.0, round_trip_s) - self.round_trip_s)
        self._measured = True
