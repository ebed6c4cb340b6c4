"""The faults. Each gets a :class:`Soak` with calls running, breaks something, mends it, and says what it saw."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from benchmarks.soak.calls import Agents, Lag, Running, SoakCall, call_of_another_process
from benchmarks.soak.node import ROOT, Node, Servers, Tenant, tenant_make
from benchmarks.soak.records import losses, records_settled
from supervision.plivo.simulator import PlivoSwitches
from tests.standins.llm import LLMStandIn, words
from tests.support.ports import free_port

Fault = Callable[["Soak"], Awaitable[None]]
WARM_S: Final = 4.0
SETTLE_S: Final = 90.0


@dataclass
class Result:
    """A row of the table."""

    fault: str
    calls: int = 0
    disturbed: int = 0
    lost: int = 0
    doubled: int = 0
    seen: str = ""
    allowed: bool = False
    """Whether the fault may disturb calls: nothing else can carry them."""
    problems: list[str] = field(default_factory=list)
    others: list[SoakCall] = field(default_factory=list)
    """Calls of the fault's own, whose record has to be whole, too; what their callers heard does not matter."""

    @property
    def good(self) -> bool:
        return not self.lost and not self.doubled and (self.allowed or not self.disturbed) and not self.problems


@dataclass
class Soak:
    """What all faults share: servers, a node, a tenant, agents, a judge."""

    servers: Servers
    node: Node
    agents: Agents
    llm: LLMStandIn
    size: int
    """How many calls run beside a fault."""
    length: float = 1.0
    """By how much faults are shorter than at full size."""
    frames: int = 1_000_000
    tenant: Tenant | None = None
    silent_url: str = ""
    hostile_port: int = field(default_factory=free_port)
    """Where agents that behave badly answer."""
    results: list[Result] = field(default_factory=list)

    @property
    def stream_url(self) -> str:
        assert self.tenant is not None
        return self.node.ws + self.tenant.streams["agent"]

    async def prepare(self) -> None:
        """The tenant, once the node runs."""
        urls = {
            "agent": self.agents.url,
            "silent": self.silent_url,
            "hostile": f"ws://127.0.0.1:{self.hostile_port}/agent",
        }
        self.tenant = await asyncio.to_thread(tenant_make, self.servers, self.node, urls, self.llm.base_url)

    async def hold(self, seconds: float) -> None:
        """As long as this takes at full size."""
        await asyncio.sleep(seconds * self.length)

    @contextlib.asynccontextmanager
    async def running(
        self, fault: str, *, switches: PlivoSwitches | None = None, killed: bool = False, allowed: bool = False
    ) -> AsyncIterator[Result]:
        """Calls around a fault, and a row with what became of them."""
        assert self.tenant is not None
        result = Result(fault, allowed=allowed)
        log_from = self.node.log.stat().st_size if self.node.log.exists() else 0
        lag = Lag()
        running = Running(self.agents, self.stream_url, switches)
        await running.start(self.size)
        await asyncio.sleep(WARM_S)
        try:
            yield result
        finally:
            await asyncio.sleep(WARM_S)
            calls = await running.stop()
            stood = await lag.stop()
        await records_settled(self.servers.app_url, self.tenant.id, [*calls, *result.others], SETTLE_S)
        await self._judge(result, calls, killed)
        if stood > 0.2:
            result.seen += f"; this machine stood still for up to {stood * 1000:.0f} ms"
        if failures := self.node.failures(log_from):
            result.problems.append(f"{len(failures)} tracebacks in the node's log, such as {failures[0][-300:]}")
        self.results.append(result)

    async def _judge(self, result: Result, calls: list[SoakCall], killed: bool) -> None:
        assert self.tenant is not None
        noticed = {call.call_id: call.disturbed() for call in calls}
        every = [*calls, *result.others]
        found = await asyncio.to_thread(losses, self.servers.app_url, self.tenant.id, every, killed=killed)
        result.calls += len(calls)
        result.disturbed += sum(1 for each in noticed.values() if each)
        result.lost += len(found.lost)
        result.doubled += len(found.doubled)
        turns = sum(len(call.turns) for call in calls)
        tools = [allowed for call in calls for allowed in call.tools.values()]
        said = f"{turns} turns, {sum(tools)} of {len(tools)} irreversible tools allowed"
        if found.unacknowledged:
            said += f"; {found.unacknowledged} turns of the last moment had not been acknowledged"
        result.seen = "; ".join(filter(None, [said, result.seen]))
        for what in [*found.lost[:5], *found.doubled[:5], *[f"{i}: {w}" for i, w in noticed.items() if w][:5]]:
            print("   ", what, file=sys.stderr)

    async def attack(self, what: str, **options: Any) -> dict[str, Any]:
        """Run an attack in a process of its own; what it saw."""
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.soak.attack", what, *arguments),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        said = await process.stdout.read()
        if await process.wait():
            raise RuntimeError(f"the attack {what} failed")
        seen: dict[str, Any] = json.loads(said)
        return seen


# Processes and servers


async def kill(soak: Soak) -> None:
    """kill -9 of the stream process, with calls in it."""
    async with soak.running("`kill -9` of the stream process", killed=True, allowed=True) as result:
        await asyncio.to_thread(soak.node.kill)
        began = asyncio.get_running_loop().time()
        await asyncio.to_thread(soak.node.start)
        result.seen = f"takes calls again after {asyncio.get_running_loop().time() - began:.1f} s"


async def database(soak: Soak) -> None:
    """PostgreSQL is gone for a minute."""
    async with soak.running(f"PostgreSQL stopped for {60 * soak.length:.0f} s"):
        await asyncio.to_thread(soak.servers.database_stop)
        await soak.hold(60)
        await asyncio.to_thread(soak.servers.database_start)


async def broker(soak: Soak) -> None:
    """Valkey is gone for half a minute."""
    async with soak.running(f"Valkey stopped for {30 * soak.length:.0f} s"):
        await asyncio.to_thread(soak.servers.broker_stop)
        await soak.hold(30)
        await asyncio.to_thread(soak.servers.broker_start)


async def disk(soak: Soak) -> None:
    """The journal's disk takes nothing any more, and later does again."""
    async with soak.running(f"disk full for the journal, {20 * soak.length:.0f} s"):
        soak.node.file_size_limit(0)
        await soak.hold(20)
        soak.node.file_size_limit(None)


async def clock(soak: Soak) -> None:
    """The wall clock jumps, forth and back."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        result = Result("wall clock jumps", problems=["not run: no C compiler to build the clock that jumps"])
        soak.results.append(result)
        return
    with tempfile.TemporaryDirectory() as folder:
        offset = Path(folder) / "offset"
        offset.write_bytes(bytes(8))
        library = Path(folder) / "clock.so"
        source = Path(__file__).with_name("jumping_clock.c")
        build = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"]
        await asyncio.to_thread(subprocess.run, build, check=True)
        await _restarted(soak, {"LD_PRELOAD": str(library), "JUMPING_CLOCK": str(offset)})
        jumps = (3600, -7200, 86_400, -30)
        async with soak.running("wall clock jumps by " + ", ".join(f"{jump:+} s" for jump in jumps)):
            now = 0
            for jump in jumps:
                now += jump
                with offset.open("r+b") as file:
                    file.write(now.to_bytes(8, "little", signed=True))
                await soak.hold(8)
            with offset.open("r+b") as file:
                file.write(bytes(8))
        await _restarted(soak)


async def _restarted(soak: Soak, changes: Mapping[str, str] | None = None) -> None:
    await asyncio.to_thread(soak.node.stop)
    await asyncio.to_thread(soak.node.start, changes)


# The judge and the voice


def judge(name: str, **behaviour: Any) -> Fault:
    """A fault in which the LLM behaves like this."""

    async def fault(soak: Soak) -> None:
        async with soak.running(f"LLM {name}, {20 * soak.length:.0f} s"):
            soak.llm.behave(**behaviour)
            await soak.hold(20)
            soak.llm.behave()
            soak.llm.release()

    return fault


async def voice(soak: Soak) -> None:
    """The TTS refuses, hangs and errs; bad turns are then noted, not cut."""
    hanging = asyncio.Event()

    async def speech(request: web.Request) -> web.Response:
        await asyncio.wait_for(hanging.wait(), 600)
        return web.Response(status=503)

    app = web.Application()
    app.router.add_post("/v1/audio/speech", speech)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    await _restarted(soak, {"MIRROR_TTS": "openai", "OPENAI_TTS_BASE_URL": url, "OPENAI_TTS_API_KEY": "key"})
    soak.agents.bad_every = 3
    try:
        async with soak.running("TTS hangs, then answers 503; a third of all turns is bad") as result:
            await soak.hold(15)
            hanging.set()
            await soak.hold(15)
            notes = sum(call.notes for call in soak.agents.calls.values())
            result.seen = f"{notes} notes instead of cuts"
            if not notes:
                result.problems.append("no violation led to a note")
    finally:
        soak.agents.bad_every = 0
        await runner.cleanup()
        await _restarted(soak)


# Agents


def hostile(
    name: str, behaviour: str, agent: str = "hostile", *, seconds: float = 20.0, hangs_up: bool = True
) -> Fault:
    """A fault in which a number of calls have an agent that behaves like this, in a process of their own."""

    async def fault(soak: Soak) -> None:
        number = max(1, soak.size // 5)
        async with soak.running(f"{number} agents that {name}") as result:
            assert soak.tenant is not None
            seen = await soak.attack(
                "agents",
                url=soak.node.ws + soak.tenant.streams[agent],
                behaviour=behaviour,
                number=number,
                seconds=20 * soak.length if hangs_up else 0,
                port=soak.hostile_port,
            )
            ways = sorted({f"{call['outcome']} by {call['ended_by']}" for call in seen["calls"]})
            took = max(call["took_s"] for call in seen["calls"])
            result.seen = f"their calls: {', '.join(ways)}, after {took:.1f} s at most"
            result.others = [call_of_another_process(call["call_id"]) for call in seen["calls"]]

    return fault


# Plivo


def plivo(name: str, switches: PlivoSwitches) -> Fault:
    """A fault in which Plivo behaves like this, and a quarter of all turns is cut."""

    async def fault(soak: Soak) -> None:
        soak.agents.bad_every = 4
        try:
            async with soak.running(f"Plivo {name}; a quarter of all turns is cut", switches=switches) as result:
                await soak.hold(30)
                notes = sum(call.notes for call in soak.agents.calls.values())
                result.seen = f"{notes} notes"
        finally:
            soak.agents.bad_every = 0

    return fault


async def reconnects(soak: Soak) -> None:
    """Plivo's connection breaks in each call, and it dials again: the call goes on over the new one."""
    switches = PlivoSwitches(reconnects=2, reconnect_delay_s=0.5, queue_on_reconnect="kept")
    # What was being said when the connection broke is gone with it.
    async with soak.running("Plivo's connection breaks in each call, and it reconnects", switches=switches,
                            allowed=True) as result:  # fmt: skip
        calls = [call for call in soak.agents.calls.values() if call.record is None and call._simulated is not None]
        for call in calls:
            assert call._simulated is not None
            call._simulated.drop_connection()
            await asyncio.sleep(0.1)
        await soak.hold(10)
        again = sum(call.ready > 1 for call in calls)
        over = sum(call.record is not None for call in calls)
        result.seen = f"{again} of {len(calls)} agents were told that their call goes on, {over} calls ended"
        if again < len(calls):
            result.problems.append(f"{len(calls) - again} calls were not taken over")


# The door


async def wrong_keys(soak: Soak) -> None:
    """Handshakes with wrong keys, as many as are borne."""
    async with soak.running("200 handshakes/s with wrong keys") as result:
        url = f"{soak.node.ws}/stream/{soak.tenant.slug if soak.tenant else ''}/sk_wrong"
        seen = await soak.attack("flood", url=url, rate=200, seconds=30 * soak.length, address="127.0.0.2")
        result.seen = f"{seen['rate']:.0f}/s for {30 * soak.length:.0f} s: {_ended(seen)}"


async def more_wrong_keys(soak: Soak) -> None:
    """More of them than are borne: their address is not listened to."""
    async with soak.running("800 handshakes/s with wrong keys") as result:
        url = f"{soak.node.ws}/stream/{soak.tenant.slug if soak.tenant else ''}/sk_wrong"
        seen = await soak.attack("flood", url=url, rate=800, seconds=15 * soak.length, address="127.0.0.4")
        result.seen = f"{seen['rate']:.0f}/s for {15 * soak.length:.0f} s: {_ended(seen)}"
        if not seen["ended"].get("closed"):
            result.problems.append("none was closed at accept")


def _ended(seen: dict[str, Any]) -> str:
    answers = {"403": "refused", "closed": "closed at accept"}
    said = [f"{number} {answers.get(how, how)}" for how, number in sorted(seen["ended"].items())]
    return ", ".join(said) + (f", answered in {seen['p99_ms']:.0f} ms (p99)" if seen["p99_ms"] else "")


async def slow_handshakes(soak: Soak) -> None:
    """Handshakes that send a byte a second."""
    async with soak.running("600 handshakes that send a byte a second") as result:
        seen = await soak.attack("loris", url=soak.stream_url, number=600, seconds=40, address="127.0.0.3")
        result.seen = f"none was borne for longer than {seen['longest_s']:.1f} s"
        if seen["longest_s"] > 15:
            result.problems.append(f"a handshake was borne for {seen['longest_s']:.1f} s")


async def fuzz(soak: Soak) -> None:
    """Frames that make no sense, from both ends of other calls."""
    port = free_port()
    upstream = f"ws://127.0.0.1:{port}/agent"
    other = await asyncio.to_thread(tenant_make, soak.servers, soak.node, {"fuzz": upstream}, soak.llm.base_url)
    async with soak.running(f"{soak.frames:,} fuzzed frames from both ends of other calls") as result:
        url = soak.node.ws + other.streams["fuzz"]
        seen = await soak.attack("fuzz", url=url, frames=soak.frames, calls=20, rate=4000, port=port)
        result.seen = (
            f"{seen['frames']:,} frames in {seen['calls']} calls, {seen['ended_early']} of which ended early,"
            f" {seen['seconds']:.0f} s"
        )
        if seen["ended_early"]:
            result.problems.append(f"{seen['ended_early']} fuzzed calls ended early")


LOST = PlivoSwitches(cleared_audio="lost", delay_s=0.05)
LATE = PlivoSwitches(
    cleared_audio="late", cleared_audio_delay_s=3.0, pending_checkpoints_on_clear="fire_late", delay_s=0.05
)
TWICE = PlivoSwitches(cleared_audio="double", pending_checkpoints_on_clear="fire_now", delay_s=0.05)

FAULTS: Final[dict[str, Fault]] = {
    "kill": kill,
    "database": database,
    "broker": broker,
    "llm-hangs": judge("hangs", hang=True),
    "llm-errors": judge("answers 500", status=500),
    "llm-limits": judge("answers 429", status=429, headers={"Retry-After": "30"}),
    "llm-drips": judge("drips a byte every 100 ms", drip_bytes=1, drip_every_s=0.1),
    "tts": voice,
    "agent-silent": hostile("accept the connection and never answer", "mute", "silent", hangs_up=False),
    "agent-mute": hostile("accept the socket and say nothing", "mute"),
    "agent-mid-frame": hostile("close in the middle of a frame", "mid-frame", hangs_up=False),
    "agent-long": hostile("send ten minutes of audio at once, and again", "long"),
    "agent-never-reads": hostile("never read, and ask all the time", "never-reads"),
    "plivo-never": plivo("never acknowledges a clear", LOST),
    "plivo-late": plivo("acknowledges 3 s late", LATE),
    "plivo-twice": plivo("acknowledges twice", TWICE),
    "plivo-reconnects": reconnects,
    "clock": clock,
    "disk": disk,
    "wrong-keys": wrong_keys,
    "more-wrong-keys": more_wrong_keys,
    "slow-handshakes": slow_handshakes,
    "fuzz": fuzz,
}


def judge_prepare(llm: LLMStandIn) -> None:
    """What the judge finds: turns that say that money was refunded."""
    correction = "I cannot refund that myself. Shall I connect you with a colleague?"
    llm.judge(words({"refunded": {"rule": 1, "correction": correction}}))
    llm.correct(lambda _: correction)
