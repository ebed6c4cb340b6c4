"""A whole call on virtual time: the real consumer, session, relay and engine, without sockets.

    world = World(monkeypatch)
    record = await world.call(script, during)

Between them stand the Plivo stand-in with its playout and all its switches, and an agent that runs the same scripts as
the end-to-end tests' agents; only the two WebSockets are replaced, by the objects that picows would hand out. Every
line and every agent's turn is a tone of its own, so what the caller heard can be told by listening (`ears`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import numpy as np
import pytest
from picows import WSCloseCode, WSMsgType
from websockets.exceptions import ConnectionClosedError

from mirror_saas.ids import uuid7
from supervision.audio import mulaw
from supervision.engine.intervention.templates import buffer_lines
from supervision.engine.llm.pool import ScoringPool
from supervision.engine.scorer.tool_gate import LedgerKey
from supervision.engine.tts.protocol import Speech
from supervision.engine.tts.voice import LineCache
from supervision.plivo.simulator import CallRecord, Heard, PlivoSwitches, SimulatedCall
from supervision.plivo.simulator import call as simulator_call
from supervision.plivo.simulator.connection import Closed, Connection, DialFailed, Message
from supervision.recorder.events import RecordEvent, first_seq
from supervision.recorder.recorder import JournalUnavailable
from supervision.redaction import Redaction
from supervision.stream import consumer as consumer_module
from supervision.stream import dial as dial_module
from supervision.stream.approvals import ApprovalCall, Standing, Waiting
from supervision.stream.consumer import StreamConsumer
from supervision.stream.database import DatabaseSilent
from supervision.stream.directory import AgentBinding, ProviderSettings
from supervision.stream.ledger import Kept, LedgerCall
from supervision.stream.limits import CallLeases
from supervision.stream.mailbox import Mailbox
from supervision.stream.owners import CallOwners
from supervision.stream.plivo_rest import PlivoDoor
from supervision.stream.revocation import KeyWatch
from supervision.stream.runtime import StreamRuntime
from supervision.stream.supervisors import Supervisors
from supervision.stream.takeover import Takeovers
from tests.e2e.agents import AgentCall
from tests.engine.llms import CLEAN, Asked, ScriptedLLM

KEY = "sk_right"
SLUG = "alices-tenant"
BAD = "Sure, I have refunded the money to your card."
GOOD = "A colleague will take care of it. May I put you through?"
BUFFER = buffer_lines("en")[0]
CORRECTION = "I cannot refund that myself. Shall I connect you with a colleague?"
VIOLATION = {
    "score": 0.95,
    "rule": "1",
    "reason": 'It says "refunded the money".',
    "correction": "A colleague decides on refunds.",
}
FRAME = 160  # bytes of mu-law in 20 ms
RATE = 8000

_tones: dict[str, int] = {}


def frequency(label: str) -> int:
    """The tone that stands for these words, in Hz; a multiple of 50, so that 20 ms hold whole waves."""
    return _tones.setdefault(label, 400 + 100 * len(_tones))


def tone(label: str, seconds: float) -> bytes:
    """`seconds` of this label's tone, as mu-law."""
    assert frequency(label) < 3900, "more voices than the ear can tell apart"
    return mulaw.encode(_wave(label, seconds, RATE))


def _wave(label: str, seconds: float, rate: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    time = np.arange(round(seconds * rate)) / rate
    return np.asarray(8000 * np.sin(2 * np.pi * frequency(label) * time), dtype=np.int16)


@dataclass(frozen=True, slots=True)
class Voice:
    """What was heard from `start` to `end`, in seconds since the call began."""

    label: str
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


def ears(heard: Heard) -> list[Voice]:
    """Whose voice was heard when; a voice that pauses for more than 20 ms is heard again."""
    names = {hertz: label for label, hertz in _tones.items()}
    voices: list[Voice] = []
    for segment in heard.segments:
        for offset in range(0, len(segment.audio) - FRAME + 1, FRAME):
            pcm = mulaw.decode(segment.audio[offset : offset + FRAME])
            if np.abs(pcm.astype(int)).max() < 100:
                continue
            loudest = int(np.abs(np.fft.rfft(pcm)).argmax()) * 50
            label = names.get(loudest) or names.get(loudest + 50) or names.get(loudest - 50) or f"{loudest} Hz"
            start = segment.start + offset / RATE
            if voices and voices[-1].label == label and start - voices[-1].end < 0.021:
                voices[-1] = replace(voices[-1], end=start + 0.02)
            else:
                voices.append(Voice(label, start, start + 0.02))
    return voices


def order(heard: Heard) -> list[str]:
    """The voices in the order in which they were heard."""
    return [voice.label for voice in ears(heard)]


class ToneTTS:
    """Speaks every line as a tone of its own, 0.28 s a word and buffer lines in 1.14 s, after `delay_s`; raises
    `error` if there is one."""

    def __init__(self, *, delay_s: float = 0.0, languages: frozenset[str] | None = frozenset({"en"})) -> None:
        self.delay_s = delay_s
        self.error: Exception | None = None
        self.spoken: list[str] = []
        self._languages = languages

    async def synthesize(self, text: str, *, language: str, voice: str | None = None) -> Speech:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        self.spoken.append(text)
        seconds = 1.14 if text in buffer_lines("en") else 0.3 + 0.28 * len(text.split())
        return Speech(_wave(text, seconds, 16000).tobytes(), 16000)

    def languages(self) -> frozenset[str] | None:
        return self._languages

    async def aclose(self) -> None:
        pass


class MemoryRecorder:
    """Keeps the record of calls in memory; `broken` makes commits fail as a full disk does."""

    def __init__(self) -> None:
        self.events: list[RecordEvent] = []
        self.broken = False
        self.commits = 0

    async def start(self) -> None:
        pass

    def record(self, event: RecordEvent) -> None:
        self.events.append(event)

    async def commit(self, call_id: UUID | None = None) -> None:
        await asyncio.sleep(0.001)
        self.commits += 1
        if self.broken:
            raise JournalUnavailable("the disk is full")

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The data of the events of one kind, in order."""
        return [event.data for event in self.events if event.kind == kind]

    def one(self, kind: str) -> dict[str, Any]:
        (event,) = self.of(kind)
        return event

    def steps(self) -> list[str]:
        return [event["step"] for event in self.of("intervention.step")]


class MemoryLedger:
    """The ledger of tool calls in memory; `down` makes it fail as a database that is gone does, after a second."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, LedgerKey], Kept] = {}
        self.down = False
        self._unwritten: list[tuple[LedgerCall, Kept, bool]] = []

    async def _answered(self) -> None:
        await asyncio.sleep(1.0 if self.down else 0.001)
        if self.down:
            raise DatabaseSilent("the database is gone")
        for call, row, freed in self._unwritten:
            self._settle(call, row, freed)
        self._unwritten.clear()

    async def load(self, call: LedgerCall, *, within_s: float) -> list[Kept]:
        await self._answered()
        return [row for (plivo_call_id, _), row in self.rows.items() if plivo_call_id == call.plivo_call_id]

    async def claim(self, call: LedgerCall, wanted: Kept, *, within_s: float) -> Kept | None:
        await self._answered()
        kept = self.rows.setdefault((call.plivo_call_id, wanted.key), wanted)
        return None if kept is wanted else kept

    def settle(self, call: LedgerCall, row: Kept, *, freed: bool) -> None:
        if self.down:
            self._unwritten.append((call, row, freed))
        else:
            self._settle(call, row, freed)

    async def settled(self, call: LedgerCall, *, within_s: float) -> None:
        await self._answered()

    def _settle(self, call: LedgerCall, row: Kept, freed: bool) -> None:
        place = (call.plivo_call_id, row.key)
        kept = self.rows.setdefault(place, row)
        if freed and kept.row_id == row.row_id:
            del self.rows[place]
        elif row.done:
            self.rows[place] = replace(row, row_id=kept.row_id)


class MemoryApprovals:
    """Approvals in memory; `down` makes them fail, and `decide` is a person who does not tell the call."""

    def __init__(self) -> None:
        self.rows: dict[UUID, Standing] = {}
        self.asked: list[Waiting] = []
        self.down = False

    async def _answered(self) -> None:
        await asyncio.sleep(0.001)
        if self.down:
            raise DatabaseSilent("the database is gone")

    async def ask(self, call: ApprovalCall, waiting: Waiting) -> None:
        await self._answered()
        self.asked.append(waiting)
        self.rows[waiting.decision_id] = Standing("waiting")

    async def look(self, call: ApprovalCall, decision_id: UUID) -> Standing:
        await self._answered()
        return self.rows[decision_id]

    async def close(self, call: ApprovalCall, decision_id: UUID, *, was: str, state: str) -> Standing:
        await self._answered()
        if self.rows[decision_id].state == was:
            self.rows[decision_id] = replace(self.rows[decision_id], state=state)
        return self.rows[decision_id]

    def decide(self, state: str, *, by: str = "alice@example.com", note: str = "") -> UUID:
        (decision_id,) = [each for each, standing in self.rows.items() if standing.state == "waiting"]
        self.rows[decision_id] = Standing(state, by, note)
        return decision_id


class VirtualRuntime(StreamRuntime):
    """The real runtime over a directory of one agent, a scripted model, tones for speech and memory for a journal."""

    def __init__(self, binding: AgentBinding, llm: Any, tts: ToneTTS | None) -> None:
        self.node = "test:1"
        self.recorder = MemoryRecorder()  # type: ignore[assignment]
        self.directory = SimpleNamespace(lookup=self._lookup, is_down=True)  # type: ignore[assignment]
        self.redaction = Redaction()
        self.mailbox = Mailbox(None)
        self.calls = CallLeases(None)
        self.takeovers = Takeovers(CallOwners(None, self.node), self.mailbox, self.directory)
        self.revoked: set[UUID] = set()
        self.plivo = PlivoDoor()
        self.keys = KeyWatch(self._revoked)
        self.lines = LineCache()
        self.ledger = MemoryLedger()  # type: ignore[assignment]
        self.approvals = MemoryApprovals()  # type: ignore[assignment]
        self.tts = tts
        self.supervisors = Supervisors(SimpleNamespace(client=lambda **_: llm), ScoringPool())  # type: ignore[arg-type]
        self.binding = binding

    async def start(self) -> None:
        pass

    async def _revoked(self, key_ids: Collection[UUID]) -> set[UUID]:
        return self.revoked & set(key_ids)

    async def _lookup(self, slug: str, key: str) -> AgentBinding | None:
        return self.binding if (slug, key) == (SLUG, KEY) else None


@dataclass(frozen=True, slots=True)
class Frame:
    """A WebSocket frame as picows shows it to a listener."""

    msg_type: WSMsgType
    payload: bytes
    fin: bool = True
    code: WSCloseCode = WSCloseCode.OK

    @property
    def payload_size(self) -> int:
        return len(self.payload)

    def get_payload_as_bytes(self) -> bytes:
        return self.payload

    def get_payload_as_utf8_text(self) -> str:
        return self.payload.decode()

    def get_close_code(self) -> Any:
        return self.code


class AgentConnection:
    """The agent's end of its socket, with the face of a `websockets` connection; the other end is `transport`."""

    def __init__(self, world: World, url: str, headers: Mapping[str, str], listener: Any) -> None:
        parts = urlsplit(url)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        self.request = SimpleNamespace(path=path, headers=dict(headers))
        self.close_code: int | None = None
        self.closed_at: float | None = None
        self.transport = AgentTransport(self)
        self.listener = listener
        self._world = world
        self._inbox: asyncio.Queue[bytes | str | None] = asyncio.Queue()
        self._reading = asyncio.Event()
        self._reading.set()

    # -- the agent's face

    async def send(self, message: str | bytes) -> None:
        if self.close_code is not None:
            raise ConnectionClosedError(None, None)
        text = isinstance(message, str)
        payload = message.encode() if isinstance(message, str) else message
        self.deliver(Frame(WSMsgType.TEXT if text else WSMsgType.BINARY, payload))

    def deliver(self, frame: Frame) -> None:
        """Hand Mirror a frame; what its listener raises would break the connection, so it fails the test."""
        try:
            self.listener.on_ws_frame(self.transport, frame)
        except Exception as problem:
            self._world.errors.append(problem)
            raise

    async def close(self, code: int = 1000) -> None:
        """Close with a code; 1006 breaks the connection without a word."""
        if self.close_code is not None:
            return
        if code != 1006:
            self.deliver(Frame(WSMsgType.CLOSE, code.to_bytes(2, "big"), code=WSCloseCode(code)))
        self.end(code)

    def __aiter__(self) -> AgentConnection:
        return self

    async def __anext__(self) -> str | bytes:
        await self._reading.wait()
        message = await self._inbox.get()
        if message is None:
            raise StopAsyncIteration
        if self._inbox.empty():
            self.transport.drained()
        return message

    def stop_reading(self) -> None:
        """From now on nothing that Mirror sends is read."""
        self._reading.clear()

    def read_on(self) -> None:
        self._reading.set()

    # -- Mirror's face

    def received(self, message: bytes | str) -> None:
        self._inbox.put_nowait(message)

    def end(self, code: int) -> None:
        if self.close_code is None:
            self.close_code = code
            self.closed_at = asyncio.get_running_loop().time()
            self._inbox.put_nowait(None)
            self._reading.set()
            asyncio.get_running_loop().call_soon(self.listener.on_ws_disconnected, self.transport)


class AgentTransport:
    """What picows hands to Mirror's agent leg. Beyond 64 KiB unread, Mirror is asked to pause."""

    HIGH = 65_536

    def __init__(self, connection: AgentConnection) -> None:
        self._connection = connection
        self._unread = 0
        self._paused = False
        self.aborted = False
        self.underlying_transport = SimpleNamespace(set_write_buffer_limits=lambda **_: None)

    def send(self, kind: WSMsgType, data: bytes) -> None:
        if self._connection.close_code is not None:
            return
        self._connection.received(data.decode() if kind is WSMsgType.TEXT else data)
        self._unread += len(data)
        if self._unread > self.HIGH and not self._paused and not self._connection._reading.is_set():
            self._paused = True
            self._connection.listener.pause_writing()

    def drained(self) -> None:
        self._unread = 0
        if self._paused:
            self._paused = False
            self._connection.listener.resume_writing()

    def send_ping(self, data: bytes = b"") -> None:
        pass

    def send_close(self, code: WSCloseCode, message: bytes = b"") -> None:
        if self._connection._reading.is_set():
            self._connection.end(int(code.value))

    def disconnect(self, graceful: bool = True) -> None:
        if not graceful:
            self.aborted = True
            self._connection.end(1006)


class PlivoTransport:
    """What picows hands to the Plivo stand-in: its frames become the messages of an ASGI server."""

    def __init__(
        self,
        subprotocol: str | None,
        inbox: asyncio.Queue[dict[str, Any]],
        answers_close: bool,
        connection: Connection,
    ) -> None:
        headers = {"Sec-WebSocket-Protocol": subprotocol} if subprotocol else {}
        self.response = SimpleNamespace(headers=headers)
        self.underlying_transport = SimpleNamespace(get_write_buffer_size=lambda: 0)
        self.is_close_frame_sent = False
        self._inbox = inbox
        self._answers_close = answers_close
        self._connection = connection
        self._over = False

    def send(self, kind: WSMsgType, payload: bytes | str) -> None:
        if kind is WSMsgType.TEXT:
            text = payload.decode() if isinstance(payload, bytes) else payload
            self._put({"type": "websocket.receive", "text": text})
        else:
            self._put({"type": "websocket.receive", "bytes": payload})

    def send_ping(self, data: bytes = b"") -> None:
        pass

    def send_close(self, code: WSCloseCode, message: bytes = b"") -> None:
        self.gone(int(code.value))
        self._connection._end(Closed(int(code.value), ""))

    def disconnect(self, graceful: bool = True) -> None:
        if not self._over:
            self.gone(1006)
            self._connection._end(Closed(1006, ""))

    def closed_by_server(self, code: int) -> None:
        if self._answers_close:
            self.gone(code)

    def gone(self, code: int) -> None:
        if not self._over:
            self._put({"type": "websocket.disconnect", "code": code})
            self._over = True

    def _put(self, message: dict[str, Any]) -> None:
        if not self._over:
            self._inbox.put_nowait(message)


Script = Callable[[AgentCall], Awaitable[None]]
During = Callable[[SimulatedCall], Awaitable[None]]


class World:
    """Everything one test needs for calls. `llm` and `tts` may be changed at any time, the rest before a call."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *,
        config: Mapping[str, Any] | None = None,
        rules: Sequence[Mapping[str, Any]] = ({"text": "Never confirm a refund."},),
        mode: str = "live",
        tts: ToneTTS | None = None,
        speaks: bool = True,
        governed: bool = True,
    ) -> None:
        _tones.clear()  # each world has voices of its own
        self.llm = ScriptedLLM(turn=judge_refunds, correction={"text": CORRECTION}, delay_s=0.2)
        self.tts = tts or ToneTTS()
        self.binding = AgentBinding(
            tenant_id=uuid7(),
            tenant_slug=SLUG,
            agent_id=uuid7(),
            stream_key_id=uuid7(),
            agent_name="alice's agent",
            upstream_url="ws://agent.example/agent",
            signing_secret="secret",
            mode=mode,
            language="en",
            voice="",
            policy_id=uuid7() if governed else None,
            policy_version_id=uuid7() if governed else None,
            policy_version=1 if governed else None,
            rules=tuple(rules) if governed else (),
            config=dict(config or {}),
            llm=ProviderSettings("http://judge.example/v1", "judge-1", "key") if governed else None,
        )
        self.runtime = VirtualRuntime(self.binding, self.llm, self.tts if speaks else None)
        self.dial_error: Exception | None = None
        self.dial_delay_s = 0.0
        self.plivo_answers_close = True
        self.script: Script | None = None
        self.connections: list[AgentConnection] = []
        self.agents: list[AgentCall] = []
        self.errors: list[BaseException] = []
        self.apps: list[asyncio.Task[None]] = []
        self.transports: list[PlivoTransport] = []
        self.simulated: SimulatedCall | None = None
        self.over_at = 0.0
        self.log = _Problems()
        logging.getLogger("supervision").addHandler(self.log)
        logging.getLogger("asyncio").addHandler(self.log)
        self._tasks: set[asyncio.Task[None]] = set()

        async def runtime_of_test() -> StreamRuntime:
            return self.runtime

        monkeypatch.setattr(consumer_module, "stream_runtime", runtime_of_test)
        monkeypatch.setattr(dial_module, "ws_connect", self._agent_dialled)
        monkeypatch.setattr(simulator_call, "dial", self._plivo_dials)

    @property
    def record(self) -> MemoryRecorder:
        """What was recorded."""
        return self.runtime.recorder  # type: ignore[return-value]

    @property
    def agent(self) -> AgentCall:
        """The only agent's call."""
        (agent,) = self.agents
        return agent

    async def call(
        self,
        script: Script,
        during: During,
        switches: PlivoSwitches | None = None,
        *,
        url: str = f"wss://mirror.example/stream/{SLUG}/{KEY}",
        hang_up: bool = True,
        **options: Any,
    ) -> CallRecord:
        """Place a call; the caller hangs up when `during` is over. Returns when Mirror is done with it, too."""
        self.script = script

        async def caller(call: SimulatedCall) -> None:
            await during(call)
            if hang_up:
                call.hang_up()

        call = self.simulated = SimulatedCall(url, caller, switches or PlivoSwitches(), keep_raw=True, **options)
        record = await call.run()
        for app in self.apps:
            async with asyncio.timeout(30):
                await app
        self.over_at = asyncio.get_running_loop().time()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self.errors:
            raise self.errors[0]
        assert not self.log.problems, self.log.problems
        check_record(self.record.events)
        return record

    # -- Plivo to Mirror

    async def _plivo_dials(
        self, connection: Connection, url: str, *, headers: Mapping[str, str], timeout_s: float, ssl_context: Any
    ) -> None:
        parts = urlsplit(url)
        _, _, slug, key = parts.path.split("/")
        offered = [name.strip() for name in headers.get("Sec-WebSocket-Protocol", "").split(",") if name.strip()]
        scope = {
            "type": "websocket",
            "url_route": {"kwargs": {"slug": slug, "key": key}},
            "query_string": parts.query.encode(),
            "subprotocols": offered,
        }
        inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        inbox.put_nowait({"type": "websocket.connect"})
        answered: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        transport: PlivoTransport | None = None

        async def send(message: dict[str, Any]) -> None:
            kind = message["type"]
            if not answered.done():
                if kind == "websocket.accept":
                    answered.set_result(message.get("subprotocol"))
                else:
                    answered.set_exception(DialFailed("the server refused the WebSocket handshake with HTTP 403", 403))
                return
            assert transport is not None
            if kind == "websocket.close":
                transport.closed_by_server(message["code"])
                connection._end(Closed(message["code"], ""))
            elif "text" in message:
                connection._receive(connection, Message(message["text"].encode(), True))
            else:
                connection._receive(connection, Message(message["bytes"], False))

        app = asyncio.create_task(StreamConsumer()(scope, inbox.get, send))
        self.apps.append(app)
        await asyncio.wait({answered, app}, return_when=asyncio.FIRST_COMPLETED)
        transport = PlivoTransport(await answered, inbox, self.plivo_answers_close, connection)
        self.transports.append(transport)
        connection._transport = transport

    # -- Mirror to the agent

    async def _agent_dialled(self, listener_factory: Callable[[], Any], url: str, **options: Any) -> tuple[Any, Any]:
        if self.dial_delay_s:
            await asyncio.sleep(self.dial_delay_s)
        if self.dial_error is not None:
            raise self.dial_error
        listener = listener_factory()
        connection = AgentConnection(self, url, options["extra_headers"], listener)
        self.connections.append(connection)
        agent = AgentCall(connection)  # type: ignore[arg-type]
        self.agents.append(agent)
        assert self.script is not None
        for work in (agent.read(), self._run(agent, self.script)):
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return connection.transport, listener

    async def _run(self, agent: AgentCall, script: Script) -> None:
        with contextlib.suppress(ConnectionClosedError):
            try:
                await script(agent)
            except (asyncio.CancelledError, ConnectionClosedError):
                raise
            except BaseException as problem:
                told = [event for event in agent.events if event.get("event") != "media"]
                problem.add_note(f"the agent had been told: {told}")
                self.errors.append(problem)
                await agent.connection.close(1011)


def judge_refunds(asked: Asked) -> dict[str, Any]:
    """Flags turns that say "refunded"."""
    return dict(VIOLATION) if "refunded" in asked.user["agent_text"] else dict(CLEAN)


class _Problems(logging.Handler):
    """What was logged as an error: in a call that goes as it should, nothing."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.problems: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.problems.append(self.format(record))


def check_record(events: Sequence[RecordEvent]) -> None:
    """The record of a call must tell a whole story, whatever happened in the call."""
    kinds = Counter(event.kind for event in events)
    assert (events[0].kind, events[-1].kind) == ("call.started", "call.ended")
    assert (kinds["call.started"], kinds["call.ended"]) == (1, 1)
    assert kinds["call.moved"] == kinds["call.resumed"]
    for epoch in range(1, kinds["call.resumed"] + 2):
        numbers = [event.seq - first_seq(epoch) for event in events if event.epoch == epoch]
        assert numbers == list(range(len(numbers)))
    end = events[-1].data
    turns = Counter(event.data["turn_id"] for event in events if event.kind == "turn.reported")
    judged = Counter(event.data["turn_id"] for event in events if event.kind == "turn.judged")
    heard = Counter(event.data["turn_id"] for event in events if event.kind == "turn.heard")
    assert set(judged) | set(heard) <= set(turns)
    assert {1} >= {*turns.values(), *judged.values(), *heard.values()}
    if not kinds["call.resumed"]:
        # Of a call that had several sockets, PostgreSQL counts the rows.
        assert end["turns"] == len(turns)
        states = Counter(event.data["state"] for event in events if event.kind == "turn.judged")
        assert states["judged"] == end["judged"]
        assert sum(end[state] for state in ("judged", "skipped", "timed_out", "failed", "shed")) == end["turns"]
    begun = [event.data["intervention_id"] for event in events if event.kind == "intervention.started"]
    assert sorted(begun) == sorted(e.data["intervention_id"] for e in events if e.kind == "intervention.ended")
    revisions: dict[str, int] = {}
    for event in events:
        if event.kind == "note.sent":
            assert event.data["rev"] == revisions.get(event.data["note_id"], 0) + 1
            revisions[event.data["note_id"]] = event.data["rev"]


async def say_turn(agent: AgentCall, ref: str, text: str, seconds: float, *, paced: bool = False, **more: Any) -> None:
    """Report a turn and speak it as a tone, labelled with its text."""
    await agent.send("mirror.turn", turn_id=ref, customer_text=more.pop("customer_text", ""), text=text, **more)
    await agent.speak(tone(text, seconds), paced=paced)


def query(url: str) -> dict[str, list[str]]:
    return parse_qs(urlsplit(url).query)
