"""Every page of the console in Chromium, as everybody who may see it.

The pages are those of tests/isolation/sweep.py, where a page without a row fails. No page may complain, be refused
what it asks for, be wider than a phone, or have what axe-core calls a serious or critical barrier, light or dark; and
no page may offer what its viewer's role is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.conf import settings
from django.urls import Resolver404, resolve
from playwright.sync_api import Browser, Error, Page
from pytest_django import DjangoDbBlocker

from tenants.roles import ROLE_CAPABILITIES, Role
from tests.factories import Tenancy, call_create, tenancy_create
from tests.isolation.sweep import PAGES, PERSON, PUBLIC, Asker, Door, member, person, question, signed_in
from tests.webui import story
from tests.webui.browser import Watched, barriers_of, overflow_of
from tests.webui.conftest import Console, in_thread

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

PHONE, WIDE = 390, 1440
# The API's documentation has a test of its own (test_api_docs.py); the rest is for machines.
NO_PAGES = ("api/v1/", "livez", "readyz", "metrics")
WALKED = [door for door in PAGES if door.method == "GET" and not door.path.startswith(NO_PAGES)]
FIRST_PAGE_BYTES = 150_000


@dataclass(frozen=True)
class Town:
    """A tenant with calls and a member of each role, somebody of no tenant, and where each page is."""

    tenancy: Tenancy
    members: dict[Role, Asker]
    dora: Asker
    urls: dict[str, str]


@pytest.fixture(scope="module")
def town(
    django_db_setup: None, django_db_blocker: DjangoDbBlocker, database_urls: Any, redis_url: str, tmp_path_factory: Any
) -> Town:
    made: list[Town] = []

    def make() -> None:
        tenancy = tenancy_create(owner="alice", llm_model="demo-script")
        call_create(tenancy)
        now = story.now()
        recording = story.Recording(dsn=database_urls.app, journal_dir=tmp_path_factory.mktemp("walk") / "journal")
        for told in (
            story.live_call(tenancy, now - timedelta(minutes=4)),
            story.failed_call(tenancy, now - timedelta(minutes=3)),
            # The newest: its page is the one that is walked.
            story.corrected_call(tenancy, now - timedelta(minutes=2)),
        ):
            recording(told.events)
        recording.close()
        members = {role: signed_in(member(tenancy, role)) for role in Role if role != Role.OWNER}
        members[Role.OWNER] = signed_in(tenancy.users["alice"])
        urls = {door.path: question(door, tenancy).url for door in WALKED}
        made.append(Town(tenancy, members, signed_in(person()), urls))

    with django_db_blocker.unblock():
        in_thread(make)
    return made[0]


class Walker:
    """One viewer's browser. `known` are parts of pages that were looked at before, whoever saw them."""

    known: set[str] = set()  # noqa: RUF012 - of all walkers

    def __init__(self, chromium: Browser, console: Console, asker: Asker | None, *, looks: bool = True) -> None:
        """`looks`: at each page's width and barriers too, which takes most of the time."""
        self.looks = looks
        self.context = chromium.new_context(
            viewport={"width": PHONE, "height": 844},
            timezone_id="Europe/Berlin",
            reduced_motion="reduce",
            color_scheme="light",
        )
        if asker is not None and asker.session is not None:
            self.context.add_cookies(
                [{"name": settings.SESSION_COOKIE_NAME, "value": asker.session, "url": console.url}]
            )
        self.watched = Watched(self.context.new_page(), console.url)
        self.watched.watch()
        self.page: Page = self.watched.page
        self.faults: list[str] = []
        self.seen = 0

    def walk(self, door: Door, url: str, capabilities: frozenset[str] | None) -> None:
        """Open the page and look at it; what is wrong with it is in `faults`."""
        self.page.set_viewport_size({"width": PHONE, "height": 844})
        try:
            response = self.page.goto(self.watched.url + url)
        except Error as error:
            if "Download is starting" in error.message:
                self.watched.complaints.clear()
                return
            raise
        assert response is not None
        if not response.headers.get("content-type", "").startswith("text/html"):
            return
        self.seen += 1
        where = f"GET /{door.path}"
        # Refused pages, such as that of a link that is no good any more, are pages too.
        refused = {f"{status} for {urlsplit(self.page.url).path}" for status in door.answers if status >= 400}
        self.faults += [f"{where}: {words}" for words in self.watched.complaints if words not in refused]
        self.watched.complaints.clear()
        self.faults += [f"{where}: {words}" for words in promises_broken(self.page, capabilities)]
        parts = parts_of(self.page)
        if not self.looks or parts <= self.known:
            return
        self.known |= parts
        for width in (PHONE, WIDE):
            self.page.set_viewport_size({"width": width, "height": 844})
            self.faults += [f"{where} at {width} px is too wide: {words}" for words in overflow_of(self.page)]
        self.faults += [f"{where}: {words}" for words in barriers_of(self.page)]
        self.page.emulate_media(color_scheme="dark")
        self.faults += [f"{where}, dark: {words}" for words in barriers_of(self.page, rules=["color-contrast"])]
        self.page.emulate_media(color_scheme="light")


def parts_of(page: Page) -> set[str]:
    """A page's bar and its main part, without what is new each time that they are rendered."""
    parts: list[str] = page.evaluate(
        """() => {
            const parts = [...document.querySelectorAll("body > header, body > main")];
            return (parts.length ? parts : [document.body]).map((part) => part.outerHTML);
        }"""
    )
    passing = r' (?:aria-current="page"|class="current")|(name="(?:csrfmiddlewaretoken|once)" value|data-csrf)="[^"]*"'
    return {re.sub(passing, "", part) for part in parts}


def promises_broken(page: Page, capabilities: frozenset[str] | None) -> list[str]:
    """Links and forms of a page that lead nowhere, that its viewer may not follow, or that are done twice.

    `capabilities` are None for whoever has no role, and is asked to sign in first.
    """
    found: list[dict[str, Any]] = page.evaluate(
        """() => {
            const links = [...document.querySelectorAll("a[href]")].map((link) => ({ to: link.href, post: false }));
            const forms = [...document.querySelectorAll("form")].flatMap((form) => {
                // By attributes: a field may be called "action".
                const post = form.getAttribute("method") === "post";
                const action = new URL(form.getAttribute("action") ?? "", document.baseURI).href;
                const once = form.querySelector("input[name=once]")?.value ?? "";
                const target = (button) => button.hasAttribute("formaction") ? button.formAction : action;
                return [...form.elements].filter((one) => one.type === "submit").map(
                    (button) => ({ to: target(button), post, once }));
            });
            return [...links, ...forms].filter(({ to }) => new URL(to).origin === location.origin);
        }"""
    )
    broken = []
    for one in found:
        path = urlsplit(one["to"]).path
        if path.startswith("/static/"):
            continue
        try:
            view = resolve(path).func
        except Resolver404:
            broken.append(f"{path} leads nowhere")
            continue
        needs = getattr(view, "capability", None)
        if needs is not None and capabilities is not None and needs not in capabilities:
            broken.append(f"{path} is offered to somebody without {needs}")
        token = re.fullmatch(r"[0-9a-f-]{36}", one.get("once", "")) is not None
        if one["post"] and token != hasattr(view, "sent_once"):
            broken.append(f"{path}: a form has {{% once %}} exactly if its view is decorated with it")
    return broken


@pytest.mark.parametrize("role", list(Role), ids=lambda role: role.value)
def test_every_page_as_every_role(chromium: Browser, console: Console, town: Town, role: Role) -> None:
    capabilities = ROLE_CAPABILITIES[role.value]
    # An owner sees all that others see of a page, so it is the owner's that is looked at closely.
    walker = Walker(chromium, console, town.members[role], looks=role == Role.OWNER)
    for door in WALKED:
        if door.needs in capabilities or (door.needs == PERSON and role == Role.OWNER):
            walker.walk(door, town.urls[door.path], capabilities)
    walker.context.close()
    assert not walker.faults, "\n".join(walker.faults)
    assert walker.seen >= len([door for door in WALKED if door.needs in capabilities]) // 2


def test_every_page_as_nobody_and_as_somebody_of_no_tenant(chromium: Browser, console: Console, town: Town) -> None:
    for asker, kinds in ((None, (PUBLIC,)), (town.dora, (PERSON,))):
        walker = Walker(chromium, console, asker)
        for door in WALKED:
            if door.needs in kinds:
                walker.walk(door, town.urls[door.path], None)
        walker.context.close()
        assert not walker.faults, "\n".join(walker.faults)
        assert walker.seen > 5


def test_the_first_page_is_light(chromium: Browser, console: Console, town: Town) -> None:
    """What a browser that was never here fetches for the first page, as it came over the wire."""
    walker = Walker(chromium, console, town.members[Role.OWNER])
    network = walker.context.new_cdp_session(walker.page)
    network.send("Network.enable")
    sizes: list[float] = []
    network.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    for path in ("/", "/live"):
        sizes.clear()
        network.send("Network.clearBrowserCache")
        walker.page.goto(console.url + path)
        walker.page.wait_for_load_state("networkidle")
        assert len(sizes) > 10
        print(f"{path}: {sum(sizes):,.0f} bytes in {len(sizes)} answers")
        assert 10_000 < sum(sizes) < FIRST_PAGE_BYTES, path
    # Kept by the browser for good, as the next version of a file has another name.
    sheet = walker.page.locator("link[rel=stylesheet]").first.get_attribute("href")
    headers = walker.page.request.get(f"{console.url}{sheet}").headers
    assert "immutable" in headers["cache-control"]
    assert headers["content-encoding"] == "gzip"
    walker.context.close()
    assert walker.watched.complaints == []
