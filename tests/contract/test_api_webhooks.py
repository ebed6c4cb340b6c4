"""The API of webhooks: secrets are shown once, and nobody else's endpoint can be seen, changed or used."""

from __future__ import annotations

import base64
import json
from typing import Any, get_args
from uuid import UUID

import pytest
from django.utils import timezone

from mirror_saas import egress
from mirror_saas.ids import uuid7
from supervision.api.webhooks import EventType
from supervision.models import WebhookAttempt, WebhookDelivery, WebhookEndpoint
from supervision.services.webhooks import MAX_ENDPOINTS, webhook_create, webhook_secrets, webhook_test
from supervision.webhooks import EVENT_TYPES
from tenants.models import AuditEvent
from tenants.roles import ALL_SCOPES, Scope
from tenants.services.api_keys import api_key_create
from tenants.services.export import tenant_export_lines
from tests.contract.client import ask, errors
from tests.factories import Tenancy
from tests.isolation.sweep import rows

pytestmark = pytest.mark.django_db

TABLE = "supervision_webhookendpoint"
HOOK = {"url": "https://hooks.example/mirror", "event_types": ["call.ended", "tool.blocked"], "description": "On call"}


def made(tenancy: Tenancy, **changes: Any) -> dict[str, Any]:
    answer = ask(tenancy, "POST", "/webhooks", {**HOOK, **changes})
    assert answer.status_code == 201, answer.content
    body: dict[str, Any] = answer.json()
    return body


def stored_secrets(tenancy: Tenancy, webhook_id: str) -> list[str]:
    with tenancy.context():
        return webhook_secrets(endpoint=WebhookEndpoint.objects.get(id=webhook_id), now=timezone.now())


def delivery_of(tenancy: Tenancy, webhook_id: str) -> WebhookDelivery:
    with tenancy.context():
        return webhook_test(webhook_id=UUID(webhook_id))


def test_the_document_names_the_types_that_there_are() -> None:
    assert list(get_args(EventType)) == list(EVENT_TYPES)


def test_a_webhook_is_made_shown_without_its_secret_changed_and_deleted(tenant: Tenancy, stranger: Tenancy) -> None:
    theirs = made(stranger, url="https://charlie.example/x")
    before = rows(stranger)
    answer = ask(tenant, "POST", "/webhooks", HOOK)
    body = answer.json()
    path = f"/webhooks/{body['id']}"
    assert answer.headers["Location"] == f"/api/v1{path}"
    assert answer.headers["Cache-Control"] == "no-store"
    secret = body.pop("secret")
    assert secret.startswith("whsec_")
    assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32
    assert stored_secrets(tenant, body["id"]) == [secret]
    assert HOOK.items() <= body.items()
    assert (body["enabled"], body["off_reason"], body["failures"], body["paused_until"]) == (True, "", 0, None)
    assert ask(tenant, "GET", path).json() == body
    assert ask(tenant, "GET", "/webhooks").json() == {"items": [body], "next": None}
    changed = ask(tenant, "PATCH", path, {"description": "", "event_types": ["tool.blocked", "call.started"]}).json()
    assert (changed["description"], changed["url"]) == ("", HOOK["url"])
    # In the order of the document, whatever order they were given in.
    assert changed["event_types"] == ["call.started", "tool.blocked"]
    assert ask(tenant, "PATCH", path, {"enabled": False}).json()["enabled"] is False
    assert stored_secrets(tenant, body["id"]) == [secret]
    assert ask(tenant, "DELETE", path).status_code == 204
    assert ask(tenant, "GET", path).status_code == 404
    assert rows(stranger) == before
    assert ask(stranger, "GET", "/webhooks").json()["items"][0]["id"] == theirs["id"]
    with tenant.context():
        events = AuditEvent.objects.filter(object_id=body["id"]).order_by("seq")
        assert [event.action for event in events] == [
            "webhook.create",
            "webhook.update",
            "webhook.update",
            "webhook.delete",
        ]
        assert secret not in "".join(f"{event.before}{event.after}" for event in events)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"url": ""}, "url"),
        ({"url": "ftp://hooks.example"}, "url"),
        ({"url": "https://"}, "url"),
        ({"url": "https://user:pw@hooks.example/"}, "url"),
        ({"url": "https://hooks.example/#part"}, "url"),
        ({"url": "https://hooks.example/a b"}, "url"),
        ({"url": "https://hooks.example\\@x/"}, "url"),
        ({"url": "https://[::1"}, "url"),
        ({"url": "https://hooks.example:99999/"}, "url"),
        ({"url": "https://hooks.example/" + "x" * 2000}, "url"),
        ({"url": "https://hooks.example/\x00"}, "url"),
        ({"url": None}, "url"),
        ({"event_types": []}, "event_types"),
        ({"event_types": ["call.ended", "webhook.test"]}, "event_types.1"),
        ({"event_types": ["call.ended"] * 51}, "event_types"),
        ({"event_types": "call.ended"}, "event_types"),
        ({"description": "x" * 501}, "description"),
        ({"description": "\ud800"}, "description"),
        ({"enabled": None}, "enabled"),
        ({"secret": "whsec_mine"}, "secret"),
    ],
)
def test_what_cannot_be_used_is_named_and_changes_nothing(
    tenant: Tenancy, stranger: Tenancy, changes: dict[str, Any], field: str
) -> None:
    one = made(tenant)
    before = rows(tenant), rows(stranger)
    assert field in errors(ask(tenant, "POST", "/webhooks", {**HOOK, **changes}))
    assert field in errors(ask(tenant, "PATCH", f"/webhooks/{one['id']}", changes))
    assert rows(stranger) == before[1]
    assert rows(tenant)["supervision_webhookendpoint"] == before[0]["supervision_webhookendpoint"]


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1/x", "http://169.254.169.254/", "http://127.0.0.1:9/", "http://[::1]/"]
)
def test_private_addresses_are_refused_and_the_field_says_so(
    tenant: Tenancy, stranger: Tenancy, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setattr(egress, "rules", lambda: ((), False))
    [message] = errors(ask(tenant, "POST", "/webhooks", {**HOOK, "url": url}))["url"]
    assert "MIRROR_EGRESS_ALLOW" in message
    for tenancy in (tenant, stranger):
        with tenancy.context():
            assert not WebhookEndpoint.objects.exists()


def test_a_tenant_has_as_many_as_it_may(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context():
        for number in range(MAX_ENDPOINTS):
            webhook_create(url=f"https://hooks.example/{number}", event_types=["call.ended"])
    refused = ask(tenant, "POST", "/webhooks", HOOK)
    assert refused.status_code == 409
    assert str(MAX_ENDPOINTS) in refused.json()["detail"]
    # Another tenant's do not count.
    assert made(stranger)["enabled"]
    seen: list[str] = []
    cursor = ""
    while True:
        page = ask(tenant, "GET", f"/webhooks?limit=7{cursor}").json()
        seen += [item["url"] for item in page["items"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert seen == [f"https://hooks.example/{number}" for number in reversed(range(MAX_ENDPOINTS))]


def test_a_secret_is_rotated_with_an_overlap_and_the_answer_can_be_asked_for_twice(
    tenant: Tenancy, stranger: Tenancy
) -> None:
    one, theirs = made(tenant), made(stranger)
    path = f"/webhooks/{one['id']}/rotate-secret"
    answer = ask(tenant, "POST", path, {"overlap_ms": 60_000}, Idempotency_Key="r")
    again = ask(tenant, "POST", path, {"overlap_ms": 60_000}, Idempotency_Key="r")
    assert again.content == answer.content
    assert answer.headers["Cache-Control"] == "no-store"
    second = answer.json()["secret"]
    assert answer.json()["previous_secret_until"] is not None
    assert stored_secrets(tenant, one["id"]) == [second, one["secret"]]
    # A second one in the overlap: the first secret is out.
    third = ask(tenant, "POST", path, {}).json()["secret"]
    assert stored_secrets(tenant, one["id"]) == [third, second]
    last = ask(tenant, "POST", path, {"overlap_ms": 0}).json()
    assert last["previous_secret_until"] is None
    assert stored_secrets(tenant, one["id"]) == [last["secret"]]
    for wrong in (-1, 7 * 86_400_000 + 1, "x", None, 1.5):
        assert "overlap_ms" in errors(ask(tenant, "POST", path, {"overlap_ms": wrong}))
    assert stored_secrets(stranger, theirs["id"]) == [theirs["secret"]]


def test_deliveries_are_listed_shown_with_their_attempts_and_sent_again(tenant: Tenancy, stranger: Tenancy) -> None:
    one, theirs = made(tenant), made(stranger)
    path = f"/webhooks/{one['id']}"
    sent = ask(tenant, "POST", f"{path}/test")
    assert sent.status_code == 202
    body = sent.json()
    assert (body["type"], body["state"], body["data"]) == ("webhook.test", "pending", {"webhook_id": one["id"]})
    with tenant.context():
        row = WebhookDelivery.objects.get(id=body["id"])
        WebhookAttempt.objects.create(delivery=row, status=500, duration_ms=7, error="no", excerpt="Oops")
        WebhookDelivery.objects.filter(id=row.id).update(state="failed", attempts=12, next_attempt_at=None, error="no")
    delivery_of(stranger, theirs["id"])
    second = ask(tenant, "POST", f"{path}/test").json()
    listed = ask(tenant, "GET", f"{path}/deliveries").json()
    assert [item["id"] for item in listed["items"]] == [second["id"], body["id"]]
    for query, ids in (
        ("state=failed", [body["id"]]),
        ("state=delivered", []),
        ("type=webhook.test&limit=1", [second["id"]]),
        ("type=call.ended", []),
    ):
        assert [item["id"] for item in ask(tenant, "GET", f"{path}/deliveries?{query}").json()["items"]] == ids, query
    assert "state" in errors(ask(tenant, "GET", f"{path}/deliveries?state=lost"))
    detail = ask(tenant, "GET", f"{path}/deliveries/{body['id']}").json()
    [attempt] = detail["log"]
    assert (attempt["status"], attempt["duration_ms"], attempt["error"], attempt["excerpt"]) == (500, 7, "no", "Oops")
    again = ask(tenant, "POST", f"{path}/deliveries/{body['id']}/redeliver")
    assert again.status_code == 202
    assert (again.json()["state"], again.json()["attempts"], again.json()["error"]) == ("pending", 0, "")
    assert again.json()["event_id"] == body["event_id"]
    assert ask(tenant, "PATCH", path, {"enabled": False}).status_code == 200
    for refused in (f"{path}/test", f"{path}/deliveries/{body['id']}/redeliver"):
        assert ask(tenant, "POST", refused).status_code == 409
    with tenant.context():
        assert {row.state for row in WebhookDelivery.objects.all()} == {"failed"}
    with stranger.context():
        assert WebhookDelivery.objects.get().state == "pending"


def test_a_delivery_of_another_endpoint_or_tenant_is_none(tenant: Tenancy, stranger: Tenancy) -> None:
    one, other, theirs = made(tenant), made(tenant), made(stranger)
    mine, foreign = delivery_of(tenant, one["id"]), delivery_of(stranger, theirs["id"])
    before = rows(stranger), rows(tenant)
    for webhook_id, delivery_id in (
        (other["id"], mine.id),
        (one["id"], foreign.id),
        (theirs["id"], foreign.id),
        (one["id"], uuid7()),
        (uuid7(), mine.id),
    ):
        path = f"/webhooks/{webhook_id}/deliveries/{delivery_id}"
        assert ask(tenant, "GET", path).status_code == 404
        assert ask(tenant, "POST", f"{path}/redeliver").status_code == 404
    for method, path, body in (
        ("GET", "", None),
        ("PATCH", "", {"enabled": False}),
        ("DELETE", "", None),
        ("POST", "/test", None),
        ("POST", "/rotate-secret", {}),
        ("GET", "/deliveries", None),
    ):
        foreign_answer = ask(tenant, method, f"/webhooks/{theirs['id']}{path}", body)
        missing = ask(tenant, method, f"/webhooks/{uuid7()}{path}", body)
        assert foreign_answer.status_code == missing.status_code == 404
        assert foreign_answer.json()["detail"] == missing.json()["detail"]
    assert (rows(stranger), rows(tenant)) == before


def test_only_administrators_have_webhooks(tenant: Tenancy, stranger: Tenancy) -> None:
    one = made(tenant)
    with tenant.context():
        key = api_key_create(name="all but one", scopes=sorted(ALL_SCOPES - {Scope.ADMIN}), held=ALL_SCOPES).key
    for method, path, body in (
        ("GET", "/webhooks", None),
        ("POST", "/webhooks", HOOK),
        ("GET", f"/webhooks/{one['id']}", None),
        ("POST", f"/webhooks/{one['id']}/test", None),
    ):
        assert ask(tenant, method, path, body, api_key=key).status_code == 403
        assert ask(None, method, path, body).status_code == 401
    with stranger.context():
        assert not WebhookEndpoint.objects.exists()


def test_the_export_of_a_tenant_has_its_webhooks_without_their_secrets(tenant: Tenancy, stranger: Tenancy) -> None:
    one, theirs = made(tenant), made(stranger)
    with tenant.context():
        lines = "".join(tenant_export_lines())
    assert one["id"] in lines
    assert theirs["id"] not in lines
    [row] = [line["row"] for line in map(json.loads, lines.splitlines()) if line["table"] == TABLE]
    assert row["url"] == HOOK["url"]
    assert not {"secret_sealed", "previous_secret_sealed"} & row.keys()
    assert one["secret"].removeprefix("whsec_") not in lines
