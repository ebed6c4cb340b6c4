"""What our servers offer a stream beyond ASGI: its frames as plain calls, past queues and tasks.

ASGI hands over each frame through a queue to a task that waits for it, and takes each through a coroutine. With a
hundred frames a second on every call that is most of what a relayed call costs. Servers offer this as the extension
:data:`EXTENSION` of a WebSocket's scope; an application that does not take it gets its frames as ever, and one that
takes it works on other servers without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from struct import Struct
from typing import Any, Final, Protocol

try:
    from websockets.speedups import apply_mask as _apply_mask
except ImportError:  # a build without its C part: slower, the same result
    from websockets.utils import apply_mask as _apply_mask

EXTENSION: Final = "mirror.frames"
FAILED: Final = "mirror.failed"
"""The type of the message by which `receive()` tells what a taker of frames raised, under `problem`."""

_HEADER_16: Final = Struct("!BBH").pack
_HEADER_64: Final = Struct("!BBQ").pack
_OPCODES: Final = frozenset((0, 1, 2, 8, 9, 10))

OnText = Callable[[str], None]
OnBinary = Callable[[bytes], None]


class DirectFrames(Protocol):
    """The frames of one accepted WebSocket. Used from the event loop's thread only."""

    def take(self, on_text: OnText, on_binary: OnBinary) -> None:
        """Have every message handed to these from now on, in order, first those that wait already. `receive()` still
        gives the disconnect, or a message of the type :data:`FAILED` when one of them raised; then nothing more is
        handed over."""

    def release(self) -> None:
        """Drop every message from now on: nobody wants them any more."""

    def send_text(self, text: str) -> None:
        """Send a text frame at once, behind all that was sent before; nothing when the socket is closing."""

    def send_binary(self, data: bytes) -> None:
        """Send a binary frame likewise."""


def direct_frames(scope: dict[str, Any]) -> DirectFrames | None:
    """What the server of this WebSocket offers; None when it has nothing but ASGI."""
    found: DirectFrames | None = (scope.get("extensions") or {}).get(EXTENSION)
    return found


def frame_header(opcode: int, length: int) -> bytes:
    """The head of an unfragmented, unmasked frame with a payload of `length` bytes (RFC 6455, section 5.2)."""
    first = 0x80 | opcode
    if length < 126:
        return bytes((first, length))
    if length < 65536:
        return _HEADER_16(first, 126, length)
    return _HEADER_64(first, 127, length)


def whole_text_frame(data: bytes) -> str | None:
    """The text of a masked, unfragmented text frame of less than 64 KiB, when ``data`` is exactly one.

    None for anything else, right or wrong: then the server's own parser has to look at it.
    """
    if len(data) < 6 or data[0] != 0x81:
        return None
    length = data[1] - 0x80
    head = 6
    if length == 126:
        length = data[2] << 8 | data[3]
        head = 8
        if length < 126:
            return None
    elif not 0 <= length < 126:
        return None
    if len(data) != head + length:
        return None
    try:
        return _apply_mask(data[head:], data[head - 4 : head]).decode("utf-8")
    except UnicodeDecodeError:
        return None


class FramesTaken:
    """What the servers' sockets have in common as :class:`DirectFrames`; to be mixed in before the server's class."""

    _on_text: OnText | None = None
    _on_binary: OnBinary | None = None

    def _messages(self) -> asyncio.Queue[Any]:
        """The queue behind the application's `receive()`."""
        raise NotImplementedError

    def _write(self, data: bytes) -> None:
        """Write whole frames to the client, unless the socket is closing."""
        raise NotImplementedError

    def take(self, on_text: OnText, on_binary: OnBinary) -> None:
        self._on_text, self._on_binary = on_text, on_binary
        messages = self._messages()
        waiting = []
        while not messages.empty():
            waiting.append(messages.get_nowait())
        for message in waiting:
            if message["type"] != "websocket.receive":
                messages.put_nowait(message)
            elif message.get("text") is not None:
                self._hand_over(self._on_text, message["text"])
            else:
                self._hand_over(self._on_binary, message["bytes"])

    def release(self) -> None:
        self._on_text = self._on_binary = _ignore

    def send_text(self, text: str) -> None:
        payload = text.encode()
        self._write(frame_header(1, len(payload)) + payload)

    def send_binary(self, data: bytes) -> None:
        self._write(frame_header(2, len(data)) + data)

    def _hand_over(self, taker: Any, message: str | bytes) -> None:
        try:
            taker(message)
        except Exception as problem:
            self.release()
            self._messages().put_nowait({"type": FAILED, "problem": problem})


def _ignore(message: str | bytes) -> None:
    pass


class FrameSplitter:
    """Cuts what a client sends into whole frames, so that a server's parser sees either all of a frame or none of it.

    ``max_bytes`` is the longest payload. What is no frame that a client may send is given out as it comes, with all
    that follows it: the parser knows best how to refuse it.
    """

    __slots__ = ("_broken", "_held", "_held_bytes", "_max_bytes", "_needed")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._broken = False
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._needed = 0

    @property
    def between(self) -> bool:
        """Whether the next byte is the first of a frame."""
        return not self._held and not self._broken

    def feed(self, data: bytes) -> list[bytes]:
        """The whole frames, in order, that ``data`` makes with what was held."""
        if self._held:
            self._held.append(data)
            self._held_bytes += len(data)
            if self._held_bytes < self._needed:
                return []
            data = b"".join(self._held)
            self._held = []
        frames = []
        at = 0
        while at < len(data):
            size = None if self._broken else self._size(data, at)
            if size is None:
                self._broken = True
                frames.append(data[at:])
                break
            if not size or at + size > len(data):
                self._held = [data[at:]]
                self._held_bytes = len(data) - at
                self._needed = size or self._held_bytes + 1
                break
            frames.append(data[at : at + size])
            at += size
        return frames

    def _size(self, data: bytes, at: int) -> int | None:
        """How long the frame at ``at`` is; 0 while its head is not all there, None when it is none."""
        have = len(data) - at
        if data[at] & 0x70 or data[at] & 0x0F not in _OPCODES:
            return None
        if have < 2:
            return 0
        length = data[at + 1] - 0x80
        if length < 0:
            return None
        head = 6
        if length >= 126:
            extra = 2 if length == 126 else 8
            if have < 2 + extra:
                return 0
            length = int.from_bytes(data[at + 2 : at + 2 + extra], "big")
            head += extra
        return head + length if length <= self._max_bytes else None
