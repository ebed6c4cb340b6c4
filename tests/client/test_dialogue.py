"""What the client tells Mirror and makes of its answers. On virtual time, over a socket in memory."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from supervision.client import MirrorClient, Note, UnsupportedSocketError
from tests.client.wire import Closed, Wire, settle
from tests.support.virtual_time import elapsed_s, virtual_time

START = {"event": "start", "start": {"callId": "c", "streamId": "s"}}
READY = {
    "event": "mirror.ready",
    "v": 1,
    "call_id": "call-1",
    "mode": "live",
    "policy": {"id": "p-1", "version": 7},
    "gated_tools": ["Place_Order"],
    "resumed": False,
    "notes": [],
}


def tool_verdict(id: str, *, allow: bool, code: str, **fields: Any) -> dict[str, Any]:
    return {"event": "mirror.tool_verdict", "id": id, "allow": allow, "code": code, "valid_ms": 10_000, **fields}


def note(id: str, text: str, *, rev: int = 1, **fields: Any) -> dict[str, Any]:
    return {"event": "mirror.note", "id": id, "rev": rev, "text": text, "expires_turns": 3, **fields}


def intervention(id: str, turn_id: str, phase: str, text: str = "") -> dict[str, Any]:
    return {"event": "mirror.intervention", "id": id, "turn_id": turn_id, "phase": phase, "text": text}


# Hello


@virtual_time
async def test_hello_is_said_when_the_first_frame_from_plivo_was_seen() -> None:
    wire = Wire()
    mirror = MirrorClient(wire, language="en-GB", voice="heart", marks=True)
    reading = asyncio.create_task(mirror.websocket.recv())
    await settle()
    assert wire.sent == []
    wire.arrive(START)
    assert json.loads(await reading) == START
    expected = {"event": "mirror.hello", "v": 1, "sdk": "mirror-python/0.1.0", "wants": ["verdicts", "notes"]}
    assert wire.sent == [{**expected, "language": "en-GB", "voice": "heart", "marks": True}]


@virtual_time
async def test_hello_comes_before_anything_else_even_when_the_agent_speaks_before_it_reads() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    await asyncio.gather(mirror.turn("Hello."), mirror.transcript("Hi"), mirror.turn("How can I help?"))
    assert [frame["event"] for frame in wire.sent] == [
        "mirror.hello",
        "mirror.turn",
        "mirror.transcript",
        "mirror.turn",
    ]


@virtual_time
async def test_ready_tells_what_mirror_supervises() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    wire.arrive(READY)
    ready = await mirror.wait_ready()
    assert ready is not None
    assert (ready.call_id, ready.mode, ready.policy_id, ready.policy_version) == ("call-1", "live", "p-1", 7)
    assert ready.gated_tools == ("Place_Order",)


@virtual_time
async def test_waiting_for_ready_is_bounded() -> None:
    mirror = MirrorClient(Wire())
    assert await elapsed_s(mirror.wait_ready(timeout_s=2)) == pytest.approx(2)
    assert mirror.ready is None


# Turns


@virtual_time
async def test_a_turn_is_reported_with_all_it_has() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    calls = [{"id": "t-1", "name": "place_order", "args": {"item": "pizza"}, "irreversible": True}]
    turn_id = await mirror.turn(
        "One pizza.", customer_text="A pizza", tool_calls=calls, turn_id="7", language="en", seen="n-0"
    )
    assert turn_id == "7"
    assert wire.of("mirror.turn") == [
        {
            "event": "mirror.turn",
            "turn_id": "7",
            "customer_text": "A pizza",
            "text": "One pizza.",
            "tool_calls": calls,
            "language": "en",
            "seen": "n-0",
        }
    ]


@virtual_time
async def test_turns_without_an_id_get_different_ones() -> None:
    mirror = MirrorClient(Wire())
    assert len({await mirror.turn("Hello."), await mirror.turn("Hello.")} - {None}) == 2


@virtual_time
async def test_a_turn_does_not_wait_for_its_verdict() -> None:
    mirror = MirrorClient(Wire())
    assert await elapsed_s(mirror.turn("Hello.")) == 0


@virtual_time
async def test_a_barge_in_that_cancels_a_report_leaves_the_dialogue_in_order() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    wire.stalled.clear()
    cancelled = asyncio.create_task(mirror.turn("One.", turn_id="1"))
    following = asyncio.create_task(mirror.turn("Two.", turn_id="2"))
    await settle()
    cancelled.cancel()
    wire.stalled.set()
    await following
    assert [frame.get("turn_id") for frame in wire.sent] == [None, "1", "2"]


@virtual_time
async def test_a_socket_that_broke_makes_reports_neutral_not_exceptions() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    wire.broken = True
    assert await mirror.turn("Hello.") is None
    await mirror.transcript("Hi")
    decision = await mirror.tool("charge_card", {"amount": 1})
    assert (decision.allow, decision.code) == (False, "failed")
    assert (await mirror.tool("look_up_menu", {})).allow


# Tools


@virtual_time
async def test_a_tool_gets_its_verdict() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    fields = {"reason": "nobody asked for 45", "instruction": "ask for the amount"}
    wire.answer_tool(allow=False, code="policy", **fields)
    decision = await mirror.tool(
        "charge_card", {"amount": 45}, irreversible=True, turn_id="7", customer_text="Charge twelve.", key="second"
    )
    asked = wire.of("mirror.tool")[0]
    assert asked.pop("id") == decision.id
    assert asked == {
        "event": "mirror.tool",
        "name": "charge_card",
        "args": {"amount": 45},
        "irreversible": True,
        "turn_id": "7",
        "customer_text": "Charge twelve.",
        "key": "second",
        "timeout_ms": 3500,
    }
    assert not decision
    assert decision.supervised
    assert (decision.code, decision.reason, decision.instruction) == ("policy", *fields.values())
    assert decision.valid_ms == 10_000


@virtual_time
async def test_a_tool_that_needs_a_person_is_waited_for_as_long_as_one_has() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    wire.arrive({**READY, "approvals": {"tools": ["Charge_Card"], "timeout_ms": 60_000}})
    await mirror.wait_ready()
    for name, timeout_ms in (("charge_card", 63_500), ("place_order", 3_500)):
        assert (await mirror.tool(name, {})).code == "timeout"
        assert wire.sent[-1]["timeout_ms"] == timeout_ms
    await mirror.tool("charge_card", {}, timeout_ms=9_000)
    assert wire.sent[-1]["timeout_ms"] == 9_000


@virtual_time
async def test_two_tools_at_once_each_get_their_own_verdict() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    first = asyncio.create_task(mirror.tool("a", {}, id="1"))
    second = asyncio.create_task(mirror.tool("b", {}, id="2"))
    await settle()
    wire.arrive(tool_verdict("2", allow=False, code="policy"), tool_verdict("1", allow=True, code="ok"))
    assert (await first).allow
    assert not (await second).allow


@virtual_time
async def test_arguments_as_the_llm_wrote_them_become_an_object_and_broken_ones_stay_text() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    await asyncio.gather(
        mirror.tool("look_up", '{"item": "pizza"}', timeout_ms=1), mirror.tool("look_up", '{"item": ', timeout_ms=1)
    )
    assert [frame["args"] for frame in wire.of("mirror.tool")] == [{"item": "pizza"}, '{"item": ']


@virtual_time
@pytest.mark.parametrize(
    ("name", "irreversible", "allowed"),
    [("charge_card", False, False), ("CHARGE_CARD", False, False), ("look_up", False, True), ("look_up", True, False)],
)
async def test_no_answer_in_time_blocks_what_cannot_be_undone(name: str, irreversible: bool, allowed: bool) -> None:
    mirror = MirrorClient(Wire())
    waiting = asyncio.create_task(mirror.tool(name, {}, irreversible=irreversible, timeout_ms=1_000))
    assert await elapsed_s(waiting) == pytest.approx(1.5)
    decision = waiting.result()
    assert (decision.allow, decision.code) == (allowed, "timeout")
    assert bool(decision.instruction) is not allowed


@virtual_time
async def test_which_tools_are_gated_is_what_ready_says() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    wire.arrive(READY)
    await mirror.wait_ready()
    assert not await mirror.tool("PLACE_order", {}, timeout_ms=1)
    assert await mirror.tool("charge_card", {}, timeout_ms=1)


@virtual_time
async def test_an_allowance_that_comes_too_late_is_given_back() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    decision = await mirror.tool("charge_card", {"amount": 12}, timeout_ms=100)
    assert decision.code == "timeout"
    wire.arrive(tool_verdict(decision.id, allow=True, code="ok"))
    await settle()
    assert wire.of("mirror.tool_done") == [
        {"event": "mirror.tool_done", "id": decision.id, "ok": False, "result": None, "cancelled": True}
    ]


@virtual_time
async def test_an_allowance_for_a_cancelled_question_is_given_back() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    waiting = asyncio.create_task(mirror.tool("charge_card", {"amount": 12}, id="t-1"))
    await settle()
    waiting.cancel()
    await settle()
    wire.arrive(tool_verdict("t-1", allow=True, code="ok"))
    await settle()
    assert [frame["id"] for frame in wire.of("mirror.tool_done")] == ["t-1"]


@virtual_time
async def test_a_tool_that_ran_unasked_because_it_may_is_not_given_back() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    decision = await mirror.tool("look_up", {}, timeout_ms=100)
    assert decision.allow
    wire.arrive(tool_verdict(decision.id, allow=True, code="ok"))
    await settle()
    assert wire.of("mirror.tool_done") == []


@virtual_time
async def test_the_call_ending_releases_everybody_who_waits() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    charge = asyncio.create_task(mirror.tool("charge_card", {}))
    look_up = asyncio.create_task(mirror.tool("look_up", {}))
    ready = asyncio.create_task(mirror.wait_ready(60))
    await settle()
    wire.close()
    assert await elapsed_s(asyncio.gather(charge, look_up, ready)) == 0
    assert (charge.result().allow, charge.result().code) == (False, "failed")
    assert (look_up.result().allow, look_up.result().code) == (True, "failed")
    assert await mirror.turn("Anyone there?") is None


@virtual_time
async def test_a_refused_question_does_not_wait_for_its_timeout() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    waiting = asyncio.create_task(mirror.tool("charge_card", {}, id="t-1"))
    await settle()
    wire.arrive({"event": "mirror.error", "code": "bad_field", "message": "args: must be an object", "ref": "t-1"})
    assert await elapsed_s(waiting) == 0
    assert (waiting.result().allow, waiting.result().code) == (False, "failed")
    assert "args: must be an object" in waiting.result().reason


@virtual_time
async def test_what_ran_is_reported_and_what_was_blocked_is_not() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    for allow in (True, False):
        wire.answer_tool(allow=allow, code="ok" if allow else "policy")
        decision = await mirror.tool("place_order", {})
        await mirror.tool_done(decision, ok=True, result={"order": 12})
    done = wire.of("mirror.tool_done")
    allowed = wire.of("mirror.tool")[0]["id"]
    assert done == [{"event": "mirror.tool_done", "id": allowed, "ok": True, "result": {"order": 12}}]


@virtual_time
async def test_run_tool_runs_what_is_allowed_and_reports_it() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)

    async def place_order() -> dict[str, int]:
        return {"order": 12}

    wire.answer_tool(allow=True, code="ok")
    assert await mirror.run_tool("place_order", {"item": "pizza"}, place_order) == {"order": 12}
    assert [(frame["ok"], frame["result"]) for frame in wire.of("mirror.tool_done")] == [(True, {"order": 12})]


@virtual_time
async def test_run_tool_tells_the_llm_why_not_and_runs_nothing() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    ran: list[str] = []
    wire.answer_tool(allow=False, code="policy", reason="45", instruction="ask")
    result = await mirror.run_tool("charge_card", {"amount": 45}, lambda: ran.append("charged"))
    assert result == {"not_done": "policy", "reason": "45", "instruction": "ask"}
    assert ran == []
    assert wire.of("mirror.tool_done") == []


@virtual_time
async def test_run_tool_gives_a_duplicate_the_first_result() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    ran: list[str] = []
    fields = {"stored_result": {"order": 12}}
    wire.answer_tool(allow=False, code="duplicate", **fields)
    assert await mirror.run_tool("place_order", {}, lambda: ran.append("ordered")) == {"order": 12}
    assert ran == []


@virtual_time
async def test_run_tool_reports_a_failure_and_raises_it() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)

    def place_order() -> None:
        raise LookupError("no such pizza")

    wire.answer_tool(allow=True, code="ok")
    with pytest.raises(LookupError, match="no such pizza"):
        await mirror.run_tool("place_order", {}, place_order)
    assert [(frame["ok"], frame["result"]) for frame in wire.of("mirror.tool_done")] == [
        (False, {"error": "LookupError"})
    ]


# Notes


@virtual_time
async def test_a_note_is_taken_once_and_every_later_turn_says_it_was_seen() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    await mirror.turn("You get a refund.", turn_id="1")
    wire.arrive(note("n-1", "You were corrected: a colleague decides on refunds."))
    await settle()
    await mirror.turn("And a free pizza.", turn_id="2")
    assert mirror.take_note() == "You were corrected: a colleague decides on refunds."
    assert mirror.take_note() is None
    await mirror.turn("As I said, a colleague decides.", turn_id="3")
    await mirror.tool("look_up", {}, timeout_ms=1)
    assert [frame.get("seen") for frame in wire.sent[1:]] == [None, None, "n-1", "n-1"]


@virtual_time
async def test_a_higher_revision_replaces_a_note_and_an_old_one_does_not() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    await mirror.turn("You get a refund.")
    wire.arrive(note("n-1", "first", rev=2), note("n-1", "older", rev=1), note("n-1", "again", rev=2))
    await settle()
    assert mirror.take_note() == "first"
    wire.arrive(note("n-1", "they hung up in the middle", rev=3))
    await settle()
    assert mirror.take_note() == "they hung up in the middle"


@virtual_time
async def test_notes_of_two_interventions_come_together_oldest_first() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    await mirror.turn("You get a refund.")
    wire.arrive(note("n-1", "one"), note("n-2", "two"), note("n-1", "one, corrected", rev=2))
    await settle()
    assert mirror.take_note() == "two\none, corrected"
    await mirror.turn("Sorry.")
    assert wire.of("mirror.turn")[-1]["seen"] == "n-1"


@virtual_time
async def test_a_note_that_nobody_took_expires_after_its_turns() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    await mirror.turn("One.")
    wire.arrive(note("n-1", "text", expires_turns=2))
    await settle()
    await mirror.turn("Two.")
    await mirror.turn("Three.")
    assert mirror.take_note() is None
    await mirror.turn("Four.")
    assert "seen" not in wire.of("mirror.turn")[-1]


@virtual_time
async def test_notes_that_wait_at_a_reconnect_come_with_ready() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    wire.arrive({**READY, "resumed": True, "notes": [{"id": "n-9", "rev": 1, "text": "corrected before"}]})
    ready = await mirror.wait_ready()
    assert ready is not None
    assert ready.resumed
    assert mirror.take_note() == "corrected before"


@virtual_time
async def test_a_note_has_all_that_mirror_says_of_it() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    notes = aiter(mirror.notes)
    await mirror.turn("You get a refund.")
    fields = {"said": "A colleague decides.", "heard_text": "You get", "heard_ms": 420, "dropped": ["8", "9"]}
    wire.arrive(note("n-1", "text", turn_id="7", **fields))
    expected = Note("n-1", 1, "text", "7", "A colleague decides.", "You get", 420, ("8", "9"), 3)
    assert await anext(notes) == expected


# Interventions and verdicts


@virtual_time
async def test_an_intervention_mutes_its_turn_for_ever() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    turn = await mirror.turn("You get a refund.")
    other = await mirror.turn("Anything else?")
    assert turn is not None
    assert not mirror.muted(turn)
    wire.arrive(intervention("i-1", turn, "started"))
    await settle()
    assert mirror.muted(turn)
    assert not mirror.muted(other)
    assert mirror.intervention is not None
    assert mirror.intervention.phase == "started"
    wire.arrive(intervention("i-1", turn, "buffer", "One moment."), intervention("i-1", turn, "completed"))
    await settle()
    assert mirror.intervention is None
    assert mirror.muted(turn)


@virtual_time
async def test_phases_and_verdicts_come_in_order_to_every_reader_and_end_with_the_call() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)

    async def read() -> list[str]:
        return [step.phase async for step in mirror.interventions]

    readers = [asyncio.create_task(read()) for _ in range(2)]
    await mirror.turn("You get a refund.", turn_id="1")
    verdicts = aiter(mirror.verdicts)
    verdict = {"event": "mirror.verdict", "turn_id": "1", "state": "judged", "score": 1, "intervene": True}
    wire.arrive({**verdict, "acted": True, "rule": "refunds", "reason": "it says refund", "latency_ms": 210})
    phases = ["started", "buffer", "correction", "completed"]
    wire.arrive(*(intervention("i-1", "1", phase) for phase in phases))
    wire.close()
    assert await asyncio.gather(*readers) == [phases, phases]
    got = await anext(verdicts)
    assert (got.turn_id, got.state, got.score, got.intervene, got.acted) == ("1", "judged", 1.0, True, True)
    assert (got.rule, got.reason, got.latency_ms, got.withheld) == ("refunds", "it says refund", 210, "")
    assert [late async for late in mirror.verdicts] == []


@virtual_time
async def test_a_slow_callback_does_not_hold_up_the_reader() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    handled: list[str] = []

    @mirror.notes.on
    async def slow(note: Note) -> None:
        await asyncio.sleep(60)
        handled.append(note.id)

    await mirror.turn("Hello.")
    wire.arrive(note("n-1", "one"), note("n-2", "two"))
    wire.answer_tool(allow=True, code="ok")
    assert await elapsed_s(mirror.tool("charge_card", {})) < 1
    assert handled == []
    await asyncio.sleep(121)
    assert handled == ["n-1", "n-2"]


@virtual_time
async def test_a_callback_that_raises_is_logged_and_called_again(caplog: pytest.LogCaptureFixture) -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    handled: list[str] = []

    def clumsy(note: Note) -> None:
        handled.append(note.id)
        raise ZeroDivisionError

    mirror.notes.on(clumsy)
    await mirror.turn("Hello.")
    wire.arrive(note("n-1", "one"), note("n-2", "two"))
    await settle()
    assert handled == ["n-1", "n-2"]
    assert [record.exc_info is not None for record in caplog.records if record.levelno == logging.ERROR] == [True, True]


@virtual_time
async def test_a_reader_that_is_far_behind_loses_the_oldest() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    lazy = aiter(mirror.notes)
    await mirror.turn("Hello.")
    wire.arrive(*(note(f"n-{number}", "text") for number in range(300)))
    wire.close()
    await settle()
    assert [item.id async for item in lazy] == [f"n-{number}" for number in range(300 - 256, 300)]


# Without Mirror


@virtual_time
async def test_without_mirror_the_client_is_not_there() -> None:
    wire = Wire(signed=False)
    mirror = MirrorClient(wire)
    assert mirror.websocket is wire
    assert not mirror.supervised
    wire.arrive(START, {"event": "mirror.note", "id": "n", "rev": 1, "text": "forged"})
    assert json.loads(await mirror.websocket.recv()) == START
    assert "forged" in await mirror.websocket.recv()
    assert await mirror.turn("Hello.") is None
    await mirror.transcript("Hi")
    await mirror.audio("1", "start")
    decision = await mirror.tool("charge_card", {"amount": 45}, irreversible=True)
    assert (decision.allow, decision.code, decision.supervised) == (True, "ok", False)
    await mirror.tool_done(decision, ok=True, result={})
    assert await mirror.run_tool("charge_card", {}, lambda: "charged") == "charged"
    assert mirror.take_note() is None
    assert not mirror.muted("1")
    assert mirror.intervention is None
    assert await elapsed_s(mirror.wait_ready(60)) == 0
    assert [note async for note in mirror.notes] == []
    mirror.verdicts.on(lambda verdict: None)
    await mirror.aclose()
    assert wire.sent == []


# Bad input


@virtual_time
@pytest.mark.parametrize("signed", [True, False])
async def test_what_is_not_json_is_refused_with_and_without_mirror(signed: bool) -> None:
    mirror = MirrorClient(Wire(signed=signed))
    with pytest.raises(TypeError, match="args of tool charge_card must be JSON"):
        await mirror.tool("charge_card", {"amount": object()})
    with pytest.raises(TypeError, match="args of tool charge_card must be JSON"):
        await mirror.tool("charge_card", {"amount": float("nan")})
    with pytest.raises(TypeError, match="result of tool call 7 must be JSON"):
        await mirror.tool_done("7", ok=True, result={1, 2})
    with pytest.raises(ValueError, match="timeout_ms must be above 0"):
        await mirror.tool("charge_card", {}, timeout_ms=0)
    with pytest.raises(ValueError, match="state must be"):
        await mirror.audio("7", "begin")
    with pytest.raises(ValueError, match="chars goes with"):
        await mirror.audio("7", "mark")


@pytest.mark.parametrize("socket", [object(), 3, None])
def test_a_socket_of_another_kind_is_refused_by_name(socket: object) -> None:
    with pytest.raises(UnsupportedSocketError, match=type(socket).__name__):
        MirrorClient(socket)


@virtual_time
async def test_marks_say_whose_audio_comes() -> None:
    wire = Wire()
    mirror = MirrorClient(wire, marks=True)
    await mirror.audio("7", "start")
    await mirror.audio("7", "mark", 12)
    assert [(frame["turn_id"], frame["state"], frame.get("chars")) for frame in wire.of("mirror.audio")] == [
        ("7", "start", None),
        ("7", "mark", 12),
    ]


# Reading


@virtual_time
async def test_a_framework_that_does_not_read_stops_the_reading_after_a_while() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    first = asyncio.create_task(mirror.websocket.recv())
    frame = {"event": "media", "payload": "x" * 100_000}
    wire.arrive(START, *[frame] * 100)
    await first
    await settle(1_000)
    assert 15 <= wire.taken <= 25
    for _ in range(100):
        assert json.loads(await mirror.websocket.recv()) == frame
    assert wire.taken == 101


@virtual_time
async def test_a_frame_larger_than_what_is_read_ahead_passes() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    huge = json.dumps({"event": "media", "payload": "x" * 16 * 1024 * 1024})
    wire.arrive(huge)
    assert await mirror.websocket.recv() == huge


@virtual_time
async def test_a_cancelled_receive_loses_nothing() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(mirror.websocket.recv(), 0.1)
    wire.arrive(START)
    assert json.loads(await asyncio.wait_for(mirror.websocket.recv(), 0.1)) == START


@virtual_time
async def test_after_aclose_the_framework_reads_the_socket_itself() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    wire.arrive(START, {"event": "media"})
    assert json.loads(await mirror.websocket.recv()) == START
    await mirror.aclose()
    wire.arrive({"event": "dtmf"})
    rest = [json.loads(await mirror.websocket.recv()) for _ in range(2)]
    assert rest == [{"event": "media"}, {"event": "dtmf"}]
    wire.close()
    with pytest.raises(Closed):
        await mirror.websocket.recv()


# Turns in pieces


@virtual_time
async def test_a_turn_can_be_told_piece_by_piece() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    wire.arrive(note("n-1", "Say it again."))
    await mirror.wait_ready(0.1)
    assert mirror.take_note() == "Say it again."
    turn = await mirror.delta("One. ", customer_text="Hi", language="de")
    assert turn is not None
    assert await mirror.delta("Two.", turn_id=turn, customer_text="ignored") == turn
    assert await mirror.delta("", turn_id=turn, final=True) == turn
    await mirror.delta("Next.", turn_id="own", final=True)
    sent = [frame for frame in wire.sent if frame["event"] == "mirror.delta"]
    assert sent == [
        {
            "event": "mirror.delta",
            "turn_id": turn,
            "text": "One. ",
            "customer_text": "Hi",
            "language": "de",
            "seen": "n-1",
        },
        {"event": "mirror.delta", "turn_id": turn, "text": "Two."},
        {"event": "mirror.delta", "turn_id": turn, "text": "", "final": True},
        {
            "event": "mirror.delta",
            "turn_id": "own",
            "text": "Next.",
            "final": True,
            "customer_text": "",
            "seen": "n-1",
        },
    ]


async def pieces_of(*texts: str) -> AsyncIterator[str]:
    for text in texts:
        await asyncio.sleep(0.1)
        yield text


@virtual_time
async def test_pieces_pass_on_once_mirror_was_told_until_it_steps_in() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)
    said = [piece async for piece in mirror.told(pieces_of("One. ", "Two."), customer_text="Hi", turn_id="t1")]
    assert said == ["One. ", "Two."]
    said.clear()
    async for piece in mirror.told(pieces_of("Three. ", "Four. ", "Five."), turn_id="t2"):
        said.append(piece)
        if len(said) == 1:
            wire.arrive(intervention("i-1", "t2", "started"))
    assert said == ["Three. "]
    told = [(frame["turn_id"], frame["text"], frame.get("final", False)) for frame in wire.sent[1:]]
    assert told == [
        ("t1", "One. ", False),
        ("t1", "Two.", False),
        ("t1", "", True),
        ("t2", "Three. ", False),
        ("t2", "Four. ", False),
        ("t2", "", True),
    ]


@virtual_time
async def test_a_generation_that_is_cut_off_ends_the_turn_for_mirror_too() -> None:
    wire = Wire()
    mirror = MirrorClient(wire)

    async def generate() -> None:
        async for _ in mirror.told(pieces_of("One. ", "Two. ", "Three."), turn_id="t1"):
            pass

    task = asyncio.create_task(generate())
    await asyncio.sleep(0.15)
    task.cancel()
    await asyncio.wait({task})
    await settle()
    assert wire.sent[-1] == {"event": "mirror.delta", "turn_id": "t1", "text": "", "final": True}


@virtual_time
async def test_without_mirror_pieces_pass_on_untold() -> None:
    wire = Wire(signed=False)
    mirror = MirrorClient(wire)
    assert [piece async for piece in mirror.told(pieces_of("One. ", "Two."))] == ["One. ", "Two."]
    assert await mirror.delta("One.") is None
    assert wire.sent == []
    with pytest.raises(TypeError):
        await mirror.delta(object())  # type: ignore[arg-type]
