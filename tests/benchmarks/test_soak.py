"""The soak finds what it looks for: a caller who noticed something, a record that lacks something."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from benchmarks.soak import records
from benchmarks.soak.calls import SoakCall, Turn
from supervision.plivo.simulator import MULAW_8K, CallRecord
from supervision.plivo.simulator.playout import HeardSegment
from supervision.plivo.simulator.record import Heard

ONE, TWO = bytes([0x10, 0x90]) * 4000, bytes([0x20, 0xA0]) * 4000


def call(*segments: tuple[float, bytes], outcome: str = "completed", ended_by: str = "caller") -> SoakCall:
    """A call of two turns, said at 0 s and 2 s, whose caller heard these segments."""
    record = CallRecord(MULAW_8K, "call-1", "account", "1", "2")
    record.started_t, record.outcome, record.ended_by = 0.0, outcome, ended_by
    heard = Heard(MULAW_8K, tuple(HeardSegment(at, at + len(audio) / 8000, audio) for at, audio in segments), 10.0)
    record.source = lambda: heard
    turns = [Turn("t1", ONE, False, 0.0, True, True, "judged"), Turn("t2", TWO, False, 2.0, True, True, "judged")]
    return SoakCall("call-1", turns, {"c1": True}, record=record)


def test_a_caller_who_heard_it_all_was_not_disturbed() -> None:
    assert call((0.1, ONE), (2.1, TWO)).disturbed() == []


@pytest.mark.parametrize(
    ("segments", "noticed"),
    [
        ([(0.1, ONE)], "turn t2 was not heard whole"),
        ([(0.1, ONE), (2.1, TWO[:-1])], "turn t2 was not heard whole"),
        ([(0.1, TWO), (2.1, ONE)], "turn t2 was not heard whole"),
        ([(0.1, ONE[:4000]), (0.7, ONE[4000:]), (2.1, TWO)], "turn t1 has 100 ms of gaps"),
        ([(0.1, ONE), (3.5, TWO)], "turn t2 began 1500 ms late"),
    ],
)
def test_a_caller_who_missed_something_was(segments: list[tuple[float, bytes]], noticed: str) -> None:
    assert noticed in call(*segments).disturbed()


def test_a_call_that_was_cut_off_was_disturbed() -> None:
    assert call((0.1, ONE), (2.1, TWO), outcome="failed", ended_by="plivo").disturbed()


CALL = uuid4()


def whole() -> dict[str, list[dict[str, Any]]]:
    """What PostgreSQL has of that call when nothing is lost."""
    kinds = ["call.started", "turn.reported", "turn.reported", "tool.decided", "call.ended"]
    return {
        "supervision_call": [{"id": CALL, "plivo_call_id": "call-1"}],
        "supervision_callevent": [
            {"call_id": CALL, "seq": n, "kind": kind, "data": {"detail_dropped": 0}} for n, kind in enumerate(kinds, 1)
        ],
        "supervision_turn": [{"call_id": CALL, "ref": "t1"}, {"call_id": CALL, "ref": "t2"}],
        "supervision_tooldecision": [{"call_id": CALL, "ref": "c1", "allow": True}],
        "supervision_intervention": [],
    }


def found_in(tables: dict[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, *, killed: bool = False) -> Any:
    monkeypatch.setattr(records, "rows", lambda url, tenant_id, table: tables[table])
    return records.losses("", uuid4(), [call((0.1, ONE), (2.1, TWO))], killed=killed)


def test_a_whole_record_has_lost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_in(whole(), monkeypatch)
    assert (found.lost, found.doubled) == ([], [])


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize(
    "table", ["supervision_call", "supervision_callevent", "supervision_turn", "supervision_tooldecision"]
)
def test_what_is_missing_is_lost_and_what_is_there_twice_is_doubled(
    monkeypatch: pytest.MonkeyPatch, table: str, killed: bool
) -> None:
    tables = whole()
    tables[table] = tables[table][1:]
    found = found_in(tables, monkeypatch, killed=killed)
    if killed and table == "supervision_turn":
        # Nobody had been told that it was written down.
        assert (found.lost, found.unacknowledged) == ([], 1)
    else:
        assert found.lost
    tables = whole()
    tables[table].append(dict(tables[table][0]))
    assert found_in(tables, monkeypatch, killed=killed).doubled


def test_detail_that_the_call_says_it_left_out_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = whole()
    tables["supervision_callevent"][-1].update(seq=8, data={"detail_dropped": 3})
    assert found_in(tables, monkeypatch).lost == []
    tables["supervision_callevent"][-1].update(seq=9)
    assert found_in(tables, monkeypatch).lost
