"""No other site writes anything with a viewer's cookies: every page and every operation of the API asks for a token."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.test import Client

from mirror_saas.api import api
from tests.factories import PASSWORD, Tenancy
from tests.support.routes import PLAIN, HTTPRoute, http_routes

pytestmark = pytest.mark.django_db

UNSAFE = ("POST", "PUT", "PATCH", "DELETE")
TOKEN = "t" * 32
# Plivo has no cookies; its key and its signature are what counts.
EXEMPT = {"plivo/<str:slug>/<str:key>/answer", "plivo/<str:slug>/<str:key>/status"}
PAGES = [route for route in http_routes() if not route.template.startswith("api/")]


def api_operations() -> list[tuple[str, str]]:
    """Method and path of all that writes."""
    found = []
    for prefix, router in api._routers:
        for path, view in router.path_operations.items():
            for operation in view.operations:
                full = f"/api/v1{prefix}{path}"
                for kind, value in PLAIN.items():
                    full = _filled(full, kind, value)
                found += [(method, full) for method in operation.methods if method in UNSAFE]
    return sorted(set(found))


def _filled(path: str, kind: str, value: str) -> str:
    while f"{{{kind}:" in path:
        start = path.index(f"{{{kind}:")
        path = path[:start] + value + path[path.index("}", start) + 1 :]
    return path


@pytest.fixture
def alice(tenant: Tenancy) -> Client:
    """Signed in, with a CSRF cookie, as a browser that some other site sends here."""
    client = Client(enforce_csrf_checks=True)
    assert client.login(username=tenant.users["alice"].email, password=PASSWORD)
    client.cookies["csrftoken"] = TOKEN
    return client


def is_csrf_refusal(answer: Any) -> bool:
    return answer.status_code == 403 and "This form has expired" in answer.content.decode()


@pytest.mark.parametrize("route", PAGES, ids=lambda route: route.template or "home")
def test_every_page_refuses_what_comes_without_a_token(alice: Client, route: HTTPRoute) -> None:
    for method in UNSAFE:
        answer = alice.generic(method, route.path(), b"a=b", content_type="application/x-www-form-urlencoded")
        assert is_csrf_refusal(answer) == (route.template not in EXEMPT), (method, answer.status_code)


def test_nothing_else_is_exempt() -> None:
    assert {route.template for route in PAGES if getattr(route.view, "csrf_exempt", False)} == EXEMPT


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://testserver.evil.example"},
        {"Origin": "http://sub.testserver"},
        {"Origin": "http://testserver:8080"},
        {"Origin": "https://testserver"},
        {"Origin": "http://testserver@evil.example"},
        {"Origin": ""},
    ],
    ids=lambda headers: headers["Origin"] or "empty",
)
def test_a_right_token_from_a_foreign_page_is_refused(alice: Client, headers: dict[str, str]) -> None:
    for path in ("/sign-in", "/sign-out", "/forgot-password"):
        assert is_csrf_refusal(alice.post(path, {"csrfmiddlewaretoken": TOKEN}, headers=headers))


def test_a_right_token_from_our_own_page_is_taken_and_a_wrong_one_is_not(alice: Client) -> None:
    ours = {"Origin": "http://testserver"}
    assert is_csrf_refusal(alice.post("/sign-out", {"csrfmiddlewaretoken": "u" * 32}, headers=ours))
    assert is_csrf_refusal(alice.post("/sign-out", {"csrfmiddlewaretoken": ""}, headers=ours))
    assert alice.post("/sign-out", {"csrfmiddlewaretoken": TOKEN}, headers=ours).status_code == 302


def test_there_are_operations_that_write() -> None:
    assert len(api_operations()) > 5


@pytest.mark.parametrize(("method", "path"), api_operations())
def test_every_operation_that_writes_wants_a_token_with_a_session_and_none_with_a_key(
    alice: Client, tenant: Tenancy, method: str, path: str
) -> None:
    body: dict[str, Any] = {"content_type": "application/json", "data": b"{}"}
    for headers in ({}, {"X-CSRFToken": "u" * 32}, {"X-CSRFToken": TOKEN, "Origin": "https://evil.example"}):
        refused = alice.generic(method, path, headers=headers, **body)
        assert refused.status_code == 403, (headers, refused.content)
        assert "CSRF" in json.loads(refused.content)["detail"]
    answer = alice.generic(method, path, headers={"X-CSRFToken": TOKEN}, **body)
    assert "CSRF" not in answer.content.decode()
    with_key = Client(enforce_csrf_checks=True, headers={"Authorization": f"Bearer {tenant.api_key}"})
    assert "CSRF" not in with_key.generic(method, path, **body).content.decode()
    nobody = Client(enforce_csrf_checks=True).generic(method, path, **body)
    assert nobody.status_code in (401, 403)
