"""The API's interactive docs in Debian's Chromium: they work under the policy of every other page."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.factories import Tenancy
from tests.webui.browser import OpenPage

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`));
"""


def test_the_docs_show_and_try_operations_under_the_strict_policy(open_page: OpenPage, shop: Tenancy) -> None:
    watched = open_page()
    watched.page.add_init_script(VIOLATIONS)
    watched.sign_in(shop)
    page = watched.open("/api/v1/docs")
    operation = page.locator(".opblock", has_text="/api/v1/me").first
    operation.locator(".opblock-summary").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_role("button", name="Execute").click()
    expect(operation.locator(".live-responses-table")).to_contain_text(shop.slug, timeout=15_000)
    expect(page.locator("section.models .json-schema-2020-12").first).to_be_visible()
    assert page.evaluate("window.violations") == []
