"""Brings journals into PostgreSQL: this process's own, and those of processes that died.

    read a batch in order → one transaction per tenant (store.py) → delete it from the journal → announce

- The database is down: back-off with jitter, for ever; the journal grows meanwhile.
- Something is in the way of one tenant's rows: that tenant waits by itself, in order; the others go on.
- An event that PostgreSQL refuses: the batch is halved until the event stands alone, which is set aside.
- A crash between commit and deletion: the batch comes again and changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar
from uuid import UUID

import psycopg

from supervision.recorder.events import RecordEvent
from supervision.recorder.journal import (
    Journal,
    JournalDamaged,
    JournalFormatUnknown,
    JournalLocked,
    JournalReader,
    Row,
    event_of,
    orphans,
)
from supervision.recorder.projections import Unprojectable
from supervision.recorder.store import (
    CallErased,
    Connection,
    EventTaken,
    Fault,
    connect,
    fault_of,
    quarantined_erased,
    store_events,
)
from supervision.recorder.writer import JournalLimits, JournalWriter

logger = logging.getLogger(__name__)

# Called after a batch with the newest `seq` of a call that reached PostgreSQL.
# Takes a tenant, and the newest seq of each of its calls that changed.
Announce = Callable[[UUID, Mapping[UUID, int]], Awaitable[None]]
T = TypeVar("T")

# Of a journal at a time: with many tenants in it, each still gets a transaction that is worth its price.
_READ_ROWS: Final = 2000
_READ_BYTES: Final = 4 << 20
# Of one transaction. Its statements are built on the loop that carries calls, which must not stand still for long.
_BATCH_ROWS: Final = 200
_BATCH_BYTES: Final = 1 << 20
# Batches start at least this far apart, unless somebody waits: an event is in PostgreSQL within 350 ms of its commit.
# Each costs the same however little is in it.
_INTERVAL_S: Final = 0.25
_ADOPT_EVERY_S: Final = 30.0
_BACKOFF_FIRST_S: Final = 0.1
_BACKOFF_MOST_S: Final = 5.0


class DatabaseDown(Exception):
    """Nothing can be stored now; everything stays in its journal."""


@dataclass(slots=True)
class DrainCounts:
    """Counters since the process started."""

    stored: int = 0
    repeated: int = 0
    refused: int = 0
    transactions: int = 0
    outages: int = 0
    adopted: int = 0
    announce_failures: int = 0


class Source(Protocol):
    """A journal as the drain sees it. The methods block and run in the drain's thread."""

    def read(self, *, after: int, limit: int, tenant: bytes | None, upto: int | None) -> list[Row]: ...

    def forget(self, positions: Sequence[int]) -> None: ...

    def quarantine(self, position: int, reason: str) -> None: ...

    def quarantined_calls(self) -> list[tuple[bytes, bytes]]: ...

    def scrub(self, calls: Sequence[tuple[bytes, bytes]]) -> None: ...

    def close(self, *, drained: bool) -> None: ...


class OwnJournal:
    """The journal of this process: read beside its writer, changed through it."""

    def __init__(self, writer: JournalWriter) -> None:
        self._writer = writer
        self._path: Path | None = None
        self._reader: JournalReader | None = None

    def read(self, *, after: int, limit: int, tenant: bytes | None, upto: int | None) -> list[Row]:
        path = self._writer.journal_path
        if path is None:
            return []
        if self._reader is None or path != self._path:
            self.close(drained=False)
            self._reader, self._path = JournalReader(path), path
        return self._reader.read(after=after, limit=limit, tenant=tenant, upto=upto)

    def forget(self, positions: Sequence[int]) -> None:
        self._writer.forget(positions)

    def quarantine(self, position: int, reason: str) -> None:
        self._writer.quarantine(position, reason)

    def quarantined_calls(self) -> list[tuple[bytes, bytes]]:
        return self._reader.quarantined_calls() if self._reader is not None else []

    def scrub(self, calls: Sequence[tuple[bytes, bytes]]) -> None:
        self._writer.scrub(calls)

    def close(self, *, drained: bool) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class OrphanJournal:
    """The journal of a process that died, under our lock. Its file goes when nothing is left in it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    @property
    def path(self) -> Path:
        return self._journal.path

    def read(self, *, after: int, limit: int, tenant: bytes | None, upto: int | None) -> list[Row]:
        return self._journal.read(after=after, limit=limit, tenant=tenant, upto=upto)

    def forget(self, positions: Sequence[int]) -> None:
        self._journal.forget(positions)

    def quarantine(self, position: int, reason: str) -> None:
        self._journal.quarantine(position, reason)

    def quarantined_calls(self) -> list[tuple[bytes, bytes]]:
        return self._journal.quarantined_calls()

    def scrub(self, calls: Sequence[tuple[bytes, bytes]]) -> None:
        self._journal.scrub(calls)

    def close(self, *, drained: bool) -> None:
        self._journal.close(remove=drained and self._journal.is_empty)


@dataclass(slots=True)
class _Waiting:
    """A tenant whose rows something is in the way of, from a position on."""

    position: int
    attempts: int
    retry_at: float


class _Course:
    """How far a source is drained: everything up to `cursor`, but for the tenants in `waiting`."""

    __slots__ = ("cursor", "source", "waiting")

    def __init__(self, source: Source) -> None:
        self.source = source
        self.cursor = 0
        self.waiting: dict[bytes, _Waiting] = {}

    def reached(self, position: int) -> bool:
        return self.cursor >= position and all(waiting.position > position for waiting in self.waiting.values())


@dataclass(frozen=True, slots=True)
class _Item:
    position: int
    event: RecordEvent


class _TenantInTheWay(Exception):
    """The rest of a tenant's batch has to wait, from `position` on."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.position = position
        self.reason = reason


class Drain:
    """The task that drains. Belongs to one event loop."""

    def __init__(
        self, *, writer: JournalWriter, directory: Path, limits: JournalLimits, dsn: str, announce: Announce | None
    ) -> None:
        self._writer = writer
        self._directory = directory
        self._limits = limits
        self._dsn = dsn
        self._announce = announce
        self.counts = DrainCounts()
        self._own = _Course(OwnJournal(writer))
        self._orphans: list[_Course] = []
        # Journals that were adopted in this process's life and kept for what was set aside in them.
        self._finished: set[Path] = set()
        self._adopt_at = 0.0
        self._adopted_once = False
        # How much had been stored when the journals were scrubbed last.
        self._scrubbed_at = 0
        self._connection: Connection | None = None
        self._attempts = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mirror-drain")
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._hurried = 0
        self._progress = asyncio.Event()
        self._changed: dict[UUID, dict[UUID, int]] = {}
        self._announcing = asyncio.Event()
        self._closing = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks.append(asyncio.create_task(self._run(), name="mirror-drain"))
        if self._announce is not None:
            self._tasks.append(asyncio.create_task(self._announcements(self._announce), name="mirror-announce"))

    def wake(self) -> None:
        """There is something new in the journal."""
        self._wake.set()

    async def drained(self) -> None:
        """Return when PostgreSQL has, or refused for good, what is in the journals now, orphans included."""
        target = self._writer.last_position
        self._hurried += 1
        self._hurry.set()
        self._wake.set()
        try:
            while not (self._adopted_once and not self._orphans and self._own.reached(target)):
                await self._progress.wait()
        finally:
            self._hurried -= 1
            if not self._hurried:
                self._hurry.clear()

    async def aclose(self) -> None:
        """Stop where it is; what is not stored stays in the journals."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self._disconnect()
        for course in [*self._orphans, self._own]:
            await self._in_thread(partial(course.source.close, drained=False))
        self._orphans.clear()
        self._thread.shutdown(wait=False)

    # The loop

    async def _run(self) -> None:
        while True:
            try:
                await self._work()
            except DatabaseDown as problem:
                self._note_outage(str(problem))
            except (sqlite3.Error, OSError) as error:
                self._note_outage(f"a journal cannot be read: {type(error).__name__}: {error}")
            except Exception:
                # Whatever it was, what is recorded is in the journal, and the next attempt starts from there.
                logger.exception("the drain failed and starts again")
                self._attempts += 1
            await self._disconnect()
            await asyncio.sleep(_backoff(self._attempts))

    async def _work(self) -> None:
        """Drain until something fails."""
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            self._wake.clear()
            if started >= self._adopt_at:
                await self._adopt()
                await self._scrub()
            more = False
            for course in [*self._orphans, self._own]:
                more |= await self._step(course)
            await self._release_finished()
            self._report_progress()
            if more:
                continue
            await self._sleep(started)

    async def _sleep(self, started: float) -> None:
        """Wait for news, then for company: a batch is worth more than an event."""
        loop = asyncio.get_running_loop()
        due = [self._adopt_at, *(w.retry_at for c in [*self._orphans, self._own] for w in c.waiting.values())]
        try:
            async with asyncio.timeout_at(min(due)):
                await self._wake.wait()
        except TimeoutError:
            return
        try:
            async with asyncio.timeout_at(max(started + _INTERVAL_S, loop.time())):
                await self._hurry.wait()
        except TimeoutError:
            return

    def _report_progress(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()

    def _note_outage(self, problem: str) -> None:
        self._attempts += 1
        if self._attempts == 1:
            self.counts.outages += 1
            logger.warning("the record waits in the journal: %s", problem)

    def _note_success(self) -> None:
        if self._attempts:
            logger.warning("the record reaches PostgreSQL again")
            self._attempts = 0

    # Orphans

    async def _adopt(self) -> None:
        self._adopt_at = asyncio.get_running_loop().time() + _ADOPT_EVERY_S
        known = {course.source.path for course in self._orphans if isinstance(course.source, OrphanJournal)}
        for journal in await self._in_thread(partial(self._adopt_all, known | self._finished)):
            self.counts.adopted += 1
            self._orphans.append(_Course(OrphanJournal(journal)))
        self._adopted_once = True

    def _adopt_all(self, known: set[Path]) -> list[Journal]:
        """In the thread: take every journal whose process is dead."""
        adopted = []
        for path in orphans(self._directory):
            if path in known or path == self._writer.journal_path:
                continue
            try:
                # It was full for its own process; ending its calls needs room.
                adopted.append(Journal.adopt(path, max_bytes=self._limits.max_bytes * 2))
            except JournalLocked:
                continue
            except JournalDamaged as damaged:
                logger.error("a journal of a dead process is damaged; it is kept as %s", damaged)
            except (JournalFormatUnknown, sqlite3.Error, OSError) as error:
                logger.error("the journal %s cannot be adopted: %s", path.name, error)
        return adopted

    async def _scrub(self) -> None:
        """Delete what was set aside of calls that were erased since, and what lingers in the write-ahead logs."""
        courses = [*self._orphans, self._own]
        aside = {course: await self._in_thread(course.source.quarantined_calls) for course in courses}
        erased: set[tuple[bytes, bytes]] = set()
        if any(aside.values()):
            calls = [(UUID(bytes=tenant), UUID(bytes=call)) for held in aside.values() for tenant, call in held]
            try:
                found = await quarantined_erased(await self._connect(), calls)
            except (psycopg.Error, OSError, TimeoutError) as error:
                raise DatabaseDown(_reason(error)) from error
            erased = {(tenant_id.bytes, call_id.bytes) for tenant_id, call_id in found}
        stored = self.counts.stored + self.counts.repeated
        for course in courses:
            gone = [call for call in aside[course] if call in erased]
            if gone or stored != self._scrubbed_at:
                await self._in_thread(partial(course.source.scrub, gone))
        self._scrubbed_at = stored

    async def _release_finished(self) -> None:
        for course in [c for c in self._orphans if not c.waiting]:
            read = partial(course.source.read, after=course.cursor, limit=1, tenant=None, upto=None)
            if await self._in_thread(read):
                continue
            self._orphans.remove(course)
            if isinstance(course.source, OrphanJournal):
                self._finished.add(course.source.path)
            await self._in_thread(partial(course.source.close, drained=True))

    # One batch

    async def _step(self, course: _Course) -> bool:
        """Store the next batch of a source, and what a tenant waited with; whether there may be more."""
        now = asyncio.get_running_loop().time()
        for tenant in [t for t, w in course.waiting.items() if w.retry_at <= now]:
            await self._retry(course, tenant)
        rows, more = await self._read(course, after=course.cursor)
        for tenant, group in _by_tenant(rows):
            if tenant in course.waiting:
                continue
            try:
                await self._store_rows(course, tenant, group)
            except _TenantInTheWay as problem:
                self._postpone(course, tenant, problem, attempts=0)
        if rows:
            course.cursor = rows[-1].position
        return more

    async def _retry(self, course: _Course, tenant: bytes) -> None:
        waiting = course.waiting[tenant]
        after = waiting.position - 1
        try:
            more = True
            while more:
                rows, more = await self._read(course, after=after, tenant=tenant, upto=course.cursor)
                if rows:
                    await self._store_rows(course, tenant, rows)
                    after = rows[-1].position
        except _TenantInTheWay as problem:
            progressed = problem.position > waiting.position
            self._postpone(course, tenant, problem, attempts=0 if progressed else waiting.attempts + 1)
        else:
            del course.waiting[tenant]

    def _postpone(self, course: _Course, tenant: bytes, problem: _TenantInTheWay, *, attempts: int) -> None:
        retry_at = asyncio.get_running_loop().time() + _backoff(attempts + 1)
        course.waiting[tenant] = _Waiting(problem.position, attempts, retry_at)
        if attempts == 0:
            logger.warning("the record of tenant %s waits: %s", UUID(bytes=tenant), problem.reason)

    async def _read(
        self, course: _Course, *, after: int, tenant: bytes | None = None, upto: int | None = None
    ) -> tuple[Sequence[Row], bool]:
        read = partial(course.source.read, after=after, limit=_READ_ROWS, tenant=tenant, upto=upto)
        rows = await self._in_thread(read)
        batch = _within(rows, _READ_BYTES)
        return batch, len(batch) == _READ_ROWS or len(batch) < len(rows)

    async def _store_rows(self, course: _Course, tenant: bytes, rows: Sequence[Row]) -> None:
        while rows:
            batch = _within(rows[:_BATCH_ROWS], _BATCH_BYTES)
            await self._store_batch(course, tenant, batch)
            rows = rows[len(batch) :]

    async def _store_batch(self, course: _Course, tenant: bytes, rows: Sequence[Row]) -> None:
        items = []
        for row in rows:
            try:
                items.append(_Item(row.position, event_of(row)))
            except (ValueError, OverflowError) as error:
                await self._refuse(course, row.position, row.kind, f"damaged row: {type(error).__name__}")
        if items:
            await self._store(course, UUID(bytes=tenant), items)

    async def _store(self, course: _Course, tenant_id: UUID, items: Sequence[_Item]) -> None:
        """Store `items` in order; halves what PostgreSQL refuses until the culprit stands alone."""
        try:
            await self._store_all(course, tenant_id, items)
        except (psycopg.Error, OSError, TimeoutError, EventTaken, CallErased, Unprojectable) as error:
            fault = fault_of(error)
            if fault is Fault.TENANT:
                raise _TenantInTheWay(items[0].position, _reason(error)) from error
            if fault is Fault.DATABASE:
                raise DatabaseDown(_reason(error)) from error
            if len(items) > 1:
                half = len(items) // 2
                await self._store(course, tenant_id, items[:half])
                await self._store(course, tenant_id, items[half:])
                return
            await self._store_lonely(course, tenant_id, items[0], error)

    async def _store_lonely(self, course: _Course, tenant_id: UUID, item: _Item, error: Exception) -> None:
        """An event that points at something that is not there is stored without pointing, if it can be."""
        if isinstance(error, psycopg.errors.ForeignKeyViolation):
            try:
                await self._store_all(course, tenant_id, [item], without_links=True)
                return
            except psycopg.Error as again:
                if fault_of(again) is not Fault.EVENT:
                    raise DatabaseDown(_reason(again)) from again
        await self._refuse(course, item.position, item.event.kind, _reason(error))

    async def _store_all(
        self, course: _Course, tenant_id: UUID, items: Sequence[_Item], *, without_links: bool = False
    ) -> None:
        connection = await self._connect()
        events = [item.event for item in items]
        new = await store_events(connection, tenant_id, events, without_links=without_links)
        self.counts.transactions += 1
        self.counts.stored += new
        self.counts.repeated += len(events) - new
        self._note_success()
        await self._forget(course, [item.position for item in items])
        if self._announce is None:
            return
        changed = self._changed.setdefault(tenant_id, {})
        for event in events:
            changed[event.call_id] = max(changed.get(event.call_id, 0), event.seq)
        self._announcing.set()

    async def _forget(self, course: _Course, positions: list[int]) -> None:
        if isinstance(course.source, OwnJournal):
            course.source.forget(positions)
        else:
            await self._in_thread(partial(course.source.forget, positions))

    async def _refuse(self, course: _Course, position: int, kind: str, reason: str) -> None:
        self.counts.refused += 1
        logger.error("PostgreSQL refuses an event of kind %s, it is set aside: %s", kind, reason)
        if isinstance(course.source, OwnJournal):
            course.source.quarantine(position, reason)
        else:
            await self._in_thread(partial(course.source.quarantine, position, reason))

    # Connection, thread, announcements

    async def _connect(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = await connect(self._dsn)
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def _announcements(self, announce: Announce) -> None:
        # Redis clients may answer a cancellation with an error of their own: being cancelled is not enough to end.
        while not self._closing:
            await self._announcing.wait()
            self._announcing.clear()
            changed, self._changed = self._changed, {}
            for tenant_id, calls in changed.items():
                if self._closing:
                    return
                try:
                    await announce(tenant_id, calls)
                except Exception as error:
                    # A hint that nobody got: the screens read the tables when they are opened.
                    self.counts.announce_failures += 1
                    if self.counts.announce_failures == 1:
                        logger.warning("changes of calls cannot be announced: %s", type(error).__name__)


def _by_tenant(rows: Iterable[Row]) -> list[tuple[bytes, list[Row]]]:
    groups: dict[bytes, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.tenant, []).append(row)
    return list(groups.items())


def _within(rows: Sequence[Row], limit: int) -> Sequence[Row]:
    """The rows at the start that weigh at most `limit` bytes together; at least one."""
    size = 0
    for n, row in enumerate(rows):
        size += row.size
        if size > limit and n:
            return rows[:n]
    return rows


def _backoff(attempts: int) -> float:
    """Seconds to wait after so many failures in a row; spread, so that processes do not come back all at once."""
    most = min(_BACKOFF_FIRST_S * 2.0 ** min(attempts, 16), _BACKOFF_MOST_S)
    return most * random.uniform(0.5, 1.0)  # noqa: S311 (not for secrets)


def _reason(error: Exception) -> str:
    """What went wrong, without what was to be stored: PostgreSQL's own message can quote it."""
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        where = error.diag.constraint_name or error.diag.column_name or error.diag.table_name or ""
        return f"{type(error).__name__} ({error.sqlstate}) {where}".rstrip()
    if isinstance(error, psycopg.OperationalError):
        return f"PostgreSQL cannot be reached ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    return type(error).__name__ if not str(error) else f"{type(error).__name__}: {error}"
