"""`/tenant/models` through the real URLs, and what new drafts and agents get by it."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.test import Client

from supervision.models import Agent, ModelDefaults, PolicyVersion, ProviderCredential
from tenants.models import AuditEvent
from tests.contract.test_api_calls import assert_problem, get
from tests.factories import Tenancy

pytestmark = pytest.mark.django_db

NOTHING = {"llm_credential_id": None, "tts_credential_id": None, "updated_at": None}


def send(tenancy: Tenancy, method: str, path: str, body: Any = None) -> Any:
    client = Client(headers={"Authorization": f"Bearer {tenancy.api_key}"})
    data = "" if body is None else json.dumps(body)
    return client.generic(method, f"/api/v1{path}", data=data, content_type="application/json")


def credential(tenancy: Tenancy, kind: str) -> str:
    body = {
        "kind": kind,
        "name": f"{kind} {uuid4()}",
        "base_url": "https://models.example/v1",
        "model": "m",
        "secret": "k",
    }
    made = send(tenancy, "POST", "/credentials", body)
    assert made.status_code == 201, made.content
    return str(made.json()["id"])


def test_without_a_choice_there_are_none(tenant: Tenancy) -> None:
    assert get(tenant, "/tenant/models").json() == NOTHING


def test_new_drafts_and_agents_get_the_defaults_unless_they_say_otherwise(tenant: Tenancy, stranger: Tenancy) -> None:
    llm, tts = credential(tenant, "llm"), credential(tenant, "tts")
    put = send(tenant, "PUT", "/tenant/models", {"llm_credential_id": llm, "tts_credential_id": tts})
    assert put.status_code == 200, put.content
    assert {**put.json(), "updated_at": None} == {**NOTHING, "llm_credential_id": llm, "tts_credential_id": tts}
    assert get(tenant, "/tenant/models").json() == put.json()
    assert get(stranger, "/tenant/models").json() == NOTHING
    with tenant.context():
        assert AuditEvent.objects.filter(action="model_defaults.update").count() == 1

    policy = send(tenant, "POST", "/policies", {"name": "Refunds"}).json()["id"]
    versions = f"/policies/{policy}/versions"
    assert send(tenant, "POST", versions, {"rules": [{"text": "No refunds."}]}).json()["llm_credential_id"] == llm
    none = {"rules": [{"text": "No refunds."}], "llm_credential_id": None}
    assert send(tenant, "POST", versions, none).json()["llm_credential_id"] is None
    assert send(tenant, "POST", versions, {"from_number": 2}).json()["llm_credential_id"] is None, "a copy stays a copy"

    agent = {"name": "Desk", "upstream_url": "wss://agent.example/"}
    assert send(tenant, "POST", "/agents", agent).json()["tts_credential_id"] == tts
    without = {**agent, "name": "Desk 2", "tts_credential_id": None}
    assert send(tenant, "POST", "/agents", without).json()["tts_credential_id"] is None

    rules = {"rules": [{"text": "No refunds."}]}
    theirs = send(stranger, "POST", "/policies", {"name": "Refunds"}).json()["id"]
    assert send(stranger, "POST", f"/policies/{theirs}/versions", rules).json()["llm_credential_id"] is None


def test_what_was_made_before_stays_as_it_is(tenant: Tenancy) -> None:
    with tenant.context():
        before = (
            list(PolicyVersion.objects.order_by("id").values_list("id", "llm_credential_id")),
            list(Agent.objects.order_by("id").values_list("id", "tts_credential_id")),
        )
    body = {"llm_credential_id": credential(tenant, "llm"), "tts_credential_id": credential(tenant, "tts")}
    assert send(tenant, "PUT", "/tenant/models", body).status_code == 200
    with tenant.context():
        assert before == (
            list(PolicyVersion.objects.order_by("id").values_list("id", "llm_credential_id")),
            list(Agent.objects.order_by("id").values_list("id", "tts_credential_id")),
        )


@pytest.mark.parametrize("field", ["llm_credential_id", "tts_credential_id"])
def test_a_credential_of_another_kind_of_the_stranger_or_of_nobody_is_refused(
    tenant: Tenancy, stranger: Tenancy, field: str
) -> None:
    kind = field[:3]
    other = {"llm": "tts", "tts": "llm"}[kind]
    for wrong in (credential(tenant, other), credential(stranger, kind), str(uuid4())):
        assert list(assert_problem(send(tenant, "PUT", "/tenant/models", {field: wrong}), 422)["errors"]) == [field]
    assert list(assert_problem(send(tenant, "PUT", "/tenant/models", {"llm": None}), 422)["errors"]) == ["llm"]
    with tenant.context():
        assert not ModelDefaults.objects.exclude(llm_credential=None, tts_credential=None).exists()


def test_a_default_is_not_deleted_until_there_is_another(tenant: Tenancy) -> None:
    llm = credential(tenant, "llm")
    assert send(tenant, "PUT", "/tenant/models", {"llm_credential_id": llm}).status_code == 200
    assert "default models" in assert_problem(send(tenant, "DELETE", f"/credentials/{llm}"), 409)["detail"]
    assert send(tenant, "PUT", "/tenant/models", {}).status_code == 200
    assert send(tenant, "DELETE", f"/credentials/{llm}").status_code == 204
    with tenant.context():
        assert not ProviderCredential.objects.filter(id=UUID(llm)).exists()


def test_deriving_without_a_model_or_a_default_says_what_to_name(tenant: Tenancy) -> None:
    answer = send(tenant, "POST", "/policies/derive", {"agent_prompt": "Never promise a refund.", "name": "Derived"})
    assert list(assert_problem(answer, 422)["errors"]) == ["llm_credential_id"]
