"""Who may still shake hands: addresses whose stream handshakes keep being refused are not listened to for a while.

A refused handshake costs a request's parsing and a look-up. Some hundred of them a second are borne beside the calls;
beyond that, connections from the addresses that they come from are closed as they are accepted, before a byte of them
is read. An address of which nothing was refused lately is always heard, so a flood from elsewhere keeps no call out.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from mirror_saas.clients import forwarded_ip, is_trusted_proxy
from mirror_saas.draining import STREAM_PREFIX, ASGIApp, Receive, Scope, Send

logger = logging.getLogger(__name__)

REFUSALS_PER_S: Final = 200.0
# An address that was refused is watched for this long after its last refusal; one that was let in is known as good for
# this long, and its refusals are then counted apart from those of strangers.
WATCHED_S: Final = 60.0
GOOD_S: Final = 3600.0
_ADDRESSES: Final = 10_000
_TOLD_EVERY_S: Final = 60.0


class _Budget:
    """Tokens that come back at a steady rate, up to one second's worth."""

    __slots__ = ("at", "rate", "tokens")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self.tokens = rate
        self.at = now

    def take(self, now: float) -> None:
        self.tokens = max(self.left(now) - 1.0, 0.0)
        self.at = now

    def left(self, now: float) -> float:
        return min(self.tokens + (now - self.at) * self.rate, self.rate)


class HandshakeThrottle:
    """What addresses have done at the door of this process. Belongs to one event loop."""

    def __init__(self, *, per_s: float = REFUSALS_PER_S, clock: Callable[[], float] = time.monotonic) -> None:
        """`per_s` is how many refusals a second are borne, of all strangers together and of each address that is known
        as good; `clock` gives seconds."""
        self._per_s = per_s
        self._clock = clock
        self._strangers = _Budget(per_s, clock())
        # When an address was refused last, and when let in last with its own budget; the oldest are forgotten.
        self._refused: OrderedDict[str, float] = OrderedDict()
        self._good: OrderedDict[str, tuple[float, _Budget]] = OrderedDict()
        self.turned_away = 0
        """Connections that were closed as they were accepted."""
        self._told_at = float("-inf")

    def refused(self, address: str) -> None:
        """A handshake from `address` was refused, or not finished in time."""
        now = self._clock()
        _note(self._refused, address, now)
        self._budget(address, now).take(now)

    def admitted(self, address: str) -> None:
        """A handshake from `address` led to a stream."""
        now = self._clock()
        known = self._good.get(address)
        _note(self._good, address, (now, known[1] if known is not None else _Budget(self._per_s, now)))

    def allows(self, address: str) -> bool:
        """Whether to listen to a connection from `address`."""
        now = self._clock()
        last = self._refused.get(address)
        if last is None or now - last > WATCHED_S or self._budget(address, now).left(now) >= 1.0:
            return True
        self.turned_away += 1
        if now - self._told_at > _TOLD_EVERY_S:
            self._told_at = now
            logger.warning(
                "stream handshakes are refused more than %g times a second: connections from %s, and from others that"
                " are refused as often, are closed unread (%d so far)",
                self._per_s,
                address or "an unknown address",
                self.turned_away,
            )
        return False

    def _budget(self, address: str, now: float) -> _Budget:
        good = self._good.get(address)
        return good[1] if good is not None and now - good[0] <= GOOD_S else self._strangers


def _note(known: OrderedDict[str, Any], address: str, value: Any) -> None:
    known[address] = value
    known.move_to_end(address)
    if len(known) > _ADDRESSES:
        known.popitem(last=False)


throttle = HandshakeThrottle()
"""This process's throttle; a server process has exactly one."""


def throttled_application(app: ASGIApp, state: HandshakeThrottle, trusted_proxies: tuple[str, ...] = ()) -> ASGIApp:
    """`app` behind `state`, which learns how its stream handshakes end.

    Whoever comes through a trusted proxy is known only when the request was read; one that is not heard any more gets
    the refusal that everybody gets, without a look-up.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket" or not str(scope.get("path", "")).startswith(STREAM_PREFIX):
            await app(scope, receive, send)
            return
        peer = str((scope.get("client") or ("",))[0])
        address = peer
        if is_trusted_proxy(peer, trusted_proxies):
            address = forwarded_ip(peer, _forwarded_for(scope), trusted_proxies)
            if not state.allows(address):
                await receive()
                await send({"type": "websocket.close", "code": 1008})
                return
        answered = False

        async def watched(message: Any) -> None:
            nonlocal answered
            if not answered:
                answered = True
                if message["type"] == "websocket.accept":
                    state.admitted(address)
                else:
                    state.refused(address)
            await send(message)

        await app(scope, receive, watched)

    return application


def _forwarded_for(scope: Scope) -> str:
    values = [value.decode("latin-1") for name, value in scope.get("headers") or () if name == b"x-forwarded-for"]
    return ",".join(values)
