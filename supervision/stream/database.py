"""What a call writes to PostgreSQL while it runs: a tenant's transaction on the process's own small pool, in its time.

No ORM. Each piece of work runs in a task of its own, because psycopg takes seconds to be cancelled when the server has
gone silent, and a call cannot wait for that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, TypeVar
from uuid import UUID

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout

logger = logging.getLogger(__name__)

T = TypeVar("T")

Connection = psycopg.AsyncConnection[dict[str, Any]]
# Connections of the pool, opened when first wanted.
Connect = Callable[[], AbstractAsyncContextManager[Connection]]

STATEMENT_MS: Final = 2_000


class DatabaseSilent(Exception):
    """PostgreSQL cannot be reached, refused, or did not answer in time. Whether it did what was asked is not known."""


class DatabaseRefused(DatabaseSilent):
    """PostgreSQL will never do what was asked, for instance because the tenant was deleted. Asking again is no use."""


class TenantDatabase:
    """Transactions of tenants, under row-level security. Belongs to one event loop."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, tenant_id: UUID, work: Callable[[Connection], Awaitable[T]], *, within_s: float) -> T:
        """What `work` returns, once its transaction has been committed. Raises DatabaseSilent after `within_s`, and
        DatabaseRefused."""

        async def transact() -> T:
            async with self._connect() as connection, connection.transaction():
                await connection.execute(
                    "SELECT set_config('app.tenant_id', %s, true), set_config('statement_timeout', %s, true)",
                    (str(tenant_id), str(STATEMENT_MS)),
                )
                return await work(connection)

        task = asyncio.get_running_loop().create_task(transact(), name="mirror-tenant-database")
        self._running.add(task)
        task.add_done_callback(self._ended)
        try:
            await asyncio.wait((task,), timeout=max(0.0, within_s))
        finally:
            if not task.done():
                task.cancel()
        if not task.done():
            raise DatabaseSilent("PostgreSQL did not answer in time")
        try:
            return task.result()
        except (psycopg.Error, PoolTimeout, PoolClosed, OSError) as error:
            # Not its message: that of a failed statement may hold values.
            state = getattr(error, "sqlstate", None)
            temporary = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | PoolClosed | OSError)
            kind = DatabaseSilent if temporary else DatabaseRefused
            raise kind(type(error).__name__ + (f", SQLSTATE {state}" if state else "")) from error

    async def aclose(self) -> None:
        """Wait for what was given up to end."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()
