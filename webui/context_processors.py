"""What every page of the console knows: theme, the member and their tenant, the navigation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest
from django.urls import reverse

from tenants.selectors.memberships import MembershipRef, membership_list
from webui.middleware import THEME_COOKIE, THEMES
from webui.vendor import HTMX_CONFIG, vendor_files_present


@dataclass(frozen=True, slots=True)
class NavItem:
    """A screen in the bar: `section` is what its views name as theirs, `scope` what a role needs to see it."""

    section: str
    name: str
    route: str
    scope: str


NAVIGATION = (
    NavItem("calls", "Calls", "webui:calls", "calls:read"),
    NavItem("members", "Members", "webui:members", "admin"),
    NavItem("api_keys", "API keys", "webui:api_keys", "admin"),
    NavItem("audit", "Audit", "webui:audit", "admin"),
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
        "navigation": [
            {"section": item.section, "name": item.name, "url": reverse(item.route)}
            for item in NAVIGATION
            if member is not None and item.scope in member.capabilities
        ],
    }


def _other_tenants(member: MembershipRef | None) -> list[MembershipRef]:
    if member is None or not member.is_one_of_several:
        return []
    return [other for other in membership_list(user_id=member.user_id) if other.tenant.id != member.tenant.id]
