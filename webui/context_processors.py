"""What every page of the console knows: theme, the member and their tenant, the navigation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from django.http import HttpRequest
from django.urls import reverse

from tenants.selectors.memberships import MembershipRef, membership_list
from webui.middleware import THEME_COOKIE, THEMES
from webui.vendor import HTMX_CONFIG, vendor_files_present


@dataclass(frozen=True, slots=True)
class NavItem:
    """A screen in the bar: `section` is what its views name as theirs, `scope` what a role needs to see it.

    Those of the group `main` stand side by side, in the order of a day's work; those of `set_up` are in a menu.
    """

    section: str
    name: str
    route: str
    scope: str
    group: Literal["main", "set_up"] = "main"


@dataclass(frozen=True, slots=True)
class NavLink:
    """A screen that this member may see, and whether they are in it."""

    name: str
    url: str
    section: str


@dataclass(frozen=True, slots=True)
class Navigation:
    """The bar's links for one member."""

    main: tuple[NavLink, ...] = ()
    set_up: tuple[NavLink, ...] = ()

    @property
    def set_up_sections(self) -> list[str]:
        return [link.section for link in self.set_up]


NAVIGATION = (
    NavItem("live", "Live", "webui:live", "calls:read"),
    NavItem("calls", "Calls", "webui:calls", "calls:read"),
    NavItem("review", "Review", "webui:review", "labels:write"),
    NavItem("policies", "Policies", "webui:policies", "policies:read"),
    NavItem("overview", "Overview", "webui:overview", "calls:read"),
    NavItem("test_call", "Test call", "webui:test_call", "calls:write"),
    NavItem("agents", "Agents", "webui:agents", "policies:read", "set_up"),
    NavItem("credentials", "Credentials", "webui:credentials", "policies:read", "set_up"),
    NavItem("webhooks", "Webhooks", "webui:webhooks", "admin", "set_up"),
    NavItem("members", "Members", "webui:members", "admin", "set_up"),
    NavItem("api_keys", "API keys", "webui:api_keys", "admin", "set_up"),
    NavItem("usage", "Usage", "webui:usage", "calls:read", "set_up"),
    NavItem("audit", "Audit", "webui:audit", "admin", "set_up"),
    NavItem("settings", "Settings", "webui:settings", "admin", "set_up"),
)


def console(request: HttpRequest) -> dict[str, Any]:
    theme = request.COOKIES.get(THEME_COOKIE, "")
    member: MembershipRef | None = getattr(request, "membership", None)
    return {
        "theme": theme if theme in THEMES else "",
        "member": member,
        "has_vendor_files": vendor_files_present(),
        "htmx_config": HTMX_CONFIG,
        # Asked for by the menu alone, and only for somebody who has more than one.
        "other_tenants": lambda: _other_tenants(member),
        "navigation": _navigation(member),
    }


def _navigation(member: MembershipRef | None) -> Navigation:
    if member is None:
        return Navigation()
    seen = [item for item in NAVIGATION if item.scope in member.capabilities]
    main = tuple(_link(item) for item in seen if item.group == "main")
    set_up = tuple(_link(item) for item in seen if item.group == "set_up")
    # A menu of one would only hide it.
    return Navigation(main + set_up) if len(set_up) < 2 else Navigation(main, set_up)


def _link(item: NavItem) -> NavLink:
    return NavLink(item.name, reverse(item.route), item.section)


def _other_tenants(member: MembershipRef | None) -> list[MembershipRef]:
    if member is None or not member.is_one_of_several:
        return []
    return [other for other in membership_list(user_id=member.user_id) if other.tenant.id != member.tenant.id]
