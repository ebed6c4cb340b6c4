"""An authenticator app, written from RFC 6238 and RFC 4226 and not from the code under test."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time

STEP_S = 30


def totp(secret: str, *, at: float | None = None, steps: int = 0) -> str:
    """The six digits that an app shows for `secret` (base32) at `at` (seconds since the epoch; now), `steps` later."""
    key = base64.b32decode(secret.replace(" ", ""), casefold=True)
    counter = int(time.time() if at is None else at) // STEP_S + steps
    digest = hmac.digest(key, counter.to_bytes(8, "big"), hashlib.sha1)
    offset = digest[19] & 15
    return f"{(int.from_bytes(digest[offset : offset + 4], 'big') & 0x7FFFFFFF) % 1_000_000:06}"
