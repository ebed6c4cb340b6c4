"""Dialling an agent: whatever does not answer as a WebSocket server is unreachable, within the time a caller waits."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
import socket
import threading

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


async def test_what_an_agent_sends_at_once_is_taken_a_little_at_a_time() -> None:
    """Between two reads of a flood the other calls have their turn: a read is never as much as was sent."""
    large, small = b"x" * 1_000_000, b"y" * 250
    frames = 20_000
    stuck = threading.Event()

    def serve(listening: socket.socket) -> None:
        peer, _ = listening.accept()
        with peer:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += peer.recv(4096)
            (key,) = re.findall(rb"(?i)sec-websocket-key: (\S+)", head)
            accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
            peer.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
            )
            # RFC 6455, 5.2: a text frame with a length of 8 bytes, then those with a length of 2.
            rest = memoryview(
                b"\x81\x7f" + len(large).to_bytes(8) + large + (b"\x81\x7e" + len(small).to_bytes(2) + small) * frames
            )
            peer.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while rest:
                    rest = rest[peer.send(rest) :]
            stuck.set()
            peer.setblocking(True)
            peer.sendall(rest)
            peer.recv(1)

    loop = asyncio.get_running_loop()
    got: list[int] = []  # by turn of the loop
    taken = [0]
    over = asyncio.Event()

    def turn() -> None:
        if taken[0] < frames:
            got.append(0)
            loop.call_soon(turn)

    def text(frame: str) -> None:
        if len(frame) == len(large):
            # From here on there is all to read that the kernel can hold.
            assert stuck.wait(20)
            turn()
            return
        got[-1] += 1
        taken[0] += 1
        if taken[0] == frames:
            over.set()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,), daemon=True)
        thread.start()
        leg = AgentLeg(
            on_text=text,
            on_binary=lambda data: None,
            on_closed=lambda closed: None,
            on_dropped=lambda number: None,
            on_garbled=lambda message: None,
        )
        port = listening.getsockname()[1]
        async with asyncio.timeout(30):
            await leg.dial(f"ws://127.0.0.1:{port}/", headers={}, subprotocols=[])
            await over.wait()
        leg.close()
        leg.cut()
        await asyncio.to_thread(thread.join, 10)
    assert sum(got) == frames
    assert max(got) < 1000, f"{max(got)} frames in one read"
