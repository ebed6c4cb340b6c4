"""A call without a socket, to a server's end in the same process, and a caller who speaks live; on virtual time."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from supervision.plivo.simulator import L16_8K, MULAW_8K, CallRecord, DirectLine, Microphone, SimulatedCall
from tests.support.virtual_time import virtual_time

FRAME = 160


class Server:
    """What a server would make of a WebSocket: it keeps what comes, and answers when told to."""

    def __init__(self) -> None:
        self.line: DirectLine | None = None
        self.events: list[dict[str, Any]] = []
        self.code: int | None = None

    def connect(self, take: Any) -> DirectLine:
        self.line = DirectLine(take)
        self._serving = asyncio.get_running_loop().create_task(self._serve(self.line))
        return self.line

    async def _serve(self, line: DirectLine) -> None:
        while (message := await line.receive())["type"] == "websocket.receive":
            self.events.append(json.loads(message["text"]))
        self.code = message["code"]

    async def send(self, event: str, **fields: Any) -> None:
        assert self.line is not None
        text = json.dumps({"event": event, "streamId": self.line.stream_id, **fields})
        await self.line.answer({"type": "websocket.send", "text": text})

    def payloads(self) -> list[str]:
        return [event["media"]["payload"] for event in self.events if event["event"] == "media"]


async def talk(server: Server, *steps: Any) -> CallRecord:
    async def script(call: SimulatedCall) -> None:
        for step in steps:
            await step(call)
        call.hang_up()

    record = await SimulatedCall("", script, line=server.connect).run()
    await asyncio.sleep(0)
    return record


@virtual_time
async def test_a_call_on_a_direct_line_is_plivos_wire() -> None:
    server = Server()

    async def plays(call: SimulatedCall) -> None:
        media = {"contentType": "audio/x-mulaw", "sampleRate": 8000, "payload": "AAAA" * 40}
        await server.send("playAudio", media=media)
        await server.send("checkpoint", name="said")
        await call.wait_for(lambda record: record.played("said"))
        await server.send("clearAudio")

    record = await talk(server, plays)
    assert server.events[0]["event"] == "start"
    assert server.events[0]["start"]["callId"] == record.call_id
    assert [event["event"] for event in server.events if event["event"] != "media"] == [
        "start",
        "playedStream",
        "clearedAudio",
    ]
    assert (record.outcome, record.ended_by, server.code) == ("completed", "caller", 1000)
    assert record.heard.seconds == pytest.approx(0.015)


@pytest.mark.parametrize(
    ("code", "ended"),
    [(1000, ("completed", "agent")), (1011, ("failed", "agent")), (1008, ("failed", "agent"))],
)
@virtual_time
async def test_the_servers_end_can_end_it(code: int, ended: tuple[str, str]) -> None:
    server = Server()

    async def closed(call: SimulatedCall) -> None:
        assert server.line is not None
        await server.line.answer({"type": "websocket.close", "code": code})
        await asyncio.sleep(1)

    record = await talk(server, closed)
    assert (record.outcome, record.ended_by, record.close_code) == (*ended, code)
    assert server.code == code


@virtual_time
async def test_what_is_spoken_live_is_sent_in_frames_and_queued_speech_goes_first() -> None:
    server = Server()

    async def speaks(call: SimulatedCall) -> None:
        await asyncio.sleep(0.1)
        for number in range(10):
            call.speak_live(bytes([number + 1]) * FRAME)
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        call.say(b"\x55" * FRAME * 3)
        call.speak_live(b"\x66" * FRAME * 3)
        await asyncio.sleep(0.3)

    await talk(server, speaks)
    import base64

    heard = [base64.b64decode(payload)[0] for payload in server.payloads()]
    said = [byte for byte in heard if byte != 0xFF]
    # The last two of the ten wait for a third that never comes; what was said under the queued speech is lost.
    assert said[:8] == list(range(1, 9))
    assert said.count(0x55) == 3
    assert 0x66 not in said


def test_a_microphone_holds_a_little_against_unevenness_and_never_stays_late() -> None:
    microphone = Microphone(MULAW_8K)
    microphone.push(b"\x01" * FRAME * 2)
    assert microphone.frame() is None, "40 ms are too little to begin with"
    microphone.push(b"\x02" * FRAME)
    assert [microphone.frame() for _ in range(4)] == [b"\x01" * FRAME, b"\x01" * FRAME, b"\x02" * FRAME, None]
    microphone.push(b"\x03" * FRAME * 100)
    assert microphone.dropped_bytes == FRAME * 97
    assert sum(microphone.frame() is not None for _ in range(10)) == 3


def test_a_microphone_leaves_half_samples_out() -> None:
    microphone = Microphone(L16_8K)
    microphone.push(b"\x01\x02" * FRAME * 3 + b"\x09")
    frame = microphone.frame()
    assert frame == b"\x01\x02" * FRAME
