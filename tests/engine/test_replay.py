"""Replaying recorded calls: reading them, judging them over the wire of an LLM server, and saying what came of it."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervision.engine import JudgingState, MirrorConfig, ToolCode, Usage
from supervision.engine.llm.protocol import LLMUnreachable
from supervision.engine.replay import (
    Label,
    Prices,
    RecordedCall,
    RecordingError,
    Replayed,
    details,
    parse_calls,
    read_calls,
    replay,
    summarize,
)
from supervision.engine.replay.__main__ import Progress, main
from supervision.engine.replay.runner import question_count
from tests.engine.llms import CLEAN, ScriptedLLM, decisions
from tests.standins.llm import LLMStandIn, words
from tests.support.virtual_time import virtual_time

ROOT = Path(__file__).resolve().parents[2]
REFUND = "Never confirm a refund."


@pytest.fixture
def llm() -> Iterator[LLMStandIn]:
    """A judge that scores what an agent says of refunds with 0.65, and forbids charging more than 50."""
    with LLMStandIn().in_thread() as server:
        server.judge(words({"refund": {"score": 0.65}}))
        server.gate(
            lambda tool, _question: (
                {
                    "allow": False,
                    "score": 0.9,
                    "reason": f'"{tool["args"]["amount"]}" is too much',
                    "instruction": "Ask.",
                }
                if tool["name"] == "charge_card" and tool["args"].get("amount", 0) > 50
                else None
            )
        )
        yield server


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    path = tmp_path / "policies.txt"
    path.write_text(f"# what the agent must not do\n\n{REFUND}\n")
    return path


def turn(agent_text: str, customer_text: str = "Hello?", **more: Any) -> dict[str, Any]:
    return {"customer_text": customer_text, "agent_text": agent_text, **more}


def save(tmp_path: Path, value: Any, name: str = "calls.json") -> Path:
    path = tmp_path / name
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def run(path: Path, policies: Path, llm: LLMStandIn, *options: str) -> int:
    return main([str(path), "--policies", str(policies), "--base-url", llm.base_url, *options])


def run_json(
    path: Path, policies: Path, llm: LLMStandIn, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, dict[str, Any]]:
    status = run(path, policies, llm, "--format", "json", *options)
    return status, json.loads(capsys.readouterr().out)


# Reading

FLAT = [
    {"role": "customer", "text": "Large pepperoni, actually mushroom."},
    {
        "role": "agent",
        "text": "One pepperoni and one mushroom.",
        "tool_calls": [{"name": "place_order", "args": {"items": ["pepperoni", "mushroom"]}, "irreversible": True}],
    },
    {"role": "customer", "text": "No, only mushroom."},
    {"role": "agent", "text": "Sorry. One mushroom."},
]
CALLS = [
    {"call_id": "c-1", "turns": [turn("Hi."), turn("Bye.", "Thanks.")]},
    {"call_id": "c-2", "turns": [turn("Hola.")], "language": "es"},
]


def test_the_references_flat_list_is_one_call(tmp_path: Path) -> None:
    (call,) = read_calls(save(tmp_path, FLAT, "pizza.json"))
    assert call.call_id == "pizza"
    first, second = call.turns
    assert (first.customer_text, first.agent_text) == (FLAT[0]["text"], FLAT[1]["text"])
    assert first.tools[0].intent.name == "place_order"
    assert first.tools[0].intent.args == {"items": ["pepperoni", "mushroom"]}
    assert first.tools[0].intent.irreversible
    assert (second.index, second.customer_text, second.tools) == (1, "No, only mushroom.", ())


def test_calls_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(call) for call in CALLS)
    files = [
        save(tmp_path, CALLS, "list.json"),
        save(tmp_path, {"calls": CALLS}, "object.json"),
        save(tmp_path, json.dumps(CALLS, indent=2), "pretty.json"),
        save(tmp_path, lines, "lines.jsonl"),
        save(tmp_path, "\n" + lines.replace("\n", "\r\n\r\n") + "\r\n", "lines-from-windows.jsonl"),
        save(tmp_path, "\ufeff" + json.dumps(CALLS), "bom.json"),
    ]
    for name, text in (("calls.json.gz", json.dumps(CALLS)), ("calls.jsonl.gz", lines), ("no-ending", lines)):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
        files.append(tmp_path / name)
    # Two gzip files one after the other are one gzip file.
    half = lines.index("\n") + 1
    (tmp_path / "two.gz").write_bytes(gzip.compress(lines[:half].encode()) + gzip.compress(lines[half:].encode()))
    for path in [*files, tmp_path / "two.gz"]:
        calls = read_calls(path)
        assert [(call.call_id, call.language, len(call.turns)) for call in calls] == [
            ("c-1", "en", 2),
            ("c-2", "es", 1),
        ]
    (one,) = parse_calls(json.dumps(CALLS[0], indent=1))
    assert one.call_id == "c-1"


def test_turns_with_call_ids_are_gathered_into_their_calls() -> None:
    lines = [{"call_id": call_id, **turn(text)} for call_id, text in [("a", "1"), (7, "2"), ("a", "3")]]
    calls = parse_calls("\n".join(map(json.dumps, lines)))
    assert [(call.call_id, [turn.agent_text for turn in call.turns]) for call in calls] == [
        ("a", ["1", "3"]),
        ("7", ["2"]),
    ]


def test_line_separators_inside_a_text_end_no_line() -> None:
    text = json.dumps({"call_id": "a", "turns": [turn("one\u2028two\x85three")]}, ensure_ascii=False)
    for call in parse_calls(f"{text}\n{text}"):
        assert call.turns[0].agent_text == "one\u2028two\x85three"


def test_openais_messages_are_read_with_their_tool_results() -> None:
    messages = [
        {"role": "system", "content": "You are Ada."},
        {"role": "user", "content": "Where is my order?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "x1", "type": "function", "function": {"name": "get_order", "arguments": '{"id": "A7"}'}},
                {"id": "x2", "type": "function", "function": {"name": "get_order", "arguments": "{not json"}},
            ],
        },
        {"role": "tool", "tool_call_id": "x1", "content": "shipped"},
        {"role": "tool", "name": "get_weather", "text": "rain"},
        {"role": "tool", "name": "get_order", "error": "no such order"},
        {"role": "assistant", "content": "It is on its way."},
        {"role": "user", "content": "Really?"},
        {"role": "mirror", "text": "Let me check that."},
        {"role": "assistant", "content": "Anything else?"},
    ]
    (call,) = parse_calls(json.dumps(messages))
    asking, telling, again = call.turns
    good, bad = asking.tools
    assert (good.intent.id, good.intent.args, good.outcome, good.result) == ("x1", {"id": "A7"}, "ran", "shipped")
    assert (bad.intent.args, bad.outcome, bad.result) == (None, "failed", "no such order")
    assert bad.intent.error is not None
    assert bad.intent.error.startswith("not JSON")
    assert (telling.customer_text, again.customer_text) == ("Where is my order?", "Really?")
    assert [entry.text for entry in telling.before] == [
        'get_order {"id": "A7"} ran: shipped',
        "get_weather {} ran: rain",
        "get_order null failed: no such order",
    ]
    assert [(entry.role, entry.text) for entry in again.before] == [
        ("customer", "Really?"),
        ("mirror", "Let me check that."),
    ]


def test_tool_calls_get_ids_of_their_own_where_theirs_are_missing_or_used_twice() -> None:
    tools = [
        {"name": "a"},
        {"name": "b", "id": "same", "args": None},
        {"name": "c", "id": "same", "args": [1]},
        {"name": ""},
    ]
    (call,) = parse_calls(json.dumps([turn("Hi", tool_calls=tools)]))
    intents = [tool.intent for tool in call.turns[0].tools]
    assert [intent.id for intent in intents] == ["t0.0", "same", "t0.2", "t0.3"]
    assert [intent.args for intent in intents] == [{}, {}, None, {}]
    assert intents[2].error == "not a JSON object"


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (True, Label(turn=True)),
        (0, Label(turn=False)),
        ("bad", Label(turn=True)),
        ("Good", Label(turn=False)),
        (None, Label()),
        ({}, Label()),
        ({"human_note": "?"}, Label()),
        ({"bad": True}, Label(turn=True)),
        ({"speech": False, "tools": True}, Label(True, False, True)),
        ({"wrong_write": False}, Label(False, None, False)),
        ({"wrong_write": True, "quoted_bad": []}, Label(True, False, True)),
        ({"quoted_bad": ["a quote"]}, Label(True, True, None)),
        ({"agent_error": True, "quoted_bad": None}, Label(turn=True)),
        ({"agent_error": False}, Label(turn=False)),
    ],
)
def test_labels_of_many_kinds_are_understood(label: Any, expected: Label) -> None:
    tools = [{"name": "a"}]
    (call,) = parse_calls(json.dumps([turn("Hi", tool_calls=tools, label=label)]))
    assert call.turns[0].label == expected


def test_what_is_said_of_a_turn_with_one_part_is_said_of_that_part() -> None:
    talk, act = parse_calls(json.dumps([turn("Hi", label=True), turn("", tool_calls=[{"name": "a"}], label=True)]))[
        0
    ].turns
    assert talk.label == Label(turn=True, speech=True)
    assert act.label == Label(turn=True, tools=True)


SECRET = "my card is 4111"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "calls.json: it is empty"),
        ("  \n ", "calls.json: it is empty"),
        ("call_id,text\n", "calls.json: it has to be JSON, or JSON lines, and begin with [ or {"),
        ("[1, 2", "calls.json: it is not JSON: Expecting ',' delimiter at line 1, column 6"),
        ('{\n"turns": [}', "calls.json: it is not JSON: Expecting value at line 2, column 11"),
        ('{"turns": []}\n{"turns": [}\n', "calls.json: line 2: it is not JSON"),
        ("[" * 100_000, "calls.json: it is nested too deeply"),
        ([], "calls.json: no agent turn is in it"),
        ([{"turns": []}], "calls.json: no agent turn is in it"),
        ([{"role": "customer", "text": SECRET}], "calls.json: no agent turn is in it"),
        ([SECRET], "calls.json: record 1: a call or a turn has to be an object; this is a text"),
        ([{"turns": []}, turn(SECRET)], "calls.json: record 2: some records are calls"),
        ([{"turns": {}}], "calls.json: record 1: turns: it has to be a list; it is an object"),
        (
            [{"turns": [turn("x")]}, {"call_id": "c-9", "turns": [turn("x"), SECRET]}],
            "calls.json: record 2 (call 'c-9'): turns[1]: a turn has to be an object; this is a text",
        ),
        (
            [{"call_id": ["x"], "turns": []}],
            "calls.json: record 1: call_id: it has to be a text or a number; it is a list",
        ),
        ([{"call_id": True, "turns": []}], "calls.json: record 1: call_id: it has to be a text or a number"),
        ([{"turns": [], "language": 7}], "calls.json: record 1: language: it has to be a text; it is a number"),
        ([{"turns": [], "write_tools": "all"}], "calls.json: record 1: write_tools: it has to be a list of tool names"),
        ([{"text": SECRET}], 'calls.json: record 1: it has neither "role" nor "agent_text"'),
        (
            [{"role": "judge", "text": SECRET}],
            "calls.json: record 1: role: it has to be customer, agent, tool or mirror",
        ),
        ([{"role": 5}], "calls.json: record 1: role: it has to be a text; it is a number"),
        ([{"role": "agent", "text": [SECRET]}], "calls.json: record 1: text: it has to be a text; it is a list"),
        ([{"role": "tool", "text": SECRET}], 'calls.json: record 1: a tool\'s result needs the "name"'),
        ([turn("x", customer_text_2=1) | {"customer_text": 1}], "record 1: customer_text: it has to be a text"),
        ([turn("x", tool_calls={"name": "a"})], "record 1: tool_calls: it has to be a list; it is an object"),
        ([turn("x", tool_calls=["a"])], "record 1: tool_calls[0]: a tool call has to be an object; this is a text"),
        (
            [turn("x", tool_calls=[{"name": "a"}, {}])],
            "record 1: tool_calls[1].name: it has to be the tool's name; it is null",
        ),
        (
            [turn("x", tool_calls=[{"type": "function", "function": {"name": 3}}])],
            "record 1: tool_calls[0].function.name: it has to be the tool's name; it is a number",
        ),
        (
            [turn("x", tool_calls=[{"name": "a", "irreversible": "yes"}])],
            "record 1: tool_calls[0].irreversible: it has to be true or false",
        ),
        ([turn("x", tool_calls=[{"name": "a", "id": 4}])], "record 1: tool_calls[0].id: it has to be a text"),
        (
            [turn("x", tool_calls=[{"name": "a"}], tool_results=["r", "s"])],
            "record 1: tool_results: it has 2 items for 1 tool_calls",
        ),
        (
            [turn("x", tool_calls=[{"name": "a"}], tool_errors=["no"])],
            "record 1: tool_errors[0]: it has to be true or false",
        ),
        (
            [turn("x", tool_calls=[{"name": "a"}], order="tc", agent_texts=[1])],
            "record 1: agent_texts: it has to be a list of texts",
        ),
        ([turn("x", label="meh")], "record 1: label: it has to be true (bad) or false"),
        ([turn("x", label={"bad": "yes"})], "record 1: label.bad: it has to be true or false; it is a text"),
        ([turn("x", label={"quoted_bad": 3})], "record 1: label.quoted_bad: it has to be a list of quotes"),
    ],
)
def test_c5_bad_input_is_named_by_file_record_and_field(tmp_path: Path, value: Any, message: str) -> None:
    path = save(tmp_path, value)
    with pytest.raises(RecordingError) as raised:
        read_calls(path)
    assert message in str(raised.value)
    assert SECRET not in str(raised.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"missing\.json: it cannot be read: No such file"):
        read_calls(tmp_path / "missing.json")
    with pytest.raises(RecordingError, match="it cannot be read: Is a directory"):
        read_calls(tmp_path)
    (tmp_path / "latin").write_bytes('[{"role": "agent", "text": "ü"}]'.encode("latin-1"))
    with pytest.raises(RecordingError, match="latin: byte 28 is not UTF-8"):
        read_calls(tmp_path / "latin")
    whole = gzip.compress(json.dumps(CALLS).encode())
    for damaged in (whole[:-12], whole[:20] + b"\0\0" + whole[22:], whole[:-8] + bytes(8), b"\x1f\x8b\x08"):
        (tmp_path / "calls.gz").write_bytes(damaged)
        with pytest.raises(RecordingError, match=r"calls\.gz: it is gzipped, and damaged or cut off"):
            read_calls(tmp_path / "calls.gz")


NAMES = st.sampled_from(
    [
        *("turns", "role", "text", "agent_text", "customer_text", "tool_calls", "tool_results", "tool_errors", "error"),
        *("name", "args", "arguments", "function", "id", "label", "bad", "order", "agent_texts", "index"),
        *("call_id", "language", "write_tools"),
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats()
    | st.sampled_from(["agent", "customer", "tool", "tc", "{}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=25,
)


@settings(max_examples=300, deadline=None)
@given(value=VALUES)
def test_whatever_is_in_a_file_it_is_read_or_refused_in_words(value: Any) -> None:
    with contextlib.suppress(RecordingError):
        for call in parse_calls(json.dumps(value)):
            assert isinstance(call, RecordedCall)


# Judging


def one_call(*turns: dict[str, Any], **more: Any) -> list[RecordedCall]:
    return parse_calls(json.dumps([{"call_id": "c", "turns": list(turns), **more}]))


async def replayed(judge: Any, calls: list[RecordedCall], **more: Any) -> Replayed:
    options = {key: more.pop(key) for key in ("concurrency", "tools", "pregate", "on_progress") if key in more}
    return await replay(calls, MirrorConfig(llm=judge, policies=[REFUND], **more), **options)


def speech_asked(judge: ScriptedLLM) -> list[dict[str, Any]]:
    return [asked.user for asked in judge.of("mirror_turn")]


def told(asked: dict[str, Any]) -> list[tuple[str, str]]:
    return [(entry["role"], entry["text"]) for entry in asked["history"]]


@virtual_time
async def test_j9_each_turn_is_judged_against_what_came_before_it_and_nothing_of_itself() -> None:
    judge = ScriptedLLM()
    calls = one_call(turn("One.", "First?"), turn("Two.", "Second?"), turn("Three.", "Third?"))
    await replayed(judge, calls, concurrency=1)
    first, second, third = speech_asked(judge)
    assert told(first) == []
    assert told(second) == [("customer", "First?"), ("agent", "One.")]
    assert told(third) == [*told(second), ("customer", "Second?"), ("agent", "Two.")]
    assert (third["customer_text"], third["agent_text"]) == ("Third?", "Three.")


@virtual_time
async def test_tool_calls_are_judged_with_what_was_known_when_they_were_made() -> None:
    judge = ScriptedLLM()
    calls = one_call(
        turn(
            "Let me look. It is shipped.",
            "Where is A7?",
            tool_calls=[{"name": "find", "args": {"q": "A7"}}, {"name": "get_order", "args": {"id": 1}}],
            tool_results=["order 1", "shipped"],
            order="tcct",
            agent_texts=["Let me look.", "It is shipped."],
        ),
        turn("Bye.", "Thanks."),
    )
    await replayed(judge, calls, concurrency=1)
    find, get = (asked.user for asked in judge.of("mirror_tools"))
    assert [call["name"] for call in find["tool_calls"]] == ["find"]
    assert told(find) == []
    assert find["agent_text"] == get["agent_text"] == "Let me look."
    assert told(get) == [("tool", 'find {"q": "A7"} ran: order 1')]
    said, bye = speech_asked(judge)
    assert [call["name"] for call in said["tool_calls"]] == ["find", "get_order"]
    assert told(said) == [*told(get), ("tool", 'get_order {"id": 1} ran: shipped')]
    assert told(bye) == [("customer", "Where is A7?"), *told(said), ("agent", "Let me look. It is shipped.")]


@virtual_time
async def test_tool_calls_without_recorded_results_are_one_question_beside_the_speech() -> None:
    judge = ScriptedLLM()
    calls = one_call(turn("I'll do both.", "Both!", tool_calls=[{"name": "a"}, {"name": "b"}]), turn("Bye."))
    result = await replayed(judge, calls)
    (asked,) = judge.of("mirror_tools")
    assert [call["name"] for call in asked.user["tool_calls"]] == ["a", "b"]
    assert asked.user["agent_text"] == "I'll do both."
    assert [verdict.name for verdict in result.turns[0].tools] == ["a", "b"]
    said, bye = speech_asked(judge)
    assert told(said) == []
    assert told(bye)[-1] == ("tool", "b {} was called; its result was not recorded")


@virtual_time
async def test_words_that_came_before_a_tools_result_are_not_judged_by_it() -> None:
    judge = ScriptedLLM()
    calls = one_call(
        turn("It is shipped.", tool_calls=[{"name": "get_order"}], tool_results=["lost"], order="tc"), turn("Bye.")
    )
    await replayed(judge, calls, concurrency=1)
    said, bye = speech_asked(judge)
    assert told(said) == []
    assert told(bye)[-2:] == [("agent", "It is shipped."), ("tool", "get_order {} ran: lost")]


@virtual_time
async def test_t5_a_recorded_repeat_is_a_duplicate_unless_the_first_one_failed() -> None:
    judge = ScriptedLLM(delay_s=0.3)

    def charge(amount: int, **more: Any) -> dict[str, Any]:
        return turn("", tool_calls=[{"name": "Charge_Card", "args": {"amount": amount}}], **more)

    calls = one_call(
        charge(5, tool_results=["receipt 1"]),
        charge(5),
        charge(7, tool_results=["declined"], tool_errors=[True]),
        charge(7),
        turn("", tool_calls=[{"name": "charge_card", "args": {"amount": 9}}] * 2),
        turn("", tool_calls=[{"name": "charge_card", "args": "{"}]),
    )
    for concurrency in (1, 16):
        result = await replayed(judge, calls, concurrency=concurrency)
        codes = [[verdict.code for verdict in turn.tools] for turn in result.turns]
        assert codes == [
            [ToolCode.OK],
            [ToolCode.DUPLICATE],
            [ToolCode.OK],
            [ToolCode.OK],
            [ToolCode.OK, ToolCode.IN_DOUBT],
            [ToolCode.BAD_ARGS],
        ]
        assert result.turns[1].tools[0].stored_result == "receipt 1"
        assert result.turns[0].speech is None
        assert result.questions == 4


@virtual_time
async def test_what_ran_in_the_recording_ran_even_when_the_gate_forbids_it_now() -> None:
    judge = ScriptedLLM(tools=lambda asked: decisions(*(t["id"] for t in asked.user["tool_calls"]), allow=False))
    tools = {"tool_calls": [{"name": "refund", "args": {}}]}
    calls = one_call(turn("", **tools), turn("", **tools), write_tools=["Refund"])
    for concurrency in (1, 16):
        result = await replayed(judge, calls, concurrency=concurrency)
        assert [turn.tools[0].code for turn in result.turns] == [ToolCode.POLICY, ToolCode.DUPLICATE]


@virtual_time
async def test_only_irreversible_tools_or_none_can_be_judged() -> None:
    calls = one_call(turn("Hi", tool_calls=[{"name": "look"}, {"name": "charge_card"}]))
    judge = ScriptedLLM()
    result = await replayed(judge, calls, tools="irreversible")
    assert [[t["name"] for t in asked.user["tool_calls"]] for asked in judge.of("mirror_tools")] == [["charge_card"]]
    assert [verdict.state for verdict in result.turns[0].tools] == [JudgingState.SKIPPED, JudgingState.JUDGED]
    judge = ScriptedLLM()
    result = await replayed(judge, calls, tools="off")
    assert judge.of("mirror_tools") == []
    assert result.turns[0].tools == ()
    assert question_count(calls, "off") == 1
    assert question_count(calls) == 2


GREETING, CLAIM = "Hello, how can I help you?", "I have refunded you 40 dollars."


@virtual_time
async def test_every_turn_is_judged_unless_the_pregate_is_wanted() -> None:
    calls = one_call(*[turn(GREETING, "Hi."), turn(CLAIM, "And now?")] * 5)
    result = await replayed(ScriptedLLM(), calls)
    assert result.questions == 10
    told = [turn.pregate.score for turn in result.turns if turn.pregate is not None]
    assert told == [False, True] * 5
    gated = await replayed(ScriptedLLM(), calls, pregate=True)
    assert gated.questions == 5
    states = [turn.speech.state for turn in gated.turns if turn.speech is not None]
    assert states == [JudgingState.SKIPPED, JudgingState.JUDGED] * 5
    assert [turn.pregate for turn in gated.turns] == [turn.pregate for turn in result.turns]
    # A policy without a pre-gate has nothing to tell.
    without = await replayed(ScriptedLLM(), calls, tiered_scoring_enabled=False, pregate=True)
    assert without.questions == 10
    assert {turn.pregate for turn in without.turns} == {None}
    assert summarize(without, thresholds=[0.5])["pregate"] is None


@virtual_time
async def test_what_the_pregate_would_miss_is_told_beside_what_was_judged() -> None:
    # A judge that takes offence at everything: what the pre-gate skips, a live call would not find.
    judge = ScriptedLLM(turn={**CLEAN, "score": 0.6})
    calls = one_call(
        turn(GREETING, "Hi.", label=True), turn(GREETING, "Hi.", label=False), turn(CLAIM, "And now?", label=True)
    )
    result = await replayed(judge, calls)
    summary = summarize(result, thresholds=[0.5, 0.7])
    reasons = summary["pregate"].pop("reasons")
    assert sum(reasons.values()) == 2
    assert summary["pregate"] == {
        "turns": 3,
        "skips": 2,
        "skip_rate": 2 / 3,
        "labelled_bad": 2,
        "labelled_bad_skipped": 1,
    }
    assert [row["missed_by_pregate"] for row in summary["thresholds"]] == [2, 0]
    told = [turn["pregate"]["judge"] for turn in details(result)]
    assert told == [False, False, True]


@virtual_time
async def test_a_turn_that_the_pregate_cannot_look_at_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError

    monkeypatch.setattr("supervision.engine.scorer.pregate.PreGate.decide", fail)
    result = await replayed(ScriptedLLM(), one_call(turn(GREETING)))
    (judged,) = result.turns
    assert judged.speech is not None
    assert judged.speech.state is JudgingState.JUDGED
    assert judged.pregate is not None
    assert judged.pregate.reason == "the pre-gate failed (RuntimeError)"


def test_the_table_tells_what_the_pregate_does(
    tmp_path: Path, policies: Path, llm: LLMStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    llm.judge(lambda _question: {"score": 0.9})
    path = save(tmp_path, [turn(GREETING, "Hi.", label=True), turn(CLAIM, "And now?", label=True)])
    assert run(path, policies, llm, "--all") == 0
    output = capsys.readouterr().out
    assert "Pre-gate would skip 1 of 2 turns (50.0 %) in live calls, 1 of the 2 labelled bad" in output
    assert len(llm.requests) == 2
    (header,) = (line for line in output.splitlines() if line.startswith("threshold"))
    (row,) = (line for line in output.splitlines() if line.strip().startswith("0.7"))
    assert "in turns it skips" in header
    assert row.split()[:9] == ["0.7", "2", "100.0", "%", "1", "100.0", "%", "2.00", "1"]
    assert run(path, policies, llm, "--pregate") == 0
    output = capsys.readouterr().out
    assert "Speech   2 turns: 1 judged, 1 skipped, 0 errors" in output
    assert "Pre-gate skipped 1 of 2 turns" in output
    assert "in turns it skips" not in output
    assert len(llm.requests) == 3


@virtual_time
async def test_c5_many_calls_are_judged_at_once_and_no_more_than_asked_for() -> None:
    calls = parse_calls(json.dumps([{"turns": [turn("Hi.")] * 5} for _ in range(200)]))
    at_once = most = 0
    steps: list[tuple[int, int]] = []

    class Counting(ScriptedLLM):
        async def complete_json(self, **question: Any) -> Any:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            try:
                return await super().complete_json(**question)
            finally:
                at_once -= 1

    judge = Counting(delay_s=0.3)
    result = await replayed(judge, calls, concurrency=64, on_progress=lambda *step: steps.append(step))
    assert most == 64
    # 1,000 questions, 64 at a time, are 16 rounds.
    assert result.seconds == pytest.approx(16 * 0.3, abs=0.01)
    assert result.questions == result.answers == 1000
    assert steps[-1] == (1000, 0)
    assert question_count(calls) == 1000
    assert result.usage.prompt_tokens == 100_000
    assert judge.closed == 0


@virtual_time
async def test_a_judge_that_stops_answering_is_not_asked_a_thousand_times() -> None:
    answered = 0

    def dies(_asked: Any) -> Any:
        nonlocal answered
        answered += 1
        return dict(CLEAN) if answered <= 100 else LLMUnreachable("nobody is there")

    calls = one_call(*[turn("Hi.", tool_calls=[{"name": "look"}])] * 500)
    result = await replayed(ScriptedLLM(turn=dies, tools=LLMUnreachable("nobody is there")), calls, concurrency=4)
    assert result.gave_up == result.judge_unreachable == "nobody is there"
    assert result.questions < 250
    assert len(result.turns) == 500
    last = result.turns[-1]
    assert last.speech is not None
    assert last.speech.state is JudgingState.FAILED
    assert last.tools[0].state is JudgingState.FAILED
    summary = summarize(result, thresholds=[0.5])
    assert summary["speech"]["judged"] == 100
    assert summary["speech"]["errors"] == 400
    assert summary["errors"]["count"] == 900
    assert summary["tools"]["blocked"] == 0


@virtual_time
async def test_a_judge_that_fails_now_and_then_is_asked_to_the_end() -> None:
    count = 0

    def flaky(_asked: Any) -> Any:
        nonlocal count
        count += 1
        return LLMUnreachable("gone for a moment") if count % 10 else dict(CLEAN)

    result = await replayed(ScriptedLLM(turn=flaky), one_call(*[turn("Hi.")] * 100), concurrency=2)
    assert result.judge_unreachable is None
    assert result.questions == 100
    assert summarize(result, thresholds=[0.5])["errors"]["count"] == 90


@virtual_time
async def test_an_llm_client_that_raises_anything_is_an_error_and_no_end() -> None:
    result = await replayed(ScriptedLLM(turn=KeyError("?")), one_call(turn("Hi.")))
    assert result.judge_unreachable == "the judge answered none of the questions"
    with pytest.raises(ValueError, match="concurrency has to be at least 1"):
        await replayed(ScriptedLLM(), one_call(turn("Hi.")), concurrency=0)


@virtual_time
async def test_a_gate_that_fails_open_is_an_error_and_not_an_allow() -> None:
    calls = one_call(turn("Hi.", tool_calls=[{"name": "look"}, {"name": "charge_card"}]))
    summary = summarize(await replayed(ScriptedLLM(tools="nonsense"), calls), thresholds=[0.7])
    assert summary["tools"]["errors"] == 2
    assert summary["tools"]["judged"] == summary["tools"]["blocked"] == 0
    assert summary["tools"]["block_rate"] is None
    assert summary["errors"]["why"] == {"the judge's answer is not valid: it is not JSON": 2}


# Counting


@virtual_time
async def test_precision_and_recall_count_what_has_a_verdict_and_a_label() -> None:
    scores = {"a": 0.9, "b": 0.6, "c": 0.9, "d": 0.1, "e": 0.1, "f": None, "g": 0.9}
    labels = {"a": True, "b": True, "c": False, "d": True, "e": False, "f": True, "g": None}

    def judge(asked: Any) -> Any:
        score = scores[asked.user["agent_text"]]
        return {**CLEAN, "score": score, "rule": "1"} if score is not None else "no answer"

    calls = parse_calls(
        json.dumps(
            [
                {"turns": [turn("a", label=True), turn("b", label=True)]},
                *({"turns": [turn(t, label=labels[t])]} for t in "cdefg"),
            ]
        )
    )
    result = await replayed(ScriptedLLM(turn=judge), calls)
    summary = summarize(result, thresholds=[0.5, 0.7])
    low, high = summary["thresholds"]
    assert (low["interventions"], low["calls_with_intervention"]) == (4, 3)
    assert low["rate_per_turn"] == 4 / 6  # one of seven was not judged
    # The call of which the only turn was not judged is not one without an intervention.
    assert low["rate_per_call"] == 3 / 5
    assert low["interventions_per_call"] == 4 / 5
    counts = ("true_positives", "false_positives", "false_negatives", "true_negatives", "labelled", "labelled_unjudged")
    assert [low["speech"][name] for name in counts] == [2, 1, 1, 1, 5, 1]
    assert (low["speech"]["precision"], low["speech"]["recall"]) == (2 / 3, 2 / 3)
    assert [high["speech"][name] for name in counts] == [1, 1, 2, 1, 5, 1]
    assert (high["speech"]["precision"], high["speech"]["recall"]) == (1 / 2, 1 / 3)
    assert low["speech_and_tools"] == low["speech"]


@virtual_time
async def test_speech_and_tools_have_figures_of_their_own() -> None:
    def gate(asked: Any) -> Any:
        return decisions(*(t["id"] for t in asked.user["tool_calls"]), allow=asked.user["customer_text"] != "block")

    def judge(asked: Any) -> Any:
        return {**CLEAN, "score": 0.9 if "bad" in asked.user["agent_text"] else 0.0}

    tools = [{"name": "look"}]
    calls = one_call(
        turn("bad", "block", tool_calls=tools, label={"speech": True, "tools": False}),
        turn("good", "block", tool_calls=tools, label={"speech": False, "tools": True}),
        turn("good", "allow", tool_calls=tools, label={"speech": True, "tools": True}),
        turn("good", "allow", tool_calls=tools, label={"bad": False}),
        turn("bad", "allow", label={"quoted_bad": []}),
    )
    summary = summarize(await replayed(ScriptedLLM(turn=judge, tools=gate), calls), thresholds=[0.7])
    (row,) = summary["thresholds"]
    assert (row["speech"]["precision"], row["speech"]["recall"]) == (1 / 2, 1 / 2)
    assert (summary["tools"]["precision"], summary["tools"]["recall"]) == (1 / 2, 1 / 2)
    assert (row["speech_and_tools"]["precision"], row["speech_and_tools"]["recall"]) == (2 / 3, 2 / 3)
    assert summary["tools"]["blocked_by_code"] == {"policy": 2}
    assert summary["tools"]["block_rate"] == 1 / 2


# The command


def test_c5_one_scoring_pass_serves_all_thresholds_and_agrees_with_single_runs(
    tmp_path: Path, policies: Path, llm: LLMStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    llm.judge(lambda question: {"score": float(question.agent_text)})
    path = save(tmp_path, [turn(f"0.{digit}") for digit in range(10)])
    status, swept = run_json(path, policies, llm, capsys, "--threshold-sweep", "0.5,0.6,0.7,0.8")
    assert status == 0
    assert len(llm.requests) == 10
    assert [row["threshold"] for row in swept["thresholds"]] == [0.5, 0.6, 0.7, 0.8]
    assert [row["interventions"] for row in swept["thresholds"]] == [5, 4, 3, 2]
    for row in swept["thresholds"]:
        _status, single = run_json(path, policies, llm, capsys, "--threshold", str(row["threshold"]))
        assert single["thresholds"] == [row]
    _status, default = run_json(path, policies, llm, capsys)
    assert [row["threshold"] for row in default["thresholds"]] == [0.7]


def test_either_way_of_scoring_is_replayed_in_one_pass(
    tmp_path: Path, policies: Path, llm: LLMStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    # Of what the statements ask about, it believes that the turn about a refund makes them true.
    llm.believe(lambda question: 0.999 if "refund" in question.agent_text else 0.02)
    path = save(tmp_path, [turn("Your refund is confirmed.", label=True), turn("We open at nine.", label=False)])
    status, report = run_json(path, policies, llm, capsys, "--scoring", "logprob", "--threshold-sweep", "0.5,0.9")
    assert status == 0
    assert report["speech"] == {"turns": 2, "judged": 2, "skipped": 0, "errors": 0}
    assert [row["interventions"] for row in report["thresholds"]] == [1, 1]
    assert report["thresholds"][0]["speech"]["precision"] == 1.0
    assert report["questions"] == len(llm.requests) > 2
    assert report["usage"]["prompt_tokens"] == 100 * len(llm.requests)
    # A model that tells no probabilities is no judge.
    llm.withhold_logprobs()
    assert run(path, policies, llm, "--scoring", "logprob") == 3
    assert "probabilities" in capsys.readouterr().err


def test_c5_a_dead_judge_is_not_all_allowed(tmp_path: Path, policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path, [turn("Hi.", tool_calls=[{"name": "look"}])] * 3)
    options = [str(path), "--policies", str(policies), "--base-url", "http://127.0.0.1:9/v1", "--fail-over", "1"]
    for kind in ("table", "json", "csv"):
        assert main([*options, "--format", kind]) == 3
        output = capsys.readouterr()
        assert "the judge could not be reached" in output.err
        assert "cannot be reached" in output.err
        if kind == "json":
            report = json.loads(output.out)
            assert report["judge_unreachable"]
            assert report["errors"]["count"] == 6
            assert report["speech"] == {"turns": 3, "judged": 0, "skipped": 0, "errors": 3}
            for rate in ("rate_per_turn", "rate_per_call", "interventions_per_call"):
                assert report["thresholds"][0][rate] is None
            assert report["details"][0]["tools"][0]["allow"] is None
        elif kind == "csv":
            speech, tools = csv.DictReader(io.StringIO(output.out))
            assert (speech["judged"], speech["errors"], speech["rate"]) == ("0", "3", "")
            assert speech["rate_per_call"] == ""
            assert (tools["judged"], tools["errors"], tools["rate"]) == ("0", "3", "")


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ({"status": 401}, "HTTP 401"),
        ({"status": 404}, "check base_url and the model's name"),
        ({"body": b"<html>It works!</html>"}, "did not answer with JSON"),
        ({"drop": True}, "broke the connection off"),
        ({"hang": True}, "did not answer in time"),
    ],
)
def test_c5_what_is_no_judge_is_said_to_be_none(
    tmp_path: Path,
    policies: Path,
    llm: LLMStandIn,
    capsys: pytest.CaptureFixture[str],
    behaviour: dict[str, Any],
    said: str,
) -> None:
    llm.behave(**behaviour)
    path = save(tmp_path, [turn("Hi.")] * 2)
    assert run(path, policies, llm, "--timeout", "0.5") == 3
    assert said in capsys.readouterr().err
    llm.release()


def test_c5_errors_are_counted_apart_and_end_in_a_status_of_their_own(
    tmp_path: Path, policies: Path, llm: LLMStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    llm.judge(lambda question: {"score": 0.9} if question.agent_text == "refund" else None)
    llm.once(content='{"score": 85}')
    path = save(tmp_path, [turn("Hi."), *[turn("refund")] * 4, *[turn("Bye.")] * 5])
    status, report = run_json(path, policies, llm, capsys, "--concurrency", "1")
    assert status == 1
    assert report["errors"] == {
        "count": 1,
        "share": 0.1,
        "why": {"the judge's answer is not valid: it lacks correction, reason, rule": 1},
    }
    assert report["thresholds"][0]["rate_per_turn"] == 4 / 9
    llm.once(content="{}")
    assert run(path, policies, llm, "--fail-over", "0.1") == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert "Errors   1 (10.0 %); they are in no rate below" in output.out
    llm.once(content="{}")
    assert run(path, policies, llm, "--fail-over", "0.05") == 1
    assert "verdicts missing: 1 (10.0 %); --fail-over allows 5.0 %" in capsys.readouterr().err


def test_the_table_shows_which_turns_were_flagged(
    tmp_path: Path, policies: Path, llm: LLMStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = [
        {"call_id": "c-1", "turns": [turn("Your refund\x1b[31m is confirmed."), turn("Bye.")]},
        {"call_id": "c-2", "turns": [turn("Done.", tool_calls=[{"name": "charge_card", "args": {"amount": 99}}])]},
    ]
    assert run(save(tmp_path, calls), policies, llm, "--threshold-sweep", "0.5,0.7") == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert "2 calls, 3 agent turns" in output.out
    assert "1 judged, 0 skipped, 0 errors; 1 blocked, at any threshold (1 policy)" in output.out
    assert f'0.65  c-1 turn 0: The agent says "refund". [{REFUND}]' in output.out
    assert 'tool  c-2 turn 0: charge_card policy: "99" is too much' in output.out
    assert "precision" not in output.out
    rows = [line.split() for line in output.out.splitlines() if line.strip().startswith(("0.5", "0.7 "))]
    assert rows[:2] == [
        ["0.5", "1", "33.3", "%", "1", "50.0", "%", "0.50", "0"],
        ["0.7", "0", "0.0", "%", "0", "0.0", "%", "0.00", "0"],
    ]
    assert run(save(tmp_path, calls), policies, llm, "--threshold", "0.5", "--show", "1") == 0
    assert "(the first 1 of 2; --show or --details for all)" in capsys.readouterr().out
    assert run(save(tmp_path, calls), policies, llm, "--show", "0") == 0
    assert "tool  c-2" not in capsys.readouterr().out


def test_labels_bring_precision_and_recall_into_every_format(
    tmp_path: Path, policies: Path, llm: LLMStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [
        turn("refund", label=True),
        turn("refund", label=False),
        turn("", tool_calls=[{"name": "charge_card", "args": {"amount": 99}}], label="bad"),
    ]
    path = save(tmp_path, turns)
    assert run(path, policies, llm, "--labels", "--threshold", "0.5") == 0
    output = capsys.readouterr().out
    assert output.count("precision") == 3
    assert "Tools    precision 100.0 %, recall 100.0 %" in output
    assert run(path, policies, llm, "--labels", "--threshold", "0.5", "--format", "csv") == 0
    speech, tools = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (speech["kind"], speech["flagged"], speech["precision"], speech["recall"]) == ("speech", "2", "0.5", "1.0")
    assert (tools["kind"], tools["flagged"], tools["precision"], tools["recall"]) == ("tools", "1", "1.0", "1.0")
    _status, report = run_json(path, policies, llm, capsys, "--threshold", "0.5")
    both = report["thresholds"][0]["speech_and_tools"]
    assert (both["true_positives"], both["false_positives"]) == (2, 1)
    unlabelled = save(tmp_path, [turn("Hi.")], "unlabelled.json")
    assert run(unlabelled, policies, llm, "--labels") == 2
    assert '--labels: no turn has a "label"' in capsys.readouterr().err


def test_tokens_and_cost_are_those_of_the_answers(
    tmp_path: Path,
    policies: Path,
    llm: LLMStandIn,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    llm.usage = {"prompt_tokens": 1000, "completion_tokens": 50, "prompt_tokens_details": {"cached_tokens": 800}}
    path = save(tmp_path, [turn("Hi.")] * 4)
    prices = ("--price-in", "1", "--price-out", "4")
    _status, report = run_json(path, policies, llm, capsys, *prices, "--price-cached", "0.5")
    assert report["usage"] == {"prompt_tokens": 4000, "cached_tokens": 3200, "completion_tokens": 200}
    assert report["cost_usd"] == pytest.approx((800 * 1 + 3200 * 0.5 + 200 * 4) / 1_000_000)
    assert report["cost_basis"] == "the prices given"
    assert report["questions"] == 4
    _status, report = run_json(path, policies, llm, capsys, *prices)
    assert report["cost_usd"] == pytest.approx((4000 * 1 + 200 * 4) / 1_000_000)
    assert run(path, policies, llm, *prices, "--format", "csv") == 0
    for row in csv.DictReader(io.StringIO(capsys.readouterr().out)):
        assert (row["prompt_tokens"], row["completion_tokens"], row["cost_usd"]) == ("4000", "200", "0.0048")
    # Without prices: OpenAI's own, which it says; none are made up for a model that is not OpenAI's.
    assert run(path, policies, llm, "--model", "gpt-4o-mini-2024-07-18") == 0
    assert re.search(r"0\.0005 USD at OpenAI's list prices for gpt-4o-mini, 20\d\d-\d\d\n", capsys.readouterr().out)
    monkeypatch.setenv("OPENAI_BASE_URL", llm.base_url)
    monkeypatch.setenv("OPENAI_MODEL", "judge-1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    assert main([str(path), "--policies", str(policies)]) == 0
    assert "unknown: give --price-in and --price-out" in capsys.readouterr().out
    assert llm.requests[-1].body["model"] == "judge-1"
    assert llm.requests[-1].headers["Authorization"] == "Bearer sk-test"
    asked = len(llm.requests)
    for incomplete in (["--price-in", "1"], ["--price-out", "1"], ["--price-cached", "1"]):
        assert main([str(path), "--policies", str(policies), *incomplete]) == 2
        assert "--price-in and --price-out" in capsys.readouterr().err
    assert len(llm.requests) == asked


def test_cached_tokens_cost_what_the_list_says() -> None:
    usage = Usage(prompt_tokens=1_000_000, completion_tokens=1_000_000, cached_tokens=400_000)
    prices = Prices.listed("gpt-4o-mini")
    assert prices is not None
    assert prices.cost(usage) == pytest.approx(0.6 * 0.15 + 0.4 * 0.075 + 0.60)
    assert Prices.listed("somebody-elses") is None


def test_every_turn_can_be_written_to_a_file(
    tmp_path: Path, policies: Path, llm: LLMStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path, [turn("refund", label=True), turn("Hi.", tool_calls=[{"name": "look"}])])
    out = tmp_path / "details.jsonl"
    assert run(path, policies, llm, "--details", str(out)) == 0
    first, second = map(json.loads, out.read_text().splitlines())
    assert (first["call_id"], first["turn"], first["bad"]) == ("calls", 0, True)
    assert first["speech"]["score"] == 0.65
    assert first["speech"]["rule"] == REFUND
    assert second["tools"][0]["code"] == "ok"
    assert second["tools"][0]["allow"] is True
    assert run(path, policies, llm, "--details", str(tmp_path / "no" / "details.jsonl")) == 2
    assert "cannot be written: No such file or directory" in capsys.readouterr().err


def test_rules_come_from_lines_or_json_and_a_prompt_from_its_file(
    tmp_path: Path, llm: LLMStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path, [turn("Hi.")])
    rules = save(tmp_path, [{"text": "Never say {x}.", "severity": "high"}, "Be brief."], "rules.json")
    assert run(path, rules, llm) == 0
    assert "1. Never say {x}.\n2. Be brief.\n" in llm.questions[-1].system
    lines = save(tmp_path, "\ufeff# a comment\r\nNever say {x}.\r\n\r\n  Be brief.  \r\n", "rules.txt")
    assert run(path, lines, llm) == 0
    assert "1. Never say {x}.\n2. Be brief.\n" in llm.questions[-1].system
    prompt = save(tmp_path, "Is {primary_response} rude?", "prompt.txt")
    assert main([str(path), "--judging-prompt-file", str(prompt), "--base-url", llm.base_url]) == 0
    assert "Is agent_text rude?" in llm.questions[-1].system
    assert capsys.readouterr().err == ""
    # Both: one of them judges, and it says which.
    assert run(path, lines, llm, "--judging-prompt-file", str(prompt)) == 0
    assert "Is agent_text rude?" in llm.questions[-1].system
    assert "Be brief." not in llm.questions[-1].system
    assert capsys.readouterr().err == "replay: the judging prompt takes the place of --policies\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "policies is empty: give at least one rule"),
        ("# nothing\n\n", "policies is empty: give at least one rule"),
        (f"Be brief.\n# x\n{'x' * 4001}\n", "line 3: String should have at most 4000 characters"),
        ("rule\n" * 501, "it has 501 rules; at most 500"),
        ("[1", "it is not JSON"),
        ('["Be brief.", " "]', "rule 2: Value error, the rule is blank"),
        ('[{"text": "x", "severity": "huge"}]', "rule 1: Input should be 'low', 'medium' or 'high'"),
        ("[7]", "rule 1: "),
    ],
)
def test_policies_that_cannot_be_used_are_named_with_their_line(
    tmp_path: Path, llm: LLMStandIn, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path, policies = save(tmp_path, [turn("Hi.")]), save(tmp_path, text, "policies.txt")
    assert run(path, policies, llm) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"replay: {policies}: ")
    assert message in said
    assert llm.requests == []


def test_files_that_are_not_there_are_named(
    tmp_path: Path, policies: Path, llm: LLMStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path, [turn("Hi.")])
    assert run(path, tmp_path / "none.txt", llm) == 2
    assert "none.txt: it cannot be read: No such file" in capsys.readouterr().err
    (tmp_path / "latin.txt").write_bytes(b"Nie l\xfcgen.")
    assert run(path, tmp_path / "latin.txt", llm) == 2
    assert "latin.txt: byte 5 is not UTF-8" in capsys.readouterr().err
    assert run(tmp_path / "none.json", policies, llm) == 2
    assert "none.json: it cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold-sweep", "0.5,high"], "--threshold-sweep: 'high' is not a number"),
        (["--threshold-sweep", "0.5,1.5"], "--threshold-sweep: '1.5' is no threshold"),
        (["--threshold-sweep", "0"], "--threshold-sweep: '0' is no threshold"),
        (["--threshold-sweep", "nan"], "--threshold-sweep: 'nan' is no threshold"),
        (["--threshold", "-1"], "--threshold: '-1' is no threshold"),
        (["--concurrency", "0"], "--concurrency: '0' is not a whole number from 1 to 1000"),
        (["--concurrency", "2.5"], "--concurrency: '2.5' is not a whole number"),
        (["--timeout", "600"], "--timeout: '600' is not a number from 0.1 to 60"),
        (["--fail-over", "5"], "--fail-over: '5' is not a number from 0 to 1"),
        (["--price-in", "cheap"], "--price-in: 'cheap' is not a number"),
        (["--price-out", "inf"], "--price-out: 'inf' is not a number from 0"),
        (["--all", "--pregate"], "not allowed with argument"),
        (["--format", "xml"], "--format: invalid choice: 'xml'"),
        (["--base-url", "127.0.0.1:8080"], "--base-url: '127.0.0.1:8080' is not the URL of a server"),
        (["--base-url", "http://[bad"], "--base-url: 'http://[bad' is not the URL of a server"),
        (["--base-url", "http://host:99999999/v1"], "is not the URL of a server"),
        (["--threshold", "0.5", "--threshold-sweep", "0.5"], "not allowed with argument"),
    ],
)
def test_options_that_make_no_sense_are_named(
    tmp_path: Path, policies: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as raised:
        main([str(save(tmp_path, [turn("Hi.")])), "--policies", str(policies), *options])
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_without_rules_a_key_or_a_model_nothing_is_asked(
    tmp_path: Path, policies: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL", "AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    path = str(save(tmp_path, [turn("Hi.")]))
    with pytest.raises(SystemExit):
        main([path])
    assert "give the rules with --policies FILE, or a prompt with --judging-prompt-file FILE" in capsys.readouterr().err
    assert main([path, "--policies", str(policies)]) == 2
    assert "OPENAI_API_KEY is not set" in capsys.readouterr().err
    assert main([path, "--policies", str(policies), "--base-url", "http://127.0.0.1:9", "--model", " "]) == 2
    assert "replay: the judge: model is blank" in capsys.readouterr().err
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://name.openai.azure.com")
    assert main([path, "--policies", str(policies), "--model", "judge"]) == 2
    assert "AZURE_OPENAI_API_KEY" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "openai", None)
    assert main([path, "--policies", str(policies), "--base-url", "http://127.0.0.1:9"]) == 2
    assert "install mirror[openai]" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_progress_bar_is_for_terminals_only() -> None:
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        times = iter([0.0, 0.06, 0.12, 0.18, 0.24])
        with Progress(stream, 4, clock=lambda times=times: next(times)) as progress:  # type: ignore[misc]
            for done in range(1, 5):
                progress.update(done, done // 3)
    assert file.getvalue() == ""
    drawn = terminal.getvalue().split("\r\x1b[K")
    # The first, those that come a tenth of a second after the last, and the last; then it is wiped away.
    assert [text.split()[1].rstrip(",") for text in drawn[1:-1]] == ["1/4", "3/4", "4/4"]
    assert ", errors: 1, 0 s left" in drawn[2]
    assert drawn[3].startswith("█" * 30)
    assert drawn[-1] == ""
    with Progress(untouched := Terminal(), 0):
        pass
    assert untouched.getvalue() == ""


def test_the_command_runs_as_a_module_on_a_terminal(tmp_path: Path, policies: Path, llm: LLMStandIn) -> None:
    path = tmp_path / "calls.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(json.dumps({"turns": [turn("refund")]}) for _ in range(3)).encode()))
    command = [sys.executable, "-m", "supervision.engine.replay", str(path), "--policies", str(policies)]
    command += ["--base-url", llm.base_url, "--threshold-sweep", "0.5,0.6,0.7,0.8", "--format", "csv"]
    ours, theirs = os.openpty()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    with open(ours, "rb", buffering=0) as terminal:
        shown = terminal.read(100_000).decode()
    assert done.returncode == 0
    assert "3/3" in shown
    assert [row["flagged"] for row in csv.DictReader(io.StringIO(done.stdout)) if row["kind"] == "speech"] == list(
        "3300"
    )
    piped = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert piped.stderr == ""


def test_ctrl_c_stops_at_once(tmp_path: Path, policies: Path, llm: LLMStandIn) -> None:
    llm.behave(hang=True)
    path = save(tmp_path, [turn("Hi.")] * 50)
    command = [sys.executable, "-m", "supervision.engine.replay", str(path), "--policies", str(policies)]
    command += ["--base-url", llm.base_url, "--timeout", "60"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        llm.wait_requests(16, timeout_s=60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "replay: stopped\n")


def test_replaying_imports_no_client_until_it_asks() -> None:
    code = "import sys, supervision.engine.replay.__main__; print('openai' in sys.modules, 'aiohttp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False False", done.stderr


async def test_details_repeat_nothing_that_was_said() -> None:
    async with LLMStandIn() as server:
        from supervision.engine.llm.openai import OpenAIClient

        client = OpenAIClient(api_key="k", model="m", base_url=server.base_url)
        result = await replay(one_call(turn("My words.", "Their words.")), MirrorConfig(llm=client, policies=[REFUND]))
        await client.aclose()
        assert "words" not in json.dumps(details(result))
