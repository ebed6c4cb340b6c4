"""The headers that keep every HTTP answer ours: pages, files, API, errors, and what Django never sees.

They are added around the whole application rather than by a middleware, because the server, the drain and Django's own
handler answer some requests before any middleware runs. An answer that sets one of them keeps its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import lru_cache
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
RawHeaders = Iterable[tuple[bytes, bytes]]

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

# What the console has no use for.
_NO_FEATURES = (
    "accelerometer",
    "autoplay",
    "camera",
    "display-capture",
    "encrypted-media",
    "geolocation",
    "gyroscope",
    "magnetometer",
    "microphone",
    "midi",
    "payment",
    "screen-wake-lock",
    "usb",
    "xr-spatial-tracking",
)


def permissions_policy(*allowed: str) -> str:
    """The value of Permissions-Policy for a page that needs the features `allowed` for itself."""
    return ", ".join(f"{name}=({'self' if name in allowed else ''})" for name in _NO_FEATURES)


HEADERS: dict[str, str] = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: browsers then send `Origin: null` with forms, which the CSRF check has to refuse.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Permitted-Cross-Domain-Policies": "none",
    "Permissions-Policy": permissions_policy(),
    # Files set their own; everything else may hold what one tenant alone may see.
    "Cache-Control": "no-store",
}

# They name what runs here, and its version, to whoever asks.
_NEVER = frozenset({b"server", b"x-powered-by"})


def response_headers(headers: RawHeaders = ()) -> list[tuple[bytes, bytes]]:
    """`headers` of an answer with those of this module that it lacks, and without those that name software."""
    kept = [(name, value) for name, value in headers if name.lower() not in _NEVER]
    present = {name.lower() for name, _ in kept}
    return kept + [(name, value) for name, value in _ours() if name.lower() not in present]


def headers_application(app: ASGIApp) -> ASGIApp:
    """`app`, each of whose HTTP answers carries the headers. WebSockets pass untouched."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": response_headers(message.get("headers") or ())}
            await send(message)

        await app(scope, receive, send_with_headers)

    return application


def transport_security(public_url: str, seconds: int) -> str | None:
    """The value of Strict-Transport-Security for a Mirror at `public_url`, or None where there is no TLS.

    0 seconds make browsers forget it. Sub-domains and browsers' preload lists are the operator's to decide on, at the
    proxy: both bind more than this host, and cannot be taken back soon.
    """
    return f"max-age={seconds}" if public_url.startswith("https://") else None


@lru_cache(maxsize=1)
def _ours() -> tuple[tuple[bytes, bytes], ...]:
    from django.conf import settings

    headers = dict(HEADERS)
    strict = transport_security(settings.MIRROR.public_url, settings.MIRROR.hsts_s)
    if strict is not None:
        # Sent without a look at the request: TLS ends in front of us, and browsers ignore it where there is none.
        headers["Strict-Transport-Security"] = strict
    return tuple((name.lower().encode("ascii"), value.encode("ascii")) for name, value in headers.items())
