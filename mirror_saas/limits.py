"""What a tenant may use at a time: the numbers, and how people write them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

UNLIMITED: Final = "unlimited"
MOST: Final = 999_999_999


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """A tenant's limits. None is no limit, 0 is none allowed."""

    calls: int | None
    """Calls that run at the same time, over all nodes."""
    judge_calls: int | None
    """Questions to the judge that are under way at the same time, in one process."""
    requests_per_minute: int | None
    """Requests to the API of all of the tenant's keys and people together."""
    key_requests_per_minute: int | None
    """Requests to the API of each key, and of each person; a key can have a lower number of its own."""
    storage_mib: int | None
    """What the record of calls may take, in MiB (2**20 bytes)."""


NO_LIMITS: Final = Limits(
    calls=None, judge_calls=None, requests_per_minute=None, key_requests_per_minute=None, storage_mib=None
)


def limit_parse(text: str) -> int | None:
    """A limit as people write it: a whole number, or `unlimited`, which is None. Raises ValueError."""
    text = text.strip().lower()
    if text == UNLIMITED:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError(f"use a whole number from 0 to {MOST}, or {UNLIMITED}")
    return int(text)


def limit_text(limit: int | None) -> str:
    """The other way round."""
    return UNLIMITED if limit is None else str(limit)
