"""Approvals between a call and a person: PostgreSQL decides who was first, Valkey says that it is time to look."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from asgiref.sync import sync_to_async

from mirror_saas.ids import uuid7
from supervision.models import Approval
from supervision.services.approvals import ApprovalDecided, ApprovalExpired, approval_decide
from supervision.services.erasure import call_erase
from supervision.stream.approvals import APPROVAL, ApprovalCall, PostgresApprovals, Standing, Waiting
from supervision.stream.database import DatabaseSilent, TenantDatabase
from supervision.stream.mailbox import Mailbox, call_tell
from tenants.context import tenant_context
from tests.factories import Tenancy, approval_create, call_create, tenancy_create
from tests.stream.node import connect
from tests.support.servers import DatabaseUrls


@pytest.fixture
def alice(transactional_db: None) -> Tenancy:
    return tenancy_create(owner="alice")


@pytest.fixture
def store(database_urls: DatabaseUrls) -> PostgresApprovals:
    return PostgresApprovals(TenantDatabase(connect(database_urls.app)))


def waiting(**fields: Any) -> Waiting:
    made = {
        "decision_id": uuid7(),
        "ref": "c1",
        "tool": "charge_card",
        "args": {"amount": 99},
        "irreversible": True,
        "on_silence": "deny",
        "within_s": 60.0,
    }
    return Waiting(**{**made, **fields})


def call_of(tenancy: Tenancy) -> ApprovalCall:
    return ApprovalCall(tenancy.id, uuid7(), tenancy.agent.id)


async def decide(tenancy: Tenancy, decision_id: UUID, *, approve: bool, note: str = "") -> Approval:
    def run() -> Approval:
        with tenant_context(tenancy.id):
            return approval_decide(decision_id=decision_id, approve=approve, note=note)

    return await sync_to_async(run)()


async def test_a_person_and_a_call_agree_on_who_was_first(alice: Tenancy, store: PostgresApprovals) -> None:
    call, asked = call_of(alice), waiting()
    await store.ask(call, asked)
    assert await store.look(call, asked.decision_id) == Standing("waiting")
    await decide(alice, asked.decision_id, approve=False, note="No.")
    standing = await store.close(call, asked.decision_id, was="waiting", state="expired")
    assert (standing.state, standing.note) == ("denied", "No.")

    late = waiting()
    await store.ask(call, late)
    assert (await store.close(call, late.decision_id, was="waiting", state="expired")).state == "expired"
    with pytest.raises(ApprovalDecided):
        await decide(alice, late.decision_id, approve=True)

    over = waiting(within_s=0.0)
    await store.ask(call, over)
    with pytest.raises(ApprovalExpired):
        await decide(alice, over.decision_id, approve=True)

    def row() -> Approval:
        with tenant_context(alice.id):
            return Approval.objects.get(id=asked.decision_id)

    made = await sync_to_async(row)()
    assert (made.call_id, made.agent_id) == (call.call_id, call.agent_id)
    assert (made.tool, made.args) == ("charge_card", {"amount": 99})
    assert made.expires_at - made.requested_at == timedelta(seconds=60)


async def test_a_stranger_sees_and_closes_nothing(alice: Tenancy, store: PostgresApprovals) -> None:
    charlie = await sync_to_async(tenancy_create)(owner="charlie")
    call, asked = call_of(alice), waiting()
    await store.ask(call, asked)
    stranger = ApprovalCall(charlie.id, call.call_id, charlie.agent.id)
    assert (await store.look(stranger, asked.decision_id)).state == "cancelled"
    await store.close(stranger, asked.decision_id, was="waiting", state="expired")
    assert (await store.look(call, asked.decision_id)).state == "waiting"
    with pytest.raises(DatabaseSilent):
        # The agent is another tenant's.
        await store.ask(ApprovalCall(alice.id, uuid7(), charlie.agent.id), waiting())


async def test_without_a_database_nobody_can_be_asked() -> None:
    nowhere = PostgresApprovals(TenantDatabase(connect("postgresql://mirror_app@127.0.0.1:1/mirror")))
    with pytest.raises(DatabaseSilent):
        await nowhere.ask(ApprovalCall(uuid7(), uuid7(), uuid7()), waiting())


async def test_a_call_is_told_within_a_second(redis_url: str) -> None:
    tenant_id, call_id, decision_id = uuid7(), uuid7(), uuid7()
    told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    ready = asyncio.Event()

    async def deliver(message: dict[str, Any]) -> dict[str, Any]:
        if APPROVAL in message:
            told.put_nowait(message)
        else:
            ready.set()
        return {"taken": True}

    def tell(**message: Any) -> None:
        call_tell(redis_url, tenant_id=tenant_id, call_id=call_id, message=message)

    mailbox = Mailbox(redis_url)
    mailbox.open(tenant_id, call_id, deliver)
    try:
        async with asyncio.timeout(30):
            while not ready.is_set():  # until it is subscribed
                await sync_to_async(tell)(hello=True)
                await asyncio.sleep(0.02)
            began = asyncio.get_running_loop().time()
            await sync_to_async(tell)(approval=str(decision_id))
            assert await told.get() == {APPROVAL: str(decision_id)}
            assert asyncio.get_running_loop().time() - began < 1.0
    finally:
        await mailbox.aclose()
    # Nobody there, or no Valkey: the call looks by itself.
    await sync_to_async(tell)(approval=str(decision_id))
    call_tell(None, tenant_id=tenant_id, call_id=call_id, message={})


@pytest.mark.django_db
def test_an_erased_call_takes_its_approvals_along(tenant: Tenancy, stranger: Tenancy) -> None:
    call = call_create(tenant)
    approval_create(tenant, call_id=call.id)
    kept, theirs = approval_create(tenant), approval_create(stranger, call_id=call.id)
    with tenant.context():
        call_erase(call_id=call.id)
        assert [row.id for row in Approval.objects.all()] == [kept.id]
    with stranger.context():
        assert [row.id for row in Approval.objects.all()] == [theirs.id]
