"""The calls list, as a page and as a file."""

from __future__ import annotations

from urllib.parse import urlencode

from django.http import HttpResponse, StreamingHttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_safe

from mirror_saas.exports import export_response
from supervision.selectors.call_pages import agent_names
from supervision.selectors.pages import BadCursor
from webui.access import MemberRequest, member_view
from webui.call_csv import CallCsvRow, call_csv_batches
from webui.forms import CallFilterForm
from webui.lists import calls_shown
from webui.pager import list_url, pager_urls
from webui.presenters.calls import SCRIPTED_BANNER
from webui.views.approvals import approvals_pinned


@require_safe
@member_view(scope="calls:read")
def call_list(request: MemberRequest) -> HttpResponse:
    """Live calls on top, then a page of ended ones; what is filtered stands in the URL."""
    agents = agent_names()
    form = CallFilterForm(request.GET, agents=agents)
    cursor = request.GET.get("cursor")
    url = reverse("webui:calls")
    query = form.query()
    filters = form.filters()
    try:
        shown = calls_shown(filters, cursor=cursor, now=timezone.now())
    except BadCursor:
        # An address that was cut short: the list from its start is what was meant.
        return redirect(list_url(url, query))
    return render(
        request,
        "webui/calls/list.html",
        {
            "section": "calls",
            "form": form,
            "live": shown.live,
            "ended": shown.ended,
            "first_page": cursor is None,
            "has_agents": bool(agents),
            "live_query": urlencode(query),
            # A row leads to the place where it was said.
            "said": filters.text,
            "csv_url": list_url(reverse("webui:calls_csv"), query),
            **pager_urls(url, query, cursor=cursor, older=shown.next),
            **(approvals_pinned(request) if cursor is None else {}),
            "scripted": SCRIPTED_BANNER if any(row.scripted for row in (*shown.live, *shown.ended)) else None,
        },
    )


@require_safe
@member_view(scope="calls:read")  # type: ignore[arg-type]  # it is sent while it is read
def call_csv(request: MemberRequest) -> StreamingHttpResponse:
    """All calls that the filters of the URL let through, as one file."""
    filters = CallFilterForm(request.GET, agents=agent_names()).filters()
    batches = call_csv_batches(tenant_id=request.membership.tenant.id, filters=filters)
    return export_response(request, kind="csv", name="calls", columns=CallCsvRow, batches=batches)
