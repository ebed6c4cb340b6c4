"""The running calls: which there are, how risky they are, and what the live page and its topic say of them."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.test import Client
from django.utils import timezone

from mirror_saas.ids import uuid7
from supervision.models import Agent, Call, Intervention, Turn, Verdict
from supervision.recorder.announce import announce_to_channel_layer
from supervision.selectors.live_calls import LiveCall, NewestTurn, NewestVerdict, live_call_count, live_call_list
from tests.factories import CALL_START, Tenancy, call_create
from tests.webui import story
from tests.webui.test_socket import Connect, bring, connect, html, ids  # noqa: F401 (fixtures)
from webui import live_topic
from webui.live_forms import LiveFilterForm
from webui.presenters.live import HIGH, LOW, RAISED, UNKNOWN, degraded_banner, live_row, live_summary

TENANT = uuid7()
CLEAN = NewestVerdict("judged", 0.1, 0.7, "", False, "")
NEAR = replace(CLEAN, score=0.5)
VIOLATION = NewestVerdict("judged", 0.9, 0.7, story.DATE_RULE, True, "")
SKIPPED = NewestVerdict("skipped", None, None, "", False, "small talk")
TIMED_OUT = NewestVerdict("timed_out", None, 0.7, "", False, "no answer within 4.0 s")
FAILED = NewestVerdict("failed", None, 0.7, "", False, "the judge said 500")


def live_call(*verdicts: NewestVerdict, acting_on: str | None = None, **fields: Any) -> LiveCall:
    values: dict[str, Any] = {"tenant_id": TENANT, "agent": Agent(tenant_id=TENANT, name="Hotline"), "state": "live"}
    return LiveCall(
        Call(**{**values, "started_at": CALL_START, "mode": "live", **fields}),
        NewestTurn(2_000, "Hello?", "Hi."),
        verdicts,
        acting_on,
    )


# -- risk ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("live", "risk", "why"),
    [
        (live_call(CLEAN, acting_on=story.REFUND_RULE), HIGH, f"Mirror is stepping in: {story.REFUND_RULE}"),
        (live_call(CLEAN, acting_on=""), HIGH, "Mirror is stepping in"),
        (live_call(VIOLATION), HIGH, story.DATE_RULE),
        (live_call(CLEAN, CLEAN, VIOLATION), HIGH, story.DATE_RULE),
        (live_call(TIMED_OUT, CLEAN), RAISED, "The newest turn was not judged: timed out"),
        (live_call(CLEAN, TIMED_OUT), LOW, ""),
        (live_call(CLEAN, intervention_count=1), RAISED, "Earlier: 1 intervention"),
        (live_call(CLEAN, intervention_count=2, tools_blocked_count=1), RAISED,
         "Earlier: 2 interventions and 1 blocked tool"),
        (live_call(NEAR), RAISED, "0.50 is close to the threshold 0.70"),
        (live_call(replace(CLEAN, score=0.48)), LOW, ""),
        (live_call(SKIPPED), LOW, ""),
        (live_call(), UNKNOWN, "Nothing was judged so far"),
        (live_call(agent_failure="it closed"), RAISED, "The agent failed"),
    ],
    ids=["acting", "acting-without-rule", "violation", "violation-lately", "not-judged", "not-judged-before", "acted",
         "acted-and-blocked", "near", "below-near", "skipped", "nothing-judged", "agent-failed"],
)  # fmt: skip
def test_risk_is_what_was_judged_lately_and_says_why(live: LiveCall, risk: int, why: str) -> None:
    row = live_row(live, CALL_START)
    assert (row.risk, row.why) == (risk, why)


def test_rows_that_differ_in_their_time_alone_are_the_same() -> None:
    live = live_call(CLEAN)
    now, later = live_row(live, CALL_START), live_row(live, CALL_START + timedelta(minutes=1))
    assert now == later
    assert later.elapsed_ms == 60_000
    assert now != live_row(replace(live, turn=NewestTurn(9_000, "", "More.")), CALL_START)


def test_the_riskiest_come_first_and_among_them_the_newest() -> None:
    old = live_row(live_call(VIOLATION), CALL_START)
    new = live_row(live_call(VIOLATION, started_at=CALL_START + timedelta(minutes=1)), CALL_START)
    calm = live_row(live_call(CLEAN, started_at=CALL_START + timedelta(minutes=2)), CALL_START)
    by_risk, by_time = LiveFilterForm({}, agents=[]).shown(), LiveFilterForm({"order": "newest"}, agents=[]).shown()
    assert sorted([old, calm, new], key=by_risk.order, reverse=True) == [new, old, calm]
    assert sorted([old, calm, new], key=by_time.order, reverse=True) == [calm, new, old]


# -- is judging degraded? ----------------------------------------------------------------------------------------------


def banner_of(*calls: LiveCall) -> str | None:
    banner = degraded_banner([live_row(live, CALL_START) for live in calls])
    return None if banner is None else f"{banner.tone}: {banner.title} {banner.text}"


def test_nothing_is_degraded_while_turns_are_judged() -> None:
    assert banner_of() is None
    assert banner_of(live_call(CLEAN, SKIPPED), live_call()) is None
    # A turn that timed out is no trend.
    assert banner_of(live_call(CLEAN, CLEAN, TIMED_OUT)) is None
    assert banner_of(live_call(TIMED_OUT)) is None


def test_a_call_whose_newest_turns_were_not_judged_degrades_judging() -> None:
    said = banner_of(live_call(TIMED_OUT, FAILED, TIMED_OUT), live_call(CLEAN))
    assert said == (
        "warn: Judging is degraded in 1 of 2 running calls. What agents say in turns that are not judged is not "
        "checked; the calls go on. Of the newest turns: 1 failed, 2 timed out. Why: no answer within 4.0 s. Check the "
        "judge’s server and its key."
    )


def test_a_call_whose_coverage_fell_degrades_judging_too() -> None:
    said = banner_of(live_call(CLEAN, CLEAN, CLEAN, judged_count=7, failed_count=2))
    assert said is not None
    assert said.startswith("warn: Judging is degraded in 1 of 1 running call.")
    assert banner_of(live_call(CLEAN, CLEAN, CLEAN, judged_count=8, failed_count=2)) is None
    assert banner_of(live_call(CLEAN, judged_count=2, failed_count=2)) is None


def test_single_failures_in_many_calls_degrade_judging() -> None:
    said = banner_of(*(live_call(FAILED) for _ in range(5)))
    assert said is not None
    assert said.startswith("bad: Judging is degraded in 5 turns of the newest ones.")
    assert "the judge said 500" in said


def test_the_summary_counts_all_calls_and_says_what_it_does_not_watch() -> None:
    rows = [live_row(live, CALL_START) for live in (live_call(VIOLATION), live_call(NEAR), live_call(CLEAN))]
    summary = live_summary(rows, 5)
    assert (summary.running, summary.high, summary.raised, summary.more) == (5, 1, 1, 2)


# -- which calls there are --------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_running_call_comes_with_its_newest_turn_and_verdicts(tenant: Tenancy, stranger: Tenancy) -> None:
    call_create(stranger, state="live")
    call_create(tenant)
    call = call_create(tenant, state="live")
    with tenant.context():
        turn = Turn.objects.create(call=call, ref="t2", index=1, customer_text="And?", text="x" * 500, at_ms=9_000)
        for number, (state, late) in enumerate(
            [("judged", False), ("skipped", False), ("failed", False), ("judged", True)], start=1
        ):
            Verdict.objects.create(
                call=call, turn=turn, state=state, late=late, at_ms=9_000 + number, detail=f"detail {number}"
            )
        (live,) = live_call_list()
        assert live.call == call
        assert live.turn == NewestTurn(9_000, "And?", "x" * 400)
        # Not the late one; the oldest does not count any more.
        assert [(verdict.state, verdict.detail) for verdict in live.verdicts] == [
            ("failed", "detail 3"),
            ("skipped", "detail 2"),
            ("judged", "detail 1"),
        ]
        assert live.acting_on is None
        Intervention.objects.create(call=call, plan="note_only", at_ms=9_100, rule="only a note")
        assert live_call_list()[0].acting_on is None
        Intervention.objects.create(call=call, plan="cut_now", at_ms=9_200, rule=story.REFUND_RULE)
        assert live_call_list()[0].acting_on == story.REFUND_RULE
        assert live_call_count() == 1
        assert live_call_list(ids=frozenset({uuid7()})) == []
    with stranger.context():
        assert live_call_list(ids=frozenset({call.id})) == []
        assert [live.call.agent.name for live in live_call_list()] == ["charlie's agent"]


# -- the page ---------------------------------------------------------------------------------------------------------


ROW = re.compile(r'<tr id="live-([0-9a-f]{32})"')


def page_of(tenancy: Tenancy, person: str, query: str = "") -> str:
    client = Client()
    client.force_login(tenancy.users[person])
    answer = client.get(f"/live{query}")
    assert answer.status_code == 200
    return answer.content.decode()


@pytest.mark.django_db
def test_the_page_shows_what_runs_and_filters_by_its_url(tenant: Tenancy, stranger: Tenancy) -> None:
    call_create(stranger, state="live", text="charlie's running secret")
    ended = call_create(tenant)
    risky = call_create(tenant, state="live", customer_text="My <b>money</b>?", started_at=CALL_START)
    with tenant.context():
        calm = Call.objects.create(agent=tenant.agent, state="live", started_at=CALL_START + timedelta(minutes=1))
    page = page_of(tenant, "bob")
    assert ROW.findall(page) == [risky.id.hex, calm.id.hex]
    assert "My &lt;b&gt;money&lt;/b&gt;?" in page
    assert "charlie" not in page
    assert ended.id.hex not in page
    assert "Never confirm a refund." in page
    assert 'query=""' in page
    newest = page_of(tenant, "bob", "?order=newest")
    assert ROW.findall(newest) == [calm.id.hex, risky.id.hex]
    assert ROW.findall(page_of(tenant, "bob", "?risk=high")) == [risky.id.hex]
    assert len(ROW.findall(page_of(tenant, "bob", f"?agent={tenant.agent.id}"))) == 2
    # Somebody else's agent is none of the list: it filters nothing, and says so at its field.
    wrong = page_of(tenant, "bob", f"?agent={stranger.agent.id}&risk=huge")
    assert wrong.count("Choose one of the list.") == 2
    assert len(ROW.findall(wrong)) == 2


@pytest.mark.django_db
def test_an_empty_page_says_what_to_do(tenant: Tenancy) -> None:
    assert "No call is running" in page_of(tenant, "alice")
    assert "No running call matches these filters" in page_of(tenant, "alice", "?risk=high")
    with tenant.context():
        Agent.objects.all().delete()
    assert "No agent yet" in page_of(tenant, "alice")


@pytest.mark.django_db
def test_a_degraded_judge_is_said_on_top(tenant: Tenancy) -> None:
    call = call_create(tenant, state="live", text="A turn")
    with tenant.context():
        turn = Turn.objects.create(call=call, ref="t2", index=1, text="Another", at_ms=9_000)
        for number in range(3):
            Verdict.objects.create(call=call, turn=turn, state="failed", at_ms=9_000 + number, detail="wrong <key>")
    page = page_of(tenant, "alice")
    assert "Judging is degraded in 1 of 1 running call." in page
    assert "Why: wrong &lt;key&gt;." in page


# -- the topic --------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
async def test_the_topic_sends_a_snapshot_and_then_what_changed(
    connect: Connect,  # noqa: F811
    bring: Callable[..., Awaitable[None]],  # noqa: F811
    tenant: Tenancy,
    stranger: Tenancy,
) -> None:
    first, second = story.Story(tenant, story.now()), story.Story(tenant, story.now())
    await bring([*first.start(), *second.start()])
    async with connect(tenant.users["bob"]) as bob, connect(stranger.users["charlie"]) as charlie:
        await bob.subscribe("live")
        await charlie.subscribe("live")
        snapshot = await bob.hear("update")
        assert snapshot["n"] == 1
        (kept,) = [part["only"] for part in snapshot["parts"] if part["id"] == "live-calls"]
        assert (
            set(kept)
            == {f"live-{told.call_id.hex}" for told in (first, second)}
            == set(ids(snapshot))
            - {
                "live-calls",
                "live-summary",
            }
        )
        theirs = await charlie.hear("update")

        await bring(first.turn(2_140, "Is it coming?", "It will be there tomorrow, I promise.", name="promise"))
        update = await bob.hear("update")
        # Nothing of the other call, which did not change.
        assert ids(update) == [f"live-{first.call_id.hex}"]
        assert update["n"] == 2
        assert "It will be there tomorrow, I promise." in html(update, f"live-{first.call_id.hex}")

        await bring(first.judged("promise", 2_400, 0.91, rule=story.DATE_RULE))
        update = await bob.hear("update")
        assert ids(update) == [f"live-{first.call_id.hex}", "live-summary"]
        row = html(update, f"live-{first.call_id.hex}")
        assert "High" in row
        assert 'data-order="3-' in row
        assert update["announce"] == [f"High risk in a call to alice's agent: {story.DATE_RULE}"]

        await bring(first.end(9_000, interventions=1))
        update = await bob.hear("update")
        assert update["parts"][0] == {"id": f"live-{first.call_id.hex}", "remove": True}
        assert "live-summary" in ids(update)

        # and the stranger received nothing
        assert first.call_id.hex not in json.dumps(theirs)
        assert await charlie.hears_nothing()


@pytest.mark.django_db(transaction=True)
async def test_a_large_snapshot_comes_in_pieces_and_a_hint_without_a_change_sends_nothing(
    connect: Connect,  # noqa: F811
    tenant: Tenancy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live_topic, "ROWS_PER_UPDATE", 2)

    @sync_to_async
    def calls() -> list[Call]:
        with tenant.context():
            return [Call.objects.create(agent=tenant.agent, state="live", started_at=timezone.now()) for _ in range(5)]

    running = await calls()
    async with connect(tenant.users["alice"]) as alice:
        await alice.subscribe("live")
        seen: list[str] = []
        while len(seen) < 5:
            rows = [dom_id for dom_id in ids(await alice.hear("update")) if ROW.match(f'<tr id="{dom_id}"')]
            assert 0 < len(rows) <= 2
            seen += rows
        assert sorted(seen) == sorted(f"live-{call.id.hex}" for call in running)
        await announce_to_channel_layer(tenant.id, {running[0].id: 1})
        assert await alice.hears_nothing(0.4)


@pytest.mark.django_db(transaction=True)
async def test_a_slow_browser_gets_each_row_once_when_it_is_ready(
    connect: Connect,  # noqa: F811
    bring: Callable[..., Awaitable[None]],  # noqa: F811
    tenant: Tenancy,
) -> None:
    told = [story.Story(tenant, story.now()) for _ in range(3)]
    await bring([event for each in told for event in each.start()])
    async with connect(tenant.users["alice"]) as slow, connect(tenant.users["bob"]) as quick:
        slow.acknowledges = False
        await slow.subscribe("live")
        first = await slow.hear("update")
        await quick.subscribe("live")
        await quick.hear("update")
        for number in range(4):
            await bring([event for each in told for event in each.turn(1_000 * (number + 1), "", f"turn {number}")])
            # Whoever is quick does not wait for whoever is not.
            shown = ""
            while f"turn {number}" not in shown:
                shown = json.dumps(await quick.hear("update"))
        assert await slow.hears_nothing(0.3)
        await slow.say(type="ack", topic="live", n=first["n"])
        update = await slow.hear("update")
        assert sorted(ids(update)) == sorted(f"live-{each.call_id.hex}" for each in told)
        assert all("turn 3" in html(update, f"live-{each.call_id.hex}") for each in told)


@pytest.mark.django_db(transaction=True)
async def test_a_filter_takes_rows_away_and_brings_them_back(
    connect: Connect,  # noqa: F811
    bring: Callable[..., Awaitable[None]],  # noqa: F811
    tenant: Tenancy,
) -> None:
    told = story.Story(tenant, story.now())
    await bring([*told.start(), *told.turn(900, "", "Fine."), *told.judged("turn 1", 950, 0.02)])
    row = f"live-{told.call_id.hex}"
    async with connect(tenant.users["alice"]) as alice:
        await alice.subscribe("live", query="risk=high")
        assert row not in ids(await alice.hear("update"))
        await bring([*told.turn(2_000, "", "Tomorrow!"), *told.judged("turn 2", 2_100, 0.9, rule=story.DATE_RULE)])
        while True:
            update = await alice.hear("update")
            if row in ids(update):
                break
        for number in range(3, 6):
            name = f"turn {number}"
            await bring([*told.turn(1_000 * number, "", "Fine."), *told.judged(name, 1_000 * number + 100, 0.02)])
        removed: list[Any] = []
        while {"id": row, "remove": True} not in removed:
            removed = (await alice.hear("update"))["parts"]
