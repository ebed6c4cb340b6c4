"""The Plivo leg's sending side: frames go out from plain callbacks, in order, without a task switch each.

An ASGI server's `send` is a coroutine function, but most sends finish without ever waiting (Daphne's always do). Such a
send is driven to its end on the spot; only when one really has to wait does a task take over, with the frames behind it
queued in order. Where the server offers its frames directly, they do not pass through `send` at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

from mirror_saas.direct_frames import DirectFrames

logger = logging.getLogger(__name__)

Send = Callable[[dict[str, Any]], Awaitable[None]]


class _Rest:
    """What is left of a coroutine that was begun outside of a task and came to a future it must wait for."""

    def __init__(self, work: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._work = work
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        try:
            yield self._waits_for
        except BaseException as problem:
            self._work.throw(problem)
            return
        yield from self._work.__await__()


class PlivoLeg:
    """Sends frames to Plivo. After :meth:`close` nothing is sent any more."""

    def __init__(self, send: Send, frames: DirectFrames | None = None) -> None:
        """``send`` is the server's; with ``frames`` only the close goes through it."""
        self._send = send
        self._frames = frames
        self._backlog: deque[dict[str, Any]] = deque()
        self._writer: asyncio.Task[None] | None = None
        self.closed = False

    def send_text(self, text: str) -> None:
        """Send a text frame as it is."""
        if not text or self.closed:  # Daphne drops empty text frames, and they mean nothing to Plivo
            return
        if self._frames is not None:
            try:
                self._frames.send_text(text)
            except Exception:
                logger.debug("A frame to Plivo could not be sent", exc_info=True)
        else:
            self._put({"type": "websocket.send", "text": text})

    def send_binary(self, data: bytes) -> None:
        """Send a binary frame as it is."""
        if not data or self.closed:
            return
        if self._frames is not None:
            try:
                self._frames.send_binary(data)
            except Exception:
                logger.debug("A frame to Plivo could not be sent", exc_info=True)
        else:
            self._put({"type": "websocket.send", "bytes": data})

    def close(self, code: int) -> None:
        """Close towards Plivo, behind what was sent before."""
        if not self.closed:
            self._put({"type": "websocket.close", "code": code})
            self.closed = True

    def gone(self) -> None:
        """Plivo closed: there is nobody to send to."""
        self.closed = True
        self._backlog.clear()

    def _put(self, message: dict[str, Any]) -> None:
        if self.closed:
            return
        if self._writer is not None:
            self._backlog.append(message)
            return
        work: Any = self._send(message)
        try:
            waits_for = work.send(None)
        except StopIteration:
            return
        except Exception:
            # The socket broke under us; its disconnect message is on its way.
            logger.debug("A frame to Plivo could not be sent", exc_info=True)
            return
        self._writer = asyncio.get_running_loop().create_task(self._write(_Rest(work, waits_for)))

    async def _write(self, rest: _Rest) -> None:
        try:
            await rest
            while self._backlog:
                await self._send(self._backlog.popleft())
        except Exception:
            logger.debug("A frame to Plivo could not be sent", exc_info=True)
            self._backlog.clear()
        finally:
            self._writer = None
