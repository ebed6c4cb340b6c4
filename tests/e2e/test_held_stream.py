"""A turn told piece by piece under a policy that holds turns, through a real Mirror and with real speech."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from tests.e2e.agents import AgentCall, agent
from tests.e2e.conftest import MirrorServer, TenancyMaker, recorded
from tests.e2e.test_supervised_call import BAD_RULE, CORRECTION, judge_refunds, make, simulate
from tests.standins.llm import LLMStandIn
from tests.support.speech import say, true_words

pytestmark = pytest.mark.django_db(transaction=True)

INNOCENT = "Thank you, let me look at that for you."
TEXT = f"{INNOCENT} Sure, I have refunded the money to your card."


@pytest.fixture
async def llm() -> Any:
    async with LLMStandIn() as stand_in:
        judge_refunds(stand_in)
        yield stand_in


async def test_a_wrong_clause_is_never_heard_and_the_one_before_it_to_its_last_word(
    mirror: MirrorServer, new_tenancy: TenancyMaker, llm: LLMStandIn
) -> None:
    begun = asyncio.Event()

    async def script(call: AgentCall) -> None:
        await call.hello()
        words = re.findall(r"\S+\s*", TEXT)
        await call.speak(say(TEXT))  # ahead of its words: it waits for them
        for number, word in enumerate(words):
            await call.send("mirror.delta", turn_id="t1", text=word, customer_text="Give me my money back.")
            if number == len(INNOCENT.split()):
                # The first sentence has ended; what comes after it is generated when that is heard.
                await begun.wait()
        await call.send("mirror.delta", turn_id="t1", final=True)
        await call.wait("mirror.intervention", phase="completed")
        await call.send("checkpoint", streamId=call.stream_id, name="over")
        await call.wait("playedStream", name="over")

    llm.behave(delay_s=0.2)
    async with agent(script) as made:
        config = {"delivery": "hold_all", "hold_budget_ms": 5_000, "tiered_scoring_enabled": False}
        tenancy = await make(new_tenancy, upstream_url=made.url, llm_base_url=llm.base_url, config=config)

        async def until_over(call: Any) -> None:
            await call.wait_for(lambda r: bool(r.play_received_at), 30)
            begun.set()
            await call.wait_for(lambda r: bool(made.calls) and bool(made.calls[0].of("playedStream")), 30)

        record = await simulate(tenancy.stream_url(mirror.ws), until_over)
        rows = await recorded(tenancy)

    assert not record.of("clearAudio")
    intervention = rows.interventions[0]
    assert (intervention.outcome, intervention.plan, intervention.correction_text) == (
        "completed",
        "replace_held",
        CORRECTION,
    )
    # The caller heard the first sentence to its end, by the durations that the voice itself decided on.
    words = true_words(TEXT)
    ends_ms = words[len(INNOCENT.split()) - 1].end_ms
    begins_ms = words[len(INNOCENT.split())].start_ms
    assert ends_ms - 20 <= intervention.heard_ms <= begins_ms + 20
    assert intervention.violation_heard_ms == 0
    (detail,) = rows.turns
    assert detail.turn.text == TEXT
    assert detail.verdict.rule == BAD_RULE["rule"] or detail.verdict.intervene
    assert rows.call.delivery == "hold_all"
    kinds = [event.kind for event in rows.timeline]
    assert [kinds.count(kind) for kind in ("turn.reported", "turn.completed", "turn.held", "turn.heard")] == [1] * 4
