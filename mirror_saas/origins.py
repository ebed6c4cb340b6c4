"""Which web pages may talk to us: the origin of a request, and the one that it should have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.http.request import split_domain_port, validate_host

from mirror_saas.clients import is_trusted_proxy
from mirror_saas.headers import ASGIApp, Receive, Scope, Send

_DEFAULT_PORTS = {"http": 80, "https": 443}
_SECURE = {"http": "https", "https": "https", "ws": "wss", "wss": "wss"}


def origin_of(url: str) -> str:
    """The origin of a URL as browsers write it: lower case, without the scheme's own port. Empty when it has none."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return ""
    if not host or parts.scheme not in _DEFAULT_PORTS:
        return ""
    if ":" in host:
        host = f"[{host}]"
    return f"{parts.scheme}://{host}" + (f":{port}" if port not in (None, _DEFAULT_PORTS[parts.scheme]) else "")


def scheme_application(app: ASGIApp) -> ASGIApp:
    """`app`, told by `scope["scheme"]` whether the browser used TLS, which usually ends in front of us.

    Requests for the public URL's host came by its scheme. For other hosts `X-Forwarded-Proto` counts, but only what a
    proxy of MIRROR_TRUSTED_PROXIES wrote: anybody can send it.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            default = "http" if scope["type"] == "http" else "ws"
            scheme = scope.get("scheme") or default
            scope = {**scope, "scheme": _SECURE.get(scheme, scheme) if _used_tls(scope) else scheme}
        await app(scope, receive, send)

    return application


def origin_application(app: ASGIApp) -> ASGIApp:
    """`app` for WebSockets that pages of this very Mirror open; other handshakes are refused with 403.

    A browser sends its cookies along with whatever page asks, and names that page in `Origin`. Only the public URL and
    the address that was asked itself are ours: another port of the same host is somebody else's page.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if not origin_allowed(scope):
            await receive()
            await send({"type": "websocket.close"})
            return
        await app(scope, receive, send)

    return application


def origin_allowed(scope: Scope) -> bool:
    """Whether a handshake's one `Origin` is the public URL's, or that of the host it was sent to."""
    origins = _values(scope, b"origin")
    if len(origins) != 1:
        return False
    return origins[0] in {origin_of(settings.MIRROR.public_url), _asked_origin(scope)} - {""}


def _asked_origin(scope: Scope) -> str:
    """The origin of the page whose own host a request was sent to; empty when that host is not ours."""
    hosts = _values(scope, b"host")
    if len(hosts) != 1:
        return ""
    domain, _ = split_domain_port(hosts[0])
    if not domain or not validate_host(domain, settings.ALLOWED_HOSTS):
        return ""
    return origin_of(f"{'https' if scope.get('scheme') in ('https', 'wss') else 'http'}://{hosts[0]}")


def _used_tls(scope: Scope) -> bool:
    public: str = settings.MIRROR.public_url
    hosts = _values(scope, b"host")
    if public.startswith("https://") and len(hosts) == 1 and origin_of(f"https://{hosts[0]}") == origin_of(public):
        return True
    client: Any = scope.get("client")
    forwarded = _values(scope, b"x-forwarded-proto")
    if not client or not forwarded or not is_trusted_proxy(str(client[0]), settings.MIRROR.trusted_proxies):
        return False
    # The nearest proxy's word stands last.
    return ",".join(forwarded).rpartition(",")[2].strip().lower() == "https"


def _values(scope: Scope, name: bytes) -> list[str]:
    headers: Iterable[tuple[bytes, bytes]] = scope.get("headers") or ()
    return [value.decode("latin-1") for key, value in headers if key.lower() == name]
