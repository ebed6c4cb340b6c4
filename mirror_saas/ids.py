"""Identifiers: UUID version 7, so that rows sort by the time they were made."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MS = (1 << 48) - 1


def uuid7(*, unix_ms: int | None = None) -> UUID:
    """A new UUIDv7 (RFC 9562, section 5.7): 48 bits of Unix time in ms, then 74 random bits.

    `unix_ms` names the time for callers with a clock of their own; by default it is the wall clock.
    Two ids of the same millisecond are not ordered; lists that need an order sort by time and id.
    """
    if unix_ms is None:
        unix_ms = time.time_ns() // 1_000_000
    if not 0 <= unix_ms < 1 << 48:
        raise ValueError(f"unix_ms must be between 0 and 2**48 - 1, got {unix_ms}")
    value = unix_ms << 80 | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62)
    return UUID(int=value)


def uuid7_time(value: UUID) -> datetime:
    """When a UUIDv7 was made, to the millisecond, in UTC."""
    try:
        return _EPOCH + timedelta(milliseconds=value.int >> 80)
    except OverflowError:
        # An id that is no UUIDv7 can name a year that no calendar has.
        return datetime.max.replace(tzinfo=UTC)


def uuid7_floor(moment: datetime) -> UUID:
    """The smallest UUIDv7 of a moment (an aware datetime): ids made before it are smaller, ids made since are not."""
    unix_ms = -((_EPOCH - moment) // timedelta(milliseconds=1))
    return UUID(int=min(max(unix_ms, 0), _LAST_MS) << 80 | 0x7 << 76 | 0b10 << 62)
