"""The caller's live voice on its way to a stream: pieces of any size in, a frame every 20 ms out.

What comes from a microphone over a network comes unevenly. So it is held until there is a little of it, and what has
piled up is dropped: a caller who is late stays late for the rest of the call otherwise.
"""

from __future__ import annotations

from .sound import FRAME_MS, WireFormat

__all__ = ["Microphone"]

HELD_MS = 60
"""Kept back against unevenness, at the start and after each gap."""
MOST_MS = 400
"""More than this is cut down to what is kept back."""


class Microphone:
    """A buffer between a microphone and the stream's clock. Pure: it has no clock of its own."""

    def __init__(self, media_format: WireFormat) -> None:
        self._frame = media_format.frame_bytes
        self._held = self._frame * HELD_MS // FRAME_MS
        self._most = self._frame * MOST_MS // FRAME_MS
        self._sample = media_format.sample_bytes
        self._audio = bytearray()
        self._flowing = False
        self.dropped_bytes = 0

    def push(self, audio: bytes) -> None:
        """Take what the caller said, in wire bytes; half a sample at the end is left out."""
        self._audio += audio[: len(audio) // self._sample * self._sample]
        if len(self._audio) > self._most:
            late = len(self._audio) - self._held
            self.dropped_bytes += late
            del self._audio[:late]

    def frame(self) -> bytes | None:
        """The next 20 ms; None while there is too little."""
        if not self._flowing and len(self._audio) < self._held:
            return None
        self._flowing = len(self._audio) >= self._frame
        if not self._flowing:
            return None
        frame = bytes(self._audio[: self._frame])
        del self._audio[: self._frame]
        return frame
