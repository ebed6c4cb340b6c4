"""Ends what runs on a revoked stream key: one question per process for the keys of all its streams.

A revoked key may be an attacker's, so its streams do not finish what they were at. A key that expires or that a
rotation gives an end only lets nobody in any more. While the database cannot be asked, calls go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

from supervision.stream.directory import DirectoryUnavailable

logger = logging.getLogger(__name__)

# With the two seconds that the database may take to answer, a revocation counts within five.
CHECK_S: Final = 2.0

Revoked = Callable[[Collection[UUID]], Awaitable[set[UUID]]]


class WatchedKey:
    """One stream's key. Whoever serves the stream sets `on_revoked`; it is called from the event loop."""

    def __init__(self, key_id: UUID) -> None:
        self.key_id = key_id
        self.revoked = False
        self._on_revoked: Callable[[], None] | None = None

    @property
    def on_revoked(self) -> Callable[[], None] | None:
        """What ends the stream."""
        return self._on_revoked

    @on_revoked.setter
    def on_revoked(self, end: Callable[[], None] | None) -> None:
        self._on_revoked = end
        if self.revoked and end is not None:
            end()

    def revoke(self) -> None:
        """End the stream, now or as soon as it says how."""
        if not self.revoked:
            self.revoked = True
            if self._on_revoked is not None:
                self._on_revoked()


class KeyWatch:
    """The keys that streams of this process came in with. Belongs to one event loop; runs while there is a stream."""

    def __init__(self, revoked: Revoked) -> None:
        """`revoked` says which of some keys do not stand any more; it may raise DirectoryUnavailable."""
        self._ask = revoked
        self._watched: set[WatchedKey] = set()
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def watched(self, key_id: UUID) -> Iterator[WatchedKey]:
        """Watch `key_id` for a stream, until the block ends."""
        watched = WatchedKey(key_id)
        self._watched.add(watched)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        try:
            yield watched
        finally:
            self._watched.discard(watched)
            if not self._watched and self._task is not None:
                self._task.cancel()
                self._task = None

    async def check(self) -> None:
        """Ask once for all keys, and end the streams of those that were revoked."""
        try:
            gone = await self._ask({watched.key_id for watched in self._watched})
        except DirectoryUnavailable:
            return
        for watched in [watched for watched in self._watched if watched.key_id in gone]:
            watched.revoke()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(CHECK_S)
            try:
                await self.check()
            except Exception:
                logger.exception("Asking for revoked stream keys failed; it is tried again")
