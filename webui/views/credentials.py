"""Credentials: access to models, voices, Plivo accounts and forges. A secret that was stored is never shown again."""

from __future__ import annotations

from uuid import UUID

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_safe

from mirror_saas.errors import Conflict
from mirror_saas.pages import BadCursor
from supervision.models import ProviderCredential
from supervision.selectors.credentials import (
    CredentialNotFound,
    credential_get,
    credential_list,
    credential_uses,
)
from supervision.services.credentials import credential_add, credential_change, credential_delete, secret_named
from webui.access import MemberRequest, member_view, reauthenticated
from webui.credential_forms import CredentialForm
from webui.once import once
from webui.pager import list_url, pager_urls
from webui.presenters.credentials import KIND_WORDS, CredentialRow, credential_rows

PAGE_ROWS = 50
Kind = ProviderCredential.Kind


@never_cache
@require_safe
@member_view(scope="policies:read")
def credentials(request: MemberRequest) -> HttpResponse:
    """The tenant's credentials, newest first; the kind stands in the URL."""
    kind = _kind(request.GET.get("kind", ""))
    url, cursor = reverse("webui:credentials"), request.GET.get("cursor")
    query = [("kind", kind.value)] if kind else []
    try:
        page = credential_list(kind=kind.value if kind else None, cursor=cursor, limit=PAGE_ROWS)
    except BadCursor:
        return redirect(list_url(url, query))
    return render(
        request,
        "webui/credentials/list.html",
        {
            "section": "credentials",
            "rows": _rows(request, page.items),
            "tabs": [
                {"name": name, "url": list_url(url, [("kind", value)] if value else []), "current": value == kind}
                for value, name in (
                    (None, "All"),
                    *((each, f"{words[0]}s") for each, words in KIND_WORDS.items()),
                )
            ],
            "kind": kind,
            "kind_words": KIND_WORDS[kind] if kind else None,
            "may": "admin" in request.membership.capabilities,
            **pager_urls(url, query, cursor=cursor, older=page.next),
        },
    )


@never_cache
@sensitive_post_parameters("secret")
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="admin")
@once
def credential_new(request: MemberRequest) -> HttpResponse:
    """Choose a kind, then store a credential of it."""
    kind = _kind(request.POST.get("kind", "") or request.GET.get("kind", ""))
    if kind is None:
        return render(request, "webui/credentials/kinds.html", {"section": "credentials", "kinds": KIND_WORDS.items()})
    form = CredentialForm(request.POST if request.method == "POST" else None, kind=kind)
    if request.method == "POST" and form.is_valid():
        try:
            made = credential_add(kind=kind, **form.given())
        except ValidationError as error:
            form.refuse(error)
        else:
            messages.success(request, f"{made.name} is stored.")
            return redirect("webui:credential", credential_id=made.id)
    return _form_page(request, form)


@never_cache
@require_safe
@member_view(scope="policies:read")
def credential(request: MemberRequest, credential_id: UUID) -> HttpResponse:
    """One credential and what uses it; without its secret."""
    found = _get(credential_id)
    [row] = _rows(request, [found])
    return render(
        request,
        "webui/credentials/credential.html",
        {
            "section": "credentials",
            "row": row,
            "is_model": found.kind == Kind.LLM,
            "may": "admin" in request.membership.capabilities,
        },
    )


@never_cache
@sensitive_post_parameters("secret")
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="admin")
def credential_edit(request: MemberRequest, credential_id: UUID) -> HttpResponse:
    """Change a credential. Sent twice, it is changed to the same."""
    found = _get(credential_id)
    form = CredentialForm(request.POST if request.method == "POST" else None, kind=Kind(found.kind), stored=found)
    if request.method == "POST" and form.is_valid():
        try:
            with secret_named():
                changed = credential_change(credential_id=credential_id, **form.given())
        except ValidationError as error:
            form.refuse(error)
        else:
            messages.success(request, f"{changed.name} is saved. New calls use it from now on.")
            return redirect("webui:credential", credential_id=credential_id)
    return _form_page(request, form)


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="admin")
@reauthenticated
def credential_remove(request: MemberRequest, credential_id: UUID) -> HttpResponse:
    """Forget a credential, after one more question; not while something uses it."""
    found = _get(credential_id)
    if request.method == "POST":
        try:
            credential_delete(credential_id=credential_id)
        except Conflict:
            # The page says by what; it may be in use since it was opened.
            messages.error(request, f"{found.name} is in use. Nothing was deleted.")
            return redirect("webui:credential_delete", credential_id=credential_id)
        messages.success(request, f"{found.name} is deleted, and its secret with it.")
        return redirect("webui:credentials")
    [row] = _rows(request, [found])
    last = found.kind == Kind.PLIVO and not credential_list(kind=Kind.PLIVO, limit=2).items[1:]
    return render(
        request, "webui/credentials/delete.html", {"section": "credentials", "row": row, "last_account": last}
    )


def _form_page(request: MemberRequest, form: CredentialForm) -> HttpResponse:
    name, does = KIND_WORDS[form.kind]
    back = reverse("webui:credential", args=[form.stored.id]) if form.stored else reverse("webui:credential_new")
    return render(
        request,
        "webui/credentials/form.html",
        {"section": "credentials", "form": form, "kind_name": name, "kind_does": does, "back_url": back},
    )


def _rows(request: MemberRequest, found: list[ProviderCredential]) -> tuple[CredentialRow, ...]:
    uses = credential_uses(credential_ids=[each.id for each in found])
    return credential_rows(found, uses=uses, capabilities=request.membership.capabilities)


def _get(credential_id: UUID) -> ProviderCredential:
    try:
        return credential_get(credential_id=credential_id)
    except CredentialNotFound as error:
        raise Http404(str(error)) from error


def _kind(text: str) -> Kind | None:
    return Kind(text) if text in Kind.values else None
