"""When a process that carries calls looks for garbage.

Python's full collection stops every call while it walks through all live objects: some 60 ms with 150 calls, an audible
gap for an agent that speaks without a lead. Left to itself it comes several times a minute. So what is loaded before
calls begin is never looked through again, and while calls run full collections are seldom.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from typing import Final

LOOK_S: Final = 5.0
# While calls run: what they leave in cycles waits so long, and is less than they take themselves.
MOST_S: Final = 600.0
# Collections of the middle generation before Python would make a full one by itself.
NEVER: Final = 1_000_000_000


class Heap:
    """Full collections of one process. Used on its event loop."""

    def __init__(
        self,
        calls: Callable[[], int],
        *,
        clock: Callable[[], float] = time.monotonic,
        collect: Callable[[], object] = gc.collect,
    ) -> None:
        """`calls` tells how many calls run now."""
        self._calls = calls
        self._clock = clock
        self._collect = collect
        self._collected_at = clock()
        self._had_calls = False
        self._usual: tuple[int, int, int] | None = None
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Set aside what is loaded by now, and decide about collections from now on. Needs a running loop."""
        gc.collect()
        gc.freeze()
        self._usual = gc.get_threshold()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        """Leave collecting to Python again."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._leave(False)
        self._usual = None

    def look(self) -> None:
        """Take collecting from Python while calls run, and collect then every ten minutes, and once after the last."""
        running, now = self._calls() > 0, self._clock()
        if running != self._had_calls:
            self._leave(running)
        if running and not self._had_calls:
            self._collected_at = now
        elif (running and now - self._collected_at >= MOST_S) or (self._had_calls and not running):
            self._collect()
            self._collected_at = now
        self._had_calls = running

    def _leave(self, running: bool) -> None:
        if self._usual is not None:
            gc.set_threshold(*self._usual[:2], NEVER if running else self._usual[2])

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()
