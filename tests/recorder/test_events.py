from __future__ import annotations

from dataclasses import fields
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import uuid4

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervision.recorder.events import (
    DETAIL_KINDS,
    KINDS,
    MAX_JSON_BYTES,
    MAX_TEXT_BYTES,
    CallEnded,
    CallHello,
    CallLog,
    EventInvalid,
    InterventionStep,
    RecordEvent,
    ToolDecided,
    TranscriptNoted,
    TurnJudged,
    bounded_json,
    bounded_text,
    make_event,
    parse,
)
from tests.recorder.calls import START, Clock, ended, judged, reported

# What the team's contract lists for each kind; a field more or less is a change that every reader must know of.
CONTRACT = {
    "call.started": "plivo_call_id stream_id account_id agent_id policy_id policy_version_id policy_version mode "
    "delivery encoding sample_rate from_number to_number node storage_limit test",
    "call.moved": "at_ms",
    "call.resumed": "epoch after_seq started_at plivo_call_id stream_id account_id agent_id policy_id "
    "policy_version_id policy_version mode delivery encoding sample_rate from_number to_number node storage_limit test "
    "at_ms",
    "call.hello": "sdk language wants marks at_ms",
    "agent.connected": "at_ms dial_ms",
    "agent.failed": "at_ms reason",
    "transcript.noted": "at_ms role text final language",
    "turn.reported": "turn_id ref index customer_text text tool_calls language at_ms",
    "turn.completed": "turn_id text at_ms",
    "turn.held": "turn_id held_ms ended_by at_ms",
    "turn.judged": "turn_id verdict_id state score threshold rule reason correction intervene acted withheld "
    "latency_ms prompt_tokens completion_tokens model fallback late detail at_ms",
    "turn.heard": "turn_id audio_ms heard_ms heard_text uncertain_text unheard_text basis at_ms",
    "tool.decided": "decision_id turn_id ref name args irreversible allow code state score reason instruction "
    "latency_ms prompt_tokens completion_tokens model fallback at_ms",
    "tool.done": "decision_id ref ok result cancelled at_ms",
    "approval.requested": "decision_id turn_id ref name args irreversible on_silence within_ms at_ms",
    "approval.decided": "decision_id outcome by note waited_ms at_ms",
    "intervention.started": "intervention_id turn_id verdict_id rule plan at_ms",
    "intervention.step": "intervention_id step at_ms detail",
    "intervention.ended": "intervention_id outcome buffer_text correction_text correction_source heard_ms "
    "violation_heard_ms violation_basis silence_proof gap_ms_cut_to_buffer gap_ms_buffer_to_correction at_ms detail",
    "note.sent": "note_id rev intervention_id turn_id text said heard_text heard_ms dropped expires_turns at_ms",
    "frame.rejected": "code message at_ms",
    "media.dropped": "direction ms at_ms",
    "call.ended": "outcome ended_by close_code reason coverage_state coverage_reason coverage turns judged skipped "
    "timed_out failed shed interventions tools_blocked duration_ms dropped_media_ms detail_dropped",
}


def test_every_kind_has_exactly_the_fields_that_readers_expect():
    assert {kind: " ".join(f.name for f in fields(made)) for kind, made in KINDS.items()} == {
        kind: " ".join(names.split()) for kind, names in CONTRACT.items()
    }


def test_detail_is_what_a_call_can_be_understood_without():
    assert {"transcript.noted", "turn.held", "frame.rejected", "media.dropped"} == DETAIL_KINDS


def test_an_unknown_kind_is_an_error_that_lists_the_known_ones():
    with pytest.raises(EventInvalid, match=r"unknown kind 'call\.paused'.*call\.started"):
        parse("call.paused", {})


def test_an_unknown_field_is_an_error_that_names_it():
    with pytest.raises(EventInvalid, match=r"agent\.connected: unknown field 'ip'"):
        parse("agent.connected", {"at_ms": 1, "dial_ms": 2, "ip": "10.0.0.1"})


def test_a_missing_field_is_an_error_that_names_it():
    with pytest.raises(EventInvalid, match=r"agent\.connected: field 'dial_ms' is missing"):
        parse("agent.connected", {"at_ms": 1})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"latency_ms": 2.5}, "'latency_ms' must be an integer, got float"),
        ({"latency_ms": True}, "'latency_ms' must be an integer, got bool"),
        ({"latency_ms": 1 << 80}, "'latency_ms' must be an integer"),
        ({"score": float("nan")}, "'score' must be a finite number"),
        ({"score": "high"}, "'score' must be a finite number, got str"),
        ({"intervene": 1}, "'intervene' must be true or false, got int"),
        ({"state": "fine"}, "'state' must be one of failed, judged, shed, skipped, timed_out"),
        ({"turn_id": "t1"}, "'turn_id' must be a UUID"),
        ({"turn_id": None}, "'turn_id' must be a UUID"),
        ({"reason": None}, "'reason' must be text"),
        ({"reason": b"bytes"}, "'reason' must be text, got bytes"),
    ],
)
def test_a_value_of_the_wrong_type_is_an_error_that_names_the_field(change, problem):
    with pytest.raises(EventInvalid, match=r"turn\.judged: field " + problem):
        judged(uuid4(), uuid4(), **change).as_data()


def test_an_error_never_quotes_the_value():
    with pytest.raises(EventInvalid) as caught:
        judged(uuid4(), uuid4(), state="my card is 4111").as_data()
    assert "4111" not in str(caught.value)


def test_data_survives_json_and_back():
    data = judged(uuid4(), uuid4(), rule=None, score=None).as_data()
    again = orjson.loads(orjson.dumps(data))
    assert again == data
    assert parse("turn.judged", again).as_data() == data


def test_an_enum_member_is_stored_as_plain_text():
    class State(StrEnum):
        JUDGED = "judged"

    data = judged(uuid4(), uuid4(), state=State.JUDGED, reason=State.JUDGED).as_data()
    assert type(data["state"]) is str
    assert type(data["reason"]) is str


def test_a_long_text_is_cut_where_a_reader_sees_it():
    text = TranscriptNoted(at_ms=1, role="customer", text="ü" * 50_000, final=True).as_data()["text"]
    assert len(text.encode()) <= MAX_TEXT_BYTES
    assert text.endswith(f"[cut: {MAX_TEXT_BYTES} of 100000 bytes kept]")


def test_what_postgresql_cannot_store_in_a_text_is_replaced():
    text = TranscriptNoted(at_ms=1, role="customer", text="a\x00b\ud800c", final=True).as_data()["text"]
    assert text == "a\N{SYMBOL FOR NULL}b?c"


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (1 << 63, str(1 << 63)),
        (10**400, "[integer of 1329 bits]"),
        ((1, 2), [1, 2]),
        ({1: "one"}, {"1": "one"}),
        (object(), "[not JSON: object]"),
        ("\ud800", "?"),
    ],
)
def test_arguments_become_json_that_can_be_stored(value, stored):
    assert bounded_json({"v": value}) == {"v": stored}


def test_endless_nesting_is_cut():
    nested: Any = []
    for _ in range(2000):
        nested = [nested]
    assert "nested too deeply" in orjson.dumps(bounded_json(nested)).decode()


def test_a_wide_value_is_cut_and_says_so():
    made = bounded_json(["x" * 1000] * 1000)
    assert len(orjson.dumps(made)) < 2 * MAX_JSON_BYTES
    assert made[-1] == f"[cut: {len(made) - 1} of 1000 items kept]"
    assert "[cut]" in bounded_json({str(n): "x" * 1000 for n in range(1000)})


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=200),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec=None)), inner),
    max_leaves=50,
)


@given(json_like, st.integers(64, 2000))
def test_any_json_becomes_storable_and_bounded(value, limit):
    text = orjson.dumps(bounded_json(value, limit))
    assert b"\\u0000" not in text
    # Each value that the budget still allowed may add a cut marker, its quotes and its comma.
    assert len(text) <= 8 * limit + 200


@given(st.text(st.characters(codec=None)), st.integers(64, 300))
def test_any_text_becomes_storable_and_bounded(text, limit):
    stored = bounded_text(text, limit)
    assert len(stored.encode()) <= limit
    assert "\x00" not in stored


def test_a_call_log_numbers_and_stamps_its_events():
    recorded: list[RecordEvent] = []
    log = CallLog(record=recorded.append, tenant_id=uuid4(), call_id=uuid4(), now=Clock())
    log.add(reported(uuid4()))
    log.add(InterventionStep(intervention_id=uuid4(), step="clear_sent", at_ms=1))
    assert [e.seq for e in recorded] == [1, 2]
    assert [e.kind for e in recorded] == ["turn.reported", "intervention.step"]
    assert recorded[0].at < recorded[1].at
    assert {e.id.version for e in recorded} == {7}
    assert {(e.tenant_id, e.call_id) for e in recorded} == {(log.tenant_id, log.call_id)}


def test_an_invalid_event_is_not_recorded_and_takes_no_number():
    recorded: list[RecordEvent] = []
    log = CallLog(record=recorded.append, tenant_id=uuid4(), call_id=uuid4())
    with pytest.raises(EventInvalid):
        log.add(ended(outcome="splendid"))
    log.add(ended())
    assert [e.seq for e in recorded] == [1]


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(EventInvalid, match="aware datetime"):
        make_event(ended(), tenant_id=uuid4(), call_id=uuid4(), seq=1, at=datetime(2026, 1, 1))  # noqa: DTZ001


def test_a_call_log_can_go_on_where_another_stopped():
    log = CallLog(record=lambda event: None, tenant_id=uuid4(), call_id=uuid4(), last_seq=41, now=lambda: START)
    assert log.add(ended()).seq == 42


def test_fields_are_named_in_the_constructor():
    with pytest.raises(TypeError, match="at_ms"):
        CallHello(sdk="x", language="en")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="colour"):
        CallEnded(colour="red")  # type: ignore[call-arg]
    assert TurnJudged.KIND == "turn.judged"
    assert ToolDecided.DETAIL is False
