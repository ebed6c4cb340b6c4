"""What a tenant's record takes is counted as it is written, and a tenant whose storage is used up stores no words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from asgiref.sync import sync_to_async
from django.core.management import call_command
from django.test import Client

from supervision.models import Call
from supervision.recorder.events import EventData, RecordEvent, TurnReported
from supervision.recorder.recorder import Recorder
from supervision.recorder.store import connect, store_events
from supervision.services.storage import calls_storage_bytes, storage_measure, storage_release
from supervision.stream.directory import StreamDirectory
from tenants.limits import MIB
from tenants.limits_refused import REFUSALS
from tenants.models import TenantLimits
from tenants.selectors.limits import storage_bytes_get
from tenants.services.limits import as_owner, storage_use_set, tenant_limits_update
from tests.e2e.agents import AgentCall
from tests.factories import Tenancy
from tests.recorder.calls import call_log, everything, row, whole_call
from tests.recorder.conftest import Tenants
from tests.stream.world import BAD, World, say_turn
from tests.support.servers import DatabaseUrls
from tests.support.virtual_time import virtual_time
from webui.presenters.calls import banners_of

PATIENCE_S = 15

SAID = ("Can I have my money back?", "Yes, I have refunded it.", "Yes, I", "refunded it.", "You were stopped.")


def stored_bytes(tenancy: Tenancy) -> int:
    with tenancy.context():
        return storage_bytes_get()


def measured(tenancy: Tenancy) -> int:
    with tenancy.context():
        return storage_measure()


def events_of(tenancy: Tenancy) -> list[RecordEvent]:
    made: list[RecordEvent] = []
    log = call_log(made.append, tenancy)
    for data in whole_call(tenancy):
        log.add(data)
    return made


async def test_what_is_stored_is_counted_once(tenants: Tenants) -> None:
    strangers = await sync_to_async(stored_bytes)(tenants.charlie)
    events = events_of(tenants.alice)
    connection = await connect(tenants.app_url)
    try:
        assert await store_events(connection, tenants.alice.id, events[:10]) == 10
        first = await sync_to_async(stored_bytes)(tenants.alice)
        assert first > sum(len(json.dumps(event.data)) for event in events[:10])
        assert await store_events(connection, tenants.alice.id, events[:10]) == 0
        assert await sync_to_async(stored_bytes)(tenants.alice) == first
        # The part of a batch that was stored before counts no more.
        assert await store_events(connection, tenants.alice.id, events) == len(events) - 10
    finally:
        await connection.close()
    whole = await sync_to_async(stored_bytes)(tenants.alice)
    assert await sync_to_async(measured)(tenants.alice) == pytest.approx(whole, rel=0.1)
    assert await sync_to_async(stored_bytes)(tenants.charlie) == strangers


async def test_a_batch_that_fails_counts_nothing(tenants: Tenants) -> None:
    events = events_of(tenants.alice)
    connection = await connect(tenants.app_url)
    try:
        with pytest.raises(Exception, match="unknown kind"):
            await store_events(
                connection, tenants.alice.id, [*events, replace(events[-1], id=events[0].call_id, kind="x")]
            )
    finally:
        await connection.close()
    assert await sync_to_async(stored_bytes)(tenants.alice) == 0


async def test_two_processes_count_into_the_same_row(tenants: Tenants) -> None:
    connections = [await connect(tenants.app_url) for _ in range(2)]
    try:
        calls = [events_of(tenants.alice) for _ in range(6)]
        await asyncio.gather(*(_store_each(connections[n], tenants.alice.id, calls[n::2]) for n in range(2)))
    finally:
        for connection in connections:
            await connection.close()
    counted = await sync_to_async(stored_bytes)(tenants.alice)
    assert counted == pytest.approx(await sync_to_async(measured)(tenants.alice), rel=0.1)


async def _store_each(connection: Any, tenant_id: UUID, calls: list[list[RecordEvent]]) -> None:
    for events in calls:
        await store_events(connection, tenant_id, events)


async def test_without_what_was_said_the_rest_of_a_call_is_there(
    tenants: Tenants, make_recorder: Callable[..., Recorder], tmp_path: Path
) -> None:
    recorder = make_recorder()
    log = call_log(recorder.record, tenants.alice)
    log._without_said = True
    for data in whole_call(tenants.alice):
        log.add(data)
    await recorder.drained(PATIENCE_S)
    rows = everything(tenants.app_url, tenants.alice)
    written = json.dumps(
        {table: found for table, found in rows.items() if table not in ("supervision_policyversion",)}, default=str
    )
    for text in SAID:
        assert f'"{text}"' not in written
    url = tenants.app_url
    verdict = row(url, tenants.alice, "supervision_verdict")
    assert (verdict["state"], verdict["score"], verdict["reason"]) == ("judged", 0.93, 'The agent says "refunded".')
    assert row(url, tenants.alice, "supervision_tooldecision")["args"] == {"amount": 5}
    intervention = row(url, tenants.alice, "supervision_intervention")
    assert intervention["correction_text"] == "I cannot confirm that. May I connect you?"
    turn = row(url, tenants.alice, "supervision_turn")
    assert (turn["ref"], turn["text"], turn["customer_text"], turn["tool_calls"]) == ("t1", "", "", [])
    assert (turn["heard_ms"], turn["heard_text"]) == (800, "")
    assert tenants.stranger_is_untouched()


def test_only_kinds_that_have_words_lose_them() -> None:
    from supervision.recorder.events import KINDS

    assert {kind for kind, made in KINDS.items() if made.SAID} == {
        "transcript.noted",
        "turn.reported",
        "turn.completed",
        "turn.heard",
        "note.sent",
    }
    assert EventData.SAID == {}
    assert set(TurnReported.SAID) == {"customer_text", "text", "tool_calls"}


async def test_a_journal_of_before_there_was_a_limit_is_stored(tenants: Tenants) -> None:
    [first, *_] = events_of(tenants.alice)
    older = replace(first, data={name: value for name, value in first.data.items() if name != "storage_limit"})
    connection = await connect(tenants.app_url)
    try:
        assert await store_events(connection, tenants.alice.id, [older]) == 1
    finally:
        await connection.close()
    assert row(tenants.app_url, tenants.alice, "supervision_call")["storage_limit"] is False


def limit_storage(tenancy: Tenancy, mib: int | None) -> None:
    with as_owner(), tenancy.context():
        tenant_limits_update(changed={"storage_mib": mib, "calls": 7, "judge_calls": TenantLimits.UNLIMITED})


def use_storage(tenancy: Tenancy, used: int) -> None:
    with tenancy.context():
        storage_use_set(storage_bytes=used)


async def test_a_call_knows_at_its_start_whether_storage_is_used_up(
    tenants: Tenants, database_urls: DatabaseUrls
) -> None:
    alice, charlie = tenants.alice, tenants.charlie
    await sync_to_async(limit_storage)(alice, 1)
    await sync_to_async(use_storage)(charlie, 10 * MIB)
    directory = StreamDirectory(database_urls.app)
    try:
        for used, full in ((MIB - 1, False), (MIB, True), (2 * MIB, True)):
            await sync_to_async(use_storage)(alice, used)
            binding = await directory.lookup(alice.slug, alice.stream_key)
            assert binding is not None
            assert binding.storage_full is full
            assert (binding.limits.calls, binding.limits.judge_calls, binding.limits.storage_mib) == (7, None, 1)
        await sync_to_async(limit_storage)(alice, TenantLimits.UNLIMITED)
        binding = await directory.lookup(alice.slug, alice.stream_key)
        assert binding is not None
        assert not binding.storage_full
        strangers = await directory.lookup(charlie.slug, charlie.stream_key)
        assert strangers is not None
        assert strangers.limits.calls != 7
    finally:
        await directory.aclose()


@virtual_time
async def test_a_call_beyond_the_limit_is_supervised_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(monkeypatch)
    world.runtime.binding = world.binding = replace(world.binding, storage_full=True)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 2.0, customer_text="Can I have my money back?")
        await asyncio.sleep(10)

    async def during(call: Any) -> None:
        await asyncio.sleep(12)

    await world.call(script, during)
    assert world.record.one("call.started")["storage_limit"] is True
    assert world.record.one("turn.judged")["intervene"] is True
    assert world.record.one("intervention.ended")["outcome"] == "completed"
    turn = world.record.one("turn.reported")
    assert (turn["text"], turn["customer_text"]) == ("", "")
    assert BAD not in str([event.data for event in world.record.events if event.kind != "turn.judged"])
    assert REFUSALS.pending(world.binding.tenant_id) == {"storage": 1}
    assert "what is said in call" in caplog.text
    # The judge and the corrections had every word.
    assert any(asked.user.get("agent_text") == BAD for asked in world.llm.asked)


def test_a_call_shows_it_in_the_api_and_in_the_console(tenants: Tenants) -> None:
    from tests.factories import call_create

    marked, plain = call_create(tenants.alice), call_create(tenants.alice)
    with tenants.alice.context():
        Call.objects.filter(id=marked.id).update(storage_limit=True)
    for call, told in ((marked, True), (plain, False)):
        answer = Client().get(f"/api/v1/calls/{call.id}", headers={"Authorization": f"Bearer {tenants.alice.api_key}"})
        assert answer.json()["storage_limit"] is told
        call.storage_limit = told
        titles = [banner.title for banner in banners_of(call, "")]
        assert ("What was said is not stored." in titles) is told


def test_erasing_gives_storage_back(tenants: Tenants) -> None:
    from supervision.models import CallEvent
    from tests.factories import call_create

    kept, erased = call_create(tenants.alice), call_create(tenants.alice)
    call_command("measure_storage", "--tenant", tenants.alice.slug, stdout=(out := StringIO()))
    assert out.getvalue() == f"{tenants.alice.slug}: {stored_bytes(tenants.alice) / MIB:.3f} MiB\n"
    with tenants.alice.context():
        whole = storage_bytes_get()
        gone = calls_storage_bytes(call_ids=[erased.id])
        assert 0 < gone < whole
        CallEvent.objects.filter(call=erased).delete()
        storage_release(storage_bytes=gone)
        assert storage_bytes_get() == whole - gone == calls_storage_bytes(call_ids=[kept.id])
        assert storage_measure() == whole - gone
    with tenants.charlie.context():
        assert calls_storage_bytes(call_ids=[kept.id]) == 0
