"""The console's WebSocket, on the real ASGI application, real PostgreSQL and the real channel layer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.layers import get_channel_layer
from channels.testing import WebsocketCommunicator
from django.test import Client

from mirror_saas.ids import uuid7
from supervision.models import Call
from supervision.recorder.announce import announce_to_channel_layer
from tenants.models import Membership, User
from tenants.roles import Role
from tenants.services.memberships import membership_create
from tests.factories import CALL_START, Tenancy, call_create
from tests.webui import story
from webui import consumers, watch

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("redis_url")]

# The application takes its hosts from the settings when it is first imported, by whichever test; this one is always
# allowed.
HOST = b"localhost"
ORIGIN = b"http://localhost"


def cookie_of(user: User) -> str:
    client = Client()
    client.force_login(user)
    return client.cookies["sessionid"].value


class Socket:
    """A browser's end: acknowledges updates as the page does, unless told not to."""

    def __init__(self, communicator: WebsocketCommunicator) -> None:
        self.wire = communicator
        self.acknowledges = True

    async def say(self, **message: Any) -> None:
        await self.wire.send_to(text_data=json.dumps(message))

    async def hear(self, kind: str, timeout_s: float = 5) -> dict[str, Any]:
        """The next message of this kind; beats in between are skipped, anything else is an error."""
        while True:
            message: dict[str, Any] = json.loads(await self.wire.receive_from(timeout=timeout_s))
            if message["type"] == "update" and self.acknowledges:
                await self.say(type="ack", topic=message["topic"], n=message["n"])
            if message["type"] == kind:
                return message
            assert message["type"] == "beat", message

    async def subscribe(self, topic: str, **fields: Any) -> None:
        await self.say(type="subscribe", topic=topic, **fields)

    async def hears_nothing(self, for_s: float = 0.6) -> bool:
        """Nothing but beats arrives within `for_s`."""
        try:
            async with asyncio.timeout(for_s):
                while True:
                    message = json.loads(await self.wire.receive_from(timeout=for_s + 1))
                    assert message["type"] == "beat", message
        except TimeoutError:
            return True

    async def close_code(self) -> int:
        while True:
            message = await self.wire.receive_output(timeout=5)
            if message["type"] == "websocket.close":
                code: int = message.get("code", 1000)
                return code


Connect = Callable[..., Any]


@pytest.fixture
def connect() -> Connect:
    """`async with connect(user) as socket`: a console socket with this person's session."""
    from mirror_saas.asgi import application

    @asynccontextmanager
    async def connected(
        user: User | None,
        *,
        origin: bytes | None = ORIGIN,
        cookies: str = "",
        accepted: bool = True,
        path: str = "/ws/console",
    ) -> AsyncIterator[Socket]:
        if user is not None:
            cookies = f"sessionid={await sync_to_async(cookie_of)(user)}; {cookies}"
        headers = [(b"host", HOST), (b"cookie", cookies.encode())]
        if origin is not None:
            headers.append((b"origin", origin))
        communicator = WebsocketCommunicator(application, path, headers=headers)
        connection, _ = await communicator.connect(timeout=5)
        assert connection is accepted
        try:
            yield Socket(communicator)
        finally:
            await communicator.disconnect()

    return connected


@pytest.fixture
def bring(recorded: story.Recording) -> Callable[..., Awaitable[None]]:
    """`await bring(events)`: recorded and announced by the real recorder."""

    async def run(events: Any, **fields: Any) -> None:
        await asyncio.to_thread(recorded, list(events), **fields)

    return run


def ids(update: dict[str, Any]) -> list[str]:
    return [part["id"] for part in update["parts"]]


def html(update: dict[str, Any], dom_id: str) -> str:
    (found,) = [part["html"] for part in update["parts"] if part["id"] == dom_id]
    return str(found)


# -- what a member receives, and a stranger does not ----------------------------------------------------------------


async def test_a_live_call_is_followed_turn_by_turn(
    connect: Connect, bring: Callable[..., Awaitable[None]], tenant: Tenancy, stranger: Tenancy
) -> None:
    told = story.Story(tenant, story.now())
    await bring(told.start())
    async with connect(tenant.users["bob"]) as bob, connect(stranger.users["charlie"]) as charlie:
        await bob.subscribe(f"call:{told.call_id}", after=told.events[-1].seq)
        await charlie.subscribe(f"call:{told.call_id}", after=0)
        await charlie.hear("refused")
        await charlie.subscribe("calls")
        await charlie.hear("update")

        await bring(told.turn(2_140, "Is it coming?", "It will be there tomorrow, I promise.", name="promise"))
        update = await bob.hear("update")
        turn = f"turn-{told.ids['promise'].hex}"
        assert update["seq"] == told.events[-1].seq
        assert "It will be there tomorrow, I promise." in html(update, turn)
        assert "Judging…" in html(update, turn)

        await bring(told.judged("promise", 2_400, 0.91, rule=story.DATE_RULE))
        update = await bob.hear("update")
        assert "0.91 reaches threshold 0.70" in html(update, turn)
        assert f"event-{told.events[-1].seq}" in ids(update)
        assert "Highlights" in html(update, "highlights")

        for events in told.intervention("promise", 2_404, story.DATE_RULE):
            await bring(events)
        shown = ""
        while "Corrected" not in shown:
            update = await bob.hear("update")
            shown = html(update, f"intervention-{told.ids['intervention on promise'].hex}")
        assert "Correction queued" in shown

        await bring(told.tool(8_000, "charge_card", {"amount": 5}, allow=False))
        update = await bob.hear("update")
        tool = f"tool-{told.ids['tool charge_card'].hex}"
        assert "Blocked" in html(update, tool)
        assert "Blocked" in html(update, f"loose-{tool}")
        assert update["announce"] == ["Tool blocked: charge_card"]

        await bring(told.end(9_000, interventions=1))
        while "Call ended" not in "".join(part.get("html", "") for part in update["parts"]):
            update = await bob.hear("update")
        assert "Completed" in html(update, "call-head")
        assert "The call has ended" in update["announce"]

        # and the stranger received nothing
        assert await charlie.hears_nothing()


async def test_the_list_follows_calls_and_the_stranger_receives_nothing(
    connect: Connect, bring: Callable[..., Awaitable[None]], tenant: Tenancy, stranger: Tenancy
) -> None:
    async with connect(tenant.users["alice"]) as alice, connect(stranger.users["charlie"]) as charlie:
        await alice.subscribe("calls")
        assert ids(await alice.hear("update")) == ["calls-live"]
        await charlie.subscribe("calls")
        theirs = await charlie.hear("update")

        told = story.Story(tenant, story.now())
        await bring(told.start())
        update = await alice.hear("update")
        (row,) = update["parts"]
        assert (row["id"], row["into"]) == (f"call-{told.call_id.hex}", "calls-live")
        assert update["announce"] == ["A call to alice's agent started"]

        await bring(told.end(4_000))
        (row,) = (await alice.hear("update"))["parts"]
        assert (row["id"], row["into"]) == (f"call-{told.call_id.hex}", "calls-ended")

        # and the stranger received nothing
        assert told.call_id.hex not in json.dumps(theirs)
        assert await charlie.hears_nothing()


async def test_a_row_that_a_filter_no_longer_shows_is_removed(
    connect: Connect, bring: Callable[..., Awaitable[None]], tenant: Tenancy
) -> None:
    told = story.Story(tenant, story.now())
    await bring(told.start())
    async with connect(tenant.users["alice"]) as alice:
        await alice.subscribe("calls", query="state=live")
        assert f"call-{told.call_id.hex}" in ids(await alice.hear("update"))
        await bring(told.end(4_000))
        assert (await alice.hear("update"))["parts"] == [{"id": f"call-{told.call_id.hex}", "remove": True}]


async def test_foreign_missing_and_malformed_topics_are_refused_alike(
    connect: Connect, tenant: Tenancy, stranger: Tenancy
) -> None:
    @sync_to_async
    def their_call() -> Call:
        with stranger.context():
            return Call.objects.get()

    theirs = await their_call()
    async with connect(tenant.users["alice"]) as alice:
        for topic in (f"call:{theirs.id}", f"call:{uuid7()}", "call:x", "calls:all", f"t.{stranger.id.hex}.calls", ""):
            await alice.subscribe(topic)
            assert await alice.hear("refused") == {"type": "refused", "topic": topic}
        await announce_to_channel_layer(stranger.id, {theirs.id: 99})
        assert await alice.hears_nothing()


async def test_a_hint_is_no_permission(connect: Connect, tenant: Tenancy, stranger: Tenancy) -> None:
    """Even a message in the viewer's own group that names somebody else's call brings nothing of it."""

    @sync_to_async
    def their_call() -> Call:
        with stranger.context():
            return Call.objects.get()

    theirs = await their_call()
    async with connect(tenant.users["alice"]) as alice:
        await alice.subscribe("calls")
        await alice.hear("update")
        await announce_to_channel_layer(tenant.id, {theirs.id: 1})
        assert (await alice.hear("update"))["parts"] == [{"id": f"call-{theirs.id.hex}", "remove": True}]


# -- snapshot and deltas ---------------------------------------------------------------------------------------------


async def test_after_a_reconnect_only_what_was_missed_is_sent(
    connect: Connect, bring: Callable[..., Awaitable[None]], tenant: Tenancy
) -> None:
    told = story.corrected_call(tenant, CALL_START)
    await bring(told.events)
    last = told.events[-1].seq
    async with connect(tenant.users["alice"]) as alice:
        await alice.subscribe(f"call:{told.call_id}", after=last - 2)
        update = await alice.hear("update")
        assert [dom_id for dom_id in ids(update) if dom_id.startswith("event-")] == [
            f"event-{last - 1}",
            f"event-{last}",
        ]
        await alice.subscribe(f"call:{told.call_id}", after=last)
        assert await alice.hears_nothing()


async def test_much_that_was_missed_comes_in_bounded_pieces(
    connect: Connect, bring: Callable[..., Awaitable[None]], tenant: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webui.live.EVENTS_PER_UPDATE", 10)
    told = story.corrected_call(tenant, CALL_START)
    await bring(told.events)
    async with connect(tenant.users["alice"]) as alice:
        await alice.subscribe(f"call:{told.call_id}", after=0)
        seen: list[str] = []
        while len(seen) < len(told.events):
            events = [dom_id for dom_id in ids(await alice.hear("update")) if dom_id.startswith("event-")]
            assert 0 < len(events) <= 10
            seen += events
        assert seen == [f"event-{event.seq}" for event in told.events]


async def test_a_burst_becomes_few_updates(
    connect: Connect, bring: Callable[..., Awaitable[None]], tenant: Tenancy
) -> None:
    told = story.Story(tenant, story.now())
    await bring(told.start())
    async with connect(tenant.users["alice"]) as alice:
        await alice.subscribe(f"call:{told.call_id}", after=told.events[-1].seq)
        events = [event for n in range(40) for event in told.turn(1_000 + n, "", f"turn {n}")]
        await bring(events, announce=False)
        for event in events:
            await announce_to_channel_layer(tenant.id, {told.call_id: event.seq})
        updates = 0
        seq = 0
        while seq < events[-1].seq:
            seq = (await alice.hear("update"))["seq"]
            updates += 1
        assert updates <= 5
        assert await alice.hears_nothing()


async def test_a_browser_that_does_not_acknowledge_gets_no_more_until_it_does(
    connect: Connect, bring: Callable[..., Awaitable[None]], tenant: Tenancy
) -> None:
    told = story.Story(tenant, story.now())
    await bring(told.start())
    async with connect(tenant.users["alice"]) as alice:
        alice.acknowledges = False
        await alice.subscribe(f"call:{told.call_id}", after=0)
        first = await alice.hear("update")
        for n in range(3):
            await bring(told.turn(1_000 + n, "", f"turn {n}"))
        assert await alice.hears_nothing()
        await alice.say(type="ack", topic=f"call:{told.call_id}", n=first["n"])
        # Everything that came meanwhile, once.
        assert (await alice.hear("update"))["seq"] == told.events[-1].seq


async def test_a_browser_that_never_acknowledges_is_let_go(
    connect: Connect, bring: Callable[..., Awaitable[None]], tenant: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "ACK_WITHIN_S", 0.2)
    told = story.Story(tenant, story.now())
    await bring(told.start())
    async with connect(tenant.users["alice"]) as alice:
        alice.acknowledges = False
        await alice.subscribe(f"call:{told.call_id}", after=0)
        await alice.hear("update")
        await bring(told.turn(1_000, "", "turn"))
        assert await alice.close_code() == consumers.TOO_SLOW


async def test_a_lost_hint_costs_freshness_and_nothing_else(
    connect: Connect, bring: Callable[..., Awaitable[None]], tenant: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "RECHECK_S", 0.3)
    told = story.Story(tenant, story.now())
    await bring(told.start())
    async with connect(tenant.users["alice"]) as alice:
        await alice.subscribe(f"call:{told.call_id}", after=told.events[-1].seq)
        assert await alice.hears_nothing(0.2)
        await bring(told.turn(1_000, "", "unannounced"), announce=False)
        assert (await alice.hear("update"))["seq"] == told.events[-1].seq


async def test_times_are_in_the_viewers_zone(connect: Connect, tenant: Tenancy) -> None:
    call = await sync_to_async(call_create)(tenant)
    async with connect(tenant.users["alice"], cookies="tz=Asia/Tokyo") as alice:
        await alice.subscribe("calls")
        assert "4 Mar 2026, 21:00:00" in html(await alice.hear("update"), f"call-{call.id.hex}")


# -- who may connect, and for how long -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin",
    [None, b"https://evil.example", b"http://localhost.evil.example", b"null", b"http://localhost:81"],
)
async def test_pages_of_other_sites_cannot_open_it(connect: Connect, tenant: Tenancy, origin: bytes | None) -> None:
    async with connect(tenant.users["alice"], origin=origin, accepted=False):
        pass


async def test_without_a_session_it_closes_at_once(connect: Connect) -> None:
    for cookies in ("", "sessionid=made-up"):
        async with connect(None, cookies=cookies) as nobody:
            await nobody.subscribe("calls")
            assert await nobody.close_code() == consumers.SIGNED_OUT


async def test_signing_out_ends_the_socket_before_anything_more_is_sent(
    connect: Connect, bring: Callable[..., Awaitable[None]], tenant: Tenancy
) -> None:
    from django.contrib.sessions.models import Session

    told = story.Story(tenant, story.now())
    await bring(told.start())
    async with connect(tenant.users["alice"]) as alice:
        await alice.subscribe(f"call:{told.call_id}", after=told.events[-1].seq)
        assert await alice.hears_nothing(0.3)
        await sync_to_async(Session.objects.all().delete)()
        await bring(told.turn(1_000, "", "after signing out"))
        assert await alice.close_code() == consumers.SIGNED_OUT


async def test_a_membership_that_is_taken_away_ends_the_socket(
    connect: Connect, bring: Callable[..., Awaitable[None]], tenant: Tenancy
) -> None:
    @sync_to_async
    def take_away() -> None:
        with tenant.context():
            Membership.objects.filter(user=tenant.users["bob"]).delete()

    told = story.Story(tenant, story.now())
    await bring(told.start())
    async with connect(tenant.users["bob"]) as bob:
        await bob.subscribe(f"call:{told.call_id}", after=told.events[-1].seq)
        assert await bob.hears_nothing(0.3)
        await take_away()
        await bring(told.turn(1_000, "", "after the membership"))
        assert await bob.close_code() == consumers.NO_MEMBER


async def test_an_idle_socket_beats(connect: Connect, tenant: Tenancy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumers, "BEAT_S", 0.1)
    async with connect(tenant.users["alice"]) as alice:
        for _ in range(3):
            await alice.hear("beat")


@pytest.mark.parametrize(
    "text", ["{", "[]", "7", '{"type": "subscribe"}', '{"type": 1, "topic": "calls"}', '{"type":"drop","topic":"x"}',
             '{"type":"subscribe","topic":{}}', "[" * 4000, '"' + "x" * 5000 + '"']
)  # fmt: skip
async def test_what_no_page_of_ours_sends_ends_the_socket(connect: Connect, tenant: Tenancy, text: str) -> None:
    async with connect(tenant.users["alice"]) as alice:
        await alice.wire.send_to(text_data=text)
        assert await alice.close_code() == consumers.BAD_MESSAGE


async def test_a_topic_that_is_given_up_takes_no_hints_from_the_others(
    connect: Connect, bring: Callable[..., Awaitable[None]], tenant: Tenancy
) -> None:
    async with connect(tenant.users["alice"]) as alice:
        for topic in ("calls", "live", "approvals"):
            await alice.subscribe(topic)
            await alice.hear("update")
        for topic in ("live", "approvals"):
            await alice.say(type="unsubscribe", topic=topic)
        told = story.Story(tenant, story.now())
        await bring(told.start())
        assert ids(await alice.hear("update")) == [f"call-{told.call_id.hex}"]


async def test_topics_of_one_socket_are_bounded(connect: Connect, tenant: Tenancy) -> None:
    calls = [await sync_to_async(call_create)(tenant) for _ in range(consumers.MAX_TOPICS)]
    async with connect(tenant.users["alice"]) as alice:
        for call in calls:
            await alice.subscribe(f"call:{call.id}", after=10_000)
        await alice.subscribe("calls")
        assert await alice.hear("refused") == {"type": "refused", "topic": "calls"}
        await alice.say(type="unsubscribe", topic=f"call:{calls[0].id}")
        await alice.subscribe("calls")
        assert (await alice.hear("update"))["topic"] == "calls"


async def test_a_socket_that_fails_leaves_nothing_running(connect: Connect, tenant: Tenancy) -> None:
    def ours() -> list[asyncio.Task[Any]]:
        return [task for task in asyncio.all_tasks() if "ConsoleConsumer" in repr(task.get_coro())]

    async def fail() -> None:
        layer: Any = get_channel_layer()
        async with connect(tenant.users["alice"]) as alice:
            await alice.subscribe("calls")
            await alice.hear("update")
            assert len(ours()) == 2
            await layer.group_send(f"t.{tenant.id.hex}.calls", {"type": "nobody.knows.this"})
            await alice.wire.wait(5)

    with pytest.raises(ValueError, match="No handler"):
        await fail()
    assert ours() == []


async def test_nothing_is_left_in_the_channel_layer(connect: Connect, tenant: Tenancy, redis_url: str) -> None:
    import redis.asyncio

    layer: Any = get_channel_layer()
    group = f"{layer.prefix}:group:t.{tenant.id.hex}.calls"
    valkey = redis.asyncio.from_url(redis_url)
    try:
        async with connect(tenant.users["alice"]) as alice:
            await alice.subscribe("calls")
            await alice.hear("update")
            assert await valkey.zcard(group) == 1
            missing = uuid7()
            await alice.subscribe(f"call:{missing}")
            await alice.hear("refused")
            await alice.subscribe("calls")
            await alice.hear("update")
            assert await valkey.zcard(f"{layer.prefix}:group:t.{tenant.id.hex}.call.{missing.hex}") == 0
        assert await valkey.zcard(group) == 0
    finally:
        await valkey.aclose()


def test_the_layers_client_waits_longer_than_the_layer_asks_it_to() -> None:
    """Otherwise every socket that hears nothing for that long fails with the client's time-out."""
    layer: Any = get_channel_layer()
    assert all(host["socket_timeout"] > layer.brpop_timeout for host in layer.hosts)


# -- several tenants ------------------------------------------------------------------------------------------------


@sync_to_async
def also_in(stranger: Tenancy, user: User) -> None:
    with stranger.context():
        membership_create(user=user, role=Role.VIEWER)


async def test_switching_to_another_tenant_ends_the_sockets_of_the_pages_before(
    connect: Connect, tenant: Tenancy, stranger: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "CHECK_S", 0.1)
    alice = tenant.users["alice"]
    await also_in(stranger, alice)
    client = Client()

    @sync_to_async
    def sign_in() -> str:
        client.force_login(alice)
        assert client.get("/calls").status_code == 200
        return client.cookies["sessionid"].value

    cookies = f"sessionid={await sign_in()}"
    async with connect(None, cookies=cookies, path=f"/ws/console?tenant={tenant.id}") as page:
        await page.subscribe("calls")
        await page.hear("update")
        await sync_to_async(client.post)("/tenant/switch", {"tenant": str(stranger.id)})
        assert await page.close_code() == consumers.SWITCHED


async def test_a_page_of_one_tenant_is_not_filled_with_anothers_calls(
    connect: Connect, tenant: Tenancy, stranger: Tenancy
) -> None:
    """It lost its socket, and the session is in the other tenant when it comes back."""
    alice = tenant.users["alice"]
    await also_in(stranger, alice)
    for page_of in (str(stranger.id), str(uuid7()), "x"):
        async with connect(alice, path=f"/ws/console?tenant={page_of}") as page:
            await page.subscribe("calls")
            assert await page.close_code() == consumers.SWITCHED
    async with connect(alice, path=f"/ws/console?tenant={tenant.id}") as page:
        await page.subscribe("calls")
        assert "charlie" not in json.dumps(await page.hear("update"))
