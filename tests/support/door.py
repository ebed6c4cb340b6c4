"""A door in front of a real server: open, shut (connections are refused), or stuck (accepted and never answered).

async with Door(host="127.0.0.1", port=6379) as door:
    ... connect to 127.0.0.1:door.port ...
    await door.shut()
    await door.open()
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self


class Door:
    """Forwards connections to a TCP port, or to a Unix socket (`path`), while it is open."""

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0, path: str | None = None) -> None:
        self.port = 0
        self._target = (host, port, path)
        self._stuck = False
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.shut()

    async def open(self) -> None:
        """Lets connections through, on the same port as before."""
        self._stuck = False
        if self._server is None:
            self._server = await asyncio.start_server(self._enter, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        """Cuts all connections and refuses new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def stick(self) -> None:
        """Passes nothing on any more, in either direction, and cuts nothing."""
        self._stuck = True

    async def _enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        inner = None
        try:
            host, port, path = self._target
            if path is not None:
                inner_reader, inner = await asyncio.open_unix_connection(path)
            else:
                inner_reader, inner = await asyncio.open_connection(host, port)
            self._writers.add(inner)
            await asyncio.gather(self._pass(reader, inner), self._pass(inner_reader, writer))
        except OSError:
            pass  # either end hung up; the other is closed below
        finally:
            for end in (writer, inner):
                if end is not None:
                    self._writers.discard(end)
                    end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if not self._stuck:
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()
