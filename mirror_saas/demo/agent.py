"""The demo's voice agent: real speech over a real socket, a scripted mind, supervised by `supervision.client`.

    python -m mirror_saas.demo.agent --port 8002

It has no speech recogniser and no language model. It hears by loudness when the caller stops speaking, takes it that
they said the next line of the demo's call (`conversation.py`, the same lines as in `call.yaml`), and reports that line
as `customer_text`; to any other caller it answers just the same, and its reports of what they said are then wrong.
What it says is synthesized offline by hibari-tts. Everything that it does with Mirror, a real agent would do too: it
reports each turn before its audio, asks before it runs a tool, stops a turn that Mirror has stepped in on, and follows
the note that it got when it speaks next.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import signal
from base64 import b64decode, b64encode
from typing import Any

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from mirror_saas.demo.conversation import AFTERWARDS, EXCHANGES, GREETING, Exchange, ToolRequest, agent_lines
from supervision.audio.format import MediaFormat
from supervision.client import MirrorClient
from supervision.engine.tts.offline import HibariTTS
from supervision.engine.tts.protocol import Speech

# A small model on a CPU takes its time; one behind an API answers long before.
TOOL_TIMEOUT_MS = 25_000
CHUNK_MS = 200
VOICED_DBFS = -45.0
"""Louder than this is the caller's voice; a silent telephone line is below -50 dBFS."""
SPEECH_BEGINS_MS = 100.0
SPEECH_ENDS_MS = 900.0
"""This much silence ends a turn: more than the pause between two sentences, which is up to 820 ms in hibari's voice."""


class EndOfSpeech:
    """Says when the caller begins and stops to speak, by loudness alone."""

    def __init__(self, media_format: MediaFormat) -> None:
        self._format = media_format
        self._voiced_ms = 0.0
        self._silent_ms = 0.0
        self._speaking = False

    def push(self, payload: bytes) -> str | None:
        """Take the next inbound audio; answers `began`, `stopped` or None."""
        if not payload:
            return None
        samples = self._format.decode(payload) / 32768.0
        duration_ms = self._format.duration_ms(len(payload))
        if 10 * math.log10(float(np.mean(samples**2)) + 1e-12) >= VOICED_DBFS:
            self._voiced_ms, self._silent_ms = self._voiced_ms + duration_ms, 0.0
        else:
            self._silent_ms += duration_ms
            if not self._speaking and self._silent_ms >= 200:
                self._voiced_ms = 0.0
        if not self._speaking and self._voiced_ms >= SPEECH_BEGINS_MS:
            self._speaking = True
            return "began"
        if self._speaking and self._silent_ms >= SPEECH_ENDS_MS:
            self._speaking, self._voiced_ms = False, 0.0
            return "stopped"
        return None


class Voice:
    """Everything that the agent may say, spoken once and kept."""

    def __init__(self) -> None:
        self._tts = HibariTTS()
        self._lines: dict[str, Speech] = {}

    async def prepare(self) -> None:
        """Synthesize all lines (a second or two). Raises TTSError without hibari-tts."""
        for line in agent_lines():
            self._lines[line] = await self._tts.synthesize(line, language="en")
        await self._tts.aclose()

    def say(self, lines: list[str], media_format: MediaFormat) -> bytes:
        """The lines one after the other, in the call's format."""
        speech = (self._lines[line] for line in lines)
        return b"".join(media_format.encode(item.samples, item.sample_rate) for item in speech)


class DemoCall:
    """One call: frames from Plivo (or Mirror) in, speech out."""

    def __init__(self, websocket: ServerConnection, voice: Voice) -> None:
        self._mirror = MirrorClient(websocket, language="en")
        self._websocket: ServerConnection = self._mirror.websocket
        self._voice = voice
        self._exchanges = itertools.chain(EXCHANGES, itertools.repeat(AFTERWARDS))
        self._checkpoints = (f"demo-turn-{number}" for number in itertools.count(1))
        self._playing: set[str] = set()
        self._stream_id = ""
        self._format = MediaFormat()
        self._ears = EndOfSpeech(self._format)

    async def run(self) -> None:
        """Take part in the call until it ends."""
        async for message in self._websocket:
            event = json.loads(message)
            match event.get("event"):
                case "start":
                    self._stream_id = event["start"]["streamId"]
                    self._format = MediaFormat.from_start(event["start"]["mediaFormat"])
                    self._ears = EndOfSpeech(self._format)
                    await self._speak([GREETING], heard="")
                case "media":
                    await self._hear(b64decode(event["media"]["payload"]))
                case "playedStream":
                    self._playing.discard(event["name"])
                case "clearedAudio":
                    self._playing.clear()

    async def _hear(self, payload: bytes) -> None:
        match self._ears.push(payload):
            case "began" if self._playing:
                await self._send("clearAudio", streamId=self._stream_id)
            case "stopped":
                await self._answer(next(self._exchanges))

    async def _answer(self, exchange: Exchange) -> None:
        await self._mirror.transcript(exchange.customer)
        lines = [exchange.after_note] if self._mirror.take_note() and exchange.after_note else []
        if exchange.tool is None:
            lines.append(exchange.says)
        else:
            done = await self._run_tool(exchange.tool, exchange.customer)
            lines.append(exchange.when_done if done else exchange.when_blocked)
        await self._speak(lines, heard=exchange.customer)

    async def _run_tool(self, tool: ToolRequest, heard: str) -> bool:
        decision = await self._mirror.tool(tool.name, tool.args, customer_text=heard, timeout_ms=TOOL_TIMEOUT_MS)
        if decision:
            # Here an agent would call its order system or its payment provider.
            await self._mirror.tool_done(decision, ok=True, result={"status": "done", **tool.args})
        return decision.allow

    async def _speak(self, lines: list[str], *, heard: str) -> None:
        """Report the turn, then send its audio as fast as it goes: Mirror, like Plivo, plays it at its pace."""
        turn_id = await self._mirror.turn(" ".join(lines), customer_text=heard)
        audio = self._voice.say(lines, self._format)
        step = CHUNK_MS * self._format.bytes_per_ms
        for start in range(0, len(audio), step):
            if self._mirror.muted(turn_id):
                break
            payload = b64encode(audio[start : start + step]).decode()
            media = {
                "contentType": self._format.content_type,
                "sampleRate": self._format.sample_rate,
                "payload": payload,
            }
            await self._send("playAudio", media=media)
        name = next(self._checkpoints)
        self._playing.add(name)
        await self._send("checkpoint", streamId=self._stream_id, name=name)

    async def _send(self, event: str, **fields: Any) -> None:
        await self._websocket.send(json.dumps({"event": event, **fields}))


async def main(port: int) -> None:
    """Serve on 127.0.0.1 until SIGTERM or SIGINT; prints a line with "ready" once it can take a call."""
    stopped = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stopped.set)
    voice = Voice()
    await voice.prepare()

    async def take_call(websocket: ServerConnection) -> None:
        try:
            await DemoCall(websocket, voice).run()
        except ConnectionClosed:
            # The caller hung up while the agent was speaking: the end of the call, not an error.
            return

    async with serve(take_call, "127.0.0.1", port, max_size=16 * 1024 * 1024, compression=None):
        print(f"demo agent ready on ws://127.0.0.1:{port}/", flush=True)
        await stopped.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run the demo's voice agent.")
    parser.add_argument("--port", type=int, required=True)
    asyncio.run(main(parser.parse_args().port))
