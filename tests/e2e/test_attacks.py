"""What somebody from outside tries first, on raw sockets against a real server."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from websockets.asyncio.client import connect

from tenants.services.second_factor import totp_activate, totp_secret_new
from tests.e2e.conftest import Fortress
from tests.factories import PASSWORD, Tenancy
from tests.support.raw_http import Answer, ask
from tests.support.routes import http_routes
from tests.support.totp import totp
from tests.webui.conftest import let_sign_in

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120)]

CSRF = "c" * 32
SESSION = "__Host-sessionid"


def send(port: int, path: str, fields: dict[str, str], *, session: str = "", host: str = "mirror.test") -> Answer:
    """A form, sent from our own page."""
    cookies = f"__Host-csrftoken={CSRF}" + (f"; {SESSION}={session}" if session else "")
    headers = [
        ("Cookie", cookies),
        ("Origin", Fortress.ORIGIN if host == "mirror.test" else f"https://{host}"),
        ("X-Forwarded-Proto", "https"),
        ("Content-Type", "application/x-www-form-urlencoded"),
    ]
    body = urlencode({"csrfmiddlewaretoken": CSRF, **fields}).encode()
    return ask(port, "POST", path, headers=headers, body=body, host=host)


def session_of(answer: Answer) -> str:
    return answer.cookies[SESSION].split(";")[0].split("=", 1)[1]


def get(port: int, path: str, cookie: str) -> Answer:
    return ask(port, "GET", path, headers=[("Cookie", cookie)])


@pytest.fixture
def alice(tenant: Tenancy) -> dict[str, str]:
    """What alice types to sign in."""
    let_sign_in(tenant)
    return {"login": tenant.users["alice"].email, "password": PASSWORD}


def test_a_session_is_new_at_sign_in_dead_after_sign_out_and_only_ours_under_its_full_name(
    fortress: Fortress, alice: dict[str, str]
) -> None:
    port = fortress.port
    fixed = "attackerchosesthisone0123456789ab"
    answer = send(port, "/sign-in", alice, session=fixed)
    assert answer.status == 302, answer
    session = session_of(answer)
    attributes = {part.strip().lower() for part in answer.cookies[SESSION].split(";")[1:]}
    assert {"secure", "httponly", "path=/", "samesite=lax"} <= attributes
    assert not any(attribute.startswith("domain") for attribute in attributes)
    assert session != fixed
    assert get(port, "/calls", f"{SESSION}={session}").status == 200
    assert get(port, "/calls", f"{SESSION}={fixed}").status == 302
    # A sub-domain can set this one; it is nobody's session.
    assert get(port, "/calls", f"sessionid={session}").status == 302
    assert get(port, "/api/v1/me", f"sessionid={session}").status == 401
    assert send(port, "/sign-out", {}, session=session).status == 302
    assert get(port, "/calls", f"{SESSION}={session}").status == 302
    assert get(port, "/api/v1/me", f"{SESSION}={session}").status == 401


# What whoever is not signed in may see with 200.
PUBLIC = {
    "livez", "readyz", "metrics", "sign-in", "sign-in/code", "forgot-password", "forgot-password/sent",
    "reset-password/new", "sign-up", "sign-up/sent", "sign-up/new", "sign-up/<str:token>", "invitation/<str:token>",
    "api/v1/docs", "api/v1/openapi.json", "api/v1/",
}  # fmt: skip


async def test_a_password_alone_opens_nothing_where_a_code_is_asked_for(
    fortress: Fortress, tenant: Tenancy, alice: dict[str, str]
) -> None:
    def half_way() -> str:
        secret = totp_secret_new()
        totp_activate(user=tenant.users["alice"], secret=secret, code=totp(secret))
        answer = send(fortress.port, "/sign-in", alice)
        assert urlsplit(answer.one("Location")).path == "/sign-in/code"
        session = session_of(answer)
        for route in http_routes():
            seen = get(fortress.port, route.path(), f"{SESSION}={session}")
            assert seen.status != 200 or route.template in PUBLIC, route.template
            assert alice["login"] not in seen.body.decode(errors="replace"), route.template
        return session

    session = await asyncio.to_thread(half_way)
    headers: dict[str, Any] = {"Cookie": f"{SESSION}={session}", "Origin": Fortress.ORIGIN}
    async with connect(f"ws://127.0.0.1:{fortress.port}/ws/console", additional_headers=headers) as console:
        await console.wait_closed()
    assert console.close_code == 4401


def test_links_in_mails_lead_to_the_public_url_whatever_host_was_asked(
    fortress: Fortress, tenant: Tenancy, alice: dict[str, str]
) -> None:
    seen = len(fortress.said)
    assert send(fortress.port, "/forgot-password", {"email": alice["login"]}, host="evil.example").status == 400
    assert send(fortress.port, "/forgot-password", {"email": alice["login"]}, host="other.test").status == 302
    fortress.command.until(f"To: {alice['login']}")
    fortress.command.until("/reset-password/")
    mail = fortress.said[seen:]
    assert "https://mirror.test/reset-password/" in mail
    assert "https://other.test" not in mail
