"""Tool calls that wait for a person: stored with their deadline, so that anybody may decide on any node.

The row in PostgreSQL is the truth: whoever changes it from `waiting` first has decided, a person
(`supervision.services.approvals`), the deadline, or the end of the call. What comes through the call's mailbox only
says that it is time to look; without it the call looks once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol
from uuid import UUID

import orjson

from supervision.engine.approval import (
    Approval,
    HoldRhythm,
    approval_needed,
    refused_by,
    with_approval,
    with_silence,
)
from supervision.engine.config import PolicyConfig
from supervision.engine.context import JudgingState, ToolCallIntent, ToolCode, ToolVerdict
from supervision.recorder import events as record
from supervision.recorder.events import CallLog, RecordEvent
from supervision.stream.database import Connection, DatabaseSilent, TenantDatabase

logger = logging.getLogger(__name__)

APPROVAL: Final = "approval"  # the message that says of which tool call the row changed

WRITE_WITHIN_S: Final = 1.0
LOOK_EVERY_S: Final = 1.0
# Kept back from the agent's own patience, for the verdict to be written down and to reach it.
ANSWER_BEFORE_S: Final = 0.5
# Somebody has to see it, think and press: with less nobody is asked.
ASK_AT_LEAST_S: Final = 2.0
MAX_NAME_CHARS: Final = 200
TABLE: Final = "supervision_approval"

_TOO_SHORT: Final = "it needs a person's approval, and the agent does not wait long enough for one (timeout_ms)"
_TOO_LATE: Final = "a person approved it when the agent had stopped waiting, so it is void"
_UNASKED: Final = "a person could not be asked"
_ENDED: Final = "the call ended before a person decided"
_WITHDRAWN: Final = "the agent withdrew it before a person decided"
_INSTEAD: Final = "It did not run: do not say that it did. Tell the caller that this cannot be done right now."


@dataclass(frozen=True, slots=True)
class ApprovalCall:
    """Whose tool calls wait."""

    tenant_id: UUID
    call_id: UUID
    agent_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A row to be written: the tool call `decision_id`, with its arguments as they may be stored."""

    decision_id: UUID
    ref: str
    tool: str
    args: Any
    irreversible: bool
    on_silence: str
    within_s: float


@dataclass(frozen=True, slots=True)
class Standing:
    """How a row stands: its state (`Approval.State`), who decided, and with what note."""

    state: str
    by: str = ""
    note: str = ""


class ApprovalStore(Protocol):
    """Where the rows are. Everything raises DatabaseSilent."""

    async def ask(self, call: ApprovalCall, waiting: Waiting) -> None:
        """Write the row; from then on anybody may decide."""
        ...

    async def look(self, call: ApprovalCall, decision_id: UUID) -> Standing:
        """How the row stands."""
        ...

    async def close(self, call: ApprovalCall, decision_id: UUID, *, was: str, state: str) -> Standing:
        """Change the row's state if it still is `was`; returns how it stands then."""
        ...


_ASK: Final = f"""
INSERT INTO {TABLE} (id, tenant_id, call_id, agent_id, ref, tool, args, irreversible, on_silence, requested_at,
                     expires_at)
VALUES (%(id)s, %(tenant)s, %(call)s, %(agent)s, %(ref)s, %(tool)s, %(args)s, %(irreversible)s, %(on_silence)s,
        statement_timestamp(), statement_timestamp() + %(within_s)s * interval '1 second')
    ON CONFLICT (id) DO NOTHING
"""  # noqa: S608 (constant names)
_LOOK: Final = f"SELECT state, decided_by, note FROM {TABLE} WHERE tenant_id = %(tenant)s AND id = %(id)s"  # noqa: S608
_CLOSE: Final = f"""
UPDATE {TABLE} SET state = %(state)s, decided_at = coalesce(decided_at, statement_timestamp())
 WHERE tenant_id = %(tenant)s AND id = %(id)s AND state = %(was)s
"""  # noqa: S608 (constant names)


class PostgresApprovals:
    """The `ApprovalStore` of a process."""

    def __init__(self, database: TenantDatabase) -> None:
        self._database = database

    async def ask(self, call: ApprovalCall, waiting: Waiting) -> None:
        """See `ApprovalStore.ask`."""
        values = {
            "id": waiting.decision_id,
            "tenant": call.tenant_id,
            "call": call.call_id,
            "agent": call.agent_id,
            "ref": waiting.ref,
            "tool": waiting.tool,
            "args": orjson.dumps(waiting.args).decode() if waiting.args is not None else None,
            "irreversible": waiting.irreversible,
            "on_silence": waiting.on_silence,
            "within_s": waiting.within_s,
        }

        async def insert(connection: Connection) -> None:
            await connection.execute(_ASK, values)

        await self._database.run(call.tenant_id, insert, within_s=WRITE_WITHIN_S)

    async def look(self, call: ApprovalCall, decision_id: UUID) -> Standing:
        """See `ApprovalStore.look`."""
        values = {"tenant": call.tenant_id, "id": decision_id}
        return await self._database.run(call.tenant_id, lambda c: _standing(c, values), within_s=WRITE_WITHIN_S)

    async def close(self, call: ApprovalCall, decision_id: UUID, *, was: str, state: str) -> Standing:
        """See `ApprovalStore.close`."""
        values = {"tenant": call.tenant_id, "id": decision_id, "was": was, "state": state}

        async def close(connection: Connection) -> Standing:
            await connection.execute(_CLOSE, values)
            return await _standing(connection, values)

        return await self._database.run(call.tenant_id, close, within_s=WRITE_WITHIN_S)


async def _standing(connection: Connection, values: dict[str, Any]) -> Standing:
    row = await (await connection.execute(_LOOK, values)).fetchone()
    if row is None:
        # Erased under the call, or rolled back: nobody can decide it any more.
        return Standing("cancelled")
    return Standing(row["state"], row["decided_by"], row["note"])


@dataclass(slots=True)
class _Wait:
    """A tool call that waits now."""

    looked: asyncio.Event
    withdrawn: bool = False


# Says the next hold line, if the line is quiet; returns seconds after which to ask again.
Hold = Callable[[HoldRhythm], Awaitable[float]]


class CallApprovals:
    """The tool calls of one call that wait for a person."""

    def __init__(
        self,
        store: ApprovalStore,
        call: ApprovalCall,
        *,
        log: CallLog,
        redact: Callable[[RecordEvent], RecordEvent],
        at_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._call = call
        self._log = log
        self._redact = redact
        self._at_ms = at_ms
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[UUID, _Wait] = {}
        self._rhythm = HoldRhythm()
        self._holding: asyncio.Task[None] | None = None
        self._ended = False
        self.hold: Hold | None = None

    def needed(self, config: PolicyConfig, intent: ToolCallIntent) -> bool:
        """Whether a person has to approve this tool call."""
        return approval_needed(config, intent)

    async def decided(
        self,
        verdict: ToolVerdict,
        intent: ToolCallIntent,
        *,
        config: PolicyConfig,
        decision_id: UUID,
        turn_id: UUID | None,
        irreversible: bool,
        asked_at: float,
        timeout_ms: int | None,
        fails_open: bool,
    ) -> ToolVerdict:
        """The gate's ``verdict``, which allows, once a person has decided, or nobody in time.

        ``asked_at`` is the loop time at which the agent asked, ``timeout_ms`` how long it waits from then.
        ``fails_open`` decides when nobody can be asked because the row cannot be written.
        """
        patience_s = None if timeout_ms is None else timeout_ms / 1000
        until = asked_at + config.approval_timeout_ms / 1000
        if patience_s is not None:
            until = min(until, asked_at + patience_s - ANSWER_BEFORE_S)
        within_s = until - self._loop.time()
        if within_s < min(ASK_AT_LEAST_S, config.approval_timeout_ms / 1000 / 2):
            return refused_by(verdict, ToolCode.TIMEOUT, _TOO_SHORT, _INSTEAD)
        requested = self._log.add(
            record.ApprovalRequested(
                decision_id=decision_id,
                turn_id=turn_id,
                ref=intent.id,
                name=intent.name,
                args=intent.args,
                irreversible=irreversible,
                on_silence=config.approval_on_silence,
                within_ms=round(within_s * 1000),
                at_ms=self._at_ms(),
            )
        )
        began = self._loop.time()
        wait = self._waiting[decision_id] = _Wait(asyncio.Event())
        try:
            # As the record has it: what must not be stored is not stored here either.
            stored = await asyncio.to_thread(self._redact, requested)
            waiting = Waiting(
                decision_id=decision_id,
                ref=intent.id[:MAX_NAME_CHARS],
                tool=intent.name[:MAX_NAME_CHARS],
                args=stored.data["args"],
                irreversible=irreversible,
                on_silence=config.approval_on_silence,
                within_s=max(0.0, until - self._loop.time()),
            )
            await self._store.ask(self._call, waiting)
        except DatabaseSilent as problem:
            logger.warning("a person cannot be asked about a tool call: %s", problem)
            del self._waiting[decision_id]
            self._record_end(decision_id, Standing("unasked"), began)
            if fails_open:
                return verdict
            return refused_by(_failed(verdict), ToolCode.FAILED, _UNASKED, _INSTEAD)
        self._hold()
        try:
            standing = await self._outcome(decision_id, wait, until)
        except asyncio.CancelledError:
            self._record_end(decision_id, Standing("cancelled"), began)
            raise
        finally:
            del self._waiting[decision_id]
        if standing.state == "approved" and patience_s is not None and self._loop.time() > asked_at + patience_s:
            with contextlib.suppress(DatabaseSilent):
                await self._store.close(self._call, decision_id, was="approved", state="void")
            standing = Standing("void", standing.by, standing.note)
        self._record_end(decision_id, standing, began)
        return self._verdict(verdict, standing, config, wait)

    def look(self, decision_id: UUID) -> bool:
        """Somebody decided: look at the row. False when nothing waits under this id."""
        wait = self._waiting.get(decision_id)
        if wait is not None:
            wait.looked.set()
        return wait is not None

    def withdrawn(self, decision_id: UUID) -> None:
        """The agent says that it will not run the tool after all, or has run it."""
        wait = self._waiting.get(decision_id)
        if wait is not None:
            wait.withdrawn = True
            wait.looked.set()

    def end(self) -> None:
        """The call is over: nobody needs to decide any more."""
        self._ended = True
        for wait in self._waiting.values():
            wait.looked.set()
        if self._holding is not None:
            self._holding.cancel()

    # -- waiting

    async def _outcome(self, decision_id: UUID, wait: _Wait, until: float) -> Standing:
        while not (self._ended or wait.withdrawn):
            left_s = until - self._loop.time()
            if left_s <= 0:
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, LOOK_EVERY_S)):
                    await wait.looked.wait()
            wait.looked.clear()
            if self._ended or wait.withdrawn or self._loop.time() >= until:
                break
            try:
                standing = await self._store.look(self._call, decision_id)
            except DatabaseSilent:
                continue
            if standing.state != "waiting":
                return standing
        state = "cancelled" if self._ended or wait.withdrawn else "expired"
        try:
            # Whoever was first has decided: a person's word that came in time counts.
            return await self._store.close(self._call, decision_id, was="waiting", state=state)
        except DatabaseSilent as problem:
            logger.warning("the end of an approval cannot be stored: %s", problem)
            return Standing(state)

    def _verdict(self, verdict: ToolVerdict, standing: Standing, config: PolicyConfig, wait: _Wait) -> ToolVerdict:
        if standing.state in ("approved", "denied"):
            return with_approval(verdict, Approval(standing.state == "approved", standing.note, standing.by))
        if standing.state == "expired":
            return with_silence(verdict, config)
        if standing.state == "void":
            return refused_by(verdict, ToolCode.TIMEOUT, _TOO_LATE, _INSTEAD)
        return refused_by(verdict, ToolCode.CANCELLED, _WITHDRAWN if wait.withdrawn else _ENDED, _INSTEAD)

    def _record_end(self, decision_id: UUID, standing: Standing, began: float) -> None:
        self._log.add(
            record.ApprovalDecided(
                decision_id=decision_id,
                outcome=standing.state,
                by=standing.by,
                note=standing.note,
                waited_ms=round((self._loop.time() - began) * 1000),
                at_ms=self._at_ms(),
            )
        )

    # -- what the caller hears meanwhile

    def _hold(self) -> None:
        if self.hold is not None and (self._holding is None or self._holding.done()):
            self._holding = self._loop.create_task(self._hold_on(self.hold), name="mirror-hold-lines")

    async def _hold_on(self, hold: Hold) -> None:
        while self._waiting and not self._ended:
            try:
                again_s = await hold(self._rhythm)
            except Exception:
                # A caller who waits in silence is better than a tool call that is not decided.
                logger.exception("a hold line could not be said")
                return
            await asyncio.sleep(again_s)


def _failed(verdict: ToolVerdict) -> ToolVerdict:
    return replace(verdict, state=JudgingState.FAILED)
