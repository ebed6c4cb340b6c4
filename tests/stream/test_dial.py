"""Dialling an agent: whatever does not answer as a WebSocket server is unreachable, within the time a caller waits."""

from __future__ import annotations

import asyncio

import pytest

from supervision.stream.dial import AgentLeg, AgentUnreachable


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 ",
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: ws://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x00\xff" * 100,
        b"HTTP/1.1 101 Switching Protocols\r\n" + b"X-A: b\r\n" * 10_000,
    ],
)
async def test_an_answer_that_is_no_handshake_and_a_hang_up_leave_the_agent_unreachable(answer: bytes) -> None:
    over: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        over.append(writer)
        writer.close()

    def never(*_: object) -> None:
        raise AssertionError("nothing was connected, so nothing can come or close")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    leg = AgentLeg(on_text=never, on_binary=never, on_closed=never, on_dropped=never, on_garbled=never)
    async with asyncio.timeout(4):
        with pytest.raises(AgentUnreachable):
            await leg.dial(f"ws://127.0.0.1:{port}/", headers={}, subprotocols=[])
    assert not leg.connected
    assert len(over) == 1
    server.close()
