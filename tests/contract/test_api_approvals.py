"""Approving and denying tool calls that wait, through the real URLs."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from django.test import Client

from mirror_saas.ids import uuid7
from supervision.models import Approval
from supervision.services import approvals as service
from supervision.services.approvals import approval_decide
from tenants.models import AuditEvent
from tests.contract.test_api_calls import assert_problem, get
from tests.factories import PASSWORD, Tenancy, approval_create, tenancy_create

pytestmark = pytest.mark.django_db


def post(tenancy: Tenancy, decision_id: UUID, body: Any, **headers: str) -> Any:
    client = Client(headers={"Authorization": f"Bearer {tenancy.api_key}", **headers})
    url = f"/api/v1/tool-decisions/{decision_id}/approval"
    return client.post(url, data=body, content_type="application/json")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the calls were told through Valkey."""
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(service, "call_tell", lambda url, **message: made.append(message))
    return made


@pytest.mark.parametrize(("decision", "state"), [("approve", "approved"), ("deny", "denied")])
def test_a_decision_is_stored_and_its_call_told(
    tenant: Tenancy,
    told: list[dict[str, Any]],
    decision: str,
    state: str,
    django_capture_on_commit_callbacks: Any,
) -> None:
    waiting = approval_create(tenant)
    shown = get(tenant, f"/tool-decisions/{waiting.id}/approval").json()
    assert (shown["state"], shown["tool"], shown["args"], shown["on_silence"]) == (
        "waiting",
        "charge_card",
        {"amount": 99},
        "deny",
    )
    with django_capture_on_commit_callbacks(execute=True):
        answer = post(tenant, waiting.id, {"decision": decision, "note": "Card 4111 1111 1111 1111 is hers."})
    assert answer.status_code == 200
    made = answer.json()
    assert (made["state"], made["note"]) == (state, "Card [card number] is hers.")
    assert made["decided_by"].startswith("tests (")
    assert get(tenant, f"/tool-decisions/{waiting.id}/approval").json() == made
    assert told == [{"tenant_id": tenant.id, "call_id": waiting.call_id, "message": {"approval": str(waiting.id)}}]
    with tenant.context():
        event = AuditEvent.objects.get(action="approval.decide")
    assert json.loads(event.after)["state"] == state
    assert "hers" not in str(event.after)


def test_the_same_word_again_changes_nothing_and_another_one_is_too_late(
    tenant: Tenancy, told: list[dict[str, Any]]
) -> None:
    waiting = approval_create(tenant)
    first = post(tenant, waiting.id, {"decision": "approve"}).json()
    assert post(tenant, waiting.id, {"decision": "approve"}).json() == first
    refused = post(tenant, waiting.id, {"decision": "deny"})
    assert_problem(refused, 409)
    assert "was approved by tests (" in refused.json()["detail"]
    with tenant.context():
        assert AuditEvent.objects.filter(action="approval.decide").count() == 1
        with pytest.raises(service.ApprovalDecided):
            approval_decide(decision_id=waiting.id, approve=True)  # somebody else says the same


def test_a_key_makes_it_safe_to_send_again(tenant: Tenancy, told: list[dict[str, Any]]) -> None:
    waiting = approval_create(tenant)
    answers = [post(tenant, waiting.id, {"decision": "deny"}, **{"Idempotency-Key": "k"}) for _ in range(2)]
    assert answers[0].content == answers[1].content
    assert answers[1].headers["Idempotency-Replayed"] == "true"


def test_after_its_time_a_decision_would_be_void(tenant: Tenancy, told: list[dict[str, Any]]) -> None:
    late = approval_create(tenant, within=timedelta(seconds=-1))
    refused = post(tenant, late.id, {"decision": "approve"})
    assert_problem(refused, 409)
    assert "void" in refused.json()["detail"]
    # Its process may have died: nobody else says that it is over.
    assert get(tenant, f"/tool-decisions/{late.id}/approval").json()["state"] == "expired"
    assert told == []


@pytest.mark.parametrize("state", ["expired", "cancelled", "void"])
def test_what_does_not_wait_any_more_cannot_be_decided(tenant: Tenancy, told: list[dict[str, Any]], state: str) -> None:
    assert_problem(post(tenant, approval_create(tenant, state=state).id, {"decision": "approve"}), 409)


def test_a_strangers_and_a_missing_one_are_the_same(
    tenant: Tenancy, stranger: Tenancy, told: list[dict[str, Any]]
) -> None:
    theirs = approval_create(stranger)
    for decision_id in (theirs.id, uuid7()):
        assert_problem(post(tenant, decision_id, {"decision": "approve"}), 404)
        assert_problem(get(tenant, f"/tool-decisions/{decision_id}/approval"), 404)
    with stranger.context():
        assert Approval.objects.get().state == "waiting"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "decision"),
        ({"decision": "maybe"}, "decision"),
        ({"decision": "approve", "note": "x" * 501}, "note"),
        ({"decision": "approve", "note": "a\x00b"}, "note"),
        ({"decision": "approve", "by": "alice"}, "by"),
    ],
)
def test_a_wrong_body_names_its_field(tenant: Tenancy, body: Any, field: str) -> None:
    answer = post(tenant, approval_create(tenant).id, body)
    assert_problem(answer, 422)
    assert field in answer.content.decode()


def test_a_viewer_may_look_and_not_decide(tenant: Tenancy) -> None:
    waiting = approval_create(tenant)
    client = Client()
    assert client.login(username=tenant.users["bob"].email, password=PASSWORD)
    url = f"/api/v1/tool-decisions/{waiting.id}/approval"
    assert client.get(url).status_code == 200
    assert client.post(url, data={"decision": "approve"}, content_type="application/json").status_code == 403


@pytest.mark.django_db(transaction=True)
def test_of_two_people_at_once_one_decides(told: list[dict[str, Any]]) -> None:
    tenancy = tenancy_create(owner="alice")
    waiting = approval_create(tenancy)
    both = threading.Barrier(2)
    answers: list[int] = []

    def decide(decision: str) -> None:
        both.wait()
        try:
            answers.append(post(tenancy, waiting.id, {"decision": decision}).status_code)
        finally:
            connection.close()

    threads = [threading.Thread(target=decide, args=(decision,)) for decision in ("approve", "deny")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200, 409]
    assert len(told) == 1
