"""`/tenant` and `/me` through the real URLs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.test import Client

from mirror_saas.ids import uuid7
from mirror_saas.problems import CONTENT_TYPE
from tenants.models import AuditEvent
from tenants.services.api_keys import api_key_create
from tests.factories import PASSWORD, Tenancy

pytestmark = pytest.mark.django_db


def ask(key: str, method: str, body: Any = None, path: str = "/tenant") -> Any:
    sent = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body)
    return Client().generic(
        method, f"/api/v1{path}", sent, content_type="application/json", headers={"Authorization": f"Bearer {key}"}
    )


def test_a_tenant_sees_and_names_itself(tenant: Tenancy, stranger: Tenancy) -> None:
    body = ask(tenant.api_key, "GET").json()
    assert (body["id"], body["slug"], body["name"]) == (str(tenant.id), tenant.slug, "Alice's tenant")
    assert body["created_at"].endswith("Z")
    changed = ask(tenant.api_key, "PATCH", {"name": "  Käffchen ☕ "})
    assert changed.status_code == 200
    # What is counted (use) may move between two requests; the settings may not.
    assert {name: changed.json()[name] for name in ("id", "slug", "name", "created_at")} == {
        "id": str(tenant.id),
        "slug": tenant.slug,
        "name": "Käffchen ☕",
        "created_at": body["created_at"],
    }
    assert ask(tenant.api_key, "GET", path="/me").json()["tenant"]["name"] == "Käffchen ☕"
    assert ask(stranger.api_key, "GET").json()["name"] == "Charlie's tenant"
    with tenant.context():
        event = AuditEvent.objects.latest("seq")
        assert (event.action, event.before) == ("tenant.update", '{"name":"Alice\'s tenant"}')
    # What is the same, or left out, is no change.
    for same in ({"name": "Käffchen ☕"}, {}):
        assert ask(tenant.api_key, "PATCH", same).status_code == 200
    with tenant.context():
        assert AuditEvent.objects.latest("seq") == event


def test_what_cannot_be_used_is_named(tenant: Tenancy, stranger: Tenancy) -> None:
    wrong: list[tuple[Any, str]] = [
        ({"name": ""}, "name"),
        ({"name": " \t "}, "name"),
        ({"name": None}, "name"),
        ({"name": 5}, "name"),
        ({"name": {}}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": "x" * 1_000_000}, "name"),
        ({"name": "a\x00"}, "name"),
        ({"name": "\ud800"}, "name"),
        ({"name": "a\r\nb"}, "name"),
        ({"slug": "mine"}, "slug"),
        ({"id": str(stranger.id)}, "id"),
        ({"tenant_id": str(stranger.id), "name": "x"}, "tenant_id"),
        ({"limits": {"concurrent_calls": 10**9}}, "limits"),
        ({"created_at": "2020-01-01T00:00:00Z"}, "created_at"),
    ]
    for body, field in wrong:
        refused = ask(tenant.api_key, "PATCH", body)
        assert (refused.status_code, refused.headers["Content-Type"]) == (422, CONTENT_TYPE), str(body)[:60]
        assert list(refused.json()["errors"]) == [field], str(body)[:60]
    for raw in (b"", b"{", b"[]", b"null", b"7", b"\xff", b"[" * 100_000):
        assert ask(tenant.api_key, "PATCH", raw).status_code in (400, 422), raw[:10]
    assert ask(tenant.api_key, "GET").json()["name"] == "Alice's tenant"
    assert ask(stranger.api_key, "GET").json()["name"] == "Charlie's tenant"


def test_only_who_administers_sees_and_changes_it(tenant: Tenancy) -> None:
    with tenant.context():
        reader = api_key_create(name="reader", scopes=["calls:read", "judge"]).key
    bob, alice = Client(), Client()
    assert bob.login(username=tenant.users["bob"].email, password=PASSWORD)
    assert alice.login(username=tenant.users["alice"].email, password=PASSWORD)
    for method in ("GET", "PATCH"):
        assert ask(reader, method, {"name": "x"} if method == "PATCH" else None).status_code == 403
        assert (
            bob.generic(method, "/api/v1/tenant", '{"name": "x"}', content_type="application/json").status_code == 403
        )
    assert alice.get("/api/v1/tenant").json()["name"] == "Alice's tenant"
    assert alice.patch("/api/v1/tenant", {"name": "Ours"}, content_type="application/json").json()["name"] == "Ours"


def test_a_session_needs_its_csrf_token_to_write(tenant: Tenancy) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(tenant.users["alice"])
    assert client.patch("/api/v1/tenant", {"name": "x"}, content_type="application/json").status_code == 403
    assert client.get("/api/v1/tenant").json()["name"] == "Alice's tenant"


def test_who_one_is_takes_no_hint_from_the_request(tenant: Tenancy, stranger: Tenancy) -> None:
    plain = ask(tenant.api_key, "GET", path="/me").json()
    hints = f"?tenant_id={stranger.id}&tenant={stranger.slug}&x=%00&limit={'9' * 5000}"
    assert ask(tenant.api_key, "GET", path=f"/me{hints}").json() == plain
    headers = {"X-Tenant-Id": str(stranger.id), "Cookie": "sessionid=" + "x" * 4000 + "; tenant_id=" + str(uuid7())}
    answer = Client().get("/api/v1/me", headers={"Authorization": f"Bearer {tenant.api_key}", **headers})
    assert answer.json() == plain
    assert tenant.api_key.split("_", 2)[2] not in answer.content.decode()
    assert ask(tenant.api_key, "POST", {"name": "x"}, path="/me").status_code == 405
    for cookie in ("x" * 5000, "\x00", "%00", "é"):
        assert Client(headers={"Cookie": f"sessionid={cookie}"}).get("/api/v1/me").status_code == 401
