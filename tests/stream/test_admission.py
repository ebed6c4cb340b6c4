"""Who gets in, and what has to come first, on virtual time."""

from __future__ import annotations

import asyncio
import json
from urllib.parse import urlencode

import pytest

from mirror_saas.ids import uuid7
from supervision.plivo.simulator import PlivoSwitches, SimulatedCall
from supervision.stream import consumer
from supervision.stream.directory import DirectoryUnavailable
from supervision.stream.session import CallStart, StartInvalid
from supervision.stream.token import token_make
from tests.e2e.agents import AgentCall
from tests.stream.world import KEY, SLUG, World
from tests.support.virtual_time import virtual_time

CALL_ID = "11111111-2222-4333-8444-555566667777"


async def hello(agent: AgentCall) -> None:
    await agent.hello()


async def moment(call: SimulatedCall) -> None:
    await asyncio.sleep(0.5)


def stream_url(query: str = "", slug: str = SLUG, key: str = KEY) -> str:
    return f"wss://mirror.example/stream/{slug}/{key}" + (f"?{query}" if query else "")


def token(world: World, **changed: object) -> str:
    fields = {
        "tenant_id": world.binding.tenant_id,
        "agent_id": world.binding.agent_id,
        "call_id": CALL_ID,
        "from_number": "+15550100",
        "to_number": "+15550199",
        **changed,
    }
    return token_make(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("slug", "key"), [(SLUG, "sk_wrong"), ("charlies-tenant", KEY), ("nobody", KEY), (SLUG, ""), ("\x00", "\ud800")]
)
@virtual_time
async def test_a_key_that_opens_nothing_is_refused_with_403(
    monkeypatch: pytest.MonkeyPatch, slug: str, key: str
) -> None:
    world = World(monkeypatch)
    record = await SimulatedCall(stream_url(slug=slug, key=key)).run()
    assert (record.handshake_status, record.outcome) == (403, "failed")
    assert world.record.events == []
    assert world.connections == []


@virtual_time
async def test_a_directory_that_cannot_be_asked_refuses_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def unavailable(slug: str, key: str) -> None:
        raise DirectoryUnavailable("the database is down")

    monkeypatch.setattr(world.runtime.directory, "lookup", unavailable)
    record = await SimulatedCall(stream_url()).run()
    assert record.handshake_status == 403


@pytest.mark.parametrize(
    ("offered", "selected"), [("", None), ("audio.drachtio.org", "audio.drachtio.org"), ("b,a", "b")]
)
@virtual_time
async def test_the_first_subprotocol_that_is_offered_is_selected(
    monkeypatch: pytest.MonkeyPatch, offered: str, selected: str | None
) -> None:
    world = World(monkeypatch)
    record = await world.call(hello, moment, PlivoSwitches(subprotocol=offered))
    assert record.subprotocol == selected
    to_agent = world.connections[0].request.headers.get("Sec-WebSocket-Protocol")
    assert to_agent == (", ".join(offered.split(",")) if offered else None)


@pytest.mark.parametrize(("delay_s", "served"), [(14.5, True), (15.5, False)])
@virtual_time
async def test_a_start_has_fifteen_seconds_to_come(
    monkeypatch: pytest.MonkeyPatch, delay_s: float, served: bool
) -> None:
    world = World(monkeypatch)
    simulated = SimulatedCall(stream_url(), switches=PlivoSwitches(start_delay_s=delay_s, hang_up_at_s=1.0))
    world.script = hello
    record = await simulated.run()
    await asyncio.gather(*world.apps)
    assert (record.started_t is not None) is served
    if not served:
        assert (record.close_code, record.ended_by) == (1008, "agent")
        assert world.record.events == []
        assert world.connections == []


@virtual_time
async def test_frames_before_start_reach_the_agent_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    early = ['{"event":"early","n":1}', "not json", '{"event":"start","start":{"callId":7}}']
    world.script = hello
    simulated = SimulatedCall(stream_url(), switches=PlivoSwitches(start_delay_s=1.0, hang_up_at_s=0.5))
    running = asyncio.create_task(simulated.run())
    await asyncio.sleep(0.5)
    for text in early:
        simulated.send_raw(text)
    record = await running
    await asyncio.gather(*world.apps)
    got = world.agent.raw
    assert json.loads(got[0])["event"] == "start"
    assert got[1:3] == early[:2]  # the start that cannot be used is none, and is not passed on
    assert record.outcome == "completed"


@pytest.mark.parametrize(
    "start",
    [
        {"event": "start"},
        {"event": "start", "start": []},
        {"event": "start", "start": {"callId": "c", "streamId": ""}},
        {"event": "start", "start": {"callId": "c" * 201, "streamId": "s"}},
        {"event": "start", "start": {"callId": "c", "streamId": "s"}},
        {"event": "start", "start": {"callId": "c", "streamId": "s", "mediaFormat": {"encoding": "opus"}}},
        {
            "event": "start",
            "start": {"callId": "c", "streamId": "s", "mediaFormat": {"encoding": "audio/x-l16", "sampleRate": 44100}},
        },
    ],
)
def test_a_start_that_no_call_can_be_built_on_is_refused_by_name(start: dict[str, object]) -> None:
    with pytest.raises(StartInvalid, match=r"start|mediaFormat"):
        CallStart.parse(json.dumps(start))


# The call token


@virtual_time
async def test_a_token_brings_the_numbers_into_the_record_and_is_kept_from_the_agent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    query = f"a=1&{urlencode({'mt': token(world)})}&b=%20x&a=2"
    record = await world.call(hello, moment, url=stream_url(query), call_id=CALL_ID)
    assert record.outcome == "completed"
    started = world.record.one("call.started")
    assert (started["from_number"], started["to_number"]) == ("+15550100", "+15550199")
    assert world.connections[0].request.path == "/agent?a=1&b=%20x&a=2"


@pytest.mark.parametrize("kind", ["garbage", "empty", "not ascii", "tampered", "another tenant's", "another agent's"])
@virtual_time
async def test_a_token_that_is_not_ours_is_refused_like_a_wrong_key(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    world = World(monkeypatch)
    good = token(world)
    made = {
        "garbage": "AAAA",
        "empty": "",
        "not ascii": "ü",
        "tampered": good[:-2] + ("AA" if good[-2:] != "AA" else "BB"),
        "another tenant's": token(world, tenant_id=uuid7()),
        "another agent's": token(world, agent_id=uuid7()),
    }[kind]
    record = await SimulatedCall(stream_url(urlencode({"mt": made})), call_id=CALL_ID).run()
    assert (record.handshake_status, record.outcome) == (403, "failed")
    assert world.record.events == []


@virtual_time
async def test_a_token_of_another_call_closes_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    url = stream_url(urlencode({"mt": token(world, call_id="99999999-2222-4333-8444-555566667777")}))
    record = await SimulatedCall(url, call_id=CALL_ID).run()
    await asyncio.gather(*world.apps)
    assert (record.handshake_status, record.close_code) == (101, 1008)
    assert world.record.events == []
    assert world.connections == []


@pytest.mark.parametrize(("age_s", "served"), [(299, True), (301, False)])
@virtual_time
async def test_a_token_must_be_used_within_five_minutes(
    monkeypatch: pytest.MonkeyPatch, age_s: int, served: bool
) -> None:
    world = World(monkeypatch)
    made = token(world)
    now = consumer.now_unix()
    monkeypatch.setattr(consumer, "now_unix", lambda: now + age_s)
    world.script = hello
    simulated = SimulatedCall(
        stream_url(urlencode({"mt": made})), switches=PlivoSwitches(hang_up_at_s=0.5), call_id=CALL_ID
    )
    record = await simulated.run()
    await asyncio.gather(*world.apps)
    assert bool(world.record.of("call.started")) is served
    assert record.close_code == (1000 if served else 1008)
