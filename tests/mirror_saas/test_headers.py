"""The headers around everything: also around a failure, a stopping server, and an application that sets its own."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.urls import path

from mirror_saas import headers
from mirror_saas.draining import Drain, draining_application
from mirror_saas.headers import HEADERS, headers_application, response_headers, transport_security
from mirror_saas.serving import part_application
from mirror_saas.urls import urlpatterns as mirror_urls


def fails(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("kaput")


# Error pages lead back to the console's own.
urlpatterns = [path("fails", fails), path("api/v1/fails", fails), *mirror_urls]


@pytest.fixture(autouse=True)
def fresh() -> Any:
    """Settings are read once in a server's life; tests have several."""
    headers._ours.cache_clear()
    yield
    headers._ours.cache_clear()


async def ask(app: Any, target: str = "/", **scope: Any) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (each must be there once) and body of a GET."""
    sent: list[dict[str, Any]] = []

    requests = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        if not requests:
            await asyncio.Event().wait()  # the client stays
        return requests.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    request = {
        "type": "http",
        "method": "GET",
        "path": target,
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "client": ["127.0.0.1", 1],
        **scope,
    }
    await app(request, receive, send)
    names = [name.decode().lower() for name, _ in sent[0]["headers"]]
    assert len(names) == len(set(names))
    given = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], given, b"".join(message.get("body", b"") for message in sent[1:])


def check(given: dict[str, str]) -> None:
    for name, value in HEADERS.items():
        assert given[name.lower()] == value, name


@pytest.mark.parametrize("target", ["/fails", "/api/v1/fails"])
async def test_a_failure_carries_them_and_shows_nothing(settings: Any, target: str) -> None:
    from mirror_saas.asgi import application

    settings.ROOT_URLCONF = __name__
    status, given, body = await ask(application, target)
    assert status == 500
    check(given)
    assert b"kaput" not in body
    assert b"Traceback" not in body
    assert (given["content-type"] == "application/problem+json") == target.startswith("/api")


async def test_they_are_there_when_no_application_answers() -> None:
    async def unreachable(*_: Any) -> None:
        raise AssertionError("reached")

    state = Drain()
    state.refuse()
    status, given, _ = await ask(headers_application(draining_application(unreachable, state)), "/plivo/a/b/answer")
    assert status == 503
    check(given)
    status, given, _ = await ask(headers_application(part_application(unreachable, "stream")), "/calls")
    assert status == 404
    check(given)


def test_an_answer_keeps_its_own_and_names_no_software() -> None:
    own = [(b"Cache-Control", b"max-age=60"), (b"Server", b"x/1.0"), (b"X-Powered-By", b"y"), (b"Set-Cookie", b"a=b")]
    given = response_headers(own)
    assert [value for name, value in given if name.lower() == b"cache-control"] == [b"max-age=60"]
    assert not {b"server", b"x-powered-by"} & {name.lower() for name, _ in given}
    assert (b"Set-Cookie", b"a=b") in given
    assert len(given) == len(HEADERS) + 1


def test_tls_is_demanded_where_there_is_tls(settings: Any) -> None:
    assert transport_security("http://localhost:8000", 60) is None
    assert transport_security("https://m.example.com", 60) == "max-age=60"
    assert transport_security("https://m.example.com", 0) == "max-age=0"
    assert b"strict-transport-security" not in dict(response_headers())
    headers._ours.cache_clear()
    settings.MIRROR = replace(settings.MIRROR, public_url="https://m.example.com")
    assert dict(response_headers())[b"strict-transport-security"] == b"max-age=31536000"


def test_the_policy_allows_nothing_inline_and_nothing_from_elsewhere() -> None:
    policy = dict(part.split(" ", 1) for part in HEADERS["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == policy["form-action"] == "'self'"
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
    assert "http" not in HEADERS["Content-Security-Policy"]
    assert "*" not in HEADERS["Content-Security-Policy"]
