"""The recorder: takes what happened in calls, acknowledges it, and brings it into PostgreSQL.

    recorder = Recorder(journal_dir, dsn, announce=announce)
    recorder.record(event)          # the call path: queues, never blocks, never raises
    await recorder.commit()         # from here on the event survives a killed process and a stopped database

The way of an event: queue → redaction → journal (writer.py) → PostgreSQL (drain.py) → `announce`.
One recorder per process and event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final
from uuid import UUID

from supervision.recorder.events import RecordEvent
from supervision.recorder.journal import JournalUnavailable
from supervision.recorder.writer import JournalLimits, JournalWriter, Redact

__all__ = ["Announce", "JournalUnavailable", "Recorder"]

# Called after a batch with the newest `seq` of a call that reached PostgreSQL.
Announce = Callable[[UUID, UUID, int], Awaitable[None]]

_EARLY_EVENTS: Final = 1000


def _as_it_is(event: RecordEvent) -> RecordEvent:
    return event


class Recorder:
    """See the module. All methods belong to one event loop, the one on which `start` ran."""

    def __init__(
        self,
        journal_dir: Path,
        dsn: str,
        *,
        announce: Announce | None = None,
        redact: Redact = _as_it_is,
        limits: JournalLimits | None = None,
    ) -> None:
        """`dsn` logs in as mirror_app. `redact` runs in the journal's thread, before anything is written; an event that
        it fails on is not written. Nothing is opened before `start` or the first event."""
        self._directory = Path(journal_dir)
        self._dsn = dsn
        self._announce = announce
        self._redact = redact
        self._limits = limits or JournalLimits()
        self._writer: JournalWriter | None = None
        self._early: deque[RecordEvent] = deque(maxlen=_EARLY_EVENTS)

    async def start(self) -> None:
        """Start the journal and the drain on the running loop. A second call does nothing.

        A journal or database that does not work yet is no error here: both are tried again, and `commit` tells.
        """
        self._start()

    def _start(self) -> JournalWriter:
        if self._writer is None:
            self._writer = JournalWriter(
                directory=self._directory,
                limits=self._limits,
                redact=self._redact,
                loop=asyncio.get_running_loop(),
                on_written=self._written,
            )
            self._writer.start()
            while self._early:
                self._writer.record(self._early.popleft())
        return self._writer

    def _written(self) -> None:
        pass

    def record(self, event: RecordEvent) -> None:
        """Queue `event` for the journal. Never blocks and never raises."""
        writer = self._writer
        if writer is None:
            try:
                writer = self._start()
            except RuntimeError:
                # No loop runs yet: kept until one does.
                self._early.append(event)
                return
        writer.record(event)

    async def commit(self, call_id: UUID | None = None) -> None:
        """Return when everything recorded so far is on disk; raises JournalUnavailable.

        A lost event makes commits fail for a second: those of its own call, and those that name no call.
        """
        await self._start().commit(call_id)

    async def drained(self, timeout_s: float) -> None:
        """Return when everything recorded so far is in PostgreSQL or set aside; raises TimeoutError."""
        raise NotImplementedError

    async def aclose(self, timeout_s: float = 10.0) -> None:
        """Bring what `timeout_s` allows to PostgreSQL and close; the rest stays in the journal for the next start."""
        if self._writer is not None:
            await self._writer.close()
            self._writer = None
