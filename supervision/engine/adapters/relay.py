"""The relay of one call, without I/O: frames and time go in, frames come out through two callables.

It knows whose checkpoint and whose clearAudio is whose, what is queued at Plivo, which audio belongs to which turn, and
which agent audio is muted or held. It never decides to intervene: the session does, and tells the relay what to do.

Rules are those of the call path's design: text passes byte for byte; only Mirror's own acknowledgements and `mirror.*`
frames are taken out; until an agent says `mirror.hello` nothing is delayed. Times are seconds of the running loop.
"""

from __future__ import annotations

import binascii
import json
import math
import re
import secrets
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from supervision.audio.format import MediaFormat
from supervision.engine.adapters.hold import SPEECH_CHARS_PER_S, Hold
from supervision.engine.adapters.playout import PlayClock
from supervision.engine.adapters.turn_audio import AgentLine, Begun, Injected, Owed, Queued, TurnAudio
from supervision.plivo import events

MAX_LEAD_S: Final = 0.4  # paced audio is at most this far ahead of the caller's ear
REFILL_S: Final = 0.06  # how much of that lead is topped up at a time: fewer wake-ups, still no underrun
TURN_GAP_S: Final = 0.2  # this long without agent speech, and the next reported turn's audio begins
LATE_REPORT_S: Final = 1.0  # audio after a silence this long that is reported within as long was the reported turn's
ABANDONED_S: Final = 3.0  # a reported turn that stays silent this long gives way to the next one reported
CLEAR_EXPIRES_S: Final = 2.0  # an unanswered clearAudio stops waiting, so that a lost answer shifts nothing
OWED_LATE_S: Final = 10.0  # a withheld acknowledgement goes out at the latest this long after it was due
LATE_ACK_S: Final = 10.0  # a genuine acknowledgement that comes within this time of our synthetic one is swallowed
HOLD_MAX_S: Final = 30.0
HOLD_MAX_BYTES: Final = 8 * 1024 * 1024
QUEUE_MAX_BYTES: Final = 32 * 1024 * 1024  # beyond it an agent's audio passes unpaced: nothing of it is ever lost
AUDIO_KEPT_S: Final = 40.0  # of a turn's audio, for estimating what was heard
OPENING_CHARS: Final = 1_000  # of a playAudio frame before its payload: more than anybody writes
RECENT_S: Final = 2 * TURN_GAP_S  # of the agent's newest audio, kept to see whether it pauses
RECENT_CHARS: Final = 8_000  # of an agent frame's base64, its end: tells whether the agent has just paused
INBOUND_KEPT: Final = 30  # newest frames of the caller, 600 ms: tells whether the caller speaks when a verdict arrives
LINE_MAX_S: Final = 10.0  # of one line that an agent speaks for Mirror; nobody wants to hear a longer correction
LINE_STALLED_S: Final = 1.0  # after this pause an agent that does not say that its line has ended speaks for itself
MAX_MENDED: Final = 1024 * 1024  # characters of a broken mirror.* frame that are worth mending
_MIRROR_EVENT: Final = re.compile(r'"event"\s*:\s*"mirror\.')
# Escapes in pairs as they should be, and by themselves (the group); other escapes so that no backslash counts twice.
_SURROGATES: Final = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
)
WHOLE_SHARE: Final = 0.6  # of the time that its words take on average: a turn with less audio probably goes on
SPEECH_PEAK: Final = 330  # of 32,768 (-40 dBFS): quieter agent audio is a pause


class RelayListener(Protocol):
    """What the relay tells its session. Called from inside frame handling: must be quick and must not raise."""

    def mirror_frame(self, frame: dict[str, Any]) -> None:
        """The agent sent a `mirror.*` frame."""

    def mirror_garbled(self, message: str) -> None:
        """The agent sent something that begins like a `mirror.*` frame and is not JSON."""

    def turn_started(self, turn: TurnAudio) -> None:
        """The first audio of a reported turn arrived."""

    def turn_ended(self, turn: TurnAudio) -> None:
        """No more audio of this turn will be played: it was followed by another, ended or cut."""

    def caller_pressed(self) -> None:
        """The caller pressed a key."""

    def agent_cleared(self) -> None:
        """The agent sent clearAudio."""

    def media_dropped(self, direction: str, seconds: float) -> None:
        """Audio was lost to a limit."""

    def wake_at(self, when: float) -> None:
        """Call :meth:`CallRelay.pump` at this loop time."""


class CallRelay:
    """The relay of one call. Not thread-safe: one event loop drives it."""

    def __init__(
        self,
        *,
        stream_id: str,
        media_format: MediaFormat,
        to_plivo: Callable[[str], None],
        to_agent: Callable[[str], None],
        listener: RelayListener,
        loads: Callable[[str], Any] = json.loads,
    ) -> None:
        """`to_plivo` and `to_agent` take one text frame and must not wait; `loads` parses JSON text, raising ValueError
        or RecursionError."""
        self.stream_id = stream_id
        self.format = media_format
        self.clock = PlayClock()
        self.stopped = False  # Plivo has said that the stream is over
        self.hello = False
        self.marks = False
        self.hold_undecided_s: float | None = None  # how long audio that no turn reported is held; None: not at all
        self.frames_from_plivo = 0
        self.frames_from_agent = 0
        self.recent_inbound: deque[str] = deque(maxlen=INBOUND_KEPT)
        self.inbound_tap: Callable[[str], None] | None = None
        self.turns: deque[TurnAudio] = deque(maxlen=32)
        self.current: TurnAudio | None = None
        self.agent_audio_at: float | None = None
        self._begun: Begun | None = None
        self.last_payload = b""
        self._to_plivo = to_plivo
        self._to_agent = to_agent
        self._listener = listener
        self._loads = loads
        self._bytes_per_s = media_format.bytes_per_ms * 1000
        self._bytes_kept = int(AUDIO_KEPT_S * self._bytes_per_s)
        self._opening = ""  # of the agent's newest playAudio frame, up to its payload
        self._prefix = f"__mirror_{secrets.token_hex(12)}_"
        self._names = 0
        self._awaited: dict[str, tuple[float, Callable[[float], None]]] = {}
        self._outstanding: deque[tuple[str, TurnAudio | None, float]] = deque(maxlen=512)
        self._owed: deque[Owed] = deque()
        self._synthesised: deque[tuple[str, float]] = deque(maxlen=256)
        self._clears: deque[tuple[str, float, Callable[[float], None] | None]] = deque()
        self._mirror_cleared = False
        self._queue: deque[Queued] = deque()
        self._queue_bytes = 0
        self._queue_s = 0.0
        self._ahead: deque[Queued] = deque()  # of earlier turns: plays before what Mirror injects
        self._injected: deque[Injected] = deque()
        self._injected_s = 0.0
        self._line: AgentLine | None = None
        self._pending: deque[TurnAudio] = deque()
        self._agent_cleared_at: float | None = None
        self._gap = True
        self._spoke_at = 0.0
        # The agent's newest audio, at least RECENT_S in as few frames as that takes: the end of each one's payload, its
        # duration, and when it came. Whether it holds speech is looked at only when a turn waits.
        self._recent_agent: deque[tuple[str, float, float]] = deque()
        self._recent_s = 0.0
        # The newest frame that was found to hold speech: when it came, and how much audio after it.
        self._speech_at = -TURN_GAP_S
        self._since_speech_s = 0.0
        self._muted_end_at = 0.0
        self.holding = False
        self.speaking = False

    # ------------------------------------------------------------------ from Plivo

    def plivo_text(self, text: str, now: float) -> None:
        """A text frame from Plivo: to the agent, unless it acknowledges something of Mirror's."""
        self.frames_from_plivo += 1
        if events.is_media(text):
            self._to_agent(text)
            if self.hello:
                self.recent_inbound.append(text)
                if self.inbound_tap is not None:
                    self.inbound_tap(text)
            return
        try:
            frame = self._loads(text)
        except (ValueError, RecursionError):
            frame = None
        if isinstance(frame, dict):
            event = frame.get("event")
            if event == "playedStream" and not self._forward_played(_played_name(frame), now):
                return
            if event == "clearedAudio" and not self._forward_cleared(now):
                return
            if event == "dtmf":
                self._listener.caller_pressed()
            elif event == "stop":
                self.stopped = True
        self._to_agent(text)

    def _forward_played(self, name: str | None, now: float) -> bool:
        if name is None:
            return True
        if name.startswith(self._prefix):
            awaited = self._awaited.pop(name, None)
            if awaited is not None:
                awaited[1](now)
            return False
        for owed in self._owed:
            if owed.name == name and not owed.answered:
                owed.answered = True
                return False
        for index, (late, until) in enumerate(self._synthesised):
            if late == name and now <= until:
                del self._synthesised[index]
                return False
        for index, (known, _, _) in enumerate(self._outstanding):
            if known == name:
                del self._outstanding[index]
                break
        return True

    def _forward_cleared(self, now: float) -> bool:
        while self._clears and now - self._clears[0][1] > CLEAR_EXPIRES_S:
            self._clears.popleft()
        if not self._clears:
            # Nobody is known to wait. Before Mirror ever cleared, the relay is transparent; afterwards this is the
            # late or doubled answer to a clearAudio of Mirror's, which the agent must not see.
            return not self._mirror_cleared
        owner, sent_at, proved = self._clears.popleft()
        self.clock.measured(now - sent_at)
        self._clear_proved(now)
        if proved is not None:
            proved(now)
        return owner == "agent"

    # ------------------------------------------------------------------ from the agent

    def agent_text(self, text: str, now: float) -> None:
        """A text frame from the agent: to Plivo, or into the queue, or to the session when it is Mirror's."""
        self.frames_from_agent += 1
        if (opening := self._opening) and text.startswith(opening):
            start = len(opening)
            end = text.find('"', start)
            if end > start:
                self._agent_audio(text, start, end, now)
                return
        if events.is_play_audio(text):
            self._differing_audio(text, now)
            return
        try:
            frame = self._loads(text)
        except (ValueError, RecursionError):
            frame = None
            if _MIRROR_EVENT.search(text):
                frame = _mended(text, self._loads)
                if frame is None:
                    self._listener.mirror_garbled("a frame that calls itself mirror.* is not valid JSON")
                    return
        event = frame.get("event") if isinstance(frame, dict) else None
        if isinstance(event, str) and event.startswith("mirror."):
            self._listener.mirror_frame(frame)
        elif event == "playAudio":
            self._differing_audio(text, now)
        elif event == "checkpoint" and isinstance(frame.get("name"), str) and frame.get("streamId") == self.stream_id:
            self._agent_checkpoint(text, frame["name"], now)
        elif event == "clearAudio" and frame.get("streamId") == self.stream_id:
            # With another streamId, or none, Plivo ignores it: nothing is cleared, and nothing will be answered.
            self._agent_clear(text, now)
        elif self._queue or (self.holding and self.current is not None and not self.current.muted):
            position = self.current.received_s if self.current is not None else 0.0
            self._enqueue(Queued(text, turn=self.current, arrived_at=now, position=position))
        else:
            self._to_plivo(text)

    def _differing_audio(self, text: str, now: float) -> None:
        """A playAudio frame that is not written as the one before it."""
        start, end = events.payload_span(text)
        # Agents write all their frames alike: where the payload begins is found once.
        self._opening = text[:start] if start <= OPENING_CHARS else ""
        self._agent_audio(text, start, end, now)

    def _agent_audio(self, text: str, start: int, end: int, now: float) -> None:
        duration = events.base64_length(text, start, end) / self._bytes_per_s if end else 0.0
        if (line := self._line) is not None and self._in_line(line, text, duration, now):
            return
        silent_s = LATE_REPORT_S if self.agent_audio_at is None else now - self.agent_audio_at
        self.agent_audio_at = now
        if not self.hello:
            self.clock.sent(duration, now)
            self._to_plivo(text)
            return
        quiet_s = 0.0
        if self.hold_undecided_s is not None and (self.current is None or not self.marks):
            quiet_s = self._quiet_s(text[start:end], now)
        if silent_s >= LATE_REPORT_S or quiet_s >= LATE_REPORT_S or (self._gap and not self.marks):
            self._may_begin(silent_s, quiet_s, now)
        turn = self._whose(now) if self.marks or self._pending else self.current
        if not self.marks:
            self._gap = False
            if duration:
                recent = self._recent_agent
                skipped = 0 if end - start <= RECENT_CHARS else (end - start - RECENT_CHARS) // 4 * 4
                recent.append((text[start + skipped : end], duration, now))
                self._recent_s += duration
                self._since_speech_s += duration
                while self._recent_s - recent[0][1] >= RECENT_S:
                    self._recent_s -= recent.popleft()[1]
        hold, position = (turn.hold, turn.received_s) if turn is not None else (None, 0.0)
        if (begun := self._begun) is not None:
            if begun.hold is not None:
                hold, position = begun.hold, begun.received_s
            if now - begun.at > LATE_REPORT_S and (begun.hold is None or begun.hold.released_at is not None):
                self._begun = None
            else:
                begun.received_s += duration
                begun.audio += _decoded(text, start, end)
        if turn is not None:
            turn.received_s += duration
            room = self._bytes_kept - len(turn.audio)
            if room > 0 and not turn.heard_reported:
                most = (room + 2) // 3 * 4
                turn.audio += _decoded(text, start, end if end - start <= most else start + most)
        self._pass_on(text, duration, turn, now, hold, position)

    def _may_begin(self, silent_s: float, quiet_s: float, now: float) -> None:
        """Audio after a silence: perhaps of a turn that is reported late."""
        hold = self._undecided()
        waits = self._begun is not None and self._begun.hold is not None and self._begun.hold.released_at is None
        if waits and self._begun is not None and silent_s < LATE_REPORT_S and quiet_s >= self._begun.received_s:
            return  # silence that waits leads into what begins now: they are one turn's
        if hold is not None or not self.marks:
            self._begun = Begun(now, self.current, hold)

    def _pass_on(
        self,
        text: str,
        duration: float,
        turn: TurnAudio | None,
        now: float,
        hold: Hold | None = None,
        position: float = 0.0,
    ) -> None:
        if turn is not None and turn.muted:
            self._muted_end_at = max(now, self._muted_end_at) + duration
        elif hold is not None or self.holding or self._queue or (self.clock.lead(now) >= MAX_LEAD_S):
            if hold is not None:
                hold.begin(now)
            self._enqueue(Queued(text, duration, turn, arrived_at=now, position=position, hold=hold))
            self.pump(now)
        else:
            self._send_audio(text, duration, turn, now, now)

    def _whose(self, now: float) -> TurnAudio | None:
        """The turn that the audio of this moment belongs to (`None`: audio that no turn reported)."""
        if self.marks:
            if self.current is not None and not self.current.started:
                self._begin(self.current)
            return self.current
        if self._pending and (self._gap or self._has_paused(now)):
            if self.current is not None:
                self._end(self.current)
            self.current = self._pending.popleft()
            self.current.rivals = tuple(self._pending)
            self._begin(self.current)
            self._begun = None
        return self.current

    def _undecided(self) -> Hold | None:
        """The hold of audio that begins now and that no turn reported; None where such audio is not held, or where it
        goes on with a turn that has more to say."""
        if self.hold_undecided_s is None or self._pending:
            return None
        turn = self.current
        if turn is not None and not turn.ended:
            if self.marks:
                return None
            if turn.received_s < WHOLE_SHARE * len(turn.text) / SPEECH_CHARS_PER_S:
                return None
        return Hold(self.hold_undecided_s)

    def _has_paused(self, now: float) -> bool:
        """Whether the agent has sent no speech for `TURN_GAP_S`, or as much audio as that without any."""
        if now - self._speech_at < TURN_GAP_S and self._since_speech_s < TURN_GAP_S:
            return False  # whatever came since: a frame is looked into when it may matter, not each of them
        quiet = 0.0
        arrived_at = now
        for payload, duration, arrived_at in reversed(self._recent_agent):
            if self._speaks(payload):
                self._speech_at, self._since_speech_s = arrived_at, quiet
                break
            quiet += duration
            if quiet >= TURN_GAP_S:
                return True
        return now - arrived_at >= TURN_GAP_S

    def _quiet_s(self, payload: str, now: float) -> float:
        """When this audio holds speech, for how long the agent had sent none: some send silence all the time."""
        if not self._speaks(payload[-RECENT_CHARS:]):
            return 0.0
        spoke_at, self._spoke_at = self._spoke_at, now
        return now - spoke_at

    def _speaks(self, payload: str) -> bool:
        return self.format.louder_than(_decoded(payload, 0, len(payload)), SPEECH_PEAK)

    def _begin(self, turn: TurnAudio) -> None:
        turn.started = True
        self._listener.turn_started(turn)

    def _end(self, turn: TurnAudio) -> None:
        if not turn.ended:
            turn.ended = True
            self._listener.turn_ended(turn)

    def _send_audio(self, text: str, duration: float, turn: TurnAudio | None, now: float, arrived_at: float) -> None:
        start = self.clock.sent(duration, now)
        self._to_plivo(text)
        if self._begun is not None and arrived_at >= self._begun.at:
            self._begun.runs.add(start, duration)
        if turn is not None and turn.runs.add(start, duration):
            self._anchor(turn, turn.runs.total_s, now)

    def _anchor(self, turn: TurnAudio, position_s: float, now: float) -> None:
        """Ask Plivo when this much of the turn has played, and correct the play clock by the answer."""
        expected = self.clock.end_at

        def played(at: float) -> None:
            delta = (at - self.clock.one_way_s) - expected
            if abs(delta) < 5.0 and turn.cut_low_s is None:
                turn.runs.shift(delta)
                if self.clock.end_at >= expected:
                    self.clock.anchored(delta)
            turn.anchored = True

        self.checkpoint("anchor", played, now)

    def _agent_checkpoint(self, text: str, name: str, now: float) -> None:
        if (line := self._line) is not None:
            if line.discarded:
                self._owe(name, now, now)
            else:
                self._injected.append(Injected(text, name=name, agents=True))
                self.pump(now)
            return
        turn = self.current
        if turn is not None and turn.muted:
            self._owe(name, max(now, self._muted_end_at), now)
        elif self.hello and (self._queue or (self.holding and turn is not None) or self.speaking):
            position = turn.received_s if turn is not None else 0.0
            self._enqueue(Queued(text, turn=turn, name=name, arrived_at=now, position=position))
            self.pump(now)
        else:
            self._to_plivo(text)
            self._outstanding.append((name, turn, self.clock.end_at))

    def _agent_clear(self, text: str, now: float) -> None:
        self._ahead.clear()
        self._requeue(())
        ended, self.current, self._gap = self.current, None, True
        self._begun = None
        self._agent_cleared_at = now
        if self.speaking:
            # Mirror's own audio must not be cut: the agent is answered as Plivo would, and nothing is forwarded.
            self._to_agent(events.cleared_audio(stream_id=self.stream_id, sequence=self._sequence()))
        else:
            # What Mirror says beside the agent, such as a hold line, ends with the agent's words: the caller speaks.
            self._injected.clear()
            self._injected_s = 0.0
            self._clears.append(("agent", now, None))
            self._to_plivo(text)
            self._clear_sent(now)
        for turn in self.turns:
            if turn.started:
                self._end(turn)
        if ended is not None:
            self._end(ended)
        self._listener.agent_cleared()

    # ------------------------------------------------------------------ turns

    def turn_reported(self, turn: TurnAudio) -> None:
        """A turn was reported: its audio follows."""
        self.turns.append(turn)
        if self._line is not None and not self.speaking:
            self.line_ends(turn.reported_at)
        while self._pending and self._abandoned(self._pending[0], turn.reported_at):
            self._pending.popleft()
        begun, self._begun = self._begun, None
        if not self.marks and (turn.growing or turn.text.strip()):
            recent = begun is not None and (
                turn.reported_at - begun.at <= LATE_REPORT_S
                or (begun.hold is not None and begun.hold.released_at is None)
            )
            if begun is not None and recent and not self._pending:
                self._reported_late(turn, begun)
            else:
                self._pending.append(turn)

    def withdraw(self, turn: TurnAudio) -> None:
        """A reported turn says nothing after all: no audio is its own."""
        if turn in self._pending:
            self._pending.remove(turn)

    def _reported_late(self, turn: TurnAudio, begun: Begun) -> None:
        """Count audio that began just before ``turn`` was reported as its own, and no more as the turn's before."""
        before = begun.before
        if self.current is not before or self.speaking or self.holding:
            self._pending.append(turn)  # whose it is was settled otherwise meanwhile
            return
        if before is not None and before.muted:
            begun = Begun(begun.at, before)  # what came of it so far was discarded
            self._end(before)
        elif before is not None:
            del before.audio[max(0, len(before.audio) - len(begun.audio)) :]
            before.received_s -= begun.received_s
            if begun.runs.starts_at is not None:
                before.runs.cut(begun.runs.starts_at)
            self._end(before)
        turn.runs, turn.audio, turn.received_s = begun.runs, begun.audio, begun.received_s
        if turn.hold is not None:
            # Its budget runs since its first byte, and is spent when that was let go.
            turn.hold.since = begun.at
            if begun.hold is not None:
                turn.hold.released_at = begun.hold.released_at
            elif turn.runs.starts_at is not None:
                turn.hold.released_at = begun.at
        position = turn.runs.total_s
        for item in self._queue:
            if item.arrived_at >= begun.at and item.turn is before:
                item.turn, item.position, item.hold = turn, position, turn.hold if item.duration else None
                position += item.duration
        self.current = turn
        self._begin(turn)
        if turn.runs.starts_at is not None and not self._queue:
            self._anchor(turn, turn.runs.total_s, turn.reported_at)
        self.pump(turn.reported_at)

    def _abandoned(self, turn: TurnAudio, now: float) -> bool:
        """Whether a turn whose audio has not begun was given up before a newer one was reported: the agent cleared its
        audio since, or has been silent for long. Else the newer turn's audio would be taken for this one's."""
        cleared_at, audio_at = self._agent_cleared_at or 0.0, self.agent_audio_at or 0.0
        return cleared_at >= turn.reported_at or now - max(turn.reported_at, audio_at) > ABANDONED_S

    def say(self, turn: TurnAudio, audio: bytes, *, now: float, on_played: Callable[[float], None]) -> None:
        """Queue all of a reported turn's ``audio`` (in the stream's codec) as if the agent had sent it: paced, held and
        muted like the agent's own. ``on_played(time)`` is called when Plivo acknowledges the end of it."""
        if turn in self._pending:
            self._pending.remove(turn)
        if self.current is not None and self.current is not turn:
            self._end(self.current)
        self.current = turn
        if not turn.started:
            self._begin(turn)
        self.agent_audio_at = now
        for chunk in self._frames(audio):
            duration = len(chunk) / self._bytes_per_s
            turn.received_s += duration
            if len(turn.audio) < AUDIO_KEPT_S * self._bytes_per_s:
                turn.audio += chunk
            self._pass_on(self._play_audio(chunk), duration, turn, now)
        if not turn.muted:
            name = self._name("turn")
            self._await(name, on_played, now)
            mark = events.checkpoint(name, stream_id=self.stream_id)
            self._queue.append(Queued(mark, turn=turn, arrived_at=now))
            self._queue_bytes += len(mark)
        self.current = None
        self._end(turn)
        self.pump(now)

    def _frames(self, audio: bytes) -> Iterable[bytes]:
        step = self.format.frame_bytes
        audio = self.format.pad(audio)
        return (audio[offset : offset + step] for offset in range(0, len(audio), step))

    def _play_audio(self, chunk: bytes) -> str:
        return events.play_audio(
            b64encode(chunk).decode("ascii"),
            content_type=self.format.encoding,
            sample_rate=self.format.sample_rate,
            stream_id=self.stream_id,
        )

    def audio_mark(self, turn: TurnAudio | None, state: str, chars: int | None, now: float) -> None:
        """A `mirror.audio` frame: from here on audio belongs to ``turn`` (`start`), to nobody (`end`, `cut`), or
        ``chars`` characters of its text have been spoken (`mark`)."""
        if state == "start":
            self.line_ends(now)
            if self.current is not None and self.current is not turn:
                self._end(self.current)
            self.current, self._begun = turn, None
        elif state == "mark" and turn is not None and chars is not None:
            turn.marks.append((turn.received_s, chars))
            if not turn.muted and turn.runs.starts_at is not None and not self._queue and not self.speaking:
                self._anchor(turn, turn.runs.total_s, now)
        elif turn is not None:
            if self.current is turn:
                self.current = None
            self._end(turn)

    def taken_for(self, turn: TurnAudio) -> TurnAudio | None:
        """The turn to which audio is counted that may as well be this one's: both were reported when it began."""
        current = self.current
        return current if current is not None and not current.ended and turn in current.rivals else None

    def adopt_unreported(self, turn: TurnAudio) -> bool:
        """Take audio that flows without a report as this turn's: its report came after its audio had begun. False
        when there is none, or when the agent says itself whose audio it is."""
        if turn not in self._pending or self.current is not None or self.agent_audio_at is None:
            return False
        self._pending.remove(turn)
        self.current = turn
        self._begin(turn)
        return True

    def decide(self, turn: TurnAudio, now: float, until_s: float = math.inf) -> None:
        """The words of a turn may be heard up to ``until_s`` seconds of its audio: what waits of them may go."""
        if turn.muted:
            return
        begun = self._begun
        if begun is not None and begun.hold is not None and begun.before is turn:
            begun.hold.decide()  # what it said after a silence, ahead of its words
        if turn.hold is not None:
            turn.hold.decide(until_s)
        if self._queue:
            self.pump(now)

    def mute(self, turn: TurnAudio, now: float, keep_s: float = 0.0) -> None:
        """Discard this turn's audio and checkpoints from now on, however late they come; only what is here of its
        first ``keep_s`` seconds is heard."""
        turn.muted = True
        turn.kept_s = max(turn.kept_s, keep_s)
        if turn.hold is not None:
            turn.hold.decide(turn.kept_s)
            if turn.hold.released_at is None:
                turn.hold.released_at = now
        for item in [*self._ahead, *self._queue]:
            if item.turn is turn and not item.kept():
                if item.duration:
                    self._muted_end_at = max(now, self._muted_end_at) + item.duration
                if item.name is not None:
                    self._owe(item.name, max(now, self._muted_end_at), now)
        self._ahead = deque(item for item in self._ahead if item.turn is not turn or item.kept())
        self._requeue(item for item in self._queue if item.turn is not turn or item.kept())

    def take_over(self, turn: TurnAudio, now: float) -> None:
        """Mirror speaks in this turn's place: the turn is mute, what waits before it plays first, and what comes after
        it is held until :meth:`hand_back`."""
        self.speaking = self.holding = True
        before = next((i for i, item in enumerate(self._queue) if item.turn is turn and not item.kept()), None)
        if before is None:
            later = (i for i, item in enumerate(self._queue) if item.turn and item.turn.reported_at > turn.reported_at)
            before = next(later, len(self._queue))
        for _ in range(before):
            self._ahead.append(self._dequeue())
        self.mute(turn, now)

    def queued(self, turn: TurnAudio) -> bool:
        """Whether audio of this turn still waits at Mirror."""
        return any(item.turn is turn and item.duration for items in (self._ahead, self._queue) for item in items)

    def drop_unreported(self, before: float, now: float) -> float:
        """Discard held audio that no turn reported and that arrived before ``before``; returns its seconds."""
        stale = [item for item in self._queue if item.turn is None and item.arrived_at < before]
        for item in stale:
            if item.name is not None:
                self._owe(item.name, now, now)
        self._requeue(item for item in self._queue if item.turn is not None or item.arrived_at >= before)
        return sum(item.duration for item in stale)

    # ------------------------------------------------------------------ Mirror's own frames

    def checkpoint(self, label: str, played: Callable[[float], None], now: float) -> str:
        """Send a checkpoint of Mirror's own; ``played(time)`` is called when Plivo acknowledges it."""
        name = self._name(label)
        self._await(name, played, now)
        self._to_plivo(events.checkpoint(name, stream_id=self.stream_id))
        return name

    def clear(self, proved: Callable[[str, float], None], now: float) -> None:
        """Clear Plivo's queue, followed by a fence checkpoint: ``proved("cleared" | "fence", time)`` is called once,
        with whichever acknowledgement comes first."""
        done: list[str] = []

        def once(kind: str, at: float) -> None:
            if not done:
                done.append(kind)
                proved(kind, at)

        def fenced(at: float) -> None:
            # Plivo answers in order, so a clearAudio still waiting now was never acknowledged and never will be.
            while self._clears and self._clears[0][1] <= now:
                self._clears.popleft()
            self._clear_proved(at)
            once("fence", at)

        self._mirror_cleared = True
        for item in self._ahead:
            if item.name is not None:
                self._owe(item.name, now, now)
        for own in self._injected:
            if own.agents and own.name is not None:
                self._owe(own.name, now, now)
        self._ahead.clear()
        self._injected.clear()
        self._injected_s = 0.0
        if self._line is not None:
            self._line.discarded = True
        self._clears.append(("mirror", now, lambda at: once("cleared", at)))
        self._to_plivo(events.clear_audio(stream_id=self.stream_id))
        self._clear_sent(now)
        while self._outstanding:
            name, _, due_at = self._outstanding.popleft()
            self._owe(name, due_at, now)
        self.checkpoint("fence", fenced, now)

    def inject(
        self,
        audio: bytes,
        label: str,
        *,
        now: float,
        on_sent: Callable[[float], None],
        on_played: Callable[[float], None],
    ) -> float:
        """Queue Mirror's own ``audio`` (in the stream's codec) behind what it already said, paced, with a checkpoint
        at its end. ``on_sent(start)`` tells when its first sample will play, ``on_played(time)`` that all of it has.
        Returns the time at which it will have ended."""
        first = True
        for chunk in self._frames(audio):
            text = self._play_audio(chunk)
            self._injected.append(Injected(text, len(chunk) / self._bytes_per_s, None, on_sent if first else None))
            self._injected_s += len(chunk) / self._bytes_per_s
            first = False
        name = self._name(label)
        self._await(name, on_played, now)
        self._injected.append(Injected(events.checkpoint(name, stream_id=self.stream_id), name=name))
        self.pump(now)
        return now + self.owed_s(now)

    def line_begins(self, line: AgentLine, now: float) -> None:
        """The agent's audio from here on is this line, until `line_ends`: paced, behind what Mirror has said, at most
        10 s of it. The audio of a line that is `discarded` goes nowhere."""
        self.line_ends(now)
        self._line, line.last_at = line, now

    def line_ends(self, now: float) -> None:
        """What the agent sends now is its own again; the line's `on_played` follows when all of it has played."""
        line, self._line = self._line, None
        if line is not None and not line.discarded:
            name = self._name("line")
            self._await(name, line.on_played, now)
            self._injected.append(Injected(events.checkpoint(name, stream_id=self.stream_id), name=name))
            self.pump(now)

    def _in_line(self, line: AgentLine, text: str, duration: float, now: float) -> bool:
        if now - line.last_at > LINE_STALLED_S and line.received_s > 0.0:
            self.line_ends(now)
            return False
        line.last_at = now
        first, line.received_s = line.received_s == 0.0, line.received_s + duration
        if not line.discarded and line.received_s <= LINE_MAX_S:
            self._injected.append(Injected(text, duration, None, line.on_sent if first else None))
            self._injected_s += duration
            self.pump(now)
        return True

    def owed_s(self, now: float) -> float:
        """Seconds until all audio of Mirror's that is sent or queued has played."""
        return max(0.0, self.clock.end_at - now) + sum(item.duration for item in self._ahead) + self._injected_s

    def hand_back(self, now: float) -> None:
        """Mirror is done: answer the agent's cleared and muted checkpoints, then let held audio flow."""
        self.speaking = False
        self.holding = False
        if self._line is not None:
            self._line.discarded = True  # a line without an end: what follows the hand-back was not asked for
        while self._owed:
            self._pay(self._owed.popleft(), now)
        self.pump(now)

    def release(self, now: float) -> None:
        """Send all that waits at once: nobody will pace it any more."""
        for item in (*self._ahead, *self._queue):
            self._send_queued(item, now)
        self._ahead.clear()
        self._requeue(())

    def agent_replaced(self, now: float) -> None:
        """Another socket of the agent's takes the place of the one that broke: what that one sent plays on, and what it
        waited for nobody waits for any more."""
        self.marks = False
        if self._line is not None:
            self.line_ends(now)
        for waiting in (self._owed, self._outstanding, self._synthesised, self._pending):
            waiting.clear()
        self._clears = deque(("mirror", at, proved) for _, at, proved in self._clears)
        self._mirror_cleared = True
        ended, self.current, self._begun, self._gap = self.current, None, None, True
        if ended is not None:
            self._end(ended)

    def unplayed_s(self, now: float) -> float:
        """Seconds until all that Mirror was given to play has played."""
        return self.owed_s(now) + self._queue_s

    def silence(self, now: float) -> None:
        """Clear what plays, and discard what waits."""
        self._requeue(())
        self.clear(lambda kind, at: None, now)

    def silence_unproven(self, now: float) -> None:
        """Neither acknowledgement of Mirror's clear came in time: what was heard is bounded by now."""
        self._clear_proved(now)

    # ------------------------------------------------------------------ time

    def pump(self, now: float) -> None:
        """Send what may be sent now, and ask to be woken for the rest."""
        while self._ahead and self._may_go(self._ahead[0], now):
            self._send_queued(self._ahead.popleft(), now)
        while (
            self._injected and not self._ahead and (not self._injected[0].duration or self.clock.lead(now) < MAX_LEAD_S)
        ):
            frame = self._injected.popleft()
            if frame.duration:
                start = self.clock.sent(frame.duration, now)
                self._injected_s = max(0.0, self._injected_s - frame.duration)
                if frame.on_sent is not None:
                    frame.on_sent(start)
            self._to_plivo(frame.text)
            if frame.agents and frame.name is not None:
                self._outstanding.append((frame.name, None, self.clock.end_at))
        if not self._ahead and not self._injected and not self.holding:
            while self._queue and self._may_go(self._queue[0], now):
                self._send_queued(self._dequeue(), now)
        self._pay_late(now)
        wake = None
        if self._ahead or self._injected or (self._queue and not self.holding):
            empty_at = self.clock.end_at - self.clock.one_way_s
            wake = empty_at - MAX_LEAD_S + REFILL_S
            head = self._ahead[0] if self._ahead else self._queue[0] if not self._injected else None
            if head is not None and head.hold is not None:
                wake = head.hold.next_at(head.position, head.duration, empty_at, REFILL_S)
            wake = max(now + 0.005, wake)
        if self._owed:
            due = self._owed[0].due_at + (OWED_LATE_S if self.speaking else 0.0)
            wake = due if wake is None else min(wake, due)
        if wake is not None:
            self._listener.wake_at(wake)

    def _may_go(self, item: Queued, now: float) -> bool:
        lead = self.clock.lead(now)
        if item.hold is not None:
            return item.hold.passes(item.position, item.duration, lead, now)
        return not item.duration or lead < MAX_LEAD_S

    def _dequeue(self) -> Queued:
        item = self._queue.popleft()
        self._queue_bytes -= len(item.text)
        self._queue_s -= item.duration
        return item

    def _requeue(self, items: Iterable[Queued]) -> None:
        self._queue = deque(items)
        self._queue_bytes = sum(len(item.text) for item in self._queue)
        self._queue_s = sum(item.duration for item in self._queue)

    def _send_queued(self, item: Queued, now: float) -> None:
        if item.duration:
            self._send_audio(item.text, item.duration, item.turn, now, item.arrived_at)
        else:
            self._to_plivo(item.text)
            if item.name is not None:
                self._outstanding.append((item.name, item.turn, self.clock.end_at))

    def _enqueue(self, item: Queued) -> None:
        if self.holding and (
            self._queue_s + item.duration > HOLD_MAX_S or self._queue_bytes + len(item.text) > HOLD_MAX_BYTES
        ):
            self._listener.media_dropped("agent", item.duration)
            if item.name is not None:
                self._owe(item.name, item.arrived_at, item.arrived_at)
            return
        self._queue.append(item)
        self._queue_bytes += len(item.text)
        self._queue_s += item.duration
        if not self.holding and self._queue_bytes > QUEUE_MAX_BYTES:
            while self._queue:
                self._send_queued(self._dequeue(), item.arrived_at)

    # ------------------------------------------------------------------ acknowledgements

    def _clear_sent(self, now: float) -> None:
        for turn in self.turns:
            ends_at = turn.runs.ends_at
            if ends_at is not None and ends_at > now and turn.cut_low_s is None:
                turn.cut_low_s = turn.runs.position(now)
                turn.cut_at = now + self.clock.one_way_s
        self.clock.cleared(now)

    def _clear_proved(self, now: float) -> None:
        for turn in self.turns:
            if turn.cut_low_s is not None and turn.cut_high_s is None:
                turn.cut_high_s = turn.runs.position(now)

    def _owe(self, name: str, due_at: float, now: float) -> None:
        self._owed.append(Owed(name, due_at))
        if not self.speaking:
            self._listener.wake_at(max(now, due_at))

    def _pay_late(self, now: float) -> None:
        late = OWED_LATE_S if self.speaking else 0.0
        while self._owed and self._owed[0].due_at + late <= now:
            self._pay(self._owed.popleft(), now)

    def _pay(self, owed: Owed, now: float) -> None:
        if not owed.answered:
            self._synthesised.append((owed.name, now + LATE_ACK_S))
        self._to_agent(events.played_stream(owed.name, stream_id=self.stream_id, sequence=self._sequence()))

    def _await(self, name: str, played: Callable[[float], None], now: float) -> None:
        self._awaited[name] = (now, played)
        if len(self._awaited) > 256:  # never acknowledged ones must not add up over a long call
            self._awaited.pop(next(iter(self._awaited)))

    def _name(self, label: str) -> str:
        self._names += 1
        return f"{self._prefix}{label}_{self._names}"

    def _sequence(self) -> int:
        return self.frames_from_plivo + 1


def _played_name(frame: dict[str, Any]) -> str | None:
    name = frame.get("name")
    if not isinstance(name, str):
        nested = frame.get("playedStream")
        name = nested.get("name") if isinstance(nested, dict) else None
    return name if isinstance(name, str) else None


def _mended(text: str, loads: Callable[[str], Any]) -> Any:
    """The frame in ``text``, which is not JSON, when all that is wrong with it are characters cut in half.

    Programs that cut UTF-16 text leave those, as escapes (RFC 8259, section 8.2), and what was said around them must be
    judged all the same. None when something else is wrong.
    """
    if len(text) > MAX_MENDED:
        return None
    try:
        return loads(_SURROGATES.sub(lambda found: found[0] if found[1] is None else "\\ufffd", text))
    except (ValueError, RecursionError):
        return None


def _decoded(text: str, start: int, end: int) -> bytes:
    if not end:
        return b""
    try:
        return binascii.a2b_base64(text[start:end])
    except (binascii.Error, ValueError):
        return b""  # forwarded as it is; there is no audio in it that anybody could hear
