"""Agents that know nothing of Mirror take a call through it unchanged; with its client they are supervised.

On the real packages: plivo-stream-sdk's FastAPI handler, pipecat's Plivo serializer and FastAPI transport, and plain
websockets. The supervised ones are those of `examples/`, as a user copies them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI, WebSocket
from pipecat.frames.frames import Frame, InputDTMFFrame, OutputTransportReadyFrame, TTSAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.runner.utils import parse_telephony_websocket
from pipecat.serializers.plivo import PlivoFrameSerializer
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams, FastAPIWebsocketTransport
from pipecat.workers.runner import WorkerRunner
from plivo_stream.fastapi import PlivoFastAPIStreamingHandler
from websockets.asyncio.server import ServerConnection

from examples import slice_house
from supervision.client import verify
from supervision.plivo.simulator import CallRecord, PlivoSwitches, SimulatedCall
from supervision.plivo.simulator.script import parse_script
from tests.client.servers import asgi_server, websockets_server
from tests.e2e.conftest import CallRows, MirrorServer, TenancyMaker, recorded
from tests.factories import Tenancy
from tests.standins.llm import LLMStandIn, Question, words
from tests.support.stt import transcribe

pytestmark = pytest.mark.django_db(transaction=True)

KINDS = ["plivo_stream_sdk", "pipecat", "plain_websocket"]

# Audio in which every 20 ms are different, so that nothing lost, doubled or moved can pass for what was sent. Speech
# in mu-law never has 0x7F (minus zero), and pipecat's encoder would not keep it.
_CODES = np.array([code for code in range(256) if code != 0x7F], np.uint8)


def noise(seconds: float, seed: int) -> bytes:
    return np.random.default_rng(seed).choice(_CODES, round(seconds * 8000)).tobytes()


WORDS = noise(1.2, 1)
LONG = noise(20, 2)
QUESTION = noise(1.0, 3)


class Taken:
    """One call of an agent: every message it got and sent, as it was on its socket."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self.sent: list[str] = []
        self.headers: Mapping[str, str] = {}
        self.over = asyncio.Event()

    def events(self, messages: list[str]) -> list[str]:
        return [json.loads(message)["event"] for message in messages]


class RecordingHandler(PlivoFastAPIStreamingHandler):  # type: ignore[misc]
    """plivo-stream-sdk's own handler, with a note of each message."""

    def __init__(self, websocket: WebSocket, taken: Taken) -> None:
        super().__init__(websocket)
        self.taken = taken

    async def _process_message(self, message: str) -> None:
        self.taken.got.append(message)
        await super()._process_message(message)

    async def _send_raw(self, data: str) -> None:
        self.taken.sent.append(data)
        await super()._send_raw(data)


class RecordingSerializer(PlivoFrameSerializer):  # type: ignore[misc]
    """pipecat's own serializer, with a note of each message."""

    def __init__(self, stream_id: str, taken: Taken) -> None:
        super().__init__(stream_id, params=PlivoFrameSerializer.InputParams(auto_hang_up=False))
        self.taken = taken

    async def deserialize(self, data: str | bytes) -> Frame | None:
        self.taken.got.append(str(data))
        return await super().deserialize(data)

    async def serialize(self, frame: Frame) -> str | bytes | None:
        message = await super().serialize(frame)
        if message is not None:
            self.taken.sent.append(str(message))
        return message


def sdk_app(taken: Taken) -> FastAPI:
    """Speaks, and when that was played speaks at length; a key stops it, and it says its words once more."""
    app = FastAPI()

    @app.websocket("/")
    async def call(websocket: WebSocket) -> None:
        handler = RecordingHandler(websocket, taken)

        @handler.on_start  # type: ignore[untyped-decorator]
        async def started(event: Any) -> None:
            await handler.send_media(WORDS)
            await handler.send_checkpoint("greeting")

        @handler.on_played_stream  # type: ignore[untyped-decorator]
        async def played(event: Any) -> None:
            if event.name == "greeting":
                await handler.send_media(LONG)

        @handler.on_dtmf  # type: ignore[untyped-decorator]
        async def key(event: Any) -> None:
            await handler.send_clear_audio()

        @handler.on_cleared_audio  # type: ignore[untyped-decorator]
        async def cleared(event: Any) -> None:
            await handler.send_media(WORDS)
            await handler.send_checkpoint("last")

        @handler.on_error  # type: ignore[untyped-decorator]
        async def failed(error: Exception) -> None:
            raise AssertionError(f"the handler reported {error}")

        await handler.start()
        taken.over.set()

    return app


def plain_agent(taken: Taken) -> Any:
    """The same, on plain websockets."""

    async def call(websocket: ServerConnection) -> None:
        async def send(event: str, **fields: Any) -> None:
            taken.sent.append(json.dumps({"event": event, **fields}))
            await websocket.send(taken.sent[-1])

        async def play(audio: bytes) -> None:
            payload = base64.b64encode(audio).decode()
            await send("playAudio", media={"contentType": "audio/x-mulaw", "sampleRate": 8000, "payload": payload})

        assert websocket.request is not None
        taken.headers = websocket.request.headers
        stream_id = ""
        async for message in websocket:
            taken.got.append(str(message))
            event = json.loads(message)
            match event["event"]:
                case "start":
                    stream_id = event["start"]["streamId"]
                    await play(WORDS)
                    await send("checkpoint", streamId=stream_id, name="greeting")
                case "playedStream" if event["name"] == "greeting":
                    await play(LONG)
                case "dtmf":
                    await send("clearAudio", streamId=stream_id)
                case "clearedAudio":
                    await play(WORDS)
                    await send("checkpoint", streamId=stream_id, name="last")
        taken.over.set()

    return call


class Speaker(FrameProcessor):  # type: ignore[misc]
    """Says its words, then at length; a key stops it, and it says its words once more."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)
        if isinstance(frame, OutputTransportReadyFrame):
            await self.say(WORDS + LONG)
        elif isinstance(frame, InputDTMFFrame):
            await self.broadcast_interruption()
            await self.say(WORDS)

    async def say(self, audio: bytes) -> None:
        pcm = slice_house.from_mulaw(audio)
        await self.push_frame(TTSAudioRawFrame(pcm.tobytes(), 8000, 1))


def pipecat_app(taken: Taken) -> FastAPI:
    """The same on pipecat, which has no checkpoints."""
    app = FastAPI()

    @app.websocket("/")
    async def call(websocket: WebSocket) -> None:
        await websocket.accept()
        _, ids = await parse_telephony_websocket(websocket)
        transport = FastAPIWebsocketTransport(
            websocket,
            FastAPIWebsocketParams(
                audio_in_enabled=True,
                audio_out_enabled=True,
                serializer=RecordingSerializer(ids["stream_id"], taken),
            ),
        )
        worker = PipelineWorker(
            Pipeline([transport.input(), Speaker(), transport.output()]),
            params=PipelineParams(audio_in_sample_rate=8000, audio_out_sample_rate=8000),
        )

        @transport.event_handler("on_client_disconnected")  # type: ignore[untyped-decorator]
        async def hung_up(transport: object, websocket: object) -> None:
            await worker.cancel()

        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        await runner.run()
        taken.over.set()

    return app


@contextlib.asynccontextmanager
async def unmodified(kind: str) -> AsyncIterator[tuple[str, Taken]]:
    taken = Taken()
    match kind:
        case "plivo_stream_sdk":
            server = asgi_server(sdk_app(taken))
        case "pipecat":
            server = asgi_server(pipecat_app(taken))
        case _:
            server = websockets_server(plain_agent(taken))
    async with server as port:
        yield f"ws://127.0.0.1:{port}/", taken


def raw(frames: list[Any]) -> list[str]:
    return [frame.payload.decode() for frame in frames if frame.text]


@pytest.mark.parametrize("kind", KINDS)
async def test_an_unmodified_agent_takes_a_call_byte_for_byte(
    kind: str, mirror: MirrorServer, new_tenancy: TenancyMaker
) -> None:
    async with unmodified(kind) as (url, taken):
        tenancy = await asyncio.to_thread(new_tenancy, upstream_url=url)

        async def caller(call: SimulatedCall) -> None:
            # Well into what the agent says at length; the caller speaks meanwhile.
            await call.wait_for(lambda record: record.heard.seconds > 2.4, 20)
            await call.say(QUESTION)
            call.press("5")
            await call.wait_for(lambda record: record.of("clearedAudio"), 10)
            cleared = call.record.of("clearedAudio")[0].t
            await call.wait_for(lambda record: record.heard.since(cleared + 0.1).seconds >= 1.0, 10)
            if kind != "pipecat":
                await call.wait_for(lambda record: record.played("last"), 10)
            call.hang_up()

        stream = SimulatedCall(tenancy.stream_url(mirror.ws), caller, PlivoSwitches(delay_s=0.02), keep_raw=True)
        record = await stream.run()
        async with asyncio.timeout(10):
            await taken.over.wait()
        rows = await recorded(tenancy)

    assert record.outcome == "completed"
    # What Plivo sent is what the agent got. pipecat takes the first two messages before its serializer is there.
    sent_by_plivo = raw(record.raw_sent)
    assert taken.got == sent_by_plivo[2 if kind == "pipecat" else 0 :]
    assert base64.b64encode(QUESTION[:160]).decode() in "".join(taken.got)
    # What the agent sent is what Plivo got, and nothing besides: no frame of Mirror's.
    received = raw(record.raw_received)
    assert received == taken.sent[: len(received)]
    # pipecat speaks in real time to the very end: a frame or two may have been on the way when the caller hung up.
    assert len(taken.sent) - len(received) <= (3 if kind == "pipecat" else 0)
    # The caller heard it: the words, the beginning of the long piece until the key, the words again.
    heard = record.heard.audio
    if kind == "plain_websocket":
        assert verify(taken.headers, tenancy.signing_secret, "/")
        assert verify(taken.headers, tenancy.signing_secret, "/", record.call_id)
        assert not verify(taken.headers, "another agent's secret", "/")
    if kind == "pipecat":
        # On an interruption its transport drops what it has not sent yet, and of a turn it sends whole 40 ms.
        played = b"".join(base64.b64decode(json.loads(text)["media"]["payload"]) for text in taken.sent[:60])
        assert heard.startswith(played[: 2 * 8000])
    else:
        before = len(heard) - len(WORDS)
        assert heard == (WORDS + LONG)[:before] + WORDS
        assert 2.4 * 8000 < before < 6 * 8000
        assert [event for event in taken.events(taken.got) if event not in ("media", "start")] == [
            "playedStream",
            "dtmf",
            "clearedAudio",
            "playedStream",
        ]
    assert taken.events(taken.sent).count("clearAudio") == 1
    assert record.cleared_bytes > 0 or kind == "pipecat"
    assert rows.call.outcome == "completed"
    assert rows.call.coverage_state == "none"
    assert rows.turns == []


# Supervised

CORRECTION = "A colleague has to decide about that. Shall I ask one to call you?"
REFUND_RULE = "Never confirm a refund."
CHARGE_RULE = "Never charge another amount than the customer named."

# The caller's side of the examples' conversation.
CALL = f"""
max_seconds: 90
steps:
  - say: "{slice_house.CALLER[0]}"
    after: agent_silent 1.5
  - say: "{slice_house.CALLER[1]}"
    after: agent_silent 3
  - hang_up:
    after: agent_silent 2.5
"""


def charge(tool: dict[str, Any], question: Question) -> dict[str, Any] | None:
    if tool["name"] == "charge_card" and tool["args"].get("amount_usd") != 12:
        return {"allow": False, "score": 0.95, "reason": 'The customer said "twelve".', "instruction": "Ask again."}
    return None


@contextlib.asynccontextmanager
async def supervised(kind: str) -> AsyncIterator[str]:
    module = importlib.import_module(f"examples.{kind}.agent_supervised")
    server = websockets_server(module.call) if kind == "plain_websocket" else asgi_server(module.app)
    async with server as port:
        yield f"ws://127.0.0.1:{port}/"


async def supervised_call(
    kind: str, mirror: MirrorServer, new_tenancy: TenancyMaker
) -> tuple[CallRecord, CallRows, Tenancy]:
    script = await asyncio.to_thread(parse_script(CALL).prepare)
    async with LLMStandIn() as llm, supervised(kind) as url:
        llm.behave(delay_s=0.1)
        llm.judge(words({"have already refunded": {"rule": 1, "reason": 'It says "refunded the full amount".'}}))
        llm.gate(charge)
        llm.correct(lambda question: CORRECTION)
        tenancy = await asyncio.to_thread(
            new_tenancy, upstream_url=url, llm_base_url=llm.base_url, rules=[REFUND_RULE, CHARGE_RULE]
        )
        record = await SimulatedCall(tenancy.stream_url(mirror.ws), script.run, keep_raw=True).run()
        return record, await recorded(tenancy), tenancy


@pytest.mark.parametrize("kind", KINDS)
async def test_a_supervised_agent_is_corrected_blocked_and_told(
    kind: str, mirror: MirrorServer, new_tenancy: TenancyMaker
) -> None:
    record, rows, _ = await supervised_call(kind, mirror, new_tenancy)
    assert record.outcome == "completed"

    # A correction heard, by ear, and the violating words not.
    (intervention,) = rows.interventions
    assert intervention.outcome == "completed"
    # On a busy machine the written text may come too late; then the template is the correction.
    assert intervention.correction_source == "template" or intervention.correction_text == CORRECTION
    heard = transcribe(record.heard.pcm()).lower()
    assert "refunded" not in heard
    correction = heard.index(intervention.correction_text.lower()[-16:-1])
    assert heard.index("how can i help") < correction < heard.index("not charged")

    # A tool blocked.
    (decision,) = rows.tool_decisions
    assert (decision.name, decision.allow, decision.code) == ("charge_card", False, "policy")
    assert decision.args == {"amount_usd": 45.0}
    assert decision.ok is None, "it ran all the same"

    # A note received: the agent's next turn is generated with it, and says so.
    turns = [detail.turn for detail in rows.turns]
    assert [turn.customer_text for turn in turns] == ["", *slice_house.CALLER[:2]]
    assert turns[1].text.endswith("I have already refunded the full amount to your card.")
    assert turns[2].text.startswith("As I said, a colleague decides about your refund. I have not charged anything.")
    assert "colleague decides about your refund" in heard

    assert rows.call.coverage_state == "full"
    # The greeting only asks; the turn after the intervention is judged whatever it says.
    assert [detail.verdict.state for detail in rows.turns] == ["skipped", "judged", "judged"]
