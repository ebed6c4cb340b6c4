"""Events of calls for tests, and a look at what became of them in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from mirror_saas.ids import uuid7
from supervision.recorder.events import (
    AgentConnected,
    CallEnded,
    CallHello,
    CallLog,
    CallStarted,
    EventData,
    FrameRejected,
    InterventionEnded,
    InterventionStarted,
    InterventionStep,
    MediaDropped,
    NoteSent,
    RecordEvent,
    ToolDecided,
    ToolDone,
    TranscriptNoted,
    TurnHeard,
    TurnJudged,
    TurnReported,
    make_event,
)
from tests.factories import Tenancy

TABLES = (
    "supervision_call",
    "supervision_callevent",
    "supervision_turn",
    "supervision_verdict",
    "supervision_tooldecision",
    "supervision_intervention",
    "supervision_agentnote",
)
START = datetime(2026, 5, 6, 9, 30, tzinfo=UTC)


class Clock:
    """A wall clock that moves on by a millisecond each time it is read."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now


def call_log(record: Callable[[RecordEvent], None], tenancy: Tenancy, *, call_id: UUID | None = None) -> CallLog:
    return CallLog(record=record, tenant_id=tenancy.id, call_id=call_id or uuid7(), now=Clock())


def started(tenancy: Tenancy, **changes: Any) -> CallStarted:
    fields: dict[str, Any] = {
        "plivo_call_id": "plivo-1",
        "stream_id": "stream-1",
        "account_id": "MAXXXX",
        "agent_id": tenancy.agent.id,
        "policy_id": tenancy.policy.id,
        "policy_version_id": tenancy.version.id,
        "policy_version": tenancy.version.number,
        "mode": "live",
        "delivery": "stream_first",
        "encoding": "audio/x-mulaw",
        "sample_rate": 8000,
        "from_number": "+15550100",
        "to_number": "+15550199",
        "node": "node-1",
    }
    return CallStarted(**{**fields, **changes})


def reported(
    turn_id: UUID, *, index: int = 1, text: str = "Yes, I have refunded it.", at_ms: int = 2000
) -> TurnReported:
    return TurnReported(
        turn_id=turn_id,
        ref=f"t{index}",
        index=index,
        customer_text="Can I have my money back?",
        text=text,
        tool_calls=[{"id": "tool-1", "name": "process_payment", "args": {"amount": 5}, "irreversible": True}],
        language="en",
        at_ms=at_ms,
    )


def judged(turn_id: UUID, verdict_id: UUID, /, **changes: Any) -> TurnJudged:
    fields: dict[str, Any] = {
        "turn_id": turn_id,
        "verdict_id": verdict_id,
        "state": "judged",
        "score": 0.93,
        "threshold": 0.7,
        "rule": "Never confirm a refund.",
        "reason": 'The agent says "refunded".',
        "correction": "Offer a colleague.",
        "intervene": True,
        "acted": True,
        "withheld": None,
        "latency_ms": 210,
        "prompt_tokens": 420,
        "completion_tokens": 31,
        "at_ms": 2210,
    }
    return TurnJudged(**{**fields, **changes})


def ended(**changes: Any) -> CallEnded:
    fields: dict[str, Any] = {
        "outcome": "completed",
        "ended_by": "caller",
        "close_code": 1000,
        "reason": "caller hung up",
        "coverage_state": "full",
        "coverage_reason": "",
        "coverage": 1.0,
        "turns": 1,
        "judged": 1,
        "skipped": 0,
        "timed_out": 0,
        "failed": 0,
        "shed": 0,
        "interventions": 1,
        "tools_blocked": 1,
        "duration_ms": 9000,
        "dropped_media_ms": 40,
    }
    return CallEnded(**{**fields, **changes})


def whole_call(tenancy: Tenancy) -> list[EventData]:
    """A call with every kind but `agent.failed`: a turn judged bad, corrected and noted, and a blocked tool."""
    turn, verdict, tool, intervention = uuid7(), uuid7(), uuid7(), uuid7()
    return [
        started(tenancy),
        AgentConnected(at_ms=20, dial_ms=12),
        CallHello(sdk="tests/1", language="en", wants=["verdicts", "notes"], marks=True, at_ms=40),
        TranscriptNoted(at_ms=1500, role="customer", text="Can I have my money back?", final=True, language="en"),
        reported(turn),
        ToolDecided(
            decision_id=tool,
            turn_id=turn,
            ref="tool-1",
            name="process_payment",
            args={"amount": 5},
            irreversible=True,
            allow=False,
            code="policy",
            state="judged",
            score=0.9,
            reason="the rule forbids it",
            instruction="Say that you cannot do that.",
            latency_ms=180,
            prompt_tokens=400,
            completion_tokens=20,
            at_ms=2190,
        ),
        judged(turn, verdict),
        InterventionStarted(
            intervention_id=intervention,
            turn_id=turn,
            verdict_id=verdict,
            rule="Never confirm a refund.",
            plan="cut_now",
            at_ms=2215,
        ),
        InterventionStep(intervention_id=intervention, step="clear_sent", at_ms=2216),
        InterventionStep(intervention_id=intervention, step="cleared", at_ms=2240),
        NoteSent(
            note_id=uuid7(),
            rev=1,
            intervention_id=intervention,
            turn_id=turn,
            text="You were stopped.",
            said="I cannot confirm that.",
            heard_text="Yes, I",
            heard_ms=800,
            dropped=[],
            expires_turns=2,
            at_ms=2900,
        ),
        ToolDone(decision_id=tool, ref="tool-1", ok=False, result={"error": "blocked"}, cancelled=True, at_ms=3000),
        TurnHeard(
            turn_id=turn,
            audio_ms=2400,
            heard_ms=800,
            heard_text="Yes, I",
            uncertain_text="have",
            unheard_text="refunded it.",
            basis="pauses",
            at_ms=3100,
        ),
        FrameRejected(code="bad_json", message="not JSON", at_ms=3200),
        MediaDropped(direction="inbound", ms=40, at_ms=3300),
        InterventionStep(intervention_id=intervention, step="correction_played", at_ms=6000),
        InterventionEnded(
            intervention_id=intervention,
            outcome="completed",
            buffer_text="One moment, please.",
            correction_text="I cannot confirm that. May I connect you?",
            correction_source="llm",
            heard_ms=800,
            violation_heard_ms=300,
            violation_basis="quote",
            silence_proof="cleared",
            gap_ms_cut_to_buffer=60,
            gap_ms_buffer_to_correction=20,
            at_ms=6010,
        ),
        ended(),
    ]


def event(data: EventData, tenancy: Tenancy, call_id: UUID, seq: int) -> RecordEvent:
    """One event outside a CallLog, for tests that forge them."""
    return make_event(data, tenant_id=tenancy.id, call_id=call_id, seq=seq, at=START + timedelta(milliseconds=seq))


def rows(app_url: str, tenancy: Tenancy, table: str, order: str = "id") -> list[dict[str, Any]]:
    """The rows of a tenant, as mirror_app sees them under row-level security."""
    with psycopg.connect(app_url, row_factory=dict_row) as connection:
        connection.execute("SELECT set_config('app.tenant_id', %s, true)", [str(tenancy.id)])
        return connection.execute(f"SELECT * FROM {table} ORDER BY {order}".encode()).fetchall()


def row(app_url: str, tenancy: Tenancy, table: str) -> dict[str, Any]:
    """The only row of a tenant in a table."""
    [only] = rows(app_url, tenancy, table)
    return only


def everything(app_url: str, tenancy: Tenancy) -> dict[str, list[dict[str, Any]]]:
    """All that a tenant has of calls."""
    return {table: rows(app_url, tenancy, table) for table in TABLES}


def seqs(app_url: str, tenancy: Tenancy, call_id: UUID) -> Sequence[int]:
    """The numbers of a call's events in PostgreSQL."""
    return [e["seq"] for e in rows(app_url, tenancy, "supervision_callevent", "seq") if e["call_id"] == call_id]
