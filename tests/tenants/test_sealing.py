"""Sealed secrets open where they were put, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest

from mirror_saas.ids import uuid7
from tenants.sealing import SealBroken, seal, sealed_field, unseal, unseal_text

TENANT = uuid7()
FIELD = sealed_field("supervision_agent", "signing_secret_sealed", uuid7())


def test_what_is_sealed_opens_again() -> None:
    assert unseal_text(seal("s3cret é", tenant_id=TENANT, field=FIELD), tenant_id=TENANT, field=FIELD) == "s3cret é"
    assert (
        unseal(memoryview(seal(b"\x00\xff", tenant_id=TENANT, field=FIELD)), tenant_id=TENANT, field=FIELD)
        == b"\x00\xff"
    )


def test_sealing_twice_looks_different_and_shows_nothing() -> None:
    first, second = (seal("s3cret", tenant_id=TENANT, field=FIELD) for _ in range(2))
    assert first != second
    assert b"s3cret" not in first


def test_it_does_not_open_for_another_tenant_row_or_column() -> None:
    sealed = seal("s3cret", tenant_id=TENANT, field=FIELD)
    other_row = sealed_field("supervision_agent", "signing_secret_sealed", uuid7())
    other_column = FIELD.replace("signing_secret_sealed", "headers_sealed")
    for tenant_id, field in ((uuid7(), FIELD), (TENANT, other_row), (TENANT, other_column)):
        with pytest.raises(SealBroken):
            unseal(sealed, tenant_id=tenant_id, field=field)


@pytest.mark.parametrize("position", [0, 1, 12, 13, -1])
def test_a_changed_byte_is_noticed(position: int) -> None:
    sealed = bytearray(seal("s3cret", tenant_id=TENANT, field=FIELD))
    sealed[position] ^= 1
    with pytest.raises(SealBroken):
        unseal(bytes(sealed), tenant_id=TENANT, field=FIELD)


@pytest.mark.parametrize("sealed", [b"", b"\x01", b"\x01" + b"x" * 27])
def test_what_is_too_short_was_never_sealed(sealed: bytes) -> None:
    with pytest.raises(SealBroken, match="not a sealed value"):
        unseal(sealed, tenant_id=TENANT, field=FIELD)


def test_a_wrong_key_fails_loudly_and_names_the_place_not_the_secret(settings: Any) -> None:
    sealed = seal("s3cret", tenant_id=TENANT, field=FIELD)
    settings.MIRROR_ENCRYPTION_KEY = b"x" * 32
    with pytest.raises(SealBroken, match="MIRROR_ENCRYPTION_KEY is not the key") as error:
        unseal(sealed, tenant_id=TENANT, field=FIELD)
    assert FIELD in str(error.value)
    assert "s3cret" not in str(error.value)
