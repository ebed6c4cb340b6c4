"""What is acknowledged survives: processes that are killed, a PostgreSQL that is stopped in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import psycopg
import pytest

from mirror_saas import embedded
from mirror_saas.ids import uuid7
from supervision.recorder.recorder import Recorder
from tenants.services.roles import roles_create
from tests.factories import Tenancy
from tests.recorder.calls import call_log, ended, event, everything, reported, rows, seqs, started
from tests.recorder.conftest import Tenants
from tests.support.servers import ROOT, DatabaseUrls, Servers, _migrate

PATIENCE_S = 60
NOWHERE = "postgresql://mirror_app@127.0.0.1:1/mirror"


@contextlib.asynccontextmanager
async def child(directory: Path, dsn: str, *tenancies: Tenancy) -> AsyncIterator[asyncio.subprocess.Process]:
    """A recording process; it is killed at the end, if it has not been before."""
    lines = json.dumps([{"tenant": str(t.id), "agent": str(t.agent.id)} for t in tenancies])
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.recorder.child",
        str(directory),
        dsn,
        lines,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def acknowledged(process: asyncio.subprocess.Process, number: int) -> set[UUID]:
    """The next `number` ids that the process acknowledges."""
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        return {UUID((await process.stdout.readline()).decode().strip()) for _ in range(number)}


async def kill(process: asyncio.subprocess.Process) -> set[UUID]:
    """SIGKILL; returns what the process still acknowledged."""
    process.send_signal(signal.SIGKILL)
    assert process.stdout is not None
    rest = await process.stdout.read()
    assert await process.wait() == -signal.SIGKILL
    # The kill can come in the middle of a line.
    return {UUID(line.decode()) for line in rest.split(b"\n")[:-1] if len(line) == 36}


def check_record(app_url: str, tenancy: Tenancy) -> set[UUID]:
    """Nothing doubled, nothing half: each table says exactly what the events say. Returns the events' ids."""
    found = everything(app_url, tenancy)
    events = found["supervision_callevent"]
    kinds = Counter(e["kind"] for e in events)
    assert len(found["supervision_call"]) == kinds["call.started"]
    assert len(found["supervision_turn"]) == kinds["turn.reported"]
    unjudged = kinds["turn.reported"] - kinds["turn.judged"]
    assert len(found["supervision_verdict"]) == kinds["turn.judged"] + unjudged
    steps = [step for i in found["supervision_intervention"] for step in i["steps"]]
    assert len(steps) == kinds["intervention.step"]
    dropped = Counter(e["call_id"] for e in events if e["kind"] == "media.dropped")
    assert {c["id"]: c["dropped_media_ms"] for c in found["supervision_call"]} == {
        c["id"]: 20 * dropped[c["id"]] for c in found["supervision_call"]
    }
    for call in found["supervision_call"]:
        assert call["state"] == "ended"
        assert call["outcome"] == ("failed" if call["reason"] == "process_died" else "completed")
        # No gap: what was lost with the process, if anything, was its unacknowledged end.
        numbers = list(seqs(app_url, tenancy, call["id"]))
        assert numbers == list(range(1, len(numbers) + 1))
    return {e["id"] for e in events}


@pytest.mark.parametrize("database", ["up", "down"])
async def test_a_killed_process_loses_nothing_that_it_acknowledged(
    database: str, tenants: Tenants, make_recorder: Callable[..., Recorder], tmp_path: Path
) -> None:
    directory = tmp_path / "journal"
    before = {e["id"] for e in tenants.charlies["supervision_callevent"]}
    told: set[UUID] = set()
    dsn = tenants.app_url if database == "up" else NOWHERE
    async with child(directory, dsn, tenants.alice) as process:
        told |= await acknowledged(process, 150)
        told |= await kill(process)
    # Once more over the first one's leavings, so that adopting is interrupted too.
    async with child(directory, dsn, tenants.alice) as process:
        told |= await acknowledged(process, 40)
        told |= await kill(process)

    recorder = make_recorder()
    await recorder.drained(PATIENCE_S)
    stored = check_record(tenants.app_url, tenants.alice)
    assert told <= stored
    outcomes = Counter(c["outcome"] for c in rows(tenants.app_url, tenants.alice, "supervision_call"))
    assert outcomes["failed"] <= 2
    assert outcomes["completed"] >= 1
    assert before == {e["id"] for e in rows(tenants.app_url, tenants.charlie, "supervision_callevent")}
    assert tenants.stranger_is_untouched()
    await recorder.aclose()
    assert list(directory.iterdir()) == []


async def test_two_processes_record_into_one_directory_and_one_is_killed(
    tenants: Tenants, make_recorder: Callable[..., Recorder], tmp_path: Path
) -> None:
    directory = tmp_path / "journal"
    alice, charlie = tenants.alice, tenants.charlie
    async with child(directory, tenants.app_url, alice) as hers, child(directory, tenants.app_url, charlie) as his:
        told_hers = await acknowledged(hers, 60)
        told_his = await acknowledged(his, 60)
        told_hers |= await kill(hers)
        recorder = make_recorder()
        await recorder.drained(PATIENCE_S)
        assert recorder.counts.drain.adopted == 1
        assert told_hers <= check_record(tenants.app_url, alice)
        # The neighbour was not disturbed: it goes on acknowledging, and its calls are not closed.
        told_his |= await acknowledged(his, 60)
        reasons = {c["reason"] for c in rows(tenants.app_url, charlie, "supervision_call")}
        assert "process_died" not in reasons
        told_his |= await kill(his)
    await recorder.aclose()
    recorder = make_recorder()
    await recorder.drained(PATIENCE_S)
    assert told_his <= {e["id"] for e in rows(tenants.app_url, charlie, "supervision_callevent")}
    assert {e["tenant_id"] for e in rows(tenants.app_url, charlie, "supervision_callevent")} == {charlie.id}


# A PostgreSQL of its own, to be stopped


@pytest.fixture(scope="module")
def private_servers() -> Iterator[tuple[Path, DatabaseUrls]]:
    home = Path(tempfile.mkdtemp(prefix="mirror-rec-"))
    started_servers = embedded.start(home)
    urls = Servers(started_servers.database_admin_url, started_servers.redis_url, home, None).urls("mirror")
    roles_create(admin_url=started_servers.database_admin_url, database="mirror")
    _migrate(urls)
    yield home, urls
    embedded.stop(home)
    shutil.rmtree(home, ignore_errors=True)


def tenant_in(urls: DatabaseUrls, name: str) -> Any:
    """A tenant with an agent, by SQL: Django in this process is connected to another server."""
    tenant_id, agent_id = uuid7(), uuid7()
    with psycopg.connect(urls.app) as connection:
        connection.execute("SELECT set_config('app.tenant_id', %s, true)", [str(tenant_id)])
        connection.execute(
            "INSERT INTO tenants_tenant (id, slug, name, created_at) VALUES (%s, %s, %s, now())",
            [tenant_id, f"{name}-{tenant_id.hex[-8:]}", name],
        )
        connection.execute(
            "INSERT INTO supervision_agent (id, tenant_id, name, upstream_url, signing_secret_sealed, created_at,"
            " updated_at) VALUES (%s, %s, %s, 'ws://127.0.0.1:1/', '\\x00', now(), now())",
            [agent_id, tenant_id, name],
        )
    nothing = SimpleNamespace(id=None, number=None)
    return SimpleNamespace(id=tenant_id, agent=SimpleNamespace(id=agent_id), policy=nothing, version=nothing)


async def test_postgresql_is_stopped_and_started_in_the_middle_of_calls(
    private_servers: tuple[Path, DatabaseUrls], tmp_path: Path
) -> None:
    home, urls = private_servers
    alice, charlie = tenant_in(urls, "alice"), tenant_in(urls, "charlie")
    recorder = Recorder(tmp_path / "journal", urls.app, announce=None)
    hers, his = call_log(recorder.record, alice), call_log(recorder.record, charlie)
    hers.add(started(alice))
    his.add(started(charlie))
    await recorder.drained(PATIENCE_S)

    stopping = asyncio.create_task(asyncio.to_thread(embedded.stop, home))
    index = 0
    while not stopping.done():
        # Recording goes on at the pace of commits while the server goes down and while it is down.
        index += 1
        hers.add(reported(uuid7(), index=index))
        his.add(reported(uuid7(), index=index))
        await recorder.commit()
    assert await stopping
    for _ in range(20):
        index += 1
        hers.add(reported(uuid7(), index=index))
        his.add(reported(uuid7(), index=index))
        await recorder.commit()
    hers.add(ended())
    his.add(ended())
    with pytest.raises(TimeoutError):
        await recorder.drained(0.2)

    await asyncio.to_thread(embedded.start, home)
    await recorder.drained(PATIENCE_S)
    assert seqs(urls.app, alice, hers.call_id) == list(range(1, index + 3))
    assert seqs(urls.app, charlie, his.call_id) == list(range(1, index + 3))
    for tenancy in (alice, charlie):
        turns = rows(urls.app, tenancy, "supervision_turn", "index")
        assert [t["index"] for t in turns] == list(range(1, index + 1))
        assert {t["tenant_id"] for t in turns} == {tenancy.id}
    assert recorder.counts.drain.outages >= 1
    assert recorder.counts.drain.refused == 0
    await recorder.aclose()
    assert list((tmp_path / "journal").iterdir()) == []


async def test_a_database_that_is_not_migrated_yet_is_waited_for(
    private_servers: tuple[Path, DatabaseUrls], tmp_path: Path
) -> None:
    _, urls = private_servers
    alice = tenant_in(urls, "alice")
    call_id = uuid7()
    recorder = Recorder(tmp_path / "journal", urls.app, announce=None)
    with psycopg.connect(urls.owner) as owner:
        owner.execute("ALTER TABLE supervision_turn RENAME TO supervision_turn_old")
    try:
        recorder.record(event(started(alice), alice, call_id, 1))
        recorder.record(event(reported(uuid7()), alice, call_id, 2))
        with pytest.raises(TimeoutError):
            await recorder.drained(1.0)
    finally:
        with psycopg.connect(urls.owner) as owner:
            owner.execute("ALTER TABLE supervision_turn_old RENAME TO supervision_turn")
    await recorder.drained(PATIENCE_S)
    assert seqs(urls.app, alice, call_id) == [1, 2]
    assert recorder.counts.drain.refused == 0
    await recorder.aclose()
