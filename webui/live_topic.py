"""What the live page is sent: running calls, a snapshot first and then the rows that changed."""

from __future__ import annotations

from urllib.parse import parse_qsl
from uuid import UUID

from django.template.loader import render_to_string
from django.utils import timezone

from supervision.selectors.call_pages import agent_names
from supervision.selectors.live_calls import live_call_count
from webui.live import ManyCallsTopic, Part, TopicRefused, Update
from webui.live_forms import LiveFilterForm, LiveShown
from webui.live_rows import live_row_html, live_rows, live_shown
from webui.presenters.live import HIGH, LiveRow, LiveSummary, live_summary

# Rows in one update; more follow in the next one.
ROWS_PER_UPDATE = 100
# What is read out at once: who listens cannot skip it.
ANNOUNCED_AT_ONCE = 3


class LiveTopic(ManyCallsTopic):
    """All running calls under the filters of the page's URL (`query`): a snapshot first, then the rows that changed.

    What the browser has is remembered row by row, so that a row is sent when it looks different and not otherwise.
    """

    def __init__(self, query: str) -> None:
        super().__init__()
        self._query = query
        self._shown: LiveShown | None = None
        # Every running call, and the rows that the browser has; None before the first update.
        self._rows: dict[UUID, LiveRow] = {}
        self._sent: dict[UUID, LiveRow] | None = None
        self._running = 0
        self._summary: LiveSummary | None = None
        self._high: frozenset[UUID] | None = None

    def _read(self) -> Update | None:
        everything, changed = self._taken()
        if self._shown is None:
            self._shown = _live_shown(self._query)
        if everything:
            self._rows = live_rows(timezone.now())
            self._running = live_call_count()
        elif changed:
            found = live_rows(timezone.now(), ids=changed)
            before = len(self._rows)
            self._rows = {call_id: row for call_id, row in self._rows.items() if call_id not in changed} | found
            self._running += len(self._rows) - before
        return self._update(self._shown)

    def _update(self, shown: LiveShown) -> Update | None:
        rows = live_shown(self._rows.values(), shown)
        parts: list[Part] = []
        if self._sent is None:
            # A page that was loaded some time ago may hold rows of calls that have ended.
            self._sent = {}
            parts.append(Part("live-calls", only=tuple(row.dom_id for row in rows)))
        sent, now = self._sent, {row.id: row for row in rows}
        parts += [Part(sent.pop(call_id).dom_id) for call_id in set(sent) - set(now)]
        due = [row for row in rows if sent.get(row.id) != row]
        for row in due[:ROWS_PER_UPDATE]:
            parts.append(Part(row.dom_id, live_row_html(row, shown), "live-calls"))
            sent[row.id] = row
        said = self._said()
        summary = live_summary(self._rows.values(), self._running)
        if summary != self._summary:
            if summary.degraded and (self._summary is not None and self._summary.degraded is None):
                said.append(summary.degraded.title)
            parts.append(Part("live-summary", render_to_string("webui/live/summary.html", {"summary": summary})))
            self._summary = summary
        more = len(due) > ROWS_PER_UPDATE
        return Update(tuple(parts), announce=tuple(said), more=more) if parts or said else None

    def _said(self) -> list[str]:
        """Calls whose risk became high since the last update."""
        before, self._high = self._high, frozenset(row.id for row in self._rows.values() if row.risk == HIGH)
        if before is None:
            return []
        new = [self._rows[call_id] for call_id in self._high - before]
        said = [f"High risk in a call to {row.agent}: {row.why}" for row in new[:ANNOUNCED_AT_ONCE]]
        return [*said, f"High risk in {len(new) - len(said)} more calls"] if len(new) > len(said) else said


def _live_shown(query: str) -> LiveShown:
    try:
        return LiveFilterForm(dict(parse_qsl(query, max_num_fields=20)), agents=agent_names()).shown()
    except ValueError as error:
        raise TopicRefused from error
