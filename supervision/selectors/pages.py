"""Lists of calls are paged like all lists (`mirror_saas.pages`)."""

from mirror_saas.pages import (
    DEFAULT_LIMIT,
    MAX_LIMIT,
    BadCursor,
    Page,
    cursor_decode,
    cursor_encode,
    limit_check,
)

__all__ = ["DEFAULT_LIMIT", "MAX_LIMIT", "BadCursor", "Page", "cursor_decode", "cursor_encode", "limit_check"]
