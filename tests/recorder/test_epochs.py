"""Calls that go on after they lost a socket: what older owners recorded, and what of it still counts."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mirror_saas.ids import uuid7
from supervision.recorder.events import (
    CallMoved,
    CallResumed,
    CallStarted,
    EventData,
    InterventionStarted,
    RecordEvent,
    epoch_of,
    first_seq,
    make_event,
)
from supervision.recorder.fencing import CLOCKS_WITHIN, Epoch, fenced
from supervision.recorder.journal import Journal, row_of
from tests.factories import Tenancy
from tests.recorder.calls import START, ended, judged, reported, row, rows, started

PATIENCE_S = 15


def told(data: EventData, tenancy: Tenancy, call_id: Any, epoch: int, number: int, *, at_s: float) -> RecordEvent:
    """Event `number` of an epoch, so many seconds after the call began."""
    return make_event(
        data,
        tenant_id=tenancy.id,
        call_id=call_id,
        seq=first_seq(epoch) + number - 1,
        at=START + timedelta(seconds=at_s),
    )


def resumed(tenancy: Tenancy, epoch: int, *, after_seq: int | None) -> CallResumed:
    first: CallStarted = started(tenancy)
    fields = {name: getattr(first, name) for name in CallStarted.__slots__}
    fields |= {"node": f"node-{epoch}", "stream_id": f"stream-{epoch}"}
    return CallResumed(**fields, epoch=epoch, after_seq=after_seq, started_at=START.isoformat(), at_ms=10_000)


def without_counts() -> EventData:
    names = ("turns", "judged", "skipped", "timed_out", "failed", "shed", "interventions", "tools_blocked")
    return ended(**dict.fromkeys((*names, "coverage_state", "coverage")))


@pytest.mark.parametrize(("epoch", "number"), [(1, 1), (1, 1 << 31), (2, 1), (3, 7), (200, 9)])
def test_a_number_says_its_epoch(epoch: int, number: int) -> None:
    assert epoch_of(first_seq(epoch) + number - 1) == epoch


def test_numbers_of_an_epoch_begin_above_all_of_the_one_before() -> None:
    assert first_seq(1) == 1
    assert epoch_of(first_seq(2) - 1) == 1


@pytest.mark.parametrize(
    ("number", "at_s", "after_seq", "refused"),
    [
        (5, 60.0, 5, False),  # the old owner said that this was its last, so its clock does not matter
        (6, 1.0, 5, True),
        (6, 10.0, None, False),
        (6, 10.0 + CLOCKS_WITHIN.total_seconds(), None, False),
        (6, 10.1 + CLOCKS_WITHIN.total_seconds(), None, True),
    ],
)
def test_what_an_owner_recorded_after_it_lost_the_call_is_refused(
    number: int, at_s: float, after_seq: int | None, refused: bool
) -> None:
    tenancy = Stranger()
    late = told(reported(uuid7()), tenancy, call_id := uuid7(), 1, number, at_s=at_s)  # type: ignore[arg-type]
    newest = {call_id: Epoch(2, START + timedelta(seconds=10), after_seq)}
    assert (late in fenced([late], newest).refused) is refused


class Stranger:
    id = uuid7()


def test_nothing_old_says_how_the_call_stands() -> None:
    tenancy, call_id = Stranger(), uuid7()
    newest = {call_id: Epoch(2, START + timedelta(seconds=10), None)}
    end = told(ended(), tenancy, call_id, 1, 3, at_s=2)  # type: ignore[arg-type]
    turn = told(reported(uuid7()), tenancy, call_id, 1, 2, at_s=2)  # type: ignore[arg-type]
    result = fenced([turn, end], newest)
    assert (result.kept, result.refused, result.left) == ([turn], [end], [call_id])
    # The newest epoch's own are taken as they come, and a stranger's call of the same time is nobody's business.
    own = told(ended(), tenancy, call_id, 2, 3, at_s=20)  # type: ignore[arg-type]
    other = told(ended(), tenancy, uuid7(), 1, 3, at_s=20)  # type: ignore[arg-type]
    assert fenced([own, other], newest).projected == [own, other]


async def test_a_call_that_is_handed_over_goes_on_as_one(tenants: Any, recorder: Any) -> None:
    alice, charlie, call_id, theirs = tenants.alice, tenants.charlie, uuid7(), uuid7()
    first, second, zombie = uuid7(), uuid7(), uuid7()
    await step(
        recorder,
        told(started(alice), alice, call_id, 1, 1, at_s=0),
        told(started(charlie), charlie, theirs, 1, 1, at_s=0),
        told(reported(first), alice, call_id, 1, 2, at_s=1),
        told(CallMoved(at_ms=9000), alice, call_id, 1, 3, at_s=9),
        told(resumed(alice, 2, after_seq=3), alice, call_id, 2, 1, at_s=10),
        told(reported(second, index=2), alice, call_id, 2, 2, at_s=11),
        told(judged(second, uuid7()), alice, call_id, 2, 3, at_s=12),
    )
    call = row(tenants.app_url, alice, "supervision_call")
    assert (call["state"], call["epoch"], call["node"], call["stream_id"]) == ("live", 2, "node-2", "stream-2")
    assert call["started_at"] == START
    # The old owner has not noticed, and goes on recording; then it ends "the call".
    await step(
        recorder,
        told(reported(zombie, index=3), alice, call_id, 1, 4, at_s=12),
        told(ended(reason="the old owner's"), alice, call_id, 1, 5, at_s=13),
    )
    assert row(tenants.app_url, alice, "supervision_call")["state"] == "live"
    assert {turn["id"] for turn in rows(tenants.app_url, alice, "supervision_turn")} == {first, second}
    await step(recorder, told(without_counts(), alice, call_id, 2, 4, at_s=20))
    call = row(tenants.app_url, alice, "supervision_call")
    # The turn that nobody was left to judge is not left open.
    assert (call["state"], call["turn_count"], call["judged_count"], call["failed_count"]) == ("ended", 2, 1, 1)
    assert (call["coverage"], call["coverage_state"]) == (0.5, "partial")
    [his] = [call for call in rows(tenants.app_url, charlie, "supervision_call") if call["id"] == theirs]
    assert (his["state"], his["epoch"]) == ("live", 1)


async def test_the_journal_of_a_node_that_died_is_brought_in_after_the_call_went_on_elsewhere(
    tenants: Any, make_recorder: Any, tmp_path: Path
) -> None:
    alice, call_id, early, late = tenants.alice, uuid7(), uuid7(), uuid7()
    begun = InterventionStarted(
        intervention_id=uuid7(), turn_id=early, verdict_id=None, rule=None, plan="cut_now", at_ms=1
    )
    events = [
        told(started(alice), alice, call_id, 1, 1, at_s=0),
        told(reported(early), alice, call_id, 1, 2, at_s=1),
        told(begun, alice, call_id, 1, 3, at_s=2),
    ]
    journal = Journal.create(tmp_path / "dead", max_bytes=4 << 20)
    journal.append([row_of(event) for event in events])
    journal.close()
    # The other node knew nothing of the call but what Plivo told it.
    other = make_recorder(journal_dir=tmp_path / "other")
    await step(
        other,
        told(resumed(alice, 2, after_seq=None), alice, call_id, 2, 1, at_s=5),
        told(reported(late, index=2), alice, call_id, 2, 2, at_s=6),
        told(judged(late, uuid7()), alice, call_id, 2, 3, at_s=7),
    )
    adopter = make_recorder(journal_dir=tmp_path / "dead")
    await adopter.drained(PATIENCE_S)
    call = row(tenants.app_url, alice, "supervision_call")
    assert (call["state"], call["node"], call["turn_count"]) == ("live", "node-2", 2)
    assert row(tenants.app_url, alice, "supervision_intervention")["outcome"] == ""
    await step(other, told(without_counts(), alice, call_id, 2, 4, at_s=9))
    call = row(tenants.app_url, alice, "supervision_call")
    assert (call["state"], call["judged_count"], call["failed_count"]) == ("ended", 1, 1)
    assert row(tenants.app_url, alice, "supervision_intervention")["outcome"] == "failed"


async def test_what_a_dead_node_recorded_comes_after_the_call_has_ended(
    tenants: Any, make_recorder: Any, tmp_path: Path
) -> None:
    alice, call_id, early = tenants.alice, uuid7(), uuid7()
    journal = Journal.create(tmp_path / "dead", max_bytes=4 << 20)
    journal.append(
        [
            row_of(told(started(alice), alice, call_id, 1, 1, at_s=0)),
            row_of(told(reported(early), alice, call_id, 1, 2, at_s=1)),
        ]
    )
    journal.close()
    other = make_recorder(journal_dir=tmp_path / "other")
    await step(
        other,
        told(resumed(alice, 2, after_seq=None), alice, call_id, 2, 1, at_s=5),
        told(without_counts(), alice, call_id, 2, 2, at_s=9),
    )
    assert row(tenants.app_url, alice, "supervision_call")["coverage_state"] == "none"
    adopter = make_recorder(journal_dir=tmp_path / "dead")
    await adopter.drained(PATIENCE_S)
    call = row(tenants.app_url, alice, "supervision_call")
    assert (call["state"], call["turn_count"], call["failed_count"]) == ("ended", 1, 1)
    assert (call["coverage"], call["coverage_state"]) == (0.0, "partial")


async def step(recorder: Any, *events: RecordEvent) -> None:
    for made in events:
        recorder.record(made)
    await recorder.drained(PATIENCE_S)
