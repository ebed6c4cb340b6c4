"""The recorder: takes what happened in calls, acknowledges it, and brings it into PostgreSQL.

    recorder = Recorder(journal_dir, dsn, announce=announce)
    recorder.record(event)          # the call path: queues, never blocks, never raises
    await recorder.commit()         # from here on the event survives a killed process and a stopped database

The way of an event: queue → redaction → journal (writer.py) → PostgreSQL (drain.py) → `announce`.
One recorder per process and event loop.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from supervision.recorder.announce import announce_to_channel_layer
from supervision.recorder.drain import Announce, Drain, DrainCounts
from supervision.recorder.events import RecordEvent
from supervision.recorder.journal import JournalUnavailable
from supervision.recorder.writer import JournalLimits, JournalWriter, Redact, WriterCounts

__all__ = ["Announce", "JournalLimits", "JournalUnavailable", "Recorder", "RecorderCounts"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RecorderCounts:
    """Counters since the process started, for metrics and health."""

    writer: WriterCounts
    drain: DrainCounts


def _as_it_is(event: RecordEvent) -> RecordEvent:
    return event


class Recorder:
    """See the module. All methods belong to one event loop, the one on which `start` ran."""

    def __init__(
        self,
        journal_dir: Path,
        dsn: str,
        *,
        announce: Announce | None = announce_to_channel_layer,
        redact: Redact = _as_it_is,
        limits: JournalLimits | None = None,
    ) -> None:
        """`dsn` logs in as mirror_app. `redact` runs in the journal's thread, before anything is written; an event that
        it fails on is not written. `announce` hears of calls that changed, None for nobody. Nothing is opened before
        `start` or the first event."""
        self._directory = Path(journal_dir)
        self._dsn = dsn
        self._announce = announce
        self._redact = redact
        self._limits = limits or JournalLimits()
        self._writer: JournalWriter | None = None
        self._drain: Drain | None = None

    async def start(self) -> None:
        """Start the journal and the drain on the running loop. A second call does nothing.

        A journal or database that does not work yet is no error here: both are tried again, and `commit` tells.
        """
        self._started()

    def _started(self) -> JournalWriter:
        writer = self._writer
        if writer is None:
            writer = self._writer = JournalWriter(
                directory=self._directory,
                limits=self._limits,
                redact=self._redact,
                loop=asyncio.get_running_loop(),
                on_written=self._written,
            )
            self._drain = Drain(
                writer=writer,
                directory=self._directory,
                limits=self._limits,
                dsn=self._dsn,
                announce=self._announce,
            )
            writer.start()
            self._drain.start()
        return writer

    def _written(self) -> None:
        if self._drain is not None:
            self._drain.wake()

    def record(self, event: RecordEvent) -> None:
        """Queue `event` for the journal. Never blocks and never raises on a running loop, where it belongs."""
        writer = self._writer
        if writer is None:
            writer = self._started()
        writer.record(event)

    async def commit(self, call_id: UUID | None = None) -> None:
        """Return when everything recorded so far is on disk; raises JournalUnavailable.

        A lost event makes commits fail for a second: those of its own call, and those that name no call.
        """
        await self._started().commit(call_id)

    async def drained(self, timeout_s: float) -> None:
        """Return when PostgreSQL has, or refused for good, everything recorded so far and what dead processes left.

        Raises TimeoutError after `timeout_s`, JournalUnavailable when not even the journal has it.
        """
        writer = self._started()
        async with asyncio.timeout(timeout_s):
            await writer.commit()
            if self._drain is not None:
                await self._drain.drained()

    async def aclose(self, timeout_s: float = 10.0) -> None:
        """Bring what `timeout_s` allows to PostgreSQL and close; the rest stays in the journal for the next start."""
        writer, drain = self._writer, self._drain
        if writer is None or drain is None:
            return
        try:
            await self.drained(timeout_s)
        except (TimeoutError, JournalUnavailable) as problem:
            why = str(problem) or f"not done within {timeout_s:g} s"
            logger.warning("the recorder closes before everything is in PostgreSQL: %s", why)
        await drain.aclose()
        await writer.close()
        self._writer = self._drain = None

    @property
    def counts(self) -> RecorderCounts:
        """What was recorded, written, stored, dropped and refused so far."""
        if self._writer is None or self._drain is None:
            return RecorderCounts(WriterCounts(), DrainCounts())
        return RecorderCounts(self._writer.counts, self._drain.counts)
