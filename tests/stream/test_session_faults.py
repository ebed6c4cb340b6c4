"""What happens to a call when somebody leaves, fails or hangs: the caller, the agent, the judge, the disk."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from picows import WSHandshakeError, WSMsgType

from supervision.plivo.simulator import CallRecord, PlivoSwitches, SimulatedCall
from supervision.stream import dial, session
from tests.e2e.agents import AgentCall
from tests.stream.world import BAD, BUFFER, CORRECTION, GOOD, Frame, World, check_record, ears, order, say_turn
from tests.support.virtual_time import virtual_time

SLOW_WIRE = PlivoSwitches(delay_s=0.1)


def cut(record: CallRecord) -> object:
    return record.of("clearAudio")


async def bad_turn(agent: AgentCall) -> None:
    await agent.hello()
    await say_turn(agent, "t1", BAD, 20.0)
    await agent.wait("never", timeout_s=None)  # type: ignore[arg-type]


# The caller hangs up


@pytest.mark.parametrize(
    ("after_cut_s", "heard", "steps"),
    [
        (0.0, [BAD], ["clear_sent"]),
        (0.05, [BAD], ["clear_sent"]),
        (0.3, [BAD, BUFFER], ["clear_sent", "silence_proved", "buffer_sent"]),
        (
            1.2,
            [BAD, BUFFER],
            ["clear_sent", "silence_proved", "buffer_sent", "correction_ready", "note_sent", "correction_sent"],
        ),
        (
            3.0,
            [BAD, BUFFER, CORRECTION],
            ["clear_sent", "silence_proved", "buffer_sent", "correction_ready", "note_sent", "correction_sent"],
        ),
    ],
)
@virtual_time
async def test_a_caller_who_hangs_up_during_an_intervention_ends_it_at_once(
    monkeypatch: pytest.MonkeyPatch, after_cut_s: float, heard: list[str], steps: list[str]
) -> None:
    world = World(monkeypatch)

    async def during(call: SimulatedCall) -> None:
        await call.wait_for(cut, 20)
        await asyncio.sleep(after_cut_s)

    record = await world.call(bad_turn, during, SLOW_WIRE)
    assert order(record.heard) == heard
    gone = record.began_at + (record.ended_t or 0)
    assert world.connections[0].close_code == 1000
    assert (world.connections[0].closed_at or 0) - gone < 0.15
    ended = world.record.one("intervention.ended")
    assert ended["outcome"] == "caller_gone"
    assert ended["at_ms"] <= world.record.one("call.ended")["duration_ms"] + 50
    assert world.record.steps()[: len(steps)] == steps
    assert "correction_played" not in world.record.steps()
    end = world.record.one("call.ended")
    assert (end["outcome"], end["ended_by"], end["interventions"]) == ("completed", "caller", 1)
    assert [event["heard_ms"] for event in world.record.of("turn.heard")] == [ended["heard_ms"]]


@virtual_time
async def test_a_caller_who_hangs_up_in_the_moment_of_the_verdict_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def during(call: SimulatedCall) -> None:
        await asyncio.sleep(0.2)  # the judge's time exactly

    await world.call(bad_turn, during)
    assert world.over_at < 1_000.5
    for ended in world.record.of("intervention.ended"):
        assert ended["outcome"] == "caller_gone"


@virtual_time
async def test_a_caller_who_hangs_up_before_the_verdict_gets_the_turn_judged_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.llm.delay_s = 1.0

    async def during(call: SimulatedCall) -> None:
        await asyncio.sleep(0.5)

    await world.call(bad_turn, during)
    assert world.connections[0].closed_at == pytest.approx(1_000.5, abs=0.05)
    judged = world.record.one("turn.judged")
    assert (judged["state"], judged["intervene"], judged["acted"], judged["withheld"]) == (
        "judged",
        True,
        False,
        "late",
    )
    assert world.record.of("intervention.started") == []
    assert world.record.one("turn.heard")["heard_ms"] == pytest.approx(480, abs=60)


@virtual_time
async def test_a_caller_who_hangs_up_after_the_hand_back_has_heard_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def during(call: SimulatedCall) -> None:
        await call.wait_for(lambda r: world.record.of("intervention.ended"), 30)

    record = await world.call(bad_turn, during, SLOW_WIRE)
    assert order(record.heard) == [BAD, BUFFER, CORRECTION]
    assert world.record.one("intervention.ended")["outcome"] == "completed"


@virtual_time
async def test_a_judge_that_hangs_does_not_hold_up_the_end_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ASGI server cancels what outlives its socket by more than 10 s, and the record's last line with it."""
    world = World(monkeypatch, config={"semantic_review_timeout_s": 60.0, "tool_gate_timeout_ms": 60_000})
    world.llm.delay_s = 1_000.0

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 2.0, tool_calls=[{"id": "c1", "name": "charge_card", "args": {}}])

    record = await world.call(script, lambda call: asyncio.sleep(1.0))
    assert world.over_at - record.began_at < 1.0 + 6.0
    end = world.record.one("call.ended")
    assert (end["turns"], end["failed"], end["coverage_state"]) == (1, 1, "partial")
    decided = world.record.one("tool.decided")
    assert decided["allow"] is False


@virtual_time
async def test_what_an_agent_says_after_the_call_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.llm.delay_s = 1.0

    async def during(call: SimulatedCall) -> None:
        await asyncio.sleep(0.5)
        call.hang_up()
        listener, transport = world.connections[0].listener, world.connections[0].transport
        await asyncio.sleep(0.1)
        # picows may still hand over what was on its way when Mirror closed the socket.
        late = {"event": "mirror.turn", "turn_id": "late", "customer_text": "", "text": "Too late."}
        listener.on_ws_frame(transport, Frame(WSMsgType.TEXT, json.dumps(late).encode()))

    await world.call(bad_turn, during)
    assert [turn["ref"] for turn in world.record.of("turn.reported")] == ["t1"]


# The agent leaves


@pytest.mark.parametrize("moment", ["before", "during", "after"])
@virtual_time
async def test_an_agent_that_dies_ends_the_call_as_failed(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        if moment != "before":
            await say_turn(agent, "t1", BAD, 20.0)
            await agent.wait("mirror.intervention", phase="buffer" if moment == "during" else "completed")
        await asyncio.sleep(0.2)
        await agent.connection.close(1006)

    record = await world.call(script, lambda call: asyncio.sleep(60), SLOW_WIRE)
    assert (record.outcome, record.ended_by, record.close_code) == ("failed", "agent", 1011)
    assert record.ended_t is not None
    assert record.ended_t < 10
    end = world.record.one("call.ended")
    assert (end["outcome"], end["ended_by"], end["close_code"]) == ("failed", "agent", 1011)
    assert "1006" in end["reason"]
    assert "1006" in world.record.one("agent.failed")["reason"]
    if moment != "before":
        # Nobody hung up: the intervention failed, because there was no call any more to say it in.
        expected = {"during": "failed", "after": "completed"}[moment]
        assert world.record.one("intervention.ended")["outcome"] == expected


@pytest.mark.parametrize("code", [1000, 1001, 1011, 4000])
@virtual_time
async def test_the_agents_close_code_decides_whether_the_call_completed(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await agent.connection.close(code)

    record = await world.call(script, lambda call: asyncio.sleep(60))
    normal = code in (1000, 1001)
    assert record.close_code == (1000 if normal else 1011)
    end = world.record.one("call.ended")
    assert (end["outcome"], end["ended_by"]) == ("completed" if normal else "failed", "agent")


@virtual_time
async def test_an_agent_that_says_goodbye_during_an_intervention_lets_the_correction_be_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 20.0)
        await agent.wait("mirror.intervention", phase="started")
        await agent.connection.close(1000)

    record = await world.call(script, lambda call: asyncio.sleep(60), SLOW_WIRE)
    assert order(record.heard) == [BAD, BUFFER, CORRECTION]
    assert ears(record.heard)[-1].seconds == pytest.approx(3.66, abs=0.05)
    assert (record.close_code, record.ended_by) == (1000, "agent")
    assert (record.ended_t or 0) - ears(record.heard)[-1].end < 1.0
    assert world.record.one("intervention.ended")["outcome"] == "completed"
    end = world.record.one("call.ended")
    assert (end["outcome"], end["ended_by"], end["close_code"]) == ("completed", "agent", 1000)


@virtual_time
async def test_a_goodbye_waits_for_an_intervention_no_longer_than_ten_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    # Nobody answers, so the intervention waits for an acknowledgement until its own limit.
    monkeypatch.setattr(session, "AGENT_CLOSE_WAITS_S", 2.0)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 20.0)
        await agent.wait("mirror.intervention", phase="started")
        await agent.connection.close(1000)

    record = await world.call(script, lambda call: asyncio.sleep(60))
    assert record.ended_t == pytest.approx(2.2, abs=0.05)
    assert order(record.heard) == [BAD, BUFFER, CORRECTION]
    assert world.record.one("intervention.ended")["outcome"] == "failed"
    assert world.record.one("call.ended")["outcome"] == "completed"


@pytest.mark.parametrize("why", ["refused", "hangs", "http 404"])
@virtual_time
async def test_an_agent_that_cannot_be_reached_ends_the_call_within_five_seconds(
    monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    world = World(monkeypatch)
    if why == "hangs":
        world.dial_delay_s = 1_000.0
    elif why == "refused":
        world.dial_error = ConnectionRefusedError(111, "Connection refused")
    else:
        world.dial_error = WSHandshakeError("upgrade request failed with status 404")
    record = await world.call(bad_turn, lambda call: asyncio.sleep(60))
    assert (record.outcome, record.close_code) == ("failed", 1011)
    assert record.ended_t is not None
    assert record.ended_t <= 5.1
    end = world.record.one("call.ended")
    assert (end["outcome"], end["ended_by"]) == ("failed", "agent")
    assert "could not be reached" in end["reason"]
    assert world.record.one("agent.failed")


@virtual_time
async def test_a_caller_who_hangs_up_while_the_agent_is_dialled_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.dial_delay_s = 1.0
    await world.call(bad_turn, lambda call: asyncio.sleep(0.5))
    assert world.over_at < 1_001.0
    assert all(connection.close_code is not None for connection in world.connections)
    assert world.record.one("call.ended")["outcome"] == "completed"
    assert world.record.of("agent.failed") == []


@virtual_time
async def test_plivo_is_buffered_in_order_while_the_agent_is_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.dial_delay_s = 2.0

    async def script(agent: AgentCall) -> None:
        await agent.wait("media", count=1)

    record = await world.call(script, lambda call: asyncio.sleep(4.0))
    got = [message for message in world.agent.raw if isinstance(message, str)]
    assert [message.encode() for message in got] == [frame.payload for frame in record.raw_sent][: len(got)]
    assert json.loads(got[0])["event"] == "start"
    assert len(got) > 190


@virtual_time
async def test_a_slow_agent_costs_its_own_oldest_media_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        agent.connection.stop_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(30)
        agent.connection.read_on()  # type: ignore[attr-defined]
        await asyncio.sleep(1)

    async def during(call: SimulatedCall) -> None:
        await asyncio.sleep(20)
        call.press("7")
        await asyncio.sleep(20)

    record = await world.call(script, during)
    numbers = [event["sequenceNumber"] for event in world.agent.of("media")]
    assert numbers == sorted(set(numbers))
    frames = [json.loads(frame.payload) for frame in record.raw_sent]
    sent = [frame["sequenceNumber"] for frame in frames if frame["event"] == "media"]
    lost = set(sent) - set(numbers)
    assert 700 < len(lost) < 1_200  # of 30 s, the newest 10 s and what lay in the socket were kept
    assert len(world.agent.of("dtmf")) == 1  # not media: never dropped
    end = world.record.one("call.ended")
    assert end["dropped_media_ms"] == len(lost) * 20
    assert sum(event["ms"] for event in world.record.of("media.dropped")) == end["dropped_media_ms"]
    assert {event["direction"] for event in world.record.of("media.dropped")} == {"inbound"}


@virtual_time
async def test_an_agent_that_asks_all_the_time_and_never_reads_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are never dropped, so what waits for it would grow for as long as the call."""
    monkeypatch.setattr(dial, "BACKLOG_MOST", 256 * 1024)
    world = World(monkeypatch)
    waiting: list[int] = []

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        agent.connection.stop_reading()  # type: ignore[attr-defined]
        for _ in range(20_000):
            await agent.send("mirror.turn", turn_id=7)
            waiting.append(world.connections[0].listener._leg._backlog_bytes)

    record = await world.call(script, lambda call: call.wait_for(lambda r: False, 60), hang_up=False)
    assert (record.outcome, record.ended_by) == ("failed", "agent")
    assert max(waiting) <= 257 * 1024
    assert world.connections[0].transport.aborted
    end = world.record.one("call.ended")
    assert (end["outcome"], end["ended_by"]) == ("failed", "agent")


@virtual_time
async def test_of_a_flood_of_bad_frames_the_record_tells_without_having_each(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    flood = 5_000

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        for _ in range(flood // 50):
            for _ in range(50):
                await agent.send("mirror.turn", turn_id=7)
            await asyncio.sleep(0.1)
        await asyncio.sleep(1)
        await agent.send("mirror.turn", turn_id=7)
        await agent.wait("mirror.error", count=flood + 1)

    await world.call(script, lambda call: asyncio.sleep(15))
    rejected = world.record.of("frame.rejected")
    assert 500 < len(rejected) < 520
    # None is forgotten: each entry says how many came before it.
    more = [
        int(each["message"].rpartition("(and ")[2].split()[0]) for each in rejected if "more before" in each["message"]
    ]
    assert len(rejected) + sum(more) == flood + 1


@virtual_time
async def test_an_agent_that_never_reads_is_cut_off_when_the_call_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        agent.connection.stop_reading()  # type: ignore[attr-defined]

    await world.call(script, lambda call: asyncio.sleep(30))
    await asyncio.sleep(10)
    assert world.connections[0].transport.aborted


@virtual_time
async def test_ten_minutes_of_audio_at_once_are_paced_and_can_still_be_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.llm.delay_s = lambda asked: 2.0 if asked.schema_name == "mirror_turn" and asked.at < 1_001 else 0.1

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 600.0)
        await agent.wait("mirror.intervention", phase="completed")
        await say_turn(agent, "t2", GOOD, 1.0, seen=agent.of("mirror.note")[-1]["id"])
        await agent.send("checkpoint", streamId=agent.stream_id, name="end")

    record = await world.call(script, lambda call: call.wait_for(lambda r: r.played("end"), 60))
    assert order(record.heard) == [BAD, BUFFER, CORRECTION, GOOD]
    assert world.record.of("turn.heard")[0]["audio_ms"] == 600_000


@virtual_time
async def test_a_plivo_that_never_answers_our_close_does_not_keep_the_call_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.plivo_answers_close = False

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await agent.connection.close(1000)

    await world.call(script, lambda call: asyncio.sleep(60))
    assert world.over_at < 1_010.0
    assert world.record.one("call.ended")["outcome"] == "completed"


@virtual_time
async def test_a_server_that_stops_ends_its_calls_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def during(call: SimulatedCall) -> None:
        await call.wait_for(cut, 20)
        await asyncio.sleep(0.5)
        world.apps[0].cancel()
        await asyncio.sleep(60)

    with pytest.raises(asyncio.CancelledError):
        await world.call(bad_turn, during)
    assert world.simulated is not None
    assert world.simulated.record.close_code == 1012
    assert world.connections[0].close_code == 1000
    end = world.record.one("call.ended")
    assert (end["outcome"], end["ended_by"], end["close_code"]) == ("failed", "mirror", 1012)
    assert end["reason"] == "Mirror was stopped during the call"
    assert world.record.one("intervention.ended")["outcome"] == "failed"
    check_record(world.record.events)


# The judge fails

GARBAGE: list[Any] = [
    "not json at all",
    "[]",
    '"high"',
    "{}",
    "null",
    "NaN",
    '{"score": "high", "rule": null, "reason": "", "correction": ""}',
    '{"score": 85, "rule": "1", "reason": "", "correction": ""}',
    '{"score": NaN, "rule": "1", "reason": "", "correction": ""}',
    '{"score": true, "rule": "1", "reason": "", "correction": ""}',
    '{"score": 0.9, "rule": "1", "reason": "", "correction": ""}}',
    "[" * 5_000,
]


@pytest.mark.parametrize("answer", GARBAGE)
@virtual_time
async def test_a_judge_that_answers_nonsense_fails_and_the_call_goes_on(
    monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    world = World(monkeypatch)
    world.llm.turn = world.llm.tools = answer

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        charge = {"id": "c1", "name": "charge_card", "args": {"amount": 1}}
        look_up = {"id": "c2", "name": "look_up", "args": {}}
        await say_turn(agent, "t1", GOOD, 2.0, tool_calls=[charge, look_up])
        await agent.send("checkpoint", streamId=agent.stream_id, name="end")

    record = await world.call(script, lambda call: call.wait_for(lambda r: r.played("end"), 60))
    assert order(record.heard) == [GOOD]
    assert world.record.one("turn.judged")["state"] == "failed"
    decided = {event["ref"]: event for event in world.record.of("tool.decided")}
    assert (decided["c1"]["allow"], decided["c1"]["code"]) == (False, "failed")
    assert (decided["c2"]["allow"], decided["c2"]["code"]) == (True, "failed")
    end = world.record.one("call.ended")
    assert (end["failed"], end["coverage_state"], end["coverage"], end["tools_blocked"]) == (1, "partial", 0.0, 1)


@virtual_time
async def test_a_judge_that_hangs_times_out_and_the_turn_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, config={"tiered_scoring_enabled": False})
    world.llm.delay_s = 1_000.0

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        call = {"id": "c1", "name": "charge_card", "args": {"amount": 1}}
        await say_turn(agent, "t1", BAD, 2.0, tool_calls=[call])
        tool = await agent.wait("mirror.tool_verdict", id="c1")
        assert (tool["allow"], tool["code"]) == (False, "timeout")
        assert tool["instruction"]
        verdict = await agent.wait("mirror.verdict", turn_id="t1")
        assert (verdict["state"], verdict["intervene"], verdict["acted"]) == ("timed_out", False, False)
        world.llm.delay_s = 0.1
        await say_turn(agent, "t2", GOOD, 1.0)
        await agent.send("checkpoint", streamId=agent.stream_id, name="end")

    record = await world.call(script, lambda call: call.wait_for(lambda r: r.played("end"), 60))
    assert order(record.heard) == [BAD, GOOD]
    first, second = world.record.of("turn.judged")
    assert (first["state"], first["at_ms"]) == ("timed_out", pytest.approx(4_000, abs=50))
    assert second["state"] == "judged"
    decided = world.record.one("tool.decided")
    assert (decided["code"], decided["latency_ms"]) == ("timeout", pytest.approx(3_000, abs=50))
    end = world.record.one("call.ended")
    assert (end["timed_out"], end["judged"], end["coverage"]) == (1, 1, 0.5)


@virtual_time
async def test_a_verdict_that_comes_after_the_turn_was_played_gives_a_note_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.llm.delay_s = 3.5

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 1.0)
        note = await agent.wait("mirror.note")
        assert note["said"] == ""
        assert note["turn_id"] == "t1"

    record = await world.call(script, lambda call: asyncio.sleep(6.0))
    assert order(record.heard) == [BAD]
    judged = world.record.one("turn.judged")
    assert (judged["acted"], judged["withheld"]) == (False, "late")
    ended = world.record.one("intervention.ended")
    assert (ended["outcome"], ended["heard_ms"]) == ("late", 1_000)
    assert world.record.one("turn.heard")["heard_text"] == BAD


@virtual_time
async def test_a_late_verdict_does_not_stop_a_newer_innocent_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.llm.delay_s = lambda asked: 2.0 if "refunded" in asked.user["agent_text"] else 0.1

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 1.0)
        await asyncio.sleep(1.5)
        await say_turn(agent, "t2", GOOD, 3.0)
        await agent.send("checkpoint", streamId=agent.stream_id, name="end")

    record = await world.call(script, lambda call: call.wait_for(lambda r: r.played("end"), 60))
    assert order(record.heard) == [BAD, GOOD]
    assert ears(record.heard)[1].seconds == pytest.approx(3.0, abs=0.03)
    assert not record.of("clearAudio")
    assert world.record.one("intervention.ended")["outcome"] == "late"


# The correction fails


@virtual_time
async def test_a_correction_that_does_not_come_is_replaced_by_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.llm.delay_s = lambda asked: 1_000.0 if asked.schema_name == "mirror_correction" else 0.2
    record = await world.call(bad_turn, lambda call: call.wait_for(lambda r: world.record.of("intervention.ended"), 60))
    ended = world.record.one("intervention.ended")
    assert (ended["outcome"], ended["correction_source"]) == ("completed", "template")
    assert order(record.heard) == [BAD, BUFFER, ended["correction_text"]]
    assert ended["gap_ms_buffer_to_correction"] == 0


@virtual_time
async def test_a_voice_that_fails_after_the_cut_speaks_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def during(call: SimulatedCall) -> None:
        await call.wait_for(cut, 20)
        world.tts.error = RuntimeError("the provider is gone")
        await call.wait_for(lambda r: world.record.of("intervention.ended"), 60)

    record = await world.call(bad_turn, during)
    ended = world.record.one("intervention.ended")
    assert (ended["outcome"], ended["correction_source"]) == ("completed", "template")
    assert order(record.heard) == [BAD, BUFFER, ended["correction_text"]]
    assert "rendering_failed" in world.record.steps()
