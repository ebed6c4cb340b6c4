"""The tools of one call on one node: the real gate and the real ledger in PostgreSQL, without the call's audio.

`python -m tests.stream.node DSN TENANT PLIVO_CALL` is such a node in a process of its own, for tests that kill it: it
reads one JSON frame a line, `{"event": "mirror.tool", …}` or `{"event": "mirror.tool_done", …}`, and prints what the
agent would be sent.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row


def connect(dsn: str) -> Callable[[], AbstractAsyncContextManager[Any]]:
    """Connections as the process's pool hands them out."""

    @asynccontextmanager
    async def connected() -> Any:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True, row_factory=dict_row) as connection:
            yield connection

    return connected


class Node:
    """One connection of a call, as a node has it."""

    def __init__(self, dsn: str, tenant_id: UUID, plivo_call_id: str, **config: Any) -> None:
        from mirror_saas.ids import uuid7
        from supervision.engine.config import MirrorConfig
        from supervision.engine.context import SupervisorContext
        from supervision.engine.supervisor import Supervisor
        from supervision.recorder.events import CallLog, RecordEvent
        from supervision.stream.approvals import ApprovalCall, CallApprovals, PostgresApprovals
        from supervision.stream.database import TenantDatabase
        from supervision.stream.ledger import CallLedger, LedgerCall, PostgresLedger
        from supervision.stream.tools import CallTools
        from tests.engine.llms import ScriptedLLM

        self.told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.events: list[RecordEvent] = []
        self.llm = ScriptedLLM()
        self.call_id = uuid7()
        self.database = TenantDatabase(connect(dsn))
        self.store = PostgresLedger(self.database)
        self.ledger = CallLedger(self.store, LedgerCall(tenant_id, plivo_call_id, self.call_id))
        supervisor = Supervisor(MirrorConfig(llm=self.llm, policies=["Never confirm a refund."], **config)).call(
            SupervisorContext(call_id=str(self.call_id)), journal=self.ledger, digest=self.ledger.digest
        )
        self.ledger.open(supervisor.ledger)
        self._tasks: set[asyncio.Task[None]] = set()
        log = CallLog(record=self.events.append, tenant_id=tenant_id, call_id=self.call_id)
        self.tools = CallTools(
            supervisor=supervisor,
            mode="live",
            log=log,
            recorder=self,  # type: ignore[arg-type]
            ledger=self.ledger,
            approvals=CallApprovals(
                PostgresApprovals(self.database),
                ApprovalCall(tenant_id, self.call_id, uuid7()),
                log=log,
                redact=lambda event: event,
                at_ms=lambda: 0,
            ),
            turn_of=lambda ref: None,
            to_agent=self.told.put_nowait,
            rejected=lambda code, message, ref: self.told.put_nowait({"event": "mirror.error", "code": code}),
            spawn=self._spawn,
            at_ms=lambda: 0,
        )

    async def commit(self, call_id: UUID | None = None) -> None:
        """The journal is on a disk that always works."""

    def take(self, frame: dict[str, Any]) -> None:
        """What the agent sends."""
        from supervision.stream import frames

        parsed = frames.parse(frame)
        if isinstance(parsed, frames.Tool):
            self.tools.ask(parsed, None, parsed.customer_text)
        else:
            assert isinstance(parsed, frames.ToolDone)
            self.tools.done(parsed)

    async def ask(self, tool_id: str, **tool: Any) -> dict[str, Any]:
        """Ask about a tool and wait for the verdict."""
        self.take({"event": "mirror.tool", "id": tool_id, **tool})
        async with asyncio.timeout(30):
            return await self.told.get()

    async def done(self, tool_id: str, **outcome: Any) -> None:
        """Say how a tool call ended; returns when that is in the ledger."""
        self.take({"event": "mirror.tool_done", "id": tool_id, **outcome})
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self.store.settled(self.ledger._call, within_s=30)

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self.store.aclose()
        await self.database.aclose()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def main(dsn: str, tenant_id: UUID, plivo_call_id: str) -> None:
    node = Node(dsn, tenant_id, plivo_call_id)

    async def tell() -> None:
        while True:
            print(json.dumps(await node.told.get()), flush=True)

    telling = asyncio.create_task(tell())
    while line := await asyncio.to_thread(sys.stdin.readline):
        node.take(json.loads(line))
    telling.cancel()


if __name__ == "__main__":
    import django

    django.setup()
    asyncio.run(main(sys.argv[1], UUID(sys.argv[2]), sys.argv[3]))
