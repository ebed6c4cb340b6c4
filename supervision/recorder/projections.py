"""What each kind of event means for the tables: pure functions from events to patches, and patches to SQL.

A patch names a row and what the event says of it. The patches of a batch are merged row by row, in order, so that an
intervention with ten steps is one upsert; then each table gets one multi-row statement per set of columns.

Events of a call can come out of order (a verdict before its turn): whoever comes first makes the row with `stub`
values for the columns that PostgreSQL insists on, the other one fills it in.

Rows travel as one JSON document per statement (`json_to_recordset`): one parameter to encode and to parse, however
many rows. Row-level security, not these statements, keeps tenants apart; `tenant_id` stands in them for the indexes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final
from uuid import UUID

import orjson

from supervision.recorder.events import JSON, RecordEvent

CALL: Final = "supervision_call"
CALL_EVENT: Final = "supervision_callevent"
TURN: Final = "supervision_turn"
VERDICT: Final = "supervision_verdict"
TOOL_DECISION: Final = "supervision_tooldecision"
INTERVENTION: Final = "supervision_intervention"
NOTE: Final = "supervision_agentnote"

_UUID: Final = "uuid"
_TEXT: Final = "text"
_INT: Final = "integer"
_BIG: Final = "bigint"
_FLOAT: Final = "double precision"
_BOOL: Final = "boolean"
_JSON: Final = "jsonb"
_TIME: Final = "timestamptz"


def _word(length: int) -> str:
    return f"varchar({length})"


# Every column that a patch may name, with its type; a varchar(n) takes the first n characters of what it gets.
COLUMNS: Final[dict[str, dict[str, str]]] = {
    CALL_EVENT: {
        "id": _UUID,
        "call_id": _UUID,
        "seq": _BIG,
        "at": _TIME,
        "kind": _word(64),
        "data": _JSON,
    },
    CALL: {
        "id": _UUID,
        "agent_id": _UUID,
        "policy_id": _UUID,
        "policy_version_id": _UUID,
        "policy_version": _INT,
        "state": _word(8),
        "started_at": _TIME,
        "ended_at": _TIME,
        "plivo_call_id": _word(200),
        "stream_id": _word(200),
        "account_id": _word(200),
        "from_number": _word(64),
        "to_number": _word(64),
        "mode": _word(8),
        "delivery": _word(16),
        "encoding": _word(32),
        "sample_rate": _INT,
        "node": _word(200),
        "storage_limit": _BOOL,
        "test": _BOOL,
        "epoch": _INT,
        "epoch_at": _TIME,
        "epoch_after_seq": _BIG,
        "hello_at_ms": _BIG,
        "sdk": _word(200),
        "language": _word(35),
        "wants": _JSON,
        "marks": _BOOL,
        "agent_connected_at_ms": _BIG,
        "dial_ms": _BIG,
        "agent_failed_at_ms": _BIG,
        "agent_failure": _TEXT,
        "outcome": _word(16),
        "ended_by": _word(16),
        "close_code": _INT,
        "reason": _TEXT,
        "coverage_state": _word(16),
        "coverage_reason": _TEXT,
        "coverage": _FLOAT,
        "turn_count": _INT,
        "judged_count": _INT,
        "skipped_count": _INT,
        "timed_out_count": _INT,
        "failed_count": _INT,
        "shed_count": _INT,
        "intervention_count": _INT,
        "tools_blocked_count": _INT,
        "duration_ms": _BIG,
        "dropped_media_ms": _BIG,
    },
    TURN: {
        "id": _UUID,
        "call_id": _UUID,
        "ref": _word(200),
        "index": _INT,
        "customer_text": _TEXT,
        "text": _TEXT,
        "tool_calls": _JSON,
        "language": _word(35),
        "at_ms": _BIG,
        "audio_ms": _BIG,
        "heard_ms": _BIG,
        "heard_text": _TEXT,
        "uncertain_text": _TEXT,
        "unheard_text": _TEXT,
        "heard_basis": _word(16),
        "heard_at_ms": _BIG,
    },
    VERDICT: {
        "id": _UUID,
        "call_id": _UUID,
        "turn_id": _UUID,
        "state": _word(16),
        "score": _FLOAT,
        "threshold": _FLOAT,
        "rule": _TEXT,
        "reason": _TEXT,
        "correction": _TEXT,
        "intervene": _BOOL,
        "acted": _BOOL,
        "withheld": _word(16),
        "latency_ms": _BIG,
        "prompt_tokens": _INT,
        "completion_tokens": _INT,
        "model": _word(200),
        "fallback": _BOOL,
        "late": _BOOL,
        "detail": _TEXT,
        "at_ms": _BIG,
    },
    TOOL_DECISION: {
        "id": _UUID,
        "call_id": _UUID,
        "turn_id": _UUID,
        "ref": _word(200),
        "name": _TEXT,
        "args": _JSON,
        "irreversible": _BOOL,
        "allow": _BOOL,
        "code": _word(16),
        "state": _word(16),
        "score": _FLOAT,
        "reason": _TEXT,
        "instruction": _TEXT,
        "latency_ms": _BIG,
        "prompt_tokens": _INT,
        "completion_tokens": _INT,
        "model": _word(200),
        "fallback": _BOOL,
        "at_ms": _BIG,
        "ok": _BOOL,
        "result": _JSON,
        "cancelled": _BOOL,
        "done_at_ms": _BIG,
    },
    INTERVENTION: {
        "id": _UUID,
        "call_id": _UUID,
        "turn_id": _UUID,
        "verdict_id": _UUID,
        "rule": _TEXT,
        "plan": _word(32),
        "at_ms": _BIG,
        "steps": _JSON,
        "outcome": _word(32),
        "ended_at_ms": _BIG,
        "buffer_text": _TEXT,
        "correction_text": _TEXT,
        "correction_source": _word(16),
        "heard_ms": _BIG,
        "violation_heard_ms": _BIG,
        "violation_basis": _word(16),
        "silence_proof": _word(16),
        "gap_ms_cut_to_buffer": _BIG,
        "gap_ms_buffer_to_correction": _BIG,
        "detail": _TEXT,
    },
    NOTE: {
        "id": _UUID,
        "call_id": _UUID,
        "turn_id": _UUID,
        "intervention_id": _UUID,
        "rev": _INT,
        "text": _TEXT,
        "said": _TEXT,
        "heard_text": _TEXT,
        "heard_ms": _BIG,
        "dropped": _JSON,
        "expires_turns": _INT,
        "at_ms": _BIG,
    },
}

# Links that a row can do without, when what they point at was never recorded.
_LINKS: Final[dict[str, tuple[str, ...]]] = {
    TOOL_DECISION: ("turn_id",),
    INTERVENTION: ("turn_id", "verdict_id"),
    NOTE: ("turn_id", "intervention_id"),
}


class Unprojectable(ValueError):
    """An event whose kind or data this version does not know; a newer one may have recorded it."""


@dataclass(slots=True)
class Patch:
    """What one event, or several in order, say of one row."""

    table: str
    id: str
    call_id: str
    # Columns that take this value, whether the row is new or not.
    set: dict[str, JSON] = field(default_factory=dict)
    # Columns that take this value in a new row only.
    stub: dict[str, JSON] = field(default_factory=dict)
    # Numbers to add to what stands there.
    add: dict[str, int] = field(default_factory=dict)
    # Entries to append to the JSON list that stands there.
    append: dict[str, list[JSON]] = field(default_factory=dict)

    def merge(self, later: Patch) -> None:
        """Take in what `later` says of the same row."""
        for column, value in later.set.items():
            self.set[column] = value
            self.add.pop(column, None)
        for column, value in later.stub.items():
            self.stub.setdefault(column, value)
        for column, number in later.add.items():
            if column in self.set:
                self.set[column] += number
            else:
                self.add[column] = self.add.get(column, 0) + number
        for column, entries in later.append.items():
            self.append.setdefault(column, []).extend(entries)


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL with two parameters: the tenant's id and the rows as JSON."""

    sql: bytes
    rows: bytes


@dataclass(frozen=True, slots=True)
class Projected:
    """What a batch of one tenant's events does to the tables, besides supervision_callevent."""

    statements: list[Statement]
    # Calls whose counters follow from rows that the batch touched.
    recount: list[UUID]
    # Calls that were ended for a process that died, so that nobody counted.
    abandoned: list[UUID]


def project(events: Iterable[RecordEvent], *, without_links: bool = False) -> Projected:
    """The statements for events of one tenant, in the order in which they were recorded.

    `without_links` leaves out what a row points at, as far as it can do without. Raises Unprojectable.
    """
    merged: dict[tuple[str, str], Patch] = {}
    recount: dict[UUID, None] = {}
    abandoned: dict[UUID, None] = {}
    for event in events:
        for patch in _patches(event):
            key = (patch.table, patch.id)
            if key in merged:
                merged[key].merge(patch)
            else:
                merged[key] = patch
        if event.kind in _COUNTED:
            recount[event.call_id] = None
        elif event.kind == "call.ended" and event.data["turns"] is None:
            abandoned[event.call_id] = None
    if without_links:
        _unlink(merged)
    groups: dict[tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]], list[Patch]] = {}
    for patch in merged.values():
        shape = (patch.table, tuple(patch.set), _stubs(patch), tuple(patch.add), tuple(patch.append))
        groups.setdefault(shape, []).append(patch)
    statements = [Statement(_sql(*shape), _rows(patches)) for shape, patches in groups.items()]
    return Projected(statements, list(recount), list(abandoned))


def _patches(event: RecordEvent) -> list[Patch]:
    make = _PROJECTIONS.get(event.kind)
    if make is None:
        raise Unprojectable(f"unknown kind {event.kind[:64]!r}")
    try:
        return make(event)
    except (KeyError, TypeError, AttributeError) as error:
        raise Unprojectable(f"{event.kind}: {type(error).__name__}") from error


def call_events(events: Sequence[RecordEvent]) -> Statement:
    """Insert the events themselves; returns the ids of those that were new."""
    rows = [
        {"id": e.id, "call_id": e.call_id, "seq": e.seq, "at": e.at, "kind": e.kind, "data": e.data} for e in events
    ]
    return Statement(_INSERT_CALL_EVENTS, orjson.dumps(rows))


# Events to patches, one function a kind


def _call(event: RecordEvent, **columns: JSON) -> Patch:
    call_id = str(event.call_id)
    return Patch(CALL, call_id, call_id, set=columns)


def _turn_stub(event: RecordEvent, turn_id: str | None) -> list[Patch]:
    if turn_id is None:
        return []
    return [Patch(TURN, turn_id, str(event.call_id), stub={"index": 0, "at_ms": event.data["at_ms"]})]


def _call_started(event: RecordEvent) -> list[Patch]:
    d = event.data
    return [
        _call(
            event,
            started_at=event.at,
            agent_id=d["agent_id"],
            policy_id=d["policy_id"],
            policy_version_id=d["policy_version_id"],
            policy_version=d["policy_version"],
            plivo_call_id=d["plivo_call_id"],
            stream_id=d["stream_id"],
            account_id=d["account_id"],
            from_number=d["from_number"],
            to_number=d["to_number"],
            mode=d["mode"],
            delivery=d["delivery"],
            encoding=d["encoding"],
            sample_rate=d["sample_rate"],
            node=d["node"],
            # Journals of before there was such a limit do not have it.
            storage_limit=bool(d.get("storage_limit")),
            # Nor do those of before calls could be placed from the console say that one was.
            test=bool(d.get("test")),
        )
    ]


def _call_moved(event: RecordEvent) -> list[Patch]:
    """The call goes on elsewhere, and its row with it."""
    return []


def _call_resumed(event: RecordEvent) -> list[Patch]:
    d = event.data
    [patch] = _call_started(event)
    for number in ("from_number", "to_number"):
        # A node that could ask nobody does not know them.
        if not d[number]:
            del patch.set[number]
    patch.set |= {
        "started_at": d["started_at"],
        "epoch": d["epoch"],
        "epoch_at": event.at,
        "epoch_after_seq": d["after_seq"],
        # It may have been ended for its lost socket.
        "state": "live",
        "ended_at": None,
        "outcome": "",
        "ended_by": "",
        "close_code": None,
        "reason": "",
        "coverage_state": "",
        "coverage_reason": "",
        "duration_ms": None,
    }
    return [patch]


def _call_hello(event: RecordEvent) -> list[Patch]:
    d = event.data
    wants = d["wants"] if isinstance(d["wants"], list) else []
    return [_call(event, hello_at_ms=d["at_ms"], sdk=d["sdk"], language=d["language"], wants=wants, marks=d["marks"])]


def _agent_connected(event: RecordEvent) -> list[Patch]:
    return [_call(event, agent_connected_at_ms=event.data["at_ms"], dial_ms=event.data["dial_ms"])]


def _agent_failed(event: RecordEvent) -> list[Patch]:
    return [_call(event, agent_failed_at_ms=event.data["at_ms"], agent_failure=event.data["reason"])]


def _nothing(event: RecordEvent) -> list[Patch]:
    """Kept as an event only."""
    return []


def _turn_reported(event: RecordEvent) -> list[Patch]:
    d = event.data
    tool_calls = d["tool_calls"] if isinstance(d["tool_calls"], list) else []
    return [
        Patch(
            TURN,
            d["turn_id"],
            str(event.call_id),
            set={
                "ref": d["ref"],
                "index": d["index"],
                "customer_text": d["customer_text"],
                "text": d["text"],
                "tool_calls": tool_calls,
                "language": d["language"],
                "at_ms": d["at_ms"],
            },
        )
    ]


def _turn_completed(event: RecordEvent) -> list[Patch]:
    [stub] = _turn_stub(event, event.data["turn_id"])
    stub.set = {"text": event.data["text"]}
    return [stub]


def _turn_judged(event: RecordEvent) -> list[Patch]:
    d = event.data
    verdict = {
        "turn_id": d["turn_id"],
        "state": d["state"],
        "score": d["score"],
        "threshold": d["threshold"],
        "rule": d["rule"],
        "reason": d["reason"],
        "correction": d["correction"],
        "intervene": d["intervene"],
        "acted": d["acted"],
        "withheld": d["withheld"] or "",
        "latency_ms": d["latency_ms"],
        "prompt_tokens": d["prompt_tokens"],
        "completion_tokens": d["completion_tokens"],
        "model": d.get("model", ""),
        "fallback": d.get("fallback", False),
        "late": d["late"],
        "detail": d["detail"],
        "at_ms": d["at_ms"],
    }
    return [*_turn_stub(event, d["turn_id"]), Patch(VERDICT, d["verdict_id"], str(event.call_id), set=verdict)]


def _turn_heard(event: RecordEvent) -> list[Patch]:
    d = event.data
    heard = {
        "audio_ms": d["audio_ms"],
        "heard_ms": d["heard_ms"],
        "heard_text": d["heard_text"],
        "uncertain_text": d["uncertain_text"],
        "unheard_text": d["unheard_text"],
        "heard_basis": d["basis"],
        "heard_at_ms": d["at_ms"],
    }
    [stub] = _turn_stub(event, d["turn_id"])
    stub.set = heard
    return [stub]


def _tool_decided(event: RecordEvent) -> list[Patch]:
    d = event.data
    decision = {
        "turn_id": d["turn_id"],
        "ref": d["ref"],
        "name": d["name"],
        "args": d["args"] if isinstance(d["args"], dict) else None,
        "irreversible": d["irreversible"],
        "allow": d["allow"],
        "code": d["code"],
        "state": d["state"],
        "score": d["score"],
        "reason": d["reason"],
        "instruction": d["instruction"],
        "latency_ms": d["latency_ms"],
        "prompt_tokens": d["prompt_tokens"],
        "completion_tokens": d["completion_tokens"],
        "model": d.get("model", ""),
        "fallback": d.get("fallback", False),
        "at_ms": d["at_ms"],
    }
    return [
        *_turn_stub(event, d["turn_id"]),
        Patch(TOOL_DECISION, d["decision_id"], str(event.call_id), set=decision),
    ]


def _tool_done(event: RecordEvent) -> list[Patch]:
    d = event.data
    return [
        Patch(
            TOOL_DECISION,
            d["decision_id"],
            str(event.call_id),
            set={"ok": d["ok"], "result": d["result"], "cancelled": d["cancelled"], "done_at_ms": d["at_ms"]},
            stub={"ref": d["ref"], "name": "", "allow": False, "code": "", "at_ms": d["at_ms"]},
        )
    ]


def _intervention_started(event: RecordEvent) -> list[Patch]:
    d = event.data
    started = {
        "turn_id": d["turn_id"],
        "verdict_id": d["verdict_id"],
        "rule": d["rule"],
        "plan": d["plan"],
        "at_ms": d["at_ms"],
    }
    return [
        *_turn_stub(event, d["turn_id"]),
        Patch(INTERVENTION, d["intervention_id"], str(event.call_id), set=started),
    ]


def _intervention_step(event: RecordEvent) -> list[Patch]:
    d = event.data
    step = {"step": d["step"], "at_ms": d["at_ms"], "detail": d["detail"]}
    return [
        Patch(
            INTERVENTION,
            d["intervention_id"],
            str(event.call_id),
            stub={"at_ms": d["at_ms"]},
            append={"steps": [step]},
        )
    ]


def _intervention_ended(event: RecordEvent) -> list[Patch]:
    d = event.data
    ended = {
        "outcome": d["outcome"],
        "ended_at_ms": d["at_ms"],
        "buffer_text": d["buffer_text"],
        "correction_text": d["correction_text"],
        "correction_source": d["correction_source"] or "",
        "heard_ms": d["heard_ms"],
        "violation_heard_ms": d["violation_heard_ms"],
        "violation_basis": d["violation_basis"] or "",
        "silence_proof": d["silence_proof"] or "",
        "gap_ms_cut_to_buffer": d["gap_ms_cut_to_buffer"],
        "gap_ms_buffer_to_correction": d["gap_ms_buffer_to_correction"],
        "detail": d["detail"],
    }
    return [
        Patch(INTERVENTION, d["intervention_id"], str(event.call_id), set=ended, stub={"at_ms": d["at_ms"]}),
    ]


def _note_sent(event: RecordEvent) -> list[Patch]:
    d = event.data
    note = {
        "turn_id": d["turn_id"],
        "intervention_id": d["intervention_id"],
        "rev": d["rev"],
        "text": d["text"],
        "said": d["said"],
        "heard_text": d["heard_text"],
        "heard_ms": d["heard_ms"],
        "dropped": d["dropped"] if isinstance(d["dropped"], list) else [],
        "expires_turns": d["expires_turns"],
        "at_ms": d["at_ms"],
    }
    return [*_turn_stub(event, d["turn_id"]), Patch(NOTE, d["note_id"], str(event.call_id), set=note)]


def _media_dropped(event: RecordEvent) -> list[Patch]:
    call_id = str(event.call_id)
    return [Patch(CALL, call_id, call_id, add={"dropped_media_ms": event.data["ms"]})]


_ENDED_COUNTS: Final = {
    "turns": "turn_count",
    "judged": "judged_count",
    "skipped": "skipped_count",
    "timed_out": "timed_out_count",
    "failed": "failed_count",
    "shed": "shed_count",
    "interventions": "intervention_count",
    "tools_blocked": "tools_blocked_count",
    "dropped_media_ms": "dropped_media_ms",
}


def _call_ended(event: RecordEvent) -> list[Patch]:
    d = event.data
    counts = {column: d[name] for name, column in _ENDED_COUNTS.items() if d[name] is not None}
    return [
        _call(
            event,
            state="ended",
            ended_at=event.at,
            outcome=d["outcome"],
            ended_by=d["ended_by"],
            close_code=d["close_code"],
            reason=d["reason"],
            coverage_state=d["coverage_state"] or "",
            coverage_reason=d["coverage_reason"],
            coverage=d["coverage"],
            duration_ms=d["duration_ms"],
            **counts,
        )
    ]


_PROJECTIONS: Final[dict[str, Callable[[RecordEvent], list[Patch]]]] = {
    "call.started": _call_started,
    "call.moved": _call_moved,
    "call.resumed": _call_resumed,
    "call.hello": _call_hello,
    "agent.connected": _agent_connected,
    "agent.failed": _agent_failed,
    "transcript.noted": _nothing,
    "turn.reported": _turn_reported,
    "turn.completed": _turn_completed,
    "turn.held": _nothing,
    "turn.judged": _turn_judged,
    "turn.heard": _turn_heard,
    "tool.decided": _tool_decided,
    "tool.done": _tool_done,
    # Whoever waits for a person has written that itself, before this: supervision.stream.approvals.
    "approval.requested": _nothing,
    "approval.decided": _nothing,
    "intervention.started": _intervention_started,
    "intervention.step": _intervention_step,
    "intervention.ended": _intervention_ended,
    "note.sent": _note_sent,
    "frame.rejected": _nothing,
    "media.dropped": _media_dropped,
    "call.ended": _call_ended,
}

_COUNTED: Final = frozenset(
    {"turn.reported", "turn.judged", "tool.decided", "intervention.started", "intervention.ended"}
)


def _unlink(merged: dict[tuple[str, str], Patch]) -> None:
    for patch in merged.values():
        for column in _LINKS.get(patch.table, ()):
            if column in patch.set:
                patch.set[column] = None


# Patches to SQL


def _stubs(patch: Patch) -> tuple[str, ...]:
    return tuple(column for column in patch.stub if column not in patch.set)


def _rows(patches: Sequence[Patch]) -> bytes:
    rows: list[dict[str, JSON]] = [
        {"id": p.id, "call_id": p.call_id, **p.stub, **p.set, **p.add, **p.append} for p in patches
    ]
    return orjson.dumps(rows)


@lru_cache(maxsize=512)
def _sql(
    table: str, columns: tuple[str, ...], stubs: tuple[str, ...], adds: tuple[str, ...], appends: tuple[str, ...]
) -> bytes:
    if table == CALL and "agent_id" not in columns:
        # Only call.started can make a call: PostgreSQL checks NOT NULL of an upsert before it sees the conflict.
        return _update_sql(table, columns, adds)
    return _upsert_sql(table, columns, stubs, adds, appends)


def _record(table: str, names: Iterable[str]) -> str:
    types = COLUMNS[table]
    return ", ".join(f'"{name}" {_TEXT if types[name].startswith("varchar") else types[name]}' for name in names)


def _source(table: str, name: str) -> str:
    # An explicit cast to varchar(n) cuts; assigning a text that is too long is an error.
    kind = COLUMNS[table][name]
    return f'r."{name}"::{kind}' if kind.startswith("varchar") else f'r."{name}"'


def _upsert_sql(
    table: str, columns: Sequence[str], stubs: Sequence[str], adds: Sequence[str], appends: Sequence[str]
) -> bytes:
    own = ["id"] if table == CALL else ["id", "call_id"]
    names = [*own, *columns, *stubs, *adds, *appends]
    target = ", ".join(f'"{name}"' for name in names)
    source = ", ".join(_source(table, name) for name in names)
    changes = [
        *(f'"{name}" = EXCLUDED."{name}"' for name in columns),
        *(f'"{name}" = t."{name}" + EXCLUDED."{name}"' for name in adds),
        *(f'"{name}" = t."{name}" || EXCLUDED."{name}"' for name in appends),
    ]
    action = f"UPDATE SET {', '.join(changes)}{_guard(table, columns)}" if changes else "NOTHING"
    return (
        f"INSERT INTO {table} AS t (tenant_id, {target})"  # noqa: S608 (names from COLUMNS)
        f" SELECT %s, {source} FROM json_to_recordset(%s) AS r({_record(table, names)})"
        f" ON CONFLICT (id) DO {action}"
    ).encode()


def _update_sql(table: str, columns: Sequence[str], adds: Sequence[str]) -> bytes:
    changes = [
        *(f'"{name}" = {_source(table, name)}' for name in columns),
        *(f'"{name}" = t."{name}" + r."{name}"' for name in adds),
    ]
    guard = _guard(table, columns).replace("WHERE", "AND")
    return (
        f"UPDATE {table} AS t SET {', '.join(changes)}"  # noqa: S608 (names from COLUMNS)
        f" FROM (SELECT %s::uuid AS tenant_id, j.* FROM json_to_recordset(%s)"
        f" AS j({_record(table, ['id', *columns, *adds])})) AS r"
        f" WHERE t.tenant_id = r.tenant_id AND t.id = r.id{guard}"
    ).encode()


def _guard(table: str, columns: Sequence[str]) -> str:
    """A call ends once, unless it goes on in a newer epoch: what ended it first stands."""
    if table != CALL or "state" not in columns:
        return ""
    return " WHERE t.epoch <= EXCLUDED.epoch" if "epoch" in columns else " WHERE t.state <> 'ended'"


_INSERT_CALL_EVENTS: Final = (
    f"INSERT INTO {CALL_EVENT} (tenant_id, {', '.join(COLUMNS[CALL_EVENT])})"  # noqa: S608 (constant names)
    f" SELECT %s, {', '.join(_source(CALL_EVENT, name) for name in COLUMNS[CALL_EVENT])}"
    f" FROM json_to_recordset(%s) AS r({_record(CALL_EVENT, COLUMNS[CALL_EVENT])})"
    " ON CONFLICT (id) DO NOTHING RETURNING id"
).encode()

# Of ids that were not new, those that are this tenant's: the others belong to a stranger.
KNOWN_EVENTS: Final = f"SELECT id FROM {CALL_EVENT} WHERE tenant_id = %s AND id = ANY(%s)".encode()  # noqa: S608

# Of calls, those that were erased: parameters tenant, call ids.
ERASED_CALLS: Final = b"SELECT id FROM supervision_erasedcall WHERE tenant_id = %s AND id = ANY(%s)"

# What the tenant's record takes; parameters id (of a first row), tenant, bytes. The last statement of a transaction:
# all of a tenant's writers meet at this row.
STORAGE: Final = (
    b"INSERT INTO tenants_tenantuse (id, tenant_id, storage_bytes) VALUES (%s, %s, %s) ON CONFLICT (tenant_id)"
    b" DO UPDATE SET storage_bytes = tenants_tenantuse.storage_bytes + EXCLUDED.storage_bytes"
)

# Interventions that Mirror did not act on are counted apart.
_NOT_ACTED: Final = "('late', 'unarmed', 'caller_speaking', 'shadow', 'cooldown', 'limit')"

# The counters of calls from their rows, while nobody who was there has counted: parameters tenant, call ids, and the
# calls among them whose process died.
RECOUNT: Final = f"""
UPDATE {CALL} AS c
   SET turn_count = n.turns, judged_count = n.judged, skipped_count = n.skipped, timed_out_count = n.timed_out,
       failed_count = n.failed, shed_count = n.shed, intervention_count = n.interventions,
       tools_blocked_count = n.blocked,
       coverage = (n.judged + n.skipped)::float8
                  / nullif(n.judged + n.skipped + n.timed_out + n.failed + n.shed, 0),
       coverage_state = CASE WHEN c.state = 'live' THEN c.coverage_state
                             WHEN n.turns = 0 THEN 'none'
                             WHEN n.timed_out + n.failed + n.shed = 0 THEN 'full'
                             ELSE 'partial' END
  FROM (SELECT wanted.call_id, t.turns, v.*, i.interventions, d.blocked
          FROM unnest(%(calls)s::uuid[]) AS wanted(call_id),
       LATERAL (SELECT count(*) AS turns FROM {TURN}
                 WHERE tenant_id = %(tenant)s AND call_id = wanted.call_id) AS t,
       LATERAL (SELECT count(*) FILTER (WHERE state = 'judged') AS judged,
                       count(*) FILTER (WHERE state = 'skipped') AS skipped,
                       count(*) FILTER (WHERE state = 'timed_out') AS timed_out,
                       count(*) FILTER (WHERE state = 'failed') AS failed,
                       count(*) FILTER (WHERE state = 'shed') AS shed
                  FROM {VERDICT}
                 WHERE tenant_id = %(tenant)s AND call_id = wanted.call_id AND NOT late) AS v,
       LATERAL (SELECT count(*) AS interventions FROM {INTERVENTION}
                 WHERE tenant_id = %(tenant)s AND call_id = wanted.call_id
                   AND plan <> 'note_only' AND outcome NOT IN {_NOT_ACTED}) AS i,
       LATERAL (SELECT count(*) AS blocked FROM {TOOL_DECISION}
                 WHERE tenant_id = %(tenant)s AND call_id = wanted.call_id AND NOT allow) AS d) AS n
 WHERE c.tenant_id = %(tenant)s AND c.id = n.call_id
   AND (c.state = 'live' OR c.epoch > 1 OR c.id = ANY(%(abandoned)s::uuid[]))
""".encode()  # noqa: S608 (constant names)

# Of calls, those that ended for a process that died, or that went on after they had lost a socket: nobody was there
# all the time. Parameters tenant, call ids.
ABANDONED: Final = f"""
SELECT id FROM {CALL} WHERE tenant_id = %(tenant)s AND id = ANY(%(calls)s)
   AND (reason = 'process_died' OR (epoch > 1 AND state = 'ended'))
""".encode()  # noqa: S608 (constant names)

# Turns of a call that no verdict closed, for a call whose process died: parameters tenant, call ids.
UNJUDGED_TURNS: Final = f"""
SELECT t.id, t.call_id, t.at_ms FROM {TURN} AS t
 WHERE t.tenant_id = %(tenant)s AND t.call_id = ANY(%(calls)s)
   AND NOT EXISTS (SELECT 1 FROM {VERDICT} AS v
                    WHERE v.tenant_id = %(tenant)s AND v.turn_id = t.id AND NOT v.late)
""".encode()  # noqa: S608 (constant names)

# Interventions that were running when their process died: parameters tenant, call ids.
FAIL_RUNNING_INTERVENTIONS: Final = f"""
UPDATE {INTERVENTION} SET outcome = 'failed', detail = 'the process that carried the call died'
 WHERE tenant_id = %(tenant)s AND call_id = ANY(%(calls)s) AND outcome = ''
""".encode()  # noqa: S608 (constant names)


def failed_verdicts(turns: Iterable[tuple[UUID, UUID, int]], new_id: Callable[[], UUID]) -> Statement:
    """Verdicts `failed` for turns `(id, call_id, at_ms)` that nobody is left to judge."""
    patches = [
        Patch(
            VERDICT,
            str(new_id()),
            str(call_id),
            set={
                "turn_id": str(turn_id),
                "state": "failed",
                "detail": "the process that carried the call died",
                "at_ms": at_ms,
            },
        )
        for turn_id, call_id, at_ms in turns
    ]
    return Statement(_sql(VERDICT, tuple(patches[0].set), (), (), ()), _rows(patches))
