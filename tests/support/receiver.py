"""A webhook receiver on loopback, in a thread of its own: it answers as it is told and keeps what it got."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Got:
    """A message as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        read: dict[str, Any] = orjson.loads(self.body)
        return read

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


class Receiver:
    """`answers` are given one after the other, the last one again and again: statuses, or functions of the request."""

    def __init__(self) -> None:
        self.got: list[Got] = []
        self.answers: list[int | Answer] = [204]
        self.arrived = threading.Semaphore(0)
        self.url = ""
        # For answers that wait: set by the test, or at the end.
        self.release = asyncio.Event()
        self.loop = asyncio.new_event_loop()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.got.append(Got(request.path, headers, await request.read()))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.arrived.release()
        return web.Response(status=answer) if isinstance(answer, int) else await answer(request)

    async def hold(self, request: web.Request) -> web.StreamResponse:
        """An answer that does not come before the end of the test."""
        await self.release.wait()
        return web.Response(status=204)

    @property
    def ids(self) -> list[str]:
        return [got.id for got in self.got]


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A receiver that listens."""
    made, ready = Receiver(), threading.Event()

    async def serve() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", made.handle)
        runner = web.AppRunner(app, shutdown_timeout=1.0, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        made.url = f"http://127.0.0.1:{port}/hook"
        ready.set()
        await stop.wait()
        await runner.cleanup()

    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: made.loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield made
    finally:
        made.loop.call_soon_threadsafe(made.release.set)
        made.loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        made.loop.close()


async def redirected(request: web.Request) -> web.StreamResponse:
    """307: the client is to send it again elsewhere, which it must not."""
    return web.Response(status=307, headers={"Location": "/elsewhere"})


async def slams(request: web.Request) -> web.StreamResponse:
    """No answer: the connection is closed."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def garbage(request: web.Request) -> web.StreamResponse:
    """What is no HTTP."""
    assert request.transport is not None
    request.transport.write(b"\x00\xff no http at all\r\n\r\n")  # type: ignore[attr-defined]
    request.transport.close()
    return web.Response()


async def floods(request: web.Request) -> web.StreamResponse:
    """200 with far more than anybody reads."""
    return web.Response(body=b"x" * 1_000_000)


async def refuses_at_length(request: web.Request) -> web.StreamResponse:
    """500 with a page of text."""
    return web.Response(status=500, text="Stack trace: \x00" + "y" * 5000)


async def busy(request: web.Request) -> web.StreamResponse:
    """503 that asks for an hour."""
    return web.Response(status=503, headers={"Retry-After": "3600"})
