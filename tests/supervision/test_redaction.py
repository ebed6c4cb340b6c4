"""What is taken out before anything is stored, and that nothing makes it slow or wrong."""

from __future__ import annotations

import time
from typing import Any

import pytest

from mirror_saas.ids import uuid7
from supervision.recorder.events import KINDS, EventData, NoteSent, ToolDecided, TurnHeard, TurnReported, make_event
from supervision.redaction import (
    OwnPattern,
    PatternInvalid,
    Redaction,
    RedactionSettings,
    Redactor,
    pattern_compile,
)
from tests.recorder.calls import START

EVERYTHING = Redactor(RedactionSettings())
CARD = "4111 1111 1111 1111"


def only(*kinds: str, region: str = "US", **patterns: str) -> Redactor:
    own = tuple(OwnPattern(name, pattern) for name, pattern in patterns.items())
    return Redactor(RedactionSettings(frozenset(kinds), region, own))


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("It is 4111 1111 1111 1111, thanks.", "It is [card number], thanks."),
        ("4111111111111111", "[card number]"),
        ("4111-1111-1111-1111", "[card number]"),
        ("3782 822463 10005.", "[card number]."),
        ("4222222222222", "[card number]"),
        ("6304 0000 0000 0000 000", "[card number]"),
        ("4111 1111 1111 1112", "4111 1111 1111 1112"),
        ("4111 1111 1111 1111 12 27 123", "[card number] 12 27 123"),
        ("order 77 4111 1111 1111 1111", "order 77 [card number]"),
        ("4111 1111 1111 1111 5555 5555 5555 4444", "[card number] [card number]"),
        ("٤١١١ ١١١١ ١١١١ ١١١١", "[card number]"),
        ("0000 0000 0000 0000", "0000 0000 0000 0000"),
        ("no digits at all", "no digits at all"),
        ("", ""),
    ],
)
def test_card_numbers_are_known_by_their_check_digit(text: str, redacted: str) -> None:
    assert only("card").text(text) == redacted


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("Write to ann.o'neil+x@mail.example.co.uk today", "Write to [e-mail address] today"),
        ("<jörg@müller.example>", "<[e-mail address]>"),
        ("a@b.cd, e@f.gh", "[e-mail address], [e-mail address]"),
        ("at @home, a@b, 5@ 6", "at @home, a@b, 5@ 6"),
    ],
)
def test_e_mail_addresses(text: str, redacted: str) -> None:
    assert only("email").text(text) == redacted


@pytest.mark.parametrize(
    ("text", "region", "redacted"),
    [
        ("call +49 30 901820 or (212) 555-0123.", "US", "call [phone number] or [phone number]."),
        ("tel:+1-212-555-0123 ext 12", "US", "tel:[phone number]"),
        ("unter 0171 2345678", "DE", "unter [phone number]"),
        ("on 2026-11-22 at 14:30", "US", "on 2026-11-22 at 14:30"),
        ("it costs 1,234,567.00", "US", "it costs 1,234,567.00"),
        ("room 14, floor 30", "DE", "room 14, floor 30"),
        ("6 7 8", "US", "6 7 8"),
    ],
)
def test_phone_numbers(text: str, region: str, redacted: str) -> None:
    assert only("phone", region=region).text(text) == redacted


def test_own_patterns_go_first_and_have_their_own_name() -> None:
    redactor = only("phone", "card", **{"member number": r"\bM-\d{10}\b", "name": "(?i)mr\\.? smith"})
    assert redactor.text("MR. SMITH, M-2125550123, 212 555 0123") == "[name], [member number], [phone number]"


def test_nothing_is_taken_out_that_nobody_asked_for() -> None:
    text = f"{CARD}, a@b.cd, +49 30 901820"
    assert only().text(text) == text
    assert only("email").text(text) == f"{CARD}, [e-mail address], +49 30 901820"


def test_json_is_redacted_in_values_and_names_and_long_numbers() -> None:
    value = {"a@b.cd": [CARD, 4111111111111111, 5, True, None, 1.5, {"note": "x a@b.cd"}]}
    assert EVERYTHING.json(value) == {
        "[e-mail address]": ["[card number]", "[card number]", 5, True, None, 1.5, {"note": "x [e-mail address]"}]
    }


@pytest.mark.parametrize(
    "pattern", ["(", "[", "(?=a)", r"(a)\1", "a{1001}", "((a{100}){100}){100}", "", "a*", "|a", "^"]
)
def test_a_pattern_that_cannot_be_used_is_refused(pattern: str) -> None:
    with pytest.raises(PatternInvalid):
        pattern_compile(pattern)


def made(data: EventData) -> Any:
    return make_event(data, tenant_id=uuid7(), call_id=uuid7(), seq=1, at=START)


def test_an_event_keeps_its_ids_names_and_rules() -> None:
    event = made(
        ToolDecided(
            decision_id=uuid7(),
            turn_id=None,
            ref="2125550123",
            name="call_2125550123",
            args={"to": "212-555-0123", "amount": 5},
            irreversible=True,
            allow=False,
            code="policy",
            state="judged",
            score=0.9,
            reason="It calls 212-555-0123.",
            instruction="Do not call 212-555-0123.",
            latency_ms=2125550123,
            at_ms=1,
        )
    )
    redacted = EVERYTHING.event(event)
    assert (redacted.id, redacted.data["ref"], redacted.data["name"]) == (event.id, "2125550123", "call_2125550123")
    assert redacted.data["latency_ms"] == 2125550123
    assert redacted.data["args"] == {"to": "[phone number]", "amount": 5}
    assert redacted.data["reason"] == "It calls [phone number]."
    assert redacted.data["instruction"] == "Do not call [phone number]."
    assert event.data["args"]["to"] == "212-555-0123"


def test_the_tool_calls_of_a_turn_keep_their_ids() -> None:
    call = {"id": "2125550123", "name": "dial", "args": {"to": "2125550123"}, "irreversible": False}
    event = made(
        TurnReported(turn_id=uuid7(), ref="t", index=1, customer_text=CARD, text="a@b.cd", tool_calls=[call], at_ms=1)
    )
    data = EVERYTHING.event(event).data
    assert (data["customer_text"], data["text"]) == ("[card number]", "[e-mail address]")
    assert data["tool_calls"] == [{**call, "args": {"to": "[phone number]"}}]


def test_a_number_that_was_cut_off_in_the_middle_is_found_over_its_parts() -> None:
    event = made(
        TurnHeard(
            turn_id=uuid7(),
            audio_ms=1,
            heard_ms=1,
            heard_text="Your card 4111 1111",
            uncertain_text="1111",
            unheard_text="1111 is charged.",
            basis="pauses",
            at_ms=1,
        )
    )
    data = EVERYTHING.event(event).data
    assert [data[name] for name in ("heard_text", "uncertain_text", "unheard_text")] == [
        "Your card [card number]",
        "",
        " is charged.",
    ]


def test_every_text_field_of_every_kind_is_redacted_or_known_to_hold_none() -> None:
    """A field that a later kind brings has to be thought of here."""
    from supervision import redaction

    redacted = redaction._WORDS | set(redaction._HEARD) | {"tool_calls"}
    nothing_said = {
        # Ids, and what Mirror or Plivo writes.
        *("turn_id", "verdict_id", "decision_id", "intervention_id", "note_id", "agent_id", "policy_id"),
        *(
            "policy_version_id",
            "plivo_call_id",
            "stream_id",
            "account_id",
            "ref",
            "node",
            "sdk",
            "language",
            "encoding",
        ),
        *("role", "rule", "name", "step", "code", "wants", "dropped", "coverage_reason"),
        # Who called whom: what the call is, not what was said in it.
        *("from_number", "to_number"),
        *("mode", "delivery", "state", "withheld", "basis", "plan", "outcome", "correction_source", "silence_proof"),
        *("violation_basis", "direction", "ended_by", "coverage_state"),
        # Who approved a tool call is a member, and nobody on the line.
        *("by", "on_silence"),
        *("started_at", "model"),
    }
    for kind in KINDS.values():
        for name, annotation in kind.__annotations__.items():
            if name.isupper() or annotation.split(" |")[0] in ("int", "float", "bool"):
                continue
            assert name in redacted or name in nothing_said, f"{kind.KIND}: {name}"
    assert not redacted & nothing_said


def test_a_process_knows_what_each_tenant_wants_and_is_careful_with_others() -> None:
    redaction = Redaction()
    note = made(
        NoteSent(
            note_id=uuid7(),
            rev=1,
            intervention_id=None,
            turn_id=None,
            text=f"M-1 {CARD}",
            said="",
            heard_text="",
            heard_ms=None,
            at_ms=1,
        )
    )
    assert redaction.event(note).data["text"] == "M-1 [card number]"
    redaction.learn(note.tenant_id, RedactionSettings(frozenset(), patterns=(OwnPattern("member", r"M-\d+"),)))
    assert redaction.event(note).data["text"] == f"[member] {CARD}"
    stranger = make_event(
        NoteSent(
            note_id=uuid7(),
            rev=1,
            intervention_id=None,
            turn_id=None,
            text="M-1",
            said="",
            heard_text="",
            heard_ms=None,
            at_ms=1,
        ),
        tenant_id=uuid7(),
        call_id=uuid7(),
        seq=1,
        at=START,
    )
    assert redaction.event(stranger).data["text"] == "M-1"


def test_a_stored_pattern_that_a_later_version_refuses_is_left_out_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    redactor = only("email", bad="(", good="x+y")
    assert redactor.text("xxy a@b.cd (") == "[good] [e-mail address] ("
    assert "a redaction pattern is not used" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "2125550123 " * 5_900,
        "12345678 " * 7_000,
        "1 " * 32_000,
        "1" * 64_000,
        "a" * 64_000 + "@",
        "a@" * 32_000,
        "a." * 32_000 + "@",
        "@" + "a." * 32_000,
        "((((1234567" * 6_000,
        "123 abc " * 8_000 + "212 555 0123",
        "+" * 64_000,
        "4111 1111 1111 1111 " * 3_200,
        "x" * 64_000,
    ],
    ids=lambda text: f"{text[:12]} and so on",
)
def test_no_text_takes_long(text: str) -> None:
    """64 kB, the most that a field holds; patterns that backtrack would take hours."""
    redactor = only("card", "email", "phone", evil="(x+x+)+y", also="(a|a)*b")
    began = time.process_time()
    redactor.text(text)
    assert time.process_time() - began < 2.0


def test_what_holds_too_many_numbers_loses_all_of_them() -> None:
    assert "555" not in only("phone").text("call 2125550123 now, " * 60)
    assert not any(character.isdigit() for character in only("card").text("1234 " * 100))
