"""The browser's telephone, on the real application, real PostgreSQL and Valkey, and an agent on a real socket."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from asgiref.sync import sync_to_async
from channels.testing import WebsocketCommunicator
from django.conf import settings as django_settings

from mirror_saas.ids import uuid7
from supervision.audio.format import MediaFormat
from supervision.models import Agent, Call
from supervision.stream import phone as phone_module
from supervision.stream.runtime import stream_runtime_close
from tenants.models import AuditEvent, Membership, User
from tenants.roles import Role
from tenants.services.limits import as_owner, tenant_limits_update
from tests.e2e.agents import AgentCall
from tests.e2e.agents import agent as agent_server
from tests.factories import Tenancy, tenancy_create
from tests.isolation.sweep import person, signed_in
from webui import phone

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("redis_url")]

TONE = bytes([0x20, 0xA0] * 1600)  # 0.4 s of the agent's voice, in mu-law


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller without patience, and no voice to load."""
    monkeypatch.setattr(phone_module, "AGENT_SILENT_S", 0.2)
    monkeypatch.setattr(phone_module, "ANSWER_WITHIN_S", 0.5)
    monkeypatch.setattr(django_settings, "MIRROR", replace(django_settings.MIRROR, tts="off"))


class Telephone:
    """A browser's end of the socket, and all that it was sent."""

    def __init__(self, wire: WebsocketCommunicator) -> None:
        self.wire = wire
        self.messages: list[dict[str, Any]] = []
        self.audio = b""
        self.code: int | None = None

    async def say(self, **message: Any) -> None:
        await self.wire.send_to(text_data=json.dumps(message))

    async def place(self, agent: Agent | UUID, lines: list[str] | None = None) -> None:
        agent_id = agent.id if isinstance(agent, Agent) else agent
        await self.say(type="place", agent=str(agent_id), lines=lines)

    async def hear(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The next message of this kind with these fields; KeyError when the socket closes before."""
        while True:
            output = await self.wire.receive_output(timeout=20)
            if output["type"] == "websocket.close":
                self.code = output.get("code", 1000)
                raise KeyError(kind)
            if output.get("bytes"):
                self.audio += output["bytes"]
                continue
            message: dict[str, Any] = json.loads(output["text"])
            self.messages.append(message)
            if message["type"] == kind and all(message.get(name) == value for name, value in fields.items()):
                return message

    async def closed(self) -> int:
        """The code that the socket is closed with."""
        with pytest.raises(KeyError):
            await self.hear("never")
        assert self.code is not None
        return self.code


@pytest.fixture
async def telephone() -> AsyncIterator[Callable[..., Any]]:
    """`async with telephone(user) as phone`: a socket of this person's browser."""
    from mirror_saas.asgi import application

    @asynccontextmanager
    async def connected(
        user: User | None, *, chosen: Tenancy | None = None, tenant: UUID | str = "", origin: str = "http://localhost"
    ) -> AsyncIterator[Telephone]:
        headers = [(b"host", b"localhost"), (b"origin", origin.encode()), (b"user-agent", b"A browser")]
        if user is not None:
            asker = await sync_to_async(signed_in)(user, chosen=chosen.id if chosen else None)
            headers.append((b"cookie", f"sessionid={asker.session}".encode()))
        wire = WebsocketCommunicator(application, f"/ws/test-call?tenant={tenant}", headers=headers)
        accepted, code = await wire.connect(timeout=20)
        told = Telephone(wire)
        if not accepted:
            told.code = code
        try:
            yield told
        finally:
            await wire.disconnect(timeout=30)

    yield connected
    await stream_runtime_close()


@pytest.fixture
def charlie(transactional_db: None) -> Tenancy:
    return tenancy_create(owner="charlie")


def said(call: AgentCall) -> list[bytes]:
    """The caller's frames, as the agent got them."""
    return [base64.b64decode(event["media"]["payload"]) for event in call.of("media")]


async def listens(call: AgentCall) -> None:
    """An agent that marks when it has heard ten frames of the microphone's."""
    await call.hello()
    while said(call).count(b"\x22" * 160) < 10:  # noqa: ASYNC110 - media wakes nobody up
        await asyncio.sleep(0.02)
    await call.send("checkpoint", streamId=call.stream_id, name="heard")
    await call.wait("never", timeout_s=None)  # type: ignore[arg-type]


async def greets(call: AgentCall) -> None:
    """An agent that reports what it says, says it, and marks its end."""
    await call.hello()
    await call.send("mirror.turn", turn_id="t1", text="Hello, how can I help you?", customer_text="")
    await call.speak(TONE)
    await call.send("checkpoint", streamId=call.stream_id, name="greeted")
    await call.wait("never", timeout_s=None)  # type: ignore[arg-type]


async def test_a_scripted_call_is_placed_heard_and_recorded_as_a_test(
    telephone: Callable[..., Any], charlie: Tenancy
) -> None:
    async with agent_server(greets) as agent:
        alice = await sync_to_async(tenancy_create)(owner="alice", upstream_url=agent.url)
        async with telephone(alice.users["alice"], tenant=alice.id) as browser:
            await browser.place(alice.agent, ["Hello there.", "  ", "Good  bye."])
            media = await browser.hear("format")
            assert (media["encoding"], media["rate"]) == ("audio/x-mulaw", 8000)
            call_id = UUID((await browser.hear("call"))["id"])
            ended = await browser.hear("ended")
            assert await browser.closed() == 1000
        (heard_by_agent,) = agent.calls

    @sync_to_async
    def kept() -> tuple[Call, AuditEvent, list[UUID], int]:
        with alice.context():
            call = Call.objects.get(id=call_id)
            event = AuditEvent.objects.get(action="agent.test_call")
            ids = list(Call.objects.values_list("id", flat=True))
        with charlie.context():
            return call, event, ids, Call.objects.count()

    await stream_runtime_close()
    call, event, ids, of_charlie = await kept()
    assert (call.test, call.turn_count, call.agent_id, ids, of_charlie) == (True, 1, alice.agent.id, [call_id], 0)
    assert (event.actor_label, event.object_label, event.user_agent) == (
        alice.users["alice"].email,
        alice.agent.name,
        "A browser",
    )
    assert json.loads(event.after or "") == {"caller": "script"}
    assert ended["words"] == "The caller hung up."
    assert (ended["failed"], ended["heard_ms"]) == (False, 400)
    # A browser hears what the caller heard.
    assert browser.audio == TONE
    assert [said["text"] for said in browser.messages if said["type"] == "caller"] == ["Hello there.", "Good bye."]
    wire = [(told["from"], told["event"], told["detail"]) for told in browser.messages if told["type"] == "wire"]
    assert wire[0] == ("plivo", "start", "audio/x-mulaw, 8000 Hz")
    assert ("plivo", "playedStream", "greeted") in wire
    (problem,) = [told["problem"] for told in browser.messages if told["type"] == "voice"]
    assert problem == "no voice is installed or configured here"
    # A beep for each word, at the agent's end.
    loud = [MediaFormat().louder_than(frame, 1000) for frame in said(heard_by_agent)]
    assert sum(after and not before for before, after in pairwise(loud)) == 4


async def test_a_microphone_reaches_the_agent_and_leaving_the_page_hangs_up(telephone: Callable[..., Any]) -> None:
    async with agent_server(listens) as agent:
        alice = await sync_to_async(tenancy_create)(owner="alice", upstream_url=agent.url)
        async with telephone(alice.users["alice"]) as browser:
            await browser.place(alice.agent)
            await browser.hear("wire", event="start")
            await browser.wire.send_to(bytes_data=b"\x22" * 1600)
            await browser.hear("wire", event="playedStream", detail="heard")
            await browser.say(type="press", digits="7")
            await browser.say(type="say", text=" typed ")
            assert (await browser.hear("caller"))["text"] == "typed"
            # Neither belongs on a telephone.
            await browser.say(type="press", digits="not a key")
            assert await browser.closed() == 4400
        (call,) = agent.calls
        async with asyncio.timeout(10), call._changed:
            await call._changed.wait_for(lambda: call.closed is not None)
    assert [each["dtmf"]["digit"] for each in call.of("dtmf")] == ["7"]


async def test_a_role_that_is_taken_away_ends_the_call(telephone: Callable[..., Any]) -> None:
    async with agent_server(greets) as agent:
        alice = await sync_to_async(tenancy_create)(owner="alice", viewer="bob", upstream_url=agent.url)
        bob = alice.users["bob"]

        @sync_to_async
        def become(role: Role) -> None:
            with alice.context():
                Membership.objects.filter(user=bob).update(role=role)

        await become(Role.EDITOR)
        async with telephone(bob) as browser:
            await browser.place(alice.agent)
            await browser.hear("wire", event="start")
            await become(Role.VIEWER)
            assert await browser.closed() == 4403
        (call,) = agent.calls
        assert call.closed == 1000


async def test_who_may_not_is_refused(telephone: Callable[..., Any], charlie: Tenancy) -> None:
    alice = await sync_to_async(tenancy_create)(owner="alice", viewer="bob")
    dora = await sync_to_async(person)()
    for user, fields, code in (
        (None, {}, 4401),
        (dora, {}, 4403),
        (alice.users["bob"], {}, 4403),
        (alice.users["alice"], {"chosen": charlie}, 4409),
        (alice.users["alice"], {"tenant": charlie.id}, 4409),
    ):
        async with telephone(user, **fields) as browser:
            if "chosen" in fields:
                # Until something is asked for, a session of another tenant is none of this socket's.
                await browser.place(alice.agent)
            assert await browser.closed() == code, (user, fields)
    async with telephone(alice.users["alice"], origin="https://elsewhere.example") as browser:
        assert browser.code is not None


async def test_somebody_elses_agent_and_a_missing_one_are_the_same(
    telephone: Callable[..., Any], charlie: Tenancy
) -> None:
    alice = await sync_to_async(tenancy_create)(owner="alice")
    answers = []
    for agent_id in (charlie.agent.id, uuid7()):
        async with telephone(alice.users["alice"]) as browser:
            await browser.place(agent_id)
            answers.append((await browser.hear("refused"), await browser.closed()))
    assert (
        answers[0]
        == answers[1]
        == (
            {"type": "refused", "message": "This agent does not exist, or was archived. Choose another one."},
            1000,
        )
    )

    @sync_to_async
    def told() -> int:
        with charlie.context():
            return AuditEvent.objects.filter(action="agent.test_call").count() + Call.objects.count()

    assert await told() == 0


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "Type at least one line"),
        (["  "], "Type at least one line"),
        (["a"] * 31, "30 lines at most; this one has 31"),
        (["short", "x" * 301], "Line 2 has 301 characters"),
    ],
    ids=["none", "blank", "many", "long"],
)
async def test_a_script_that_cannot_be_spoken_is_refused_in_words(
    telephone: Callable[..., Any], lines: list[str], words: str
) -> None:
    alice = await sync_to_async(tenancy_create)(owner="alice")
    async with telephone(alice.users["alice"]) as browser:
        await browser.place(alice.agent, lines)
        assert words in (await browser.hear("refused"))["message"]
        assert await browser.closed() == 1000


async def test_what_no_page_of_ours_sends_closes_the_socket(telephone: Callable[..., Any]) -> None:
    alice = await sync_to_async(tenancy_create)(owner="alice")
    for text in ("", "[]", "{", '{"type": 1}', '{"type": "place"}', '{"type": "place", "agent": "x", "lines": null}'):
        async with telephone(alice.users["alice"]) as browser:
            await browser.wire.send_to(text_data=text or " ")
            if text == '{"type": 1}':
                # Of a kind that is not known: what a newer page says is not held against it.
                await browser.wire.send_to(text_data="x" * 40_000)
            assert await browser.closed() == 4400, text


async def test_calls_are_limited(telephone: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    async with agent_server(greets) as agent:
        alice = await sync_to_async(tenancy_create)(owner="alice", upstream_url=agent.url)
        monkeypatch.setattr(phone, "MOST_OF_TENANT", 1)
        async with telephone(alice.users["alice"]) as first, telephone(alice.users["alice"]) as second:
            await first.place(alice.agent)
            await first.hear("wire", event="start")
            await second.place(alice.agent)
            assert "Other test calls run" in (await second.hear("refused"))["message"]
            await first.say(type="hang_up")
            await first.hear("ended")

        @sync_to_async
        def limited() -> None:
            with as_owner(), alice.context():
                tenant_limits_update(changed={"calls": 0})

        await limited()
        async with telephone(alice.users["alice"]) as browser:
            await browser.place(alice.agent)
            assert "tenant’s limit" in (await browser.hear("refused"))["message"]
        assert len(agent.calls) == 1


async def test_a_browser_that_does_not_hear_misses_audio_and_slows_nothing(
    telephone: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phone, "BEHIND_S", 0.1)
    async with agent_server(greets) as agent:
        alice = await sync_to_async(tenancy_create)(owner="alice", upstream_url=agent.url)
        async with telephone(alice.users["alice"]) as browser:
            await browser.place(alice.agent, ["Hello."])
            ended = await browser.hear("ended")
        assert ended["heard_ms"] == 400
        assert 0 < len(browser.audio) < len(TONE)


async def test_a_failed_call_says_why(telephone: Callable[..., Any]) -> None:
    alice = await sync_to_async(tenancy_create)(owner="alice", upstream_url="ws://127.0.0.1:1/agent")
    async with telephone(alice.users["alice"]) as browser:
        await browser.place(alice.agent)
        ended = await browser.hear("ended")
    assert ended["failed"] is True
    assert ended["words"].startswith("The call failed: ")
