"""Frames past a server's queue: whole, in order and unchanged, whatever way they arrive, on both servers."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from mirror_saas.serving import WEBSOCKET_MAX_BYTES
from tests.mirror_saas.test_direct_frames import masked
from tests.mirror_saas.test_serving import Running, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Raw:
    """A client that writes bytes as they are told, and reads frames."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def frame(self) -> tuple[int, bytes]:
        async with asyncio.timeout(20):
            first, length = await self.reader.readexactly(2)
            if length >= 126:
                length = int.from_bytes(await self.reader.readexactly(2 if length == 126 else 8), "big")
            return first, await self.reader.readexactly(length)

    async def texts(self, count: int) -> list[str]:
        got = []
        while len(got) < count:
            first, payload = await self.frame()
            if first & 0x0F in (1, 2):
                got.append(payload.decode())
        return got


@pytest_asyncio.fixture(params=["daphne", "uvicorn"], scope="module", loop_scope="module")
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    async with serving(server=request.param) as running:
        yield running


async def raw(server: Running, begin: str = "begin") -> Raw:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        b"GET /stream/demo/direct HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert b" 101 " in await reader.readline()
    while await reader.readline() != b"\r\n":
        pass
    writer.write(masked(Opcode.TEXT, begin.encode()))
    return Raw(reader, writer)


async def test_frames_come_back_in_order_however_they_are_cut(server: Running) -> None:
    client = await raw(server)
    rng = random.Random(7)
    texts = [f"{n} " + "é" * rng.choice([0, 1, 60, 130, 3_000]) for n in range(120)]
    stream = bytearray()
    for text in texts:
        data = text.encode()
        if rng.random() < 0.2:
            middle = len(data) // 2
            stream += masked(Opcode.TEXT, data[:middle], fin=False)
            stream += masked(Opcode.PING, b"still there?")
            stream += masked(Opcode.CONT, data[middle:])
        else:
            stream += masked(rng.choice([Opcode.TEXT, Opcode.TEXT, Opcode.BINARY]), data)
    at = 0
    while at < len(stream):
        step = rng.choice([1, 7, 200, 4_000])
        client.writer.write(bytes(stream[at : at + step]))
        await client.writer.drain()
        at += step
        await asyncio.sleep(0)
    assert await client.texts(len(texts)) == texts
    client.writer.close()


async def test_frames_that_came_before_they_were_taken_come_first(server: Running) -> None:
    client = await raw(server, "begin late")
    texts = [f"{n}" for n in range(40)]
    for text in texts:
        client.writer.write(masked(Opcode.TEXT, text.encode()))
    assert await client.texts(len(texts)) == texts
    client.writer.close()


async def test_a_client_that_does_not_read_misses_nothing_and_upsets_no_order(server: Running) -> None:
    client = await raw(server)
    texts = [f"{n:04d}" + "p" * 50_000 for n in range(200)]

    async def write() -> None:
        for text in texts:
            client.writer.write(masked(Opcode.TEXT, text.encode()))
            await client.writer.drain()

    writing = asyncio.create_task(write())
    async with asyncio.timeout(20):
        await asyncio.wait({writing}, timeout=0.5)
        got = await client.texts(len(texts))
        await writing
    assert [text[:4] for text in got] == [text[:4] for text in texts]
    assert got == texts
    client.writer.close()


@pytest.mark.parametrize(
    ("sent", "code", "dropped"),
    [
        (masked(Opcode.TEXT, b"\xff\xfe"), 1007, True),
        (masked(Opcode.TEXT, b"\xff", fin=False) + masked(Opcode.CONT, b"\xfe"), 1007, True),
        (Frame(Opcode.TEXT, b"bare").serialize(mask=False), 1002, True),
        (masked(Opcode.CONT, b"of nothing"), 1002, True),
        (masked(Opcode.TEXT, b"a", fin=False) + masked(Opcode.TEXT, b"b"), 1002, True),
        (b"\x81\xff" + (WEBSOCKET_MAX_BYTES + 1).to_bytes(8, "big") + b"mask", 1009, True),
        (masked(Opcode.TEXT, b"raise"), 1011, False),
        (masked(Opcode.TEXT, b"close 1008"), 1008, False),
        (masked(Opcode.CLOSE, (1000).to_bytes(2, "big")), 1000, False),
    ],
    ids=["text", "fragments", "bare", "continuation", "nested", "long", "raise", "close", "goodbye"],
)
async def test_a_socket_ends_with_the_code_that_says_why(
    server: Running, sent: bytes, code: int, dropped: bool
) -> None:
    client = await raw(server)
    client.writer.write(sent)
    try:
        while (frame := await client.frame())[0] & 0x0F != 8:
            pass
    except (ConnectionResetError, asyncio.IncompleteReadError):
        # Autobahn says no goodbye to a client that breaks the protocol.
        assert dropped
        assert server.server == "daphne"
    else:
        assert int.from_bytes(frame[1][:2], "big") == code
    client.writer.close()


async def test_sixteen_mebibytes_pass_and_one_byte_more_does_not(server: Running) -> None:
    url = f"ws://127.0.0.1:{server.port}/stream/demo/direct"
    async with connect(url, max_size=None, compression=None) as client:
        await client.send("begin")
        message = "m" * WEBSOCKET_MAX_BYTES
        await client.send(message)
        assert await client.recv() == message
        with contextlib.suppress(ConnectionClosed):  # perhaps before all of it was sent
            await client.send(message + "1")
        with pytest.raises(ConnectionClosed):
            await client.recv()
