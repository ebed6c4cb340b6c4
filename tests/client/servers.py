"""Real servers for agents under test: uvicorn for ASGI apps, `websockets` for handlers, on free ports."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import uvicorn
from websockets.asyncio.server import ServerConnection, serve


@contextlib.asynccontextmanager
async def asgi_server(app: Any) -> AsyncIterator[int]:
    """Serve an ASGI app on this loop; yields the port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", lifespan="off", ws="websockets-sansio", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:
            assert not running.done(), "uvicorn did not start"
            await asyncio.sleep(0.005)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await running


@contextlib.asynccontextmanager
async def websockets_server(handler: Callable[[ServerConnection], Awaitable[None]]) -> AsyncIterator[int]:
    """Serve a handler with the `websockets` library; yields the port."""
    async with serve(handler, "127.0.0.1", 0, max_size=None, compression=None) as server:
        yield next(iter(server.sockets)).getsockname()[1]
