"""How Daphne takes connections: from whom, and how long a request may take to arrive.

Twisted's own timeout counts silence only, so a byte now and then keeps a connection open for ever. Here a request's
head and its body have a time each, in all. Of connections that have not sent a whole head there are only so many: one
more closes the oldest, which an honest client, done after one round trip, never is.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any, Final

import autobahn.websocket.protocol
import daphne.http_protocol
import daphne.server
import daphne.ws_protocol
from twisted.web import http

from mirror_saas.throttle import HandshakeThrottle, throttle

HEAD_WITHIN_S: Final = 10.0
BODY_WITHIN_S: Final = 120.0
UNFINISHED_HEADS: Final = 512


# Autobahn lays out all its options for a debug line at every handshake, whatever is logged: a quarter of its cost.
autobahn.websocket.protocol.pformat = repr  # type: ignore[assignment, attr-defined]

# Daphne counts how long a socket was open, or gone, or silent, by the wall clock: one that is set right would end every
# call, and what a call still has to do when it is over.
_STEADY: Any = SimpleNamespace(time=time.monotonic)
for _module in (daphne.http_protocol, daphne.server, daphne.ws_protocol):
    _module.time = _STEADY

# Twisted is typed in parts only.
_HTTPChannel: Any = http.HTTPChannel


class ServerChannel(_HTTPChannel):  # type: ignore[misc]
    """Twisted's HTTP connection, with a deadline for what is on its way."""

    _deadline: Any = None
    _in_head = False

    def connectionMade(self) -> None:
        super().connectionMade()
        self._head_begins()

    def dataReceived(self, data: bytes) -> None:
        # The next request on this connection; what comes while one is being answered waits, and counts from then.
        if self._deadline is None and not self._handlingRequest:
            self._head_begins()
        super().dataReceived(data)

    def allHeadersReceived(self) -> None:
        self._deadline_clear()
        self._deadline = self.callLater(BODY_WITHIN_S, self.cut)
        super().allHeadersReceived()

    def allContentReceived(self) -> None:
        self._deadline_clear()
        super().allContentReceived()

    def connectionLost(self, reason: Any) -> None:
        self._deadline_clear()
        super().connectionLost(reason)

    def cut(self) -> None:
        """Give up what has not arrived in time, or what has to make room."""
        self._deadline = None
        if self._in_head:
            self.factory.throttle.refused(getattr(self.transport.getPeer(), "host", ""))
        self._deadline_clear()
        self.transport.abortConnection()

    def _head_begins(self) -> None:
        self._deadline = self.callLater(HEAD_WITHIN_S, self.cut)
        self._in_head = True
        self.factory.unfinished_add(self)

    def _deadline_clear(self) -> None:
        deadline, self._deadline = self._deadline, None
        if deadline is not None and deadline.active():
            deadline.cancel()
        if self._in_head:
            self._in_head = False
            self.factory.unfinished.pop(self, None)


class ServerFactory(daphne.http_protocol.HTTPFactory):  # type: ignore[misc]
    """Daphne's factory that closes connections of addresses that are not heard any more, before they are read."""

    throttle: HandshakeThrottle = throttle

    def __init__(self, server: Any) -> None:
        super().__init__(server)
        self.unfinished: OrderedDict[ServerChannel, None] = OrderedDict()

    def protocol(self) -> Any:
        return http._GenericHTTPChannelProtocol(ServerChannel())

    def buildProtocol(self, addr: Any) -> Any:
        # None has Twisted close the socket.
        return super().buildProtocol(addr) if self.throttle.allows(getattr(addr, "host", "")) else None

    def unfinished_add(self, channel: ServerChannel) -> None:
        self.unfinished[channel] = None
        if len(self.unfinished) > UNFINISHED_HEADS:
            next(iter(self.unfinished)).cut()
