"""A tenant's Plivo auth tokens: stored sealed, replaced, forgotten, and never shown."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import IntegrityError, transaction

from supervision.models import ProviderCredential
from supervision.selectors.plivo_accounts import plivo_account_list
from supervision.services.credentials import credential_create
from supervision.services.plivo_accounts import MAX_ACCOUNTS, plivo_account_remove, plivo_account_save
from tenants.context import TenantContextMissing
from tenants.sealing import SealBroken, unseal_text
from tests.factories import Tenancy

pytestmark = pytest.mark.django_db

AUTH_ID = "MAXXXXXXXXXXXXXXXXX1"
OTHER_ID = "SAXXXXXXXXXXXXXXXXX2"
TOKEN = "Y2Q2ZDgxZmY5YWRiOTI5YmQ1Njg0MTAxZWIyOTc4"


def stored_token(tenancy: Tenancy, account: ProviderCredential) -> str:
    field = f"supervision_providercredential.api_key_sealed:{account.id}"
    with tenancy.context():
        return unseal_text(account.api_key_sealed, tenant_id=tenancy.id, field=field)


def test_a_token_is_stored_sealed_and_its_list_does_not_hold_it(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context():
        account = plivo_account_save(auth_id=f" {AUTH_ID} ", auth_token=f"{TOKEN}\n", name="Main")
        [listed] = plivo_account_list()
    assert (listed.auth_id, listed.name) == (AUTH_ID, "Main")
    assert TOKEN not in repr(listed) + repr(account.__dict__)
    assert TOKEN.encode() not in bytes(account.api_key_sealed)
    assert stored_token(tenant, account) == TOKEN
    with stranger.context():
        assert plivo_account_list() == []
        with pytest.raises(ProviderCredential.DoesNotExist):
            plivo_account_remove(auth_id=AUTH_ID)
        field = f"supervision_providercredential.api_key_sealed:{account.id}"
        with pytest.raises(SealBroken):
            unseal_text(account.api_key_sealed, tenant_id=stranger.id, field=field)
    with tenant.context():
        assert len(plivo_account_list()) == 1


def test_storing_an_account_again_replaces_its_token_only(tenant: Tenancy, stranger: Tenancy) -> None:
    with stranger.context():
        # The same account in another tenant is a row of its own.
        foreign = plivo_account_save(auth_id=AUTH_ID, auth_token="c" * 40)
    with tenant.context():
        first = plivo_account_save(auth_id=AUTH_ID, auth_token=TOKEN, name="Main")
        second = plivo_account_save(auth_id=AUTH_ID, auth_token="n" * 40)
        other = plivo_account_save(auth_id=OTHER_ID, auth_token="o" * 40)
        assert first.id == second.id != other.id
        assert [account.name for account in plivo_account_list()] == [f"Plivo {OTHER_ID}", "Main"]
    assert stored_token(tenant, second) == "n" * 40
    assert stored_token(stranger, foreign) == "c" * 40


def test_an_account_can_be_forgotten(tenant: Tenancy, stranger: Tenancy) -> None:
    for tenancy in (tenant, stranger):
        with tenancy.context():
            plivo_account_save(auth_id=AUTH_ID, auth_token=TOKEN)
    with tenant.context():
        plivo_account_remove(auth_id=AUTH_ID)
        assert plivo_account_list() == []
        with pytest.raises(ProviderCredential.DoesNotExist):
            plivo_account_remove(auth_id=AUTH_ID)
        # Nothing else is taken for a Plivo account.
        with pytest.raises(ProviderCredential.DoesNotExist):
            plivo_account_remove(auth_id="")
        assert ProviderCredential.objects.count() == 1
    with stranger.context():
        assert len(plivo_account_list()) == 1


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"auth_id": ""}, "auth_id"),
        ({"auth_id": "MAXX"}, "auth_id"),
        ({"auth_id": AUTH_ID.lower()}, "auth_id"),
        ({"auth_id": AUTH_ID + "X"}, "auth_id"),
        ({"auth_id": AUTH_ID + "\x00"}, "auth_id"),
        ({"auth_token": ""}, "auth_token"),
        ({"auth_token": "   "}, "auth_token"),
        ({"auth_token": "short"}, "auth_token"),
        ({"auth_token": "with a blank in it 123456"}, "auth_token"),
        ({"auth_token": "é" * 40}, "auth_token"),
        ({"auth_token": "x" * 201}, "auth_token"),
        ({"auth_token": "x" * 30 + "\r\nX: y"}, "auth_token"),
        ({"name": "n" * 201}, "name"),
    ],
)
def test_what_cannot_be_an_account_is_refused_with_the_fields_name(
    tenant: Tenancy, changed: dict[str, str], field: str
) -> None:
    with tenant.context():
        with pytest.raises(ValidationError) as error:
            plivo_account_save(**{"auth_id": AUTH_ID, "auth_token": TOKEN, **changed})
        assert list(error.value.message_dict) == [field]
        assert (
            changed.get("auth_token", "?").strip() not in str(error.value) or not changed.get("auth_token", "").strip()
        )
        assert plivo_account_list() == []


def test_there_is_a_limit_and_the_database_keeps_accounts_apart(tenant: Tenancy) -> None:
    with tenant.context():
        for number in range(MAX_ACCOUNTS):
            plivo_account_save(auth_id=f"SA{number:018}", auth_token=TOKEN)
        with pytest.raises(ValidationError, match="remove one first"):
            plivo_account_save(auth_id=AUTH_ID, auth_token=TOKEN)
        plivo_account_save(auth_id=f"SA{0:018}", auth_token="r" * 40)
        twice = ProviderCredential(name="x", kind="plivo", base_url="x", account=f"SA{0:018}", api_key_sealed=b"x")
        with pytest.raises(IntegrityError), transaction.atomic():
            twice.save(force_insert=True)


def test_without_a_tenant_nothing_is_stored(db: None) -> None:
    for call in (
        lambda: plivo_account_save(auth_id=AUTH_ID, auth_token=TOKEN),
        lambda: plivo_account_remove(auth_id=AUTH_ID),
        plivo_account_list,
    ):
        with pytest.raises(TenantContextMissing):
            call()


def test_a_judge_still_needs_a_model(tenant: Tenancy) -> None:
    with tenant.context(), pytest.raises(ValidationError) as error:
        credential_create(
            name="Judge", kind=ProviderCredential.Kind.LLM, base_url="https://h.example/v1", model=" ", api_key="k"
        )
    assert list(error.value.message_dict) == ["model"]


# -- the command


def run(*arguments: str, **options: Any) -> str:
    out = io.StringIO()
    call_command("plivo_account", *arguments, stdout=out, **options)
    return out.getvalue()


def test_the_command_reads_the_token_from_standard_input_or_a_file(
    tenant: Tenancy, stranger: Tenancy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{TOKEN}\n"))
    said = run("--tenant", tenant.slug, "--auth-id", AUTH_ID, "--name", "Main")
    file = tmp_path / "token"
    file.write_text("f" * 40 + "\n")
    said += run("--tenant", tenant.slug, "--auth-id", OTHER_ID, "--token-file", str(file))
    listed = run("--tenant", tenant.slug)
    assert TOKEN not in said + listed
    assert [line.split()[0] for line in listed.splitlines()] == [OTHER_ID, AUTH_ID]
    assert run("--tenant", stranger.slug) == ""
    with tenant.context():
        account = ProviderCredential.objects.get(account=AUTH_ID)
    assert stored_token(tenant, account) == TOKEN
    with pytest.raises(CommandError, match="There is no Plivo account"):
        run("--tenant", stranger.slug, "--auth-id", AUTH_ID, "--remove")
    run("--tenant", tenant.slug, "--auth-id", AUTH_ID, "--remove")
    assert AUTH_ID not in run("--tenant", tenant.slug)


def test_the_command_names_the_option_that_is_wrong(
    tenant: Tenancy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("not a token"))
    for arguments, said in (
        (["--tenant", "nobody-at-all"], "--tenant: There is no tenant"),
        (["--tenant", tenant.slug, "--auth-id", "x", "--token-file", __file__], "--auth-id: Give"),
        (["--tenant", tenant.slug, "--auth-id", AUTH_ID], "the auth token: Give"),
        (["--tenant", tenant.slug, "--auth-id", AUTH_ID, "--token-file", str(tmp_path / "no")], "--token-file: "),
        (["--tenant", tenant.slug, "--remove"], "--auth-id is missing"),
    ):
        with pytest.raises(CommandError) as error:
            run(*arguments)
        assert said in str(error.value)
        assert "not a token" not in str(error.value)
