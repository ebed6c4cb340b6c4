"""A supervised call: its history, what is withheld, and whose it is."""

import asyncio

import pytest

from supervision.engine import HistoryEntry, JudgingState, MirrorConfig, Supervisor, SupervisorContext, Verdict
from tests.engine.llms import ScriptedLLM, make_call
from tests.support.virtual_time import virtual_time


def violation(rule: str | None = "Never confirm a refund.") -> Verdict:
    return Verdict("t", JudgingState.JUDGED, 0.9, rule, "", "", 0.7, 1)


def test_the_context_has_the_configurations_tenant_unless_it_names_one() -> None:
    supervisor = Supervisor(MirrorConfig(llm=ScriptedLLM(), policies=["A."], tenant_id="tenant-1"))
    assert supervisor.call(SupervisorContext("c")).context == SupervisorContext("c", tenant_id="tenant-1")
    assert supervisor.call(SupervisorContext("c", tenant_id="other")).context.tenant_id == "other"


def test_calls_share_nothing_but_the_policy() -> None:
    supervisor = Supervisor(MirrorConfig(llm=ScriptedLLM(), policies=["A."]))
    one, other = supervisor.call(SupervisorContext("1")), supervisor.call(SupervisorContext("2"))
    one.note_customer("Hello.")
    assert other.history == ()
    assert one.policy is other.policy


def test_the_history_is_what_was_said_in_order() -> None:
    call = make_call(ScriptedLLM())
    call.note_customer(" Hello. ")
    call.note_customer("Hello.")
    call.note_agent("Good morning.")
    call.note_tool("get_order", "shipped")
    call.note_mirror("Let me take that back.")
    call.note_customer("Hello.")
    call.note_agent("   ")
    assert call.history == (
        HistoryEntry("customer", "Hello."),
        HistoryEntry("agent", "Good morning."),
        HistoryEntry("tool", "get_order: shipped"),
        HistoryEntry("mirror", "Let me take that back."),
        HistoryEntry("customer", "Hello."),
    )


def test_w3_the_history_says_what_was_heard() -> None:
    call = make_call(ScriptedLLM())
    call.note_agent("Your refund is confirmed.", turn_id="t1")
    call.note_customer("What?")
    call.note_agent("Your refund is confirmed.", heard="Your refund", turn_id="t1")
    call.note_agent("It will be there tomorrow.", heard="", turn_id="t2")
    call.note_agent("Anything else?", heard=" Anything else? ", turn_id="t3")
    assert [entry.text for entry in call.history] == [
        "Your refund … [cut off here; the rest was not heard]",
        "What?",
        "[cut off before it was heard]",
        "Anything else?",
    ]


def test_history_that_was_taken_does_not_change_afterwards() -> None:
    call = make_call(ScriptedLLM())
    call.note_agent("A.", turn_id="t1")
    before = call.history
    call.note_agent("A.", heard="", turn_id="t1")
    assert before == (HistoryEntry("agent", "A."),)


@virtual_time
async def test_shadow_mode_withholds_everything() -> None:
    assert make_call(ScriptedLLM(), mode="shadow").withheld(violation()) == "shadow"
    assert make_call(ScriptedLLM()).withheld(violation()) is None


@virtual_time
async def test_a_cooldown_withholds_the_same_rule_below_high_severity() -> None:
    policies = [{"text": "Low.", "severity": "low"}, {"text": "High.", "severity": "high"}, "Other."]
    call = make_call(ScriptedLLM(), policies=policies, cooldown_s=10, max_interventions_per_call=9)
    call.note_intervention(violation("Low."))
    call.note_intervention(violation("High."))
    await asyncio.sleep(9.9)
    assert [call.withheld(violation(rule)) for rule in ("Low.", "High.", "Other.", None)] == [
        "cooldown",
        None,
        None,
        None,
    ]
    await asyncio.sleep(0.2)
    assert call.withheld(violation("Low.")) is None


@virtual_time
async def test_a_rule_that_the_judge_did_not_name_has_a_cooldown_too() -> None:
    call = make_call(ScriptedLLM())
    call.note_intervention(violation(None))
    assert call.withheld(violation(None)) == "cooldown"


@pytest.mark.parametrize("limit", [0, 1, 2])
@virtual_time
async def test_after_the_limit_nothing_acts_any_more(limit: int) -> None:
    call = make_call(ScriptedLLM(), cooldown_s=0, max_interventions_per_call=limit)
    for _ in range(limit):
        assert call.withheld(violation()) is None
        call.note_intervention(violation())
    assert call.interventions == limit
    assert call.withheld(violation()) == "limit"
