"""A call as the record knows it, for the node that takes it over from a silent one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row

from mirror_saas.ids import uuid7
from supervision.engine.context import HistoryEntry
from supervision.recorder.events import (
    CallLog,
    InterventionEnded,
    InterventionStarted,
    NoteSent,
    ToolDecided,
    ToolDone,
)
from supervision.stream.directory import StreamDirectory
from supervision.stream.from_record import Connection, call_from_record, call_is_recorded
from supervision.stream.owners import CallKey
from tests.factories import Tenancy
from tests.recorder.calls import ended, judged, reported, row, started

PATIENCE_S = 15
PLIVO_ID = "11111111-2222-4333-8444-555566667777"


@pytest.fixture
async def connection(tenants: Any) -> AsyncIterator[Connection]:
    made = await psycopg.AsyncConnection.connect(tenants.app_url, autocommit=True, row_factory=dict_row)
    yield made
    await made.close()


def key_of(tenancy: Tenancy) -> CallKey:
    return CallKey(tenancy.id, tenancy.agent.id, PLIVO_ID)


def begun(recorder: Any, tenancy: Tenancy) -> CallLog:
    """A call that began just now."""
    log = CallLog(record=recorder.record, tenant_id=tenancy.id, call_id=uuid7())
    log.add(started(tenancy, plivo_call_id=PLIVO_ID))
    return log


def decided(decision_id: UUID, ref: str, turn_id: UUID) -> ToolDecided:
    return ToolDecided(
        decision_id=decision_id,
        turn_id=turn_id,
        ref=ref,
        name="charge_card",
        args={"amount": 9},
        irreversible=True,
        allow=True,
        code="ok",
        state="judged",
        score=0.1,
        reason="",
        instruction="",
        latency_ms=20,
        at_ms=2300,
    )


async def test_a_call_is_taken_over_with_what_was_said_and_done(
    tenants: Any, recorder: Any, connection: Connection
) -> None:
    alice = tenants.alice
    log = begun(recorder, alice)
    first, second, verdict, acted, running, tool = (uuid7() for _ in range(6))
    note = uuid7()
    log.add(reported(first))
    log.add(judged(first, verdict))
    log.add(decided(tool, "tool-1", first))
    log.add(ToolDone(decision_id=tool, ref="tool-1", ok=True, result={"receipt": 7}, cancelled=False, at_ms=2400))
    log.add(
        InterventionStarted(
            intervention_id=acted, turn_id=first, verdict_id=verdict, rule="R1", plan="cut_now", at_ms=2500
        )
    )
    log.add(InterventionEnded(intervention_id=acted, outcome="completed", correction_text="I cannot.", at_ms=4000))
    log.add(reported(second, index=2, text="All done.", at_ms=5000))
    log.add(
        NoteSent(
            note_id=note,
            rev=1,
            intervention_id=acted,
            turn_id=first,
            text="Take it back.",
            said="I cannot.",
            heard_text="Yes,",
            heard_ms=300,
            at_ms=5100,
        )
    )
    log.add(
        InterventionStarted(
            intervention_id=running, turn_id=second, verdict_id=verdict, rule="R1", plan="cut_now", at_ms=5200
        )
    )
    await recorder.drained(PATIENCE_S)

    found = await call_from_record(connection, key_of(alice), call_id=None, least_epoch=2)
    assert found is not None
    assert (found.call_id, found.epoch, found.last_seq) == (log.call_id, 2, None)
    assert (found.policy_version_id, found.mode, found.turn_count) == (alice.version.id, "live", 2)
    assert (found.from_number, found.to_number) == ("+15550100", "+15550199")
    assert 0 <= found.age_ms < 60_000
    assert [(turn.ref, turn.turn_id, turn.text) for turn in found.turns] == [("t1", first, None), ("t2", second, None)]
    (kept,) = found.tools
    assert (kept.intent.id, kept.decision_id, kept.verdict.allow, kept.finished) == ("tool-1", tool, True, True)
    # What the agent was told last, and what it could not be told any more.
    assert [(n["turn_id"], n["id"]) for n in found.notes] == [("t1", str(note)), ("t2", str(running))]
    assert "against this rule: R1" in found.notes[1]["text"]
    assert found.memory.interventions == 2
    assert [rule for rule, _ in found.memory.acted] == ["R1"]
    history = [entry for _, entry in found.memory.notes]
    assert history[:4] == [
        HistoryEntry("customer", "Can I have my money back?"),
        HistoryEntry("agent", "[cut off before it was heard]"),
        HistoryEntry("tool", 'charge_card {"amount": 9} ran: {"receipt": 7}'),
        HistoryEntry("mirror", "I cannot."),
    ]
    call = row(tenants.app_url, alice, "supervision_call")
    assert (call["epoch"], call["epoch_after_seq"], call["state"]) == (2, None, "live")
    # From here on its older owner is fenced off.
    log.add(reported(uuid7(), index=3))
    await recorder.drained(PATIENCE_S)
    again = await call_from_record(connection, key_of(alice), call_id=log.call_id, least_epoch=2)
    assert again is not None
    assert again.epoch == 3


async def test_a_stranger_and_another_agent_take_nothing_over(
    tenants: Any, recorder: Any, connection: Connection
) -> None:
    alice, charlie = tenants.alice, tenants.charlie
    log = begun(recorder, alice)
    await recorder.drained(PATIENCE_S)
    other_agent = CallKey(alice.id, uuid7(), PLIVO_ID)
    for key in (key_of(charlie), other_agent, CallKey(charlie.id, alice.agent.id, PLIVO_ID)):
        for call_id in (None, log.call_id):
            assert await call_from_record(connection, key, call_id=call_id, least_epoch=2) is None
        assert not await call_is_recorded(connection, key)
    assert await call_is_recorded(connection, key_of(alice))
    assert row(tenants.app_url, alice, "supervision_call")["epoch"] == 1
    assert tenants.stranger_is_untouched()


@pytest.mark.parametrize(
    ("changes", "goes_on"),
    [
        ({}, False),
        ({"close_code": 1006, "reason": "Plivo's connection ended with code 1006"}, True),
        ({"close_code": 1012, "ended_by": "mirror", "outcome": "failed"}, True),
        ({"close_code": None, "ended_by": "mirror", "reason": "process_died"}, True),
        ({"close_code": None, "reason": ""}, False),
    ],
)
async def test_a_call_that_ended_goes_on_only_if_its_stream_was_lost(
    tenants: Any, recorder: Any, connection: Connection, changes: dict[str, Any], goes_on: bool
) -> None:
    log = begun(recorder, tenants.alice)
    log.add(ended(**changes))
    await recorder.drained(PATIENCE_S)
    assert await call_is_recorded(connection, key_of(tenants.alice))
    found = await call_from_record(connection, key_of(tenants.alice), call_id=None, least_epoch=2)
    assert (found is not None) is goes_on


async def test_a_call_of_an_hour_ago_does_not_come_back(tenants: Any, recorder: Any, connection: Connection) -> None:
    from tests.recorder.calls import call_log

    log = call_log(recorder.record, tenants.alice)  # on a clock of months ago
    log.add(started(tenants.alice, plivo_call_id=PLIVO_ID))
    log.add(ended(close_code=1006))
    await recorder.drained(PATIENCE_S)
    assert await call_from_record(connection, key_of(tenants.alice), call_id=None, least_epoch=2) is None
    assert not await call_is_recorded(connection, key_of(tenants.alice))


async def test_a_pinned_version_is_read_whatever_is_live(tenants: Any) -> None:
    from asgiref.sync import sync_to_async

    from supervision.services.policies import policy_version_create, policy_version_publish

    alice = tenants.alice

    def publish() -> Any:
        with alice.context():
            made = policy_version_create(
                policy_id=alice.policy.id, rules=["Never promise anything."], llm_credential=alice.credential
            )
            return policy_version_publish(policy_id=alice.policy.id, number=made.number)

    newer = await sync_to_async(publish, thread_sensitive=True)()
    directory = StreamDirectory(tenants.app_url)
    try:
        live = await directory.lookup(alice.slug, alice.stream_key)
        pinned = await directory.lookup(alice.slug, alice.stream_key, pinned_version=alice.version.id)
        assert live is not None
        assert pinned is not None
        assert (live.policy_version_id, pinned.policy_version_id) == (newer.id, alice.version.id)
        # Of another tenant's version nothing is read.
        strangers = await directory.lookup(alice.slug, alice.stream_key, pinned_version=tenants.charlie.version.id)
        assert strangers is not None
        assert strangers.policy_version_id is None
        assert (await directory.lookup(alice.slug, alice.stream_key)) == live
    finally:
        await directory.aclose()
