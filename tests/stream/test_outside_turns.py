"""Turns that are reported from outside the agent's socket: what the call does with them, and that it is reached."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from asgiref.sync import sync_to_async

from mirror_saas.ids import uuid7
from supervision.plivo.simulator import SimulatedCall
from supervision.stream.mailbox import CallSilent, Deliver, Mailbox, NobodyThere, call_post
from tests.e2e.agents import AgentCall
from tests.stream.world import BAD, CORRECTION, GOOD, World, order, tone
from tests.support.virtual_time import virtual_time

SLOW = "Your card will show it on Monday."  # needs the judge, who takes 0.2 s


class Letterbox:
    """A mailbox whose letters a test puts in."""

    def __init__(self) -> None:
        self.deliver: dict[UUID, Deliver] = {}
        self.closed: list[UUID] = []

    def open(self, tenant_id: UUID, call_id: UUID, deliver: Deliver) -> None:
        self.deliver[call_id] = deliver

    def close(self, tenant_id: UUID, call_id: UUID) -> None:
        self.closed.append(call_id)

    async def report(self, wait_ms: int = 0, **turn: Any) -> dict[str, Any]:
        """Report a turn to the only call."""
        [deliver] = self.deliver.values()
        turn = {"turn_id": "t1", "customer_text": "", "text": "", "tool_calls": [], "language": None, **turn}
        return await deliver({"turn": turn, "wait_ms": wait_ms})


def world_of(monkeypatch: pytest.MonkeyPatch) -> tuple[World, Letterbox]:
    world, box = World(monkeypatch), Letterbox()
    world.runtime.mailbox = box  # type: ignore[assignment]
    return world, box


def when_ended(world: World) -> Any:
    async def wait(call: SimulatedCall) -> None:
        await call.wait_for(lambda record: world.record.of("intervention.ended"), 90)
        await asyncio.sleep(1.0)

    return wait


@virtual_time
async def test_a_turn_from_outside_is_judged_and_replaced_for_an_agent_that_never_said_hello(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, box = world_of(monkeypatch)
    answers: list[dict[str, Any]] = []

    async def script(agent: AgentCall) -> None:
        answers.append(await box.report(turn_id="t1", customer_text="Money back!", text=BAD, wait_ms=2_000))
        await agent.speak(tone(BAD, 6.0))

    record = await world.call(script, when_ended(world))
    [answer] = answers
    assert answer["taken"] is True
    assert {name: answer["verdict"][name] for name in ("turn_id", "state", "score", "intervene", "acted")} == {
        "turn_id": "t1",
        "state": "judged",
        "score": 0.95,
        "intervene": True,
        "acted": True,
    }
    assert BAD not in order(record.heard)
    assert order(record.heard)[-1] == CORRECTION
    assert world.record.one("turn.reported")["customer_text"] == "Money back!"
    # The agent said no hello, so it is told nothing.
    assert not [event for event in world.agent.events if event["event"].startswith("mirror.")]
    end = world.record.one("call.ended")
    assert (end["coverage_state"], end["turns"]) == ("full", 1)


@virtual_time
async def test_without_waiting_the_answer_comes_once_the_turn_is_in_the_journal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, box = world_of(monkeypatch)

    async def during(call: SimulatedCall) -> None:
        await asyncio.sleep(1)
        commits = world.record.commits
        assert await box.report(turn_id="t1", text=SLOW) == {"taken": True, "verdict": None, "tools": []}
        assert world.record.commits == commits + 1
        await asyncio.sleep(1)
        # The same turn again is the same turn, and its verdict is known by now.
        again = await box.report(turn_id="t1", text=SLOW)
        assert (again["verdict"]["turn_id"], again["verdict"]["intervene"]) == ("t1", False)
        other = await box.report(turn_id="t1", text="Other words.")
        assert (other["taken"], other["code"]) == (False, "duplicate_turn")
        world.record.broken = True
        refused = await box.report(turn_id="t2", text=GOOD)
        assert (refused["taken"], refused["code"]) == (False, "not_recorded")
        world.record.broken = False

    async def script(agent: AgentCall) -> None:
        await asyncio.sleep(0)

    await world.call(script, during)
    assert len(world.record.of("turn.reported")) == 2
    assert [event["ref"] for event in world.record.of("turn.reported")] == ["t1", "t2"]


@virtual_time
async def test_tools_of_a_turn_from_outside_are_gated_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world, box = world_of(monkeypatch)
    tool = {"id": "c1", "name": "charge_card", "args": {"amount": 5}, "irreversible": True}

    async def during(call: SimulatedCall) -> None:
        await asyncio.sleep(1)
        answer = await box.report(turn_id="t1", text=BAD, tool_calls=[tool], wait_ms=5_000)
        assert [(verdict["id"], verdict["allow"], verdict["code"]) for verdict in answer["tools"]] == [
            ("c1", False, "denied")
        ]

    async def script(agent: AgentCall) -> None:
        await asyncio.sleep(0)

    await world.call(script, during)


@virtual_time
async def test_a_turn_that_cannot_be_read_and_a_call_that_is_over_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    world, box = world_of(monkeypatch)

    async def during(call: SimulatedCall) -> None:
        await asyncio.sleep(1)
        for bad, field in (({"turn_id": ""}, "turn_id"), ({"text": 5}, "text"), ({"language": "?"}, "language")):
            answer = await box.report(**bad)
            assert (answer["taken"], answer["code"]) == (False, "bad_field")
            assert answer["message"].startswith(f"{field}: ")

    async def script(agent: AgentCall) -> None:
        await asyncio.sleep(0)

    await world.call(script, during)
    assert box.closed == list(box.deliver)
    answer = await box.report(turn_id="late", text=GOOD)
    assert (answer["taken"], answer["code"]) == (False, "ended")
    assert not world.record.of("turn.reported")


# -- the way to the call, through Valkey ---------------------------------------------------------------------------


@pytest.fixture
async def mailbox(redis_url: str) -> AsyncIterator[Mailbox]:
    made = Mailbox(redis_url)
    yield made
    await made.aclose()


async def post(redis_url: str, tenant_id: UUID, call_id: UUID, message: dict[str, Any]) -> dict[str, Any]:
    """Post as another process would: until the call is listened for."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await asyncio.to_thread(
                    call_post, redis_url, tenant_id=tenant_id, call_id=call_id, message=message
                )
            except NobodyThere:
                await asyncio.sleep(0.01)


async def echo(message: dict[str, Any]) -> dict[str, Any]:
    return {"echo": message}


async def test_a_call_is_reached_by_its_tenant_and_id(mailbox: Mailbox, redis_url: str) -> None:
    tenant_id, stranger_id, first, second = (uuid7() for _ in range(4))

    async def other(message: dict[str, Any]) -> dict[str, Any]:
        return {"other": message}

    mailbox.open(tenant_id, first, echo)
    assert await post(redis_url, tenant_id, first, {"n": 1}) == {"echo": {"n": 1}}
    mailbox.open(tenant_id, second, other)
    assert await post(redis_url, tenant_id, second, {"n": 2}) == {"other": {"n": 2}}
    # Another tenant's id of the call names no call.
    with pytest.raises(NobodyThere):
        await sync_to_async(call_post, thread_sensitive=False)(
            redis_url, tenant_id=stranger_id, call_id=first, message={}
        )


async def test_a_call_that_ended_is_not_reached_and_another_one_is(mailbox: Mailbox, redis_url: str) -> None:
    tenant_id, ended, running = uuid7(), uuid7(), uuid7()
    mailbox.open(tenant_id, ended, echo)
    mailbox.open(tenant_id, running, echo)
    await post(redis_url, tenant_id, ended, {})
    mailbox.close(tenant_id, ended)
    async with asyncio.timeout(20):
        while True:
            try:
                answer = await asyncio.to_thread(call_post, redis_url, tenant_id=tenant_id, call_id=ended, message={})
            except NobodyThere:
                break
            # Until Valkey knows, too.
            assert (answer["taken"], answer["code"]) == (False, "ended")
    assert await post(redis_url, tenant_id, running, {}) == {"echo": {}}


async def test_a_message_that_breaks_one_call_costs_the_others_nothing(
    mailbox: Mailbox, redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("supervision.stream.mailbox.ANSWER_WITHIN_S", 0.2)
    tenant_id, broken, running = uuid7(), uuid7(), uuid7()

    async def breaks(message: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError

    mailbox.open(tenant_id, broken, breaks)
    mailbox.open(tenant_id, running, echo)
    with pytest.raises(CallSilent):
        await post(redis_url, tenant_id, broken, {})
    assert await post(redis_url, tenant_id, running, {}) == {"echo": {}}


def test_without_valkey_a_call_is_silent() -> None:
    for url in (None, "redis://127.0.0.1:1"):
        with pytest.raises(CallSilent):
            call_post(url, tenant_id=uuid7(), call_id=uuid7(), message={})
