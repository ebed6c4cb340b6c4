"""How a call's words reach the caller: as audio on its stream, or through a sink that speaks by itself.

An outlet knows what the caller can hear of each turn, keeps turns back while Mirror speaks, and gives an intervention
its lines and its `PlaybackSink`. All times are seconds of the running loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from supervision.audio.format import MediaFormat
from supervision.audio.heard import Heard, estimate_heard
from supervision.audio.levels import rms_dbfs
from supervision.engine.adapters.playback import RETRACT_WITHIN_S, RelayPlayback, heard_of, plan_for
from supervision.engine.adapters.relay import CallRelay
from supervision.engine.adapters.turn_audio import TurnAudio
from supervision.engine.intervention.orchestrator import Line, Plan, Playing, SilenceProof
from supervision.engine.tts.forms import UserVoice
from supervision.engine.tts.sink import TTSSink, estimated_s
from supervision.engine.tts.voice import CallVoice, LineCache

logger = logging.getLogger(__name__)

Words = bytes | str
"""A turn ready to be said: audio in the call's codec, or the text for a sink."""

LEVEL_FROM_S: Final = 3.0  # how much of the agent's newest audio tells how loud it is
MAX_EARLY_TURNS: Final = 8  # that are reported before the stream has started
IN_FLIGHT_WAITS_S: Final = 1.0  # for a line that a sink is just accepting, before it is told to stop


class OutletError(Exception):
    """Nothing can be said now; the message says why."""


class InterventionSink(Protocol):
    """An outlet's `PlaybackSink`, which also finds its place among the turns."""

    moved: asyncio.Event

    async def clear(self) -> SilenceProof:
        """See `PlaybackSink`."""
        ...

    def play(self, line: Line, label: str) -> Playing:
        """See `PlaybackSink`."""
        ...

    async def reached(self) -> None:
        """Return when what comes before the turn has been said; Mirror speaks from there on."""
        ...


class Outlet(Protocol):
    """Where a call's words go."""

    estimated: bool
    """Whether times are estimated from the words, because nothing tells what was played."""

    @property
    def armed(self) -> bool:
        """Whether an intervention could speak now; `unarmed_reason` says why not."""
        ...

    @property
    def unarmed_reason(self) -> str:
        """Why an intervention could not speak now, fit for people."""
        ...

    async def arm(self, *, buffers: Sequence[str], fallback: str, opener: str) -> None:
        """Get the lines ready that an intervention needs. Never raises."""

    def buffer_line(self) -> Line:
        """The next buffer line. Requires `armed`, like the other two."""
        ...

    def fallback_line(self) -> Line:
        """The template that speaks when no correction is ready."""
        ...

    def opener_line(self) -> Line:
        """The line that takes back what was just said."""
        ...

    async def render(self, text: str, source: Literal["llm", "template"]) -> Line:
        """Words of Mirror's as a line."""
        ...

    async def words(self, text: str, language: str) -> Words:
        """A turn of the agent's, ready to be said. Raises TTSError, and OutletError where there is no voice."""
        ...

    def reported(self, turn: TurnAudio) -> None:
        """The agent is about to say this turn."""

    def say(self, turn: TurnAudio, words: Words) -> Playing:
        """Say a turn, behind what is being said. Raises OutletError when that is impossible."""
        ...

    def plan(self, turn: TurnAudio, *, newer: bool, caller_speaks: Callable[[], bool]) -> tuple[Plan, float | None]:
        """What to do about a violating turn; see `plan_for`."""
        ...

    def sink(self, turn: TurnAudio, *, on_buffer_played: Callable[[], None]) -> InterventionSink:
        """For one intervention in place of this turn."""
        ...

    def mute(self, turn: TurnAudio) -> None:
        """Nothing of this turn is said from now on, however late it comes."""

    def take_over(self, turn: TurnAudio) -> None:
        """Mirror speaks in this turn's place; later turns wait for `hand_back`."""

    def cut(self) -> None:
        """Silence what is being said, without saying anything in its place."""

    def drop_unreported(self, before: float) -> None:
        """Discard audio that waits, that no turn reported, and that came before this time."""

    def hand_back(self) -> None:
        """Mirror is done: what waits is said."""

    def heard(self, turn: TurnAudio, now: float) -> Heard:
        """What the caller heard of a turn by now."""
        ...

    def unplayed_s(self, turn: TurnAudio, now: float) -> float:
        """Seconds until all of the turn that will be said has been; 0.0 when nothing of it is left."""
        ...

    def match_level(self, turn: TurnAudio) -> None:
        """Let Mirror speak as loud as this turn."""


class StreamOutlet:
    """Audio on the call's own stream, by the relay's play clock and Plivo's acknowledgements."""

    estimated = False

    def __init__(self, tts_provider: object, language: str, voice: str | None, caches: LineCaches) -> None:
        self.relay: CallRelay | None = None
        self._provider = tts_provider
        self._language = language
        self._voice_name = voice
        self._caches = caches
        self._user_voice: UserVoice | None = None
        self._voice = CallVoice(tts=None, cache=LineCache(), media_format=MediaFormat(), language=language, voice=voice)
        self._not_open = self._voice.unarmed_reason = "the stream has not started: Plivo's start has not been seen"
        self._early: list[TurnAudio] = []

    @property
    def has_voice(self) -> bool:
        """Whether a voice was given."""
        return self._provider is not None

    def refuse(self, reason: str) -> None:
        """The stream has begun, and nothing can be said on it."""
        self._not_open = self._voice.unarmed_reason = reason

    def open(self, relay: CallRelay) -> None:
        """The stream has begun. A reconnected stream begins anew; what was rendered is kept where it fits."""
        same = self.relay is not None and self.relay.format == relay.format
        self.relay = relay
        for turn in self._early:
            relay.turn_reported(turn)
        self._early.clear()
        if same:
            return
        cache = LineCache()
        if self._provider is not None:
            self._user_voice, cache = self._caches.of(self._provider, relay.format)
        self._voice = CallVoice(
            tts=self._user_voice,
            cache=cache,
            media_format=relay.format,
            language=self._language,
            voice=self._voice_name,
        )

    @property
    def armed(self) -> bool:
        """See Outlet."""
        return self.relay is not None and self._voice.armed

    @property
    def unarmed_reason(self) -> str:
        """See Outlet."""
        return "no tts_provider was given" if self._provider is None else self._voice.unarmed_reason

    async def arm(self, *, buffers: Sequence[str], fallback: str, opener: str) -> None:
        """See Outlet."""
        await self._voice.arm(buffers=buffers, fallback=fallback, opener=opener)

    def buffer_line(self) -> Line:
        """See Outlet."""
        return self._voice.buffer_line()

    def fallback_line(self) -> Line:
        """See Outlet."""
        return self._voice.fallback_line()

    def opener_line(self) -> Line:
        """See Outlet."""
        return self._voice.opener_line()

    async def render(self, text: str, source: Literal["llm", "template"]) -> Line:
        """See Outlet."""
        return await self._voice.render(text, source)

    async def words(self, text: str, language: str) -> Words:
        """See Outlet."""
        if self._provider is None:
            raise OutletError("no tts_provider was given; give one to attach(), or send the audio yourself")
        if self._user_voice is None:
            raise OutletError(self._not_open)
        return await self._user_voice.audio(text, language=language, voice=self._voice_name)

    def reported(self, turn: TurnAudio) -> None:
        """See Outlet."""
        if self.relay is None:
            self._early.append(turn)
            del self._early[:-MAX_EARLY_TURNS]
        else:
            self.relay.turn_reported(turn)

    def say(self, turn: TurnAudio, words: Words) -> Playing:
        """See Outlet."""
        if self.relay is None or not isinstance(words, bytes):
            raise OutletError(self._not_open)
        playing = TurnPlaying(turn, len(words) / (self.relay.format.bytes_per_ms * 1000))
        self.relay.say(turn, words, now=_now(), on_played=playing.acknowledged)
        return playing

    def plan(self, turn: TurnAudio, *, newer: bool, caller_speaks: Callable[[], bool]) -> tuple[Plan, float | None]:
        """See Outlet."""
        relay, now = self._open_relay, _now()
        known = any((other.ends_at or 0.0) > now for other in relay.turns)
        if relay.clock.end_at > now and not known and relay.adopt_unreported(turn):
            # The turn was reported after its audio had begun: what is audible is what was reported.
            return Plan.CUT_NOW, None
        return plan_for(relay, turn, now, newer=newer, caller_speaks=caller_speaks)

    def sink(self, turn: TurnAudio, *, on_buffer_played: Callable[[], None]) -> InterventionSink:
        """See Outlet."""
        return RelayPlayback(self._open_relay, turn, on_buffer_played=on_buffer_played)

    def mute(self, turn: TurnAudio) -> None:
        """See Outlet."""
        turn.muted = True
        if self.relay is not None:
            self.relay.mute(turn, _now())

    def take_over(self, turn: TurnAudio) -> None:
        """See Outlet."""
        self._open_relay.take_over(turn, _now())

    def cut(self) -> None:
        """See Outlet."""
        self._open_relay.clear(lambda kind, at: None, _now())

    def drop_unreported(self, before: float) -> None:
        """See Outlet."""
        self._open_relay.drop_unreported(before, _now())

    def hand_back(self) -> None:
        """See Outlet."""
        self._open_relay.hand_back(_now())

    def heard(self, turn: TurnAudio, now: float) -> Heard:
        """See Outlet."""
        return heard_of(self._open_relay, turn, now)[0]

    def unplayed_s(self, turn: TurnAudio, now: float) -> float:
        """See Outlet."""
        if self._open_relay.queued(turn):
            return 0.1  # how long it waits is not known: look again
        return max(0.0, (turn.ends_at or 0.0) - now)

    def match_level(self, turn: TurnAudio) -> None:
        """See Outlet."""
        audio_format = self._open_relay.format
        newest = bytes(turn.audio[-int(LEVEL_FROM_S * 1000) * audio_format.bytes_per_ms :])
        level = rms_dbfs(audio_format.decode(newest), audio_format.sample_rate) if newest else None
        if level is not None:
            self._voice.level_dbfs = level

    @property
    def _open_relay(self) -> CallRelay:
        if self.relay is None:
            raise OutletError(self._not_open)
        return self.relay


class LineCaches:
    """Rendered lines of the voices that a supervisor's calls speak with, per voice and media format."""

    def __init__(self, size: int = 8) -> None:
        self._size = size
        self._kept: list[tuple[object, MediaFormat, UserVoice, LineCache]] = []

    def of(self, tts_provider: object, media_format: MediaFormat) -> tuple[UserVoice, LineCache]:
        """The voice and its lines; equal providers (a method of one object, taken twice) have the same."""
        for index, (provider, kept_format, voice, cache) in enumerate(self._kept):
            if provider == tts_provider and kept_format == media_format:
                self._kept.append(self._kept.pop(index))
                return voice, cache
        voice, cache = UserVoice(tts_provider, media_format), LineCache()
        self._kept.append((tts_provider, media_format, voice, cache))
        del self._kept[: -self._size]
        return voice, cache


class TurnPlaying:
    """A turn on its way to the caller, by the play clock."""

    def __init__(self, turn: TurnAudio, duration: float) -> None:
        self._turn = turn
        self._asked_at = _now()
        self._duration = duration
        self._played = asyncio.Event()

    @property
    def starts_at(self) -> float:
        """Loop time at which its first sample plays; an estimate until it is sent."""
        return self._turn.runs.starts_at or self._asked_at

    @property
    def ends_at(self) -> float:
        """Loop time at which the last of it that will be heard has played; an estimate until all is sent."""
        sent = self._turn.runs.ends_at
        if sent is None or (self._turn.cut_at is None and self._turn.runs.total_s < self._duration - 0.02):
            return self.starts_at + self._duration
        return self._turn.ends_at or sent

    def acknowledged(self, at: float) -> None:
        """Plivo said at loop time ``at`` that all of it has played."""
        self._played.set()

    async def played(self) -> None:
        """See Playing."""
        await self._played.wait()


# Sinks -------------------------------------------------------------------------------------------


class SinkPlaying:
    """A line that a sink was asked to say, in time estimated from its words or told by the sink."""

    def __init__(self, starts_at: float, duration: float) -> None:
        self.starts_at = starts_at
        self.duration = duration
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.over.add_done_callback(_looked_at)

    @property
    def ends_at(self) -> float:
        """Loop time at which it should have been said."""
        return self.starts_at + self.duration

    async def played(self) -> None:
        """Return when it should have been said, or never will be. Raises what the sink raised."""
        await asyncio.shield(self.over)

    def finish(self, problem: Exception | None = None) -> None:
        """It was said, or the sink could not."""
        if not self.over.done():
            if problem is None:
                self.over.set_result(None)
            else:
                self.over.set_exception(problem)


@dataclass(slots=True, eq=False)
class _Item:
    text: str
    playing: SinkPlaying
    turn: TurnAudio | None = None
    on_played: Callable[[], None] | None = None


class SinkOutlet:
    """A sink that speaks by itself, one line after the other."""

    estimated = True

    def __init__(self, sink: TTSSink, language: str) -> None:
        self._sink = sink
        self._language = language
        self._queue: deque[_Item] = deque()
        self._held: deque[_Item] = deque()
        self._current: _Item | None = None
        self._speaking: asyncio.Task[float] | None = None
        self._worker: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._holding = False
        self._buffers: Sequence[str] = ()
        self._fallback = ""
        self._opener = ""
        self._used = 0
        self.unarmed_reason = "the call has not begun"
        self._chores: set[asyncio.Task[None]] = set()

    @property
    def armed(self) -> bool:
        """See Outlet."""
        return bool(self._buffers and self._fallback and self._opener)

    async def arm(self, *, buffers: Sequence[str], fallback: str, opener: str) -> None:
        """See Outlet. A sink's lines need no rendering."""
        self._buffers, self._fallback, self._opener = buffers, fallback, opener
        if not self.armed:
            self.unarmed_reason = f"there are no lines in {self._language}"

    def buffer_line(self) -> Line:
        """See Outlet."""
        self._used += 1
        return Line(self._buffers[(self._used - 1) % len(self._buffers)], b"")

    def fallback_line(self) -> Line:
        """See Outlet."""
        return Line(self._fallback, b"")

    def opener_line(self) -> Line:
        """See Outlet."""
        return Line(self._opener, b"")

    async def render(self, text: str, source: Literal["llm", "template"]) -> Line:
        """See Outlet."""
        return Line(text, b"", source)

    async def words(self, text: str, language: str) -> Words:
        """See Outlet."""
        return text

    def reported(self, turn: TurnAudio) -> None:
        """See Outlet. Nothing to know before it is said."""

    def say(self, turn: TurnAudio, words: Words) -> Playing:
        """See Outlet."""
        if not isinstance(words, str):
            raise OutletError("a sink takes words, not audio")
        item = self._item(words, turn)
        turn.started = turn.ended = True
        if turn.muted:
            item.playing.finish()
        elif self._holding:
            self._held.append(item)
        else:
            self._enqueue(item)
        return item.playing

    def play(self, line: Line, on_played: Callable[[], None] | None) -> Playing:
        """Say a line of Mirror's, behind what is being said."""
        item = self._item(line.text, None)
        item.on_played = on_played
        self._enqueue(item)
        return item.playing

    def plan(self, turn: TurnAudio, *, newer: bool, caller_speaks: Callable[[], bool]) -> tuple[Plan, float | None]:
        """See Outlet."""
        if self._current is not None and self._current.turn is turn:
            return Plan.CUT_NOW, None
        ends_at = turn.runs.ends_at
        if ends_at is None:
            return Plan.REPLACE_HELD, None
        if _now() - ends_at <= RETRACT_WITHIN_S and not newer and not caller_speaks():
            return Plan.RETRACT, None
        return Plan.NOTE_ONLY, None

    def sink(self, turn: TurnAudio, *, on_buffer_played: Callable[[], None]) -> InterventionSink:
        """See Outlet."""
        return _SinkPlayback(self, turn, on_buffer_played)

    def mute(self, turn: TurnAudio) -> None:
        """See Outlet."""
        turn.muted = True
        for items in (self._queue, self._held):
            for item in [item for item in items if item.turn is turn]:
                items.remove(item)
                item.playing.finish()

    def take_over(self, turn: TurnAudio) -> None:
        """See Outlet."""
        self.mute(turn)
        self._holding = True
        for item in [item for item in self._queue if item.turn is not None]:
            self._queue.remove(item)
            self._held.append(item)

    def cut(self) -> None:
        """See Outlet."""
        self._chore(self._clear_quietly())

    def drop_unreported(self, before: float) -> None:
        """See Outlet. There is no such audio."""

    def hand_back(self) -> None:
        """See Outlet."""
        self._holding = False
        while self._held:
            self._enqueue(self._held.popleft())

    def heard(self, turn: TurnAudio, now: float) -> Heard:
        """See Outlet."""
        low, high = turn.heard_span(now)
        return estimate_heard(
            turn.text, None, 8000, low * 1000, high * 1000, (), anchored=False, complete=turn.cut_at is None
        )

    def unplayed_s(self, turn: TurnAudio, now: float) -> float:
        """See Outlet."""
        if any(item.turn is turn for item in (*self._queue, *self._held)):
            return 0.1
        return max(0.0, (turn.ends_at or 0.0) - now)

    def match_level(self, turn: TurnAudio) -> None:
        """See Outlet. A sink speaks as loud as it does."""

    async def earlier_said(self, turn: TurnAudio) -> None:
        """Return when no turn is being said any more; raises nothing."""
        while self._current is not None and self._current.turn not in (None, turn):
            await asyncio.wait({self._current.playing.over})
            await asyncio.sleep(0)

    async def clear(self) -> SilenceProof:
        """Drop what waits and tell the sink to stop. Raises what the sink raises."""
        now = _now()
        for item in self._queue:
            item.playing.finish()
        self._queue.clear()
        if (current := self._current) is not None and current.turn is not None and current.turn.cut_at is None:
            current.turn.cut_at = now
            current.turn.cut_low_s = current.turn.runs.position(now)
        speaking = self._speaking
        if speaking is not None and not speaking.done():
            # Told to stop before it has begun, it might begin afterwards.
            await asyncio.wait({speaking}, timeout=IN_FLIGHT_WAITS_S)
            if not speaking.done():
                speaking.add_done_callback(lambda _: self._chore(self._clear_quietly()))
        self._stop.set()
        certain = await self._sink.clear()
        if current is not None and current.turn is not None and current.turn.cut_high_s is None:
            current.turn.cut_high_s = current.turn.runs.position(_now())
        return "cleared" if certain else "unproven"

    async def _clear_quietly(self) -> None:
        try:
            await self.clear()
        except Exception as problem:
            logger.warning("The tts_sink could not be told to stop: %s", type(problem).__name__)

    def _item(self, text: str, turn: TurnAudio | None) -> _Item:
        waiting = sum(item.playing.duration for item in self._queue)
        now = _now()
        free_at = max(now, self._current.playing.ends_at if self._current is not None else now) + waiting
        return _Item(text, SinkPlaying(free_at, estimated_s(text)), turn)

    def _enqueue(self, item: _Item) -> None:
        self._queue.append(item)
        if self._worker is None:
            self._worker = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        try:
            while self._queue:
                self._current = self._queue.popleft()
                await self._said(self._current)
        finally:
            self._current, self._worker = None, None

    async def _said(self, item: _Item) -> None:
        self._stop.clear()
        self._speaking = asyncio.get_running_loop().create_task(self._spoken(item))
        await asyncio.wait({self._speaking})
        if self._speaking.cancelled() or (problem := self._speaking.exception()) is not None:
            failure = None if self._speaking.cancelled() else problem
            logger.warning("The tts_sink could not speak a line: %s", type(failure).__name__)
            item.playing.finish(failure if isinstance(failure, Exception) else OutletError("the tts_sink gave up"))
            return
        duration = self._speaking.result()
        item.playing.starts_at, item.playing.duration = _now(), duration
        if item.turn is not None:
            item.turn.runs.add(_now(), duration)
            item.turn.received_s += duration
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(duration):
                await self._stop.wait()
        item.playing.finish()
        if item.on_played is not None and not self._stop.is_set():
            item.on_played()

    async def _spoken(self, item: _Item) -> float:
        spoken = await self._sink.speak(item.text, language=self._language)
        told = spoken.duration_s if spoken is not None else None
        return item.playing.duration if told is None else max(0.0, told)

    def _chore(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)


class _SinkPlayback:
    """The `PlaybackSink` of one intervention through a sink."""

    def __init__(self, outlet: SinkOutlet, turn: TurnAudio, on_buffer_played: Callable[[], None]) -> None:
        self.moved = asyncio.Event()
        self._outlet = outlet
        self._turn = turn
        self._on_buffer_played = on_buffer_played

    async def clear(self) -> SilenceProof:
        return await self._outlet.clear()

    def play(self, line: Line, label: str) -> Playing:
        return self._outlet.play(line, self._on_buffer_played if label == "buffer" else None)

    async def reached(self) -> None:
        await self._outlet.earlier_said(self._turn)
        self._outlet.take_over(self._turn)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _looked_at(future: asyncio.Future[None]) -> None:
    """Not everybody who has a line said waits for its end; its failure is told in the log and in the report."""
    if not future.cancelled():
        future.exception()
