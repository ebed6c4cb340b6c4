"""A stopping server lets running calls finish: what is open, and whether new work is still taken."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

STREAM_PREFIX = "/stream/"
ANSWER_PREFIX = "/plivo/"
ANSWER_SUFFIX = "/answer"


class Drain:
    """Whether this process is draining, and how many stream sockets it still carries. Used from the loop's thread."""

    def __init__(self) -> None:
        self.draining = False
        self._streams = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def streams(self) -> int:
        """Stream sockets open now, in handshake or in a call."""
        return self._streams

    def begin(self) -> None:
        """Take no new calls from now on: /readyz answers 503, so do answer URLs, stream handshakes are refused."""
        self.draining = True

    async def idle(self) -> None:
        """Return once no stream socket is open."""
        await self._idle.wait()

    def opened(self) -> None:
        self._streams += 1
        self._idle.clear()

    def closed(self) -> None:
        self._streams -= 1
        if self._streams == 0:
            self._idle.set()


drain = Drain()
"""This process's drain; a server process has exactly one."""


def draining_application(app: ASGIApp, state: Drain) -> ASGIApp:
    """`app` behind `state`: counts stream sockets, and turns new calls away while draining."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        path = str(scope.get("path", ""))
        if scope["type"] == "websocket" and path.startswith(STREAM_PREFIX):
            if state.draining:
                await receive()
                await send({"type": "websocket.close", "code": 1012})
                return
            state.opened()
            try:
                await app(scope, receive, send)
            finally:
                state.closed()
            return
        if state.draining and path.startswith(ANSWER_PREFIX) and path.rstrip("/").endswith(ANSWER_SUFFIX):
            await send({"type": "http.response.start", "status": 503, "headers": [(b"retry-after", b"5")]})
            await send({"type": "http.response.body", "body": b""})
            return
        await app(scope, receive, send)

    return application
