"""What must not be kept: of an erased call nothing comes back from a journal, and what is redacted never gets there."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID

from mirror_saas.ids import uuid7
from supervision.models import ErasedCall
from supervision.recorder import drain, store
from supervision.recorder.journal import Journal, row_of
from supervision.recorder.recorder import Recorder
from supervision.redaction import OwnPattern, Redaction, RedactionSettings
from supervision.services.erasure import call_erase
from tests.factories import Tenancy
from tests.recorder.calls import TABLES, call_log, ended, reported, rows, started, whole_call
from tests.recorder.conftest import Tenants

PATIENCE_S = 15


async def erase(tenancy: Tenancy, call_id: UUID) -> None:
    def run() -> None:
        from django.db import connection

        try:
            with tenancy.context():
                call_erase(call_id=call_id)
        finally:
            connection.close()

    await asyncio.to_thread(run)


def left(tenants: Tenants, call_id: UUID) -> list[str]:
    """The tables with a row of the call."""
    found = []
    for table in TABLES:
        column = "id" if table == "supervision_call" else "call_id"
        if any(row[column] == call_id for row in rows(tenants.app_url, tenants.alice, table)):
            found.append(table)
    return found


async def test_what_comes_after_the_erasure_is_dropped(tenants: Tenants, recorder: Recorder) -> None:
    log = call_log(recorder.record, tenants.alice)
    for data in whole_call(tenants.alice):
        log.add(data)
    other = call_log(recorder.record, tenants.alice)
    other.add(started(tenants.alice))
    await recorder.drained(PATIENCE_S)
    await erase(tenants.alice, log.call_id)
    assert left(tenants, log.call_id) == []
    # A journal that was held up brings more of it, its very beginning included, between events of another call.
    log.seq = 0
    log.add(started(tenants.alice))
    log.add(reported(uuid7()))
    other.add(ended())
    log.add(ended())
    await recorder.drained(PATIENCE_S)
    assert left(tenants, log.call_id) == []
    assert "supervision_callevent" in left(tenants, other.call_id)
    assert recorder.counts.drain.refused == 0
    assert tenants.stranger_is_untouched()


async def test_an_erasure_in_the_middle_of_storing_wins(tenants: Tenants, recorder: Recorder, monkeypatch: Any) -> None:
    """The call is looked up, erased by somebody, and only then written."""
    log = call_log(recorder.record, tenants.alice)
    asked = 0
    erased_calls = store.erased_calls

    async def late(cursor: Any, tenant_id: UUID, calls: Any) -> set[UUID]:
        nonlocal asked
        asked += 1
        found = await erased_calls(cursor, tenant_id, calls)
        if asked == 1:

            def erased_meanwhile() -> None:
                from django.db import connection
                from django.utils import timezone

                try:
                    with tenants.alice.context():
                        ErasedCall.objects.create(id=log.call_id, erased_at=timezone.now())
                finally:
                    connection.close()

            await asyncio.to_thread(erased_meanwhile)
        return found

    monkeypatch.setattr(store, "erased_calls", late)
    log.add(started(tenants.alice))
    log.add(reported(uuid7()))
    await recorder.drained(PATIENCE_S)
    assert asked >= 3
    assert left(tenants, log.call_id) == []


async def test_what_was_set_aside_of_an_erased_call_is_deleted_and_the_rest_stays(
    tenants: Tenants, make_recorder: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(drain, "_ADOPT_EVERY_S", 0.02)
    recorder = make_recorder()
    logs = [call_log(recorder.record, tenants.alice) for _ in range(2)]
    for log in logs:
        log.add(started(tenants.alice))
        log.add(ended())
    await recorder.drained(PATIENCE_S)
    project = store.project

    def refuse(events: Any, **options: Any) -> Any:
        if any(event.kind == "turn.reported" for event in events):
            raise store.Unprojectable("not known here")
        return project(events, **options)

    monkeypatch.setattr(store, "project", refuse)
    for log in logs:
        log.add(reported(uuid7(), text=f"the secret of {log.call_id}"))
    await recorder.drained(PATIENCE_S)
    assert recorder.counts.drain.refused == 2
    erased, kept = logs
    await erase(tenants.alice, erased.call_id)

    def held(call_id: UUID) -> bool:
        words = f"the secret of {call_id}".encode()
        return any(words in path.read_bytes() for path in (tmp_path / "journal").iterdir())

    async with asyncio.timeout(PATIENCE_S):
        while held(erased.call_id):  # noqa: ASYNC110 (a file tells nobody that it changed)
            await asyncio.sleep(0.01)
    assert held(kept.call_id)


def test_scrubbing_empties_the_write_ahead_log(tenants: Tenants, tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, max_bytes=1 << 20)
    made: list[Any] = []
    log = call_log(made.append, tenants.alice)
    log.add(reported(uuid7(), text="the secret"))
    journal.append([row_of(made[0])])

    def lingers() -> bool:
        return any(b"the secret" in path.read_bytes() for path in tmp_path.iterdir())

    assert lingers()
    journal.forget([1])
    assert lingers()
    assert journal.scrub([]) == 0
    assert not lingers()
    journal.close(remove=True)


async def test_what_is_redacted_never_reaches_the_journal(tenants: Tenants, make_recorder: Any, tmp_path: Path) -> None:
    redaction = Redaction()
    redaction.learn(tenants.alice.id, RedactionSettings(patterns=(OwnPattern("member", r"M-\d+"),)))
    # Nothing listens there, so that all of it stays in the journal.
    recorder = make_recorder(redact=redaction.event, dsn="postgresql://mirror_app@127.0.0.1:1/mirror")
    log = call_log(recorder.record, tenants.alice)
    log.add(started(tenants.alice))
    log.add(reported(uuid7(), text="M-77, card 4111 1111 1111 1111, ann@example.com?"))
    await recorder.commit()
    written = b"".join(path.read_bytes() for path in (tmp_path / "journal").iterdir())
    assert b"[member], card [card number], [e-mail address]?" in written
    assert not [word for word in (b"M-77", b"4111", b"ann@example") if word in written]
