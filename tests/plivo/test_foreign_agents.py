"""The stand-in calls agents made with the packages that real agents are made with: it is Plivo enough for them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from pipecat.frames.frames import Frame, InputAudioRawFrame, InputDTMFFrame, TTSAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.runner.utils import parse_telephony_websocket
from pipecat.serializers.plivo import PlivoFrameSerializer
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams, FastAPIWebsocketTransport
from pipecat.workers.runner import WorkerRunner
from plivo_stream.fastapi import PlivoFastAPIStreamingHandler
from plivo_stream.websockets import PlivoWebsocketStreamingHandler
from websockets.asyncio.server import serve

from supervision.plivo.simulator import L16_16K, MULAW_8K, PlivoSwitches, SimulatedCall, WireFormat, tone

from .agents import asgi_agent, settle


class SdkAgent:
    """An agent on plivo-stream-sdk: says its words, answers a key with clearAudio, keeps all it hears."""

    def __init__(self, handler: Any, words: bytes, media_format: WireFormat) -> None:
        self.errors: list[str] = []
        self.said, self.events = b"", list[str]()
        self.gone = asyncio.Event()

        @handler.on_start  # type: ignore[untyped-decorator]
        async def started(event: Any) -> None:
            self.events.append(f"start {event.start.media_format.encoding} {event.start.media_format.sample_rate}")
            await handler.send_media(words, media_format.encoding, media_format.sample_rate)
            await handler.send_checkpoint("greeting")

        @handler.on_media  # type: ignore[untyped-decorator]
        async def media(event: Any) -> None:
            self.said += event.get_raw_media()

        @handler.on_played_stream  # type: ignore[untyped-decorator]
        async def played(event: Any) -> None:
            self.events.append(f"played {event.name}")
            await handler.send_media(words * 20, media_format.encoding, media_format.sample_rate)

        @handler.on_dtmf  # type: ignore[untyped-decorator]
        async def key(event: Any) -> None:
            self.events.append(f"key {event.dtmf.digit}")
            await handler.send_clear_audio()

        @handler.on_cleared_audio  # type: ignore[untyped-decorator]
        async def cleared(event: Any) -> None:
            self.events.append("cleared")

        @handler.on_disconnected  # type: ignore[untyped-decorator]
        async def disconnected() -> None:
            self.events.append("disconnected")
            self.gone.set()

        @handler.on_error  # type: ignore[untyped-decorator]
        async def failed(error: Exception) -> None:
            self.errors.append(str(error))


async def talk_to_sdk_agent(call: SimulatedCall, agents: list[SdkAgent], words: bytes, question: bytes) -> None:
    running = asyncio.ensure_future(call.run())
    said = call.say(question)
    await call.wait_for(lambda record: record.played("greeting") and record.heard.audio[len(words) :])
    await said
    call.press("5")
    await call.wait_for(lambda record: record.of("clearedAudio"))
    call.hang_up()
    record = await settle(running)
    (agent,) = agents
    await asyncio.wait_for(agent.gone.wait(), 5)
    expected = f"start {record.format.encoding} {record.format.sample_rate}"
    assert agent.events == [expected, "played greeting", "key 5", "cleared", "disconnected"]
    assert agent.errors == []
    assert question in agent.said
    heard = record.heard.audio
    assert heard == (words * 21)[: len(heard)]
    assert len(words) < len(heard) < 21 * len(words)
    assert record.cleared_bytes == 21 * len(words) - len(heard)
    assert record.outcome == "completed"


@pytest.mark.parametrize("media_format", [MULAW_8K, L16_16K], ids=lambda f: f.content_type)
async def test_plivo_stream_sdk_under_fastapi(media_format: WireFormat) -> None:
    words = bytes(range(256)) * (media_format.bytes_per_second // 1280)
    question = bytes(reversed(range(256))) * 10
    agents: list[SdkAgent] = []
    app = FastAPI()

    @app.websocket("/stream")
    async def stream(websocket: WebSocket) -> None:
        handler = PlivoFastAPIStreamingHandler(websocket)
        agents.append(SdkAgent(handler, words, media_format))
        await handler.start()

    async with asgi_agent(app) as url:
        call = SimulatedCall(url + "/stream", media_format=media_format)
        await talk_to_sdk_agent(call, agents, words, question)


async def test_plivo_stream_sdk_under_websockets() -> None:
    words, question = bytes(range(256)) * 6, bytes(reversed(range(256))) * 10
    agents: list[SdkAgent] = []

    async def stream(websocket: Any) -> None:
        handler = PlivoWebsocketStreamingHandler()
        agents.append(SdkAgent(handler, words, MULAW_8K))
        await handler.handle(websocket)

    async with serve(stream, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        call = SimulatedCall(url, switches=PlivoSwitches(extra_headers="k=v", delay_s=0.02, jitter_s=0.01))
        await talk_to_sdk_agent(call, agents, words, question)


@pytest.mark.parametrize(
    ("switches", "error"),
    [
        (PlivoSwitches(), None),
        (PlivoSwitches(extra_headers="absent"), None),
        (PlivoSwitches(seq_start=0), None),
        (PlivoSwitches(played_seq=False), "sequenceNumber"),  # the SDK rejects what Plivo's own example shows
        (PlivoSwitches(send_stop="on"), "Unknown event type: stop"),
    ],
    ids=lambda value: "",
)
async def test_the_sdk_takes_or_reports_what_it_does_with_the_real_plivo(
    switches: PlivoSwitches, error: str | None
) -> None:
    agents: list[SdkAgent] = []
    app = FastAPI()

    @app.websocket("/")
    async def stream(websocket: WebSocket) -> None:
        handler = PlivoFastAPIStreamingHandler(websocket)
        agents.append(SdkAgent(handler, b"\x10" * 160, MULAW_8K))
        await handler.start()

    async with asgi_agent(app) as url:
        call = SimulatedCall(url, switches=switches)
        running = asyncio.ensure_future(call.run())
        await call.wait_for(lambda record: record.played("greeting"))
        call.hang_up()
        await settle(running)
        await asyncio.wait_for(agents[0].gone.wait(), 5)
    if error is None:
        assert agents[0].errors == []
        assert "played greeting" in agents[0].events
    else:
        assert len(agents[0].errors) == 1
        assert error in agents[0].errors[0]


class Parrot(FrameProcessor):  # type: ignore[misc]
    """Keeps what pipecat's transport hears; key 1 lets it say its words, 2 say them ten times, 3 stop."""

    def __init__(self, words: bytes) -> None:
        super().__init__()
        self.words = words
        self.heard, self.keys = b"", list[str]()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            self.heard += frame.audio
        elif isinstance(frame, InputDTMFFrame):
            self.keys.append(frame.button.value)
            if frame.button.value == "3":
                await self.broadcast_interruption()
            else:
                times = 1 if frame.button.value == "1" else 10
                await self.push_frame(TTSAudioRawFrame(self.words * times, 8000, 1))


async def test_pipecat_with_its_plivo_serializer() -> None:
    # 40 ms is what pipecat sends at a time; whole ones leave nothing behind in its buffer.
    wire = MULAW_8K.encode(tone(400, 0.4, 8000), 8000)
    words = MULAW_8K.decode(wire)
    question = MULAW_8K.encode(tone(700, 0.4, 8000), 8000)
    parrots: list[Parrot] = []
    app = FastAPI()

    @app.websocket("/")
    async def stream(websocket: WebSocket) -> None:
        await websocket.accept()
        kind, ids = await parse_telephony_websocket(websocket)
        assert kind == "plivo"
        params = PlivoFrameSerializer.InputParams(auto_hang_up=False)
        serializer = PlivoFrameSerializer(ids["stream_id"], ids["call_id"], params=params)
        transport = FastAPIWebsocketTransport(
            websocket, FastAPIWebsocketParams(audio_in_enabled=True, audio_out_enabled=True, serializer=serializer)
        )
        parrot = Parrot(words.tobytes())
        parrots.append(parrot)
        worker = PipelineWorker(
            Pipeline([transport.input(), parrot, transport.output()]),
            params=PipelineParams(audio_in_sample_rate=8000, audio_out_sample_rate=8000),
        )

        @transport.event_handler("on_client_disconnected")  # type: ignore[untyped-decorator]
        async def hung_up(transport: object, websocket: object) -> None:
            await worker.cancel()

        runner = WorkerRunner(handle_sigint=False, handle_sigterm=False)
        await runner.add_workers(worker)
        await runner.run()

    async with asgi_agent(app) as url:
        call = SimulatedCall(url)
        running = asyncio.ensure_future(call.run())
        await call.wait_for(lambda record: parrots and parrots[0].heard, 20)  # its pipeline takes a while to start
        await call.say(question)
        call.press("1")
        await call.wait_for(lambda record: record.heard.find(wire))
        call.press("2")
        await call.wait_for(lambda record: record.heard.find(wire + wire))
        call.press("3")
        await call.wait_for(lambda record: record.of("clearAudio"))
        call.hang_up()
        record = await settle(running)
    (parrot,) = parrots
    assert parrot.keys == ["1", "2", "3"]
    assert MULAW_8K.decode(question).tobytes() in parrot.heard
    assert wire * 11 not in record.heard.audio
    assert set(record.play_bytes) == {320}
    assert record.outcome == "completed"
