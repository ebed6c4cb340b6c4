"""Through a real Mirror: Plivo's signature at the answer URL and the status callback, and a new one for the agent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from django.db import transaction
from fastapi import FastAPI, WebSocket
from plivo_stream.fastapi import PlivoFastAPIStreamingHandler

from supervision.plivo.signatures import handshake_urls, sign
from supervision.plivo.simulator import AnswerClient, PlivoSwitches, SimulatedCall
from supervision.plivo.simulator.answer import AnswerError
from supervision.services.agents import agent_headers_update
from supervision.services.plivo_accounts import plivo_account_remove, plivo_account_save
from tests.client.servers import asgi_server
from tests.e2e.agents import AgentCall, agent
from tests.e2e.conftest import MirrorServer, TenancyMaker, recorded
from tests.e2e.test_handshake import handshake
from tests.factories import Tenancy

pytestmark = pytest.mark.django_db(transaction=True)

AUTH_ID = "MAXXXXXXXXXXXXXXXXX1"
TOKEN, FOREIGN = "t" * 40, "f" * 40
# Where Mirror serves the calls of an agent, the SDK's check sees this path.
PATH = "/agent%20one"


def store(tenancy: Tenancy, token: str = TOKEN, auth_id: str = AUTH_ID) -> None:
    with tenancy.context():
        plivo_account_save(auth_id=auth_id, auth_token=token)


def forget(tenancy: Tenancy) -> None:
    with tenancy.context():
        plivo_account_remove(auth_id=AUTH_ID)


async def hello(call: AgentCall) -> None:
    await call.hello()


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_call_that_plivo_signed_is_answered_and_reported(
    mirror: MirrorServer, new_tenancy: TenancyMaker, method: str
) -> None:
    async with agent(hello) as made:
        alice = await asyncio.to_thread(new_tenancy, upstream_url=made.url)
        await asyncio.to_thread(store, alice)
        answer = alice.answer_url(mirror.http) + "?lang=en"
        async with AnswerClient(answer, auth_token=TOKEN, method=method, from_number="+15550100") as plivo:
            call = await plivo.answer(None, PlivoSwitches(hang_up_at_s=0.2))
            record = await call.run()
        rows = await recorded(alice)
    assert record.outcome == "completed"
    assert plivo.callbacks
    assert {callback.status for callback in plivo.callbacks} == {204}
    assert rows.call.from_number == "15550100"


async def test_what_plivo_did_not_sign_is_refused_from_the_moment_a_token_is_stored(
    mirror: MirrorServer, new_tenancy: TenancyMaker
) -> None:
    alice = await asyncio.to_thread(new_tenancy, upstream_url="ws://127.0.0.1:1/")
    charlie = await asyncio.to_thread(new_tenancy, upstream_url="ws://127.0.0.1:1/")
    await asyncio.to_thread(store, charlie, FOREIGN)

    async def answered(tenancy: Tenancy, token: str | None) -> bool:
        async with AnswerClient(tenancy.answer_url(mirror.http), auth_token=token) as plivo:
            try:
                await plivo.fetch()
            except AnswerError as refused:
                return "HTTP 403" not in str(refused)
        return True

    assert await answered(alice, None)
    await asyncio.to_thread(store, alice)
    for token in (None, FOREIGN, "x"):
        assert not await answered(alice, token)
    assert await answered(alice, TOKEN)
    assert await answered(charlie, FOREIGN)
    assert not await answered(charlie, TOKEN)
    # A new token counts at once, and so does forgetting it.
    await asyncio.to_thread(store, alice, "n" * 40)
    assert not await answered(alice, TOKEN)
    assert await answered(alice, "n" * 40)
    await asyncio.to_thread(forget, alice)
    assert await answered(alice, None)
    log = mirror.log.read_text()
    assert "refused" in log
    for secret in (TOKEN, FOREIGN, "n" * 40, alice.stream_key):
        assert secret not in log


async def test_a_handshake_with_a_wrong_signature_gets_the_refusal_of_an_unknown_key(
    mirror: MirrorServer, new_tenancy: TenancyMaker
) -> None:
    alice = await asyncio.to_thread(new_tenancy, upstream_url="ws://127.0.0.1:1/")
    await asyncio.to_thread(store, alice)
    path = f"/stream/{alice.slug}/{alice.stream_key}"

    def signed(token: str, url: str) -> dict[str, str]:
        made = sign(tokens=[token], method="GET", urls=[url], nonce="12345")
        return {name: made[name] for name in ("X-Plivo-Signature-V3", "X-Plivo-Signature-V3-Nonce")}

    unknown = await handshake(mirror, f"/stream/{alice.slug}/sk_unknown")
    assert unknown.startswith(b"HTTP/1.1 403 ")
    for headers in (signed(FOREIGN, mirror.http + path), signed(TOKEN, "https://elsewhere.example" + path)):
        refused = await handshake(mirror, path, headers)
        assert refused.split(b"\r\n")[0] == unknown.split(b"\r\n")[0]
    for url in handshake_urls(mirror.ws + path):
        assert (await handshake(mirror, path, signed(TOKEN, url))).startswith(b"HTTP/1.1 101 "), url
    assert (await handshake(mirror, path, {})).startswith(b"HTTP/1.1 101 ")


class Seen:
    """What the SDK's handler made of the calls that came."""

    def __init__(self) -> None:
        self.headers: list[Mapping[str, str]] = []
        self.started: list[str] = []
        self.errors: list[str] = []


def verifying_app(token: str, seen: Seen) -> FastAPI:
    """An agent on plivo-stream-sdk that takes only what Plivo signed."""
    app = FastAPI()

    @app.websocket("/agent one")
    async def call(websocket: WebSocket) -> None:
        seen.headers.append(dict(websocket.headers))
        handler = PlivoFastAPIStreamingHandler(websocket)

        @handler.on_start  # type: ignore[untyped-decorator]
        async def started(event: Any) -> None:
            seen.started.append(event.start.call_id)

        @handler.on_error  # type: ignore[untyped-decorator]
        async def failed(error: Exception) -> None:
            seen.errors.append(str(error))

        await handler.start(with_signature_verification=True, auth_token=token)

    return app


@pytest.mark.parametrize("query", ["", "?lang=en", "?lang=en&empty=&b=%20x"])
async def test_an_agent_whose_sdk_verifies_plivos_signature_takes_calls_through_mirror(
    mirror: MirrorServer, new_tenancy: TenancyMaker, query: str
) -> None:
    seen = Seen()
    async with asgi_server(verifying_app(TOKEN, seen)) as port:
        alice = await asyncio.to_thread(new_tenancy, upstream_url=f"ws://127.0.0.1:{port}{PATH}")
        await asyncio.to_thread(store, alice, "s" * 40, "SAXXXXXXXXXXXXXXXXX9")
        await asyncio.to_thread(store, alice)
        await asyncio.to_thread(set_headers, alice, {"X-Team": "front desk"})
        stream = SimulatedCall(alice.stream_url(mirror.ws) + query, None, PlivoSwitches(hang_up_at_s=0.3))
        record = await stream.run()
        rows = await recorded(alice)
    assert record.outcome == "completed"
    assert (seen.started, seen.errors) == ([record.call_id], [])
    assert rows.call.outcome == "completed"
    [headers] = seen.headers
    assert headers["x-team"] == "front desk"
    assert headers["x-mirror-signature"].startswith("t=")
    said = mirror.log.read_text()
    assert TOKEN not in said
    assert headers["x-plivo-signature-v3"] not in said


async def test_such_an_agent_refuses_mirror_without_the_token_or_with_another(
    mirror: MirrorServer, new_tenancy: TenancyMaker
) -> None:
    seen = Seen()
    async with asgi_server(verifying_app(TOKEN, seen)) as port:
        alice = await asyncio.to_thread(new_tenancy, upstream_url=f"ws://127.0.0.1:{port}{PATH}")
        charlie = await asyncio.to_thread(new_tenancy, upstream_url=f"ws://127.0.0.1:{port}{PATH}")
        await asyncio.to_thread(store, charlie, FOREIGN)
        for tenancy in (alice, charlie):
            await SimulatedCall(tenancy.stream_url(mirror.ws), None, PlivoSwitches(hang_up_at_s=2.0)).run()
            rows = await recorded(tenancy)
            assert rows.call.outcome == "failed"
    assert seen.started == []
    assert len(seen.errors) == 2
    # What refused charlie was the check itself; alice's handshake carried nothing to check.
    assert seen.errors[1] == "Invalid socket signature"
    assert "x-plivo-signature-v3" not in seen.headers[0]


def set_headers(tenancy: Tenancy, headers: Mapping[str, str]) -> None:
    with tenancy.context(), transaction.atomic():
        agent_headers_update(agent=tenancy.agent, headers=headers)


async def test_the_headers_of_the_tenant_reach_its_agent_and_no_other(
    mirror: MirrorServer, new_tenancy: TenancyMaker
) -> None:
    async with agent(hello) as mine, agent(hello) as other:
        alice = await asyncio.to_thread(new_tenancy, upstream_url=mine.url)
        charlie = await asyncio.to_thread(new_tenancy, upstream_url=other.url)
        await asyncio.to_thread(set_headers, alice, {"Authorization": "Bearer canary-of-alice"})
        for tenancy in (alice, charlie):
            await SimulatedCall(tenancy.stream_url(mirror.ws), None, PlivoSwitches(hang_up_at_s=0.2)).run()
            await recorded(tenancy)
    got = {name.lower(): value for name, value in mine.calls[0].headers.items()}
    assert got["authorization"] == "Bearer canary-of-alice"
    assert "canary" not in json.dumps(other.calls[0].headers)
    assert "canary" not in mirror.log.read_text()
