"""What pages say of rows. Pure: no row here is in a database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.template.loader import render_to_string

from mirror_saas.ids import uuid7
from supervision.models import Agent, Call, CallEvent, Intervention, Policy, ToolDecision, Turn, Verdict
from supervision.selectors.call_pages import CallRecord
from webui.presenters.calls import banners_of, call_row, coverage_of
from webui.presenters.events import event_view
from webui.presenters.interventions import NOTED, OUTCOMES, PLANS, intervention_view
from webui.presenters.pages import call_page
from webui.presenters.tools import TOOL_CODES, tool_view
from webui.presenters.turns import WITHHELD, heard_spans, verdict_view
from webui.presenters.waterfall import nice_ticks, waterfall_of

START = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
NOW = START + timedelta(seconds=33)
TENANT = uuid7()


def call(**fields: Any) -> Call:
    values: dict[str, Any] = {
        "tenant_id": TENANT,
        "agent": Agent(tenant_id=TENANT, name="Hotline"),
        "policy": Policy(tenant_id=TENANT, name="Care"),
        "policy_version": 3,
        "state": "ended",
        "outcome": "completed",
        "started_at": START,
        "mode": "live",
        "agent_connected_at_ms": 20,
    }
    return Call(**{**values, **fields})


def turn(**fields: Any) -> Turn:
    return Turn(**{"tenant_id": TENANT, "index": 1, "text": "Yes, I have refunded it.", "at_ms": 2_000, **fields})


def verdict(**fields: Any) -> Verdict:
    values = {"tenant_id": TENANT, "state": "judged", "score": 0.1, "threshold": 0.7, "at_ms": 2_300, "latency_ms": 300}
    return Verdict(**{**values, **fields})


def intervention(**fields: Any) -> Intervention:
    values: dict[str, Any] = {"tenant_id": TENANT, "plan": "cut_now", "at_ms": 2_304, "steps": []}
    return Intervention(**{**values, **fields})


def steps(**at_ms: int) -> list[dict[str, Any]]:
    return [{"step": name, "at_ms": at, "detail": ""} for name, at in at_ms.items()]


def record(the_call: Call, **rows: Any) -> CallRecord:
    values: dict[str, Any] = {
        "judge_model": "judge-1",
        "turns": [],
        "verdicts": [],
        "tool_decisions": [],
        "interventions": [],
        "notes": [],
        "events": [],
        "seq": 0,
        "more_events": False,
    }
    return CallRecord(call=the_call, **{**values, **rows})


# -- coverage ------------------------------------------------------------------------------------------------------


def test_full_coverage_says_that_every_turn_was_judged() -> None:
    shown = coverage_of(call(coverage=1.0, coverage_state="full", judged_count=3, turn_count=3))
    assert (shown.text, shown.tone, shown.icon) == ("100 %", "good", "check")


def test_partial_coverage_says_how_many_turns_and_why() -> None:
    shown = coverage_of(call(coverage=0.5, coverage_state="partial", timed_out_count=1, failed_count=1, judged_count=2))
    assert shown.text == "50 %"
    assert "2 turns not judged (1 timed out, 1 failed)" in shown.why


def test_no_coverage_repeats_the_recorded_reason() -> None:
    shown = coverage_of(call(coverage_state="none", coverage_reason="The agent never said mirror.hello."))
    assert (shown.text, shown.tone) == ("none", "warn")
    assert shown.why == "The agent never said mirror.hello."


def test_a_live_calls_coverage_follows_its_counts() -> None:
    assert coverage_of(call(state="live", judged_count=3, timed_out_count=1)).text == "75 %"
    assert coverage_of(call(state="live")).why == "The agent has reported no turn yet."


# -- rows and heads ------------------------------------------------------------------------------------------------


def test_a_live_row_counts_from_its_start_and_an_ended_one_stands() -> None:
    assert call_row(call(state="live"), NOW).elapsed_ms == 33_000
    assert call_row(call(duration_ms=5_120), NOW).elapsed_ms == 5_120


def test_rows_sort_in_the_browser_as_in_the_database() -> None:
    older, newer = call_row(call(), NOW), call_row(call(started_at=NOW), NOW)
    assert older.order < newer.order
    assert len(older.order) == len(newer.order)


def test_the_scripted_judge_is_named_on_top_of_everything() -> None:
    banners = list(banners_of(call(turn_count=1), "demo-script"))
    assert banners[0].title == "No model is judging: the demo’s script answers."
    assert not list(banners_of(call(turn_count=1), "gpt-4o-mini"))


def test_degraded_judging_has_a_banner() -> None:
    (banner,) = banners_of(call(turn_count=3, judged_count=1, timed_out_count=1, shed_count=1), "judge-1")
    assert banner.title == "Judging is degraded: 2 turns not judged (1 timed out, 1 shed under load)."


def test_a_call_without_turns_says_what_to_do() -> None:
    (banner,) = banners_of(call(), "judge-1")
    assert banner.title == "Nothing was supervised."
    assert "supervision.client" in banner.text


# -- turns ---------------------------------------------------------------------------------------------------------


def test_heard_uncertain_and_never_heard_come_in_the_order_spoken() -> None:
    shown = heard_spans(
        turn(heard_basis="pauses", heard_text="Yes, I ", uncertain_text="have", unheard_text=" refunded it.")
    )
    assert [(span.kind, span.text) for span in shown] == [
        ("heard", "Yes, I"),
        ("uncertain", "have"),
        ("unheard", "refunded it."),
    ]


def test_without_playout_the_text_is_what_was_said_and_no_more() -> None:
    assert [span.kind for span in heard_spans(turn())] == ["said"]


def test_a_violation_says_score_threshold_and_rule() -> None:
    shown = verdict_view(verdict(score=0.93, intervene=True, acted=True, rule="Never confirm a refund."))
    assert (shown.badge.text, shown.violation) == ("Violation", True)
    assert shown.score_words == "0.93 reaches threshold 0.70"
    assert shown.withheld == ""


@pytest.mark.parametrize(
    ("state", "text"),
    [("skipped", "Skipped"), ("timed_out", "Timed out"), ("failed", "Judging failed"), ("shed", "Shed under load")],
)
def test_what_was_not_judged_never_looks_clean(state: str, text: str) -> None:
    shown = verdict_view(verdict(state=state, score=None))
    assert (shown.badge.text, shown.violation, shown.score_words) == (text, False, "")
    assert shown.badge.tone != "good"


def test_a_skipped_turn_says_why_nobody_was_asked_and_not_how_long_it_took() -> None:
    shown = verdict_view(verdict(state="skipped", score=None, detail="only asks", latency_ms=0))
    html = render_to_string("webui/calls/verdict.html", {"verdict": shown})
    assert "Not judged: only asks" in html
    assert "how long the judge took" not in html
    failed = verdict_view(verdict(state="timed_out", score=None, detail="no answer", latency_ms=4000))
    html = render_to_string("webui/calls/verdict.html", {"verdict": failed})
    assert "Not judged" not in html
    assert "how long the judge took" in html


@pytest.mark.parametrize("why", WITHHELD)
def test_a_withheld_intervention_says_why(why: str) -> None:
    shown = verdict_view(verdict(score=0.9, intervene=True, acted=False, withheld=why))
    assert shown.withheld.startswith("Did not step in")


# -- tools ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", TOOL_CODES)
def test_every_code_of_the_gate_has_its_words(code: str) -> None:
    shown = tool_view(ToolDecision(tenant_id=TENANT, name="charge_card", allow=False, code=code, at_ms=1))
    assert shown.badge.text == "Blocked"
    assert shown.why == TOOL_CODES[code]


def test_a_tool_that_ran_unchecked_does_not_look_allowed_by_a_judge() -> None:
    shown = tool_view(ToolDecision(tenant_id=TENANT, name="lookup", allow=True, code="timeout", at_ms=1))
    assert (shown.badge.text, shown.badge.tone) == ("Allowed unchecked", "warn")


# -- interventions -------------------------------------------------------------------------------------------------


def test_the_waterfall_is_to_scale_and_starts_when_the_judge_was_asked() -> None:
    drawn = waterfall_of(
        intervention(
            outcome="completed",
            ended_at_ms=6_000,
            steps=steps(
                clear_sent=2_310,
                silence_proved=2_400,
                buffer_sent=2_400,
                correction_ready=3_000,
                correction_sent=3_100,
                buffer_played=4_000,
                correction_played=5_900,
                handed_back=6_000,
            ),
        ),
        verdict(),
    )
    # The judge was asked at 2,000 and the correction handed back at 6,000: 1 % is 40 ms.
    assert drawn.span_ms == 4_000
    bars = {bar.label: (float(bar.x), float(bar.width), bar.words) for bar in drawn.bars}
    assert bars["Judged"] == (0.0, 7.5, "300 ms")
    assert bars["Cut to silence"] == (7.75, 2.25, "90 ms")
    assert bars["Buffer line"] == (10.0, 40.0, "1.6 s")
    assert bars["Correction queued"] == (27.5, 22.5, "900 ms")
    assert bars["Correction"] == (50.0, 47.5, "1.9 s")
    assert bars["Handed back"] == (100.0, 0.0, "at 4.0 s")


def test_a_stretch_without_an_end_is_running_while_live_and_unacknowledged_afterwards() -> None:
    running = waterfall_of(intervention(steps=steps(buffer_sent=2_400, later=3_000)), None)
    (bar,) = [bar for bar in running.bars if bar.label == "Buffer line"]
    assert (bar.open, bar.words) == (True, "running")

    gone = waterfall_of(intervention(outcome="caller_gone", ended_at_ms=2_900, steps=steps(buffer_sent=2_400)), None)
    (bar,) = [bar for bar in gone.bars if bar.label == "Buffer line"]
    assert not bar.open
    assert "never acknowledged" in bar.words


def test_steps_that_nobody_has_named_yet_are_shown_all_the_same() -> None:
    shown = intervention_view(intervention(steps=steps(something_new=2_500)))
    assert [step.label for step in shown.steps] == ["Something new"]
    assert [bar.label for bar in shown.waterfall.bars] == ["Something new"]


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("plan", PLANS)
def test_every_outcome_and_plan_has_its_words(outcome: str, plan: str) -> None:
    shown = intervention_view(intervention(outcome=outcome, plan=plan))
    assert shown.badge is (NOTED if (outcome, plan) == ("", "note_only") else OUTCOMES[outcome])
    assert shown.plan == PLANS[plan]


def test_a_note_alone_is_not_shown_as_an_intervention_that_runs() -> None:
    noted, cut = (intervention_view(intervention(outcome="", plan=plan)) for plan in ("note_only", "cut_now"))
    assert (noted.running, noted.badge.text) == (False, "Note only")
    assert (cut.running, cut.badge.text) == (True, "Running")


def test_violating_words_that_were_heard_stand_out_and_none_is_said_in_words() -> None:
    heard = intervention_view(intervention(outcome="completed", violation_heard_ms=310, violation_basis="quote"))
    nothing = intervention_view(intervention(outcome="completed", violation_heard_ms=0))
    assert (heard.figures[0].value, heard.figures[0].tone) == ("310 ms", "bad")
    assert (nothing.figures[0].value, nothing.figures[0].tone) == ("nothing", "good")


@pytest.mark.parametrize("span_ms", [1, 7, 90, 640, 5_227, 61_000, 3_600_000])
def test_ticks_are_round_and_few(span_ms: int) -> None:
    ticks = nice_ticks(span_ms)
    assert ticks[0] == 0
    assert ticks[-1] <= span_ms
    assert len(ticks) <= 6
    assert len(ticks) >= 2


# -- the timeline --------------------------------------------------------------------------------------------------


def test_the_end_of_a_call_tells_that_its_record_lost_detail() -> None:
    def summary(**data: Any) -> str:
        data = {"outcome": "completed", "ended_by": "caller", "reason": "", **data}
        return event_view(CallEvent(tenant_id=TENANT, seq=9, at=START, kind="call.ended", data=data), START).summary

    assert "12 details left out" in summary(detail_dropped=12)
    for nothing in ({}, {"detail_dropped": 0}, {"detail_dropped": None}):
        assert "details" not in summary(**nothing)


def test_an_event_of_a_kind_that_nobody_has_named_yet_is_listed() -> None:
    shown = event_view(
        CallEvent(tenant_id=TENANT, seq=1, at=START + timedelta(milliseconds=250), kind="call.waved", data={}), START
    )
    assert (shown.label, shown.at_ms, shown.summary) == ("Call waved", 250, "")


def test_the_timeline_tells_a_violation_from_a_turn_that_was_not_judged() -> None:
    def judged(**data: Any) -> str:
        event = CallEvent(tenant_id=TENANT, seq=1, at=START, kind="turn.judged", data={"at_ms": 1, **data})
        return event_view(event, START).tone

    assert judged(state="judged", score=0.9, threshold=0.7, intervene=True) == "bad"
    assert judged(state="judged", score=0.1, threshold=0.7) == "good"
    assert judged(state="timed_out") == "warn"


# -- the page ------------------------------------------------------------------------------------------------------


def test_the_page_puts_verdict_tool_and_intervention_beside_their_turn() -> None:
    the_turn = turn()
    late, in_time = verdict(turn=the_turn, late=True, at_ms=9_000), verdict(turn=the_turn, score=0.9, intervene=True)
    cut = intervention(turn=the_turn, verdict=in_time, outcome="completed", rule="Never confirm a refund.")
    tool = ToolDecision(tenant_id=TENANT, turn=the_turn, name="pay", allow=False, code="policy", at_ms=2_100)
    alone = ToolDecision(tenant_id=TENANT, name="lookup", allow=True, code="ok", at_ms=2_200)

    page = call_page(
        record(call(), turns=[the_turn], verdicts=[late, in_time], tool_decisions=[tool, alone], interventions=[cut]),
        NOW,
    )

    (shown,) = page.turns
    assert [found.late for found in shown.verdicts] == [False, True]
    assert [found.name for found in shown.tools] == ["pay"]
    assert [found.dom_id for found in shown.interventions] == [f"intervention-{cut.id.hex}"]
    assert [found.name for found in page.tools] == ["pay", "lookup"]
    # The tool that names no turn stands between the turns by itself.
    assert [found.dom_id for found in page.story] == [shown.dom_id, f"tool-{alone.id.hex}"]
    assert page.interventions[0].turn_number == 1


def test_highlights_come_in_order_and_name_a_violation_that_was_let_pass() -> None:
    first, second = turn(at_ms=1_000), turn(index=2, at_ms=8_000)
    passed = verdict(turn=second, score=0.9, intervene=True, withheld="cooldown", rule="Never promise a date.")
    tool = ToolDecision(tenant_id=TENANT, name="pay", allow=False, code="policy", at_ms=9_000)
    cut = intervention(turn=first, at_ms=1_500, outcome="completed", rule="Never confirm a refund.")

    page = call_page(
        record(call(), turns=[first, second], verdicts=[passed], tool_decisions=[tool], interventions=[cut]), NOW
    )

    assert [(found.badge.text, found.title) for found in page.highlights] == [
        ("Intervention", "Never confirm a refund."),
        ("Violation", "Never promise a date."),
        ("Tool blocked", "pay"),
    ]


def test_a_violation_that_was_found_late_is_a_highlight_too() -> None:
    the_turn = turn()
    verdicts = [verdict(turn=the_turn, state="timed_out", score=None), verdict(turn=the_turn, late=True, score=0.9)]
    verdicts[1].intervene = True
    (found,) = call_page(record(call(), turns=[the_turn], verdicts=verdicts), NOW).highlights
    assert found.badge.text == "Violation"
    assert found.outcome is not None
    assert found.outcome.text == "Late answer"


@pytest.mark.parametrize(
    ("fields", "reported", "words"),
    [
        ({"state": "live"}, True, "so far"),
        ({"turn_count": 0}, False, "nothing to judge"),
        ({"turn_count": 1, "failed_count": 1}, True, "among the turns that were judged"),
        ({"turn_count": 1, "judged_count": 1}, True, "Nothing stood out"),
    ],
)
def test_no_highlights_claims_no_more_than_was_looked_at(fields: dict[str, Any], reported: bool, words: str) -> None:
    page = call_page(record(call(**fields), turns=[turn()] if reported else []), NOW)
    assert page.highlights == ()
    assert words in page.no_highlights


def test_an_intervention_that_only_left_a_note_is_not_called_one() -> None:
    page = call_page(record(call(), interventions=[intervention(outcome="shadow", plan="cut_now")]), NOW)
    assert page.highlights[0].badge.text == "Not acted on"
