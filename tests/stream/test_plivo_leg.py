"""The Plivo leg keeps its frames in order, whether the server's `send` waits or not."""

from __future__ import annotations

import asyncio
from typing import Any

from supervision.stream.plivo_leg import PlivoLeg
from tests.support.virtual_time import virtual_time


class Server:
    """An ASGI server's `send` that waits before some of the frames, and can break."""

    def __init__(self, waits: set[int]) -> None:
        self.waits = waits
        self.sent: list[dict[str, Any]] = []
        self.calls = 0
        self.broken = False

    async def send(self, message: dict[str, Any]) -> None:
        self.calls += 1
        if self.calls in self.waits:
            await asyncio.sleep(0.5)
            await asyncio.sleep(0.5)
        if self.broken:
            raise OSError("the socket is gone")
        self.sent.append(message)

    def texts(self) -> list[str]:
        return [message.get("text", message["type"]) for message in self.sent]


@virtual_time
async def test_a_send_that_never_waits_is_done_at_once() -> None:
    server = Server(set())
    leg = PlivoLeg(server.send)
    leg.send_text("a")
    leg.send_binary(b"b")
    assert server.sent == [{"type": "websocket.send", "text": "a"}, {"type": "websocket.send", "bytes": b"b"}]


@virtual_time
async def test_frames_behind_one_that_waits_keep_their_order() -> None:
    server = Server({2, 5})
    leg = PlivoLeg(server.send)
    for text in "abcdef":
        leg.send_text(text)
    assert server.texts() == ["a"]
    await asyncio.sleep(1.5)
    leg.send_text("g")
    await asyncio.sleep(5)
    leg.send_text("h")
    leg.close(1011)
    leg.send_text("never")
    assert server.texts() == [*"abcdefgh", "websocket.close"]
    assert server.sent[-1]["code"] == 1011


@virtual_time
async def test_a_close_waits_for_what_was_sent_before_it() -> None:
    server = Server({1})
    leg = PlivoLeg(server.send)
    leg.send_text("a")
    leg.close(1000)
    leg.close(1011)
    await asyncio.sleep(5)
    assert server.texts() == ["a", "websocket.close"]
    assert server.sent[-1]["code"] == 1000


@virtual_time
async def test_a_socket_that_breaks_raises_nothing_and_empty_frames_are_not_sent() -> None:
    server = Server({1})
    leg = PlivoLeg(server.send)
    leg.send_text("")
    leg.send_binary(b"")
    leg.send_text("a")
    server.broken = True
    await asyncio.sleep(5)
    leg.send_text("b")
    leg.gone()
    leg.send_text("c")
    assert server.sent == []
    assert server.calls == 2
