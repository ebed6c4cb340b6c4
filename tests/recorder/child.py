"""A process that records calls until it is killed: `python -m tests.recorder.child JOURNAL_DIR DSN LINES`.

LINES is JSON, a list of `{"tenant": id, "agent": id}`, one call for each at a time. Prints the id of each event after
the commit that acknowledged it, so that whoever reads knows what must never be lost.
"""

from __future__ import annotations

import asyncio
import json
import sys
from itertools import count
from pathlib import Path
from uuid import UUID

from mirror_saas.ids import uuid7
from supervision.recorder.events import (
    CallEnded,
    CallLog,
    CallStarted,
    EventData,
    InterventionStep,
    MediaDropped,
    RecordEvent,
    TurnJudged,
    TurnReported,
)
from supervision.recorder.recorder import Recorder


def turn(index: int) -> list[EventData]:
    turn_id, intervention_id = uuid7(), uuid7()
    return [
        TurnReported(
            turn_id=turn_id, ref=f"t{index}", index=index, customer_text="c", text="t", language="en", at_ms=index
        ),
        TurnJudged(
            turn_id=turn_id,
            verdict_id=uuid7(),
            state="judged",
            score=0.1,
            threshold=0.7,
            rule=None,
            reason="",
            correction="",
            intervene=False,
            acted=False,
            withheld=None,
            latency_ms=1,
            at_ms=index,
        ),
        InterventionStep(intervention_id=intervention_id, step="clear_sent", at_ms=index),
        InterventionStep(intervention_id=intervention_id, step="cleared", at_ms=index),
        MediaDropped(direction="inbound", ms=20, at_ms=index),
    ]


def ended() -> CallEnded:
    return CallEnded(
        outcome="completed",
        ended_by="caller",
        close_code=1000,
        reason="",
        coverage_state=None,
        coverage_reason="",
        coverage=None,
        turns=3,
        judged=3,
        skipped=0,
        timed_out=0,
        failed=0,
        shed=0,
        interventions=0,
        tools_blocked=0,
        duration_ms=1,
        dropped_media_ms=None,
    )


async def calls(recorder: Recorder, tenant_id: UUID, agent_id: UUID) -> None:
    """Call after call of one tenant, each event acknowledged before the next batch."""
    unacknowledged: list[RecordEvent] = []

    def record(event: RecordEvent) -> None:
        recorder.record(event)
        unacknowledged.append(event)

    async def acknowledge() -> None:
        await recorder.commit()
        for event in unacknowledged:
            print(event.id, flush=True)
        unacknowledged.clear()

    for number in count(1):
        log = CallLog(record=record, tenant_id=tenant_id, call_id=uuid7())
        log.add(
            CallStarted(
                plivo_call_id=f"p{number}",
                stream_id="s",
                account_id="a",
                agent_id=agent_id,
                policy_id=None,
                policy_version_id=None,
                policy_version=None,
                mode="live",
                delivery="stream_first",
                encoding="audio/x-mulaw",
                sample_rate=8000,
            )
        )
        await acknowledge()
        for index in range(1, 4):
            for data in turn(index):
                log.add(data)
            await acknowledge()
        log.add(ended())
        await acknowledge()


async def main() -> None:
    directory, dsn, lines = sys.argv[1:]
    recorder = Recorder(Path(directory), dsn, announce=None)
    await recorder.start()
    await asyncio.gather(*(calls(recorder, UUID(line["tenant"]), UUID(line["agent"])) for line in json.loads(lines)))


if __name__ == "__main__":
    asyncio.run(main())
