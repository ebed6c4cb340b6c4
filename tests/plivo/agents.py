"""Servers for the Plivo stand-in to dial, made with the `websockets` library: nothing of Mirror or of picows."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

Handler = Callable[["Agent"], Awaitable[None]]


@dataclass
class Agent:
    """One connection that the stand-in made, as the server sees it."""

    socket: ServerConnection
    received: list[dict[str, Any]] = field(default_factory=list)
    raw: list[str | bytes] = field(default_factory=list)

    @property
    def start(self) -> dict[str, Any]:
        return self.received[0]

    @property
    def stream_id(self) -> str:
        return str(self.start["start"]["streamId"])

    def of(self, event: str) -> list[dict[str, Any]]:
        return [message for message in self.received if message["event"] == event]

    async def receive(self) -> dict[str, Any]:
        """The next message; raises `ConnectionClosed`."""
        raw = await self.socket.recv()
        self.raw.append(raw)
        message: dict[str, Any] = json.loads(raw)
        self.received.append(message)
        return message

    async def until(self, event: str, count: int = 1) -> dict[str, Any]:
        """Read on until `count` messages of this event have come in all; returns the last of them."""
        while len(found := self.of(event)) < count:
            await self.receive()
        return found[count - 1]

    async def read_on(self) -> None:
        """Read until the connection ends."""
        try:
            while True:
                await self.receive()
        except ConnectionClosed:
            return

    async def send(self, **message: Any) -> None:
        await self.socket.send(json.dumps(message))

    async def play(self, audio: bytes, encoding: str = "audio/x-mulaw", rate: int = 8000) -> None:
        payload = base64.b64encode(audio).decode()
        await self.send(event="playAudio", media={"contentType": encoding, "sampleRate": rate, "payload": payload})

    async def checkpoint(self, name: str) -> None:
        await self.send(event="checkpoint", streamId=self.stream_id, name=name)

    async def clear(self) -> None:
        await self.send(event="clearAudio", streamId=self.stream_id)

    def said(self) -> bytes:
        """All caller audio that came."""
        return b"".join(base64.b64decode(message["media"]["payload"]) for message in self.of("media"))


@dataclass
class Server:
    """A listening server: its URL, the connections so far, and what their handlers raised."""

    url: str = ""
    agents: list[Agent] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)


@asynccontextmanager
async def agent_server(*handlers: Handler, **options: Any) -> AsyncIterator[Server]:
    """Serve connection n with handler n, the last one again and again. A handler that returns closes with 1000.

    A failing assertion inside a handler fails the test: its error is raised when the server stops.
    """
    server = Server()

    async def serve_one(socket: ServerConnection) -> None:
        agent = Agent(socket)
        server.agents.append(agent)
        handler = handlers[min(len(server.agents), len(handlers)) - 1]
        try:
            await handler(agent)
        except ConnectionClosed:
            return
        except Exception as error:
            server.errors.append(error)
            raise

    options = {"max_size": None, "compression": None} | options
    if "sock" not in options:
        options |= {"host": "127.0.0.1", "port": 0}
    async with serve(serve_one, **options) as listening:
        port = listening.sockets[0].getsockname()[1]
        server.url = f"ws://127.0.0.1:{port}"
        yield server
    if server.errors:
        raise server.errors[0]


async def listen(agent: Agent) -> None:
    """A handler that only reads."""
    await agent.read_on()


async def settle(task: asyncio.Task[Any], seconds: float = 20.0) -> Any:
    """The task's result; a test that hangs fails instead."""
    async with asyncio.timeout(seconds):
        return await task


@asynccontextmanager
async def asgi_agent(app: Any) -> AsyncIterator[str]:
    """Serve an ASGI app with uvicorn on this loop; yields its ws:// URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="error", lifespan="off", ws="websockets-sansio")
        server = uvicorn.Server(config)
        running = asyncio.ensure_future(server.serve(sockets=[listener]))
        try:
            while not server.started:
                assert not running.done(), "uvicorn did not start"
                await asyncio.sleep(0.005)
            yield f"ws://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await running
