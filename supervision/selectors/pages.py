"""Lists are paged like all lists (`mirror_saas.pages`); `newest_page` pages rows that have a `created_at`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

from django.db.models import Model, Q, QuerySet

from mirror_saas.pages import (
    DEFAULT_LIMIT,
    MAX_LIMIT,
    BadCursor,
    Page,
    cursor_decode,
    cursor_encode,
    limit_check,
)

__all__ = [
    "DEFAULT_LIMIT",
    "MAX_LIMIT",
    "BadCursor",
    "Page",
    "cursor_decode",
    "cursor_encode",
    "limit_check",
    "newest_page",
]

Row = TypeVar("Row", bound=Model)


def newest_page(rows: QuerySet[Row], *, cursor: str | None, limit: int) -> Page[Row]:
    """A page of `rows`, newest first by `created_at` and id. Raises InvalidInput and BadCursor."""
    limit_check(limit)
    if cursor is not None:
        created_at, row_id = _newest_key(cursor)
        rows = rows.filter(created_at__lte=created_at).filter(Q(created_at__lt=created_at) | Q(id__lt=row_id))
    found = list(rows.order_by("-created_at", "-id")[: limit + 1])
    if len(found) <= limit:
        return Page(items=found, next=None)
    last: Any = found[limit - 1]
    return Page(items=found[:limit], next=cursor_encode(last.created_at.astimezone(UTC).isoformat(), str(last.id)))


def _newest_key(cursor: str) -> tuple[datetime, UUID]:
    created_at, row_id = cursor_decode(cursor, str, str)
    try:
        when, found = datetime.fromisoformat(str(created_at)), UUID(str(row_id))
    except ValueError as error:
        raise BadCursor from error
    if when.tzinfo is None:
        raise BadCursor
    return when, found
