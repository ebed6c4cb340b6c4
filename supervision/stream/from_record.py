"""A call as PostgreSQL knows it, for the node that goes on with it when the node that had it is silent.

What that node had recorded and PostgreSQL does not have yet is missing; what is stored redacted is known redacted. The
ledger of irreversible tool calls is no part of this: it stands in PostgreSQL by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import psycopg

from supervision.engine.context import HistoryEntry, JudgingState, ToolCallIntent, ToolCode, ToolVerdict, Verdict
from supervision.engine.intervention.note import note_text
from supervision.engine.policy.compiler import MAX_HISTORY_CHARS, MAX_HISTORY_ENTRIES
from supervision.engine.state.carried import CarriedMemory
from supervision.engine.supervisor import tool_entry
from supervision.stream.carried import MAX_NOTES, CarriedCall, CarriedTool, CarriedTurn
from supervision.stream.owners import KNOWN_FOR_S, CallKey

Connection = psycopg.AsyncConnection[dict[str, Any]]
Row = Mapping[str, Any]

MAX_TURNS: Final = 64
MAX_TOOLS: Final = 200
# Codes with which a stream ends that nobody means to go on with.
ENDED_CODES: Final = (1000, 1001, 1005)

# Takes the call: from here on its older owner's writes are refused. A call is taken that runs, or whose last socket was
# lost less than a minute ago.
_TAKE: Final = """
UPDATE supervision_call
   SET epoch = greatest(epoch + 1, %(epoch)s), epoch_at = clock_timestamp(), epoch_after_seq = NULL
 WHERE tenant_id = %(tenant)s AND id = (
       SELECT id FROM supervision_call
        WHERE tenant_id = %(tenant)s AND agent_id = %(agent)s AND plivo_call_id = %(plivo)s
          AND (%(call)s::uuid IS NULL OR id = %(call)s)
          AND (state = 'live'
               OR (ended_at > clock_timestamp() - make_interval(secs => %(known_for)s)
                   AND (reason = 'process_died' OR NOT close_code = ANY(%(ended_codes)s))))
        ORDER BY started_at DESC LIMIT 1 FOR UPDATE)
RETURNING id, epoch, started_at, policy_version_id, mode, language, from_number, to_number
"""
_KNOWN: Final = """
SELECT 1 FROM supervision_call
 WHERE tenant_id = %(tenant)s AND agent_id = %(agent)s AND plivo_call_id = %(plivo)s
   AND (state = 'live' OR ended_at > clock_timestamp() - make_interval(secs => %(known_for)s)) LIMIT 1
"""
_TURNS: Final = """
SELECT id, ref, index, customer_text, text, tool_calls, heard_text, at_ms FROM supervision_turn
 WHERE tenant_id = %(tenant)s AND call_id = %(call)s AND index > 0 ORDER BY index DESC LIMIT %(limit)s
"""
_TOOLS: Final = """
SELECT id, turn_id, ref, name, args, irreversible, allow, code, state, score, reason, instruction, latency_ms, at_ms,
       ok, result, cancelled, done_at_ms
  FROM supervision_tooldecision
 WHERE tenant_id = %(tenant)s AND call_id = %(call)s AND name <> '' ORDER BY at_ms DESC, id DESC LIMIT %(limit)s
"""
_INTERVENTIONS: Final = """
SELECT i.id, i.turn_id, i.rule, i.plan, i.outcome, i.correction_text, i.at_ms, v.reason, v.correction, n.id AS note_id
  FROM supervision_intervention i
  LEFT JOIN supervision_verdict v ON v.tenant_id = i.tenant_id AND v.id = i.verdict_id
  LEFT JOIN LATERAL (
        SELECT id FROM supervision_agentnote
         WHERE tenant_id = i.tenant_id AND call_id = i.call_id AND intervention_id = i.id LIMIT 1) n ON true
 WHERE i.tenant_id = %(tenant)s AND i.call_id = %(call)s ORDER BY i.at_ms, i.id
"""
_NOTES: Final = """
SELECT id, rev, turn_id, text, said, heard_text, heard_ms, dropped, expires_turns, at_ms FROM supervision_agentnote
 WHERE tenant_id = %(tenant)s AND call_id = %(call)s AND at_ms >= %(since)s ORDER BY at_ms DESC, id DESC LIMIT %(limit)s
"""
_NOW_MS: Final = "SELECT (extract(epoch FROM clock_timestamp() - %(started)s) * 1000)::bigint AS ms"


async def call_from_record(
    connection: Connection, key: CallKey, *, call_id: UUID | None, least_epoch: int
) -> CarriedCall | None:
    """Take a call over from the record, with what that knows of it; None when it has none that goes on.

    `call_id` is the call's if that is known. Its epoch is raised, to `least_epoch` at least. Raises psycopg.Error.
    """
    async with connection.transaction():
        await connection.execute(
            "SELECT set_config('app.tenant_id', %s, true), set_config('statement_timeout', '2000', true)",
            (str(key.tenant_id),),
        )
        taking = {
            "tenant": key.tenant_id,
            "agent": key.agent_id,
            "plivo": key.plivo_call_id,
            "call": call_id,
            "epoch": least_epoch,
            "known_for": KNOWN_FOR_S,
            "ended_codes": list(ENDED_CODES),
        }
        call = await (await connection.execute(_TAKE, taking)).fetchone()
        if call is None:
            return None
        of_call = {"tenant": key.tenant_id, "call": call["id"]}
        turns = await _newest(connection, _TURNS, of_call, MAX_TURNS)
        tools = await _newest(connection, _TOOLS, of_call, MAX_TOOLS)
        interventions = await (await connection.execute(_INTERVENTIONS, of_call)).fetchall()
        since = turns[-1]["at_ms"] if turns else 0
        notes = await _newest(connection, _NOTES, {**of_call, "since": since}, MAX_NOTES)
        now = await (await connection.execute(_NOW_MS, {"started": call["started_at"]})).fetchone()
    assert now is not None
    refs = {turn["id"]: turn["ref"] for turn in turns}
    return CarriedCall(
        call_id=call["id"],
        epoch=call["epoch"],
        started_at=call["started_at"],
        age_ms=max(0, now["ms"]),
        policy_version_id=call["policy_version_id"],
        mode=call["mode"],
        language=call["language"],
        from_number=call["from_number"],
        to_number=call["to_number"],
        turn_count=turns[-1]["index"] if turns else 0,
        turns=tuple(
            # Its words may be stored redacted, so they are nothing to compare with.
            CarriedTurn(t["ref"], t["id"], None, tuple(ToolCallIntent.of(c) for c in t["tool_calls"]))
            for t in turns
        ),
        tools=tuple(_tool(tool, refs) for tool in tools),
        notes=(*(_note(note, refs) for note in notes), *_unsaid(interventions, turns)),
        memory=memory_of_rows(turns, tools, interventions, now["ms"]),
    )


async def call_is_recorded(connection: Connection, key: CallKey) -> bool:
    """Whether the record has a call that runs, or that ended less than a minute ago. Raises psycopg.Error."""
    async with connection.transaction():
        await connection.execute(
            "SELECT set_config('app.tenant_id', %s, true), set_config('statement_timeout', '2000', true)",
            (str(key.tenant_id),),
        )
        of_call = {"tenant": key.tenant_id, "agent": key.agent_id, "plivo": key.plivo_call_id, "known_for": KNOWN_FOR_S}
        return await (await connection.execute(_KNOWN, of_call)).fetchone() is not None


async def _newest(connection: Connection, query: str, parameters: dict[str, Any], limit: int) -> list[dict[str, Any]]:
    """The last rows, oldest first."""
    cursor = await connection.execute(query.encode(), {**parameters, "limit": limit})
    return (await cursor.fetchall())[::-1]


def _intent(row: Row) -> ToolCallIntent:
    return ToolCallIntent(id=row["ref"], name=row["name"], args=row["args"], irreversible=row["irreversible"])


def _tool(row: Row, refs: Mapping[UUID, str]) -> CarriedTool:
    verdict = ToolVerdict(
        id=row["ref"],
        name=row["name"],
        allow=row["allow"],
        code=ToolCode(row["code"]),
        state=JudgingState(row["state"]) if row["state"] else JudgingState.FAILED,
        score=row["score"],
        reason=row["reason"],
        instruction=row["instruction"],
        stored_result=None,
        valid_ms=0,
        latency_ms=row["latency_ms"] or 0,
    )
    return CarriedTool(_intent(row), row["id"], verdict, refs.get(row["turn_id"]), row["done_at_ms"] is not None)


def _note(row: Row, refs: Mapping[UUID, str]) -> dict[str, Any]:
    return {
        "id": str(row["id"]),
        "rev": row["rev"],
        "turn_id": refs.get(row["turn_id"], ""),
        "text": row["text"],
        "said": row["said"],
        "heard_text": row["heard_text"],
        "heard_ms": row["heard_ms"],
        "dropped": row["dropped"],
        "expires_turns": row["expires_turns"],
    }


def _unsaid(interventions: Sequence[Row], turns: Sequence[Row]) -> list[dict[str, Any]]:
    """Notes for interventions that were running when their node fell silent, and of which the agent was told nothing.
    What was said in them, and what was heard, nobody knows."""
    refs = {turn["id"]: turn["ref"] for turn in turns}
    notes = []
    for row in interventions:
        if row["outcome"] or row["note_id"] is not None:
            continue
        text = note_text(
            Verdict(
                refs.get(row["turn_id"], ""),
                JudgingState.JUDGED,
                None,
                row["rule"],
                row["reason"] or "",
                row["correction"] or "",
                1.0,
                0,
            ),
            spoke=False,
        )
        notes.append(
            {
                "id": str(row["id"]),
                "rev": 1,
                "turn_id": refs.get(row["turn_id"], ""),
                "text": text,
                "said": "",
                "heard_text": "",
                "heard_ms": None,
                "dropped": [],
                "expires_turns": 1,
            }
        )
    return notes


def memory_of_rows(
    turns: Sequence[Row], tools: Sequence[Row], interventions: Sequence[Row], now_ms: int
) -> CarriedMemory:
    """What a call remembers of these rows of its record, `now_ms` after it began."""
    acted = [row for row in interventions if row["plan"] != "note_only"]
    replaced = {row["turn_id"]: row for row in acted}
    entries: list[tuple[int, int, str, HistoryEntry]] = []
    for turn in turns:
        at_ms = turn["at_ms"]
        if turn["customer_text"]:
            entries.append((at_ms, 0, "", HistoryEntry("customer", turn["customer_text"])))
        text = turn["text"]
        if (cut := replaced.get(turn["id"])) is not None:
            heard = turn["heard_text"]
            text = f"{heard} … [cut off here; the rest was not heard]" if heard else "[cut off before it was heard]"
            if cut["correction_text"]:
                entries.append((cut["at_ms"], 2, "", HistoryEntry("mirror", cut["correction_text"])))
        if text:
            entries.append((at_ms, 1, f"turn:{turn['ref']}", HistoryEntry("agent", text)))
    for tool in tools:
        if tool["done_at_ms"] is None:
            continue
        intent = _intent(tool)
        if tool["cancelled"]:
            entry = tool_entry(intent, "was cancelled, it did not run")
        else:
            entry = tool_entry(intent, "ran" if tool["ok"] else "failed", tool["result"])
        entries.append((tool["done_at_ms"], 3, "", entry))
    entries.sort(key=lambda entry: entry[:2])
    return CarriedMemory(
        notes=tuple(
            (key, HistoryEntry(entry.role, entry.text[:MAX_HISTORY_CHARS]))
            for _, _, key, entry in entries[-MAX_HISTORY_ENTRIES:]
        ),
        acted=tuple({row["rule"]: max(0.0, (now_ms - row["at_ms"]) / 1000) for row in acted}.items()),
        interventions=len(acted),
    )
