"""An agent's socket in memory, of the shape of a `websockets` connection, for tests on virtual time."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from tests.client.fake_mirror import signature_headers


class Closed(Exception):
    """What this socket raises once it is closed."""


class Wire:
    def __init__(self, *, signed: bool = True) -> None:
        headers = signature_headers("/", call_id="call-1") if signed else {"User-Agent": "Plivo"}
        self.request = SimpleNamespace(headers=headers)
        self.sent: list[dict[str, Any]] = []
        self.broken = False
        self.stalled = asyncio.Event()
        self.stalled.set()
        self.taken = 0
        self._answers: deque[dict[str, Any]] = deque()
        self._incoming: asyncio.Queue[str | bytes | None] = asyncio.Queue()

    # The other end

    def arrive(self, *frames: dict[str, Any] | str | bytes) -> None:
        for frame in frames:
            self._incoming.put_nowait(json.dumps(frame) if isinstance(frame, dict) else frame)

    def close(self) -> None:
        self._incoming.put_nowait(None)

    def answer_tool(self, *, allow: bool, code: str, **fields: Any) -> None:
        """The next tool that the agent asks for gets this verdict."""
        self._answers.append({"allow": allow, "code": code, "valid_ms": 10_000, **fields})

    def of(self, event: str) -> list[dict[str, Any]]:
        return [frame for frame in self.sent if frame["event"] == event]

    # The agent's end

    async def send(self, text: str) -> None:
        if self.broken:
            raise OSError("broken pipe")
        await self.stalled.wait()
        frame = json.loads(text)
        self.sent.append(frame)
        if frame["event"] == "mirror.tool" and self._answers:
            self.arrive({"event": "mirror.tool_verdict", "id": frame["id"], **self._answers.popleft()})

    async def recv(self, decode: bool | None = None) -> str | bytes:
        message = await self._incoming.get()
        if message is None:
            self._incoming.put_nowait(None)
            raise Closed
        self.taken += 1
        return message

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        while True:
            try:
                yield await self.recv()
            except Closed:
                return


async def settle(rounds: int = 20) -> None:
    """Let everything run that can run now."""
    for _ in range(rounds):
        await asyncio.sleep(0)
