"""Frames that make no sense, one by one and in heaps: they cost themselves, never the call."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from picows import WSMsgType

from supervision.plivo.simulator import SimulatedCall
from tests.e2e.agents import AgentCall
from tests.stream.world import BAD, Frame, World, ears, say_turn
from tests.support.fuzz_frames import fuzz_frames
from tests.support.virtual_time import virtual_time

VALID: dict[str, dict[str, Any]] = {
    "mirror.hello": {"v": 1, "sdk": "x/1", "wants": ["notes"], "language": "en", "voice": "v", "marks": False},
    "mirror.transcript": {"role": "customer", "text": "Hello.", "final": True, "language": "en"},
    "mirror.turn": {
        "turn_id": "t1",
        "customer_text": "Hello.",
        "text": "Good day.",
        "tool_calls": [],
        "language": "en",
        "seen": "n1",
    },
    "mirror.tool": {
        "id": "c1",
        "turn_id": None,
        "name": "look_up",
        "args": {},
        "irreversible": False,
        "customer_text": "",
        "key": "k",
        "timeout_ms": 100,
        "seen": "n1",
    },
    "mirror.tool_done": {"id": "c0", "ok": True, "result": {}, "cancelled": False},
}
TEXTS = {"sdk", "text", "customer_text", "turn_id", "name", "id", "seen", "voice", "key", "language", "role"}
FLAGS = {"final", "marks", "irreversible", "ok", "cancelled"}
WRONG: list[tuple[str, str, Any]] = [
    (event, name, junk)
    for event, fields in VALID.items()
    for name in fields
    for junk in (
        [7, [], {}, True, "x" * 40_000]
        if name in TEXTS
        else [7, "yes", [], {}]
        if name in FLAGS
        else {
            "v": [2, "1", [], {}, True],
            "wants": ["notes", 7, {}, [7], [["notes"]]],
            "tool_calls": [
                7,
                "x",
                {},
                [7],
                [[]],
                [{}],
                [{"id": "a"}],
                [{"id": 7, "name": "n"}],
                [{"id": "a", "name": ""}],
            ],
            "timeout_ms": ["100", [], True, -1, 1.5, 10**9, 1e300],
        }.get(name, [])
    )
]


async def quiet(call: SimulatedCall) -> None:
    await asyncio.sleep(1.0)


@virtual_time
async def test_every_wrong_field_gets_one_error_that_names_it_and_the_call_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    told: list[list[dict[str, Any]]] = []
    over: list[bool] = []

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        for event, name, junk in WRONG:
            before = len(agent.events)
            await agent.send(event, **{**VALID[event], name: junk})
            await asyncio.sleep(0.05)
            told.append([event for event in agent.events[before:] if event["event"].startswith("mirror.")])
        await agent.send("mirror.turn", turn_id="good", text="Good day.")
        await agent.wait("mirror.verdict", turn_id="good")
        over.append(True)

    await world.call(script, lambda call: call.wait_for(lambda r: over, 60))
    assert len(WRONG) > 100
    for (event, name, junk), answers in zip(WRONG, told, strict=True):
        where = f"{event}.{name}={str(junk)[:40]!r}: {answers}"
        assert [answer["event"] for answer in answers] == ["mirror.error"], where
        expected = "bad_version" if name == "v" else "bad_field"
        assert answers[0]["code"] == expected, where
        assert answers[0]["message"].startswith(name), where
    assert len(world.record.of("frame.rejected")) == len(WRONG)
    assert [turn["ref"] for turn in world.record.of("turn.reported")] == ["good"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"event":"mirror.turn"', "bad_json"),
        ('{ "event" : "mirror.turn", "turn_id": }', "bad_json"),
        ('{"turn_id": "t", "event":"mirror.turn", "text": NaN}', "bad_json"),
        ('{"event":"mirror.turn","turn_id":"t","text":"' + "\\x" + '"}', "bad_json"),
        ('{"event":"mirror.turn","turn_id":"t","text":"x","deep":' + "[" * 100_000 + "}", "bad_json"),
        ('{"event":"mirror.turn","turn_id":"t","text":"x","tool_calls":' + "[" * 900 + "]" * 900 + "}", "bad_field"),
        ('{"event":"mirror.nonsense"}', "bad_field"),
        ('{"event":"mirror."}', "bad_field"),
        ('{"event":"mirror.delta","text":"x"}', "bad_field"),
        ('{"event":"mirror.delta","turn_id":"t"}', "bad_field"),
        ('{"event":"mirror.delta","turn_id":"t","text":["x"]}', "bad_field"),
        ('{"event":"mirror.delta","turn_id":"t","text":"x","final":"yes"}', "bad_field"),
        ('{"event":"mirror.delta","turn_id":"t","text":"x","final":1,"language":"no tag"}', "bad_field"),
        ('{"event":"mirror.said","id":"x"}', "unknown_id"),
        ('{"event":"mirror.said"}', "bad_field"),
        ('{"event":"mirror.audio","say":"x","state":"start"}', "unknown_id"),
        ('{"event":"mirror.audio","say":["x"],"state":"start"}', "bad_field"),
        ('{"event":"mirror.audio","turn_id":"t","state":"start"}', "bad_field"),
        ('{"event":"mirror.hello","v":2}', "bad_version"),
    ],
)
@virtual_time
async def test_a_frame_of_mirrors_that_cannot_be_read_is_answered_and_never_reaches_plivo(
    monkeypatch: pytest.MonkeyPatch, text: str, code: str
) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await agent.connection.send(text)

    record = await world.call(script, quiet)
    (error,) = world.agent.of("mirror.error")
    assert error["code"] == code
    assert world.record.one("frame.rejected")["code"] == code
    assert not [
        frame for frame in record.raw_received if b"mirror." in frame.payload and b"__mirror_" not in frame.payload
    ]


@virtual_time
async def test_before_hello_everything_else_is_answered_with_no_hello(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.wait("start")
        await agent.send("mirror.turn", turn_id="t1", text="Good day.")
        await agent.send("mirror.tool_done", id="x")
        await agent.send("mirror.turn", turn_id=5, text=[])
        await agent.send("mirror.unheard_of")
        assert {error["code"] for error in agent.of("mirror.error")} <= {"no_hello"}
        await agent.wait("mirror.error", count=4)
        await agent.send("mirror.hello")
        await agent.wait("mirror.ready")
        await agent.send("mirror.turn", turn_id="t1", text="Good day.")
        await agent.send("mirror.turn", turn_id="t1", text="Good day.")
        await agent.wait("mirror.error", code="duplicate_turn", ref="t1")

    await world.call(script, quiet)
    errors = [(error["code"], error["ref"]) for error in world.agent.of("mirror.error")]
    assert errors[:4] == [("no_hello", "t1"), ("no_hello", "x"), ("no_hello", None), ("no_hello", None)]
    assert errors[4:] == [("duplicate_turn", "t1")]
    assert len(world.record.of("turn.reported")) == 1


ODD_TEXT = "nul \x00, half an emoji \ud83d, bell \x07, right to left \u202e, {braces} %s"


@virtual_time
async def test_odd_characters_are_judged_answered_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """JavaScript cuts emoji in half; what is left of them must not cost the turn its judgement."""
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        odd = json.dumps(ODD_TEXT)  # the half emoji as an escape, as JSON.stringify writes it
        await agent.connection.send(f'{{"event":"mirror.transcript","text":{odd}}}')
        await agent.connection.send(
            f'{{"event":"mirror.turn","turn_id":{odd},"text":{odd},'
            f'"tool_calls":[{{"id":"c1","name":{odd},"args":{{"a":{odd}}}}}]}}'
        )
        await agent.wait("mirror.verdict")
        verdict = await agent.wait("mirror.tool_verdict", id="c1")
        assert verdict["allow"] is True

    await world.call(script, quiet)
    assert world.agent.of("mirror.error") == []
    (asked,) = world.llm.of("mirror_turn")
    assert asked.user["agent_text"].encode()  # no lone surrogate reaches the judge
    assert "half an emoji \ufffd," in asked.user["agent_text"]
    assert world.record.one("turn.judged")["state"] == "judged"
    assert json.dumps([event.data for event in world.record.events], ensure_ascii=False).encode()


@virtual_time
async def test_a_judge_that_answers_half_an_emoji_does_not_break_the_agents_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch, config={"tiered_scoring_enabled": False})
    world.llm.turn = '{"score": 0.1, "rule": null, "reason": "odd \\ud83d \\u0000", "correction": ""}'

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await agent.send("mirror.turn", turn_id="t1", text="Good day.")
        await agent.wait("mirror.verdict")

    await world.call(script, quiet)
    assert world.record.one("turn.judged")["state"] == "judged"


# The heap

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["start", "media", "mirror.turn", "t1", "inbound", "audio/x-mulaw", "!!!!", "/w==", ""])
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = [
    "v", "sdk", "wants", "language", "voice", "marks", "role", "text", "final", "turn_id", "customer_text", "seen",
    "tool_calls", "state", "chars", "id", "name", "args", "irreversible", "key", "timeout_ms", "ok", "result", "media",
    "cancelled", "streamId", "payload", "start", "dtmf", "sequenceNumber", "playedStream", "contentType", "sampleRate",
]  # fmt: skip
EVENTS = [
    "mirror.hello", "mirror.transcript", "mirror.turn", "mirror.delta", "mirror.audio", "mirror.tool",
    "mirror.tool_done", "mirror.said", "mirror.ready", "mirror.x", "playAudio", "checkpoint", "clearAudio", "sendDTMF",
    "start", "media", "dtmf", "playedStream", "clearedAudio", "stop", "error", "playFailed", "", "unheard of",
]  # fmt: skip
objects = st.builds(
    lambda event, fields: {"event": event, **fields},
    st.sampled_from(EVENTS) | values,
    st.dictionaries(st.sampled_from(NAMES), values, max_size=6),
)
plausible = st.one_of(
    st.builds(
        lambda ref, text, seen: {"event": "mirror.turn", "turn_id": ref, "text": text, "seen": seen},
        st.sampled_from(["t1", "t2", "t3"]),
        st.sampled_from([BAD, "Good day.", ""]),
        st.none() | st.text(max_size=3),
    ),
    st.builds(
        lambda ref, state, chars: {"event": "mirror.audio", "turn_id": ref, "state": state, "chars": chars},
        st.sampled_from(["t1", "t2", "t3"]),
        st.sampled_from(["start", "mark", "end", "cut"]),
        st.none() | st.integers(0, 50),
    ),
    st.builds(
        lambda tool, amount: {"event": "mirror.tool", "id": tool, "name": "charge_card", "args": {"amount": amount}},
        st.sampled_from(["a", "b"]),
        st.integers(0, 2),
    ),
    st.builds(
        lambda tool, ok: {"event": "mirror.tool_done", "id": tool, "ok": ok, "result": "done"},
        st.sampled_from(["a", "b", "c"]),
        st.booleans(),
    ),
    st.builds(
        lambda payload: {
            "event": "playAudio",
            "media": {"contentType": "audio/x-mulaw", "sampleRate": 8000, "payload": payload},
        },
        st.sampled_from(["EJCQkJCQ" * 20, "/w==", "", "%%%", "A" * 7, "/////" * 4_000]),
    ),
    st.builds(
        lambda event, stream, name: {"event": event, "streamId": stream, "name": name},
        st.sampled_from(["checkpoint", "clearAudio", "playedStream", "clearedAudio"]),
        st.sampled_from(["STREAM", "another", ""]),
        st.sampled_from(["one", "two", ""]),
    ),
    st.just({"event": "mirror.hello", "v": 1, "marks": True}),
    st.just({"event": "mirror.hello", "v": 1, "language": "de"}),
    st.just({"event": "dtmf", "dtmf": {"digit": "1"}}),
)
garbage = st.one_of(
    st.text(max_size=60),
    st.builds(lambda text, cut: text[:cut], objects.map(json.dumps), st.integers(0, 80)),
    st.sampled_from(["", "null", "[]", "{", "[" * 20_000, '{"a":' * 20_000, '{"event":"mirror.', '"\\ud800"', "\x00"]),
)
messages = st.lists(
    st.tuples(
        st.sampled_from(["agent", "plivo"]),
        st.one_of(plausible.map(json.dumps), objects.map(json.dumps), garbage, st.binary(max_size=40)),
        st.sampled_from([0.0] * 20 + [0.001, 0.02, 0.3, 1.0]),
    ),
    max_size=120,
)


@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(messages=messages)
def test_no_heap_of_frames_ends_a_call(messages: list[tuple[str, Any, float]]) -> None:
    heap(messages)


@pytest.mark.parametrize("seed", range(4))
def test_frames_with_something_wrong_in_one_place_end_no_call(seed: int) -> None:
    """`make soak` sends a million of these over real sockets."""
    number = 400
    pairs = zip(fuzz_frames(seed, number, side="agent"), fuzz_frames(seed, number, side="plivo"), strict=True)
    messages: list[tuple[str, Any, float]] = []
    for n, (from_agent, from_plivo) in enumerate(pairs):
        messages += [("agent", from_agent, 0.0), ("plivo", from_plivo, 0.02 if n % 10 == 0 else 0.0)]
    heap(messages)


@virtual_time
async def heap(messages: list[tuple[str, Any, float]]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        world = World(monkeypatch)
        over: list[bool] = []

        async def script(agent: AgentCall) -> None:
            await agent.hello()
            connection: Any = agent.connection
            for side, message, pause in messages:
                if side == "agent":
                    if isinstance(message, str):
                        message = message.replace("STREAM", agent.stream_id)
                        payload = message.encode("utf-8", "replace")
                        connection.deliver(Frame(WSMsgType.TEXT, payload))
                    else:
                        kind = WSMsgType.TEXT if pause == 0.001 else WSMsgType.BINARY
                        connection.deliver(Frame(kind, message))
                else:
                    assert world.simulated is not None
                    text = isinstance(message, str)
                    raw = message.encode("utf-8", "replace") if isinstance(message, str) else message
                    world.simulated.send_raw(raw, text=text)
                await asyncio.sleep(pause)
            # Whatever that was, Mirror still does what it is there for.
            await asyncio.sleep(10)
            await agent.send("mirror.hello", v=1, wants=["notes", "verdicts"], marks=False, language="en")
            await asyncio.sleep(1)
            assert connection.close_code is None
            await agent.send("clearAudio", streamId=agent.stream_id)
            await asyncio.sleep(1)
            await say_turn(agent, "the last", BAD, 3.0)
            await agent.wait("mirror.verdict", turn_id="the last", state="judged", intervene=True)
            await asyncio.sleep(8)
            over.append(True)

        record = await world.call(script, lambda call: call.wait_for(lambda r: over, 300))
        assert record.outcome == "completed"
        reported, judged = world.record.of("turn.reported")[-1], world.record.of("turn.judged")[-1]
        assert reported["turn_id"] == judged["turn_id"]
        if judged["acted"]:
            since = record.heard.since(reported["at_ms"] / 1000)
            assert sum(voice.seconds for voice in ears(since) if voice.label == BAD) < 0.5
            assert ears(since)[-1].label != BAD
        errors, rejected = world.agent.of("mirror.error"), world.record.of("frame.rejected")
        assert len(errors) == len(rejected) <= len(messages)
