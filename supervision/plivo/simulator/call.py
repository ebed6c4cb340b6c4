"""A phone call that Plivo streams to a server: the stand-in's engine.

`SimulatedCall` dials a stream URL, sends what Plivo sends, plays what the server sends to an imaginary caller, and
records both. How a real Plivo behaves where its documents are silent is chosen with `PlivoSwitches`.
"""

from __future__ import annotations

import asyncio
import binascii
import inspect
import json
import ssl
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from .connection import Closed, Connection, DelayLine, DialFailed, Message, dial
from .line import Line, Lines
from .microphone import Microphone
from .playout import Playout
from .record import CallRecord, Event, Heard, RawFrame
from .sound import FRAME_MS, MULAW_8K, WireFormat
from .switches import ABSENT, PlivoSwitches

__all__ = ["CallEnded", "CallFailed", "SimulatedCall", "StatusSink"]

StatusSink = Callable[[str, dict[str, str]], None]
"""Takes a stream status event (`StartStream`, …) and its own fields, to be sent to the status callback URL."""

_TICK = FRAME_MS / 1000
_HEARING_GAP_S = 0.1
"""Playout pauses shorter than this do not end a `heard` event."""
_GOODBYE_S = 2.0
"""How long a hang-up waits for the server's half of the closing handshake."""
_DEGRADED_AT = (0.3, 0.6, 0.9)
_CHECK_UNSENT_EVERY = 10
_DTMF = frozenset("0123456789*#ABCD")
_DTMF_SPACING_S = 0.1


class CallFailed(Exception):
    """A script gave the call up; the message becomes the record's reason."""


class CallEnded(Exception):
    """What was waited for can no longer happen, because the call is over."""


@dataclass(slots=True)
class _Speech:
    """Caller audio in wire bytes, and how much of it has been sent."""

    audio: bytes
    label: str
    done: asyncio.Future[None]
    sent: int = 0


class SimulatedCall:
    """One call. Construct it inside a running event loop's coroutine, then await `run` or drive it while it runs:

        call = SimulatedCall("ws://127.0.0.1:8000/stream/demo/sk_…")
        running = asyncio.create_task(call.run())
        await call.wait_for(lambda record: record.heard.seconds > 1)
        call.press("5")
        call.hang_up()
        record = await running

    `url` is a `ws://` or `wss://` stream URL. `script` is a coroutine function that gets the call once `start` has
    been sent; when it returns the call goes on until someone hangs up, and when it raises `CallFailed` the call fails.
    `headers` are added to the handshake. `keep_raw` keeps every message as it was on the wire in the record.
    `on_event` sees each `Event` as it is recorded, `on_status` each stream status callback. `extra_headers`
    overrides the switch of that name. `stream_timeout_s` ends the stream as Plivo's streamTimeout does. `line` makes
    the connection, to a server's end in this process, instead of dialling `url`.
    """

    def __init__(
        self,
        url: str,
        script: Callable[[SimulatedCall], Awaitable[None]] | None = None,
        switches: PlivoSwitches | None = None,
        *,
        media_format: WireFormat = MULAW_8K,
        from_number: str = "15550100001",
        to_number: str = "15550100002",
        call_id: str | None = None,
        account_id: str = "MAXXXXXXXXXXXXXXXXXX",
        headers: Mapping[str, str] | None = None,
        extra_headers: str | None = None,
        bidirectional: bool = True,
        stream_timeout_s: float | None = None,
        connect_timeout_s: float = 10.0,
        ssl_context: ssl.SSLContext | None = None,
        keep_raw: bool = False,
        on_event: Callable[[Event], None] | None = None,
        on_status: StatusSink | None = None,
        line: Lines | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.url = url
        self.switches = switches if switches is not None else PlivoSwitches()
        self.record = CallRecord(
            format=media_format,
            call_id=call_id or str(uuid.uuid4()),
            account_id=account_id,
            from_number=from_number,
            to_number=to_number,
        )
        self._format = media_format
        self._script = script
        self._headers = dict(headers or {})
        self._extra_headers = self.switches.extra_headers if extra_headers is None else extra_headers
        self._bidirectional = bidirectional
        self._stream_timeout_s = stream_timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._ssl_context = ssl_context
        self._keep_raw = keep_raw
        self._on_event = on_event
        self._on_status = on_status
        self._line = line
        self._wall_clock = wall_clock

        self._loop: asyncio.AbstractEventLoop
        self._playout: Playout
        self._upline: DelayLine[Callable[[], None]]
        self._downline: DelayLine[tuple[Line, Message | Closed]]
        self._begun = asyncio.Event()
        self._over = False
        self._wire: Line | None = None  # the connection that stands
        self._connection: Line | None = None  # the same once `start` was sent on it
        self._stopped: asyncio.Future[tuple[str, str, str]]  # outcome, ended_by, reason
        self._waiters: list[tuple[Callable[[CallRecord], object], asyncio.Future[None]]] = []
        self._look_soon = False
        # uvloop's handle of a time that has passed does not know it.
        self._due_timer: asyncio.Handle | None = None
        self._due_at = 0.0
        self._timers: set[asyncio.TimerHandle] = set()
        # the caller's side of the wire
        self._speech: deque[_Speech] = deque()
        self._microphone = Microphone(media_format)
        self._tick_timer: asyncio.TimerHandle | None = None
        self._first_tick = 0.0
        self._ticks = 0
        self._first_tick_ms = 0
        self._sequence = 0
        self._chunk = 0
        self._silent_payload = _base64(media_format.silence(_TICK))
        self._media_parts = ("", "", "", "", "")
        # the server's side
        self._cleared_count = 0
        self._degraded = 0
        self._hearing_since: float | None = None
        self._noted_bytes = 0
        self._heard_view = Heard(media_format, (), 0.0)
        self._heard_view_bytes = 0
        self.record.source = self.heard

    # -- for the test or script that drives the call

    @property
    def now(self) -> float:
        """Seconds since the call began."""
        return self._loop.time() - self.record.began_at

    @property
    def format(self) -> WireFormat:
        return self._format

    async def run(self) -> CallRecord:
        """Place the call and see it to its end; returns the finished record. Can be called once.

        Never raises for what the server does: a refused handshake or a broken connection is an outcome. An error of
        the script (other than `CallFailed`) is raised when the call has ended. Cancelling drops the connection.
        """
        if self._begun.is_set():
            raise RuntimeError("a SimulatedCall can run once; make another one")
        self._begun.set()
        loop = self._loop = asyncio.get_running_loop()
        random = Random(self.switches.seed)  # noqa: S311 - jitter that a test can repeat, no secret
        delay, jitter = self.switches.delay_s, self.switches.jitter_s
        self._upline = DelayLine(loop, _call, delay=delay, jitter=jitter, random=random)
        self._downline = DelayLine(loop, self._arrived, delay=delay, jitter=jitter, random=random)
        self._stopped = loop.create_future()
        self.record.began_at = loop.time()
        self._playout = Playout(self._format, start=0.0, fire_on_empty=self.switches.checkpoint_on_empty == "fire")
        script: asyncio.Task[None] | None = None
        try:
            if self._script is not None:
                script = loop.create_task(self._run_script(self._script))
            await self._streams()
        finally:
            if script is not None:
                script.cancel()
                await asyncio.wait({script})
            self._finish()
        if script is not None and not script.cancelled():
            script.result()
        return self.record

    def heard(self) -> Heard:
        """What the caller has heard up to now, or until the call ended."""
        if not self._begun.is_set():
            return self._heard_view
        self._collect_live()
        segments = self._heard_view.segments
        if self._playout.heard_bytes != self._heard_view_bytes:
            self._heard_view_bytes = self._playout.heard_bytes
            segments = self._playout.segments()
        ended = self.record.ended_t
        self._heard_view = Heard(self._format, segments, self.now if ended is None else ended)
        return self._heard_view

    def heard_seconds(self) -> float:
        """How much audio the caller has heard up to now, in seconds; cheaper than `heard`."""
        self._collect_live()
        return self._playout.heard_bytes / self._format.bytes_per_second

    def heard_since(self, cursor: tuple[int, int]) -> tuple[tuple[int, int], list[tuple[float, bytes]]]:
        """What was heard after `cursor` (begin with `(0, 0)`): the new cursor, and pieces as (start time, bytes)."""
        self._collect_live()
        return self._playout.read_heard(cursor)

    async def wait_for(
        self, predicate: Callable[[CallRecord], object], timeout_s: float | None = 10.0, what: str = ""
    ) -> CallRecord:
        """Return the record once `predicate(record)` is true; looked at after every event, and every 20 ms once
        `start` was sent.

        Raises `TimeoutError` naming `what` (or the predicate), and `CallEnded` when the call is over and the
        predicate still false.
        """
        await self._begun.wait()
        if predicate(self.record):
            return self.record
        if self._over:
            raise CallEnded(f"the call is over ({self.record.reason}); waited for {what or _source(predicate)}")
        waiter: asyncio.Future[None] = self._loop.create_future()
        entry = (predicate, waiter)
        self._waiters.append(entry)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            raise TimeoutError(f"not within {timeout_s:g} s: {what or _source(predicate)}") from None
        except CallEnded as error:
            raise CallEnded(f"{error}; waited for {what or _source(predicate)}") from None
        finally:
            if entry in self._waiters:
                self._waiters.remove(entry)
        return self.record

    async def wait_started(self, timeout_s: float | None = 10.0) -> CallRecord:
        """Wait until `start` was sent."""
        return await self.wait_for(lambda record: record.started_t is not None, timeout_s, "start")

    def say(
        self, audio: bytes | npt.NDArray[np.int16], rate: int | None = None, *, label: str = ""
    ) -> asyncio.Future[None]:
        """Queue caller speech: wire bytes, or 16-bit samples at `rate` Hz (default: the stream's). It is sent as
        20 ms frames behind what is queued already. The future is done when the last frame has left."""
        data = audio if isinstance(audio, bytes) else self._format.encode(audio, rate or self._format.sample_rate)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._speech.append(_Speech(data, label, done))
        return done

    def speak_live(self, audio: bytes) -> None:
        """What the caller says just now, in wire bytes, as a microphone gives it; see `Microphone`. Speech that was
        queued by `say` goes first, and what is said meanwhile is lost."""
        self._microphone.push(audio)

    def press(self, digits: str) -> None:
        """Press keys: the first now, the others 0.1 s apart. Lost while no stream is up, as on a real call."""
        if not digits or not _DTMF.issuperset(digits):
            raise ValueError(f"{digits!r} cannot be dialled; the keys are 0-9 * # A-D")
        for index, digit in enumerate(digits):
            if index:
                self._later(index * _DTMF_SPACING_S, partial(self._press_one, digit))
            else:
                self._press_one(digit)

    def send_raw(self, payload: str | bytes, *, text: bool | None = None) -> None:
        """Send any message to the server as it is: `str` as a text frame, `bytes` as a binary one unless `text`.
        Lost while there is no connection."""
        data = payload.encode() if isinstance(payload, str) else payload
        as_text = isinstance(payload, str) if text is None else text
        self._note("plivo", "raw", {"bytes": len(data), "text": as_text})
        self._transmit(data, as_text)

    def hang_up(self, reason: str = "the caller hung up") -> None:
        """The caller hangs up now; the playout stops with it."""
        self._stop("completed", "caller", reason)

    def drop_connection(self) -> None:
        """The network between Plivo and the server breaks: no close frame. Plivo redials if `reconnects` allows."""
        if self._connection is not None:
            self._note("call", "connection_dropped", {})
            self._connection.abort()

    def fail(self, reason: str) -> None:
        """Give the call up as failed: the caller hangs up, and `reason` becomes the record's."""
        self._stop("failed", "caller", reason)

    # -- the life of the call

    async def _streams(self) -> None:
        """Dial, talk, and dial again as the switches allow, until the call is over."""
        redials = self.switches.reconnects
        while True:
            lost = await self._one_stream()
            if lost is None:
                return
            if not redials:
                self._status("DroppedStream", {"Error": lost})
                self._stop("failed", "plivo", lost)
                return
            redials -= 1
            self._note("call", "redialling", {"after_s": self.switches.reconnect_delay_s})
            await asyncio.wait({self._stopped}, timeout=self.switches.reconnect_delay_s)
            if self._stopped.done():
                self._status("StopStream", {})
                return

    async def _one_stream(self) -> str | None:
        """One connection from dialling to its end. None when the call is over, else how the connection was lost."""
        connection = self._line(self._incoming) if self._line is not None else self._socket()
        connection.stream_id = str(uuid.uuid4())
        self._note("call", "dialling", {})
        dialling = self._loop.create_task(self._dial(connection))
        await _first(dialling, self._stopped)
        if not dialling.done():
            dialling.cancel()
            await asyncio.gather(dialling, return_exceptions=True)
            connection.abort()
            return None
        try:
            dialling.result()
        except DialFailed as error:
            self.record.handshake_status = error.status
            self._note("call", "dial_failed", {"reason": str(error), "status": error.status})
            return str(error)
        self.record.handshake_status = 101
        self._wire = connection
        try:
            return await self._talk(connection)
        finally:
            self._wire = self._connection = None
            if connection.open:
                connection.abort()

    def _socket(self) -> Connection:
        return Connection(
            self._loop, self._incoming, lambda kind: self._note("server", kind, {}), self.switches.slow_reader_bytes_s
        )

    async def _dial(self, connection: Line) -> None:
        if not isinstance(connection, Connection):
            return
        headers = dict(self._headers)
        if self.switches.subprotocol:
            headers["Sec-WebSocket-Protocol"] = ", ".join(name.strip() for name in self.switches.subprotocol.split(","))
        await dial(
            connection, self.url, headers=headers, timeout_s=self._connect_timeout_s, ssl_context=self._ssl_context
        )
        self.record.subprotocol = connection.subprotocol
        if self.switches.subprotocol_required and self.record.subprotocol is None:
            connection.abort()
            raise DialFailed("the server selected none of the offered subprotocols", 101)

    async def _talk(self, connection: Line) -> str | None:
        await _first(self._stopped, connection.closed, timeout_s=self.switches.start_delay_s)
        timers: list[asyncio.TimerHandle] = []
        if not self._stopped.done() and not connection.closed.done():
            self._start(connection)
            if self.switches.ping_s:
                timers.append(self._later(self.switches.ping_s, partial(self._ping, connection)))
            if self._stream_timeout_s is not None:
                timers.append(
                    self._later(
                        self._stream_timeout_s, partial(self._stop, "completed", "plivo", "streamTimeout has passed")
                    )
                )
            await _first(self._stopped, connection.closed)
        for timer in timers:
            timer.cancel()
        if self._stopped.done() and not connection.closed.done():
            await self._say_goodbye(connection)
            self._status("StopStream", {})
            return None
        return self._server_closed(connection.closed.result())

    def _server_closed(self, closed: Closed) -> str | None:
        self._connection = None
        self.record.close_code, self.record.close_reason = closed.code, closed.reason
        self._note("server", "close", {"code": closed.code, "reason": closed.reason})
        if self._stopped.done():
            self._status("StopStream", {})
            return None
        if closed.normal:
            self._status("StopStream", {})
            self._stop("completed", "agent", f"the server closed the stream with code {closed.code}")
            return None
        how = f" ({closed.reason})" if closed.reason else ""
        if closed.dropped:
            lost = "the connection was lost without a close frame"
        else:
            lost = f"the server closed the stream with code {closed.code}{how}"
            if self.switches.reconnect_on == "drop":
                self._status("DroppedStream", {"Error": lost})
                self._stop("failed", "agent", lost)
                return None
        if self.switches.queue_on_reconnect == "lost":
            self._collect()
            self.record.cleared_bytes += self._playout.clear(self.now).audio_bytes
        return lost

    async def _say_goodbye(self, connection: Line) -> None:
        if self._connection is connection and self.switches.send_stop != "off":
            self._send_stop()
        self._upline.push(connection.close)
        limit = _GOODBYE_S + 2 * (self.switches.delay_s + self.switches.jitter_s)
        await asyncio.wait({connection.closed}, timeout=limit)
        if connection.closed.done():
            closed = connection.closed.result()
            self.record.close_code, self.record.close_reason = closed.code, closed.reason
        else:
            self.record.close_code = 1006

    def _start(self, connection: Line) -> None:
        self._connection = connection
        self.record.stream_ids.append(connection.stream_id)
        self._sequence = self.switches.seq_start
        self._chunk = 0
        self._degraded = 0
        extra = {} if self._extra_headers == ABSENT else {"extra_headers": self._extra_headers}
        tail = "".join(f',"{key}":{json.dumps(value)}' for key, value in extra.items())
        self._media_parts = (
            '{"event":"media","sequenceNumber":',
            f',"streamId":"{connection.stream_id}","media":{{"track":"inbound","timestamp":"',
            '","chunk":',
            ',"payload":"',
            '"}' + tail + "}",
        )
        self._send(
            "start",
            {
                "start": {
                    "callId": self.record.call_id,
                    "streamId": connection.stream_id,
                    "accountId": self.record.account_id,
                    "tracks": ["inbound"],
                    "mediaFormat": {"encoding": self._format.encoding, "sampleRate": self._format.sample_rate},
                },
                **extra,
            },
        )
        self._status("StartStream", {})
        if self.record.started_t is not None:
            return
        self.record.started_t = self.now
        if self.switches.hang_up_at_s:
            self._later(self.switches.hang_up_at_s, self.hang_up)
        self._first_tick = self._loop.time()
        self._first_tick_ms = round(self._wall_clock() * 1000)
        self._tick()

    def _stop(self, outcome: str, ended_by: str, reason: str) -> None:
        if not self._begun.is_set():
            raise RuntimeError("the call has not begun; start run() first")
        if self._stopped.done():
            return
        # The phone line goes dead at this moment, whatever the connection still does.
        self._collect()
        self._stopped.set_result((outcome, ended_by, reason))
        self.record.ended_t = self.now
        self._end_hearing()
        if self._tick_timer is not None:
            self._tick_timer.cancel()
        if self._due_timer is not None:
            self._due_timer.cancel()
        self._note("call", "hang_up" if ended_by == "caller" else "ended", {"reason": reason})

    def _finish(self) -> None:
        if not self._stopped.done():  # run() was cancelled
            self._stop("failed", "caller", "the simulation was cancelled")
        for timer in [self._tick_timer, self._due_timer, *self._timers]:
            if timer is not None:
                timer.cancel()
        self._upline.stop()
        self._downline.stop()
        record = self.record
        record.outcome, record.ended_by, record.reason = self._stopped.result()
        self._over = True
        for speech in self._speech:
            speech.done.cancel()
        for predicate, waiter in self._waiters:
            if waiter.done():
                continue
            try:
                if predicate(record):
                    waiter.set_result(None)
                else:
                    waiter.set_exception(CallEnded(f"the call is over ({record.reason})"))
            except Exception as error:
                waiter.set_exception(error)

    async def _run_script(self, script: Callable[[SimulatedCall], Awaitable[None]]) -> None:
        try:
            await self.wait_started(timeout_s=None)
            await script(self)
        except CallFailed as error:
            self.fail(str(error))
        except CallEnded:
            pass  # the call's own outcome says what happened
        except Exception as error:
            self.fail(f"the script failed: {type(error).__name__}: {error}")
            raise

    # -- what Plivo sends

    def _tick(self) -> None:
        """Send the caller's next 20 ms, on a grid that does not drift, and look at what is waited for."""
        loop_time = self._loop.time()
        while self._first_tick + self._ticks * _TICK <= loop_time + 1e-6:
            self._send_media()
            self._ticks += 1
            if self._stopped.done():
                return
        self._tick_timer = self._loop.call_at(self._first_tick + self._ticks * _TICK, self._tick)
        self._watch_hearing()
        if self._waiters:
            self._look()
        if self._ticks % _CHECK_UNSENT_EVERY == 0 and self._connection is not None:
            self._watch_unsent(self._connection)

    def _send_media(self) -> None:
        payload = self._next_payload()
        if self._connection is None:
            return
        before, stream, chunk_key, payload_key, after = self._media_parts
        sequence = self._sequence
        self._sequence = sequence + 1
        self._chunk += 1
        timestamp = self._first_tick_ms + self._ticks * FRAME_MS
        self._transmit(
            f"{before}{sequence}{stream}{timestamp}{chunk_key}{self._chunk}{payload_key}{payload}{after}".encode()
        )
        self.record.media_sent_at.append(self._loop.time() - self.record.began_at)

    def _next_payload(self) -> str:
        live = self._microphone.frame()
        if self._speech:
            return self._next_speech()
        return self._silent_payload if live is None else _base64(live)

    def _next_speech(self) -> str:
        frame = bytearray()
        while self._speech and len(frame) < self._format.frame_bytes:
            speech = self._speech[0]
            if speech.sent == 0:
                seconds = len(speech.audio) / self._format.bytes_per_second
                self._note("call", "caller_speaks", {"seconds": round(seconds, 3), "label": speech.label})
            piece = speech.audio[speech.sent : speech.sent + self._format.frame_bytes - len(frame)]
            frame += piece
            speech.sent += len(piece)
            if speech.sent >= len(speech.audio):
                self._speech.popleft()
                if not speech.done.done():
                    speech.done.set_result(None)
        missing = self._format.frame_bytes - len(frame)
        frame += bytes([self._format.silent_byte]) * missing
        return _base64(frame)

    def _press_one(self, digit: str) -> None:
        if self._connection is None or self._stopped.done():
            self._note("call", "key_lost", {"digit": digit})
            return
        extra = {} if self._extra_headers == ABSENT else {"extra_headers": self._extra_headers}
        timestamp = str(round(self._wall_clock() * 1000))
        dtmf = {"track": "inbound", "digit": digit, "timestamp": timestamp}
        self._send("dtmf", {"streamId": self._connection.stream_id, "dtmf": dtmf, **extra})

    def _send_stop(self) -> None:
        assert self._connection is not None
        if self.switches.send_stop == "bare":
            self._note("plivo", "stop", {})
            self._transmit(b'{"event":"stop"}')
            return
        stream_id = self._connection.stream_id
        stop = {"callId": self.record.call_id, "streamId": stream_id, "reason": "hangup"}
        self._send("stop", {"streamId": stream_id, "stop": stop})

    def _send(self, event: str, fields: dict[str, Any], *, sequence: bool = True) -> None:
        """Send a JSON event and note it; `sequence` gives it the next sequenceNumber."""
        message: dict[str, Any] = {"event": event}
        if sequence:
            message["sequenceNumber"] = self._sequence
            self._sequence += 1
        message.update(fields)
        self._transmit(json.dumps(message, separators=(",", ":")).encode())
        self._note("plivo", event, {key: value for key, value in message.items() if key != "event"})

    def _transmit(self, payload: bytes, text: bool = True) -> None:
        connection = self._wire
        if connection is None:
            return
        if self._keep_raw:
            self.record.raw_sent.append(RawFrame(self.now, payload, text))
        if self.switches.delay_s or self.switches.jitter_s:
            self._upline.push(partial(connection.send, payload, text))
        else:
            connection.send(payload, text)

    def _ping(self, connection: Line) -> None:
        self._note("plivo", "ping", {})
        self._upline.push(connection.ping)
        self._later(self.switches.ping_s, partial(self._ping, connection))

    def _watch_unsent(self, connection: Line) -> None:
        """Plivo keeps `send_buffer_s` of audio for a slow server, warns at 30, 60 and 90 %, then drops the stream."""
        unsent = connection.unsent_bytes()
        if not unsent:
            self._degraded = 0
            return
        frame = sum(map(len, self._media_parts)) + len(self._silent_payload) + 40
        share = unsent / (frame / _TICK) / self.switches.send_buffer_s
        level = sum(share >= limit for limit in _DEGRADED_AT)
        while self._degraded < level:
            percent = f"{_DEGRADED_AT[self._degraded]:.0%}"
            self._degraded += 1
            self._note("call", "degraded", {"buffer": percent})
            self._status("DegradedStream", {"Error": f"buffer at {percent}"})
        if share >= 1:
            self._note("call", "server_too_slow", {})
            connection.abort()

    # -- what the server sends

    def _incoming(self, connection: Line, item: Message | Closed) -> None:
        self._downline.push((connection, item))

    def _arrived(self, arrival: tuple[Line, Message | Closed]) -> None:
        connection, item = arrival
        if isinstance(item, Closed):
            if not connection.closed.done():
                connection.closed.set_result(item)
            return
        if self._keep_raw:
            self.record.raw_received.append(RawFrame(self.now, item.payload, item.text))
        if self._stopped.done():
            return  # nobody is listening any more
        self._collect()
        if not item.text:
            self._ignore("binary", "a binary message", len(item.payload))
            return
        try:
            message = json.loads(item.payload.decode())
        except (ValueError, RecursionError):
            self._ignore("invalid", "not JSON", len(item.payload))
            return
        event = message.get("event") if isinstance(message, dict) else None
        if event == "playAudio":
            self._play(connection, message)
        elif event == "checkpoint":
            self._checkpoint(connection, message)
        elif event == "clearAudio":
            self._clear(connection, message)
        elif event == "sendDTMF":
            self._note("server", "sendDTMF", {"dtmf": message.get("dtmf")})
        else:
            self._note("server", "unknown", {"message": message})

    def _play(self, connection: Line, message: dict[str, Any]) -> None:
        if not self._bidirectional:
            self._ignore("playAudio", "the stream is not bidirectional")
            return
        if "streamId" in message and message["streamId"] != connection.stream_id:
            self._ignore("playAudio", "foreign streamId")
            return
        try:
            audio = self._audio_of(message.get("media"))
        except ValueError as error:
            self._ignore("playAudio", str(error))
            if self.switches.bad_audio == "playFailed":
                self._send("playFailed", {"streamId": connection.stream_id, "reason": str(error)}, sequence=False)
            return
        self.record.play_received_at.append(self.now)
        self.record.play_bytes.append(len(audio))
        self._playout.push(audio, self.now)
        if self._waiters:
            self._look()

    def _audio_of(self, media: Any) -> bytes:
        """The bytes of a playAudio's `media`; raises ValueError with what is wrong."""
        if not isinstance(media, dict):
            raise ValueError("media is missing")
        content_type, rate, payload = media.get("contentType"), media.get("sampleRate"), media.get("payload")
        if content_type != self._format.encoding:
            raise ValueError(f"contentType is not {self._format.encoding}")
        if rate != self._format.sample_rate and rate != str(self._format.sample_rate):
            raise ValueError(f"sampleRate is not {self._format.sample_rate}")
        if not isinstance(payload, str):
            raise ValueError("payload is missing")
        try:
            audio = binascii.a2b_base64(payload, strict_mode=True) if payload else b""
        except ValueError:
            raise ValueError("payload is not base64") from None
        if len(audio) % self._format.sample_bytes:
            raise ValueError("payload ends inside a sample")
        return audio

    def _checkpoint(self, connection: Line, message: dict[str, Any]) -> None:
        name = message.get("name")
        if message.get("streamId") != connection.stream_id:
            self._ignore("checkpoint", "missing or foreign streamId")
        elif not isinstance(name, str) or not name:
            self._ignore("checkpoint", "missing name")
        else:
            self._note("server", "checkpoint", {"name": name})
            self._playout.checkpoint(name, self.now)
            self._collect()

    def _clear(self, connection: Line, message: dict[str, Any]) -> None:
        if message.get("streamId") != connection.stream_id:
            self._ignore("clearAudio", "missing or foreign streamId")
            return
        cleared = self._playout.clear(self.now)
        self.record.cleared_bytes += cleared.audio_bytes
        self._note("server", "clearAudio", {"bytes": cleared.audio_bytes, "checkpoints": list(cleared.checkpoints)})
        pending = self.switches.pending_checkpoints_on_clear
        if pending == "fire_now":
            for name in cleared.checkpoints:
                self._send_played(name)
        answer = self.switches.cleared_answer(self._cleared_count)
        self._cleared_count += 1
        if answer in ("normal", "double"):
            self._send_cleared(connection)
        if answer == "double":
            self._send_cleared(connection)
        if answer == "late":
            self._later(self.switches.cleared_audio_delay_s, partial(self._send_cleared, connection))
        if pending == "fire_late":
            for name in cleared.checkpoints:
                self._later(self.switches.pending_checkpoint_delay_s, partial(self._send_played, name))

    def _ignore(self, kind: str, why: str, size: int | None = None) -> None:
        self._note("server", "ignored", {"event": kind, "why": why} | ({} if size is None else {"bytes": size}))

    # -- the playout

    def _collect(self) -> None:
        """Play up to now, answer the checkpoints that were reached, and be back in time for the next one."""
        for reached in self._playout.advance(self.now):
            self._send_played(reached.name, reached.at)
        due = self._playout.next_due()
        if due is None:
            return
        when = self.record.began_at + due
        if self._due_timer is not None and not self._due_timer.cancelled():
            if self._loop.time() < self._due_at <= when:
                return
            self._due_timer.cancel()
        self._due_at = when
        self._due_timer = self._loop.call_at(when, self._due)

    def _collect_live(self) -> None:
        if not self._stopped.done():
            self._collect()

    def _due(self) -> None:
        self._due_timer = None
        self._collect_live()

    def _send_played(self, name: str, at: float | None = None) -> None:
        connection = self._connection
        if connection is None:
            self._note("call", "playedStream_lost", {"name": name})
            return
        self._send("playedStream", {"streamId": connection.stream_id, "name": name}, sequence=self.switches.played_seq)
        self._status("PlayedStream", {"Name": name})

    def _send_cleared(self, connection: Line) -> None:
        if self._connection is connection:
            self._send("clearedAudio", {"streamId": connection.stream_id})
            self._status("ClearedAudio", {})

    def _watch_hearing(self) -> None:
        """Note when the caller begins to hear something, and when that has ended."""
        self._collect()
        until = self._playout.audible_until
        if self._hearing_since is None:
            if self._playout.heard_bytes > self._noted_bytes:
                self._hearing_since = self._playout.playing_since
                self._note("call", "hears", {}, self._hearing_since)
        elif until < self.now - _HEARING_GAP_S:
            self._end_hearing()

    def _end_hearing(self) -> None:
        if self._hearing_since is not None:
            since, until = self._hearing_since, self._playout.audible_until
            self._hearing_since = None
            self._noted_bytes = self._playout.heard_bytes
            self._note("call", "heard", {"since": since, "seconds": until - since}, until)

    # -- bookkeeping

    def _note(self, source: str, kind: str, data: dict[str, Any], t: float | None = None) -> None:
        event = Event(self.now if t is None else t, source, kind, data)
        self.record.events.append(event)
        if self._on_event is not None:
            self._on_event(event)
        if self._waiters and not self._look_soon:
            self._look_soon = True
            self._loop.call_soon(self._look)  # not from inside: what noted this may be half done

    def _look(self) -> None:
        self._look_soon = False
        if not self._waiters or self._over:
            return
        record = self.record
        for predicate, waiter in list(self._waiters):
            if waiter.done():
                continue
            try:
                if predicate(record):
                    waiter.set_result(None)
            except Exception as error:
                waiter.set_exception(error)

    def _status(self, event: str, fields: dict[str, str]) -> None:
        if self._on_status is None:
            return
        stream = self.record.stream_ids[-1] if self.record.stream_ids else ""
        self._on_status(event, {"StreamID": stream, **fields})

    def _later(self, delay: float, action: Callable[[], None]) -> asyncio.TimerHandle:
        """`call_later` that dies with the call."""

        def fire() -> None:
            self._timers.discard(handle)
            if not self._stopped.done():
                action()

        handle = self._loop.call_later(delay, fire)
        self._timers.add(handle)
        return handle


def _base64(data: bytes | bytearray) -> str:
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def _call(action: Callable[[], None]) -> None:
    action()


def _source(predicate: Callable[..., object]) -> str:
    try:
        return " ".join(inspect.getsource(predicate).split())
    except (OSError, TypeError):
        return repr(predicate)


async def _first(*futures: asyncio.Future[Any], timeout_s: float | None = None) -> None:
    """Wait until one of the futures is done or the time is over; cancels none."""
    await asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
