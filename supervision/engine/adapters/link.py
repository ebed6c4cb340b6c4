"""The link of a call: a relay between Plivo and the agent, in the agent's own process.

Frames come from a tap, or from a user who hands them in; the relay decides which go where, and the link carries its
decisions out, in order. Until Plivo's `start` has told what stream this is, everything passes as it is.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from supervision.audio.format import MediaFormat, MediaFormatError
from supervision.engine.adapters.relay import CallRelay
from supervision.engine.adapters.tap import Tap, tap
from supervision.engine.adapters.turn_audio import TurnAudio
from supervision.engine.alarm import Alarm
from supervision.plivo import events

logger = logging.getLogger(__name__)

CLOSE_WAITS_S: Final = 10.0  # how long an intervention may go on after the agent said goodbye


@dataclass(frozen=True, slots=True)
class Start:
    """What Plivo's `start` says of a stream. `media_format` is None when it names none that is known; then `problem`
    says what it names."""

    call_id: str
    stream_id: str
    media_format: MediaFormat | None
    problem: str = ""

    @classmethod
    def of(cls, frame: Any) -> Start | None:
        """Of a decoded frame; None when it is no `start`, or has no stream id."""
        if not isinstance(frame, dict) or frame.get("event") != "start" or not isinstance(frame.get("start"), dict):
            return None
        start = frame["start"]
        call_id, stream_id = start.get("callId"), start.get("streamId")
        if not isinstance(stream_id, str) or not stream_id:
            return None
        media_format, told = None, ""
        try:
            media_format = MediaFormat.from_start(start.get("mediaFormat"))
        except MediaFormatError as problem:
            told = f"Mirror cannot speak on this stream: {problem}"
            logger.warning("%s", told)
        return cls(call_id if isinstance(call_id, str) else "", stream_id, media_format, told)


class LinkListener(Protocol):
    """What a link tells of its call. Called from inside frame handling: quick, and never raising."""

    def stream_started(self, start: Start) -> None:
        """Plivo's `start` was read; the relay is there."""

    def caller_pressed(self) -> None:
        """The caller pressed a key."""

    def agent_cleared(self) -> None:
        """The agent sent clearAudio."""

    def turn_started(self, turn: TurnAudio) -> None:
        """The first audio of a turn arrived."""

    def turn_ended(self, turn: TurnAudio) -> None:
        """No more audio of this turn will be played."""

    def caller_gone(self) -> None:
        """The stream is over."""

    async def quiet(self) -> None:
        """Return when no intervention is running."""


class StreamLink:
    """One Plivo stream in the agent's own process. One event loop drives it."""

    def __init__(self, listener: LinkListener) -> None:
        self.relay: CallRelay | None = None
        self.tapped: Tap | None = None
        self.ended = False
        self._listener = listener
        self._send: Callable[[str], Awaitable[None]] | None = None
        self._hand_on: Callable[[str], None] | None = None
        self._outbox: deque[tuple[str, asyncio.Future[None] | None]] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._broken: Exception | None = None
        self._alarm = Alarm(self._pump)

    def tap(self, socket: Any) -> bool:
        """Tap a socket. False when it is of no kind that can be tapped."""
        self.tapped = tap(socket, self)
        if self.tapped is not None:
            self._send = self.tapped.to_plivo
        return self.tapped is not None

    def untapped(self, send: Callable[[str], Awaitable[None]], to_agent: Callable[[str], None]) -> None:
        """The user hands the frames in, one by one: `send` sends one to Plivo, `to_agent` gets those for the agent."""
        self._send, self._hand_on = send, to_agent

    def open(self, start: Start) -> None:
        """The stream has begun. Another `start` for the same stream changes nothing."""
        if self.relay is not None and self.relay.stream_id == start.stream_id:
            return
        if start.media_format is not None:
            self.relay = CallRelay(
                stream_id=start.stream_id,
                media_format=start.media_format,
                to_plivo=self._to_plivo,
                to_agent=self._to_agent,
                listener=self,
            )
            self.relay.hello = True  # the relay's word for: this call is supervised
        self._listener.stream_started(start)

    def close(self) -> None:
        """Mirror leaves the call: what is queued for Plivo still goes out, and from then on everything passes."""
        if self.relay is not None and not self.ended:
            self.relay.hand_back(self._now())
            self.relay.release(self._now())
        self._alarm.cancel()
        self.relay = None
        if self.tapped is not None:
            self.tapped.close()

    # -- frames

    def plivo_text(self, text: str) -> None:
        """A text frame from Plivo."""
        if not events.is_media(text) and '"start"' in text:
            start = Start.of(_decoded(text))
            if start is not None:
                self.open(start)
        if self.relay is not None:
            self.relay.plivo_text(text, self._now())
        else:
            self._to_agent(text)

    async def agent_text(self, text: str) -> None:
        """A text frame of the agent's. Returns when all that it released has been sent; raises what sending raised."""
        if self._broken is not None:
            raise self._broken
        if self.relay is not None and not self.ended:
            self.relay.agent_text(text, self._now())
        else:
            self._to_plivo(text)
        await self._flushed()

    async def agent_closing(self) -> None:
        """The agent closes the socket: a correction that is being spoken ends first, within 10 seconds."""
        try:
            async with asyncio.timeout(CLOSE_WAITS_S):
                await self._listener.quiet()
        except TimeoutError:
            logger.warning("The agent closed its stream while Mirror was speaking, and was not waited for any longer")
        if self.relay is not None:
            self.relay.release(self._now())
        if self._broken is None:
            await self._flushed()

    def gone(self) -> None:
        """The stream is over."""
        if self.ended:
            return
        self.ended = True
        self._alarm.cancel()
        self._listener.caller_gone()

    def _to_agent(self, text: str) -> None:
        if self.tapped is not None:
            self.tapped.to_agent(text, media=events.is_media(text))
        elif self._hand_on is not None:
            self._hand_on(text)

    def _to_plivo(self, text: str, sent: asyncio.Future[None] | None = None) -> None:
        self._outbox.append((text, sent))
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def _flushed(self) -> None:
        """Return when all that is in the outbox has been sent. Raises what sending raised."""
        if self._outbox or self._writer is not None:
            sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._to_plivo("", sent)
            await sent
        if self._broken is not None:
            raise self._broken

    async def _write(self) -> None:
        try:
            while self._outbox:
                text, sent = self._outbox.popleft()
                if text and self._broken is None:
                    await self._sent(text)
                if sent is not None and not sent.done():
                    sent.set_result(None)
        finally:
            self._writer = None

    async def _sent(self, text: str) -> None:
        try:
            if self._send is None:
                raise ConnectionError("this stream has no socket to send to")
            await self._send(text)
        except Exception as problem:
            # Raised again in the agent's next send, as its own socket would have done.
            self._broken = problem
            self.gone()

    # -- what the relay tells

    def mirror_frame(self, frame: dict[str, Any]) -> None:
        """`mirror.*` frames are the service's; Plivo would ignore them."""

    def mirror_garbled(self, message: str) -> None:
        """See `mirror_frame`."""

    def turn_started(self, turn: TurnAudio) -> None:
        """See `LinkListener`."""
        self._listener.turn_started(turn)

    def turn_ended(self, turn: TurnAudio) -> None:
        """See `LinkListener`."""
        self._listener.turn_ended(turn)

    def caller_pressed(self) -> None:
        """See `LinkListener`."""
        self._listener.caller_pressed()

    def agent_cleared(self) -> None:
        """See `LinkListener`."""
        self._listener.agent_cleared()

    def media_dropped(self, direction: str, seconds: float) -> None:
        """Audio was lost to a limit."""
        logger.warning(
            "%.1f s of the %s's audio were dropped: too much waited behind an intervention", seconds, direction
        )

    def wake_at(self, when: float) -> None:
        """Call the relay's `pump` at this loop time."""
        if not self.ended:
            self._alarm.set(when)

    def _pump(self) -> None:
        if self.relay is not None and not self.ended:
            self.relay.pump(self._now())

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
