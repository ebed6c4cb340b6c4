"""The rows of the live page, for the page and for its topic: one rule of what stands where."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

from django.template.loader import render_to_string

from supervision.selectors.call_pages import judge_models
from supervision.selectors.live_calls import live_call_list
from webui.live_forms import LiveShown
from webui.presenters.live import LiveRow, live_row


def live_rows(now: datetime, *, ids: frozenset[UUID] | None = None) -> dict[UUID, LiveRow]:
    """Every running call, or those of `ids` that are running, by id."""
    calls = live_call_list(ids=ids)
    models = judge_models(version_ids=[live.call.pinned_version_id for live in calls])
    return {live.call.id: live_row(live, now, models.get(live.call.pinned_version_id, "")) for live in calls}


def live_shown(rows: Iterable[LiveRow], shown: LiveShown) -> list[LiveRow]:
    """Those of `rows` that a page shows, in its order."""
    return sorted((row for row in rows if shown.shows(row)), key=shown.order, reverse=True)


def live_row_html(row: LiveRow, shown: LiveShown) -> str:
    """The row as it stands in the page."""
    return render_to_string("webui/live/row.html", {"row": row, "order": shown.order(row)})
