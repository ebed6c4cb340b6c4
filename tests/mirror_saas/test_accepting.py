"""How long a request may take to arrive, and who is closed before a byte is read: Twisted's side, on its own clock."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from daphne.http_protocol import WebRequest
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from mirror_saas.accepting import (
    ACCEPT_PAUSE_S,
    ACCEPT_WAITS_S,
    ACCEPTED_AT_ONCE,
    BODY_WITHIN_S,
    HEAD_WITHIN_S,
    UNFINISHED_HEADS,
    ServerFactory,
)
from mirror_saas.throttle import REFUSALS_PER_S, HandshakeThrottle

HEAD = b"GET /stream/acme/sk_x HTTP/1.1\r\nHost: mirror.example\r\nUpgrade: websocket\r\nX-Slow: "


class Request(WebRequest):  # type: ignore[misc]
    """Stands where a request is handed to the application."""

    arrived: list[bytes]

    def process(self) -> None:
        self.arrived.append(self.path)
        self.handle_reply({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        self.handle_reply({"type": "http.response.body", "body": b""})


class Aborting(StringTransport):
    """A transport that is cut when told to, and then tells its protocol."""

    def __init__(self, host: str) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", host, 1))  # type: ignore[no-untyped-call]
        self.cut = False
        self.protocol: Any = None

    def abortConnection(self) -> None:
        self.cut = True
        self.protocol.connectionLost(SimpleNamespace(value=None, check=lambda *_: None))

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass


class Server:
    """A factory on virtual time, and connections to it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.throttle = HandshakeThrottle(clock=self.clock.seconds)
        nothing = SimpleNamespace(
            protocol_connected=lambda _: None, protocol_disconnected=lambda _: None, log_action=lambda *_: None,
            server_name="",
        )  # fmt: skip
        self.factory = ServerFactory(nothing)
        self.factory.reactor = self.clock
        self.factory.throttle = self.throttle
        self.arrived: list[bytes] = []

    def connect(self, host: str = "192.0.2.1") -> Aborting | None:
        protocol = self.factory.buildProtocol(IPv4Address("TCP", host, 1))
        if protocol is None:
            return None
        protocol.requestFactory = type("Request", (Request,), {"arrived": self.arrived})
        transport = Aborting(host)
        transport.protocol = protocol
        protocol.makeConnection(transport)
        return transport

    def drip(self, transport: Aborting, data: bytes, every_s: float) -> float:
        """Send a byte now and then until the connection is cut; how long that took."""
        began = self.clock.seconds()
        for n in range(len(data)):
            transport.protocol.dataReceived(data[n : n + 1])
            self.clock.advance(every_s)
            if transport.cut:
                return self.clock.seconds() - began
        raise AssertionError("it was never cut")


@pytest.fixture
def server() -> Server:
    return Server()


def test_a_head_that_comes_byte_by_byte_has_ten_seconds_in_all(server: Server) -> None:
    slow = server.connect()
    assert slow is not None
    assert server.drip(slow, HEAD + b"x" * 1000, 0.5) == pytest.approx(HEAD_WITHIN_S, abs=0.5)
    silent = server.connect()
    assert silent is not None
    server.clock.advance(HEAD_WITHIN_S + 0.1)
    assert silent.cut
    assert server.factory.unfinished == {}
    assert server.arrived == []


def test_the_next_request_of_a_connection_has_no_longer_than_the_first(server: Server) -> None:
    transport = server.connect()
    assert transport is not None
    transport.protocol.dataReceived(b"GET /livez HTTP/1.1\r\nHost: mirror.example\r\n\r\n")
    assert server.arrived == [b"/livez"]
    server.clock.advance(30)  # nothing is on its way: it may keep the connection
    assert not transport.cut
    assert server.drip(transport, HEAD + b"x" * 1000, 0.5) == pytest.approx(HEAD_WITHIN_S, abs=0.5)
    assert server.arrived == [b"/livez"]


def test_a_body_has_its_time_in_all(server: Server) -> None:
    transport = server.connect()
    assert transport is not None
    transport.protocol.dataReceived(b"POST /api/v1/x HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1000\r\n\r\n")
    assert server.drip(transport, b"x" * 999, 1.0) == pytest.approx(BODY_WITHIN_S, abs=1.0)
    # A body is no handshake: nobody is watched for a slow upload.
    assert server.throttle._refused == {}


def test_whoever_is_slow_all_the_time_is_not_heard_any_more(server: Server) -> None:
    waiting = []
    for _ in range(int(REFUSALS_PER_S) + 1):
        transport = server.connect("198.51.100.7")
        assert transport is not None
        waiting.append(transport)
    server.clock.advance(HEAD_WITHIN_S + 0.001)
    assert all(transport.cut for transport in waiting)
    assert server.connect("198.51.100.7") is None
    honest = server.connect("192.0.2.1")
    assert honest is not None
    server.clock.advance(0.1)
    assert server.connect("198.51.100.7") is not None


def test_too_many_unfinished_heads_cost_the_oldest_of_them(server: Server) -> None:
    waiting = [server.connect(f"198.51.{n // 200}.{n % 200}") for n in range(UNFINISHED_HEADS)]
    assert len(server.factory.unfinished) == UNFINISHED_HEADS
    honest = server.connect()
    assert honest is not None
    honest.protocol.dataReceived(b"GET /livez HTTP/1.1\r\nHost: mirror.example\r\n\r\n")
    assert server.arrived == [b"/livez"]
    assert [transport is not None and transport.cut for transport in waiting] == [True] + [False] * (
        UNFINISHED_HEADS - 1
    )


class Port:
    """Stands where Twisted listens."""

    connected, disconnecting = True, False

    def __init__(self) -> None:
        self.numberAccepts = 100
        self.reading = True

    def stopReading(self) -> None:
        self.reading = False

    def startReading(self) -> None:
        self.reading = True


def test_connections_are_taken_a_few_at_a_time_with_room_for_calls_in_between(server: Server) -> None:
    port = server.factory.port = Port()
    for n in range(ACCEPTED_AT_ONCE):
        assert port.reading
        server.connect(f"192.0.2.{n}")
    assert not port.reading
    server.clock.advance(ACCEPT_PAUSE_S)
    assert (port.reading, port.numberAccepts) == (True, ACCEPTED_AT_ONCE)
    # What is closed unread costs next to nothing.
    for _ in range(int(REFUSALS_PER_S) + 1):
        server.throttle.refused("198.51.100.7")
    for _ in range(100):
        assert server.connect("198.51.100.7") is None
    assert port.reading


def test_while_the_loop_is_late_the_calls_come_first_but_not_for_ever(server: Server) -> None:
    port = server.factory.port = Port()
    for n in range(ACCEPTED_AT_ONCE):
        server.connect(f"192.0.2.{n}")
    waited = 0.0
    while not port.reading:
        # Each time that it could go on, the loop comes 100 ms late to it.
        server.clock.advance(0.12)
        waited += 0.12
        assert waited < 3 * ACCEPT_WAITS_S
    assert waited > 0.3


def test_a_server_that_stopped_listening_does_not_begin_again(server: Server) -> None:
    port = server.factory.port = Port()
    for n in range(ACCEPTED_AT_ONCE):
        server.connect(f"192.0.2.{n}")
    port.connected = False
    server.clock.advance(1)
    assert not port.reading
