"""A call's page in Chromium: its timeline to scale, one playhead, by keyboard, live, and however long the call is."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from pytest_django import DjangoDbBlocker

from supervision.models import Call, Label
from tests.factories import Tenancy
from tests.webui import story
from tests.webui.browser import OpenPage
from tests.webui.conftest import in_thread
from tests.webui.test_call_page import long_call, rows_of
from webui.call_parts import TURNS_SHOWN

# As test_browser.py: what a test needs in the database is done in a thread and committed.
pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]


def drawn(page: Page, kind: str) -> list[dict[str, float]]:
    """Left and right of the marks of a kind in the drawing, from 0 to 1 of its width."""
    found: list[dict[str, float]] = page.evaluate(
        """async (kind) => {
            // It is drawn with the next frame.
            await new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)));
            const { left, width } = document.querySelector("svg.lanes").getBoundingClientRect();
            return [...document.querySelectorAll(`svg.lanes [data-kind="${kind}"]`)].map((mark) => {
                const box = mark.getBoundingClientRect();
                return { from: (box.left - left) / width, to: (box.right - left) / width };
            });
        }""",
        kind,
    )
    return found


def playhead(page: Page) -> float:
    """Where the playhead stands, from 0 to 1 of the drawing."""
    place: float = page.evaluate(
        """async () => {
            await new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)));
            const { left, width } = document.querySelector("svg.lanes").getBoundingClientRect();
            return (document.querySelector("svg.lanes .playhead").getBoundingClientRect().left - left) / width;
        }"""
    )
    return place


def turn_title(page: Page, number: int) -> None:
    """The panel and the list show this turn."""
    expect(page.locator("#chosen h2")).to_have_text(re.compile(rf"^Turn {number} "))
    expect(page.locator("#turn-list li[aria-current]")).to_have_attribute("aria-label", f"Turn {number}")


def test_a_call_is_drawn_to_scale_and_walked_by_keyboard(
    open_page: OpenPage, shop: Tenancy, recorded: story.Recording
) -> None:
    told = story.corrected_call(shop, story.now() - timedelta(minutes=3))
    recorded(told.events)
    watched = open_page()
    watched.sign_in(shop)
    page = watched.open(f"/calls/{told.call_id}")
    turn_title(page, 3)
    slider = page.get_by_role("slider", name="Playhead of the call")
    expect(slider).to_have_attribute("aria-valuetext", "0:15.3, turn 3, cut off, violation")

    # The call took 33,480 ms; the violation was judged from 15,303 to 15,890 of it.
    (violation,) = drawn(page, "violation")
    assert violation["from"] == pytest.approx(15_303 / 33_480, abs=0.002)
    assert violation["to"] == pytest.approx(15_890 / 33_480, abs=0.002)
    (correction,) = drawn(page, "correction")
    assert correction["from"] == pytest.approx(17_284 / 33_480, abs=0.002)
    assert correction["to"] == pytest.approx(20_524 / 33_480, abs=0.002)
    (heard,), (cut,) = (
        [mark for mark in drawn(page, "heard") if abs(mark["from"] - 15_300 / 33_480) < 0.01],
        drawn(page, "cut"),
    )
    assert cut["from"] == pytest.approx(heard["to"], abs=0.002)
    assert (len(drawn(page, "heard")), len(drawn(page, "blocked")), len(drawn(page, "not-judged"))) == (4, 1, 1)
    assert playhead(page) == pytest.approx(15_300 / 33_480, abs=0.002)

    slider.focus()
    page.keyboard.press("End")
    turn_title(page, 4)
    assert playhead(page) == pytest.approx(1, abs=0.002)
    page.keyboard.press("Home")
    turn_title(page, 1)
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(slider).to_have_attribute("aria-valuenow", "3000")
    page.keyboard.press("ArrowDown")
    turn_title(page, 2)
    page.keyboard.press("]")
    turn_title(page, 3)
    expect(slider).to_have_attribute("aria-valuenow", "15894")
    page.keyboard.press("]")
    expect(slider).to_have_attribute("aria-valuenow", "16020")
    page.keyboard.press("[")
    expect(slider).to_have_attribute("aria-valuenow", "15894")
    page.keyboard.press("+")
    page.keyboard.press("+")
    (violation,) = drawn(page, "violation")
    assert violation["to"] - violation["from"] == pytest.approx(4 * 587 / 33_480, abs=0.004)
    page.keyboard.press("0")

    # Anywhere on the page, too, but not while something is typed.
    page.locator("h1").click()
    page.keyboard.press("j")
    turn_title(page, 4)
    page.get_by_label("Note (optional)").fill("jjkk]")
    turn_title(page, 4)
    page.locator("#turn-list li").first.click()
    turn_title(page, 1)
    expect(page).to_have_url(re.compile(r"\?turn="))
    # What was typed of the other turn is not said of this one.
    expect(page.get_by_label("Note (optional)")).to_have_value("")
    page.reload()
    turn_title(page, 1)
    box = page.locator("svg.lanes").bounding_box()
    assert box is not None
    # Where a part of the second turn's time is.
    page.locator("svg.lanes").click(position={"x": box["width"] * 0.31, "y": 100})
    turn_title(page, 2)


def test_a_label_is_given_in_place_and_is_there_afterwards(
    open_page: OpenPage, shop: Tenancy, recorded: story.Recording, django_db_blocker: DjangoDbBlocker
) -> None:
    told = story.corrected_call(shop, story.now() - timedelta(minutes=3))
    recorded(told.events)
    watched = open_page(width=390, scheme="dark")
    watched.sign_in(shop)
    page = watched.open(f"/calls/{told.call_id}")
    step_in = page.locator(".label", has_text="Was it right to step in?")
    step_in.get_by_label("Note (optional)").fill("The caller had asked for it.")
    step_in.get_by_role("button", name="False alarm").dblclick()
    expect(step_in.get_by_role("button", name="False alarm")).to_have_attribute("aria-pressed", "true")
    expect(step_in).to_contain_text(shop.users["alice"].email)
    # What came with the answer has its form working again.
    block = page.locator(".label", has_text="Was it right to block this tool?")
    block.get_by_role("button", name="Confirmed").click()
    expect(block.get_by_role("button", name="Confirmed")).to_have_attribute("aria-pressed", "true")
    page.reload()
    expect(step_in.get_by_label("Note (optional)")).to_have_value("The caller had asked for it.")

    found: list[tuple[str, str]] = []

    def read() -> None:
        with shop.context():
            found.extend(Label.objects.order_by("created_at").values_list("value", "note"))

    with django_db_blocker.unblock():
        in_thread(read)
    assert found == [("false_alarm", "The caller had asked for it."), ("confirmed", "")]


def test_a_running_call_is_followed_until_something_else_is_chosen(
    open_page: OpenPage, shop: Tenancy, recorded: story.Recording
) -> None:
    told = story.Story(shop, story.now())
    recorded(told.start())
    watched = open_page()
    watched.sign_in(shop)
    page = watched.open(f"/calls/{told.call_id}")
    expect(page.locator("live-status")).to_have_text("Live updates")
    follow = page.get_by_role("button", name="Follow")
    expect(follow).to_have_attribute("aria-pressed", "true")
    recorded(told.turn(900, "Hello?", "Hello, how can I help?"))
    turn_title(page, 1)
    expect(page.locator("#chosen")).to_contain_text("Judging…")
    recorded(told.judged("turn 1", 1_200, 0.04))
    expect(page.locator("#chosen")).to_contain_text("0.04 below threshold 0.70")
    page.get_by_label("Note (optional)").fill("Typed while it goes on")
    recorded(told.heard("turn 1", 1_900, "Hello, how can I help?"))
    expect(page.locator("#chosen")).to_contain_text("Heard in full")
    expect(page.get_by_label("Note (optional)")).to_have_value("Typed while it goes on")
    assert len(drawn(page, "heard")) == 1
    recorded(told.turn(2_400, "My order?", "It comes tomorrow, I promise."))
    turn_title(page, 2)
    assert playhead(page) > 0.95

    page.keyboard.press("k")
    turn_title(page, 1)
    expect(follow).to_have_attribute("aria-pressed", "false")
    recorded(told.turn(3_400, "Sure?", "Yes, very sure."))
    expect(page.locator("#turn-list li")).to_have_count(3)
    turn_title(page, 1)
    follow.click()
    turn_title(page, 3)
    recorded(told.end(4_000))
    expect(follow).to_be_hidden()
    expect(page.locator("#chosen")).to_contain_text("No verdict recorded")


def test_a_call_of_hours_is_walked_from_end_to_end(
    open_page: OpenPage, shop: Tenancy, django_db_blocker: DjangoDbBlocker
) -> None:
    made: list[Any] = []

    def make() -> None:
        call = long_call(shop, 700)
        with shop.context():
            Call.objects.filter(id=call.id).update(duration_ms=700 * 8_000 + 9_000)
        made.extend([call, rows_of(shop, call)])

    with django_db_blocker.unblock():
        in_thread(make)
    call, turns = made
    watched = open_page()
    watched.sign_in(shop)
    page = watched.open(f"/calls/{call.id}?turn={turns[0].id}")
    turn_title(page, 1)
    # A window of it is drawn and listed; the strip below shows where that is.
    assert 0 < len(drawn(page, "clean")) < 40
    expect(page.locator("[data-overview]")).to_be_visible()
    listed = page.locator("#turn-list li.turn")
    expect(listed).to_have_count(TURNS_SHOWN)
    page.get_by_role("link", name=f"{700 - TURNS_SHOWN} later turns").click()
    expect(listed).to_have_count(2 * TURNS_SHOWN)
    expect(page.get_by_role("link", name=f"{700 - 2 * TURNS_SHOWN} later turns")).to_be_visible()

    slider = page.get_by_role("slider", name="Playhead of the call")
    slider.focus()
    page.keyboard.press("End")
    turn_title(page, 700)
    # The list goes there, too, and reaches the end.
    expect(listed.last).to_have_attribute("aria-label", "Turn 700")
    expect(page.locator("#turns")).to_have_count(1)
    page.get_by_role("button", name="Whole call").click()
    expect(page.locator("[data-overview]")).to_be_hidden()
    # However many there are, no more are drawn than can be told apart.
    assert 100 < len(drawn(page, "clean")) <= 700
    (violation,) = drawn(page, "violation")
    assert violation["from"] > 0.95
    page.keyboard.press("k")
    turn_title(page, 699)


def test_a_panel_that_cannot_be_loaded_says_so_and_is_tried_again(
    open_page: OpenPage, shop: Tenancy, recorded: story.Recording
) -> None:
    told = story.clean_call(shop, story.now() - timedelta(minutes=3))
    recorded(told.events)
    watched = open_page()
    watched.sign_in(shop)
    page = watched.open(f"/calls/{told.call_id}")
    turn_title(page, 1)
    refuse: Callable[[Any], None] = lambda route: route.abort()  # noqa: E731
    page.route("**/turns/*", refuse)
    page.get_by_role("link", name="Next").click()
    problem = page.get_by_text("This turn could not be loaded")
    expect(problem).to_be_visible()
    page.unroute("**/turns/*", refuse)
    page.get_by_role("button", name="Try again").click()
    turn_title(page, 2)
    expect(problem).to_be_hidden()
    watched.complaints = [text for text in watched.complaints if "/turns/" not in text]
