"""Whatever a user's stream is made of: read and written below its owner, unchanged and in order."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import WSMsgType, web
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from plivo_stream.fastapi import PlivoFastAPIStreamingHandler
from plivo_stream.websockets import PlivoWebsocketStreamingHandler
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from supervision.audio.format import MediaFormat
from supervision.engine import MirrorConfig, Supervisor
from supervision.engine.adapters import link as link_module
from supervision.engine.adapters import tap as tap_module
from supervision.engine.adapters.link import Start, StreamLink
from supervision.engine.adapters.raw_ws import RawPlivoWSAdapter
from supervision.engine.adapters.tap import Inbox
from supervision.engine.attached import AttachedCall
from supervision.engine.intervention.orchestrator import Outcome
from supervision.engine.tts.ws_inject import PlivoStreamTTSSink
from supervision.plivo.simulator import L16_16K, MULAW_8K, CallRecord, PlivoSwitches, SimulatedCall, WireFormat
from tests.engine.attached_calls import CALL_ID, GOOD, RIGHT, STREAM_ID, WRONG, Plivo, Tones, judge
from tests.engine.llms import ScriptedLLM
from tests.plivo.agents import asgi_agent, settle
from tests.support.virtual_time import virtual_time

BUFFER = "Sorry, let me make sure I got that right..."
Talk = Callable[[SimulatedCall, "Seen"], Awaitable[None]]


def make_supervisor(**config: Any) -> Supervisor:
    config.setdefault("tiered_scoring_enabled", False)
    return Supervisor(MirrorConfig(llm=ScriptedLLM(turn=judge), policies=["Never confirm a refund."], **config))


class Seen:
    """What the agent's own code got."""

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []
        self.raw: list[str | bytes] = []
        self.reports: list[Any] = []
        self.call: AttachedCall | None = None
        self.over = asyncio.Event()
        self.voice = Tones()

    def took(self, text: str | bytes) -> dict[str, Any]:
        self.raw.append(text)
        frame: dict[str, Any] = json.loads(text)
        self.frames.append(frame)
        return frame

    def events(self) -> list[str]:
        return [frame["event"] for frame in self.frames if frame["event"] != "media"]


async def answer_key(seen: Seen, call: AttachedCall, frame: dict[str, Any]) -> None:
    """The caller pressed a key: the agent says something wrong."""
    if frame["event"] == "dtmf":
        verdict = await call.review_turn(customer_text="Money back!", primary_text=WRONG)
        seen.reports.append(await call.intervene(verdict))


@contextlib.asynccontextmanager
async def starlette_agent(seen: Seen, supervisor: Supervisor) -> AsyncIterator[str]:
    app = FastAPI()

    @app.websocket("/")
    async def stream(websocket: WebSocket) -> None:
        await websocket.accept()
        async with supervisor.attach(websocket, tts_provider=seen.voice) as call:
            seen.call = call
            with contextlib.suppress(WebSocketDisconnect):
                while True:
                    await answer_key(seen, call, seen.took(await websocket.receive_text()))
        seen.over.set()

    async with asgi_agent(app) as url:
        yield url + "/"


@contextlib.asynccontextmanager
async def websockets_agent(seen: Seen, supervisor: Supervisor) -> AsyncIterator[str]:
    async def stream(websocket: Any) -> None:
        async with supervisor.attach(websocket, tts_provider=seen.voice) as call:
            seen.call = call
            async for text in websocket:
                await answer_key(seen, call, seen.took(text))
        seen.over.set()

    async with serve(stream, "127.0.0.1", 0) as server:
        yield f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"


@contextlib.asynccontextmanager
async def adapter_agent(seen: Seen, supervisor: Supervisor) -> AsyncIterator[str]:
    """An own receive loop over Starlette, with everything that the description's adapter has."""
    app = FastAPI()

    @app.websocket("/")
    async def stream(websocket: WebSocket) -> None:
        await websocket.accept()
        adapter = RawPlivoWSAdapter(websocket, content_type="audio/x-mulaw", sample_rate=8000)
        async with supervisor.attach(adapter, tts_provider=seen.voice) as call:
            seen.call = call
            async for text in websocket.iter_text():
                frame = seen.took(text)
                assert await adapter.dispatch_inbound(frame)
                if frame["event"] == "start":
                    adapter.set_stream_id(frame["start"]["streamId"])
                await answer_key(seen, call, frame)
        seen.over.set()

    async with asgi_agent(app) as url:
        yield url + "/"


@contextlib.asynccontextmanager
async def aiohttp_agent(seen: Seen, supervisor: Supervisor) -> AsyncIterator[str]:
    """A socket that cannot be tapped: every frame is handed in, and answers run beside the loop."""

    async def stream(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        adapter = RawPlivoWSAdapter(socket)
        answering: set[asyncio.Task[None]] = set()
        async with supervisor.attach(adapter, tts_provider=seen.voice) as call:
            seen.call = call
            async for message in socket:
                assert message.type is WSMsgType.TEXT
                frame = json.loads(message.data)
                if await adapter.dispatch_inbound(frame):
                    seen.took(message.data)
                    answering.add(asyncio.create_task(answer_key(seen, call, frame)))
            adapter.closed()
            await asyncio.gather(*answering)
        seen.over.set()
        return socket

    app = web.Application()
    app.router.add_get("/", stream)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"ws://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


AGENTS = [starlette_agent, websockets_agent, adapter_agent, aiohttp_agent]


def heard(record: CallRecord, voice: Tones) -> list[str]:
    texts: list[str] = []
    audio = record.heard.audio
    for at in range(0, len(audio) - 159, 160):
        text = voice.text_of(audio[at : at + 160])
        if text and (not texts or texts[-1] != text):
            texts.append(text)
    return texts


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.__name__)
async def test_a_wrong_turn_is_corrected_on_every_kind_of_socket(agent: Any) -> None:
    seen = Seen()
    async with agent(seen, make_supervisor()) as url:
        call = SimulatedCall(url, switches=PlivoSwitches(delay_s=0.02), keep_raw=True)
        running = asyncio.create_task(call.run())
        await call.wait_for(lambda record: seen.call is not None and seen.call.armed, timeout_s=20)
        call.press("1")
        await call.wait_for(lambda record: seen.reports, timeout_s=20)
        call.hang_up()
        record = await settle(running)
        await asyncio.wait_for(seen.over.wait(), 10)
    (report,) = seen.reports
    assert report.outcome is Outcome.COMPLETED
    assert heard(record, seen.voice) == [BUFFER, RIGHT]
    assert seen.call is not None
    assert seen.call.context.call_id == record.call_id
    # The agent got all that Plivo sent, byte for byte and in order, but what answers Mirror.
    own = ("__mirror_",)
    sent = [frame.payload for frame in record.raw_sent if frame.text and own[0] not in str(frame.payload)]
    assert [str(text) for text in seen.raw] == [
        text.decode() if isinstance(text, bytes) else text for text in sent[: len(seen.raw)]
    ]
    assert seen.events() == ["start", "dtmf"]


@pytest.mark.parametrize("media_format", [MULAW_8K, L16_16K], ids=lambda f: f.content_type)
async def test_streams_are_spoken_to_in_their_own_format(media_format: WireFormat) -> None:
    seen = Seen()
    said = bytes(range(1, 129)) * 100

    async def voice(text: str) -> bytes:
        return said

    app, spoken = FastAPI(), asyncio.Event()

    @app.websocket("/")
    async def stream(websocket: WebSocket) -> None:
        handler = PlivoFastAPIStreamingHandler(websocket)
        sink = PlivoStreamTTSSink(handler, voice)
        async with make_supervisor().attach(tts_sink=sink) as call:

            @handler.on_start
            async def started(event: Any) -> None:
                assert (await call.speak(GOOD)).ok
                spoken.set()

            await handler.start()
        seen.over.set()

    async with asgi_agent(app) as url:
        call = SimulatedCall(url + "/", media_format=media_format)
        running = asyncio.create_task(call.run())
        await call.wait_for(lambda record: len(record.heard.audio) >= len(said), timeout_s=10)
        call.hang_up()
        record = await settle(running)
        await asyncio.wait_for(seen.over.wait(), 10)
    assert record.heard.find(said) is not None
    assert record.of("ignored") == []


@pytest.mark.parametrize("kind", ["fastapi", "websockets"])
async def test_the_sdks_own_sounds_marks_and_clears_work_as_without_mirror(kind: str) -> None:
    events: list[str] = []
    over = asyncio.Event()
    words = bytes(range(256)) * 6

    async def agent(handler: Any, run: Callable[[], Awaitable[None]]) -> None:
        async with make_supervisor().attach(handler):

            @handler.on_start
            async def started(event: Any) -> None:
                await handler.send_media(words)
                await handler.send_checkpoint("greeting")

            @handler.on_played_stream
            async def played(event: Any) -> None:
                events.append(f"played {event.name}")
                await handler.send_media(words * 20)

            @handler.on_dtmf
            async def key(event: Any) -> None:
                await handler.send_clear_audio()

            @handler.on_cleared_audio
            async def cleared(event: Any) -> None:
                events.append("cleared")

            @handler.on_error
            async def failed(error: Exception) -> None:
                events.append(repr(error))

            await run()
        over.set()

    async with contextlib.AsyncExitStack() as stack:
        if kind == "fastapi":
            app = FastAPI()

            @app.websocket("/")
            async def stream(websocket: WebSocket) -> None:
                handler = PlivoFastAPIStreamingHandler(websocket)
                await agent(handler, handler.start)

            url = await stack.enter_async_context(asgi_agent(app)) + "/"
        else:

            async def connected(websocket: Any) -> None:
                handler = PlivoWebsocketStreamingHandler()
                await agent(handler, lambda: handler.handle(websocket))

            server = await stack.enter_async_context(serve(connected, "127.0.0.1", 0))
            url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        call = SimulatedCall(url)
        running = asyncio.create_task(call.run())
        await call.wait_for(lambda record: record.heard.audio[2 * len(words) :], timeout_s=10)
        call.press("5")
        await call.wait_for(lambda record: record.of("clearedAudio"), timeout_s=10)
        call.hang_up()
        record = await settle(running)
        await asyncio.wait_for(over.wait(), 10)
    assert events == ["played greeting", "cleared"]
    audio = record.heard.audio
    assert audio == (words * 21)[: len(audio)]
    assert record.outcome == "completed"


async def test_an_sdk_handler_that_is_attached_in_the_middle_of_a_call_is_supervised_from_there() -> None:
    seen, over = Seen(), asyncio.Event()

    async def connected(websocket: Any) -> None:
        handler = PlivoWebsocketStreamingHandler()
        stack = contextlib.AsyncExitStack()

        @handler.on_start
        async def started(event: Any) -> None:
            seen.call = await stack.enter_async_context(
                make_supervisor().attach(handler, tts_provider=seen.voice, media_format=MediaFormat())
            )

        @handler.on_dtmf
        async def key(event: Any) -> None:
            assert seen.call is not None
            await answer_key(seen, seen.call, {"event": "dtmf"})

        async with stack:
            await handler.handle(websocket)
        over.set()

    async with serve(connected, "127.0.0.1", 0) as server:
        call = SimulatedCall(f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}")
        running = asyncio.create_task(call.run())
        await call.wait_for(lambda record: seen.call is not None and seen.call.armed, timeout_s=20)
        call.press("1")
        await call.wait_for(lambda record: seen.reports, timeout_s=20)
        call.hang_up()
        record = await settle(running)
        await asyncio.wait_for(over.wait(), 10)
    assert heard(record, seen.voice) == [BUFFER, RIGHT]


# Taps, on virtual time ---------------------------------------------------------------------------


class Listener:
    def __init__(self) -> None:
        self.link: StreamLink | None = None
        self.started: list[Start] = []
        self.gone = 0

    def stream_started(self, start: Start) -> None:
        self.started.append(start)

    def caller_pressed(self) -> None: ...

    def agent_cleared(self) -> None: ...

    def turn_started(self, turn: Any) -> None: ...

    def turn_ended(self, turn: Any) -> None: ...

    def caller_gone(self) -> None:
        self.gone += 1

    async def quiet(self) -> None: ...


class Connection:
    """A connection of the `websockets` library, as far as a tap can tell."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.sent: list[Any] = []
        self.closed = False

    async def recv(self) -> Any:
        item = await self.incoming.get()
        if isinstance(item, BaseException):
            raise item
        return item

    async def send(self, message: Any, text: bool | None = None) -> None:
        if self.closed:
            raise ConnectionClosed(None, None)
        self.sent.append(message)

    async def close(self, code: int = 1000) -> None:
        self.closed = True

    async def __aiter__(self) -> AsyncIterator[Any]:
        while True:
            yield await self.recv()


def a_start(stream_id: str = STREAM_ID, **media_format: Any) -> str:
    told = {"encoding": "audio/x-mulaw", "sampleRate": 8000} | media_format
    start = {"callId": CALL_ID, "streamId": stream_id, "mediaFormat": told}
    return json.dumps({"event": "start", "sequenceNumber": 1, "start": start})


def linked(connection: Any) -> tuple[StreamLink, Listener]:
    listener = Listener()
    link = StreamLink(listener)
    assert link.tap(connection)
    return link, listener


@virtual_time
async def test_bytes_text_and_the_end_come_as_they_came() -> None:
    connection = Connection()
    link, listener = linked(connection)
    end = ConnectionClosed(None, None)
    for item in ("not json", b"\x00\x01", a_start(), '{"event":"stop"}', end):
        connection.incoming.put_nowait(item)
    assert [await connection.recv() for _ in range(4)] == ["not json", b"\x00\x01", a_start(), '{"event":"stop"}']
    with pytest.raises(ConnectionClosed):
        await connection.recv()
    assert listener.gone == 1
    assert listener.started == [Start(CALL_ID, STREAM_ID, MediaFormat())]
    link.gone()
    assert listener.gone == 1


@virtual_time
async def test_recv_decodes_as_asked_and_other_sends_pass() -> None:
    connection: Any = Connection()
    linked(connection)
    connection.incoming.put_nowait("text")
    connection.incoming.put_nowait(b"bytes")
    assert await connection.recv(decode=False) == b"text"
    assert await connection.recv(decode=True) == "bytes"
    await connection.send(b"binary")
    await connection.send("as bytes", text=True)
    assert connection.sent == [b"binary", "as bytes"]


@virtual_time
async def test_closing_sends_what_waits_first_and_ends_the_call_once() -> None:
    connection: Any = Connection()
    link, listener = linked(connection)
    link.open(Start(CALL_ID, STREAM_ID, MediaFormat()))
    payload = base64.b64encode(b"\x01" * 16000).decode()
    media = {"contentType": "audio/x-mulaw", "sampleRate": 8000, "payload": payload}
    for _ in range(3):
        await connection.send(json.dumps({"event": "playAudio", "media": media}))
    before = len(connection.sent)
    await connection.close()
    assert connection.closed
    assert (before, len(connection.sent)) == (1, 3)
    assert listener.gone == 1
    with pytest.raises(ConnectionClosed):
        await connection.send("too late")


@virtual_time
async def test_an_intervention_that_never_ends_does_not_keep_the_agent_from_closing() -> None:
    connection: Any = Connection()
    link, listener = linked(connection)
    listener.quiet = asyncio.Event().wait  # type: ignore[assignment]
    began = asyncio.get_running_loop().time()
    await connection.close()
    assert asyncio.get_running_loop().time() - began == pytest.approx(link_module.CLOSE_WAITS_S)
    assert link.ended


@virtual_time
async def test_after_closing_the_link_the_socket_is_its_owners_alone() -> None:
    connection: Any = Connection()
    link, _ = linked(connection)
    link.open(Start(CALL_ID, STREAM_ID, MediaFormat()))
    connection.incoming.put_nowait("one")
    assert await connection.recv() == "one"
    link.close()
    connection.incoming.put_nowait("two")
    await asyncio.sleep(0)
    assert await connection.recv() == "two"
    await connection.send("three")
    assert connection.sent[-1] == "three"


@virtual_time
async def test_a_link_that_was_closed_before_anything_was_read_reads_nothing() -> None:
    plivo = Plivo()
    link, listener = linked(plivo.websocket)
    link.close()
    await plivo.websocket.accept()
    plivo.start()
    assert json.loads(await plivo.websocket.receive_text())["event"] == "start"
    assert listener.started == []


@virtual_time
async def test_the_oldest_audio_is_dropped_for_an_agent_that_does_not_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tap_module, "UNREAD_CHARS", 100)
    inbox = Inbox()
    inbox.put("start")
    for number in range(5):
        inbox.put(f"media {number}", 40)
    inbox.put("dtmf")
    inbox.end(None)
    got = []
    while (item := await inbox.get())[0]:
        got.append(item[1])
    assert got == ["start", "media 3", "media 4", "dtmf"]
    assert caplog.text.count("the oldest of the caller's audio is dropped") == 1


@virtual_time
async def test_a_reconnected_stream_on_the_same_socket_begins_anew_and_the_same_start_twice_does_not() -> None:
    connection = Connection()
    link, listener = linked(connection)
    for text in (a_start(), a_start(), a_start("another")):
        connection.incoming.put_nowait(text)
        await connection.recv()
    assert [start.stream_id for start in listener.started] == [STREAM_ID, "another"]
    assert link.relay is not None
    assert link.relay.stream_id == "another"


@pytest.mark.parametrize(
    "text",
    [
        '{"event":"start"}',
        '{"event":"start","start":{}}',
        '{"event":"start","start":{"streamId":""}}',
        '["start"]',
        '{"event": "start"',
        '"start"',
    ],
)
def test_what_is_no_start_is_none(text: str) -> None:
    assert Start.of(link_module._decoded(text)) is None


@virtual_time
async def test_mirror_frames_and_garbled_ones_of_the_agent_do_not_reach_plivo() -> None:
    connection = Connection()
    link, _ = linked(connection)
    link.open(Start(CALL_ID, STREAM_ID, MediaFormat()))
    await connection.send('{"event":"mirror.hello","v":1}')
    await connection.send('{"event":"mirror.turn",')
    assert connection.sent == []


@virtual_time
async def test_audio_that_is_lost_to_a_limit_is_told(caplog: pytest.LogCaptureFixture) -> None:
    link, _ = linked(Connection())
    link.media_dropped("agent", 0.2)
    assert "0.2 s of the agent's audio were dropped" in caplog.text


@virtual_time
async def test_a_link_without_a_socket_says_so_to_whoever_sends() -> None:
    link = StreamLink(Listener())
    with pytest.raises(ConnectionError, match="no socket"):
        await link.agent_text("hello")
    with pytest.raises(ConnectionError, match="no socket"):
        await link.agent_text("again")


# The adapter, on virtual time --------------------------------------------------------------------


class Socket:
    """A socket that cannot be tapped: it only sends, and not even that as a coroutine."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send_text(self, text: str) -> None:
        self.sent.append(json.loads(text))


def events_of(socket: Socket) -> list[str]:
    return [frame["event"] for frame in socket.sent]


async def test_before_it_is_attached_an_adapter_only_sends() -> None:
    socket = Socket()
    adapter = RawPlivoWSAdapter(socket)
    await adapter.send_media(b"\x01" * 160)
    with pytest.raises(ValueError, match="stream_id: not known before"):
        await adapter.send_checkpoint("one")
    assert await adapter.dispatch_inbound(json.loads(a_start(encoding="audio/x-l16", sampleRate=16000)))
    assert adapter.media_format == MediaFormat("audio/x-l16", 16000)
    assert adapter.stream_id == STREAM_ID
    await adapter.send_checkpoint("one")
    await adapter.send_clear_audio()
    adapter.closed()
    assert events_of(socket) == ["playAudio", "checkpoint", "clearAudio"]
    assert socket.sent[1] == {"event": "checkpoint", "streamId": STREAM_ID, "name": "one"}


@virtual_time
async def test_frames_that_are_handed_in_are_told_apart_and_answers_are_handed_out() -> None:
    socket, voice = Socket(), Tones()
    answers: list[dict[str, Any]] = []
    adapter = RawPlivoWSAdapter(socket, on_answer=answers.append)
    async with make_supervisor().attach(adapter, tts_provider=voice) as call:
        adapter.set_stream_id(STREAM_ID)
        call.bind_call(CALL_ID)
        await asyncio.sleep(1)
        running = asyncio.create_task(
            call.intervene(await call.review_turn(customer_text="Money!", primary_text=WRONG))
        )
        await asyncio.sleep(3)
        name = next(frame["name"] for frame in socket.sent if frame["event"] == "checkpoint")
        assert not await adapter.dispatch_inbound({"event": "playedStream", "streamId": STREAM_ID, "name": name})
        assert await adapter.dispatch_inbound({"event": "playedStream", "streamId": STREAM_ID, "name": "mine"})
        await adapter.send_clear_audio()
        assert [answer["event"] for answer in answers] == ["clearedAudio"]
        assert "clearAudio" not in events_of(socket)
        await adapter.send_media(b"\x01" * 160)
        adapter.closed()
        assert (await running).outcome is Outcome.CALLER_GONE
    await adapter.send_media(b"\x01" * 160)
    assert events_of(socket)[-1] == "playAudio"


@virtual_time
async def test_an_adapter_that_knows_its_stream_opens_it_when_it_is_attached() -> None:
    adapter = RawPlivoWSAdapter(Socket())
    adapter.set_stream_id(STREAM_ID)
    voice = Tones()
    async with make_supervisor().attach(adapter, tts_provider=voice, call_id=CALL_ID) as call:
        await asyncio.sleep(0.5)
        assert call.armed


@virtual_time
async def test_a_start_that_was_read_before_the_tap_is_taken_from_the_agents_hands() -> None:
    connection = Connection()
    adapter = RawPlivoWSAdapter(connection)
    async with make_supervisor().attach(adapter, tts_provider=Tones()) as call:
        assert await adapter.dispatch_inbound(json.loads(a_start()))
        assert await adapter.dispatch_inbound({"event": "dtmf"})
        await asyncio.sleep(1)
        assert call.armed
        await adapter.send_media(b"\x01" * 160)
        assert len(connection.sent) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ws": object()}, TypeError, "ws: a object has none of send_text"),
        ({"ws": Socket(), "content_type": "audio/opus"}, ValueError, "content_type, sample_rate: .*audio/opus"),
        ({"ws": Socket(), "sample_rate": 16000}, ValueError, "content_type, sample_rate: .*16000"),
    ],
)
def test_wrong_adapters_are_refused_by_name(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RawPlivoWSAdapter(**arguments)


def test_a_blank_stream_id_is_refused() -> None:
    with pytest.raises(ValueError, match="stream_id: must not be blank"):
        RawPlivoWSAdapter(Socket()).set_stream_id(" ")


@virtual_time
async def test_a_handler_with_a_socket_that_cannot_be_read_goes_on_unsupervised(
    caplog: pytest.LogCaptureFixture,
) -> None:
    handled: list[Any] = []

    class Handler:
        async def handle(self, websocket: Any) -> None:
            handled.append(websocket)

        async def send_media(self, audio: bytes) -> None: ...

    handler = Handler()
    async with make_supervisor().attach(handler, tts_provider=Tones()):
        await handler.handle("no socket")
    assert handled == ["no socket"]
    assert "this call is not supervised" in caplog.text
