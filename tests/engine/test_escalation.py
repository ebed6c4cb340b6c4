"""When one more intervention would be one too many, and what a policy may say about it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

from supervision.engine import MirrorConfig
from supervision.engine.intervention.templates import escalation_line, languages
from supervision.engine.llm.protocol import LLMClient
from tests.engine.llms import ScriptedLLM, make_call
from tests.support.virtual_time import virtual_time

BAD = "Sure, I have refunded the money."
GOOD = "Your order has arrived."
XML = "https://example.com/people.xml"


def judged(asked: Any) -> dict[str, Any]:
    bad = "refunded" in asked.user["agent_text"]
    return {"score": 0.9 if bad else 0.0, "rule": "1" if bad else None, "reason": "", "correction": ""}


def config(**fields: Any) -> MirrorConfig:
    llm: LLMClient = ScriptedLLM()  # type: ignore[assignment]
    return MirrorConfig(llm=llm, policies=["Never confirm a refund."], **fields)


@virtual_time
async def test_two_interventions_without_a_clean_turn_between_them_are_enough() -> None:
    call = make_call(ScriptedLLM(turn=judged), cooldown_s=0, max_interventions_per_call=9, tiered_scoring_enabled=False)

    async def turn(text: str) -> bool:
        verdict = await call.review_turn(customer_text="", primary_text=text)
        if verdict.should_intervene and not call.spent:
            call.note_intervention(verdict)
        return call.spent

    assert [await turn(text) for text in (BAD, GOOD, BAD, GOOD, BAD)] == [False] * 5
    assert [await turn(text) for text in (BAD, BAD)] == [True, True]
    assert not await turn(GOOD)  # and a clean turn begins anew
    assert not await turn(BAD)


@virtual_time
async def test_a_turn_that_began_before_an_intervention_does_not_follow_it() -> None:
    llm = ScriptedLLM(turn=judged)
    call = make_call(llm, cooldown_s=0, max_interventions_per_call=9, tiered_scoring_enabled=False)
    bad = await call.review_turn(customer_text="", primary_text=BAD)
    call.note_intervention(bad)
    payload = call.payload(customer_text="", agent_text=GOOD)
    judging = call.judge_turn(payload)

    waiting = asyncio.ensure_future(judging)
    await asyncio.sleep(0)
    call.note_intervention(bad)
    await waiting
    assert call.spent


@virtual_time
async def test_the_limit_of_a_call_spends_it_too() -> None:
    call = make_call(ScriptedLLM(turn=judged), cooldown_s=0, max_interventions_per_call=1, tiered_scoring_enabled=False)
    assert not call.spent
    call.note_intervention(await call.review_turn(customer_text="", primary_text=BAD))
    await call.review_turn(customer_text="", primary_text=GOOD)
    assert call.spent


def test_a_policy_says_what_happens_then() -> None:
    assert config().escalation == "note"
    made = config(escalation="transfer", escalation_url=f" {XML} ", escalation_text="One moment, please.")
    assert (made.escalation_url, made.escalation_text) == (XML, "One moment, please.")
    assert config(escalation="hangup").escalation_url is None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"escalation": "shout"}, "escalation"),
        ({"escalation": None}, "escalation"),
        ({"escalation": "transfer"}, "escalation_url"),
        ({"escalation": "transfer", "escalation_url": ""}, "escalation_url"),
        ({"escalation_url": "ftp://example.com/x"}, "escalation_url"),
        ({"escalation_url": "https://"}, "escalation_url"),
        ({"escalation_url": "https://x.example/" + "x" * 2000}, "escalation_url"),
        ({"escalation_text": " "}, "escalation_text"),
        ({"escalation_text": "x" * 201}, "escalation_text"),
    ],
)
def test_what_is_wrong_with_it_is_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        config(**fields)
    assert {error["loc"][0] for error in caught.value.errors()} == {field}


@pytest.mark.parametrize("language", sorted(languages()))
def test_every_language_has_words_for_it(language: str) -> None:
    for kind in ("transfer", "hangup"):
        assert 3 <= len(escalation_line(kind, language).split()) <= 20  # type: ignore[arg-type]
    assert escalation_line("hangup", language, "Goodbye.") == "Goodbye."


def test_a_language_without_words_has_a_policys_own_only() -> None:
    assert escalation_line("transfer", "tlh") == ""
    assert escalation_line("transfer", "tlh", "Qapla'.") == "Qapla'."
