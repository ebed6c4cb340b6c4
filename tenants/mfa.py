"""What allauth's second factor takes from us: how its secrets are kept, and what it calls itself."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from allauth.mfa.adapter import DefaultMFAAdapter

from tenants.envelope import KeyRing, SealBroken
from tenants.sealing import key_ring

FIELD: Final = "mfa_authenticator.data"


def text_seal(text: str, *, ring: KeyRing | None = None, field: str = FIELD) -> str:
    """`text` under the environment's key (KeyRing.person_seal), as base64url for a JSON column."""
    return base64.urlsafe_b64encode((ring or key_ring()).person_seal(text.encode(), field=field)).decode()


def text_open(sealed: str, *, ring: KeyRing | None = None, field: str = FIELD) -> str:
    """What `text_seal` was given for the same `field`. Raises SealBroken."""
    try:
        raw = base64.urlsafe_b64decode(sealed.encode("ascii"))
    except (UnicodeEncodeError, binascii.Error) as error:
        raise SealBroken(field, "it is not a sealed value of this version of Mirror.") from error
    return (ring or key_ring()).person_open(raw, field=field).decode()


def is_sealed_with_current(sealed: str, ring: KeyRing) -> bool:
    """Whether `sealed` needs no other key than the ring's current one."""
    try:
        return base64.urlsafe_b64decode(sealed.encode("ascii")).startswith(ring.person_head)
    except (UnicodeEncodeError, binascii.Error):
        return False


class MFAAdapter(DefaultMFAAdapter):  # type: ignore[misc]
    """TOTP secrets and seeds of recovery codes are sealed before they reach the database."""

    def encrypt(self, text: str) -> str:
        return text_seal(text)

    def decrypt(self, encrypted_text: str) -> str:
        return text_open(encrypted_text)

    def get_totp_issuer(self) -> str:
        return "Mirror"
