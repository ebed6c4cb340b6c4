"""`manage.py export_tenant`: all of a tenant, nothing of another one, and no secret."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command

from tenants.managers import TenantModel
from tenants.models import AuditEvent
from tests.factories import Tenancy, call_create, tenancy_create

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def alice(transactional_db: None) -> Tenancy:
    tenancy = tenancy_create(owner="alice")
    call_create(tenancy, customer_text="What alice's caller said")
    return tenancy


@pytest.fixture
def charlie(transactional_db: None) -> Tenancy:
    tenancy = tenancy_create(owner="charlie")
    call_create(tenancy, customer_text="charlie's secret question")
    return tenancy


def export(tenancy: Tenancy, **options: Any) -> str:
    out = io.StringIO()
    call_command("export_tenant", tenant=tenancy.slug, stdout=out, **options)
    return out.getvalue()


def test_every_row_of_the_tenant_is_a_line_and_nobody_elses(alice: Tenancy, charlie: Tenancy) -> None:
    text = export(alice)
    lines = [json.loads(line) for line in text.splitlines()]
    found: dict[str, set[str]] = {}
    for line in lines:
        found.setdefault(line["table"], set()).add(line["row"]["id"])
    with alice.context():
        for model in apps.get_models():
            if issubclass(model, TenantModel) and model.objects.exists():
                ids = {str(row_id) for row_id in model.objects.values_list("id", flat=True)}
                assert found[model._meta.db_table] == ids, model
    assert found["tenants_tenant"] == {str(alice.id)}
    assert "What alice's caller said" in text
    assert "charlie" not in text
    assert str(charlie.id) not in text


def test_no_secret_is_in_it_and_the_log_knows(alice: Tenancy) -> None:
    text = export(alice)
    for secret in (alice.api_key, alice.stream_key, alice.signing_secret, "llm-secret"):
        assert secret not in text
    columns = {name for line in text.splitlines() for name in json.loads(line)["row"]}
    assert not [name for name in columns if name.endswith(("_sealed", "_hash")) or name in ("wrapped", "search")]
    with alice.context():
        assert AuditEvent.objects.filter(action="tenant.export").count() == 1


def test_more_rows_than_a_batch(alice: Tenancy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenants.services.export._BATCH", 2)
    lines = [json.loads(line)["row"]["id"] for line in export(alice).splitlines()]
    assert len(lines) == len(set(lines)) > 20


def test_a_file_is_new_and_its_owners_only(alice: Tenancy, tmp_path: Path) -> None:
    path = tmp_path / "alice.jsonl"
    assert export(alice, output=str(path)) == ""
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text().splitlines()[0])["table"] == "tenants_tenant"
    with pytest.raises(CommandError, match=r"--output: .* cannot be written"):
        export(alice, output=str(path))


def test_an_unknown_tenant_is_named(transactional_db: None) -> None:
    with pytest.raises(CommandError, match="--tenant: "):
        call_command("export_tenant", tenant="nobody-has-this")
