"""Secrets at rest: sealed with the tenant's own data key, bound to tenant, table, column and row.

This is for code with the ORM; the cryptography is in `tenants.envelope`. A tenant's first data key is made when it is
first needed.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.conf import settings
from django.db import connection, models

from mirror_saas.ids import uuid7
from tenants.context import tenant_context, tenant_context_current
from tenants.envelope import KEY_BYTES, KeyRing, SealBroken, TenantKeys, sealed_field

__all__ = [
    "SealBroken",
    "SealedField",
    "WrongEncryptionKey",
    "WrongTenant",
    "key_ring",
    "seal",
    "sealed_field",
    "unseal",
    "unseal_text",
]


if TYPE_CHECKING:
    _BinaryField = models.BinaryField[Any, Any]
else:
    _BinaryField = models.BinaryField


class SealedField(_BinaryField):
    """A column of sealed values. `rotate_keys` and the isolation audit find secrets by this type."""

    def deconstruct(self) -> tuple[str, str, Any, dict[str, Any]]:
        # To the database it is a BinaryField, so migrations need not know of it.
        name, _, args, kwargs = super().deconstruct()
        return name, "django.db.models.BinaryField", args, kwargs


class WrongTenant(RuntimeError):
    """A secret of one tenant was asked for in the context of another."""

    def __init__(self) -> None:
        super().__init__("A secret can be sealed and unsealed in its own tenant's context only.")


class WrongEncryptionKey(RuntimeError):
    """The environment's key is not the one that the stored secrets need. Keys are named by their check values."""

    def __init__(self, ring: KeyRing, missing: Collection[str]) -> None:
        given = ", ".join(key.id for key in ring.all)
        super().__init__(
            f"MIRROR_ENCRYPTION_KEY (check value {given}) is not the key that stored secrets were sealed with (check"
            f" value {', '.join(sorted(missing))}). Put that key back, or add it to MIRROR_ENCRYPTION_KEY_PREVIOUS and"
            " run `manage.py rotate_keys`."
        )


def key_ring() -> KeyRing:
    """The keys of the environment."""
    return KeyRing.of(settings.MIRROR_ENCRYPTION_KEY, settings.MIRROR_ENCRYPTION_KEY_PREVIOUS)


def seal(plaintext: str | bytes, *, tenant_id: UUID, field: str) -> bytes:
    """Encrypt `plaintext` (text as UTF-8) for `field` of `tenant_id`; see `sealed_field` for its form.

    Store it in the same transaction: the data key is held against retirement until that ends. Raises SealBroken when
    the tenant's data key does not unwrap, WrongTenant in another tenant's context.
    """
    with _as_tenant(tenant_id):
        key_id, wrapped = _newest_key(tenant_id)
        return TenantKeys(key_ring(), tenant_id, {key_id: wrapped}).seal(plaintext, key_id=key_id, field=field)


def unseal(sealed: bytes | memoryview, *, tenant_id: UUID, field: str) -> bytes:
    """Decrypt what `seal` made for the same `tenant_id` and `field`.

    Raises SealBroken when it was sealed with another key, for another place, or was changed, and WrongTenant in
    another tenant's context.
    """
    with _as_tenant(tenant_id):
        return tenant_keys(tenant_id).unseal(sealed, field=field)


def unseal_text(sealed: bytes | memoryview, *, tenant_id: UUID, field: str) -> str:
    """`unseal` for a value that was text."""
    return unseal(sealed, tenant_id=tenant_id, field=field).decode()


def tenant_keys(tenant_id: UUID) -> TenantKeys:
    """The data keys of the current tenant, retired ones too."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT id, wrapped FROM tenants_datakey WHERE tenant_id = %s", [tenant_id])
        return TenantKeys(key_ring(), tenant_id, {key_id: bytes(wrapped) for key_id, wrapped in cursor.fetchall()})


def data_key_create(tenant_id: UUID, *, number: int) -> bool:
    """Make the current tenant's data key with this number; False when there is one already."""
    ring, key_id = key_ring(), uuid7()
    key_check(ring)
    wrapped = ring.wrap(secrets.token_bytes(KEY_BYTES), tenant_id=tenant_id, key_id=key_id)
    with connection.cursor() as cursor:
        # Whoever makes the same number at the same time is waited for, and then there is one.
        cursor.execute(
            "INSERT INTO tenants_datakey (id, tenant_id, number, wrapped, created_at)"
            " VALUES (%s, %s, %s, %s, statement_timestamp()) ON CONFLICT (tenant_id, number) DO NOTHING",
            [key_id, tenant_id, number, wrapped],
        )
        return bool(cursor.rowcount == 1)


def key_check(ring: KeyRing) -> None:
    """Compare the environment's keys with the check values of those that the stored data keys are wrapped with, and
    note the current one. Raises WrongEncryptionKey when one is missing."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT key_id FROM tenants_keycheck")
        noted = {key_id for (key_id,) in cursor.fetchall()}
        if missing := noted - ring.ids:
            raise WrongEncryptionKey(ring, missing)
        if ring.current.id not in noted:
            cursor.execute(
                "INSERT INTO tenants_keycheck (key_id, created_at) VALUES (%s, statement_timestamp())"
                " ON CONFLICT (key_id) DO NOTHING",
                [ring.current.id],
            )


def _newest_key(tenant_id: UUID) -> tuple[UUID, bytes]:
    for attempt in count():
        with connection.cursor() as cursor:
            # The lock lets others read and use the key, and makes its retirement wait for this transaction.
            cursor.execute(
                "SELECT id, wrapped FROM tenants_datakey WHERE tenant_id = %s AND retired_at IS NULL"
                " ORDER BY number DESC LIMIT 1 FOR KEY SHARE",
                [tenant_id],
            )
            found = cursor.fetchone()
            if found is not None:
                return found[0], bytes(found[1])
            cursor.execute("SELECT coalesce(max(number), 0) FROM tenants_datakey WHERE tenant_id = %s", [tenant_id])
            latest: int = cursor.fetchone()[0]
        # Either there was none yet, or it was retired while this waited for it; then the second look finds its
        # successor.
        if latest == 0 or attempt > 0:
            data_key_create(tenant_id, number=latest + 1)
    raise AssertionError("unreachable")


@contextmanager
def _as_tenant(tenant_id: UUID) -> Iterator[None]:
    current = tenant_context_current()
    if current is None:
        with tenant_context(tenant_id):
            yield
    elif current.tenant_id != tenant_id:
        raise WrongTenant
    else:
        yield
