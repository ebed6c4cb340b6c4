"""What tests do with a browser: a page that is watched, and questions that every page answers the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from playwright.sync_api import Page, Request, Response

from tests.factories import PASSWORD, Tenancy
from webui.frontend.__main__ import PACKAGES

Scheme = Literal["light", "dark"]


@dataclass
class Watched:
    """A page, and everything that it complained about."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    expected_status: dict[str, int] = field(default_factory=dict)

    def watch(self) -> None:
        self.page.on("console", lambda message: self._complain(message.type in ("error", "warning"), message.text))
        self.page.on("pageerror", lambda error: self._complain(True, f"uncaught: {error}"))
        self.page.on("requestfailed", self._failed)
        self.page.on("response", self._response)

    def _complain(self, really: bool, text: str) -> None:
        # Chromium repeats a status of 400 and above in its console; `_response` judges it.
        if really and "Failed to load resource" not in text:
            self.complaints.append(text)

    def _failed(self, request: Request) -> None:
        # Going on to the next page ends what is still being fetched for this one: the icon, modules of modules.
        if not ("/static/" in request.url and request.failure == "net::ERR_ABORTED"):
            self.complaints.append(f"failed: {request.url} {request.failure}")

    def _response(self, response: Response) -> None:
        path = response.url.removeprefix(self.url)
        if response.status >= 400 and self.expected_status.get(path) != response.status:
            self.complaints.append(f"{response.status} for {path}")

    def open(self, path: str) -> Page:
        self.page.goto(self.url + path)
        self.page.wait_for_load_state("load")
        return self.page

    def sign_in(self, tenancy: Tenancy, name: str = "alice") -> None:
        self.open("/sign-in?next=/calls")
        self.page.get_by_label("Email").fill(tenancy.users[name].email)
        self.page.get_by_label("Password").fill(PASSWORD)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.wait_for_url("**/calls")


OpenPage = Callable[..., Watched]


def overflow_of(page: Page) -> list[str]:
    """Elements that reach beyond the window's right edge, other than those inside something that scrolls."""
    found: list[str] = page.evaluate(
        """() => {
            const scrolls = (element) => {
                for (let parent = element.parentElement; parent; parent = parent.parentElement) {
                    const style = getComputedStyle(parent);
                    if (/auto|scroll|hidden|clip/.test(style.overflowX) && parent !== document.body) return true;
                }
                return false;
            };
            return [...document.querySelectorAll("body *")]
                .filter((element) => element.getBoundingClientRect().right > innerWidth + 0.5 && !scrolls(element))
                .map((element) => `${element.localName}.${element.getAttribute("class")}`);
        }"""
    )
    wide: int = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return found + ([f"the page is {wide} px too wide"] if wide > 0 else [])


@cache
def axe_source() -> str:
    return (PACKAGES / "axe-core" / "axe.min.js").read_text()


def barriers_of(page: Page, *, rules: Sequence[str] = ()) -> list[str]:
    """What axe-core finds serious or critical in a page, by all of its rules or only by `rules`: which, where, why."""
    # Evaluated by the debugger, which the page's Content-Security-Policy does not concern.
    if not page.evaluate("typeof axe === 'object'"):
        page.evaluate(axe_source())
    found: list[dict[str, Any]] = page.evaluate(
        """async (rules) => {
            const only = rules.length ? { runOnly: { type: "rule", values: rules } } : {};
            const { violations } = await axe.run({ resultTypes: ["violations"], ...only });
            return violations.filter((one) => ["serious", "critical"].includes(one.impact));
        }""",
        list(rules),
    )
    return [
        f"{one['id']}: {node['html'][:200]} ({node['failureSummary'].splitlines()[-1].strip()})"
        for one in found
        for node in one["nodes"]
    ]
