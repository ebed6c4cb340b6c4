"""What every answer to a browser carries: the headers that keep pages ours, and the viewer's time zone."""

from __future__ import annotations

import zoneinfo
from collections.abc import Callable
from functools import lru_cache

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils import timezone

GetResponse = Callable[[HttpRequest], HttpResponseBase]

TIME_ZONE_COOKIE = "tz"
THEME_COOKIE = "theme"
THEMES = ("light", "dark")

# No inline script or style, nothing from elsewhere, never framed. `connect-src 'self'` covers the page's own
# WebSocket (CSP 3, section 6.7.2.8: 'self' matches ws: and wss: of the same host and port).
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)

HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


class SecurityHeadersMiddleware:
    """Adds `HEADERS` to each answer that does not carry its own; pages of a signed-in viewer are not cached.

    It stands first, so that static files and error pages carry them too.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        user = getattr(request, "user", None)
        if user is not None and user.is_authenticated and isinstance(response, HttpResponse):
            response.headers.setdefault("Cache-Control", "private, no-store")
        return response


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
