"""An agent that speaks Mirror's lines: what the client hands on, and how it frames the audio."""

from __future__ import annotations

import asyncio

import pytest

from supervision.client import MirrorClient, Say
from tests.client.wire import Wire, settle
from tests.support.virtual_time import virtual_time

ASKED = {
    "event": "mirror.say",
    "id": "s1",
    "role": "correction",
    "text": "A colleague decides that.",
    "language": "en",
    "deadline_ms": 500,
}
AUDIO = '{"event": "playAudio"}'


def lines(wire: Wire) -> list[tuple[str, str | None]]:
    return [(frame["event"], frame.get("state")) for frame in wire.sent if frame["event"] != "mirror.hello"]


@virtual_time
async def test_an_agent_says_that_it_wants_to_speak_mirrors_lines() -> None:
    wire = Wire()
    mirror = MirrorClient(wire, say=True)
    await mirror.transcript("Hi")
    assert wire.sent[0]["wants"] == ["verdicts", "notes", "say"]


@virtual_time
async def test_a_lines_audio_stands_between_its_begin_and_its_end() -> None:
    wire = Wire()
    mirror = MirrorClient(wire, say=True)
    asked = aiter(mirror.says)
    await mirror.transcript("Hi")
    wire.arrive(ASKED)
    say = await anext(asked)
    assert say == Say("s1", "correction", "A colleague decides that.", "en", 500)
    async with mirror.saying(say):
        await mirror.websocket.send(AUDIO)
    assert lines(wire)[1:] == [
        ("mirror.audio", "start"),
        ("playAudio", None),
        ("mirror.audio", "end"),
        ("mirror.said", None),
    ]
    assert (wire.sent[-2]["say"], wire.sent[-1]["id"]) == ("s1", "s1")


@virtual_time
async def test_a_line_that_is_broken_off_is_cut_and_not_said() -> None:
    wire = Wire()
    mirror = MirrorClient(wire, say=True)

    async def speak() -> None:
        async with mirror.saying(Say("s1", "buffer", "One moment.")):
            await asyncio.sleep(60)

    speaking = asyncio.create_task(speak())
    await settle()
    speaking.cancel()
    await asyncio.wait({speaking})
    assert speaking.cancelled()
    assert lines(wire) == [("mirror.audio", "start"), ("mirror.audio", "cut")]
    with pytest.raises(RuntimeError, match="no voice"):
        async with mirror.saying(Say("s2", "buffer", "One moment.")):
            raise RuntimeError("no voice")
    assert lines(wire)[-1] == ("mirror.audio", "cut")


@virtual_time
async def test_a_malformed_line_reaches_the_agent_without_what_is_wrong() -> None:
    wire = Wire()
    mirror = MirrorClient(wire, say=True)
    asked = aiter(mirror.says)
    await mirror.transcript("Hi")
    wire.arrive({"event": "mirror.say", "id": 7, "text": None, "deadline_ms": "soon"})
    assert await anext(asked) == Say("", "", "", "", None)


@virtual_time
async def test_without_mirror_nothing_is_said_to_it() -> None:
    wire = Wire(signed=False)
    mirror = MirrorClient(wire, say=True)
    async with mirror.saying(Say("s1", "buffer", "One moment.")):
        await mirror.websocket.send(AUDIO)
    assert [frame["event"] for frame in wire.sent] == ["playAudio"]
