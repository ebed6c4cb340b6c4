"""Secrets at rest in the database: a data key per tenant, made once, used in its own tenant only."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from django.db import connection

from mirror_saas.ids import uuid7
from tenants.context import tenant_context
from tenants.models import DataKey, KeyCheck
from tenants.sealing import (
    SealBroken,
    WrongEncryptionKey,
    WrongTenant,
    key_ring,
    seal,
    sealed_field,
    unseal,
    unseal_text,
)
from tests.factories import Tenancy, tenancy_create, unique

FIELD = sealed_field("supervision_agent", "signing_secret_sealed", uuid7())


@pytest.mark.django_db
def test_what_is_sealed_opens_again_and_looks_different_each_time(tenant: Tenancy) -> None:
    first, second = (seal("s3cret é", tenant_id=tenant.id, field=FIELD) for _ in range(2))
    assert first != second
    assert b"s3cret" not in first
    assert {unseal_text(value, tenant_id=tenant.id, field=FIELD) for value in (first, second)} == {"s3cret é"}


@pytest.mark.django_db
def test_each_tenant_has_a_data_key_of_its_own(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context():
        [ours] = DataKey.objects.all()
    with stranger.context():
        [theirs] = DataKey.objects.all()
    assert ours.id != theirs.id
    ring = key_ring()
    keys = [
        ring.unwrap(bytes(key.wrapped), tenant_id=who.id, key_id=key.id)
        for key, who in ((ours, tenant), (theirs, stranger))
    ]
    assert keys[0] != keys[1]
    assert {len(key) for key in keys} == {32}


@pytest.mark.django_db
def test_a_stranger_can_neither_seal_nor_unseal(tenant: Tenancy, stranger: Tenancy) -> None:
    ours = seal("s3cret", tenant_id=tenant.id, field=FIELD)
    with stranger.context():
        for attempt in (
            lambda: unseal(ours, tenant_id=tenant.id, field=FIELD),
            lambda: seal("planted", tenant_id=tenant.id, field=FIELD),
        ):
            with pytest.raises(WrongTenant):
                attempt()
        with pytest.raises(SealBroken) as error:
            unseal(ours, tenant_id=stranger.id, field=FIELD)
    assert "s3cret" not in str(error.value)


@pytest.mark.django_db
def test_a_strangers_data_key_that_was_copied_over_opens_nothing(tenant: Tenancy, stranger: Tenancy) -> None:
    theirs = seal("s3cret", tenant_id=stranger.id, field=FIELD)
    with stranger.context():
        key = DataKey.objects.get()
    with tenant.context():
        DataKey.objects.all().delete()
        # The id is the primary key of all tenants together, so the copy takes the stranger's away first.
        with stranger.context():
            DataKey.objects.all().delete()
        DataKey.objects.create(id=key.id, number=1, wrapped=key.wrapped)
        with pytest.raises(SealBroken, match="moved or changed"):
            unseal(theirs, tenant_id=tenant.id, field=FIELD)


@pytest.mark.django_db
def test_a_wrong_key_fails_loudly_and_names_the_place_not_the_secret(tenant: Tenancy, settings: Any) -> None:
    sealed = seal("s3cret", tenant_id=tenant.id, field=FIELD)
    settings.MIRROR_ENCRYPTION_KEY = b"x" * 32
    with pytest.raises(SealBroken, match="neither MIRROR_ENCRYPTION_KEY nor among") as error:
        unseal(sealed, tenant_id=tenant.id, field=FIELD)
    assert FIELD in str(error.value)
    assert "s3cret" not in str(error.value)
    with pytest.raises(SealBroken):
        seal("another", tenant_id=tenant.id, field=FIELD)


@pytest.mark.django_db
def test_with_a_wrong_key_a_new_tenants_first_secret_is_refused_and_leaves_nothing(
    tenant: Tenancy, settings: Any
) -> None:
    right = key_ring().current.id
    settings.MIRROR_ENCRYPTION_KEY = b"x" * 32
    with pytest.raises(WrongEncryptionKey, match=right):
        tenancy_create(owner="dora")
    assert list(KeyCheck.objects.values_list("key_id", flat=True)) == [right]


@pytest.mark.django_db
def test_a_key_given_as_previous_opens_and_the_current_one_wraps_new_keys(tenant: Tenancy, settings: Any) -> None:
    sealed = seal("s3cret", tenant_id=tenant.id, field=FIELD)
    settings.MIRROR_ENCRYPTION_KEY_PREVIOUS = (settings.MIRROR_ENCRYPTION_KEY,)
    settings.MIRROR_ENCRYPTION_KEY = b"n" * 32
    assert unseal_text(sealed, tenant_id=tenant.id, field=FIELD) == "s3cret"
    tenancy_create(owner="dora")
    assert set(KeyCheck.objects.values_list("key_id", flat=True)) == key_ring().ids


@pytest.mark.django_db(transaction=True)
def test_first_secrets_at_the_same_time_share_one_data_key() -> None:
    from tenants.services.tenants import tenant_create

    tenant = tenant_create(slug=unique("alices-tenant"), name="Alice")
    barrier = threading.Barrier(4)
    sealed: list[bytes] = []

    def work() -> None:
        try:
            with tenant_context(tenant.id):
                barrier.wait(timeout=30)
                sealed.append(seal("s3cret", tenant_id=tenant.id, field=FIELD))
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert [unseal_text(value, tenant_id=tenant.id, field=FIELD) for value in sealed] == ["s3cret"] * 4
    with tenant_context(tenant.id):
        assert DataKey.objects.count() == 1
