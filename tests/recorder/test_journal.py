from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from supervision.recorder import journal as journal_module
from supervision.recorder.events import RecordEvent, make_event
from supervision.recorder.journal import (
    Journal,
    JournalDamaged,
    JournalFormatUnknown,
    JournalLocked,
    JournalReader,
    event_of,
    orphans,
    row_of,
)
from tests.recorder.calls import START, ended, reported

SIZE = 4 << 20
TENANT, STRANGER = uuid4(), uuid4()


def made(kind_data, *, tenant: UUID = TENANT, call: UUID, seq: int) -> RecordEvent:
    return make_event(kind_data, tenant_id=tenant, call_id=call, seq=seq, at=START)


def call_started(call: UUID, *, tenant: UUID = TENANT) -> RecordEvent:
    return RecordEvent(uuid4(), tenant, call, 1, START, "call.started", {})


@pytest.fixture
def journal(tmp_path: Path):
    journal = Journal.create(tmp_path, max_bytes=SIZE)
    yield journal
    journal.close()


def die(journal: Journal) -> Path:
    """What a killed process leaves: its file, and a lock that the kernel dropped."""
    journal.close()
    return journal.path


def test_events_come_back_as_they_were_and_in_order(journal):
    events = [made(reported(uuid4()), call=uuid4(), seq=n) for n in range(1, 6)]
    journal.append([row_of(e) for e in events])
    assert [event_of(row) for row in journal.read(after=0, limit=10)] == events
    assert [event_of(row) for row in journal.read(after=2, limit=2)] == events[2:4]


def test_another_connection_reads_beside_the_writer(journal):
    reader = JournalReader(journal.path)
    event = made(reported(uuid4()), call=uuid4(), seq=1)
    assert reader.read(after=0, limit=10) == []
    journal.append([row_of(event)])
    assert [event_of(row) for row in reader.read(after=0, limit=10)] == [event]
    with pytest.raises(sqlite3.OperationalError, match=r"readonly|read-only|query_only"):
        reader._db.execute("DELETE FROM event")
    reader.close()


def test_a_tenants_events_are_found_without_the_strangers(journal):
    mine, theirs = uuid4(), uuid4()
    for n in range(1, 4):
        journal.append([row_of(made(reported(uuid4()), call=mine, seq=n))])
        journal.append([row_of(made(reported(uuid4()), tenant=STRANGER, call=theirs, seq=n))])
    found = journal.read(after=1, limit=10, tenant=TENANT.bytes, upto=4)
    assert [(row.position, UUID(bytes=row.call)) for row in found] == [(3, mine)]


def test_positions_are_never_given_twice_even_when_the_journal_was_empty(journal):
    journal.append([row_of(made(reported(uuid4()), call=uuid4(), seq=1))])
    journal.forget([1])
    journal.append([row_of(made(reported(uuid4()), call=uuid4(), seq=2))])
    assert [row.position for row in journal.read(after=0, limit=10)] == [2]


def test_what_was_forgotten_is_not_in_the_file_any_more(journal):
    words = "the caller's very own words"
    journal.append([row_of(made(reported(uuid4(), text=words), call=uuid4(), seq=1))])
    journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert words.encode() in journal.path.read_bytes()
    journal.forget([1])
    journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert words.encode() not in journal.path.read_bytes()


def test_only_the_owner_of_the_process_can_read_the_files(journal):
    journal.append([row_of(made(reported(uuid4()), call=uuid4(), seq=1))])
    modes = {path.suffix: stat.S_IMODE(path.stat().st_mode) for path in journal.path.parent.iterdir()}
    assert set(modes.values()) == {0o600}
    assert len(modes) == 4


def test_the_journal_of_a_living_process_is_left_alone(journal):
    with pytest.raises(JournalLocked):
        Journal.adopt(journal.path, max_bytes=SIZE)


def test_the_journal_of_a_dead_process_is_adopted_once(journal):
    event = made(reported(uuid4()), call=uuid4(), seq=1)
    journal.append([row_of(event)])
    path = die(journal)
    adopted = Journal.adopt(path, max_bytes=SIZE)
    assert [event_of(row) for row in adopted.read(after=0, limit=10)] == [event]
    with pytest.raises(JournalLocked):
        Journal.adopt(path, max_bytes=SIZE)
    adopted.close(remove=True)
    assert list(path.parent.iterdir()) == []


def test_a_journal_that_somebody_else_finished_is_gone_not_new(journal):
    path = die(journal)
    Journal.adopt(path, max_bytes=SIZE).close(remove=True)
    with pytest.raises(JournalLocked):
        Journal.adopt(path, max_bytes=SIZE)
    assert list(path.parent.iterdir()) == []


def test_a_lock_without_a_journal_is_cleared_away(tmp_path):
    (tmp_path / "1.journal.lock").touch()
    assert orphans(tmp_path) == [tmp_path / "1.journal"]
    with pytest.raises(JournalLocked):
        Journal.adopt(tmp_path / "1.journal", max_bytes=SIZE)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_on_a_file_that_an_adopter_removed_is_no_lock(tmp_path, monkeypatch):
    path = tmp_path / "1.journal"
    flock = journal_module.fcntl.flock

    def removed_first(descriptor, operation):
        flock(descriptor, operation)
        (tmp_path / "1.journal.lock").unlink()

    monkeypatch.setattr(journal_module.fcntl, "flock", removed_first)
    with pytest.raises(JournalLocked):
        Journal.adopt(path, max_bytes=SIZE)


def test_a_forked_child_does_not_keep_the_journal_of_its_dead_parent(journal):
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    try:
        path = die(journal)
        Journal.adopt(path, max_bytes=SIZE).close(remove=True)
    finally:
        os.write(go[1], b"x")
        os.waitpid(child, 0)
        for end in (*ready, *go):
            os.close(end)


def test_adoption_ends_the_calls_that_the_process_carried(journal):
    open_call, ended_call, strangers = uuid4(), uuid4(), uuid4()
    journal.append([row_of(call_started(open_call)), row_of(call_started(ended_call))])
    journal.append([row_of(call_started(strangers, tenant=STRANGER))])
    journal.append([row_of(made(ended(), call=ended_call, seq=2))])
    journal.append([row_of(made(reported(uuid4()), call=open_call, seq=7))])
    # PostgreSQL has everything already: only the journal still knows who was on the line.
    journal.forget([row.position for row in journal.read(after=0, limit=10)])
    path = die(journal)
    for attempt in (1, 2):
        adopted = Journal.adopt(path, max_bytes=SIZE)
        endings = [event_of(row) for row in adopted.read(after=0, limit=10)]
        assert {(e.call_id, e.tenant_id, e.kind, e.seq) for e in endings} == {
            (open_call, TENANT, "call.ended", 8),
            (strangers, STRANGER, "call.ended", 2),
        }, f"attempt {attempt}"
        assert all(e.data["outcome"] == "failed" and e.data["ended_by"] == "mirror" for e in endings)
        die(adopted)


def test_a_call_that_started_and_ended_in_one_commit_is_not_open(journal):
    call = uuid4()
    journal.append([row_of(call_started(call)), row_of(made(ended(), call=call, seq=2))])
    assert not journal._open


def test_what_postgresql_refused_is_tried_again_in_its_place_after_a_restart(journal):
    events = [made(reported(uuid4()), call=uuid4(), seq=n) for n in range(1, 4)]
    journal.append([row_of(e) for e in events])
    journal.quarantine(2, "CheckViolation (23514) some_check")
    assert [row.position for row in journal.read(after=0, limit=10)] == [1, 3]
    [(row, reason)] = journal.quarantined()
    assert (event_of(row), reason) == (events[1], "CheckViolation (23514) some_check")
    assert not journal.is_empty
    adopted = Journal.adopt(die(journal), max_bytes=SIZE)
    assert [event_of(row) for row in adopted.read(after=0, limit=10)] == events
    adopted.close()


def test_thinning_the_quarantine_deletes_the_older_half(journal):
    journal.append([row_of(made(reported(uuid4()), call=uuid4(), seq=n)) for n in range(1, 6)])
    for position in range(1, 6):
        journal.quarantine(position, "refused")
    assert journal.thin_quarantine() == 3
    assert [row.position for row, _ in journal.quarantined()] == [4, 5]


def test_a_full_journal_refuses_and_keeps_what_it_has(tmp_path):
    journal = Journal.create(tmp_path, max_bytes=128 * 1024)
    rows = [row_of(made(reported(uuid4(), text="x" * 5000), call=uuid4(), seq=n)) for n in range(1, 11)]
    journal.append(rows[:5])
    with pytest.raises(sqlite3.OperationalError, match="full"):
        journal.append(rows * 10)
    assert journal.count() == 5
    journal.forget([row.position for row in journal.read(after=0, limit=10)])
    journal.append(rows[5:])
    assert journal.count() == 5
    assert [row.position for row in journal.read(after=0, limit=10)] == [6, 7, 8, 9, 10]
    journal.close()


def test_a_file_that_sqlite_cannot_read_is_kept_under_another_name(journal):
    journal.append([row_of(made(reported(uuid4()), call=uuid4(), seq=1))])
    path = die(journal)
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(JournalDamaged, match="damaged"):
        Journal.adopt(path, max_bytes=SIZE)
    assert [p.name for p in path.parent.iterdir()] == [path.name + ".damaged"]
    assert orphans(path.parent) == []


def test_a_journal_of_another_version_is_left_for_that_version(journal):
    journal._db.execute("PRAGMA user_version = 99")
    path = die(journal)
    with pytest.raises(JournalFormatUnknown, match="format 99"):
        Journal.adopt(path, max_bytes=SIZE)
    assert path.exists()


def test_a_row_that_cannot_be_stored_is_refused_before_it_is_written():
    with pytest.raises(TypeError):
        row_of(RecordEvent(uuid4(), uuid4(), uuid4(), 1, START, "call.hello", {"sdk": object()}))
    with pytest.raises(ValueError, match="seq"):
        row_of(RecordEvent(uuid4(), uuid4(), uuid4(), 1 << 70, START, "call.hello", {}))
