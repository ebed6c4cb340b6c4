"""What happened in calls, for the webhooks that want to hear of it: rows of supervision_webhookdelivery; and what went
wrong in them, for the members who are mailed of that: rows of supervision_alarm.

They are written in the transaction of the rows that they tell of, so there is one if and only if there is the other.
What they tell are ids and facts: nothing that was said, no number of a caller, no argument of a tool.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import orjson
import psycopg

from supervision.alarms import alarm_kind
from supervision.recorder.events import RecordEvent
from supervision.webhooks import event_id

# Parameters: the tenant. The endpoints stay until this transaction has ended: deleting one waits for it.
_ENDPOINTS: Final = (
    b"SELECT id, event_types FROM supervision_webhookendpoint"
    b" WHERE tenant_id = %s AND enabled ORDER BY id FOR KEY SHARE"
)
# Parameters: the tenant.
_ALARMS_WANTED: Final = (
    b"SELECT DISTINCT jsonb_array_elements_text(kinds) FROM supervision_alarmrecipient WHERE tenant_id = %s"
)
_COUNTS: Final = ("turn_count", "judged_count", "skipped_count", "timed_out_count", "failed_count", "shed_count")
_CALL_FACTS: Final = (
    "id",
    "state",
    "agent_id",
    "test",
    "policy_id",
    "policy_version",
    "mode",
    "outcome",
    "ended_by",
    "duration_ms",
    "coverage_state",
    "coverage_reason",
    "coverage",
    *_COUNTS,
    "intervention_count",
    "tools_blocked_count",
)
_CALLS: Final = (
    f"SELECT {', '.join(_CALL_FACTS)} FROM supervision_call WHERE tenant_id = %s AND id = ANY(%s)".encode()  # noqa: S608
)
# How the newest turns of calls were judged, as far as they were: parameters how many turns, tenant, call ids.
_NEWEST_STATES: Final = b"""
SELECT wanted.call_id, array_agg(v.state)
  FROM unnest(%(calls)s::uuid[]) AS wanted(call_id),
       LATERAL (SELECT state FROM supervision_verdict
                 WHERE tenant_id = %(tenant)s AND call_id = wanted.call_id AND NOT late
                 ORDER BY at_ms DESC, id DESC LIMIT %(turns)s) AS v
 GROUP BY wanted.call_id
"""
_INSERT: Final = b"""
INSERT INTO supervision_webhookdelivery
       (id, tenant_id, endpoint_id, event_id, type, occurred_at, data, next_attempt_at, created_at)
SELECT r.id, %s, r.endpoint_id, r.event_id, r.type, r.occurred_at, r.data, statement_timestamp(), statement_timestamp()
  FROM json_to_recordset(%s)
    AS r(id uuid, endpoint_id uuid, event_id uuid, type text, occurred_at timestamptz, data jsonb)
    ON CONFLICT (tenant_id, endpoint_id, event_id) DO NOTHING
"""

_INSERT_ALARMS: Final = b"""
INSERT INTO supervision_alarm (id, tenant_id, kind, event_id, occurred_at, data, created_at)
SELECT r.id, %s, r.kind, r.event_id, r.occurred_at, r.data, statement_timestamp()
  FROM json_to_recordset(%s) AS r(id uuid, kind text, event_id uuid, occurred_at timestamptz, data jsonb)
    ON CONFLICT (tenant_id, event_id) DO NOTHING
"""

# A running call raises the alarm `low` when less than this share of its turns is covered, once there are so many …
ALARM_SHARE: Final = 0.8
ALARM_TURNS: Final = 5
# … and `degraded` when so many turns in a row were not judged.
DEGRADED_TURNS: Final = 3
_COVERED: Final = frozenset({"judged", "skipped"})

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Told:
    """An event as webhooks tell it; `subject` is what it happened to. `state` tells those apart that may happen to it
    more than once."""

    type: str
    subject: UUID
    occurred_at: datetime
    data: dict[str, Any]
    state: str = ""


def is_told(event: RecordEvent) -> bool:
    """Whether webhooks may tell of an event."""
    if event.kind == "turn.judged":
        return not event.data.get("late") and event.data.get("state") not in _COVERED
    return event.kind in _TOLD and (event.kind != "tool.decided" or not event.data.get("allow"))


async def outbox_write(
    cursor: psycopg.AsyncCursor[tuple[Any, ...]],
    tenant_id: UUID,
    events: Sequence[RecordEvent],
    new_id: Callable[[], UUID],
) -> None:
    """Put `events`, whose rows this transaction has written, into the outbox of each endpoint that wants them, and
    raise the alarms that members are mailed of."""
    told = [event for event in events if is_told(event)]
    if not told:
        return
    await cursor.execute(_ENDPOINTS, (tenant_id,))
    endpoints = await cursor.fetchall()
    await cursor.execute(_ALARMS_WANTED, (tenant_id,))
    alarms_wanted = {kind for (kind,) in await cursor.fetchall()}
    if not endpoints and not alarms_wanted:
        return
    await cursor.execute(_CALLS, (tenant_id, list({event.call_id for event in told})))
    calls = {row[0]: dict(zip(_CALL_FACTS, row, strict=True)) for row in await cursor.fetchall()}
    # Only an alarm needs to know, and hardly a call has one.
    uncovered = {
        event.call_id
        for event in told
        if event.kind == "turn.judged" and event.call_id in calls and calls[event.call_id]["state"] == "live"
    }
    if uncovered:
        await cursor.execute(_NEWEST_STATES, {"tenant": tenant_id, "calls": list(uncovered), "turns": DEGRADED_TURNS})
        for call_id, states in await cursor.fetchall():
            calls[call_id]["newest_states"] = states
    # An event whose call never reached the record: it is kept as an event, and there is nothing to tell yet.
    happened = [
        each for event in told if event.call_id in calls for each in _TOLD[event.kind](event, calls[event.call_id])
    ]
    rows = [
        {"endpoint_id": endpoint_id, "type": each.type, **_row(each, new_id)}
        for each in happened
        for endpoint_id, types in endpoints
        if each.type in types
    ]
    if rows:
        await cursor.execute(_INSERT, (tenant_id, orjson.dumps(rows).decode()))
    alarms = [
        {"kind": kind, **_row(each, new_id)}
        for each in happened
        # Whoever places a test call looks on.
        if not each.data["test"] and (kind := alarm_kind(each.type, each.data)) in alarms_wanted
    ]
    if alarms:
        await cursor.execute(_INSERT_ALARMS, (tenant_id, orjson.dumps(alarms).decode()))


def _row(told: Told, new_id: Callable[[], UUID]) -> dict[str, Any]:
    return {
        "id": new_id(),
        "event_id": event_id(told.type, told.subject, told.state),
        "occurred_at": told.occurred_at,
        "data": told.data,
    }


def _call_started(event: RecordEvent, call: Facts) -> list[Told]:
    data = {
        **_ids(call),
        "policy_id": call["policy_id"],
        "policy_version": call["policy_version"],
        "mode": call["mode"],
    }
    return [Told("call.started", event.call_id, event.at, data)]


def _call_ended(event: RecordEvent, call: Facts) -> list[Told]:
    # From the call's row: it has what ended the call first, and the counts of a call whose process died.
    coverage = _coverage(call)
    names = ("outcome", "ended_by", "duration_ms", "intervention_count", "tools_blocked_count")
    # A call that goes on after its end, for its stream came back, ends once more.
    subject = event.call_id if event.epoch == 1 else event.id
    ended = Told("call.ended", subject, event.at, {**_ids(call), **{name: call[name] for name in names}, **coverage})
    if call["coverage_state"] == "full":
        return [ended]
    return [ended, Told("coverage.alarm", subject, event.at, {**_ids(call), **coverage, "alarm": "ended"})]


def _turn_not_judged(event: RecordEvent, call: Facts) -> list[Told]:
    # What had ended when this was stored tells of itself by its end.
    if call["state"] != "live":
        return []
    alarms = []
    newest = call.get("newest_states", ())
    if len(newest) >= DEGRADED_TURNS and _COVERED.isdisjoint(newest):
        alarms.append("degraded")
    closed = sum(call[name] for name in _COUNTS[1:])
    if closed >= ALARM_TURNS and call["judged_count"] + call["skipped_count"] < ALARM_SHARE * closed:
        alarms.append("low")
    data = {**_ids(call), **_coverage(call), "coverage_state": None}
    return [Told("coverage.alarm", event.call_id, event.at, {**data, "alarm": each}, each) for each in alarms]


def _intervention_started(event: RecordEvent, call: Facts) -> list[Told]:
    names = ("intervention_id", "turn_id", "verdict_id", "plan", "at_ms")
    return [_of(event, call, "intervention.started", "intervention_id", names)]


def _intervention_ended(event: RecordEvent, call: Facts) -> list[Told]:
    names = (
        "intervention_id",
        "outcome",
        "heard_ms",
        "violation_heard_ms",
        "gap_ms_cut_to_buffer",
        "gap_ms_buffer_to_correction",
        "at_ms",
    )
    return [_of(event, call, "intervention.ended", "intervention_id", names)]


def _tool_blocked(event: RecordEvent, call: Facts) -> list[Told]:
    names = ("decision_id", "turn_id", "name", "irreversible", "code", "at_ms")
    told = _of(event, call, "tool.blocked", "decision_id", names)
    # As in lists of tool decisions.
    told.data["name"] = str(told.data["name"])[:200]
    return [told]


def _approval_requested(event: RecordEvent, call: Facts) -> list[Told]:
    names = ("decision_id", "turn_id", "name", "irreversible", "on_silence", "within_ms", "at_ms")
    told = _of(event, call, "approval.requested", "decision_id", names)
    told.data["name"] = str(told.data["name"])[:200]
    return [told]


def _approval_decided(event: RecordEvent, call: Facts) -> list[Told]:
    return [_of(event, call, "approval.decided", "decision_id", ("decision_id", "outcome", "waited_ms", "at_ms"))]


def _of(event: RecordEvent, call: Facts, event_type: str, subject: str, names: Sequence[str]) -> Told:
    data = {**_ids(call), **{name: event.data[name] for name in names}}
    return Told(event_type, UUID(event.data[subject]), event.at, data)


def _coverage(call: Facts) -> dict[str, Any]:
    return {name: call[name] for name in ("coverage_state", "coverage_reason", "coverage", *_COUNTS)}


def _ids(call: Facts) -> dict[str, Any]:
    return {"call_id": call["id"], "agent_id": call["agent_id"], "test": call["test"]}


_TOLD: Final[dict[str, Callable[[RecordEvent, Facts], list[Told]]]] = {
    "call.started": _call_started,
    "call.ended": _call_ended,
    "turn.judged": _turn_not_judged,
    "intervention.started": _intervention_started,
    "intervention.ended": _intervention_ended,
    "tool.decided": _tool_blocked,
    "approval.requested": _approval_requested,
    "approval.decided": _approval_decided,
}
