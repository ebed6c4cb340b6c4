"""A tenant at its limit of concurrent calls, through a real Mirror and a second node that shares its Valkey."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from typing import Any

import pytest
from asgiref.sync import sync_to_async

from supervision.plivo.simulator import SimulatedCall
from supervision.stream.limits import CallLeases
from tenants.services.limits import as_owner, tenant_limits_update
from tests.e2e.agents import AgentCall, agent
from tests.e2e.conftest import MirrorServer, TenancyMaker
from tests.factories import Tenancy

pytestmark = pytest.mark.django_db(transaction=True)


def limited(new_tenancy: TenancyMaker, upstream_url: str, calls: int) -> Tenancy:
    tenancy = new_tenancy(upstream_url=upstream_url)
    with as_owner(), tenancy.context():
        tenant_limits_update(changed={"calls": calls})
    return tenancy


def answer(url: str) -> tuple[int, str, Any]:
    try:
        with urllib.request.urlopen(url, data=b"CallUUID=c&From=%2B1&To=%2B2", timeout=10) as response:
            return response.status, response.read().decode(), response.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


async def test_the_call_above_the_limit_is_refused_until_one_has_ended(
    mirror: MirrorServer, new_tenancy: TenancyMaker, redis_url: str
) -> None:
    up: asyncio.Queue[AgentCall] = asyncio.Queue()

    async def script(call: AgentCall) -> None:
        up.put_nowait(call)

    async with agent(script) as made:
        tenancy = await sync_to_async(limited)(new_tenancy, made.url, 2)
        stranger = await sync_to_async(limited)(new_tenancy, made.url, 1)
        over = asyncio.Event()

        async def caller(call: SimulatedCall) -> None:
            await over.wait()
            call.hang_up()

        first = asyncio.create_task(SimulatedCall(tenancy.stream_url(mirror.ws), caller).run())
        async with asyncio.timeout(20):
            await up.get()
        other_node = CallLeases(redis_url, answer_within_s=10.0)
        elsewhere = await other_node.take(tenancy.id, limit=2, call="on another node")
        assert elsewhere is not None

        refused = await SimulatedCall(tenancy.stream_url(mirror.ws)).run()
        assert (refused.handshake_status, refused.outcome) == (403, "failed")
        status, body, headers = await asyncio.to_thread(answer, tenancy.answer_url(mirror.http))
        assert (status, headers["Retry-After"]) == (503, "10")
        assert body == "concurrent calls: the limit of 2 is reached\n"
        assert f"tenant {tenancy.slug} has 2 concurrent calls, which is its limit" in mirror.log.read_text()
        status, body, _ = await asyncio.to_thread(answer, stranger.answer_url(mirror.http))
        assert (status, "<Stream" in body) == (200, True)

        await other_node.release(elsewhere)
        again = asyncio.create_task(SimulatedCall(tenancy.stream_url(mirror.ws), caller).run())
        async with asyncio.timeout(20):
            await up.get()
        over.set()
        assert [(await call).outcome for call in (first, again)] == ["completed"] * 2
        async with asyncio.timeout(20):
            while True:
                if await other_node.is_free(tenancy.id, limit=1):
                    break
                await asyncio.sleep(0.01)  # the server gives the places back when it has seen the calls end
        await other_node.aclose()
