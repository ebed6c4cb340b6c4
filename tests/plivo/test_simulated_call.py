"""The stand-in on a real socket, against a server made with another WebSocket library."""

from __future__ import annotations

import asyncio
import json
import socket
import time
import uuid

import numpy as np
import pytest
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from supervision.plivo.simulator import (
    L16_8K,
    L16_16K,
    MULAW_8K,
    CallEnded,
    CallFailed,
    CallRecord,
    PlivoSwitches,
    SimulatedCall,
    WireFormat,
    tone,
)

from .agents import Agent, agent_server, listen, settle

FRAME = 160


def frames(count: int, first: int = 1) -> bytes:
    return b"".join(bytes([(first + index) % 250]) * FRAME for index in range(count))


async def talk(call: SimulatedCall, *events: str, hang_up: bool = True, timeout_s: float = 10.0) -> CallRecord:
    """Run the call until each of these events was recorded, hang up, and return the record."""
    running = asyncio.ensure_future(call.run())
    for event in events:
        await call.wait_for(lambda record, event=event: record.of(event), timeout_s, event)
    if hang_up:
        call.hang_up()
    return await settle(running)


# -- what Plivo sends


async def test_start_comes_first_and_has_plivos_fields() -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("media", 3)
        await agent.read_on()

    async with agent_server(handler) as server:
        call = SimulatedCall(server.url, account_id="MATEST", media_format=L16_16K)
        running = asyncio.ensure_future(call.run())
        await call.wait_for(lambda record: len(record.media_sent_at) > 5)
        call.hang_up()
        record = await settle(running)
    start = server.agents[0].start
    assert start == {
        "event": "start",
        "sequenceNumber": 1,
        "start": {
            "callId": record.call_id,
            "streamId": record.stream_ids[0],
            "accountId": "MATEST",
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-l16", "sampleRate": 16000},
        },
        "extra_headers": "",
    }
    assert uuid.UUID(start["start"]["streamId"]).version == 4
    assert uuid.UUID(start["start"]["callId"]).version == 4


async def test_media_frames_are_numbered_timed_and_silent_when_the_caller_says_nothing() -> None:
    before = time.time() * 1000
    async with agent_server(listen) as server:
        call = SimulatedCall(server.url)
        running = asyncio.ensure_future(call.run())
        await call.wait_for(lambda record: len(record.media_sent_at) >= 10)
        call.hang_up()
        await settle(running)
    media = server.agents[0].of("media")
    assert [message["sequenceNumber"] for message in media] == list(range(2, len(media) + 2))
    assert [message["media"]["chunk"] for message in media] == list(range(1, len(media) + 1))
    stamps = [message["media"]["timestamp"] for message in media]
    assert all(isinstance(stamp, str) for stamp in stamps)
    assert before - 1 <= int(stamps[0]) <= time.time() * 1000
    assert [int(stamp) - int(stamps[0]) for stamp in stamps] == [20 * index for index in range(len(stamps))]
    assert server.agents[0].said() == b"\xff" * FRAME * len(media)
    assert {message["media"]["track"] for message in media} == {"inbound"}
    assert {message["streamId"] for message in media} == {server.agents[0].stream_id}


@pytest.mark.parametrize("media_format", [MULAW_8K, L16_8K, L16_16K], ids=lambda f: f.content_type)
async def test_what_the_caller_says_arrives_byte_for_byte_in_20_ms_frames(media_format: WireFormat) -> None:
    words = bytes(index % 251 for index in range(media_format.frame_bytes * 7 + 100))
    async with agent_server(listen) as server:
        call = SimulatedCall(server.url, media_format=media_format)
        said = call.say(words, label="hello")
        running = asyncio.ensure_future(call.run())
        await asyncio.wait_for(said, 10)
        call.hang_up()
        record = await settle(running)
    agent = server.agents[0]
    assert agent.said().startswith(words + bytes([media_format.silent_byte]) * (media_format.frame_bytes - 100))
    spoken = record.of("caller_speaks")[0]
    assert spoken.data == {"seconds": round(len(words) / media_format.bytes_per_second, 3), "label": "hello"}


@pytest.mark.parametrize("media_format", [MULAW_8K, L16_8K, L16_16K], ids=lambda f: f.content_type)
async def test_samples_are_said_in_the_streams_format(media_format: WireFormat) -> None:
    samples = tone(440, 0.2, 24000)
    async with agent_server(listen) as server:
        call = SimulatedCall(server.url, media_format=media_format)
        said = call.say(samples, 24000)
        running = asyncio.ensure_future(call.run())
        await asyncio.wait_for(said, 10)
        call.hang_up()
        await settle(running)
    heard = media_format.decode(server.agents[0].said())[: media_format.sample_rate // 5].astype(float)
    expected = tone(440, 0.2, media_format.sample_rate).astype(float)
    middle = slice(len(expected) // 10, -len(expected) // 10)
    error = heard[middle] - expected[middle]
    assert np.sqrt(np.mean(error**2)) < 0.03 * np.sqrt(np.mean(expected[middle] ** 2))


async def test_frames_leave_on_a_grid_that_does_not_drift() -> None:
    async with agent_server(listen) as server:
        call = SimulatedCall(server.url)
        running = asyncio.ensure_future(call.run())
        await call.wait_for(lambda record: len(record.media_sent_at) >= 75)
        call.hang_up()
        record = await settle(running)
    lateness = np.array(record.media_sent_at) - record.media_sent_at[0] - np.arange(len(record.media_sent_at)) * 0.02
    assert np.median(np.abs(lateness)) < 0.01
    assert np.abs(lateness[-20:]).min() < 0.01


async def test_keys_arrive_in_order_with_all_fields() -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("dtmf", 3)

    async with agent_server(handler) as server:
        call = SimulatedCall(server.url, switches=PlivoSwitches(extra_headers="a=b"))
        running = asyncio.ensure_future(call.run())
        await call.wait_started()
        call.press("5*#")
        await settle(running)
    keys = server.agents[0].of("dtmf")
    assert [key["dtmf"]["digit"] for key in keys] == ["5", "*", "#"]
    assert set(keys[0]) == {"event", "sequenceNumber", "streamId", "dtmf", "extra_headers"}
    assert set(keys[0]["dtmf"]) == {"track", "digit", "timestamp"}
    assert keys[0]["dtmf"]["track"] == "inbound"
    assert isinstance(keys[0]["dtmf"]["timestamp"], str)


async def test_a_key_that_no_phone_has_is_refused() -> None:
    call = SimulatedCall("ws://127.0.0.1:1")
    with pytest.raises(ValueError, match="0-9"):
        call.press("5x")


async def test_raw_frames_are_sent_as_they_are() -> None:
    wanted: list[str | bytes] = ['{"event":', b"\x00\xff", "", "[" * 2000]
    got: list[str | bytes] = []

    async def handler(agent: Agent) -> None:
        while len(got) < len(wanted):
            message = await agent.socket.recv()
            if isinstance(message, bytes) or not message.startswith(('{"event":"start', '{"event":"media')):
                got.append(message)

    async with agent_server(handler) as server:
        call = SimulatedCall(server.url, keep_raw=True)
        running = asyncio.ensure_future(call.run())
        await call.wait_started()
        for payload in wanted:
            call.send_raw(payload)
        record = await settle(running)
    assert got == wanted
    sent = [
        frame for frame in record.raw_sent if not frame.payload.startswith((b'{"event":"start', b'{"event":"media'))
    ]
    assert [(f.payload.decode() if f.text else f.payload) for f in sent] == wanted


async def test_the_path_and_query_of_the_url_reach_the_server() -> None:
    async with agent_server(listen) as server:
        await talk(SimulatedCall(server.url + "/stream/x?token=a%20b&y=1", headers={"X-Test": "1"}), "start")
    request = server.agents[0].socket.request
    assert request is not None
    assert request.path == "/stream/x?token=a%20b&y=1"
    assert request.headers["X-Test"] == "1"


# -- what Plivo does with what it is sent


async def test_the_caller_hears_the_agents_bytes_in_order_and_in_real_time() -> None:
    words = frames(30)

    async def handler(agent: Agent) -> None:
        await agent.until("start")
        await agent.play(words[: FRAME * 10])
        await agent.play(words[FRAME * 10 :])
        await agent.checkpoint("end")
        await agent.read_on()

    async with agent_server(handler) as server:
        record = await talk(SimulatedCall(server.url), "playedStream")
    assert record.heard.audio == words
    (segment,) = record.heard.segments
    assert segment.end - segment.start == pytest.approx(0.6)
    played = record.played("end")
    assert played is not None
    assert played.t - segment.end == pytest.approx(0, abs=0.05)
    assert played.t >= segment.end - 1e-6
    message = server.agents[0].of("playedStream")[0]
    assert message == {
        "event": "playedStream",
        "sequenceNumber": message["sequenceNumber"],
        "streamId": record.stream_ids[0],
        "name": "end",
    }
    assert [event.kind for event in record.events if event.kind in ("hears", "heard")] == ["hears", "heard"]
    heard = record.of("heard")[0]
    assert heard.data == {"since": pytest.approx(segment.start), "seconds": pytest.approx(0.6)}


@pytest.mark.parametrize("media_format", [MULAW_8K, L16_8K, L16_16K], ids=lambda f: f.content_type)
async def test_every_format_is_played(media_format: WireFormat) -> None:
    words = bytes(index % 253 for index in range(media_format.frame_bytes * 4))

    async def handler(agent: Agent) -> None:
        await agent.until("start")
        await agent.play(words, media_format.encoding, media_format.sample_rate)
        await agent.checkpoint("end")
        await agent.read_on()

    async with agent_server(handler) as server:
        record = await talk(SimulatedCall(server.url, media_format=media_format), "playedStream")
    assert record.heard.audio == words
    assert record.heard.seconds == pytest.approx(0.08)
    assert len(record.heard.pcm()) == round(record.heard.now * media_format.sample_rate)


async def test_clear_audio_stops_what_is_queued_and_is_answered() -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("start")
        await agent.play(frames(200))
        await agent.checkpoint("never")
        await agent.until("media", 10)
        await agent.clear()
        await agent.until("clearedAudio")
        await agent.play(frames(2, first=220))
        await agent.checkpoint("after")
        await agent.read_on()

    async with agent_server(handler) as server:
        record = await talk(SimulatedCall(server.url), "playedStream")
    cleared = record.of("clearedAudio")[0].t
    assert record.played("never") is None
    assert record.played("after") is not None
    audio = record.heard.audio
    assert audio.endswith(frames(2, first=220))
    before = audio[: -2 * FRAME]
    assert before == frames(200)[: len(before)]
    assert record.cleared_bytes == 200 * FRAME - len(before)
    found = record.heard.find(frames(2, first=220))
    assert found is not None
    assert found.contiguous
    assert found.start >= cleared - 1e-6
    cut = record.heard.find(before)
    assert cut is not None
    assert cut.end <= cleared + 0.021


async def test_a_sixteen_megabyte_message_is_taken() -> None:
    words = bytes(range(256)) * (12 * 4096)  # 12 MiB are 16 MiB in base64

    async def handler(agent: Agent) -> None:
        await agent.until("start")
        await agent.play(words)
        await agent.checkpoint("x")
        await agent.read_on()

    async with agent_server(handler) as server:
        call = SimulatedCall(server.url)
        record = await talk(call, "checkpoint")
    assert list(record.play_bytes) == [len(words)]
    assert record.heard.audio == words[: len(record.heard.audio)]


async def test_a_message_in_several_frames_is_put_together() -> None:
    async def handler(agent: Agent) -> None:
        start = await agent.until("start")
        stream_id = start["start"]["streamId"]
        await agent.socket.send(iter(['{"event":"checkpoint",', f'"streamId":"{stream_id}",', '"name":"parts"}']))
        await agent.read_on()

    async with agent_server(handler) as server:
        record = await talk(SimulatedCall(server.url), "playedStream")
    assert record.played("parts") is not None


async def test_what_is_not_plivos_protocol_is_ignored_and_named() -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("start")
        await agent.socket.send("not json")
        await agent.socket.send(b"\x01\x02")
        await agent.socket.send("[" * 100_000)
        await agent.socket.send("[1,2]")
        await agent.send(event="mark", name="x")
        await agent.send(event="checkpoint", streamId="", name="no stream")
        await agent.send(event="checkpoint", streamId=str(uuid.uuid4()), name="other stream")
        await agent.send(event="checkpoint", streamId=agent.stream_id, name="")
        await agent.send(event="clearAudio", streamId="")
        await agent.send(event="sendDTMF", dtmf="12#")
        await agent.checkpoint("end")
        await agent.read_on()

    async with agent_server(handler) as server:
        record = await talk(SimulatedCall(server.url), "playedStream")
    assert [event.data["why"] for event in record.of("ignored")] == [
        "not JSON",
        "a binary message",
        "not JSON",
        "missing or foreign streamId",
        "missing or foreign streamId",
        "missing name",
        "missing or foreign streamId",
    ]
    assert [event.data["message"] for event in record.of("unknown")] == [[1, 2], {"event": "mark", "name": "x"}]
    assert record.of("sendDTMF")[0].data == {"dtmf": "12#"}
    assert [message["name"] for message in server.agents[0].of("playedStream")] == ["end"]
    assert server.agents[0].of("clearedAudio") == []


async def test_a_stream_that_is_not_bidirectional_plays_nothing() -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("start")
        await agent.play(frames(2))
        await agent.read_on()

    async with agent_server(handler) as server:
        record = await talk(SimulatedCall(server.url, bidirectional=False), "ignored")
    assert record.heard.segments == ()
    assert record.of("ignored")[0].data["why"] == "the stream is not bidirectional"


# -- how a call ends


async def test_the_caller_hanging_up_completes_the_call_and_closes_with_1000() -> None:
    async with agent_server(listen) as server:
        record = await talk(SimulatedCall(server.url), "start")
    assert (record.outcome, record.ended_by, record.close_code) == ("completed", "caller", 1000)
    assert server.agents[0].socket.close_code == 1000
    assert record.ended_t is not None


async def test_nothing_is_heard_after_hanging_up() -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("start")
        await agent.play(frames(200))
        await agent.read_on()

    async with agent_server(handler) as server:
        call = SimulatedCall(server.url)
        running = asyncio.ensure_future(call.run())
        await call.wait_for(lambda record: record.heard.seconds >= 0.2)
        call.hang_up()
        record = await settle(running)
    assert record.ended_t is not None
    assert record.heard.end is not None
    assert record.heard.end <= record.ended_t + 0.02
    assert record.heard.audio == frames(200)[: len(record.heard.audio)]


async def test_the_agent_closing_normally_completes_the_call() -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("start")

    async with agent_server(handler) as server:
        record = await settle(asyncio.ensure_future(SimulatedCall(server.url).run()))
    assert (record.outcome, record.ended_by, record.close_code) == ("completed", "agent", 1000)


async def test_the_agent_closing_with_an_error_fails_the_call() -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("start")
        await agent.socket.close(1011, "agent lost")

    async with agent_server(handler) as server:
        record = await settle(asyncio.ensure_future(SimulatedCall(server.url).run()))
    assert (record.outcome, record.ended_by, record.close_code) == ("failed", "agent", 1011)
    assert "1011" in record.reason
    assert "agent lost" in record.reason


async def test_a_private_close_code_is_reported() -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("start")
        await agent.socket.close(4003, "no token")

    async with agent_server(handler) as server:
        record = await settle(asyncio.ensure_future(SimulatedCall(server.url).run()))
    assert (record.outcome, record.close_code, record.close_reason) == ("failed", 4003, "no token")


async def test_a_connection_that_breaks_fails_the_call() -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("start")
        agent.socket.transport.abort()

    async with agent_server(handler) as server:
        record = await settle(asyncio.ensure_future(SimulatedCall(server.url).run()))
    assert (record.outcome, record.ended_by, record.close_code) == ("failed", "plivo", 1006)


async def test_a_refused_handshake_fails_the_call_with_its_status() -> None:
    def refuse(connection: ServerConnection, request: Request) -> Response:
        return connection.respond(403, "no\n")

    async with agent_server(listen, process_request=refuse) as server:
        record = await settle(asyncio.ensure_future(SimulatedCall(server.url).run()))
    assert (record.outcome, record.handshake_status, record.started_t) == ("failed", 403, None)
    assert "403" in record.reason


async def test_a_redirect_is_not_followed() -> None:
    def redirect(connection: ServerConnection, request: Request) -> Response:
        response = connection.respond(302, "there\n")
        response.headers["Location"] = "/elsewhere"
        return response

    async with agent_server(listen, process_request=redirect) as server:
        record = await settle(asyncio.ensure_future(SimulatedCall(server.url).run()))
    assert (record.outcome, record.handshake_status) == ("failed", 302)
    assert server.agents == []


async def test_nobody_listening_fails_the_call() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    record = await settle(asyncio.ensure_future(SimulatedCall(f"ws://127.0.0.1:{port}").run()))
    assert record.outcome == "failed"
    assert record.reason.startswith("cannot connect")


async def test_a_server_that_never_answers_the_handshake_is_given_up() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"ws://127.0.0.1:{silent.getsockname()[1]}"
        record = await settle(asyncio.ensure_future(SimulatedCall(url, connect_timeout_s=0.1).run()))
    assert record.outcome == "failed"
    assert "within 0.1 s" in record.reason


async def test_hanging_up_while_it_still_rings_ends_the_dialling() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        call = SimulatedCall(f"ws://127.0.0.1:{silent.getsockname()[1]}", connect_timeout_s=60)
        record = await talk(call, "dialling")
    assert (record.outcome, record.started_t, record.close_code) == ("completed", None, None)


async def test_a_cancelled_call_leaves_no_connection_behind() -> None:
    gone = asyncio.Event()

    async def handler(agent: Agent) -> None:
        await agent.read_on()
        gone.set()

    async with agent_server(handler) as server:
        call = SimulatedCall(server.url)
        running = asyncio.ensure_future(call.run())
        await call.wait_started()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await asyncio.wait_for(gone.wait(), 5)
    assert call.record.outcome == "failed"


async def test_the_stream_timeout_ends_the_stream() -> None:
    async with agent_server(listen) as server:
        record = await settle(asyncio.ensure_future(SimulatedCall(server.url, stream_timeout_s=0.1).run()))
    assert (record.outcome, record.ended_by, record.reason) == ("completed", "plivo", "streamTimeout has passed")


# -- driving a call


async def test_a_script_runs_once_the_stream_has_started_and_can_fail_the_call() -> None:
    async def script(call: SimulatedCall) -> None:
        assert call.record.started_t is not None
        raise CallFailed("the agent said nothing")

    async with agent_server(listen) as server:
        record = await settle(asyncio.ensure_future(SimulatedCall(server.url, script).run()))
    assert (record.outcome, record.reason) == ("failed", "the agent said nothing")


async def test_an_error_in_a_script_is_raised_when_the_call_has_ended() -> None:
    async def script(call: SimulatedCall) -> None:
        raise KeyError("mistake")

    async with agent_server(listen) as server:
        call = SimulatedCall(server.url, script)
        with pytest.raises(KeyError, match="mistake"):
            await settle(asyncio.ensure_future(call.run()))
    assert call.record.outcome == "failed"


async def test_waiting_in_vain_names_what_was_waited_for() -> None:
    async with agent_server(listen) as server:
        call = SimulatedCall(server.url)
        running = asyncio.ensure_future(call.run())
        await call.wait_started()
        with pytest.raises(TimeoutError, match=r"not within 0\.05 s: a miracle"):
            await call.wait_for(lambda record: False, 0.05, "a miracle")
        waiting = asyncio.ensure_future(call.wait_for(lambda record: False, 10, "a miracle"))
        await asyncio.sleep(0)
        call.hang_up()
        with pytest.raises(CallEnded, match=r"the caller hung up.*a miracle"):
            await waiting
        with pytest.raises(CallEnded, match="a miracle"):
            await call.wait_for(lambda record: False, 10, "a miracle")
        await settle(running)


async def test_a_predicate_that_fails_fails_the_wait() -> None:
    async with agent_server(listen) as server:
        call = SimulatedCall(server.url)
        running = asyncio.ensure_future(call.run())
        await call.wait_started()
        with pytest.raises(ZeroDivisionError):
            await call.wait_for(lambda record: len(record.media_sent_at) > 2 and 1 / 0)
        call.hang_up()
        await settle(running)


async def test_a_call_runs_once() -> None:
    async with agent_server(listen) as server:
        call = SimulatedCall(server.url)
        await talk(call, "start")
        with pytest.raises(RuntimeError, match="once"):
            await call.run()


async def test_everything_on_the_wire_is_kept_when_asked() -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("start")
        await agent.socket.send('{ "event" : "checkpoint", "streamId":"' + agent.stream_id + '","name":"a" }')
        await agent.read_on()

    async with agent_server(handler) as server:
        record = await talk(SimulatedCall(server.url, keep_raw=True), "playedStream")
    expected = '{ "event" : "checkpoint", "streamId":"' + server.agents[0].stream_id + '","name":"a" }'
    assert [frame.payload.decode() for frame in record.raw_received] == [expected]
    sent = [frame.payload.decode() for frame in record.raw_sent]
    assert server.agents[0].raw == sent[: len(server.agents[0].raw)]
    assert json.loads(sent[0])["event"] == "start"


async def test_the_record_tells_events_and_audio_in_order_of_time() -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("start")
        await agent.play(frames(2))
        await agent.checkpoint("end")
        await agent.read_on()

    async with agent_server(handler) as server:
        record = await talk(SimulatedCall(server.url), "playedStream")
    timeline = list(record.timeline())
    assert [event.t for event in timeline] == sorted(event.t for event in timeline)
    kinds = [event.kind for event in timeline]
    assert kinds.index("start") < kinds.index("playAudio") < kinds.index("hears") < kinds.index("playedStream")
