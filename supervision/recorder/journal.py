"""The journal: what this process recorded and PostgreSQL does not have yet, in one SQLite file.

A process owns one file in the journal's directory and holds a lock beside it for as long as it lives; a file whose lock
is free belonged to a process that died, and is adopted by whoever takes the lock. The kernel drops the lock (`flock`)
with the process, so a kill leaves nothing to clean up. The directory must be on a disk of this machine.

WAL mode with `synchronous=FULL`: a commit returns after fsync of the write-ahead log. What it acknowledged survives a
killed process, a crashed kernel and a power cut, as far as the disk tells the truth about its cache. (`NORMAL` would
survive the killed process only.) The price is one fsync per group of commits.

`secure_delete` overwrites what is deleted: what callers said does not linger in free pages after it reached PostgreSQL.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from uuid import UUID

import orjson

from mirror_saas.ids import uuid7
from supervision.recorder.events import CallEnded, RecordEvent, make_event

SUFFIX: Final = ".journal"
LOCK_SUFFIX: Final = ".lock"
FORMAT: Final = 1
_PAGE_SIZE: Final = 4096
# An empty journal takes a few pages; one that may take no more than these is full as soon as it is made.
_LEAST_PAGES: Final = 16
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_SCHEMA: Final = """
CREATE TABLE event (
    position INTEGER PRIMARY KEY, id BLOB NOT NULL, tenant BLOB NOT NULL, call BLOB NOT NULL,
    seq INTEGER NOT NULL, at_us INTEGER NOT NULL, kind TEXT NOT NULL, data BLOB NOT NULL);
CREATE INDEX event_of_tenant ON event (tenant, position);
CREATE TABLE open_call (
    call BLOB PRIMARY KEY, tenant BLOB NOT NULL, started_us INTEGER NOT NULL,
    last_seq INTEGER NOT NULL, last_us INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE quarantine (
    position INTEGER PRIMARY KEY, id BLOB NOT NULL, tenant BLOB NOT NULL, call BLOB NOT NULL,
    seq INTEGER NOT NULL, at_us INTEGER NOT NULL, kind TEXT NOT NULL, data BLOB NOT NULL,
    reason TEXT NOT NULL);
"""


class JournalUnavailable(Exception):
    """The journal cannot take what was recorded: nothing recorded since its last commit counts as acknowledged."""


class JournalLocked(Exception):
    """Another process has this journal."""


class JournalDamaged(Exception):
    """SQLite cannot read a journal. The message is the name under which it is kept."""


class JournalFormatUnknown(Exception):
    """Another version of Mirror wrote this journal."""


@dataclass(frozen=True, slots=True)
class Row:
    """An event as the journal stores it. `position` orders the file; 0 until it is written."""

    position: int
    id: bytes
    tenant: bytes
    call: bytes
    seq: int
    at_us: int
    kind: str
    data: bytes

    @property
    def size(self) -> int:
        """Bytes on disk, about."""
        return len(self.data) + len(self.kind) + 96


def row_of(event: RecordEvent) -> Row:
    """`event` as a row; raises TypeError or ValueError when it cannot be stored."""
    if not 0 < event.seq < 1 << 62:
        raise ValueError("seq is out of range")
    return Row(
        0,
        event.id.bytes,
        event.tenant_id.bytes,
        event.call_id.bytes,
        event.seq,
        (event.at - _EPOCH) // timedelta(microseconds=1),
        event.kind,
        orjson.dumps(event.data),
    )


def event_of(row: Row) -> RecordEvent:
    """The event that was stored as `row`; raises ValueError when the row is damaged."""
    return RecordEvent(
        UUID(bytes=row.id),
        UUID(bytes=row.tenant),
        UUID(bytes=row.call),
        row.seq,
        _EPOCH + timedelta(microseconds=row.at_us),
        row.kind,
        orjson.loads(row.data),
    )


@dataclass(frozen=True, slots=True)
class _Call:
    tenant: bytes
    started_us: int
    last_seq: int
    last_us: int


class Journal:
    """One journal file and its lock. Not thread-safe: one thread writes; `JournalReader` reads beside it."""

    def __init__(self, path: Path, lock: int, *, max_bytes: int, last_position: int = 0) -> None:
        self.path = path
        self._lock = lock
        self._lock_pid = os.getpid()
        self._closed = False
        self._max_pages = max(max_bytes // _PAGE_SIZE, _LEAST_PAGES)
        self._db = _connect(path, self._max_pages)
        self.last_position: int = self._db.execute(
            "SELECT max(coalesce((SELECT max(position) FROM event), 0),"
            " coalesce((SELECT max(position) FROM quarantine), 0), ?)",
            (last_position,),
        ).fetchone()[0]
        self._open: dict[bytes, _Call] = {
            call: _Call(*rest)
            for call, *rest in self._db.execute("SELECT call, tenant, started_us, last_seq, last_us FROM open_call")
        }

    @classmethod
    def create(cls, directory: Path, *, max_bytes: int, last_position: int = 0) -> Journal:
        """A new journal for this process, its first event after `last_position`.

        Raises OSError or sqlite3.Error when the directory cannot hold one.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            path = directory / f"{uuid7()}{SUFFIX}"
            # Whoever looks for orphans can take the lock between our open and our flock; then this name is theirs.
            with suppress(JournalLocked):
                lock = _take_lock(path)
                try:
                    return cls(path, lock, max_bytes=max_bytes, last_position=last_position)
                except BaseException:
                    _unlink(_lock_path(path))
                    _release(lock)
                    raise

    @classmethod
    def adopt(cls, path: Path, *, max_bytes: int) -> Journal:
        """The journal of a dead process, with the calls ended that it carried, and what was set aside tried once more.

        Raises JournalLocked when its process lives or somebody else was quicker, JournalFormatUnknown, JournalDamaged
        when SQLite cannot read the file (it is renamed and kept), and other sqlite3.Error or OSError.
        """
        lock = _take_lock(path)
        try:
            if not path.exists():
                _unlink(_lock_path(path))
                raise JournalLocked(path.name)
            journal = cls(path, lock, max_bytes=max_bytes)
            try:
                journal._retry_quarantined()
                journal._end_open_calls()
            except BaseException:
                journal._db.close()
                raise
            return journal
        except sqlite3.Error as error:
            try:
                if is_damage(error):
                    raise JournalDamaged(_set_aside(path).name) from error
                raise
            finally:
                _release(lock)
        except BaseException:
            _release(lock)
            raise

    def append(self, rows: Sequence[Row], *, drained: Iterable[int] = ()) -> None:
        """Write `rows` and forget the positions in `drained`, in one transaction that is on disk when this returns.

        Raises sqlite3.Error and then changes nothing.
        """
        changed: dict[bytes, _Call | None] = {}
        numbered = []
        position = self.last_position
        for row in rows:
            position += 1
            numbered.append((position, row.id, row.tenant, row.call, row.seq, row.at_us, row.kind, row.data))
            self._follow(row, changed)
        with _Transaction(self._db):
            self._db.executemany("DELETE FROM event WHERE position = ?", [(done,) for done in drained])
            self._db.executemany("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?)", numbered)
            for call, state in changed.items():
                if state is None:
                    self._db.execute("DELETE FROM open_call WHERE call = ?", (call,))
                else:
                    self._db.execute(
                        "INSERT OR REPLACE INTO open_call VALUES (?, ?, ?, ?, ?)",
                        (call, state.tenant, state.started_us, state.last_seq, state.last_us),
                    )
        self.last_position = position
        for call, state in changed.items():
            if state is None:
                self._open.pop(call, None)
            else:
                self._open[call] = state

    def _follow(self, row: Row, changed: dict[bytes, _Call | None]) -> None:
        """Keep who is on the line, so that a call whose process dies can be ended by whoever adopts the journal."""
        if row.kind in ("call.started", "call.resumed"):
            changed[row.call] = _Call(row.tenant, row.at_us, row.seq, row.at_us)
        elif row.kind in ("call.ended", "call.moved"):
            changed[row.call] = None
        else:
            known = changed[row.call] if row.call in changed else self._open.get(row.call)
            if known is not None:
                changed[row.call] = _Call(
                    known.tenant, known.started_us, max(known.last_seq, row.seq), max(known.last_us, row.at_us)
                )

    def forget(self, positions: Iterable[int]) -> None:
        """Delete events that PostgreSQL has."""
        self.append((), drained=positions)

    def quarantine(self, position: int, reason: str) -> None:
        """Set an event aside that PostgreSQL refuses; `reason` holds no content."""
        with _Transaction(self._db):
            self._db.execute(
                "INSERT OR REPLACE INTO quarantine"
                " SELECT position, id, tenant, call, seq, at_us, kind, data, ? FROM event WHERE position = ?",
                (reason, position),
            )
            self._db.execute("DELETE FROM event WHERE position = ?", (position,))

    def thin_quarantine(self) -> int:
        """Delete the older half of the events set aside, to make room for others; their number."""
        with _Transaction(self._db):
            return self._db.execute(
                "DELETE FROM quarantine WHERE position IN (SELECT position FROM quarantine ORDER BY position"
                " LIMIT (SELECT (count(*) + 1) / 2 FROM quarantine))"
            ).rowcount

    def quarantined(self) -> list[tuple[Row, str]]:
        """The events set aside, oldest first, each with its reason."""
        rows = self._db.execute("SELECT * FROM quarantine ORDER BY position").fetchall()
        return [(Row(*row[:-1]), row[-1]) for row in rows]

    def scrub(self, calls: Sequence[tuple[bytes, bytes]]) -> int:
        """Delete what was set aside of calls `(tenant, call)`, and empty the write-ahead log: what was deleted before
        does not linger in it either. Returns how many events were deleted."""
        deleted = 0
        if calls:
            with _Transaction(self._db):
                for tenant, call in calls:
                    deleted += self._db.execute(
                        "DELETE FROM quarantine WHERE tenant = ? AND call = ?", (tenant, call)
                    ).rowcount
        # TRUNCATE gives the log's blocks back to the file system; a reader in the middle leaves it for the next time.
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return deleted

    def quarantined_calls(self) -> list[tuple[bytes, bytes]]:
        """The calls `(tenant, call)` of which something is set aside."""
        return [(bytes(t), bytes(c)) for t, c in self._db.execute("SELECT DISTINCT tenant, call FROM quarantine")]

    def _retry_quarantined(self) -> int:
        """Put the events set aside back in their places, for a version that may know them; their number."""
        with _Transaction(self._db):
            self._db.execute(
                "INSERT INTO event SELECT position, id, tenant, call, seq, at_us, kind, data FROM quarantine"
            )
            return self._db.execute("DELETE FROM quarantine").rowcount

    def _end_open_calls(self) -> int:
        """End the calls whose process died, as failed and by Mirror, at the time of their last event; their number."""
        rows = []
        for call, state in self._open.items():
            ended = make_event(
                CallEnded(
                    outcome="failed",
                    ended_by="mirror",
                    close_code=None,
                    reason="process_died",
                    coverage_state=None,
                    coverage_reason="the process that carried the call died",
                    coverage=None,
                    turns=None,
                    judged=None,
                    skipped=None,
                    timed_out=None,
                    failed=None,
                    shed=None,
                    interventions=None,
                    tools_blocked=None,
                    duration_ms=(state.last_us - state.started_us) // 1000,
                    dropped_media_ms=None,
                    detail_dropped=None,
                ),
                tenant_id=UUID(bytes=state.tenant),
                call_id=UUID(bytes=call),
                seq=state.last_seq + 1,
                at=_EPOCH + timedelta(microseconds=state.last_us),
            )
            rows.append(row_of(ended))
        if rows:
            self.append(rows)
        return len(rows)

    def read(self, *, after: int, limit: int, tenant: bytes | None = None, upto: int | None = None) -> list[Row]:
        """At most `limit` events past position `after`, in order."""
        return _read(self._db, after=after, limit=limit, tenant=tenant, upto=upto)

    def count(self) -> int:
        """Events that PostgreSQL does not have yet."""
        return int(self._db.execute("SELECT count(*) FROM event").fetchone()[0])

    @property
    def is_empty(self) -> bool:
        """Nothing left to store, nothing set aside and no call open: the file can go."""
        return not any(
            self._db.execute(f"SELECT EXISTS (SELECT 1 FROM {table})").fetchone()[0]  # noqa: S608 (constant names)
            for table in ("event", "quarantine", "open_call")
        )

    def allow(self, max_bytes: int) -> None:
        """Change what the file may take. What it has already stays, and fills the rest."""
        pages = max(max_bytes // _PAGE_SIZE, _LEAST_PAGES)
        if pages != self._max_pages:
            self._db.execute(f"PRAGMA max_page_count = {pages}")
            self._max_pages = pages

    @property
    def fullness(self) -> float:
        """Share of the allowed pages in use, 0 to 1."""
        used: int = self._db.execute("PRAGMA page_count").fetchone()[0]
        free: int = self._db.execute("PRAGMA freelist_count").fetchone()[0]
        return (used - free) / self._max_pages

    def set_aside(self) -> str:
        """Close a damaged journal and keep it under another name, which is returned."""
        self._closed = True
        self._db.close()
        try:
            return _set_aside(self.path).name
        finally:
            _release(self._lock)

    def close(self, *, remove: bool = False) -> None:
        """Close the file and free its lock; `remove` deletes both, the lock last. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._db.close()
        if remove:
            for suffix in ("", "-wal", "-shm"):
                _unlink(self.path.with_name(self.path.name + suffix))
            _unlink(_lock_path(self.path))
        if os.getpid() == self._lock_pid:
            _release(self._lock)


class JournalReader:
    """Reads a journal that another thread of this process writes. One connection: use it from one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA query_only = ON")

    def read(self, *, after: int, limit: int, tenant: bytes | None = None, upto: int | None = None) -> list[Row]:
        """At most `limit` committed events past position `after` (of one tenant, up to a position), in order."""
        return _read(self._db, after=after, limit=limit, tenant=tenant, upto=upto)

    def quarantined_calls(self) -> list[tuple[bytes, bytes]]:
        """The calls `(tenant, call)` of which something is set aside."""
        return [(bytes(t), bytes(c)) for t, c in self._db.execute("SELECT DISTINCT tenant, call FROM quarantine")]

    def close(self) -> None:
        self._db.close()


def folder_bytes(directory: Path, *, but: Path | None = None) -> int:
    """What the files in a journals' folder take, those of the journal `but` left out. Raises OSError."""
    if not directory.exists():
        return 0
    total = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            if but is not None and entry.name.startswith(but.name):
                continue
            # A neighbour removes its files when they are empty.
            with suppress(FileNotFoundError):
                if entry.is_file(follow_symlinks=False):
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def orphans(directory: Path) -> list[Path]:
    """The journals in `directory`, oldest first; which of them are orphans shows when their lock is tried.

    Among them are names of which a process that died left no more than the lock: trying to adopt them removes it.
    """
    locks = directory.glob(f"*{SUFFIX}{LOCK_SUFFIX}")
    return sorted({*directory.glob(f"*{SUFFIX}"), *(lock.with_suffix("") for lock in locks)})


def is_damage(error: Exception) -> bool:
    """Whether SQLite says that the file is corrupt or no database: it raises the base class itself for both."""
    return type(error) is sqlite3.DatabaseError


def _set_aside(path: Path) -> Path:
    """Rename a journal that SQLite cannot read, so that a person can look at it; nothing is deleted."""
    kept = path.with_name(path.name + ".damaged")
    for suffix in ("-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(kept.with_name(kept.name + suffix))
    path.rename(kept)
    _unlink(_lock_path(path))
    return kept


class _Transaction:
    """BEGIN IMMEDIATE … COMMIT, or ROLLBACK when the block or the commit fails."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is None:
            try:
                self._db.execute("COMMIT")
                return
            except sqlite3.Error:
                self._rollback()
                raise
        self._rollback()

    def _rollback(self) -> None:
        # SQLite has rolled back by itself after a full disk or an I/O error.
        if self._db.in_transaction:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")


def _connect(path: Path, max_pages: int) -> sqlite3.Connection:
    # SQLite gives its -wal and -shm files the mode of the file.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA busy_timeout = 2000")
        db.execute(f"PRAGMA page_size = {_PAGE_SIZE}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA secure_delete = ON")
        db.execute(f"PRAGMA max_page_count = {max_pages}")
        db.execute("PRAGMA journal_size_limit = 16777216")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            with _Transaction(db):
                for statement in _SCHEMA.split(";")[:-1]:
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {FORMAT}")
        elif version != FORMAT:
            raise JournalFormatUnknown(f"{path.name} has format {version}, this version of Mirror reads {FORMAT}")
    except BaseException:
        db.close()
        raise
    return db


def _read(db: sqlite3.Connection, *, after: int, limit: int, tenant: bytes | None, upto: int | None) -> list[Row]:
    last = upto if upto is not None else (1 << 62)
    if tenant is None:
        rows = db.execute(
            "SELECT * FROM event WHERE position > ? AND position <= ? ORDER BY position LIMIT ?", (after, last, limit)
        )
    else:
        rows = db.execute(
            "SELECT * FROM event WHERE tenant = ? AND position > ? AND position <= ? ORDER BY position LIMIT ?",
            (tenant, after, last, limit),
        )
    return [Row(*row) for row in rows]


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + LOCK_SUFFIX)


def _take_lock(path: Path) -> int:
    """The descriptor that holds the lock of the journal `path`; raises JournalLocked when it is taken."""
    lock_path = _lock_path(path)
    lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # An adopter may have removed the file between open and flock: a lock on a name that is gone locks nothing.
        if os.stat(lock_path).st_ino != os.fstat(lock).st_ino:
            raise JournalLocked(path.name)
    except (BlockingIOError, FileNotFoundError):
        os.close(lock)
        raise JournalLocked(path.name) from None
    except BaseException:
        os.close(lock)
        raise
    _held.add(lock)
    return lock


def _release(lock: int) -> None:
    _held.discard(lock)
    os.close(lock)


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)


# A fork shares its parent's flock and would keep the journal of a dead parent locked: children let go of it.
_held: set[int] = set()


def _let_go_in_child() -> None:
    for lock in _held:
        os.close(lock)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
