"""Who may connect, through a real Mirror: every refusal is the same, and the answer URL leads into the call."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from supervision.plivo.simulator import AnswerClient, PlivoSwitches, SimulatedCall
from supervision.plivo.simulator.answer import AnswerError
from supervision.services.agents import agent_stream_key_create, agent_stream_key_revoke
from tests.e2e.agents import AgentCall, agent
from tests.e2e.conftest import MirrorServer, TenancyMaker, recorded
from tests.factories import Tenancy

pytestmark = pytest.mark.django_db(transaction=True)


async def handshake(mirror: MirrorServer, path: str, headers: Mapping[str, str] | None = None) -> bytes:
    """Everything that a server answers to a WebSocket handshake for `path`, byte for byte."""
    host = urlsplit(mirror.http)
    reader, writer = await asyncio.open_connection(host.hostname, host.port)
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host.netloc}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    async with asyncio.timeout(10):
        if headers is None:
            answer = await reader.read()
        else:
            answer = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    return answer


def keys_made(tenancy: Tenancy) -> dict[str, str]:
    """Keys of the tenant's agent that do not open anything any more."""
    with tenancy.context():
        revoked = agent_stream_key_create(agent_id=tenancy.agent.id)
        agent_stream_key_revoke(stream_key_id=revoked.stream_key.id)
        past = datetime.now(UTC) - timedelta(seconds=1)
        expired = agent_stream_key_create(agent_id=tenancy.agent.id, expires_at=past)
    return {"revoked": revoked.key, "expired": expired.key}


async def call_token(mirror: MirrorServer, tenancy: Tenancy) -> str:
    """A genuine call token of this tenant, as its answer URL gives it."""
    async with AnswerClient(tenancy.answer_url(mirror.http)) as plivo:
        element = await plivo.fetch()
    return parse_qs(urlsplit(element.url).query)["mt"][0]


async def test_every_refusal_is_the_same_to_the_last_byte(mirror: MirrorServer, new_tenancy: TenancyMaker) -> None:
    alice = await asyncio.to_thread(new_tenancy, upstream_url="ws://127.0.0.1:1/")
    charlie = await asyncio.to_thread(new_tenancy, upstream_url="ws://127.0.0.1:1/")
    dead = await asyncio.to_thread(keys_made, alice)
    foreign = await call_token(mirror, charlie)
    own = await call_token(mirror, alice)
    paths = {
        "wrong key": f"/stream/{alice.slug}/sk_{'x' * 43}",
        "another tenant's slug": f"/stream/{charlie.slug}/{alice.stream_key}",
        "another tenant's key": f"/stream/{alice.slug}/{charlie.stream_key}",
        "revoked key": f"/stream/{alice.slug}/{dead['revoked']}",
        "expired key": f"/stream/{alice.slug}/{dead['expired']}",
        "unknown slug": f"/stream/nobody-at-all/{alice.stream_key}",
        "forged token": f"/stream/{alice.slug}/{alice.stream_key}?mt=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "tampered token": f"/stream/{alice.slug}/{alice.stream_key}?mt={own[:-3]}AAA",
        "empty token": f"/stream/{alice.slug}/{alice.stream_key}?mt=",
        "foreign token": f"/stream/{alice.slug}/{alice.stream_key}?mt={quote(foreign)}",
        "no key": f"/stream/{alice.slug}/",
        "no such path": "/stream/",
        "nul in the slug": f"/stream/%00/{alice.stream_key}",
        "nul in the key": f"/stream/{alice.slug}/%00",
        "not utf-8": f"/stream/%ff%fe/{alice.stream_key}",
        "long key": f"/stream/{alice.slug}/{'k' * 6_000}",
    }
    answers = {name: await handshake(mirror, path) for name, path in paths.items()}
    assert answers["wrong key"].startswith(b"HTTP/1.1 403 ")
    assert {name for name, answer in answers.items() if answer != answers["wrong key"]} == set()

    # How long a refusal takes says no more than what it says.
    timed = ("wrong key", "another tenant's slug", "revoked key", "unknown slug")
    took: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(15):
        for name in timed:
            began = time.perf_counter()
            await handshake(mirror, paths[name])
            took[name].append(time.perf_counter() - began)
    # The quickest of each: what else the machine does makes the others longer.
    quickest = [min(times) for times in took.values()]
    assert max(quickest) - min(quickest) < 0.010

    log = mirror.log.read_text()
    for secret in (alice.stream_key, charlie.stream_key, dead["revoked"], foreign, own):
        assert secret not in log


async def test_a_right_key_is_let_in_and_the_first_subprotocol_selected(
    mirror: MirrorServer, new_tenancy: TenancyMaker
) -> None:
    tenancy = await asyncio.to_thread(new_tenancy, upstream_url="ws://127.0.0.1:1/")
    path = urlsplit(tenancy.stream_url(mirror.ws)).path
    plain = await handshake(mirror, path, {})
    assert plain.startswith(b"HTTP/1.1 101 ")
    assert b"sec-websocket-protocol" not in plain.lower()
    offered = await handshake(mirror, path, {"Sec-WebSocket-Protocol": "audio.drachtio.org, other"})
    assert b"sec-websocket-protocol: audio.drachtio.org\r\n" in offered.lower()


async def test_a_call_begins_at_the_answer_url_and_knows_who_calls_whom(
    mirror: MirrorServer, new_tenancy: TenancyMaker
) -> None:
    async def script(call: AgentCall) -> None:
        await call.hello()

    async with agent(script) as made:
        tenancy = await asyncio.to_thread(new_tenancy, upstream_url=made.url)
        answer = tenancy.answer_url(mirror.http) + "?lang=en&mt=mine"
        async with AnswerClient(answer, from_number="+15550100", to_number="+15550199") as plivo:
            call = await plivo.answer(None, PlivoSwitches(hang_up_at_s=0.3, subprotocol="audio.drachtio.org"))
            record = await call.run()
            stolen = SimulatedCall(call.url, call_id="99999999-2222-4333-8444-555566667777")
            refused = await stolen.run()
        rows = await recorded(tenancy)

    assert (record.outcome, record.ended_by, record.subprotocol) == ("completed", "caller", "audio.drachtio.org")
    assert plivo.element is not None
    assert (plivo.element.bidirectional, plivo.element.keep_call_alive) == (True, True)
    assert {callback.status for callback in plivo.callbacks} == {204}
    assert (rows.call.from_number, rows.call.to_number) == ("15550100", "15550199")
    assert rows.call.plivo_call_id == record.call_id
    # The agent gets the query, and nothing of Mirror's token.
    assert made.calls[0].path == "/agent?lang=en"
    # The token belongs to one call: another one that carries it is let go again, and nothing is recorded of it.
    assert (refused.handshake_status, refused.close_code) == (101, 1008)
    assert len(made.calls) == 1
    token = parse_qs(urlsplit(call.url).query)["mt"][-1]
    assert token not in mirror.log.read_text()


@pytest.mark.parametrize("what", ["answer", "status"])
async def test_a_wrong_key_gets_403_without_a_body_over_http(
    mirror: MirrorServer, new_tenancy: TenancyMaker, what: str
) -> None:
    alice = await asyncio.to_thread(new_tenancy, upstream_url="ws://127.0.0.1:1/")
    dead = await asyncio.to_thread(keys_made, alice)

    def ask(slug: str, key: str) -> tuple[int, bytes, dict[str, str]]:
        url = f"{mirror.http}/plivo/{slug}/{key}/{what}"
        try:
            with urllib.request.urlopen(url, data=b"CallUUID=x&From=1&To=2", timeout=10) as answer:
                return answer.status, answer.read(), dict(answer.headers)
        except urllib.error.HTTPError as refused:
            headers = {name: value for name, value in refused.headers.items() if name != "Date"}
            return refused.code, refused.read(), headers

    answers = [
        await asyncio.to_thread(ask, slug, key)
        for slug, key in (
            (alice.slug, "sk_wrong"),
            (alice.slug, dead["revoked"]),
            ("nobody", alice.stream_key),
            (alice.slug, "%00"),
            ("%00", alice.stream_key),
        )
    ]
    assert answers[0][:2] == (403, b"")
    assert all(answer == answers[0] for answer in answers)
    status, _, _ = await asyncio.to_thread(ask, alice.slug, alice.stream_key)
    assert status == (200 if what == "answer" else 204)
    if what == "answer":
        async with AnswerClient(f"{mirror.http}/plivo/{alice.slug}/sk_wrong/answer") as plivo:
            with pytest.raises(AnswerError, match="403"):
                await plivo.fetch()
