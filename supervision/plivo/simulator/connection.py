"""One WebSocket connection from the stand-in to a server, and the delayed line between them."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Generic, TypeVar

from picows import WSCloseCode, WSError, WSFrame, WSHandshakeError, WSListener, WSMsgType, WSTransport, ws_connect

__all__ = ["Closed", "Connection", "DelayLine", "DialFailed", "Message", "dial"]

_log = logging.getLogger(__name__)

_Item = TypeVar("_Item")

MAX_MESSAGE_BYTES = 32 * 1024 * 1024
"""Above the 16 MiB that an agent may send in one message, so that this stand-in is not the one to break a call."""

_LINGER_S = 2.0
"""How long what is unsent may still go out after the server's close frame."""

_NORMAL = frozenset({1000, 1001, 1005})


@dataclass(frozen=True, slots=True)
class Message:
    """A whole WebSocket message from the server; `text` is False for a binary one."""

    payload: bytes
    text: bool


@dataclass(frozen=True, slots=True)
class Closed:
    """The end of a connection. `code` is 1006 without a close frame and 1005 for one without a code."""

    code: int
    reason: str

    @property
    def normal(self) -> bool:
        return self.code in _NORMAL

    @property
    def dropped(self) -> bool:
        return self.code == 1006


class DialFailed(Exception):
    """The connection could not be made; `status` is the HTTP status of the answer when there was one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class DelayLine(Generic[_Item]):
    """Hands items over in order, each after `delay` plus up to `jitter` seconds; at once when both are 0."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        deliver: Callable[[_Item], None],
        *,
        delay: float,
        jitter: float,
        random: Random,
    ) -> None:
        self._loop = loop
        self._deliver = deliver
        self._delay = delay
        self._jitter = jitter
        self._random = random
        self._items: deque[tuple[float, _Item]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def push(self, item: _Item) -> None:
        if not self._delay and not self._jitter:
            self._deliver(item)
            return
        due = self._loop.time() + self._delay + self._jitter * self._random.random()
        if self._items:
            due = max(due, self._items[-1][0])
        self._items.append((due, item))
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._fire)

    def stop(self) -> None:
        """Forget what is under way."""
        self._items.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        now = self._loop.time() + 1e-6
        while self._items and self._items[0][0] <= now:
            self._deliver(self._items.popleft()[1])
        if self._items and self._timer is None:
            self._timer = self._loop.call_at(self._items[0][0], self._fire)


class Connection(WSListener):
    """A connection as picows drives it. Messages, pings and the end go to `receive`, in order."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        receive: Callable[[Connection, Message | Closed], None],
        control: Callable[[str], None],
        bytes_per_second: int,
    ) -> None:
        self._loop = loop
        self._receive = receive
        self._control = control
        self._bytes_per_second = bytes_per_second
        self._resume_at = 0.0
        self._parts: list[bytes] = []
        self._parts_text = True
        self._ended = False
        self._transport: WSTransport | None = None
        self.closed: asyncio.Future[Closed] = loop.create_future()
        """Done when the end has reached this side of the delayed line; set by the owner."""
        self.stream_id = ""

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._ended

    def send(self, payload: bytes | str, text: bool = True) -> None:
        """Send one message; nothing when the connection has ended."""
        if self._transport is not None and not self._ended:
            self._transport.send(WSMsgType.TEXT if text else WSMsgType.BINARY, payload)

    def ping(self) -> None:
        if self._transport is not None and not self._ended:
            self._transport.send_ping(b"")

    def close(self) -> None:
        """Begin the closing handshake with code 1000."""
        if self._transport is not None and not self._ended:
            self._transport.send_close(WSCloseCode.OK, b"")

    def abort(self) -> None:
        """Break the connection without a word, as a lost network does."""
        if self._transport is not None:
            self._transport.disconnect(False)

    def unsent_bytes(self) -> int:
        """What waits in this process for a server that reads too slowly."""
        if self._transport is None or self._ended:
            return 0
        return int(self._transport.underlying_transport.get_write_buffer_size())

    @property
    def subprotocol(self) -> str | None:
        if self._transport is None:
            return None
        return self._transport.response.headers.get("Sec-WebSocket-Protocol")

    # -- called by picows

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if self._ended:
            return
        kind = frame.msg_type
        if kind is WSMsgType.TEXT or kind is WSMsgType.BINARY:
            payload = frame.get_payload_as_bytes()
            if frame.fin:
                self._receive(self, Message(payload, kind is WSMsgType.TEXT))
            else:
                self._parts = [payload]
                self._parts_text = kind is WSMsgType.TEXT
        elif kind is WSMsgType.CONTINUATION:
            self._parts.append(frame.get_payload_as_bytes())
            if sum(map(len, self._parts)) > MAX_MESSAGE_BYTES:
                transport.send_close(WSCloseCode.MESSAGE_TOO_BIG, b"")
                transport.disconnect()
            elif frame.fin:
                whole, self._parts = b"".join(self._parts), []
                self._receive(self, Message(whole, self._parts_text))
        elif kind is WSMsgType.CLOSE:
            payload = frame.get_payload_as_bytes()
            if not transport.is_close_frame_sent:
                transport.send_close(WSCloseCode.OK, b"")
            transport.disconnect()
            self._loop.call_later(_LINGER_S, transport.disconnect, False)
            code = int.from_bytes(payload[:2]) if payload else 1005
            self._end(Closed(code, payload[2:].decode(errors="replace")))
        elif kind is WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
            self._control("ping")
        else:
            self._control("pong")
        if self._bytes_per_second:
            self._throttle(transport, frame.payload_size)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._end(Closed(1006, ""))

    def pause_writing(self) -> None:
        pass  # `unsent_bytes` is looked at instead

    def resume_writing(self) -> None:
        pass

    # -- inside

    def _end(self, closed: Closed) -> None:
        if not self._ended:
            self._ended = True
            self._receive(self, closed)

    def _throttle(self, transport: WSTransport, size: int) -> None:
        now = self._loop.time()
        resting = self._resume_at > now
        self._resume_at = max(now, self._resume_at) + size / self._bytes_per_second
        if not resting and not self._ended:
            transport.underlying_transport.pause_reading()
            self._loop.call_at(self._resume_at, self._resume, transport)

    def _resume(self, transport: WSTransport) -> None:
        if self._ended:
            return
        if self._resume_at > self._loop.time() + 1e-6:  # more frames came out of what had already been read
            self._loop.call_at(self._resume_at, self._resume, transport)
        else:
            transport.underlying_transport.resume_reading()


async def dial(
    connection: Connection,
    url: str,
    *,
    headers: Mapping[str, str],
    timeout_s: float,
    ssl_context: ssl.SSLContext | None,
) -> None:
    """Connect `connection` to a `ws://` or `wss://` URL. Redirects are refused. Raises `DialFailed`."""
    if _log.level == logging.NOTSET:
        _log.setLevel(logging.WARNING)  # picows tells of every connection it opens and closes
    try:
        async with asyncio.timeout(timeout_s):
            await ws_connect(
                lambda: connection,
                url,
                ssl_context=ssl_context,
                websocket_handshake_timeout=None,
                enable_auto_pong=False,  # answered in `on_ws_frame`, which also notes them
                max_frame_size=MAX_MESSAGE_BYTES,
                extra_headers=dict(headers),
                max_redirects=0,
                logger_name=_log,
            )
    except WSHandshakeError as error:
        status = None if error.response is None else int(error.response.status)
        if status is not None and status != 101:
            raise DialFailed(f"the server refused the WebSocket handshake with HTTP {status}", status) from error
        raise DialFailed(f"the server's WebSocket handshake is broken: {error}", status) from error
    except TimeoutError as error:
        raise DialFailed(f"no answer to the WebSocket handshake within {timeout_s:g} s") from error
    except (WSError, OSError, ssl.SSLError, ValueError) as error:
        raise DialFailed(f"cannot connect: {error}") from error
