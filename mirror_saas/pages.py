"""Pages of a list: a cursor is the sort key of the last row seen, so that new rows never shift a page."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar
from uuid import UUID

from mirror_saas.errors import InvalidInput

MAX_LIMIT = 200
DEFAULT_LIMIT = 50

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Some rows of a list, and the cursor of the page after it; None when this is the last."""

    items: list[Item]
    next: str | None


class BadCursor(InvalidInput):
    """A cursor that no list has given out."""

    def __init__(self) -> None:
        super().__init__("cursor", "This cursor is not from this list; leave it out to start from the beginning.")


def cursor_encode(*key: str | int) -> str:
    """An opaque cursor that carries a sort key."""
    return base64.urlsafe_b64encode(json.dumps(key, separators=(",", ":")).encode()).decode().rstrip("=")


def cursor_decode(cursor: str, *types: type) -> tuple[str | int, ...]:
    """The sort key of a cursor, whose parts have to be of `types`. Raises BadCursor."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        key = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (UnicodeError, binascii.Error, ValueError, RecursionError) as error:
        raise BadCursor from error
    if not isinstance(key, list) or [type(part) for part in key] != list(types):
        raise BadCursor
    return tuple(key)


def cursor_of_row(at: datetime, row_id: UUID) -> str:
    """The cursor of a list that is sorted by a time and an id."""
    return cursor_encode(at.astimezone(UTC).isoformat(), str(row_id))


def cursor_row(cursor: str) -> tuple[datetime, UUID]:
    """The time and id of a cursor by `cursor_of_row`. Raises BadCursor."""
    at, row_id = cursor_decode(cursor, str, str)
    try:
        key = datetime.fromisoformat(str(at)), UUID(str(row_id))
    except ValueError as error:
        raise BadCursor from error
    if key[0].tzinfo is None:
        raise BadCursor
    return key


def limit_check(limit: int) -> int:
    """`limit` if it is 1 to 200. Raises InvalidInput (field `limit`)."""
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidInput("limit", f"Ask for 1 to {MAX_LIMIT} rows at a time.")
    return limit
