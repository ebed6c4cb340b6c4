"""`/tenant/privacy` through the real URLs, and the schedule that deletes calls for their age."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client

from supervision.models import Call, ErasedCall, Label, PrivacySettings, Turn
from supervision.services import privacy as privacy_service
from supervision.services.privacy import calls_prune
from supervision.stream.directory import agent_binding
from supervision.tasks import prune
from tenants.models import AuditEvent
from tests.contract.test_api_calls import assert_problem, get
from tests.contract.test_api_labels import put as put_label
from tests.factories import CALL_START, Tenancy, call_create

pytestmark = pytest.mark.django_db

DEFAULTS = {
    "retention_days": None,
    "redact": ["card", "email", "phone"],
    "phone_region": "US",
    "patterns": [],
    "updated_at": None,
}


def put(tenancy: Tenancy, **body: Any) -> Any:
    client = Client(headers={"Authorization": f"Bearer {tenancy.api_key}"})
    return client.put("/api/v1/tenant/privacy", data=body, content_type="application/json")


def test_without_a_choice_everything_is_redacted_and_kept(tenant: Tenancy) -> None:
    assert get(tenant, "/tenant/privacy").json() == DEFAULTS


def test_a_choice_is_kept_audited_and_what_new_calls_are_redacted_by(tenant: Tenancy, stranger: Tenancy) -> None:
    own = {"name": "member number", "pattern": r"M-\d+"}
    response = put(tenant, retention_days=30, redact=["email"], phone_region="DE", patterns=[own])
    assert response.status_code == 200, response.content
    chosen = get(tenant, "/tenant/privacy").json()
    assert chosen == response.json()
    assert {**chosen, "updated_at": None} == {
        "retention_days": 30,
        "redact": ["email"],
        "phone_region": "DE",
        "patterns": [own],
        "updated_at": None,
    }
    with tenant.context():
        binding = agent_binding(tenant=tenant.tenant, agent_id=tenant.agent.id)
        assert AuditEvent.objects.filter(action="privacy.update").count() == 1
    assert binding is not None
    assert (binding.redaction.kinds, binding.redaction.region) == ({"email"}, "DE")
    assert [(pattern.name, pattern.pattern) for pattern in binding.redaction.patterns] == [("member number", r"M-\d+")]
    assert get(stranger, "/tenant/privacy").json() == DEFAULTS
    with stranger.context():
        binding = agent_binding(tenant=stranger.tenant, agent_id=stranger.agent.id)
    assert binding is not None
    assert binding.redaction.patterns == ()


def test_the_same_again_is_no_change(tenant: Tenancy) -> None:
    for _ in range(2):
        put(tenant, retention_days=30)
    with tenant.context():
        assert PrivacySettings.objects.count() == 1
        assert AuditEvent.objects.filter(action="privacy.update").count() == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"retention_days": 0}, "retention_days"),
        ({"retention_days": 3651}, "retention_days"),
        ({"retention_days": "x"}, "retention_days"),
        ({"redact": ["names"]}, "redact.0"),
        ({"phone_region": "Germany"}, "phone_region"),
        ({"phone_region": "XX"}, "phone_region"),
        ({"patterns": [{"name": "a", "pattern": "("}]}, "patterns"),
        ({"patterns": [{"name": "a", "pattern": "a*"}]}, "patterns"),
        ({"patterns": [{"name": "a", "pattern": r"(a)\1"}]}, "patterns"),
        ({"patterns": [{"name": "[a]", "pattern": "a"}]}, "patterns"),
        ({"patterns": [{"name": " ", "pattern": "a"}]}, "patterns"),
        ({"patterns": [{"name": "a", "pattern": "a"}] * 2}, "patterns"),
        ({"patterns": [{"name": "a", "pattern": "x" * 501}]}, "patterns.0.pattern"),
        ({"patterns": [{"name": str(n), "pattern": "x"} for n in range(51)]}, "patterns"),
        ({"days": 5}, "days"),
    ],
)
def test_a_bad_choice_names_its_field_and_changes_nothing(tenant: Tenancy, body: dict[str, Any], field: str) -> None:
    assert list(assert_problem(put(tenant, **body), 422)["errors"]) == [field]
    with tenant.context():
        assert not PrivacySettings.objects.exists()


def test_a_note_of_a_reviewer_is_redacted_too(tenant: Tenancy) -> None:
    call_create(tenant)
    with tenant.context():
        turn_id = Turn.objects.get().id
    put_label(tenant, f"/turns/{turn_id}/label", {"label": "missed", "note": "He says 4111 1111 1111 1111."})
    with tenant.context():
        assert Label.objects.get().note == "He says [card number]."


# -- retention -----------------------------------------------------------------------------------------------------

NOW = CALL_START + timedelta(days=40)


def test_calls_that_are_too_old_are_deleted_and_stay_counted(
    tenant: Tenancy, stranger: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privacy_service, "_BATCH", 2)
    for _ in range(3):
        call_create(tenant)
    young = call_create(tenant, started_at=NOW - timedelta(days=29))
    lost = call_create(tenant, state="live")
    running = call_create(tenant, state="live", started_at=NOW - timedelta(hours=1))
    put(tenant, retention_days=30)
    day = CALL_START.date().isoformat()
    before = get(tenant, "/usage", **{"from": day, "to": day}).json()
    with tenant.context():
        assert calls_prune(now=NOW) == 4
        assert set(Call.objects.values_list("id", flat=True)) == {young.id, running.id}
        assert not Call.objects.filter(id=lost.id).exists()
        assert Turn.objects.count() == 2
        assert not ErasedCall.objects.exists()
        assert calls_prune(now=NOW) == 0
    assert get(tenant, "/usage", **{"from": day, "to": day}).json() == before
    with stranger.context():
        assert Turn.objects.count() == 1


def test_a_day_that_is_not_stored_yet_stays_counted_too(tenant: Tenancy) -> None:
    call_create(tenant)
    put(tenant, retention_days=1)
    day = CALL_START.date().isoformat()
    before = get(tenant, "/usage", **{"from": day, "to": day}).json()
    with tenant.context():
        assert calls_prune(now=CALL_START + timedelta(days=1, hours=1)) == 1
    assert get(tenant, "/usage", **{"from": day, "to": day}).json() == before


def test_a_tenant_that_chose_nothing_keeps_its_calls(tenant: Tenancy) -> None:
    call_create(tenant)
    with tenant.context():
        assert calls_prune(now=NOW + timedelta(days=5000)) == 0
        prune()
        assert Call.objects.count() == 1
