"""The tap: reads and writes a user's own WebSocket below the framework that owns it.

`plivo-stream-sdk` awaits its user's callbacks in the task that reads the socket. Whoever waits inside a callback for
something that Plivo has to say would wait for ever, so the tap reads the socket in a task of its own and hands the
frames on; and it sees what the agent sends before Plivo does. It works on the very object that the framework holds, by
the public methods of that one object: no class is changed, and other sockets stay as they are.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any, Final, Protocol

logger = logging.getLogger(__name__)

UNREAD_CHARS: Final = 2 * 1024 * 1024  # for an agent that does not read: about 90 s of 20 ms mu-law frames


class TapListener(Protocol):
    """What a tap tells. Nothing here may raise but what is said."""

    def plivo_text(self, text: str) -> None:
        """A text frame came from Plivo."""

    async def agent_text(self, text: str) -> None:
        """The agent sends a text frame. Raises what sending to Plivo raised."""

    async def agent_closing(self) -> None:
        """The agent closes the socket; it is closed on return."""

    def gone(self) -> None:
        """The socket is closed, by either side."""


class Tap(Protocol):
    """A tapped socket."""

    def to_agent(self, text: str, *, media: bool) -> None:
        """Hand a text frame to the framework, behind those before it. Of `media` the oldest are dropped when the
        framework has not read for long."""

    async def to_plivo(self, text: str) -> None:
        """Send a text frame. Raises what the framework's socket raises."""

    def close(self) -> None:
        """Stop reading. What was read is still handed on; afterwards the socket is its owner's alone."""


class Inbox:
    """Messages between the tap's reader and the framework's receive calls; unbounded but for media."""

    def __init__(self) -> None:
        self._items: deque[tuple[Any, int]] = deque()  # (message, its characters, 0 when it must not be dropped)
        self._chars = 0
        self._changed = asyncio.Event()
        self._end: BaseException | None = None
        self._ended = False
        self._dropped = 0

    def put(self, message: Any, media_chars: int = 0) -> None:
        """Append a message; `media_chars` is its length when it may be dropped for newer ones."""
        self._items.append((message, media_chars))
        self._chars += media_chars
        while self._chars > UNREAD_CHARS:
            self._drop_oldest()
        self._changed.set()

    def _drop_oldest(self) -> None:
        index = next(index for index, (_, chars) in enumerate(self._items) if chars)
        self._chars -= self._items[index][1]
        del self._items[index]
        self._dropped += 1
        if self._dropped == 1:
            logger.warning("The agent does not read its stream: the oldest of the caller's audio is dropped")

    async def get(self) -> tuple[bool, Any]:
        """(True, message), or (False, None) after the last one. Raises what ended the reading, if anything did."""
        while not self._items:
            if self._end is not None:
                raise self._end
            if self._ended:
                return False, None
            self._changed.clear()
            await self._changed.wait()
        message, chars = self._items.popleft()
        self._chars -= chars
        return True, message

    def end(self, error: BaseException | None) -> None:
        """No more messages come."""
        self._ended, self._end = True, error
        self._changed.set()


class _Reading:
    """What both kinds of tapped sockets share: the reader, which starts when the framework first reads."""

    def __init__(self, listener: TapListener) -> None:
        self._listener = listener
        self._inbox = Inbox()
        self._reader: asyncio.Task[None] | None = None
        self._closed = False

    def _start(self) -> None:
        if self._reader is None and not self._closed:
            self._reader = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        error: BaseException | None = None
        try:
            await self._messages()
        except asyncio.CancelledError:
            return
        except Exception as problem:
            # Whatever closed the socket is the framework's to learn, in its own receive call.
            error = problem
        finally:
            self._inbox.end(error)
            if not self._closed:
                self._listener.gone()

    async def _messages(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """See `Tap`."""
        self._closed = True
        if self._reader is not None:
            self._reader.cancel()


class StarletteTap(_Reading):
    """A tapped Starlette or FastAPI WebSocket."""

    def __init__(self, websocket: Any, listener: TapListener) -> None:
        super().__init__(listener)
        self._websocket = websocket
        self._receive, self._send = websocket.receive, websocket.send
        websocket.receive, websocket.send = self.receive, self.send

    async def receive(self) -> Any:
        """In place of the WebSocket's own `receive`: its next ASGI message."""
        if self._websocket.client_state.name == "CONNECTING":
            # `websocket.connect`: nothing can be read or sent before the framework has accepted.
            return await self._receive()
        self._start()
        if self._reader is None:
            return await self._receive()
        more, message = await self._inbox.get()
        return message if more else await self._receive()

    async def send(self, message: Any) -> None:
        """In place of the WebSocket's own `send`."""
        text = message.get("text")
        if isinstance(text, str):
            await self._listener.agent_text(text)
            return
        if message.get("type") == "websocket.close":
            await self._listener.agent_closing()
            await self._send(message)
            self._listener.gone()
            return
        await self._send(message)

    async def _messages(self) -> None:
        while True:
            message = await self._receive()
            text = message.get("text")
            if isinstance(text, str):
                self._listener.plivo_text(text)
            else:
                self._inbox.put(message)
            if message["type"] == "websocket.disconnect":
                return

    def to_agent(self, text: str, *, media: bool) -> None:
        """See `Tap`."""
        self._inbox.put({"type": "websocket.receive", "text": text}, len(text) if media else 0)

    async def to_plivo(self, text: str) -> None:
        """See `Tap`."""
        await self._send({"type": "websocket.send", "text": text})


class ConnectionTap(_Reading):
    """A tapped connection of the `websockets` library, or of anything with its `recv`, `send` and `close`."""

    def __init__(self, connection: Any, listener: TapListener) -> None:
        super().__init__(listener)
        self._recv, self._send, self._close = connection.recv, connection.send, connection.close
        # Iterating over a connection calls its `recv` too.
        connection.recv, connection.send, connection.close = self.recv, self.send, self.close_connection

    async def recv(self, decode: bool | None = None) -> str | bytes:
        """In place of the connection's own `recv`."""
        self._start()
        message: Any = None
        more = False
        if self._reader is not None:
            more, message = await self._inbox.get()
        if not more:
            message = await self._recv()
        if decode is True and isinstance(message, bytes):
            return message.decode()
        if decode is False and isinstance(message, str):
            return message.encode()
        received: str | bytes = message
        return received

    async def send(self, message: Any, *args: Any, **kwargs: Any) -> None:
        """In place of the connection's own `send`."""
        if isinstance(message, str) and not args and not kwargs:
            await self._listener.agent_text(message)
        else:
            await self._send(message, *args, **kwargs)

    async def close_connection(self, *args: Any, **kwargs: Any) -> None:
        """In place of the connection's own `close`."""
        await self._listener.agent_closing()
        await self._close(*args, **kwargs)
        self._listener.gone()

    async def _messages(self) -> None:
        while True:
            message = await self._recv()
            if isinstance(message, str):
                self._listener.plivo_text(message)
            else:
                self._inbox.put(message)

    def to_agent(self, text: str, *, media: bool) -> None:
        """See `Tap`."""
        self._inbox.put(text, len(text) if media else 0)

    async def to_plivo(self, text: str) -> None:
        """See `Tap`."""
        await self._send(text)


def is_starlette(socket: Any) -> bool:
    """Whether this is a Starlette or FastAPI WebSocket."""
    return all(hasattr(socket, name) for name in ("scope", "receive", "send", "client_state"))


def is_connection(socket: Any) -> bool:
    """Whether this is a connection of the `websockets` library, or as good as one."""
    return all(hasattr(socket, name) for name in ("recv", "send", "close", "__aiter__"))


def tap(socket: Any, listener: TapListener) -> Tap | None:
    """Tap a socket; None when it is of no kind that can be tapped."""
    if is_starlette(socket):
        return StarletteTap(socket, listener)
    if is_connection(socket):
        return ConnectionTap(socket, listener)
    return None
