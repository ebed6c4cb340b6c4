"""Mirror and Plivo as an agent meets them on its socket, written from the protocol alone.

A WebSocket client that dials an agent, sends Plivo's events and speaks the `mirror.*` frames. It shares nothing with
the relay and nothing with `supervision.client`, so that the two sides are each held to the description.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

SECRET = "agent-signing-secret"
TIMEOUT_S = 10.0


def signature_headers(
    path_and_query: str, *, call_id: str, secret: str = SECRET, at: int | None = None
) -> dict[str, str]:
    moment = str(int(time.time()) if at is None else at)
    signed = hmac.new(secret.encode(), f"{moment}.{call_id}.{path_and_query}".encode(), hashlib.sha256).hexdigest()
    return {"X-Mirror-Signature": f"t={moment},v1={signed}", "X-Mirror-Call": call_id}


class Line:
    """One call on the agent's socket: what the agent sent, in order, and the means to answer."""

    def __init__(self, connection: ClientConnection, call_id: str, answers: Answers) -> None:
        self.connection = connection
        self.call_id = call_id
        self.stream_id = str(uuid.uuid4())
        self.answers = answers
        self.frames: list[dict[str, Any]] = []
        self.raw: list[str | bytes] = []
        self.closed = asyncio.Event()
        self._changed = asyncio.Condition()
        self._sequence = 0
        self._chunk = 0

    # Plivo

    async def plivo(self, event: str, **fields: Any) -> str:
        self._sequence += 1
        text = json.dumps({"event": event, "sequenceNumber": self._sequence, **fields, "extra_headers": ""})
        await self.connection.send(text)
        return text

    async def start(self) -> str:
        media_format = {"encoding": "audio/x-mulaw", "sampleRate": 8000}
        ids = {"callId": str(uuid.uuid4()), "streamId": self.stream_id, "accountId": "MAXXXXXXXXXXXXXXXXXX"}
        return await self.plivo("start", start={**ids, "tracks": ["inbound"], "mediaFormat": media_format})

    async def media(self, audio: bytes) -> str:
        self._chunk += 1
        media = {
            "track": "inbound",
            "timestamp": str(1_705_312_200_000 + 20 * self._chunk),
            "chunk": self._chunk,
            "payload": base64.b64encode(audio).decode(),
        }
        return await self.plivo("media", streamId=self.stream_id, media=media)

    async def played(self, name: str) -> str:
        return await self.plivo("playedStream", streamId=self.stream_id, name=name)

    async def cleared(self) -> str:
        return await self.plivo("clearedAudio", streamId=self.stream_id)

    # Mirror

    async def mirror(self, event: str, **fields: Any) -> None:
        await self.connection.send(json.dumps({"event": f"mirror.{event}", **fields}))

    async def note(self, text: str, *, id: str = "note-1", rev: int = 1, turn_id: str = "", **fields: Any) -> None:
        note = {"id": id, "rev": rev, "turn_id": turn_id, "text": text, "expires_turns": 3, **fields}
        await self.mirror("note", **note)

    # What the agent sent

    def of(self, event: str) -> list[dict[str, Any]]:
        return [frame for frame in self.frames if frame.get("event") == event]

    async def wait_for(self, event: str, count: int = 1, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        """The `count`-th frame of this event; fails with what did come."""
        await self.until(lambda: len(self.of(event)) >= count, f"{count} × {event}", timeout_s)
        return self.of(event)[count - 1]

    async def until(self, condition: Callable[[], bool], what: str, timeout_s: float = TIMEOUT_S) -> None:
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError:
            seen = [frame.get("event") for frame in self.frames]
            raise AssertionError(f"the agent did not send {what} within {timeout_s} s; it sent {seen[-40:]}") from None

    def audio(self) -> bytes:
        return b"".join(base64.b64decode(frame["media"]["payload"]) for frame in self.of("playAudio"))

    async def read(self) -> None:
        try:
            async for message in self.connection:
                frame = json.loads(message)
                async with self._changed:
                    self.raw.append(message)
                    self.frames.append(frame)
                    self._changed.notify_all()
                await self.answers.answer(self, frame)
        except ConnectionClosed:
            pass
        finally:
            self.closed.set()


class Answers:
    """How this Mirror answers: hello with ready, tools by `tools` (name → fields of the verdict, None: silence)."""

    def __init__(
        self, *, ready: bool = True, gated_tools: list[str] | None = None, tools: dict[str, Any] | None = None
    ) -> None:
        self.ready = ready
        self.gated_tools = ["place_order", "charge_card"] if gated_tools is None else gated_tools
        self.tools = tools or {}
        self.asked: list[dict[str, Any]] = []

    async def answer(self, line: Line, frame: dict[str, Any]) -> None:
        match frame.get("event"):
            case "mirror.hello" if self.ready:
                policy = {"id": "5f0c", "version": 3}
                await line.mirror(
                    "ready",
                    v=1,
                    call_id=line.call_id,
                    mode="live",
                    policy=policy,
                    gated_tools=self.gated_tools,
                    resumed=False,
                    notes=[],
                )
            case "mirror.tool":
                self.asked.append(frame)
                verdict = self.tools.get(frame["name"], {"allow": True, "code": "ok"})
                if verdict is not None:
                    defaults = {"reason": "", "instruction": "", "stored_result": None, "valid_ms": 10_000}
                    await line.mirror("tool_verdict", id=frame["id"], **{**defaults, **verdict})
            case _:
                pass


@contextlib.asynccontextmanager
async def call(
    port: int, *, path: str = "/", answers: Answers | None = None, signed: bool = True, start: bool = True
) -> AsyncIterator[Line]:
    """Dial an agent on this machine and, with `start`, send Plivo's first event."""
    call_id = str(uuid.uuid4())
    headers = signature_headers(path, call_id=call_id) if signed else {}
    async with connect(
        f"ws://127.0.0.1:{port}{path}", additional_headers=headers, compression=None, max_size=None, close_timeout=2
    ) as connection:
        line = Line(connection, call_id, answers or Answers())
        reader = asyncio.create_task(line.read())
        try:
            if start:
                await line.start()
            yield line
        finally:
            await connection.close()
            await reader
