"""The idempotency ledger in PostgreSQL: which irreversible tool calls of a call were allowed, and which have run.

    (none) --claim--> PENDING --done--> DONE, with the result
                      PENDING --freed--> (none)

A claim is committed before its permission leaves, so whoever goes on with the call (after a barge-in, on another
socket, in another process or on another node) finds it. `LedgerStore` is the process's part and writes the rows;
`CallLedger` is the call's part and keeps the engine's ledger in step with them. A row is found by Plivo's id of the
call, the tool, the arguments' digest and the agent's key.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol
from uuid import UUID

import orjson
from django.utils.crypto import salted_hmac

from mirror_saas.ids import uuid7
from supervision.engine.scorer.tool_gate import Digest, Ledger, LedgerKey
from supervision.stream.database import Connection, DatabaseRefused, DatabaseSilent, TenantDatabase
from tenants.envelope import SealBroken, TenantKeys, sealed_field
from tenants.sealing import key_ring

logger = logging.getLogger(__name__)

CLAIM_WITHIN_S: Final = 1.0  # a database that takes longer to write a permission down has failed
LOAD_WITHIN_S: Final = 1.0
POLL_S: Final = 0.25  # how often a repeat that waits looks whether the first one has run elsewhere
RETRY_S: Final = 1.0
CLOSE_S: Final = 2.0
MAX_UNWRITTEN: Final = 10_000
TABLE: Final = "supervision_ledgerentry"


@dataclass(frozen=True, slots=True)
class Kept:
    """A row: who asked first (the agent's id of the tool call), whether it has run, and with what result."""

    row_id: UUID
    key: LedgerKey
    ref: str
    done: bool
    result: Any = None


@dataclass(frozen=True, slots=True)
class LedgerCall:
    """Whose ledger it is: the call as Plivo knows it, and as Mirror does."""

    tenant_id: UUID
    plivo_call_id: str
    call_id: UUID


class LedgerStore(Protocol):
    """Where rows are kept. Everything raises DatabaseSilent when they cannot be."""

    async def load(self, call: LedgerCall, *, within_s: float) -> list[Kept]:
        """The rows of a call."""
        ...

    async def claim(self, call: LedgerCall, wanted: Kept, *, within_s: float) -> Kept | None:
        """Write a PENDING row; None once it is committed. Otherwise the row that was there before."""
        ...

    def settle(self, call: LedgerCall, row: Kept, *, freed: bool) -> None:
        """Write, in the background and until it is written, that the call has run (`row.done`), may be running, or
        (`freed`) did not run."""
        ...

    async def settled(self, call: LedgerCall, *, within_s: float) -> None:
        """Return when what was settled of this call is written. Raises DatabaseSilent."""
        ...


def ledger_digest(tenant_id: UUID) -> Digest:
    """What stands for arguments in a tenant's ledger: an HMAC that every node makes alike."""

    def digest(data: bytes) -> bytes:
        return salted_hmac(f"mirror ledger {tenant_id}", data, algorithm="sha256").digest()

    return digest


# Of a call that can still go on: Plivo streams for 24 hours at most.
_LOAD: Final = f"""
SELECT id, ref, tool, args_digest, key, state, result_sealed FROM {TABLE}
 WHERE tenant_id = %(tenant)s AND plivo_call_id = %(plivo)s AND created_at > statement_timestamp() - interval '1 day'
"""  # noqa: S608 (constant names)
_FIND: Final = f"""
SELECT id, ref, tool, args_digest, key, state, result_sealed FROM {TABLE}
 WHERE tenant_id = %(tenant)s AND plivo_call_id = %(plivo)s AND tool = %(tool)s AND args_digest = %(digest)s
   AND key = %(key)s
   FOR UPDATE
"""  # noqa: S608 (constant names)
_CLAIM: Final = f"""
INSERT INTO {TABLE} (id, tenant_id, plivo_call_id, call_id, ref, tool, key, args_digest, state, created_at)
VALUES (%(id)s, %(tenant)s, %(plivo)s, %(call)s, %(ref)s, %(tool)s, %(key)s, %(digest)s, 'pending',
        statement_timestamp())
    ON CONFLICT (tenant_id, plivo_call_id, tool, args_digest, key) DO NOTHING
"""  # noqa: S608 (constant names)
_DONE: Final = f"""
UPDATE {TABLE} SET state = 'done', result_sealed = %(result)s, done_at = statement_timestamp()
 WHERE tenant_id = %(tenant)s AND id = %(id)s AND state = 'pending'
"""  # noqa: S608 (constant names)
_FREE: Final = f"DELETE FROM {TABLE} WHERE tenant_id = %(tenant)s AND id = %(id)s AND state = 'pending'"  # noqa: S608
# As tenants.sealing does: the lock makes the key's retirement wait for this transaction.
_NEWEST_KEY: Final = """
SELECT id, wrapped FROM tenants_datakey WHERE tenant_id = %s AND retired_at IS NULL
 ORDER BY number DESC LIMIT 1 FOR KEY SHARE
"""
_KEYS: Final = "SELECT id, wrapped FROM tenants_datakey WHERE tenant_id = %s"


@dataclass(frozen=True, slots=True)
class _Unwritten:
    call: LedgerCall
    row: Kept
    freed: bool


class PostgresLedger:
    """The `LedgerStore` of a process. Belongs to one event loop."""

    def __init__(self, database: TenantDatabase) -> None:
        self._database = database
        self._unwritten: list[_Unwritten] = []
        self._writing: asyncio.Task[None] | None = None
        self._written = asyncio.Condition()

    async def load(self, call: LedgerCall, *, within_s: float) -> list[Kept]:
        """See `LedgerStore.load`."""

        async def load(connection: Connection) -> list[Kept]:
            rows = await (await connection.execute(_LOAD, _of(call))).fetchall()
            return await self._kept(connection, call, rows)

        return await self._database.run(call.tenant_id, load, within_s=within_s)

    async def claim(self, call: LedgerCall, wanted: Kept, *, within_s: float) -> Kept | None:
        """See `LedgerStore.claim`."""
        values = _row(call, wanted)

        async def claim(connection: Connection) -> Kept | None:
            if (await connection.execute(_CLAIM, values)).rowcount:
                return None
            row = await (await connection.execute(_FIND, values)).fetchone()
            if row is None:
                # It was freed between the two; whoever asks again gets it.
                return Kept(wanted.row_id, wanted.key, wanted.ref, done=False)
            if row["id"] == wanted.row_id:
                # An earlier try of this claim whose answer was lost.
                return None
            (kept,) = await self._kept(connection, call, [row])
            return kept

        return await self._database.run(call.tenant_id, claim, within_s=within_s)

    def settle(self, call: LedgerCall, row: Kept, *, freed: bool) -> None:
        """See `LedgerStore.settle`. Of more than 10,000 that cannot be written the oldest are given up: what they are
        about stays in doubt, and so does not run again."""
        self._unwritten.append(_Unwritten(call, row, freed))
        if len(self._unwritten) > MAX_UNWRITTEN:
            del self._unwritten[1]
            logger.error("the ledger cannot be written; a tool call of call %s stays in doubt", call.call_id)
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write(), name="mirror-ledger")

    async def settled(self, call: LedgerCall, *, within_s: float) -> None:
        """See `LedgerStore.settled`."""
        try:
            async with asyncio.timeout(within_s), self._written:
                await self._written.wait_for(lambda: not any(each.call == call for each in self._unwritten))
        except TimeoutError as error:
            raise DatabaseSilent("what came of earlier tool calls is not written yet") from error

    async def aclose(self) -> None:
        """Write what is left, within 2 seconds; what cannot be written stays in doubt."""
        if self._writing is not None:
            await asyncio.wait({self._writing}, timeout=CLOSE_S)
            self._writing.cancel()
        if self._unwritten:
            logger.error("%d tool calls stay in doubt: the ledger could not be written", len(self._unwritten))

    async def _write(self) -> None:
        failing = False
        while self._unwritten:
            each = self._unwritten[0]
            try:
                await self._database.run(each.call.tenant_id, _writer(each), within_s=CLAIM_WITHIN_S)
            except DatabaseRefused as problem:
                logger.error("a row of the ledger cannot be written; its tool call stays in doubt: %s", problem)
            except DatabaseSilent as problem:
                if not failing:
                    logger.warning("the ledger of tool calls cannot be written for now: %s", problem)
                failing = True
                await asyncio.sleep(RETRY_S)
                continue
            except SealBroken as problem:
                # Without its result it still cannot run twice.
                logger.error("%s", problem)
                self._unwritten[0] = _Unwritten(each.call, _without_result(each.row), each.freed)
                continue
            except Exception:
                logger.exception("a row of the ledger could not be written; its tool call stays in doubt")
            failing = False
            async with self._written:
                if self._unwritten and self._unwritten[0] is each:
                    del self._unwritten[0]
                self._written.notify_all()
        self._writing = None

    async def _kept(self, connection: Connection, call: LedgerCall, rows: list[dict[str, Any]]) -> list[Kept]:
        keys: TenantKeys | None = None
        kept = []
        for row in rows:
            result = None
            if row["result_sealed"] is not None:
                if keys is None:
                    found = await (await connection.execute(_KEYS, (call.tenant_id,))).fetchall()
                    keys = TenantKeys(key_ring(), call.tenant_id, {key["id"]: bytes(key["wrapped"]) for key in found})
                try:
                    result = orjson.loads(keys.unseal(row["result_sealed"], field=_field(row["id"])))
                except SealBroken as problem:
                    # That it ran is known all the same.
                    logger.error("%s", problem)
            key = (row["tool"], bytes(row["args_digest"]), row["key"])
            kept.append(Kept(row["id"], key, row["ref"], row["state"] == "done", result))
        return kept


def _writer(each: _Unwritten) -> Any:
    call, row = each.call, each.row
    values = _row(call, row)

    async def write(connection: Connection) -> None:
        if each.freed:
            await connection.execute(_FREE, values)
            return
        await connection.execute(_CLAIM, values)
        if not row.done:
            return
        found = await (await connection.execute(_FIND, values)).fetchone()
        assert found is not None  # it was written just now, or stood there and is locked
        result = None
        if row.result is not None:
            key = await (await connection.execute(_NEWEST_KEY, (call.tenant_id,))).fetchone()
            if key is not None:
                keys = TenantKeys(key_ring(), call.tenant_id, {key["id"]: bytes(key["wrapped"])})
                result = keys.seal(orjson.dumps(row.result), key_id=key["id"], field=_field(found["id"]))
        await connection.execute(_DONE, {**values, "id": found["id"], "result": result})

    return write


def _field(row_id: UUID) -> str:
    return sealed_field(TABLE, "result_sealed", row_id)


def _without_result(row: Kept) -> Kept:
    return Kept(row.row_id, row.key, row.ref, row.done)


def _of(call: LedgerCall) -> dict[str, Any]:
    return {"tenant": call.tenant_id, "plivo": call.plivo_call_id, "call": call.call_id}


def _row(call: LedgerCall, row: Kept) -> dict[str, Any]:
    tool, digest, key = row.key
    return {**_of(call), "id": row.row_id, "ref": row.ref, "tool": tool, "digest": digest, "key": key}


class CallLedger:
    """The ledger of one call: the `LedgerJournal` of its engine, and what its claims are made with."""

    def __init__(self, store: LedgerStore, call: LedgerCall) -> None:
        self._store = store
        self._call = call
        self._ledger: Ledger | None = None
        # Rows of this connection, and of others that are not known to have ended.
        self._own: dict[LedgerKey, Kept] = {}
        self._foreign: dict[LedgerKey, Kept] = {}
        self._loading: asyncio.Task[None] | None = None

    @property
    def durable(self) -> bool:
        """False: what is allowed is claimed when nothing else can refuse it any more, not by the gate."""
        return False

    @property
    def digest(self) -> Digest:
        """What stands for arguments in this ledger."""
        return ledger_digest(self._call.tenant_id)

    def open(self, ledger: Ledger) -> None:
        """Begin to take over what earlier connections of the call were allowed."""
        self._ledger = ledger
        self._loading = asyncio.get_running_loop().create_task(self._load(), name="mirror-ledger-load")

    async def ready(self) -> None:
        """Return when what was written of the call before is in the engine's ledger, or cannot be had."""
        if self._loading is not None:
            await asyncio.wait({self._loading})

    async def claim(self, key: LedgerKey, ref: str, decision_id: UUID, *, until: float) -> Kept | None:
        """Return None when it is committed that this call may run. Otherwise it may not: the row of whoever was allowed
        the same before, waited for until loop time ``until`` while it may be running. Raises DatabaseSilent."""
        loop = asyncio.get_running_loop()
        own = self._own.get(key)
        if own is not None and own.ref == ref:
            return None
        wanted = Kept(decision_id, key, ref, done=False)
        await self._store.settled(self._call, within_s=CLAIM_WITHIN_S)
        while True:
            kept = await self._store.claim(self._call, wanted, within_s=CLAIM_WITHIN_S)
            if kept is None:
                self._own[key] = wanted
                return None
            if kept.row_id == wanted.row_id:
                continue
            if kept.done or loop.time() + POLL_S > until:
                self._restore(kept)
                return kept
            await asyncio.sleep(POLL_S)

    def claim_later(self, key: LedgerKey, ref: str, decision_id: UUID) -> None:
        """The call may run though that could not be written: write it when the database is back."""
        self._own[key] = row = Kept(decision_id, key, ref, done=False)
        self._store.settle(self._call, row, freed=False)

    def unclaim(self, key: LedgerKey, ref: str, decision_id: UUID) -> None:
        """The claim had no answer and nothing was allowed: what may have been written is taken back."""
        self._store.settle(self._call, Kept(decision_id, key, ref, done=False), freed=True)

    def socket_replaced(self) -> None:
        """Another socket of the agent goes on: what the old one was allowed is for it to tell of, if it knows."""
        self._foreign.update(self._own)
        self._own.clear()

    def decision(self, ref: str) -> UUID | None:
        """The decision about a tool call that an earlier connection was allowed."""
        return next((row.row_id for row in self._foreign.values() if row.ref == ref), None)

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """While this is open, what ends elsewhere is noticed: a repeat may be waiting for it."""
        following = None
        if self._foreign:
            following = asyncio.get_running_loop().create_task(self._follow(), name="mirror-ledger-follow")
        try:
            yield
        finally:
            if following is not None:
                following.cancel()

    # -- the engine's LedgerJournal

    async def pending(self, key: LedgerKey, tool_id: str) -> None:
        """Never asked: see `durable`."""
        raise NotImplementedError

    def done(self, key: LedgerKey, tool_id: str, result: Any) -> None:
        """The call ran."""
        row = self._own.pop(key, None) or self._foreign.pop(key, None)
        row_id = row.row_id if row is not None else uuid7()
        self._store.settle(self._call, Kept(row_id, key, tool_id, done=True, result=result), freed=False)

    def freed(self, key: LedgerKey, tool_id: str) -> None:
        """The call did not run; one that was never claimed leaves nothing."""
        row = self._own.pop(key, None) or self._foreign.pop(key, None)
        if row is not None:
            self._store.settle(self._call, row, freed=True)

    async def _load(self) -> None:
        try:
            for row in await self._store.load(self._call, within_s=LOAD_WITHIN_S):
                self._restore(row)
        except DatabaseSilent as problem:
            # A claim finds what this would have found.
            logger.warning("what call %s had been allowed before cannot be read: %s", self._call.call_id, problem)
        except Exception:
            logger.exception("the ledger of call %s could not be read", self._call.call_id)

    def _restore(self, row: Kept) -> None:
        assert self._ledger is not None
        if row.key in self._own and self._own[row.key].row_id == row.row_id:
            return
        if row.done:
            self._foreign.pop(row.key, None)
        else:
            self._foreign[row.key] = row
        self._ledger.restore(row.key, row.ref, done=row.done, result=row.result)

    async def _follow(self) -> None:
        while self._foreign:
            await asyncio.sleep(POLL_S)
            try:
                rows = {row.key: row for row in await self._store.load(self._call, within_s=LOAD_WITHIN_S)}
            except DatabaseSilent:
                continue
            self._compare(rows)

    def _compare(self, rows: Mapping[LedgerKey, Kept]) -> None:
        assert self._ledger is not None
        for key in list(self._foreign):
            row, entry = rows.get(key), self._ledger.get(key)
            if row is not None and row.done:
                self._restore(row)
            elif row is None:
                # Whoever had it says that it did not run.
                del self._foreign[key]
                if entry is not None:
                    self._ledger.free(key, entry)
