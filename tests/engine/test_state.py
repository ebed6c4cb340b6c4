"""Call state: one suite for the stores, on a real Valkey and a real PostgreSQL, and one for what is kept in them."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
import redis.asyncio

from supervision.engine import MirrorConfig, Supervisor, SupervisorContext
from supervision.engine.context import HistoryEntry, JudgingState, ToolCode, ToolVerdict, Verdict
from supervision.engine.state.call import CallState, KeptTool, StateFull
from supervision.engine.state.memory import MemoryStateStore
from supervision.engine.state.postgres import PostgresStateStore
from supervision.engine.state.protocol import (
    CallKey,
    Claimed,
    StateLost,
    StateStore,
    StateTaken,
    StateUnavailable,
)
from supervision.engine.state.redis import RedisStateStore
from supervision.engine.supervisor import CallSupervisor
from tests.engine.llms import BAD, CLEAN, ScriptedLLM, charge, look_up
from tests.support.door import Door
from tests.support.servers import DatabaseUrls
from tests.support.virtual_time import virtual_time

ROOT = Path(__file__).resolve().parents[2]
TABLE = "call_state_test"
NOW = 1_760_000_000.0
TTL_S = 600


@dataclass
class Clock:
    """A clock that stands still until it is moved."""

    now: float = NOW

    def __call__(self) -> float:
        return self.now


class Kept:
    """A store under test, and how to look behind it."""

    store: StateStore

    async def seconds_left(self, key: CallKey) -> float:
        raise NotImplementedError

    async def expire(self, key: CallKey) -> None:
        """Lets a call's time run out."""
        raise NotImplementedError


class InMemory(Kept):
    def __init__(self) -> None:
        self.clock = Clock(0.0)
        self.memory = MemoryStateStore(ttl_s=TTL_S, clock=self.clock)
        self.store = self.memory

    async def seconds_left(self, key: CallKey) -> float:
        return self.memory._calls[key].until - self.clock.now

    async def expire(self, key: CallKey) -> None:
        self.clock.now = self.memory._calls[key].until


class InRedis(Kept):
    def __init__(self, url: str) -> None:
        self.client = redis.asyncio.Redis.from_url(url)
        self.redis_store = RedisStateStore(url, prefix=f"test:{secrets.token_hex(6)}:", ttl_s=TTL_S, timeout_s=10)
        self.store = self.redis_store

    async def seconds_left(self, key: CallKey) -> float:
        return await self.client.pttl(self.redis_store.key_of(key)) / 1000

    async def expire(self, key: CallKey) -> None:
        await self.client.pexpire(self.redis_store.key_of(key), 0)


class InPostgres(Kept):
    def __init__(self, urls: DatabaseUrls) -> None:
        self.urls = urls
        self.postgres = PostgresStateStore(urls.app, table=TABLE, ttl_s=TTL_S, timeout_s=10)
        self.store = self.postgres

    async def fetch(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        async with await psycopg.AsyncConnection.connect(self.urls.app, autocommit=True) as connection:
            cursor = await connection.execute(statement.encode(), values)
            return await cursor.fetchall() if cursor.description else []

    async def seconds_left(self, key: CallKey) -> float:
        rows = await self.fetch(
            f"SELECT extract(epoch FROM expires_at - clock_timestamp())::float FROM {TABLE} "
            "WHERE tenant_id = %s AND call_id = %s",
            key.tenant_id or "",
            key.call_id,
        )
        (seconds,) = rows[0]
        assert isinstance(seconds, float)
        return seconds

    async def expire(self, key: CallKey) -> None:
        await self.fetch(
            f"UPDATE {TABLE} SET expires_at = clock_timestamp() WHERE tenant_id = %s AND call_id = %s",
            key.tenant_id or "",
            key.call_id,
        )


@pytest.fixture(scope="module")
def state_table(database_urls: DatabaseUrls) -> Iterator[DatabaseUrls]:
    """The table, made by the owner and used by a role that may only use it."""

    async def create() -> None:
        store = PostgresStateStore(database_urls.owner, table=TABLE, timeout_s=30)
        await store.create_table()
        await store.create_table()
        await store.aclose()

    # Beside the test's own event loop, which may be running already.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(create())).result()
    with psycopg.connect(database_urls.owner, autocommit=True) as connection:
        connection.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {TABLE} TO mirror_app".encode())
        yield database_urls
        connection.execute(f"DROP TABLE {TABLE}".encode())


@pytest.fixture(params=["memory", "redis", "postgres"])
async def kept(request: pytest.FixtureRequest) -> AsyncIterator[Kept]:
    made: Kept
    if request.param == "memory":
        made = InMemory()
    elif request.param == "redis":
        made = InRedis(request.getfixturevalue("redis_url"))
    else:
        made = InPostgres(request.getfixturevalue("state_table"))
    assert isinstance(made.store, StateStore)
    yield made
    await made.store.aclose()
    await made.store.aclose()
    if isinstance(made, InRedis):
        await made.client.aclose()


@pytest.fixture
def key() -> CallKey:
    return CallKey(f"tenant-{secrets.token_hex(6)}", "call-1")


async def claim(store: StateStore, key: CallKey, at: float = NOW, *, late: bool = False) -> Claimed:
    return await store.claim(key, opened_at=at, late=late)


# The stores


async def test_a_new_call_is_empty_and_what_is_written_is_there_for_the_next_owner(kept: Kept, key: CallKey) -> None:
    first = await claim(kept.store, key)
    assert first.fields == {}
    await kept.store.write(key, first.owner, {"a": '"1"', "b": '"2"'})
    await kept.store.write(key, first.owner, {"b": '"3"', "c": '"4"', "a": None, "never": None})
    await kept.store.write(key, first.owner, {})
    second = await claim(kept.store, key)
    assert second.fields == {"b": '"3"', "c": '"4"'}
    assert second.owner != first.owner


async def test_a_crowd_of_calls_at_once_waits_for_its_turn(kept: Kept, key: CallKey) -> None:
    keys = [CallKey(key.tenant_id, f"crowd-{number}") for number in range(150)]
    claims = await asyncio.gather(*(claim(kept.store, each) for each in keys))
    assert len({each.owner for each in claims}) == len(keys)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (CallKey("a", "b:c"), CallKey("a:b", "c")),
        (CallKey(None, "c"), CallKey("-", "c")),
        (CallKey(None, "c"), CallKey("None", "c")),
        (CallKey("a%3A", "c"), CallKey("a:", "c")),
        (CallKey("a", "c"), CallKey("A", "c")),
        (CallKey("ü", "c"), CallKey("u", "c")),
        (CallKey("a", "c"), CallKey("a ", "c")),
    ],
)
async def test_calls_and_tenants_are_never_mixed_up(kept: Kept, one: CallKey, other: CallKey) -> None:
    unique = secrets.token_hex(6)
    one, other = CallKey(one.tenant_id, one.call_id + unique), CallKey(other.tenant_id, other.call_id + unique)
    mine, theirs = await claim(kept.store, one), await claim(kept.store, other)
    await kept.store.write(one, mine.owner, {"whose": '"one"'})
    await kept.store.write(other, theirs.owner, {"whose": '"other"'})
    assert (await claim(kept.store, one)).fields == {"whose": '"one"'}
    assert (await claim(kept.store, other)).fields == {"whose": '"other"'}
    with pytest.raises(StateTaken):
        await kept.store.write(other, mine.owner, {"whose": '"one"'})


async def test_w8_the_newest_owner_has_the_call_and_the_old_one_can_neither_write_nor_forget(
    kept: Kept, key: CallKey
) -> None:
    old = await claim(kept.store, key)
    await kept.store.write(key, old.owner, {"a": "1"})
    new = await claim(kept.store, key)
    with pytest.raises(StateTaken):
        await kept.store.write(key, old.owner, {"a": "2"})
    assert await kept.store.forget(key, old.owner) is False
    await kept.store.write(key, new.owner, {"b": "3"})
    assert (await claim(kept.store, key)).fields == {"a": "1", "b": "3"}


async def test_of_many_that_claim_at_once_exactly_one_owns_the_call(kept: Kept, key: CallKey) -> None:
    owners = [claimed.owner for claimed in await asyncio.gather(*(claim(kept.store, key) for _ in range(12)))]
    assert len(set(owners)) == 12
    written = 0
    for owner in owners:
        try:
            await kept.store.write(key, owner, {"a": "1"})
            written += 1
        except StateTaken:
            pass
    assert written == 1


async def test_a_late_claim_gives_way_to_a_newer_connection_and_to_no_older_one(kept: Kept, key: CallKey) -> None:
    assert (await claim(kept.store, key, NOW, late=True)).fields == {}
    newer = await claim(kept.store, key, NOW + 0.25)
    with pytest.raises(StateTaken):
        await claim(kept.store, key, NOW + 0.125, late=True)
    await kept.store.write(key, newer.owner, {"a": "1"})
    same = await claim(kept.store, key, NOW + 0.25, late=True)
    assert same.fields == {"a": "1"}
    # One that claims when it begins is the newest, whatever its clock says.
    assert (await claim(kept.store, key, NOW - 60)).fields == {"a": "1"}
    await kept.expire(key)
    assert (await claim(kept.store, key, NOW - 120, late=True)).fields == {}


async def test_a_forgotten_call_is_gone(kept: Kept, key: CallKey) -> None:
    owner = (await claim(kept.store, key)).owner
    await kept.store.write(key, owner, {"a": "1"})
    assert await kept.store.forget(key, owner) is True
    assert await kept.store.forget(key, owner) is False
    with pytest.raises(StateLost):
        await kept.store.write(key, owner, {"a": "1"})
    assert (await claim(kept.store, key)).fields == {}


async def test_a_call_expires_and_every_change_starts_its_time_anew(kept: Kept, key: CallKey) -> None:
    owner = (await claim(kept.store, key)).owner
    assert await kept.seconds_left(key) == pytest.approx(TTL_S, abs=30)
    if isinstance(kept, InMemory):
        kept.clock.now += TTL_S - 1
        await kept.store.write(key, owner, {"a": "1"})
        assert await kept.seconds_left(key) == TTL_S
    elif isinstance(kept, InRedis):
        await kept.client.pexpire(kept.redis_store.key_of(key), 60_000)
    elif isinstance(kept, InPostgres):
        await kept.fetch(f"UPDATE {TABLE} SET expires_at = clock_timestamp() + interval '1 minute'")
    await kept.store.write(key, owner, {"a": "1"})
    assert await kept.seconds_left(key) == pytest.approx(TTL_S, abs=30)
    await kept.expire(key)
    with pytest.raises(StateLost):
        await kept.store.write(key, owner, {"b": "2"})
    assert await kept.store.forget(key, owner) is False
    assert (await claim(kept.store, key)).fields == {}


async def test_a_call_with_everything_that_may_be_in_it_is_written_at_once(kept: Kept, key: CallKey) -> None:
    fields = {f"tool:{number}": json.dumps("x" * 4_000) for number in range(600)}
    owner = (await claim(kept.store, key)).owner
    await kept.store.write(key, owner, fields)
    again = await claim(kept.store, key)
    assert again.fields == fields
    await kept.store.write(key, again.owner, dict.fromkeys(fields, None))
    assert (await claim(kept.store, key)).fields == {}


async def test_expired_calls_do_not_pile_up(kept: Kept) -> None:
    tenant = f"t-{secrets.token_hex(6)}"
    for number in range(3):
        await claim(kept.store, CallKey(tenant, f"old-{number}"))
    if isinstance(kept, InMemory):
        kept.clock.now += TTL_S
        for number in range(300):
            await claim(kept.store, CallKey(tenant, f"new-{number}"))
        assert len(kept.memory) == 300
    elif isinstance(kept, InPostgres):
        for number in range(3):
            await kept.expire(CallKey(tenant, f"old-{number}"))
        # The first claim of a store purges, later ones within a minute do not.
        await claim(kept.store, CallKey(tenant, "new"))
        assert await kept.fetch(f"SELECT count(*) FROM {TABLE} WHERE tenant_id = %s", tenant) == [(4,)]
        assert await kept.postgres.purge() >= 3
        assert await kept.fetch(f"SELECT call_id FROM {TABLE} WHERE tenant_id = %s", tenant) == [("new",)]
        kept.postgres._purged_at = None
        await kept.expire(CallKey(tenant, "new"))
        await claim(kept.store, CallKey(tenant, "newest"))
        assert await kept.fetch(f"SELECT call_id FROM {TABLE} WHERE tenant_id = %s", tenant) == [("newest",)]
    elif isinstance(kept, InRedis):
        await kept.expire(CallKey(tenant, "old-0"))
        assert await kept.client.exists(kept.redis_store.key_of(CallKey(tenant, "old-0"))) == 0


@pytest.mark.parametrize(
    ("tenant_id", "call_id", "named"),
    [
        ("", "c", "tenant_id"),
        ("t", " ", "call_id"),
        ("t", "x" * 201, "call_id"),
        ("t\0", "c", "tenant_id"),
        ("t", "\ud800", "call_id"),
        ("t", None, "call_id"),
        (7, "c", "tenant_id"),
    ],
)
def test_a_call_without_a_usable_id_is_refused(tenant_id: object, call_id: object, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named} has to be"):
        CallKey(tenant_id, call_id)  # type: ignore[arg-type]


def test_stores_refuse_what_cannot_work() -> None:
    for wrong in (0, -1, True, "60", float("nan"), 31 * 86_400):
        with pytest.raises(ValueError, match="ttl_s"):
            MemoryStateStore(ttl_s=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="url has to start with redis"):
        RedisStateStore("127.0.0.1:6379")
    with pytest.raises(ValueError, match="timeout_s"):
        RedisStateStore("redis://h", timeout_s=0)
    with pytest.raises(ValueError, match="dsn is blank"):
        PostgresStateStore(" ")
    with pytest.raises(ValueError, match="table"):
        PostgresStateStore("postgresql:///x", table="t; DROP TABLE users")
    with pytest.raises(ValueError, match="timeout_s"):
        PostgresStateStore("postgresql:///x", timeout_s=61)
    with pytest.raises(ValueError, match="max_connections"):
        PostgresStateStore("postgresql:///x", max_connections=0)


def test_a_store_shows_no_password() -> None:
    assert "secret" not in repr(RedisStateStore("redis://:secret@host/0"))
    assert "secret" not in repr(PostgresStateStore("postgresql://u:secret@host/db"))


@pytest.mark.parametrize(
    ("module", "store", "packages"),
    [
        ("redis", "RedisStateStore('redis://127.0.0.1:1')", ("redis",)),
        ("postgres", "PostgresStateStore('host=127.0.0.1')", ("psycopg", "psycopg_pool")),
    ],
)
def test_the_database_packages_are_imported_by_use_only_and_missing_ones_are_named(
    module: str, store: str, packages: tuple[str, ...]
) -> None:
    make = f"from supervision.engine.state.{module} import *\nstore = {store}\n"
    loaded = "import sys; print([name for name in sys.modules if name.partition('.')[0] in ('redis', 'psycopg')])"
    done = subprocess.run([sys.executable, "-c", make + loaded], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    without = "".join(f"sys.modules[{name!r}] = None\n" for name in packages)
    use = (
        f"import asyncio, sys\n{without}{make}"
        "from supervision.engine.state.protocol import CallKey\n"
        "asyncio.run(store.claim(CallKey(None, 'c'), opened_at=1.0))"
    )
    done = subprocess.run([sys.executable, "-c", use], cwd=ROOT, capture_output=True, text=True)
    assert f"ImportError: {store.partition('(')[0]} needs" in done.stderr
    assert f"install mirror[{module}]" in done.stderr


# A store that is down


@pytest.fixture(params=["redis", "postgres"])
async def behind_door(request: pytest.FixtureRequest) -> AsyncIterator[tuple[StateStore, Door]]:
    """A store that is reached through a door."""
    store: StateStore
    if request.param == "redis":
        parts = urlsplit(request.getfixturevalue("redis_url"))
        door = Door(host=parts.hostname or "", port=parts.port or 0)
        async with door:
            url = f"redis://:{parts.password or ''}@127.0.0.1:{door.port}{parts.path}"
            store = RedisStateStore(url, prefix=f"test:{secrets.token_hex(6)}:", timeout_s=0.5)
            yield store, door
            await store.aclose()
        return
    parts = urlsplit(request.getfixturevalue("state_table").app)
    folder = parse_qs(parts.query).get("host", [None])[0]
    door = Door(host=parts.hostname or "", port=parts.port or 5432, path=folder and f"{folder}/.s.PGSQL.5432")
    async with door:
        login = parts.netloc.rpartition("@")[0]
        dsn = f"postgresql://{login}@127.0.0.1:{door.port}{parts.path}?sslmode=disable&gssencmode=disable"
        store = PostgresStateStore(dsn, table=TABLE, timeout_s=2)
        yield store, door
        await store.aclose()


async def eventually_claim(store: StateStore, key: CallKey) -> Claimed:
    """The store needs a moment to notice that its server is back."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await claim(store, key)
            except StateUnavailable:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("how", ["shut", "stuck"])
async def test_a_store_that_is_down_says_so_in_time_and_works_again_when_it_is_back(
    behind_door: tuple[StateStore, Door], key: CallKey, how: str
) -> None:
    store, door = behind_door
    owner = (await eventually_claim(store, key)).owner
    await store.write(key, owner, {"a": "1"})
    if how == "shut":
        await door.shut()
    else:
        door.stick()
    loop = asyncio.get_running_loop()
    started = loop.time()
    for operation in (claim(store, key), store.write(key, owner, {"a": "2"}), store.forget(key, owner)):
        with pytest.raises(StateUnavailable) as raised:
            await operation
        for secret in ("127.0.0.1", str(door.port), "mirror_app"):
            assert secret not in str(raised.value)
    assert loop.time() - started < 3 * 2 + 3
    await door.shut()
    await door.open()
    assert (await eventually_claim(store, key)).fields == {"a": "1"}


async def test_a_call_goes_on_without_its_store_and_is_whole_when_it_is_back(
    behind_door: tuple[StateStore, Door], key: CallKey, caplog: pytest.LogCaptureFixture
) -> None:
    store, door = behind_door
    await eventually_claim(store, key)
    told: list[str | None] = []
    back = asyncio.Event()

    def tell(why: str | None) -> None:
        told.append(why)
        if why is None:
            back.set()

    state = await CallState.open(store, key, on_degraded=tell)
    state.note(HistoryEntry("customer", "before"))
    assert await state.commit() is True
    await door.shut()
    state.note(HistoryEntry("customer", "meanwhile"))
    with caplog.at_level(logging.WARNING):
        assert await state.commit() is False
        # It is not asked again at once, so that a call does not wait for it each time.
        state.set_override("Call the customer Ada.")
        assert await state.commit() is False
    assert state.degraded is not None
    assert "state store" in state.degraded
    assert [entry.text for entry in state.history] == ["before", "meanwhile"]
    await door.open()
    async with asyncio.timeout(30):
        await back.wait()
    assert await state.commit() is True
    assert len(told) == 2
    assert told[0] is not None
    assert told[1] is None
    assert len([record for record in caplog.records if "in memory only" in record.message]) == 1
    again = await CallState.open(store, key)
    assert [entry.text for entry in again.history] == ["before", "meanwhile"]
    assert again.override == "Call the customer Ada."
    await state.close()
    await again.close()


async def test_a_missing_table_is_said_by_its_code(state_table: DatabaseUrls, key: CallKey) -> None:
    store = PostgresStateStore(state_table.app, table="no_such_table", timeout_s=10)
    with pytest.raises(StateUnavailable, match="UndefinedTable, SQLSTATE 42P01"):
        await claim(store, key)
    await store.aclose()


# What is kept of a call

CHARGE = KeptTool("charge_card", "ab" * 32, "", "t1")


async def test_w8_a_reconnect_finds_history_note_ledger_and_interventions(kept: Kept, key: CallKey) -> None:
    clock = Clock()
    first = await CallState.open(kept.store, key, clock=clock)
    first.note(HistoryEntry("customer", "Where is my order?"))
    first.note(HistoryEntry("agent", "It left on Mon"), "turn:1")
    first.note(HistoryEntry("tool", 'get_order {"id": "ü\0\ud83d"} ran'))
    first.note(HistoryEntry("agent", "It left on Monday. 😀"), "turn:1")
    first.set_override("The refund was not confirmed.")
    first.put_tool(CHARGE)
    first.put_tool(KeptTool("charge_card", "cd" * 32, "k", "t2", done=True, result={"receipt": "R-7\0"}))
    first.note_intervention("Never confirm a refund.")
    clock.now += 3
    first.note_intervention(None)
    assert await first.commit() is True

    second = await CallState.open(kept.store, key, clock=clock)
    assert second.degraded is None
    assert second.history == (
        HistoryEntry("customer", "Where is my order?"),
        HistoryEntry("agent", "It left on Monday. 😀"),
        HistoryEntry("tool", 'get_order {"id": "ü\0\ud83d"} ran'),
    )
    assert [noted_as for noted_as, _ in second.notes] == ["", "turn:1", ""]
    assert second.tool(KeptTool("charge_card", "ab" * 32, "", "another")) == CHARGE
    assert second.tool(KeptTool("charge_card", "ab" * 32, "k2", "another")) is None
    done = second.tool(KeptTool("charge_card", "cd" * 32, "k", "t9"))
    assert done is not None
    assert done.done
    assert done.result == {"receipt": "R-7\0"}
    assert second.interventions == 2
    assert second.acted_at == {"Never confirm a refund.": NOW, None: NOW + 3}
    assert second.take_override() == "The refund was not confirmed."
    assert second.take_override() is None
    await second.close()

    third = await CallState.open(kept.store, key, clock=clock)
    assert third.override is None
    assert third.interventions == 2
    # New entries come after the old ones.
    third.note(HistoryEntry("customer", "Thanks."))
    third.drop_tool(CHARGE)
    await third.close()
    fourth = await CallState.open(kept.store, key, clock=clock)
    assert fourth.history[-1] == HistoryEntry("customer", "Thanks.")
    assert [tool.tool_id for tool in fourth.tools] == ["t2"]
    await fourth.close()
    await first.close()


async def test_w8_the_late_close_of_an_old_connection_wipes_nothing(kept: Kept, key: CallKey) -> None:
    old = await CallState.open(kept.store, key)
    old.note(HistoryEntry("customer", "old"))
    await old.commit()
    new = await CallState.open(kept.store, key)
    new.note(HistoryEntry("customer", "new"))
    await new.commit()
    old.note(HistoryEntry("customer", "from the grave"))
    with pytest.raises(StateTaken):
        await old.commit()
    assert old.taken
    assert old.degraded is None
    with pytest.raises(StateTaken):
        await old.commit()
    await old.close(ended=True)
    again = await CallState.open(kept.store, key)
    assert [entry.text for entry in again.history] == ["old", "new"]
    await again.close(ended=True)
    assert (await CallState.open(kept.store, key)).history == ()


async def test_changes_reach_the_store_without_being_asked(kept: Kept, key: CallKey) -> None:
    state = await CallState.open(kept.store, key)
    state.note(HistoryEntry("customer", "Hello?"))
    assert state._writer is not None
    async with asyncio.timeout(10):
        await state._writer
    again = await CallState.open(kept.store, key)
    assert [entry.text for entry in again.history] == ["Hello?"]
    await state.close()
    await again.close()


async def test_j14_what_is_kept_is_bounded_in_the_store_too(kept: Kept, key: CallKey) -> None:
    state = await CallState.open(kept.store, key)
    for number in range(300):
        state.note(HistoryEntry("agent", f"{number} " + "x" * 5_000))
        if number % 50 == 0:
            assert await state.commit()
    for number in range(300):
        state.note_intervention(f"rule {number}")
    for number in range(500):
        state.put_tool(KeptTool("charge_card", f"{number:064}", "", f"t{number}", done=True, result="y" * 20_000))
    with pytest.raises(StateFull, match="more than 500 irreversible"):
        state.put_tool(KeptTool("charge_card", "f" * 64, "", "t"))
    state.put_tool(KeptTool("charge_card", f"{3:064}", "", "t3", done=True, result=object()))
    state.set_override("z" * 10_000)
    assert await state.commit()
    claimed = await claim(kept.store, key)
    assert len([name for name in claimed.fields if name.startswith("note:")]) == 60
    assert len(claimed.fields) == 60 + 500 + 2
    assert sum(map(len, claimed.fields.values())) < 300_000
    assert len(state._stored) == len(claimed.fields)
    assert [entry.text.split()[0] for entry in state.history] == [str(number) for number in range(240, 300)]
    assert all(len(entry.text) <= 2_000 for entry in state.history)
    assert len(state.acted_at) == 100
    assert state.interventions == 300
    assert state.tools[3].done
    assert state.tools[3].result is None
    await state.close()


@dataclass
class Flaky:
    """A memory store that can be down, or answer with anything else."""

    inner: MemoryStateStore = field(default_factory=MemoryStateStore)
    error: Exception | None = None
    asked: list[float] = field(default_factory=list)
    written: list[Mapping[str, str | None]] = field(default_factory=list)
    delay_s: float = 0.0

    async def _pass(self) -> None:
        self.asked.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error

    async def claim(self, key: CallKey, *, opened_at: float, late: bool = False) -> Claimed:
        await self._pass()
        return await self.inner.claim(key, opened_at=opened_at, late=late)

    async def write(self, key: CallKey, owner: str, changes: Mapping[str, str | None]) -> None:
        await self._pass()
        self.written.append(dict(changes))
        await self.inner.write(key, owner, changes)

    async def forget(self, key: CallKey, owner: str) -> bool:
        await self._pass()
        return await self.inner.forget(key, owner)

    async def aclose(self) -> None:
        await self.inner.aclose()


DOWN = StateUnavailable("the store is down")


@virtual_time
async def test_a_store_that_is_down_is_asked_less_and_less_often_and_never_fills_memory() -> None:
    store = Flaky()
    key = CallKey("t", "c")
    state = await CallState.open(store, key)
    state.note(HistoryEntry("customer", "first"))
    assert await state.commit()
    store.error = DOWN
    store.asked.clear()
    for number in range(20_000):
        state.note(HistoryEntry("customer", str(number)))
        if number % 100 == 0:
            await asyncio.sleep(1)
    gaps = [round(later - earlier) for earlier, later in zip(store.asked, store.asked[1:], strict=False)]
    assert gaps[:5] == [1, 2, 4, 8, 16]
    assert set(gaps[5:]) == {30}
    assert len(state._changes) <= 61
    assert len(state._stored) <= 200
    store.error = None
    await asyncio.sleep(31)
    assert state.degraded is None
    assert max(map(len, store.written)) <= 61
    again = await CallState.open(store, key)
    assert [entry.text for entry in again.history] == [str(number) for number in range(19_940, 20_000)]
    # What was left behind while the store was down goes when the call is taken over.
    assert await again.commit()
    assert len((await store.inner.claim(key, opened_at=NOW)).fields) == 60


@virtual_time
async def test_a_call_that_began_without_its_store_is_joined_with_what_the_store_knew() -> None:
    store, key, clock = Flaky(), CallKey("t", "c"), Clock()
    before = await CallState.open(store, key, clock=clock)
    before.note(HistoryEntry("customer", "Hello"))
    before.note(
        HistoryEntry(
            "agent",
            "Hi, I am",
        ),
        "turn:1",
    )
    before.put_tool(KeptTool("charge_card", "ab" * 32, "", "t1", done=True, result="R-1"))
    before.put_tool(KeptTool("send_sms", "ab" * 32, "", "t2"))
    before.set_override("from before")
    before.note_intervention("rule A")
    await before.close()
    store.error = DOWN
    clock.now += 60
    state = await CallState.open(store, key, clock=clock)
    assert state.degraded == "the store is down"
    assert state.history == ()
    state.note(HistoryEntry("agent", "Hi, I am Ada."), "turn:1")
    state.put_tool(KeptTool("charge_card", "ab" * 32, "", "t9"))
    state.note_intervention("rule A")
    store.error = None
    await asyncio.sleep(5)
    assert state.degraded is None
    assert [entry.text for entry in state.history] == ["Hello", "Hi, I am Ada."]
    charged = state.tool(CHARGE)
    assert charged is not None
    assert (charged.done, charged.result) == (True, "R-1")
    assert state.override == "from before"
    assert state.interventions == 2
    assert state.acted_at == {"rule A": NOW + 60}
    await state.close()
    after = await CallState.open(store, key, clock=clock)
    assert after.history == state.history
    assert after.tools == state.tools
    assert after.interventions == 2


@virtual_time
async def test_a_call_that_began_without_its_store_does_not_take_it_from_a_newer_connection() -> None:
    store, key, clock = Flaky(error=DOWN), CallKey("t", "c"), Clock()
    old = await CallState.open(store, key, clock=clock)
    old.note(HistoryEntry("customer", "old"))
    store.error = None
    clock.now += 0.5
    new = await CallState.open(store, key, clock=clock)
    new.note(HistoryEntry("customer", "new"))
    await asyncio.sleep(60)
    assert old.taken
    assert not new.taken
    assert await new.commit()
    assert [entry.text for entry in new.history] == ["new"]


@virtual_time
async def test_a_call_that_the_store_lost_is_written_again_whole() -> None:
    store, key = Flaky(), CallKey("t", "c")
    state = await CallState.open(store, key)
    state.note(HistoryEntry("customer", "one"))
    state.put_tool(CHARGE)
    assert await state.commit()
    await store.inner.forget(key, (await store.inner.claim(key, opened_at=state._opened_at)).owner)
    state.note(HistoryEntry("customer", "two"))
    assert await state.commit() is False
    assert state.degraded == "the store holds nothing of this call any more"
    await asyncio.sleep(2)
    assert state.degraded is None
    again = await CallState.open(store, key)
    assert [entry.text for entry in again.history] == ["one", "two"]
    assert again.tools == (CHARGE,)


@virtual_time
async def test_a_store_that_raises_anything_at_all_harms_no_call(caplog: pytest.LogCaptureFixture) -> None:
    store, key = Flaky(), CallKey("t", "c")
    state = await CallState.open(store, key)
    store.error = KeyError("what the caller said")
    state.note(HistoryEntry("customer", "one"))
    assert await state.commit() is False
    assert state.degraded == "it raised KeyError"
    assert "what the caller said" not in caplog.text
    await state.close()
    with pytest.raises(KeyError):
        await CallState.open(store, key)


@virtual_time
async def test_closing_waits_for_a_write_under_way_and_writes_the_rest() -> None:
    store, key = Flaky(delay_s=0.2), CallKey("t", "c")
    state = await CallState.open(store, key)
    state.note(HistoryEntry("customer", "one"))
    await asyncio.sleep(0.1)
    state.note(HistoryEntry("customer", "two"))
    await state.close()
    assert [len(changes) for changes in store.written] == [1, 1]
    again = await CallState.open(store, key)
    assert [entry.text for entry in again.history] == ["one", "two"]
    store.error = DOWN
    await again.close(ended=True)
    assert again.degraded == "the store is down"
    unclaimed = await CallState.open(store, key)
    await unclaimed.close(ended=True)


@virtual_time
async def test_a_commit_that_is_cancelled_loses_nothing() -> None:
    store, key = Flaky(delay_s=1), CallKey("t", "c")
    state = await CallState.open(store, key)
    state._closing.set()  # no writer in the background, so that only this commit writes
    state.note(HistoryEntry("customer", "one"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await state.commit()
    assert await state.commit()
    assert len((await claim(store.inner, key)).fields) == 1


@virtual_time
async def test_a_note_to_the_agent_grows_old() -> None:
    clock = Clock()
    state = await CallState.open(MemoryStateStore(), CallKey(None, "c"), clock=clock)
    state.set_override("Say that it was not confirmed.", ttl_s=30)
    clock.now += 29
    assert state.override == "Say that it was not confirmed."
    clock.now += 1
    assert state.override is None
    assert state.take_override() is None
    await state.close()


@virtual_time
async def test_fields_that_cannot_be_read_are_dropped_and_named(caplog: pytest.LogCaptureFixture) -> None:
    store, key = MemoryStateStore(), CallKey(None, "c")
    owner = (await claim(store, key)).owner
    good = json.dumps(["", "customer", "Hello"])
    wrong = {
        "note:2": "not json",
        "note:x": good,
        "note:3": json.dumps(["", "judge", "Hello"]),
        "note:4": json.dumps(["", "customer"]),
        "note:5": json.dumps({"key": "", "role": "customer", "text": 7}),
        "note:6": json.dumps(["", "customer", 7]),
        "tool:1": json.dumps(["a", "b", "c", 4, False, None]),
        "override": json.dumps(["text", "tomorrow"]),
        "acted": json.dumps([1, [["rule", "noon"]]]),
        "mood": json.dumps("sunny"),
    }
    await store.write(key, owner, {"note:1": good, **wrong})
    with caplog.at_level(logging.ERROR):
        state = await CallState.open(store, key)
    assert state.history == (HistoryEntry("customer", "Hello"),)
    assert {name for name in wrong if repr(name) in caplog.text} == set(wrong)
    assert "Hello" not in caplog.text
    assert await state.commit()
    assert (await claim(store, key)).fields == {"note:1": good}


# A supervised call, and what a reconnect finds of it


def supervisor_on(store: StateStore | None, llm: ScriptedLLM | None = None, **config: Any) -> Supervisor:
    fields = {"policies": ["Never confirm a refund."], "tiered_scoring_enabled": False, "tenant_id": "t-1", **config}
    return Supervisor(MirrorConfig(llm=llm or ScriptedLLM(), **fields), store)


def bound(supervisor: Supervisor, call_id: str) -> CallSupervisor:
    call = supervisor.call(SupervisorContext(""))
    call.bind_call(call_id)
    return call


async def ready(supervisor: Supervisor, call_id: str) -> CallSupervisor:
    """A bound call that has heard from its store, however long that took on a busy machine."""
    call = bound(supervisor, call_id)
    await call._memory.ready()
    return call


PATIENT: dict[str, Any] = {"tool_gate_timeout_ms": 20_000, "semantic_review_timeout_s": 20.0}


async def charged(call: CallSupervisor, tool_id: str, timeout_ms: int | None = None) -> ToolVerdict:
    verdict = await call.gate_tool_call(customer_text="Charge it.", intents=[charge(tool_id)], timeout_ms=timeout_ms)
    return verdict.tools[0]


async def test_w8_a_reconnected_call_goes_on_where_it_stopped(kept: Kept, key: CallKey) -> None:
    llm = ScriptedLLM(turn=lambda asked: dict(BAD) if "refund" in asked.user["agent_text"] else dict(CLEAN))
    supervisor = supervisor_on(kept.store, llm, tenant_id=key.tenant_id, **PATIENT)
    first = bound(supervisor, key.call_id)
    first.note_customer("Hello.")  # before the store has answered
    await first._memory.ready()
    await first.review_turn(customer_text="Where is my money?", primary_text="Let me see.")
    bad = await first.review_turn(customer_text="So?", primary_text="Your refund is confirmed.")
    first.note_intervention(bad)
    first.set_override("Do not mention refunds.")
    assert first.degraded is None
    await first.aclose()

    # Another process.
    supervisor = supervisor_on(kept.store, llm, tenant_id=key.tenant_id, **PATIENT)
    second = await ready(supervisor, key.call_id)
    again = await second.review_turn(customer_text="Hello?", primary_text="Your refund is confirmed.")
    assert [entry["text"] for entry in llm.asked[-1].user["history"]] == [
        "Hello.",
        "Where is my money?",
        "Let me see.",
        "So?",
    ]
    assert (again.violates, again.withheld) == (True, "cooldown")
    assert second.interventions == 1
    assert await second.consume_override() == "Do not mention refunds."
    await second.aclose()
    third = await ready(supervisor, key.call_id)
    assert await third.consume_override() is None
    await third.aclose(ended=True)
    fourth = await ready(supervisor, key.call_id)
    await fourth.opened()
    assert (fourth.history, fourth.interventions) == ((), 0)
    await fourth.aclose(ended=True)


async def test_t5_a_charge_before_a_reconnect_does_not_run_again_after_it(kept: Kept, key: CallKey) -> None:
    supervisor = supervisor_on(kept.store, tenant_id=key.tenant_id, **PATIENT)
    first = await ready(supervisor, key.call_id)
    assert (await charged(first, "a")).allow
    # It is written before the allow is out: nothing has been closed or awaited since.
    second = await ready(supervisor, key.call_id)
    repeat = await charged(second, "b", timeout_ms=100)
    assert (repeat.allow, repeat.code) == (False, ToolCode.IN_DOUBT)
    # The agent says at last how the first one ended, by the first one's id.
    finished = second.tool_done("a", True, {"receipt": 7})
    assert finished is not None
    assert finished.irreversible
    assert second.history[-1].text.startswith("charge_card")
    await second.aclose()
    third = await ready(supervisor, key.call_id)
    done = await charged(third, "c")
    assert (done.code, done.stored_result) == (ToolCode.DUPLICATE, {"receipt": 7})
    await third.aclose()
    await first.aclose()


async def test_t5_a_charge_that_failed_before_a_reconnect_may_run_after_it(kept: Kept, key: CallKey) -> None:
    supervisor = supervisor_on(kept.store, tenant_id=key.tenant_id, **PATIENT)
    first = await ready(supervisor, key.call_id)
    assert (await charged(first, "a")).allow
    await first.aclose()
    second = await ready(supervisor, key.call_id)
    await second.opened()
    assert second.tool_done("a", False, "declined") is not None
    assert second.tool_done("never seen", True) is None
    assert (await charged(second, "b")).allow
    await second.aclose()


async def test_w8_the_old_connection_of_a_call_allows_nothing_irreversible_any_more(kept: Kept, key: CallKey) -> None:
    supervisor = supervisor_on(kept.store, tenant_id=key.tenant_id, **PATIENT)
    old = await ready(supervisor, key.call_id)
    await old.opened()
    new = await ready(supervisor, key.call_id)
    await new.opened()
    verdict = await charged(old, "a")
    assert (verdict.allow, verdict.code) == (False, ToolCode.CANCELLED)
    assert old.degraded == "another connection has taken this call over"
    assert (await charged(new, "b")).allow
    await old.aclose(ended=True)
    await new.aclose()


async def test_calls_and_tenants_share_nothing_in_the_store(kept: Kept, key: CallKey) -> None:
    supervisor = supervisor_on(kept.store, tenant_id=key.tenant_id, **PATIENT)
    one = await ready(supervisor, key.call_id)
    assert (await charged(one, "a")).allow
    other = await ready(supervisor, "another call")
    assert (await charged(other, "a")).allow
    stranger = supervisor.call(SupervisorContext(""))
    stranger.bind_call(key.call_id, tenant_id=f"{key.tenant_id}-stranger")
    assert (await charged(stranger, "a")).allow
    assert stranger.context.tenant_id == f"{key.tenant_id}-stranger"
    for call in (one, other, stranger):
        await call.aclose(ended=True)


@pytest.mark.parametrize(("on_failure", "allow"), [("block", False), ("allow", True)])
@virtual_time
async def test_t5_with_the_store_down_the_policy_decides_about_irreversible_calls_alone(
    on_failure: str, allow: bool
) -> None:
    store = Flaky()
    call = bound(supervisor_on(store, tool_gate_on_failure=on_failure), "c")
    await call.opened()
    store.error = DOWN
    verdict = await call.gate_tool_call(customer_text="Charge it.", intents=[charge("a"), look_up("b")])
    assert [(tool.allow, tool.code) for tool in verdict.tools] == [(allow, ToolCode.FAILED), (True, ToolCode.OK)]
    assert "could not be recorded" in verdict.tools[0].reason
    assert call.degraded == "the store is down"
    clean = await call.review_turn(customer_text="Hi.", primary_text="Hello.")
    assert clean.state is JudgingState.JUDGED
    # When it is back, what was blocked may be asked for again; what was allowed is known to have been.
    store.error = None
    await asyncio.sleep(60)
    assert call.degraded is None
    again = await charged(call, "d", timeout_ms=500)
    assert again.code is (ToolCode.IN_DOUBT if allow else ToolCode.OK)
    await call.aclose()
    reconnected = bound(call._supervisor, "c")
    assert (await charged(reconnected, "e", timeout_ms=500)).code is ToolCode.IN_DOUBT
    await reconnected.aclose()


@virtual_time
async def test_a_call_that_begins_with_its_store_down_learns_later_what_it_knew() -> None:
    store = Flaky()
    supervisor = supervisor_on(store, max_interventions_per_call=5)
    first = bound(supervisor, "c")
    assert (await charged(first, "a")).allow
    first.tool_done("a", True, "receipt")
    violation = Verdict("t", JudgingState.JUDGED, 0.9, "Never confirm a refund.", "", "", 0.7, 0)
    first.note_intervention(violation)
    await first.aclose()
    store.error = DOWN
    second = bound(supervisor, "c")
    assert (await second.review_turn(customer_text="Hi.", primary_text="Hello.")).state is JudgingState.JUDGED
    assert second.degraded
    assert not (await charged(second, "b")).allow
    store.error = None
    await asyncio.sleep(60)
    assert second.degraded is None
    assert second.interventions == 1
    assert (await charged(second, "b2")).code is ToolCode.DUPLICATE
    assert [entry.role for entry in second.history][:3] == ["tool", "customer", "agent"]
    await second.aclose()


@virtual_time
async def test_a_store_that_does_not_answer_is_waited_for_once() -> None:
    store = Flaky()
    store.delay_s = 20.0
    supervisor = supervisor_on(store)
    call = bound(supervisor, "c")
    began = asyncio.get_running_loop().time()
    call.set_override("Be brief.", ttl_s=100)
    assert await call.consume_override() == "Be brief."
    assert asyncio.get_running_loop().time() - began == pytest.approx(1.5)
    assert call.degraded == "the state store has not answered in time"
    await call.review_turn(customer_text="Hi.", primary_text="Hello.")
    assert asyncio.get_running_loop().time() - began == pytest.approx(1.5)
    blocked = await charged(call, "a")
    assert (blocked.allow, blocked.code) == (False, ToolCode.TIMEOUT)
    violation = Verdict("t", JudgingState.JUDGED, 0.9, "Never confirm a refund.", "", "", 0.7, 0)
    call.note_intervention(violation)
    call.set_override("Later.", ttl_s=100)
    call.set_override("Latest.", ttl_s=100)
    await asyncio.sleep(30)
    # It has answered: what was learnt meanwhile is there, and reaches it.
    assert call.degraded is None
    assert call.interventions == 1
    assert [entry.text for entry in call.history][:2] == ["Hi.", "Hello."]
    store.delay_s = 0.0
    await asyncio.sleep(30)
    await call.aclose()
    again = bound(supervisor, "c")
    await again.opened()
    assert again.history == call.history
    assert await again.consume_override() == "Latest."
    await again.aclose()


@virtual_time
async def test_t5_what_was_allowed_without_the_store_is_written_when_it_answers() -> None:
    store = Flaky()
    store.delay_s = 20.0
    supervisor = supervisor_on(store, tool_gate_on_failure="allow")
    call = bound(supervisor, "c")
    assert (await charged(call, "a")).allow
    other = await call.gate_tool_call(customer_text="Again.", intents=[charge("b", amount=5)])
    assert other.tools[0].allow
    call.tool_done("b", True, {"receipt": 5})
    await asyncio.sleep(60)
    store.delay_s = 0.0
    await asyncio.sleep(60)
    await call.aclose()
    again = bound(supervisor, "c")
    assert (await charged(again, "c", timeout_ms=200)).code is ToolCode.IN_DOUBT
    done = await again.gate_tool_call(customer_text="Again.", intents=[charge("d", amount=5)])
    assert done.tools[0].stored_result == {"receipt": 5}
    await again.aclose()


@pytest.mark.parametrize(
    ("done", "code"), [(True, ToolCode.DUPLICATE), (False, ToolCode.IN_DOUBT)], ids=["ran", "in doubt"]
)
@pytest.mark.parametrize("same_id", [True, False])
@virtual_time
async def test_t5_a_charge_asked_again_before_the_store_has_answered_does_not_run_again(
    done: bool, code: ToolCode, same_id: bool
) -> None:
    store = Flaky()
    supervisor = supervisor_on(store, tool_gate_timeout_ms=10_000)
    first = bound(supervisor, "c")
    assert (await charged(first, "a")).allow
    if done:
        first.tool_done("a", True, {"receipt": 7})
    await first.aclose()
    store.delay_s = 4.0
    second = bound(supervisor, "c")
    repeat = await charged(second, "a" if same_id else "b")
    assert (repeat.allow, repeat.code) == (False, code)
    assert repeat.stored_result == ({"receipt": 7} if done else None)
    store.delay_s = 0.0
    # The store still knows what it knew.
    await asyncio.sleep(10)
    await second.aclose()
    third = bound(supervisor, "c")
    assert (await charged(third, "z", timeout_ms=100)).code is code
    if not done:
        third.tool_done("a", False, "declined")
        assert (await charged(third, "y")).allow
    await third.aclose()


@pytest.mark.parametrize("stuck", ["unopened", "waited for", "writing"])
@virtual_time
async def test_closing_does_not_wait_for_a_store_that_does_not_answer(stuck: str) -> None:
    store = Flaky()
    store.delay_s = 0.0 if stuck == "writing" else 500.0
    call = bound(supervisor_on(store), "c")
    if stuck != "unopened":
        await call.opened()
    store.delay_s = 500.0
    call.note_customer("Hello.")
    began = asyncio.get_running_loop().time()
    await call.aclose()
    assert asyncio.get_running_loop().time() - began <= 5.1
    if stuck == "writing":
        return
    await asyncio.sleep(0)
    assert call.degraded


@virtual_time
async def test_a_store_that_raises_anything_when_it_is_opened_degrades_the_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Flaky()
    store.error = RuntimeError("something that was said")
    call = bound(supervisor_on(store), "c")
    assert (await call.review_turn(customer_text="Hi.", primary_text="Hello.")).state is JudgingState.JUDGED
    assert call.degraded == "the state store raised RuntimeError"
    assert "something that was said" not in caplog.text
    assert not (await charged(call, "a")).allow
    await call.aclose()


@virtual_time
async def test_closing_takes_in_a_store_that_answers_just_then() -> None:
    store = Flaky()
    store.delay_s = 1.0
    supervisor = supervisor_on(store)
    call = bound(supervisor, "c")
    call.note_customer("Hello.")
    await call.aclose()
    store.delay_s = 0.0
    again = bound(supervisor, "c")
    await again.opened()
    assert again.history == (HistoryEntry("customer", "Hello."),)
    await again.aclose()


@virtual_time
async def test_without_a_store_given_a_reconnect_in_the_same_process_goes_on_too() -> None:
    supervisor = supervisor_on(None)
    first = bound(supervisor, "c")
    assert (await charged(first, "a")).allow
    await first.aclose()
    second = bound(supervisor, "c")
    assert (await charged(second, "b", timeout_ms=200)).code is ToolCode.IN_DOUBT
    await second.aclose()
    # A call that is not bound keeps to itself.
    loner = supervisor.call(SupervisorContext("c"))
    assert (await charged(loner, "c")).allow
    assert loner.degraded is None
    await loner.aclose()


@virtual_time
async def test_a_call_is_bound_once() -> None:
    supervisor = supervisor_on(Flaky())
    call = bound(supervisor, "c")
    call.bind_call("c")
    with pytest.raises(RuntimeError, match="the call c already"):
        call.bind_call("d")
    with pytest.raises(ValueError, match="call_id"):
        supervisor.call(SupervisorContext("")).bind_call(" ")
    await call.aclose()


@virtual_time
async def test_a_note_made_before_the_store_answered_keeps_what_is_left_of_its_time() -> None:
    store = Flaky()
    store.delay_s = 1.0
    supervisor = Supervisor(
        MirrorConfig(llm=ScriptedLLM(), policies=["A."]), store, clock=asyncio.get_running_loop().time
    )
    call = bound(supervisor, "c")
    call.set_override("Soon too old.", ttl_s=30)
    await asyncio.sleep(20)
    store.delay_s = 0.0
    await asyncio.sleep(11)
    assert await call.consume_override() is None
    call.note_agent("Turn one.", turn_id="1")
    call.note_agent("Turn one.", heard="Turn", turn_id="1")
    assert len(call.history) == 1
    await call.aclose()
