"""Calls of the library on virtual time: a Plivo in memory, behind a real Starlette WebSocket."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from starlette.websockets import WebSocket

from supervision.audio.format import MediaFormat
from supervision.engine import MirrorConfig, Supervisor
from supervision.engine.attached import AttachedCall
from tests.engine.llms import BAD, CLEAN, ScriptedLLM

STREAM_ID = "20170ada-f610-433b-8758-c02a2aab3662"
CALL_ID = "f4a1c0de-1111-4222-8333-444455556666"
FORMAT = MediaFormat()
RATE = 8000
SECONDS_PER_WORD = 0.25
GOOD = "Your order of two pizzas is in the oven now."
WRONG = "Of course, your refund is confirmed and will be paid out today."
RIGHT = "I can connect you with a colleague. Shall I do that?"


def judge(asked: Any) -> dict[str, Any]:
    """Refunds are against the rules."""
    return dict(BAD if "refund is confirmed" in asked.user["agent_text"] else CLEAN)


class Tones:
    """A voice that says each text as a tone of its own, so that what was heard can be told."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.texts: list[str] = []
        self.said: list[tuple[str, float]] = []
        self.delay_s = delay_s
        self.fails: Exception | None = None

    async def __call__(self, text: str) -> bytes:
        self.said.append((text, asyncio.get_running_loop().time()))
        await asyncio.sleep(self.delay_s)
        if self.fails is not None:
            raise self.fails
        return self.tone(text)

    def tone(self, text: str) -> bytes:
        if text not in self.texts:
            self.texts.append(text)
        hertz = 300 + 100 * self.texts.index(text)
        t = np.arange(int(RATE * SECONDS_PER_WORD * len(text.split()))) / RATE
        return FORMAT.encode((8000 * np.sin(2 * np.pi * hertz * t)).astype(np.int16), RATE)

    def text_of(self, frame: bytes) -> str:
        """The text that a frame of 20 ms belongs to; "" for silence."""
        pcm = FORMAT.decode(frame).astype(np.float64)
        if np.abs(pcm).max(initial=0) < 200:
            return ""
        spectrum = np.abs(np.fft.rfft(pcm * np.hanning(len(pcm)), 8000))
        return self.texts[round((float(spectrum.argmax()) - 300) / 100)]


@dataclass(slots=True)
class _Played:
    start: float
    frame: bytes


class Plivo:
    """Plivo's end of a stream: one queue that plays in real time, acknowledgements, and what the caller heard."""

    def __init__(self, *, one_way_s: float = 0.02) -> None:
        self.websocket = WebSocket({"type": "websocket", "path": "/", "headers": []}, self._receive, self._send)
        self.sent: list[tuple[float, dict[str, Any]]] = []
        self.loses: set[str] = set()  # events that are never sent
        self.late_s = 0.0  # how much later than due acknowledgements come
        self.clear_answers = True
        self._one_way_s = one_way_s
        self._to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._to_app.put_nowait({"type": "websocket.connect"})
        self._played: list[_Played] = []
        self._free_at = 0.0
        self._waiting: list[asyncio.TimerHandle] = []
        self._sequence = 0
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._left_at: float | None = None
        self.broken = False

    # towards the agent

    def event(self, event: str, **fields: Any) -> None:
        self._sequence += 1
        frame = {"event": event, "sequenceNumber": self._sequence, **fields}
        if event not in self.loses:
            message = {"type": "websocket.receive", "text": json.dumps(frame)}
            self._loop.call_later(self._one_way_s, self._to_app.put_nowait, message)

    def start(self, encoding: str = "audio/x-mulaw") -> None:
        self.event(
            "start",
            start={
                "callId": CALL_ID,
                "streamId": STREAM_ID,
                "accountId": "MA1",
                "tracks": ["inbound"],
                "mediaFormat": {"encoding": encoding, "sampleRate": RATE},
            },
        )

    def media(self, audio: bytes) -> None:
        payload = base64.b64encode(audio).decode()
        media = {"track": "inbound", "timestamp": "1", "chunk": 1, "payload": payload}
        self.event("media", streamId=STREAM_ID, media=media)

    async def says(self, audio: bytes) -> None:
        """The caller speaks, at the pace of life."""
        for at in range(0, len(audio), 160):
            self.media(audio[at : at + 160])
            await asyncio.sleep(0.02)

    def press(self, digit: str = "5") -> None:
        self.event("dtmf", streamId=STREAM_ID, dtmf={"track": "inbound", "digit": digit, "timestamp": "1"})

    def hang_up(self) -> None:
        self._left_at = self._loop.time()
        message = {"type": "websocket.disconnect", "code": 1000, "reason": ""}
        self._loop.call_later(self._one_way_s, self._to_app.put_nowait, message)

    async def _receive(self) -> dict[str, Any]:
        return await self._to_app.get()

    # from the agent

    async def _send(self, message: Any) -> None:
        if self.broken:
            raise OSError("the socket is gone")
        if message["type"] != "websocket.send":
            return
        await asyncio.sleep(0)
        frame = json.loads(message["text"])
        self._loop.call_later(self._one_way_s, self._arrived, frame)

    def _arrived(self, frame: dict[str, Any]) -> None:
        now = self._loop.time()
        self.sent.append((now - self._began, frame))
        if frame["event"] == "playAudio":
            audio = base64.b64decode(frame["media"]["payload"])
            at = max(now, self._free_at)
            for offset in range(0, len(audio), 160):
                self._played.append(_Played(at + offset / RATE, audio[offset : offset + 160]))
            self._free_at = at + len(audio) / RATE
        elif frame["event"] == "checkpoint":
            due = max(now, self._free_at) + self.late_s
            ack = self._loop.call_at(due, lambda: self.event("playedStream", streamId=STREAM_ID, name=frame["name"]))
            self._waiting.append(ack)
        elif frame["event"] == "clearAudio":
            self._played = [played for played in self._played if played.start < now]
            self._free_at = now
            for ack in self._waiting:
                ack.cancel()
            self._waiting.clear()
            if self.clear_answers:
                self.event("clearedAudio", streamId=STREAM_ID)

    def of(self, event: str) -> list[tuple[float, dict[str, Any]]]:
        return [(at, frame) for at, frame in self.sent if frame["event"] == event]

    def heard(self, voice: Tones) -> list[tuple[str, float, float]]:
        """What the caller heard up to now: (text, when it began, for how long), in order; silence left out."""
        until = self._loop.time() if self._left_at is None else self._left_at
        found: list[tuple[str, float, float]] = []
        for played in self._played:
            text = voice.text_of(played.frame)
            if played.start >= until or not text:
                continue
            start = played.start - self._began
            if found and found[-1][0] == text and start - (found[-1][1] + found[-1][2]) < 0.15:
                found[-1] = (text, found[-1][1], start + 0.02 - found[-1][1])
            else:
                found.append((text, start, 0.02))
        return found

    def words(self, voice: Tones) -> list[str]:
        return [text for text, _, _ in self.heard(voice)]


@dataclass
class Agent:
    """An agent with a receive loop of its own on the WebSocket that it was given."""

    websocket: WebSocket
    received: list[dict[str, Any]] = field(default_factory=list)
    closed: bool = False

    async def run(self) -> None:
        await self.websocket.accept()
        async for text in self.websocket.iter_text():
            self.received.append(json.loads(text))
        self.closed = True

    def of(self, event: str) -> list[dict[str, Any]]:
        return [frame for frame in self.received if frame["event"] == event]

    async def send(self, event: str, **fields: Any) -> None:
        await self.websocket.send_text(json.dumps({"event": event, **fields}))

    async def play(self, audio: bytes) -> None:
        payload = base64.b64encode(audio).decode()
        await self.send("playAudio", media={"contentType": "audio/x-mulaw", "sampleRate": RATE, "payload": payload})


class Scene:
    """A call from `start` on: Plivo, an agent and a supervised call.

    async with Scene() as scene: ...
    """

    def __init__(
        self,
        *,
        llm: ScriptedLLM | None = None,
        voice: Any = None,
        judge_s: float = 0.0,
        state: Any = None,
        options: dict[str, Any] | None = None,
        **config: Any,
    ) -> None:
        self.llm = llm or ScriptedLLM(turn=judge, delay_s=judge_s)
        self.voice: Any = Tones() if voice is None else voice
        config.setdefault("tiered_scoring_enabled", False)
        config.setdefault("policies", ["Never confirm a refund.", "Do not promise delivery times."])
        self.supervisor = Supervisor(MirrorConfig(llm=self.llm, **config), state)
        self.plivo = Plivo()
        self.agent = Agent(self.plivo.websocket)
        self._options = options or {}
        self._attached: Any = None
        self._running: asyncio.Task[None] | None = None
        self.call: AttachedCall

    async def __aenter__(self) -> Scene:
        self._attached = self.supervisor.attach(self.plivo.websocket, tts_provider=self.voice, **self._options)
        self.call = await self._attached.__aenter__()
        self._running = asyncio.create_task(self.agent.run())
        self.plivo.start()
        await asyncio.sleep(1.0)
        return self

    async def __aexit__(self, *problem: Any) -> None:
        await self._attached.__aexit__(*problem)
        if self._running is not None:
            self._running.cancel()

    @property
    def heard(self) -> list[str]:
        return self.plivo.words(self.voice)

    def now(self) -> float:
        """Seconds since the call began."""
        return asyncio.get_running_loop().time() - self.plivo._began

    async def wrong_turn(self, text: str = WRONG) -> Any:
        return await self.call.review_turn(customer_text="I want my money back.", primary_text=text)

    def notes(self) -> Sequence[str]:
        return [f"{entry.role}: {entry.text}" for entry in self.call.history]
