"""A new user in Chromium: from signing up to a supervised test call, with the demo's own agent and judge."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from mirror_saas.demo.conversation import EXCHANGES
from mirror_saas.demo.judge import VIOLATIONS
from tests.factories import PASSWORD, unique
from tests.webui.browser import OpenPage, overflow_of
from tests.webui.conftest import ROOT, Console

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

CLICKS = """
addEventListener("click", (event) => {
    if (event.isTrusted) sessionStorage.clicks = Number(sessionStorage.clicks ?? 0) + 1;
}, true);
"""


@pytest.fixture
def demo(console: Console) -> Iterator[None]:
    """The demo's agent and judge, where the console says that they are."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", f"mirror_saas.demo.{name}", "--port", str(port)], cwd=ROOT, stdout=subprocess.PIPE
        )
        for name, port in (("agent", console.agent_port), ("judge", console.judge_port))
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert b"ready" in process.stdout.readline()
        yield
    finally:
        for process in processes:
            process.terminate()
            process.wait(10)


def test_a_new_user_comes_from_sign_up_to_a_supervised_call_in_fewer_than_12_clicks(
    open_page: OpenPage, demo: None, django_db_setup: None
) -> None:
    watched = open_page(width=1280)
    page = watched.page
    page.add_init_script(CLICKS)

    def clicks() -> int:
        return int(page.evaluate("Number(sessionStorage.clicks ?? 0)"))

    watched.open("/")
    page.get_by_role("link", name="Sign up").click()
    page.get_by_label("Email").fill(f"{unique('nina')}@x.example")
    page.get_by_role("button", name="Go on").click()
    page.get_by_label("Your name").fill("Nina")
    page.get_by_label("Company or team").fill("Nina’s Pizza")
    page.get_by_label("Choose a password").fill("short")
    page.keyboard.press("Enter")
    expect(page.get_by_text("at least 12 characters")).to_be_visible()
    expect(page.get_by_label("Company or team")).to_have_value("Nina’s Pizza")
    page.get_by_label("Choose a password").fill(PASSWORD)
    page.get_by_role("button", name="Make the account").click()

    expect(page.get_by_role("heading", name="Set up your first agent")).to_be_visible()
    page.get_by_role("button", name="Use the demo agent").click()
    expect(page.get_by_role("heading", name="Demo agent is ready")).to_be_visible()
    answer_url = page.get_by_label("Answer URL").input_value()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/plivo/ninas-pizza[a-z0-9-]*/sk_[A-Za-z0-9_-]{43}/answer", answer_url)
    key = answer_url.split("/")[-2]
    assert page.get_by_label("Stream URL").input_value().endswith(f"/{key}")
    page.get_by_text("XML, for an answer URL of your own").press("Enter")
    expect(page.get_by_label("Return this to Plivo")).to_have_value(
        re.compile(f"<Response>.*{key}</Stream>", re.DOTALL)
    )
    page.get_by_role("link", name="Place a test call").click()

    expect(page.get_by_label("What the scripted caller says")).to_have_value(re.compile(EXCHANGES[0].customer))
    page.get_by_role("button", name="Start a scripted call").click()
    # The caller wants money back, the agent confirms it, Mirror steps in: as it happens, beside the telephone.
    expect(page.locator("#interventions")).to_contain_text(VIOLATIONS[0].reason, timeout=60_000)
    expect(page.locator("#turns")).to_contain_text("I want my money back")
    assert overflow_of(page) == []
    page.get_by_role("button", name="Hang up").click()
    page.get_by_role("link", name="Open the call").click()
    expect(page.locator("#highlights")).to_contain_text("refund")
    # Leaving at once would end what the page is still asking for.
    page.wait_for_load_state("networkidle")
    assert clicks() < 12
    assert clicks() >= 8, "the presses of Enter and the clicks were counted"

    # What was shown once is gone for whoever comes back.
    watched.open("/agents?name=Demo")
    page.get_by_role("link", name="Demo agent", exact=True).click()
    expect(page.get_by_text("Works", exact=True)).to_be_visible()
    assert key not in page.content()
    page.get_by_role("button", name="Dial it").click()
    expect(page.get_by_text("It answers, and works with Mirror.")).to_be_visible()
    page.reload()
    expect(page.get_by_text("It answers, and works with Mirror.")).to_have_count(0)
