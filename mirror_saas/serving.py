"""The web server: Daphne with the limits that calls need, stopped without cutting calls off.

Daphne's own command line offers neither WebSocket size limits nor a graceful end, so `manage.py serve` runs its Server
class with what matters set here, for web and stream alike.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from daphne.endpoints import build_endpoint_description_strings
from daphne.server import Server
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol

from mirror_saas.draining import ANSWER_PREFIX, STREAM_PREFIX, ASGIApp, Drain, Receive, Scope, Send, drain
from mirror_saas.draining import draining_application as behind_drain

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

HEALTH_PATHS = frozenset({"/livez", "/readyz"})


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


class ServerSocket(WebSocketProtocol):  # type: ignore[misc]
    """Daphne's WebSocket that can be closed with a server's codes.

    Autobahn's `sendClose` raises on all but 1000 and 3000 to 4999, and the socket would stay open. RFC 6455 7.4.1 gives
    servers 1008 (refused) and 1011 (the agent failed) as well.
    """

    def serverClose(self, code: int | None = None) -> None:
        self.sendCloseFrame(code=1000 if code is None else code)


class MirrorServer(Server):  # type: ignore[misc]
    """Daphne's Server that says why it could not listen, and that ends what it runs within a bound.

    Daphne knows no lifespan: `on_stop` is awaited after every connection's task has ended.
    """

    listen_failure: str | None = None
    on_stop: Hook | None = None

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
                await _hook_run(self.on_stop, ON_STOP_TIMEOUT_S)

        return defer.Deferred.fromFuture(asyncio.ensure_future(ended()))


def server_build(application: ASGIApp, *, host: str, port: int, on_ready: Callable[[], None] | None = None) -> Any:
    """Daphne's server for `application` at `host`:`port`, with the limits above and no access log (paths hold keys)."""
    WebSocketFactory.protocol = ServerSocket
    return MirrorServer(
        application=application,
        endpoints=build_endpoint_description_strings(host=host, port=port),
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
        server_name="mirror",
    )


def server_run(
    application: ASGIApp,
    *,
    host: str,
    port: int,
    part: Part,
    drain_s: float,
    on_start: Hook | None = None,
    on_stop: Hook | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; blocks. Running calls get up to `drain_s` seconds to end.

    A second signal ends them at once. `on_start` runs on the serving loop beside the first connections (/readyz says no
    until it is done), `on_stop` after the last. Raises `ListenError`.
    """
    from twisted.internet import reactor

    served = behind_drain(part_application(application, part), drain)
    server = server_build(served, host=host, port=port)
    server.on_stop = on_stop
    loop: asyncio.AbstractEventLoop = reactor._asyncioEventloop
    tasks: set[asyncio.Task[None]] = set()

    def on_signal() -> None:
        if drain.draining:
            server.stop()
            return
        drain.begin()
        if drain.streams:
            logger.info("stopping: %d calls may finish within %g s", drain.streams, drain_s)
        tasks.add(loop.create_task(_stop_when_idle(server, drain, drain_s)))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    if on_start is not None:
        started = on_start

        async def starting() -> None:
            await _hook_run(started, None)
            drain.starting = False

        drain.starting = True
        reactor.callWhenRunning(lambda: tasks.add(loop.create_task(starting())))
    server.run()
    if server.listen_failure:
        raise ListenError(listen_message(host, port, server.listen_failure))


async def _hook_run(hook: Hook, timeout_s: float | None) -> None:
    try:
        await asyncio.wait_for(hook(), timeout_s)
    except Exception:
        # The server goes on, or goes on stopping; /readyz says what a start could not open.
        logger.exception("%s failed", getattr(hook, "__name__", "a hook"))


async def _stop_when_idle(server: Any, state: Drain, drain_s: float) -> None:
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
