"""What a simulated call leaves behind: who said what on the wire, and what the caller heard, with times.

All times are seconds since the call began, which is when the stand-in began to dial.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .playout import HeardSegment
from .sound import Pcm, WireFormat

__all__ = ["CallRecord", "Event", "Found", "Heard", "RawFrame", "Silence"]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened at `t`.

    `source` is `plivo` for what the stand-in sent, `server` for what it received, `call` for what happened on the
    phone line or the connection. `kind` is the wire's event name, or a word for the rest; `data` holds its fields
    (audio as `bytes`, its length, never the audio itself).
    """

    t: float
    source: str
    kind: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RawFrame:
    """A WebSocket message as it was on the wire; `text` is False for a binary one."""

    t: float
    payload: bytes
    text: bool


@dataclass(frozen=True, slots=True)
class Silence:
    """A stretch in which nothing was played to the caller."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Found:
    """Where audio was heard: from `start` to `end`; `contiguous` when without a gap inside."""

    start: float
    end: float
    contiguous: bool


@dataclass(frozen=True)
class Heard:
    """What the caller heard up to `now`: `segments` without gaps inside, in order, as wire bytes of `format`."""

    format: WireFormat
    segments: tuple[HeardSegment, ...]
    now: float

    @property
    def audio(self) -> bytes:
        """All heard bytes joined, without the silence between."""
        return b"".join(segment.audio for segment in self.segments)

    @property
    def seconds(self) -> float:
        """How much audio was played, without the silence between."""
        return sum(len(segment.audio) for segment in self.segments) / self.format.bytes_per_second

    @property
    def start(self) -> float | None:
        """When the first byte was heard; None when nothing was."""
        return self.segments[0].start if self.segments else None

    @property
    def end(self) -> float | None:
        """When the last byte ended; None when nothing was heard."""
        return self.segments[-1].end if self.segments else None

    def since(self, t: float) -> Heard:
        """The segments that end after `t`; one that spans `t` is cut there, at a whole sample."""
        kept: list[HeardSegment] = []
        for segment in self.segments:
            if segment.end <= t:
                continue
            if segment.start < t:
                samples = round((t - segment.start) * self.format.sample_rate)
                audio = segment.audio[samples * self.format.sample_bytes :]
                segment = HeardSegment(segment.start + samples / self.format.sample_rate, segment.end, audio)
            if segment.audio:
                kept.append(segment)
        return Heard(self.format, tuple(kept), self.now)

    def silences(self, at_least: float = 0.0) -> list[Silence]:
        """The gaps between segments that last `at_least` seconds."""
        gaps = [
            Silence(before.end, after.start) for before, after in zip(self.segments, self.segments[1:], strict=False)
        ]
        return [gap for gap in gaps if gap.seconds >= at_least]

    def find(self, audio: bytes, since: float = 0.0) -> Found | None:
        """Where exactly these bytes were heard, first occurrence that begins at or after `since`; None if not.

        Bytes that were heard with silence in between are found too, as not `contiguous`.
        """
        if not audio:
            return None
        joined, begin = self.audio, -1
        while True:
            begin = joined.find(audio, begin + 1)
            if begin < 0:
                return None
            start = self._time_of(begin)
            if start >= since - 1e-9:
                break
        end = self._time_of(begin + len(audio) - 1) + 1 / self.format.bytes_per_second
        return Found(start, end, abs(end - start - len(audio) / self.format.bytes_per_second) < 1e-6)

    def pcm(self, until: float | None = None) -> Pcm:
        """What came out of the phone from 0 to `until` (default `now`), silence included, 16-bit."""
        rate = self.format.sample_rate
        end = self.now if until is None else until
        line = np.zeros(max(0, round(end * rate)), dtype=np.int16)
        for segment in self.segments:
            begin = round(segment.start * rate)
            samples = self.format.decode(segment.audio)[: max(0, len(line) - begin)]
            line[begin : begin + len(samples)] = samples
        return line

    def _time_of(self, offset: int) -> float:
        for segment in self.segments:
            if offset < len(segment.audio):
                return segment.start + offset / self.format.bytes_per_second
            offset -= len(segment.audio)
        raise IndexError("beyond what was heard")


@dataclass
class CallRecord:
    """A call as the stand-in saw it. Filled while the call runs; `outcome` is set last.

    `outcome` is `completed` or `failed`, `ended_by` is `caller`, `agent` (the server closed) or `plivo` (the stream
    was given up). `reason` says why in words, `close_code` is the last connection's WebSocket close code (1006 without
    a close frame, 1005 for one without a code), `handshake_status` the HTTP status of the last handshake (101 when
    accepted). `began_at` is the loop's time at which the call began: loop time = `began_at` + t.
    """

    format: WireFormat
    call_id: str
    account_id: str
    from_number: str
    to_number: str
    began_at: float = 0.0
    stream_ids: list[str] = field(default_factory=list)
    subprotocol: str | None = None
    handshake_status: int | None = None
    started_t: float | None = None
    ended_t: float | None = None
    outcome: str = ""
    ended_by: str = ""
    reason: str = ""
    close_code: int | None = None
    close_reason: str = ""
    events: list[Event] = field(default_factory=list)
    media_sent_at: array[float] = field(default_factory=lambda: array("d"))
    """When each `media` frame left, one entry a frame."""
    play_received_at: array[float] = field(default_factory=lambda: array("d"))
    """When each good `playAudio` arrived; `play_bytes` has its size."""
    play_bytes: array[int] = field(default_factory=lambda: array("L"))
    cleared_bytes: int = 0
    """Audio that clearAudio threw away before it was heard."""
    raw_received: list[RawFrame] = field(default_factory=list)
    raw_sent: list[RawFrame] = field(default_factory=list)

    source: Callable[[], Heard] | None = field(default=None, repr=False)
    """Where `heard` comes from; set by the call."""

    @property
    def heard(self) -> Heard:
        """What the caller has heard up to now, or until the call ended. Put together when asked for."""
        return Heard(self.format, (), 0.0) if self.source is None else self.source()

    def of(self, kind: str, source: str | None = None) -> list[Event]:
        """The events of one kind, in order: `record.of("playedStream")`."""
        return [event for event in self.events if event.kind == kind and source in (None, event.source)]

    def played(self, name: str) -> Event | None:
        """The first playedStream of this checkpoint that was sent; None while there is none."""
        return next((event for event in self.of("playedStream") if event.data["name"] == name), None)

    def timeline(self) -> Iterator[Event]:
        """Events and playAudio merged by time."""
        plays = (
            Event(t, "server", "playAudio", {"bytes": size})
            for t, size in zip(self.play_received_at, self.play_bytes, strict=True)
        )
        return iter(sorted([*self.events, *plays], key=lambda event: event.t))
