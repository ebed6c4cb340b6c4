"""What the journal may cost, and what is given up first: detail before truth, and never without saying so."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest

from supervision.recorder.events import DETAIL_KINDS, KINDS, EventData, MediaDropped, RecordEvent, make_event
from supervision.recorder.journal import Journal, JournalUnavailable, folder_bytes, row_of
from supervision.recorder.recorder import Recorder
from supervision.recorder.writer import JournalLimits, JournalWriter
from tests.recorder.calls import START, ended, reported, rows, started
from tests.recorder.conftest import Tenants

TENANT = uuid4()
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
LARGE = "x" * 3000

# Whoever moves a kind from one side to the other decides what a full disk may cost: the document has the same table.
EXPECTED_DETAIL = {"transcript.noted", "turn.held", "frame.rejected", "media.dropped"}


def made(data: EventData | None = None, *, call: UUID | None = None, seq: int = 1) -> RecordEvent:
    return make_event(
        data or reported(uuid4(), text=LARGE), tenant_id=TENANT, call_id=call or uuid4(), seq=seq, at=START
    )


def detail(call: UUID | None = None, seq: int = 1) -> RecordEvent:
    return made(MediaDropped(direction="inbound", ms=20, at_ms=1), call=call, seq=seq)


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


def stored_end(writer: JournalWriter, call: UUID) -> dict[str, Any]:
    """The data of the call's end, as the journal has it."""
    assert writer.journal_path is not None
    with sqlite3.connect(writer.journal_path) as db:
        [(data,)] = db.execute("SELECT data FROM event WHERE kind = 'call.ended' AND call = ?", [call.bytes])
    found: dict[str, Any] = orjson.loads(data)
    return found


def test_the_document_says_of_every_kind_whether_it_is_detail_or_truth() -> None:
    table = dict(re.findall(r"^\| `([a-z]+\.[a-z]+)` \| (detail|truth) \|", DOCUMENT.read_text(encoding="utf-8"), re.M))
    assert table == {kind: "detail" if kind in EXPECTED_DETAIL else "truth" for kind in KINDS}
    assert DETAIL_KINDS == EXPECTED_DETAIL


async def test_a_call_that_lost_detail_says_so_at_its_end_and_the_others_do_not(make_writer) -> None:
    writer = make_writer(limits=JournalLimits(max_bytes=512 * 1024, detail_fullness=0.1))
    thinned, whole = uuid4(), uuid4()
    for n in range(1, 31):
        writer.record(made(call=thinned, seq=n))
    await writer.commit()
    for n in range(31, 38):
        writer.record(detail(thinned, n))
    writer.record(made(ended(), call=thinned, seq=38))
    writer.record(made(ended(), call=whole, seq=1))
    await writer.commit()
    assert writer.counts.detail_dropped == 7
    assert stored_end(writer, thinned)["detail_dropped"] == 7
    assert stored_end(writer, whole)["detail_dropped"] == 0


async def test_detail_that_found_no_room_in_the_queue_is_told_too_and_truth_has_the_rest_of_it(make_writer) -> None:
    busy, go = threading.Event(), threading.Event()

    def slow(event: RecordEvent) -> RecordEvent:
        busy.set()
        go.wait(10)
        return event

    writer = make_writer(redact=slow, limits=JournalLimits(max_queued_events=10))
    call = uuid4()
    writer.record(made(call=call))
    assert await asyncio.to_thread(busy.wait, 10)
    for n in range(2, 22):
        writer.record(detail(call, n))
    writer.record(made(call=call, seq=22))
    writer.record(made(ended(), call=call, seq=23))
    go.set()
    await writer.commit(call)
    # 8 of 10 places are open to detail; the last two are left to what a record stands on.
    assert (writer.counts.detail_dropped, writer.counts.lost) == (12, 0)
    assert stored_end(writer, call)["detail_dropped"] == 12


async def test_what_dead_processes_left_counts_towards_the_folders_limit(make_writer, tmp_path: Path) -> None:
    """Restarts while the database is down would otherwise take a whole journal's space each."""
    folder = tmp_path / "journal"
    before = Journal.create(folder, max_bytes=1 << 20)
    for n in range(1, 101):
        before.append([row_of(made(seq=n))])
    before.close()
    left = folder_bytes(folder)
    writer = make_writer(limits=JournalLimits(max_bytes=left + 256 * 1024))
    written = 0

    async def record_until_full() -> None:
        nonlocal written
        for n in range(1, 1000):
            writer.record(made(seq=n))
            await writer.commit()
            written = n

    with pytest.raises(JournalUnavailable, match="full"):
        await record_until_full()
    assert 20 < written < 80
    own = writer.journal_path
    assert own is not None
    assert own.stat().st_size <= 256 * 1024

    # The other one is drained and removed: its space is this one's from then on.
    for path in folder.glob(f"{before.path.name}*"):
        path.unlink()
    writer._measured_at = float("-inf")
    await writer.commit()
    for n in range(1000, 1020):
        writer.record(made(seq=n))
    await writer.commit()
    assert writer.counts.lost == 0


async def test_one_commit_never_grows_the_write_ahead_log_by_more_than_its_share(make_writer) -> None:
    busy, go = threading.Event(), threading.Event()

    def slow(event: RecordEvent) -> RecordEvent:
        busy.set()
        go.wait(10)
        return event

    writer = make_writer(redact=slow)
    writer.record(made())
    assert await asyncio.to_thread(busy.wait, 10)
    for n in range(200):
        writer.record(made(reported(uuid4(), text="x" * 60_000), seq=n + 1))
    go.set()
    await writer.commit()
    assert writer.counts.written == 201
    assert writer.counts.commits >= 3


async def test_a_journal_that_was_full_when_its_process_died_is_brought_in_whole_and_its_calls_end(
    tenants: Tenants, make_recorder: Callable[..., Recorder], tmp_path: Path
) -> None:
    full = JournalLimits(max_bytes=256 * 1024)
    dead = make_recorder(dsn="postgresql://mirror_app@127.0.0.1:1/mirror", limits=full)
    alice, call = tenants.alice, uuid4()

    def event(data: EventData, seq: int) -> RecordEvent:
        return make_event(data, tenant_id=alice.id, call_id=call, seq=seq, at=START)

    dead.record(event(started(alice), 1))
    acknowledged = 0

    async def record_until_full() -> None:
        nonlocal acknowledged
        for n in range(2, 1000):
            dead.record(event(reported(uuid4(), index=n - 1, text=LARGE), n))
            await dead.commit(call)
            acknowledged = n

    with pytest.raises(JournalUnavailable, match="full"):
        await record_until_full()
    assert acknowledged > 20
    # Full, it can take nothing more: the file is as a kill would leave it.
    await dead.aclose(0.01)

    recorder = make_recorder(limits=full)
    await recorder.drained(30)
    numbers = [e["seq"] for e in rows(tenants.app_url, alice, "supervision_callevent", "seq")]
    assert numbers == list(range(1, acknowledged + 2))
    [found] = rows(tenants.app_url, alice, "supervision_call")
    assert (found["state"], found["reason"]) == ("ended", "process_died")
    assert tenants.stranger_is_untouched()
