"""What the tenant's calls came to, day by day, and what they used."""

from __future__ import annotations

from datetime import UTC

from django.http import HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_safe

from supervision.selectors.overview import overview as overview_of
from supervision.selectors.usage import usage_list
from webui.access import MemberRequest, member_view
from webui.presenters.overview import overview_page
from webui.presenters.usage import usage_page
from webui.range_forms import RangeForm


@require_safe
@member_view(scope="calls:read")
def overview(request: MemberRequest) -> HttpResponse:
    """Figures, charts and a table of the chosen days."""
    now = timezone.now()
    form = RangeForm(request.GET, today=now.astimezone(UTC).date())
    first, last = form.days()
    return render(
        request,
        "webui/overview/overview.html",
        {
            "section": "overview",
            "form": form,
            "first": first,
            "last": last,
            "page": overview_page(overview_of(first=first, last=last, now=now)),
        },
    )


@require_safe
@member_view(scope="calls:read")
def usage(request: MemberRequest) -> HttpResponse:
    """What each model came to, and each of its days."""
    now = timezone.now()
    form = RangeForm(request.GET, today=now.astimezone(UTC).date())
    first, last = form.days()
    return render(
        request,
        "webui/overview/usage.html",
        {
            "section": "usage",
            "form": form,
            "first": first,
            "last": last,
            "page": usage_page(usage_list(first=first, last=last, now=now)),
        },
    )
