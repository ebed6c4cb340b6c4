"""Calls that one core carries without gaps: `make bench-calls`, or `python -m benchmarks.bench_calls [--calls 150]`.

A Mirror's node of calls is pinned to one core; PostgreSQL, Valkey, the judge and the load are kept on the others.
Every call is supervised: its agent said hello, reports a turn every 8 s, which is judged (after 300 ms), and speaks for
6 s of them, in one run at real-time pace (a frame of 20 ms every 20 ms, without any lead) and in another unpaced (all
6 s at once, which Mirror paces). The callers send media all the time.

An underrun is what a caller would hear: Plivo's queue, one FIFO that plays in real time, was empty for 20 ms or more in
the middle of what an agent says. The same is reckoned for the moments at which the agents really sent, so that gaps of
the load's own making show: where it has any, the run says nothing about Mirror. Compare LiveKit's public load test of
agent-transport: 50 direct pipecat calls on 4 CPUs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_connect, ws_create_server

from benchmarks.stream_load import FRAME_S, HANDSHAKE_S, TURN_EVERY_S, Caller, cpu_s, judge_server, mirror, stream_url

SPEECH_S = 6.0
FRAMES = round(SPEECH_S / FRAME_S)
UNDERRUN_S = 0.02
MOST_A_MINUTE = 2.0
SLOTS = 20  # in which the calls' frames are spread over 20 ms
WARM_S = 10.0
PACES = ("paced", "unpaced")
_PLAY_HEAD = b'{"event":"playAudio","media":{"contentType":"audio/x-mulaw","sampleRate":8000,"payload":"'


def play_frame(utterance: int, index: int) -> bytes:
    """20 ms of noise; its first samples say which frame of which utterance of the call it is."""
    audio = utterance.to_bytes(3, "big") + index.to_bytes(3, "big") + bytes([0x10, 0x90] * 77)
    return _PLAY_HEAD + b64encode(audio) + b'"}}'


@dataclass
class Ear:
    """What is heard of frames that arrive: underruns inside utterances, on Plivo's clock."""

    queue_ends: float = 0.0
    utterance: int = -1
    underruns: int = 0
    worst_s: float = 0.0
    frames: int = 0

    def frame(self, utterance: int, now: float) -> None:
        gap = now - self.queue_ends
        if utterance == self.utterance and gap >= UNDERRUN_S:
            self.underruns += 1
            self.worst_s = max(self.worst_s, gap)
        self.utterance = utterance
        self.queue_ends = max(now, self.queue_ends) + FRAME_S
        self.frames += 1

    def forget(self) -> None:
        self.underruns, self.worst_s, self.frames = 0, 0.0, 0


class Agent(WSListener):
    """One call's agent: speaks on a schedule of its own, whatever it hears."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.ear = Ear()
        self.transport: WSTransport | None = None
        self.utterance = -1
        self.index = FRAMES
        self.slot = 0
        self.next_turn = 0.0

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport
        hello = {"event": "mirror.hello", "v": 1, "sdk": "bench", "wants": ["verdicts", "notes"]}
        transport.send(WSMsgType.TEXT, json.dumps(hello).encode())
        self.load.joined(self)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is WSMsgType.CLOSE:
            transport.send_close()
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.transport = None

    def tick(self, now: float, paced: bool) -> None:
        if self.transport is None:
            return
        if now >= self.next_turn:
            self.next_turn += TURN_EVERY_S
            self.utterance += 1
            self.index = 0
            turn = {
                "event": "mirror.turn",
                "turn_id": f"t{self.utterance}",
                "customer_text": "What does the large one cost?",
                "text": "The large one is twelve dollars, and it comes with two toppings of your choice.",
            }
            self.transport.send(WSMsgType.TEXT, json.dumps(turn).encode())
        count = 1 if paced else FRAMES
        while self.index < FRAMES and count:
            self.transport.send(WSMsgType.TEXT, play_frame(self.utterance, self.index))
            self.ear.frame(self.utterance, now)
            self.index += 1
            count -= 1


class CallerEar(Caller):
    """Plivo's side of one call, which hears what is played."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.loop = loop
        self.ear = Ear()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        payload = frame.get_payload_as_bytes()
        if payload.startswith(_PLAY_HEAD):
            utterance = int.from_bytes(b64decode(payload[len(_PLAY_HEAD) : len(_PLAY_HEAD) + 8])[:3], "big")
            self.ear.frame(utterance, self.loop.time())
        else:
            super().on_ws_frame(transport, frame)


@dataclass
class Load:
    """All calls, driven by one clock."""

    paced: bool = True
    callers: list[CallerEar] = field(default_factory=list)
    agents: list[Agent] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)

    def joined(self, agent: Agent) -> None:
        number = len(self.agents)
        agent.slot = number % SLOTS
        # Turns are spread over the 8 s, as callers' are.
        agent.next_turn = asyncio.get_running_loop().time() + TURN_EVERY_S * (number * 0.618 % 1)
        self.agents.append(agent)

    async def run(self, until: Callable[[], bool]) -> None:
        """Send every caller's and every agent's frame of each 20 ms, until told."""
        loop = asyncio.get_running_loop()
        due, slot = loop.time(), 0
        while not until():
            await asyncio.sleep(max(0.0, due - loop.time()))
            now = loop.time()
            self.late_s.append(now - due)
            for caller in self.callers[slot::SLOTS]:
                caller.tick()
            for agent in self.agents:
                if agent.slot == slot:
                    agent.tick(now, self.paced)
            due += FRAME_S / SLOTS
            slot = (slot + 1) % SLOTS


@dataclass(frozen=True)
class Outcome:
    """Underruns per call-minute, as heard and as sent."""

    heard: list[float]
    sent: list[float]
    worst_ms: float
    missing: int
    core: float
    load_core: float
    late_ms: float

    @property
    def holds(self) -> bool:
        return not self.missing and statistics.median(self.heard) == 0 and max(self.heard) <= MOST_A_MINUTE


async def measure(pace: str, calls: int, seconds: float, http: str, public: str, node: psutil.Process) -> Outcome:
    loop = asyncio.get_running_loop()
    load = Load(paced=pace == "paced")

    def listener(request: WSUpgradeRequest) -> WSListener:
        return Agent(load)

    agents = await ws_create_server(listener, "127.0.0.1", 0)
    judge, judge_url = await judge_server()
    upstream = f"ws://127.0.0.1:{agents.sockets[0].getsockname()[1]}/agent"
    url = await asyncio.to_thread(stream_url, public, upstream, judge_url)
    url = url.replace(public.removeprefix("http"), http.removeprefix("http"))
    ended = False
    running = loop.create_task(load.run(lambda: ended))
    try:
        for _ in range(calls):
            caller = CallerEar(loop)
            caller.transport, _ = await ws_connect(
                lambda caller=caller: caller, url, websocket_handshake_timeout=HANDSHAKE_S
            )
            caller.start()
            load.callers.append(caller)
        async with asyncio.timeout(30):
            while len(load.agents) < calls:  # noqa: ASYNC110  (another process dials)
                await asyncio.sleep(0.05)
        await asyncio.sleep(WARM_S)
        for one in (*load.callers, *load.agents):
            one.ear.forget()
        load.late_s.clear()
        me = psutil.Process()
        used, mine, begun = cpu_s(node), cpu_s(me), loop.time()
        await asyncio.sleep(seconds)
        lasted = loop.time() - begun
        minutes = lasted / 60
        expected = lasted * SPEECH_S / TURN_EVERY_S / FRAME_S
        return Outcome(
            heard=[caller.ear.underruns / minutes for caller in load.callers],
            sent=[agent.ear.underruns / minutes for agent in load.agents],
            worst_ms=max(caller.ear.worst_s for caller in load.callers) * 1000,
            # A whole utterance may lie on either edge of the time that is counted.
            missing=sum(caller.ear.frames < expected - 1.5 * FRAMES for caller in load.callers),
            core=(cpu_s(node) - used) / lasted,
            load_core=(cpu_s(me) - mine) / lasted,
            late_ms=statistics.quantiles(load.late_s, n=100)[98] * 1000,
        )
    finally:
        ended = True
        await running
        for caller in load.callers:
            if caller.transport is not None:
                caller.transport.send_close()
                caller.transport.disconnect()
        agents.close()
        await judge.cleanup()


def _report(server: str, pace: str, calls: int, outcome: Outcome) -> None:
    troubled = sum(1 for one in outcome.heard if one)
    print(
        f"{server}, agents {pace}: {calls} calls; underruns of 20 ms per call-minute: median"
        f" {statistics.median(outcome.heard):g}, worst call {max(outcome.heard):.1f} (bar: 0, at most"
        f" {MOST_A_MINUTE:g}); longest {outcome.worst_ms:.0f} ms; {troubled} calls had any;"
        f" Mirror used {outcome.core:.0%} of its core"
    )
    print(
        f"    the load's own: median {statistics.median(outcome.sent):g}, worst {max(outcome.sent):.1f};"
        f" {outcome.load_core:.0%} of a core, p99 {outcome.late_ms:.1f} ms late"
    )
    if outcome.missing:
        print(f"    {outcome.missing} calls got too little audio")


async def run(options: argparse.Namespace, public: str, nodes: list[tuple[str, psutil.Process]]) -> int:
    failed = False
    for server, (http, node) in zip(options.server, nodes, strict=True):
        for pace in options.pace:
            outcome = await measure(pace, options.calls, options.seconds, http, public, node)
            _report(server, pace, options.calls, outcome)
            failed |= not outcome.holds
    return int(failed)


def cores() -> tuple[list[int], list[int]]:
    """The core for Mirror, and those for everything else."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise SystemExit("two cores are needed: one for Mirror, one for the load")
    return allowed[:1], allowed[1:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=150)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--server", nargs="+", choices=("daphne", "uvicorn"), default=["uvicorn"])
    parser.add_argument("--pace", nargs="+", choices=PACES, default=list(PACES))
    options = parser.parse_args()
    ours, others = cores()
    os.sched_setaffinity(0, others)  # and with it all that is started from here
    with (
        tempfile.TemporaryDirectory(prefix="mirror-bench-") as folder,
        mirror(Path(folder) / "home", options.server) as (public, nodes),
    ):
        for _, node in nodes:
            pinned: Any = node
            pinned.cpu_affinity(ours)
        return uvloop.run(run(options, public, nodes))


if __name__ == "__main__":
    sys.exit(main())
