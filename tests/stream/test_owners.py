"""Which node has a call: owner records in real Valkey, and calls that go from node to node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import psycopg
import pytest

from mirror_saas.ids import uuid7
from supervision.engine.context import HistoryEntry, JudgingState, ToolCallIntent, ToolCode, ToolVerdict
from supervision.engine.state.call import KeptTool
from supervision.engine.state.carried import CarriedMemory
from supervision.stream import takeover
from supervision.stream.carried import CarriedCall, CarriedInvalid, CarriedTool, CarriedTurn
from supervision.stream.mailbox import Mailbox, call_channel
from supervision.stream.owners import KNOWN_FOR_S, LEASE_S, RENEW_EVERY_S, CallKey, CallOwners, Held, call_is_owned
from supervision.stream.takeover import HAND_OVER, Taken, Takeovers

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


def key_of(tenant_id: UUID | None = None, agent_id: UUID | None = None) -> CallKey:
    return CallKey(tenant_id or uuid7(), agent_id or uuid7(), CALL)


@pytest.fixture
async def owners(redis_url: str, clock: Clock) -> AsyncIterator[Callable[..., CallOwners]]:
    made: list[CallOwners] = []

    def make(node: str, url: str | None = redis_url) -> CallOwners:
        made.append(CallOwners(url, node, now=clock, clock=clock, answer_within_s=10.0))
        return made[-1]

    yield make
    for one in made:
        await one.aclose()


# -- the record


async def test_a_second_claim_raises_the_epoch_and_keeps_the_call(owners: Any) -> None:
    key, first_id = key_of(), uuid7()
    first = await owners("a").claim(key, call_id=first_id)
    second = await owners("b").claim(key, call_id=uuid7())
    assert (first.known, first.call_id, first.epoch) == (False, first_id, 1)
    assert (second.known, second.call_id, second.epoch, second.node, second.holds) == (True, first_id, 2, "a", True)
    third = await owners("c").claim(key, call_id=uuid7(), least_epoch=9)
    assert (third.call_id, third.epoch, third.node) == (first_id, 9, "b")


async def test_strangers_and_other_agents_have_calls_of_their_own(owners: Any) -> None:
    tenant_id = uuid7()
    keys = [key_of(tenant_id), key_of(tenant_id), key_of()]
    claims = [await owners("a").claim(key, call_id=uuid7()) for key in keys]
    assert [claim.epoch for claim in claims] == [1, 1, 1]
    assert len({claim.call_id for claim in claims}) == 3


async def test_a_silent_nodes_lease_lapses_and_its_call_is_still_known(owners: Any, clock: Clock) -> None:
    key = key_of()
    await owners("a").claim(key, call_id=uuid7())
    clock.now += LEASE_S + 1
    claim = await owners("b").claim(key, call_id=uuid7())
    assert (claim.known, claim.epoch, claim.holds) == (True, 2, False)


async def test_an_owner_that_renews_keeps_its_call_and_one_that_lost_it_learns_so(owners: Any, clock: Clock) -> None:
    a, b, key, other = owners("a"), owners("b"), key_of(), key_of()
    held = []
    for one in (key, other):
        claim = await a.claim(one, call_id=uuid7())
        held.append(Held(one, claim.call_id, claim.epoch, clock.now))
    for _ in range(10):
        clock.now += RENEW_EVERY_S
        assert await a.renew(held) == []
    claim = await b.claim(key, call_id=uuid7())
    assert claim.holds
    assert await a.renew(held) == [held[0]]
    assert await b.renew([Held(key, claim.call_id, claim.epoch, clock.now)]) == []


async def test_a_record_that_valkey_lost_is_written_again(owners: Any, clock: Clock, redis_url: str) -> None:
    a, key, call_id = owners("a"), key_of(), uuid7()
    held = Held(key, call_id, 3, clock.now)  # claimed while Valkey was down
    assert await a.renew([held]) == []
    assert await asyncio.to_thread(call_is_owned, redis_url, tenant_id=key.tenant_id, call_id=call_id)
    claim = await owners("b").claim(key, call_id=uuid7())
    assert (claim.call_id, claim.epoch) == (call_id, 4)


async def test_of_two_that_claimed_without_valkey_the_later_one_has_the_call(owners: Any, clock: Clock) -> None:
    a, b, key = owners("a"), owners("b"), key_of()
    one, two = Held(key, uuid7(), 1, clock.now), Held(key, uuid7(), 1, clock.now + 5)
    assert await b.renew([two]) == []
    assert await a.renew([one]) == [one]
    assert await b.renew([two]) == []


@pytest.mark.parametrize(("back", "epoch"), [(True, 2), (False, 1)])
async def test_a_call_that_has_ended_is_known_for_a_minute(
    owners: Any, clock: Clock, redis_url: str, back: bool, epoch: int
) -> None:
    a, key, call_id = owners("a"), key_of(), uuid7()
    await a.claim(key, call_id=call_id)
    await a.over(Held(key, call_id, 1, clock.now), back=back)
    assert await a.knows(key)
    assert not await asyncio.to_thread(call_is_owned, redis_url, tenant_id=key.tenant_id, call_id=call_id)
    redis = a._valkey.redis
    assert 0 < await redis.ttl(key.name) <= KNOWN_FOR_S
    claim = await owners("b").claim(key, call_id=uuid7())
    assert (claim.known, claim.epoch, claim.holds) == (True, epoch, False)
    assert (claim.call_id == call_id) is back


async def test_an_older_owner_does_not_end_the_newer_ones_call(owners: Any, clock: Clock) -> None:
    a, b, key, call_id = owners("a"), owners("b"), key_of(), uuid7()
    await a.claim(key, call_id=call_id)
    await b.claim(key, call_id=uuid7())
    await a.over(Held(key, call_id, 1, clock.now), back=False)
    claim = await owners("c").claim(key, call_id=uuid7())
    assert (claim.call_id, claim.epoch, claim.holds) == (call_id, 3, True)


async def test_without_valkey_nobody_is_asked_and_nothing_is_lost(owners: Any, clock: Clock) -> None:
    down = owners("a", "redis://127.0.0.1:1/0")
    assert await down.claim(key_of(), call_id=uuid7()) is None
    assert await down.renew([Held(key_of(), uuid7(), 1, clock.now)]) == []
    assert await down.knows(key_of()) is None
    assert not call_is_owned("redis://127.0.0.1:1/0", tenant_id=uuid7(), call_id=uuid7())


async def test_nothing_stays_in_valkey(owners: Any, clock: Clock) -> None:
    a, key, call_id = owners("a"), key_of(), uuid7()
    await a.claim(key, call_id=call_id)
    redis = a._valkey.redis
    names = await redis.keys(f"*{key.tenant_id}*")
    assert len(names) == 2
    for name in names:
        assert 0 < await redis.ttl(name) <= LEASE_S + KNOWN_FOR_S


@pytest.mark.parametrize("call", ["\ud800", "x" * 5000, "\x00", "a b\r\nc", "☎" * 300])
async def test_whatever_is_sent_as_an_id_names_a_call(owners: Any, call: str) -> None:
    key = CallKey(uuid7(), uuid7(), call)
    assert (await owners("a").claim(key, call_id=uuid7())).epoch == 1
    assert (await owners("b").claim(key, call_id=uuid7())).epoch == 2


# -- what goes from node to node


def carried(call_id: UUID, **changes: Any) -> CarriedCall:
    intent = ToolCallIntent(id="c1", name="charge_card", args={"amount": 9}, irreversible=True)
    verdict = ToolVerdict("c1", "charge_card", True, ToolCode.OK, JudgingState.JUDGED, 0.1, "", "", None, 30_000, 12)
    fields: dict[str, Any] = {
        "call_id": call_id,
        "epoch": 1,
        "started_at": datetime(2026, 5, 6, 9, 30, tzinfo=UTC),
        "age_ms": 12_345,
        "last_seq": 17,
        "policy_version_id": uuid7(),
        "mode": "live",
        "language": "en",
        "from_number": "+15550100",
        "to_number": "+15550199",
        "turn_count": 1,
        "turns": (CarriedTurn("t1", uuid7(), "Good.", (intent,)), CarriedTurn("t0", uuid7(), None)),
        "tools": (CarriedTool(intent, uuid7(), verdict, "t1", finished=True),),
        "notes": ({"id": str(uuid7()), "rev": 2, "text": "A \ud800 note."},),
        "memory": CarriedMemory(
            notes=(("turn:t1", HistoryEntry("agent", "Good.")),),
            tools=(KeptTool("charge_card", "ab" * 32, "", "c1", True, {"receipt": 7}),),
            acted=(("Never confirm a refund.", 12.5), (None, 1.0)),
            interventions=2,
        ),
    }
    return CarriedCall(**{**fields, **changes})


def test_what_is_handed_over_comes_out_as_it_went_in_for_its_tenant_alone() -> None:
    tenant_id, stranger_id = uuid7(), uuid7()
    whole = carried(uuid7(), notes=({"id": "n", "rev": 1},))
    sealed = whole.seal(tenant_id)
    assert CarriedCall.unseal(sealed, tenant_id) == whole
    assert "Good" not in sealed
    for text, tenant in (
        (sealed, stranger_id),
        (sealed[:-8], tenant_id),
        ("no such thing", tenant_id),
        ("", tenant_id),
    ):
        with pytest.raises(CarriedInvalid):
            CarriedCall.unseal(text, tenant)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"notes": [], "tools": [], "acted": [], "interventions": -1},
        {"notes": [["", "robber", "hi"]], "tools": [], "acted": [], "interventions": 0},
        {"notes": [], "tools": [["a", "zz", "", "c", True, 1]], "acted": [], "interventions": 0},
        {"notes": [], "tools": [], "acted": [["rule", "soon"]], "interventions": 0},
        None,
        [],
    ],
)
def test_a_memory_of_another_version_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"not |non-hex"):
        CarriedMemory.from_json(wrong)


class Running:
    """A call of a node, as its session would be."""

    def __init__(self, node: Node, taken: Taken) -> None:
        self.held = taken.held
        self.binding: Any = SimpleNamespace(policy_version_id=uuid7())
        self.handed_over = 0
        self.silent = False
        self._node = node
        node.mailbox.open(taken.held.key.tenant_id, taken.held.call_id, self._deliver)
        node.takeovers.add(self)

    async def hand_over(self) -> CarriedCall:
        self.handed_over += 1
        self._node.mailbox.close(self.held.key.tenant_id, self.held.call_id)
        self._node.takeovers.gone(self)
        return carried(self.held.call_id, notes=())

    async def _deliver(self, message: dict[str, Any]) -> dict[str, Any]:
        if self.silent:
            await asyncio.sleep(60)
        assert HAND_OVER in message
        return {"carried": (await self.hand_over()).seal(self.held.key.tenant_id)}


class Node:
    """A process with calls."""

    def __init__(self, name: str, url: str | None, clock: Clock, record: Any = None) -> None:
        self.mailbox = Mailbox(url)
        owners = CallOwners(url, name, now=clock, clock=clock, answer_within_s=10.0)
        directory: Any = SimpleNamespace(is_down=record is None, connection=record)
        self.takeovers = Takeovers(owners, self.mailbox, directory)

    async def take(self, key: CallKey) -> tuple[Taken, Running]:
        async with self.takeovers.claiming(key) as take:
            taken = await take()
            return taken, Running(self, taken)

    async def heard(self, key: CallKey, call_id: UUID) -> None:
        """Return once Valkey knows that the call is listened for."""
        redis = self.mailbox._redis
        assert redis is not None
        channel = call_channel(key.tenant_id, call_id)
        async with asyncio.timeout(20):
            while not dict(await redis.pubsub_numsub(channel)).popitem()[1]:  # noqa: ASYNC110  (another connection)
                await asyncio.sleep(0.01)

    async def aclose(self) -> None:
        await self.takeovers.aclose()
        await self.mailbox.aclose()


@pytest.fixture
async def nodes(redis_url: str, clock: Clock) -> AsyncIterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(name: str, url: str | None = redis_url, record: Any = None) -> Node:
        made.append(Node(name, url, clock, record))
        return made[-1]

    yield make
    for node in made:
        await node.aclose()


async def test_a_call_goes_from_node_to_node_with_all_that_is_known_of_it(nodes: Any) -> None:
    a, b, key = nodes("a"), nodes("b"), key_of()
    first, call = await a.take(key)
    assert (first.carried, first.held.epoch) == (None, 1)
    await a.heard(key, first.held.call_id)
    second, _ = await b.take(key)
    assert (second.held.call_id, second.held.epoch, second.known) == (first.held.call_id, 2, True)
    assert second.carried is not None
    assert (second.carried.epoch, second.carried.last_seq) == (2, 17)
    assert second.carried.memory.interventions == 2
    assert call.handed_over == 1
    # And back again.
    await b.heard(key, first.held.call_id)
    third, _ = await a.take(key)
    assert (third.held.call_id, third.held.epoch) == (first.held.call_id, 3)


async def test_a_silent_node_loses_the_call_and_ends_it_when_it_renews(
    nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "HANDOVER_WITHIN_S", 0.1)
    a, b, key = nodes("a"), nodes("b"), key_of()
    first, call = await a.take(key)
    call.silent = True
    await a.heard(key, first.held.call_id)
    second, _ = await b.take(key)
    assert (second.held.call_id, second.held.epoch) == (first.held.call_id, 2)
    assert second.carried is not None
    assert (second.carried.last_seq, second.carried.turns) == (None, ())
    assert call.handed_over == 0
    await a.takeovers.renew()
    assert call.handed_over == 1
    await a.takeovers.renew()
    assert call.handed_over == 1


async def test_a_dead_nodes_call_is_not_asked_for(nodes: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, key = nodes("a"), nodes("b"), key_of()
    first, _ = await a.take(key)
    clock.now += LEASE_S + 1

    async def asks(*_: Any, **__: Any) -> Any:
        raise AssertionError("a node whose lease lapsed is waited for")

    monkeypatch.setattr(b.mailbox, "ask", asks)
    second, _ = await b.take(key)
    assert (second.held.call_id, second.held.epoch) == (first.held.call_id, 2)


async def test_sockets_that_come_at_once_take_the_call_one_after_the_other(nodes: Any) -> None:
    a, key = nodes("a"), key_of()
    taken = await asyncio.gather(*(a.take(key) for _ in range(8)))
    assert sorted(each.held.epoch for each, _ in taken) == list(range(1, 9))
    assert len({each.held.call_id for each, _ in taken}) == 1
    assert sorted(call.handed_over for _, call in taken) == [0] + [1] * 7
    assert not a.takeovers._claiming


async def test_without_valkey_a_call_is_found_in_its_own_process(nodes: Any) -> None:
    a, key, stranger = nodes("a", None), key_of(), key_of()
    first, _ = await a.take(key)
    second, _ = await a.take(key)
    other, _ = await a.take(stranger)
    assert (second.held.call_id, second.held.epoch) == (first.held.call_id, 2)
    assert (other.held.epoch, other.carried) == (1, None)


async def test_a_call_that_cannot_be_handed_over_goes_on_all_the_same(nodes: Any, caplog: Any) -> None:
    a, key = nodes("a"), key_of()
    first, call = await a.take(key)

    async def breaks() -> CarriedCall:
        raise RuntimeError

    call.hand_over = breaks
    second, _ = await a.take(key)
    assert (second.held.call_id, second.held.epoch) == (first.held.call_id, 2)
    assert second.carried is not None
    assert "could not be handed over" in caplog.text


async def test_a_database_that_is_down_costs_a_reconnect_what_was_known(nodes: Any, clock: Clock) -> None:
    @asynccontextmanager
    async def down() -> AsyncIterator[Any]:
        raise psycopg.OperationalError("no such server")
        yield

    a, b, key = nodes("a"), nodes("b", record=down), key_of()
    first, _ = await a.take(key)
    clock.now += LEASE_S + 1
    second, _ = await b.take(key)
    assert (second.held.call_id, second.held.epoch) == (first.held.call_id, 2)
    assert second.carried is not None
    assert second.carried.memory == CarriedMemory()


async def test_a_call_is_known_while_it_runs_and_a_minute_longer(nodes: Any, clock: Clock) -> None:
    a, b, key, stranger = nodes("a"), nodes("b"), key_of(), key_of()
    assert not await b.takeovers.knows(key)
    _, call = await a.take(key)
    assert await b.takeovers.knows(key)
    assert await a.takeovers.knows(key)
    await a.takeovers.remove(call, back=False)
    assert await b.takeovers.knows(key)
    assert not await b.takeovers.knows(stranger)
    # The call is over: under the same id of Plivo's, the next one is new.
    again, _ = await b.take(key)
    assert (again.known, again.held.epoch, again.carried) == (True, 1, None)
    assert again.held.call_id != call.held.call_id
