"""Sealed values open where they were put and nowhere else; so do the keys that they are sealed with."""

from __future__ import annotations

import secrets

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mirror_saas.ids import uuid7
from tenants.envelope import KeyRing, KeyUnusable, SealBroken, TenantKeys, sealed_field, wrapped_by

TENANT, STRANGER = uuid7(), uuid7()
ROW = uuid7()
FIELD = sealed_field("supervision_agent", "signing_secret_sealed", ROW)
KEK, OTHER_KEK = secrets.token_bytes(32), secrets.token_bytes(32)
RING = KeyRing.of(KEK)
KEY_ID = uuid7()
WRAPPED = RING.wrap(b"d" * 32, tenant_id=TENANT, key_id=KEY_ID)
KEYS = TenantKeys(RING, TENANT, {KEY_ID: WRAPPED})


def sealed() -> bytes:
    return KEYS.seal("s3cret é", key_id=KEY_ID, field=FIELD)


def test_what_is_sealed_opens_again() -> None:
    assert KEYS.unseal(sealed(), field=FIELD).decode() == "s3cret é"
    assert KEYS.unseal(memoryview(KEYS.seal(b"\x00\xff", key_id=KEY_ID, field=FIELD)), field=FIELD) == b"\x00\xff"
    assert KEYS.unseal(KEYS.seal("", key_id=KEY_ID, field=FIELD), field=FIELD) == b""


def test_sealing_twice_looks_different_and_shows_neither_secret_nor_key() -> None:
    first, second = sealed(), sealed()
    assert first != second
    for shown in (first, WRAPPED):
        assert b"s3cret" not in shown
        assert b"dddd" not in shown
        assert KEK not in shown
    assert KEK.hex() not in repr(RING)


@pytest.mark.parametrize(
    "field",
    [
        sealed_field("supervision_agent", "signing_secret_sealed", uuid7()),
        sealed_field("supervision_agent", "headers_sealed", ROW),
        sealed_field("supervision_providercredential", "signing_secret_sealed", ROW),
    ],
    ids=["row", "column", "table"],
)
def test_a_value_that_was_copied_to_another_place_does_not_open(field: str) -> None:
    with pytest.raises(SealBroken, match="moved or changed"):
        KEYS.unseal(sealed(), field=field)


def test_a_value_that_was_copied_to_a_stranger_does_not_open_not_even_with_its_key() -> None:
    own = TenantKeys(RING, STRANGER, {})
    with pytest.raises(SealBroken, match="not among the tenant's"):
        own.unseal(sealed(), field=FIELD)
    stolen = TenantKeys(RING, STRANGER, {KEY_ID: WRAPPED})
    with pytest.raises(SealBroken, match="moved or changed"):
        stolen.unseal(sealed(), field=FIELD)


def test_a_wrapped_key_opens_for_its_own_tenant_and_row_only() -> None:
    assert RING.unwrap(WRAPPED, tenant_id=TENANT, key_id=KEY_ID) == b"d" * 32
    for tenant_id, key_id in ((STRANGER, KEY_ID), (TENANT, uuid7())):
        with pytest.raises(KeyUnusable, match="moved or changed"):
            RING.unwrap(WRAPPED, tenant_id=tenant_id, key_id=key_id)


def test_the_same_key_for_two_tenants_does_not_make_their_values_interchangeable() -> None:
    # Even if somebody could bring one data key into two tenants, a value still names its tenant.
    theirs = TenantKeys(RING, STRANGER, {KEY_ID: RING.wrap(b"d" * 32, tenant_id=STRANGER, key_id=KEY_ID)})
    with pytest.raises(SealBroken):
        theirs.unseal(sealed(), field=FIELD)


def test_every_changed_byte_is_noticed() -> None:
    value = sealed()
    for position in range(len(value)):
        changed = bytearray(value)
        changed[position] ^= 1
        with pytest.raises(SealBroken):
            KEYS.unseal(bytes(changed), field=FIELD)
    for position in range(len(WRAPPED)):
        changed = bytearray(WRAPPED)
        changed[position] ^= 1
        with pytest.raises(KeyUnusable):
            RING.unwrap(bytes(changed), tenant_id=TENANT, key_id=KEY_ID)


def test_every_shortened_value_is_refused() -> None:
    value = sealed()
    for length in range(len(value)):
        with pytest.raises(SealBroken):
            KEYS.unseal(value[:length], field=FIELD)
    for length in range(len(WRAPPED)):
        with pytest.raises(KeyUnusable):
            RING.unwrap(WRAPPED[:length], tenant_id=TENANT, key_id=KEY_ID)


def test_a_wrong_key_names_the_place_and_no_secret() -> None:
    wrong = TenantKeys(KeyRing.of(OTHER_KEK), TENANT, {KEY_ID: WRAPPED})
    with pytest.raises(SealBroken, match="neither MIRROR_ENCRYPTION_KEY nor among") as error:
        wrong.unseal(sealed(), field=FIELD)
    told = str(error.value)
    assert FIELD in told
    assert RING.current.id in told
    for secret in ("s3cret", KEK.hex(), OTHER_KEK.hex(), "dddd"):
        assert secret not in told


def test_a_forged_key_id_does_not_make_a_wrong_key_right() -> None:
    forged = WRAPPED[:1] + bytes.fromhex(KeyRing.of(OTHER_KEK).current.id) + WRAPPED[9:]
    with pytest.raises(KeyUnusable, match="moved or changed"):
        KeyRing.of(OTHER_KEK).unwrap(forged, tenant_id=TENANT, key_id=KEY_ID)


def test_a_previous_key_still_unwraps_and_only_the_current_one_wraps() -> None:
    rotated = KeyRing.of(OTHER_KEK, [KEK])
    assert rotated.unwrap(WRAPPED, tenant_id=TENANT, key_id=KEY_ID) == b"d" * 32
    assert wrapped_by(rotated.wrap(b"d" * 32, tenant_id=TENANT, key_id=KEY_ID)) == rotated.current.id
    assert rotated.current.id != RING.current.id
    assert KeyRing.of(KEK, [KEK, OTHER_KEK]).ids == rotated.ids


# -- values of before there were data keys ------------------------------------------------------------------------


def legacy_sealed(kek: bytes) -> bytes:
    nonce = secrets.token_bytes(12)
    return b"\x01" + nonce + AESGCM(kek).encrypt(nonce, b"old", b"mirror\x00" + TENANT.bytes + FIELD.encode())


def test_a_legacy_value_opens_in_its_place_also_with_a_previous_key() -> None:
    old = legacy_sealed(KEK)
    for ring in (RING, KeyRing.of(OTHER_KEK, [KEK])):
        assert TenantKeys(ring, TENANT, {}).unseal(old, field=FIELD) == b"old"
        for tenant_id, field in ((STRANGER, FIELD), (TENANT, FIELD.replace("signing_secret", "headers"))):
            with pytest.raises(SealBroken):
                TenantKeys(ring, tenant_id, {}).unseal(old, field=field)
    with pytest.raises(SealBroken, match="MIRROR_ENCRYPTION_KEY is not the key"):
        TenantKeys(KeyRing.of(OTHER_KEK), TENANT, {}).unseal(old, field=FIELD)


# -- transient values ---------------------------------------------------------------------------------------------


def test_a_transient_value_opens_for_its_tenant_and_field_only() -> None:
    token = RING.transient_seal(b"from, to", tenant_id=TENANT, field="stream.call_token")
    rotated = KeyRing.of(OTHER_KEK, [KEK])
    for ring in (RING, rotated):
        assert ring.transient_open(token, tenant_id=TENANT, field="stream.call_token") == b"from, to"
    for ring, tenant_id, field in (
        (RING, STRANGER, "stream.call_token"),
        (RING, TENANT, "stream.other"),
        (KeyRing.of(OTHER_KEK), TENANT, "stream.call_token"),
    ):
        with pytest.raises(SealBroken):
            ring.transient_open(token, tenant_id=tenant_id, field=field)


def test_stored_and_transient_values_cannot_stand_in_for_each_other() -> None:
    token = RING.transient_seal(b"x", tenant_id=TENANT, field=FIELD)
    with pytest.raises(SealBroken, match="not a sealed value of this kind"):
        KEYS.unseal(token, field=FIELD)
    with pytest.raises(SealBroken, match="not a sealed value of this kind"):
        RING.transient_open(sealed(), tenant_id=TENANT, field=FIELD)
    for renamed in (b"\x02" + token[1:], b"\x01" + token[1:]):
        with pytest.raises(SealBroken):
            KEYS.unseal(renamed, field=FIELD)
