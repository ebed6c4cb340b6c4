"""How quickly the API answers over a large record: `python -m benchmarks.bench_api [--turns 1000000]`.

Loads turns of 20 tenants (20 turns a call, each with its verdict; every tenth with a tool decision, every twentieth
with an intervention) into a PostgreSQL of its own with one statement a table and tenant, closes the days of usage as
the schedule does, and starts `manage.py serve`. Then it asks lists, filters and search at a steady rate, each request
for another tenant in turn, on connections that are kept open; a request's time runs from when it was due, so that one
that waits for its turn counts as slow. The bar is 100 ms at the 95th percentile for each kind.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import aiohttp
import psycopg

from benchmarks.own_mirror import own_mirror

BAR_MS: Final = 100.0
TENANTS: Final = 20
TURNS_A_CALL: Final = 20
DAYS: Final = 60
# One turn in so many has the word.
WORDS: Final = {"order": 1, "refund": 20, "zanzibar": 1_000, "quetzalcoatl": 20_000}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A tenant of the benchmark: its key, and what there is to ask for."""

    key: str
    agent_id: str
    call_id: str


QUESTIONS: Final[dict[str, str]] = {
    "calls": "/calls",
    "calls of an agent": "/calls?agent_id={agent_id}",
    "calls of a month": "/calls?from={from_}&to={to}",
    "calls with an intervention": "/calls?interventions=true",
    "calls with partial coverage": "/calls?coverage=partial",
    "calls, 200 a page": "/calls?limit=200",
    "one call": "/calls/{call_id}",
    "turns of a call": "/calls/{call_id}/turns",
    "verdicts": "/verdicts",
    "verdicts that intervene": "/verdicts?intervene=true",
    "verdicts that failed": "/verdicts?state=failed",
    "verdicts of an agent": "/verdicts?agent_id={agent_id}",
    "verdicts above a score": "/verdicts?min_score=0.9",
    "blocked tools": "/tool-decisions?allow=false",
    "interventions": "/interventions",
    "unlabelled interventions": "/interventions?label=none",
    "usage of 30 days": "/usage",
    "search: nearly every turn": "/calls?text=order",
    "search: one turn in 20": "/calls?text=refund",
    "search: one turn in 1,000": "/calls?text=zanzibar",
    "search: one turn in 20,000": "/calls?text=quetzalcoatl",
    "search: a phrase": "/calls?text=%22refund+zanzibar%22",
    "search: nothing": "/calls?text=nobody+says+this",
    "search with filters": "/calls?text=refund&agent_id={agent_id}&interventions=true",
}


def _id(at: str, kind: str) -> str:
    """SQL of a UUIDv7 of the time `at`, as the service makes them, for row `n` of a kind."""
    salt = f"md5('{kind}' || %(tenant)s::text || n)"
    unix_ms = f"lpad(to_hex((extract(epoch FROM {at}) * 1000)::bigint), 12, '0')"
    return f"({unix_ms} || '7' || substr({salt}, 1, 3) || '8' || substr({salt}, 4, 15))::uuid"


def load(owner: psycopg.Connection[Any], tenant_id: UUID, agents: list[UUID], version: Any, turns: int) -> None:
    """The record of one tenant, spread over the days up to now."""
    calls = turns // TURNS_A_CALL
    parameters = {
        "tenant": tenant_id,
        "agents": agents,
        "policy": version.policy_id,
        "version": version.id,
        "calls": calls,
        "per": TURNS_A_CALL,
        "first": datetime.now(UTC) - timedelta(days=DAYS),
        "step": timedelta(days=DAYS) / calls,
    }
    words = "".join(f" || CASE WHEN mod(n, {every}) = 0 THEN ' {word}' ELSE '' END" for word, every in WORDS.items())
    statements = [
        f"""CREATE TEMP TABLE bench_call AS
            SELECT n, %(first)s + n * %(step)s AS started_at, {_id("%(first)s + n * %(step)s", "c")} AS id
              FROM generate_series(0, %(calls)s - 1) AS n""",
        """INSERT INTO supervision_call (id, tenant_id, agent_id, policy_id, policy_version_id, policy_version, state,
               started_at, ended_at, outcome, coverage_state, coverage, turn_count, judged_count, skipped_count,
               failed_count, intervention_count, duration_ms)
           SELECT id, %(tenant)s, (%(agents)s::uuid[])[1 + mod(n, 5)], %(policy)s, %(version)s, 1, 'ended', started_at,
                  started_at + interval '3 minutes', 'completed',
                  CASE WHEN mod(n, 50) = 0 THEN 'partial' ELSE 'full' END, 1, %(per)s, 12, 7, 1,
                  (mod(n, 5) = 0)::int, 180000
             FROM bench_call""",
        f"""CREATE TEMP TABLE bench_turn AS
            SELECT call_id, n, at, at_ms, {_id("at", "t")} AS id, {_id("at", "v")} AS verdict_id
              FROM (SELECT c.id AS call_id, t.n, c.started_at + mod(t.n, %(per)s) * interval '8 seconds' AS at,
                           mod(t.n, %(per)s) * 8000 AS at_ms
                      FROM generate_series(0, %(calls)s * %(per)s - 1) AS t(n)
                      JOIN bench_call AS c ON c.n = t.n / %(per)s) AS turn""",
        f"""INSERT INTO supervision_turn (id, tenant_id, call_id, ref, index, customer_text, text, language, at_ms)
           SELECT id, %(tenant)s, call_id, 't' || n, mod(n, %(per)s),
                  'Where is my parcel number ' || n || ', I have been waiting since ' || md5(n::text) || '?',
                  'I have looked at it for you and it will be there soon, is there anything else?'{words}, 'en', at_ms
             FROM bench_turn""",
        """INSERT INTO supervision_verdict (id, tenant_id, call_id, turn_id, state, score, threshold, reason, intervene,
               acted, latency_ms, prompt_tokens, completion_tokens, at_ms)
           SELECT verdict_id, %(tenant)s, call_id, id, CASE WHEN mod(n, 1000) = 0 THEN 'failed' ELSE 'judged' END,
                  mod(n, 100) / 100.0, 0.7, 'Nothing in the reply touches a rule.', mod(n, 20) = 0, mod(n, 20) = 0, 300,
                  900, 40, at_ms + 300
             FROM bench_turn""",
        f"""INSERT INTO supervision_tooldecision (id, tenant_id, call_id, turn_id, ref, name, args, allow, code, state,
               score, at_ms)
           SELECT {_id("at", "d")}, %(tenant)s, call_id, id, 'c' || n, 'send_sms', '{{}}', mod(n, 100) > 0, 'ok',
                  'judged', 0.1, at_ms
             FROM bench_turn WHERE mod(n, 10) = 0""",
        f"""INSERT INTO supervision_intervention (id, tenant_id, call_id, turn_id, verdict_id, plan, outcome, at_ms)
           SELECT {_id("at", "i")}, %(tenant)s, call_id, id, verdict_id, 'cut_now', 'completed', at_ms + 400
             FROM bench_turn WHERE mod(n, 20) = 0""",
        # No limit of requests: the benchmark asks more than a tenant may by default.
        """INSERT INTO tenants_tenantlimits (id, tenant_id, requests_per_minute, key_requests_per_minute, updated_at)
           VALUES (gen_random_uuid(), %(tenant)s, -1, -1, now())""",
        "DROP TABLE bench_call, bench_turn",
    ]
    with owner.transaction():
        owner.execute("SELECT set_config('app.tenant_id', %s, true)", [str(tenant_id)])
        for statement in statements:
            owner.execute(statement.encode(), parameters)


def prepare(turns: int) -> list[Loaded]:
    """Tenants with keys, and their record."""
    import django

    django.setup()
    from django.utils import timezone

    from supervision.models import Call
    from supervision.services.agents import agent_create
    from supervision.services.usage import usage_days_close
    from tenants.services.api_keys import api_key_create
    from tests.factories import tenancy_create

    loaded = []
    with psycopg.connect(
        os.environ["DATABASE_OWNER_URL"], autocommit=True, cursor_factory=psycopg.ClientCursor
    ) as owner:
        for number in range(TENANTS):
            tenancy = tenancy_create(owner=f"bench{number}")
            with tenancy.context():
                agents = [tenancy.agent.id]
                for n in range(4):
                    made = agent_create(name=f"agent {n}", upstream_url="ws://127.0.0.1:1/", policy=tenancy.policy)
                    agents.append(made.agent.id)
                key = api_key_create(name="bench", scopes=["calls:read"]).key
            load(owner, tenancy.id, agents, tenancy.version, turns // TENANTS)
            with tenancy.context():
                usage_days_close(now=timezone.now())
                call_id = Call.objects.order_by("started_at").values_list("id", flat=True)[1]
            loaded.append(Loaded(key, str(agents[1]), str(call_id)))
            print(f"  {number + 1} of {TENANTS} tenants loaded", flush=True)
    return loaded


async def ask(base: str, loaded: list[Loaded], rate: float, each: int) -> dict[str, list[float]]:
    """`each` requests of every kind, in random order, `rate` a second; milliseconds from when each was due."""
    jobs = [(name, number) for name in QUESTIONS for number in range(each)]
    random.Random(1).shuffle(jobs)
    times: dict[str, list[float]] = {name: [] for name in QUESTIONS}
    now = datetime.now(UTC)
    month = {"from_": f"{now - timedelta(days=30):%Y-%m-%dT%H:%M:%SZ}", "to": f"{now:%Y-%m-%dT%H:%M:%SZ}"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def one(name: str, number: int, due: float | None) -> None:
            tenant = loaded[number % len(loaded)]
            path = QUESTIONS[name].format(agent_id=tenant.agent_id, call_id=tenant.call_id, **month)
            begun = asyncio.get_running_loop().time()
            async with session.get(f"{base}/api/v1{path}", headers={"Authorization": f"Bearer {tenant.key}"}) as answer:
                body = await answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"{path}: {answer.status} {body[:300]!r}")
            if due is not None:
                times[name].append((asyncio.get_running_loop().time() - due) * 1000)
            elif name == "calls":
                print(f"  first answer after {(asyncio.get_running_loop().time() - begun) * 1000:.0f} ms")

        for name in QUESTIONS:
            for number in range(2):
                await one(name, number, None)
        begun = asyncio.get_running_loop().time()
        tasks = []
        for place, (name, number) in enumerate(jobs):
            due = begun + place / rate
            await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
            tasks.append(asyncio.create_task(one(name, number, due)))
        await asyncio.gather(*tasks)
    return times


def show(times: dict[str, list[float]]) -> bool:
    """The table; whether every kind is within the bar."""
    print(f"\n{'':32}{'p50':>9}{'p95':>9}{'max':>9}  ms")
    everything: list[float] = []
    good = True
    for name, measured in times.items():
        everything += measured
        p95 = statistics.quantiles(measured, n=20)[18]
        good = good and p95 <= BAR_MS
        mark = "" if p95 <= BAR_MS else "  over the bar"
        print(f"{name:32}{statistics.median(measured):9.1f}{p95:9.1f}{max(measured):9.1f}{mark}")
    p95 = statistics.quantiles(everything, n=20)[18]
    print(f"{'all':32}{statistics.median(everything):9.1f}{p95:9.1f}{max(everything):9.1f}")
    return good


async def measure(base: str, loaded: list[Loaded], rate: float, each: int) -> bool:
    """Wait for the server, ask, and print; whether every kind is within the bar."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(60):
        while True:
            with suppress(aiohttp.ClientError):
                async with session.get(f"{base}/livez") as answer:
                    if answer.status == 200:
                        break
            await asyncio.sleep(0.2)
    return show(await ask(base, loaded, rate, each))


def main() -> int:
    """Load, serve, ask and print; 1 when a kind of request is over the bar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=1_000_000, help="turns of all tenants together")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second")
    parser.add_argument("--each", type=int, default=60, help="requests of each kind")
    options = parser.parse_args()
    with own_mirror() as mirror:
        began = time.monotonic()
        loaded = prepare(options.turns)
        size = mirror.vacuum()
        print(f"{options.turns:,} turns of {TENANTS} tenants in {time.monotonic() - began:.0f} s, {size}")
        mirror.serve()
        good = asyncio.run(measure(mirror.url, loaded, options.rate, options.each))
        print(f"{options.rate:g} requests/s, {options.each} of each kind, load {os.getloadavg()[0]:.1f}")
        return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
