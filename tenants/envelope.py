"""Envelope encryption: AES-256-GCM with a data key per tenant, itself wrapped by a key from the environment.

Nothing here asks the database or reads settings; `tenants.sealing` does that for code that uses the ORM, and
`supervision.stream.directory` hands in what it read itself.

| what | layout |
|---|---|
| sealed value | version (1 byte: 2), data key's id (16), nonce (12), ciphertext with tag (16) |
| wrapped data key | version (1 byte: 1), id of the key-encryption key (8), nonce (12), ciphertext with tag (48) |
| transient value | version (1 byte: 3), nonce (12), ciphertext with tag (16) |
| sealed for a person | version (1 byte: 4), id of the key-encryption key (8), nonce (12), ciphertext with tag (16) |
| sealed without data key, as Mirror once did | version (1 byte: 1), nonce (12), ciphertext with tag (16) |

Associated data is never stored. It is rebuilt from where a value was found, so what was copied to another row, column,
table or tenant does not open. Nonces are random: 2**32 values under one key are safe (NIST SP 800-38D, section 8.3).
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16

_LEGACY: Final = 1
_SEALED: Final = 2
_TRANSIENT: Final = 3
_PERSON: Final = 4
_WRAPPED: Final = 1
_KEK_ID_BYTES: Final = 8
_SMALLEST: Final = {
    _LEGACY: 1 + NONCE_BYTES + TAG_BYTES,
    _SEALED: 1 + 16 + NONCE_BYTES + TAG_BYTES,
    _TRANSIENT: 1 + NONCE_BYTES + TAG_BYTES,
    _PERSON: 1 + _KEK_ID_BYTES + NONCE_BYTES + TAG_BYTES,
}
_WRAPPED_BYTES: Final = 1 + _KEK_ID_BYTES + NONCE_BYTES + KEY_BYTES + TAG_BYTES

_WRONG = "MIRROR_ENCRYPTION_KEY is not the key it was sealed with, or the stored value was moved or changed."


class SealBroken(RuntimeError):
    """A sealed value does not open. The message names where it stands, never what is in it."""

    def __init__(self, field: str, why: str) -> None:
        self.field = field
        super().__init__(f"{field} cannot be unsealed: {why}")


class KeyUnusable(RuntimeError):
    """A data key does not unwrap. The message names keys by their ids, which say nothing of them."""


def sealed_field(table: str, column: str, row_id: UUID) -> str:
    """The name of one stored secret: `table.column:row`."""
    return f"{table}.{column}:{row_id}"


@dataclass(frozen=True, slots=True)
class KeyEncryptionKey:
    """A key from the environment: it wraps data keys and encrypts nothing else that is kept."""

    secret: bytes = field(repr=False)

    @property
    def id(self) -> str:
        """16 hex digits that tell this key from others and serve as its check value (first 8 bytes of an HMAC)."""
        return hmac.digest(self.secret, b"mirror key id", "sha256")[:_KEK_ID_BYTES].hex()


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The key that wraps, and the ones before it, which still unwrap."""

    current: KeyEncryptionKey
    previous: tuple[KeyEncryptionKey, ...] = ()

    @classmethod
    def of(cls, current: bytes, previous: Iterable[bytes] = ()) -> KeyRing:
        """A ring of raw keys of 32 bytes each."""
        return cls(KeyEncryptionKey(current), tuple(KeyEncryptionKey(key) for key in previous if key != current))

    @property
    def all(self) -> tuple[KeyEncryptionKey, ...]:
        """Every key that opens something, the current one first."""
        return (self.current, *self.previous)

    @property
    def ids(self) -> frozenset[str]:
        return frozenset(key.id for key in self.all)

    def wrap(self, data_key: bytes, *, tenant_id: UUID, key_id: UUID) -> bytes:
        """`data_key` under the current key, bound to its row and tenant."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        ciphertext = AESGCM(self.current.secret).encrypt(nonce, data_key, _wrapping_data(tenant_id, key_id))
        return bytes([_WRAPPED]) + bytes.fromhex(self.current.id) + nonce + ciphertext

    def unwrap(self, wrapped: bytes, *, tenant_id: UUID, key_id: UUID) -> bytes:
        """The data key in `wrapped`. Raises KeyUnusable."""
        kek_id = wrapped_by(wrapped)
        if kek_id is None:
            raise KeyUnusable(f"its data key {key_id} is not a wrapped key of this version of Mirror.")
        kek = next((key for key in self.all if key.id == kek_id), None)
        if kek is None:
            raise KeyUnusable(
                f"its data key was wrapped with the key {kek_id}, which is neither MIRROR_ENCRYPTION_KEY nor among"
                " MIRROR_ENCRYPTION_KEY_PREVIOUS."
            )
        head = 1 + _KEK_ID_BYTES
        nonce, ciphertext = wrapped[head : head + NONCE_BYTES], wrapped[head + NONCE_BYTES :]
        try:
            return AESGCM(kek.secret).decrypt(nonce, ciphertext, _wrapping_data(tenant_id, key_id))
        except InvalidTag as error:
            raise KeyUnusable(f"its data key {key_id} was moved or changed.") from error

    def legacy_open(self, sealed: bytes, *, tenant_id: UUID, field: str) -> bytes:
        """A value of before there were data keys. Raises SealBroken."""
        nonce, ciphertext = sealed[1 : 1 + NONCE_BYTES], sealed[1 + NONCE_BYTES :]
        for kek in self.all:
            try:
                return AESGCM(kek.secret).decrypt(nonce, ciphertext, b"mirror\x00" + tenant_id.bytes + field.encode())
            except InvalidTag:
                continue
        raise SealBroken(field, _WRONG)

    def transient_seal(self, plaintext: bytes, *, tenant_id: UUID, field: str) -> bytes:
        """Encrypt what is never stored and lives for minutes, such as a token in a URL: it needs no data key."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        cipher = _transient_cipher(self.current, tenant_id)
        return bytes([_TRANSIENT]) + nonce + cipher.encrypt(nonce, plaintext, field.encode())

    def transient_open(self, sealed: bytes, *, tenant_id: UUID, field: str) -> bytes:
        """What `transient_seal` was given. Raises SealBroken."""
        version = _version(sealed, field)
        if version == _LEGACY:
            # A call that was answered before an upgrade may reach its socket after it.
            return self.legacy_open(sealed, tenant_id=tenant_id, field=field)
        if version != _TRANSIENT:
            raise SealBroken(field, "it is not a sealed value of this kind.")
        nonce, ciphertext = sealed[1 : 1 + NONCE_BYTES], sealed[1 + NONCE_BYTES :]
        for kek in self.all:
            try:
                return _transient_cipher(kek, tenant_id).decrypt(nonce, ciphertext, field.encode())
            except InvalidTag:
                continue
        raise SealBroken(field, _WRONG)

    def person_seal(self, plaintext: bytes, *, field: str) -> bytes:
        """Encrypt a secret of a person, who belongs to no tenant and so has no data key: with a key of its own that is
        derived from the current one."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return self.person_head + nonce + _person_cipher(self.current).encrypt(nonce, plaintext, field.encode())

    def person_open(self, sealed: bytes, *, field: str) -> bytes:
        """What `person_seal` was given for the same `field`. Raises SealBroken."""
        if _version(sealed, field) != _PERSON:
            raise SealBroken(field, "it is not a sealed value of this kind.")
        head = 1 + _KEK_ID_BYTES
        kek_id = sealed[1:head].hex()
        kek = next((key for key in self.all if key.id == kek_id), None)
        if kek is None:
            raise SealBroken(
                field,
                f"it was sealed with the key {kek_id}, which is neither MIRROR_ENCRYPTION_KEY nor among"
                " MIRROR_ENCRYPTION_KEY_PREVIOUS.",
            )
        nonce, ciphertext = sealed[head : head + NONCE_BYTES], sealed[head + NONCE_BYTES :]
        try:
            return _person_cipher(kek).decrypt(nonce, ciphertext, field.encode())
        except InvalidTag as error:
            raise SealBroken(field, "the stored value was moved or changed.") from error

    @property
    def person_head(self) -> bytes:
        """How every value that `person_seal` makes with the current key begins (9 bytes)."""
        return bytes([_PERSON]) + bytes.fromhex(self.current.id)


def wrapped_by(wrapped: bytes) -> str | None:
    """The id of the key-encryption key that a data key is wrapped with; None when it is no wrapped key."""
    if len(wrapped) != _WRAPPED_BYTES or wrapped[0] != _WRAPPED:
        return None
    return wrapped[1 : 1 + _KEK_ID_BYTES].hex()


class TenantKeys:
    """The data keys of one tenant, unwrapped when they are first needed."""

    def __init__(self, ring: KeyRing, tenant_id: UUID, wrapped: Mapping[UUID, bytes]) -> None:
        """`wrapped` maps the ids of the tenant's data keys to their wrapped form."""
        self._ring, self._tenant_id, self._wrapped = ring, tenant_id, wrapped
        self._opened: dict[UUID, AESGCM] = {}

    def seal(self, plaintext: str | bytes, *, key_id: UUID, field: str) -> bytes:
        """Encrypt `plaintext` (text as UTF-8) for `field` with the data key `key_id`. Raises SealBroken."""
        data = plaintext.encode() if isinstance(plaintext, str) else plaintext
        nonce = secrets.token_bytes(NONCE_BYTES)
        ciphertext = self._cipher(key_id, field).encrypt(nonce, data, self._associated(key_id, field))
        return sealed_head(key_id) + nonce + ciphertext

    def unseal(self, sealed: bytes | memoryview, *, field: str) -> bytes:
        """Decrypt what was sealed for the same tenant and `field`, also before there were data keys.

        Raises SealBroken when a key is missing or wrong, or the value is another place's or was changed.
        """
        data = bytes(sealed)
        version = _version(data, field)
        if version == _LEGACY:
            return self._ring.legacy_open(data, tenant_id=self._tenant_id, field=field)
        if version != _SEALED:
            raise SealBroken(field, "it is not a sealed value of this kind.")
        key_id = UUID(bytes=data[1:17])
        nonce, ciphertext = data[17 : 17 + NONCE_BYTES], data[17 + NONCE_BYTES :]
        try:
            return self._cipher(key_id, field).decrypt(nonce, ciphertext, self._associated(key_id, field))
        except InvalidTag as error:
            raise SealBroken(field, "the stored value was moved or changed.") from error

    def _cipher(self, key_id: UUID, field: str) -> AESGCM:
        cipher = self._opened.get(key_id)
        if cipher is None:
            wrapped = self._wrapped.get(key_id)
            if wrapped is None:
                raise SealBroken(field, "its data key is not among the tenant's.")
            try:
                key = self._ring.unwrap(bytes(wrapped), tenant_id=self._tenant_id, key_id=key_id)
            except KeyUnusable as error:
                raise SealBroken(field, str(error)) from error
            cipher = self._opened[key_id] = AESGCM(key)
        return cipher

    def _associated(self, key_id: UUID, field: str) -> bytes:
        return b"mirror sealed value\x00" + self._tenant_id.bytes + key_id.bytes + field.encode()


def sealed_head(key_id: UUID) -> bytes:
    """How every value that is sealed with this data key begins (17 bytes)."""
    return bytes([_SEALED]) + key_id.bytes


def sealed_is_legacy(sealed: bytes | memoryview) -> bool:
    """True for a value of before there were data keys."""
    return bytes(sealed[:1]) == bytes([_LEGACY])


def _version(sealed: bytes, field: str) -> int:
    version = sealed[0] if sealed else 0
    if len(sealed) < _SMALLEST.get(version, len(sealed) + 1):
        raise SealBroken(field, "it is not a sealed value of this version of Mirror.")
    return version


def _wrapping_data(tenant_id: UUID, key_id: UUID) -> bytes:
    return b"mirror data key\x00" + tenant_id.bytes + key_id.bytes


def _transient_cipher(kek: KeyEncryptionKey, tenant_id: UUID) -> AESGCM:
    key = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=b"mirror transient\x00" + tenant_id.bytes)
    return AESGCM(key.derive(kek.secret))


def _person_cipher(kek: KeyEncryptionKey) -> AESGCM:
    key = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=b"mirror person")
    return AESGCM(key.derive(kek.secret))
