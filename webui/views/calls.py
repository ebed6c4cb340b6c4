"""The calls list and one call's page."""

from __future__ import annotations

from urllib.parse import urlencode
from uuid import UUID

from django.contrib import messages
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_POST, require_safe

from mirror_saas.errors import Conflict
from supervision.selectors.approvals import ApprovalNotFound, approvals_waiting
from supervision.selectors.call_pages import agent_names, call_record
from supervision.selectors.calls import CallNotFound
from supervision.selectors.pages import BadCursor
from supervision.services.approvals import approval_decide
from tenants.roles import Scope
from webui.access import MemberRequest, member_view
from webui.forms import CallFilterForm
from webui.lists import calls_shown
from webui.pager import list_url, pager_urls
from webui.presenters.approvals import approval_view
from webui.presenters.calls import SCRIPTED_BANNER
from webui.presenters.pages import call_page


@require_safe
@member_view(scope="calls:read")
def call_list(request: MemberRequest) -> HttpResponse:
    """Live calls on top, then a page of ended ones; what is filtered stands in the URL."""
    agents = agent_names()
    form = CallFilterForm(request.GET, agents=agents)
    cursor = request.GET.get("cursor")
    url = reverse("webui:calls")
    query = form.query()
    try:
        shown = calls_shown(form.filters(), cursor=cursor, now=timezone.now())
    except BadCursor:
        # An address that was cut short: the list from its start is what was meant.
        return redirect(list_url(url, query))
    now = timezone.now()
    waiting = approvals_waiting() if cursor is None else []
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
            **pager_urls(url, query, cursor=cursor, older=shown.next),
            "approvals": [approval_view(approval, now) for approval in waiting],
            "may_decide": Scope.CALLS_WRITE in request.membership.capabilities,
            "scripted": SCRIPTED_BANNER if any(row.scripted for row in (*shown.live, *shown.ended)) else None,
        },
    )


@require_POST
@member_view(scope="calls:write")
def approvals_decide(request: MemberRequest) -> HttpResponse:
    """Approve or deny the tool call that a button named; the call hears of it at once. Then back to the list."""
    approve = "approve" in request.POST
    try:
        decision_id = UUID(request.POST.get("approve" if approve else "deny", ""))
        approval = approval_decide(decision_id=decision_id, approve=approve)
    except (ValueError, ApprovalNotFound) as error:
        raise Http404("There is no such tool call that needs an approval.") from error
    except Conflict as error:
        messages.error(request, str(error))
    else:
        messages.success(request, f"{approval.tool} was {approval.state}.")
    return redirect("webui:calls")


@require_safe
@member_view(scope="calls:read")
def call_detail(request: MemberRequest, call_id: UUID) -> HttpResponse:
    """One call. Somebody else's and a missing one are the same 404."""
    try:
        record = call_record(call_id=call_id)
    except CallNotFound as error:
        raise Http404(str(error)) from error
    return render(request, "webui/calls/call.html", {"section": "calls", "page": call_page(record, timezone.now())})
