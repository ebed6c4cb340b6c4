"""Every socket and topic, and Plivo's webhooks, as everybody; calls of two tenants that share a process.

The rows, and how to add one, are in sweep.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.testing import WebsocketCommunicator
from django.test import AsyncClient

from mirror_saas.ids import uuid7
from supervision.models import Call, CallEvent
from supervision.stream.routing import websocket_urlpatterns as stream_patterns
from supervision.stream.runtime import stream_runtime_close
from tenants.roles import Role
from tests.factories import Tenancy, call_create, tenancy_create
from tests.isolation.sweep import (
    NOBODY,
    SOCKETS,
    TOPICS,
    Asker,
    marks,
    member,
    person,
    row_ids,
    rows,
    signed_in,
)
from webui import consumers
from webui.routing import websocket_urlpatterns as console_patterns

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("redis_url")]


def test_every_socket_is_in_the_table() -> None:
    assert {str(route.pattern) for route in (*stream_patterns, *console_patterns)} == SOCKETS


def test_every_topic_is_in_the_table() -> None:
    assert set(consumers.TOPICS) == set(TOPICS)


# -- console sockets ------------------------------------------------------------------------------------------------


async def heard(asker: Asker, topic: str) -> tuple[str, str]:
    """What the first answer about `topic` is, and all that was heard until then: a kind of message, or a close code."""
    from mirror_saas.asgi import application

    headers = [(b"host", b"localhost"), (b"origin", b"http://localhost")]
    if asker.session is not None:
        headers.append((b"cookie", f"sessionid={asker.session}".encode()))
    wire = WebsocketCommunicator(application, "/ws/console", headers=headers)
    connected, _ = await wire.connect(timeout=30)
    assert connected
    try:
        await wire.send_to(text_data=json.dumps({"type": "subscribe", "topic": topic}))
        texts = ""
        while True:
            message: dict[str, Any] = await wire.receive_output(timeout=30)
            if message["type"] == "websocket.close":
                return str(message["code"]), texts
            texts += message["text"]
            kind: str = json.loads(message["text"])["type"]
            if kind != "beat":
                return kind, texts
    finally:
        await wire.disconnect()


@pytest.mark.parametrize("kind", TOPICS)
async def test_a_topic_is_its_own_tenants(tenant: Tenancy, stranger: Tenancy, kind: str) -> None:
    needs, topic_of = TOPICS[kind]

    @sync_to_async
    def arranged() -> tuple[dict[str, Asker], str, str, set[str]]:
        call_create(tenant)
        alice, dora = tenant.users["alice"], person()
        with stranger.context():
            topic = topic_of(stranger)
        before = rows(stranger)
        ids = {str(each) for each in row_ids(before)}
        kind_of, colon, about = topic.partition(":")
        missing = f"{kind_of}:{uuid7()}" if colon and about in ids else topic
        askers = {
            "charlie": signed_in(stranger.users["charlie"]),
            "alice": signed_in(alice),
            "alice elsewhere": signed_in(alice, chosen=stranger.id),
            "dora": signed_in(dora),
            "dora elsewhere": signed_in(dora, chosen=stranger.id),
            "nobody": NOBODY,
            "made up": Asker(session="a" * 32),
            **{f"a {role.value} without it": signed_in(member(stranger, role)) for role in _roles_without(needs)},
        }
        return askers, topic, missing, marks(stranger, before)

    askers, topic, missing, foreign = await arranged()
    answers = {name: await heard(asker, topic) for name, asker in askers.items()}
    assert answers.pop("charlie")[0] == "update"
    expected = {"dora": "4403", "dora elsewhere": "4403", "nobody": "4401", "made up": "4401"}
    expected["alice elsewhere"] = "4409"
    for name, (answer, texts) in answers.items():
        assert [mark for mark in foreign if mark in texts and mark not in topic] == [], name
        if name in expected:
            assert answer == expected[name], name
        elif "without" in name or missing != topic:
            assert answer == "refused", name
    if missing != topic:
        answer, texts = await heard(askers["alice"], missing)
        assert (answer, texts.replace(missing, "*")) == ("refused", answers["alice"][1].replace(topic, "*"))


def _roles_without(needs: str) -> list[Role]:
    from tenants.roles import ROLE_CAPABILITIES

    return [role for role in Role if needs not in ROLE_CAPABILITIES[role.value]]


# -- Plivo's side ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def calls_server() -> AsyncIterator[Any]:
    """The application in this process, with the calls' runtime; at its end the journal is stored."""
    from mirror_saas.asgi import application

    yield application
    await stream_runtime_close()


@pytest.fixture
def two(transactional_db: None) -> tuple[Tenancy, Tenancy]:
    # Nobody listens there: calls begin, are recorded, and fail.
    return tenancy_create(owner="alice"), tenancy_create(owner="charlie")


def wrong_doors(alice: Tenancy, charlie: Tenancy) -> list[tuple[str, str]]:
    """Slugs and keys that do not belong together, or to anybody."""
    return [
        (charlie.slug, alice.stream_key),
        (alice.slug, charlie.stream_key),
        (charlie.slug, f"sk_{'x' * 43}"),
        (str(charlie.id), charlie.stream_key),
        ("nobody", charlie.stream_key),
        (charlie.slug, charlie.api_key),
    ]


async def test_plivos_urls_open_for_their_own_key_only_and_refuse_alike(
    calls_server: Any, two: tuple[Tenancy, Tenancy]
) -> None:
    alice, charlie = two
    client = AsyncClient()
    refusals = set()
    for slug, key in wrong_doors(alice, charlie):
        for what in ("answer", "status"):
            response = await client.post(f"/plivo/{slug}/{key}/{what}", {"CallUUID": "1"})
            refusals.add((response.status_code, response.content))
        wire = WebsocketCommunicator(calls_server, f"/stream/{slug}/{key}")
        connected, code = await wire.connect(timeout=30)
        refusals.add((connected, code))
    assert refusals == {(403, b""), (False, 1008)}
    answer = await client.post(f"/plivo/{charlie.slug}/{charlie.stream_key}/answer", {"CallUUID": "1"})
    assert answer.status_code == 200
    assert "alice" not in answer.content.decode()


async def test_calls_of_two_tenants_that_share_a_process_are_recorded_as_their_own(
    calls_server: Any, two: tuple[Tenancy, Tenancy], without_filters: None
) -> None:
    """Eight at a time, in turns, on one pool and one journal; then row-level security alone shows each its own."""
    made: dict[Any, set[str]] = {tenancy.id: set() for tenancy in two}

    async def call(number: int) -> None:
        tenancy = two[number % 2]
        call_id = str(uuid7())
        made[tenancy.id].add(call_id)
        async with stream(calls_server, tenancy) as wire:
            await wire.send_to(text_data=start(call_id))
            # The agent cannot be reached, so Mirror ends the call.
            while (await wire.receive_output(timeout=30))["type"] != "websocket.close":
                pass

    await asyncio.gather(*(call(number) for number in range(8)))
    await stream_runtime_close()

    @sync_to_async
    def seen(tenancy: Tenancy) -> tuple[set[str], set[Any], int]:
        with tenancy.context():
            calls = list(Call.objects.all())
            owners = {call.tenant_id for call in calls} | set(CallEvent.objects.values_list("tenant_id", flat=True))
            return {call.plivo_call_id for call in calls}, owners, len(calls)

    for tenancy in two:
        assert await seen(tenancy) == (made[tenancy.id], {tenancy.id}, 4)


@asynccontextmanager
async def stream(application: Any, tenancy: Tenancy) -> AsyncIterator[WebsocketCommunicator]:
    wire = WebsocketCommunicator(application, f"/stream/{tenancy.slug}/{tenancy.stream_key}")
    connected, _ = await wire.connect(timeout=30)
    assert connected
    try:
        yield wire
    finally:
        await wire.disconnect(timeout=30)


def start(call_id: str) -> str:
    media = {"encoding": "audio/x-mulaw", "sampleRate": 8000}
    return json.dumps(
        {
            "sequenceNumber": 0,
            "event": "start",
            "start": {
                "callId": call_id,
                "streamId": str(uuid7()),
                "accountId": "MA" + "X" * 18,
                "tracks": ["inbound"],
                "mediaFormat": media,
            },
            "extra_headers": "{}",
        }
    )
