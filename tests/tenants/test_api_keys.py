"""API keys: shown once, kept hashed, refused for good once they are revoked or expired."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from tenants.models import ApiKey
from tenants.services.api_keys import api_key_authenticate, api_key_create, api_key_revoke
from tests.factories import Tenancy

pytestmark = pytest.mark.django_db


def test_a_key_speaks_for_its_tenant_with_its_scopes(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context():
        made = api_key_create(name="reader", scopes=["calls:read", "judge", "judge"])
    principal = api_key_authenticate(key=made.key)
    assert principal is not None
    assert (principal.tenant, principal.name, principal.scopes) == (
        tenant.tenant,
        "reader",
        frozenset({"calls:read", "judge"}),
    )


def test_the_secret_is_not_stored(tenant: Tenancy) -> None:
    secret = tenant.api_key.split("_", 2)[2]
    with tenant.context():
        stored = ApiKey.objects.get()
    assert secret not in str(vars(stored))
    assert len(bytes(stored.secret_hash)) == 32
    assert tenant.api_key not in repr(tenant)


def test_a_wrong_secret_with_a_right_prefix_is_refused(tenant: Tenancy) -> None:
    last = "A" if tenant.api_key[-1] != "A" else "B"
    assert api_key_authenticate(key=tenant.api_key[:-1] + last) is None
    assert api_key_authenticate(key=tenant.api_key) is not None


def test_revoked_and_expired_keys_are_refused(tenant: Tenancy) -> None:
    now = timezone.now()
    with tenant.context():
        revoked = api_key_create(name="revoked", scopes=["judge"])
        api_key_revoke(api_key_id=revoked.api_key.id)
        expired = api_key_create(name="expired", scopes=["judge"], expires_at=now - timedelta(seconds=1))
        running = api_key_create(name="running", scopes=["judge"], expires_at=now + timedelta(hours=1))
    assert api_key_authenticate(key=revoked.key) is None
    assert api_key_authenticate(key=expired.key) is None
    assert api_key_authenticate(key=running.key) is not None


def test_revoking_a_strangers_key_finds_none(tenant: Tenancy, stranger: Tenancy) -> None:
    with stranger.context():
        foreign = ApiKey.objects.get().id
    with tenant.context(), pytest.raises(ApiKey.DoesNotExist):
        api_key_revoke(api_key_id=foreign)
    assert api_key_authenticate(key=stranger.api_key) is not None


def test_last_use_is_recorded_but_not_with_every_request(tenant: Tenancy) -> None:
    def last_used() -> object:
        with tenant.context():
            return ApiKey.objects.get().last_used_at

    assert last_used() is None
    api_key_authenticate(key=tenant.api_key)
    first = last_used()
    assert first is not None
    api_key_authenticate(key=tenant.api_key)
    assert last_used() == first
    with tenant.context():
        ApiKey.objects.update(last_used_at=timezone.now() - timedelta(minutes=2))
    api_key_authenticate(key=tenant.api_key)
    assert last_used() > first  # type: ignore[operator]


@pytest.mark.parametrize("scopes", [[], ["calls:read", "everything"]])
def test_scopes_that_do_not_exist_are_named(tenant: Tenancy, scopes: list[str]) -> None:
    with tenant.context(), pytest.raises(ValidationError) as error:
        api_key_create(name="x", scopes=scopes)
    assert "calls:read" in error.value.message_dict["scopes"][0]
