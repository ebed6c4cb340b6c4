"""A Plivo voice agent on pipecat: its Plivo serializer and its FastAPI transport.

Run it: python -m examples.pipecat.agent --port 9002, or agent_supervised: the same with Mirror's client.
"""

import argparse
import json

import numpy as np
import uvicorn
from fastapi import FastAPI, WebSocket
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    Frame,
    InputAudioRawFrame,
    OutputTransportReadyFrame,
    TTSAudioRawFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.runner.utils import parse_telephony_websocket
from pipecat.serializers.plivo import PlivoFrameSerializer
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams, FastAPIWebsocketTransport
from pipecat.workers.runner import WorkerRunner

from examples.slice_house import RATE, Ears, Message, caller_lines, run_tool, speak, think

app = FastAPI()


class SliceHouse(FrameProcessor):
    """Hears, thinks and speaks, where a pipeline otherwise has its STT, LLM and TTS services."""

    def __init__(self) -> None:
        super().__init__()
        self.ears, self.said = Ears(), iter(caller_lines())
        self.messages: list[Message] = []
        self.bot_is_speaking = False

    async def answer(self, heard: str) -> None:
        if heard:
            self.messages.append({"role": "user", "content": heard})
        reply = think(self.messages)
        if tool := reply.tool:
            result = run_tool(tool)
            self.messages.append({"role": "tool", "content": json.dumps(result)})
            reply = think(self.messages)
        self.messages.append({"role": "assistant", "content": reply.text})
        pcm = await speak(reply.text)
        await self.push_frame(TTSAudioRawFrame(pcm.tobytes(), RATE, 1))

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)
        match frame:
            case OutputTransportReadyFrame():
                await self.answer("")
            case BotStartedSpeakingFrame() | BotStoppedSpeakingFrame():
                self.bot_is_speaking = isinstance(frame, BotStartedSpeakingFrame)
            case InputAudioRawFrame():
                match self.ears.hear(np.frombuffer(frame.audio, np.int16)):
                    case "began" if self.bot_is_speaking:
                        await self.broadcast_interruption()
                    case "stopped":
                        await self.answer(next(self.said))


@app.websocket("/")
async def call(websocket: WebSocket) -> None:
    await websocket.accept()
    _, ids = await parse_telephony_websocket(websocket)
    serializer = PlivoFrameSerializer(ids["stream_id"], params=PlivoFrameSerializer.InputParams(auto_hang_up=False))
    transport = FastAPIWebsocketTransport(
        websocket, FastAPIWebsocketParams(audio_in_enabled=True, audio_out_enabled=True, serializer=serializer)
    )
    shop = SliceHouse()
    worker = PipelineWorker(
        Pipeline([transport.input(), shop, transport.output()]),
        params=PipelineParams(audio_in_sample_rate=RATE, audio_out_sample_rate=RATE),
    )

    @transport.event_handler("on_client_disconnected")
    async def hung_up(transport: FastAPIWebsocketTransport, websocket: WebSocket) -> None:
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9002)
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port, ws_max_size=16 * 1024 * 1024)
