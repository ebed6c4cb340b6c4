"""The audit log: who did what, and whether the log is whole."""

from __future__ import annotations

from urllib.parse import urlencode
from uuid import UUID

from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from mirror_saas.pages import BadCursor
from tenants.selectors.audit import auditevent_actors, auditevent_list
from tenants.services.audit import VERIFY_EVENTS, VERIFY_S, auditevents_verify
from webui.access import MemberRequest, member_view
from webui.audit_forms import AuditFilterForm, VerifyForm
from webui.pager import list_url, pager_urls
from webui.presenters.audit import audit_rows

PAGE_ROWS = 50


@never_cache
@require_safe
@member_view(scope="admin")
def audit(request: MemberRequest) -> HttpResponse:
    """Events, newest first; what is filtered stands in the URL."""
    form = AuditFilterForm(request.GET, actors=auditevent_actors(also=_uuid(request.GET.get("actor", ""))))
    cursor = request.GET.get("cursor")
    url = reverse("webui:audit")
    query = form.query()
    try:
        page = auditevent_list(cursor=cursor, limit=PAGE_ROWS, filters=form.filters())
    except BadCursor:
        # An address that was cut short: the list from its start is what was meant.
        return redirect(list_url(url, query))
    return render(
        request,
        "webui/audit/list.html",
        {
            "section": "audit",
            "form": form,
            "rows": audit_rows(page.items),
            **pager_urls(url, query, cursor=cursor, older=page.next),
        },
    )


@never_cache
@require_safe
@member_view(scope="admin")
def verify(request: MemberRequest) -> HttpResponse:
    """Check a part of the log, from its beginning or on behind an event, and say what was found."""
    form = VerifyForm(request.GET)
    found = None
    url = reverse("webui:audit_verify")
    if form.is_valid():
        expected = form.cleaned_data["expect"]
        found = auditevents_verify(
            expected=expected, after=form.cleaned_data["after"], limit=VERIFY_EVENTS, budget_s=VERIFY_S
        )
    on = None
    if found is not None and found.valid and not found.complete:
        more = {"after": str(found.head), **({"expect": str(expected)} if expected else {})}
        on = f"{url}?{urlencode(more)}"
    return render(
        request,
        "webui/audit/verify.html",
        {
            "section": "audit",
            "form": form,
            "found": found,
            "first": (found.head.seq - found.count + 1) if found and found.head and found.count else None,
            "on_url": on,
        },
    )


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
