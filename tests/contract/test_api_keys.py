"""`/api-keys` through the real URLs, by programs and by people."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.test import Client

from mirror_saas.ids import uuid7
from mirror_saas.problems import CONTENT_TYPE
from tenants.models import ApiKey, AuditEvent
from tenants.services.api_keys import api_key_create
from tests.factories import PASSWORD, Tenancy

pytestmark = pytest.mark.django_db

SOON = (datetime.now(UTC) + timedelta(days=30)).isoformat(timespec="milliseconds")


def ask(key: str, method: str, path: str = "", body: Any = None, **query: Any) -> Any:
    return Client().generic(
        method,
        f"/api/v1/api-keys{path}",
        b"" if body is None else json.dumps(body),
        content_type="application/json",
        query_params=query,
        headers={"Authorization": f"Bearer {key}"},
    )


def me(key: str) -> Any:
    return Client().get("/api/v1/me", headers={"Authorization": f"Bearer {key}"})


def key_id(tenancy: Tenancy) -> str:
    with tenancy.context():
        return str(ApiKey.objects.get(prefix=tenancy.api_key.split("_")[1]).id)


# -- a key's life --------------------------------------------------------------------------------------------------


def test_a_key_is_made_shown_once_used_and_revoked(tenant: Tenancy, stranger: Tenancy) -> None:
    made = ask(tenant.api_key, "POST", body={"name": "ci", "scopes": ["judge", "calls:read"], "expires_at": SOON})
    assert made.status_code == 201
    assert made.headers["Cache-Control"] == "no-store"
    body = made.json()
    key = body.pop("key")
    secret = key.split("_", 2)[2]
    assert body == {
        "id": body["id"],
        "name": "ci",
        "prefix": key.split("_")[1],
        "scopes": ["calls:read", "judge"],
        "state": "active",
        "created_at": body["created_at"],
        "created_by": {"kind": "api_key", "id": key_id(tenant), "label": f"tests ({tenant.api_key.split('_')[1]})"},
        "expires_at": body["expires_at"],
        "revoked_at": None,
        "last_used_at": None,
        "last_used_ip": "",
        "requests_per_minute": None,
    }
    assert datetime.fromisoformat(body["expires_at"]) == datetime.fromisoformat(SOON)
    assert me(key).json()["scopes"] == ["calls:read", "judge"]

    used = ask(tenant.api_key, "GET", f"/{body['id']}")
    assert used.json()["last_used_ip"] == "127.0.0.1"
    assert used.json()["last_used_at"]
    everything = used.content + ask(tenant.api_key, "GET").content + ask(tenant.api_key, "GET", state="active").content
    assert secret not in everything.decode()

    for _ in range(2):
        gone = ask(tenant.api_key, "DELETE", f"/{body['id']}")
        assert (gone.status_code, gone.content) == (204, b"")
        assert me(key).status_code == 401
    assert ask(tenant.api_key, "GET", f"/{body['id']}").json()["state"] == "revoked"
    assert [item["id"] for item in ask(tenant.api_key, "GET", state="revoked").json()["items"]] == [body["id"]]
    with tenant.context():
        events = list(AuditEvent.objects.filter(object_id=body["id"]).order_by("seq"))
    assert [event.action for event in events] == ["api_key.create", "api_key.revoke"]
    assert secret not in f"{[(event.before, event.after, event.object_label) for event in events]}"


def test_a_key_may_revoke_itself(tenant: Tenancy) -> None:
    assert ask(tenant.api_key, "DELETE", f"/{key_id(tenant)}").status_code == 204
    assert ask(tenant.api_key, "DELETE", f"/{key_id(tenant)}").status_code == 401


def test_a_key_is_renamed_and_its_end_brought_forward(tenant: Tenancy) -> None:
    path = f"/{key_id(tenant)}"
    assert ask(tenant.api_key, "PATCH", path, {"name": " new "}).json()["name"] == "new"
    assert ask(tenant.api_key, "PATCH", path, {"expires_at": SOON}).json()["name"] == "new"
    later = (datetime.fromisoformat(SOON) + timedelta(seconds=1)).isoformat()
    refused = ask(tenant.api_key, "PATCH", path, {"name": "newer", "expires_at": later})
    assert refused.status_code == 422
    assert "earlier" in refused.json()["errors"]["expires_at"][0]
    assert ask(tenant.api_key, "PATCH", path, {}).json()["name"] == "new"


def test_pages_go_through_all_keys(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context():
        for number in range(4):
            api_key_create(name=str(number), scopes=["judge"])
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = ask(tenant.api_key, "GET", limit=2, **cursor).json()
        seen += [item["name"] for item in page["items"]]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert seen == ["3", "2", "1", "0", "tests"]


# -- who may -------------------------------------------------------------------------------------------------------


def test_a_key_makes_no_key_that_may_more_than_itself(tenant: Tenancy) -> None:
    with tenant.context():
        small = api_key_create(name="small", scopes=["admin", "judge"]).key
    refused = ask(small, "POST", body={"name": "x", "scopes": ["judge", "policies:write", "calls:read"]})
    assert refused.status_code == 403
    assert refused.headers["Content-Type"] == CONTENT_TYPE
    assert "calls:read, policies:write" in refused.json()["detail"]
    made = ask(small, "POST", body={"name": "x", "scopes": ["judge"]})
    assert made.status_code == 201
    assert ask(made.json()["key"], "POST", body={"name": "y", "scopes": ["judge"]}).status_code == 403


def test_a_strangers_key_is_like_none(tenant: Tenancy, stranger: Tenancy) -> None:
    for method, body in (("GET", None), ("PATCH", {"name": "mine"}), ("DELETE", None)):
        foreign, missing = (ask(tenant.api_key, method, f"/{one}", body) for one in (key_id(stranger), str(uuid7())))
        assert foreign.status_code == missing.status_code == 404
        assert {**foreign.json(), "request_id": ""} == {**missing.json(), "request_id": ""}
    assert me(stranger.api_key).status_code == 200
    assert "charlie" not in ask(tenant.api_key, "GET").content.decode()
    assert ask(tenant.api_key, "GET", created_by_id=str(stranger.users["charlie"].id)).json()["items"] == []


def test_a_person_makes_and_revokes_keys_with_a_recent_sign_in(tenant: Tenancy, stranger: Tenancy) -> None:
    fresh, stale = Client(), Client()
    alice = tenant.users["alice"]
    assert (
        fresh.post("/sign-in", {"login": alice.email, "username": alice.email, "password": PASSWORD}).status_code == 302
    )
    stale.force_login(alice)
    body = {"name": "mine", "scopes": ["judge"]}
    made = fresh.post("/api/v1/api-keys", body, content_type="application/json")
    assert made.status_code == 201
    assert made.json()["created_by"] == {"kind": "user", "id": str(alice.id), "label": alice.email}
    for refused in (
        stale.post("/api/v1/api-keys", body, content_type="application/json"),
        stale.delete(f"/api/v1/api-keys/{made.json()['id']}"),
        stale.patch(f"/api/v1/api-keys/{made.json()['id']}", {"expires_at": SOON}, content_type="application/json"),
    ):
        assert refused.status_code == 403
        assert "recent sign-in" in refused.json()["detail"]
    assert (
        stale.patch(
            f"/api/v1/api-keys/{made.json()['id']}", {"name": "ours"}, content_type="application/json"
        ).status_code
        == 200
    )
    assert me(made.json()["key"]).status_code == 200
    assert fresh.delete(f"/api/v1/api-keys/{made.json()['id']}").status_code == 204


def test_a_member_who_does_not_administer_sees_no_key(tenant: Tenancy) -> None:
    client = Client()
    client.force_login(tenant.users["bob"])
    for method, path in (("GET", ""), ("POST", ""), ("GET", f"/{key_id(tenant)}"), ("DELETE", f"/{key_id(tenant)}")):
        refused = client.generic(method, f"/api/v1/api-keys{path}", "{}", content_type="application/json")
        assert refused.status_code in (403, 422)
        assert tenant.api_key.split("_")[1] not in refused.content.decode()
    with tenant.context():
        assert ApiKey.objects.get().revoked_at is None


# -- what cannot be used -------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {"name": "x", "scopes": ["judge"]}
CANARY = "canary-" + "c" * 43


UNUSABLE: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "name"),
    ({"name": None}, "name"),
    ({"name": 7}, "name"),
    ({"name": ["x"]}, "name"),
    ({"name": "x" * 201}, "name"),
    ({"name": "x" * 1_000_000}, "name"),
    ({"name": "a\x00b"}, "name"),
    ({"name": "a\ud800b"}, "name"),
    ({"name": "a\u2029b"}, "name"),
    ({"scopes": []}, "scopes"),
    ({"scopes": "judge"}, "scopes"),
    ({"scopes": None}, "scopes"),
    ({"scopes": {"judge": True}}, "scopes"),
    ({"scopes": [CANARY]}, "scopes"),
    ({"scopes": ["judge"] * 10_000}, "scopes"),
    ({"scopes": [7]}, "scopes.0"),
    ({"scopes": ["\x00"]}, "scopes.0"),
    ({"scopes": ["\udfff"]}, "scopes.0"),
    ({"expires_at": "tomorrow"}, "expires_at"),
    ({"expires_at": 1_900_000_000}, "expires_at"),
    ({"expires_at": "1900000000"}, "expires_at"),
    ({"expires_at": 10**400}, "expires_at"),
    ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
    ({"expires_at": "2100-01-01T00:00:00Z"}, "expires_at"),
    ({"expires_at": "2027-01-01T00:00:00"}, "expires_at"),
    ({"expires_at": "9999-12-31T23:59:59-23:59"}, "expires_at"),
    ({"expires_at": "0001-01-01T00:00:00+23:59"}, "expires_at"),
    ({"tenant_id": str(uuid7())}, "tenant_id"),
    ({"key": "mk_chosen"}, "key"),
    ({"secret_hash": CANARY}, "secret_hash"),
    ({"\x00": 1}, "\x00"),
]


def test_what_cannot_be_used_is_named_and_makes_no_key(tenant: Tenancy, caplog: pytest.LogCaptureFixture) -> None:
    for change, field in UNUSABLE:
        with caplog.at_level(logging.DEBUG):
            refused = ask(tenant.api_key, "POST", body=GOOD | change)
        assert (refused.status_code, refused.headers["Content-Type"]) == (422, CONTENT_TYPE), (field, str(change)[:80])
        errors = refused.json()["errors"]
        assert list(errors) == [field], str(change)[:80]
        assert len(errors[field][0]) < 400
        assert CANARY not in refused.content.decode() + caplog.text
    with tenant.context():
        assert ApiKey.objects.count() == 1


def test_what_cannot_be_changed_is_named(tenant: Tenancy) -> None:
    changes: list[tuple[dict[str, Any], str]] = [
        ({"name": None}, "name"),
        ({"name": "\ud800"}, "name"),
        ({"expires_at": None}, "expires_at"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"scopes": ["judge"]}, "scopes"),
        ({"revoked_at": None}, "revoked_at"),
    ]
    for change, field in changes:
        refused = ask(tenant.api_key, "PATCH", f"/{key_id(tenant)}", change)
        assert (refused.status_code, list(refused.json()["errors"])) == (422, [field]), change


def test_what_is_no_object_of_json_is_refused(tenant: Tenancy) -> None:
    nested, long_number = b"[" * 100_000, b'{"name":' + b"9" * 5000 + b"}"
    for body in (b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", nested, long_number):
        for method, path in (("POST", ""), ("PATCH", f"/{key_id(tenant)}")):
            refused = Client().generic(
                method,
                f"/api/v1/api-keys{path}",
                body,
                content_type="application/json",
                headers={"Authorization": f"Bearer {tenant.api_key}"},
            )
            assert refused.status_code in (400, 422), body[:20]
            assert refused.headers["Content-Type"] == CONTENT_TYPE


def test_a_wrong_question_names_its_field(tenant: Tenancy) -> None:
    questions = [
        ({"state": "lost"}, "state"),
        ({"created_by_id": "x"}, "created_by_id"),
        ({"limit": "0"}, "limit"),
        ({"limit": "9" * 500}, "limit"),
        ({"cursor": "\x00"}, "cursor"),
        ({"cursor": "x" * 501}, "cursor"),
    ]
    for query, field in questions:
        refused = ask(tenant.api_key, "GET", **query)
        assert (refused.status_code, list(refused.json()["errors"])) == (422, [field]), query


def test_a_malformed_key_is_a_401_that_does_not_repeat_it(tenant: Tenancy) -> None:
    end = "q" * 20
    headers = [
        "Bearer",
        "Bearer ",
        f"Bearer mk_{end}",
        f"Bearer \x00{end}",
        f"Bearer é{end}",
        f"Basic {end}",
        end * 500,
    ]
    for header in headers:
        refused = Client().get("/api/v1/api-keys", HTTP_AUTHORIZATION=header)
        assert refused.status_code == 401, header[:40]
        assert end not in refused.content.decode()


def test_the_limit_of_keys_is_a_clear_refusal(tenant: Tenancy, monkeypatch: pytest.MonkeyPatch) -> None:
    from tenants.services import api_keys

    monkeypatch.setattr(api_keys, "MAX_ACTIVE", 1)
    refused = ask(tenant.api_key, "POST", body=GOOD)
    assert refused.status_code == 422
    assert "revoke one" in str(refused.json()["errors"])
