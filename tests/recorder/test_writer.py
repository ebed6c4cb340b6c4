from __future__ import annotations

import asyncio
import dataclasses
import logging
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from supervision.recorder.events import EventData, MediaDropped, RecordEvent, make_event
from supervision.recorder.journal import Journal, JournalUnavailable, event_of
from supervision.recorder.writer import JournalLimits, JournalWriter
from tests.recorder.calls import START, reported

TENANT = uuid4()


def made(data: EventData | None = None, *, call: UUID | None = None, seq: int = 1) -> RecordEvent:
    data = data or reported(uuid4())
    return make_event(data, tenant_id=TENANT, call_id=call or uuid4(), seq=seq, at=START)


def detail() -> RecordEvent:
    return made(MediaDropped(direction="inbound", ms=20, at_ms=1))


@pytest.fixture
async def make_writer(tmp_path: Path) -> AsyncIterator[Callable[..., JournalWriter]]:
    writers: list[JournalWriter] = []

    def make(**changes: Any) -> JournalWriter:
        settings: dict[str, Any] = {
            "directory": tmp_path / "journal",
            "limits": JournalLimits(),
            "redact": lambda event: event,
            "loop": asyncio.get_running_loop(),
            "on_written": lambda: None,
            **changes,
        }
        writers.append(JournalWriter(**settings))
        writers[-1].start()
        return writers[-1]

    yield make
    for writer in writers:
        await writer.close()


def left_behind(directory: Path) -> list[RecordEvent]:
    """What a closed writer's journal holds for the next process."""
    [path] = directory.glob("*.journal")
    with sqlite3.connect(path) as db:
        kinds = [row[0] for row in db.execute("SELECT kind FROM event ORDER BY position")]
    journal = Journal.adopt(path, max_bytes=4 << 20)
    events = [event_of(row) for row in journal.read(after=0, limit=10_000)][: len(kinds)]
    journal.close()
    return events


async def test_a_commit_returns_when_all_before_it_is_in_the_file(make_writer, tmp_path):
    writer = make_writer()
    events = [made(seq=n) for n in range(1, 20)]
    for event in events:
        writer.record(event)
    await writer.commit()
    with sqlite3.connect(writer.journal_path) as db:
        assert [UUID(bytes=row[0]) for row in db.execute("SELECT id FROM event ORDER BY position")] == [
            event.id for event in events
        ]


async def test_a_commit_with_nothing_to_write_returns_at_once(make_writer):
    writer = make_writer()
    await writer.commit()
    assert writer.counts.commits == 0


async def test_commits_that_come_together_share_one_write(make_writer):
    writer = make_writer()

    async def one() -> None:
        writer.record(made())
        await writer.commit()

    await asyncio.gather(*(one() for _ in range(200)))
    assert writer.counts.written == 200
    assert writer.counts.commits <= 20


async def test_what_nobody_waits_for_is_written_all_the_same(make_writer):
    written = asyncio.Event()
    writer = make_writer(on_written=written.set)
    writer.record(made())
    async with asyncio.timeout(5):
        await written.wait()
    assert writer.counts.written == 1


async def test_closing_writes_what_is_queued(make_writer, tmp_path):
    writer = make_writer()
    events = [made(seq=n) for n in range(1, 50)]
    for event in events:
        writer.record(event)
    await writer.close()
    assert left_behind(tmp_path / "journal") == events


async def test_a_journal_with_nothing_left_in_it_is_removed(make_writer, tmp_path):
    writer = make_writer()
    writer.record(made())
    await writer.commit()
    writer.forget([writer.last_position])
    await writer.close()
    assert list((tmp_path / "journal").iterdir()) == []


async def test_a_deletion_that_comes_while_a_commit_is_written_is_not_lost(make_writer, tmp_path, monkeypatch):
    writer = make_writer()
    write = Journal.append

    def meanwhile_drained(self, rows, *, drained=()):
        write(self, rows, drained=drained)
        if rows:
            writer.forget([self.last_position])

    monkeypatch.setattr(Journal, "append", meanwhile_drained)
    for n in range(1, 4):
        writer.record(made(seq=n))
        await writer.commit()
    await writer.close()
    assert list((tmp_path / "journal").iterdir()) == []


async def test_redaction_comes_before_the_journal(make_writer, tmp_path):
    def redact(event: RecordEvent) -> RecordEvent:
        return dataclasses.replace(event, data={**event.data, "customer_text": "[redacted]"})

    writer = make_writer(redact=redact)
    writer.record(made(dataclasses.replace(reported(uuid4()), customer_text="my card is 4111 1111")))
    await writer.commit()
    files = b"".join(path.read_bytes() for path in (tmp_path / "journal").iterdir())
    assert b"[redacted]" in files
    assert b"4111" not in files


async def test_an_event_that_cannot_be_redacted_is_never_written_and_its_calls_commit_fails(
    make_writer, tmp_path, caplog
):
    def redact(event: RecordEvent) -> RecordEvent:
        if "4111" in event.data["customer_text"]:
            raise RuntimeError("failed on 4111")
        return event

    writer = make_writer(redact=redact)
    alices_call, charlies_call = uuid4(), uuid4()
    writer.record(made(dataclasses.replace(reported(uuid4()), customer_text="card 4111"), call=alices_call))
    writer.record(made(call=charlies_call))
    with pytest.raises(JournalUnavailable):
        await writer.commit(alices_call)
    await writer.commit(charlies_call)
    assert writer.counts.unredacted == 1
    assert writer.counts.written == 1
    files = b"".join(path.read_bytes() for path in (tmp_path / "journal").iterdir())
    assert b"4111" not in files
    assert "4111" not in caplog.text


async def test_the_loss_of_an_event_is_told_to_who_asks_right_after_it(make_writer):
    writer = make_writer()
    call = uuid4()
    writer.record(RecordEvent(uuid4(), TENANT, call, 1, START, "call.hello", {"sdk": object()}))
    with pytest.raises(JournalUnavailable):
        await writer.commit(call)
    with pytest.raises(JournalUnavailable):
        await writer.commit(call)
    with pytest.raises(JournalUnavailable):
        await writer.commit()
    await writer.commit(uuid4())
    assert writer.counts.lost == 1


async def test_an_unwritable_journal_is_told_and_used_again_when_it_works(make_writer, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    (tmp_path / "journal").write_text("a file where the directory should be")
    writer = make_writer()
    event = made()
    writer.record(event)
    with pytest.raises(JournalUnavailable, match="cannot be written"):
        await writer.commit()
    with pytest.raises(JournalUnavailable):
        await writer.commit()
    (tmp_path / "journal").unlink()
    await writer.commit()
    assert writer.counts.written == 1
    await writer.close()
    assert caplog.text.count("events wait in memory") == 1
    assert caplog.text.count("the journal works again") == 1


async def test_it_is_tried_again_without_anybody_asking(make_writer, tmp_path):
    (tmp_path / "journal").write_text("a file where the directory should be")
    written = asyncio.Event()
    writer = make_writer(on_written=written.set)
    writer.record(made())
    with pytest.raises(JournalUnavailable):
        await writer.commit()
    (tmp_path / "journal").unlink()
    async with asyncio.timeout(10):
        await written.wait()


async def test_a_full_journal_gives_up_detail_before_what_counts(make_writer, caplog):
    limits = JournalLimits(max_bytes=256 * 1024, detail_fullness=0.5)
    writer = make_writer(limits=limits)
    counted = 0

    async def record_until_full() -> None:
        nonlocal counted
        for n in range(1, 1000):
            writer.record(made(reported(uuid4(), text="x" * 3000), seq=n))
            writer.record(detail())
            await writer.commit()
            counted = n

    with pytest.raises(JournalUnavailable, match="full"):
        await record_until_full()
    assert 20 < counted < 80
    assert writer.counts.detail_dropped > 10
    assert writer.counts.lost == 0
    with sqlite3.connect(writer.journal_path) as db:
        kinds = dict(db.execute("SELECT kind, count(*) FROM event GROUP BY kind"))
    assert kinds["turn.reported"] == counted
    assert caplog.text.count("nearly full, detail is left out") == 1
    # Detail stops at half of the space, what counts goes on to the end.
    assert 0 < kinds["media.dropped"] <= counted * 0.6

    # PostgreSQL takes some of it: there is room again, and what waited in memory is written.
    writer.forget(list(range(1, 21)))
    await writer.commit()
    with sqlite3.connect(writer.journal_path) as db:
        [(written,)] = db.execute("SELECT count(*) FROM event WHERE kind = 'turn.reported' AND seq = ?", [counted + 1])
    assert written == 1


async def test_what_was_refused_makes_room_for_what_counts(make_writer):
    writer = make_writer(limits=JournalLimits(max_bytes=256 * 1024, detail_fullness=0.5))
    for n in range(1, 31):
        writer.record(made(reported(uuid4(), text="x" * 3000), seq=n))
    await writer.commit()
    for position in range(1, 31):
        writer.quarantine(position, "refused")
    for n in range(31, 61):
        writer.record(made(reported(uuid4(), text="x" * 3000), seq=n))
        await writer.commit()
    assert writer.counts.quarantine_discarded > 0
    assert writer.counts.lost == 0


async def test_memory_is_bounded_while_the_journal_fails(make_writer, tmp_path):
    (tmp_path / "journal").write_text("a file where the directory should be")
    writer = make_writer(limits=JournalLimits(max_backlog_bytes=50_000))
    calls = [uuid4() for _ in range(100)]
    for n, call in enumerate(calls):
        writer.record(made(reported(uuid4(), text="x" * 900), call=call, seq=n + 1))
        writer.record(detail())
    with pytest.raises(JournalUnavailable):
        await writer.commit()
    assert writer.counts.detail_dropped == 100
    assert 40 < writer.counts.lost < 80
    (tmp_path / "journal").unlink()
    # The oldest were kept. Whoever's event was lost hears of it even now that the journal works.
    await writer.commit(calls[0])
    with pytest.raises(JournalUnavailable):
        await writer.commit(calls[-1])
    await writer.close()
    kept = left_behind(tmp_path / "journal")
    assert [event.call_id for event in kept] == calls[: len(kept)]
    assert len(kept) == 100 - writer.counts.lost


async def test_a_failure_speaks_only_for_who_asked_before_it_began(make_writer, monkeypatch):
    trying, go = threading.Event(), threading.Event()
    create = Journal.create

    def fails_once(*args, **options):
        monkeypatch.setattr(Journal, "create", create)
        trying.set()
        go.wait(10)
        raise OSError("no room")

    monkeypatch.setattr(Journal, "create", fails_once)
    writer = make_writer()
    writer.record(made())
    early = asyncio.ensure_future(writer.commit())
    assert await asyncio.to_thread(trying.wait, 10)
    late = asyncio.ensure_future(writer.commit())
    await asyncio.sleep(0)
    go.set()
    with pytest.raises(JournalUnavailable):
        await early
    await late
    assert writer.counts.written == 1


async def test_the_queue_is_bounded_while_the_thread_is_busy(make_writer, tmp_path):
    busy, go = threading.Event(), threading.Event()

    def slow(event: RecordEvent) -> RecordEvent:
        busy.set()
        go.wait(10)
        return event

    writer = make_writer(redact=slow, limits=JournalLimits(max_queued_events=5))
    writer.record(made())
    assert await asyncio.to_thread(busy.wait, 10)
    calls = [uuid4() for _ in range(8)]
    for call in calls:
        writer.record(made(call=call))
    writer.record(detail())
    waiting = asyncio.ensure_future(writer.commit(calls[0]))
    go.set()
    await waiting
    with pytest.raises(JournalUnavailable):
        await writer.commit(calls[7])
    assert (writer.counts.written, writer.counts.lost, writer.counts.detail_dropped) == (6, 3, 1)


async def test_a_damaged_file_is_kept_and_a_new_one_begun(make_writer, tmp_path, caplog):
    writer = make_writer()
    for n in range(1, 200):
        writer.record(made(seq=n))
    await writer.commit()
    path = writer.journal_path
    writer._journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path.write_bytes(path.read_bytes()[:4096] + b"\xff" * (path.stat().st_size - 4096))
    writer._journal._db.execute("PRAGMA shrink_memory")
    writer.forget(list(range(1, 200)))
    writer.record(made(seq=200))
    with pytest.raises(JournalUnavailable):
        await writer.commit()
    await writer.commit()
    assert writer.journal_path != path
    assert path.with_name(path.name + ".damaged").exists()
    assert writer.last_position == 200
    assert "the journal is damaged" in caplog.text


async def test_commit_after_close_is_refused_when_something_is_missing(make_writer):
    writer = make_writer()
    await writer.close()
    writer.record(made())
    with pytest.raises(JournalUnavailable, match="clos"):
        await writer.commit()


async def test_a_cancelled_commit_disturbs_nobody(make_writer):
    writer = make_writer()
    writer.record(made())
    impatient = asyncio.ensure_future(writer.commit())
    patient = asyncio.ensure_future(writer.commit())
    await asyncio.sleep(0)
    impatient.cancel()
    await patient
    assert writer.counts.written == 1
