"""Settings and webhooks in Debian's Chromium: rows that are added, a sentence that is tried, a secret that is shown
once, and a delivery that is looked at while it is on its way."""

from __future__ import annotations

import re

import pytest
from django.utils import timezone
from playwright.sync_api import expect
from pytest_django import DjangoDbBlocker

from supervision.models import PrivacySettings, WebhookDelivery
from tests.factories import Tenancy
from tests.webui.browser import OpenPage
from tests.webui.conftest import in_thread

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

SECRET = re.compile(r"whsec_[A-Za-z0-9+/]{43}=")


def test_patterns_are_tried_before_they_are_saved(
    open_page: OpenPage, shop: Tenancy, django_db_blocker: DjangoDbBlocker
) -> None:
    watched = open_page(width=390)
    watched.sign_in(shop)
    page = watched.open("/settings/privacy")
    # Countries by their names, and no empty row for those who can add one.
    expect(page.get_by_label("Phone numbers without a country code")).to_have_value("US")
    expect(page.locator("option[value=DE]")).to_have_text("Germany, DE (+49)")
    expect(page.get_by_label("RE2 pattern")).to_be_hidden()
    page.get_by_role("button", name="Add a pattern").click()
    expect(page.get_by_label("Name").locator("visible=true")).to_be_focused()
    page.keyboard.type("room number")
    page.keyboard.press("Tab")
    page.keyboard.type("(")
    page.get_by_label("A sentence to try it with").fill("Room R12, card 4111 1111 1111 1111.")
    tried = page.locator("#tried")
    page.get_by_role("button", name="Try").click()
    expect(tried).to_contain_text("Something above cannot be used yet.")
    page.get_by_label("RE2 pattern").locator("visible=true").fill("R[0-9]+")
    page.get_by_role("button", name="Try").click()
    expect(tried).to_contain_text("Room [room number], card [card number].")
    # Still the page that was typed into: nothing was saved, nothing was lost.
    assert page.url.endswith("/settings/privacy")
    page.get_by_role("button", name="Save all of this").click()
    expect(page.get_by_text("Saved. Calls that begin from now on are stored so.")).to_be_visible()
    expect(page.get_by_label("RE2 pattern").locator("visible=true")).to_have_value("R[0-9]+")
    page.get_by_role("button", name="Take away").locator("visible=true").click()
    page.get_by_role("button", name="Save all of this").click()
    expect(page.get_by_text("Saved. Calls that begin from now on are stored so.")).to_be_visible()
    expect(page.get_by_label("RE2 pattern").locator("visible=true")).to_have_count(0)

    def look() -> None:
        with shop.context():
            assert PrivacySettings.objects.get().patterns == []

    with django_db_blocker.unblock():
        in_thread(look)


def test_a_webhooks_secret_is_shown_once_and_a_delivery_looks_after_itself(
    open_page: OpenPage, shop: Tenancy, django_db_blocker: DjangoDbBlocker
) -> None:
    watched = open_page()
    watched.sign_in(shop)
    page = watched.open("/webhooks/new")
    page.get_by_label("URL").fill("http://127.0.0.1:1/hooks")
    page.get_by_label("tool.blocked").check()
    # A double click is one webhook.
    page.get_by_role("button", name="Add it").dblclick()
    secret = page.get_by_label("Copy it now")
    expect(secret).to_have_value(SECRET)
    shown = secret.input_value()
    page.reload()
    expect(secret).to_have_count(0)
    page.go_back()
    page.go_forward()
    assert shown not in page.content()

    def settle() -> None:
        with shop.context():
            # Whatever the schedule has tried meanwhile.
            WebhookDelivery.objects.update(
                state="delivered", next_attempt_at=None, delivered_at=timezone.now(), error="", attempts=1
            )

    page.get_by_role("button", name="Send a test event").click()
    expect(page.get_by_role("heading", name="webhook.test")).to_be_visible()
    expect(page.locator("#delivery[hx-trigger]")).to_have_count(1)
    with django_db_blocker.unblock():
        in_thread(settle)
    expect(page.get_by_text("Delivered", exact=True).first).to_be_visible(timeout=10_000)
    expect(page.locator("#delivery[hx-trigger]")).to_have_count(0)
    page.goto(f"{watched.url}/webhooks")
    expect(page.get_by_role("row")).to_have_count(2)
