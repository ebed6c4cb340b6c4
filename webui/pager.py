"""Addresses of a list's pages."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlencode

Query = Sequence[tuple[str, str]]


def list_url(url: str, query: Query = ()) -> str:
    """The first page of the list at `url` with these filters."""
    return f"{url}?{urlencode(query)}" if query else url


def pager_urls(url: str, query: Query = (), *, cursor: str | None, older: str | None) -> dict[str, str | None]:
    """What `parts/pager.html` links: the first page unless this is it, and the page of the cursor `older`."""
    return {
        "newest_url": list_url(url, query) if cursor else None,
        "older_url": list_url(url, [*query, ("cursor", older)]) if older else None,
    }
