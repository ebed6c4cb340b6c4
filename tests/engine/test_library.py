"""A call as a library's user sees it: turns, streams and tool calls reviewed, and what is remembered of them."""

import asyncio
import gc
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from supervision.engine import (
    HistoryEntry,
    JudgingState,
    MirrorConfig,
    Supervisor,
    SupervisorContext,
    ToolCallIntent,
    ToolCode,
    TurnPayload,
    Verdict,
)
from supervision.engine.supervisor import CallSupervisor
from tests.engine.llms import BAD, CLEAN, Asked, ScriptedLLM, charge, decisions, look_up, make_call
from tests.support.virtual_time import virtual_time

GOOD_WORDS = "Let me look that up for you."
BAD_WORDS = "No problem, your refund is confirmed."


def by_words(asked: Asked) -> dict[str, Any]:
    return BAD if "refund is confirmed" in asked.user["agent_text"] else CLEAN


def judging(**answers: Any) -> ScriptedLLM:
    return ScriptedLLM(**{"turn": by_words, **answers})


def now() -> float:
    return asyncio.get_running_loop().time()


# Payloads and tool calls


def test_a_payload_takes_the_agents_words_under_either_name_and_once() -> None:
    payload = TurnPayload("Hi.", primary_text="Hello.")
    assert (payload.agent_text, payload.primary_text) == ("Hello.", "Hello.")
    assert payload == TurnPayload(customer_text="Hi.", agent_text="Hello.")
    given: list[dict[str, Any]] = [{}, {"agent_text": "a", "primary_text": "b"}]
    for both_or_none in given:
        with pytest.raises(TypeError, match="agent_text or as primary_text"):
            TurnPayload("Hi.", **both_or_none)


class _SdkFunction:
    name = "charge_card"
    arguments = '{"amount": 5}'


class _SdkCall:
    id = "c9"
    function = _SdkFunction()


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"name": "f", "args": {"a": 1}}, ToolCallIntent("", "f", {"a": 1})),
        ({"name": "f", "arguments": '{"a": 1}', "id": 7}, ToolCallIntent("7", "f", {"a": 1})),
        ({"name": "f"}, ToolCallIntent("", "f", {})),
        ({"name": "f", "irreversible": True}, ToolCallIntent("", "f", {}, irreversible=True)),
        ({"id": "x", "function": {"name": "f", "arguments": "{}"}}, ToolCallIntent("x", "f", {})),
        (_SdkCall(), ToolCallIntent("c9", "charge_card", {"amount": 5})),
        (charge(), charge()),
    ],
)
def test_tool_calls_are_read_as_agents_have_them(given: Any, read: ToolCallIntent) -> None:
    assert ToolCallIntent.of(given) == read


@pytest.mark.parametrize(
    ("arguments", "says"),
    [("{bad", "property name"), ("", "Expecting value"), ("[1]", "an array"), (None, "null"), (b"\xff", "utf")],
)
def test_t6_arguments_that_cannot_be_read_are_kept_as_an_error(arguments: Any, says: str) -> None:
    intent = ToolCallIntent.of({"function": {"name": "f", "arguments": arguments}})
    assert intent.args is None
    assert says in (intent.error or "")


@pytest.mark.parametrize("given", [7, "charge_card", object()])
def test_what_is_no_tool_call_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match="tool_calls"):
        ToolCallIntent.of(given)


@virtual_time
async def test_tool_calls_in_no_list_are_refused_and_nameless_ones_blocked() -> None:
    call = make_call(ScriptedLLM())
    with pytest.raises(TypeError, match="tool_calls: give a list"):
        await call.review_turn(customer_text="", primary_text="", tool_calls={"name": "f"})  # type: ignore[dict-item]
    verdict = await call.gate_tool_call(customer_text="", intents=[{"args": {}}])
    assert verdict.tools[0].code is ToolCode.BAD_ARGS


@virtual_time
async def test_tool_calls_without_an_id_are_numbered_apart() -> None:
    call = make_call(ScriptedLLM())
    verdict = await call.gate_tool_call(
        customer_text="", intents=[ToolCallIntent(name="get_order", args={}), ToolCallIntent(name="get_order", args={})]
    )
    assert [tool.allow for tool in verdict.tools] == [True, True]
    assert len({tool.id for tool in verdict.tools}) == 2


# Detection only


@virtual_time
async def test_review_judges_words_and_tools_of_no_call() -> None:
    llm = judging(tools=lambda asked: decisions("t1", allow=False, reason="Nobody agreed.", instruction="Ask first."))
    supervisor = Supervisor(MirrorConfig(llm=llm, policies=["Never confirm a refund."], tiered_scoring_enabled=False))
    clean = await supervisor.review(customer_text="Hi.", primary_text="Hello.", turn_id="t")
    assert (clean.state, clean.should_intervene, clean.turn_id) == (JudgingState.JUDGED, False, "t")
    bad = await supervisor.review(customer_text="Hi.", primary_text=BAD_WORDS)
    assert bad.should_intervene
    assert bad.violates
    tool = await supervisor.review(
        customer_text="Hi.",
        primary_text="Hello.",
        tool_calls=[{"id": "t1", "name": "charge_card", "args": {"amount": 1}}],
        history=[HistoryEntry("agent", "Yes?"), {"role": "user", "content": "A card."}],
    )
    assert tool.should_intervene
    assert not tool.violates
    assert (tool.reason, tool.correction) == ("Nobody agreed.", "Ask first.")
    assert llm.asked[-1].user["history"] == [
        {"role": "agent", "text": "Yes?"},
        {"role": "customer", "text": "A card."},
    ]
    again = await supervisor.review(customer_text="Hi.", primary_text="Hello.")
    assert again.state is JudgingState.JUDGED


@pytest.mark.parametrize("entry", [{"role": "robot", "text": "x"}, {"role": "agent"}])
@virtual_time
async def test_review_refuses_a_history_that_is_none(entry: Any) -> None:
    supervisor = Supervisor(MirrorConfig(llm=ScriptedLLM(), policies=["A."]))
    with pytest.raises(ValueError, match="history"):
        await supervisor.review(customer_text="", primary_text="", history=[entry])
    with pytest.raises(TypeError, match="history"):
        await supervisor.review(customer_text="", primary_text="", history=["Hello."])  # type: ignore[list-item]


# Turns


@virtual_time
async def test_j7_t7_a_turn_with_a_tool_call_takes_as_long_as_the_slower_of_two_questions() -> None:
    llm = judging(delay_s=0.3)
    call = make_call(llm)
    began = now()
    verdict = await call.review_turn(
        customer_text="Charge it.", primary_text="Of course.", tool_calls=[charge()], turn_id="t"
    )
    assert now() - began == pytest.approx(0.3)
    assert {asked.schema_name for asked in llm.asked} == {"mirror_turn", "mirror_tools"}
    assert verdict.tools[0].allow
    assert not verdict.should_intervene
    assert call.states == {JudgingState.JUDGED: 1}
    assert call.tool_states == {JudgingState.JUDGED: 1}


@virtual_time
async def test_t7_speech_next_to_a_tool_call_is_judged_and_takes_its_tools_with_it() -> None:
    llm = judging()
    call = make_call(llm)
    verdict = await call.review_turn(
        customer_text="Refund me.", primary_text=BAD_WORDS, tool_calls=[charge(), look_up()], turn_id="t"
    )
    assert verdict.should_intervene
    assert verdict.violates
    assert [(tool.allow, tool.code) for tool in verdict.tools] == [(False, ToolCode.DENIED)] * 2
    # It did not run, so it is not in doubt either.
    again = await call.review_turn(customer_text="Yes.", primary_text="Alright.", tool_calls=[charge("t2")])
    assert again.tools[0].allow


@virtual_time
async def test_t3_a_gate_that_failed_is_shown_beside_a_passing_verdict_on_the_words() -> None:
    call = make_call(judging(tools=RuntimeError("down")))
    verdict = await call.review_turn(customer_text="Charge it.", primary_text="Of course.", tool_calls=[charge()])
    assert (verdict.state, verdict.violates) == (JudgingState.JUDGED, False)
    assert (verdict.tools[0].state, verdict.tools[0].code) == (JudgingState.FAILED, ToolCode.FAILED)
    assert verdict.should_intervene
    assert verdict.correction == verdict.tools[0].instruction != ""
    assert verdict.rule is None


@virtual_time
async def test_an_instruction_to_the_agent_is_never_spoken_to_the_caller() -> None:
    spoken_to_the_agent = "Please read the amount back first."
    llm = judging(
        tools=lambda asked: decisions("t1", allow=False, reason="No.", instruction=spoken_to_the_agent),
        correction=RuntimeError("down"),
    )
    call = make_call(llm)
    payload = call.payload(customer_text="Charge it.", agent_text="Sure.", tool_calls=[charge()])
    verdict = await call.judged_with_tools(payload)
    assert verdict.correction == spoken_to_the_agent
    correction = await call.correct(payload, verdict)
    assert correction.source == "template"
    assert json.loads(llm.of("mirror_correction")[0].user["history"][-1]["text"])["suggestion"] == spoken_to_the_agent


@virtual_time
async def test_t1_a_cooldown_and_a_used_up_limit_never_let_a_refused_tool_pass() -> None:
    llm = judging(tools=lambda asked: decisions(*(t["id"] for t in asked.user["tool_calls"]), allow=False))
    call = make_call(llm, max_interventions_per_call=1)
    first = await call.review_turn(customer_text="Refund?", primary_text=BAD_WORDS)
    call.note_intervention(first)
    verdict = await call.review_turn(
        customer_text="Charge it.", primary_text="Sure.", tool_calls=[charge(amount=99_999)]
    )
    assert len(llm.of("mirror_tools")) == 1
    assert not verdict.tools[0].allow
    assert verdict.withheld is None
    assert verdict.should_intervene


@virtual_time
async def test_in_cooldown_and_past_the_limit_words_are_judged_and_the_intervention_is_withheld() -> None:
    call = make_call(judging(), cooldown_s=10)
    first = await call.review_turn(customer_text="Refund?", primary_text=BAD_WORDS)
    call.note_intervention(first)
    second = await call.review_turn(customer_text="Sure?", primary_text=BAD_WORDS)
    assert (second.violates, second.withheld, second.should_intervene) == (True, "cooldown", False)
    await asyncio.sleep(10)
    third = await call.review_turn(customer_text="Sure?", primary_text=BAD_WORDS)
    assert third.should_intervene
    call.note_intervention(third)
    call.note_intervention(third)
    await asyncio.sleep(10)
    assert (await call.review_turn(customer_text="So?", primary_text=BAD_WORDS)).withheld == "limit"
    assert call.states == {JudgingState.JUDGED: 4}


@virtual_time
async def test_shadow_mode_judges_everything_and_stops_nothing() -> None:
    llm = judging(
        tools=lambda asked: decisions(*(t["id"] for t in asked.user["tool_calls"]), allow=False, reason="No.")
    )
    call = make_call(llm, mode="shadow")
    verdict = await call.review_turn(
        customer_text="Refund?", primary_text=BAD_WORDS, tool_calls=[charge(), ToolCallIntent("x", "f", None)]
    )
    assert verdict.violates
    assert (verdict.withheld, verdict.should_intervene) == ("shadow", False)
    assert [tool.allow for tool in verdict.tools] == [True, True]
    assert verdict.tools[0].reason == "shadow: would have been refused (policy): No."
    clean = await call.review_turn(customer_text="Hi.", primary_text="Hello.", tool_calls=[look_up()])
    assert clean.withheld == "shadow"
    assert (await call.review_turn(customer_text="Hi.", primary_text="Hello.")).withheld is None


@virtual_time
async def test_a_duplicate_is_no_reason_to_intervene() -> None:
    call = make_call(judging())
    await call.review_turn(customer_text="Charge it.", primary_text="Sure.", tool_calls=[charge("a")])
    call.tool_done("a", True, {"receipt": 7})
    verdict = await call.review_turn(customer_text="Charge it.", primary_text="Done.", tool_calls=[charge("b")])
    assert (verdict.tools[0].code, verdict.tools[0].stored_result) == (ToolCode.DUPLICATE, {"receipt": 7})
    assert not verdict.should_intervene


@virtual_time
async def test_j9_the_history_is_made_by_the_reviews_however_often_it_is_noted_besides() -> None:
    llm = judging()
    call = make_call(llm)
    call.note_customer_turn("Where is my order?")
    await call.review_turn(customer_text="Where is my order?", primary_text=GOOD_WORDS)
    call.note_agent_turn(GOOD_WORDS)
    await call.review_turn(customer_text="Thanks.", primary_text="You're welcome.")
    call.note_agent_turn("You're welcome.")
    call.note_agent_turn("You're welcome.")  # said twice
    assert call.history == (
        HistoryEntry("customer", "Where is my order?"),
        HistoryEntry("agent", GOOD_WORDS),
        HistoryEntry("customer", "Thanks."),
        HistoryEntry("agent", "You're welcome."),
        HistoryEntry("agent", "You're welcome."),
    )
    assert llm.asked[0].user["history"] == []
    assert [entry["text"] for entry in llm.asked[1].user["history"]] == ["Where is my order?", GOOD_WORDS]


@virtual_time
async def test_j9_tools_between_the_callers_words_and_the_agents_change_nothing() -> None:
    llm = judging()
    call = make_call(llm)
    call.note_customer_turn("Charge it.")
    await call.gate_tool_call(customer_text="Charge it.", intents=[charge("a")])
    call.tool_done("a", True, "ok")
    await call.review_turn(customer_text="Charge it.", primary_text="It is charged.")
    assert [entry["role"] for entry in llm.asked[-1].user["history"]] == ["tool"]


@virtual_time
async def test_words_that_call_for_an_intervention_are_not_taken_for_said() -> None:
    call = make_call(judging())
    await call.review_turn(customer_text="Refund?", primary_text=BAD_WORDS)
    assert call.history == (HistoryEntry("customer", "Refund?"),)
    call.note_agent_turn(BAD_WORDS, heard="No problem")
    assert call.history[-1].text == "No problem … [cut off here; the rest was not heard]"


@virtual_time
async def test_j10_every_turn_has_an_id_of_its_own() -> None:
    call = make_call(judging())
    one, two, named = await asyncio.gather(
        call.review_turn(customer_text="A", primary_text="B"),
        call.review_turn(customer_text="A", primary_text="B"),
        call.review_turn(customer_text="A", agent_text="B", turn_id="mine"),
    )
    assert len({one.turn_id, two.turn_id, named.turn_id}) == 3
    assert named.turn_id == "mine"


@virtual_time
async def test_j1_late_and_broken_reviews_are_counted_and_cover_nothing() -> None:
    llm = ScriptedLLM(delay_s=9)
    call = make_call(llm)
    late = await call.review_turn(customer_text="A", primary_text="B")
    llm.delay_s, llm.turn = 0, "no JSON"
    broken = await call.review_turn(customer_text="A", primary_text="B")
    assert (late.state, broken.state) == (JudgingState.TIMED_OUT, JudgingState.FAILED)
    assert call.coverage == 0.0


@virtual_time
async def test_j14_a_call_keeps_no_more_for_a_thousand_turns_than_for_a_hundred() -> None:
    llm = judging()
    call = make_call(llm)

    async def turns(count: int) -> None:
        for number in range(count):
            await call.review_turn(
                customer_text=f"What about {number}?",
                primary_text="Let me see. " * 100,
                tool_calls=[look_up(f"l{number}", str(number))],
            )
            call.tool_done(f"l{number}", True, "x" * 5_000)
            call.note_intervention(Verdict("t", JudgingState.JUDGED, 0.9, f"r{number}", "", "", 0.7, 0))
            call.set_override("note")
        llm.asked.clear()

    def size() -> int:
        gc.collect()
        seen: set[int] = set()
        todo: list[Any] = [call._memory, call._gate, call.__dict__]
        total = 0
        while todo:
            item = todo.pop()
            if id(item) in seen or isinstance(item, type) or callable(item):
                continue
            seen.add(id(item))
            total += len(item) if isinstance(item, str) else 1
            if isinstance(item, dict):
                todo += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple | set) or type(item).__name__ == "deque":
                todo += list(item)
            elif type(item).__module__.startswith("supervision.engine") and not isinstance(item, MirrorConfig):
                names = getattr(type(item), "__slots__", ()) or vars(item)
                todo += [getattr(item, name, None) for name in names if name != "_supervisor"]
        return total

    await turns(600)
    small = size()
    await turns(600)
    assert size() < small * 1.1
    assert len(call.history) == 60


# Gate


@virtual_time
async def test_gating_tool_calls_by_themselves_counts_as_no_turn() -> None:
    llm = judging(
        tools=lambda asked: {
            "decisions": [
                {"id": "a", "allow": False, "score": 0.8, "reason": 'It says "99".', "instruction": "Ask again."},
                {"id": "b", "allow": True, "score": 0.1, "reason": "", "instruction": ""},
            ]
        }
    )
    call = make_call(llm)
    verdict = await call.gate_tool_call(customer_text="Charge 9.", intents=[charge("a"), look_up("b")])
    assert verdict.should_intervene
    assert (verdict.state, verdict.score, verdict.rule) == (JudgingState.JUDGED, 0.8, None)
    assert (verdict.reason, verdict.correction) == ('It says "99".', "Ask again.")
    assert [tool.allow for tool in verdict.tools] == [False, True]
    assert call.states == {}
    assert call.coverage is None
    assert call.tool_states == {JudgingState.JUDGED: 2}
    nothing = await call.gate_tool_call(customer_text="", intents=[])
    assert (nothing.state, nothing.detail, nothing.should_intervene) == (JudgingState.SKIPPED, "no tool calls", False)


@virtual_time
async def test_gating_says_the_worst_that_happened_to_a_tool_call() -> None:
    call = make_call(ScriptedLLM(delay_s=60), tool_gate_timeout_ms=500)
    verdict = await call.gate_tool_call(customer_text="", intents=[charge("a"), ToolCallIntent("b", "f", None)])
    assert (verdict.state, verdict.score, verdict.latency_ms) == (JudgingState.TIMED_OUT, None, 500)
    assert verdict.should_intervene


# Streams


async def stream(call: CallSupervisor, text: str, **more: Any) -> list[Verdict | None]:
    found = []
    for word in text.split(" "):
        found.append(await call.review_stream_delta(customer_text="Refund?", delta=f"{word} ", **more))
        await asyncio.sleep(0.05)
    return found


@virtual_time
async def test_j5_a_stream_is_judged_at_clause_boundaries_and_never_stalled() -> None:
    llm = judging(delay_s=0.3)
    call = make_call(llm, streaming_mode=True)
    text = "No problem, your refund is confirmed. I will send you a mail, and that is all that you need to do."
    began = now()
    found = await stream(call, text)
    words = len(text.split(" "))
    assert now() - began == pytest.approx(0.05 * words)  # nothing but the test's own pace
    first = next(index for index, verdict in enumerate(found) if verdict is not None)
    assert first < words - 2
    assert found[:first] == [None] * first
    assert all(found[first:])
    verdict = await call.flush_stream(customer_text="Refund?")
    assert verdict.should_intervene
    assert call.states == {JudgingState.JUDGED: 1}


@virtual_time
async def test_j5_j6_the_tail_of_a_stream_is_judged_with_the_whole_turn() -> None:
    llm = judging()
    call = make_call(llm, streaming_mode=True)
    assert not any(await stream(call, "Let me see. You know, your refund is"))
    assert await call.review_stream_delta(customer_text="Refund?", delta="confirmed") is None
    verdict = await call.flush_stream(customer_text="Refund?")
    assert verdict.should_intervene
    assert llm.asked[-1].user["agent_text"] == "Let me see. You know, your refund is confirmed"
    assert call.states == {JudgingState.JUDGED: 1}


@virtual_time
async def test_without_streaming_mode_a_stream_is_judged_once_and_whole() -> None:
    llm = judging()
    call = make_call(llm)
    assert not any(await stream(call, BAD_WORDS))
    assert llm.asked == []
    verdict = await call.flush_stream(customer_text="Refund?")
    assert verdict.should_intervene
    assert len(llm.asked) == 1
    clean = make_call(judging())
    await stream(clean, GOOD_WORDS)
    assert (await clean.flush_stream(customer_text="Refund?")).state is JudgingState.JUDGED
    assert [entry.role for entry in clean.history] == ["customer", "agent"]


@virtual_time
async def test_j5_a_consumer_that_stops_at_the_first_verdict_is_counted_once() -> None:
    call = make_call(judging(), streaming_mode=True)
    found = await stream(call, "Your refund is confirmed. And more of it.")
    assert found[-1] is not None
    await call.review_turn(customer_text="Thanks.", primary_text="Welcome.")
    await call.aclose()
    assert call.states == {JudgingState.JUDGED: 2}


@virtual_time
async def test_j5_a_stream_that_nobody_flushed_is_judged_to_its_end_and_counted() -> None:
    llm = judging(delay_s=0.2)
    call = make_call(llm)
    await call.review_stream_delta(customer_text="Refund?", delta="Your refund is confirmed", tool_calls=[charge("a")])
    await call.review_stream_delta(customer_text="Hello?", delta="Yes, hello")
    assert (await call.flush_stream(customer_text="Hello?")).state is JudgingState.JUDGED
    await call.review_stream_delta(customer_text="Are you there?", delta="Sure", turn_id="x")
    await call.review_stream_delta(customer_text="Are you there?", delta="Sure", turn_id="y")
    await call.aclose()
    assert call.states == {JudgingState.JUDGED: 4}
    # Nobody was told that the tool may run, so it may be asked for again.
    again = await call.gate_tool_call(customer_text="Charge it.", intents=[charge("b")])
    assert again.tools[0].allow


@virtual_time
async def test_j10_an_answer_to_the_same_words_after_an_intervention_is_a_turn_of_its_own() -> None:
    call = make_call(judging(), streaming_mode=True)
    found = await stream(call, "Your refund is confirmed. And more of it.")
    assert found[-1] is not None
    call.note_intervention(found[-1])
    assert not any(await stream(call, "A colleague decides on that. Shall I connect you? It takes a minute."))
    verdict = await call.flush_stream(customer_text="Refund?")
    assert verdict.state is JudgingState.JUDGED
    assert not verdict.violates
    assert verdict.turn_id != found[-1].turn_id
    await call.aclose()
    assert call.states == {JudgingState.JUDGED: 2}


@virtual_time
async def test_tools_of_a_stream_are_gated_while_it_goes_on_and_each_once() -> None:
    llm = judging(delay_s=0.1, tools=lambda asked: decisions(*(t["id"] for t in asked.user["tool_calls"]), allow=False))
    call = make_call(llm)
    tools = [{"name": "charge_card", "args": {"amount": 5}}]
    found = await stream(call, "Let me charge that for you right now", tool_calls=tools)
    assert found[0] is None
    assert found[-1] is not None
    assert found[-1].refused_tools
    assert not found[-1].violates
    verdict = await call.flush_stream(
        customer_text="Refund?", tool_calls=[*tools, {"id": "z", "name": "get_order", "args": {}}]
    )
    assert len(verdict.tools) == 2
    assert len(llm.of("mirror_tools")) == 2
    assert call.states == {JudgingState.JUDGED: 1}
    with pytest.raises(TypeError, match="tool_calls: give a list"):
        await call.flush_stream(customer_text="", tool_calls="charge_card")  # type: ignore[arg-type]


@virtual_time
async def test_a_stream_in_shadow_mode_or_cooldown_calls_for_nothing() -> None:
    shadow = make_call(judging(), streaming_mode=True, mode="shadow")
    assert not any(await stream(shadow, "Your refund is confirmed. Anything else that you need?"))
    verdict = await shadow.flush_stream(customer_text="Refund?")
    assert (verdict.violates, verdict.withheld) == (True, "shadow")


@virtual_time
async def test_flushing_where_nothing_was_streamed_is_a_turn_without_speech() -> None:
    call = make_call(judging())
    verdict = await call.flush_stream(customer_text="Charge it.", tool_calls=[charge()])
    assert (verdict.state, verdict.detail) == (JudgingState.SKIPPED, "no speech")
    assert verdict.tools[0].allow
    with pytest.raises(TypeError, match="tool_calls: give a list"):
        await call.review_stream_delta(customer_text="", delta="", tool_calls="x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="delta"):
        await call.review_stream_delta(customer_text="", delta=None)  # type: ignore[arg-type]


# The note to the agent


@virtual_time
async def test_the_note_to_the_agent_is_given_out_once_and_grows_old() -> None:
    call = make_call(judging())
    assert await call.consume_override() is None
    call.set_override("Apologise first.", ttl_s=60)
    call.set_override("Do not mention refunds.", ttl_s=60)
    assert await call.consume_override() == "Do not mention refunds."
    assert await call.consume_override() is None
    call.set_override("Too late.", ttl_s=60)
    await asyncio.sleep(61)
    assert await call.consume_override() is None
    call.set_override("For ever.", ttl_s=None)
    await asyncio.sleep(100_000)
    assert await call.consume_override() == "For ever."


# What a pre-gate changes


@virtual_time
async def test_j8_the_pre_gate_skips_what_needs_no_judge_and_never_after_an_intervention() -> None:
    llm = judging()
    call = make_call(llm, tiered_scoring_enabled=True)
    skipped = await call.review_turn(customer_text="Hi.", primary_text="Hello! How can I help you today?")
    assert (skipped.state, llm.asked) == (JudgingState.SKIPPED, [])
    assert skipped.detail
    bad = await call.review_turn(customer_text="Refund?", primary_text=BAD_WORDS)
    assert bad.should_intervene
    call.note_intervention(bad)
    after = await call.review_turn(customer_text="Hm.", primary_text="Hello! How can I help you today?")
    assert after.state is JudgingState.JUDGED
    later = await call.review_turn(customer_text="Hm.", primary_text="Hello! How can I help you today?")
    assert later.state is JudgingState.SKIPPED
    assert call.coverage == 1.0


@virtual_time
async def test_a_pre_gate_that_breaks_means_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = judging()
    call = make_call(llm, tiered_scoring_enabled=True)

    def broken(_payload: TurnPayload) -> None:
        raise RuntimeError("bug")

    monkeypatch.setattr(call._supervisor.pregate, "decide", broken)
    verdict = await call.review_turn(customer_text="Hi.", primary_text="Hello! How can I help you today?")
    assert verdict.state is JudgingState.JUDGED


# Secrets, clients and buffer lines


@virtual_time
async def test_the_supervisor_says_how_secrets_are_looked_up() -> None:
    class Keyed(ScriptedLLM):
        resolver: Any = None

        def use_secrets(self, resolver: Any) -> None:
            self.resolver = resolver

    llm = Keyed()
    Supervisor(MirrorConfig(llm=llm, policies=["A."], secrets=lambda name: f"key of {name}"))
    assert llm.resolver("judge") == "key of judge"
    other = Keyed()
    Supervisor(MirrorConfig(llm=other, policies=["A."]))
    assert other.resolver is None


def test_the_references_buffer_line_is_the_first_in_english_and_ones_own_everywhere() -> None:
    call = make_call(ScriptedLLM())
    assert call.buffer_lines("en-US")[0] == "Sorry, let me make sure I got that right..."
    assert call.buffer_lines("de")[0] == "Moment, bitte."
    own = make_call(ScriptedLLM(), buffer_text="Augenblick.")
    assert own.buffer_lines("de")[0] == own.buffer_lines("en")[0] == "Augenblick."
    assert make_call(ScriptedLLM(), buffer_text=None).buffer_lines("en")[0] == "Sorry, let me check that for you."


def test_a_state_store_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="state: give a StateStore"):
        Supervisor(MirrorConfig(llm=ScriptedLLM(), policies=["A."]), state="redis://")  # type: ignore[arg-type]


@virtual_time
async def test_a_call_can_be_entered_without_its_audio() -> None:
    supervisor = Supervisor(MirrorConfig(llm=judging(), policies=["A."], tiered_scoring_enabled=False))
    async with supervisor.call(SupervisorContext("c-1")) as call:
        assert call.degraded is None
        assert not (await call.review_turn(customer_text="A", primary_text="B")).should_intervene
    async with supervisor.call(SupervisorContext("")) as unbound:
        assert unbound.context.call_id == ""


def test_everything_that_is_no_python_goes_into_the_wheel_and_the_types_do() -> None:
    root = Path(__file__).resolve().parents[2]
    data = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    packaged = {path for pattern in data["supervision"] for path in (root / "supervision").glob(pattern)}
    wanted = {
        path
        for path in (root / "supervision" / "engine").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert root / "supervision" / "engine" / "py.typed" in wanted
    assert wanted <= packaged
