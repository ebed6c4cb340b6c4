"""The agent's own turn, supervised from the inside: no tool runs before it is allowed, no word passes unjudged."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from supervision.engine import (
    AgentModelError,
    HistoryEntry,
    JudgingState,
    LoopResult,
    MirrorConfig,
    Supervisor,
    SupervisorContext,
    ToolCode,
    ToolNotRun,
)
from supervision.engine.llm.openai import OpenAIClient
from supervision.engine.supervisor import CallSupervisor
from tests.engine.llms import BAD, CLEAN, ScriptedLLM, decisions, make_call
from tests.standins.llm import LLMStandIn, words
from tests.support.virtual_time import virtual_time

SPECS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("charge_card", "get_order", "wipe_disk")
]


def wants(*calls: tuple[str, str, str], content: str | None = None) -> dict[str, Any]:
    """A message of the agent's model that calls tools: (id, name, arguments as JSON text)."""
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for call_id, name, arguments in calls
        ],
    }


def says(content: str | None) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


CHARGE = ("c1", "charge_card", '{"amount": 20}')
LOOK_UP = ("c2", "get_order", '{"order": "A7"}')


class AgentModel:
    """The agent's model in this process: `chat.completions.create`, answering from a script."""

    def __init__(self, *script: Any, delay_s: float = 0.0) -> None:
        self.script = list(script)
        self.asked: list[dict[str, Any]] = []
        self.delay_s = delay_s
        self.chat = self
        self.completions = self

    async def create(self, **request: Any) -> Any:
        self.asked.append(json.loads(json.dumps(request)))
        await asyncio.sleep(self.delay_s)
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer if answer is None or "choices" in answer else {"choices": [{"message": answer}]}


@dataclass
class Tools:
    """Executors that remember what ran."""

    ran: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    fails: BaseException | None = None
    takes_s: float = 0.0
    result: Any = field(default_factory=lambda: {"ok": True})

    async def charge_card(self, args: dict[str, Any]) -> Any:
        self.ran.append(("charge_card", args))
        await asyncio.sleep(self.takes_s)
        if self.fails is not None:
            raise self.fails
        return self.result

    def get_order(self, args: dict[str, Any]) -> Any:
        self.ran.append(("get_order", args))
        if self.fails is not None:
            raise self.fails
        return {"order": args["order"], "thread": threading.current_thread() is threading.main_thread()}

    @property
    def executors(self) -> dict[str, Any]:
        return {"charge_card": self.charge_card, "get_order": self.get_order}


async def run(call: CallSupervisor, model: Any, tools: Tools | None = None, **more: Any) -> LoopResult:
    return await call.run_supervised_loop(
        **{
            "llm_client": model,
            "model": "agent",
            "system_prompt": "You sell things.",
            "tool_specs": SPECS,
            "tool_executors": (tools or Tools()).executors,
            "customer_text": "Charge my card, please.",
            **more,
        }
    )


def judging(**answers: Any) -> ScriptedLLM:
    def by_words(asked: Any) -> dict[str, Any]:
        return BAD if "refund is confirmed" in asked.user["agent_text"] else CLEAN

    return ScriptedLLM(**{"turn": by_words, **answers})


def refusing(**more: Any) -> ScriptedLLM:
    return judging(
        tools=lambda asked: decisions(
            *(tool["id"] for tool in asked.user["tool_calls"]), allow=False, reason="No.", instruction="Ask first."
        ),
        **more,
    )


@virtual_time
async def test_tools_run_after_the_gate_and_the_final_words_are_judged() -> None:
    llm, tools = judging(), Tools()
    model = AgentModel(wants(CHARGE, LOOK_UP), says("I have charged $20."))
    call = make_call(llm)
    call.note_customer("Hello.")
    call.note_agent("Hi, what can I do for you?")
    result = await run(call, model, tools)
    assert (result.text, result.blocked, result.block_verdict, result.rounds) == ("I have charged $20.", False, None, 2)
    assert tools.ran == [("charge_card", {"amount": 20}), ("get_order", {"order": "A7"})]
    assert [intent.name for intent in result.tool_intents] == ["charge_card", "get_order"]
    assert [tool.allow for tool in result.tools] == [True, True]
    assert result.verdict is not None
    assert result.verdict.state is JudgingState.JUDGED
    assert [asked.schema_name for asked in llm.asked] == ["mirror_tools", "mirror_turn"]
    # The judge of the words knows what the tools came to, and what was said before.
    history = llm.asked[-1].user["history"]
    assert [entry["role"] for entry in history] == ["customer", "agent", "tool", "tool"]
    assert 'charge_card {"amount": 20} ran: {"ok": true}' in history[2]["text"]
    assert [message["role"] for message in model.asked[0]["messages"]] == ["system", "user", "assistant", "user"]
    assert model.asked[1]["messages"][-2:] == [
        {"role": "tool", "tool_call_id": "c1", "content": '{"ok": true}'},
        {"role": "tool", "tool_call_id": "c2", "content": '{"order": "A7", "thread": false}'},
    ]
    assert result.messages[-1] == {"role": "assistant", "content": "I have charged $20."}
    assert call.history[-1].text == "I have charged $20."
    assert call.states == {JudgingState.JUDGED: 1}


@virtual_time
async def test_a_turn_without_tools_is_one_question_and_one_verdict() -> None:
    model = AgentModel(says("Which card?"))
    result = await run(make_call(judging()), model, temperature=0.2)
    assert (result.text, result.rounds, result.tools) == ("Which card?", 1, ())
    assert model.asked[0]["temperature"] == 0.2
    assert len(model.asked[0]["tools"]) == 3
    bare = AgentModel(says("Hm."))
    await run(make_call(judging()), bare, tool_specs=[])
    assert "tools" not in bare.asked[0]


@virtual_time
async def test_a_refused_tool_never_runs_and_nor_does_the_rest_of_its_answer() -> None:
    llm = judging(
        tools=lambda asked: {
            "decisions": [
                {"id": "c1", "allow": True, "score": 0.1, "reason": "", "instruction": ""},
                {"id": "c3", "allow": False, "score": 0.9, "reason": 'It says "wipe".', "instruction": "Ask."},
            ]
        }
    )
    tools = Tools()
    executors = {**tools.executors, "wipe_disk": tools.charge_card}
    call = make_call(llm)
    model = AgentModel(wants(CHARGE, ("c3", "wipe_disk", "{}"), content="Let me do that."))
    result = await run(call, model, tools, tool_executors=executors)
    assert result.blocked
    assert tools.ran == []
    assert result.block_verdict is not None
    assert result.block_verdict.reason == 'It says "wipe".'
    assert [tool.id for tool in result.block_verdict.refused_tools] == ["c3"]
    assert result.verdict is None
    # Without a voice nothing was spoken, but there is something to say.
    assert result.text == "I can connect you with a colleague. Shall I do that?"
    assert [message["role"] for message in result.messages] == ["user", "assistant"]
    call.note_agent_turn(result.text)
    assert call.history[-1] == HistoryEntry("mirror", result.text)
    assert [entry.text for entry in call.history].count(result.text) == 1
    # What was allowed beside it did not run, and may be asked for again.
    again = await call.gate_tool_call(customer_text="Yes.", intents=[{"name": "charge_card", "args": {"amount": 20}}])
    assert again.tools[0].code is not ToolCode.IN_DOUBT


@virtual_time
async def test_the_correction_of_a_blocked_tool_is_spoken_where_there_is_a_voice() -> None:
    class Voiced(CallSupervisor):
        spoken: Any = None

        async def spoke_instead(self, payload: Any, verdict: Any) -> str | None:
            self.spoken = (payload, verdict)
            return "Sorry, may I ask first?"

    supervisor = Supervisor(MirrorConfig(llm=refusing(), policies=["A."], tiered_scoring_enabled=False))
    call = Voiced(supervisor, SupervisorContext("c"))
    result = await run(call, AgentModel(wants(CHARGE, content="Charging now.")))
    assert (result.text, result.blocked) == ("Sorry, may I ask first?", True)
    payload, verdict = call.spoken
    assert payload.agent_text == "Charging now."
    assert payload.history[-1].text == 'charge_card {"amount": 20} was blocked, it did not run: No.'
    assert verdict is result.block_verdict


@virtual_time
async def test_final_words_that_break_a_rule_are_not_what_may_be_spoken() -> None:
    call = make_call(judging())
    result = await run(call, AgentModel(says("Sure, your refund is confirmed.")))
    assert result.blocked
    assert result.verdict is result.block_verdict
    assert result.verdict is not None
    assert result.verdict.violates
    assert result.agent_text == "Sure, your refund is confirmed."
    assert "refund is confirmed" not in result.text
    assert result.text


@virtual_time
async def test_t6_malformed_arguments_go_back_to_the_model_and_never_run() -> None:
    tools = Tools()
    model = AgentModel(wants(("c1", "charge_card", '{"amount": 2')), wants(CHARGE), says("Done."))
    call = make_call(judging())
    result = await run(call, model, tools)
    assert not result.blocked
    assert tools.ran == [("charge_card", {"amount": 20})]
    told = json.loads(model.asked[1]["messages"][-1]["content"])
    assert "cannot be read" in told["error"]
    # The model sees its own words, whatever they were.
    assert model.asked[1]["messages"][-2]["tool_calls"][0]["function"]["arguments"] == '{"amount": 2'


@virtual_time
async def test_a_tool_that_is_not_there_is_named_to_the_model_and_asked_of_nobody() -> None:
    llm = judging()
    model = AgentModel(wants(("c9", "make_coffee", "{}")), says("I cannot."))
    result = await run(make_call(llm), model)
    assert not result.blocked
    assert llm.of("mirror_tools") == []
    assert "charge_card, get_order" in model.asked[1]["messages"][-1]["content"]
    assert [intent.name for intent in result.tool_intents] == ["make_coffee"]


@pytest.mark.parametrize(
    ("fails", "told"), [(ValueError("no such order"), "raised ValueError"), (TimeoutError(), "took")]
)
@virtual_time
async def test_an_executor_that_raises_is_told_to_the_model(fails: BaseException, told: str) -> None:
    tools = Tools(fails=fails)
    model = AgentModel(wants(LOOK_UP), says("I could not find it."))
    result = await run(make_call(judging()), model, tools)
    assert result.text == "I could not find it."
    assert told in model.asked[1]["messages"][-1]["content"]
    assert "no such order" not in model.asked[1]["messages"][-1]["content"]


@virtual_time
async def test_t5_an_irreversible_tool_that_raised_is_in_doubt_and_does_not_run_again() -> None:
    tools = Tools(fails=ConnectionError("reset"))
    model = AgentModel(wants(CHARGE), wants(("c7", "charge_card", '{"amount": 20}')), says("Done."))
    call = make_call(judging())
    result = await run(call, model, tools)
    assert len(tools.ran) == 1
    assert result.blocked
    assert result.tools[-1].code is ToolCode.IN_DOUBT
    assert "whether it took effect is not known" in call.history[1].text


@virtual_time
async def test_t5_a_tool_that_says_it_had_no_effect_may_run_again() -> None:
    tools = Tools(fails=ToolNotRun("card terminal busy"))
    model = AgentModel(wants(CHARGE), wants(("c7", "charge_card", '{"amount": 20}')), says("It is busy."))
    result = await run(make_call(judging()), model, tools)
    assert len(tools.ran) == 2
    assert not result.blocked
    assert "card terminal busy" in model.asked[1]["messages"][-1]["content"]


@virtual_time
async def test_t5_the_same_charge_twice_gets_the_first_result() -> None:
    tools = Tools(result={"receipt": 7})
    model = AgentModel(wants(CHARGE), wants(("c7", "charge_card", '{"amount": 20.0}')), says("Done."))
    result = await run(make_call(judging()), model, tools)
    assert len(tools.ran) == 1
    assert not result.blocked
    assert model.asked[2]["messages"][-1]["content"] == '{"receipt": 7}'


@virtual_time
async def test_a_tool_that_takes_too_long_is_given_up_and_in_doubt() -> None:
    tools = Tools(takes_s=100)
    model = AgentModel(wants(CHARGE), says("I have to look into it."))
    began = asyncio.get_running_loop().time()
    await run(make_call(judging()), model, tools, tool_timeout_s=5)
    assert asyncio.get_running_loop().time() - began == pytest.approx(5)
    assert "took longer than 5 s" in model.asked[1]["messages"][-1]["content"]


@virtual_time
async def test_names_that_are_irreversible_for_this_loop_are_gated_as_such() -> None:
    llm = judging(tools=RuntimeError("down"))
    tools = Tools()
    result = await run(make_call(llm), AgentModel(wants(LOOK_UP), says("x")), tools, irreversible=["Get_Order"])
    assert result.blocked
    assert tools.ran == []
    open_result = await run(make_call(llm), AgentModel(wants(LOOK_UP), says("x")), tools)
    assert not open_result.blocked
    assert tools.ran != []


@virtual_time
async def test_in_shadow_mode_refused_tools_run_and_unreadable_ones_cannot() -> None:
    tools = Tools()
    model = AgentModel(wants(CHARGE, ("c8", "charge_card", "nope")), says("Your refund is confirmed."))
    result = await run(make_call(refusing(), mode="shadow"), model, tools)
    assert tools.ran == [("charge_card", {"amount": 20})]
    assert not result.blocked
    assert result.text == "Your refund is confirmed."
    assert result.verdict is not None
    assert result.verdict.withheld == "shadow"


@virtual_time
async def test_rounds_are_bounded_and_the_last_one_has_no_tools() -> None:
    tools = Tools()
    forever = [wants((f"n{number}", "get_order", '{"order": "A7"}')) for number in range(9)]
    model = AgentModel(*forever, says("unreached"))
    result = await run(make_call(judging()), model, tools, max_rounds=3)
    assert result.rounds == 4
    assert len(tools.ran) == 3
    assert "tools" not in model.asked[-1]
    assert result.verdict is not None
    assert result.verdict.detail == "no speech"
    with pytest.raises(ValueError, match="max_rounds"):
        await run(make_call(judging()), AgentModel(says("x")), max_rounds=0)


@virtual_time
async def test_notes_reach_the_model_once() -> None:
    call = make_call(judging())
    call.set_override("Say sorry.")
    model = AgentModel(says("Sorry."))
    result = await run(call, model, extra_system_note="Be brief.")
    system = [message["content"] for message in model.asked[0]["messages"] if message["role"] == "system"]
    assert system == ["You sell things.", "Be brief.", "Say sorry."]
    assert [message["role"] for message in result.messages] == ["user", "assistant"]
    await run(call, model)
    assert len([message for message in model.asked[1]["messages"] if message["role"] == "system"]) == 1


@virtual_time
async def test_a_conversation_of_ones_own_takes_the_place_of_the_history() -> None:
    call = make_call(judging())
    call.note_agent("Something else.")
    first = await run(call, AgentModel(wants(CHARGE), says("Done.")))
    model = AgentModel(says("Yes."))
    await run(call, model, messages=first.messages, customer_text="Really?")
    roles = [message["role"] for message in model.asked[0]["messages"]]
    assert roles == ["system", "assistant", "user", "assistant", "tool", "assistant", "user"]


@virtual_time
async def test_the_same_words_reviewed_next_are_one_turn_and_anything_else_is_another() -> None:
    llm = judging()
    call = make_call(llm)
    result = await run(call, AgentModel(says("Which card?")))
    verdict = await call.review_turn(customer_text="Charge my card, please.", primary_text="Which card?")
    assert verdict is result.verdict
    assert call.states == {JudgingState.JUDGED: 1}
    await call.review_turn(customer_text="Charge my card, please.", primary_text="Which card?")
    assert call.states == {JudgingState.JUDGED: 2}
    await run(call, AgentModel(says("Which card?")))
    call.note_customer("Wait!")
    await call.review_turn(customer_text="Charge my card, please.", primary_text="Which card?")
    assert call.states == {JudgingState.JUDGED: 4}
    await run(call, AgentModel(says("Which card?")))
    await call.review_turn(customer_text="Charge my card, please.", primary_text="That card?")
    assert call.states == {JudgingState.JUDGED: 6}


@pytest.mark.parametrize(
    ("answer", "says_what"),
    [
        (RuntimeError("secret words"), "could not be asked: RuntimeError"),
        ({"choices": []}, "no chat completion"),
        (None, "no chat completion"),
    ],
)
@virtual_time
async def test_a_model_that_fails_is_the_agents_to_handle(answer: Any, says_what: str) -> None:
    with pytest.raises(AgentModelError, match=says_what) as failed:
        await run(make_call(judging()), AgentModel(answer))
    assert "secret words" not in str(failed.value)


@virtual_time
async def test_a_model_that_does_not_answer_is_given_up() -> None:
    with pytest.raises(AgentModelError, match="within 3 s"):
        await run(make_call(judging()), AgentModel(says("x"), delay_s=10), llm_timeout_s=3)
    with pytest.raises(TypeError, match="llm_client"):
        await run(make_call(judging()), object())


@virtual_time
async def test_t5_a_barge_in_between_tools_leaves_what_began_in_doubt_and_frees_the_rest() -> None:
    tools = Tools(takes_s=5)
    call = make_call(judging())
    model = AgentModel(wants(CHARGE, ("c5", "charge_card", '{"amount": 30}')), says("x"))
    task = asyncio.ensure_future(run(call, model, tools))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tools.ran == [("charge_card", {"amount": 20})]
    verdict = await call.gate_tool_call(
        customer_text="Charge it.",
        intents=[
            {"id": "d1", "name": "charge_card", "args": {"amount": 20}},
            {"id": "d2", "name": "charge_card", "args": {"amount": 30}},
        ],
    )
    assert [tool.code for tool in verdict.tools] == [ToolCode.IN_DOUBT, ToolCode.OK]


@virtual_time
async def test_results_are_kept_and_told_whatever_they_are() -> None:
    class Odd:
        def __str__(self) -> str:
            return "odd thing"

    for result, told in ((Odd(), "odd thing"), ("text", "text"), (None, "null"), ("x" * 40_000, "x … [cut off]")):
        model = AgentModel(wants(CHARGE), says("Done."))
        await run(make_call(judging()), model, Tools(result=result))
        assert model.asked[1]["messages"][-1]["content"].endswith(told)


# Over the wire, with the real clients


@dataclass
class AgentServer:
    """A server with OpenAI's API that answers from a script."""

    script: list[dict[str, Any]]
    asked: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    async def completions(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        message = self.script.pop(0)
        finish = "tool_calls" if message.get("tool_calls") else "stop"
        return web.json_response(
            {
                "id": "x",
                "object": "chat.completion",
                "created": 1,
                "model": "agent",
                "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            }
        )


@asynccontextmanager
async def agent_server(*script: dict[str, Any]) -> AsyncIterator[AgentServer]:
    server = AgentServer(list(script))
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.completions)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield server
    finally:
        await runner.cleanup()


def async_client(url: str) -> Any:
    import openai

    return openai.AsyncOpenAI(api_key="k", base_url=url)


def sync_client(url: str) -> Any:
    import openai

    return openai.OpenAI(api_key="k", base_url=url)


@pytest.mark.parametrize("make_client", [async_client, sync_client])
async def test_the_loop_works_with_the_real_openai_clients(make_client: Callable[[str], Any]) -> None:
    tools = Tools(result={"receipt": 7})
    async with (
        LLMStandIn(api_key="k") as judge,
        agent_server(wants(CHARGE), says("It will be there in half an hour!")) as agent,
    ):
        judge.judge(words({"half an hour": {"rule": "1", "correction": "I can't promise a time. Shall I text you?"}}))
        judge.correct(lambda _question: "I can't promise a time. Shall I text you?")
        llm = OpenAIClient(api_key="k", model="judge", base_url=judge.base_url)
        supervisor = Supervisor(
            MirrorConfig(llm=llm, policies=["Do not promise delivery times."], tiered_scoring_enabled=False)
        )
        client = make_client(agent.url)
        result = await run(supervisor.call(SupervisorContext("c-1")), client, tools)
        await supervisor.aclose()
        closed = client.close()
        if closed is not None:
            await closed
    assert tools.ran == [("charge_card", {"amount": 20})]
    assert result.blocked
    assert result.text == "I can't promise a time. Shall I text you?"
    assert agent.asked[1]["messages"][-1] == {"role": "tool", "tool_call_id": "c1", "content": '{"receipt": 7}'}
    assert [question.schema for question in judge.questions][:2] == ["mirror_tools", "mirror_turn"]
