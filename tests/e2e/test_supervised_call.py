"""Supervised calls through a real Mirror: what the caller heard, what the agent was told, what was recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from supervision.plivo.simulator import CallRecord, PlivoSwitches, SimulatedCall
from tests.e2e.agents import AgentCall, agent
from tests.e2e.conftest import MirrorServer, TenancyMaker, recorded
from tests.factories import Tenancy
from tests.standins.llm import LLMStandIn, words
from tests.support.speech import say

pytestmark = pytest.mark.django_db(transaction=True)

BAD = "Sure. I have refunded the money to your card, and it will be there tomorrow morning."
BAD_RULE = {"rule": 1, "reason": 'It says "refunded the money".', "correction": "I cannot refund that myself."}
CORRECTION = "I cannot refund that myself. Shall I connect you with a colleague?"
GOOD = "A colleague of mine will take care of it. May I put you through?"


async def simulate(
    url: str,
    during: Callable[[SimulatedCall], Awaitable[None]],
    switches: PlivoSwitches | None = None,
) -> CallRecord:
    """Place a call; ``during`` is what happens in it, and the caller hangs up when that is over."""

    async def script(call: SimulatedCall) -> None:
        await during(call)
        call.hang_up()

    return await SimulatedCall(url, script, switches or PlivoSwitches(), keep_raw=True).run()


def judge_refunds(llm: LLMStandIn) -> None:
    llm.judge(words({"refunded": BAD_RULE}))
    llm.correct(lambda question: CORRECTION)


@pytest.fixture
async def llm() -> Any:
    async with LLMStandIn() as stand_in:
        judge_refunds(stand_in)
        yield stand_in


@pytest.mark.parametrize(
    ("bad", "cleared"),
    [
        pytest.param(BAD.removeprefix("Sure. "), True, id="from its first word: cleared"),
        # The agent's audio is paced, so behind the innocent word nothing wrong is at Plivo yet.
        pytest.param(BAD, False, id="behind an innocent word: discarded where it waits"),
    ],
)
async def test_a_violating_turn_is_heard_as_silence_buffer_line_and_correction(
    mirror: MirrorServer, new_tenancy: TenancyMaker, llm: LLMStandIn, bad: str, cleared: bool
) -> None:
    speech = say(bad)

    async def script(call: AgentCall) -> None:
        await call.hello()
        await asyncio.sleep(0)
        await call.send("mirror.turn", turn_id="t1", customer_text="Give me my money back.", text=bad)
        await call.speak(speech)
        await call.wait("mirror.intervention", phase="completed")
        await call.send("mirror.turn", turn_id="t2", customer_text="", text=GOOD, seen=call.of("mirror.note")[-1]["id"])
        await call.speak(say(GOOD))
        await call.send("checkpoint", streamId=call.stream_id, name="good-played")

    llm.behave(delay_s=0.2)
    async with agent(script) as made:
        tenancy = await make(new_tenancy, upstream_url=made.url, llm_base_url=llm.base_url)
        record = await simulate(
            tenancy.stream_url(mirror.ws), lambda call: call.wait_for(lambda r: bool(r.played("good-played")), 30)
        )
        rows = await recorded(tenancy)

    (call,) = made.calls
    phases = [event["phase"] for event in call.of("mirror.intervention")]
    assert phases == ["started", "buffer", "correction", "completed"]
    note = call.of("mirror.note")[0]
    assert CORRECTION in note["said"]
    order = [event["event"] for event in call.events if event["event"] in ("mirror.note", "mirror.intervention")]
    assert order.index("mirror.note") < len(order) - 1
    verdict = call.of("mirror.verdict")[0]
    assert (verdict["state"], verdict["intervene"], verdict["acted"], verdict["withheld"]) == (
        "judged",
        True,
        True,
        None,
    )

    heard = record.heard
    # The agent's bad turn was cut within its first second, and nothing of it came back.
    assert heard.find(speech) is None
    assert bool(record.of("clearAudio")) is cleared
    good = heard.find(say(GOOD))
    assert good is not None
    intervention = rows.interventions[0]
    assert intervention.outcome == "completed"
    assert intervention.correction_text == CORRECTION
    assert (intervention.silence_proof in ("cleared", "fence")) is cleared
    assert intervention.heard_ms < 1000
    assert rows.call.coverage_state == "full"
    assert [detail.verdict.state for detail in rows.turns] == ["judged", "judged"]


async def make(new_tenancy: TenancyMaker, **fields: Any) -> Tenancy:
    return await asyncio.to_thread(new_tenancy, **fields)
