"""Mirror's voice on a stream: how one intervention silences the agent, speaks, and finds its place among the turns."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from itertools import pairwise
from typing import Final

from supervision.audio.heard import Basis, Heard, Mark, estimate_heard, word_times
from supervision.audio.pcm import Pcm
from supervision.engine.adapters.agent_voice import AgentVoice
from supervision.engine.adapters.relay import CallRelay
from supervision.engine.adapters.turn_audio import TurnAudio
from supervision.engine.intervention.orchestrator import Line, Plan, Playing, SilenceProof

RETRACT_WITHIN_S: Final = 2.0  # a turn that ended longer ago is not taken back aloud
STILL_COMING_S: Final = 0.5  # a turn whose last audio is this fresh may go on
SPARED_S: Final = 0.02  # less than this of innocent words is not worth a cut that waits
PROOF_AT_LEAST_S: Final = 0.3  # how long both proofs of silence are waited for, or twice the round trip


def plan_for(
    relay: CallRelay, audio: TurnAudio, now: float, *, newer: bool, caller_speaks: Callable[[], bool]
) -> tuple[Plan, float | None]:
    """What to do about a violating turn, from what the caller can hear of it at loop time ``now``; for
    `CUT_WHEN_REACHED` with the loop time at which the clear has to go out.

    ``newer``: another turn has begun since. ``caller_speaks`` is asked only when the turn could be taken back aloud.
    """
    starts_at, ends_at = audio.runs.starts_at, audio.ends_at
    if starts_at is None or ends_at is None:
        return Plan.REPLACE_HELD, None
    if starts_at > now:
        # The clear is sent so early that it arrives when the turn begins to play.
        return Plan.CUT_WHEN_REACHED, starts_at - relay.clock.one_way_s
    last_audio = relay.agent_audio_at or 0.0
    coming = not audio.ended and relay.current is audio and now - last_audio < STILL_COMING_S
    if ends_at > now or relay.queued(audio) or coming:
        return Plan.CUT_NOW, None
    if now - ends_at <= RETRACT_WITHIN_S and not newer and not caller_speaks():
        return Plan.RETRACT, None
    return Plan.NOTE_ONLY, None


def soft_cut(relay: CallRelay, audio: TurnAudio, now: float, from_char: int) -> tuple[Plan, float | None, float] | None:
    """What to do about a turn that is to be stopped at ``from_char`` of its text, behind innocent words that the caller
    has still to hear at loop time ``now``: the plan, for `CUT_WHEN_REACHED` when the clear has to go out, and how many
    seconds of the turn are heard. None when there are no such words, so that there is nothing to spare.

    Takes a few milliseconds for a turn of half a minute.
    """
    if from_char <= 0 or audio.runs.starts_at is None:
        return None  # of a turn that has not begun to be heard, nothing is
    keep_s = _word_end(relay, audio, from_char)
    if audio.runs.position(now + relay.clock.one_way_s) >= keep_s - SPARED_S:
        return None
    reached_at = audio.runs.time_at(keep_s)
    if reached_at is None:
        return Plan.REPLACE_HELD, None, keep_s
    return Plan.CUT_WHEN_REACHED, reached_at - relay.clock.one_way_s, keep_s


def _word_end(relay: CallRelay, audio: TurnAudio, from_char: int) -> float:
    """Where in the turn's audio the words before ``from_char`` end, in seconds: in the middle of the pause behind them.
    What of them is not here yet does not count."""
    words = word_times(
        audio.text, pcm_of(relay, audio), relay.format.sample_rate, marks_of(audio), complete=audio.ended
    )
    end_s = 0.0
    for word, following in pairwise(words):
        between_s = (word.end_ms + following.start_ms) / 2000
        if word.end > from_char or between_s > audio.received_s:
            break
        end_s = between_s
    return end_s


def heard_of(relay: CallRelay, audio: TurnAudio, now: float) -> tuple[Heard, float]:
    """What was heard of a turn by loop time ``now``, and at most how many seconds of it.

    Takes a few milliseconds for a turn of half a minute.
    """
    low, high = audio.heard_span(now)
    if played_out(relay, audio, now):
        return Heard(audio.text, "", "", Basis.PAUSES), high
    heard = estimate_heard(
        audio.text,
        pcm_of(relay, audio),
        relay.format.sample_rate,
        low * 1000,
        high * 1000,
        marks_of(audio),
        anchored=audio.anchored,
        complete=audio.ended,
    )
    return heard, high


def played_out(relay: CallRelay, audio: TurnAudio, now: float) -> bool:
    """Whether all of this turn has come and has been heard by loop time ``now``."""
    _, high = audio.heard_span(now)
    coming = relay.current is audio and now - (relay.agent_audio_at or 0.0) < STILL_COMING_S
    whole = audio.cut_low_s is None and high >= audio.received_s - 0.02 and high > 0
    return whole and (audio.ended or not coming)


def pcm_of(relay: CallRelay, audio: TurnAudio) -> Pcm | None:
    """The turn's audio as int16 samples at the call's rate; None when none came, or it was let go of."""
    return relay.format.decode(bytes(audio.audio)) if audio.audio else None


def marks_of(audio: TurnAudio) -> tuple[Mark, ...]:
    """The agent's own marks: how many characters were spoken when."""
    return tuple(Mark(position_ms=position * 1000, chars=chars) for position, chars in audio.marks)


class RelayPlayback:
    """The `PlaybackSink` of one intervention over a relay: Mirror speaks in place of the turn whose audio this is."""

    def __init__(
        self,
        relay: CallRelay,
        audio: TurnAudio,
        *,
        on_buffer_played: Callable[[], None],
        agent_voice: AgentVoice | None = None,
    ) -> None:
        """With an `agent_voice` the agent says Mirror's lines, as long as it does so in time."""
        self.moved = asyncio.Event()
        """Set it when a turn began or ended: `reached` looks again."""
        self._relay = relay
        self._audio = audio
        self._on_buffer_played = on_buffer_played
        self._agent_voice = agent_voice

    def step(self, step: str, detail: str = "") -> None:
        """Something happened that is worth a time in the record."""

    async def reached(self) -> None:
        """Return when the turns before this one are out, or say nothing more; Mirror speaks from there on."""
        relay, loop = self._relay, asyncio.get_running_loop()
        while (earlier := relay.current) is not None and earlier is not self._audio:
            still_coming_s = (relay.agent_audio_at or 0.0) + STILL_COMING_S - loop.time()
            if earlier.muted or earlier.ended or still_coming_s <= 0:
                break
            self.moved.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(still_coming_s):
                    await self.moved.wait()
        relay.take_over(self._audio, loop.time())

    async def clear(self) -> SilenceProof:
        """Clear what is queued for the caller; returns which acknowledgement proved the silence, at the latest after
        300 ms or two round trips."""
        relay, loop = self._relay, asyncio.get_running_loop()
        proof: asyncio.Future[SilenceProof] = loop.create_future()

        def proved(kind: str, at: float) -> None:
            if not proof.done():
                proof.set_result("cleared" if kind == "cleared" else "fence")

        if self._agent_voice is not None:
            self._agent_voice.close()
        relay.clear(proved, loop.time())
        try:
            async with asyncio.timeout(max(PROOF_AT_LEAST_S, 2 * relay.clock.round_trip_s)):
                return await proof
        except TimeoutError:
            relay.silence_unproven(loop.time())
            return "unproven"

    def play(self, line: Line, label: str) -> Playing:
        """Queue a line behind what Mirror already said."""
        voice = self._agent_voice
        if voice is None or not line.text or (line.audio and not voice.usable):
            return self._rendered(line, label)
        return voice.say(
            line,
            label,
            otherwise=lambda rendered: self._rendered(rendered, label),
            on_played=self._on_buffer_played if label == "buffer" else lambda: None,
            step=self.step,
        )

    def _rendered(self, line: Line, label: str) -> RelayPlaying:
        return play_line(self._relay, line, label, self._on_buffer_played if label == "buffer" else None)


def play_line(relay: CallRelay, line: Line, label: str, on_played: Callable[[], None] | None = None) -> RelayPlaying:
    """Queue a rendered line behind what Mirror already said."""
    now = asyncio.get_running_loop().time()
    duration = len(line.audio) / (relay.format.bytes_per_ms * 1000)
    begin = max(now + relay.clock.one_way_s, now + relay.owed_s(now))
    playing = RelayPlaying(begin, duration)

    def played(at: float) -> None:
        playing.acknowledged(at)
        if on_played is not None:
            on_played()

    relay.inject(line.audio, label, now=now, on_sent=playing.sent, on_played=played)
    return playing


class RelayPlaying:
    """Audio on its way to the caller: `starts_at` and `ends_at` are loop times by the play clock."""

    def __init__(self, starts_at: float, duration: float) -> None:
        self.starts_at = starts_at
        self._duration = duration
        self._played = asyncio.Event()

    @property
    def ends_at(self) -> float:
        """Loop time at which its last sample has played."""
        return self.starts_at + self._duration

    def sent(self, starts_at: float) -> None:
        """The first frame went out; it will play at loop time ``starts_at``."""
        self.starts_at = starts_at

    def acknowledged(self, at: float) -> None:
        """Plivo said at loop time ``at`` that all of it has played."""
        self._played.set()

    async def played(self) -> None:
        """Return when Plivo acknowledged that all of it has played. May never return."""
        await self._played.wait()
