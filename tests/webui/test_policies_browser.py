"""The editor of a policy in Chromium: by mouse, by keys, on a phone, with a model that answers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from pytest_django import DjangoDbBlocker

from supervision.models import PolicyVersion
from supervision.services.policies import policy_version_create
from tests.factories import Tenancy, tenancy_create
from tests.standins.llm import llm_process
from tests.webui import story
from tests.webui.browser import OpenPage, barriers_of, overflow_of
from tests.webui.conftest import in_thread, let_sign_in

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

RULES = ["Never confirm a refund.", "Never promise a date.", "Be kind."]


@pytest.fixture(scope="module")
def judge() -> Iterator[str]:
    """A model's server that finds refunds."""
    with llm_process({"turns": {"refund": {"rule": "1", "correction": "A colleague decides."}}}) as base_url:
        yield base_url


@pytest.fixture
def shop(django_db_setup: None, django_db_blocker: DjangoDbBlocker, judge: str) -> Tenancy:
    """Alice's tenant, whose policy has a draft."""
    made: list[Tenancy] = []

    def make() -> None:
        tenancy = tenancy_create(owner="alice", viewer="bob", llm_base_url=judge, llm_model="judge-1")
        let_sign_in(tenancy)
        with tenancy.context():
            policy_version_create(policy_id=tenancy.policy.id, rules=RULES, llm_credential=tenancy.credential)
        made.append(tenancy)

    with django_db_blocker.unblock():
        in_thread(make)
    return made[0]


def stored(tenancy: Tenancy, blocker: DjangoDbBlocker, number: int = 2) -> PolicyVersion:
    found: list[PolicyVersion] = []

    def read() -> None:
        with tenancy.context():
            found.append(PolicyVersion.objects.get(policy=tenancy.policy, number=number))

    with blocker.unblock():
        in_thread(read)
    return found[0]


def texts(page: Page) -> list[str]:
    found: list[str] = page.locator(".rule-rows textarea").evaluate_all("(all) => all.map((one) => one.value)")
    return found


def test_rules_are_moved_by_mouse_and_keys_tried_saved_published_and_taken_back(
    open_page: OpenPage, shop: Tenancy, recorded: story.Recording, django_db_blocker: DjangoDbBlocker
) -> None:
    told = story.corrected_call(shop, story.now() - timedelta(minutes=9))
    recorded(told.events)
    url = f"/policies/{shop.policy.id}"
    watched = open_page()
    watched.sign_in(shop)
    page = watched.open(f"{url}/versions/2")

    # By mouse: the first row below the second. By keys: the last one up, the focus stays with it.
    grips = page.get_by_role("button", name="Move this rule")
    here, there = grips.nth(0).bounding_box(), page.locator(".rule-row").nth(1).bounding_box()
    assert here is not None
    assert there is not None
    page.mouse.move(here["x"] + 5, here["y"] + 5)
    page.mouse.down()
    page.mouse.move(here["x"] + 5, there["y"] + there["height"] - 3, steps=4)
    page.mouse.up()
    assert texts(page) == ["Never promise a date.", "Never confirm a refund.", "Be kind."]
    grips.nth(2).focus()
    page.keyboard.press("ArrowUp")
    assert texts(page) == ["Never promise a date.", "Be kind.", "Never confirm a refund."]
    expect(page.locator("[data-said]")).to_have_text("Moved to place 2 of 3.")
    expect(grips.nth(1)).to_be_focused()
    page.get_by_role("button", name="Remove", exact=True).nth(1).click()
    page.get_by_role("button", name="Add a rule").click()
    page.keyboard.type("Never say Tuesday.")
    expect(page.get_by_text("Not saved yet")).to_be_visible()

    # Tried as it is typed: a turn of one's own, and the turns of a past call, without leaving the page.
    page.get_by_label("The agent is about to say").fill("Sure, I have refunded it.")
    page.get_by_role("button", name="Judge this turn").click()
    expect(page.locator(".try-result")).to_contain_text("0.95 reaches threshold 0.70")
    expect(page.locator(".try-result")).to_contain_text('The agent says "refund".')
    expect(page.get_by_label("Prompt about a turn")).to_contain_text("Never say Tuesday.")
    page.get_by_role("button", name="1 intervention").click()
    expect(page.locator(".past-turn").first).to_be_visible()
    turns = page.locator(".past-turn").count()
    page.get_by_role("button", name="Judge all").click()
    expect(page.locator(".past-turn .tried")).to_have_count(turns, timeout=30_000)
    expect(page.locator("[data-progress]")).to_contain_text(f"{turns} judged")
    assert texts(page) == ["Never promise a date.", "Never confirm a refund.", "Never say Tuesday."]
    assert [rule["text"] for rule in stored(shop, django_db_blocker).rules] == RULES

    # Enter in the panel asks the panel.
    page.get_by_role("button", name="Other calls").click()
    page.get_by_label("Calls in which these words were said").fill("zeppelin")
    page.keyboard.press("Enter")
    expect(page.get_by_text("No call has these words.")).to_be_visible()

    page.get_by_role("button", name="Save draft").click()
    expect(page.get_by_text("Saved.")).to_be_visible()
    expect(page.get_by_label("The agent is about to say")).to_have_value("Sure, I have refunded it.")
    assert [rule["text"] for rule in stored(shop, django_db_blocker).rules] == [
        "Never promise a date.",
        "Never confirm a refund.",
        "Never say Tuesday.",
    ]
    page.get_by_role("button", name="Save and publish").click()
    expect(page.get_by_role("heading", name="Publish version 2?")).to_be_visible()
    page.get_by_role("button", name="Publish version 2").click()
    expect(page.get_by_text("Version 2 is live.")).to_be_visible()
    watched.open(url)
    page.get_by_role("button", name="Roll back to version 1").click()
    expect(page.get_by_text("Version 1 is live again")).to_be_visible()
    # Back, and nothing is asked twice.
    page.go_back()
    expect(page.get_by_role("heading", name="Live: version")).to_be_visible()


def test_two_who_write_the_same_draft_see_both_texts(
    open_page: OpenPage, shop: Tenancy, django_db_blocker: DjangoDbBlocker
) -> None:
    url = f"/policies/{shop.policy.id}/versions/2"
    first, second = open_page(), open_page(width=390, scheme="dark")
    for watched in (first, second):
        watched.sign_in(shop)
        watched.open(url)
    first.page.get_by_label("Rule 3").fill("Be kinder.")
    first.page.get_by_role("button", name="Save draft").click()
    expect(first.page.get_by_text("Saved.")).to_be_visible()
    second.expected_status[f"{url}/save"] = 409
    second.page.get_by_label("Rule 3").fill("Be kind to everybody.")
    second.page.get_by_role("button", name="Save draft").click()
    expect(second.page.get_by_text("somebody changed this draft meanwhile")).to_be_visible()
    assert texts(second.page)[2] == "Be kind to everybody."
    assert overflow_of(second.page) == []
    assert barriers_of(second.page) == []
    second.page.get_by_role("button", name="Save mine over theirs").click()
    expect(second.page.get_by_text("Saved.")).to_be_visible()
    assert stored(shop, django_db_blocker).rules[2]["text"] == "Be kind to everybody."


def test_the_editor_works_without_javascript(
    open_page: OpenPage, shop: Tenancy, django_db_blocker: DjangoDbBlocker, chromium: Any
) -> None:
    watched = open_page()
    watched.sign_in(shop)
    state = watched.page.context.storage_state()
    context = chromium.new_context(java_script_enabled=False, storage_state=state)
    page = context.new_page()
    page.goto(f"{watched.url}/policies/{shop.policy.id}/versions/2")
    page.get_by_label("Rule 1").fill("Never, ever confirm a refund.")
    page.get_by_role("button", name="Move down").first.click()
    page.get_by_role("button", name="Judge this turn").click()
    expect(page.get_by_text("Write what the agent says")).to_be_visible()
    page.get_by_label("The agent is about to say").fill("I have refunded it.")
    page.get_by_role("button", name="Judge this turn").click()
    expect(page.get_by_text("0.95 reaches threshold 0.70")).to_be_visible()
    page.get_by_role("button", name="Save draft").click()
    expect(page.get_by_text("Saved.")).to_be_visible()
    context.close()
    assert [rule["text"] for rule in stored(shop, django_db_blocker).rules] == [
        "Never promise a date.",
        "Never, ever confirm a refund.",
        "Be kind.",
    ]
