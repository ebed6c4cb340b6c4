"""Live, approvals and the overview in Chromium, against a real server."""

from __future__ import annotations

import random
import re
import signal
import statistics
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect
from pytest_django import DjangoDbBlocker

from mirror_saas.ids import uuid7
from supervision.models import Approval
from tests.factories import Tenancy, approval_create, call_create
from tests.webui import story
from tests.webui.browser import OpenPage, barriers_of, overflow_of
from tests.webui.conftest import Console, in_thread

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

# The full size, 200 of them, is `make bench-console`.
CALLS = 20

InDatabase = Callable[[Callable[[], None]], None]


@pytest.fixture
def in_database(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> InDatabase:
    """`in_database(work)`: committed, as the server must see it."""

    def run(work: Callable[[], None]) -> None:
        with django_db_blocker.unblock():
            in_thread(work)

    return run


def rows_of(page: Page) -> list[str]:
    found: list[str] = page.locator("#live-calls > tr").evaluate_all("all => all.map((one) => one.id)")
    return found


def test_rows_change_within_a_second_and_the_risky_ones_rise(
    open_page: OpenPage, shop: Tenancy, recorded: story.Recording
) -> None:
    now = story.now()
    calls = [story.Story(shop, now - timedelta(seconds=number)) for number in range(CALLS)]
    recorded([event for told in calls for event in told.start()])
    watched = open_page()
    watched.sign_in(shop)
    page = watched.open("/live")
    expect(page.locator("live-status")).to_have_text("Live updates")
    assert rows_of(page) == [f"live-{told.call_id.hex}" for told in calls]

    took: list[float] = []
    chosen = random.Random(7)
    for number in range(1, 8):
        # All of them say something at once, and one of them is looked at.
        words = [f"Answer {number} of {place}." for place in range(CALLS)]
        events = [event for told, text in zip(calls, words, strict=True)
                  for event in told.turn(1_000 * number, "And then?", text)]  # fmt: skip
        since = time.monotonic()
        recorded(events)
        page.get_by_text(chosen.choice(words)).wait_for(timeout=10_000)
        took.append(time.monotonic() - since)
    # From recording to the screen. The median, because the machine that tests is busy with other things too.
    assert statistics.median(took) < 1.0, took

    last = calls[-1]
    row = page.locator(f"#live-{last.call_id.hex}")
    recorded(last.judged("turn 7", 7_300, 0.88, rule=story.DATE_RULE, reason="It promises."))
    expect(row.get_by_role("cell").first).to_contain_text("High")
    expect(page.locator("#live-calls > tr").first).to_have_id(f"live-{last.call_id.hex}")
    expect(page.get_by_role("log", name="What has just happened")).to_contain_text("High risk in a call to")
    page.get_by_label("Risk", exact=True).select_option("high")
    expect(page).to_have_url(re.compile(r"/live\?risk=high$"))
    expect(page.locator("#live-calls > tr")).to_have_count(1)
    row.get_by_role("link").focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(str(last.call_id)))
    page.go_back()
    recorded(last.end(9_000))
    expect(page.locator("#live-calls > tr")).to_have_count(0)
    expect(page.get_by_text("No running call matches these filters")).to_be_visible()


def test_a_killed_server_shows_the_stale_banner_and_rows_that_ended_meanwhile_go(
    open_page: OpenPage, shop: Tenancy, recorded: story.Recording, console: Console
) -> None:
    ends, stays = story.Story(shop, story.now()), story.Story(shop, story.now())
    recorded([*ends.start(), *stays.start()])
    watched = open_page()
    watched.sign_in(shop)
    page = watched.open("/live")
    expect(page.locator("live-status")).to_have_text("Live updates")
    expect(page.locator("#live-calls > tr")).to_have_count(2)
    console.stop(signal.SIGKILL)
    try:
        expect(page.get_by_text("Not live: the connection to Mirror is lost.")).to_be_visible()
        recorded([*ends.end(5_000), *stays.turn(4_000, "Hello?", "Said while nobody could see it.")])
    finally:
        console.start()
    expect(page.get_by_text("Said while nobody could see it.")).to_be_visible(timeout=30_000)
    assert rows_of(page) == [f"live-{stays.call_id.hex}"]
    expect(page.get_by_text("Not live: the connection to Mirror is lost.")).to_be_hidden()
    # What the lost server cost is no complaint of the page.
    watched.complaints = [text for text in watched.complaints if "/ws/console" not in text]


def test_a_tool_call_is_decided_in_place_with_a_note(
    open_page: OpenPage, shop: Tenancy, recorded: story.Recording, in_database: InDatabase
) -> None:
    told = story.Story(shop, story.now())
    recorded(told.start())
    first, second = uuid7(), uuid7()

    def wait() -> None:
        approval_create(shop, id=first, call_id=told.call_id)
        approval_create(shop, id=second, call_id=told.call_id, tool="send_sms", within=timedelta(minutes=2))

    in_database(wait)
    watched = open_page(width=390)
    watched.sign_in(shop)
    page = watched.open("/live")
    card, other = page.locator(f"#approval-{first.hex}"), page.locator(f"#approval-{second.hex}")
    expect(card.get_by_role("timer")).to_have_text(re.compile(r"\d+ s left"))
    assert overflow_of(page) == []
    assert barriers_of(page) == []
    other.get_by_label("Note to the agent").fill("Half of a note")
    card.get_by_label("Note to the agent").fill("Confirmed by phone.")
    # Enter in a note decides nothing.
    page.keyboard.press("Enter")
    expect(card).to_be_visible()
    card.get_by_role("button", name="Approve").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("charge_card was approved.")).to_be_visible()
    expect(card).to_have_count(0)
    expect(other.get_by_label("Note to the agent")).to_have_value("Half of a note")
    expect(page.get_by_role("heading", name="Waiting for approval")).to_be_focused()

    # Somebody else was quicker.
    def decide() -> None:
        with shop.context():
            Approval.objects.filter(id=second).update(
                state="denied", decided_by="bob@example.com", decided_at=timezone.now()
            )

    in_database(decide)
    other.get_by_role("button", name="Deny").click()
    expect(page.get_by_text("This tool call was denied by bob@example.com.")).to_be_visible()
    expect(page.locator("#approvals")).to_be_hidden()

    page = watched.open("/approvals")
    expect(page.locator(f"#decided-{first.hex}")).to_contain_text("Confirmed by phone.")
    assert overflow_of(page) == []
    assert barriers_of(page) == []
    # Without its script a page sends the form and comes back.
    third = uuid7()

    def wait_again() -> None:
        approval_create(shop, id=third, call_id=told.call_id)

    in_database(wait_again)
    page.route("**/approvals*.js", lambda route: route.fulfill(body="", content_type="text/javascript"))
    page = watched.open("/live")
    page.locator(f"#approval-{third.hex}").get_by_role("button", name="Deny").click()
    expect(page.get_by_text("charge_card was denied.")).to_be_visible()
    expect(page).to_have_url(re.compile(r"/live$"))


def test_charts_say_the_figures_of_a_day(open_page: OpenPage, shop: Tenancy, in_database: InDatabase) -> None:
    def calls() -> None:
        for days in range(6):
            call_create(shop, started_at=timezone.now() - timedelta(days=days))

    in_database(calls)
    watched = open_page()
    watched.sign_in(shop)
    page = watched.open("/overview?first=" + (timezone.now() - timedelta(days=13)).strftime("%Y-%m-%d"))
    charts = page.locator("day-chart:visible")
    # No price, and nothing was reviewed.
    expect(charts).to_have_count(5)
    expect(charts.locator("canvas")).to_have_count(5)
    drawn = page.locator("day-chart canvas").first.evaluate(
        "(canvas) => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean)"
    )
    assert drawn
    assert barriers_of(page) == []
    chart = page.get_by_role("img", name=re.compile("^Calls and interventions"))
    chart.focus()
    page.keyboard.press("End")
    legend = page.locator("day-chart").first.locator(".legend")
    expect(legend).to_contain_text("Calls1")
    page.keyboard.press("Home")
    expect(legend).to_contain_text("Calls0")
    # The pointer's day is that of all charts.
    expect(page.locator("day-chart").nth(2).locator(".legend")).to_contain_text("Judged0")
    page.get_by_role("link", name="7 days").click()
    expect(page).to_have_url(re.compile(r"\?first="))
    page.get_by_label("From", exact=True).fill("2020-01-01")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_text("Ask for at most 366 days at a time.")).to_be_visible()
    expect(page.get_by_label("From", exact=True)).to_have_value("2020-01-01")
