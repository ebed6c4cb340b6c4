"""Waiting approvals on the calls page: who sees them, who may decide, and that they come and go by themselves."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.test import Client

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
        await announce_to_channel_layer(tenant.id, waiting.call_id, 1)
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
        await announce_to_channel_layer(tenant.id, waiting.call_id, 2)
        assert "charge_card" not in html(await alice.hear("update"), "approvals")
        await announce_to_channel_layer(tenant.id, waiting.call_id, 3)
        assert await alice.hears_nothing()
        assert await charlie.hears_nothing(0.1)
