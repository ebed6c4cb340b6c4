"""One timer that goes off at the earliest of the times it was set to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Alarm:
    """Calls `ring` once, at the earliest loop time (seconds) that it was set to since it last rang.

    It keeps that time itself: what `loop.call_at` returns for a time that has passed need not know it (uvloop's does
    not).
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._handle: asyncio.Handle | None = None
        self._at = 0.0

    def set(self, when: float) -> None:
        """Ring at `when`, or earlier if that was asked for before. Needs a running loop."""
        if self._handle is not None:
            if self._at <= when:
                return
            self._handle.cancel()
        self._at = when
        self._handle = asyncio.get_running_loop().call_at(when, self._rings)

    def cancel(self) -> None:
        """Do not ring; it can be set again."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _rings(self) -> None:
        self._handle = None
        self._ring()
