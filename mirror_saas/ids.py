"""Identifiers: UUID version 7, so that rows sort by the time they were made."""

from __future__ import annotations

import secrets
import time
from uuid import UUID


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
