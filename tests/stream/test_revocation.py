"""A revoked stream key ends what came in with it, at once and in order, on virtual time."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from mirror_saas.ids import uuid7
from supervision.plivo.simulator import SimulatedCall
from supervision.stream.directory import DirectoryUnavailable
from supervision.stream.revocation import CHECK_S, KeyWatch
from supervision.stream.session import KEY_REVOKED_CLOSE, KEY_REVOKED_REASON
from tests.e2e.agents import AgentCall
from tests.stream.world import BAD, GOOD, KEY, SLUG, World, check_record, say_turn
from tests.support.virtual_time import virtual_time

WITHIN_S = 5.0


async def talks(agent: AgentCall) -> None:
    await agent.hello()
    await say_turn(agent, "t1", GOOD, 20.0)
    await agent.wait("never", timeout_s=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("answers_close", [True, False], ids=["polite", "deaf"])
@virtual_time
async def test_a_running_call_ends_on_both_legs_and_its_record_says_why(
    monkeypatch: pytest.MonkeyPatch, answers_close: bool
) -> None:
    world = World(monkeypatch)
    world.plivo_answers_close = answers_close
    revoked_at = 0.0

    async def during(call: SimulatedCall) -> None:
        nonlocal revoked_at
        await asyncio.sleep(7.3)
        world.runtime.revoked.add(world.binding.stream_key_id)
        revoked_at = asyncio.get_running_loop().time()
        await asyncio.sleep(WITHIN_S)

    record = await world.call(talks, during, hang_up=False)
    assert record.close_code == KEY_REVOKED_CLOSE
    (agent,) = world.connections
    assert agent.close_code == 1000
    assert agent.closed_at is not None
    assert agent.closed_at - revoked_at <= WITHIN_S
    assert world.over_at - revoked_at <= WITHIN_S
    end = world.record.events[-1].data
    assert (end["outcome"], end["ended_by"], end["close_code"]) == ("failed", "mirror", KEY_REVOKED_CLOSE)
    assert end["reason"] == KEY_REVOKED_REASON


@virtual_time
async def test_in_the_middle_of_a_correction_too(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def bad(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 20.0)
        await agent.wait("never", timeout_s=None)  # type: ignore[arg-type]

    async def during(call: SimulatedCall) -> None:
        await call.wait_for(lambda record: record.of("clearAudio"), 20)
        world.runtime.revoked.add(world.binding.stream_key_id)
        await asyncio.sleep(WITHIN_S)

    await world.call(bad, during, hang_up=False)
    check_record(world.record.events)
    assert world.record.events[-1].data["reason"] == KEY_REVOKED_REASON


@virtual_time
async def test_a_stream_that_has_not_begun_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.runtime.revoked.add(world.binding.stream_key_id)
    inbox: asyncio.Queue[dict[str, object]] = asyncio.Queue()
    inbox.put_nowait({"type": "websocket.connect"})
    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    from supervision.stream.consumer import StreamConsumer

    scope = {"type": "websocket", "url_route": {"kwargs": {"slug": SLUG, "key": KEY}}, "query_string": b""}
    async with asyncio.timeout(WITHIN_S):
        await StreamConsumer()(scope, inbox.get, send)
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.close"]
    assert sent[1]["code"] == 1008
    assert world.record.events == []


@virtual_time
async def test_a_revocation_between_the_start_and_the_call_counts_from_the_calls_first_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    named = world.runtime.calls.name

    async def name_and_revoke(*arguments: object) -> None:
        await named(*arguments)  # type: ignore[arg-type]
        world.runtime.revoked.add(world.binding.stream_key_id)
        await world.runtime.keys.check()

    monkeypatch.setattr(world.runtime.calls, "name", name_and_revoke)

    async def during(call: SimulatedCall) -> None:
        await asyncio.sleep(1)

    record = await world.call(talks, during, hang_up=False)
    assert record.close_code == KEY_REVOKED_CLOSE
    assert world.record.events[-1].data["reason"] == KEY_REVOKED_REASON
    assert world.record.events[-1].data["duration_ms"] < 1_000


@virtual_time
async def test_other_keys_calls_go_on_and_so_do_all_while_nobody_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    asked = 0

    async def down(key_ids: object) -> set[UUID]:
        nonlocal asked
        asked += 1
        raise DirectoryUnavailable("the database is down")

    async def during(call: SimulatedCall) -> None:
        world.runtime.revoked.add(uuid7())
        await asyncio.sleep(3 * CHECK_S)
        world.runtime.keys._ask = down
        await asyncio.sleep(3 * CHECK_S + 0.1)

    record = await world.call(talks, during)
    assert asked == 3
    assert (record.outcome, world.record.events[-1].data["reason"]) == ("completed", "")


@virtual_time
async def test_a_process_asks_once_for_all_and_not_at_all_without_streams() -> None:
    asked: list[set[UUID]] = []
    gone: set[UUID] = set()
    ended: list[int] = []

    async def revoked(key_ids: object) -> set[UUID]:
        asked.append(set(key_ids))  # type: ignore[call-overload]
        return gone & asked[-1]

    watch = KeyWatch(revoked)
    keys = [uuid7() for _ in range(3)]

    async def stream(number: int) -> None:
        with watch.watched(keys[number % 3]) as key:
            key.on_revoked = lambda: ended.append(number)
            await asyncio.sleep(2 * CHECK_S + 0.1)

    async def revoke() -> None:
        await asyncio.sleep(CHECK_S / 2)
        gone.add(keys[1])

    await asyncio.gather(*(stream(number) for number in range(300)), revoke())
    assert asked == [set(keys)] * 2
    # Each once, however often the key is found revoked.
    assert sorted(ended) == list(range(1, 300, 3))
    await asyncio.sleep(5 * CHECK_S)
    assert len(asked) == 2


@virtual_time
async def test_a_question_that_fails_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    answers = iter([RuntimeError("a mistake"), None])
    ended = asyncio.Event()
    key_id = uuid7()

    async def revoked(key_ids: object) -> set[UUID]:
        answer = next(answers)
        if answer is not None:
            raise answer
        return {key_id}

    watch = KeyWatch(revoked)
    with watch.watched(key_id) as key:
        key.on_revoked = ended.set
        async with asyncio.timeout(2 * CHECK_S + 0.1):
            await ended.wait()
    assert "tried again" in caplog.text
