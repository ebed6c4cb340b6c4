"""The console in Debian's Chromium, against a real server: every page, live, by keyboard, light and dark."""

from __future__ import annotations

import re
import signal
import statistics
import time
from datetime import timedelta
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.factories import PASSWORD, Tenancy
from tests.support.totp import totp
from tests.webui import story
from tests.webui.browser import OpenPage, Scheme, overflow_of
from tests.webui.conftest import Console

# Not django_db: Playwright has a loop running in the tests' thread, where Django refuses the database. What a test
# needs there is done in a thread and committed, as its server must see it; each test makes a tenant of its own.
pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]


def test_every_page_at_every_width_light_and_dark(
    open_page: OpenPage, shop: Tenancy, recorded: story.Recording
) -> None:
    now = story.now()
    told = {
        "corrected": story.corrected_call(shop, now - timedelta(minutes=9)),
        "live": story.live_call(shop, now - timedelta(seconds=12)),
        "silent": story.silent_call(shop, now - timedelta(hours=2)),
        "failed": story.failed_call(shop, now - timedelta(hours=3)),
        "long words": story.clean_call(
            shop, now - timedelta(hours=4), from_number="sip:" + "averylongusername" * 3 + "@sip.example.com"
        ),
    }
    unbroken = story.Story(shop, now - timedelta(hours=5))
    unbroken.start()
    unbroken.turn(1_000, "x" * 300, "https://example.com/" + "y" * 300)
    unbroken.judged("turn 1", 1_200, 0.9, rule="r" * 200, reason="z" * 300)
    unbroken.tool(1_300, "t" * 120, {"k" * 80: "v" * 400}, allow=False, reason="w" * 200)
    unbroken.end(2_000)
    for one in (*told.values(), unbroken):
        recorded(one.events)
    missing = f"/calls/{shop.id}"
    paths = [
        "/calls",
        "/calls?state=ended&outcome=failed",
        "/calls?after=2020-01-01T00:00",
        "/calls?after=never",
        "/api-keys",
        "/audit",
        missing,
    ]
    paths += [f"/calls/{one.call_id}" for one in (*told.values(), unbroken)]
    looks: tuple[tuple[Scheme, int], ...] = (("light", 390), ("dark", 820), ("light", 1440), ("dark", 2560))
    for scheme, width in looks:
        watched = open_page(width=width, scheme=scheme)
        watched.expected_status[missing] = 404
        watched.open("/sign-in")
        assert overflow_of(watched.page) == []
        watched.sign_in(shop)
        for path in paths:
            page = watched.open(path)
            assert overflow_of(page) == [], (path, width)
            assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light dark"
            dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (dark == "rgb(12, 15, 19)") == (scheme == "dark")
        watched.page.context.close()


def test_signing_in_wrong_keeps_the_email_and_right_leads_on(open_page: OpenPage, shop: Tenancy) -> None:
    watched = open_page()
    page = watched.open("/calls")
    page.get_by_label("Email").fill(shop.users["alice"].email)
    page.get_by_label("Password").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Email or password is wrong")
    expect(page.get_by_label("Email")).to_have_value(shop.users["alice"].email)
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Calls", exact=True)).to_be_visible()
    page.get_by_label("Your account").click()
    page.get_by_role("button", name="Sign out").click()
    expect(page).to_have_url(re.compile("/sign-in$"))
    page.go_back()
    page.reload()
    expect(page).to_have_url(re.compile("/sign-in"))


def test_a_live_call_changes_within_a_second_without_a_reload(
    open_page: OpenPage, shop: Tenancy, recorded: story.Recording
) -> None:
    told = story.Story(shop, story.now())
    recorded(told.start())
    watched = open_page()
    watched.sign_in(shop)
    page = watched.open(f"/calls/{told.call_id}")
    expect(page.locator("live-status")).to_have_text("Live updates")
    page.evaluate("window.unloaded = false; addEventListener('pagehide', () => { window.unloaded = true; })")

    took: list[float] = []
    for number in range(1, 8):
        events = told.turn(1_000 * number, "And then?", f"Answer number {number}.")
        since = time.monotonic()
        recorded(events)
        page.get_by_text(f"Answer number {number}.", exact=True).wait_for(timeout=10_000)
        took.append(time.monotonic() - since)
    # From recording to the screen. The median, because the machine that tests is busy with other things too.
    assert statistics.median(took) < 1.0, took

    recorded(told.judged("turn 7", 7_300, 0.88, rule=story.DATE_RULE, reason="It promises."))
    expect(page.locator("#highlights")).to_contain_text(story.DATE_RULE)
    for step in told.intervention("turn 7", 7_304, story.DATE_RULE):
        recorded(step)
    expect(page.locator(".intervention")).to_contain_text("Corrected")
    expect(page.get_by_role("figure")).to_be_visible()
    recorded(told.end(14_000, interventions=1))
    expect(page.locator(".call-title")).to_contain_text("Completed")
    expect(page.get_by_role("log", name="What has just happened")).to_contain_text("The call has ended")
    order: list[str] = page.locator("#events > li").evaluate_all("all => all.map((one) => one.dataset.order)")
    assert order == sorted(order)
    assert len(order) == len(told.events)
    assert page.evaluate("window.unloaded") is False


def test_an_update_leaves_alone_what_the_viewer_is_doing(
    open_page: OpenPage, shop: Tenancy, recorded: story.Recording
) -> None:
    told = story.Story(shop, story.now())
    told.start()
    told.turn(1_000, "Now?", "It is on its way, promised.", name="promise")
    told.judged("promise", 1_300, 0.9, rule=story.DATE_RULE)
    steps = told.intervention("promise", 1_304, story.DATE_RULE)
    for _ in range(4):
        next(steps)
    recorded(told.events)
    watched = open_page()
    watched.sign_in(shop)
    page = watched.open(f"/calls/{told.call_id}")
    expect(page.locator("live-status")).to_have_text("Live updates")
    table = page.get_by_text("Steps as a table")
    table.click()
    expect(table).to_be_focused()
    expect(page.get_by_role("cell", name="71 ms")).to_be_visible()

    recorded(next(steps))
    expect(page.get_by_role("row", name=re.compile("Correction ready"))).to_be_visible()
    expect(page.locator("details.steps")).to_have_attribute("open", "")
    expect(table).to_be_focused()


def test_the_list_follows_calls_from_start_to_end(
    open_page: OpenPage, shop: Tenancy, recorded: story.Recording
) -> None:
    older = story.clean_call(shop, story.now() - timedelta(hours=1))
    recorded(older.events)
    watched = open_page()
    watched.sign_in(shop)
    page = watched.page
    expect(page.locator("live-status")).to_have_text("Live updates")
    told = story.Story(shop, story.now())
    recorded(told.start())
    row = page.locator(f"#calls-live #call-{told.call_id.hex}")
    expect(row).to_contain_text("Live")
    recorded(told.turn(900, "Hi", "Hello"))
    expect(row.get_by_role("cell").nth(5)).to_have_text("1")
    first = row.locator("elapsed-time").inner_text()
    expect(row.locator("elapsed-time")).not_to_have_text(first)
    recorded(told.end(3_000))
    expect(page.locator(f"#calls-ended > tr:first-child#call-{told.call_id.hex}")).to_contain_text("Completed")
    expect(page.locator("#calls-live > tr")).to_have_count(0)


def test_a_killed_server_shows_the_stale_banner_and_the_page_recovers_by_itself(
    open_page: OpenPage, shop: Tenancy, recorded: story.Recording, console: Console
) -> None:
    told = story.Story(shop, story.now())
    recorded(told.start())
    watched = open_page()
    watched.sign_in(shop)
    page = watched.open(f"/calls/{told.call_id}")
    expect(page.locator("live-status")).to_have_text("Live updates")
    console.stop(signal.SIGKILL)
    try:
        expect(page.get_by_text("Not live: the connection to Mirror is lost.")).to_be_visible()
        expect(page.locator("live-status")).to_have_text("Not live")
        recorded(told.turn(1_000, "Are you there?", "Said while nobody could see it."))
        expect(page.get_by_text("Said while nobody could see it.", exact=True)).to_have_count(0)
    finally:
        console.start()
    expect(page.get_by_text("Said while nobody could see it.", exact=True)).to_be_visible(timeout=30_000)
    expect(page.get_by_text("Not live: the connection to Mirror is lost.")).to_be_hidden()
    # What the lost server cost is no complaint of the page.
    watched.complaints = [text for text in watched.complaints if "/ws/console" not in text]


def test_signed_out_elsewhere_is_said_plainly(open_page: OpenPage, shop: Tenancy, recorded: story.Recording) -> None:
    watched = open_page()
    watched.sign_in(shop)
    page = watched.page
    expect(page.locator("live-status")).to_have_text("Live updates")
    other = page.context.new_page()
    other.goto(watched.url + "/calls")
    other.get_by_label("Your account").click()
    other.get_by_role("button", name="Sign out").click()
    told = story.Story(shop, story.now())
    recorded(told.start())
    expect(page.get_by_text("You are signed out, no member of this tenant any more")).to_be_visible()


def test_the_theme_is_chosen_and_kept(open_page: OpenPage, shop: Tenancy) -> None:
    watched = open_page(scheme="light")
    watched.sign_in(shop)
    page = watched.page

    def ground() -> Any:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = ground()
    page.get_by_label("Your account").click()
    toggle = page.get_by_role("button", name=re.compile("^Theme"))
    toggle.click()
    expect(toggle).to_have_text("Theme: light")
    toggle.click()
    expect(toggle).to_have_text("Theme: dark")
    dark = ground()
    assert dark != light
    page.reload()
    assert ground() == dark
    page.keyboard.press("Escape")


def test_everything_is_reached_by_keyboard(open_page: OpenPage, shop: Tenancy, recorded: story.Recording) -> None:
    told = story.corrected_call(shop, story.now() - timedelta(minutes=3))
    recorded(told.events)
    watched = open_page()
    watched.sign_in(shop)
    page = watched.page
    page.reload()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('tr') !== null"):
            break
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(str(told.call_id)))
    highlight = page.locator("#highlights a").first
    highlight.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".intervention:target")).to_be_in_viewport()
    page.get_by_label("Your account").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Sign out")).to_be_hidden()
    expect(page.get_by_label("Your account")).to_be_focused()


def test_filters_stand_in_the_url_and_the_back_button_works(
    open_page: OpenPage, shop: Tenancy, recorded: story.Recording
) -> None:
    recorded(story.failed_call(shop, story.now() - timedelta(hours=1)).events)
    recorded(story.clean_call(shop, story.now() - timedelta(hours=2)).events)
    watched = open_page()
    watched.sign_in(shop)
    page = watched.page
    expect(page.locator("tbody tr")).to_have_count(2)
    page.get_by_label("Outcome").select_option("failed")
    expect(page).to_have_url(re.compile(r"/calls\?outcome=failed$"))
    expect(page.locator("tbody tr")).to_have_count(1)
    page.go_back()
    expect(page.locator("tbody tr")).to_have_count(2)
    page.go_forward()
    page.get_by_role("link", name="Clear").click()
    expect(page).to_have_url(re.compile(r"/calls$"))


def test_times_are_the_viewers_from_the_first_page_on(
    open_page: OpenPage, shop: Tenancy, recorded: story.Recording
) -> None:
    told = story.clean_call(shop, story.now().replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(days=1))
    recorded(told.events)
    watched = open_page(zone="Asia/Tokyo")
    watched.sign_in(shop)
    # The sign-in page told the server the zone: the list comes with the right times.
    assert watched.page.evaluate("document.documentElement.dataset.zone") == "Asia/Tokyo"
    expect(watched.page.locator("tbody time").first).to_contain_text("21:00:00")
    watched.page.context.clear_cookies(name="tz")
    watched.page.reload()
    # This page was written in UTC; the browser makes it right.
    assert watched.page.evaluate("document.documentElement.dataset.zone") == "UTC"
    expect(watched.page.locator("tbody time").first).to_contain_text("21:00:00")


def test_a_person_sets_up_a_second_factor_and_ends_another_session(open_page: OpenPage, shop: Tenancy) -> None:
    here, there = open_page(width=390, scheme="dark"), open_page()
    here.sign_in(shop)
    page = here.page
    page.get_by_label("Your account").click()
    page.get_by_role("link", name="Your account").click()
    expect(page.get_by_role("heading", name="Your account")).to_be_visible()
    assert overflow_of(page) == []
    page.get_by_role("link", name="Set it up").click()
    assert overflow_of(page) == []
    assert page.evaluate("document.querySelector('.qr').naturalWidth") > 0, "the policy lets the QR code show"
    secret = page.locator("code.secret").inner_text()
    page.get_by_label("Code that the app shows").fill("000000")
    page.keyboard.press("Enter")
    expect(page.get_by_text("This code is wrong")).to_be_visible()
    assert page.locator("code.secret").inner_text() == secret
    page.get_by_label("Code that the app shows").fill(totp(secret))
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Recovery codes")).to_be_visible()
    assert overflow_of(page) == []
    with page.expect_download() as download:
        page.get_by_role("link", name="Download as text").click()
    assert download.value.suggested_filename == "mirror-recovery-codes.txt"
    codes = re.findall(r"\d{10}", download.value.path().read_text())
    assert len(codes) == 10
    page.reload()
    expect(page.get_by_text("are not shown again")).to_be_visible()

    page.get_by_label("Your account").click()
    page.get_by_role("button", name="Sign out").click()
    expect(page).to_have_url(re.compile("/sign-in$"))
    for watched, code in ((here, totp(secret, steps=1)), (there, codes[0])):
        watched.open("/sign-in")
        watched.page.get_by_label("Email").fill(shop.users["alice"].email)
        watched.page.get_by_label("Password").fill(PASSWORD)
        watched.page.keyboard.press("Enter")
        watched.page.get_by_label("Code").fill(code)
        assert overflow_of(watched.page) == []
        watched.page.keyboard.press("Enter")
        watched.page.wait_for_url("**/calls")

    here.open("/account")
    assert overflow_of(page) == []
    expect(page.get_by_text("9 left")).to_be_visible()
    expect(page.get_by_text("This one", exact=True).last).to_be_visible()
    page.get_by_role("button", name="End the session of").click()
    expect(page.get_by_text("The session has ended.")).to_be_visible()
    there.open("/calls")
    expect(there.page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_a_new_key_is_copied_and_gone_when_one_comes_back(open_page: OpenPage, shop: Tenancy) -> None:
    watched = open_page()
    watched.sign_in(shop)
    page = watched.open("/api-keys/new")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_label("Name").fill("Nightly")
    page.get_by_label("judge").check()
    expect(page.get_by_label("On this date")).to_be_hidden()
    page.get_by_label("It ends").select_option("date")
    expect(page.get_by_label("On this date")).to_be_visible()
    page.get_by_label("It ends").select_option("never")
    page.get_by_role("button", name="Make the key").dblclick()
    field = page.get_by_label("Copy it now")
    expect(field).to_have_value(re.compile(r"mk_[a-z0-9]{12}_[A-Za-z0-9_-]{43}"))
    key, there = field.input_value(), page.url
    # The second click may take the place of what the first one sent.
    watched.complaints = [text for text in watched.complaints if "/api-keys/new net::ERR_ABORTED" not in text]
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_text("Copied.")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == key

    watched.open("/api-keys")
    expect(page.get_by_role("link", name="Nightly")).to_have_count(1)
    page.go_back()
    page.wait_for_url(there)
    expect(page.get_by_role("heading", name="Nightly")).to_be_visible()
    expect(page.get_by_label("Copy it now")).to_have_count(0)
    assert key not in page.content()
    page.reload()
    assert key not in page.content()
