"""A voice agent for tests, on plain `websockets`, that speaks `mirror.*` by hand: no code of Mirror's is in it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosedError

Script = Callable[["AgentCall"], Awaitable[None]]


class AgentCall:
    """One call as the agent sees it: everything it was sent, and ways to answer."""

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection
        self.path = connection.request.path if connection.request else ""
        self.headers = dict(connection.request.headers) if connection.request else {}
        self.raw: list[str | bytes] = []
        self.events: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.closed: int | None = None
        self._changed = asyncio.Condition()

    async def read(self) -> None:
        """Take in whatever comes until the socket closes."""
        with contextlib.suppress(ConnectionClosedError):
            async for message in self.connection:
                await self._take(message)
        self.closed = self.connection.close_code
        async with self._changed:
            self._changed.notify_all()

    async def _take(self, message: str | bytes) -> None:
        self.raw.append(message)
        try:
            event = json.loads(message)
        except (ValueError, RecursionError):
            return
        if isinstance(event, dict):
            self.events.append(event)
            self.times.append(asyncio.get_running_loop().time())
            if event.get("event") != "media":
                async with self._changed:
                    self._changed.notify_all()

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind, in order."""
        return [event for event in self.events if event.get("event") == kind]

    async def wait(self, kind: str, *, count: int = 1, timeout_s: float = 20.0, **fields: Any) -> dict[str, Any]:
        """The ``count``-th event of this kind with these fields, as soon as it came."""

        def found() -> list[dict[str, Any]]:
            return [e for e in self.of(kind) if all(e.get(name) == value for name, value in fields.items())]

        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: len(found()) >= count)
        return found()[count - 1]

    async def send(self, event: str, **fields: Any) -> None:
        await self.connection.send(json.dumps({"event": event, **fields}))

    async def hello(self, **fields: Any) -> dict[str, Any]:
        """Say hello and wait for `mirror.ready`."""
        await self.wait("start")
        await self.send("mirror.hello", **{"v": 1, "sdk": "test/1", "wants": ["verdicts", "notes"], **fields})
        return await self.wait("mirror.ready")

    async def speak(self, audio: bytes, *, frame_ms: int = 20, paced: bool = False) -> None:
        """Play mu-law audio, all at once or at real-time pace."""
        step = frame_ms * 8
        loop = asyncio.get_running_loop()
        began = loop.time()
        for index, offset in enumerate(range(0, len(audio), step)):
            if paced:
                await asyncio.sleep(max(0.0, began + index * frame_ms / 1000 - loop.time()))
            media = {
                "contentType": "audio/x-mulaw",
                "sampleRate": 8000,
                "payload": b64encode(audio[offset : offset + step]).decode(),
            }
            await self.send("playAudio", media=media)

    @property
    def stream_id(self) -> str:
        return str(self.of("start")[0]["start"]["streamId"])


class Agent:
    """A server of such agents; ``calls`` are those that came in."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.calls: list[AgentCall] = []
        self.errors: list[BaseException] = []
        self.url = ""

    async def _serve(self, connection: ServerConnection) -> None:
        call = AgentCall(connection)
        self.calls.append(call)
        reading = asyncio.create_task(call.read())
        script = asyncio.create_task(self._run(call))
        await reading
        script.cancel()

    async def _run(self, call: AgentCall) -> None:
        try:
            await self.script(call)
        except asyncio.CancelledError:
            raise
        except BaseException as problem:
            told = [event for event in call.events if event.get("event") != "media"]
            problem.add_note(f"the agent had been told: {told}")
            self.errors.append(problem)
            await call.connection.close(1011)


@asynccontextmanager
async def agent(script: Script, *, subprotocols: list[str] | None = None) -> AsyncIterator[Agent]:
    """A running agent; its scripts' errors are raised at the end."""
    made = Agent(script)
    async with serve(made._serve, "127.0.0.1", 0, max_size=None, subprotocols=subprotocols, compression=None) as server:
        made.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/agent"
        try:
            yield made
        except Exception:
            # What went wrong in the agent is why the caller's side did not see what it waited for.
            if made.errors:
                raise made.errors[0] from None
            for call in made.calls:
                print("the agent was told:", [e for e in call.events if e.get("event") != "media"])
            raise
    if made.errors:
        raise made.errors[0]
