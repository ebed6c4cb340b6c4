"""Never a third apology: what becomes of a call whose agent goes on breaking the rules."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from supervision.engine.intervention.templates import escalation_line
from supervision.plivo.rest import PlivoAccount, PlivoAnswer
from supervision.plivo.simulator import SimulatedCall
from tests.e2e.agents import AgentCall
from tests.standins.plivo_rest import AUTH_ID, AUTH_TOKEN, Answered, PlivoStandIn
from tests.stream.world import BAD, GOOD, World, ears, order, say_turn, tone
from tests.support.speech import say
from tests.support.virtual_time import virtual_time

CALL_ID = "f4a1c0de-1111-4222-8333-444455556666"
XML = "https://example.com/people.xml"
TRANSFER = {"escalation": "transfer", "escalation_url": XML, "cooldown_s": 0.0, "max_interventions_per_call": 9}
HANGUP = {"escalation": "hangup", "cooldown_s": 0.0, "max_interventions_per_call": 9}
HANDOVER = escalation_line("transfer", "en")
CALLER = say("Wait, no, hold on a second, that is not what I asked you about at all.")


@pytest.fixture
def plivo() -> PlivoStandIn:
    made = PlivoStandIn()
    made.call(CALL_ID)
    made.call("another-call")
    return made


def world_with(
    monkeypatch: pytest.MonkeyPatch, plivo: PlivoStandIn | None, config: Mapping[str, Any], **options: Any
) -> World:
    world = World(monkeypatch, config=config, **options)
    if plivo is not None:
        world.runtime.binding = replace(world.binding, plivo_accounts=(PlivoAccount(AUTH_ID, AUTH_TOKEN),))

    async def request(method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> PlivoAnswer:
        assert plivo is not None
        answered = await plivo.answer(method, urlsplit(url).path, headers, body)
        if answered.status < 300 and plivo.asked[-1].action in ("hangup", "transfer") and world.simulated is not None:
            world.simulated.hang_up()
        return PlivoAnswer(answered.status)

    world.runtime.plivo = SimpleNamespace(request=request)  # type: ignore[assignment]
    return world


async def keeps_breaking(agent: AgentCall, pause_s: float = 0.5) -> None:
    await agent.hello()
    for number in (1, 2, 3):
        note = agent.of("mirror.note")[-1]["id"] if agent.of("mirror.note") else None
        await say_turn(agent, f"t{number}", BAD, 3.0, seen=note)
        if number < 3:
            await agent.wait("mirror.intervention", phase="completed", count=number)
            await asyncio.sleep(pause_s)


def minute(call: SimulatedCall) -> Any:
    return asyncio.sleep(60)


@virtual_time
async def test_after_two_in_a_row_the_caller_is_handed_over(
    monkeypatch: pytest.MonkeyPatch, plivo: PlivoStandIn
) -> None:
    world = world_with(monkeypatch, plivo, TRANSFER)
    record = await world.call(keeps_breaking, minute, call_id=CALL_ID)
    heard = order(record.heard)
    assert heard[-2:] == [BAD, HANDOVER]
    assert len(world.record.of("intervention.started")) == 3
    assert len([label for label in heard if label == HANDOVER]) == 1
    assert ears(record.heard)[-2].seconds == pytest.approx(0.2, abs=0.05)  # cut as in any intervention
    assert [(asked.action, asked.call_id) for asked in plivo.asked] == [("transfer", CALL_ID)]
    assert plivo.asked[0].fields["aleg_url"] == XML
    last = world.record.of("intervention.ended")[-1]
    assert (last["outcome"], last["detail"]) == ("completed", "the call was transferred after too many interventions")
    assert last["correction_text"] == HANDOVER
    assert "escalated" in world.record.steps()
    end = world.record.one("call.ended")
    assert (end["ended_by"], end["outcome"]) == ("mirror", "completed")
    assert "transferred" in end["reason"]
    verdict = world.agent.of("mirror.verdict")[-1]
    assert (verdict["acted"], verdict["withheld"]) == (True, None)


@virtual_time
async def test_after_the_limit_of_the_call_it_is_hung_up(monkeypatch: pytest.MonkeyPatch, plivo: PlivoStandIn) -> None:
    own = "I have to end this call."
    world = world_with(monkeypatch, plivo, {**HANGUP, "max_interventions_per_call": 1, "escalation_text": own})

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 3.0)
        await agent.wait("mirror.intervention", phase="completed")
        await say_turn(agent, "t2", GOOD, 1.0, seen=agent.of("mirror.note")[-1]["id"])
        await agent.wait("mirror.verdict", turn_id="t2")
        await asyncio.sleep(1.5)
        await say_turn(agent, "t3", BAD, 3.0)

    record = await world.call(script, minute, call_id=CALL_ID)
    assert order(record.heard)[-3:] == [GOOD, BAD, own]
    assert plivo.live == {"another-call"}
    assert [asked.action for asked in plivo.asked] == ["hangup"]


@virtual_time
async def test_a_clean_turn_between_them_makes_two_no_row(monkeypatch: pytest.MonkeyPatch, plivo: PlivoStandIn) -> None:
    world = world_with(monkeypatch, plivo, TRANSFER)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        for number in (1, 2, 3):
            await say_turn(agent, f"t{number}", BAD, 3.0)
            await agent.wait("mirror.intervention", phase="completed", count=number)
            await say_turn(agent, f"g{number}", GOOD, 0.5, seen=agent.of("mirror.note")[-1]["id"])
            await agent.wait("mirror.verdict", turn_id=f"g{number}")
            await asyncio.sleep(1.0)

    await world.call(script, lambda call: asyncio.sleep(40), call_id=CALL_ID)
    assert len(world.record.of("intervention.ended")) == 3
    assert not plivo.asked


@pytest.mark.parametrize("config", [{"escalation": "note"}, TRANSFER])
@virtual_time
async def test_without_an_escalation_or_an_account_the_agent_gets_a_note(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]
) -> None:
    world = world_with(monkeypatch, None, {**TRANSFER, **config})
    record = await world.call(keeps_breaking, lambda call: asyncio.sleep(25))
    assert ears(record.heard)[-1].label == BAD  # nothing is said a third time
    assert ears(record.heard)[-1].seconds > 2.5
    assert world.record.of("turn.judged")[-1]["withheld"] == "limit"
    last = world.record.of("intervention.started")[-1]
    assert last["plan"] == "note_only"


@virtual_time
async def test_a_plivo_that_refuses_leaves_the_call_to_the_agent(
    monkeypatch: pytest.MonkeyPatch, plivo: PlivoStandIn
) -> None:
    world = world_with(monkeypatch, plivo, TRANSFER)
    plivo.next_answers.append(Answered(500))

    async def script(agent: AgentCall) -> None:
        await keeps_breaking(agent)
        await agent.wait("mirror.intervention", phase="completed", count=3)
        await asyncio.sleep(1.0)
        await say_turn(agent, "t4", BAD, 1.0, seen=agent.of("mirror.note")[-1]["id"])

    record = await world.call(script, lambda call: asyncio.sleep(35), call_id=CALL_ID)
    assert record.ended_by == "caller"
    assert order(record.heard)[-2:] == [HANDOVER, BAD]
    assert len(plivo.asked) == 1  # it is tried once
    assert "escalation_failed" in world.record.steps()
    (failed,) = [each for each in world.record.of("intervention.ended") if "escalation failed" in each["detail"]]
    assert AUTH_TOKEN not in failed["detail"]


@virtual_time
async def test_a_call_that_plivo_leaves_open_is_closed(monkeypatch: pytest.MonkeyPatch, plivo: PlivoStandIn) -> None:
    world = world_with(monkeypatch, plivo, HANGUP)

    async def stays(method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> PlivoAnswer:
        return PlivoAnswer((await plivo.answer(method, urlsplit(url).path, headers, body)).status)

    world.runtime.plivo.request = stays  # type: ignore[method-assign]

    async def script(agent: AgentCall) -> None:
        await keeps_breaking(agent)
        await agent.wait("mirror.intervention", phase="completed", count=3)
        await agent.speak(tone(GOOD, 5.0))  # of a call that is not the agent's any more

    record = await world.call(script, minute, call_id=CALL_ID)
    assert record.close_code == 1000
    assert GOOD not in order(record.heard)


@virtual_time
async def test_a_caller_who_speaks_is_handed_over_without_words(
    monkeypatch: pytest.MonkeyPatch, plivo: PlivoStandIn
) -> None:
    world = world_with(monkeypatch, plivo, TRANSFER)

    async def speaks(call: SimulatedCall) -> None:
        await call.wait_for(lambda record: len(world.record.of("intervention.ended")) == 2, 60)
        await call.say(CALLER)
        await asyncio.sleep(30)

    record = await world.call(lambda agent: keeps_breaking(agent, 2.0), speaks, call_id=CALL_ID)
    assert HANDOVER not in order(record.heard)
    assert [asked.action for asked in plivo.asked] == ["transfer"]


@virtual_time
async def test_a_call_is_escalated_without_a_voice_too(monkeypatch: pytest.MonkeyPatch, plivo: PlivoStandIn) -> None:
    world = world_with(monkeypatch, plivo, {**HANGUP, "max_interventions_per_call": 0}, speaks=False)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 5.0)

    record = await world.call(script, minute, call_id=CALL_ID)
    assert order(record.heard) == [BAD]
    assert ears(record.heard)[0].seconds < 0.4
    assert [asked.action for asked in plivo.asked] == ["hangup"]


@virtual_time
async def test_shadow_escalates_nothing(monkeypatch: pytest.MonkeyPatch, plivo: PlivoStandIn) -> None:
    world = world_with(monkeypatch, plivo, {**HANGUP, "max_interventions_per_call": 0}, mode="shadow")

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 2.0)

    await world.call(script, lambda call: asyncio.sleep(5), call_id=CALL_ID)
    assert not plivo.asked
    assert world.record.one("turn.judged")["withheld"] == "shadow"


@virtual_time
async def test_a_caller_who_hangs_up_first_is_not_hung_up(monkeypatch: pytest.MonkeyPatch, plivo: PlivoStandIn) -> None:
    world = world_with(monkeypatch, plivo, {**HANGUP, "max_interventions_per_call": 0})

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 5.0)

    async def leaves(call: SimulatedCall) -> None:
        await call.wait_for(lambda record: world.record.of("intervention.started"), 30)
        await asyncio.sleep(0.3)

    await world.call(script, leaves, call_id=CALL_ID)
    assert world.record.one("intervention.ended")["outcome"] == "caller_gone"
    assert not plivo.asked


@pytest.mark.parametrize("answers_after_s", [0.0, 0.4])
@virtual_time
async def test_a_stream_that_plivo_breaks_for_a_transfer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, plivo: PlivoStandIn, answers_after_s: float
) -> None:
    world = world_with(monkeypatch, plivo, TRANSFER)

    async def breaks(method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> PlivoAnswer:
        answered = await plivo.answer(method, urlsplit(url).path, headers, body)
        assert world.simulated is not None
        world.simulated.drop_connection()
        await asyncio.sleep(answers_after_s)
        return PlivoAnswer(answered.status)

    world.runtime.plivo.request = breaks  # type: ignore[method-assign]
    record = await world.call(keeps_breaking, minute, call_id=CALL_ID)
    end = world.record.one("call.ended")
    assert (end["ended_by"], end["outcome"]) == ("mirror", "completed")
    assert "transferred" in end["reason"]
    assert "transferred" in world.record.of("intervention.ended")[-1]["detail"]
    assert world.over_at - (record.ended_t or 0) - 1_000 < 5
