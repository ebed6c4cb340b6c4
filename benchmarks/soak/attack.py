"""Whoever means harm, in a process of its own so that the callers are not slowed down by it.

    python -m benchmarks.soak.attack flood --url ws://… --rate 200 --seconds 30 --address 127.0.0.2
    python -m benchmarks.soak.attack loris --url ws://… --number 600 --seconds 30 --address 127.0.0.3
    python -m benchmarks.soak.attack fuzz --url ws://…  --frames 1000000 --calls 20 --rate 5000 --port …
    python -m benchmarks.soak.attack agents --url ws://… --behaviour long --number 10 --seconds 20 --port …

Prints one JSON object with what it saw.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_connect, ws_create_server

from benchmarks.soak.hostile import BEHAVIOURS, hostile_calls
from tests.support.fuzz_frames import Frame, fuzz_frames


async def flood(url: str, rate: float, seconds: float, address: str) -> dict[str, Any]:
    """Handshakes with wrong keys at an even pace; how each ended and how long the answers took."""
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    ended: Counter[str] = Counter()
    took: list[float] = []
    running: set[asyncio.Task[None]] = set()

    async def one(number: int) -> None:
        began = loop.time()
        try:
            async with asyncio.timeout(10):
                reader, writer = await asyncio.open_connection(parts.hostname, parts.port, local_addr=(address, 0))
                try:
                    writer.write(_handshake(parts.netloc, f"{parts.path}{number:x}"))
                    answer = await reader.read(65536)
                finally:
                    writer.close()
        except TimeoutError:
            ended["no answer"] += 1
            return
        except OSError:
            ended["closed"] += 1
            return
        ended[answer[9:12].decode() if answer else "closed"] += 1
        took.append(loop.time() - began)

    began = loop.time()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - loop.time()))
        task = asyncio.create_task(one(number))
        running.add(task)
        task.add_done_callback(running.discard)
    offered = int(rate * seconds) / (loop.time() - began)
    await asyncio.gather(*running)
    took.sort()
    return {"ended": dict(ended), "rate": offered, "p99_ms": 1000 * took[int(len(took) * 0.99)] if took else None}


async def loris(url: str, number: int, seconds: float, address: str) -> dict[str, Any]:
    """Handshakes that send a byte now and then; how long each was borne."""
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    lived: list[float] = []
    refused = 0

    async def one() -> None:
        nonlocal refused
        began = loop.time()
        try:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port, local_addr=(address, 0))
        except OSError:
            refused += 1
            return
        gone = asyncio.create_task(reader.read())
        head = _handshake(parts.netloc, parts.path)[:-2] + b"X-Slow: " + b"x" * 10_000
        try:
            for offset in range(len(head)):
                writer.write(head[offset : offset + 1])
                done, _ = await asyncio.wait({gone}, timeout=1.0)
                if done or loop.time() > deadline:
                    break
        except OSError:
            pass
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            writer.close()
        life = loop.time() - began
        lived.append(life)

    tasks = []
    for _ in range(number):
        tasks.append(asyncio.create_task(one()))
        await asyncio.sleep(0.005)
    await asyncio.gather(*tasks)
    return {"longest_s": max(lived, default=0.0), "opened": len(lived), "closed": refused}


def _handshake(host: str, path: str) -> bytes:
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()


# Frames


class _End(WSListener):
    """One end of a fuzzed call: reads, and answers a close."""

    def __init__(self) -> None:
        self.passed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """The last frame came, which is sent when all the others were."""
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: WSTransport | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is WSMsgType.CLOSE:
            transport.send_close()
            transport.disconnect()
        elif frame.msg_type is WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
        else:
            if b'"canary"' in frame.get_payload_as_bytes()[:40] and not self.passed.done():
                self.passed.set_result(None)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    async def send(self, frame: Frame) -> None:
        await self._may_write.wait()
        assert self.transport is not None
        if isinstance(frame, str):
            self.transport.send(WSMsgType.TEXT, frame.encode("utf-8", "replace"))
        else:
            self.transport.send(WSMsgType.BINARY, frame)


async def fuzz(url: str, frames: int, calls: int, rate: float, port: int, seed: int) -> dict[str, Any]:
    """Frames of no sense from both ends of calls; each call ends with frames that must still pass, both ways."""
    agents: asyncio.Queue[_End] = asyncio.Queue()

    def listener(request: WSUpgradeRequest) -> WSListener:
        end = _End()
        agents.put_nowait(end)
        return end

    server = await ws_create_server(listener, "127.0.0.1", port, use_aiofastnet=False)
    each = frames // calls // 2
    pace = _Pace(rate)
    began = time.monotonic()
    results = []
    for number in range(0, calls, 4):
        batch = []
        for n in range(number, min(number + 4, calls)):
            # One after the other, so that it is known which agent is whose.
            plivo = await _dial(url)
            batch.append((n, plivo, await asyncio.wait_for(agents.get(), 20)))
        results += await asyncio.gather(*(_fuzz_call(seed + n, each, plivo, agent, pace) for n, plivo, agent in batch))
    server.close()
    survived = [ok for _, ok in results]
    return {
        "frames": sum(sent for sent, _ in results),
        "calls": len(results),
        "ended_early": survived.count(False),
        "seconds": time.monotonic() - began,
    }


async def _dial(url: str) -> _End:
    plivo = _End()
    await ws_connect(lambda: plivo, url, use_aiofastnet=False)
    ids = {"callId": str(uuid.uuid4()), "streamId": str(uuid.uuid4()), "accountId": "MAXXXXXXXXXXXXXXXXXX"}
    media = {"encoding": "audio/x-mulaw", "sampleRate": 8000}
    start = {**ids, "tracks": ["inbound"], "mediaFormat": media}
    await plivo.send(json.dumps({"event": "start", "sequenceNumber": 1, "start": start, "extra_headers": ""}))
    return plivo


async def _fuzz_call(seed: int, each: int, plivo: _End, agent: _End, pace: _Pace) -> tuple[int, bool]:
    sent = 0
    await agent.send('{"event":"mirror.hello","v":1,"sdk":"fuzz","wants":["verdicts","notes"]}')
    pairs: Iterator[tuple[_End, Frame]] = (
        (end, frame)
        for pair in zip(fuzz_frames(seed, each, side="agent"), fuzz_frames(seed, each, side="plivo"), strict=True)
        for end, frame in zip((agent, plivo), pair, strict=True)
    )
    for end, frame in pairs:
        if plivo.closed.done() or agent.closed.done():
            return sent, False
        await pace.step()
        await end.send(frame)
        sent += 1
    # Whatever that was, unknown frames still pass, both ways.
    for end in (agent, plivo):
        await end.send('{"event":"canary"}')
    await asyncio.wait({plivo.passed, agent.passed}, timeout=60)
    whole = agent.passed.done() and plivo.passed.done() and not plivo.closed.done()
    if plivo.transport is not None and not plivo.closed.done():
        plivo.transport.send_close()
        plivo.transport.disconnect()
    await asyncio.wait({plivo.closed, agent.closed}, timeout=20)
    return sent, whole


class _Pace:
    """So many steps a second, of all together."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._began = asyncio.get_running_loop().time()
        self._steps = 0

    async def step(self) -> None:
        self._steps += 1
        if self._steps % 50 == 0:
            due = self._began + self._steps / self._rate
            await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))


def main() -> int:
    """Attack, and print what was seen."""
    parser = argparse.ArgumentParser(description="Attack a stream node.")
    parser.add_argument("what", choices=("flood", "loris", "fuzz", "agents"))
    parser.add_argument("--url", required=True)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--number", type=int, default=600)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--behaviour", choices=sorted(BEHAVIOURS), default="mute")
    options = parser.parse_args()
    # It would be on machines of its own; on this one it must not take their turn from the node and its callers.
    os.nice(10)
    match options.what:
        case "flood":
            seen = asyncio.run(flood(options.url, options.rate, options.seconds, options.address))
        case "loris":
            seen = asyncio.run(loris(options.url, options.number, options.seconds, options.address))
        case "agents":
            seen = asyncio.run(
                hostile_calls(options.url, options.behaviour, options.number, options.seconds, options.port)
            )
        case _:
            seen = asyncio.run(
                fuzz(options.url, options.frames, options.calls, options.rate, options.port, options.seed)
            )
    print(json.dumps(seen))
    return 0


if __name__ == "__main__":
    sys.exit(main())
