"""What the viewer chose in cookies: theme and time zone."""

from __future__ import annotations

import zoneinfo
from collections.abc import Callable
from functools import lru_cache

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils import timezone

GetResponse = Callable[[HttpRequest], HttpResponseBase]

TIME_ZONE_COOKIE = "tz"
THEME_COOKIE = "theme"
THEMES = ("light", "dark")


@lru_cache(maxsize=256)
def zone_named(name: str) -> zoneinfo.ZoneInfo | None:
    """The time zone that a cookie names, or None when there is no such zone."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        return None


class TimeZoneMiddleware:
    """Renders times in the zone that the browser told us in a cookie; in UTC until it has."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        with timezone.override(
            zone_named(request.COOKIES.get(TIME_ZONE_COOKIE, "")) or timezone.get_default_timezone()
        ):
            return self.get_response(request)
