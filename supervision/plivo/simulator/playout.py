"""What Plivo does with the audio that a server sends it: one queue, played in real time.

Pure: bytes and times in, heard bytes and reached checkpoints out. Every method takes `now`, in seconds of one
monotonic clock, and first plays what was due by then; so it makes no difference how often it is called.

The rules, from Plivo's event pages (playAudio, checkpoint, clearAudio):
- audio and checkpoints form one FIFO; nothing is mixed;
- each 20 ms tick takes the next 20 ms from the queue, and what is missing is silence;
- a checkpoint is reached when the last byte queued before it has been played;
- clearAudio empties the queue. The tick that is being played is heard to its end.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from .sound import FRAME_MS, WireFormat

__all__ = ["Cleared", "HeardSegment", "Playout", "Reached"]

_EPSILON = 1e-9
"""Seconds; keeps a tick that is due exactly now from being missed by a rounding error."""


@dataclass(frozen=True, slots=True)
class HeardSegment:
    """Audio that was played without a gap: `audio` in wire bytes, from `start` to `end` (seconds)."""

    start: float
    end: float
    audio: bytes


@dataclass(frozen=True, slots=True)
class Reached:
    """A checkpoint whose audio has been played; `at` is when its last byte ended (seconds)."""

    name: str
    at: float


@dataclass(frozen=True, slots=True)
class Cleared:
    """What a clearAudio threw away: queued audio in bytes, and the checkpoints that were still pending."""

    audio_bytes: int
    checkpoints: tuple[str, ...]


class Playout:
    """The playout queue of one stream; see the module for its rules."""

    def __init__(self, media_format: WireFormat, *, start: float, fire_on_empty: bool = True) -> None:
        """`start` is the moment of the first tick; `fire_on_empty=False` never answers a checkpoint that finds
        nothing queued and nothing playing."""
        self.format = media_format
        self._start = start
        self._rate = media_format.bytes_per_second
        self._frame = media_format.frame_bytes
        self._fire_on_empty = fire_on_empty
        self._queue: deque[memoryview] = deque()
        self._queued = 0  # bytes ever queued, including those cleared
        self._heard = 0  # bytes ever played
        self._taken = 0  # bytes of those that were played or cleared
        self._position = 0  # playout time up to which ticks have taken their audio, in bytes
        self._audible_until = 0  # position at which the last heard byte ends
        self._checkpoints: deque[tuple[int, str, float]] = deque()  # reached when _taken >= the first item
        self._ending: deque[Reached] = deque()  # their audio was taken, its end may lie up to one tick ahead
        self._finished: list[HeardSegment] = []
        self._current = bytearray()  # the segment that may still grow, and where it began
        self._current_position = 0

    # -- what the server sends

    def push(self, audio: bytes, now: float) -> None:
        """Queue audio that arrived at `now`."""
        self._play_until(now)
        if audio:
            self._queue.append(memoryview(audio))
            self._queued += len(audio)

    def checkpoint(self, name: str, now: float) -> None:
        """Queue a checkpoint that arrived at `now`."""
        self._play_until(now)
        if self._taken < self._queued:
            self._checkpoints.append((self._queued, name, now))
            return
        end = self._time(self._audible_until)
        if end > now + _EPSILON or self._fire_on_empty:
            self._ending.append(Reached(name, max(now, end)))

    def clear(self, now: float) -> Cleared:
        """Empty the queue as clearAudio does. Checkpoints reached by `now` must have been fetched with `advance`
        before, or they count as pending."""
        self._play_until(now)
        names = [reached.name for reached in self._ending] + [name for _, name, _ in self._checkpoints]
        dropped = self._queued - self._taken
        self._queue.clear()
        self._ending.clear()
        self._checkpoints.clear()
        self._taken = self._queued
        return Cleared(dropped, tuple(names))

    # -- time

    def advance(self, now: float) -> list[Reached]:
        """Play up to `now`; returns the checkpoints reached since the last call, in order."""
        self._play_until(now)
        reached: list[Reached] = []
        while self._ending and self._ending[0].at <= now + _EPSILON:
            reached.append(self._ending.popleft())
        return reached

    def next_due(self) -> float | None:
        """When the next checkpoint will be reached if nothing else arrives; None without one."""
        if self._ending:
            return self._ending[0].at
        if self._checkpoints:
            return self._time(self._position + self._checkpoints[0][0] - self._taken)
        return None

    # -- what the caller heard

    def queued_seconds(self) -> float:
        """Audio waiting, in seconds, as of the last call."""
        return (self._queued - self._taken) / self._rate

    @property
    def heard_bytes(self) -> int:
        """How much was played, in bytes, as of the last call."""
        return self._heard

    @property
    def audible_until(self) -> float:
        """When the last heard byte ends (up to one tick ahead); the start when nothing was heard."""
        return self._time(self._audible_until)

    @property
    def playing_since(self) -> float:
        """When the last stretch without a gap began."""
        return self._time(self._current_position)

    def segments(self) -> tuple[HeardSegment, ...]:
        """The heard audio in order, as of the last call. The last may end up to one tick later than that, since a
        tick that has begun is heard."""
        if not self._current:
            return tuple(self._finished)
        return (*self._finished, self._current_segment())

    def read_heard(self, cursor: tuple[int, int]) -> tuple[tuple[int, int], list[tuple[float, bytes]]]:
        """What was heard after `cursor` (begin with `(0, 0)`): the new cursor, and pieces as (start time, bytes)."""
        index, offset = cursor
        pieces: list[tuple[float, bytes]] = []
        for segment in self._finished[index:]:
            if offset < len(segment.audio):
                pieces.append((segment.start + offset / self._rate, segment.audio[offset:]))
            index, offset = index + 1, 0
        if offset < len(self._current):
            pieces.append((self._time(self._current_position + offset), bytes(self._current[offset:])))
            offset = len(self._current)
        return (index, offset), pieces

    # -- inside

    def _time(self, position: int) -> float:
        return self._start + position / self._rate

    def _play_until(self, now: float) -> None:
        ticks = math.floor((now - self._start + _EPSILON) * 1000 / FRAME_MS) + 1
        limit = ticks * self._frame  # the tick that begins at `now` has taken its 20 ms
        if limit <= self._position:
            return
        room = limit - self._position
        while self._queue and room > 0:
            chunk = self._queue[0]
            size = min(len(chunk), room)
            self._hear(chunk[:size])
            if size == len(chunk):
                self._queue.popleft()
            else:
                self._queue[0] = chunk[size:]
            room -= size
        # Ticks that found the queue empty, and the rest of one that found too little, are silence.
        self._position = limit

    def _hear(self, audio: memoryview) -> None:
        size = len(audio)
        while self._checkpoints and self._checkpoints[0][0] <= self._taken + size:
            mark, name, arrived = self._checkpoints.popleft()
            end = self._time(self._position + mark - self._taken)
            self._ending.append(Reached(name, max(arrived, end)))
        if self._audible_until != self._position and self._current:
            self._finished.append(self._current_segment())
            self._current = bytearray()
        if not self._current:
            self._current_position = self._position
        self._current += audio
        self._heard += size
        self._taken += size
        self._position += size
        self._audible_until = self._position

    def _current_segment(self) -> HeardSegment:
        start = self._time(self._current_position)
        return HeardSegment(start, start + len(self._current) / self._rate, bytes(self._current))
