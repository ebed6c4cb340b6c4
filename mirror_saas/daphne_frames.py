"""Frames past Daphne's queue: how its WebSocket offers :class:`mirror_saas.direct_frames.DirectFrames`.

Autobahn parses a frame in a dozen calls, Daphne puts it into a queue for a task, and Twisted sends what is written on
its loop's next turn, with two system calls to ask when. A call's media needs none of that: whole masked text frames are
read here, and frames are written to the socket at once while nothing waits in front of them. Whatever is not as simple
as that (fragments, control frames, anything wrong, a socket that is full, a ping that is out) takes the long way.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from daphne.ws_protocol import WebSocketProtocol

from mirror_saas.direct_frames import EXTENSION, FrameSplitter, FramesTaken, whole_text_frame


class FramesSocket(FramesTaken, WebSocketProtocol):  # type: ignore[misc]
    """Daphne's WebSocket, whose frames an application may take directly."""

    _split: FrameSplitter | None = None

    def _messages(self) -> asyncio.Queue[Any]:
        queue: asyncio.Queue[Any] = self.application_queue
        return queue

    def dataReceived(self, data: bytes) -> None:
        if self._split is None:
            if self._on_text is None or self.data or self.current_frame is not None:
                super().dataReceived(data)
                return
            # Autobahn stands between two frames, and from now on it always will.
            self._split = FrameSplitter(self.maxFramePayloadSize)
        if self._split.between and self._read(data):
            return
        for frame in self._split.feed(data):
            if not self._read(frame):
                super().dataReceived(frame)

    def _read(self, data: bytes) -> bool:
        """Take ``data`` in if it is one text message and nothing else goes on; False: Autobahn has to."""
        if (
            self.state != self.STATE_OPEN
            or self.inside_message
            or self.autoPingTimeoutCall is not None
            or self.muted
            or (text := whole_text_frame(data)) is None
        ):
            return False
        self.last_ping = time.monotonic()  # when it was last heard from, by which Daphne's pings go
        self._hand_over(self._on_text, text)
        return True

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self._on_text is None or self.muted:
            super().onMessage(payload, isBinary)
            return
        self.last_ping = time.monotonic()
        if isBinary:
            self._hand_over(self._on_binary, payload)
        else:
            self._hand_over(self._on_text, payload.decode("utf-8"))

    def _write(self, data: bytes) -> None:
        if self.state != self.STATE_OPEN:
            return
        transport = self.transport
        # Twisted's buffers; were they called otherwise, everything would take its way.
        waits = transport.dataBuffer or getattr(transport, "_tempDataBuffer", True)
        if waits or self.send_queue or transport.disconnecting or not transport.connected:
            self.sendData(data)
            return
        sent = transport.writeSomeData(data)
        if not isinstance(sent, int):
            self.sendData(data)  # the connection broke: Twisted finds out by itself, and tells whom it has to
        elif sent < len(data):
            self.sendData(data[sent:])


def frames_offer(protocol: Any, scope: dict[str, Any]) -> None:
    """Offer what `protocol` has beyond ASGI to the application of `scope`."""
    if isinstance(protocol, FramesSocket):
        scope.setdefault("extensions", {})[EXTENSION] = protocol
