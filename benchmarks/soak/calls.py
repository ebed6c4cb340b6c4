"""Calls that run while something else breaks, and what their callers heard.

An agent reports a turn, speaks noise that no other turn has, waits until Plivo says that it was played, and goes on;
now and then it asks for an irreversible tool. The caller's ears then hold each turn against what was heard: all of it,
in order, without a gap, soon after it was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import uuid
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from supervision.plivo.simulator import MULAW_8K, CallRecord, PlivoSwitches, SimulatedCall

FRAME_BYTES: Final = 160
TURN_FRAMES: Final = 60
# Of one turn: how much silence between its frames, and how late its first frame, a caller is taken to notice.
GAP_S: Final = 0.06
LATE_S: Final = 1.0
PLAYED_WITHIN_S: Final = 15.0
SERVER: Final[dict[str, Any]] = {"max_size": None, "compression": None, "ping_interval": None}
GOOD: Final = "Your order is on its way, and a colleague looks after the rest."
BAD: Final = "I have refunded the money to your card, and it will be there tomorrow."


@dataclass
class Turn:
    """A turn of an agent's. Times are the loop's."""

    ref: str
    audio: bytes
    bad: bool
    sent_at: float = 0.0
    whole: bool = False
    """All its frames were handed to Mirror."""
    played: bool = False
    verdict: str | None = None


@dataclass
class SoakCall:
    """One call: its two ends, and what each of them knows."""

    call_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    turns: list[Turn] = field(default_factory=list)
    tools: dict[str, bool] = field(default_factory=dict)
    """Irreversible tools that were answered, and whether they may run: a yes is an acknowledgement."""
    notes: int = 0
    ready: int = 0
    """How often the agent was told that Mirror is there: more than once when the call was taken over."""
    errors: list[str] = field(default_factory=list)
    record: CallRecord | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    _simulated: SimulatedCall | None = None

    def disturbed(self) -> list[str]:
        """What the caller noticed; empty when nothing."""
        record = self.record
        assert record is not None
        if record.started_t is None:
            return [f"never began: {record.reason}"]
        noticed = list(self.errors)
        if (record.outcome, record.ended_by) != ("completed", "caller"):
            noticed.append(f"ended by {record.ended_by}: {record.reason}")
        heard, since = record.heard, 0.0
        for turn in self.turns:
            if turn.bad or not turn.whole or not (turn.played or turn is not self.turns[-1]):
                continue
            found = heard.find(turn.audio, since)
            if found is None:
                noticed.append(f"turn {turn.ref} was not heard whole")
                continue
            since = found.end
            gap = found.end - found.start - len(turn.audio) / 8000
            late = found.start - (turn.sent_at - record.began_at)
            if gap > GAP_S:
                noticed.append(f"turn {turn.ref} has {gap * 1000:.0f} ms of gaps")
            if late > LATE_S:
                noticed.append(f"turn {turn.ref} began {late * 1000:.0f} ms late")
        return noticed


def call_of_another_process(call_id: str) -> SoakCall:
    """A call that took place elsewhere: that there was one is all that is known."""
    record = CallRecord(MULAW_8K, call_id, "", "", "")
    record.started_t = 0.0
    return SoakCall(call_id, record=record)


class Agents:
    """The agents' server; each call's agent is looked up by the call's id."""

    def __init__(self) -> None:
        self.url = ""
        self.calls: dict[str, SoakCall] = {}
        self.stopping = asyncio.Event()
        self.bad_every = 0
        self.tools = True

    async def serve(self, connection: ServerConnection) -> None:
        start = await start_of(connection)
        if start is None:
            return
        call = self.calls[start["start"]["callId"]]
        talk = _Talk(connection, start, call, self)
        reading = asyncio.create_task(talk.read())
        try:
            await talk.run()
            call.over.set()
        except ConnectionClosed:
            # Perhaps the call goes on on another socket; if it does not, its caller sees it end.
            pass
        except TimeoutError as problem:
            call.errors.append(str(problem) or "a wait timed out")
            call.over.set()
        finally:
            await reading


async def start_of(connection: ServerConnection) -> dict[str, Any] | None:
    """The `start` event of a call that reached an agent; None when the call is gone before it came."""
    with contextlib.suppress(ConnectionClosed, TimeoutError):
        async with asyncio.timeout(20):
            while True:
                frame = json.loads(await connection.recv())
                if frame.get("event") == "start":
                    found: dict[str, Any] = frame
                    return found
    return None


class _Talk:
    """What one agent does in one call."""

    def __init__(self, connection: ServerConnection, start: dict[str, Any], call: SoakCall, agents: Agents) -> None:
        self.connection = connection
        self.stream_id = start["start"]["streamId"]
        self.call = call
        self.agents = agents
        self._events: list[dict[str, Any]] = []
        self._changed = asyncio.Condition()
        self._closed = False

    async def read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for message in self.connection:
                if isinstance(message, str) and not message.startswith('{"event":"media"'):
                    await self._take(json.loads(message))
        self._closed = True
        async with self._changed:
            self._changed.notify_all()

    async def _take(self, event: dict[str, Any]) -> None:
        kind = event.get("event")
        if kind == "mirror.note":
            self.call.notes += 1
        if kind == "mirror.ready":
            self.call.ready += 1
        if kind == "mirror.verdict":
            for turn in self.call.turns:
                if turn.ref == event["turn_id"]:
                    turn.verdict = event["state"]
        async with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    async def wait(self, kind: str, timeout_s: float, **fields: Any) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            for event in self._events:
                if event.get("event") == kind and all(event.get(name) == value for name, value in fields.items()):
                    return event
            return None

        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self._closed or found() is not None)
        except TimeoutError:
            raise TimeoutError(f"no {kind} {fields} within {timeout_s:g} s") from None
        event = found()
        if event is None:
            raise ConnectionClosed(None, None)
        return event

    async def send(self, event: str, **fields: Any) -> None:
        await self.connection.send(json.dumps({"event": event, **fields}))

    async def run(self) -> None:
        await self.send("mirror.hello", v=1, sdk="soak/1", wants=["verdicts", "notes"])
        await self.wait("mirror.ready", 10)
        while not self.agents.stopping.is_set():
            number = len(self.call.turns) + 1
            every = self.agents.bad_every
            turn = Turn(
                f"t{number}",
                _noise(f"{self.call.call_id} {number}"),
                bool(every) and number % every == 0,
            )
            self.call.turns.append(turn)
            await self._say(turn)
            if self.agents.tools and number % 3 == 0:
                await self._charge(f"c{number}", number)
            await asyncio.sleep(0.3)
            self._events = [event for event in self._events if event.get("event") == "mirror.ready"]

    async def _say(self, turn: Turn) -> None:
        words = BAD if turn.bad else GOOD
        await self.send("mirror.turn", turn_id=turn.ref, customer_text="Where is it?", text=words)
        turn.sent_at = asyncio.get_running_loop().time()
        for offset in range(0, len(turn.audio), FRAME_BYTES):
            payload = b64encode(turn.audio[offset : offset + FRAME_BYTES]).decode()
            media = {"contentType": "audio/x-mulaw", "sampleRate": 8000, "payload": payload}
            await self.send("playAudio", media=media)
        await self.send("checkpoint", streamId=self.stream_id, name=turn.ref)
        turn.whole = True
        if turn.bad:
            # What replaces it is Mirror's business; the agent goes on when the judge has spoken.
            await self.wait("mirror.verdict", PLAYED_WITHIN_S, turn_id=turn.ref)
            await asyncio.sleep(6)
            return
        await self.wait("playedStream", PLAYED_WITHIN_S, name=turn.ref)
        turn.played = True
        await self.wait("mirror.verdict", PLAYED_WITHIN_S, turn_id=turn.ref)

    async def _charge(self, ref: str, number: int) -> None:
        args = {"amount": number}
        await self.send("mirror.tool", id=ref, name="charge_card", args=args, customer_text="Yes, please.")
        verdict = await self.wait("mirror.tool_verdict", PLAYED_WITHIN_S, id=ref)
        self.call.tools[ref] = bool(verdict["allow"])
        if verdict["allow"]:
            await self.send("mirror.tool_done", id=ref, ok=True, result={"receipt": number})


def _noise(seed: str) -> bytes:
    """Mu-law that no other turn has, and nowhere silence."""
    made = random.Random(seed).randbytes(FRAME_BYTES * TURN_FRAMES)
    return made.replace(b"\xff", b"\x10").replace(b"\x7f", b"\x90")


@contextlib.asynccontextmanager
async def agents_running() -> AsyncIterator[Agents]:
    agents = Agents()
    async with serve(agents.serve, "127.0.0.1", 0, **SERVER) as server:
        agents.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/agent"
        yield agents


class Running:
    """A number of calls that go on until they are told to stop."""

    def __init__(self, agents: Agents, stream_url: str, switches: PlivoSwitches | None = None) -> None:
        self._agents = agents
        self._url = stream_url
        self._switches = switches or PlivoSwitches()
        self.calls: list[SoakCall] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, number: int) -> None:
        """Start the calls, spread over a moment as callers are; returns when all have begun to talk or failed."""
        self._agents.stopping.clear()
        for _ in range(number):
            call = SoakCall()
            self._agents.calls[call.call_id] = call
            self.calls.append(call)
            self._tasks.append(asyncio.create_task(self._run(call)))
            await asyncio.sleep(0.05)
        async with asyncio.timeout(30):
            # Each is polled: a call that fails says so by being over.
            while not all(call.turns or call.over.is_set() for call in self.calls):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def _run(self, call: SoakCall) -> None:
        async def caller(simulated: SimulatedCall) -> None:
            await call.over.wait()
            # The line is open a moment longer than the last word.
            await asyncio.sleep(0.3)
            simulated.hang_up()

        simulated = SimulatedCall(self._url, caller, self._switches, call_id=call.call_id)
        call._simulated = simulated
        call.record = await simulated.run()
        call.over.set()

    async def stop(self) -> list[SoakCall]:
        """Let each call finish its turn and hang up; returns the calls."""
        self._agents.stopping.set()
        _, pending = await asyncio.wait(self._tasks, timeout=40)
        for call, task in zip(self.calls, self._tasks, strict=True):
            if task in pending and call._simulated is not None:
                call.errors.append("did not end by itself")
                call._simulated.hang_up()
        await asyncio.gather(*self._tasks)
        return self.calls


class Lag:
    """How long this process's own loop stood still: what its callers noticed then may be its own doing."""

    def __init__(self) -> None:
        self.worst_s = 0.0
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + 0.02
            await asyncio.sleep(0.02)
            self.worst_s = max(self.worst_s, loop.time() - due)

    async def stop(self) -> float:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        return self.worst_s
