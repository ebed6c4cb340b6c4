"""What the viewer chose in cookies, theme and time zone; and how pages travel: compressed, and to htmx."""

from __future__ import annotations

import zoneinfo
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.middleware.gzip import GZipMiddleware
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


class PageGZipMiddleware(GZipMiddleware):
    """Compresses pages, which are long lists of the same elements; files are compressed when they are collected.

    Nothing else: the API's answers are as their readers know them, and downloads are sent as they are made. Django adds
    random bytes and masks CSRF tokens, so that lengths do not tell what stands in a page (BREACH).
    """

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        if not response.headers.get("Content-Type", "").startswith("text/html"):
            return response
        compressed: HttpResponseBase = super().process_response(request, response)
        return compressed


class HtmxMiddleware:
    """Tells htmx to go where a redirect leads, as the browser does with a form that it sends itself.

    A script's request follows redirects unseen: the sign-in page, or the page that a form leads to, would end up in
    the middle of the one that asked.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        if "HX-Request" not in request.headers or not 300 <= response.status_code < 400:
            return response
        there = HttpResponse(status=HTTPStatus.NO_CONTENT, headers={"HX-Redirect": response.headers["Location"]})
        # The session, and messages for the next page.
        there.cookies = response.cookies
        return there
