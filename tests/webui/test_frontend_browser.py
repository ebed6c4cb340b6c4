"""What every page has from htmx and from its own modules, in Chromium under the strict policy."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Request, expect

from tests.factories import Tenancy
from tests.webui.browser import OpenPage

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

# A form as pages have them, which replaces the page's heading by that of the answer.
FORM = """([method, path]) => {
    const form = document.createElement("form");
    form.setAttribute(`hx-${method}`, path);
    form.setAttribute("hx-target", ".page-head");
    form.setAttribute("hx-select", ".page-head");
    form.setAttribute("hx-push-url", method === "get");
    form.innerHTML = '<button>Ask</button>';
    document.querySelector("main").append(form);
    htmx.process(form);
}"""


def test_parts_of_pages_are_fetched_and_what_fails_is_said(open_page: OpenPage, shop: Tenancy) -> None:
    watched = open_page()
    watched.sign_in(shop)
    page = watched.page
    problem = page.locator("request-problem .banner")

    def ask(method: str, path: str) -> None:
        page.evaluate("document.querySelectorAll('main > form:last-child').forEach((form) => form.remove())")
        page.evaluate(FORM, [method, path])
        page.get_by_role("button", name="Ask").click()

    page.evaluate("window.stays = true")
    ask("get", "/members")
    expect(page.get_by_role("heading", level=1)).to_have_text("Members")
    expect(page).to_have_url(re.compile("/members$"))
    assert page.evaluate("window.stays"), "only the heading was replaced"
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text("Calls")
    expect(page.locator("live-topic[topic=calls]")).to_be_attached()
    # Nothing of a page is kept where the next person at this machine would find it.
    kept: list[str] = page.evaluate("Object.values({ ...localStorage, ...sessionStorage })")
    assert [text for text in kept if "<" in text] == []

    missing = f"/calls/{shop.id}"
    watched.expected_status[missing] = 404
    ask("get", missing)
    expect(problem).to_contain_text("is not there any more")
    page.route("**/members/leave", lambda route: route.abort())
    ask("get", "/members/leave")
    expect(problem).to_contain_text("The server did not answer")
    page.unroute("**/members/leave")
    # What was refused on purpose so far, and what htmx says of it.
    watched.complaints.clear()
    # The CSRF token goes along: this one is refused for what it lacks, not for who sends it.
    watched.expected_status["/tenant/switch"] = 404
    ask("post", "/tenant/switch")
    expect(problem).to_contain_text("is not there any more")
    page.context.clear_cookies(name="sessionid")
    page.wait_for_load_state("load")
    ask("get", "/members")
    expect(page).to_have_url(re.compile(r"/sign-in\?next=/members$"))
    watched.complaints = [words for words in watched.complaints if "/tenant/switch" not in words]


def test_a_double_click_sends_a_form_once(open_page: OpenPage, shop: Tenancy) -> None:
    watched = open_page()
    watched.sign_in(shop)
    page = watched.open("/api-keys/new")
    page.get_by_label("Name").fill("Nightly")
    page.get_by_label(re.compile("^judge")).check()
    sent: list[Request] = []
    page.on("request", lambda request: sent.append(request) if request.method == "POST" else None)
    page.get_by_role("button", name="Make the key").dblclick()
    expect(page).to_have_url(re.compile("/api-keys/[0-9a-f-]{36}$"))
    assert len(sent) == 1


def test_the_bar_shows_every_screen_on_a_phone_by_keyboard(open_page: OpenPage, shop: Tenancy) -> None:
    watched = open_page(width=390)
    watched.sign_in(shop)
    page = watched.open("/audit")
    menu = page.get_by_text("Set up", exact=True)
    expect(page.get_by_role("link", name="Audit", exact=True)).to_be_hidden()
    menu.focus()
    page.keyboard.press("Enter")
    audit = page.get_by_role("link", name="Audit", exact=True)
    expect(audit).to_have_attribute("aria-current", "page")
    expect(audit).to_be_in_viewport(ratio=1)
    page.keyboard.press("Escape")
    expect(audit).to_be_hidden()
    expect(menu).to_be_focused()
    # What is watched all day is in the bar, and where one is stands in sight.
    page = watched.open("/overview")
    current = page.locator(".nav-main [aria-current=page]")
    expect(current).to_have_text("Overview")
    expect(current).to_be_in_viewport(ratio=0.9)
