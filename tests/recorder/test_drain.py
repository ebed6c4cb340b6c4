from __future__ import annotations

import asyncio
import dataclasses
import logging
import sqlite3
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from mirror_saas.ids import uuid7
from supervision.recorder import drain, store
from supervision.recorder.events import (
    AgentFailed,
    FrameRejected,
    InterventionEnded,
    InterventionStarted,
    InterventionStep,
    MediaDropped,
    NoteSent,
    RecordEvent,
    ToolDone,
    TurnHeard,
)
from supervision.recorder.journal import Journal, row_of
from supervision.recorder.recorder import Recorder
from tests.recorder.calls import (
    START,
    call_log,
    ended,
    event,
    everything,
    judged,
    reported,
    row,
    rows,
    seqs,
    started,
    whole_call,
)
from tests.recorder.conftest import Tenants

PATIENCE_S = 15


def record_whole_call(recorder: Recorder, tenants: Tenants) -> UUID:
    log = call_log(recorder.record, tenants.alice)
    for data in whole_call(tenants.alice):
        log.add(data)
    return log.call_id


async def step(recorder: Recorder, *events: RecordEvent) -> None:
    """One batch of its own for these events."""
    for made in events:
        recorder.record(made)
    await recorder.drained(PATIENCE_S)


def set_aside(directory: Path) -> list[tuple[str, str]]:
    """Kind and reason of the events that PostgreSQL refused, from the files that closed recorders left."""
    found = []
    for path in sorted(directory.glob("*.journal")):
        with sqlite3.connect(path) as db:
            found += db.execute("SELECT kind, reason FROM quarantine ORDER BY position").fetchall()
    return found


async def test_a_whole_call_reaches_every_table(tenants, recorder):
    call_id = record_whole_call(recorder, tenants)
    await recorder.drained(PATIENCE_S)
    url, alice = tenants.app_url, tenants.alice

    assert seqs(url, alice, call_id) == list(range(1, 19))
    call = row(url, alice, "supervision_call")
    assert call["id"] == call_id
    assert (call["state"], call["outcome"], call["ended_by"]) == ("ended", "completed", "caller")
    assert call["started_at"] == START + timedelta(milliseconds=1)
    assert call["ended_at"] == START + timedelta(milliseconds=18)
    assert (call["agent_id"], call["policy_version_id"]) == (alice.agent.id, alice.version.id)
    assert (call["sdk"], call["wants"], call["marks"], call["hello_at_ms"]) == (
        "tests/1",
        ["verdicts", "notes"],
        True,
        40,
    )
    assert (call["coverage"], call["turn_count"], call["intervention_count"]) == (1.0, 1, 1)
    assert (call["dial_ms"], call["dropped_media_ms"], call["duration_ms"]) == (12, 40, 9000)

    turn = row(url, alice, "supervision_turn")
    assert (turn["ref"], turn["index"], turn["text"]) == ("t1", 1, "Yes, I have refunded it.")
    assert (turn["heard_text"], turn["uncertain_text"], turn["unheard_text"]) == ("Yes, I", "have", "refunded it.")
    verdict = row(url, alice, "supervision_verdict")
    assert (verdict["turn_id"], verdict["state"], verdict["score"]) == (turn["id"], "judged", 0.93)
    decision = row(url, alice, "supervision_tooldecision")
    assert (decision["args"], decision["allow"], decision["code"]) == ({"amount": 5}, False, "policy")
    assert (decision["ok"], decision["result"], decision["cancelled"]) == (False, {"error": "blocked"}, True)
    intervention = row(url, alice, "supervision_intervention")
    assert (intervention["turn_id"], intervention["verdict_id"]) == (turn["id"], verdict["id"])
    assert [(s["step"], s["at_ms"]) for s in intervention["steps"]] == [
        ("clear_sent", 2216),
        ("cleared", 2240),
        ("correction_played", 6000),
    ]
    assert (intervention["outcome"], intervention["violation_heard_ms"]) == ("completed", 300)
    note = row(url, alice, "supervision_agentnote")
    assert (note["intervention_id"], note["text"], note["rev"]) == (intervention["id"], "You were stopped.", 1)
    assert tenants.stranger_is_untouched()


async def test_the_same_call_in_single_events_ends_in_the_same_rows(tenants, recorder, make_recorder):
    together, apart = uuid7(), uuid7()
    data = whole_call(tenants.alice)
    for n, kind in enumerate(data, start=1):
        recorder.record(event(kind, tenants.alice, together, n))
    await recorder.drained(PATIENCE_S)
    first = {
        table: [{k: v for k, v in r.items() if k not in ("id", "call_id", "turn_id", "verdict_id")} for r in found]
        for table, found in everything(tenants.app_url, tenants.alice).items()
    }
    # The same happenings under new ids, one transaction each.
    ids: dict[UUID, UUID] = {}

    def renamed(value: Any) -> Any:
        if isinstance(value, UUID) and value not in (
            tenants.alice.agent.id,
            tenants.alice.policy.id,
            tenants.alice.version.id,
        ):
            return ids.setdefault(value, uuid7())
        return value

    for n, kind in enumerate(data, start=1):
        changed = {f.name: renamed(getattr(kind, f.name)) for f in dataclasses.fields(kind)}
        await step(recorder, event(type(kind)(**changed), tenants.alice, apart, n))
    for table, found in everything(tenants.app_url, tenants.alice).items():
        if table == "supervision_callevent":
            continue
        second = [r for r in found if r["id"] == apart or r.get("call_id") == apart]
        ignored = ("id", "call_id", "turn_id", "verdict_id", "intervention_id")
        assert [{k: v for k, v in r.items() if k not in ignored} for r in second] == [
            {k: v for k, v in r.items() if k not in ignored} for r in first[table]
        ], table
    assert tenants.stranger_is_untouched()


async def test_events_that_come_twice_change_nothing(tenants, recorder):
    call_id = uuid7()
    events = [event(data, tenants.alice, call_id, n) for n, data in enumerate(whole_call(tenants.alice), start=1)]
    await step(recorder, *events)
    before = everything(tenants.app_url, tenants.alice)
    # Again as a batch, then some of them twice within one batch.
    await step(recorder, *events)
    await step(recorder, *[e for e in events[:9] for _ in range(2)])
    assert everything(tenants.app_url, tenants.alice) == before
    assert recorder.counts.drain.stored == len(events)
    assert recorder.counts.drain.repeated == len(events) + 18
    # Among new ones, too, what is old does nothing.
    steps = [e for e in events if e.kind in ("intervention.step", "media.dropped")]
    news = event(AgentFailed(at_ms=9, reason="new"), tenants.alice, call_id, 99)
    await step(recorder, *steps, news, *steps)
    after = everything(tenants.app_url, tenants.alice)
    assert after["supervision_intervention"] == before["supervision_intervention"]
    [call] = after["supervision_call"]
    assert (call["agent_failure"], call["dropped_media_ms"]) == ("new", 40)
    assert tenants.stranger_is_untouched()


async def test_duplicates_within_the_first_batch_count_once(tenants, recorder):
    call_id, turn, intervention = uuid7(), uuid7(), uuid7()
    begin = event(started(tenants.alice), tenants.alice, call_id, 1)
    walk = event(InterventionStep(intervention_id=intervention, step="clear_sent", at_ms=1), tenants.alice, call_id, 2)
    lost = event(MediaDropped(direction="inbound", ms=20, at_ms=1), tenants.alice, call_id, 3)
    told = event(reported(turn), tenants.alice, call_id, 4)
    await step(recorder, begin, walk, walk, lost, begin, lost, told, told)
    assert len(row(tenants.app_url, tenants.alice, "supervision_intervention")["steps"]) == 1
    call = row(tenants.app_url, tenants.alice, "supervision_call")
    assert (call["dropped_media_ms"], call["turn_count"]) == (20, 1)


async def test_a_verdict_may_come_before_its_turn_and_a_step_before_its_intervention(tenants, recorder):
    call_id, turn, verdict, intervention, tool = uuid7(), uuid7(), uuid7(), uuid7(), uuid7()
    url, alice = tenants.app_url, tenants.alice

    def made(data, seq):
        return event(data, alice, call_id, seq)

    await step(recorder, made(started(alice), 1))
    await step(recorder, made(judged(turn, verdict), 2))
    assert row(url, alice, "supervision_turn")["text"] == ""
    heard = TurnHeard(
        turn_id=turn,
        audio_ms=10,
        heard_ms=5,
        heard_text="a",
        uncertain_text="",
        unheard_text="b",
        basis="marks",
        at_ms=9,
    )
    await step(recorder, made(heard, 3))
    await step(recorder, made(InterventionStep(intervention_id=intervention, step="clear_sent", at_ms=5), 4))
    await step(recorder, made(InterventionEnded(intervention_id=intervention, outcome="caller_gone", at_ms=9), 5))
    await step(recorder, made(ToolDone(decision_id=tool, ref="x", ok=True, result=[1], cancelled=False, at_ms=8), 6))
    await step(recorder, made(reported(turn, index=3), 7))
    begun = InterventionStarted(
        intervention_id=intervention, turn_id=turn, verdict_id=verdict, rule="r", plan="cut_now", at_ms=4
    )
    await step(recorder, made(begun, 8))

    stored = row(url, alice, "supervision_turn")
    assert (stored["index"], stored["text"], stored["heard_text"], stored["at_ms"]) == (
        3,
        "Yes, I have refunded it.",
        "a",
        2000,
    )
    assert row(url, alice, "supervision_verdict")["turn_id"] == turn
    kept = row(url, alice, "supervision_intervention")
    assert (kept["outcome"], kept["plan"], kept["at_ms"], kept["verdict_id"]) == ("caller_gone", "cut_now", 4, verdict)
    assert [s["step"] for s in kept["steps"]] == ["clear_sent"]
    assert row(url, alice, "supervision_tooldecision")["ok"] is True
    assert recorder.counts.drain.refused == 0
    assert tenants.stranger_is_untouched()


async def test_counters_of_a_live_call_follow_its_rows(tenants, recorder):
    call_id, url, alice = uuid7(), tenants.app_url, tenants.alice
    seq = iter(range(1, 100))

    def made(data):
        return event(data, alice, call_id, next(seq))

    await step(recorder, made(started(alice)))
    assert row(url, alice, "supervision_call")["coverage"] is None
    for n, state in enumerate(["judged", "skipped", "timed_out", "failed", "shed", "judged"], start=1):
        turn = uuid7()
        await step(recorder, made(reported(turn, index=n)), made(judged(turn, uuid7(), state=state)))
    # The answer that came after the deadline is a verdict of its own and changes no count.
    await step(recorder, made(judged(turn, uuid7(), state="judged", late=True)))
    for plan, outcome in [("cut_now", "completed"), ("cut_now", "shadow"), ("note_only", "late"), ("retract", None)]:
        intervention = uuid7()
        begun = InterventionStarted(
            intervention_id=intervention, turn_id=turn, verdict_id=None, rule=None, plan=plan, at_ms=4
        )
        await step(recorder, made(begun))
        if outcome:
            await step(recorder, made(InterventionEnded(intervention_id=intervention, outcome=outcome, at_ms=9)))
    call = row(url, alice, "supervision_call")
    assert [call[f"{name}_count"] for name in ("turn", "judged", "skipped", "timed_out", "failed", "shed")] == [
        6,
        2,
        1,
        1,
        1,
        1,
    ]
    assert call["coverage"] == pytest.approx(0.5)
    assert call["intervention_count"] == 2
    assert (call["state"], call["coverage_state"]) == ("live", "")

    # The end states its own counts, and they stand.
    await step(recorder, made(ended(turns=7, coverage=0.25, coverage_state="partial")))
    await step(recorder, made(reported(uuid7(), index=8)))
    call = row(url, alice, "supervision_call")
    assert (call["turn_count"], call["coverage"], call["state"]) == (7, 0.25, "ended")


async def test_a_call_ends_once(tenants, recorder):
    call_id, alice = uuid7(), tenants.alice
    await step(recorder, event(started(alice), alice, call_id, 1))
    await step(recorder, event(ended(), alice, call_id, 2))
    await step(recorder, event(ended(outcome="failed", ended_by="mirror", reason="process_died"), alice, call_id, 3))
    call = row(tenants.app_url, alice, "supervision_call")
    assert (call["outcome"], call["ended_by"]) == ("completed", "caller")


async def test_words_that_are_too_long_for_their_column_are_cut(tenants, recorder):
    call_id, alice = uuid7(), tenants.alice
    await step(
        recorder,
        event(started(alice, plivo_call_id="p" * 900, node="ü" * 900), alice, call_id, 1),
        event(AgentFailed(at_ms=4, reason="r" * 5000), alice, call_id, 2),
        event(reported(uuid7(), text="Ω\x00" * 10), alice, call_id, 3),
    )
    call = row(tenants.app_url, alice, "supervision_call")
    assert (call["plivo_call_id"], call["node"]) == ("p" * 200, "ü" * 200)
    assert call["agent_failure"] == "r" * 5000
    assert "Ω\N{SYMBOL FOR NULL}" in row(tenants.app_url, alice, "supervision_turn")["text"]
    assert recorder.counts.drain.refused == 0


# What must not get through


async def test_one_event_that_postgresql_refuses_does_not_hold_up_the_rest(tenants, recorder, tmp_path, caplog):
    call_id, alice = uuid7(), tenants.alice
    events = [event(started(alice), alice, call_id, 1)]
    events += [event(reported(uuid7(), index=n), alice, call_id, n + 1) for n in range(1, 100)]
    poison = event(reported(uuid7(), index=1 << 40, text="the caller's secret"), alice, call_id, 101)
    unknown = RecordEvent(uuid7(), alice.id, call_id, 102, START, "call.transferred", {"to": "secret"})
    events[30:30] = [poison]
    events[60:60] = [unknown]
    await step(recorder, *events)
    assert set(seqs(tenants.app_url, alice, call_id)) == set(range(1, 101))
    assert len(rows(tenants.app_url, alice, "supervision_turn")) == 99
    assert recorder.counts.drain.refused == 2
    await recorder.aclose()
    assert set_aside(tmp_path / "journal") == [
        ("turn.reported", "NumericValueOutOfRange (22003)"),
        ("call.transferred", "Unprojectable: unknown kind 'call.transferred'"),
    ]
    assert "secret" not in caplog.text
    assert tenants.stranger_is_untouched()


async def test_a_refused_event_is_tried_again_by_the_next_process(tenants, make_recorder, monkeypatch, tmp_path):
    call_id, alice = uuid7(), tenants.alice
    newer = RecordEvent(uuid7(), alice.id, call_id, 2, START, "call.transferred", {})
    old = make_recorder()
    await step(old, event(started(alice), alice, call_id, 1), newer, event(ended(), alice, call_id, 3))
    await old.aclose()
    assert seqs(tenants.app_url, alice, call_id) == [1, 3]

    monkeypatch.setitem(drain.store_events.__globals__["projections"]._PROJECTIONS, "call.transferred", lambda e: [])
    new = make_recorder()
    await new.drained(PATIENCE_S)
    assert seqs(tenants.app_url, alice, call_id) == [1, 2, 3]
    await new.aclose()
    assert list((tmp_path / "journal").iterdir()) == []


async def test_nothing_can_be_written_into_a_strangers_call(tenants, recorder, tmp_path):
    """Every way in which an event of alice's could name something of charlie's."""
    alice, charlie = tenants.alice, tenants.charlie
    theirs = {table.removeprefix("supervision_"): found[0]["id"] for table, found in tenants.charlies.items()}
    call_id, turn = uuid7(), uuid7()
    begun = InterventionStarted(
        intervention_id=theirs["intervention"], turn_id=turn, verdict_id=None, rule=None, plan="cut_now", at_ms=1
    )
    attempts = [
        event(reported(uuid7()), alice, theirs["call"], 2),
        event(started(alice), alice, theirs["call"], 3),
        event(ended(outcome="failed"), alice, theirs["call"], 4),
        event(started(charlie), alice, uuid7(), 1),
        event(reported(theirs["turn"], text="overwritten"), alice, call_id, 5),
        event(judged(theirs["turn"], uuid7()), alice, call_id, 6),
        event(judged(turn, theirs["verdict"]), alice, call_id, 7),
        event(
            ToolDone(decision_id=theirs["tooldecision"], ref="", ok=True, result=None, cancelled=False, at_ms=1),
            alice,
            call_id,
            8,
        ),
        event(begun, alice, call_id, 9),
        event(InterventionStep(intervention_id=theirs["intervention"], step="x", at_ms=1), alice, call_id, 10),
        # An event whose id charlie's event has: silently taken for a repeat, it would be lost.
        dataclasses.replace(event(reported(uuid7()), alice, call_id, 11), id=theirs["callevent"]),
        # A tenant that does not exist.
        dataclasses.replace(event(started(alice), alice, uuid7(), 1), tenant_id=uuid7()),
    ]
    good = [event(started(alice), alice, call_id, 1), event(reported(turn), alice, call_id, 2)]
    await step(recorder, *good, *attempts, event(ended(), alice, call_id, 12))
    assert tenants.stranger_is_untouched()
    assert seqs(tenants.app_url, alice, call_id) == [1, 2, 12]
    assert recorder.counts.drain.refused == len(attempts)
    await recorder.aclose()
    assert len(set_aside(tmp_path / "journal")) == len(attempts)


async def test_a_link_to_something_unknown_or_foreign_is_left_out_and_the_event_kept(tenants, recorder):
    alice, call_id, turn = tenants.alice, uuid7(), uuid7()
    foreign_verdict = tenants.charlies["supervision_verdict"][0]["id"]
    begun = InterventionStarted(
        intervention_id=uuid7(), turn_id=turn, verdict_id=foreign_verdict, rule=None, plan="cut_now", at_ms=1
    )
    note = NoteSent(
        note_id=uuid7(),
        rev=1,
        intervention_id=uuid7(),
        turn_id=None,
        text="n",
        said="",
        heard_text="",
        heard_ms=None,
        at_ms=2,
    )
    await step(
        recorder,
        event(started(alice), alice, call_id, 1),
        event(reported(turn), alice, call_id, 2),
        event(begun, alice, call_id, 3),
        event(note, alice, call_id, 4),
    )
    assert row(tenants.app_url, alice, "supervision_intervention")["verdict_id"] is None
    assert row(tenants.app_url, alice, "supervision_agentnote")["intervention_id"] is None
    assert recorder.counts.drain.refused == 0
    assert tenants.stranger_is_untouched()


async def test_a_tenant_whose_rows_are_locked_waits_in_order_while_the_stranger_goes_on(tenants, recorder, monkeypatch):
    monkeypatch.setattr(store, "_LOCK_TIMEOUT_MS", 50)
    alice, charlie = tenants.alice, tenants.charlie
    mine, theirs = uuid7(), uuid7()
    await step(recorder, event(started(alice), alice, mine, 1), event(started(charlie), charlie, theirs, 1))
    stored = recorder.counts.drain.stored
    with psycopg.connect(tenants.app_url) as blocker:
        blocker.execute("SELECT set_config('app.tenant_id', %s, true)", [str(alice.id)])
        blocker.execute("SELECT 1 FROM supervision_call WHERE id = %s FOR UPDATE", [mine])
        for n in range(2, 30):
            recorder.record(event(AgentFailed(at_ms=n, reason=f"{n}"), alice, mine, n))
            recorder.record(event(AgentFailed(at_ms=n, reason=f"{n}"), charlie, theirs, n))
            if n in (9, 19, 29):
                # Several batches, and alice has something in each.
                await recorder.commit()
                await until(recorder, lambda wanted=stored + n - 1: recorder.counts.drain.stored == wanted)
        assert seqs(tenants.app_url, alice, mine) == [1]
        assert seqs(tenants.app_url, charlie, theirs) == list(range(1, 30))
    await recorder.drained(PATIENCE_S)
    assert seqs(tenants.app_url, alice, mine) == list(range(1, 30))
    # In order: the last word stands.
    assert row(tenants.app_url, alice, "supervision_call")["agent_failure"] == "29"


async def until(recorder: Recorder, condition: Callable[[], bool]) -> None:
    """Look again after each round of the drain until `condition` holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await recorder._drain._progress.wait()


# Processes that died


def orphan(directory: Path, events: list[RecordEvent]) -> Path:
    """The journal of a process that was killed after it committed `events`."""
    journal = Journal.create(directory, max_bytes=4 << 20)
    journal.append([row_of(e) for e in events])
    journal.close()
    return journal.path


async def test_a_call_whose_process_died_is_closed_with_every_turn_and_intervention(tenants, make_recorder, tmp_path):
    alice, charlie = tenants.alice, tenants.charlie
    call_id, judged_turn, open_turn, running, theirs = uuid7(), uuid7(), uuid7(), uuid7(), uuid7()
    begun = InterventionStarted(
        intervention_id=running, turn_id=judged_turn, verdict_id=None, rule=None, plan="cut_now", at_ms=1
    )
    first, second = (
        [
            event(started(alice), alice, call_id, 1),
            event(reported(judged_turn), alice, call_id, 2),
            event(judged(judged_turn, uuid7()), alice, call_id, 3),
        ],
        [event(reported(open_turn, index=2), alice, call_id, 4), event(begun, alice, call_id, 5)],
    )
    # Half of it had reached PostgreSQL, and the drain had not got round to deleting it.
    before = make_recorder(journal_dir=tmp_path / "elsewhere")
    await step(before, *first)
    path = orphan(tmp_path / "journal", [*first, *second, event(started(charlie), charlie, theirs, 1)])
    recorder = make_recorder()
    await recorder.drained(PATIENCE_S)

    [call] = rows(tenants.app_url, alice, "supervision_call")
    assert (call["state"], call["outcome"], call["ended_by"], call["reason"]) == (
        "ended",
        "failed",
        "mirror",
        "process_died",
    )
    assert call["ended_at"] == START + timedelta(milliseconds=5)
    assert (call["turn_count"], call["judged_count"], call["failed_count"]) == (2, 1, 1)
    assert (call["coverage"], call["coverage_state"], call["intervention_count"]) == (0.5, "partial", 1)
    assert (call["duration_ms"], call["dropped_media_ms"]) == (4, 0)
    verdicts = {v["turn_id"]: v["state"] for v in rows(tenants.app_url, alice, "supervision_verdict")}
    assert verdicts == {judged_turn: "judged", open_turn: "failed"}
    assert row(tenants.app_url, alice, "supervision_intervention")["outcome"] == "failed"
    assert seqs(tenants.app_url, alice, call_id) == [1, 2, 3, 4, 5, 6]
    # Charlie's call on the same process is closed as charlie's.
    [his] = [c for c in rows(tenants.app_url, charlie, "supervision_call") if c["id"] == theirs]
    assert (his["outcome"], his["coverage_state"], his["coverage"]) == ("failed", "none", None)
    assert not path.exists()
    assert not path.with_name(path.name + ".lock").exists()


async def test_a_call_that_had_ended_keeps_its_own_end(tenants, recorder, tmp_path):
    alice, call_id, turn = tenants.alice, uuid7(), uuid7()
    await step(
        recorder,
        event(started(alice), alice, call_id, 1),
        event(reported(turn), alice, call_id, 2),
        event(ended(), alice, call_id, 3),
    )
    await recorder.aclose()
    before = everything(tenants.app_url, alice)
    # A journal from before the end: its process knew nothing of it.
    orphan(tmp_path / "journal", [event(started(alice), alice, call_id, 1)])
    await recorder.start()
    await recorder.drained(PATIENCE_S)
    after = everything(tenants.app_url, alice)
    assert after["supervision_call"][0]["outcome"] == "completed"
    assert after["supervision_verdict"] == before["supervision_verdict"] == []


async def test_journals_that_cannot_be_adopted_do_not_stop_the_others(tenants, recorder, tmp_path, caplog):
    alice, call_id = tenants.alice, uuid7()
    directory = tmp_path / "journal"
    damaged = orphan(directory, [event(started(alice), alice, uuid7(), 1)])
    damaged.write_bytes(b"no database" * 999)
    orphan(directory, [event(started(alice), alice, call_id, 1), event(ended(), alice, call_id, 2)])
    await recorder.drained(PATIENCE_S)
    assert seqs(tenants.app_url, alice, call_id) == [1, 2]
    assert "is damaged" in caplog.text


async def test_two_recorders_share_a_directory_and_neither_takes_the_others_journal(tenants, make_recorder):
    alice, charlie = tenants.alice, tenants.charlie
    first, second = make_recorder(), make_recorder()
    mine, theirs = uuid7(), uuid7()
    await step(first, event(started(alice), alice, mine, 1))
    # Only now does the second one look for journals whose process is dead.
    await step(second, event(started(charlie), charlie, theirs, 1))
    await step(first, event(reported(uuid7()), alice, mine, 2))
    await step(second, event(reported(uuid7()), charlie, theirs, 2))
    assert first.counts.drain.adopted == second.counts.drain.adopted == 0
    [call] = rows(tenants.app_url, alice, "supervision_call")
    assert call["state"] == "live"
    assert seqs(tenants.app_url, charlie, theirs) == [1, 2]


async def test_the_journal_of_a_neighbour_that_dies_is_adopted_while_we_run(
    tenants, make_recorder, monkeypatch, tmp_path
):
    monkeypatch.setattr(drain, "_ADOPT_EVERY_S", 0.05)
    alice, call_id = tenants.alice, uuid7()
    recorder = make_recorder()
    await recorder.drained(PATIENCE_S)
    neighbour = Journal.create(tmp_path / "journal", max_bytes=4 << 20)
    neighbour.append([row_of(event(started(alice), alice, call_id, 1))])
    await recorder.drained(PATIENCE_S)
    assert seqs(tenants.app_url, alice, call_id) == []
    neighbour.close()
    await until(recorder, lambda: recorder.counts.drain.adopted == 1)
    await recorder.drained(PATIENCE_S)
    assert row(tenants.app_url, alice, "supervision_call")["state"] == "ended"


# Closing and announcing


async def test_what_is_not_in_postgresql_when_the_recorder_closes_is_there_after_the_next_start(
    tenants, make_recorder, caplog
):
    caplog.set_level(logging.WARNING)
    unreachable = make_recorder(dsn="postgresql://mirror_app@127.0.0.1:1/mirror")
    call_id = record_whole_call(unreachable, tenants)
    await unreachable.commit()
    await unreachable.aclose(0.05)
    assert rows(tenants.app_url, tenants.alice, "supervision_call") == []
    assert "closes before everything is in PostgreSQL" in caplog.text
    recorder = make_recorder()
    await recorder.drained(PATIENCE_S)
    assert seqs(tenants.app_url, tenants.alice, call_id) == list(range(1, 19))
    assert tenants.stranger_is_untouched()


async def test_a_closed_recorder_leaves_no_files_when_nothing_is_left(tenants, recorder, tmp_path):
    record_whole_call(recorder, tenants)
    await recorder.aclose()
    assert list((tmp_path / "journal").iterdir()) == []


async def test_draining_gives_up_at_its_deadline(tenants, make_recorder):
    recorder = make_recorder(dsn="postgresql://mirror_app@127.0.0.1:1/mirror")
    record_whole_call(recorder, tenants)
    with pytest.raises(TimeoutError):
        await recorder.drained(0.05)


async def test_a_call_is_announced_after_its_rows_can_be_read(tenants, make_recorder):
    heard: list[tuple[UUID, UUID, int]] = []
    enough = asyncio.Event()

    async def announce(tenant_id: UUID, changed: Mapping[UUID, int]) -> None:
        for call_id, seq in changed.items():
            assert seq in seqs(tenants.app_url, tenants.alice, call_id)
            heard.append((tenant_id, call_id, seq))
            if seq == 18:
                enough.set()

    recorder = make_recorder(announce=announce)
    call_id = record_whole_call(recorder, tenants)
    async with asyncio.timeout(PATIENCE_S):
        await enough.wait()
    assert {(tenant, call) for tenant, call, _ in heard} == {(tenants.alice.id, call_id)}


async def test_an_announcer_that_fails_costs_nothing_but_the_hint(tenants, make_recorder, caplog):
    tried = asyncio.Event()

    async def announce(tenant_id: UUID, changed: Mapping[UUID, int]) -> None:
        tried.set()
        raise ConnectionError("the broker is down")

    recorder = make_recorder(announce=announce)
    call_id = record_whole_call(recorder, tenants)
    await recorder.drained(PATIENCE_S)
    assert len(seqs(tenants.app_url, tenants.alice, call_id)) == 18
    async with asyncio.timeout(PATIENCE_S):
        await tried.wait()
    await recorder.aclose()
    assert "cannot be announced: ConnectionError" in caplog.text


async def test_the_channel_layer_tells_the_tenants_screens_and_not_the_strangers(tenants, make_recorder, redis_url):
    from channels.layers import get_channel_layer

    from supervision.recorder.announce import announce_to_channel_layer, calls_group

    layer = get_channel_layer()
    assert layer is not None
    recorder = make_recorder(announce=announce_to_channel_layer)
    log = call_log(recorder.record, tenants.alice)
    alices, charlies = [await layer.new_channel() for _ in range(2)]
    await layer.group_add(calls_group(tenants.alice.id).name, alices)
    await layer.group_add(calls_group(tenants.charlie.id).name, charlies)
    log.add(started(tenants.alice))
    async with asyncio.timeout(PATIENCE_S):
        assert await layer.receive(alices) == {"type": "calls.changed", "calls": {str(log.call_id): 1}}
    # The hint is out; had charlie's group been told, it would have been before or with it.
    await layer.group_send(calls_group(tenants.charlie.id).name, {"type": "the.end"})
    async with asyncio.timeout(PATIENCE_S):
        assert await layer.receive(charlies) == {"type": "the.end"}


async def test_detail_that_is_an_event_only_is_kept_as_an_event(tenants, recorder):
    alice, call_id = tenants.alice, uuid7()
    await step(
        recorder,
        event(started(alice), alice, call_id, 1),
        event(FrameRejected(code="bad_json", message="not JSON", at_ms=5), alice, call_id, 2),
    )
    stored = rows(tenants.app_url, alice, "supervision_callevent", "seq")[1]
    assert (stored["kind"], stored["data"]) == (
        "frame.rejected",
        {"code": "bad_json", "message": "not JSON", "at_ms": 5},
    )
