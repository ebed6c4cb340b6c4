"""Frames that make no sense, on real sockets, from both sides: the call goes on, and everything else arrives."""

from __future__ import annotations

import asyncio
import contextlib
import json
from base64 import b64encode
from collections import Counter

import pytest
from websockets.exceptions import ConnectionClosed

from supervision.plivo.simulator import MULAW_8K, PlivoSwitches, SimulatedCall, tone
from tests.e2e.agents import AgentCall, agent
from tests.e2e.conftest import MirrorServer, TenancyMaker, recorded
from tests.standins.llm import LLMStandIn

pytestmark = pytest.mark.django_db(transaction=True)

BIGGEST = 16 * 1024 * 1024
TONE = MULAW_8K.encode(tone(700, 1.0, 8000), 8000)
JUNK: list[str | bytes] = [
    "",
    " ",
    "not json",
    "null",
    "[]",
    "{",
    '"event"',
    "{}",
    '{"event":null}',
    '{"event":[]}',
    '{"event":{"event":"media"}}',
    '{"event":"unheard of","x":[1,2.5,null,{"y":"\\u0000"}]}',
    '{"event":"playAudio"}',
    '{"event":"playAudio","media":7}',
    '{"event":"playAudio","media":{"payload":"%%%"}}',
    '{"event":"media"}',
    '{"event":"media","media":{"payload":7}}',
    '{"event":"checkpoint"}',
    '{"event":"checkpoint","name":{"a":1},"streamId":"x"}',
    '{"event":"clearAudio"}',
    '{"event":"playedStream","name":7}',
    '{"event":"playedStream","playedStream":[]}',
    '{"event":"clearedAudio","streamId":7}',
    '{"event":"dtmf","dtmf":null}',
    '{"event":"sendDTMF","dtmf":{"digit":[]}}',
    '{"event":"stop"}',
    '{"event":"error","reason":"?"}',
    '{"event":"start"}',
    '{"event":"start","start":{"callId":"x","streamId":"y"}}',
    "[" * 200_000,
    '{"a":' * 100_000,
    '{"event":"unheard of","deep":' + "[" * 5_000 + "]" * 5_000 + "}",
    b"",
    b"\x00\xff\xfe binary",
    json.dumps({"event": "big", "x": "x" * (BIGGEST - 25)}),
    b"\x01" * BIGGEST,
]
MIRROR_JUNK = [
    '{"event":"mirror.turn"}',
    '{"event":"mirror.turn","turn_id":7}',
    '{"event":"mirror.turn","turn_id":"t","text":[]}',
    '{"event":"mirror.turn","turn_id":"t","text":"' + "x" * 40_000 + '"}',
    '{"event":"mirror.turn","turn_id":"t","text":"x","tool_calls":{}}',
    '{"event":"mirror.tool","id":"c"}',
    '{"event":"mirror.tool_done","id":"never asked"}',
    '{"event":"mirror.audio","turn_id":"t","state":"begin"}',
    '{"event":"mirror.hello","v":"one"}',
    '{"event":"mirror.hello","language":"not a language"}',
    '{"event":"mirror.nonsense"}',
    '{"event":"mirror.turn","turn_id":"t","text":"cut',
    '{"event":"mirror.turn","x":' + "[" * 100_000,
    '{"event":"mirror.turn","turn_id":"t","text":"' + "y" * (BIGGEST - 60) + '"}',
]


async def test_junk_from_both_sides_costs_nobody_the_call(mirror: MirrorServer, new_tenancy: TenancyMaker) -> None:
    sent: list[str | bytes] = []

    async def script(call: AgentCall) -> None:
        await call.hello()
        for frame in [*JUNK, *MIRROR_JUNK]:
            await call.connection.send(frame)
            sent.append(frame)
        await call.connection.send(b'{"event":"mirror.turn","text":"\xff\xfe"}', text=True)  # not UTF-8
        await call.connection.send(iter(['{"event":"in ', "pieces", '"}']))  # fragments of one message
        await call.connection.ping()
        await call.wait("mirror.error", count=len(MIRROR_JUNK) + 1)
        await call.send("mirror.turn", turn_id="good", customer_text="nul \x00", text="Good day \x00 to you.")
        await call.speak(TONE)
        await call.send("checkpoint", streamId=call.stream_id, name="end")
        verdict = await call.wait("mirror.verdict", turn_id="good")
        assert verdict["state"] == "judged"

    async def caller(call: SimulatedCall) -> None:
        await call.wait_for(lambda _: made.calls and made.calls[0].of("mirror.ready"), 20)
        for frame in JUNK:
            call.send_raw(frame)
        call.press("5")
        await call.wait_for(lambda record: record.played("end"), 60)
        call.hang_up()

    async with LLMStandIn() as llm, agent(script) as made:
        config = {"tiered_scoring_enabled": False}  # nothing but a verdict shows that the judge can still be asked
        tenancy = await asyncio.to_thread(new_tenancy, upstream_url=made.url, llm_base_url=llm.base_url, config=config)
        switches = PlivoSwitches(send_buffer_s=100_000)  # the heap is more than Plivo would keep for a slow server
        record = await SimulatedCall(tenancy.stream_url(mirror.ws), caller, switches, keep_raw=True).run()
        rows = await recorded(tenancy)

    (call,) = made.calls
    assert (record.outcome, record.ended_by, record.close_code) == ("completed", "caller", 1000)
    assert record.heard.find(TONE) is not None
    assert call.of("dtmf")
    # Everything that is not Mirror's arrived as it was, in order; empty frames are lost on the way (Daphne drops them),
    # and so are acknowledgements of something that nobody asked for once Mirror is at work.
    to_plivo = [frame.payload if not frame.text else frame.payload.decode() for frame in record.raw_received]
    junk_there = [frame for frame in to_plivo if frame in JUNK]
    assert junk_there == [frame for frame in JUNK if frame]
    assert '{"event":"in pieces"}' in to_plivo
    to_agent = [frame for frame in call.raw if frame and frame in JUNK]
    assert to_agent == [frame for frame in JUNK if frame]
    # Each broken mirror.* frame was answered once, with its field.
    errors = call.of("mirror.error")
    assert len(errors) == len(MIRROR_JUNK) + 1
    assert Counter(error["code"] for error in errors) == {
        "bad_field": 10,
        "bad_version": 1,
        "bad_json": 3,
        "unknown_id": 1,
    }
    fields = [error["message"].split(":")[0] for error in errors if error["code"] == "bad_field"]
    assert fields[:2] == ["turn_id", "turn_id"]
    assert fields[2:5] == ["text", "text", "tool_calls"]
    assert [turn.turn.ref for turn in rows.turns] == ["good"]
    assert rows.call.coverage_state == "full"
    rejected = [event for event in rows.timeline if event.kind == "frame.rejected"]
    assert len(rejected) == len(errors)


async def test_a_frame_beyond_sixteen_mebibytes_ends_the_call_cleanly(
    mirror: MirrorServer, new_tenancy: TenancyMaker
) -> None:
    async def script(call: AgentCall) -> None:
        await call.wait("start")
        with contextlib.suppress(ConnectionClosed):  # while it is still being sent
            await call.connection.send("x" * (BIGGEST + 1))

    async with agent(script) as made:
        tenancy = await asyncio.to_thread(new_tenancy, upstream_url=made.url)
        record = await SimulatedCall(tenancy.stream_url(mirror.ws)).run()
        rows = await recorded(tenancy)
    assert (record.outcome, record.close_code) == ("failed", 1011)
    assert (rows.call.outcome, rows.call.ended_by) == ("failed", "agent")
    assert rows.call.reason


async def test_ten_minutes_of_audio_in_one_frame_are_heard_and_cut_like_any_other(
    mirror: MirrorServer, new_tenancy: TenancyMaker
) -> None:
    whole = TONE * 600

    async def script(call: AgentCall) -> None:
        await call.hello()
        await call.send("mirror.turn", turn_id="t1", text="A very long story.")
        media = {"contentType": "audio/x-mulaw", "sampleRate": 8000, "payload": b64encode(whole).decode()}
        await call.send("playAudio", media=media)
        await call.wait("mirror.verdict")
        await call.send("clearAudio", streamId=call.stream_id)
        await call.wait("clearedAudio")

    async def caller(call: SimulatedCall) -> None:
        await call.wait_for(lambda _: made.calls and made.calls[0].of("clearedAudio"), 30)
        call.hang_up()

    async with LLMStandIn() as llm, agent(script) as made:
        llm.behave(delay_s=0.5)
        tenancy = await asyncio.to_thread(new_tenancy, upstream_url=made.url, llm_base_url=llm.base_url)
        record = await SimulatedCall(tenancy.stream_url(mirror.ws), caller).run()
        rows = await recorded(tenancy)
    assert record.cleared_bytes > 590 * 8_000
    assert 0 < record.heard.seconds < 5
    (turn,) = rows.turns
    assert turn.turn.audio_ms == 600_000
    assert abs(turn.turn.heard_ms - record.heard.seconds * 1000) < 150


async def test_text_from_plivo_that_is_not_utf_8_ends_in_a_recorded_call(
    mirror: MirrorServer, new_tenancy: TenancyMaker
) -> None:
    """RFC 6455 (8.1) has the receiver fail such a connection; what counts is that nothing else breaks."""

    async def script(call: AgentCall) -> None:
        await call.hello()

    async def caller(call: SimulatedCall) -> None:
        await call.wait_for(lambda _: made.calls and made.calls[0].of("mirror.ready"), 20)
        call.send_raw(b'{"event":"\xff\xfe"}', text=True)

    async with agent(script) as made:
        tenancy = await asyncio.to_thread(new_tenancy, upstream_url=made.url)
        switches = PlivoSwitches(hang_up_at_s=3.0)
        record = await SimulatedCall(tenancy.stream_url(mirror.ws), caller, switches).run()
        rows = await recorded(tenancy)
    assert record.close_code in (1006, 1007)
    assert rows.call.state == "ended"
    assert "Plivo's connection ended with code" in rows.call.reason
    assert made.calls[0].closed == 1000
