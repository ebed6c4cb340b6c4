"""The web server: Daphne with the limits that calls need, stopped without cutting calls off.

Daphne's own command line offers neither WebSocket size limits nor a graceful end, so `manage.py serve` runs its Server
class with what matters set here, for web and stream alike.
"""

import asyncio
import http
import logging
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol

import daphne.http_protocol
import daphne.server
from daphne.endpoints import build_endpoint_description_strings
from daphne.http_protocol import WebRequest
from daphne.server import Server
from daphne.ws_protocol import WebSocketFactory

from mirror_saas.accepting import ServerFactory
from mirror_saas.daphne_frames import FramesSocket, frames_offer
from mirror_saas.draining import ANSWER_PREFIX, STREAM_PREFIX, ASGIApp, Drain, Receive, Scope, Send, drain
from mirror_saas.draining import draining_application as behind_drain
from mirror_saas.headers import headers_application, response_headers
from mirror_saas.ids import uuid7
from mirror_saas.problems import API_PREFIX, problem_body
from mirror_saas.problems import CONTENT_TYPE as PROBLEM_TYPE
from mirror_saas.throttle import throttle, throttled_application

logger = logging.getLogger(__name__)

Part = Literal["all", "web", "stream"]
Hook = Callable[[], Awaitable[None]]

# A Plivo message may have 16 MiB; a frame is one message there, so both limits are the same.
WEBSOCKET_MAX_BYTES = 16 * 1024 * 1024
PING_INTERVAL_S = 20
PING_TIMEOUT_S = 30
# A call may last a day, and the relay ends its own calls.
WEBSOCKET_TIMEOUT_S = 24 * 3600 + 600
# What a consumer may still do after its socket went: close the agent's, record the end.
CLOSE_TIMEOUT_S = 30
CANCEL_TIMEOUT_S = 10.0
ON_STOP_TIMEOUT_S = 10.0

# Connections that the kernel holds until they are accepted; what finds no room there is tried again by its sender after
# a second or more, a call's handshake among them.
BACKLOG = 1024

# Of a request's body. Refused before it is read: nothing behind us sees, stores or counts more than this.
HTTP_BODY_MAX_BYTES = 10 * 1024 * 1024
# A client that is still sending would not see its refusal if we closed under it.
LINGER_S = 5.0

ERROR_DETAILS = {
    413: f"The request's body is too large; {HTTP_BODY_MAX_BYTES // 1024 // 1024} MiB are the most.",
    500: "Mirror failed to answer. Its log says why.",
}

HEALTH_PATHS = frozenset({"/livez", "/readyz", "/metrics"})


class ListenError(Exception):
    """The server cannot listen; the text names the address and what to do."""


def part_application(app: ASGIApp, part: Part) -> ASGIApp:
    """The share of `app` that a process serves: `stream` has the call path, `web` everything else; health in both."""
    if part == "all":
        return app

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        path = str(scope.get("path", ""))
        call_path = path.startswith((STREAM_PREFIX, ANSWER_PREFIX))
        if path in HEALTH_PATHS or call_path == (part == "stream"):
            await app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})
        else:
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"Not found.\n"})

    return application


def served_application(application: ASGIApp, part: Part, trusted_proxies: tuple[str, ...]) -> ASGIApp:
    """The share of `application` behind all that stands in front of it, whatever server runs it."""
    # The application has headers of its own; what is answered in front of it needs them too.
    return headers_application(
        behind_drain(throttled_application(part_application(application, part), throttle, trusted_proxies), drain)
    )


class ServerRequest(WebRequest):  # type: ignore[misc]
    """Daphne's HTTP request that has bounds, and whose own errors look like ours and name no software."""

    _body_bytes = 0
    _refused = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Twisted would read forms as well, all of them into memory and with errors of its own; Django does.
        super().__init__(*args, **{**kwargs, "parsePOSTFormSubmission": False})

    def gotLength(self, length: int | None) -> None:
        super().gotLength(length)
        if length is not None and length > HTTP_BODY_MAX_BYTES:
            self._refuse_body()

    def handleContentChunk(self, data: bytes) -> None:
        if self._refused:
            return
        self._body_bytes += len(data)
        if self._body_bytes > HTTP_BODY_MAX_BYTES:
            self._refuse_body()
        else:
            super().handleContentChunk(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if not self._refused:
            super().requestReceived(command, path, version)

    def process(self) -> Any:
        # Whoever sends it chooses the prefix of every URL that we write.
        self.requestHeaders.removeHeader(b"daphne-root-path")
        for name in (b"sec-websocket-protocol", b"host", b"origin"):
            if any(not value.isascii() for value in self.requestHeaders.getRawHeaders(name, [])):
                self.basic_error(400, b"Bad Request", "A header has characters that it cannot have.")
                return None
        return super().process()

    def basic_error(self, status: int, status_text: bytes, body: str) -> None:
        headers, content = server_error(status, self.path)
        self.handle_reply({"type": "http.response.start", "status": status, "headers": headers})
        self.handle_reply({"type": "http.response.body", "body": content})

    def _refuse_body(self) -> None:
        from twisted.internet import reactor

        later: Any = reactor
        self._refused = True
        # Nobody is told to go on sending.
        self.requestHeaders.removeHeader(b"expect")
        headers, content = server_error(413, getattr(self.channel, "_path", b""))
        transport = self.channel.transport
        transport.write(response_bytes(413, [*headers, (b"connection", b"close")], content))
        transport.loseWriteConnection()
        later.callLater(LINGER_S, transport.abortConnection)


class ServerSocket(FramesSocket):
    """Daphne's WebSocket that can be closed with a server's codes, and whose refusals carry our headers.

    Autobahn's `sendClose` raises on all but 1000 and 3000 to 4999, and the socket would stay open. RFC 6455 7.4.1 gives
    servers 1008 (refused) and 1011 (the agent failed) as well.
    """

    def serverClose(self, code: int | None = None) -> None:
        self.sendCloseFrame(code=1000 if code is None else code)

    def sendHttpErrorResponse(self, code: int, reason: str, responseHeaders: Any = None) -> None:
        # `reason` may quote what was sent.
        self.sendData(response_bytes(code, [*response_headers(), (b"connection", b"close")], b""))


def server_error(status: int, path: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of an error that no application has seen: a problem under the API, else one line of text."""
    phrase = http.HTTPStatus(status).phrase
    if isinstance(path, bytes) and path.startswith(API_PREFIX.encode()):
        request_id = str(uuid7())
        detail = ERROR_DETAILS.get(status, "The request cannot be read; check its syntax.")
        content = problem_body(status, detail, request_id=request_id)
        headers = [(b"content-type", PROBLEM_TYPE.encode()), (b"x-request-id", request_id.encode())]
    else:
        content = f"{phrase}\n".encode()
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
    return response_headers([*headers, (b"content-length", str(len(content)).encode())]), content


def response_bytes(status: int, headers: list[tuple[bytes, bytes]], content: bytes) -> bytes:
    """A whole answer, for places where the server is past or before its own."""
    lines = [f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}".encode()]
    lines += [name + b": " + value for name, value in headers]
    if not any(name.lower() == b"content-length" for name, _ in headers):
        lines.append(b"content-length: " + str(len(content)).encode())
    return b"\r\n".join(lines) + b"\r\n\r\n" + content


class MirrorServer(Server):  # type: ignore[misc]
    """Daphne's Server that says why it could not listen, and that ends what it runs within a bound.

    Daphne knows no lifespan: `on_stop` is awaited after every connection's task has ended.
    """

    listen_failure: str | None = None
    on_stop: Hook | None = None

    def create_application(self, protocol: Any, scope: Scope) -> Any:
        frames_offer(protocol, scope)
        return super().create_application(protocol, scope)

    def listen_success(self, port: Any) -> None:
        super().listen_success(port)
        self.http_factory.port = port

    def listen_error(self, failure: Any) -> None:
        self.listen_failure = failure.getErrorMessage()
        self.stop()

    def kill_all_applications(self) -> Any:
        from twisted.internet import defer

        tasks: list[asyncio.Future[Any]] = []
        for details in self.connections.values():
            task = details.get("application_instance")
            if task is not None and not task.done():
                task.cancel()
                tasks.append(task)

        async def ended() -> None:
            if tasks:
                _, pending = await asyncio.wait(tasks, timeout=CANCEL_TIMEOUT_S)
                if pending:
                    logger.error("%d connections did not end when told to; leaving them", len(pending))
            if self.on_stop is not None:
                await hook_run(self.on_stop, ON_STOP_TIMEOUT_S)

        return defer.Deferred.fromFuture(asyncio.ensure_future(ended()))


def server_build(application: ASGIApp, *, host: str, port: int, on_ready: Callable[[], None] | None = None) -> Any:
    """Daphne's server for `application` at `host`:`port`, with the limits above and no access log (paths hold keys)."""
    WebSocketFactory.protocol = ServerSocket
    daphne.http_protocol.WebRequest = ServerRequest
    daphne.server.HTTPFactory = ServerFactory
    return MirrorServer(
        application=application,
        endpoints=[
            f"{endpoint}:backlog={BACKLOG}" for endpoint in build_endpoint_description_strings(host=host, port=port)
        ],
        signal_handlers=False,
        action_logger=None,
        http_timeout=None,
        websocket_timeout=WEBSOCKET_TIMEOUT_S,
        ping_interval=PING_INTERVAL_S,
        ping_timeout=PING_TIMEOUT_S,
        websocket_max_message_size=WEBSOCKET_MAX_BYTES,
        websocket_max_frame_size=WEBSOCKET_MAX_BYTES,
        application_close_timeout=CLOSE_TIMEOUT_S,
        ready_callable=on_ready,
        server_name="",
    )


def server_run(
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
    """Serve until SIGTERM or SIGINT; blocks. New calls are still taken for `accept_s` seconds, while /readyz says no;
    then running calls get up to `drain_s` seconds to end.

    A second signal ends them at once. `on_start` runs on the serving loop beside the first connections (/readyz says no
    until it is done), `on_stop` after the last. Raises `ListenError`.
    """
    from twisted.internet import reactor

    server = server_build(served_application(application, part, trusted_proxies), host=host, port=port)
    server.on_stop = on_stop
    life_begin(reactor._asyncioEventloop, server, drain_s=drain_s, accept_s=accept_s, on_start=on_start)
    server.run()
    if server.listen_failure:
        raise ListenError(listen_message(host, port, server.listen_failure))


class Stoppable(Protocol):
    """A server that ends when told to, from the loop's thread."""

    def stop(self) -> None: ...


def life_begin(
    loop: asyncio.AbstractEventLoop, server: Stoppable, *, drain_s: float, accept_s: float, on_start: Hook | None
) -> None:
    """Let SIGTERM and SIGINT stop a server: it takes new calls for another `accept_s`, and stops once its calls have
    ended, or `drain_s` after that. A second one stops it at once. Runs `on_start` on `loop` from its start."""
    tasks: set[asyncio.Task[None]] = set()

    def on_signal() -> None:
        if drain.draining:
            server.stop()
            return
        drain.begin()
        tasks.add(loop.create_task(stop_when_idle(server, drain, drain_s, accept_s)))

    async def starting(hook: Hook) -> None:
        await hook_run(hook, None)
        drain.starting = False

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    if on_start is not None:
        drain.starting = True
        tasks.add(loop.create_task(starting(on_start)))


async def hook_run(hook: Hook, timeout_s: float | None) -> None:
    try:
        await asyncio.wait_for(hook(), timeout_s)
    except Exception:
        # The server goes on, or goes on stopping; /readyz says what a start could not open.
        logger.exception("%s failed", getattr(hook, "__name__", "a hook"))


async def stop_when_idle(server: Stoppable, state: Drain, drain_s: float, accept_s: float) -> None:
    if accept_s:
        # Whoever spreads calls over nodes asks /readyz now and then, and sends calls here until it has.
        logger.info("stopping: calls are still taken for %g s", accept_s)
        await asyncio.sleep(accept_s)
    state.refuse()
    if state.streams:
        logger.info("stopping: %d calls may finish within %g s", state.streams, drain_s)
    try:
        await asyncio.wait_for(state.idle(), drain_s)
    except TimeoutError:
        logger.warning("%d calls did not finish within %g s; ending them", state.streams, drain_s)
    server.stop()


def port_check(host: str, port: int) -> None:
    """Raise `ListenError` when `host`:`port` cannot be listened on (taken, not ours, no such address)."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ListenError(f"{host} is no address of this machine ({error.strerror}); check MIRROR_BIND.") from error
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            raise ListenError(listen_message(host, port, error.strerror or str(error))) from error


def listen_message(host: str, port: int, reason: str) -> str:
    """The line for a server that cannot listen."""
    if "in use" in reason:
        return f"Port {port} on {host} is taken by another program; choose another one with PORT=…"
    return f"Cannot listen on {host}:{port} ({reason}); choose another PORT or MIRROR_BIND."
