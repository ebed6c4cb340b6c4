"""How many calls a tenant may have at a time: over all nodes, with real Valkey, and at the doors."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import pytest
from django.test import AsyncClient
from redis.asyncio import Redis

from mirror_saas.ids import uuid7
from mirror_saas.limits import NO_LIMITS
from supervision.plivo.simulator import PlivoSwitches, SimulatedCall
from supervision.stream import http_urls
from supervision.stream.limits import ANSWER_WITHIN_S, DOWN_FOR_S, LEASE_S, RENEW_EVERY_S, CallLeases, lease_name
from supervision.stream.token import token_make
from tenants.limits import calls_key
from tenants.limits_redis import calls_running
from tenants.limits_refused import REFUSALS
from tests.e2e.agents import AgentCall
from tests.stream.world import KEY, SLUG, World
from tests.support.virtual_time import virtual_time

CALL = "11111111-2222-4333-8444-555566667777"


class Clock:
    """Unix time as all nodes have it."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def node(redis_url: str, clock: Clock) -> AsyncIterator[Callable[[], CallLeases]]:
    made: list[CallLeases] = []

    def make(url: str | None = redis_url, answer_within_s: float = 10.0) -> CallLeases:
        made.append(CallLeases(url, now=clock, clock=clock, answer_within_s=answer_within_s))
        return made[-1]

    yield make
    for leases in made:
        await leases.aclose()


async def test_two_nodes_share_the_limit(node: Callable[[], CallLeases]) -> None:
    one, two, tenant_id = node(), node(), uuid7()
    taken = [await one.take(tenant_id, limit=2), await two.take(tenant_id, limit=2)]
    assert None not in taken
    assert await one.take(tenant_id, limit=2) is None
    assert await two.take(tenant_id, limit=2) is None
    await one.release(taken[0])  # type: ignore[arg-type]
    assert await two.take(tenant_id, limit=2) is not None


async def test_a_stranger_with_all_his_calls_takes_none_of_the_tenants(node: Callable[[], CallLeases]) -> None:
    leases, tenant_id, stranger_id = node(), uuid7(), uuid7()
    strangers = [await leases.take(stranger_id, limit=3) for _ in range(10)]
    assert sum(lease is not None for lease in strangers) == 3
    assert await leases.take(tenant_id, limit=1) is not None


async def test_at_once_no_more_than_the_limit_get_in(node: Callable[[], CallLeases]) -> None:
    nodes, tenant_id = [node() for _ in range(4)], uuid7()
    taken = await asyncio.gather(*(nodes[n % 4].take(tenant_id, limit=7) for n in range(40)))
    assert sum(lease is not None for lease in taken) == 7


@pytest.mark.parametrize(("limit", "taken"), [(None, True), (0, False)])
async def test_no_limit_and_none_allowed(node: Callable[[], CallLeases], limit: int | None, taken: bool) -> None:
    leases, tenant_id = node(), uuid7()
    assert await leases.is_free(tenant_id, limit=limit) is taken
    assert (await leases.take(tenant_id, limit=limit) is not None) is taken


async def test_a_killed_nodes_calls_lapse_within_a_minute(node: Callable[[], CallLeases], clock: Clock) -> None:
    killed, other, tenant_id = node(), node(), uuid7()
    for _ in range(3):
        assert await killed.take(tenant_id, limit=3) is not None
    clock.now += LEASE_S - 1
    assert await other.take(tenant_id, limit=3) is None
    assert not await other.is_free(tenant_id, limit=3)
    clock.now += 1
    assert await other.is_free(tenant_id, limit=3)
    assert await other.take(tenant_id, limit=3) is not None
    assert LEASE_S <= 60


async def test_a_running_calls_lease_is_renewed(node: Callable[[], CallLeases], clock: Clock) -> None:
    node_of_call, other, tenant_id = node(), node(), uuid7()
    assert await node_of_call.take(tenant_id, limit=1) is not None
    for _ in range(30):
        clock.now += RENEW_EVERY_S
        await node_of_call.renew()
        assert await other.take(tenant_id, limit=1) is None


async def test_a_lease_that_lapsed_while_its_call_went_on_is_taken_again(
    node: Callable[[], CallLeases], clock: Clock
) -> None:
    paused, other, tenant_id = node(), node(), uuid7()
    lease = await paused.take(tenant_id, limit=1, call=CALL)
    assert lease is not None
    clock.now += LEASE_S + 1
    assert await other.take(tenant_id, limit=1, call="other") is not None
    await paused.renew()
    assert calls_running(tenant_id, clock.now) == 2
    await paused.release(lease)
    assert calls_running(tenant_id, clock.now) == 1


async def test_a_call_that_reconnects_is_one_call(node: Callable[[], CallLeases], clock: Clock) -> None:
    one, two, tenant_id = node(), node(), uuid7()
    first = await one.take(tenant_id, limit=1, call=CALL)
    second = await two.take(tenant_id, limit=1, call=CALL)
    assert first is not None
    assert second is not None
    assert await two.is_free(tenant_id, limit=1, call=CALL)
    await one.release(first)  # the old socket ends after the new one has come
    assert await one.take(tenant_id, limit=1) is None
    await one.renew()
    await two.release(second)
    assert calls_running(tenant_id, clock.now) == 0
    assert await one.take(tenant_id, limit=1) is not None


async def test_of_sockets_that_claim_one_call_one_may_wait_and_the_others_count(
    node: Callable[[], CallLeases], clock: Clock
) -> None:
    one, two, tenant_id = node(), node(), uuid7()
    running = await one.take(tenant_id, limit=2, call=CALL)
    waiting = await two.take(tenant_id, limit=2, call=CALL)
    assert running is not None
    assert waiting is not None
    for leases in (one, two):
        assert await leases.take(tenant_id, limit=2, call=CALL) is None, "a third socket is one too many"
    third = await one.take(tenant_id, limit=3, call=CALL)
    assert third is not None
    assert calls_running(tenant_id, clock.now) == 3
    await two.name(waiting, CALL)  # it sent its `start`, so it ends the socket before
    assert calls_running(tenant_id, clock.now) == 2
    await one.release(running)
    await one.release(third)
    await two.release(waiting)
    assert calls_running(tenant_id, clock.now) == 0


async def test_a_socket_that_waits_in_a_calls_name_and_never_starts_leaves_the_call_its_lease(
    node: Callable[[], CallLeases], clock: Clock
) -> None:
    one, two, tenant_id = node(), node(), uuid7()
    running = await one.take(tenant_id, limit=1, call=CALL)
    waiting = await two.take(tenant_id, limit=1, call=CALL)
    assert running is not None
    assert waiting is not None
    await two.release(waiting)
    assert calls_running(tenant_id, clock.now) == 1
    assert await two.take(tenant_id, limit=1) is None


async def test_a_call_whose_name_comes_late_is_counted_once(node: Callable[[], CallLeases], clock: Clock) -> None:
    one, two, tenant_id = node(), node(), uuid7()
    first = await one.take(tenant_id, limit=5)
    assert first is not None
    await one.name(first, CALL)
    assert calls_running(tenant_id, clock.now) == 1
    again = await two.take(tenant_id, limit=5)
    assert again is not None
    assert calls_running(tenant_id, clock.now) == 2  # nobody knows yet that it is the same
    await two.name(again, CALL)
    assert calls_running(tenant_id, clock.now) == 1
    await one.release(first)
    assert calls_running(tenant_id, clock.now) == 1
    await two.release(again)
    assert calls_running(tenant_id, clock.now) == 0


@pytest.mark.parametrize("call", ["\ud800", "x" * 100_000, "\x00", "a b\r\nc", "☎" * 300])
async def test_whatever_is_sent_as_an_id_is_a_call(node: Callable[[], CallLeases], clock: Clock, call: str) -> None:
    leases, tenant_id = node(), uuid7()
    lease = await leases.take(tenant_id, limit=1, call=call)
    assert lease is not None
    assert await node().is_free(tenant_id, limit=1, call=call)
    assert not await node().is_free(tenant_id, limit=1, call="another")
    await leases.name(lease, call)
    await leases.release(lease)
    assert calls_running(tenant_id, clock.now) == 0


async def test_nothing_is_left_in_valkey(node: Callable[[], CallLeases], redis_url: str) -> None:
    leases, tenant_id = node(), uuid7()
    lease = await leases.take(tenant_id, limit=1)
    assert lease is not None
    async with Redis.from_url(redis_url) as client:
        names = [calls_key(tenant_id), f"{calls_key(tenant_id)}:holders"]
        for name in names:
            assert 0 < await client.ttl(name) <= LEASE_S
        await leases.release(lease)
        assert await client.exists(*names) == 0


async def test_while_valkey_is_down_this_process_counts_its_own(
    node: Callable[..., CallLeases], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    leases, tenant_id, stranger_id = node("redis://127.0.0.1:1/0"), uuid7(), uuid7()
    taken = [await leases.take(tenant_id, limit=2) for _ in range(3)]
    assert [lease is not None for lease in taken] == [True, True, False]
    assert not await leases.is_free(tenant_id, limit=2)
    assert await leases.is_free(stranger_id, limit=2)
    await leases.release(taken[0])  # type: ignore[arg-type]
    assert await leases.take(tenant_id, limit=2, call=CALL) is not None
    assert await leases.take(tenant_id, limit=2, call=CALL) is not None, "the same call again"
    assert [record.message for record in caplog.records] == [
        "Valkey does not answer (ConnectionError): calls are counted in this process only until it does"
    ]


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"


async def test_a_valkey_that_does_not_answer_costs_a_quarter_of_a_second_once(
    silent_server: str, node: Callable[..., CallLeases], monkeypatch: pytest.MonkeyPatch
) -> None:
    leases, tenant_id, loop = node(silent_server, ANSWER_WITHIN_S), uuid7(), asyncio.get_running_loop()
    began = loop.time()
    assert await leases.take(tenant_id, limit=1) is not None
    assert loop.time() - began >= ANSWER_WITHIN_S * 0.9
    monkeypatch.setattr(leases, "_take", None)  # is not asked
    assert await leases.take(tenant_id, limit=9) is not None


async def test_leases_come_to_valkey_when_it_is_back(
    redis_url: str, node: Callable[..., CallLeases], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases, other, tenant_id = node(), node(), uuid7()

    async def fails(**_: Any) -> None:
        raise ConnectionError

    with monkeypatch.context() as down:
        down.setattr(leases, "_take", fails)
        assert await leases.take(tenant_id, limit=1) is not None
    assert calls_running(tenant_id, clock.now) == 0
    clock.now += DOWN_FOR_S
    await leases.renew()
    assert await other.take(tenant_id, limit=1) is None


# -- at the doors ---------------------------------------------------------------------------------------------------


async def hello(agent: AgentCall) -> None:
    await agent.hello()


def world_with(monkeypatch: pytest.MonkeyPatch, calls: int | None) -> World:
    world = World(monkeypatch)
    world.runtime.binding = world.binding = replace(world.binding, limits=replace(NO_LIMITS, calls=calls))
    world.script = hello
    return world


def stream_url(world: World, call_id: str = "") -> str:
    url = f"wss://mirror.example/stream/{SLUG}/{KEY}"
    if not call_id:
        return url
    token = token_make(
        tenant_id=world.binding.tenant_id,
        agent_id=world.binding.agent_id,
        call_id=call_id,
        from_number="+15550100",
        to_number="+15550199",
    )
    return f"{url}?mt={token}"


def refusals(tenant_id: UUID) -> int:
    return REFUSALS.pending(tenant_id).get("calls", 0)


@virtual_time
async def test_the_call_above_the_limit_is_refused_at_the_handshake(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = world_with(monkeypatch, calls=1)
    first = SimulatedCall(stream_url(world), switches=PlivoSwitches(hang_up_at_s=5.0))
    running = asyncio.create_task(first.run())
    await asyncio.sleep(1.0)
    second = await SimulatedCall(stream_url(world)).run()
    assert (second.handshake_status, second.outcome) == (403, "failed")
    assert f"tenant {SLUG} has 1 concurrent calls, which is its limit" in caplog.text
    assert refusals(world.binding.tenant_id) == 1
    assert (await running).outcome == "completed"
    await asyncio.gather(*world.apps)
    third = await SimulatedCall(stream_url(world), switches=PlivoSwitches(hang_up_at_s=1.0)).run()
    assert third.outcome == "completed"
    assert refusals(world.binding.tenant_id) == 1
    await asyncio.gather(*world.apps)


@virtual_time
async def test_a_socket_that_never_sends_a_start_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_with(monkeypatch, calls=1)
    silent = SimulatedCall(stream_url(world), switches=PlivoSwitches(start_delay_s=20.0, hang_up_at_s=1.0))
    await silent.run()
    await asyncio.gather(*world.apps)
    assert await world.runtime.calls.is_free(world.binding.tenant_id, limit=1)


@virtual_time
async def test_a_wrong_key_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_with(monkeypatch, calls=1)
    for _ in range(5):
        record = await SimulatedCall(f"wss://mirror.example/stream/{SLUG}/sk_wrong").run()
        assert record.handshake_status == 403
    assert await world.runtime.calls.is_free(world.binding.tenant_id, limit=1)
    assert refusals(world.binding.tenant_id) == 0


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Ask the answer URL of a world, as Plivo does."""

    async def ask(world: World, call_id: str) -> Any:
        async def runtime_of_test() -> Any:
            return world.runtime

        monkeypatch.setattr(http_urls, "stream_runtime", runtime_of_test)
        form = urlencode({"CallUUID": call_id, "From": "+15550100", "To": "+15550199"})
        path = f"/plivo/{SLUG}/{KEY}/answer"
        return await AsyncClient().post(path, form, content_type="application/x-www-form-urlencoded")

    return ask


async def test_the_answer_url_says_so_before_the_call_is_connected(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[..., Any]
) -> None:
    world = world_with(monkeypatch, calls=1)
    assert (await answer(world, CALL)).status_code == 200
    another = lease_name(world.binding.agent_id, "another")
    lease = await world.runtime.calls.take(world.binding.tenant_id, limit=1, call=another)
    assert lease is not None
    refused = await answer(world, CALL)
    assert (refused.status_code, refused["Retry-After"]) == (503, "10")
    assert refused.content == b"concurrent calls: the limit of 1 is reached\n"
    assert refusals(world.binding.tenant_id) == 1
    # A call that runs may ask again (a redirect of it, say): it is counted already.
    assert (await answer(world, "another")).status_code == 200
    await world.runtime.calls.release(lease)
    assert (await answer(world, CALL)).status_code == 200


@virtual_time
async def test_a_call_with_its_token_reconnects_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_with(monkeypatch, calls=1)
    tenant_id = world.binding.tenant_id
    lease = await world.runtime.calls.take(tenant_id, limit=1, call=lease_name(world.binding.agent_id, CALL))
    assert lease is not None  # the socket that is about to break
    again = SimulatedCall(stream_url(world, CALL), switches=PlivoSwitches(hang_up_at_s=1.0), call_id=CALL)
    record = await again.run()
    assert record.outcome == "completed"
    await asyncio.gather(*world.apps)
