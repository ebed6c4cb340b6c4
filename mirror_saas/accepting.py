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
# So many connections are taken, then none for a moment: each costs a millisecond or two, and calls' frames come in
# between. While the loop is late by more than this, the moment lasts longer, up to half a second.
ACCEPTED_AT_ONCE: Final = 8
ACCEPT_PAUSE_S: Final = 0.02
LOOP_LATE_S: Final = 0.01
ACCEPT_WAITS_S: Final = 0.5


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
    port: Any = None
    """What is listened on, once it is."""

    def __init__(self, server: Any) -> None:
        super().__init__(server)
        self.unfinished: OrderedDict[ServerChannel, None] = OrderedDict()
        self._taken = 0

    def protocol(self) -> Any:
        return http._GenericHTTPChannelProtocol(ServerChannel())

    def buildProtocol(self, addr: Any) -> Any:
        if not self.throttle.allows(getattr(addr, "host", "")):
            # Has Twisted close the socket.
            return None
        self._taken += 1
        if self._taken == ACCEPTED_AT_ONCE and self.port is not None:
            self.port.stopReading()
            self._go_on_at(self.reactor.seconds() + ACCEPT_PAUSE_S, 0.0)
        return super().buildProtocol(addr)

    def _go_on_at(self, due: float, waited: float) -> None:
        self.reactor.callLater(max(due - self.reactor.seconds(), 0.0), self._go_on, due, waited)

    def _go_on(self, due: float, waited: float) -> None:
        """Take connections again, unless the loop is late: then what it has comes first, for a while."""
        late = self.reactor.seconds() - due
        if late > LOOP_LATE_S and waited < ACCEPT_WAITS_S:
            self._go_on_at(self.reactor.seconds() + late, waited + late)
            return
        self._taken = 0
        if self.port.connected and not self.port.disconnecting:
            # Twisted would take a hundred at a time, and more when that was not enough.
            self.port.numberAccepts = ACCEPTED_AT_ONCE
            self.port.startReading()

    def unfinished_add(self, channel: ServerChannel) -> None:
        self.unfinished[channel] = None
        if len(self.unfinished) > UNFINISHED_HEADS:
            next(iter(self.unfinished)).cut()
