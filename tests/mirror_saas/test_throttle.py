"""Who is heard at the door: addresses that keep being refused are not, everybody else always is."""

from __future__ import annotations

from typing import Any

import pytest

from mirror_saas.throttle import GOOD_S, REFUSALS_PER_S, WATCHED_S, HandshakeThrottle, throttled_application

ATTACKER, OTHER, PLIVO, PROXY = "198.51.100.7", "198.51.100.8", "203.0.113.5", "10.0.0.1"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def throttle(clock: Clock) -> HandshakeThrottle:
    return HandshakeThrottle(clock=clock)


def refuse(throttle: HandshakeThrottle, address: str, number: int) -> None:
    for _ in range(number):
        throttle.refused(address)


def test_two_hundred_refusals_a_second_are_borne(throttle: HandshakeThrottle, clock: Clock) -> None:
    for _ in range(10 * int(REFUSALS_PER_S)):
        assert throttle.allows(ATTACKER)
        throttle.refused(ATTACKER)
        clock.now += 1 / REFUSALS_PER_S
    assert throttle.turned_away == 0


def test_beyond_that_their_address_is_heard_as_often_as_that_and_strangers_always(
    throttle: HandshakeThrottle, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    heard = 0
    for n in range(10_000):
        if throttle.allows(ATTACKER):
            heard += 1
            throttle.refused(ATTACKER)
        if n % 100 == 0:
            assert throttle.allows(f"203.0.113.{n // 100}")
        clock.now += 0.001
    # 10 s: the first second's worth at once, then the rate.
    assert heard == pytest.approx(11 * REFUSALS_PER_S, rel=0.02)
    assert throttle.turned_away == 10_000 - heard
    assert caplog.text.count("closed unread") == 1
    clock.now += WATCHED_S + 1
    assert throttle.allows(ATTACKER)


def test_many_addresses_share_what_strangers_have_together(throttle: HandshakeThrottle) -> None:
    for n in range(int(REFUSALS_PER_S)):
        throttle.refused(f"198.51.{n // 250}.{n % 250}")
    assert not throttle.allows("198.51.0.1")
    assert throttle.allows("192.0.2.1")


def test_an_address_that_was_let_in_is_counted_by_itself(throttle: HandshakeThrottle, clock: Clock) -> None:
    throttle.admitted(PLIVO)
    refuse(throttle, ATTACKER, 300)
    refuse(throttle, PLIVO, 150)
    assert not throttle.allows(ATTACKER)
    assert throttle.allows(PLIVO)
    refuse(throttle, PLIVO, 100)
    assert not throttle.allows(PLIVO)
    clock.now += 1
    assert throttle.allows(PLIVO)
    throttle.admitted(PLIVO)
    clock.now += GOOD_S + 1
    refuse(throttle, ATTACKER, 300)
    throttle.refused(PLIVO)
    assert not throttle.allows(PLIVO)


def test_what_is_remembered_is_bounded(throttle: HandshakeThrottle) -> None:
    for n in range(30_000):
        throttle.refused(f"2001:db8::{n:x}")
        throttle.admitted(f"2001:db8::{n:x}")
    assert len(throttle._refused) == len(throttle._good) == 10_000


# The application


async def ask(app: Any, *, peer: str = ATTACKER, forwarded: str = "", path: str = "/stream/a/b") -> list[Any]:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"x-forwarded-for", forwarded.encode())] if forwarded else []
    await app({"type": "websocket", "path": path, "client": [peer, 1], "headers": headers}, receive, send)
    return sent


class Door:
    """Lets in who comes with /good, refuses the others."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        await receive()
        await send({"type": "websocket.accept" if scope["path"].endswith("/good") else "websocket.close"})


async def test_the_application_tells_how_its_handshakes_ended(throttle: HandshakeThrottle) -> None:
    door = Door()
    app = throttled_application(door, throttle)
    await ask(app, peer=PLIVO, path="/stream/a/good")
    for _ in range(250):
        await ask(app)
    assert not throttle.allows(ATTACKER)
    assert throttle.allows(PLIVO)
    # What is no stream is none of its business.
    for _ in range(250):
        await ask(app, peer=OTHER, path="/ws/live")
    assert throttle.allows(OTHER)


async def test_behind_a_trusted_proxy_the_client_is_refused_without_a_look_up_and_the_proxy_is_heard(
    throttle: HandshakeThrottle,
) -> None:
    door = Door()
    app = throttled_application(door, throttle, (PROXY,))
    for _ in range(300):
        (answer,) = await ask(app, peer=PROXY, forwarded=ATTACKER)
        assert answer["type"] == "websocket.close"
    assert door.asked == REFUSALS_PER_S
    assert throttle.allows(PROXY)
    (answer,) = await ask(app, peer=PROXY, forwarded=PLIVO, path="/stream/a/good")
    assert answer["type"] == "websocket.accept"
    # Anybody can send the header; only a proxy's counts.
    for _ in range(300):
        await ask(app, peer=OTHER, forwarded=PLIVO)
    assert throttle.allows(PLIVO)
    assert not throttle.allows(OTHER)
