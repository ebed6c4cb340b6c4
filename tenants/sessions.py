"""Which sessions are in use: kept up to date request by request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from mirror_saas.clients import client_address
from tenants.services.people import session_touch


class SessionActivityMiddleware:
    """Note when and from where a person's session was last used, and let it live on for SESSION_COOKIE_AGE from then.

    It stands behind authentication and outside the tenant's transaction: a request that fails was one, too.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        agent = request.META.get("HTTP_USER_AGENT", "")
        if "\x00" in agent:
            # allauth stores it as it is, and PostgreSQL does not take this character.
            request.META["HTTP_USER_AGENT"] = agent.replace("\x00", "")
        key = self._touch(request)
        response = self.get_response(request)
        if key is not None and request.session.session_key == key and not request.session.modified:
            # The browser keeps the cookie as long as the server keeps the session.
            response.set_cookie(
                settings.SESSION_COOKIE_NAME,
                key,
                max_age=settings.SESSION_COOKIE_AGE,
                domain=settings.SESSION_COOKIE_DOMAIN,
                path=settings.SESSION_COOKIE_PATH,
                secure=settings.SESSION_COOKIE_SECURE,
                httponly=settings.SESSION_COOKIE_HTTPONLY,
                samesite=cast(Literal["Lax", "Strict", "None", False], settings.SESSION_COOKIE_SAMESITE),
            )
        return response

    def _touch(self, request: HttpRequest) -> str | None:
        """The session's key if its life was prolonged just now."""
        user: Any = request.user
        key = request.session.session_key
        if not user.is_authenticated or key is None:
            return None
        agent = request.META.get("HTTP_USER_AGENT", "")
        return key if session_touch(user=user, session_key=key, ip=client_address(request), user_agent=agent) else None
