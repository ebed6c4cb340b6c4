"""What the record costs: `make bench-recorder`, or `python -m benchmarks.bench_recorder [--rate 6000] [--seconds 15]`.

- `record()` on the call path, and building the event;
- a commit's latency, alone and under load, beside plain SQLite writing the same rows with the same durability;
- events a second into the journal, beside plain `executemany` of the same rows;
- a steady stream of events, `--rate` a second, acknowledged while a PostgreSQL of its own takes them: how many were
  acknowledged, how late, and how many of them PostgreSQL does not have in the end;
- events a second from the journal into that PostgreSQL, and the CPU that 100 calls cost the process.

Ratios are within one run; the floor is plain SQLite that commits groups of the same size, with the same durability.
Everything runs in this process, as it does beside the calls. Exits with 1 when fewer than 5,000 events a second were
acknowledged, or one was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import psycopg

from mirror_saas import embedded
from mirror_saas.databases import database_url_for
from mirror_saas.ids import uuid7
from supervision.recorder import journal as journal_module
from supervision.recorder.events import CallLog, CallStarted, RecordEvent, TurnHeard, TurnJudged, TurnReported
from supervision.recorder.journal import row_of
from supervision.recorder.recorder import Recorder
from tenants.services.roles import APP, OWNER, roles_create

ROOT = Path(__file__).resolve().parents[1]
NOWHERE = "postgresql://mirror_app@127.0.0.1:1/mirror"
TENANTS, CALLS, TURN_EVERY_S = 10, 100, 8.0
BAR_EVENTS_S = 5_000
SLICE_S = 0.01
WORDS = "I have looked at your order and it will be with you on Tuesday, is there anything else I can do? " * 2


def turn(index: int) -> Iterator[TurnReported | TurnJudged | TurnHeard]:
    """What a clean turn leaves in the record."""
    turn_id = uuid7()
    yield TurnReported(
        turn_id=turn_id, ref=f"t{index}", index=index, customer_text=WORDS, text=WORDS, language="en", at_ms=index
    )
    yield TurnJudged(
        turn_id=turn_id,
        verdict_id=uuid7(),
        state="judged",
        score=0.02,
        threshold=0.7,
        rule=None,
        reason="Nothing in the reply touches a rule.",
        correction="",
        intervene=False,
        acted=False,
        withheld=None,
        latency_ms=310,
        prompt_tokens=900,
        completion_tokens=40,
        at_ms=index,
    )
    yield TurnHeard(
        turn_id=turn_id,
        audio_ms=6000,
        heard_ms=6000,
        heard_text=WORDS,
        uncertain_text="",
        unheard_text="",
        basis="pauses",
        at_ms=index,
    )


def started(agent_id: UUID) -> CallStarted:
    return CallStarted(
        plivo_call_id="p",
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


def sample(number: int) -> list[RecordEvent]:
    """Events of turns of many calls."""
    made: list[RecordEvent] = []
    logs = [CallLog(record=made.append, tenant_id=uuid7(), call_id=uuid7()) for _ in range(CALLS)]
    index = 0
    while len(made) < number:
        index += 1
        for log in logs:
            for event in turn(index):
                log.add(event)
    return made[:number]


def percentiles(seconds: list[float]) -> str:
    cuts = statistics.quantiles(seconds, n=100)
    return f"p50 {cuts[49] * 1e3:6.2f} ms   p95 {cuts[94] * 1e3:6.2f} ms   p99 {cuts[98] * 1e3:6.2f} ms"


@contextmanager
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="mirror-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class PlainSqlite:
    """The floor: one table, the same durability, rows encoded beforehand."""

    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path / "plain.sqlite3", isolation_level=None)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = FULL")
        self.db.execute(journal_module._SCHEMA.split(";")[0])
        self.position = 0

    def write(self, rows: list[journal_module.Row]) -> None:
        numbered = []
        for row in rows:
            self.position += 1
            numbered.append((self.position, row.id, row.tenant, row.call, row.seq, row.at_us, row.kind, row.data))
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?)", numbered)
        self.db.execute("COMMIT")


async def call_path(path: Path) -> None:
    recorder = Recorder(path, NOWHERE, announce=None)
    await recorder.start()
    sample(300)
    began = time.perf_counter()
    events = sample(15_000)
    build = time.perf_counter() - began
    began = time.perf_counter()
    for event in events:
        recorder.record(event)
    took = time.perf_counter() - began
    print(f"record()              {took / len(events) * 1e6:8.2f} µs an event (bar: 10)")
    print(f"building the event    {build / len(events) * 1e6:8.2f} µs an event, checked and stamped")
    await recorder.aclose(0.01)


async def commit_latency(path: Path) -> None:
    plain = PlainSqlite(path)
    recorder = Recorder(path / "one", NOWHERE, announce=None)
    await recorder.start()
    floor, spent = [], []
    events = sample(3 * 500)
    # In turns, so that whatever else the machine does falls on both.
    for n in range(0, len(events), 3):
        rows = [row_of(event) for event in events[n : n + 3]]
        began = time.perf_counter()
        plain.write(rows)
        floor.append(time.perf_counter() - began)
        for event in events[n : n + 3]:
            recorder.record(event)
        began = time.perf_counter()
        await recorder.commit()
        spent.append(time.perf_counter() - began)
    ratio = statistics.median(spent) / statistics.median(floor)
    print(f"plain SQLite, 3 rows a commit     {percentiles(floor)}")
    print(f"commit(), 3 events, one caller    {percentiles(spent)}   {ratio:.2f} × plain (bar: p50 5 ms)")

    async def caller(mine: list[RecordEvent]) -> None:
        for event in mine:
            recorder.record(event)
            began = time.perf_counter()
            await recorder.commit()
            spent.append(time.perf_counter() - began)

    events, spent[:] = sample(100 * 30), []
    before = recorder.counts.writer.commits
    await asyncio.gather(*(caller(events[n::100]) for n in range(100)))
    groups = recorder.counts.writer.commits - before
    print(f"commit(), 100 callers at once     {percentiles(spent)}   {len(events) / groups:.0f} events a commit")
    await recorder.aclose(0.01)


async def journal_rate(path: Path) -> None:
    number, group = 20_000, 2000
    events = sample(number)
    plain = PlainSqlite(path)
    recorder = Recorder(path / "two", NOWHERE, announce=None)
    await recorder.start()
    floor = spent = 0.0
    for n in range(0, number, group):
        rows = [row_of(event) for event in events[n : n + group]]
        began = time.perf_counter()
        plain.write(rows)
        floor += time.perf_counter() - began
        began = time.perf_counter()
        for event in events[n : n + group]:
            recorder.record(event)
        await recorder.commit()
        spent += time.perf_counter() - began
    print(f"plain SQLite, executemany         {number / floor:8.0f} events/s, encoded beforehand")
    print(f"journal, from record() to disk    {number / spent:8.0f} events/s   {spent / floor:.2f} × the time of plain")
    await recorder.aclose(0.01)


async def sustained(path: Path, dsn: str, agents: list[tuple[UUID, UUID]], rate: int, seconds: float) -> bool:
    """Events at an even pace, each slice acknowledged; whether that reached the bar and nothing was lost."""
    events: list[RecordEvent] = []
    logs = []
    for n in range(CALLS):
        tenant_id, agent_id = agents[n % TENANTS]
        logs.append(CallLog(record=events.append, tenant_id=tenant_id, call_id=uuid7()))
        logs[-1].add(started(agent_id))
    index = 0
    while len(events) < rate * seconds:
        index += 1
        for log in logs:
            for event in turn(index):
                log.add(event)
    step = round(rate * SLICE_S)
    slices = [events[n : n + step] for n in range(0, len(events), step)]

    plain = PlainSqlite(path)
    encoded = [[row_of(event) for event in each] for each in slices[: round(5 / SLICE_S)]]
    began = time.perf_counter()
    for rows in encoded:
        plain.write(rows)
    floor = sum(map(len, encoded)) / (time.perf_counter() - began)

    recorder = Recorder(path / "sustained", dsn, announce=None)
    await recorder.start()
    loop = asyncio.get_running_loop()
    waits: list[float] = []
    commits: set[asyncio.Task[None]] = set()

    async def acknowledge(due: float) -> None:
        await recorder.commit()
        waits.append(loop.time() - due)

    cpu = time.process_time()
    began = loop.time()
    for n, each in enumerate(slices):
        due = began + n * SLICE_S
        await asyncio.sleep(max(0.0, due - loop.time()))
        for event in each:
            recorder.record(event)
        commit = asyncio.create_task(acknowledge(due))
        commits.add(commit)
        commit.add_done_callback(commits.discard)
    await asyncio.gather(*commits)
    took, cpu = loop.time() - began, time.process_time() - cpu
    acknowledged = len(events) / took
    waiting = recorder.counts.writer.written - recorder.counts.drain.stored
    began = loop.time()
    await recorder.drained(600)
    behind = loop.time() - began
    counts = recorder.counts
    await recorder.aclose()
    missing = {event.id for event in events} - stored_ids(dsn, agents)
    lost = len(missing) + counts.writer.lost + counts.writer.detail_dropped
    reached = acknowledged >= BAR_EVENTS_S and not lost
    print(
        f"steady, {rate} events/s offered    {acknowledged:8.0f} events/s acknowledged over {took:.1f} s, {lost} lost"
        f" (bar: {BAR_EVENTS_S}, 0)   {floor / acknowledged:.2f} × that is the floor: {floor:.0f} events/s of plain"
        f" SQLite, {step} a commit"
    )
    print(f"  from due to acknowledged        {percentiles(waits)}   {cpu / len(events) * 1e6:.0f} µs CPU an event")
    print(f"  PostgreSQL meanwhile            {len(events) - waiting} of {len(events)}; the rest {behind:.1f} s later")
    return reached


def stored_ids(dsn: str, agents: list[tuple[UUID, UUID]]) -> set[UUID]:
    """The events of these tenants that PostgreSQL has."""
    found: set[UUID] = set()
    with psycopg.connect(dsn) as connection:
        for tenant_id, _ in agents:
            with connection.transaction():
                connection.execute("SELECT set_config('app.tenant_id', %s, true)", [str(tenant_id)])
                found |= {row[0] for row in connection.execute("SELECT id FROM supervision_callevent")}
    return found


async def drain(path: Path, dsn: str, agents: list[tuple[UUID, UUID]]) -> None:
    recorder = Recorder(path / "three", dsn, announce=None)
    logs = []
    for n in range(CALLS):
        tenant_id, agent_id = agents[n % TENANTS]
        logs.append(CallLog(record=recorder.record, tenant_id=tenant_id, call_id=uuid7()))
        logs[-1].add(started(agent_id))
    await recorder.drained(60)

    number, index = 0, 0
    while number < 12_000:
        index += 1
        for log in logs:
            for event in turn(index):
                log.add(event)
                number += 1
    began, cpu = time.perf_counter(), time.process_time()
    await recorder.drained(120)
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    print(f"journal to PostgreSQL, a backlog  {number / took:8.0f} events/s   {cpu / number * 1e6:.0f} µs CPU an event")

    # At the pace of real calls: a turn of each call every 8 s, its events spread as they come.
    seconds = 10
    loop = asyncio.get_running_loop()
    cpu, recorded = time.process_time(), recorder.counts.drain.transactions
    lags: list[float] = []
    begin = loop.time()
    for n in range(int(seconds / TURN_EVERY_S * CALLS)):
        due = begin + n * TURN_EVERY_S / CALLS
        await asyncio.sleep(max(0.0, due - loop.time()))
        lags.append(max(0.0, loop.time() - due))
        for event in turn(index + 1 + n // CALLS):
            logs[n % CALLS].add(event)
    await recorder.drained(60)
    cpu = time.process_time() - cpu
    transactions = recorder.counts.drain.transactions - recorded
    late = statistics.quantiles(lags, n=100)[98]
    print(
        f"{CALLS} calls of {TENANTS} tenants, a turn each {TURN_EVERY_S:g} s: {cpu / seconds * 100:.1f} % of a core, "
        f"{transactions / seconds:.0f} transactions/s, loop late p99 {late * 1e3:.1f} ms"
    )
    await recorder.aclose()


def make_agents(url: str) -> list[tuple[UUID, UUID]]:
    made = []
    for n in range(TENANTS):
        tenant_id, agent_id = uuid7(), uuid7()
        with psycopg.connect(url) as connection:
            connection.execute("SELECT set_config('app.tenant_id', %s, true)", [str(tenant_id)])
            connection.execute(
                "INSERT INTO tenants_tenant (id, slug, name, created_at) VALUES (%s, %s, 'bench', now())",
                [tenant_id, f"bench-{n}"],
            )
            connection.execute(
                "INSERT INTO supervision_agent (id, tenant_id, name, upstream_url, signing_secret_sealed, created_at,"
                " updated_at) VALUES (%s, %s, 'bench', 'ws://127.0.0.1:1/', '\\x00', now(), now())",
                [agent_id, tenant_id],
            )
        made.append((tenant_id, agent_id))
    return made


def main() -> int:
    """Measure and print; 0 when the bar was reached and nothing was lost."""
    parser = argparse.ArgumentParser(description="Measure the recorder.")
    parser.add_argument("--rate", type=int, default=6000, help="events a second that are offered")
    parser.add_argument("--seconds", type=float, default=15.0, help="for so long")
    options = parser.parse_args()
    # The journals of the first measurements have no PostgreSQL, and would say so.
    logging.getLogger("supervision.recorder").setLevel(logging.CRITICAL)
    with folder() as path:
        asyncio.run(call_path(path / "path"))
        asyncio.run(commit_latency(path))
    with folder() as path:
        asyncio.run(journal_rate(path))
    with folder() as path:
        servers = embedded.start(path / "servers")
        try:
            roles_create(admin_url=servers.database_admin_url)
            app = database_url_for(servers.database_admin_url, user=APP, database="mirror")
            owner = database_url_for(servers.database_admin_url, user=OWNER, database="mirror")
            subprocess.run(
                [sys.executable, "manage.py", "migrate", "--skip-checks", "--verbosity", "0"],
                cwd=ROOT,
                env={
                    **os.environ,
                    "DATABASE_URL": app,
                    "DATABASE_OWNER_URL": owner,
                    "MIRROR_DATABASE_ROLE": "owner",
                    "REDIS_URL": servers.redis_url,
                    "MIRROR_ENV": "development",
                    "MIRROR_HOME": str(path / "home"),
                },
                check=True,
            )
            agents = make_agents(app)
            reached = asyncio.run(sustained(path, app, agents, options.rate, options.seconds))
            asyncio.run(drain(path, app, agents))
        finally:
            embedded.stop(path / "servers")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
