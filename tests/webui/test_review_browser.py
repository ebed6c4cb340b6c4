"""Reviewing in Chromium: by keys alone, by two people at once, and on a phone."""

from __future__ import annotations

import re
from uuid import UUID

import pytest
from playwright.sync_api import expect
from pytest_django import DjangoDbBlocker

from supervision.models import Label
from tenants.models import Membership
from tenants.roles import Role
from tests.factories import Tenancy, call_create
from tests.support.reviews import turn_create
from tests.webui.browser import OpenPage, barriers_of, overflow_of
from tests.webui.conftest import in_thread

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]


@pytest.fixture
def reviewed(shop: Tenancy, django_db_blocker: DjangoDbBlocker) -> Tenancy:
    """Alice's tenant with an item of every kind but one; bob reviews, too."""

    def make() -> None:
        call = call_create(shop)
        turn_create(shop, call, score=0.6, text="We are open on Sundays, too, I think.")
        turn_create(shop, call, score=0.1, sampled=True, text="Could you spell your name for me?")
        with shop.context():
            Membership.objects.filter(user=shop.users["bob"]).update(role=Role.REVIEWER)

    with django_db_blocker.unblock():
        in_thread(make)
    return shop


def labels_of(tenancy: Tenancy, blocker: DjangoDbBlocker) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []

    def read() -> None:
        with tenancy.context():
            found.extend(Label.objects.order_by("created_at").values_list("value", "note"))

    with blocker.unblock():
        in_thread(read)
    return found


def item_of(url: str) -> UUID:
    match = re.search(r"/review/([0-9a-f-]{36})", url)
    assert match is not None, url
    return UUID(match.group(1))


def test_a_queue_is_worked_through_by_keys(
    open_page: OpenPage, reviewed: Tenancy, django_db_blocker: DjangoDbBlocker
) -> None:
    watched = open_page()
    watched.sign_in(reviewed)
    page = watched.open("/review")
    title = page.locator("#review-title")
    expect(title).to_have_text("Never confirm a refund.")
    first = page.url

    # Help comes and goes, and a key behind it does nothing.
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("2")
    page.keyboard.press("Escape")
    expect(page.get_by_role("radio", name="False alarm")).not_to_be_checked()

    # J and K only move, and so does Ctrl+Enter while nothing is said.
    page.keyboard.press("j")
    expect(title).to_have_text("process_payment")
    page.keyboard.press("k")
    page.wait_for_url(first)
    page.keyboard.press("Control+Enter")
    expect(title).to_have_text("process_payment")
    page.go_back()
    page.wait_for_url(first)

    # M is not offered for what Mirror objected to; what is typed into the note is no key.
    page.keyboard.press("m")
    expect(page.locator("input[name=label]:checked")).to_have_count(0)
    page.keyboard.press("2")
    expect(page.get_by_role("radio", name="False alarm")).to_be_checked()
    page.keyboard.press("n")
    page.keyboard.type("1 Mirror judged junk")
    page.keyboard.press("Control+Enter")
    expect(title).to_have_text("process_payment")
    assert labels_of(reviewed, django_db_blocker) == [("false_alarm", "1 Mirror judged junk")]

    # Taken back, it is there again.
    page.keyboard.press("u")
    expect(page.get_by_text("Your label was taken back.")).to_be_visible()
    assert item_of(page.url) == item_of(first)
    assert labels_of(reviewed, django_db_blocker) == []

    for key, next_title in (("1", "process_payment"), ("2", re.compile("^Turn ")), ("m", re.compile("^Turn "))):
        page.keyboard.press(key)
        before = page.url
        page.keyboard.press("Control+Enter")
        page.wait_for_url(lambda url, before=before: url != before)
        expect(title).to_have_text(next_title)
    page.keyboard.press("3")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="All reviewed")).to_be_visible()
    assert [value for value, _ in labels_of(reviewed, django_db_blocker)] == [
        "confirmed",
        "false_alarm",
        "missed",
        "unsure",
    ]

    # Switched off, keys are letters again; the help can still be opened.
    page = watched.open("/review?label=unsure")
    page.keyboard.press("?")
    page.get_by_label("Use single keys in this browser").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    expect(page.get_by_role("radio", name="Unsure")).to_be_checked()
    page.reload()
    page.keyboard.press("1")
    expect(page.get_by_role("radio", name="Unsure")).to_be_checked()


def test_two_reviewers_are_given_different_items_on_a_phone_too(open_page: OpenPage, reviewed: Tenancy) -> None:
    alice, bob = open_page(), open_page(width=390, scheme="dark")
    alice.sign_in(reviewed, "alice")
    bob.sign_in(reviewed, "bob")
    hers, his = alice.open("/review"), bob.open("/review")
    expect(hers.locator("#review-title")).to_have_text("Never confirm a refund.")
    expect(his.locator("#review-title")).to_have_text("process_payment")
    assert item_of(hers.url) != item_of(his.url)
    assert overflow_of(his) == []

    his.goto(hers.url)
    email = reviewed.users["alice"].email
    expect(his.get_by_text(f"{email} is reviewing this right now.")).to_be_visible()
    expect(his.get_by_role("button", name="Save and next")).to_have_count(0)
    for page in (hers, his):
        assert overflow_of(page) == []
        assert barriers_of(page) == []

    # Nothing is said: the page says so, and what was typed is still there.
    hers.get_by_label("Note").fill("Hm.")
    hers.get_by_role("button", name="Save and next").click()
    expect(hers.get_by_text("Say what it was before you go on.")).to_be_visible()
    expect(hers.get_by_label("Note")).to_have_value("Hm.")
    assert barriers_of(hers) == []
    hers.get_by_role("radio", name="Confirmed").check()
    hers.get_by_role("button", name="Save and next").click()
    expect(hers.locator("#review-title")).not_to_have_text("Never confirm a refund.")
