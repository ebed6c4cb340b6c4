"""What PostgreSQL has of calls, held against what their agents know."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from benchmarks.soak.calls import SoakCall

_SEQ_BITS = 32


@dataclass
class Losses:
    """What is missing, and what is there twice; each entry says what."""

    lost: list[str]
    doubled: list[str]
    unacknowledged: int = 0
    """Turns that a killed process was told of and never answered for; not among those lost."""


def rows(url: str, tenant_id: UUID, table: str) -> list[dict[str, Any]]:
    """All rows of a tenant."""
    with psycopg.connect(url, row_factory=dict_row) as connection:
        connection.execute("SELECT set_config('app.tenant_id', %s, true)", [str(tenant_id)])
        return connection.execute(f"SELECT * FROM {table}").fetchall()


async def records_settled(url: str, tenant_id: UUID, calls: Sequence[SoakCall], timeout_s: float) -> None:
    """Return once PostgreSQL has the end of each of the calls, or `timeout_s` is over: what is missing then is lost."""
    wanted = {call.call_id for call in calls if call.record is not None and call.record.started_t is not None}
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while loop.time() < deadline:
        found = await asyncio.to_thread(rows, url, tenant_id, "supervision_call")
        if wanted <= {row["plivo_call_id"] for row in found if row["state"] == "ended"}:
            return
        await asyncio.sleep(0.5)


def losses(url: str, tenant_id: UUID, calls: Sequence[SoakCall], *, killed: bool = False) -> Losses:
    """What the record lacks of these calls. After a kill, what was acknowledged counts: permissions of irreversible
    tools; otherwise every turn that was reported does, too."""
    of_plivo: dict[str, list[dict[str, Any]]] = {}
    for row in rows(url, tenant_id, "supervision_call"):
        of_plivo.setdefault(row["plivo_call_id"], []).append(row)
    tables = {
        name: _by_call(rows(url, tenant_id, f"supervision_{name}"))
        for name in ("callevent", "turn", "tooldecision", "intervention")
    }
    found = Losses([], [])
    for call in calls:
        if call.record is None or call.record.started_t is None:
            continue
        known = of_plivo.get(call.call_id, [])
        if not known:
            (found.lost if not killed or any(call.tools.values()) else []).append(f"call {call.call_id}")
            continue
        if len(known) > 1:
            found.doubled.append(f"call {call.call_id}: {len(known)} rows")
        ids = {row["id"] for row in known}
        _check_events(call, [e for i in ids for e in tables["callevent"].get(i, [])], found)
        turns = Counter(turn["ref"] for i in ids for turn in tables["turn"].get(i, []))
        for turn in call.turns:
            if turns[turn.ref] > 1:
                found.doubled.append(f"turn {turn.ref} of {call.call_id}")
            elif not turns[turn.ref] and killed:
                found.unacknowledged += 1
            elif not turns[turn.ref] and (turn.whole or turn.verdict):
                found.lost.append(f"turn {turn.ref} of {call.call_id}")
        tools = Counter((tool["ref"], tool["allow"]) for i in ids for tool in tables["tooldecision"].get(i, []))
        for ref, allowed in call.tools.items():
            if tools[ref, allowed] > 1:
                found.doubled.append(f"tool {ref} of {call.call_id}")
            elif not tools[ref, allowed] and (allowed or not killed):
                found.lost.append(f"tool {ref} of {call.call_id}")
    return found


def _check_events(call: SoakCall, events: list[dict[str, Any]], found: Losses) -> None:
    kinds = Counter(event["kind"] for event in events)
    for kind in ("call.started", "call.ended"):
        if kinds[kind] != 1:
            (found.doubled if kinds[kind] else found.lost).append(f"{kind} of {call.call_id}: {kinds[kind]}")
    dropped = sum(event["data"].get("detail_dropped") or 0 for event in events if event["kind"] == "call.ended")
    numbers: dict[int, list[int]] = {}
    for event in events:
        numbers.setdefault((event["seq"] - 1) >> _SEQ_BITS, []).append((event["seq"] - 1) & ((1 << _SEQ_BITS) - 1))
    missing = sum(max(each) + 1 - len(set(each)) for each in numbers.values())
    if missing > dropped:
        found.lost.append(f"{missing} events of {call.call_id} ({dropped} of them detail that it says it left out)")
    twice = sum(len(each) - len(set(each)) for each in numbers.values())
    if twice:
        found.doubled.append(f"{twice} events of {call.call_id}")


def _by_call(found: list[dict[str, Any]]) -> dict[UUID, list[dict[str, Any]]]:
    grouped: dict[UUID, list[dict[str, Any]]] = {}
    for row in found:
        grouped.setdefault(row["call_id"], []).append(row)
    return grouped
