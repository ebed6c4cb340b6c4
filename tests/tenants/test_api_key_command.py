"""`manage.py api_key`, which operators use."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from mirror_saas.ids import uuid7
from tenants.actors import actor_current
from tenants.models import ApiKey, AuditEvent
from tenants.services import api_keys as services
from tenants.services.api_keys import api_key_authenticate
from tests.factories import Tenancy

pytestmark = pytest.mark.django_db


def run(tenancy: Tenancy, *arguments: str) -> str:
    out = StringIO()
    call_command("api_key", "--tenant", tenancy.slug, *arguments, stdout=out)
    return out.getvalue()


def test_a_key_is_made_printed_once_listed_and_revoked(tenant: Tenancy, stranger: Tenancy) -> None:
    made: dict[str, Any] = json.loads(
        run(tenant, "--create", "Nightly", "--scope", "judge", "--scope", "calls:read", "--json")
    )
    principal = api_key_authenticate(key=made["key"], ip="203.0.113.9")
    assert principal is not None
    assert (principal.tenant, principal.scopes) == (tenant.tenant, {"judge", "calls:read"})
    secret = made["key"].split("_", 2)[2]

    listed, told = json.loads(run(tenant, "--json")), run(tenant)
    assert [row["name"] for row in listed] == ["Nightly", "tests"]
    assert listed[0]["created_by"] == actor_current().label
    assert (listed[0]["state"], listed[0]["last_used_ip"]) == ("active", "203.0.113.9")
    assert listed[0]["expires_at"] > listed[0]["created_at"]
    assert "used 20" in told.splitlines()[0]
    assert "never used" in told.splitlines()[1]
    assert secret not in told + json.dumps(listed)
    assert stranger.api_key.split("_")[1] not in told

    for _ in range(2):
        assert run(tenant, "--revoke", made["id"]) == f"{made['id']} is revoked.\n"
    assert api_key_authenticate(key=made["key"]) is None
    assert json.loads(run(tenant, "--json"))[0]["state"] == "revoked"
    with tenant.context():
        events = AuditEvent.objects.filter(object_id=made["id"]).order_by("seq")
        assert [(event.action, event.actor_kind) for event in events] == [
            ("api_key.create", "system"),
            ("api_key.revoke", "system"),
        ]


def test_a_key_without_an_end(tenant: Tenancy) -> None:
    told = run(tenant, "--create", "for good", "--scope", "judge", "--days", "0")
    assert told.startswith("id ")
    assert api_key_authenticate(key=told.split()[-1]) is not None
    with tenant.context():
        assert ApiKey.objects.get(name="for good").expires_at is None


def test_what_cannot_be_used_is_told_by_option(
    tenant: Tenancy, stranger: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stranger.context():
        foreign = str(ApiKey.objects.get().id)
    monkeypatch.setattr(services, "MAX_ACTIVE", 1)
    for arguments, told in (
        (["--create", "", "--scope", "judge"], "--create: Give a name."),
        (["--create", tenant.api_key, "--scope", "judge"], "--create: This looks like a secret"),
        (["--create", "x"], "--scope: Choose at least one"),
        (["--create", "x", "--scope", "everything"], "--scope"),
        (["--create", "x", "--scope", "judge", "--days", "-1"], "--days: Give 0 to"),
        (["--create", "x", "--scope", "judge", "--days", "nan"], "--days: Give 0 to"),
        (["--create", "x", "--scope", "judge", "--days", "1e300"], "--days: Give 0 to"),
        (["--create", "x", "--scope", "judge"], "revoke one"),
        (["--revoke", foreign], "--revoke"),
        (["--revoke", str(uuid7())], "--revoke"),
        (["--revoke", "x"], "--revoke"),
        (["--revoke", foreign, "--create", "x"], "not allowed with"),
    ):
        with pytest.raises(CommandError) as error:
            run(tenant, *arguments)
        assert told in str(error.value), arguments
        assert tenant.api_key not in str(error.value)
    with pytest.raises(CommandError, match="There is no tenant"):
        call_command("api_key", "--tenant", "nobody", stdout=StringIO())
    assert api_key_authenticate(key=stranger.api_key) is not None
