"""A Plivo voice agent on nothing but the websockets library.

Run it: python -m examples.plain_websocket.agent --port 9003, or agent_supervised: the same with Mirror's client.
"""

import argparse
import asyncio
import base64
import itertools
import json

from websockets.asyncio.server import ServerConnection, serve

from examples.slice_house import Ears, Message, caller_lines, from_mulaw, run_tool, speak, think, to_mulaw
from supervision.client import MirrorClient


async def call(websocket: ServerConnection) -> None:
    mirror = MirrorClient(websocket)
    websocket = mirror.websocket
    ears, said = Ears(), iter(caller_lines())
    messages: list[Message] = []
    playing: set[str] = set()
    names = (f"turn-{number}" for number in itertools.count(1))
    stream_id = ""

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
        payload = base64.b64encode(to_mulaw(await speak(reply.text))).decode()
        media = {"contentType": "audio/x-mulaw", "sampleRate": 8000, "payload": payload}
        await websocket.send(json.dumps({"event": "playAudio", "media": media}))
        playing.add(name := next(names))
        await websocket.send(json.dumps({"event": "checkpoint", "streamId": stream_id, "name": name}))

    async for message in websocket:
        event = json.loads(message)
        match event["event"]:
            case "start":
                stream_id = event["start"]["streamId"]
                await answer("")
            case "media":
                match ears.hear(from_mulaw(base64.b64decode(event["media"]["payload"]))):
                    case "began" if playing:
                        await websocket.send(json.dumps({"event": "clearAudio", "streamId": stream_id}))
                    case "stopped":
                        await answer(next(said))
            case "playedStream":
                playing.discard(event["name"])
            case "clearedAudio":
                playing.clear()


async def main(port: int) -> None:
    async with serve(call, "127.0.0.1", port, max_size=16 * 1024 * 1024) as server:
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9003)
    asyncio.run(main(parser.parse_args().port))
