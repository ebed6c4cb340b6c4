"""Secrets go in and never come out: not by a route, a page, a document of the API, or an object's text."""

from __future__ import annotations

import base64

import pytest
from django.apps import apps
from django.test import Client
from django.utils import timezone

from mirror_saas.api import api
from supervision.models import Agent, ProviderCredential, StreamKey, WebhookEndpoint
from supervision.services.agents import agent_headers_update, agent_stream_key_create
from supervision.services.credentials import credential_create
from supervision.services.plivo_accounts import plivo_account_save
from supervision.services.webhooks import webhook_create, webhook_secret_rotate, webhook_secrets
from tenants.models import ApiKey, DataKey
from tenants.sealing import SealedField
from tests.factories import PASSWORD, Tenancy, call_create
from tests.isolation.sweep import API, Door, question, signed_in, undone, with_key

pytestmark = pytest.mark.django_db

CANARY = "canary-that-nobody-may-see"


@pytest.fixture
def secretive(tenant: Tenancy) -> Tenancy:
    """A tenant with every kind of secret; each has the canary in it."""
    with tenant.context():
        agent_headers_update(agent=tenant.agent, headers={"Authorization": f"Bearer {CANARY}-1"})
        agent_stream_key_create(agent_id=tenant.agent.id, key=f"sk_{CANARY}-2")
        for kind in (ProviderCredential.Kind.LLM, ProviderCredential.Kind.TTS):
            credential_create(name="n", kind=kind, base_url="https://x.example", model="m", api_key=f"{CANARY}-3")
        plivo_account_save(auth_id="MA" + "X" * 18, auth_token=f"{CANARY}-4")
        made = webhook_create(url="http://127.0.0.1:1/x", event_types=["call.ended"]).endpoint
        webhook_secret_rotate(webhook_id=made.id)
    call_create(tenant)
    return tenant


def forbidden(tenancy: Tenancy) -> list[str]:
    """The secrets, and what they are stored as, in every spelling that an answer could have."""
    with tenancy.context():
        stored = [
            bytes(value)
            for model, columns in (
                (Agent, ("signing_secret_sealed", "headers_sealed")),
                (ProviderCredential, ("api_key_sealed",)),
                (StreamKey, ("key_hash",)),
                (ApiKey, ("secret_hash",)),
                (WebhookEndpoint, ("secret_sealed", "previous_secret_sealed")),
                (DataKey, ("wrapped",)),
            )
            for row in model._default_manager.values_list(*columns)
            for value in row
            if value is not None
        ]
        signing = [
            secret
            for endpoint in WebhookEndpoint.objects.all()
            for secret in webhook_secrets(endpoint=endpoint, now=timezone.now())
        ]
    spelled = [text for value in stored for text in (value.hex(), base64.b64encode(value).decode(), repr(value)[2:-1])]
    return [
        CANARY,
        tenancy.signing_secret,
        tenancy.stream_key,
        tenancy.api_key.split("_", 2)[2],
        "llm-secret",
        *signing,
        *spelled,
    ]


@pytest.mark.parametrize("door", API, ids=lambda door: f"{door.method} {door.path}")
def test_no_operation_shows_a_stored_secret_to_its_own_tenants_owner(
    secretive: Tenancy, stranger: Tenancy, door: Door
) -> None:
    secrets = [*forbidden(secretive), *forbidden(stranger)]
    for client in (with_key(secretive.api_key), signed_in(secretive.users["alice"])):
        with undone():
            response = question(door, secretive).ask(client)
            assert response.status_code in door.answers
            body = response.getvalue().decode()
        assert [secret for secret in secrets if secret in body] == []


def test_no_page_shows_a_secret(secretive: Tenancy) -> None:
    with secretive.context():
        from supervision.models import Call

        call = Call.objects.get()
    client = Client()
    assert client.login(username=secretive.users["alice"].email, password=PASSWORD)
    for path in ("/calls", f"/calls/{call.id}"):
        response = client.get(path)
        assert response.status_code == 200
        body = response.content.decode()
        assert [secret for secret in forbidden(secretive) if secret in body] == []


def test_no_answer_of_the_api_has_a_field_for_a_stored_secret() -> None:
    columns = {
        column.name
        for model in apps.get_models()
        for column in model._meta.concrete_fields
        if isinstance(column, SealedField) or column.name in ("secret_hash", "key_hash", "wrapped", "password")
    }
    assert {"signing_secret_sealed", "api_key_sealed", "headers_sealed"} <= columns
    schemas = api.get_openapi_schema()["components"]["schemas"]
    shown = {name for schema in schemas.values() for name in schema.get("properties", {})}
    assert shown & columns == set()


def test_no_object_shows_a_secret_as_text(secretive: Tenancy) -> None:
    with secretive.context():
        rows = [
            *Agent.objects.all(),
            *ProviderCredential.objects.all(),
            *StreamKey.objects.all(),
            *DataKey.objects.all(),
            *WebhookEndpoint.objects.all(),
        ]
        texts = "".join(f"{row!r} {row} {row.__dict__['_state']!r}" for row in rows)
    assert [secret for secret in forbidden(secretive) if secret in texts] == []
