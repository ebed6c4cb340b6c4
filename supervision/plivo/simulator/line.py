"""A connection to a server's end in this same process: the stand-in's frames, without a socket between.

The server's end speaks what ASGI makes of a WebSocket (`receive` and `send` with their messages), so that whatever
serves Plivo's streams serves this one too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from .connection import Closed, Message

__all__ = ["DirectLine", "Line", "Lines"]


class Line(Protocol):
    """What a call needs of its connection."""

    stream_id: str
    closed: asyncio.Future[Closed]

    @property
    def open(self) -> bool: ...

    @property
    def subprotocol(self) -> str | None: ...

    def send(self, payload: bytes | str, text: bool = True) -> None: ...

    def ping(self) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...

    def unsent_bytes(self) -> int: ...


Lines = Callable[[Callable[[Any, "Message | Closed"], None]], Line]
"""Makes a call's connection; it is given what takes messages and the end of the connection, in order."""


class DirectLine:
    """See the module. The server's end is `receive` and `answer`; it may end the line with `hang_up`."""

    def __init__(self, take: Callable[[Any, Message | Closed], None]) -> None:
        self._take = take
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._ended = False
        self.stream_id = ""
        self.closed: asyncio.Future[Closed] = asyncio.get_running_loop().create_future()

    # -- the stand-in's end

    @property
    def open(self) -> bool:
        return not self._ended

    @property
    def subprotocol(self) -> str | None:
        """Nothing is negotiated inside a process."""
        return None

    def send(self, payload: bytes | str, text: bool = True) -> None:
        if self._ended:
            return
        data = payload.encode() if isinstance(payload, str) else payload
        content: dict[str, Any] = {"text": data.decode()} if text else {"bytes": data}
        self._inbox.put_nowait({"type": "websocket.receive", **content})

    def ping(self) -> None:
        """Nobody has to be kept awake."""

    def close(self) -> None:
        """End the line with code 1000."""
        self._end(Closed(1000, ""))

    def abort(self) -> None:
        """Break the line, as a lost network does."""
        self._end(Closed(1006, ""))

    def unsent_bytes(self) -> int:
        """A process that does not come round to its own messages is late in everything."""
        return 0

    # -- the server's end

    async def receive(self) -> dict[str, Any]:
        """The next message of the stand-in's; a disconnect is the last."""
        return await self._inbox.get()

    async def answer(self, message: dict[str, Any]) -> None:
        """What the server sends: frames, or its close."""
        if message["type"] == "websocket.close":
            self.hang_up(message.get("code") or 1000, message.get("reason") or "")
        elif message["type"] == "websocket.send" and not self._ended:
            text = message.get("text")
            self._take(self, Message(text.encode() if text is not None else message["bytes"], text is not None))

    def hang_up(self, code: int, reason: str = "") -> None:
        """The server ends the line."""
        self._end(Closed(code, reason))

    def _end(self, closed: Closed) -> None:
        if self._ended:
            return
        self._ended = True
        self._inbox.put_nowait({"type": "websocket.disconnect", "code": closed.code})
        self._take(self, closed)
