"""The tenant's settings: its name and limits, default models, privacy, and who gets alarm mails."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpResponse, QueryDict
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_POST

from supervision.models import ModelDefaults, PrivacySettings
from supervision.redaction import MAX_PATTERNS
from supervision.selectors.alarms import MOST_SHOWN, alarm_agents, alarm_choice_list, alarm_list
from supervision.selectors.credentials import credential_list
from supervision.selectors.plivo_accounts import plivo_account_list
from supervision.selectors.privacy import calls_older_count, privacy_get
from supervision.services.alarms import alarm_kinds_set
from supervision.services.defaults import model_defaults_update
from supervision.services.privacy import privacy_update
from tenants.selectors.limits import tenant_limits_get, tenant_use_get
from tenants.selectors.tenants import tenant_get
from tenants.services.tenants import tenant_update
from webui.access import MemberRequest, member_view
from webui.drafts import draft_take, reauthenticated_with_draft
from webui.presenters.settings import alarm_rows, limit_rows
from webui.settings_forms import (
    ALARM_NAMES,
    AlarmChoicesForm,
    ModelDefaultsForm,
    PrivacyForm,
    TenantForm,
    pattern_forms,
    redaction_try,
)

ALARMS_SHOWN = 20
# A tenant with more credentials names those behind by the API.
MOST_CREDENTIALS = 200
# What is about to be deleted is counted up to here; the page says "more than".
MOST_COUNTED = 10_000


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="admin")
def settings(request: MemberRequest) -> HttpResponse:
    """Name, limits and what is used of them. Posted: another name."""
    tenant = tenant_get()
    form = TenantForm(request.POST if request.method == "POST" else None, initial={"name": tenant.name})
    if request.method == "POST" and form.is_valid():
        try:
            tenant_update(name=form.cleaned_data["name"])
        except ValidationError as error:
            form.refuse(error)
        else:
            messages.success(request, "Saved.")
            return redirect("webui:settings")
    return _page(
        request,
        "general",
        {
            "form": form,
            "tenant": tenant,
            "limits": limit_rows(tenant_limits_get(), tenant_use_get()),
            "plivo_accounts": plivo_account_list(),
        },
    )


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="admin")
def settings_models(request: MemberRequest) -> HttpResponse:
    """Which credentials new drafts and new agents get."""
    form = ModelDefaultsForm(
        request.POST if request.method == "POST" else None,
        credentials=credential_list(limit=MOST_CREDENTIALS).items,
        stored=ModelDefaults.objects.first(),
    )
    if request.method == "POST" and form.is_valid():
        try:
            model_defaults_update(**form.cleaned_data)
        except ValidationError as error:
            form.refuse(error)
        else:
            messages.success(request, "Saved. New drafts and new agents get these.")
            return redirect("webui:settings_models")
    return _page(request, "models", {"form": form})


def _privacy_draft(sent: QueryDict) -> dict[str, Any]:
    rows = zip(
        [sent.get(f"patterns-{number}-name", "") for number in range(MAX_PATTERNS)],
        [sent.get(f"patterns-{number}-pattern", "") for number in range(MAX_PATTERNS)],
        strict=True,
    )
    return {
        "redact": sent.getlist("redact")[:10],
        "phone_region": sent.get("phone_region", "")[:2],
        "retention_days": sent.get("retention_days", "")[:8],
        "patterns": [{"name": name[:100], "pattern": pattern[:1000]} for name, pattern in rows if name or pattern],
    }


@never_cache
@sensitive_post_parameters("sample")
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="admin")
@reauthenticated_with_draft(_privacy_draft)
def settings_privacy(request: MemberRequest) -> HttpResponse:
    """What is taken out of calls, and how long they are kept. What a shorter time deletes is asked for once more."""
    stored = privacy_get()
    if request.method != "POST":
        initial = draft_take(request) or {**PrivacyForm.initial_of(stored), "patterns": stored.patterns}
        return _privacy_page(request, PrivacyForm(initial=initial), pattern_forms(patterns=initial["patterns"]))
    form, patterns = PrivacyForm(request.POST), pattern_forms(request.POST)
    if not _both_valid(form, patterns):
        return _privacy_page(request, form, patterns)
    doomed = _doomed(stored, form.cleaned_data["retention_days"])
    if doomed and not form.cleaned_data["delete_confirmed"]:
        many = f"more than {MOST_COUNTED:,}" if doomed > MOST_COUNTED else f"{doomed:,}"
        form.refuse_field(
            "delete_confirmed",
            f"{many} call{'s are' if doomed != 1 else ' is'} older than that. They are deleted within the hour, and "
            "nothing brings them back. Say that you want this.",
        )
        return _privacy_page(request, form, patterns)
    try:
        privacy_update(
            retention_days=form.cleaned_data["retention_days"],
            redact=form.cleaned_data["redact"],
            phone_region=form.cleaned_data["phone_region"],
            patterns=patterns.patterns(),
        )
    except ValidationError as error:
        form.refuse(error)
        return _privacy_page(request, form, patterns)
    messages.success(request, "Saved. Calls that begin from now on are stored so.")
    return redirect("webui:settings_privacy")


@never_cache
@sensitive_post_parameters("sample")
@require_POST
@member_view(scope="admin")
def settings_privacy_try(request: MemberRequest) -> HttpResponse:
    """How a sentence would be stored with what stands in the form; nothing is saved."""
    form, patterns = PrivacyForm(request.POST), pattern_forms(request.POST)
    tried = redaction_try(form, patterns.patterns()) if _both_valid(form, patterns) else None
    return _privacy_page(request, form, patterns, tried=tried, is_try=True)


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="admin")
def settings_alarms(request: MemberRequest) -> HttpResponse:
    """Which members are mailed of which alarms, and what alarms there were."""
    form = AlarmChoicesForm(request.POST if request.method == "POST" else None, choices=alarm_choice_list())
    if request.method == "POST" and form.is_valid():
        try:
            # All of it or nothing.
            with transaction.atomic():
                for choice, kinds in form.changed():
                    alarm_kinds_set(membership_id=choice.membership.id, kinds=kinds)
        except ValidationError as error:
            form.refuse(error)
        else:
            messages.success(request, "Saved.")
            return redirect("webui:settings_alarms")
    alarms = alarm_list(limit=ALARMS_SHOWN).items
    return _page(
        request,
        "alarms",
        {
            "form": form,
            "kinds": ALARM_NAMES.items(),
            "is_cut": len(form.choices) >= MOST_SHOWN,
            "nobody": not any(choice.kinds for choice in form.choices),
            "alarms": alarm_rows(alarms, names=ALARM_NAMES, agents=alarm_agents(alarms)),
        },
    )


def _page(request: MemberRequest, tab: str, context: dict[str, Any]) -> HttpResponse:
    return render(request, f"webui/settings/{tab}.html", {"section": "settings", "tab": tab, **context})


def _privacy_page(
    request: MemberRequest, form: PrivacyForm, patterns: Any, *, tried: str | None = None, is_try: bool = False
) -> HttpResponse:
    return _page(
        request,
        "privacy",
        {"form": form, "patterns": patterns, "tried": tried, "is_try": is_try, "most_patterns": MAX_PATTERNS},
    )


def _both_valid(form: PrivacyForm, patterns: Any) -> bool:
    # Both are looked at, so that the page says all that is wrong at once.
    return all([form.is_valid(), patterns.is_valid()])


def _doomed(stored: PrivacySettings, days: int | None) -> int:
    """How many calls a shorter retention deletes that the stored one keeps."""
    if days is None or (stored.retention_days is not None and days >= stored.retention_days):
        return 0
    return calls_older_count(days=days, now=timezone.now(), most=MOST_COUNTED + 1)
