"""`/audit-events` through the real URLs: a program's and a person's deeds, with where they came from."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.test import AsyncClient, Client

from tenants.actors import actor_current
from tenants.audit_chain import export_verify
from tenants.context import tenant_context
from tenants.models import AuditEvent
from tenants.selectors.audit import PAGE
from tenants.services.api_keys import api_key_create
from tenants.services.audit import auditevent_record
from tests.factories import PASSWORD, Tenancy, tenancy_create


def get(tenancy: Tenancy, path: str = "", **query: Any) -> Any:
    return Client().get(f"/api/v1/audit-events{path}", query, headers={"Authorization": f"Bearer {tenancy.api_key}"})


@pytest.mark.django_db
def test_events_are_listed_newest_first_with_their_fields(tenant: Tenancy, stranger: Tenancy) -> None:
    body = get(tenant).json()
    assert [item["seq"] for item in body["items"]] == list(range(10, 0, -1))
    assert body["next"] is None
    oldest = body["items"][-1]
    assert oldest["action"] == "tenant.create"
    assert oldest["object_id"] == str(tenant.id)
    assert oldest["before"] is None
    assert oldest["after"] == {"name": "Alice's tenant", "slug": tenant.slug}
    assert oldest["prev_hash"] == "0" * 64
    assert body["items"][-2]["prev_hash"] == oldest["hash"]
    assert oldest["at"].endswith("Z")


@pytest.mark.django_db
def test_pages_show_every_event_once_although_events_come_meanwhile(tenant: Tenancy) -> None:
    seen: list[int] = []
    cursor: dict[str, str] = {}
    while True:
        body = get(tenant, limit=3, **cursor).json()
        seen += [item["seq"] for item in body["items"]]
        with tenant.context():
            auditevent_record(action="thing.create", object_id="1")
        if body["next"] is None:
            break
        cursor = {"cursor": body["next"]}
    assert seen == list(range(10, 0, -1))


@pytest.mark.django_db
def test_filters_narrow_and_never_widen(tenant: Tenancy, stranger: Tenancy) -> None:
    assert [item["object_label"] for item in get(tenant, action="agent.create").json()["items"]] == ["alice's agent"]
    assert len(get(tenant, object_type="membership").json()["items"]) == 2
    assert len(get(tenant, object_id=str(tenant.agent.id)).json()["items"]) == 1
    assert get(tenant, object_id=str(stranger.agent.id)).json()["items"] == []
    assert get(tenant, actor_id=str(stranger.id)).json()["items"] == []
    at = get(tenant).json()["items"][4]["at"]
    assert [item["seq"] for item in get(tenant, to=at).json()["items"]] == [5, 4, 3, 2, 1]
    assert [item["seq"] for item in get(tenant, **{"from": at}).json()["items"]] == [10, 9, 8, 7, 6]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("path", "query", "field"),
    [
        ("", {"cursor": "nonsense"}, "cursor"),
        ("", {"limit": 201}, "limit"),
        ("", {"actor_id": "x"}, "actor_id"),
        ("", {"from": "yesterday"}, "from"),
        ("/export", {"after_seq": -1}, "after_seq"),
        ("/verify", {"expected_seq": 1}, "expected_hash"),
        ("/verify", {"expected_hash": "0" * 64}, "expected_seq"),
        ("/verify", {"expected_seq": 1, "expected_hash": "0"}, "expected_hash"),
    ],
)
def test_a_wrong_question_names_its_field(tenant: Tenancy, path: str, query: dict[str, Any], field: str) -> None:
    response = get(tenant, path, **query)
    assert response.status_code == 422
    assert list(response.json()["errors"]) == [field]


@pytest.mark.django_db
def test_a_number_beyond_the_databases_is_an_empty_page(tenant: Tenancy) -> None:
    from mirror_saas.pages import cursor_encode

    assert len(get(tenant, cursor=cursor_encode(2**70)).json()["items"]) == 10
    assert get(tenant, cursor=cursor_encode(-(2**70))).json()["items"] == []


@pytest.mark.django_db
def test_the_export_verifies_and_holds_nothing_of_a_stranger(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context():
        for number in range(PAGE + 7):
            auditevent_record(action="thing.create", object_id=str(number))
    response = get(tenant, "/export")
    assert response.headers["Content-Type"] == "application/jsonl"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Content-Disposition"].startswith("attachment")
    text = response.getvalue().decode()
    found = export_verify(text.splitlines())
    assert (found.valid, found.count) == (True, PAGE + 17)
    assert "charlie" not in text
    part = export_verify(get(tenant, "/export", after_seq=500).getvalue().decode().splitlines())
    assert (part.valid, part.count) == (True, PAGE + 17 - 500)
    nothing = export_verify(get(tenant, "/export", after_seq=9999).getvalue().decode().splitlines())
    assert (nothing.valid, nothing.count) == (True, 0)


@pytest.mark.django_db(transaction=True)
async def test_the_export_streams_through_the_asynchronous_server() -> None:
    from asgiref.sync import sync_to_async

    tenant = await sync_to_async(tenancy_create)(owner="alice")
    response = await AsyncClient().get(
        "/api/v1/audit-events/export", headers={"Authorization": f"Bearer {tenant.api_key}"}
    )
    assert response.status_code == 200
    parts = [part async for part in response.streaming_content]  # type: ignore[attr-defined]
    # The first line goes out before the events are read.
    assert len(parts) == 2
    assert export_verify(b"".join(parts).decode().splitlines()).count == 9


@pytest.mark.django_db
def test_verifying_answers_with_a_head_to_keep(tenant: Tenancy, stranger: Tenancy) -> None:
    body = get(tenant, "/verify").json()
    assert (body["valid"], body["count"], body["head_seq"], body["problem"]) == (True, 10, 10, None)
    kept = {"expected_seq": body["head_seq"], "expected_hash": body["head_hash"]}
    assert get(tenant, "/verify", **kept).json()["valid"] is True
    theirs = get(stranger, "/verify", **kept).json()
    assert theirs["valid"] is False
    assert theirs["problem_seq"] == 10


# -- who did it ---------------------------------------------------------------------------------------------------


@pytest.fixture
def deeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let reading the list be a deed, as there is no writing route here."""
    from tenants.api import audit

    real = audit.auditevent_list

    def list_and_record(**arguments: Any) -> Any:
        auditevent_record(action="thing.read", object_id="1")
        return real(**arguments)

    monkeypatch.setattr(audit, "auditevent_list", list_and_record)


def newest(tenancy: Tenancy) -> AuditEvent:
    with tenancy.context():
        event = AuditEvent.objects.order_by("-seq").first()
    assert event is not None
    return event


@pytest.mark.django_db
@pytest.mark.usefixtures("deeds")
def test_a_program_is_named_by_its_key_and_never_with_its_secret(tenant: Tenancy, settings: Any) -> None:
    response = Client(REMOTE_ADDR="203.0.113.9").get(
        "/api/v1/audit-events",
        headers={
            "Authorization": f"Bearer {tenant.api_key}",
            "User-Agent": "curl/8 " + "x" * 1000,
            "X-Forwarded-For": "192.0.2.66",
        },
    )
    event = newest(tenant)
    prefix, secret = tenant.api_key.split("_", 2)[1:]
    assert (event.actor_kind, event.ip, event.session) == ("api_key", "203.0.113.9", "")
    assert event.actor_label == f"tests ({prefix})"
    assert event.user_agent == ("curl/8 " + "x" * 1000)[:300]
    assert event.request_id == response.headers["X-Request-Id"]
    assert secret not in json.dumps(get(tenant).json())


@pytest.mark.django_db
@pytest.mark.usefixtures("deeds")
def test_a_person_is_named_with_their_session_and_the_session_key_is_not_shown(tenant: Tenancy) -> None:
    client = Client()
    assert client.login(username=tenant.users["alice"].email, password=PASSWORD)
    assert client.get("/api/v1/audit-events").status_code == 200
    event = newest(tenant)
    assert (event.actor_kind, event.actor_id) == ("user", tenant.users["alice"].id)
    assert event.actor_label == tenant.users["alice"].email
    assert len(event.session) == 16
    key = client.session.session_key
    assert key
    assert event.session not in key
    assert key not in client.get("/api/v1/audit-events").content.decode()


@pytest.mark.django_db
def test_nobody_acts_on_after_a_request(tenant: Tenancy) -> None:
    get(tenant)
    assert actor_current().kind == "system"
    with tenant_context(tenant.id):
        api_key_create(name="later", scopes=["judge"])
    assert newest(tenant).actor_kind == "system"


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["", "/export", "/verify"])
def test_a_member_who_does_not_administer_is_refused(tenant: Tenancy, path: str) -> None:
    client = Client()
    assert client.login(username=tenant.users["bob"].email, password=PASSWORD)
    response = client.get(f"/api/v1/audit-events{path}")
    assert response.status_code == 403
    assert "alice" not in response.content.decode()
