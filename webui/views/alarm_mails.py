"""Alarm mails of oneself: which ones, and stopping them by the link that is in each."""

from __future__ import annotations

from http import HTTPStatus

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from supervision.alarms import KINDS
from supervision.selectors.alarms import alarm_kinds_of
from supervision.services.alarm_mails import AlarmLinkInvalid, alarms_off, alarms_off_read
from supervision.services.alarms import alarm_kinds_set
from tenants.actors import actor_context, actor_unknown
from webui.access import MemberRequest, member_view
from webui.settings_forms import OwnAlarmsForm


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="membership")
def alarm_mails(request: MemberRequest) -> HttpResponse:
    """What the member is mailed of in this tenant."""
    membership_id = request.membership.membership_id
    form = OwnAlarmsForm(
        request.POST if request.method == "POST" else None,
        initial={"kinds": sorted(alarm_kinds_of(membership_id=membership_id))},
    )
    if request.method == "POST" and form.is_valid():
        try:
            alarm_kinds_set(membership_id=membership_id, kinds=form.cleaned_data["kinds"])
        except ValidationError as error:
            form.refuse(error)
        else:
            messages.success(request, "Saved." if form.cleaned_data["kinds"] else "Saved. You get no alarm mails.")
            return redirect("webui:alarm_mails")
    return render(
        request,
        "webui/settings/own_alarms.html",
        {
            "section": "",
            "form": form,
            "meanings": KINDS,
            "mail_server": settings.MIRROR.email is not None,
            "may_all": "admin" in request.membership.capabilities,
        },
    )


@login_not_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def alarm_mails_off(request: HttpRequest, token: str) -> HttpResponse:
    """The link in each alarm mail. Looking at it stops nothing: mail scanners follow links."""
    stop = request.POST.get("do") == "stop"
    try:
        if stop:
            with actor_context(actor_unknown(request)):
                off = alarms_off(token=token)
        else:
            off = alarms_off_read(token=token)
    except AlarmLinkInvalid as error:
        return render(request, "webui/settings/alarms_off.html", {"why": str(error)}, status=HTTPStatus.NOT_FOUND)
    return render(request, "webui/settings/alarms_off.html", {"off": off, "done": stop})
