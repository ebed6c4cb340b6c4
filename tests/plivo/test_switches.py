"""Every switch of the stand-in, in each of its positions, as a server sees it."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from supervision.plivo.simulator import L16_8K, CallRecord, PlivoSwitches, SimulatedCall, SwitchError

from .agents import Agent, agent_server, listen, settle

FRAME = 160


def frames(count: int, first: int = 1) -> bytes:
    return b"".join(bytes([(first + index) % 250]) * FRAME for index in range(count))


async def played_out(agent: Agent, words: bytes = b"") -> None:
    """Say `words` and wait until they were played."""
    if words:
        await agent.play(words)
    await agent.checkpoint("played out")
    while "played out" not in [message["name"] for message in agent.of("playedStream")]:
        await agent.receive()


async def run(url: str, **switches: object) -> CallRecord:
    """A call that lasts until the agent, or the switches, end it."""
    call = SimulatedCall(url, switches=PlivoSwitches(**switches))  # type: ignore[arg-type]
    return await settle(asyncio.ensure_future(call.run()))


# -- the handshake and start


@pytest.mark.parametrize("delay", [0.0, 0.15])
async def test_start_delay(delay: float) -> None:
    async def handler(agent: Agent) -> None:
        connected = loop.time()
        await agent.until("start")
        waited.append(loop.time() - connected)

    loop, waited = asyncio.get_running_loop(), list[float]()
    async with agent_server(handler) as server:
        record = await run(server.url, start_delay_s=delay)
    assert waited[0] >= delay - 0.02
    assert delay or waited[0] < 0.1
    assert record.started_t is not None
    assert record.started_t >= delay


async def test_the_agent_may_close_before_start() -> None:
    async def handler(agent: Agent) -> None:
        return

    async with agent_server(handler) as server:
        record = await run(server.url, start_delay_s=5.0)
    assert (record.outcome, record.ended_by, record.started_t) == ("completed", "agent", None)


@pytest.mark.parametrize(
    ("offer", "selected"),
    [
        ("", None),
        ("audio.drachtio.org", "audio.drachtio.org"),
        ("audio.plivo.com, audio.drachtio.org", "audio.plivo.com"),
    ],
)
async def test_subprotocol(offer: str, selected: str | None) -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("start")

    def first(connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        return next(iter(offered), None)

    async with agent_server(handler, select_subprotocol=first) as server:
        record = await run(server.url, subprotocol=offer)
    assert record.subprotocol == selected
    request = server.agents[0].socket.request
    assert request is not None
    assert request.headers.get("Sec-WebSocket-Protocol", "") == offer
    assert record.outcome == "completed"


@pytest.mark.parametrize(("required", "outcome"), [(False, "completed"), (True, "failed")])
async def test_subprotocol_required(required: bool, outcome: str) -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("start")

    async with agent_server(handler) as server:
        record = await run(server.url, subprotocol="audio.drachtio.org", subprotocol_required=required)
    assert record.outcome == outcome
    assert ("selected none" in record.reason) == required


@pytest.mark.parametrize("first", [0, 1])
async def test_seq_start(first: int) -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("media", 2)

    async with agent_server(handler) as server:
        await run(server.url, seq_start=first)
    numbers = [message["sequenceNumber"] for message in server.agents[0].received]
    assert numbers == [first, first + 1, first + 2]


@pytest.mark.parametrize("value", ["", "{}", "k=v;k2=v2", '{X-PH-a: "b"}', "absent"])
async def test_extra_headers(value: str) -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("dtmf")
        await agent.until("media")

    async with agent_server(handler) as server:
        call = SimulatedCall(server.url, switches=PlivoSwitches(extra_headers=value))
        running = asyncio.ensure_future(call.run())
        await call.wait_started()
        call.press("1")
        await settle(running)
    agent = server.agents[0]
    for event in ("start", "media", "dtmf"):
        for message in agent.of(event):
            assert message.get("extra_headers", "absent") == value


# -- checkpoints and clearAudio


@pytest.mark.parametrize("numbered", [True, False])
async def test_played_seq(numbered: bool) -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("start")
        await played_out(agent, frames(1))

    async with agent_server(handler) as server:
        await run(server.url, played_seq=numbered)
    played = server.agents[0].of("playedStream")[0]
    expected = {"event", "streamId", "name"} | ({"sequenceNumber"} if numbered else set())
    assert set(played) == expected


@pytest.mark.parametrize(("position", "answered"), [("fire", ["empty", "end"]), ("never", ["end"])])
async def test_checkpoint_on_empty(position: str, answered: list[str]) -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("start")
        await agent.checkpoint("empty")
        await agent.play(frames(2))
        await agent.checkpoint("end")
        await agent.until("playedStream", len(answered))

    async with agent_server(handler) as server:
        await run(server.url, checkpoint_on_empty=position)
    assert [message["name"] for message in server.agents[0].of("playedStream")] == answered


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ("drop", ["clearedAudio", "playedStream:end"]),
        ("fire_now", ["playedStream:a", "playedStream:b", "clearedAudio", "playedStream:end"]),
        ("fire_late", ["clearedAudio", "playedStream:end", "playedStream:a", "playedStream:b"]),
    ],
)
async def test_pending_checkpoints_on_clear(position: str, expected: list[str]) -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("start")
        await agent.play(frames(100))
        await agent.checkpoint("a")
        await agent.checkpoint("b")
        await agent.until("media", 3)
        await agent.clear()
        await agent.play(frames(1))
        await agent.checkpoint("end")
        await agent.until("playedStream", len(expected) - 1)

    async with agent_server(handler) as server:
        record = await run(server.url, pending_checkpoints_on_clear=position, pending_checkpoint_delay_s=0.2)
    told = [m["event"] + (f":{m['name']}" if "name" in m else "") for m in server.agents[0].received]
    assert [word for word in told if word not in ("start", "media")] == expected
    if position == "fire_late":
        played, cleared = record.played("a"), record.of("clearedAudio")[0]
        assert played is not None
        assert played.t - cleared.t >= 0.2 - 1e-3


@pytest.mark.parametrize(
    ("position", "answers"),
    [
        ("normal", ["one", "clearedAudio", "two", "clearedAudio"]),
        ("lost", ["one", "two"]),
        ("double", ["one", "clearedAudio", "clearedAudio", "two", "clearedAudio", "clearedAudio"]),
        ("late", ["one", "two", "clearedAudio", "clearedAudio"]),
        ("lost,normal", ["one", "two", "clearedAudio"]),
        ("late,normal", ["one", "two", "clearedAudio", "clearedAudio"]),
    ],
)
async def test_cleared_audio(position: str, answers: list[str]) -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("start")
        for index, name in enumerate(("one", "two")):
            await agent.checkpoint(name)
            await agent.until("playedStream", index + 1)
            await agent.clear()
        while len(told(agent)) < len(answers):
            await agent.receive()
        await agent.until("media", len(agent.of("media")) + 5)  # room for one too many

    def told(agent: Agent) -> list[str]:
        return [m.get("name", m["event"]) for m in agent.received if m["event"] in ("playedStream", "clearedAudio")]

    async with agent_server(handler) as server:
        record = await run(server.url, cleared_audio=position, cleared_audio_delay_s=0.15)
    assert told(server.agents[0]) == answers
    assert all("sequenceNumber" in message for message in server.agents[0].of("clearedAudio"))
    if position == "late":
        waits = [b.t - a.t for a, b in zip(record.of("clearAudio"), record.of("clearedAudio"), strict=True)]
        assert all(wait >= 0.15 - 1e-3 for wait in waits)


@pytest.mark.parametrize("late", [0.05, 0.4])
async def test_how_late_late_answers_are(late: float) -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("start")
        await agent.play(frames(100))
        await agent.checkpoint("cut")
        await agent.until("media", 2)
        await agent.clear()
        await agent.until("clearedAudio")
        await agent.until("playedStream")

    async with agent_server(handler) as server:
        record = await run(
            server.url,
            cleared_audio="late",
            cleared_audio_delay_s=late,
            pending_checkpoints_on_clear="fire_late",
            pending_checkpoint_delay_s=late,
        )
    asked = record.of("clearAudio")[0].t
    for answer in (record.of("clearedAudio")[0], record.of("playedStream")[0]):
        assert late - 1e-3 <= answer.t - asked < late + 0.2


BAD_MEDIA = {
    "no media": None,
    "no payload": {"contentType": "audio/x-l16", "sampleRate": 8000},
    "not base64": {"contentType": "audio/x-l16", "sampleRate": 8000, "payload": "A*=="},
    "half base64": {"contentType": "audio/x-l16", "sampleRate": 8000, "payload": "QUJD\nQQ"},
    "another codec": {"contentType": "audio/x-mulaw", "sampleRate": 8000, "payload": "QUJD"},
    "a wav": {"contentType": "wav", "sampleRate": 8000, "payload": "QUJD"},
    "another rate": {"contentType": "audio/x-l16", "sampleRate": 16000, "payload": "QUJDRA=="},
    "half a sample": {"contentType": "audio/x-l16", "sampleRate": 8000, "payload": "QUJD"},
}


@pytest.mark.parametrize("media", BAD_MEDIA.values(), ids=BAD_MEDIA.keys())
@pytest.mark.parametrize("position", ["ignore", "playFailed"])
async def test_bad_audio(position: str, media: dict[str, object] | None) -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("start")
        await agent.send(event="playAudio", **({} if media is None else {"media": media}))
        await agent.checkpoint("end")
        await agent.until("playedStream")

    async with agent_server(handler) as server:
        call = SimulatedCall(server.url, switches=PlivoSwitches(bad_audio=position), media_format=L16_8K)
        record = await settle(asyncio.ensure_future(call.run()))
    assert record.heard.audio == b""
    failures = server.agents[0].of("playFailed")
    assert len(failures) == (1 if position == "playFailed" else 0)
    assert all(failure["reason"] for failure in failures)
    assert len(record.of("ignored")) == 1


async def test_good_audio_in_odd_clothes_is_played() -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("start")
        media = {"contentType": "audio/x-l16", "sampleRate": "8000", "payload": "QUJDRA=="}
        await agent.send(event="playAudio", streamId=agent.stream_id, media=media)
        await agent.send(event="playAudio", media=media | {"payload": "", "sampleRate": 8000})
        await agent.send(event="playAudio", streamId="another", media=media)
        await played_out(agent)

    async with agent_server(handler) as server:
        call = SimulatedCall(server.url, switches=PlivoSwitches(bad_audio="playFailed"), media_format=L16_8K)
        record = await settle(asyncio.ensure_future(call.run()))
    assert record.heard.audio == b"ABCD"
    assert server.agents[0].of("playFailed") == []


# -- the network


@pytest.mark.parametrize("delay", [0.0, 0.1])
async def test_delay(delay: float) -> None:
    """A checkpoint's round trip, measured by the server, holds the delay twice."""
    trips: list[float] = []

    async def handler(agent: Agent) -> None:
        await agent.until("start")
        sent = asyncio.get_running_loop().time()
        await agent.checkpoint("ping")
        await agent.until("playedStream")
        trips.append(asyncio.get_running_loop().time() - sent)

    async with agent_server(handler) as server:
        record = await run(server.url, delay_s=delay)
    assert trips[0] >= 2 * delay - 1e-3
    assert delay or trips[0] < 0.1
    assert record.outcome == "completed"


@pytest.mark.parametrize("jitter", [0.0, 0.06])
async def test_jitter_spreads_frames_and_keeps_their_order(jitter: float) -> None:
    gaps: list[float] = []

    async def handler(agent: Agent) -> None:
        loop = asyncio.get_running_loop()
        await agent.until("start")
        for index in range(60):
            await agent.play(bytes([index + 1]) * FRAME)
        await agent.checkpoint("end")
        last = loop.time()
        while not agent.of("playedStream"):
            await agent.receive()
            gaps.append(loop.time() - last)
            last = loop.time()

    async with agent_server(handler) as server:
        record = await run(server.url, jitter_s=jitter, seed=7)
    assert record.heard.audio == frames(60)
    numbers = [message["sequenceNumber"] for message in server.agents[0].received]
    assert numbers == sorted(numbers)
    # With jitter, frames come in lumps: many right behind the one before, others late.
    lumps = sum(gap < 0.005 for gap in gaps)
    assert lumps > 10 if jitter else lumps < 10


async def test_jitter_is_repeatable_and_follows_its_seed() -> None:
    from random import Random

    from supervision.plivo.simulator.connection import DelayLine

    class Clock:
        """The part of an event loop that a DelayLine uses; nothing fires, the due times are looked at."""

        def time(self) -> float:
            return 0.0

        def call_at(self, when: float, action: object, *args: object) -> None:
            return None

    def dues(seed: int) -> list[float]:
        line: DelayLine[int] = DelayLine(Clock(), print, delay=0.1, jitter=0.05, random=Random(seed))  # type: ignore[arg-type]
        for item in range(20):
            line.push(item)
        return [due for due, _ in line._items]

    assert dues(1) == dues(1) != dues(2)
    assert all(0.1 <= due <= 0.15 for due in dues(1))
    assert dues(1) == sorted(dues(1))


@pytest.mark.parametrize("rate", [0, 40_000])
async def test_slow_reader(rate: int) -> None:
    """The time until everything was read shows in when the last checkpoint came in."""

    async def handler(agent: Agent) -> None:
        await agent.until("start")
        for index in range(100):
            await agent.play(bytes([index + 1]) * FRAME)
        await agent.checkpoint("end")
        await agent.read_on()

    async with agent_server(handler) as server:
        call = SimulatedCall(server.url, switches=PlivoSwitches(slow_reader_bytes_s=rate))
        running = asyncio.ensure_future(call.run())
        await call.wait_for(lambda record: record.of("checkpoint"))
        call.hang_up()
        record = await settle(running)
    began, came = record.of("start")[0].t, record.of("checkpoint")[0].t
    assert len(record.play_bytes) == 100
    if rate:
        size = 100 * 310  # a playAudio of 160 bytes, as JSON
        assert came - began > 0.4 * size / rate
    else:
        assert came - began < 0.3


async def test_a_server_that_does_not_read_is_warned_and_dropped() -> None:
    async def handler(agent: Agent) -> None:
        agent.socket.transport.pause_reading()
        await gone.wait()

    gone = asyncio.Event()
    states: list[tuple[str, str]] = []
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        listener.bind(("127.0.0.1", 0))
        async with agent_server(handler, sock=listener, close_timeout=0.1) as server:
            call = SimulatedCall(
                server.url,
                switches=PlivoSwitches(send_buffer_s=20.0),
                on_status=lambda event, data: states.append((event, data.get("Error", ""))),
            )
            running = asyncio.ensure_future(call.run())
            await call.wait_started()
            call.send_raw("x" * 6_000_000)  # fills what the kernel buffers on the way
            record = await settle(running)
            gone.set()
    assert record.outcome == "failed"
    assert [event.data["buffer"] for event in record.of("degraded")] == ["30%", "60%", "90%"]
    assert [event for event, _ in states] == ["StartStream", *["DegradedStream"] * 3, "DroppedStream"]


async def test_a_server_that_reads_again_in_time_is_kept() -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("start")
        agent.socket.transport.pause_reading()
        await call.wait_for(lambda record: len(record.media_sent_at) > 25)
        agent.socket.transport.resume_reading()
        await agent.until("media", 50)

    async with agent_server(handler) as server:
        call = SimulatedCall(server.url)
        record = await settle(asyncio.ensure_future(call.run()))
    assert record.outcome == "completed"
    assert record.of("degraded") == []
    assert [message["media"]["chunk"] for message in server.agents[0].of("media")][:50] == list(range(1, 51))


@pytest.mark.parametrize("interval", [0.0, 0.05])
async def test_ping(interval: float) -> None:
    async with agent_server(listen) as server:
        call = SimulatedCall(server.url, switches=PlivoSwitches(ping_s=interval))
        running = asyncio.ensure_future(call.run())
        await call.wait_for(lambda record: len(record.media_sent_at) > 15)
        if interval:
            await call.wait_for(lambda record: len(record.of("pong")) >= 2)
        call.hang_up()
        record = await settle(running)
    pings, pongs = len(record.of("ping", "plivo")), len(record.of("pong", "server"))
    assert pongs <= pings
    assert (pongs >= 2) == bool(interval)


async def test_pings_of_the_server_are_answered_and_noted() -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("start")
        await asyncio.wait_for(await agent.socket.ping(b"are you there"), 5)

    async with agent_server(handler) as server:
        record = await run(server.url)
    assert len(record.of("ping", "server")) == 1


# -- reconnects


async def drop(agent: Agent) -> None:
    """Play two seconds of audio and break the connection in the middle."""
    await agent.until("start")
    await agent.play(frames(100))
    await agent.checkpoint("old")
    await agent.until("media", 5)
    agent.socket.transport.abort()


async def say_new(agent: Agent) -> None:
    await agent.until("start")
    await played_out(agent, frames(1, first=200))


@pytest.mark.parametrize(("reconnects", "connections"), [(0, 1), (1, 2), (2, 3)])
async def test_reconnects(reconnects: int, connections: int) -> None:
    async with agent_server(drop) as server:
        record = await run(server.url, reconnects=reconnects, reconnect_delay_s=0.05)
    assert record.outcome == "failed"
    assert record.ended_by == "plivo"
    assert len(server.agents) == len(record.stream_ids) == connections
    assert len(set(record.stream_ids)) == connections
    assert {agent.start["start"]["callId"] for agent in server.agents} == {record.call_id}
    assert all(agent.start["sequenceNumber"] == 1 for agent in server.agents)
    assert all(agent.of("media")[0]["media"]["chunk"] == 1 for agent in server.agents)


async def test_a_reconnect_can_save_the_call() -> None:
    async with agent_server(drop, say_new) as server:
        record = await run(server.url, reconnects=2, reconnect_delay_s=0.05)
    assert (record.outcome, record.ended_by) == ("completed", "agent")
    assert record.heard.audio.endswith(frames(1, first=200))


@pytest.mark.parametrize("wait", [0.05, 0.3])
async def test_reconnect_delay(wait: float) -> None:
    async with agent_server(drop, say_new) as server:
        record = await run(server.url, reconnects=1, reconnect_delay_s=wait)
    first, second = record.of("dialling")
    lost = record.of("close")[0]
    assert wait <= second.t - lost.t + 1e-3
    assert second.t - lost.t < wait + 0.2
    assert first.t < lost.t


@pytest.mark.parametrize(
    ("position", "code", "connections"),
    [("drop", 1011, 1), ("abnormal", 1011, 2), ("abnormal", 1000, 1), ("drop", 1012, 1)],
)
async def test_reconnect_on(position: str, code: int, connections: int) -> None:
    async def close(agent: Agent) -> None:
        await agent.until("start")
        await agent.socket.close(code)

    async with agent_server(close, say_new) as server:
        record = await run(server.url, reconnects=1, reconnect_delay_s=0.05, reconnect_on=position)
    assert len(server.agents) == connections
    assert record.outcome == ("completed" if code == 1000 or connections == 2 else "failed")


@pytest.mark.parametrize("position", ["lost", "kept"])
async def test_queue_on_reconnect(position: str) -> None:
    async def new(agent: Agent) -> None:
        await agent.until("start")
        await agent.until("media", 10)
        await played_out(agent, frames(1, first=200))

    async with agent_server(drop, new) as server:
        record = await run(server.url, reconnects=1, reconnect_delay_s=0.1, queue_on_reconnect=position)
    old = record.heard.audio.removesuffix(frames(1, first=200))
    lost_at = record.of("close")[0].t
    names = [message["name"] for message in server.agents[1].of("playedStream")]
    if position == "kept":
        assert old == frames(100)
        assert names == ["old", "played out"]
    else:
        assert old == frames(100)[: len(old)]
        assert len(old) < len(frames(50))
        assert record.heard.segments[0].end <= lost_at + 0.021
        assert names == ["played out"]


async def test_a_failed_handshake_is_tried_again() -> None:
    tries: list[str] = []

    def busy(connection: ServerConnection, request: Request) -> Response | None:
        tries.append(request.path)
        return connection.respond(503, "busy\n") if len(tries) < 3 else None

    async with agent_server(say_new, process_request=busy) as server:
        record = await run(server.url, reconnects=2, reconnect_delay_s=0.02)
    assert len(tries) == 3
    assert (record.outcome, record.handshake_status) == ("completed", 101)
    assert [event.data["status"] for event in record.of("dial_failed")] == [503, 503]


async def test_a_caller_may_hang_up_while_plivo_waits_to_dial_again() -> None:
    async with agent_server(drop) as server:
        call = SimulatedCall(server.url, switches=PlivoSwitches(reconnects=2, reconnect_delay_s=60))
        running = asyncio.ensure_future(call.run())
        await call.wait_for(lambda record: record.of("redialling"))
        call.press("1")
        call.hang_up()
        record = await settle(running)
    assert record.outcome == "completed"
    assert len(server.agents) == 1
    assert record.of("key_lost")


async def test_the_network_can_be_broken_by_the_test() -> None:
    async with agent_server(listen, say_new) as server:
        call = SimulatedCall(server.url, switches=PlivoSwitches(reconnects=1, reconnect_delay_s=0.02))
        running = asyncio.ensure_future(call.run())
        await call.wait_started()
        call.drop_connection()
        record = await settle(running)
    assert record.outcome == "completed"
    assert len(server.agents) == 2


# -- hanging up


@pytest.mark.parametrize("position", ["off", "on", "bare"])
async def test_send_stop(position: str) -> None:
    async with agent_server(listen) as server:
        record = await run(server.url, hang_up_at_s=0.1, send_stop=position)
    stops = server.agents[0].of("stop")
    if position == "off":
        assert stops == []
    elif position == "bare":
        assert stops == [{"event": "stop"}]
    else:
        (stop,) = stops
        assert stop["streamId"] == record.stream_ids[0]
        assert stop["stop"]["callId"] == record.call_id
        assert isinstance(stop["sequenceNumber"], int)
    assert server.agents[0].received[-1]["event"] == ("media" if position == "off" else "stop")
    assert server.agents[0].socket.close_code == 1000


async def test_send_stop_reaches_the_server_before_the_close_over_a_slow_line() -> None:
    async with agent_server(listen) as server:
        record = await run(server.url, hang_up_at_s=0.1, send_stop="on", delay_s=0.1, jitter_s=0.05)
    assert server.agents[0].received[-1]["event"] == "stop"
    assert server.agents[0].socket.close_code == record.close_code == 1000


@pytest.mark.parametrize("after", [0.1, 0.0])
async def test_hang_up_at(after: float) -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("media", 20)

    async with agent_server(handler) as server:
        record = await run(server.url, hang_up_at_s=after)
    assert record.ended_by == ("caller" if after else "agent")
    if after:
        assert record.ended_t is not None
        assert record.started_t is not None
        assert record.ended_t - record.started_t == pytest.approx(after, abs=0.05)


# -- as texts


def test_every_switch_is_tested_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    for name in PlivoSwitches.names():
        assert f"{name}=" in source, f"no test sets {name}"


def test_every_switch_explains_itself() -> None:
    described = PlivoSwitches.describe()
    assert [name for name, _, _ in described] == [item.name for item in dataclasses.fields(PlivoSwitches)]
    assert all(text for _, _, text in described)
    assert ("played_seq", "on", "playedStream carries sequenceNumber") in described


def test_texts_become_values() -> None:
    switches = PlivoSwitches().with_text(
        ["delay_s=0.03", "reconnects=2", "played_seq=off", "extra_headers=a=b;c=d", "send_stop=on"]
    )
    assert switches == PlivoSwitches(
        delay_s=0.03, reconnects=2, played_seq=False, extra_headers="a=b;c=d", send_stop="on"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("delay_s", "not of the form switch=value"),
        ("delya_s=1", "there is no switch 'delya_s'; the switches are: .*delay_s"),
        ("delay_s=soon", "delay_s: 'soon' is not a number"),
        ("delay_s=-1", r"delay_s: -1\.0 is below 0"),
        ("delay_s=nan", "not a finite number"),
        ("reconnects=3", "reconnects: 3 is not one of 0, 1, 2"),
        ("reconnects=1.5", "not a whole number"),
        ("played_seq=maybe", "not on or off"),
        ("cleared_audio=lost,gone", "'gone' is not one of normal, lost, late, double"),
        ("bad_audio=explode", "bad_audio: 'explode' is not one of ignore, playFailed"),
    ],
)
def test_a_bad_text_names_the_switch_and_what_it_takes(text: str, message: str) -> None:
    with pytest.raises(SwitchError, match=message):
        PlivoSwitches().with_text([text])


def test_yaml_values_are_taken_and_checked() -> None:
    assert PlivoSwitches().with_values({"delay_s": 1, "send_stop": True}) == PlivoSwitches(delay_s=1.0, send_stop="on")
    with pytest.raises(SwitchError, match="reconnects: True is not a whole number"):
        PlivoSwitches().with_values({"reconnects": True})
    with pytest.raises(SwitchError, match="played_seq: 3 is not on or off"):
        PlivoSwitches().with_values({"played_seq": 3})
