"""Tools that a person has to approve, in the library: who is asked, when, and what silence means."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from supervision.engine import Approval, ApprovalRequest, MirrorConfig, Supervisor, SupervisorContext, ToolVerdict
from supervision.engine.approval import HOLD_AFTER_SILENCE_S, HOLD_EVERY_S, HoldRhythm
from supervision.engine.supervisor import CallSupervisor
from tests.engine.llms import ScriptedLLM, charge, decisions, look_up
from tests.support.virtual_time import virtual_time


class Person:
    """Answers after `delay_s`, or never; remembers what it was asked."""

    def __init__(self, answer: Approval | Exception | None, delay_s: float = 0.0) -> None:
        self.answer, self.delay_s = answer, delay_s
        self.asked: list[ApprovalRequest] = []

    async def __call__(self, request: ApprovalRequest) -> Approval | None:
        self.asked.append(request)
        await asyncio.sleep(self.delay_s)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def call_with(person: Person | None, llm: ScriptedLLM | None = None, **config: Any) -> CallSupervisor:
    made = MirrorConfig(
        llm=llm or ScriptedLLM(), policies=["Be kind."], **{"approval_tools": ["Charge_Card"], **config}
    )
    return Supervisor(made, approver=person).call(SupervisorContext(call_id="c-1"))


async def gated(call: CallSupervisor, *tools: Any, **more: Any) -> list[ToolVerdict]:
    return await call.gate_tools(tools, customer_text="Charge me.", **more)


@virtual_time
async def test_a_person_is_asked_about_what_the_judge_lets_pass_and_about_nothing_else() -> None:
    person = Person(Approval(approve=True, note="Spoke to her.", by="alice"), delay_s=20.0)
    call = call_with(person)
    told: list[str] = []
    asked = asyncio.create_task(gated(call, charge(), look_up(), on_verdict=lambda verdict: told.append(verdict.id)))
    await asyncio.sleep(1.0)
    assert told == ["l1"]  # whose verdict waits for nobody
    charged, looked_up = await asked
    assert (charged.allow, charged.reason, charged.latency_ms) == (True, "approved by alice: Spoke to her.", 20_000)
    assert looked_up.allow
    assert told == ["l1", "t1"]
    (request,) = person.asked
    assert (request.intent.id, request.context.call_id, request.within_s) == ("t1", "c-1", pytest.approx(60))
    (again,) = await gated(call, charge())
    assert again.allow
    assert len(person.asked) == 1


@virtual_time
async def test_what_the_judge_refuses_is_nobodys_work() -> None:
    person = Person(Approval(approve=True))
    llm = ScriptedLLM(tools=lambda asked: decisions("t1", allow=False, reason="Too much."))
    (verdict,) = await gated(call_with(person, llm), charge())
    assert (verdict.allow, verdict.code, person.asked) == (False, "policy", [])


@virtual_time
async def test_a_denial_tells_the_agent_why_and_leaves_the_call_to_be_asked_again() -> None:
    person = Person(Approval(approve=False, note="Not on this card."))
    call = call_with(person)
    (verdict,) = await gated(call, charge())
    assert (verdict.allow, verdict.code, verdict.valid_ms) == (False, "denied", 0)
    assert verdict.reason == "a person denied it: Not on this card."
    assert verdict.instruction
    person.answer = Approval(approve=True)
    (verdict,) = await gated(call, charge("t2"))
    assert verdict.allow


@pytest.mark.parametrize("on_silence", ["deny", "allow"])
@pytest.mark.parametrize("answer", [None, Approval(approve=True)], ids=["nobody", "too late"])
@virtual_time
async def test_silence_decides_as_the_policy_says(on_silence: str, answer: Approval | None) -> None:
    person = Person(answer, delay_s=0.0 if answer is None else 90.0)
    call = call_with(person, approval_on_silence=on_silence, approval_timeout_ms=30_000)
    (verdict,) = await gated(call, charge())
    assert verdict.allow is (on_silence == "allow")
    assert verdict.latency_ms == (0 if answer is None else 30_000)
    if on_silence == "deny":
        assert (verdict.code, verdict.reason) == ("timeout", "nobody approved it in time")


@virtual_time
async def test_an_agent_that_waits_for_less_is_answered_by_then() -> None:
    (verdict,) = await gated(call_with(Person(Approval(approve=True), 9.0)), charge(), timeout_ms=5_000)
    assert (verdict.allow, verdict.code, verdict.latency_ms) == (False, "timeout", 5_000)


@virtual_time
async def test_where_nobody_can_be_asked_the_tool_does_not_run() -> None:
    (nobody,) = await gated(call_with(None), charge())
    assert (nobody.allow, nobody.code) == (False, "denied")
    (broken,) = await gated(call_with(Person(RuntimeError("secret words"))), charge())
    assert (broken.allow, broken.code) == (False, "failed")
    assert "secret" not in broken.reason


@virtual_time
async def test_a_tool_that_is_not_gated_waits_for_its_person_all_the_same() -> None:
    person = Person(Approval(approve=False))
    call = call_with(person, approval_tools=["get_order"], tool_gate_enabled=False)
    (verdict,) = await gated(call, look_up())
    assert (verdict.allow, len(person.asked)) == (False, 1)


def test_a_hold_line_interrupts_nobody_and_comes_every_eight_seconds_at_most() -> None:
    rhythm = HoldRhythm()
    assert rhythm.due_in(100.0, quiet_since=None) == pytest.approx(HOLD_AFTER_SILENCE_S)  # somebody speaks: look again
    assert rhythm.due_in(100.0, quiet_since=99.8) == pytest.approx(HOLD_AFTER_SILENCE_S - 0.2)
    assert rhythm.due_in(100.0, quiet_since=90.0) == 0.0
    rhythm.said(100.0)
    assert rhythm.due_in(103.0, quiet_since=101.0) == pytest.approx(HOLD_EVERY_S - 3.0)
    assert rhythm.due_in(108.0, quiet_since=107.9) == pytest.approx(HOLD_AFTER_SILENCE_S - 0.1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("approval_tools", "charge_card"),
        ("approval_tools", [" "]),
        ("approval_timeout_ms", 10),
        ("approval_timeout_ms", "60000"),
        ("approval_on_silence", "ask"),
        ("approval_hold_text", " "),
        ("approval_hold_text", "x" * 81),
    ],
)
def test_a_wrong_setting_is_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        MirrorConfig(llm=ScriptedLLM(), policies=["Be kind."], **{field: value})
