"""Writes a batch of one tenant's events into PostgreSQL: one transaction, as mirror_app, under row-level security.

The insert of the events decides what is new: `ON CONFLICT DO NOTHING RETURNING id`. Only those are projected, in the
same transaction, so that a batch that is sent twice changes nothing the second time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any, Final, LiteralString
from uuid import UUID

import psycopg
from psycopg import errors

from mirror_saas.ids import uuid7
from supervision.recorder import projections
from supervision.recorder.events import RecordEvent
from supervision.recorder.fencing import Fenced, epochs_answered, epochs_ask, fenced
from supervision.recorder.outbox import outbox_write
from supervision.recorder.projections import Unprojectable, project

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 5
_STATEMENT_TIMEOUT_MS: Final = 15_000
_LOCK_TIMEOUT_MS: Final = 3_000
# A server that neither answers nor resets: its transaction is given up after this.
_TRANSACTION_TIMEOUT_S: Final = 30

_BEGIN_TENANT: Final[LiteralString] = (
    "SELECT set_config('app.tenant_id', %s, true), set_config('statement_timeout', %s, true),"
    " set_config('lock_timeout', %s, true)"
)

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


class EventTaken(Exception):
    """The id of an event belongs to an event of another tenant."""


class CallErased(Exception):
    """A call was erased while its events were being stored; what was stored is rolled back."""


class Fault(Enum):
    """What an error of a batch means for what to do next."""

    # The server or the connection: nothing can be stored now.
    DATABASE = auto()
    # Something is in the way of this tenant's rows for the moment.
    TENANT = auto()
    # The events themselves: trying again cannot help.
    EVENT = auto()


def fault_of(error: Exception) -> Fault:
    """Whom an error of `store_events` is about (SQLSTATE classes: PostgreSQL manual, appendix A)."""
    if isinstance(error, Unprojectable | EventTaken):
        return Fault.EVENT
    if isinstance(error, CallErased):
        # The next attempt leaves the call out.
        return Fault.TENANT
    if not isinstance(error, psycopg.Error):
        return Fault.DATABASE
    state = error.sqlstate
    if state is None:
        # Without a SQLSTATE it is psycopg's own: a value that it cannot send, or a connection that is gone.
        return Fault.EVENT if isinstance(error, psycopg.DataError) else Fault.DATABASE
    if state[:2] == "40" or isinstance(error, errors.LockNotAvailable | errors.QueryCanceled):
        return Fault.TENANT
    if isinstance(error, errors.InsufficientPrivilege):
        # A policy refused the row, or mirror_app lacks a grant: both are 42501, only the place tells them apart.
        return Fault.EVENT if error.diag.source_function == "ExecWithCheckOptions" else Fault.DATABASE
    # 22 data, 23 constraints, 21 cardinality, 54 limits, XX000 a bug that these rows meet. Anything else, such as a
    # missing table, a full disk or a standby that only reads, is the server's.
    of_the_rows = state[:2] in ("21", "22", "23", "54") or state == "XX000"
    return Fault.EVENT if of_the_rows else Fault.DATABASE


async def connect(dsn: str) -> Connection:
    """A connection of the recorder. Raises psycopg.OperationalError."""
    return await psycopg.AsyncConnection.connect(
        dsn,
        autocommit=True,
        connect_timeout=CONNECT_TIMEOUT_S,
        application_name="mirror-recorder",
        keepalives_idle=15,
        keepalives_interval=5,
        keepalives_count=3,
    )


async def store_events(
    connection: Connection,
    tenant_id: UUID,
    events: Sequence[RecordEvent],
    *,
    without_links: bool = False,
    new_id: Callable[[], UUID] = uuid7,
) -> int:
    """Store `events` of one tenant, in order, all or none; returns how many were new. Of a call that was erased
    nothing is stored, and nothing that a node recorded of a call after it had lost it (see fencing.py).

    Raises psycopg.Error, TimeoutError, EventTaken, CallErased or Unprojectable; `fault_of` says what to make of it.
    """
    # In a pipeline, statements whose answers nobody waits for travel together: three round trips instead of a dozen,
    # each of which would wake the loop that carries calls.
    async with (
        asyncio.timeout(_TRANSACTION_TIMEOUT_S),
        connection.pipeline(),
        connection.transaction(),
        connection.cursor() as cursor,
        connection.cursor() as epochs,
    ):
        await cursor.execute(_BEGIN_TENANT, (str(tenant_id), str(_STATEMENT_TIMEOUT_MS), str(_LOCK_TIMEOUT_MS)))
        calls = list({event.call_id for event in events})
        await epochs_ask(epochs, tenant_id, calls)
        erased = await erased_calls(cursor, tenant_id, calls)
        if erased:
            events = [event for event in events if event.call_id not in erased]
            if not events:
                return 0
        behind = fenced(events, await epochs_answered(epochs))
        if behind.refused:
            logger.info("%d events of calls that went on elsewhere were left out", len(behind.refused))
            events = behind.kept
        insert = projections.call_events(events)
        await cursor.execute(insert.sql, (tenant_id, insert.rows.decode()))
        new = {row[0] for row in await cursor.fetchall()}
        if len(new) != len(events):
            await _check_known(cursor, tenant_id, {event.id for event in events} - new)
        first = _first_of_each(events, new)
        if first or behind.left:
            await _project(cursor, tenant_id, first, behind, without_links, new_id)
        if first:
            await outbox_write(cursor, tenant_id, first, new_id)
            stored = insert if len(first) == len(events) else projections.call_events(first)
            await cursor.execute(projections.STORAGE, (new_id(), tenant_id, len(stored.rows)))
        if any(event.kind in ("call.started", "call.resumed") for event in events):
            # Only these kinds can bring a call back. They have waited for whoever was erasing it, so it shows now.
            left = [call for call in calls if call not in erased]
            if await erased_calls(cursor, tenant_id, left):
                raise CallErased("a call was erased meanwhile")
        return len(new)


async def erased_calls(
    cursor: psycopg.AsyncCursor[tuple[Any, ...]], tenant_id: UUID, calls: Sequence[UUID]
) -> set[UUID]:
    """Those of a tenant's calls that were erased."""
    await cursor.execute(projections.ERASED_CALLS, (tenant_id, list(calls)))
    return {row[0] for row in await cursor.fetchall()}


async def quarantined_erased(connection: Connection, calls: Sequence[tuple[UUID, UUID]]) -> list[tuple[UUID, UUID]]:
    """Of calls `(tenant, call)`, those that were erased. Raises psycopg.Error and TimeoutError."""
    by_tenant: dict[UUID, list[UUID]] = {}
    for tenant_id, call_id in calls:
        by_tenant.setdefault(tenant_id, []).append(call_id)
    found = []
    for tenant_id, ids in by_tenant.items():
        async with asyncio.timeout(_TRANSACTION_TIMEOUT_S), connection.transaction(), connection.cursor() as cursor:
            await cursor.execute(_BEGIN_TENANT, (str(tenant_id), str(_STATEMENT_TIMEOUT_MS), str(_LOCK_TIMEOUT_MS)))
            found += [(tenant_id, call_id) for call_id in await erased_calls(cursor, tenant_id, ids)]
    return found


def _first_of_each(events: Sequence[RecordEvent], new: set[UUID]) -> list[RecordEvent]:
    if len(new) == len(events):
        return list(events)
    left = set(new)
    first = []
    for event in events:
        if event.id in left:
            left.remove(event.id)
            first.append(event)
    return first


async def _check_known(cursor: psycopg.AsyncCursor[tuple[Any, ...]], tenant_id: UUID, ids: set[UUID]) -> None:
    if not ids:
        return
    await cursor.execute(projections.KNOWN_EVENTS, (tenant_id, list(ids)))
    known = {row[0] for row in await cursor.fetchall()}
    if ids - known:
        raise EventTaken("the id of an event belongs to another tenant's event")


async def _project(
    cursor: psycopg.AsyncCursor[tuple[Any, ...]],
    tenant_id: UUID,
    events: list[RecordEvent],
    behind: Fenced,
    without_links: bool,
    new_id: Callable[[], UUID],
) -> None:
    current = {event.id for event in behind.projected}
    projected = project([event for event in events if event.id in current], without_links=without_links)
    for statement in projected.statements:
        await cursor.execute(statement.sql, (tenant_id, statement.rows.decode()))
    abandoned: list[UUID] = []
    if projected.abandoned or behind.left:
        abandoned = await _close_abandoned(cursor, tenant_id, [*projected.abandoned, *behind.left], new_id)
    calls = [*projected.recount, *abandoned]
    if calls:
        await cursor.execute(projections.RECOUNT, {"tenant": tenant_id, "calls": calls, "abandoned": abandoned})


async def _close_abandoned(
    cursor: psycopg.AsyncCursor[tuple[Any, ...]], tenant_id: UUID, calls: list[UUID], new_id: Callable[[], UUID]
) -> list[UUID]:
    """No turn stays unjudged and no intervention running in a call that has ended and whose process, or one of whose
    processes, is gone; the calls of which that is true."""
    await cursor.execute(projections.ABANDONED, {"tenant": tenant_id, "calls": calls})
    abandoned = [row[0] for row in await cursor.fetchall()]
    parameters = {"tenant": tenant_id, "calls": abandoned}
    await cursor.execute(projections.UNJUDGED_TURNS, parameters)
    if unjudged := await cursor.fetchall():
        verdicts = projections.failed_verdicts(unjudged, new_id)
        await cursor.execute(verdicts.sql, (tenant_id, verdicts.rows.decode()))
    await cursor.execute(projections.FAIL_RUNNING_INTERVENTIONS, parameters)
    return abandoned
