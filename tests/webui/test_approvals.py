"""Waiting approvals: who sees them, who may decide, with which note, that they come and go by themselves, and what is
told of those that were decided."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.test import Client
from django.utils import timezone

from mirror_saas.ids import uuid7
from supervision.models import Approval
from supervision.recorder.announce import announce_to_channel_layer
from supervision.services import approvals as service
from tests.factories import Tenancy, approval_create
from tests.webui.test_socket import Connect, connect, html  # noqa: F401 (a fixture)


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(service, "call_tell", lambda url, **message: made.append(message))
    return made


def page_of(person: str, tenancy: Tenancy) -> str:
    client = Client()
    client.force_login(tenancy.users[person])
    return client.get("/calls").content.decode()


@pytest.mark.django_db
def test_what_waits_is_pinned_with_its_time_and_buttons_for_who_may(tenant: Tenancy, stranger: Tenancy) -> None:
    waiting = approval_create(tenant, tool="charge_<b>card", args={"note": "</pre><script>x"})
    approval_create(tenant, tool="long_gone", within=timedelta(seconds=-1))
    approval_create(tenant, tool="decided_one", state="denied")
    approval_create(stranger, tool="strangers_tool")
    page = page_of("alice", tenant)
    assert "Waiting for approval" in page
    assert "charge_&lt;b&gt;card" in page
    assert "<script>x" not in page
    for absent in ("long_gone", "decided_one", "strangers_tool"):
        assert absent not in page
    (left,) = re.findall(r'<time-left [^>]*role="timer" ms="(\d+)"', page)
    assert 50_000 < int(left) <= 60_000
    assert "It does not run if nobody decides." in page
    buttons = re.findall(r'<button [^>]*form="approvals-form" name="(\w+)" value="([^"]+)"', page)
    assert buttons == [("approve", str(waiting.id)), ("deny", str(waiting.id))]
    assert re.search(
        r'<form id="approvals-form" method="post" action="/approvals/decide"><input type="hidden" name="csrf', page
    )

    looked = page_of("bob", tenant)
    assert "charge_&lt;b&gt;card" in looked
    assert "approvals-form" not in looked


@pytest.mark.django_db
def test_without_any_the_page_has_an_empty_place_for_them(tenant: Tenancy) -> None:
    page = page_of("alice", tenant)
    assert '<section id="approvals" class="approvals" hidden>' in page
    assert "Waiting for approval" not in page


@pytest.mark.django_db
@pytest.mark.parametrize(("decision", "state"), [("approve", "approved"), ("deny", "denied")])
def test_a_button_decides_once(tenant: Tenancy, decision: str, state: str) -> None:
    waiting = approval_create(tenant)
    client = Client()
    client.force_login(tenant.users["alice"])
    answer = client.post("/approvals/decide", {decision: str(waiting.id)}, follow=True)
    assert f"charge_card was {state}." in answer.content.decode()
    with tenant.context():
        row = Approval.objects.get()
        assert (row.state, row.decided_by) == (state, tenant.users["alice"].email)
    other = "deny" if decision == "approve" else "approve"
    assert (
        "This tool call was" in client.post("/approvals/decide", {other: str(waiting.id)}, follow=True).content.decode()
    )


@pytest.mark.django_db
def test_nobody_else_decides(tenant: Tenancy, stranger: Tenancy) -> None:
    waiting = approval_create(tenant)
    bob, charlie = Client(), Client()
    bob.force_login(tenant.users["bob"])
    charlie.force_login(stranger.users["charlie"])
    assert bob.post("/approvals/decide", {"approve": str(waiting.id)}).status_code == 403
    for body in ({"approve": str(waiting.id)}, {"approve": str(uuid7())}, {"approve": "x"}, {}):
        assert charlie.post("/approvals/decide", body).status_code == 404
    checked = Client(enforce_csrf_checks=True)
    checked.force_login(tenant.users["alice"])
    assert checked.post("/approvals/decide", {"approve": str(waiting.id)}).status_code == 403
    with tenant.context():
        assert Approval.objects.get().state == "waiting"


@pytest.mark.django_db(transaction=True)
async def test_they_come_and_go_by_themselves(
    connect: Connect,  # noqa: F811
    tenant: Tenancy,
    stranger: Tenancy,
    redis_url: str,
) -> None:
    create: Callable[..., Awaitable[Approval]] = sync_to_async(approval_create)
    async with (
        connect(tenant.users["alice"]) as alice,
        connect(tenant.users["bob"]) as bob,
        connect(stranger.users["charlie"]) as charlie,
    ):
        for socket in (alice, bob, charlie):
            await socket.subscribe("approvals")
            assert "hidden" in html(await socket.hear("update"), "approvals")
        waiting = await create(tenant)
        await announce_to_channel_layer(tenant.id, {waiting.call_id: 1})
        update = await alice.hear("update")
        assert 'name="approve"' in html(update, "approvals")
        assert update["announce"] == ["charge_card waits for approval"]
        looked = html(await bob.hear("update"), "approvals")
        assert "charge_card" in looked
        assert "<button" not in looked

        def decide() -> None:
            with tenant.context():
                service.approval_decide(decision_id=waiting.id, approve=True)

        await sync_to_async(decide)()
        await announce_to_channel_layer(tenant.id, {waiting.call_id: 2})
        assert "charge_card" not in html(await alice.hear("update"), "approvals")
        await announce_to_channel_layer(tenant.id, {waiting.call_id: 3})
        assert await alice.hears_nothing()
        assert await charlie.hears_nothing(0.1)


# -- deciding ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def alice(client: Client, tenant: Tenancy) -> Client:
    client.force_login(tenant.users["alice"])
    return client


@pytest.mark.django_db
def test_a_note_goes_with_the_decision_and_leads_back_to_where_it_was_made(alice: Client, tenant: Tenancy) -> None:
    waiting, other = approval_create(tenant), approval_create(tenant)
    fields = {
        "approve": str(waiting.id),
        f"note-{waiting.id}": " Confirmed by phone. ",
        f"note-{other.id}": "of another one",
        "next": "/live?risk=high",
    }
    answer = alice.post("/approvals/decide", fields)
    assert (answer.status_code, answer["Location"]) == (302, "/live?risk=high")
    with tenant.context():
        assert Approval.objects.get(id=waiting.id).note == "Confirmed by phone."
        assert Approval.objects.get(id=other.id).state == "waiting"


@pytest.mark.django_db
@pytest.mark.parametrize(
    "there",
    ["https://evil.example/", "//evil.example/", "javascript:alert(1)", "/\\evil.example", "live", ""],
    ids=["site", "same-scheme", "script", "backslash", "relative", "nothing"],
)
def test_a_decision_leads_to_no_other_site(alice: Client, tenant: Tenancy, there: str) -> None:
    waiting = approval_create(tenant)
    assert alice.post("/approvals/decide", {"deny": str(waiting.id), "next": there})["Location"] == "/approvals"


@pytest.mark.django_db
def test_a_note_that_cannot_be_stored_is_kept_and_explained_at_its_field(alice: Client, tenant: Tenancy) -> None:
    waiting = approval_create(tenant)
    fields = {"approve": str(waiting.id), f"note-{waiting.id}": "x" * 501, "next": "/live"}
    answer = alice.post("/approvals/decide", fields)
    page = answer.content.decode()
    assert answer.status_code == 422
    assert "x" * 501 in page
    assert "Write at most 500 characters." in page
    assert f'aria-describedby="approval-{waiting.id.hex}-error"' in page
    in_place = alice.post("/approvals/decide", fields, headers={"X-Mirror-Part": "approvals"}).json()
    assert in_place["good"] is False
    assert "x" * 501 in in_place["html"]
    with tenant.context():
        assert Approval.objects.get().state == "waiting"


@pytest.mark.django_db
def test_in_place_it_is_told_what_became_of_it_and_what_still_waits(
    alice: Client, tenant: Tenancy, stranger: Tenancy
) -> None:
    waiting, other = approval_create(tenant), approval_create(tenant, tool="send_sms")
    approval_create(stranger, tool="strangers_tool")
    part = {"X-Mirror-Part": "approvals"}
    told = alice.post("/approvals/decide", {"approve": str(waiting.id)}, headers=part).json()
    assert (told["said"], told["good"]) == ("charge_card was approved.", True)
    assert "send_sms" in told["html"]
    assert "charge_card" not in told["html"]
    assert "strangers_tool" not in told["html"]
    again = alice.post("/approvals/decide", {"deny": str(waiting.id)}, headers=part).json()
    assert again["good"] is False
    assert "This tool call was approved by" in again["said"]
    assert f'id="approval-{other.id.hex}"' in again["html"]


# -- what became of them ----------------------------------------------------------------------------------------------

TOOL = re.compile(r'class="tool-name">(\w+)<')


@pytest.mark.django_db
def test_the_page_lists_what_became_of_them(alice: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    now = timezone.now()
    approval_create(tenant, tool="waiting_tool")
    approval_create(
        tenant,
        tool="approved_tool",
        state="approved",
        decided_by="alice@example.com",
        requested_at=now - timedelta(minutes=3),
        decided_at=now - timedelta(minutes=3) + timedelta(seconds=7),
        note="Confirmed <by> phone.",
    )
    # Its time is over, and the process that has the call has not said so.
    approval_create(tenant, tool="silent_tool", within=timedelta(seconds=-1), requested_at=now - timedelta(minutes=2))
    approval_create(tenant, tool="withdrawn_tool", state="cancelled", requested_at=now - timedelta(minutes=1))
    approval_create(stranger, tool="strangers_tool", state="denied")
    page = alice.get("/approvals").content.decode()
    listed = page[page.index("What became of others") :]
    assert TOOL.findall(listed) == ["withdrawn_tool", "silent_tool", "approved_tool"]
    assert "waiting_tool" in page
    assert "strangers_tool" not in page
    for words in ("Approved", "Withdrawn", "Nobody decided", "It did not run.", "after 7.0 s",
                  "Confirmed &lt;by&gt; phone."):  # fmt: skip
        assert words in listed
    assert TOOL.findall(_listed(alice, "?state=expired")) == ["silent_tool"]
    assert TOOL.findall(_listed(alice, "?state=approved")) == ["approved_tool"]
    assert "None ended like that" in _listed(alice, "?state=denied")
    assert "Choose one of the list." in alice.get("/approvals?state=waiting").content.decode()


def _listed(client: Client, query: str) -> str:
    page = client.get(f"/approvals{query}").content.decode()
    listed: str = page[page.index("</filter-form>") :]
    return listed


@pytest.mark.django_db
def test_the_page_comes_in_pages(alice: Client, tenant: Tenancy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webui.views.approvals.PAGE_ROWS", 2)
    now = timezone.now()
    for number in range(5):
        # Two of one moment: the id tells which comes first.
        asked = now - timedelta(minutes=number // 2)
        approval_create(tenant, tool=f"tool_{number}", state="denied", requested_at=asked)
    seen: list[str] = []
    url: str | None = "/approvals?state=denied"
    while url is not None:
        page = alice.get(url).content.decode()
        seen += re.findall(r"tool_\d", page)[::1]
        found = re.search(r'href="([^"]*cursor=[^"]*)" rel="next"', page)
        url = found.group(1).replace("&amp;", "&") if found else None
    assert sorted(set(seen)) == [f"tool_{number}" for number in range(5)]
    assert alice.get("/approvals?cursor=nonsense")["Location"] == "/approvals"
