"""Call state in PostgreSQL: one row per call.

psycopg is imported when the store is first used, not when this module is.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from supervision.engine.state.protocol import (
    DEFAULT_TTL_S,
    CallKey,
    Claimed,
    StateLost,
    StateTaken,
    StateUnavailable,
    check_ttl,
)

if TYPE_CHECKING:
    import psycopg
    import psycopg_pool

    Connection = psycopg.AsyncConnection[tuple[Any, ...]]
    Pool = psycopg_pool.AsyncConnectionPool[Connection]

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Rows are purged in passing, by whoever claims a call; so many at a time that no call notices.
PURGE_EVERY_S = 60.0
PURGE_ROWS = 200

# No tenant is the empty text, which `CallKey` does not take as a tenant's name.
_CREATE = """
CREATE TABLE IF NOT EXISTS {table} (
    tenant_id text NOT NULL,
    call_id text NOT NULL,
    owner text NOT NULL,
    opened_at double precision NOT NULL,
    fields jsonb NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, call_id)
)
"""
_CREATE_INDEX = "CREATE INDEX IF NOT EXISTS {index} ON {table} (expires_at)"
_CLAIM = """
INSERT INTO {table} AS kept (tenant_id, call_id, owner, opened_at, fields, expires_at)
VALUES (%(tenant)s, %(call)s, %(owner)s, %(opened_at)s, '{{}}', clock_timestamp() + %(ttl)s)
ON CONFLICT (tenant_id, call_id) DO UPDATE SET
    owner = excluded.owner,
    opened_at = excluded.opened_at,
    fields = CASE WHEN kept.expires_at > clock_timestamp() THEN kept.fields ELSE '{{}}' END,
    expires_at = excluded.expires_at
WHERE NOT %(late)s OR kept.opened_at <= excluded.opened_at OR kept.expires_at <= clock_timestamp()
RETURNING fields
"""
# Two facts from one statement, as of one moment: the row that was changed, or else the owner that stands in the way.
_WRITE = """
WITH changed AS (
    UPDATE {table} SET
        fields = (fields || %(set)s::jsonb) - %(removed)s::text[],
        expires_at = clock_timestamp() + %(ttl)s
    WHERE tenant_id = %(tenant)s AND call_id = %(call)s AND owner = %(owner)s AND expires_at > clock_timestamp()
    RETURNING 1
)
SELECT EXISTS (SELECT FROM changed), EXISTS (
    SELECT FROM {table}
    WHERE tenant_id = %(tenant)s AND call_id = %(call)s AND owner <> %(owner)s AND expires_at > clock_timestamp()
)
"""
_FORGET = """
DELETE FROM {table}
WHERE tenant_id = %(tenant)s AND call_id = %(call)s AND owner = %(owner)s AND expires_at > clock_timestamp()
RETURNING 1
"""
_PURGE = """
DELETE FROM {table} WHERE (tenant_id, call_id) IN (
    SELECT tenant_id, call_id FROM {table} WHERE expires_at <= clock_timestamp()
    ORDER BY expires_at LIMIT %(rows)s FOR UPDATE SKIP LOCKED
)
"""


class PostgresStateStore:
    """A `StateStore` in a table of PostgreSQL 13 or newer.

    `dsn` as libpq takes it. `create_table` makes the table, once, by a role that may; using it needs SELECT, INSERT,
    UPDATE and DELETE. `ttl_s` is how many seconds (of the server's clock) after its last change a call is forgotten,
    `timeout_s` how long one operation may take, waiting for one of the `max_connections` included. Needs a running
    event loop from its first use on, and stays with that loop. Raises `ValueError` on wrong values, `ImportError` at
    first use when psycopg is not installed.
    """

    def __init__(
        self,
        dsn: str,
        *,
        table: str = "mirror_call_state",
        ttl_s: float = DEFAULT_TTL_S,
        timeout_s: float = 1.0,
        max_connections: int = 4,
    ) -> None:
        if not isinstance(dsn, str) or not dsn.strip():
            raise ValueError("dsn is blank; give a connection string such as postgresql://user@host/database")
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,50}(\.[a-z_][a-z0-9_]{0,50})?", table):
            raise ValueError("table has to be a lower-case name, or schema.name")
        if not 0 < timeout_s <= 60:
            raise ValueError("timeout_s has to be more than 0 and at most 60 seconds")
        if not 1 <= max_connections <= 100:
            raise ValueError("max_connections has to be from 1 to 100")
        self._dsn = dsn
        self._table = table
        self._ttl = datetime.timedelta(seconds=check_ttl(ttl_s))
        self._timeout_s = timeout_s
        self._max_connections = max_connections
        self._pool: Pool | None = None
        self._purged_at: float | None = None
        self._running: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"PostgresStateStore(table={self._table!r})"

    async def create_table(self) -> None:
        """Makes the table and its index unless they are there."""
        index = f"{self._table.rpartition('.')[2]}_expires_at"

        async def create(connection: Connection) -> None:
            await connection.execute(self._sql(_CREATE))
            await connection.execute(_CREATE_INDEX.format(index=index, table=self._table).encode())

        await self._run(create)

    async def claim(self, key: CallKey, *, opened_at: float, late: bool = False) -> Claimed:
        """See `StateStore.claim`."""
        owner = secrets.token_hex(12)
        values = {**self._of(key), "owner": owner, "opened_at": float(opened_at), "late": late}

        async def claim(connection: Connection) -> tuple[Any, ...] | None:
            row = await (await connection.execute(self._sql(_CLAIM), values)).fetchone()
            await self._purge_in_passing(connection)
            return row

        row = await self._run(claim)
        if row is None:
            raise StateTaken
        return Claimed(owner, row[0])

    async def write(self, key: CallKey, owner: str, changes: Mapping[str, str | None]) -> None:
        """See `StateStore.write`."""
        values = {
            **self._of(key),
            "owner": owner,
            "set": json.dumps({name: value for name, value in changes.items() if value is not None}),
            "removed": [name for name, value in changes.items() if value is None],
        }

        async def write(connection: Connection) -> tuple[Any, ...] | None:
            return await (await connection.execute(self._sql(_WRITE), values)).fetchone()

        row = await self._run(write)
        assert row is not None
        written, taken = row
        if not written:
            raise StateTaken if taken else StateLost

    async def forget(self, key: CallKey, owner: str) -> bool:
        """See `StateStore.forget`."""
        values = {**self._of(key), "owner": owner}

        async def forget(connection: Connection) -> bool:
            return await (await connection.execute(self._sql(_FORGET), values)).fetchone() is not None

        return await self._run(forget)

    async def purge(self) -> int:
        """Deletes up to 200 expired calls and returns how many it deleted. Claims do so too, once a minute."""

        async def purge(connection: Connection) -> int:
            return (await connection.execute(self._sql(_PURGE), {"rows": PURGE_ROWS})).rowcount

        return await self._run(purge)

    async def aclose(self) -> None:
        """See `StateStore.aclose`."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()
        while self._running:
            await asyncio.wait(self._running)

    def _of(self, key: CallKey) -> dict[str, Any]:
        return {"tenant": key.tenant_id or "", "call": key.call_id, "ttl": self._ttl}

    def _sql(self, statement: str) -> bytes:
        # The name was checked when the store was made; psycopg takes bytes where it cannot know that.
        return statement.format(table=self._table).encode()

    async def _purge_in_passing(self, connection: Connection) -> None:
        now = asyncio.get_running_loop().time()
        if self._purged_at is None or now - self._purged_at >= PURGE_EVERY_S:
            self._purged_at = now
            await connection.execute(self._sql(_PURGE), {"rows": PURGE_ROWS})

    async def _run(self, operation: Callable[[Connection], Awaitable[T]]) -> T:
        """Runs an operation on a connection, and stops waiting for it when its time is up.

        In a task of its own, since psycopg takes seconds to be cancelled when the server has gone silent.
        """
        try:
            import psycopg
            import psycopg_pool
        except ImportError as error:
            raise ImportError("PostgresStateStore needs psycopg and its pool: install mirror[postgres]") from error

        async def run() -> T:
            async with (await self._opened(psycopg_pool)).connection() as connection:
                return await operation(connection)

        task = asyncio.get_running_loop().create_task(run(), name="call state in PostgreSQL")
        self._running.add(task)
        task.add_done_callback(self._ended)
        try:
            await asyncio.wait((task,), timeout=self._timeout_s)
        finally:
            if not task.done():
                task.cancel()
        if not task.done():
            raise StateUnavailable("the PostgreSQL state store did not answer in time")
        try:
            return task.result()
        except (psycopg.Error, psycopg_pool.PoolClosed, OSError) as error:
            code = getattr(error, "sqlstate", None)
            named = type(error).__name__ + (f", SQLSTATE {code}" if code else "")
            raise StateUnavailable(f"the PostgreSQL state store cannot be used ({named})") from error

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # Whoever still waits is told; of one that was given up nobody else would hear.
            logger.debug("an operation on call state ended with %s", type(task.exception()).__name__)

    async def _opened(self, psycopg_pool: Any) -> Pool:
        if self._pool is None:
            # Nothing is connected until it is wanted, so that a database that is down costs no log line a second.
            pool: Pool = psycopg_pool.AsyncConnectionPool(
                self._dsn,
                min_size=0,
                max_size=self._max_connections,
                timeout=self._timeout_s,
                reconnect_timeout=self._timeout_s,
                max_idle=300.0,
                open=False,
                name="mirror-state",
                kwargs={
                    "autocommit": True,
                    "connect_timeout": max(2, round(self._timeout_s)),
                    "application_name": "mirror-state",
                    "keepalives_idle": 15,
                    "tcp_user_timeout": 10_000,
                },
                check=psycopg_pool.AsyncConnectionPool.check_connection,
            )
            self._pool = pool
            await pool.open()
        return self._pool
