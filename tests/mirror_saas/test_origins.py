"""Whose pages may open sockets, and which scheme a request came by, behind a proxy or not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from django.conf import settings

from mirror_saas.origins import origin_allowed, origin_application, origin_of, scheme_application

PUBLIC = "https://m.example.com"


@pytest.fixture
def public(settings: Any) -> Any:
    """Mirror at https://m.example.com, behind a proxy at 10.0.0.1."""
    settings.MIRROR = replace(settings.MIRROR, public_url=PUBLIC, trusted_proxies=("10.0.0.0/24",))
    settings.ALLOWED_HOSTS = ["m.example.com", "second.example.com", "localhost", "[::1]"]
    return settings


def handshake(*headers: tuple[str, str], client: str = "198.51.100.7") -> dict[str, Any]:
    return {
        "type": "websocket",
        "path": "/ws/console",
        "client": [client, 40000],
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
    }


async def seen(scope: dict[str, Any]) -> dict[str, Any]:
    """The scope that an application gets behind `scheme_application`."""
    found: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found.append(scope)

    async def nothing(*_: Any) -> None: ...

    await scheme_application(app)(scope, nothing, nothing)
    return found[0]


async def allowed(*headers: tuple[str, str], client: str = "198.51.100.7") -> bool:
    return origin_allowed(await seen(handshake(*headers, client=client)))


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://M.Example.com/", "https://m.example.com"),
        ("https://m.example.com:443", "https://m.example.com"),
        ("http://m.example.com:443", "http://m.example.com:443"),
        ("http://[::1]:8000/x", "http://[::1]:8000"),
        ("https://m.example.com:x", ""),
        ("javascript:alert(1)", ""),
        ("null", ""),
        ("", ""),
    ],
)
def test_an_origin_is_written_as_browsers_write_it(url: str, origin: str) -> None:
    assert origin_of(url) == origin


@pytest.mark.parametrize("host", ["m.example.com", "M.Example.com", "m.example.com:443", "localhost:8000"])
async def test_our_own_page_may_whatever_the_proxy_made_of_host(public: Any, host: str) -> None:
    assert await allowed(("Host", host), ("Origin", PUBLIC))


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        " ",
        "https://evil.example",
        "https://evil.m.example.com",
        "https://example.com",
        "https://m.example.com.evil.example",
        "https://m.example.com:8443",
        "https://m.example.com:443",
        "http://m.example.com",
        "https://M.EXAMPLE.COM",
        "HTTPS://m.example.com",
        "https://m.example.com/",
        "https://m.example.com.",
        "https://m.example.com@evil.example",
        "https://evil.example@m.example.com",
        "https://m.example.com#@evil.example",
        "https://m.example.com\\@evil.example",
        "https://m.example.com,https://evil.example",
        "https://m.example.com https://evil.example",
        "wss://m.example.com",
        "file://",
        "http://localhost:3000",
        "http://localhost",
        "http://127.0.0.1:8000",
        "chrome-extension://m.example.com",
        "https://m\xe9.example.com",
    ],
)
async def test_other_pages_may_not(public: Any, origin: str) -> None:
    assert not await allowed(("Host", "m.example.com"), ("Origin", origin))


async def test_whoever_names_no_page_or_two_may_not(public: Any) -> None:
    assert not await allowed(("Host", "m.example.com"))
    assert not await allowed(("Host", "m.example.com"), ("Origin", PUBLIC), ("Origin", "https://evil.example"))


async def test_the_host_that_was_asked_counts_only_if_it_is_ours(public: Any) -> None:
    """A name that an attacker points at this machine (DNS rebinding) is its own origin, and not ours."""
    assert await allowed(("Host", "localhost:8000"), ("Origin", "http://localhost:8000"))
    assert await allowed(("Host", "[::1]:8000"), ("Origin", "http://[::1]:8000"))
    assert not await allowed(("Host", "localhost:8000"), ("Origin", "http://localhost:3000"))
    assert not await allowed(("Host", "rebound.example"), ("Origin", "http://rebound.example"))
    assert not await allowed(("Host", "evil@localhost"), ("Origin", "http://localhost"))
    assert not await allowed(("Host", "a"), ("Host", "a"), ("Origin", "http://a"))


async def test_tls_is_what_the_public_url_says_or_a_trusted_proxy(public: Any) -> None:
    proxied = ("X-Forwarded-Proto", "https")
    for client, headers, scheme in [
        ("198.51.100.7", [("Host", "m.example.com")], "wss"),
        ("198.51.100.7", [("Host", "second.example.com")], "ws"),
        ("198.51.100.7", [("Host", "second.example.com"), proxied], "ws"),
        ("10.0.0.9", [("Host", "second.example.com"), proxied], "wss"),
        ("::ffff:10.0.0.9", [("Host", "second.example.com"), proxied], "wss"),
        ("10.0.0.9", [("Host", "second.example.com")], "ws"),
        # What the browser's side wrote stands before what the proxy wrote.
        ("10.0.0.9", [("Host", "second.example.com"), ("X-Forwarded-Proto", "https, http")], "ws"),
        ("10.0.0.9", [("Host", "second.example.com"), proxied, ("X-Forwarded-Proto", "http")], "ws"),
    ]:
        assert (await seen(handshake(*headers, client=client)))["scheme"] == scheme, (client, headers)
    scope = {**handshake(("Host", "m.example.com")), "type": "http"}
    assert (await seen(scope))["scheme"] == "https"
    assert (await seen({**scope, "client": None, "headers": [(b"x-forwarded-proto", b"https")]}))["scheme"] == "http"


async def test_a_second_host_behind_a_trusted_proxy_has_its_own_page(public: Any) -> None:
    headers = [("Host", "second.example.com"), ("X-Forwarded-Proto", "https")]
    assert await allowed(*headers, ("Origin", "https://second.example.com"), client="10.0.0.1")
    assert not await allowed(*headers, ("Origin", "http://second.example.com"), client="10.0.0.1")
    assert not await allowed(*headers, ("Origin", "https://second.example.com"), client="198.51.100.7")


async def test_a_refusal_is_a_closed_handshake(public: Any) -> None:
    sent: list[Any] = []

    async def app(*_: Any) -> None:
        raise AssertionError("reached")

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await origin_application(app)(handshake(("Host", "m.example.com")), receive, send)
    assert sent == [{"type": "websocket.close"}]
    assert settings.MIRROR.public_url == PUBLIC
