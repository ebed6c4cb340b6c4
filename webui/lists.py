"""The rows of the calls list, for its page and for its live topic: one rule of what stands where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from supervision.models import Call
from supervision.selectors.call_pages import judge_models
from supervision.selectors.calls import CallFilters, call_list
from webui.presenters.calls import CallRow, call_row

PAGE_ROWS = 50
# Running calls are shown whole up to here; a node of 100 calls fits twice.
LIVE_ROWS = 200


@dataclass(frozen=True, slots=True)
class CallsShown:
    """Running calls, a page of ended ones, and the cursor of the page after it."""

    live: tuple[CallRow, ...]
    ended: tuple[CallRow, ...]
    next: str | None


def calls_shown(filters: CallFilters, *, cursor: str | None, now: datetime) -> CallsShown:
    """The list under `filters`; running calls stand on its first page only. Raises BadCursor."""
    live: Sequence[Call] = ()
    if cursor is None and filters.state in (None, Call.State.LIVE) and filters.outcome is None:
        live = call_list(limit=LIVE_ROWS, filters=replace(filters, state=Call.State.LIVE)).items
    ended: Sequence[Call] = ()
    more: str | None = None
    if filters.state in (None, Call.State.ENDED):
        page = call_list(cursor=cursor, limit=PAGE_ROWS, filters=replace(filters, state=Call.State.ENDED))
        ended, more = page.items, page.next
    return CallsShown(live=call_rows(live, now), ended=call_rows(ended, now), next=more)


def call_rows(calls: Sequence[Call], now: datetime) -> tuple[CallRow, ...]:
    models = judge_models(version_ids=[call.pinned_version_id for call in calls])
    return tuple(call_row(call, now, models.get(call.pinned_version_id, "")) for call in calls)
