"""A stopping server lets running calls and requests finish: what is open, and whether new calls are still taken."""

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
    """Whether this process is stopping, and what it still carries. Used from the event loop's thread only."""

    def __init__(self) -> None:
        self.draining = False
        self.refusing = False
        self.starting = False
        self.streams = 0
        """Stream sockets open now, in handshake or in a call."""
        self.requests = 0
        """HTTP requests being answered now."""
        self._idle = asyncio.Event()
        self._idle.set()

    def begin(self) -> None:
        """Stop soon: /readyz says no from now on, so that whoever asks it sends no new calls. Those that come are still
        taken."""
        self.draining = True

    def refuse(self) -> None:
        """Take no new calls from now on: answer URLs give 503, stream handshakes are refused."""
        self.draining = self.refusing = True

    async def idle(self) -> None:
        """Return once no stream socket is open and no request is being answered."""
        await self._idle.wait()

    def count(self, *, streams: int = 0, requests: int = 0) -> None:
        """Add to what is open (negative: something closed)."""
        self.streams += streams
        self.requests += requests
        if self.streams or self.requests:
            self._idle.clear()
        else:
            self._idle.set()


drain = Drain()
"""This process's drain; a server process has exactly one."""


def draining_application(app: ASGIApp, state: Drain) -> ASGIApp:
    """`app` behind `state`: counts calls and requests, and turns new calls away while draining.

    Console sockets are not counted: browsers reconnect, and an open page must not hold up a stop.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        path = str(scope.get("path", ""))
        if scope["type"] == "websocket" and path.startswith(STREAM_PREFIX):
            if state.refusing:
                await receive()
                await send({"type": "websocket.close", "code": 1012})
                return
            state.count(streams=1)
            try:
                await app(scope, receive, send)
            finally:
                state.count(streams=-1)
        elif scope["type"] == "http":
            if state.refusing and path.startswith(ANSWER_PREFIX) and path.rstrip("/").endswith(ANSWER_SUFFIX):
                await send({"type": "http.response.start", "status": 503, "headers": [(b"retry-after", b"5")]})
                await send({"type": "http.response.body", "body": b""})
                return
            state.count(requests=1)
            try:
                await app(scope, receive, send)
            finally:
                state.count(requests=-1)
        else:
            await app(scope, receive, send)

    return application
