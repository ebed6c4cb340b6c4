"""An agent that cannot be reached, or breaks: it is dialled again, the caller is told, and Plivo asked what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from supervision.plivo.rest import PlivoAccount, PlivoAnswer, retry_after_s
from supervision.plivo.simulator import SimulatedCall
from supervision.stream.failure import PLIVO_ENDS_WITHIN_S, REDIAL_AFTER_S, STEADY_S, FailurePolicy, Redials
from supervision.stream.plivo_rest import plivo_call
from tests.e2e.agents import AgentCall
from tests.standins.plivo_rest import AUTH_ID, AUTH_TOKEN, Answered, PlivoStandIn
from tests.stream.world import BAD, BUFFER, CORRECTION, GOOD, World, ears, order, say_turn, tone
from tests.support.virtual_time import virtual_time

SORRY = "I am sorry, please call again."
XML = "https://example.com/people.xml"
CALL_ID = "f4a1c0de-1111-4222-8333-444455556666"


def world_with(
    monkeypatch: pytest.MonkeyPatch, policy: FailurePolicy, plivo: PlivoStandIn | None = None, **options: Any
) -> World:
    """A world whose agent has this failure policy, and whose tenant this account at Plivo."""
    world = World(monkeypatch, **options)
    accounts = () if plivo is None else (PlivoAccount(AUTH_ID, AUTH_TOKEN),)
    world.runtime.binding = replace(world.binding, failure=policy, plivo_accounts=accounts)

    async def request(method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> PlivoAnswer:
        assert plivo is not None
        answered = await plivo.answer(method, urlsplit(url).path, headers, body)
        if answered.status < 300 and plivo.asked[-1].action in ("hangup", "transfer") and world.simulated is not None:
            world.simulated.hang_up()
        return PlivoAnswer(answered.status, retry_after_s(answered.headers.get("Retry-After")))

    world.runtime.plivo = SimpleNamespace(request=request)  # type: ignore[assignment]
    return world


@pytest.fixture
def plivo() -> PlivoStandIn:
    made = PlivoStandIn()
    made.call(CALL_ID)
    made.call("another-call")
    return made


async def breaks(agent: AgentCall) -> None:
    await agent.hello()
    await agent.connection.close(1006)


def minute(call: SimulatedCall) -> Any:
    return asyncio.sleep(60)


# Dialled again


@virtual_time
async def test_an_agent_that_breaks_is_dialled_again_with_start_first(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_with(monkeypatch, FailurePolicy(redials=2))

    async def script(agent: AgentCall) -> None:
        ready = await agent.hello()
        assert ready["resumed"] is (len(world.agents) > 1)
        await say_turn(agent, "t1", GOOD, 2.0)
        if len(world.agents) == 1:
            await agent.connection.close(1006)

    record = await world.call(script, lambda call: asyncio.sleep(10))
    assert (record.outcome, record.ended_by) == ("completed", "caller")
    first, second = world.agents
    assert second.events[0]["event"] == "start"
    assert second.raw[0] == first.raw[0]
    assert [event["event"] for event in second.events].count("start") == 1
    assert second.headers["X-Mirror-Signature"]
    assert order(record.heard) == [GOOD]  # of the first socket to its end, of the second behind it
    assert ears(record.heard)[0].seconds == pytest.approx(4.0, abs=0.1)
    assert not second.of("mirror.error")  # its ids are its own
    assert [turn["ref"] for turn in world.record.of("turn.reported")] == ["t1", "t1"]
    assert world.record.one("call.ended")["judged"] + world.record.one("call.ended")["skipped"] == 2
    assert len(world.record.of("agent.connected")) == 2
    assert "1006" in world.record.one("agent.failed")["reason"]


@virtual_time
async def test_an_agent_that_cannot_be_reached_at_first_is_dialled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_with(monkeypatch, FailurePolicy(redials=2))
    world.dial_error = ConnectionRefusedError(111, "Connection refused")

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await agent.speak(tone(GOOD, 1.0))

    async def comes_up(call: SimulatedCall) -> None:
        await asyncio.sleep(0.3)
        world.dial_error = None
        await asyncio.sleep(5)

    record = await world.call(script, comes_up)
    assert record.outcome == "completed"
    assert world.agent.events[0]["event"] == "start"
    # What the caller said meanwhile is not lost.
    assert world.agent.of("media")[0]["media"]["chunk"] == 1


@virtual_time
async def test_an_agent_is_dialled_again_no_more_often_than_its_policy_says(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_with(monkeypatch, FailurePolicy(redials=3))
    record = await world.call(breaks, minute)
    assert len(world.agents) == 4
    assert (record.outcome, record.close_code) == ("failed", 1011)
    assert record.ended_t == pytest.approx(sum(REDIAL_AFTER_S[:3]), abs=0.3)
    assert "1006" in world.record.one("call.ended")["reason"]


@pytest.mark.parametrize(
    ("code", "dialled"), [(1006, 2), (1011, 2), (1012, 2), (1013, 2), (1002, 1), (1008, 1), (4000, 1)]
)
@virtual_time
async def test_what_an_agent_refuses_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, code: int, dialled: int
) -> None:
    world = world_with(monkeypatch, FailurePolicy(redials=1))

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await agent.connection.close(code)

    record = await world.call(script, minute)
    assert len(world.agents) == dialled
    assert (record.outcome, record.close_code) == ("failed", 1011)


@virtual_time
async def test_an_agent_that_was_there_for_long_has_all_its_redials_again(monkeypatch: pytest.MonkeyPatch) -> None:
    redials = Redials(1)
    loop = asyncio.get_running_loop()
    assert await redials.wait()
    assert not await redials.wait()
    redials.connected(loop.time())
    await asyncio.sleep(STEADY_S - 1)
    assert not await redials.wait()
    redials.connected(loop.time())
    await asyncio.sleep(STEADY_S)
    assert await redials.wait()


@virtual_time
async def test_an_intervention_goes_on_while_the_agent_is_dialled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_with(monkeypatch, FailurePolicy(redials=2))

    async def script(agent: AgentCall) -> None:
        ready = await agent.hello()
        if len(world.agents) == 1:
            await say_turn(agent, "t1", BAD, 20.0)
            await agent.send("checkpoint", streamId=agent.stream_id, name="only the first knows")
            await agent.wait("mirror.intervention", phase="buffer")
            await agent.connection.close(1006)
            return
        assert ready["resumed"] is True
        await agent.wait("mirror.note")
        await agent.wait("mirror.intervention", phase="completed")
        await say_turn(agent, "t1", GOOD, 2.0, seen=agent.of("mirror.note")[-1]["id"])

    record = await world.call(script, lambda call: asyncio.sleep(14))
    assert order(record.heard) == [BAD, BUFFER, CORRECTION, GOOD]
    assert world.record.one("intervention.ended")["outcome"] == "completed"
    assert not world.agents[1].of("playedStream")


@virtual_time
async def test_the_next_socket_is_told_what_the_one_before_was_not_told_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = world_with(monkeypatch, FailurePolicy(redials=2))

    async def script(agent: AgentCall) -> None:
        ready = await agent.hello()
        if len(world.agents) == 1:
            await say_turn(agent, "t1", BAD, 20.0)
            await agent.wait("mirror.intervention", phase="completed")
            await agent.connection.close(1006)
            return
        (note,) = ready["notes"]
        assert CORRECTION in note["said"]

    record = await world.call(script, lambda call: asyncio.sleep(14))
    assert record.outcome == "completed"
    assert len(world.agents) == 2


@virtual_time
async def test_a_line_that_a_lost_agent_should_have_said_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_with(monkeypatch, FailurePolicy(redials=1))

    async def script(agent: AgentCall) -> None:
        await agent.hello(wants=["notes", "say"])
        if len(world.agents) == 1:
            await say_turn(agent, "t1", BAD, 20.0)
            await agent.wait("mirror.say")
            await agent.connection.close(1006)

    record = await world.call(script, lambda call: asyncio.sleep(10))
    assert order(record.heard) == [BAD, BUFFER, CORRECTION]
    bad, buffer, _ = ears(record.heard)
    assert buffer.start - bad.end < 0.2


# The caller is told


@virtual_time
async def test_a_caller_is_told_that_the_agent_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_with(monkeypatch, FailurePolicy(message=SORRY))

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", GOOD, 2.0)
        await agent.connection.close(1006)

    record = await world.call(script, minute)
    assert order(record.heard) == [GOOD, SORRY]
    good, sorry = ears(record.heard)
    assert good.seconds == pytest.approx(2.0, abs=0.05)  # what it had said already is heard first
    assert sorry.seconds == pytest.approx(0.3 + 0.28 * 6, abs=0.05)
    assert (record.close_code, record.outcome) == (1011, "failed")
    assert (record.ended_t or 0) - sorry.end < 0.5
    assert world.record.one("call.ended")["reason"].endswith("the caller was told")


@virtual_time
async def test_a_caller_does_not_wait_for_minutes_of_audio_to_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_with(monkeypatch, FailurePolicy(message=SORRY))

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", GOOD, 90.0)
        await agent.connection.close(1006)

    record = await world.call(script, minute)
    good, sorry = ears(record.heard)
    assert good.seconds == pytest.approx(5.0, abs=0.2)
    assert sorry.label == SORRY


@virtual_time
async def test_a_correction_is_heard_before_the_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_with(monkeypatch, FailurePolicy(message=SORRY))

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 20.0)
        await agent.wait("mirror.intervention", phase="buffer")
        await agent.connection.close(1006)

    record = await world.call(script, minute)
    assert order(record.heard) == [BAD, BUFFER, CORRECTION, SORRY]


@virtual_time
async def test_plivo_tells_the_caller_where_no_voice_can(monkeypatch: pytest.MonkeyPatch, plivo: PlivoStandIn) -> None:
    world = world_with(monkeypatch, FailurePolicy(message=SORRY), plivo, speaks=False)
    record = await world.call(breaks, minute, call_id=CALL_ID)
    (spoken,) = plivo.of("speak")
    assert (spoken.call_id, spoken.fields["text"], spoken.fields["language"]) == (CALL_ID, SORRY, "en-US")
    assert record.close_code == 1011
    assert record.ended_t is not None
    assert record.ended_t > 2.0  # estimated: nobody says when it has been spoken


@virtual_time
async def test_a_caller_who_cannot_be_told_is_not_kept_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_with(monkeypatch, FailurePolicy(message=SORRY), speaks=False)
    record = await world.call(breaks, minute)
    assert record.close_code == 1011
    assert record.ended_t is not None
    assert record.ended_t < 1.0
    assert "could not be told" in world.record.one("call.ended")["reason"]


@virtual_time
async def test_a_caller_who_hangs_up_while_being_told_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_with(monkeypatch, FailurePolicy(message=SORRY))

    record = await world.call(breaks, lambda call: asyncio.sleep(1.0))
    assert record.ended_by == "caller"
    assert world.record.one("call.ended")["outcome"] == "failed"


# What becomes of the call


@virtual_time
async def test_a_call_is_hung_up(monkeypatch: pytest.MonkeyPatch, plivo: PlivoStandIn) -> None:
    world = world_with(monkeypatch, FailurePolicy(message=SORRY, then="hangup"), plivo)
    record = await world.call(breaks, minute, call_id=CALL_ID)
    assert order(record.heard) == [SORRY]
    assert [(asked.action, asked.call_id) for asked in plivo.asked] == [("hangup", CALL_ID)]
    assert plivo.live == {"another-call"}
    end = world.record.one("call.ended")
    assert (end["outcome"], end["ended_by"]) == ("failed", "agent")
    assert "the call was hung up" in end["reason"]


@virtual_time
async def test_a_call_is_transferred(monkeypatch: pytest.MonkeyPatch, plivo: PlivoStandIn) -> None:
    world = world_with(monkeypatch, FailurePolicy(then="transfer", transfer_url=XML), plivo)
    await world.call(breaks, minute, call_id=CALL_ID)
    assert plivo.asked[0].fields["aleg_url"] == XML
    assert "transferred" in world.record.one("call.ended")["reason"]


@virtual_time
async def test_a_stream_that_plivo_leaves_open_is_closed(monkeypatch: pytest.MonkeyPatch, plivo: PlivoStandIn) -> None:
    world = world_with(monkeypatch, FailurePolicy(then="hangup"), plivo)
    plivo.live.discard(CALL_ID)  # 404: over, says Plivo, and yet its socket stays

    async def stays(method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> PlivoAnswer:
        return PlivoAnswer((await plivo.answer(method, urlsplit(url).path, headers, body)).status)

    world.runtime.plivo.request = stays  # type: ignore[method-assign]
    record = await world.call(breaks, minute, call_id=CALL_ID)
    assert record.close_code == 1000
    assert record.ended_t == pytest.approx(PLIVO_ENDS_WITHIN_S, abs=0.5)


@pytest.mark.parametrize("then", ["hangup", "transfer"])
@virtual_time
async def test_what_plivo_does_not_do_closes_the_stream(
    monkeypatch: pytest.MonkeyPatch, plivo: PlivoStandIn, then: str
) -> None:
    world = world_with(monkeypatch, FailurePolicy(then=then, transfer_url=XML), plivo)  # type: ignore[arg-type]
    plivo.next_answers.extend([Answered(500)] * 3)
    record = await world.call(breaks, minute, call_id=CALL_ID)
    assert record.close_code == 1011
    assert "could not be" in world.record.one("call.ended")["reason"]
    assert AUTH_TOKEN not in str(world.record.events)


@virtual_time
async def test_without_an_account_a_stream_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_with(monkeypatch, FailurePolicy(then="hangup"))
    record = await world.call(breaks, minute)
    assert record.close_code == 1011
    assert "no Plivo account is stored" in world.record.one("call.ended")["reason"]


@pytest.mark.parametrize("call_id", ["?", "../..", "a/b", "%20", "x" * 150])
@virtual_time
async def test_an_id_that_is_none_never_reaches_plivo(
    monkeypatch: pytest.MonkeyPatch, plivo: PlivoStandIn, call_id: str
) -> None:
    world = world_with(monkeypatch, FailurePolicy(message=SORRY, then="hangup"), plivo, speaks=False)
    record = await world.call(breaks, minute, call_id=call_id)
    assert not plivo.asked
    assert len(plivo.live) == 2
    assert record.close_code == 1011


def test_the_account_that_the_call_belongs_to_is_asked() -> None:
    accounts = (PlivoAccount("MA2", "token-of-the-second"), PlivoAccount("MA1", "token-of-the-first"))

    async def request(*_: Any) -> PlivoAnswer:
        raise AssertionError

    for account_id, expected in (("MA1", "MA1"), ("MA2", "MA2"), ("SA9", "MA2"), ("", "MA2")):
        found = plivo_call(accounts, account_id=account_id, call_id=CALL_ID, request=request)
        assert found is not None
        assert found.account.auth_id == expected
    assert plivo_call((), account_id="MA1", call_id=CALL_ID, request=request) is None
    assert plivo_call(accounts, account_id="MA1", call_id="", request=request) is None
