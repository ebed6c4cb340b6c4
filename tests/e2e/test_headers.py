"""What a real server puts around every kind of answer, seen from a socket."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from mirror_saas.headers import HEADERS
from tests.e2e.conftest import Fortress
from tests.factories import Tenancy
from tests.support.raw_http import Answer, ask, raw_ask, upgrade

pytestmark = pytest.mark.django_db(transaction=True)

# Names of what we run on. None of them is anybody's business.
SOFTWARE = re.compile(rb"django|daphne|twisted|autobahn|cpython|traceback", re.I)
FORM = [("Content-Type", "application/x-www-form-urlencoded"), ("Origin", Fortress.ORIGIN)]
TOO_LARGE = b"x" * (10 * 1024 * 1024 + 1)

Ask = Callable[[int, Tenancy], Answer]


def bearer(tenancy: Tenancy) -> list[tuple[str, str]]:
    return [("Authorization", f"Bearer {tenancy.api_key}")]


ANSWERS: dict[str, tuple[int, Ask]] = {
    "page": (200, lambda port, _: ask(port, "GET", "/sign-in")),
    "redirect": (302, lambda port, _: ask(port, "GET", "/calls")),
    "file": (200, lambda port, _: ask(port, "GET", "/static/webui/css/tokens.css")),
    "no file": (404, lambda port, _: ask(port, "GET", "/static/nothing.css")),
    "no page": (404, lambda port, _: ask(port, "GET", "/nothing")),
    "no token": (403, lambda port, _: ask(port, "POST", "/sign-in", headers=FORM, body=b"email=a")),
    "foreign host": (400, lambda port, _: ask(port, "GET", "/sign-in", host="evil.example")),
    "method of a page": (405, lambda port, _: ask(port, "PUT", "/plivo/a/b/answer")),
    "api": (200, lambda port, alice: ask(port, "GET", "/api/v1/me", headers=bearer(alice))),
    "api list": (200, lambda port, alice: ask(port, "GET", "/api/v1/calls", headers=bearer(alice))),
    "api export": (200, lambda port, alice: ask(port, "GET", "/api/v1/audit-events/export", headers=bearer(alice))),
    "api nobody": (401, lambda port, _: ask(port, "GET", "/api/v1/me")),
    "api no path": (404, lambda port, _: ask(port, "GET", "/api/v1/nothing")),
    "api method": (405, lambda port, alice: ask(port, "DELETE", "/api/v1/me", headers=bearer(alice))),
    "api invalid": (422, lambda port, alice: ask(port, "GET", "/api/v1/calls?limit=x", headers=bearer(alice))),
    "api foreign host": (400, lambda port, _: ask(port, "GET", "/api/v1/me", host="evil.example")),
    "api too large": (413, lambda port, alice: ask(port, "POST", "/api/v1/me", headers=bearer(alice), body=TOO_LARGE)),
    "too large": (413, lambda port, _: ask(port, "POST", "/sign-in", headers=FORM, body=TOO_LARGE)),
    "api docs": (200, lambda port, _: ask(port, "GET", "/api/v1/docs")),
    "api schema": (200, lambda port, _: ask(port, "GET", "/api/v1/openapi.json")),
    "answer URL": (200, lambda port, alice: ask(port, "GET", alice.answer_url("") + "?CallUUID=1")),
    "wrong answer URL": (403, lambda port, _: ask(port, "GET", "/plivo/a/b/answer")),
    "livez": (200, lambda port, _: ask(port, "GET", "/livez")),
    "readyz": (200, lambda port, _: ask(port, "GET", "/readyz")),
    "metrics": (200, lambda port, _: ask(port, "GET", "/metrics")),
    "wrong stream key": (403, lambda port, _: upgrade(port, "/stream/a/b")),
    "no socket": (403, lambda port, _: upgrade(port, "/ws/nothing", headers=[("Origin", Fortress.ORIGIN)])),
    "socket of a foreign page": (403, lambda port, _: upgrade(port, "/ws/console", headers=[("Origin", "https://e")])),
    "no handshake": (400, lambda port, _: ask(port, "GET", "/ws/console", headers=[("Upgrade", "websocket")])),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_every_kind_of_answer_carries_the_headers_once_and_names_no_software(
    fortress: Fortress, tenant: Tenancy, kind: str
) -> None:
    status, what = ANSWERS[kind]
    answer = what(fortress.port, tenant)
    assert answer.status == status, answer
    for name, value in HEADERS.items():
        if name == "Cache-Control":
            continue
        assert answer.all(name) == [value], name
    assert answer.one("Strict-Transport-Security") == "max-age=31536000"
    assert answer.all("Server") == answer.all("X-Powered-By") == []
    assert [header for header in answer.headers if SOFTWARE.search(str(header).encode())] == []
    if answer.status >= 400:
        assert SOFTWARE.search(answer.body) is None
    if kind.startswith("api ") and answer.status >= 400:
        assert answer.one("Content-Type") == "application/problem+json"
        assert f'"status": {status}'.encode() in answer.body
    if kind == "file":
        assert "max-age" in answer.one("Cache-Control")
    else:
        assert "no-store" in answer.one("Cache-Control")
    if kind == "api export":
        assert answer.one("Content-Disposition").startswith("attachment;")
    assert all("secure" in line.lower() for line in answer.all("Set-Cookie"))


def test_a_request_that_is_none_is_answered_without_a_word_about_us(fortress: Fortress) -> None:
    for request in (
        b"\r\n\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /caf\xe9 HTTP/1.1\r\nHost: mirror.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: mirror.test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\r\n",
    ):
        answer = raw_ask(fortress.port, request)
        assert answer is None or (answer.status == 400 and answer.body == b"")


def test_cookies_belong_to_this_host_and_to_no_script(fortress: Fortress) -> None:
    cookies = ask(fortress.port, "GET", "/sign-in").cookies
    line = cookies["__Host-csrftoken"]
    parts = {part.strip().lower() for part in line.split(";")[1:]}
    assert {"secure", "httponly", "path=/", "samesite=lax"} <= parts
    assert not any(part.startswith("domain") for part in parts)
