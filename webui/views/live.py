"""The running calls."""

from __future__ import annotations

from urllib.parse import urlencode

from django.http import HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_safe

from supervision.selectors.call_pages import agent_names
from supervision.selectors.live_calls import live_call_count
from webui.access import MemberRequest, member_view
from webui.live_forms import LiveFilterForm
from webui.live_rows import live_rows, live_shown
from webui.presenters.calls import SCRIPTED_BANNER
from webui.presenters.live import live_summary
from webui.views.approvals import approvals_pinned


@require_safe
@member_view(scope="calls:read")
def live(request: MemberRequest) -> HttpResponse:
    """Every running call, what waits for a person above them; what is filtered stands in the URL."""
    agents = agent_names()
    form = LiveFilterForm(request.GET, agents=agents)
    shown, query = form.shown(), form.query()
    rows = live_rows(timezone.now())
    return render(
        request,
        "webui/live/page.html",
        {
            "section": "live",
            "form": form,
            "by_risk": shown.by_risk,
            "filtered": any(name != "order" for name, _ in query),
            "has_agents": bool(agents),
            "live_query": urlencode(query),
            "summary": live_summary(rows.values(), live_call_count()),
            "rows": [(row, shown.order(row)) for row in live_shown(rows.values(), shown)],
            "scripted": SCRIPTED_BANNER if any(row.scripted for row in rows.values()) else None,
            **approvals_pinned(request),
        },
    )
