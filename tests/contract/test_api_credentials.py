"""Credentials: secrets go in, and never come out or go to another server."""

from __future__ import annotations

from typing import Any

import pytest
from django.conf import settings

from mirror_saas import egress
from mirror_saas.ids import uuid7
from supervision.models import Agent, PolicyVersion, ProviderCredential
from supervision.services.credentials import FORGE_APIS
from tenants.models import AuditEvent
from tenants.roles import Scope
from tenants.sealing import sealed_field, unseal_text
from tenants.services.api_keys import api_key_create
from tests.contract.client import ask, errors
from tests.factories import Tenancy

pytestmark = pytest.mark.django_db

AUTH_ID = "MA" + "X" * 18
LLM = {"kind": "llm", "name": "Judge 2", "base_url": "https://judge.example/v1/", "model": "j-2", "secret": "sk-secret"}
TTS = {**LLM, "kind": "tts", "name": "Voice"}
PLIVO = {"kind": "plivo", "account": AUTH_ID, "secret": "plivo-auth-token-1"}
FORGE = {"kind": "forge", "name": "Fixes", "provider": "gitlab", "secret": "glpat-secret"}


def secret_of(tenancy: Tenancy, credential_id: str) -> str:
    with tenancy.context():
        row = ProviderCredential.objects.get(id=credential_id)
        return unseal_text(
            bytes(row.api_key_sealed),
            tenant_id=tenancy.id,
            field=sealed_field("supervision_providercredential", "api_key_sealed", row.id),
        )


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (LLM, {"kind": "llm", "base_url": "https://judge.example/v1", "model": "j-2", "account": "", "provider": ""}),
        (TTS, {"kind": "tts", "base_url": "https://judge.example/v1", "model": "j-2"}),
        (PLIVO, {"kind": "plivo", "account": AUTH_ID, "name": f"Plivo {AUTH_ID}", "model": ""}),
        (FORGE, {"kind": "forge", "provider": "gitlab", "base_url": FORGE_APIS[ProviderCredential.Provider.GITLAB]}),
        ({**FORGE, "base_url": "https://git.example/api/v4"}, {"base_url": "https://git.example/api/v4"}),
    ],
    ids=["llm", "tts", "plivo", "forge", "own forge"],
)
def test_every_kind_is_stored_shown_without_its_secret_changed_and_forgotten(
    tenant: Tenancy, body: dict[str, str], shown: dict[str, str]
) -> None:
    made = ask(tenant, "POST", "/credentials", body)
    assert made.status_code == 201, made.content
    path = f"/credentials/{made.json()['id']}"
    assert made.headers["Location"] == f"/api/v1{path}"
    assert shown.items() <= made.json().items()
    assert ask(tenant, "GET", path).json() == made.json()
    assert secret_of(tenant, made.json()["id"]) == body["secret"]
    renamed = ask(tenant, "PATCH", path, {"name": "Other name"})
    assert (renamed.status_code, renamed.json()["name"]) == (200, "Other name")
    assert secret_of(tenant, made.json()["id"]) == body["secret"]
    assert ask(tenant, "PATCH", path, {"secret": "another-secret-1"}).status_code == 200
    assert secret_of(tenant, made.json()["id"]) == "another-secret-1"
    listed = ask(tenant, "GET", f"/credentials?kind={body['kind']}").json()["items"]
    assert listed[0]["name"] == "Other name"
    assert ask(tenant, "DELETE", path).status_code == 204
    assert ask(tenant, "GET", path).status_code == 404
    with tenant.context():
        events = AuditEvent.objects.filter(object_id=made.json()["id"]).order_by("seq")
        assert [event.action for event in events] == [
            "credential.create",
            "credential.update",
            "credential.update",
            "credential.delete",
        ]
        assert not [event for event in events if "secret" in f"{event.before}{event.after}"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "kind"),
        ({**LLM, "kind": "smtp"}, "kind"),
        ({**LLM, "name": " "}, "name"),
        ({**LLM, "name": "x" * 201}, "name"),
        ({**LLM, "secret": ""}, "secret"),
        ({**LLM, "secret": "two words"}, "secret"),
        ({**LLM, "secret": "sk-\u00fc"}, "secret"),
        ({**LLM, "secret": "line\nbreak"}, "secret"),
        ({**LLM, "secret": "x" * 4001}, "secret"),
        ({**LLM, "secret": None}, "secret"),
        ({**LLM, "model": " "}, "model"),
        ({name: value for name, value in LLM.items() if name != "model"}, "model"),
        ({name: value for name, value in LLM.items() if name != "base_url"}, "base_url"),
        ({**LLM, "account": AUTH_ID}, "account"),
        ({**LLM, "provider": "github"}, "provider"),
        ({**LLM, "api_key": "x"}, "api_key"),
        ({**LLM, "base_url": "ftp://judge.example"}, "base_url"),
        ({**LLM, "base_url": "https://user:pw@judge.example"}, "base_url"),
        ({**LLM, "base_url": "https://judge.example/v1?key=1"}, "base_url"),
        ({**LLM, "base_url": "https://judge.example/v1#x"}, "base_url"),
        ({**LLM, "base_url": "https://jud ge.example"}, "base_url"),
        ({**LLM, "base_url": "https://judge.example\\@x"}, "base_url"),
        ({**LLM, "base_url": "https://[::1"}, "base_url"),
        ({**LLM, "base_url": "https://judge.example:99999"}, "base_url"),
        ({**PLIVO, "account": "MA1"}, "account"),
        ({**PLIVO, "secret": "short"}, "secret"),
        ({**PLIVO, "base_url": "https://evil.example"}, "base_url"),
        ({"kind": "plivo", "secret": "x" * 20}, "account"),
        ({**LLM, "prompt_price": -1}, "prompt_price"),
        ({**LLM, "prompt_price": 0.1234567}, "prompt_price"),
        ({**LLM, "completion_price": "NaN"}, "completion_price"),
        ({**LLM, "completion_price": 1e9}, "completion_price"),
        ({**TTS, "prompt_price": 1}, "prompt_price"),
        ({**FORGE, "provider": "sourceforge"}, "provider"),
        ({**FORGE, "model": "m"}, "model"),
        ({"kind": "forge", "name": "n", "secret": "x"}, "provider"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_field_and_without_the_secret(
    tenant: Tenancy, body: dict[str, Any], field: str
) -> None:
    response = ask(tenant, "POST", "/credentials", body)
    assert field in errors(response)
    for secret in ("sk-secret", "plivo-auth-token", "glpat", "two words", "user:pw"):
        assert secret not in response.content.decode()
    with tenant.context():
        assert ProviderCredential.objects.count() == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest",
        "http://10.0.0.1/v1",
        "http://[fd00::1]/v1",
        "http://0x7f000001/v1",
        "http://2130706433/v1",
        "http://127.0.0.1:8000/v1",
        "http://localhost:8000/v1",
        "https://8.8.8.8:22/v1",
    ],
)
def test_a_private_address_is_refused_when_it_is_entered(
    tenant: Tenancy, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in production: loopback is no place for a tenant's server.
    monkeypatch.setattr(egress, "rules", lambda: ((), False))
    assert list(errors(ask(tenant, "POST", "/credentials", {**LLM, "base_url": url}))) == ["base_url"]
    path = f"/credentials/{tenant.credential.id}"
    assert list(errors(ask(tenant, "PATCH", path, {"base_url": url, "secret": "s"}))) == ["base_url"]


def test_what_an_operator_allows_can_be_entered(tenant: Tenancy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress, "rules", lambda: (("10.0.0.0/8",), False))
    assert ask(tenant, "POST", "/credentials", {**LLM, "base_url": "http://10.1.2.3:8000/v1"}).status_code == 201


def test_a_model_has_prices(tenant: Tenancy) -> None:
    made = ask(tenant, "POST", "/credentials", {**LLM, "prompt_price": 0.15, "completion_price": "0.6"}).json()
    assert (made["prompt_price"], made["completion_price"]) == (0.15, 0.6)
    path = f"/credentials/{made['id']}"
    changed = ask(tenant, "PATCH", path, {"prompt_price": 2, "completion_price": None}).json()
    assert (changed["prompt_price"], changed["completion_price"]) == (2.0, None)
    assert ask(tenant, "GET", path).json() == changed


def test_a_stored_secret_is_never_sent_to_another_server(tenant: Tenancy) -> None:
    path = f"/credentials/{tenant.credential.id}"
    for url in ("http://127.0.0.1:2/v1", "https://127.0.0.1:1/v1", "https://evil.example/v1"):
        assert list(errors(ask(tenant, "PATCH", path, {"base_url": url}))) == ["secret"]
    assert ask(tenant, "GET", path).json()["base_url"] == "http://127.0.0.1:1/v1"
    assert ask(tenant, "PATCH", path, {"base_url": "http://127.0.0.1:1/v2"}).status_code == 200
    assert ask(tenant, "PATCH", path, {"base_url": "https://new.example/v1", "secret": "new"}).status_code == 200
    assert secret_of(tenant, str(tenant.credential.id)) == "new"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"kind": "tts"}, "kind"),
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"name": ""}, "name"),
        ({"secret": ""}, "secret"),
        ({"account": AUTH_ID}, "account"),
    ],
)
def test_a_change_that_cannot_be_used_is_refused(tenant: Tenancy, body: dict[str, Any], field: str) -> None:
    assert list(errors(ask(tenant, "PATCH", f"/credentials/{tenant.credential.id}", body))) == [field]


def test_a_plivo_account_stays_that_account(tenant: Tenancy) -> None:
    made = ask(tenant, "POST", "/credentials", PLIVO).json()
    path = f"/credentials/{made['id']}"
    assert list(errors(ask(tenant, "PATCH", path, {"base_url": "https://evil.example"}))) == ["base_url"]
    assert list(errors(ask(tenant, "PATCH", path, {"secret": "short"}))) == ["secret"]
    again = ask(tenant, "POST", "/credentials", {**PLIVO, "secret": "another-auth-token"})
    assert list(errors(again)) == ["account"]
    assert secret_of(tenant, made["id"]) == PLIVO["secret"]


def test_a_credential_in_use_stays_and_a_retired_version_does_not_hold_it(tenant: Tenancy) -> None:
    path = f"/credentials/{tenant.credential.id}"
    refused = ask(tenant, "DELETE", path)
    assert refused.status_code == 409
    assert "version 1 of alice's policy" in refused.json()["detail"]
    voice = ask(tenant, "POST", "/credentials", TTS).json()
    with tenant.context():
        Agent.objects.update(tts_credential_id=voice["id"])
        PolicyVersion.objects.update(status="retired")
    assert "alice's agent" in ask(tenant, "DELETE", f"/credentials/{voice['id']}").json()["detail"]
    assert ask(tenant, "DELETE", path).status_code == 204
    with tenant.context():
        assert PolicyVersion.objects.get().llm_credential_id is None


def test_another_tenants_credentials_are_not_there(tenant: Tenancy, stranger: Tenancy) -> None:
    assert [item["id"] for item in ask(tenant, "GET", "/credentials").json()["items"]] == [str(tenant.credential.id)]
    for method, body in (("GET", None), ("PATCH", {"name": "mine"}), ("DELETE", None)):
        foreign = ask(tenant, method, f"/credentials/{stranger.credential.id}", body)
        missing = ask(tenant, method, f"/credentials/{uuid7()}", body)
        assert (foreign.status_code, missing.status_code) == (404, 404)
        assert foreign.json()["detail"] == missing.json()["detail"]
    with stranger.context():
        assert ProviderCredential.objects.get().name == "Judge"


def test_editors_see_credentials_and_administrators_change_them(tenant: Tenancy) -> None:
    with tenant.context():
        editor = api_key_create(name="editor", scopes=[Scope.POLICIES_READ.value, Scope.POLICIES_WRITE.value]).key
    assert ask(tenant, "GET", "/credentials", api_key=editor).status_code == 200
    assert ask(tenant, "POST", "/credentials", LLM, api_key=editor).status_code == 403
    assert ask(tenant, "DELETE", f"/credentials/{tenant.credential.id}", api_key=editor).status_code == 403
    assert settings.MIRROR.loopback_upstreams_allowed  # the factories' servers are on it
