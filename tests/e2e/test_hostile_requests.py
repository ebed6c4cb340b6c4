"""Requests that mean harm, on raw sockets against a real server: a refusal each, and never a failure of ours."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Iterator
from urllib.parse import urljoin

import pytest
from django.test import Client

from mirror_saas.origins import origin_of
from mirror_saas.serving import HTTP_BODY_MAX_BYTES
from tests.e2e.conftest import Fortress
from tests.factories import PASSWORD, Tenancy
from tests.support.raw_http import Answer, ask, raw_ask, upgrade
from tests.support.routes import HTTPRoute, http_routes

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(180)]

CSRF = "c" * 32
# One of each path: the API has a line for every name of an operation.
ROUTES = list({route.template: route for route in http_routes()}.values())
# They look at nothing that is sent.
READS_NO_BODY = ("/livez", "/readyz", "/api/v1/openapi.json", "/api/v1/docs")
# They would end the session that the others need; test_people asks them.
ENDS_THE_SESSION = ("/sign-out", "/account/sessions")

VALUES = (
    "%00",
    "..%2f..%2fetc%2fpasswd",
    "%ff%fe",
    "%22%3E%3Cscript%3E",
    "%0d%0aX-Injected:%20yes",
    "a" * 3000,
    "%F0%9F%92%A9",
)
QUERIES = (
    "%00=%00&q=%00&page=%00&next=%00&cursor=%00&agent=%00&since=%00&limit=99999999999999999999&after=-1&to=%ff",
    "cursor=WyIiLCIiXQ&limit=0&limit=x&next=//evil.example&since=99999-99-99&n=1e400&&===%%%?%u0000;a=b;+",
    "&".join(f"a{n}=" for n in range(1001)),
)
METHODS = ("HEAD", "OPTIONS", "TRACE", "BREW")
FIELDS = (
    "email", "login", "password", "old_password", "password1", "password2", "code", "name", "role", "scopes", "next",
    "tenant", "tenant_id", "expires", "expires_at", "expires_in", "id", "key", "token", "label",
)  # fmt: skip
BODIES: tuple[tuple[str, bytes], ...] = (
    ("application/json", b"{"),
    ("application/json", b"[" * 100_000),
    ("application/json", json.dumps(dict.fromkeys(FIELDS, "\x00")).encode()),
    ("application/json", json.dumps({name: ["\x00", {"\ud800": None}] for name in FIELDS}).encode()),
    ("application/json", json.dumps(dict.fromkeys(FIELDS, 10**400)).encode()),
    ("application/json", b'{"name": NaN, "limit": Infinity, "role": 1e999}'),
    ("application/json", b"\xff\xfe\x00{"),
    ("application/json; charset=nonsense", b"{}"),
    ("application/x-www-form-urlencoded", "&".join(f"{name}=%00" for name in FIELDS).encode()),
    ("application/x-www-form-urlencoded", "&".join(f"{name}=%ff%fe%ed%a0%80" for name in FIELDS).encode()),
    ("application/x-www-form-urlencoded", "&".join(f"{name}={'9' * 5000}" for name in FIELDS).encode()),
    ("application/x-www-form-urlencoded; charset=nonsense", b"email=a"),
    ("application/x-www-form-urlencoded", b"&".join(b"a%d=1" % n for n in range(1001))),
    ("multipart/form-data", b"--x\r\n"),
    ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n\x00\xff"),
    ("multipart/form-data; boundary=" + "x" * 300, b"--x--"),
    ("text/xml", b'<!DOCTYPE a [<!ENTITY b SYSTEM "/etc/passwd">]><a>&b;</a>'),
)  # fmt: skip
addresses = itertools.count(1)


def from_somewhere() -> tuple[str, str]:
    """A client of its own behind the trusted proxy, so that nobody's limit is another's."""
    number = next(addresses)
    return "X-Forwarded-For", f"203.0.{number // 250 % 250}.{number % 250 + 1}"


class Attacker:
    """Somebody with a session, a CSRF token and an API key, whose requests must not break anything."""

    def __init__(self, fortress: Fortress, tenancy: Tenancy) -> None:
        self.port = fortress.port
        client = Client()
        assert client.login(username=tenancy.users["alice"].email, password=PASSWORD)
        self.session = client.cookies["sessionid"].value
        self.api_key = tenancy.api_key
        self.asked = 0

    def ask(self, method: str, path: str, *, kind: str = "", body: bytes = b"") -> Answer:
        headers = [from_somewhere(), ("Origin", Fortress.ORIGIN), ("X-CSRFToken", CSRF)]
        headers.append(("Cookie", f'__Host-sessionid={self.session}; __Host-csrftoken={CSRF}; tz=%00; theme="<'))
        if path.startswith("/api/"):
            headers.append(("Authorization", f"Bearer {self.api_key}"))
        if kind:
            headers.append(("Content-Type", kind))
        answer = ask(self.port, method, path, headers=headers, body=body)
        self.asked += 1
        said = f"{method} {path[:120]} {kind} {body[:60]!r}"
        assert answer.status < 500, (said, answer)
        assert not answer.all("X-Injected"), said
        assert b"Traceback" not in answer.body, said
        if path.startswith("/api/v1/") and answer.status >= 400 and method != "HEAD":
            assert answer.one("Content-Type") == "application/problem+json", (said, answer)
        for location in answer.all("Location"):
            assert origin_of(urljoin(f"{Fortress.ORIGIN}{path}", location)) == Fortress.ORIGIN, (said, location)
        return answer


@pytest.fixture
def attacker(fortress: Fortress, tenant: Tenancy) -> Iterator[Attacker]:
    seen = len(fortress.said)
    made = Attacker(fortress, tenant)
    yield made
    assert ask(made.port, "GET", "/calls", headers=[("Cookie", f"__Host-sessionid={made.session}")]).status == 200
    errors = [
        line
        for line in fortress.said[seen:].splitlines()
        if '"level": "error"' in line and '"logger": "django.security' not in line
    ]
    assert errors == []


def routes_of(part: str) -> list[HTTPRoute]:
    """The routes of the API, of Plivo's webhooks, or all others."""
    prefix = {"api": "api/", "plivo": "plivo/"}.get(part)
    if prefix:
        return [route for route in ROUTES if route.template.startswith(prefix)]
    return [route for route in ROUTES if not route.template.startswith(("api/", "plivo/"))]


@pytest.mark.parametrize("part", ["api", "pages", "plivo"])
def test_hostile_paths_queries_and_methods_fail_nothing(attacker: Attacker, part: str) -> None:
    for route in routes_of(part):
        for value in VALUES if route.parameters else ():
            attacker.ask("GET", route.path(value))
        for query in QUERIES:
            attacker.ask("GET", f"{route.path()}?{query}")
        attacker.ask(METHODS[attacker.asked % len(METHODS)], route.path())
    assert attacker.asked > 3 * len(routes_of(part)) > 0


@pytest.mark.parametrize("part", ["api", "pages", "plivo"])
def test_hostile_bodies_fail_nothing(attacker: Attacker, part: str) -> None:
    for number, route in enumerate(routes_of(part)):
        path = route.path()
        if path.startswith(ENDS_THE_SESSION + READS_NO_BODY):
            continue
        for method in ("POST", "PUT", "PATCH", "DELETE") if part == "api" else ("POST",):
            # Half of them for each, and for its neighbour the others: what reads bodies is the same for all.
            for kind, body in BODIES[number % 2 :: 2]:
                if attacker.ask(method, path, kind=kind, body=body).status == 405:
                    break  # nothing there reads it
    assert attacker.asked > 0


@pytest.mark.parametrize(
    "path", ["/" + "a" * 12_000, "/%", "/%zz", "/" + "%2e%2e%2f" * 50, "//evil.example/calls", "/\\evil.example",
             "http://evil.example/calls", "*", "/calls/../../etc/passwd", "/static/../settings.py",
             "/static/%2e%2e/%2e%2e/settings.py", "/static//etc/passwd", "/static/webui/css/..%5c..%5csettings.py",
             "/static/%00", "/.env", "/.git/config", "/stream/a/b", "/ws/console", "/calls;a=b", "/calls%0d%0aa:b"],
)  # fmt: skip
def test_hostile_targets_lead_nowhere(attacker: Attacker, path: str) -> None:
    answer = attacker.ask("GET", path)
    assert answer.status in (301, 302, 400, 404)
    assert b"SECRET" not in answer.body


@pytest.mark.parametrize(
    "header",
    [("Authorization", "Bearer"), ("Authorization", "Bearer "), ("Authorization", "Basic %%%"),
     ("Authorization", "Bearer mk_\xff\xfe"), ("Authorization", "Bearer mk_" + "a" * 8000), ("Authorization", "\t"),
     ("Cookie", "=;=;;\"\\"), ("Cookie", "__Host-sessionid=" + "a" * 6000), ("Cookie", "__Host-sessionid=\"a\\054b"),
     ("Cookie", "__Host-sessionid=%00"), ("Accept", "\xff"), ("User-Agent", "\xff" * 3000),
     ("X-Forwarded-For", "not an address"), ("X-Forwarded-For", ",,," * 1000), ("X-Forwarded-For", "1.2.3.4, \xff"),
     ("X-Forwarded-Proto", "\xff"), ("X-Forwarded-Host", "evil.example"), ("Daphne-Root-Path", "/evil"),
     ("Daphne-Root-Path", "//evil.example"), ("Daphne-Root-Path", "\xff"), ("Content-Type", "\xff/\xff"),
     ("If-Modified-Since", "\xff"), ("Range", "bytes=99999999999999999999-1"), ("If-None-Match", "\xff"),
     ("Origin", "\xff"), ("Expect", "100-continue"), ("Content-Encoding", "gzip"), ("Upgrade", "h2c")],
)  # fmt: skip
def test_hostile_headers_fail_nothing(attacker: Attacker, header: tuple[str, str]) -> None:
    for path in (
        "/sign-in",
        "/calls",
        "/api/v1/me",
        "/api/v1/calls",
        "/static/webui/css/tokens.css",
        "/plivo/a/b/answer",
    ):
        answer = ask(attacker.port, "GET", path, headers=[header])
        assert answer.status < 500, (path, answer)
        assert "evil" not in str(answer.headers), answer
        assert b"evil" not in answer.body


def test_header_floods_and_cut_requests_are_turned_away(attacker: Attacker) -> None:
    flood = b"".join(b"X-%d: y\r\n" % number for number in range(600))
    for request in (
        b"GET / HTTP/1.1\r\nHost: mirror.test\r\n" + flood + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: mirror.test\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: mirror.test\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: mirror.test\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nHost: mirror.test\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nHost: mirror.test\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: mirror.test\r\nX Y: z\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: mirror.test\r\nX: a\x00b\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: mirror.test\r\n\r\n",
    ):
        answer = raw_ask(attacker.port, request)
        assert answer is None or answer.status in (400, 404), (request[:80], answer)


def test_one_request_is_never_two(attacker: Attacker) -> None:
    """Whatever a body looks like, it is not taken for the next request on the connection."""
    inner = b"GET /livez HTTP/1.1\r\nHost: mirror.test\r\n\r\n"
    for framing in (
        b"Content-Length: %d\r\nTransfer-Encoding: chunked" % len(inner),
        b"Transfer-Encoding: chunked\r\nContent-Length: %d" % len(inner),
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding : chunked",
        b"Content-Length: +0",
        b"Content-Length: 0x0",
    ):
        request = b"POST /sign-in HTTP/1.1\r\nHost: mirror.test\r\n" + framing + b"\r\n\r\n0\r\n\r\n" + inner
        with socket.create_connection(("127.0.0.1", attacker.port), 20) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
        assert received.startswith(b"HTTP/1.1 400"), (framing, received[:200])
        assert b'"live"' not in received, framing


@pytest.mark.parametrize("path", ["/api/v1/me", "/sign-in", "/plivo/a/b/answer"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_refused_before_it_is_read(fortress: Fortress, path: str, chunked: bool) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: mirror.test\r\n"
    if chunked:
        size = HTTP_BODY_MAX_BYTES + 1
        request = f"{head}Transfer-Encoding: chunked\r\n\r\n{size:x}\r\n".encode() + b"x" * size
    else:
        # Not a byte of it follows.
        request = f"{head}Content-Length: {10**15}\r\n\r\n".encode()
    answer = raw_ask(fortress.port, request)
    assert answer is not None
    assert answer.status == 413
    assert answer.one("Connection") == "close"
    if path.startswith("/api/"):
        assert json.loads(answer.body)["detail"] == "The request's body is too large; 10 MiB are the most."


def test_a_body_of_exactly_the_limit_is_read(fortress: Fortress, tenant: Tenancy) -> None:
    headers = [("Authorization", f"Bearer {tenant.api_key}"), ("Content-Type", "application/json")]
    body = b'"' + b"x" * (HTTP_BODY_MAX_BYTES - 2) + b'"'
    assert ask(fortress.port, "POST", "/api/v1/me", headers=headers, body=body).status == 405


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/stream/%00/%00", []), ("/stream/a/" + "k" * 5000, []), ("/stream/%ff/%fe", []), ("/stream/a/b?mt=%00", []),
     ("/stream/a/b", [("Sec-WebSocket-Protocol", "\xff")]), ("/ws/console", [("Origin", "\xff")]),
     ("/../stream/a/b", []), ("/ws/console/", [("Origin", Fortress.ORIGIN)]),
     ("//stream/a/b", []), ("/stream//", []), ("/stream/a/b/c", []),
     ("/stream/a/b", [("Daphne-Root-Path", "/stream")])],
)  # fmt: skip
def test_hostile_handshakes_are_refused(attacker: Attacker, path: str, headers: list[tuple[str, str]]) -> None:
    assert upgrade(attacker.port, path, headers=headers).status in (400, 403)
