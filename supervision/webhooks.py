"""Standard Webhooks (https://www.standardwebhooks.com): what is sent, how it is signed, and when it is sent again.

Pure functions; `supervision.services.webhook_deliveries` sends.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid5

import orjson

EVENT_TYPES: Final[dict[str, str]] = {
    "call.started": "A call began to be supervised.",
    "call.ended": "A call ended; with its counts and how much of it was judged.",
    "coverage.alarm": "Too little of a call is judged while it runs, or it ended and not every turn was judged.",
    "intervention.started": "A turn was judged a violation, and Mirror began to act on it.",
    "intervention.ended": "An intervention ended; with its outcome and what the caller heard of the violation, in ms.",
    "tool.blocked": "A tool call was not allowed.",
    "approval.requested": "A tool call waits for a person's approval, for as long as `within_ms` says.",
    "approval.decided": "A tool call that waited for approval was approved, denied or given up.",
}
# Sent when somebody asks for it, whatever the endpoint wants.
TEST_TYPE: Final = "webhook.test"

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 (what secrets begin with)
_SECRET_BYTES: Final = 32

MAX_ATTEMPTS: Final = 12
_FIRST_DELAY_S: Final = 5.0
_MOST_DELAY_S: Final = 12 * 3600.0
# Attempts at an endpoint that failed in a row before nothing is sent to it for a while.
BREAKER_FAILURES: Final = 5
_FIRST_PAUSE_S: Final = 30.0
_MOST_PAUSE_S: Final = 3600.0

# Of what a UUID is made that says that this happened, once for all who are told of it.
_NAMESPACE: Final = UUID("5d0c6a0e-5f2b-4a53-9d6c-6a4b8a9f2f11")

Random = Callable[[], float]


def event_id(event_type: str, subject: UUID, state: str = "") -> UUID:
    """The id of the event that `event_type` happened to `subject`, which it does once, or once for each `state`."""
    return uuid5(_NAMESPACE, f"{event_type} {subject} {state}".rstrip())


def secret_make() -> str:
    """A new signing secret, `whsec_` and 32 bytes as base64."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def body_make(*, event_type: str, occurred_at: datetime, data: Mapping[str, Any]) -> bytes:
    """The body of a message: JSON with `type`, `timestamp` (RFC 3339, UTC) and `data`; the same for every attempt."""
    timestamp = occurred_at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return orjson.dumps({"type": event_type, "timestamp": timestamp, "data": data}, option=orjson.OPT_SORT_KEYS)


def headers_make(*, message_id: UUID, body: bytes, secrets: Iterable[str], now: datetime) -> dict[str, str]:
    """The headers of an attempt at `now`, signed with each of `secrets`, the newest first.

    Raises ValueError for what is no secret.
    """
    seconds = str(int(now.timestamp()))
    signed = f"{message_id}.{seconds}.".encode() + body
    return {
        "Content-Type": "application/json",
        "User-Agent": "Mirror-Webhooks/1",
        "webhook-id": str(message_id),
        "webhook-timestamp": seconds,
        "webhook-signature": " ".join(f"v1,{_signature(secret, signed)}" for secret in secrets),
    }


def _signature(secret: str, signed: bytes) -> str:
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        # Without the cause: its text may repeat what it was given.
        raise ValueError("This is no secret of a webhook.") from None
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def retry_delay(*, attempts: int, random: Random, retry_after_s: float | None = None) -> timedelta:
    """How long to wait after `attempts` that failed: 5 s, 20 s, 80 s … 12 h, of which a random part up to the half is
    taken off, so that what failed together does not come back together; no sooner than the receiver asked for.

    `random` gives a number from 0 to 1.
    """
    most = min(_FIRST_DELAY_S * 4.0 ** min(attempts - 1, 16), _MOST_DELAY_S)
    wanted = min(retry_after_s or 0.0, _MOST_DELAY_S)
    return timedelta(seconds=max(most * (1.0 - random() / 2.0), wanted))


def breaker_pause(*, failures: int, random: Random) -> timedelta | None:
    """For how long nothing is sent to an endpoint at which so many attempts failed in a row: None below 5, then 30 s,
    1 min … 1 h, with jitter as above. After it one delivery is tried."""
    if failures < BREAKER_FAILURES:
        return None
    most = min(_FIRST_PAUSE_S * 2.0 ** min(failures - BREAKER_FAILURES, 16), _MOST_PAUSE_S)
    return timedelta(seconds=most * (1.0 - random() / 2.0))


def retry_after_read(value: str | None) -> float | None:
    """Seconds of a `Retry-After` header; None for a date, or what is none."""
    if value is None or not value.isascii() or not value.isdigit() or len(value) > 9:
        return None
    return float(value)
