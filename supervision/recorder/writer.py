"""The thread that writes the journal: everything recorded while one commit was under way is the next commit.

The call path only appends to a queue. The thread encodes, writes and tells the event loop; an event that nobody waits
for joins the next commit within `linger_s`, one that somebody waits for is committed at once.

When the journal fails or fills, events wait in memory up to `max_backlog_bytes`. Detail (events.DETAIL_KINDS) is given
up first, then the newest of the rest; both are counted, and whoever waits for a commit is told JournalUnavailable. A
call of which detail was left out says so in its record: `detail_dropped` of its `call.ended`.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from uuid import UUID

import orjson

from supervision.recorder.events import DETAIL_KINDS, CallEnded, RecordEvent
from supervision.recorder.journal import Journal, JournalUnavailable, Row, folder_bytes, is_damage, row_of

logger = logging.getLogger(__name__)

Redact = Callable[[RecordEvent], RecordEvent]

_ROWS_PER_COMMIT: Final = 2000
# A transaction is in the write-ahead log as a whole before any of it is in the file.
_BYTES_PER_COMMIT: Final = 4 << 20
# How often the folder is measured: other journals in it come and go.
_MEASURE_EVERY_S: Final = 1.0
_RETRY_FIRST_S: Final = 0.25
_RETRY_MOST_S: Final = 5.0
# What PostgreSQL has leaves the journal within this time: a commit of its own for it is the price of several events.
_FORGET_WITHIN_S: Final = 1.0
# Commits of a call that lost an event are refused this long after it: whoever recorded the event asks within that time.
_LOSS_MEMORY_S: Final = 1.0
# Calls that are remembered for having lost detail; one that never ends is forgotten for newer ones.
_THINNED_CALLS: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalLimits:
    """What a journal may cost.

    `max_bytes` is what all journals in the folder may take together, those of dead processes and those that were set
    aside included. From `detail_fullness`, a share of what this process may write or queue, detail is left out.
    """

    max_bytes: int = 1 << 30
    detail_fullness: float = 0.8
    max_queued_events: int = 20_000
    max_backlog_bytes: int = 64 << 20
    linger_s: float = 0.02


@dataclass(slots=True)
class WriterCounts:
    """Counters since the process started."""

    recorded: int = 0
    written: int = 0
    commits: int = 0
    detail_dropped: int = 0
    lost: int = 0
    unredacted: int = 0
    quarantined: int = 0
    quarantine_discarded: int = 0
    failures: int = 0


class JournalWriter:
    """Owns the journal file of this process. `record`, `commit` and `close` belong to the event loop's thread."""

    def __init__(
        self,
        *,
        directory: Path,
        limits: JournalLimits,
        redact: Redact,
        loop: asyncio.AbstractEventLoop,
        on_written: Callable[[], None],
    ) -> None:
        """`on_written` is called on `loop` after each commit that wrote events."""
        self._directory = directory
        self._limits = limits
        self._redact = redact
        self._loop = loop
        self._on_written = on_written
        self.counts = WriterCounts()
        # Shared with the thread; deque operations are atomic.
        self._queue: deque[RecordEvent] = deque()
        self._drained: deque[Sequence[int]] = deque()
        self._refused: deque[tuple[int, str]] = deque()
        self._scrubbing: deque[Sequence[tuple[bytes, bytes]]] = deque()
        # How much detail of each call was left out; both sides count.
        self._thinned: Counter[bytes] = Counter()
        self._thinning = threading.Lock()
        self._awake = False
        self._stopping = False
        self._wake = threading.Event()
        self._flush = threading.Event()
        # The loop's side.
        self._waiters: deque[tuple[int, int, UUID | None, asyncio.Future[None]]] = deque()
        self._queued = 0
        self._written_upto = 0
        self.last_position = 0
        self._lost: dict[UUID, float] = {}
        self._detail_queue = int(limits.max_queued_events * limits.detail_fullness)
        self._closed: asyncio.Future[None] = loop.create_future()
        self._tidying: asyncio.TimerHandle | None = None
        # The thread's side.
        self._journal: Journal | None = None
        self._backlog: deque[tuple[int, Row | None]] = deque()
        self._backlog_bytes = 0
        self._taken = 0
        self._forgetting: list[int] = []
        # A journal that replaces a damaged one numbers on, so that no position ever names two events.
        self._last_position = 0
        self._failing = False
        self._nearly_full = False
        self._measured_at = float("-inf")
        self._retry_s = _RETRY_FIRST_S
        self._cycles = 0
        self._thread = threading.Thread(target=self._run, name="mirror-journal", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def journal_path(self) -> Path | None:
        """The file of this process, None until it could be made."""
        journal = self._journal
        return journal.path if journal is not None else None

    # On the event loop

    def record(self, event: RecordEvent) -> None:
        """Queue `event`. Never blocks and never raises."""
        self.counts.recorded += 1
        queued = len(self._queue)
        if queued >= self._detail_queue and (queued >= self._limits.max_queued_events or event.kind in DETAIL_KINDS):
            self._overflow(event)
            return
        self._queue.append(event)
        self._queued += 1
        self._rouse()

    def _overflow(self, event: RecordEvent) -> None:
        if event.kind in DETAIL_KINDS:
            self._leave_out([event.call_id.bytes])
        else:
            self._lose([event.call_id], "the journal is not keeping up")

    def _leave_out(self, calls: Iterable[bytes]) -> None:
        """Count detail that is left out, one of `calls` for each event. Both sides may call it."""
        with self._thinning:
            for call in calls:
                self.counts.detail_dropped += 1
                self._thinned[call] += 1
                if len(self._thinned) > _THINNED_CALLS:
                    del self._thinned[next(iter(self._thinned))]

    def _lose(self, calls: Sequence[UUID], reason: str) -> None:
        """An event of each of `calls` will never be written: their commits fail, those under way and the next ones."""
        self.counts.lost += len(calls)
        logger.error("%d events of the record lost, %d so far: %s", len(calls), self.counts.lost, reason)
        now = self._loop.time()
        self._lost = {call: at for call, at in self._lost.items() if now - at < _LOSS_MEMORY_S}
        self._lost.update(dict.fromkeys(calls, now))
        for _, _, call, waiter in self._waiters:
            if not waiter.done() and (call is None or call in self._lost):
                waiter.set_exception(JournalUnavailable(f"an event was lost: {reason}"))

    def _has_lost(self, call_id: UUID | None) -> bool:
        if not self._lost:
            return False
        now = self._loop.time()
        return any(now - at < _LOSS_MEMORY_S for call, at in self._lost.items() if call_id is None or call == call_id)

    async def commit(self, call_id: UUID | None = None) -> None:
        """Return when all that was recorded before this call is on disk; raises JournalUnavailable.

        With `call_id`, a loss of another call's event does not matter.
        """
        if self._has_lost(call_id):
            raise JournalUnavailable("an event of the record was lost")
        if self._written_upto >= self._queued:
            return
        if self._stopping:
            raise JournalUnavailable("the recorder is closing")
        written: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append((self._queued, self._cycles, call_id, written))
        self._flush.set()
        self._wake.set()
        await written

    def forget(self, positions: Sequence[int]) -> None:
        """Delete events that PostgreSQL has, with the next commit: of new events, or of this alone when none come."""
        self._drained.append(positions)
        if self._tidying is None:
            self._tidying = self._loop.call_later(_FORGET_WITHIN_S, self._tidy)

    def _tidy(self) -> None:
        self._tidying = None
        if self._drained:
            self._rouse()

    def _rouse(self) -> None:
        """Have the thread look at what has come, unless it is about to."""
        if not self._awake:
            self._awake = True
            self._wake.set()

    def quarantine(self, position: int, reason: str) -> None:
        """Set an event aside that PostgreSQL refuses, with one of the next commits."""
        self._refused.append((position, reason))
        self._rouse()

    def scrub(self, calls: Sequence[tuple[bytes, bytes]]) -> None:
        """Delete what was set aside of erased calls `(tenant, call)`, with one of the next commits."""
        self._scrubbing.append(calls)
        self._rouse()

    async def close(self) -> None:
        """Write what is queued and close the file; it is removed when nothing is left in it."""
        self._stopping = True
        if self._tidying is not None:
            self._tidying.cancel()
        self._flush.set()
        self._wake.set()
        await self._closed

    def _settle(self, upto: int, problem: str | None, position: int = 0) -> None:
        """Everything up to ticket `upto` is written; with a `problem`, nobody who waits for it will see it written."""
        if problem is None:
            self._written_upto = max(self._written_upto, upto)
            # The position of the newest event on disk.
            self.last_position = max(self.last_position, position)
        while self._waiters and self._waiters[0][0] <= upto:
            _, _, _, waiter = self._waiters.popleft()
            if waiter.done():
                continue
            if problem is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(JournalUnavailable(problem))

    def _settle_failure(self, cycle: int, problem: str) -> None:
        """A cycle failed. It speaks only for those who asked before it began: the next one is for the others."""
        while self._waiters and self._waiters[0][1] < cycle:
            _, _, _, waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(JournalUnavailable(problem))

    # In the thread

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._wake.wait(timeout=self._retry_s if self._failing else None)
                self._flush.wait(timeout=self._limits.linger_s)
                self._cycle()
            self._cycle()
            self._close_journal()
        except Exception:
            # Without the thread nothing is recorded any more: whoever waits must know.
            logger.exception("the journal writer stopped")
            self._tell(self._settle, 1 << 62, "the journal writer stopped")
        finally:
            self._tell(self._thread_ended)

    def _thread_ended(self) -> None:
        self._stopping = True
        self._settle(1 << 62, "the recorder is closed")
        if not self._closed.done():
            self._closed.set_result(None)

    def _cycle(self) -> None:
        """One commit of everything that came in; when it fails, everything stays for the next."""
        self._wake.clear()
        self._flush.clear()
        # A commit() from here on sets `_flush` again, so it gets a cycle of its own.
        self._cycles += 1
        # From here on a record() wakes the thread again; what came before is in the queue already.
        self._awake = False
        self._take_queue()
        try:
            journal = self._open()
            self._write_drained(journal)
            while self._backlog:
                self._write_some(journal)
        except (sqlite3.Error, OSError) as error:
            self._failed(error)
            return
        if self._failing:
            self._failing = False
            self._retry_s = _RETRY_FIRST_S
            logger.warning("the journal works again")
        self._tell(self._settle, self._taken, None)

    def _take_queue(self) -> None:
        queue = self._queue
        while queue:
            event = queue.popleft()
            self._taken += 1
            row = self._encode(event)
            if row is not None:
                self._backlog_bytes += row.size
            self._backlog.append((self._taken, row))
        # Taken one by one: the loop appends while this thread is at work.
        while self._drained:
            self._forgetting += self._drained.popleft()
        if self._backlog_bytes > self._limits.max_backlog_bytes:
            self._shrink_backlog()

    def _encode(self, event: RecordEvent) -> Row | None:
        # A hook or a value that fails costs its own event: writing it unredacted is worse than not having it.
        step = "redacted"
        try:
            redacted = self._redact(event)
            step = "stored"
            return row_of(redacted)
        except Exception as error:
            problem = f"an event of kind {event.kind} cannot be {step} ({type(error).__name__})"
            if step == "redacted":
                self.counts.unredacted += 1
            if event.kind in DETAIL_KINDS:
                self._leave_out([event.call_id.bytes])
                logger.error("%s and is left out", problem)
            else:
                self._tell(self._lose, [event.call_id], problem)
            return None

    def _shrink_backlog(self) -> None:
        self._drop_detail_of_backlog()
        lost = []
        while self._backlog and self._backlog_bytes > self._limits.max_backlog_bytes:
            _, row = self._backlog.pop()
            if row is not None:
                self._backlog_bytes -= row.size
                lost.append(UUID(bytes=row.call))
        if lost:
            self._tell(self._lose, lost, "the journal has not been writable for too long")

    def _drop_detail_of_backlog(self) -> None:
        kept: deque[tuple[int, Row | None]] = deque()
        left_out = []
        for ticket, row in self._backlog:
            if row is not None and row.kind in DETAIL_KINDS:
                self._backlog_bytes -= row.size
                left_out.append(row.call)
            else:
                kept.append((ticket, row))
        self._backlog = kept
        self._leave_out(left_out)

    def _open(self) -> Journal:
        if self._journal is None:
            self._journal = Journal.create(self._directory, max_bytes=self._share(), last_position=self._last_position)
        elif time.monotonic() - self._measured_at >= _MEASURE_EVERY_S:
            self._journal.allow(self._share())
        return self._journal

    def _share(self) -> int:
        """What the other journals in the folder leave of what all of them may take."""
        self._measured_at = time.monotonic()
        own = self._journal.path if self._journal is not None else None
        return self._limits.max_bytes - folder_bytes(self._directory, but=own)

    def _write_drained(self, journal: Journal) -> None:
        """Deletions go first: in a full journal they make the room for what is to be written."""
        while self._refused:
            position, reason = self._refused[0]
            journal.quarantine(position, reason)
            self.counts.quarantined += 1
            self._refused.popleft()
        if self._forgetting and (self._failing or not self._backlog):
            journal.forget(self._forgetting)
            self._forgetting = []
        while self._scrubbing:
            journal.scrub(self._scrubbing[0])
            self._scrubbing.popleft()

    def _write_some(self, journal: Journal) -> None:
        nearly_full = journal.fullness >= self._limits.detail_fullness
        if nearly_full != self._nearly_full:
            self._nearly_full = nearly_full
            if nearly_full:
                logger.warning("the journal is nearly full, detail is left out")
            else:
                logger.warning("the journal has room again; %d details left out so far", self.counts.detail_dropped)
        if nearly_full:
            self._drop_detail_of_backlog()
            self._thin_quarantine(journal)
        group = self._next_group()
        rows = [self._told(row) for _, row in group if row is not None]
        if rows or self._forgetting:
            journal.append(rows, drained=self._forgetting)
            self.counts.commits += 1
            self.counts.written += len(rows)
        self._forgetting = []
        for _, row in group:
            self._backlog.popleft()
            if row is not None:
                self._backlog_bytes -= row.size
        if group:
            self._tell(self._settle, group[-1][0], None, journal.last_position)
        if rows:
            self._tell(self._on_written)
        if self._thinned:
            with self._thinning:
                for row in rows:
                    if row.kind == CallEnded.KIND:
                        self._thinned.pop(row.call, None)

    def _next_group(self) -> list[tuple[int, Row | None]]:
        """What goes into the next commit, at least one event."""
        group: list[tuple[int, Row | None]] = []
        size = 0
        for ticket, row in self._backlog:
            if row is not None:
                size += row.size
            if group and (len(group) == _ROWS_PER_COMMIT or size > _BYTES_PER_COMMIT):
                break
            group.append((ticket, row))
        return group

    def _told(self, row: Row) -> Row:
        """The end of a call says how much detail of it was left out."""
        if row.kind != CallEnded.KIND or row.call not in self._thinned:
            return row
        return replace(row, data=orjson.dumps({**orjson.loads(row.data), "detail_dropped": self._thinned[row.call]}))

    def _thin_quarantine(self, journal: Journal) -> None:
        thinned = journal.thin_quarantine()
        if thinned:
            self.counts.quarantine_discarded += thinned
            logger.error("the journal is nearly full: %d events that were set aside are deleted", thinned)

    def _failed(self, error: Exception) -> None:
        self.counts.failures += 1
        problem = f"the journal cannot be written: {type(error).__name__}: {error}"
        if not self._failing:
            logger.error("%s; events wait in memory", problem)
        else:
            self._retry_s = min(self._retry_s * 2, _RETRY_MOST_S)
        self._failing = True
        self._drop_detail_of_backlog()
        if is_damage(error):
            self._abandon_damaged()
        self._tell(self._settle_failure, self._cycles, problem)

    def _abandon_damaged(self) -> None:
        """SQLite cannot read the file any more: keep it for a person and go on with a new one."""
        journal, self._journal = self._journal, None
        if journal is None:
            return
        self._last_position = journal.last_position
        self._forgetting = []
        self._refused.clear()
        try:
            logger.error("the journal is damaged; it is kept as %s", journal.set_aside())
        except OSError as error:
            logger.error("the damaged journal could not be renamed: %s", error)

    def _close_journal(self) -> None:
        journal = self._journal
        if journal is None:
            return
        try:
            remove = not self._backlog and journal.is_empty
        except sqlite3.Error:
            remove = False
        if self._backlog:
            logger.error("%d events could not be written to the journal before the process ends", len(self._backlog))
        journal.close(remove=remove)

    def _tell(self, call: Callable[..., None], *args: object) -> None:
        # A loop that was closed without closing the recorder has nobody left to tell.
        if not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(call, *args)
            except RuntimeError:
                logger.debug("the event loop closed before the journal did")
