"""A Plivo voice agent on plivo-stream-sdk's FastAPI handler.

Run it: python -m examples.plivo_stream_sdk.agent --port 9001, or agent_supervised: the same with Mirror's client.
"""

import argparse
import itertools
import json

import uvicorn
from fastapi import FastAPI, WebSocket
from plivo_stream import ClearedAudioEvent, MediaEvent, PlayedStreamEvent, StartEvent
from plivo_stream.fastapi import PlivoFastAPIStreamingHandler
from starlette.websockets import WebSocketState

from examples.slice_house import Ears, Message, caller_lines, from_mulaw, run_tool, speak, think, to_mulaw
from supervision.client import MirrorClient

app = FastAPI()


@app.websocket("/")
async def call(websocket: WebSocket) -> None:
    mirror = MirrorClient(websocket)
    websocket = mirror.websocket
    handler = PlivoFastAPIStreamingHandler(websocket)
    ears, said = Ears(), iter(caller_lines())
    messages: list[Message] = []
    playing: set[str] = set()
    names = (f"turn-{number}" for number in itertools.count(1))

    async def answer(heard: str) -> None:
        if heard:
            messages.append({"role": "user", "content": heard})
        if note := mirror.take_note():
            messages.append({"role": "system", "content": note})
        reply = think(messages)
        if tool := reply.tool:
            result = await mirror.run_tool(tool.name, tool.args, lambda: run_tool(tool), customer_text=heard)
            messages.append({"role": "tool", "content": json.dumps(result)})
            reply = think(messages)
        await mirror.turn(reply.text, customer_text=heard)
        messages.append({"role": "assistant", "content": reply.text})
        await handler.send_media(to_mulaw(await speak(reply.text)))
        playing.add(name := next(names))
        await handler.send_checkpoint(name)

    @handler.on_start
    async def on_start(event: StartEvent) -> None:
        await answer("")

    @handler.on_media
    async def on_media(event: MediaEvent) -> None:
        match ears.hear(from_mulaw(event.get_raw_media())):
            case "began" if playing:
                await handler.send_clear_audio()
            case "stopped":
                await answer(next(said))

    @handler.on_played_stream
    async def on_played_stream(event: PlayedStreamEvent) -> None:
        playing.discard(event.name)

    @handler.on_cleared_audio
    async def on_cleared_audio(event: ClearedAudioEvent) -> None:
        playing.clear()

    @handler.on_error
    async def on_error(error: Exception) -> None:
        # The handler reads a socket that broke while it was written to over and over again, unless it is stopped.
        if websocket.application_state is WebSocketState.DISCONNECTED:
            await handler.stop()

    await handler.start()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9001)
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port, ws_max_size=16 * 1024 * 1024)
