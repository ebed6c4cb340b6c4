"""What a timeline draws, the words that a verdict quotes, how fast Mirror was, what may be said of it. Pure."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from mirror_saas.ids import uuid7
from supervision.models import Intervention, Label, Verdict
from supervision.selectors.call_pages import CallOutline, SpeechMark, ToolMark, TurnMark, VerdictMark
from webui.presenters.evidence import evidence_of
from webui.presenters.labels import LABELS, Refused, label_view
from webui.presenters.lanes import CALLER, CUT, HEARD, MIRROR, TOOLS, VERDICTS, Item, items_of
from webui.presenters.latency import latency_of

TENANT = uuid7()
TURN = uuid7()


def turn(**fields: Any) -> TurnMark:
    values: dict[str, Any] = {
        "id": TURN,
        "number": 1,
        "at_ms": 2_000,
        "customer_chars": 0,
        "audio_ms": 4_000,
        "heard_ms": 4_000,
        "heard_at_ms": 7_000,
    }
    return TurnMark(**{**values, **fields})


def intervention(**at_ms: int) -> Intervention:
    steps = [{"step": name, "at_ms": at, "detail": ""} for name, at in at_ms.items()]
    return Intervention(tenant_id=TENANT, turn_id=TURN, plan="cut_now", at_ms=3_000, ended_at_ms=9_000, steps=steps)


def marks(items: tuple[Item, ...], lane: int) -> list[tuple[str, int, int | None]]:
    return [(mark.kind, mark.from_ms, mark.to_ms) for item in items for mark in item.marks if mark.lane == lane]


# -- the agent ------------------------------------------------------------------------------------------------------


def test_a_turn_that_was_heard_in_full_ends_before_it_was_known_that_it_was() -> None:
    drawn = items_of(CallOutline(turns=[turn()]))
    assert marks(drawn, HEARD) == [("heard", 2_500, 6_500)]
    assert marks(drawn, CUT) == []


def test_a_turn_that_was_cut_goes_on_hatched_from_where_silence_was_proven() -> None:
    cut = intervention(clear_sent=3_400, silence_proved=3_500)
    drawn = items_of(CallOutline(turns=[turn(heard_ms=1_200, heard_at_ms=8_800)], interventions=[cut]))
    assert marks(drawn, HEARD) == [("heard", 2_300, 3_500)]
    assert marks(drawn, CUT) == [("cut", 3_500, 6_300)]


def test_a_turn_is_not_heard_before_it_was_reported() -> None:
    drawn = items_of(CallOutline(turns=[turn(heard_at_ms=4_000)]))
    assert marks(drawn, HEARD) == [("heard", 2_000, 6_000)]


def test_a_retraction_comes_after_the_words_that_it_takes_back() -> None:
    retracted = Intervention(tenant_id=TENANT, turn_id=TURN, plan="retract", at_ms=6_200, steps=[])
    drawn = items_of(CallOutline(turns=[turn(heard_at_ms=12_000)], interventions=[retracted]))
    assert marks(drawn, HEARD) == [("heard", 2_200, 6_200)]


def test_a_turn_whose_playout_nobody_followed_is_a_moment() -> None:
    drawn = items_of(CallOutline(turns=[turn(audio_ms=None, heard_ms=None, heard_at_ms=None)]))
    assert marks(drawn, HEARD) == [("reported", 2_000, 2_000)]


# -- the caller -----------------------------------------------------------------------------------------------------


def test_speech_ends_when_it_was_transcribed_and_does_not_reach_into_what_was_said_before() -> None:
    speech = [
        SpeechMark(3, "customer", 2_000, 10),
        SpeechMark(4, "customer", 2_400, 40),
        SpeechMark(5, "mirror", 9_000, 20),
    ]
    drawn = items_of(CallOutline(speech=speech, transcribed=True))
    assert marks(drawn, CALLER) == [("caller", 1_350, 2_000), ("caller", 2_000, 2_400)]
    assert marks(drawn, MIRROR) == [("hold-line", 9_000, 10_300)]


def test_without_transcripts_the_caller_spoke_before_the_turn_that_answers() -> None:
    asked = turn(customer_chars=20)
    assert marks(items_of(CallOutline(turns=[asked])), CALLER) == [("caller", 700, 2_000)]
    assert marks(items_of(CallOutline(turns=[asked], transcribed=True)), CALLER) == []


# -- Mirror, tools, verdicts ----------------------------------------------------------------------------------------


def test_the_correction_is_heard_when_the_buffer_line_has_played() -> None:
    spoke = intervention(buffer_sent=3_500, correction_sent=4_000, buffer_played=4_800, correction_played=8_000)
    assert marks(items_of(CallOutline(interventions=[spoke])), MIRROR) == [
        ("buffer", 3_500, 4_800),
        ("correction", 4_800, 8_000),
    ]


def test_an_intervention_that_runs_is_open_and_one_without_words_a_moment() -> None:
    running = intervention(buffer_sent=3_500)
    running.ended_at_ms = None
    assert marks(items_of(CallOutline(interventions=[running])), MIRROR) == [("buffer", 3_500, None)]
    assert marks(items_of(CallOutline(interventions=[intervention()])), MIRROR) == [("note", 3_000, 3_000)]


@pytest.mark.parametrize(
    ("allow", "done_at_ms", "drawn"),
    [
        (True, 5_000, ("tool", 2_800, 5_000)),
        (True, None, ("tool", 2_800, 3_000)),
        (False, None, ("blocked", 2_800, 3_000)),
    ],
)
def test_a_tool_is_drawn_from_the_gates_question_on(
    allow: bool, done_at_ms: int | None, drawn: tuple[str, int, int]
) -> None:
    tool = ToolMark(uuid7(), None, allow, 3_000, 200, done_at_ms)
    assert marks(items_of(CallOutline(tools=[tool])), TOOLS) == [drawn]


@pytest.mark.parametrize(
    ("state", "intervene", "kind"),
    [
        ("judged", True, "violation"),
        ("judged", False, "clean"),
        ("skipped", False, "skipped"),
        ("timed_out", False, "not-judged"),
        ("failed", False, "not-judged"),
        ("shed", False, "not-judged"),
    ],
)
def test_a_verdict_is_drawn_as_what_it_says(state: str, intervene: bool, kind: str) -> None:
    verdict = VerdictMark(TURN, state, intervene, False, 2_300, 300)
    drawn = items_of(CallOutline(turns=[turn()], verdicts=[verdict]))
    assert marks(drawn, VERDICTS) == [(kind, 2_000, 2_300)]
    assert drawn[0].as_json()["marks"][-1] == [VERDICTS, kind, 2_000, 2_300]


# -- evidence -------------------------------------------------------------------------------------------------------


def spans(text: str, reason: str) -> list[tuple[str, bool]]:
    return [(span.text, span.quoted) for span in evidence_of(text, reason)]


def test_quoted_words_are_marked_where_they_stand() -> None:
    assert spans("Of course! I have just refunded it.", 'It says "just refunded".') == [
        ("Of course! I have ", False),
        ("just refunded", True),
        (" it.", False),
    ]


def test_quotes_that_overlap_or_stand_nowhere_lose_no_words() -> None:
    text = "I promise it comes tomorrow."
    reason = 'It says "I promise it" and "it comes tomorrow", and "never said".'
    found = spans(text, reason)
    assert "".join(words for words, _ in found) == text
    assert [quoted for _, quoted in found] == [True, True, False]
    assert spans(text, "No quote.") == [(text, False)]


# -- latency --------------------------------------------------------------------------------------------------------


def verdict(**fields: Any) -> Verdict:
    values = {"tenant_id": TENANT, "state": "judged", "score": 0.9, "threshold": 0.7, "at_ms": 2_600, "latency_ms": 600}
    return Verdict(**{**values, **fields})


def test_latency_runs_from_the_clause_to_the_first_word_of_the_correction() -> None:
    spoke = intervention(
        clear_sent=2_606,
        cleared=2_671,
        silence_proved=2_672,
        buffer_sent=2_675,
        correction_sent=3_200,
        buffer_played=4_100,
    )
    found = latency_of(verdict(), spoke)
    assert [(each.name, each.since_ms, each.took_ms) for each in found] == [
        ("Clause end", 0, None),
        ("Judged", 600, 600),
        ("Cleared", 606, 6),
        ("Acknowledged", 671, 65),
        ("Buffer line heard", 675, 4),
        ("Correction heard", 2_100, 1_425),
    ]
    assert found[3].how == "Plivo acknowledged"


def test_a_turn_that_nobody_was_asked_about_has_no_latency() -> None:
    assert latency_of(verdict(state="skipped", latency_ms=0)) == ()
    assert latency_of(None) == ()
    assert [each.name for each in latency_of(verdict())] == ["Clause end", "Judged"]
    assert [each.name for each in latency_of(verdict(state="timed_out", score=None))] == ["Clause end", "Timed out"]


# -- labels ---------------------------------------------------------------------------------------------------------


def label(value: str, subject_id: UUID) -> Label:
    return Label(tenant_id=TENANT, turn_id=subject_id, value=value, note="Looked at it.", labelled_by="Alice")


def test_what_may_be_said_depends_on_whether_mirror_objected() -> None:
    alarm = label_view("turn", TURN, [], alarm=True)
    passed = label_view("turn", TURN, [], alarm=False)
    assert [option.value for option in alarm.options] == ["confirmed", "false_alarm", "unsure"]
    assert [option.value for option in passed.options] == ["confirmed", "missed", "unsure"]
    assert alarm.question != passed.question
    assert alarm.badge is None


def test_a_label_is_shown_even_if_it_is_not_offered() -> None:
    shown = label_view("turn", TURN, [label("unsure", uuid7()), label("false_alarm", TURN)], alarm=False)
    assert shown.badge is LABELS["false_alarm"]
    assert [option.value for option in shown.options if option.chosen] == ["false_alarm"]
    assert (shown.note, shown.by) == ("Looked at it.", "Alice")


def test_a_refused_label_keeps_what_was_typed_at_its_own_form_only() -> None:
    refused = Refused(TURN, "x" * 9, "Too long.")
    own = label_view("turn", TURN, [label("unsure", TURN)], alarm=True, refused=refused)
    other = label_view("turn", uuid7(), [], alarm=True, refused=refused)
    assert (own.note, own.error) == ("x" * 9, "Too long.")
    assert (other.note, other.error) == ("", "")
