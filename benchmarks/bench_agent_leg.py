"""Which WebSocket client carries the agent's leg: `python -m benchmarks.bench_agent_leg [--calls 50] [--seconds 5]`.

CPU (user and system) of a process that sends a text frame of media on each of its connections every 20 ms and gets one
back, for `picows` on asyncio's own transports, on `aiofastnet`'s and on uvloop, and for `websockets` on asyncio and on
uvloop. The echo server is a process of its own; clients take turns, rounds are repeated, medians are told.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_connect, ws_create_server
from websockets.asyncio.client import connect

ROOT = Path(__file__).resolve().parents[1]
FRAME_S = 0.02
TEXT = '{"event":"media","streamId":"6f1","media":{"payload":"' + "x" * 216 + '"}}'
KINDS = ("picows", "picows-aiofastnet", "picows-uvloop", "websockets", "websockets-uvloop")


class _Echo(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is WSMsgType.TEXT:
            transport.send(WSMsgType.TEXT, frame.get_payload_as_bytes())
        elif frame.msg_type is WSMsgType.CLOSE:
            transport.disconnect()


class _Client(WSListener):
    def __init__(self, got: Callable[[str], None]) -> None:
        self.got = got

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is WSMsgType.TEXT:
            self.got(frame.get_payload_as_utf8_text())


async def serve() -> None:
    """Echo until the parent ends this process; the port is the first line."""

    def listener(request: WSUpgradeRequest) -> WSListener:
        return _Echo()

    server = await ws_create_server(listener, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def client(kind: str, port: int, calls: int, seconds: float) -> None:
    """Prints the CPU seconds of this process and the frames that came back, within `seconds`."""
    loop = asyncio.get_running_loop()
    received = 0

    def got(text: str) -> None:
        nonlocal received
        received += 1

    senders: list[Callable[[], Any]] = []
    readers: list[asyncio.Task[None]] = []
    url = f"ws://127.0.0.1:{port}/"
    for _ in range(calls):
        if kind.startswith("picows"):
            transport, _listener = await ws_connect(
                lambda: _Client(got), url, use_aiofastnet=kind == "picows-aiofastnet"
            )
            senders.append(lambda transport=transport: transport.send(WSMsgType.TEXT, TEXT.encode()))
        else:
            socket = await connect(url, compression=None, ping_interval=None, max_queue=None)

            async def read(socket: Any = socket) -> None:
                async for message in socket:
                    got(message)

            readers.append(loop.create_task(read()))
            senders.append(lambda socket=socket: socket.send(TEXT))

    async def tick(offset: float, send: Callable[[], Any], until: float) -> None:
        due = loop.time() + offset
        while due < until:
            await asyncio.sleep(max(0.0, due - loop.time()))
            sent = send()
            if sent is not None:
                await sent
            due += FRAME_S

    begun, before = time.process_time(), received
    until = loop.time() + seconds
    await asyncio.gather(*(tick(FRAME_S * i / calls, send, until) for i, send in enumerate(senders)))
    print(time.process_time() - begun, received - before, flush=True)
    for task in readers:
        task.cancel()


def measure(kind: str, port: int, calls: int, seconds: float) -> float:
    """Microseconds of CPU for a frame sent and one received, the timer's tick included."""
    command = [sys.executable, "-m", "benchmarks.bench_agent_leg", "--client", kind, "--port", str(port)]
    command += ["--calls", str(calls), "--seconds", str(seconds)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    cpu, frames = done.stdout.split()
    if int(frames) < 0.95 * calls * seconds / FRAME_S:
        print(f"{kind}: only {frames} frames came back; this machine is too busy", file=sys.stderr)
    return float(cpu) / max(1, int(frames)) * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--client", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
        return 0
    if options.client:
        run = uvloop.run if options.client.endswith("uvloop") else asyncio.run
        run(client(options.client, options.port, options.calls, options.seconds))
        return 0
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.bench_agent_leg", "--serve"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        costs: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(options.rounds):
            for kind in KINDS:
                costs[kind].append(measure(kind, port, options.calls, options.seconds))
    finally:
        server.terminate()
        server.wait()
    print(f"{options.calls} connections, {options.seconds:g} s, {options.rounds} rounds; client CPU per frame and echo")
    least = min(statistics.median(values) for values in costs.values())
    for kind, values in costs.items():
        rounds = " ".join(f"{value:.1f}" for value in values)
        median = statistics.median(values)
        print(f"  {kind:<20}{median:7.1f} µs  {median / least:5.2f} x   (rounds: {rounds})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
