"""The tool gate: irreversible calls are always judged, fail closed, and run once. T cases have tests of their name."""

import asyncio
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from supervision.engine import JudgingState, Rule, ToolCallIntent, ToolCode, ToolDenied, ToolVerdict, TurnPayload, Usage
from supervision.engine.llm.protocol import LLMUnreachable
from supervision.engine.scorer.tool_gate import ALLOW_VALID_MS, MAX_LEDGER_ENTRIES, MAX_TOOLS_AT_ONCE
from supervision.engine.supervisor import CallSupervisor
from tests.engine.llms import BAD, ScriptedLLM, charge, decisions, look_up, make_call
from tests.support.virtual_time import VirtualTimeLoop, elapsed_s, virtual_time


async def gate(call: CallSupervisor, *intents: ToolCallIntent, **more: Any) -> list[ToolVerdict]:
    return await call.gate_tools(intents, **{"customer_text": "Charge my card.", **more})


async def gate_one(call: CallSupervisor, intent: ToolCallIntent, **more: Any) -> ToolVerdict:
    (verdict,) = await gate(call, intent, **more)
    return verdict


# Judging


@virtual_time
async def test_one_question_decides_about_all_calls_of_a_turn() -> None:
    def judge(asked: Any) -> dict[str, Any]:
        allowed = decisions("l1")["decisions"][0]
        refused = decisions("t1", allow=False, reason='"99" was never agreed.', instruction="Ask for the amount.")
        return {"decisions": [refused["decisions"][0], allowed]}

    llm = ScriptedLLM(tools=judge, delay_s=0.25)
    call = make_call(llm)
    call.note_customer("Hello.")
    verdicts = await gate(call, look_up(), charge(), agent_text="One moment.", turn_id="turn-1")
    assert [(v.id, v.name, v.allow, v.code) for v in verdicts] == [
        ("l1", "get_order", True, ToolCode.OK),
        ("t1", "charge_card", False, ToolCode.POLICY),
    ]
    assert verdicts[1].reason == '"99" was never agreed.'
    assert verdicts[1].instruction == "Ask for the amount."
    assert (verdicts[1].score, verdicts[1].valid_ms, verdicts[1].latency_ms) == (0.9, 0, 250)
    assert (verdicts[0].score, verdicts[0].valid_ms) == (0.0, ALLOW_VALID_MS)
    assert [v.usage for v in verdicts] == [Usage(100, 20, 50), Usage()], "a question is paid for once"
    (asked,) = llm.asked
    assert asked.schema_name == "mirror_tools"
    assert asked.user == {
        "customer_text": "Charge my card.",
        "agent_text": "One moment.",
        "tool_calls": [
            {"id": "l1", "name": "get_order", "args": {"order": "A7"}, "irreversible": False},
            {"id": "t1", "name": "charge_card", "args": {"amount": 99}, "irreversible": True},
        ],
        "history": [{"role": "customer", "text": "Hello."}],
    }


@virtual_time
async def test_a_refusal_without_an_instruction_gets_one() -> None:
    verdict = await gate_one(make_call(ScriptedLLM(tools=decisions("t1", allow=False))), charge())
    assert "do not say that it was done" in verdict.instruction


@virtual_time
async def test_with_the_gate_switched_off_only_irreversible_calls_are_judged() -> None:
    llm = ScriptedLLM()
    call = make_call(llm, tool_gate_enabled=False)
    lookup, charged = await gate(call, look_up(), charge())
    assert (lookup.allow, lookup.code, lookup.state) == (True, ToolCode.OK, JudgingState.SKIPPED)
    assert charged.state is JudgingState.JUDGED
    assert [tool["id"] for tool in llm.asked[0].user["tool_calls"]] == ["t1"]
    await gate(call, look_up("l2"))
    assert len(llm.asked) == 1


@virtual_time
async def test_with_the_gate_switched_off_tools_that_a_rule_names_are_judged_unless_it_is_off() -> None:
    llm = ScriptedLLM()
    rules = [Rule(text="Look up nothing twice.", tools=["Get_Order"]), Rule(text="x", tools=["other"], enabled=False)]
    call = make_call(llm, tool_gate_enabled=False, policies=rules)
    named, other = await gate(call, look_up(), ToolCallIntent("o1", "other", {}))
    assert named.state is JudgingState.JUDGED
    assert other.state is JudgingState.SKIPPED
    assert [tool["id"] for tool in llm.asked[0].user["tool_calls"]] == ["l1"]


@virtual_time
async def test_no_calls_need_no_question() -> None:
    llm = ScriptedLLM()
    assert await gate(make_call(llm)) == []
    assert not llm.asked


@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        "fine",
        {"decisions": {}},
        {"decisions": []},
        {"decisions": [True]},
        decisions("t1", "t1"),
        decisions("t2"),
        decisions("t1", "t2"),
        decisions("t1", score=2),
        decisions("t1", score="low"),
        decisions("t1", allow="yes"),  # type: ignore[arg-type]
        decisions("t1", allow=1),  # type: ignore[arg-type]
        decisions("t1", reason=None),
        decisions("t1", extra=1),
        {"decisions": [{"id": "t1", "allow": True}]},
        {**decisions("t1"), "more": 1},
    ],
)
@virtual_time
async def test_j4_an_answer_that_does_not_cover_the_calls_exactly_blocks_what_is_irreversible(answer: Any) -> None:
    verdict = await gate_one(make_call(ScriptedLLM(tools=answer)), charge())
    assert (verdict.allow, verdict.code, verdict.state) == (False, ToolCode.FAILED, JudgingState.FAILED)
    assert verdict.usage == Usage(100, 20, 50)


# The T cases


@virtual_time
async def test_t1_a_cooldown_does_not_disable_the_gate() -> None:
    llm = ScriptedLLM(turn=BAD, tools=decisions("t1", allow=False))
    call = make_call(llm, cooldown_s=3600, max_interventions_per_call=1)
    verdict = await call.judge_turn(TurnPayload("?", "Your refund is confirmed."))
    call.note_intervention(verdict)
    assert call.withheld(verdict) is not None
    assert (await gate_one(call, charge("t1", 99_999))).allow is False
    assert len(llm.of("mirror_tools")) == 1


@virtual_time
async def test_t1_nor_does_shadow_mode_or_a_clean_turn() -> None:
    llm = ScriptedLLM(tools=decisions("t1", allow=False))
    call = make_call(llm, mode="shadow")
    assert (await call.judge_turn(TurnPayload("?", "Let me see."))).score == 0
    assert (await gate_one(call, charge())).code is ToolCode.POLICY


FAILURES: list[tuple[dict[str, Any], ToolCode, JudgingState]] = [
    ({"delay_s": 60.0}, ToolCode.TIMEOUT, JudgingState.TIMED_OUT),
    ({"tools": LLMUnreachable("gone")}, ToolCode.FAILED, JudgingState.FAILED),
    ({"tools": "not JSON"}, ToolCode.FAILED, JudgingState.FAILED),
    ({"tools": KeyError("x")}, ToolCode.FAILED, JudgingState.FAILED),
]


@pytest.mark.parametrize(("broken", "code", "state"), FAILURES)
@virtual_time
async def test_t2_with_the_judge_down_irreversible_calls_are_blocked_with_an_instruction_and_others_run(
    broken: dict[str, Any], code: ToolCode, state: JudgingState
) -> None:
    charged, lookup = await gate(make_call(ScriptedLLM(**broken)), charge(), look_up())
    assert (charged.allow, charged.code, charged.state, charged.score) == (False, code, state, None)
    assert "did not run" in charged.instruction
    assert charged.reason
    assert (lookup.allow, lookup.code, lookup.state) == (True, code, state)


@pytest.mark.parametrize(("broken", "code", "state"), FAILURES)
@virtual_time
async def test_t2_a_policy_can_choose_otherwise(broken: dict[str, Any], code: ToolCode, state: JudgingState) -> None:
    recorded = []

    async def before_allow(intent: ToolCallIntent) -> None:
        await asyncio.sleep(0.05)
        recorded.append(intent.id)

    call = make_call(ScriptedLLM(**broken), tool_gate_on_failure="allow")
    verdict = await gate_one(call, charge(), before_allow=before_allow)
    assert (verdict.allow, verdict.code, verdict.state) == (True, code, state)
    assert recorded == ["t1"], "what is allowed is written down first, also then"


@virtual_time
async def test_t2_a_call_that_was_blocked_by_a_failure_may_be_asked_for_again() -> None:
    llm = ScriptedLLM(tools=LLMUnreachable("gone"))
    call = make_call(llm)
    assert not (await gate_one(call, charge("t1"))).allow
    llm.tools = lambda asked: decisions(*(t["id"] for t in asked.user["tool_calls"]))
    assert (await gate_one(call, charge("t2"))).allow


@virtual_time
async def test_t3_a_gate_that_failed_does_not_hide_behind_speech_that_passed() -> None:
    llm = ScriptedLLM(tools=LLMUnreachable("gone"))
    call = make_call(llm)
    speech = await call.judge_turn(TurnPayload("?", "One moment.", (charge(),)))
    tool = await gate_one(call, charge(), agent_text="One moment.")
    assert (speech.state, tool.state, tool.code) == (JudgingState.JUDGED, JudgingState.FAILED, ToolCode.FAILED)


@pytest.mark.parametrize(
    ("intent", "listed"),
    [
        (charge(name="Charge_Card"), ("charge_card",)),
        (charge(name="place_order"), ("Place_Order",)),
        (charge(name=" CHARGE_CARD "), ("charge_card",)),
        (charge(name="STRASSE_BUCHEN"), ("straße_buchen",)),
        (charge(name="wire_money", irreversible=True), ()),
    ],
)
@virtual_time
async def test_t4_names_compare_case_folded_and_the_flag_counts(
    intent: ToolCallIntent, listed: tuple[str, ...]
) -> None:
    llm = ScriptedLLM(delay_s=60)
    call = make_call(llm, irreversible_tools=listed, tool_gate_enabled=False)
    assert (await gate_one(call, intent)).code is ToolCode.TIMEOUT
    assert llm.asked[0].user["tool_calls"][0]["irreversible"] is True


@virtual_time
async def test_t5_the_same_charge_twice_in_one_turn_is_allowed_once() -> None:
    llm = ScriptedLLM()
    call = make_call(llm)
    first, second = await gate(call, charge("t1"), charge("t2", 99.0, "Charge_Card"))
    assert (first.allow, second.allow, second.code) == (True, False, ToolCode.IN_DOUBT)
    assert [tool["id"] for tool in llm.asked[0].user["tool_calls"]] == ["t1"]


@virtual_time
async def test_t5_the_second_of_two_equal_calls_in_one_turn_is_refused_with_the_first() -> None:
    call = make_call(ScriptedLLM(tools=decisions("t1", allow=False, reason="No.")))
    first, second = await gate(call, charge("t1"), charge("t2"))
    assert (second.id, second.allow, second.code, second.reason) == ("t2", False, ToolCode.POLICY, "No.")
    assert not first.allow


@virtual_time
async def test_t5_a_charge_that_ran_is_a_duplicate_with_its_result() -> None:
    llm = ScriptedLLM()
    call = make_call(llm)
    await gate(call, charge("t1"), turn_id="turn-1")
    assert call.tool_done("t1", True, {"receipt": 7}) is not None
    for tool_id in ("t2", "t1"):
        verdict = await gate_one(call, charge(tool_id), turn_id="turn-2")
        assert (verdict.allow, verdict.code, verdict.stored_result) == (False, ToolCode.DUPLICATE, {"receipt": 7})
        assert (verdict.state, verdict.valid_ms) == (JudgingState.SKIPPED, 0)
    assert len(llm.asked) == 1


@virtual_time
async def test_t5_a_charge_that_was_allowed_and_not_heard_of_again_is_in_doubt_at_the_deadline() -> None:
    llm = ScriptedLLM()
    call = make_call(llm)
    await gate(call, charge("t1"))
    assert await elapsed_s(gate(call, charge("t2"))) == pytest.approx(3.0)
    verdict = await gate_one(call, charge("t3"), timeout_ms=500)
    assert (verdict.allow, verdict.code, verdict.latency_ms) == (False, ToolCode.IN_DOUBT, 500)
    assert "Do not run it again" in verdict.instruction
    assert len(llm.asked) == 1


@virtual_time
async def test_t5_a_repeat_that_waits_gets_the_result_as_soon_as_it_is_there() -> None:
    call = make_call(ScriptedLLM())
    await gate(call, charge("t1"))
    repeat = asyncio.create_task(gate_one(call, charge("t2")))
    await asyncio.sleep(1)
    call.tool_done("t1", True, "receipt 7")
    verdict = await repeat
    assert (verdict.code, verdict.stored_result, verdict.latency_ms) == (ToolCode.DUPLICATE, "receipt 7", 1000)


@pytest.mark.parametrize(("ok", "cancelled"), [(False, False), (True, True), (False, True)])
@virtual_time
async def test_t5_what_did_not_run_frees_the_key_and_a_waiting_repeat_is_judged(ok: bool, cancelled: bool) -> None:
    llm = ScriptedLLM()
    call = make_call(llm)
    await gate(call, charge("t1"))
    repeat = asyncio.create_task(gate_one(call, charge("t2")))
    await asyncio.sleep(1)
    call.tool_done("t1", ok, "declined", cancelled=cancelled)
    assert (await repeat).code is ToolCode.OK
    assert [asked.user["tool_calls"][0]["id"] for asked in llm.asked] == ["t1", "t2"]
    assert (await gate_one(call, charge("t1"), timeout_ms=100)).code is ToolCode.IN_DOUBT, "t2 is under way now"


@virtual_time
async def test_t5_of_several_waiting_repeats_one_is_judged_and_the_others_go_on_waiting() -> None:
    llm = ScriptedLLM()
    call = make_call(llm)
    await gate(call, charge("t1"))
    repeats = [asyncio.create_task(gate_one(call, charge(f"r{number}"))) for number in range(4)]
    await asyncio.sleep(1)
    call.tool_done("t1", False)
    codes = sorted([(await repeat).code for repeat in repeats])
    assert codes == [ToolCode.IN_DOUBT] * 3 + [ToolCode.OK]


@virtual_time
async def test_t5_two_wanted_orders_differ_in_their_key() -> None:
    call = make_call(ScriptedLLM())
    keys = {"t1": "first", "t2": "second"}
    verdicts = await gate(call, charge("t1"), charge("t2"), keys=keys)
    assert [verdict.allow for verdict in verdicts] == [True, True]
    call.tool_done("t1", True, 1)
    assert (await gate_one(call, charge("t3"), keys={"t3": "first"})).code is ToolCode.DUPLICATE
    assert (await gate_one(call, charge("t4"), keys={"t4": "third"})).code is ToolCode.OK


@virtual_time
async def test_t5_reversible_calls_repeat_as_often_as_they_like() -> None:
    call = make_call(ScriptedLLM())
    for number in range(3):
        assert (await gate_one(call, look_up(f"l{number}"))).code is ToolCode.OK
        call.tool_done(f"l{number}", True, "shipped")


@virtual_time
async def test_t5_a_full_ledger_blocks_rather_than_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supervision.engine.scorer.tool_gate.MAX_LEDGER_ENTRIES", 3)
    call = make_call(ScriptedLLM(), tool_gate_on_failure="allow")
    for number in range(3):
        assert (await gate_one(call, charge(f"t{number}", number))).allow
        call.tool_done(f"t{number}", True)
    verdict = await gate_one(call, charge("more", 1000))
    assert (verdict.allow, verdict.code) == (False, ToolCode.FAILED)
    assert str(MAX_LEDGER_ENTRIES) in verdict.reason
    assert (await gate_one(call, charge("again", 1))).code is ToolCode.DUPLICATE


@virtual_time
async def test_t5_a_repeat_that_waited_for_a_full_ledger_is_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supervision.engine.scorer.tool_gate.MAX_LEDGER_ENTRIES", 1)
    call = make_call(ScriptedLLM())
    await gate(call, charge("t1"))
    repeat = asyncio.create_task(gate_one(call, charge("t2")))
    await asyncio.sleep(1)
    call.tool_done("t1", False)
    other = asyncio.create_task(gate_one(call, charge("t3", 5)))
    codes = {(await repeat).code, (await other).code}
    assert codes == {ToolCode.OK, ToolCode.FAILED}


@virtual_time
async def test_j14_decisions_are_forgotten_but_not_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supervision.engine.scorer.tool_gate.MAX_DECISIONS", 5)
    call = make_call(ScriptedLLM())
    await gate(call, charge("t1"))
    call.tool_done("t1", True, "receipt")
    for number in range(20):
        await gate(call, look_up(f"l{number}"))
    assert len(call._gate._decisions) == 5
    assert call.tool_done("l0", True) is None
    verdict = await gate_one(call, charge("t1"))
    assert (verdict.code, verdict.stored_result) == (ToolCode.DUPLICATE, "receipt")


@pytest.mark.parametrize(
    ("intent", "says"),
    [
        (ToolCallIntent("t1", "charge_card", None, error="Expecting value: line 1"), "Expecting value: line 1"),
        (ToolCallIntent("t1", "charge_card", {}, error="Extra data"), "Extra data"),
        (ToolCallIntent("t1", "charge_card", None), "not a JSON object"),
        (ToolCallIntent("t1", "charge_card", ["x"]), "not a JSON object"),  # type: ignore[arg-type]
        (ToolCallIntent("t1", "charge_card", {"x": float("nan")}), "not JSON"),
        (ToolCallIntent("t1", "charge_card", {"x": object()}), "not JSON"),
        (ToolCallIntent("t1", "charge_card", {"x": "y" * 40_000}), "32000 characters"),
        (ToolCallIntent("t1", "get_order", None, error="Expecting value"), "Expecting value"),
        (ToolCallIntent("t1", "  ", {}), "name is blank"),
        (ToolCallIntent("t1", "x" * 1_000, {}), "200 characters"),
    ],
)
@virtual_time
async def test_t6_malformed_arguments_are_blocked_with_the_parsers_message(intent: ToolCallIntent, says: str) -> None:
    llm = ScriptedLLM()
    verdict = await gate_one(make_call(llm, tool_gate_on_failure="allow"), intent)
    assert (verdict.allow, verdict.code) == (False, ToolCode.BAD_ARGS)
    assert says in verdict.reason
    assert "did not run" in verdict.instruction
    assert not llm.asked


@virtual_time
async def test_t6_one_malformed_call_does_not_hold_up_the_others() -> None:
    bad = ToolCallIntent("t0", "charge_card", None, error="Expecting value")
    first, second, third = await gate(make_call(ScriptedLLM()), bad, charge("t1"), charge("t1", 5))
    assert (first.code, second.code) == (ToolCode.BAD_ARGS, ToolCode.OK)
    assert (third.code, third.reason) == (ToolCode.BAD_ARGS, "another tool call of this turn has the same id")


@virtual_time
async def test_a_turn_with_very_many_calls_is_judged_up_to_a_limit() -> None:
    llm = ScriptedLLM()
    verdicts = await gate(make_call(llm), *(look_up(f"l{number}", str(number)) for number in range(100)))
    assert [v.allow for v in verdicts] == [True] * MAX_TOOLS_AT_ONCE + [False] * (100 - MAX_TOOLS_AT_ONCE)
    assert len(llm.asked) == 1
    assert llm.asked[0].max_tokens > 5_000, "a longer answer is allowed for"


# Deadlines


@pytest.mark.parametrize(("timeout_ms", "seconds"), [(None, 3.0), (500, 0.5), (60_000, 3.0), (0, 0.0), (-5, 0.0)])
@virtual_time
async def test_the_deadline_is_the_shorter_of_the_agents_and_the_policys(
    timeout_ms: int | None, seconds: float
) -> None:
    call = make_call(ScriptedLLM(delay_s=60))
    assert await elapsed_s(gate(call, charge(), timeout_ms=timeout_ms)) == pytest.approx(seconds)


@virtual_time
async def test_each_verdict_is_told_when_it_is_known() -> None:
    call = make_call(ScriptedLLM(delay_s=0.2))
    await gate(call, charge("t1"))
    loop, told = asyncio.get_running_loop(), []
    started = loop.time()
    await gate(call, charge("t2"), charge("t3", 5), on_verdict=lambda v: told.append((v.id, loop.time() - started)))
    assert [name for name, _ in told] == ["t3", "t2"]
    assert [at for _, at in told] == pytest.approx([0.2, 3.0])


# The record of an allow


@virtual_time
async def test_an_irreversible_allow_waits_for_its_record_and_nothing_else_does() -> None:
    order: list[str] = []

    async def before_allow(intent: ToolCallIntent) -> None:
        await asyncio.sleep(0.05)
        order.append(f"recorded {intent.id}")

    tools = {"decisions": [*decisions("t1", "l1")["decisions"], *decisions("t2", allow=False)["decisions"]]}
    call = make_call(ScriptedLLM(tools=tools))
    verdicts = await gate(
        call,
        charge("t1"),
        charge("t2", 5),
        look_up(),
        before_allow=before_allow,
        on_verdict=lambda verdict: order.append(f"told {verdict.id}"),
    )
    assert order == ["recorded t1", "told t1", "told t2", "told l1"]
    assert verdicts[0].latency_ms == 50


@pytest.mark.parametrize(("on_failure", "allow"), [("block", False), ("allow", True)])
@virtual_time
async def test_a_record_that_fails_is_a_failure_of_the_gate(on_failure: str, allow: bool) -> None:
    async def before_allow(_intent: ToolCallIntent) -> None:
        raise OSError("disk full")

    call = make_call(ScriptedLLM(), tool_gate_on_failure=on_failure)
    verdict = await gate_one(call, charge(), before_allow=before_allow)
    assert (verdict.allow, verdict.code, verdict.state) == (allow, ToolCode.FAILED, JudgingState.JUDGED)
    assert "could not be recorded" in verdict.reason
    assert (await gate_one(call, charge("t2"), timeout_ms=100)).code is (ToolCode.IN_DOUBT if allow else ToolCode.OK), (
        "the key is free again exactly when the call was blocked"
    )


@virtual_time
async def test_a_record_that_is_not_made_in_time_is_a_timeout_and_frees_the_key() -> None:
    async def before_allow(_intent: ToolCallIntent) -> None:
        await asyncio.sleep(60)

    call = make_call(ScriptedLLM(delay_s=0.1))
    assert await elapsed_s(gate(call, charge(), before_allow=before_allow)) == pytest.approx(3.0)
    verdict = await gate_one(call, charge("t2"), before_allow=before_allow, timeout_ms=1000)
    assert (verdict.allow, verdict.code, verdict.latency_ms) == (False, ToolCode.TIMEOUT, 1000)
    assert "recorded in time" in verdict.reason


@virtual_time
async def test_an_answer_at_the_last_moment_can_still_be_recorded() -> None:
    async def before_allow(_intent: ToolCallIntent) -> None:
        await asyncio.sleep(0.09)

    call = make_call(ScriptedLLM(delay_s=2.89))
    assert (await gate_one(call, charge(), before_allow=before_allow)).allow
    assert not (await gate_one(make_call(ScriptedLLM(delay_s=2.95)), charge(), before_allow=before_allow)).allow
    assert (
        await gate_one(make_call(ScriptedLLM(delay_s=2.95)), look_up(), before_allow=before_allow)
    ).code is ToolCode.OK


@pytest.mark.parametrize("code", [ToolCode.DENIED, ToolCode.CANCELLED])
@virtual_time
async def test_somebody_else_may_refuse_what_the_judge_allowed(code: ToolCode) -> None:
    async def before_allow(_intent: ToolCallIntent) -> None:
        raise ToolDenied("the turn is being corrected", "Wait for the note.", code=code)

    call = make_call(ScriptedLLM(), tool_gate_on_failure="allow")
    verdict = await gate_one(call, charge(), before_allow=before_allow)
    assert (verdict.allow, verdict.code, verdict.reason) == (False, code, "the turn is being corrected")
    assert (verdict.instruction, verdict.valid_ms) == ("Wait for the note.", 0)
    assert (await gate_one(call, charge("t2"))).allow, "the key is free again"


# Asking again


@virtual_time
async def test_the_same_call_asking_again_gets_the_same_answer_for_one_question() -> None:
    llm = ScriptedLLM()
    call = make_call(llm)
    first = await gate_one(call, charge("t1"), turn_id="turn-1")
    again = await gate_one(call, charge("t1"))
    assert (again.allow, again.code, again.valid_ms) == (True, ToolCode.OK, first.valid_ms)
    assert again.usage == Usage()
    assert len(llm.asked) == 1


@virtual_time
async def test_a_call_that_asks_while_it_is_being_judged_shares_the_answer() -> None:
    llm = ScriptedLLM(delay_s=1, tools=decisions("t1", "l1", allow=False, reason="No."))
    call = make_call(llm)
    in_turn = asyncio.create_task(gate(call, charge("t1"), look_up(), turn_id="turn-1"))
    await asyncio.sleep(0.4)
    alone = await gate(call, look_up(), charge("t1"), turn_id="turn-1")
    assert [(v.id, v.code, v.latency_ms) for v in alone] == [("l1", ToolCode.POLICY, 600), ("t1", ToolCode.POLICY, 600)]
    await in_turn
    assert len(llm.asked) == 1


@virtual_time
async def test_a_call_that_asks_again_with_less_time_gets_its_answer_in_that_time() -> None:
    call = make_call(ScriptedLLM(delay_s=2))
    first = asyncio.create_task(gate_one(call, charge("t1")))
    await asyncio.sleep(0.5)
    again = await gate_one(call, charge("t1"), timeout_ms=200)
    assert (again.allow, again.code, again.latency_ms) == (False, ToolCode.TIMEOUT, 200)
    assert (await first).allow


@virtual_time
async def test_a_call_that_was_refused_may_be_judged_anew_in_another_turn() -> None:
    llm = ScriptedLLM(tools=decisions("t1", allow=False))
    call = make_call(llm)
    assert not (await gate_one(call, charge("t1"), turn_id="turn-1")).allow
    llm.tools = decisions("t1")
    assert not (await gate_one(call, charge("t1"), turn_id="turn-1")).allow
    assert (await gate_one(call, charge("t1"), turn_id="turn-2")).allow
    assert len(llm.asked) == 2


@virtual_time
async def test_other_arguments_under_the_same_id_are_another_call() -> None:
    llm = ScriptedLLM()
    call = make_call(llm)
    await gate_one(call, charge("t1", 5))
    await gate_one(call, charge("t1", 6))
    assert len(llm.asked) == 2


@virtual_time
async def test_a_call_that_is_flagged_irreversible_only_the_second_time_is_judged_as_such() -> None:
    llm = ScriptedLLM()
    call = make_call(llm)
    plain = ToolCallIntent("t1", "wire", {"amount": 1})
    assert (await gate_one(call, plain)).allow
    llm.tools = decisions("t1", allow=False)
    assert not (await gate_one(call, ToolCallIntent("t1", "wire", {"amount": 1}, irreversible=True))).allow


# The end of a call


@virtual_time
async def test_cancelling_frees_what_was_not_allowed_yet() -> None:
    llm = ScriptedLLM(delay_s=60)
    call = make_call(llm)
    asking = asyncio.create_task(gate(call, charge("t1")))
    echo = asyncio.create_task(gate_one(call, charge("t1")))
    await asyncio.sleep(1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (await echo).code is ToolCode.CANCELLED
    llm.delay_s = 0
    assert (await gate_one(call, charge("t2"))).allow


@virtual_time
async def test_tool_done_knows_what_it_was_told() -> None:
    call = make_call(
        ScriptedLLM(tools=lambda asked: decisions(*(t["id"] for t in asked.user["tool_calls"]), allow=False))
    )
    assert call.tool_done("nobody", True) is None
    await gate(call, charge("t1"))
    done = call.tool_done("t1", True, "charged")
    assert done is not None
    assert (done.refused, done.again, done.irreversible, done.intent.name) == (True, False, True, "charge_card")
    assert call.history[-1].text == 'charge_card {"amount": 99} ran although it was blocked: charged'
    again = call.tool_done("t1", True, "charged")
    assert again is not None
    assert again.again
    assert (await gate_one(call, charge("t2"))).code is ToolCode.DUPLICATE, "what ran must not run again"


@virtual_time
async def test_the_failure_of_a_refused_repeat_does_not_free_what_is_under_way() -> None:
    call = make_call(ScriptedLLM())
    await gate(call, charge("t1"))
    assert (await gate_one(call, charge("t2"), timeout_ms=100)).code is ToolCode.IN_DOUBT
    call.tool_done("t2", False)
    assert (await gate_one(call, charge("t3"), timeout_ms=100)).code is ToolCode.IN_DOUBT
    call.tool_done("t1", False)
    assert (await gate_one(call, charge("t4"))).code is ToolCode.OK


@virtual_time
async def test_a_result_too_large_to_keep_is_remembered_as_having_happened() -> None:
    call = make_call(ScriptedLLM())
    for number, result in enumerate(["x" * 100_000, object(), {"x": float}]):
        await gate(call, charge(f"t{number}", number))
        call.tool_done(f"t{number}", True, result)
        verdict = await gate_one(call, charge(f"again{number}", number))
        assert (verdict.code, verdict.stored_result) == (ToolCode.DUPLICATE, None)


@virtual_time
async def test_the_history_tells_what_became_of_each_tool() -> None:
    def judge(asked: Any) -> dict[str, Any]:
        ids = [tool["id"] for tool in asked.user["tool_calls"]]
        return {"decisions": [decisions(i, allow=i != "no", reason="Too much.")["decisions"][0] for i in ids]}

    call = make_call(ScriptedLLM(tools=judge))
    await gate(call, charge("ok", 1), charge("bad", 2), charge("gone", 3), charge("open", 4), charge("no", 5))
    call.tool_done("ok", True, {"receipt": 7})
    call.tool_done("bad", False, "card declined")
    call.tool_done("gone", False, cancelled=True)
    assert [entry.text.partition("} ")[2] for entry in call.history] == [
        'ran: {"receipt": 7}',
        "failed: card declined",
        "was cancelled, it did not run",
        "was allowed to run, no result yet",
        "was blocked, it did not run: Too much.",
    ]
    assert {entry.role for entry in call.history} == {"tool"}
    await gate(call, charge("ok", 1))
    assert call.history[0].text.endswith('ran: {"receipt": 7}')


@virtual_time
async def test_an_id_that_is_used_again_does_not_rewrite_the_past() -> None:
    call = make_call(ScriptedLLM())
    for number in range(3):
        await gate(call, look_up("call_0", f"A{number}"), turn_id=f"turn-{number}")
        call.tool_done("call_0", True, f"state {number}")
    assert [entry.text[-7:] for entry in call.history] == ["state 0", "state 1", "state 2"]


@virtual_time
async def test_an_engine_that_breaks_blocks_what_is_irreversible(monkeypatch: pytest.MonkeyPatch) -> None:
    call = make_call(ScriptedLLM())

    async def broken(*_args: Any, **_kwargs: Any) -> list[ToolVerdict]:
        raise ZeroDivisionError

    monkeypatch.setattr(call._gate, "decide", broken)
    charged, lookup, bad = await gate(call, charge(), look_up(), ToolCallIntent("b", "get_order", None, error="x"))
    assert (charged.allow, lookup.allow, bad.allow) == (False, True, False)
    assert charged.code is ToolCode.FAILED
    assert "ZeroDivisionError" in charged.reason


class LedgerMachine(RuleBasedStateMachine):
    """Whatever agents ask, report and repeat: one irreversible call is never allowed while it may still run or ran."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=VirtualTimeLoop)
        self.llm = ScriptedLLM()
        self.call = make_call(self.llm)
        self.count = 0
        self.open: dict[int, str] = {}
        self.ran: set[int] = set()

    @rule(
        amounts=st.lists(st.integers(0, 2), min_size=1, max_size=3),
        verdict=st.sampled_from(["allow", "refuse", "fail"]),
    )
    def ask(self, amounts: list[int], verdict: str) -> None:
        if verdict == "fail":
            self.llm.tools = LLMUnreachable("gone")
        else:
            self.llm.tools = lambda asked: decisions(
                *(tool["id"] for tool in asked.user["tool_calls"]), allow=verdict == "allow"
            )
        intents = []
        for amount in amounts:
            self.count += 1
            intents.append(charge(f"t{self.count}", amount))
        for intent, decided in zip(intents, self.runner.run(gate(self.call, *intents)), strict=True):
            assert intent.args is not None
            amount = intent.args["amount"]
            if decided.allow:
                assert amount not in self.open
                assert amount not in self.ran
                self.open[amount] = intent.id
            elif amount in self.ran:
                assert decided.code is ToolCode.DUPLICATE
                assert decided.stored_result == amount
            elif amount in self.open:
                assert decided.code is ToolCode.IN_DOUBT

    @rule(amount=st.integers(0, 2), how=st.sampled_from(["ran", "failed", "cancelled"]))
    def report(self, amount: int, how: str) -> None:
        tool_id = self.open.pop(amount, None)
        if tool_id is not None:
            self.call.tool_done(tool_id, how == "ran", amount, cancelled=how == "cancelled")
            if how == "ran":
                self.ran.add(amount)

    def teardown(self) -> None:
        self.runner.close()

    @invariant()
    def the_ledger_holds_exactly_what_is_open_or_ran(self) -> None:
        assert len(self.call._gate.ledger) == len(self.open) + len(self.ran)


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)
