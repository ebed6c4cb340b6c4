"""The example agents on their real frameworks: unmodified they take a call, with the client they are supervised."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import importlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from examples import slice_house
from examples.slice_house import Ears, from_mulaw, think, to_mulaw
from tests.client.fake_mirror import Answers, Line, call
from tests.client.servers import asgi_server, websockets_server

EXAMPLES = Path(__file__).parents[2] / "examples"
KINDS = ["plivo_stream_sdk", "pipecat", "plain_websocket"]
MOST_LINES = 10
NOTE = "You were corrected while you spoke. You told the caller: a colleague decides on refunds."
BLOCKED = {"allow": False, "code": "policy", "reason": "the caller said twelve", "instruction": "Say what it costs."}
SILENCE = b"\xff" * 160


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents say only the first half second of what they say: pipecat sends at the pace of life."""
    whole = slice_house.speak

    async def speak(text: str) -> slice_house.Pcm:
        return (await whole(text))[: slice_house.RATE // 2]

    for kind in KINDS:
        for variant in ("agent", "agent_supervised"):
            monkeypatch.setattr(importlib.import_module(f"examples.{kind}.{variant}"), "speak", speak)


@contextlib.asynccontextmanager
async def agent(kind: str, variant: str) -> AsyncIterator[int]:
    module = importlib.import_module(f"examples.{kind}.{variant}")
    server = websockets_server(module.call) if kind == "plain_websocket" else asgi_server(module.app)
    async with server as port:
        yield port


async def say(line: Line, text: str) -> None:
    """The caller speaks, then is silent until an agent takes its turn. Faster than life: ears count audio, not time."""
    audio = to_mulaw(await slice_house.speak(text)) + SILENCE * 50
    for start in range(0, len(audio), 160):
        await line.media(audio[start : start + 160])


async def turns_played(line: Line, kind: str, turns: int) -> None:
    """Until the agent has sent its `turns`-th turn; then all of it has been played."""
    if kind != "pipecat":
        checkpoint = await line.wait_for("checkpoint", turns)
        await line.played(checkpoint["name"])
        return
    # pipecat paces its audio and asks for no checkpoint: the turn is over when no more comes.
    before = len(line.of("playAudio"))
    await line.until(lambda: len(line.of("playAudio")) > before, "audio")
    while True:
        count = len(line.of("playAudio"))
        try:
            await line.until(lambda count=count: len(line.of("playAudio")) > count, "more audio", timeout_s=0.4)
        except AssertionError:
            return


async def conversation(line: Line, kind: str, *, notes: bool) -> None:
    await line.media(SILENCE)
    await turns_played(line, kind, 1)
    for number, text in enumerate(slice_house.CALLER, start=2):
        await say(line, text)
        await turns_played(line, kind, number)
        if notes and number == 2:
            await line.note(NOTE, turn_id=line.of("mirror.turn")[1]["turn_id"])


@pytest.mark.parametrize("kind", KINDS)
def test_supervision_is_at_most_ten_added_lines(kind: str) -> None:
    before, after = ((EXAMPLES / kind / name).read_text().splitlines() for name in ("agent.py", "agent_supervised.py"))
    added = [line for line in difflib.ndiff(before, after) if line.startswith("+ ")]
    assert 0 < len(added) <= MOST_LINES, "\n".join(added)
    assert all(len(line) <= 122 for line in added), "no line may hide two"
    assert not any(";" in line for line in added), "no line may hide two"


@pytest.mark.parametrize("kind", KINDS)
async def test_supervised_agent_reports_turns_obeys_the_gate_and_follows_its_note(kind: str) -> None:
    answers = Answers(tools={"charge_card": BLOCKED})
    async with agent(kind, "agent_supervised") as port, call(port, answers=answers) as line:
        await conversation(line, kind, notes=True)
        turns = line.of("mirror.turn")
        assert [turn["customer_text"] for turn in turns] == ["", *slice_house.CALLER]
        assert turns[1]["text"].endswith("I have already refunded the full amount to your card.")
        assert turns[2]["seen"] == "note-1"
        assert turns[2]["text"].startswith("As I said, a colleague decides about your refund. I have not charged")
        assert [asked["name"] for asked in answers.asked] == ["charge_card", "place_order"]
        assert answers.asked[0]["args"] == {"amount_usd": 45.0}
        assert answers.asked[0]["customer_text"] == slice_house.CALLER[1]
        done = line.of("mirror.tool_done")
        assert [(item["id"], item["ok"]) for item in done] == [(answers.asked[1]["id"], True)]
        events = [frame["event"] for frame in line.frames]
        assert events[0] == "mirror.hello"
        first_audio = events.index("playAudio")
        assert events.index("mirror.turn") < first_audio


@pytest.mark.parametrize("variant", ["agent", "agent_supervised"])
@pytest.mark.parametrize("kind", KINDS)
async def test_without_mirror_both_take_the_same_call(kind: str, variant: str) -> None:
    """Straight from Plivo: the supervised agent is the unmodified one, tool and all, and sends no frame of its own."""
    async with agent(kind, variant) as port, call(port, signed=False) as line:
        await conversation(line, kind, notes=False)
        assert not [frame for frame in line.frames if frame["event"].startswith("mirror.")]
        assert {frame["event"] for frame in line.frames} <= {"playAudio", "checkpoint", "clearAudio"}
        refund = think([{"role": "user", "content": ""}]).text
        replies = [slice_house.GREETING, refund]
        replies += [slice_house.AFTER_TOOL[name, True] for name in ("charge_card", "place_order")]
        spoken = [(await slice_house.speak(text))[: slice_house.RATE // 2] for text in replies]
        if kind == "pipecat":
            # Its transport cuts each turn to whole frames of 40 ms, and its own mu-law rounds otherwise.
            assert len(line.audio()) == sum(len(pcm) // 320 * 320 for pcm in spoken)
        else:
            assert line.audio() == b"".join(to_mulaw(pcm) for pcm in spoken)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("variant", ["agent", "agent_supervised"])
@pytest.mark.parametrize("kind", KINDS)
async def test_hanging_up_while_the_agent_is_about_to_speak_ends_it(kind: str, variant: str, signed: bool) -> None:
    """The server waits for its connections to end, so leaving the block shows it."""
    async with asyncio.timeout(20), agent(kind, variant) as port, call(port, signed=signed) as line:
        await line.media(SILENCE)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_caller_who_speaks_over_the_agent_silences_it(kind: str) -> None:
    async with agent(kind, "agent_supervised") as port, call(port) as line:
        await line.media(SILENCE)
        await line.wait_for("playAudio")
        if kind != "pipecat":
            await line.wait_for("checkpoint")
        await asyncio.gather(say(line, "Hold on, please."), line.wait_for("clearAudio"))
        await line.cleared()
        assert line.of("clearAudio")[0]["streamId"] == line.stream_id


def test_mulaw_is_the_telephone_networks() -> None:
    every = bytes(range(256))
    decoded = from_mulaw(every)
    # G.711: both zeros, the loudest of each sign, and the first step.
    assert [int(decoded[code]) for code in (0xFF, 0x7F, 0x80, 0x00, 0xFE, 0x7E)] == [0, 0, 32124, -32124, 8, -8]
    back = to_mulaw(decoded)
    assert [code for code in every if back[code] != code] == [0x7F], "only minus zero has another name"


async def test_ears_hear_a_sentence_begin_and_stop_once() -> None:
    speech = await slice_house.speak(slice_house.CALLER[0])
    line = to_mulaw(speech) + SILENCE * 60
    ears, heard = Ears(), []
    for start in range(0, len(line), 160):
        event = ears.hear(from_mulaw(line[start : start + 160]))
        if event:
            heard.append((event, start / 8))
    assert [event for event, _ in heard] == ["began", "stopped"]
    assert heard[1][1] > len(speech) / 8 - 500
