"""What every page of the console knows: theme, the member and their tenant, the navigation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest
from django.urls import reverse

from tenants.selectors.memberships import MembershipRef
from webui.middleware import THEME_COOKIE, THEMES


@dataclass(frozen=True, slots=True)
class NavItem:
    """A screen in the bar: `section` is what its views name as theirs, `scope` what a role needs to see it."""

    section: str
    name: str
    route: str
    scope: str


NAVIGATION = (NavItem("calls", "Calls", "webui:calls", "calls:read"),)


def console(request: HttpRequest) -> dict[str, Any]:
    theme = request.COOKIES.get(THEME_COOKIE, "")
    member: MembershipRef | None = getattr(request, "membership", None)
    return {
        "theme": theme if theme in THEMES else "",
        "member": member,
        "navigation": [
            {"section": item.section, "name": item.name, "url": reverse(item.route)}
            for item in NAVIGATION
            if member is not None and item.scope in member.capabilities
        ],
    }
