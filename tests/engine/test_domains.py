"""The engine over the wire in three domains: the real openai client against a local server with OpenAI's API.

The server judges by words in the agent's text and by the tools' arguments, so what is tested is the way there and back:
that every text, argument and rule arrives, that every verdict comes back whole, and what the call does with it.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from supervision.engine import (
    JudgingState,
    MirrorConfig,
    Supervisor,
    SupervisorContext,
    ToolCallIntent,
    ToolCode,
    Usage,
)
from supervision.engine.llm.openai import OpenAIClient
from supervision.engine.supervisor import CallSupervisor
from tests.standins.llm import LLMStandIn, Question, words


@dataclass(frozen=True)
class Domain:
    """A business with its rules, one conversation, and what a judge would say of it."""

    name: str
    rules: Sequence[str]
    customer: str
    clean: str
    violating: str
    offending: str
    rule: int
    correction: str
    allowed: ToolCallIntent
    refused: ToolCallIntent
    refusal: Callable[[dict[str, Any]], bool]
    instruction: str
    language: str = "en"
    before: Sequence[tuple[str, str]] = field(default=())


ORDERING = Domain(
    name="ordering",
    rules=["Always read the order back before calling place_order.", "Do not promise delivery times."],
    customer="Two large pizzas please. Actually, no olives. When will it be there?",
    clean="Two large pizzas without olives. Shall I place the order?",
    violating="It'll be there in half an hour, no problem!",
    offending="in half an hour",
    rule=2,
    correction="I can't promise a time, but I can text you when it leaves. Shall I?",
    allowed=ToolCallIntent("call_1", "place_order", {"items": [{"pizza": "large", "without": ["olives"]}], "count": 2}),
    refused=ToolCallIntent("call_2", "place_order", {"items": [{"pizza": "large", "with": ["olives"]}], "count": 2}),
    refusal=lambda args: any("olives" in item.get("with", []) for item in args["items"]),
    instruction='Ask whether the customer wants "olives".',
    before=(("customer", "Hello, I'd like to order."), ("agent", "Sure, what can I get you?")),
)
FLIGHTS = Domain(
    name="flight booking",
    rules=["Never say that a fare is refundable when it is basic economy.", "Confirm the date before booking."],
    customer="What if I can't fly on the 20th?",
    clean="Basic economy cannot be changed. Would you like a flexible fare?",
    violating="Don't worry, you can always get your money back on basic economy.",
    offending="always get your money back",
    rule=1,
    correction="Basic economy can't be returned. Would you like to hear about a flexible fare?",
    allowed=ToolCallIntent("c1", "book_flights", {"flights": ["HAT069"], "date": "2026-05-20", "price": 121.0}),
    refused=ToolCallIntent("c2", "Book_Flights", {"flights": ["HAT069"], "date": "2026-05-21", "price": 121.0}),
    refusal=lambda args: args["date"] != "2026-05-20",
    instruction="Read the date back to the customer.",
    before=(("customer", "New York to Seattle on May 20th."), ("tool", "search_flights: HAT069 $121")),
)
SUPPORT = Domain(
    name="customer support",
    rules=["Never confirm a refund — transfer to a human supervisor.", "Never disclose other customers' data."],
    customer="Meine Kaffeemaschine ist kaputt. Ich möchte mein Geld zurück – 5 € mehr wären fair 😀.",
    clean="Das tut mir leid. Soll ich Sie mit einer Kollegin verbinden?",
    violating="Kein Problem, die Rückerstattung ist schon unterwegs!",
    offending="die Rückerstattung ist schon unterwegs",
    rule=1,
    correction="Darüber entscheidet eine Kollegin. Soll ich Sie verbinden?",
    allowed=ToolCallIntent("a", "send_email", {"to": "kundin@example.com", "subject": "Ihre Anfrage"}),
    refused=ToolCallIntent("b", "issue_refund", {"amount": 59}, irreversible=True),
    refusal=lambda args: "amount" in args,
    instruction="Transfer the call to a human supervisor.",
    language="de",
)


@dataclass
class Supervised:
    llm: LLMStandIn
    call: CallSupervisor
    domain: Domain


@pytest.fixture(params=[ORDERING, FLIGHTS, SUPPORT], ids=lambda domain: domain.name)
async def supervised(request: pytest.FixtureRequest) -> AsyncIterator[Supervised]:
    domain: Domain = request.param
    async with LLMStandIn(api_key="k") as llm:
        llm.judge(words({domain.offending: {"rule": str(domain.rule), "correction": domain.correction}}))
        llm.correct(lambda _question: domain.correction)

        def gate(tool: dict[str, Any], _question: Question) -> dict[str, Any] | None:
            if not domain.refusal(tool["args"]):
                return None
            return {"allow": False, "score": 0.97, "reason": "It differs.", "instruction": domain.instruction}

        llm.gate(gate)
        client = OpenAIClient(api_key="k", model="judge", base_url=llm.base_url)
        supervisor = Supervisor(MirrorConfig(llm=client, policies=domain.rules, tiered_scoring_enabled=False))
        call = supervisor.call(SupervisorContext(call_id="c-1"))
        for role, text in domain.before:
            if role == "customer":
                call.note_customer(text)
            elif role == "agent":
                call.note_agent(text)
            else:
                call.note_tool(*text.split(": ", 1))
        yield Supervised(llm, call, domain)
        await supervisor.aclose()


async def test_a_clean_turn_passes(supervised: Supervised) -> None:
    call, domain = supervised.call, supervised.domain
    verdict = await call.judge_turn(call.payload(customer_text=domain.customer, agent_text=domain.clean, turn_id="t1"))
    assert (verdict.state, verdict.score, verdict.should_intervene) == (JudgingState.JUDGED, 0.0, False)
    (question,) = supervised.llm.questions
    assert question.schema == "mirror_turn"
    assert (question.customer_text, question.agent_text) == (domain.customer, domain.clean)
    assert [(entry["role"], entry["text"]) for entry in question.history] == list(domain.before)
    assert all(f"{number}. {rule}" in question.system for number, rule in enumerate(domain.rules, 1))


async def test_a_violation_is_found_and_corrected(supervised: Supervised) -> None:
    call, domain = supervised.call, supervised.domain
    payload = call.payload(
        customer_text=domain.customer, agent_text=domain.violating, turn_id="t1", language=domain.language
    )
    verdict = await call.judge_turn(payload)
    assert verdict.should_intervene
    assert verdict.rule == domain.rules[domain.rule - 1]
    assert verdict.reason == f'The agent says "{domain.offending}".'
    assert verdict.correction == domain.correction
    assert verdict.usage == Usage(100, 20, 0)
    correction = await call.correct(payload, verdict, timeout_s=10)
    assert (correction.text, correction.source) == (domain.correction, "llm")
    asked = supervised.llm.asked("mirror_correction")[0]
    told = json.loads(asked.history[-1]["text"])
    assert (told["rule"], told["language"]) == (verdict.rule, domain.language)


async def test_a_tool_call_that_fits_runs_once_and_one_that_does_not_is_blocked(supervised: Supervised) -> None:
    call, domain = supervised.call, supervised.domain
    committed: list[str] = []

    async def commit(intent: ToolCallIntent) -> None:
        await asyncio.sleep(0)
        committed.append(intent.id)

    allowed, refused = await call.gate_tools(
        [domain.allowed, domain.refused], customer_text=domain.customer, before_allow=commit
    )
    assert (allowed.allow, allowed.code) == (True, ToolCode.OK)
    assert (refused.allow, refused.code, refused.instruction) == (False, ToolCode.POLICY, domain.instruction)
    assert committed == [domain.allowed.id]
    (question,) = supervised.llm.asked("mirror_tools")
    assert [tool["args"] for tool in question.tool_calls] == [domain.allowed.args, domain.refused.args]
    assert all(tool["irreversible"] for tool in question.tool_calls)
    call.tool_done(domain.allowed.id, True, {"reference": "R1"})
    repeat = ToolCallIntent("again", domain.allowed.name.upper(), domain.allowed.args)
    (again,) = await call.gate_tools([repeat], customer_text=domain.customer)
    assert (again.code, again.stored_result) == (ToolCode.DUPLICATE, {"reference": "R1"})


async def test_j7_a_turn_is_reviewed_words_and_tools_together(supervised: Supervised) -> None:
    call, domain = supervised.call, supervised.domain
    clean = await call.review_turn(
        customer_text=domain.customer,
        primary_text=domain.clean,
        tool_calls=[domain.allowed],
        language=domain.language,
    )
    assert (clean.state, clean.should_intervene) == (JudgingState.JUDGED, False)
    assert clean.tools[0].allow
    call.tool_done(domain.allowed.id, True, "done")
    blocked = await call.review_turn(
        customer_text=domain.customer,
        primary_text=domain.clean,
        tool_calls=[domain.refused],
        language=domain.language,
    )
    assert blocked.should_intervene
    assert not blocked.violates
    assert blocked.correction == domain.instruction
    bad = await call.review_turn(customer_text=domain.customer, primary_text=domain.violating, language=domain.language)
    assert (bad.should_intervene, bad.correction) == (True, domain.correction)
    history = [(entry["role"], entry["text"]) for entry in supervised.llm.asked("mirror_turn")[-1].history]
    assert history[: len(domain.before)] == list(domain.before)
    assert ("agent", domain.clean) in history
    assert call.states == {JudgingState.JUDGED: 3}


async def test_j5_a_streamed_violation_is_found_before_the_turn_ends(supervised: Supervised) -> None:
    domain = supervised.domain
    config = supervised.call.config.model_copy(update={"streaming_mode": True})
    call = Supervisor(config).call(SupervisorContext("c-2"))
    found = None
    for character in f"{domain.violating} {domain.clean}":
        found = await call.review_stream_delta(customer_text=domain.customer, delta=character, language=domain.language)
    before_the_end = len(supervised.llm.questions)
    verdict = await call.flush_stream(customer_text=domain.customer, language=domain.language)
    assert before_the_end >= 1
    assert verdict.should_intervene
    assert found is None or found.correction == domain.correction
    assert verdict.correction == domain.correction
    assert any(question.agent_text.strip() == domain.violating for question in supervised.llm.questions)


async def test_j8_the_pre_gate_lets_no_violation_of_these_pass(supervised: Supervised) -> None:
    domain = supervised.domain
    config = supervised.call.config.model_copy(update={"tiered_scoring_enabled": True})
    call = Supervisor(config).call(SupervisorContext("c-3"))
    verdict = await call.review_turn(
        customer_text=domain.customer, primary_text=domain.violating, language=domain.language
    )
    assert verdict.should_intervene
    assert verdict.rule == domain.rules[domain.rule - 1]


@pytest.mark.parametrize(
    ("broken", "state"),
    [
        ({"hang": True}, JudgingState.TIMED_OUT),
        ({"drip_bytes": 1, "drip_every_s": 0.5}, JudgingState.TIMED_OUT),
        ({"status": 500}, JudgingState.FAILED),
        ({"status": 401}, JudgingState.FAILED),
        ({"content": "I would say that this is fine."}, JudgingState.FAILED),
        ({"content": '{"score": "high"}'}, JudgingState.FAILED),
        ({"body": b"<html>gateway</html>"}, JudgingState.FAILED),
        ({"close_after": 30}, JudgingState.FAILED),
    ],
)
async def test_j1_t2_over_the_wire_a_broken_judge_is_seen_and_irreversible_tools_are_blocked(
    broken: dict[str, Any], state: JudgingState
) -> None:
    async with LLMStandIn() as llm:
        llm.behave(**broken)
        client = OpenAIClient(api_key="k", model="judge", base_url=llm.base_url)
        supervisor = Supervisor(
            MirrorConfig(
                llm=client,
                policies=["A."],
                semantic_review_timeout_s=1.0,
                tool_gate_timeout_ms=1000,
                tiered_scoring_enabled=False,
            )
        )
        call = supervisor.call(SupervisorContext(call_id="c-1"))
        verdict, (tool,) = await asyncio.gather(
            call.judge_turn(call.payload(customer_text="?", agent_text="Hello.")),
            call.gate_tools([SUPPORT.refused], customer_text="?"),
        )
        assert (verdict.state, tool.state) == (state, state)
        assert not tool.allow
        assert verdict.detail
        assert tool.instruction
        assert call.coverage == 0.0
        await supervisor.aclose()


async def test_many_calls_are_judged_at_once() -> None:
    async with LLMStandIn() as llm:
        llm.judge(words({"number 7.": {"rule": "1"}}))
        client = OpenAIClient(api_key="k", model="judge", base_url=llm.base_url)
        supervisor = Supervisor(MirrorConfig(llm=client, policies=["Never say 7."], semantic_review_timeout_s=30.0))
        calls = [supervisor.call(SupervisorContext(call_id=str(number))) for number in range(100)]
        verdicts = await asyncio.gather(
            *(
                call.judge_turn(call.payload(customer_text="?", agent_text=f"This is number {number}."))
                for number, call in enumerate(calls)
            )
        )
        assert [number for number, verdict in enumerate(verdicts) if verdict.should_intervene] == [7]
        assert {verdict.state for verdict in verdicts} == {JudgingState.JUDGED}
        await supervisor.aclose()
