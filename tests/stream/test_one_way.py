"""A stream without a way back: Mirror speaks by Plivo's Speak API, and says that its times are estimates."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from supervision.engine.intervention.templates import opener_lines
from supervision.engine.tts.sink import estimated_s
from supervision.plivo import events
from supervision.plivo.rest import PlivoAccount, PlivoAnswer
from supervision.plivo.simulator import SimulatedCall
from supervision.stream.one_way import NO_ACCOUNT, SPOKEN_BY
from supervision.stream.session import CallStart
from tests.e2e.agents import AgentCall
from tests.standins.plivo_rest import AUTH_ID, AUTH_TOKEN, Answered, PlivoStandIn
from tests.stream.world import BAD, BUFFER, CORRECTION, GOOD, World
from tests.support.speech import say
from tests.support.virtual_time import virtual_time

CALL_ID = "f4a1c0de-1111-4222-8333-444455556666"
CALLER = say("Wait, no, hold on a second, that is not what I asked you about at all.")


@pytest.fixture
def plivo() -> PlivoStandIn:
    made = PlivoStandIn()
    made.call(CALL_ID)
    return made


def one_way(monkeypatch: pytest.MonkeyPatch, plivo: PlivoStandIn | None, **options: Any) -> World:
    world = World(monkeypatch, **options)
    accounts = () if plivo is None else (PlivoAccount(AUTH_ID, AUTH_TOKEN),)
    world.runtime.binding = replace(world.binding, bidirectional=False, plivo_accounts=accounts)

    async def request(method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> PlivoAnswer:
        assert plivo is not None
        return PlivoAnswer((await plivo.answer(method, urlsplit(url).path, headers, body)).status)

    world.runtime.plivo = SimpleNamespace(request=request)  # type: ignore[assignment]
    return world


async def bad_turn(agent: AgentCall) -> None:
    await agent.hello(wants=["verdicts", "notes", "say"])
    await agent.send("mirror.turn", turn_id="t1", customer_text="Give me my money back.", text=BAD)


def said(plivo: PlivoStandIn) -> list[str]:
    return [asked.fields["text"] for asked in plivo.of("speak")]


def seconds(number: float) -> Any:
    return lambda call: asyncio.sleep(number)


@virtual_time
async def test_plivo_speaks_the_correction(monkeypatch: pytest.MonkeyPatch, plivo: PlivoStandIn) -> None:
    world = one_way(monkeypatch, plivo)
    record = await world.call(bad_turn, seconds(20), call_id=CALL_ID)
    assert [asked.action for asked in plivo.asked] == ["stop_speaking", "speak", "speak"]
    assert said(plivo) == [BUFFER, CORRECTION]
    assert {asked.call_id for asked in plivo.asked} == {CALL_ID}
    buffer, correction = plivo.of("speak")
    assert correction.at - buffer.at == pytest.approx(estimated_s(BUFFER), abs=0.05)
    assert not record.heard.segments  # nothing goes out on the stream
    assert not record.of("playAudio")
    ended = world.record.one("intervention.ended")
    assert (ended["outcome"], ended["silence_proof"]) == ("completed", "unproven")
    assert SPOKEN_BY in ended["detail"]
    assert not world.agent.of("mirror.say")  # there is no way for the agent's voice either
    assert [event["phase"] for event in world.agent.of("mirror.intervention")] == [
        "started",
        "buffer",
        "correction",
        "completed",
    ]


@virtual_time
async def test_what_was_heard_is_estimated_from_the_words(monkeypatch: pytest.MonkeyPatch, plivo: PlivoStandIn) -> None:
    world = one_way(monkeypatch, plivo)
    world.llm.delay_s = lambda asked: 1.5 if asked.at < 1_001 else 0.2

    async def script(agent: AgentCall) -> None:
        await bad_turn(agent)
        await agent.wait("mirror.intervention", phase="completed")
        await asyncio.sleep(1.0)
        await agent.send(
            "mirror.turn", turn_id="t2", customer_text="", text=GOOD, seen=agent.of("mirror.note")[-1]["id"]
        )

    await world.call(script, seconds(30), call_id=CALL_ID)
    bad, good = world.record.of("turn.heard")
    assert (bad["basis"], good["basis"]) == ("estimated", "estimated")
    assert bad["heard_ms"] == pytest.approx(1_500, abs=300)
    assert bad["uncertain_text"]  # the rest: nobody knows what was still heard
    assert (good["heard_text"], good["heard_ms"]) == (GOOD, pytest.approx(estimated_s(GOOD) * 1000, abs=20))


@virtual_time
async def test_a_turn_that_has_just_been_said_is_taken_back(
    monkeypatch: pytest.MonkeyPatch, plivo: PlivoStandIn
) -> None:
    world = one_way(monkeypatch, plivo)
    world.llm.delay_s = lambda asked: estimated_s(BAD) + 0.3 if asked.at < 1_001 else 0.2
    await world.call(bad_turn, seconds(20), call_id=CALL_ID)
    assert world.record.one("intervention.started")["plan"] == "retract"
    assert said(plivo)[0] == opener_lines("en")[0]
    assert not plivo.of("stop_speaking")


@virtual_time
async def test_a_caller_who_speaks_ends_it(monkeypatch: pytest.MonkeyPatch, plivo: PlivoStandIn) -> None:
    world = one_way(monkeypatch, plivo)

    async def speaks(call: SimulatedCall) -> None:
        await call.wait_for(lambda record: plivo.of("speak"), 30)
        await call.say(CALLER)
        await asyncio.sleep(3)

    await world.call(bad_turn, speaks, call_id=CALL_ID)
    assert world.record.one("intervention.ended")["outcome"] == "interrupted"
    assert plivo.asked[-1].action == "stop_speaking"


@virtual_time
async def test_a_plivo_that_cannot_speak_is_a_failed_intervention(
    monkeypatch: pytest.MonkeyPatch, plivo: PlivoStandIn
) -> None:
    world = one_way(monkeypatch, plivo)
    plivo.next_answers.extend([Answered(500)] * 3)
    await world.call(bad_turn, seconds(15), call_id=CALL_ID)
    ended = world.record.one("intervention.ended")
    assert ended["outcome"] == "failed"
    assert "Plivo answered 500" in ended["detail"]
    assert AUTH_TOKEN not in str(world.record.events)
    assert world.agent.of("mirror.note")


@virtual_time
async def test_without_an_account_the_agent_gets_a_note_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    world = one_way(monkeypatch, None)
    await world.call(bad_turn, seconds(10), call_id=CALL_ID)
    assert world.agent.of("mirror.verdict")[0]["withheld"] == "unarmed"
    assert NO_ACCOUNT in world.record.one("intervention.ended")["detail"]


@virtual_time
async def test_no_voice_of_mirrors_own_is_needed(monkeypatch: pytest.MonkeyPatch, plivo: PlivoStandIn) -> None:
    world = one_way(monkeypatch, plivo, speaks=False)
    await world.call(bad_turn, seconds(20), call_id=CALL_ID)
    assert said(plivo) == [BUFFER, CORRECTION]


@pytest.mark.parametrize(
    ("tracks", "bidirectional"),
    [(["inbound"], True), (["inbound", "outbound"], False), (["outbound"], False), (None, True), ("outbound", True)],
)
def test_a_stream_of_both_tracks_has_no_way_back(tracks: Any, bidirectional: bool) -> None:
    start = {
        "callId": "c",
        "streamId": "s",
        "tracks": tracks,
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000},
    }
    parsed = CallStart.parse(json.dumps({"event": "start", "start": start}))
    assert parsed is not None
    assert parsed.bidirectional is bidirectional


def test_what_the_caller_hears_is_not_taken_for_the_callers_voice() -> None:
    payload = b64encode(bytes(160)).decode()
    for written in (json.dumps, lambda frame: json.dumps(frame, separators=(",", ":"))):
        for track, callers in (("inbound", True), ("outbound", False)):
            frame = {
                "event": "media",
                "media": {"payload": payload, "track": track},
                "extra_headers": '"track":"outbound"',
            }
            assert events.is_callers(written(frame)) is callers
