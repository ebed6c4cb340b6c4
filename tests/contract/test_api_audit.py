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
from tenants.services.audit import auditevent_record, auditevents_verify
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


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("", {"cursor": "nonsense"}, "cursor"),
    ("", {"limit": 201}, "limit"),
    ("", {"actor_id": "x"}, "actor_id"),
    ("", {"from": "yesterday"}, "from"),
    ("/export", {"after_seq": -1}, "after_seq"),
    ("/verify", {"expected_seq": 1}, "expected_hash"),
    ("/verify", {"expected_hash": "0" * 64}, "expected_seq"),
    ("/verify", {"expected_seq": 1, "expected_hash": "0"}, "expected_hash"),
    ("/verify", {"after_seq": 1}, "after_hash"),
    ("/verify", {"after_hash": "0" * 64}, "after_seq"),
    ("/verify", {"limit": 10_001}, "limit"),
    ("/verify", {"limit": 0}, "limit"),
    ("/verify", {"after_seq": 2**80, "after_hash": "0" * 64}, "after_seq"),
    ("", {"action": "a\x00b"}, "action"),
    ("", {"action": "x" * 65}, "action"),
    ("", {"actor_kind": "nobody"}, "actor_kind"),
    ("", {"object_type": "\x00"}, "object_type"),
    ("", {"object_id": "\x00"}, "object_id"),
    ("", {"from": "2026-01-01"}, "from"),
    ("", {"from": "1767225600"}, "from"),
    ("", {"from": "2026-01-01T00:00:00"}, "from"),
    ("", {"to": "0001-01-01T00:00:00+14:00"}, "to"),
    ("", {"to": "9999-12-31T23:59:59-23:59"}, "to"),
    ("/export", {"after_seq": 2**80}, "after_seq"),
]


@pytest.mark.django_db
def test_a_wrong_question_names_its_field(tenant: Tenancy) -> None:
    for path, query, field in WRONG:
        response = get(tenant, path, **query)
        assert (response.status_code, list(response.json()["errors"])) == (422, [field]), (path, query)


@pytest.mark.django_db
def test_times_with_offsets_that_postgresql_does_not_know_are_understood(tenant: Tenancy, stranger: Tenancy) -> None:
    assert len(get(tenant, **{"from": "2026-01-01T00:00:00-23:59", "limit": 200}).json()["items"]) == 10
    assert get(tenant, **{"to": "2020-01-01T00:00:00+23:59"}).json()["items"] == []
    assert len(get(tenant, actor_kind="system").json()["items"]) == 10
    assert get(tenant, actor_kind="user").json()["items"] == []


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


@pytest.mark.django_db
def test_a_long_log_is_verified_in_parts_that_hang_together(tenant: Tenancy, stranger: Tenancy) -> None:
    whole = get(tenant, "/verify").json()
    assert whole["complete"] is True
    after: dict[str, Any] = {}
    checked, parts = 0, 0
    while True:
        part = get(tenant, "/verify", limit=4, **after).json()
        assert part["valid"] is True
        checked, parts = checked + part["count"], parts + 1
        after = {"after_seq": part["head_seq"], "after_hash": part["head_hash"]}
        if part["complete"]:
            break
    assert (checked, parts) == (10, 3)
    assert (part["head_seq"], part["head_hash"]) == (whole["head_seq"], whole["head_hash"])
    # Behind the end there is nothing, and that is complete too.
    end = get(tenant, "/verify", **after).json()
    assert (end["valid"], end["complete"], end["count"], end["head_seq"]) == (True, True, 0, 10)
    # Another tenant's log does not follow from ours, nor ours from a made-up event.
    for asker, point in (
        (stranger, after),
        (tenant, {**after, "after_hash": "0" * 64}),
        (tenant, {**after, "after_seq": 11}),
    ):
        wrong = get(asker, "/verify", **point).json()
        assert (wrong["valid"], wrong["problem_seq"], wrong["count"]) == (False, point["after_seq"], 0)


@pytest.mark.django_db
def test_what_is_expected_may_be_in_any_part(tenant: Tenancy) -> None:
    items = {item["seq"]: item["hash"] for item in get(tenant).json()["items"]}
    for seq, digest, valid in (
        (3, items[3], True),
        (8, items[8], True),
        (3, "0" * 64, False),
        (8, "0" * 64, False),
        (11, "0" * 64, False),
    ):
        expected = {"expected_seq": seq, "expected_hash": digest}
        first = get(tenant, "/verify", limit=5, **expected).json()
        assert first["valid"] is (valid or seq > 5)
        if first["valid"]:
            second = get(tenant, "/verify", after_seq=5, after_hash=items[5], **expected).json()
            assert second["valid"] is valid
    # The very event that a part goes on behind.
    met = get(tenant, "/verify", after_seq=5, after_hash=items[5], expected_seq=5, expected_hash=items[5]).json()
    unmet = get(tenant, "/verify", after_seq=5, after_hash=items[5], expected_seq=5, expected_hash="0" * 64).json()
    assert (met["valid"], unmet["valid"], unmet["problem_seq"]) == (True, False, 5)


@pytest.mark.django_db
def test_verifying_stops_when_its_time_is_up(tenant: Tenancy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenants.services.audit.PAGE", 3)
    ticks = iter(range(100))
    with tenant.context():
        found = auditevents_verify(budget_s=2, clock=lambda: float(next(ticks)))
        assert (found.valid, found.complete, found.count) == (True, False, 6)
        rest = auditevents_verify(after=found.head, budget_s=100, clock=lambda: 0.0)
        assert (rest.valid, rest.complete, rest.count) == (True, True, 4)


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
