"""Which events of a call's older sockets still count, once a newer one has the call.

What an owner recorded while the call was its own is the truth of that time, however late its journal is read: turns,
verdicts and tool decisions are stored. What it records after it lost the call is not: the call is somebody else's then.
And nothing of an older epoch says how the call stands now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import psycopg

from supervision.recorder.events import RecordEvent

# By how much the clocks of two nodes may differ.
CLOCKS_WITHIN: Final = timedelta(seconds=2)

# Parameters: tenant, call ids.
_EPOCHS: Final = (
    b"SELECT id, epoch, epoch_at, epoch_after_seq FROM supervision_call"
    b" WHERE tenant_id = %s AND id = ANY(%s) AND epoch > 1"
)
# Events that write the row of the call itself.
_OF_THE_CALL: Final = frozenset(
    {"call.started", "call.resumed", "call.hello", "agent.connected", "agent.failed", "call.ended"}
)


@dataclass(frozen=True, slots=True)
class Epoch:
    """A call's newest epoch: when it began, and the last number of the one before, if that told it."""

    number: int
    at: datetime | None
    after_seq: int | None

    def refuses(self, event: RecordEvent) -> bool:
        """Whether an event of an older epoch was recorded after this one began."""
        if self.after_seq is not None and event.epoch == self.number - 1:
            return event.seq > self.after_seq
        return self.at is not None and event.at > self.at + CLOCKS_WITHIN


@dataclass(frozen=True, slots=True)
class Fenced:
    """A batch after the fence. `kept` are stored, `projected` of these change tables besides; the `refused` are not
    stored. `left` are calls of which an older socket's process died, so that its turns may be left unjudged."""

    kept: list[RecordEvent]
    projected: list[RecordEvent]
    refused: list[RecordEvent]
    left: list[UUID]


async def epochs_ask(cursor: psycopg.AsyncCursor[tuple[Any, ...]], tenant_id: UUID, calls: Sequence[UUID]) -> None:
    """Ask for the newest epochs of a tenant's calls, in a pipeline; `epochs_answered` waits for the answer."""
    await cursor.execute(_EPOCHS, (tenant_id, list(calls)))


async def epochs_answered(cursor: psycopg.AsyncCursor[tuple[Any, ...]]) -> dict[UUID, Epoch]:
    """The newest epochs of those calls that are beyond their first."""
    return {row[0]: Epoch(*row[1:]) for row in await cursor.fetchall()}


def fenced(events: Sequence[RecordEvent], newest: dict[UUID, Epoch]) -> Fenced:
    """Sort out what older owners of calls recorded, among events of one tenant in the order of their journal. Calls
    that are not in `newest` are in their first epoch."""
    result = Fenced([], [], [], [])
    for event in events:
        epoch = newest.get(event.call_id)
        if event.kind == "call.resumed" and (epoch is None or event.epoch > epoch.number):
            newest[event.call_id] = epoch = Epoch(event.epoch, event.at, event.data.get("after_seq"))
        if epoch is None or event.epoch >= epoch.number:
            result.kept.append(event)
            result.projected.append(event)
        elif event.kind == "call.ended":
            # The call did not end there, it went on.
            result.refused.append(event)
            result.left.append(event.call_id)
        elif epoch.refuses(event):
            result.refused.append(event)
        else:
            result.kept.append(event)
            if event.kind not in _OF_THE_CALL:
                result.projected.append(event)
    return result
