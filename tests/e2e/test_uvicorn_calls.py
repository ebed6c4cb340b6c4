"""A node of calls alone, on uvicorn: real calls through a real server, with the same protections as under Daphne."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from supervision.plivo.simulator import SimulatedCall
from tests.e2e.agents import AgentCall, agent
from tests.e2e.conftest import MirrorServer, TenancyMaker, recorded, server_start
from tests.e2e.test_supervised_call import BAD, CORRECTION, GOOD, judge_refunds, make, simulate
from tests.standins.llm import LLMStandIn
from tests.support.speech import say

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="module")
def mirror(
    database_urls: Any, redis_url: str, django_db_setup: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MirrorServer]:
    """A Mirror that carries calls and nothing else, on uvicorn."""
    environment = {
        **os.environ,
        "DATABASE_URL": database_urls.app,
        "DATABASE_OWNER_URL": database_urls.owner,
        "REDIS_URL": redis_url,
        "MIRROR_LOG_LEVEL": "DEBUG",
    }
    server = server_start(
        environment, tmp_path_factory.mktemp("dense") / "home", "--stream-only", "--server", "uvicorn"
    )
    yield server
    server.stop()
    said = server.log.read_text()
    assert "Traceback" not in said, said[-6000:]


@pytest.fixture
async def llm() -> AsyncIterator[LLMStandIn]:
    async with LLMStandIn() as stand_in:
        judge_refunds(stand_in)
        yield stand_in


async def test_calls_are_refused_cut_corrected_failed_and_stopped_as_under_daphne(
    mirror: MirrorServer, new_tenancy: TenancyMaker, llm: LLMStandIn
) -> None:
    speech = say(BAD)

    async def script(call: AgentCall) -> None:
        await call.hello()
        await call.send("mirror.turn", turn_id="t1", customer_text="Give me my money back.", text=BAD)
        await call.speak(speech)
        await call.wait("mirror.intervention", phase="completed")
        note = call.of("mirror.note")[-1]["id"]
        await call.send("mirror.turn", turn_id="t2", customer_text="", text=GOOD, seen=note)
        await call.speak(say(GOOD))
        await call.send("unknown", **{"é": [1, 2]})
        await call.send("checkpoint", streamId=call.stream_id, name="good-played")

    llm.behave(delay_s=0.2)
    async with agent(script) as made:
        tenancy = await make(new_tenancy, upstream_url=made.url, llm_base_url=llm.base_url)
        url = tenancy.stream_url(mirror.ws)
        stranger = await SimulatedCall(url.rsplit("/", 1)[0] + "/sk_unknown").run()
        record = await simulate(url, lambda call: call.wait_for(lambda r: bool(r.played("good-played")), 30))
        rows = await recorded(tenancy)
    assert stranger.handshake_status == 403

    assert (record.outcome, record.ended_by, record.close_code) == ("completed", "caller", 1000)
    assert record.heard.find(speech) is None
    assert record.heard.find(say(GOOD)) is not None
    unknown = json.dumps({"event": "unknown", "é": [1, 2]})
    assert unknown.encode() in [frame.payload for frame in record.raw_received]
    assert rows.interventions[0].outcome == "completed"
    assert rows.interventions[0].correction_text == CORRECTION
    assert (rows.call.outcome, rows.call.ended_by, rows.call.close_code) == ("completed", "caller", 1000)
    assert made.calls[0].closed == 1000
    media = [frame.payload.decode() for frame in record.raw_sent if b'"media"' in frame.payload]
    got = [text for text in made.calls[0].raw if '"media"' in text[:20]]
    assert got
    assert got == media[: len(got)]


async def test_an_agent_that_breaks_and_a_stop_end_a_call_with_their_codes(
    mirror: MirrorServer, new_tenancy: TenancyMaker, llm: LLMStandIn
) -> None:
    stopping = asyncio.Event()

    async def script(call: AgentCall) -> None:
        await call.hello()
        if stopping.is_set():
            mirror.process.send_signal(signal.SIGTERM)
            return
        call.connection.transport.abort()

    async with agent(script) as made:
        tenancy = await make(new_tenancy, upstream_url=made.url, llm_base_url=llm.base_url)
        broken = await SimulatedCall(tenancy.stream_url(mirror.ws)).run()
        failed = await recorded(tenancy)
        stopping.set()
        stopped = await SimulatedCall(tenancy.stream_url(mirror.ws)).run()
        await asyncio.to_thread(mirror.process.wait, 30)
        ended = await recorded(tenancy)
    assert broken.close_code == 1011
    assert (failed.call.outcome, failed.call.ended_by) == ("failed", "agent")
    assert stopped.close_code == 1012
    assert (ended.call.outcome, ended.call.ended_by) == ("failed", "mirror")
    said = mirror.log.read_text()
    for secret in ("sk_", tenancy.stream_url("").rsplit("/", 1)[-1], "refunded"):
        assert secret not in said
