"""What is taken away counts on open sockets within five seconds, on a real server: keys, sessions, memberships."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import pytest
from django.contrib.sessions.models import Session
from django.test import Client
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from supervision.models import Call, StreamKey
from supervision.plivo.simulator import CallRecord, PlivoSwitches, SimulatedCall
from supervision.services.agents import agent_stream_key_create, agent_stream_key_revoke, agent_stream_key_rotate
from supervision.stream.session import KEY_REVOKED_CLOSE, KEY_REVOKED_REASON
from tenants.models import Membership, Tenant
from tests.e2e.agents import AgentCall, agent
from tests.e2e.conftest import MirrorServer, TenancyMaker, recorded
from tests.factories import Tenancy

pytestmark = pytest.mark.django_db(transaction=True)

WITHIN_S = 5.0


Up = asyncio.Queue[AgentCall]


async def running(up: Up, url: str) -> tuple[SimulatedCall, asyncio.Task[CallRecord], AgentCall]:
    """A call that is up on both legs, and goes on until somebody ends it."""

    async def stays(call: SimulatedCall) -> None:
        await asyncio.Event().wait()

    call = SimulatedCall(url, stays, PlivoSwitches(), keep_raw=True)
    task = asyncio.create_task(call.run())
    async with asyncio.timeout(20):
        return call, task, await up.get()


async def console(mirror: MirrorServer, tenancy: Tenancy, name: str) -> tuple[ClientConnection, str]:
    """A console socket that has shown what there is, and its session's key."""
    client = Client()
    await asyncio.to_thread(client.force_login, tenancy.users[name])
    key: str = client.cookies["sessionid"].value
    socket = await connect(
        f"{mirror.ws}/ws/console",
        origin=mirror.http,  # type: ignore[arg-type]
        additional_headers={"Cookie": f"sessionid={key}"},
    )
    await socket.send(json.dumps({"type": "subscribe", "topic": "calls"}))
    while json.loads(await socket.recv())["type"] != "update":
        pass
    return socket, key


async def close_code(socket: ClientConnection) -> int | None:
    try:
        while True:
            await socket.recv()
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else None


def other_key(tenancy: Tenancy) -> str:
    with tenancy.context():
        return agent_stream_key_create(agent_id=tenancy.agent.id).key


def revoke(tenancy: Tenancy) -> None:
    """The oldest key is revoked; all others end with a rotation that leaves them no time."""
    with tenancy.context():
        first = StreamKey.objects.order_by("created_at").first()
        assert first is not None
        agent_stream_key_revoke(stream_key_id=first.id)
        agent_stream_key_rotate(agent_id=tenancy.agent.id, overlap=timedelta(0))


def tenant_delete(tenancy: Tenancy) -> None:
    with tenancy.context():
        Tenant.objects.all().delete()


async def test_revoked_keys_ended_sessions_and_lost_memberships_count_within_five_seconds(
    mirror: MirrorServer, new_tenancy: TenancyMaker
) -> None:
    loop = asyncio.get_running_loop()
    up: Up = asyncio.Queue()

    async def listens(call: AgentCall) -> None:
        await call.hello()
        up.put_nowait(call)

    async with agent(listens) as made:
        alice = await asyncio.to_thread(new_tenancy, upstream_url=made.url)
        charlie = await asyncio.to_thread(new_tenancy, upstream_url=made.url)
        second = await asyncio.to_thread(other_key, alice)
        _, cut, cut_agent = await running(up, alice.stream_url(mirror.ws))
        kept, keeps, _ = await running(up, alice.stream_url(mirror.ws).replace(alice.stream_key, second))
        _, gone, gone_agent = await running(up, charlie.stream_url(mirror.ws))
        silent, session = await console(mirror, alice, "alice")
        removed, _ = await console(mirror, alice, "alice")

        def end_session() -> None:
            Session.objects.filter(session_key=session).delete()

        began = loop.time()
        await asyncio.gather(
            asyncio.to_thread(revoke, alice),
            asyncio.to_thread(tenant_delete, charlie),
            asyncio.to_thread(end_session),
        )
        async with asyncio.timeout(WITHIN_S):
            record, lost, code = await asyncio.gather(cut, gone, close_code(silent))
            await asyncio.gather(cut_agent.connection.wait_closed(), gone_agent.connection.wait_closed())
        assert loop.time() - began < WITHIN_S
        assert (record.close_code, lost.close_code, code) == (KEY_REVOKED_CLOSE, KEY_REVOKED_CLOSE, 4401)

        # What came in with a key that expired goes on, and so does whoever is still a member.
        assert not keeps.done()
        await removed.ping()

        def remove() -> None:
            with alice.context():
                Membership.objects.all().delete()

        await asyncio.to_thread(remove)
        async with asyncio.timeout(WITHIN_S):
            assert await close_code(removed) == 4403
        kept.hang_up()
        assert (await keeps).outcome == "completed"

    def ends() -> list[tuple[str, str, int | None, str]]:
        with alice.context():
            found = list(Call.objects.order_by("started_at"))
        return [(call.outcome, call.ended_by, call.close_code, call.reason) for call in found]

    await recorded(alice)
    found = await asyncio.to_thread(ends)
    assert found[0] == ("failed", "mirror", KEY_REVOKED_CLOSE, KEY_REVOKED_REASON)
    assert found[1][:2] == ("completed", "caller")
