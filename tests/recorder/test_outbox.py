"""What webhooks are told is what the record says: through journals, kills, and endpoints that go away."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from asgiref.sync import sync_to_async

from supervision.models import WebhookEndpoint
from supervision.recorder.outbox import outbox_write
from supervision.recorder.recorder import Recorder
from supervision.recorder.store import connect
from supervision.services.webhooks import webhook_create, webhook_delete
from supervision.webhooks import EVENT_TYPES
from tests.factories import Tenancy
from tests.recorder.calls import event, rows, started
from tests.recorder.conftest import Tenants
from tests.recorder.test_processes import PATIENCE_S, acknowledged, child, kill


@sync_to_async
def endpoint_create(tenancy: Tenancy) -> WebhookEndpoint:
    with tenancy.context():
        return webhook_create(url="http://127.0.0.1:1/x", event_types=list(EVENT_TYPES)).endpoint


@sync_to_async
def endpoint_delete(tenancy: Tenancy, endpoint: WebhookEndpoint) -> None:
    with tenancy.context():
        webhook_delete(webhook_id=endpoint.id)


async def test_what_a_killed_process_recorded_is_told_once(
    tenants: Tenants, make_recorder: Callable[..., Recorder], tmp_path: Path
) -> None:
    await endpoint_create(tenants.alice)
    await endpoint_create(tenants.charlie)
    async with child(tmp_path / "journal", tenants.app_url, tenants.alice) as process:
        await acknowledged(process, 100)
        await kill(process)
    await make_recorder().drained(PATIENCE_S)
    calls = rows(tenants.app_url, tenants.alice, "supervision_call")
    told = rows(tenants.app_url, tenants.alice, "supervision_webhookdelivery")
    # Its calls end, the last one for the death of its process; those that were not covered raise the alarm.
    uncovered = [call for call in calls if call["coverage_state"] != "full"]
    assert Counter(row["type"] for row in told) == {
        "call.started": len(calls),
        "call.ended": len(calls),
        "coverage.alarm": len(uncovered),
    }
    for kind in ("call.started", "call.ended"):
        assert {row["data"]["call_id"] for row in told if row["type"] == kind} == {str(call["id"]) for call in calls}
    ends = {row["data"]["call_id"]: row["data"] for row in told if row["type"] == "call.ended"}
    for call in calls:
        assert ends[str(call["id"])]["turn_count"] == call["turn_count"]
        assert ends[str(call["id"])]["coverage_state"] == call["coverage_state"]
    assert rows(tenants.app_url, tenants.charlie, "supervision_webhookdelivery") == []
    assert tenants.stranger_is_untouched()


async def test_an_endpoint_that_is_deleted_meanwhile_waits_for_the_record(tenants: Tenants) -> None:
    endpoint, kept = await endpoint_create(tenants.alice), await endpoint_create(tenants.charlie)
    [call] = tenants.charlies["supervision_call"]
    connection = await connect(tenants.app_url)
    try:
        async with connection.transaction(), connection.cursor() as cursor:
            await cursor.execute("SELECT set_config('app.tenant_id', %s, true)", (str(tenants.charlie.id),))
            told = event(started(tenants.charlie), tenants.charlie, call["id"], 99)
            await outbox_write(cursor, tenants.charlie.id, [told], lambda: told.id)
            deleting = asyncio.create_task(endpoint_delete(tenants.charlie, kept))
            other = await connect(tenants.app_url)
            try:
                # Until PostgreSQL says that somebody waits for this transaction.
                async with asyncio.timeout(20):
                    waiting = b"SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
                    while (await (await other.execute(waiting)).fetchone()) == (0,):
                        pass
            finally:
                await other.close()
            assert not deleting.done()
        await deleting
    finally:
        await connection.close()
    assert rows(tenants.app_url, tenants.charlie, "supervision_webhookdelivery") == []
    assert [row["id"] for row in rows(tenants.app_url, tenants.alice, "supervision_webhookendpoint")] == [endpoint.id]
