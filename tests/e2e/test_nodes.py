"""Two nodes that carry calls, each a process of its own: calls move between them, and outlive what stops beside."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from asgiref.sync import sync_to_async
from websockets.exceptions import ConnectionClosed

from supervision.models import Call, Verdict
from supervision.plivo.simulator import PlivoSwitches, SimulatedCall
from supervision.services.policies import policy_version_create, policy_version_publish
from tests.e2e.agents import AgentCall, agent
from tests.e2e.conftest import MirrorServer, TenancyMaker, found, recorded, server_start
from tests.factories import Tenancy
from tests.standins.llm import LLMStandIn
from tests.support.speech import say

pytestmark = pytest.mark.django_db(transaction=True)

FIRST = "Let me look at your account. I see two orders from this week."
OUTSIDE = "A colleague of mine called you about it yesterday."
LAST = "Is there anything else that I can do for you today?"


@asynccontextmanager
async def process(mirror: MirrorServer, home: Path, part: str) -> AsyncIterator[MirrorServer]:
    """Another process of the same Mirror."""
    environment = {name: value for name, value in mirror.environment.items() if name in os.environ or "_URL" in name}
    made = await asyncio.to_thread(server_start, environment, home, "--only", part)
    try:
        yield made
    finally:
        await asyncio.to_thread(made.stop)
    assert "Traceback" not in made.log.read_text()


async def report(mirror: MirrorServer, tenancy: Tenancy, call_id: str, **turn: Any) -> int:
    """`POST /calls/{id}/turns`, until a node has the call."""
    url, headers = f"{mirror.http}/api/v1/calls/{call_id}/turns", {"Authorization": f"Bearer {tenancy.api_key}"}
    async with aiohttp.ClientSession() as session, asyncio.timeout(20):
        while True:
            async with session.post(url, json=turn, headers=headers) as answer:
                if answer.status != 503:
                    return answer.status
                assert int(answer.headers["Retry-After"]) > 0
            await asyncio.sleep(0.1)  # another process subscribes


def publish(tenancy: Tenancy) -> None:
    with tenancy.context():
        made = policy_version_create(
            policy_id=tenancy.policy.id, rules=["Never promise anything."], llm_credential=tenancy.credential
        )
        policy_version_publish(policy_id=tenancy.policy.id, number=made.number)


async def test_a_call_moves_from_node_to_node_and_is_one_call(
    mirror: MirrorServer, new_tenancy: TenancyMaker, tmp_path: Path
) -> None:
    """Its connection breaks, and it goes on on the other node by that one's word; that one is stopped, and it goes on
    on the first one, by the record."""

    async def script(call: AgentCall) -> None:
        await call.hello()
        if len(made.calls) == 1:
            await call.send("mirror.turn", turn_id="t1", customer_text="Where are my orders?", text=FIRST)
            await call.speak(say(FIRST))
        elif len(made.calls) == 3:
            await call.send("mirror.turn", turn_id="t3", customer_text="Thank you.", text=LAST)
            await call.speak(say(LAST))
            await call.wait("mirror.verdict", turn_id="t3")
            await call.send("checkpoint", streamId=call.stream_id, name="end")

    def ready(number: int) -> Callable[[Any], bool]:
        return lambda record: len(made.calls) == number and bool(made.calls[-1].of("mirror.ready"))

    statuses: list[int] = []

    async with (
        LLMStandIn() as llm,
        agent(script) as made,
        process(mirror, tmp_path / "other", "stream") as other,
    ):
        judged = {"tiered_scoring_enabled": False}  # every turn is
        tenancy = await asyncio.to_thread(new_tenancy, upstream_url=made.url, llm_base_url=llm.base_url, config=judged)

        async def caller(call: SimulatedCall) -> None:
            await call.wait_for(lambda record: made.calls and made.calls[0].of("mirror.verdict"), 30)
            await sync_to_async(publish, thread_sensitive=True)(tenancy)
            call.url = tenancy.stream_url(other.ws)
            call.drop_connection()
            await call.wait_for(ready(2), 30)
            call_id = await running_call(tenancy)
            for text in (OUTSIDE, OUTSIDE, "Something else."):
                turn = {"turn_id": "t2", "text": text, "customer_text": "Who was that?"}
                statuses.append(await report(mirror, tenancy, call_id, **turn))
            call.url = tenancy.stream_url(mirror.ws)
            other.process.send_signal(signal.SIGTERM)
            await call.wait_for(ready(3), 30)
            await call.wait_for(lambda record: record.played("end"), 30)
            call.hang_up()

        switches = PlivoSwitches(reconnects=2, reconnect_delay_s=0.2, reconnect_on="abnormal")
        record = await SimulatedCall(tenancy.stream_url(mirror.ws), caller, switches).run()
        rows = await recorded(tenancy)
        assert await asyncio.to_thread(other.process.wait, 30) == 0
        # The next call, on either node, is judged by what was published.
        fresh = await SimulatedCall(tenancy.stream_url(mirror.ws), switches=PlivoSwitches(hang_up_at_s=0.2)).run()
        assert fresh.outcome == "completed"
        await asyncio.wait_for(made.calls[-1].wait("start"), 10)

    assert record.outcome == "completed"
    # The same turn again is the same turn, whose verdict may be known by then; another one under its id is none.
    assert {*statuses[:2]} <= {200, 202}
    assert statuses[2] == 409
    readies = [call.of("mirror.ready")[0] for call in made.calls[:3]]
    assert [one["resumed"] for one in readies] == [False, True, True]
    assert {one["policy"]["version"] for one in readies} == {1}
    assert made.calls[0].closed == 1000

    assert (rows.call.epoch, rows.call.outcome, rows.call.coverage_state) == (3, "completed", "full")
    assert rows.call.node.endswith(str(mirror.process.pid))
    assert [detail.turn.ref for detail in rows.turns] == ["t1", "t2", "t3"]
    assert [detail.turn.index for detail in rows.turns] == [1, 2, 3]
    assert [detail.verdict.state for detail in rows.turns] == ["judged"] * 3
    assert (rows.call.turn_count, rows.call.failed_count, rows.call.coverage) == (3, 0, 1.0)
    kinds = [event.kind for event in rows.timeline]
    assert (kinds.count("call.started"), kinds.count("call.resumed")) == (1, 2)
    # The judge of the last turn knows what was said on all three sockets.
    told = [question.question for question in llm.requests if question.question.agent_text == LAST]
    assert told
    assert [entry["text"] for entry in told[0].history if entry["role"] == "agent"] == [FIRST, OUTSIDE]


async def test_a_call_outlives_a_node_that_is_killed(
    mirror: MirrorServer, new_tenancy: TenancyMaker, tmp_path: Path
) -> None:
    """It goes on on the other node, by the record; what the killed one wrote down is read when it is back."""

    async def script(call: AgentCall) -> None:
        await call.hello()
        if len(made.calls) == 1:
            await call.send("mirror.turn", turn_id="t1", customer_text="Where are my orders?", text=FIRST)
            await call.speak(say(FIRST))
        else:
            await call.send("mirror.turn", turn_id="t2", customer_text="Thank you.", text=LAST)
            await call.speak(say(LAST))
            await call.wait("mirror.verdict", turn_id="t2")
            await call.send("checkpoint", streamId=call.stream_id, name="end")

    async with LLMStandIn() as llm, agent(script) as made:
        judged = {"tiered_scoring_enabled": False}  # every turn is
        tenancy = await asyncio.to_thread(new_tenancy, upstream_url=made.url, llm_base_url=llm.base_url, config=judged)
        async with process(mirror, tmp_path / "other", "stream") as other:

            async def caller(call: SimulatedCall) -> None:
                await call.wait_for(lambda record: made.calls and made.calls[0].of("mirror.verdict"), 30)
                await found(tenancy, Verdict.objects.first)  # the other node will read it
                call.url = tenancy.stream_url(mirror.ws)
                other.process.kill()
                await call.wait_for(lambda record: len(made.calls) == 2 and record.played("end"), 60)
                call.hang_up()

            switches = PlivoSwitches(reconnects=2, reconnect_delay_s=0.2, reconnect_on="abnormal")
            record = await SimulatedCall(tenancy.stream_url(other.ws), caller, switches).run()
            await asyncio.to_thread(other.process.wait, 30)
        async with process(mirror, tmp_path / "other", "stream"):
            rows = await recorded(tenancy)

    assert record.outcome == "completed"
    assert [call.of("mirror.ready")[0]["resumed"] for call in made.calls] == [False, True]
    assert (rows.call.epoch, rows.call.outcome, rows.call.coverage_state) == (2, "completed", "full")
    assert [(detail.turn.ref, detail.verdict.state) for detail in rows.turns] == [("t1", "judged"), ("t2", "judged")]
    kinds = [event.kind for event in rows.timeline]
    assert (kinds.count("call.started"), kinds.count("call.resumed")) == (1, 1)
    told = [question.question for question in llm.requests if question.question.agent_text == LAST]
    assert [entry["text"] for entry in told[0].history if entry["role"] == "agent"] == [FIRST]


async def running_call(tenancy: Tenancy) -> str:
    """The id of the tenant's call, once the record has it."""
    return str((await found(tenancy, Call.objects.first)).id)


async def test_a_deploy_of_the_console_cuts_no_call(
    mirror: MirrorServer, new_tenancy: TenancyMaker, tmp_path: Path
) -> None:
    async def script(call: AgentCall) -> None:
        await call.hello()
        with contextlib.suppress(ConnectionClosed):
            while True:
                await call.speak(say(FIRST), paced=True)

    async with agent(script) as made:
        tenancy = await asyncio.to_thread(new_tenancy, upstream_url=made.url)

        async def caller(call: SimulatedCall) -> None:
            await call.wait_for(lambda record: record.heard.seconds > 0.2, 30)
            async with process(mirror, tmp_path / "web", "web") as web:
                async with aiohttp.ClientSession() as session, session.get(f"{web.http}/livez") as answer:
                    assert answer.status == 200
                before = call.heard_seconds()
                web.process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(web.process.wait, 30) == 0
            await call.wait_for(lambda record: record.heard.seconds > before + 0.5, 30)
            call.hang_up()

        record = await SimulatedCall(tenancy.stream_url(mirror.ws), caller).run()
        rows = await recorded(tenancy)
    assert (record.outcome, len(made.calls)) == ("completed", 1)
    assert (rows.call.epoch, rows.call.outcome, rows.call.dropped_media_ms) == (1, "completed", 0)
