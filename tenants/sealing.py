"""Secrets at rest: AES-256-GCM, bound to the tenant, table, column and row that hold them.

Layout of a sealed value: one version byte (1), a 12-byte random nonce, the ciphertext with its 16-byte tag.
The associated data is not stored; it is rebuilt from where the value was found, so a sealed value that was
copied to another row, column or tenant does not open.
"""

from __future__ import annotations

import secrets
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from django.conf import settings

VERSION = 1
NONCE_BYTES = 12
TAG_BYTES = 16


class SealBroken(RuntimeError):
    """A sealed value does not open. The message names where it stands, never what is in it."""

    def __init__(self, field: str, why: str) -> None:
        self.field = field
        super().__init__(f"{field} cannot be unsealed: {why}")


def sealed_field(table: str, column: str, row_id: UUID) -> str:
    """The name of one stored secret: `table.column:row`."""
    return f"{table}.{column}:{row_id}"


def seal(plaintext: str | bytes, *, tenant_id: UUID, field: str) -> bytes:
    """Encrypt `plaintext` (text as UTF-8) for `field` of `tenant_id`; see `sealed_field` for its form."""
    data = plaintext.encode() if isinstance(plaintext, str) else plaintext
    nonce = secrets.token_bytes(NONCE_BYTES)
    return bytes([VERSION]) + nonce + _cipher().encrypt(nonce, data, _associated_data(tenant_id, field))


def unseal(sealed: bytes | memoryview, *, tenant_id: UUID, field: str) -> bytes:
    """Decrypt what `seal` made for the same `tenant_id` and `field`.

    Raises SealBroken when it was sealed with another key, for another place, or was changed.
    """
    data = bytes(sealed)
    if len(data) < 1 + NONCE_BYTES + TAG_BYTES or data[0] != VERSION:
        raise SealBroken(field, "it is not a sealed value of this version of Mirror.")
    nonce, ciphertext = data[1 : 1 + NONCE_BYTES], data[1 + NONCE_BYTES :]
    try:
        return _cipher().decrypt(nonce, ciphertext, _associated_data(tenant_id, field))
    except InvalidTag as error:
        raise SealBroken(
            field, "MIRROR_ENCRYPTION_KEY is not the key it was sealed with, or the stored value was moved or changed."
        ) from error


def unseal_text(sealed: bytes | memoryview, *, tenant_id: UUID, field: str) -> str:
    """`unseal` for a value that was text."""
    return unseal(sealed, tenant_id=tenant_id, field=field).decode()


def _cipher() -> AESGCM:
    return AESGCM(settings.MIRROR_ENCRYPTION_KEY)


def _associated_data(tenant_id: UUID, field: str) -> bytes:
    return b"mirror\x00" + tenant_id.bytes + field.encode()
