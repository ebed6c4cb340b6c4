"""One intervention, step by step: silence, buffer line, correction, hand-back.

The order is what the caller must hear and what the agent must know, in time: nothing of the agent after the cut, the
buffer line at once, the note to the agent before the correction's first sample, the correction seamlessly behind the
buffer line. Waits never depend on an acknowledgement alone: each is bounded by the audio that is still owed.

Where the audio goes is a :class:`PlaybackSink`; time is the running loop's, so tests run on virtual time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Literal, Protocol

CORRECTION_BEFORE_END_S: Final = 0.15  # the correction is queued at the latest this long before the buffer line ends
ACK_GRACE_S: Final = 1.5  # how much longer than the audio still owed an acknowledgement is waited for

SilenceProof = Literal["cleared", "fence", "unproven", "not_needed"]


class Plan(StrEnum):
    """What is done about a violating turn; it follows from what the caller can hear of it at that moment."""

    REPLACE_HELD = "replace_held"
    """Nothing of it has left Mirror: it is discarded, and no clear is needed."""
    CUT_WHEN_REACHED = "cut_when_reached"
    """It waits at Plivo behind innocent audio: the clear goes out when it would begin to play."""
    CUT_NOW = "cut_now"
    """It is audible: clear at once."""
    RETRACT = "retract"
    """All of it has just played, and nobody has spoken since: take it back."""
    NOTE_ONLY = "note_only"
    """Too late, not armed, or the caller speaks: the agent is told, nothing is said."""


class Outcome(StrEnum):
    """How an intervention ended."""

    COMPLETED = "completed"
    INTERRUPTED = "interrupted"
    CALLER_GONE = "caller_gone"
    FAILED = "failed"
    WITHHELD = "withheld"
    """Nothing was said; the report's `detail` says why. Never of an intervention that was begun."""


@dataclass(frozen=True, slots=True)
class Line:
    """Words and their audio, in the call's codec and at the agent's level."""

    text: str
    audio: bytes
    source: Literal["llm", "template"] = "template"


class Playing(Protocol):
    """Audio on its way to the caller."""

    @property
    def starts_at(self) -> float:
        """Loop time at which its first sample plays (estimated until it is sent)."""
        ...

    @property
    def ends_at(self) -> float:
        """Loop time at which its last sample has played (estimated)."""
        ...

    async def played(self) -> None:
        """Return when the far end acknowledged that all of it has played. May never return."""
        ...


class PlaybackSink(Protocol):
    """Where an intervention's audio goes."""

    async def clear(self) -> SilenceProof:
        """Silence what is queued for the caller and return how that was proved; bounded in time."""
        ...

    def play(self, line: Line, label: str) -> Playing:
        """Queue ``line`` behind what is already playing. Raises when the far end is gone."""
        ...


class Observer(Protocol):
    """Learns what the intervention does, when it does it. Must be quick and must not raise."""

    def phase(self, phase: str, text: str = "") -> None:
        """A phase of `mirror.intervention` begins."""

    def step(self, step: str, detail: str = "") -> None:
        """Something happened that is worth a time in the record."""

    def note(self, line: Line) -> None:
        """The words of the correction are fixed: tell the agent now, before they are heard."""


@dataclass(slots=True)
class Report:
    """What an intervention came to. Gaps are in ms, by the play clock; where the far end acknowledges nothing, they and
    all other times are estimates, and `estimated` says so. `heard_text` is what the caller heard of the agent's turn.
    """

    outcome: Outcome = Outcome.FAILED
    buffer: Line | None = None
    correction: Line | None = None
    silence_proof: SilenceProof = "not_needed"
    gap_cut_to_buffer_ms: int | None = None
    gap_buffer_to_correction_ms: int | None = None
    buffer_playing: Playing | None = None
    correction_playing: Playing | None = None
    detail: str = ""
    heard_text: str = ""
    estimated: bool = False
    ended_at: float | None = None
    """Loop time at which it was over, and after which the caller heard nothing more of it."""

    def said(self, now: float) -> str:
        """What Mirror said in it, as far as the caller can have heard it by loop time ``now``."""
        parts: list[str] = []
        for line, playing in ((self.buffer, self.buffer_playing), (self.correction, self.correction_playing)):
            if line is None or playing is None:
                continue
            span = playing.ends_at - playing.starts_at
            share = 1.0 if self.outcome is Outcome.COMPLETED or span <= 0 else (now - playing.starts_at) / span
            words = line.text.split()
            if share > 0:
                parts.extend(words[: max(0, round(len(words) * min(1.0, share)))])
        return " ".join(parts)


@dataclass(slots=True)
class Intervention:
    """One intervention. `run` once; `stop` ends it early.

    ``buffer`` is spoken at once. ``correct`` generates, checks, judges and renders the correction, and returns None
    when it has none. When it fails, or has not returned 150 ms before the buffer line ends, what ``so_far`` returns
    speaks: the best line that is rendered by then; when that is None too, ``fallback``, the template.
    ``begins_at`` is the loop time to wait for with ``CUT_WHEN_REACHED``; ``reached`` returns, with ``REPLACE_HELD``,
    when what comes before the turn has left Mirror. Without a ``buffer`` the correction is all that is said.
    ``lead_s``: how long before the buffer line's end the correction goes to the sink at the latest; a sink that begins
    to speak only after a while needs more than one that plays what is rendered.
    """

    plan: Plan
    sink: PlaybackSink
    observer: Observer
    buffer: Line | None
    fallback: Line
    correct: Callable[[], Awaitable[Line | None]]
    begins_at: float | None = None
    reached: Callable[[], Awaitable[None]] | None = None
    so_far: Callable[[], Line | None] = lambda: None
    lead_s: float = CORRECTION_BEFORE_END_S
    report: Report = field(default_factory=Report)
    _stopped: asyncio.Future[Outcome] | None = None
    _early: Outcome | None = None  # of a stop before `run` had begun

    @property
    def buffer_text(self) -> str:
        """The words of the buffer line; empty without one."""
        return self.buffer.text if self.buffer is not None else ""

    def stop(self, outcome: Outcome) -> None:
        """End the intervention now: the caller interrupted it, or hung up. Later calls change nothing."""
        self._early = self._early or outcome
        if self._stopped is not None and not self._stopped.done():
            self._stopped.set_result(outcome)

    async def run(self) -> Report:
        """Carry the intervention out. Returns how it ended; raises only when it is cancelled."""
        loop = asyncio.get_running_loop()
        self._stopped = loop.create_future()
        if self._early is not None:
            self._stopped.set_result(self._early)
        work = asyncio.ensure_future(self._perform())
        try:
            either: set[asyncio.Future[Any]] = {work, self._stopped}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if self._stopped.done() and not work.done():
                work.cancel()
                await asyncio.wait({work})
                self.report.outcome = self._stopped.result()
                if self.report.outcome is Outcome.INTERRUPTED:
                    await self._silence_ourselves()
            elif (problem := work.exception()) is not None:
                self.report.outcome = Outcome.FAILED
                self.report.detail = f"{type(problem).__name__}: {problem}"
        finally:
            work.cancel()
        self.observer.phase(self.report.outcome.value)
        return self.report

    async def _silence_ourselves(self) -> None:
        if self.plan in (Plan.REPLACE_HELD, Plan.RETRACT) and self.report.buffer is None:
            return  # nothing of Mirror's or of the turn is on its way
        try:
            self.observer.step("clear_sent", "interrupted")
            await self.sink.clear()
        except Exception as problem:
            self.report.detail = f"could not clear after the interruption: {type(problem).__name__}: {problem}"

    async def _perform(self) -> None:
        self.observer.phase("started")
        correcting = asyncio.ensure_future(self.correct())
        try:
            cut_at = await self._cut()
            buffer = self._buffered()
            self._measure(cut_at)
            line = await self._correction(correcting, buffer)
        finally:
            correcting.cancel()
        self.observer.step("correction_ready", line.source)
        self.report.correction = line
        self.observer.note(line)
        correction = self.sink.play(line, "correction")
        self.report.correction_playing = correction
        self.observer.step("correction_sent")
        self.observer.phase("correction", line.text)
        self._measure(cut_at)
        # The words have had the time to play when this gives up. Waiting on would leave the caller in silence.
        acknowledged = await played_in_time(correction)
        self.observer.step("correction_played" if acknowledged else "correction_unacknowledged")
        self._measure(cut_at)
        self.report.outcome = Outcome.COMPLETED

    def _buffered(self) -> Playing | None:
        if self.buffer is None:
            return None
        playing = self.sink.play(self.buffer, "buffer")
        self.report.buffer, self.report.buffer_playing = self.buffer, playing
        self.observer.step("buffer_sent")
        self.observer.phase("buffer", self.buffer.text)
        return playing

    def _measure(self, cut_at: float | None) -> None:
        """The gaps, by what is known now of when the lines begin."""
        report, buffer, correction = self.report, self.report.buffer_playing, self.report.correction_playing
        first = buffer or correction
        if cut_at is not None and first is not None:
            report.gap_cut_to_buffer_ms = round(max(0.0, first.starts_at - cut_at) * 1000)
        if buffer is not None and correction is not None:
            report.gap_buffer_to_correction_ms = round(max(0.0, correction.starts_at - buffer.ends_at) * 1000)

    async def _cut(self) -> float | None:
        """Make the agent silent as the plan says; returns when that was proved, None when nothing had to be cut."""
        loop = asyncio.get_running_loop()
        if self.plan is Plan.CUT_WHEN_REACHED and self.begins_at is not None:
            await asyncio.sleep(max(0.0, self.begins_at - loop.time()))
        if self.plan is Plan.REPLACE_HELD and self.reached is not None:
            await self.reached()
        if self.plan not in (Plan.CUT_NOW, Plan.CUT_WHEN_REACHED):
            return None
        self.observer.step("clear_sent")
        self.report.silence_proof = await self.sink.clear()
        self.observer.step(
            "silence_unproven" if self.report.silence_proof == "unproven" else "silence_proved",
            self.report.silence_proof,
        )
        return loop.time()

    async def _correction(self, correcting: asyncio.Future[Line | None], buffer: Playing | None) -> Line:
        loop = asyncio.get_running_loop()
        done = correcting.done()
        # How long a line takes that somebody else speaks shows when it has begun.
        while not done and buffer is not None and (left_s := buffer.ends_at - self.lead_s - loop.time()) > 0:
            done = bool((await asyncio.wait({correcting}, timeout=left_s))[0])
        if buffer is None and not done:
            await asyncio.sleep(0)
            done = correcting.done()
        problem = correcting.exception() if done else None
        if done and problem is None:
            return correcting.result() or self.fallback
        if (line := self.so_far()) is not None:
            return line
        if problem is None:
            self.observer.step("correction_late", "no correction in time; the template speaks")
        else:
            self.observer.step("correction_failed", type(problem).__name__)
        return self.fallback


async def played_in_time(playing: Playing) -> bool:
    """Wait until a line has played, at most until 1.5 s after it should have; whether that was acknowledged.

    Raises what `Playing.played` raises.
    """
    loop = asyncio.get_running_loop()
    waiting = asyncio.ensure_future(playing.played())
    try:
        while not waiting.done() and (left_s := playing.ends_at + ACK_GRACE_S - loop.time()) > 0:
            await asyncio.wait({waiting}, timeout=left_s)
        if waiting.done():
            waiting.result()
            return True
        return False
    finally:
        waiting.cancel()
