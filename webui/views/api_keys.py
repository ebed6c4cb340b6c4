"""API keys: the list, making one, and one key's page, which shows a new key once."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_http_methods, require_safe

from mirror_saas.pages import BadCursor
from tenants.authentication import recently_authenticated
from tenants.models import ApiKey
from tenants.selectors.api_keys import (
    ApiKeyFilters,
    ApiKeyNotFound,
    ApiKeyState,
    api_key_get,
    api_key_list,
    api_keys_without_maker,
)
from tenants.services.api_keys import ApiKeyMade, api_key_create, api_key_revoke, api_key_update
from webui.access import MemberRequest, member_view, reauthenticated, to_confirm
from webui.key_forms import ApiKeyEditForm, ApiKeyForm
from webui.pager import list_url, pager_urls
from webui.presenters.api_keys import STATES, api_key_rows
from webui.shown_once import shown_once_keep, shown_once_take

PAGE_ROWS = 50
_FRESH = "api_key"
# What was typed before the person had to confirm who they are.
_DRAFT = "api_key_draft"


@never_cache
@require_safe
@member_view(scope="admin")
def api_keys(request: MemberRequest) -> HttpResponse:
    """The tenant's keys, newest first; what is filtered stands in the URL."""
    filters, query = _filters(request)
    url = reverse("webui:api_keys")
    cursor = request.GET.get("cursor")
    try:
        page = api_key_list(cursor=cursor, limit=PAGE_ROWS, filters=filters)
    except BadCursor:
        return redirect(list_url(url, query))
    return render(
        request,
        "webui/api_keys/list.html",
        {
            "section": "api_keys",
            "rows": api_key_rows(page.items, now=timezone.now(), left=api_keys_without_maker(page.items)),
            "states": [
                {
                    "name": name,
                    "url": f"{url}?state={state}" if state else url,
                    "current": state == (filters.state or ""),
                }
                for state, name in STATES.items()
            ],
            "filtered": bool(query),
            **pager_urls(url, query, cursor=cursor, older=page.next),
        },
    )


@never_cache
@sensitive_variables("made")
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="admin")
def api_key_new(request: MemberRequest) -> HttpResponse:
    """Make a key. It is shown by the page that this leads to."""
    whose: dict[str, Any] = {
        "held": request.membership.scopes,
        "person": request.user.pk,
        "tenant": request.membership.tenant.id,
    }
    if not recently_authenticated(request):
        if request.method == "POST":
            request.session[_DRAFT] = ApiKeyForm(request.POST, **whose).draft()
        return to_confirm(reverse("webui:api_key_new"))
    if request.method != "POST":
        draft = request.session.pop(_DRAFT, None)
        form = ApiKeyForm(initial=draft if isinstance(draft, dict) else None, **whose)
        return _new_page(request, form)
    form = ApiKeyForm(request.POST, **whose)
    if not form.is_valid():
        return _new_page(request, form)
    key_id: UUID = form.cleaned_data["once"]
    try:
        made = api_key_create(
            name=form.cleaned_data["name"],
            scopes=form.cleaned_data["scopes"],
            expires_at=form.expires_at(),
            held=whose["held"],
            api_key_id=key_id,
        )
    except ApiKeyMade:
        # Sent twice: the first sending made it, and its page shows it if it has not done so yet.
        return redirect("webui:api_key", api_key_id=key_id)
    except ValidationError as error:
        form.refuse(error)
        return _new_page(request, form)
    shown_once_keep(request, kind=_FRESH, object_id=key_id, secrets={"key": made.key})
    return redirect("webui:api_key", api_key_id=key_id)


@never_cache
@sensitive_variables("key")
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="admin")
def api_key(request: MemberRequest, api_key_id: UUID) -> HttpResponse:
    """One key. A new one is shown the first time, and never again. Posted: another name, or an earlier end."""
    found = _get(api_key_id)
    if request.method == "POST":
        form = ApiKeyEditForm(request.POST)
        if form.is_valid():
            if form.cleaned_data["until"] is not None and not recently_authenticated(request):
                # An end a minute ahead is a revocation.
                here = reverse("webui:api_key", kwargs={"api_key_id": api_key_id})
                return to_confirm(here)
            try:
                api_key_update(
                    api_key_id=api_key_id, name=form.cleaned_data["name"], expires_at=form.cleaned_data["until"]
                )
            except ValidationError as error:
                form.refuse(error)
            else:
                messages.success(request, "Saved.")
                return redirect("webui:api_key", api_key_id=api_key_id)
        return _key_page(request, found, form, key=None)
    key = shown_once_take(request, kind=_FRESH, object_id=api_key_id).get("key")
    return _key_page(request, found, ApiKeyEditForm(initial={"name": found.name}), key=key)


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="admin")
@reauthenticated
def api_key_end(request: MemberRequest, api_key_id: UUID) -> HttpResponse:
    """Revoke a key, after one more question."""
    found = _get(api_key_id)
    if request.method == "POST":
        api_key_revoke(api_key_id=api_key_id)
        messages.success(request, f"{found.name} is revoked. Requests with it are refused from now on.")
        return redirect("webui:api_keys")
    if found.revoked_at is not None:
        return redirect("webui:api_key", api_key_id=api_key_id)
    return render(request, "webui/api_keys/revoke.html", {"section": "api_keys", "row": _row(found)})


def _new_page(request: MemberRequest, form: ApiKeyForm) -> HttpResponse:
    return render(request, "webui/api_keys/new.html", {"section": "api_keys", "form": form})


def _key_page(request: MemberRequest, found: ApiKey, form: ApiKeyEditForm, *, key: str | None) -> HttpResponse:
    context = {
        "section": "api_keys",
        "row": _row(found),
        "form": form,
        "key": key,
        "log_url": f"{reverse('webui:audit')}?{urlencode({'actor': str(found.id)})}",
    }
    return render(request, "webui/api_keys/key.html", context)


def _filters(request: MemberRequest) -> tuple[ApiKeyFilters, list[tuple[str, str]]]:
    """What the URL asks for; a part that makes no sense filters nothing."""
    query: list[tuple[str, str]] = []
    state: ApiKeyState | None = None
    match request.GET.get("state"):
        case "active" | "expired" | "revoked" as state:
            query.append(("state", state))
    made_by = None
    try:
        made_by = UUID(request.GET["made_by"])
        query.append(("made_by", str(made_by)))
    except (KeyError, ValueError):
        pass
    return ApiKeyFilters(state=state, created_by_id=made_by), query


def _get(api_key_id: UUID) -> ApiKey:
    try:
        return api_key_get(api_key_id=api_key_id)
    except ApiKeyNotFound as error:
        raise Http404(str(error)) from error


def _row(found: ApiKey) -> object:
    return api_key_rows([found], now=timezone.now(), left=api_keys_without_maker([found]))[0]
