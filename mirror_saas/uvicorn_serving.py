"""Uvicorn instead of Daphne, for nodes that carry nothing but calls: less CPU for each, the same rules.

`manage.py serve --stream-only --server uvicorn` runs this; it needs the extra `uvicorn` (uvicorn, uvloop, websockets).
What Daphne is told in `mirror_saas.serving` holds here too: 16 MiB messages, pings, no access log (paths hold keys), no
compression, bodies that are bounded, refusals that quote nothing, and a stop that lets calls end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, ClassVar, Final

import uvloop
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.datastructures import Headers
from websockets.http11 import Response
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from mirror_saas.accepting import HEAD_WITHIN_S, UNFINISHED_HEADS
from mirror_saas.direct_frames import (
    EXTENSION,
    FrameSplitter,
    FramesTaken,
    OnBinary,
    OnText,
    whole_text_frame,
)
from mirror_saas.draining import ASGIApp, Receive, Scope, Send
from mirror_saas.headers import response_headers
from mirror_saas.serving import (
    CANCEL_TIMEOUT_S,
    HTTP_BODY_MAX_BYTES,
    ON_STOP_TIMEOUT_S,
    PING_INTERVAL_S,
    PING_TIMEOUT_S,
    WEBSOCKET_MAX_BYTES,
    Hook,
    Part,
    hook_run,
    life_begin,
    port_check,
    response_bytes,
    served_application,
    server_error,
)
from mirror_saas.throttle import throttle

logger = logging.getLogger(__name__)

BROKEN: Final = 1006  # how RFC 6455 numbers a connection that ended without a close frame


class _Handshake(ServerProtocol):
    """The handshake whose refusals carry our headers, and nothing of what was sent."""

    def reject(self, status: Any, text: str) -> Response:
        headers = [(name.decode("ascii"), value.decode("ascii")) for name, value in response_headers()]
        headers += [("connection", "close"), ("content-length", "0")]
        known = HTTPStatus(status)
        return Response(known.value, known.phrase, Headers(headers), b"")


class StreamSocket(FramesTaken, WebSocketsSansIOProtocol):
    """Uvicorn's WebSocket, whose frames an application may take directly."""

    def __init__(self, config: Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.conn = _Handshake(extensions=[], max_size=config.ws_max_size, logger=self.logger)
        self._split = FrameSplitter(config.ws_max_size)

    def _messages(self) -> asyncio.Queue[Any]:
        return self.queue

    def take(self, on_text: OnText, on_binary: OnBinary) -> None:
        super().take(on_text, on_binary)
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if not self.handshake_initiated:
            super().data_received(data)
            return
        if self._split.between and self._read(data):
            return
        for frame in self._split.feed(data):
            if not self._read(frame):
                super().data_received(frame)

    def send_receive_event_to_app(self) -> None:
        if self._on_text is None or self._on_binary is None:
            super().send_receive_event_to_app()
            return
        data, self.frames = b"".join(self.frames), []
        if self.close_sent:
            return
        if self.curr_msg_data_type == "bytes":
            self._hand_over(self._on_binary, data)
            return
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            self.conn.fail(1007, "not UTF-8")
            self.handle_parser_exception()
            return
        self._hand_over(self._on_text, text)

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        # The application's task has not run yet, and is given this very scope.
        if self.response.status_code == 101:
            extensions: dict[Any, Any] | None = self.scope.get("extensions")
            if extensions is not None:
                extensions[EXTENSION] = self

    def connection_lost(self, exc: Exception | None) -> None:
        if self.handshake_complete and self.conn.close_rcvd is None and not self.close_sent:
            # Uvicorn would tell a goodbye without a code.
            self.queue.put_nowait({"type": "websocket.disconnect", "code": BROKEN})
        super().connection_lost(exc)

    def _read(self, data: bytes) -> bool:
        """Take ``data`` in if it is one text message and nothing else goes on; False: the parser has to."""
        taker = self._on_text
        if taker is None or self.frames or self.close_sent or self.conn.state is not OPEN:
            return False
        text = whole_text_frame(data)
        if text is None:
            return False
        self._hand_over(taker, text)
        return True

    def _write(self, data: bytes) -> None:
        if not self.close_sent and self.conn.state is OPEN:
            self.transport.write(data)


class StreamHttp(H11Protocol):
    """Uvicorn's HTTP, with the door that Daphne has (`mirror_saas.accepting`): whom it hears, and for how long it waits
    for a request's head."""

    _unfinished: ClassVar[OrderedDict[StreamHttp, None]] = OrderedDict()
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if not throttle.allows(self._host):
            transport.abort()
            return
        self._deadline = self.loop.call_later(HEAD_WITHIN_S, self._cut)
        self._unfinished[self] = None
        if len(self._unfinished) > UNFINISHED_HEADS:
            next(iter(self._unfinished))._cut()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.scope is not None:
            self._finished()

    def connection_lost(self, exc: Exception | None) -> None:
        self._finished()
        super().connection_lost(exc)

    @property
    def _host(self) -> str:
        return self.client[0] if self.client else ""

    def _finished(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
            self._unfinished.pop(self, None)

    def _cut(self) -> None:
        """Give up a head that has not arrived in time, or that has to make room."""
        self._finished()
        throttle.refused(self._host)
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        headers, content = server_error(400, b"")
        self.transport.write(response_bytes(400, [*headers, (b"connection", b"close")], content))
        self.transport.close()


def bounded_application(app: ASGIApp) -> ASGIApp:
    """`app` behind the bound of a request's body: a longer one is refused before all of it is read."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        read = 0
        answered = False

        async def bounded_receive() -> Any:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > HTTP_BODY_MAX_BYTES:
                    raise _BodyTooLarge
            return message

        async def noting_send(message: Any) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            if any(name == b"content-length" and _too_large(value) for name, value in scope["headers"]):
                raise _BodyTooLarge
            await app(scope, bounded_receive, noting_send)
        except _BodyTooLarge:
            if answered:
                return
            headers, content = server_error(413, scope.get("raw_path") or b"")
            await send({"type": "http.response.start", "status": 413, "headers": [*headers, (b"connection", b"close")]})
            await send({"type": "http.response.body", "body": content})

    return application


class _BodyTooLarge(Exception):
    """A request's body is longer than it may be."""


def _too_large(value: bytes) -> bool:
    return value.isdigit() and int(value[:20]) > HTTP_BODY_MAX_BYTES


class StreamServer(Server):
    """Uvicorn's server that leaves signals to us, and that ends what it runs within a bound."""

    def __init__(self, config: Config, on_stop: Hook | None) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    def stop(self) -> None:
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: Any = None) -> None:
        for server in self.servers:
            server.close()
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=CANCEL_TIMEOUT_S)
            if pending:
                logger.error("%d connections did not end when told to; leaving them", len(pending))
        if self._on_stop is not None:
            await hook_run(self._on_stop, ON_STOP_TIMEOUT_S)
        await super().shutdown(sockets)


def _ending(app: ASGIApp) -> ASGIApp:
    """`app`, whose end by a stop is an end: uvicorn would log it as a failure."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        # The server is stopping, or nothing cancels a request.
        with contextlib.suppress(asyncio.CancelledError):
            await app(scope, receive, send)

    return application


def uvicorn_run(
    application: ASGIApp,
    *,
    host: str,
    port: int,
    part: Part,
    drain_s: float,
    accept_s: float = 0.0,
    on_start: Hook | None = None,
    on_stop: Hook | None = None,
    trusted_proxies: tuple[str, ...] = (),
) -> None:
    """As :func:`mirror_saas.serving.server_run`, on uvicorn and uvloop. Raises `ListenError`."""
    port_check(host, port)
    served = bounded_application(served_application(application, part, trusted_proxies))
    # Its lines have paths in them, and paths have keys.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    config = Config(
        _ending(served),
        host=host,
        port=port,
        http=StreamHttp,
        ws=StreamSocket,
        loop="uvloop",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        ws_max_size=WEBSOCKET_MAX_BYTES,
        ws_ping_interval=PING_INTERVAL_S,
        ws_ping_timeout=PING_TIMEOUT_S,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=1,
    )
    server = StreamServer(config, on_stop)

    async def main() -> None:
        life_begin(asyncio.get_running_loop(), server, drain_s=drain_s, accept_s=accept_s, on_start=on_start)
        await server.serve()

    uvloop.run(main())
