"""Webhooks: endpoints, their secrets, and what was sent to them."""

from __future__ import annotations

from uuid import UUID

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from mirror_saas.errors import Conflict
from mirror_saas.pages import BadCursor
from supervision.models import WebhookEndpoint
from supervision.selectors.webhooks import (
    DeliveryNotFound,
    WebhookNotFound,
    attempt_list,
    delivery_get,
    delivery_list,
    webhook_get,
    webhook_list,
)
from supervision.services.webhooks import (
    WebhookSecret,
    delivery_redeliver,
    webhook_create,
    webhook_delete,
    webhook_secret_rotate,
    webhook_test,
    webhook_update,
)
from webui.access import MemberRequest, member_view, reauthenticated
from webui.drafts import draft_take, reauthenticated_with_draft
from webui.once import once
from webui.pager import list_url, pager_urls
from webui.presenters.webhooks import (
    attempt_rows,
    delivery_body,
    delivery_row,
    delivery_rows,
    webhook_row,
    webhook_rows,
)
from webui.shown_once import shown_once_keep, shown_once_take
from webui.webhook_forms import DeliveryFilterForm, RotateForm, WebhookForm

PAGE_ROWS = 50
_SECRET = "webhook"  # noqa: S105 (what waits to be shown once, not a secret)


@never_cache
@require_safe
@member_view(scope="admin")
def webhooks(request: MemberRequest) -> HttpResponse:
    """The tenant's endpoints, newest first."""
    url, cursor = reverse("webui:webhooks"), request.GET.get("cursor")
    try:
        page = webhook_list(cursor=cursor, limit=PAGE_ROWS)
    except BadCursor:
        return redirect(url)
    return render(
        request,
        "webui/webhooks/list.html",
        {
            "section": "webhooks",
            "rows": webhook_rows(page.items, now=timezone.now()),
            **pager_urls(url, cursor=cursor, older=page.next),
        },
    )


@never_cache
@sensitive_variables("made")
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="admin")
@reauthenticated_with_draft(WebhookForm.draft)
@once
def webhook_new(request: MemberRequest) -> HttpResponse:
    """Make an endpoint. Its secret is shown by the page that this leads to."""
    if request.method != "POST":
        return _form_page(request, WebhookForm(draft=draft_take(request)))
    form = WebhookForm(request.POST)
    if not form.is_valid():
        return _form_page(request, form)
    try:
        made = webhook_create(**form.cleaned_data)
    except ValidationError as error:
        form.refuse(error)
        return _form_page(request, form)
    except Conflict as error:
        form.refuse_field(None, str(error))
        return _form_page(request, form)
    return _secret_shown(request, made)


@never_cache
@sensitive_variables("secret")
@require_safe
@member_view(scope="admin")
def webhook(request: MemberRequest, webhook_id: UUID) -> HttpResponse:
    """One endpoint with what was sent to it; a new secret the first time, and never again."""
    found = _get(webhook_id)
    form = DeliveryFilterForm(request.GET)
    state, event_type = form.chosen()
    url, cursor = reverse("webui:webhook", args=[webhook_id]), request.GET.get("cursor")
    try:
        page = delivery_list(webhook_id=webhook_id, state=state, event_type=event_type, cursor=cursor, limit=PAGE_ROWS)
    except BadCursor:
        return redirect(list_url(url, form.query()))
    secret = shown_once_take(request, kind=_SECRET, object_id=webhook_id).get("secret")
    return render(
        request,
        "webui/webhooks/webhook.html",
        {
            "section": "webhooks",
            "row": webhook_row(found, now=timezone.now()),
            "secret": secret,
            "form": form,
            "deliveries": delivery_rows(page.items),
            **pager_urls(url, form.query(), cursor=cursor, older=page.next),
        },
    )


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="admin")
@reauthenticated_with_draft(WebhookForm.draft)
def webhook_edit(request: MemberRequest, webhook_id: UUID) -> HttpResponse:
    """Change an endpoint. Sent twice, it is changed to the same."""
    found = _get(webhook_id)
    if request.method != "POST":
        return _form_page(request, WebhookForm(stored=found, draft=draft_take(request)))
    form = WebhookForm(request.POST, stored=found)
    if form.is_valid():
        try:
            webhook_update(webhook_id=webhook_id, **form.cleaned_data)
        except ValidationError as error:
            form.refuse(error)
        else:
            messages.success(request, "Saved.")
            return redirect("webui:webhook", webhook_id=webhook_id)
    return _form_page(request, form)


@never_cache
@sensitive_variables("made")
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="admin")
@reauthenticated
@once
def webhook_rotate(request: MemberRequest, webhook_id: UUID) -> HttpResponse:
    """Give an endpoint a new secret, which its page then shows."""
    found = _get(webhook_id)
    form = RotateForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        made = webhook_secret_rotate(webhook_id=webhook_id, overlap=form.duration())
        return _secret_shown(request, made)
    row = webhook_row(found, now=timezone.now())
    return render(request, "webui/webhooks/rotate.html", {"section": "webhooks", "row": row, "form": form})


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="admin")
@reauthenticated
def webhook_remove(request: MemberRequest, webhook_id: UUID) -> HttpResponse:
    """Delete an endpoint and its log, after one more question."""
    row = webhook_row(_get(webhook_id), now=timezone.now())
    if request.method == "POST":
        webhook_delete(webhook_id=webhook_id)
        messages.success(request, f"The webhook to {row.host} is deleted. Nothing is sent there any more.")
        return redirect("webui:webhooks")
    return render(request, "webui/webhooks/delete.html", {"section": "webhooks", "row": row})


@never_cache
@require_POST
@member_view(scope="admin")
@once
def webhook_send_test(request: MemberRequest, webhook_id: UUID) -> HttpResponse:
    """Send a test event; the page that this leads to shows what becomes of it."""
    _get(webhook_id)
    try:
        made = webhook_test(webhook_id=webhook_id)
    except Conflict as error:
        messages.error(request, str(error))
        return redirect("webui:webhook", webhook_id=webhook_id)
    return redirect("webui:webhook_delivery", webhook_id=webhook_id, delivery_id=made.id)


@never_cache
@require_safe
@member_view(scope="admin")
def webhook_delivery(request: MemberRequest, webhook_id: UUID, delivery_id: UUID) -> HttpResponse:
    """One delivery: the message, and every attempt. It is looked at again while it is on its way."""
    endpoint = _get(webhook_id)
    try:
        found = delivery_get(webhook_id=webhook_id, delivery_id=delivery_id)
    except DeliveryNotFound as error:
        raise Http404(str(error)) from error
    return render(
        request,
        "webui/webhooks/delivery.html",
        {
            "section": "webhooks",
            "webhook": webhook_row(endpoint, now=timezone.now()),
            "row": delivery_row(found),
            "body": delivery_body(found),
            "attempts": attempt_rows(attempt_list(delivery_id=delivery_id)),
        },
    )


@never_cache
@require_POST
@member_view(scope="admin")
@once
def webhook_redeliver(request: MemberRequest, webhook_id: UUID, delivery_id: UUID) -> HttpResponse:
    """Send a delivery once more."""
    try:
        delivery_redeliver(webhook_id=webhook_id, delivery_id=delivery_id)
    except (WebhookNotFound, DeliveryNotFound) as error:
        raise Http404(str(error)) from error
    except Conflict as error:
        messages.error(request, str(error))
    else:
        messages.success(request, "It goes out again within seconds.")
    return redirect("webui:webhook_delivery", webhook_id=webhook_id, delivery_id=delivery_id)


def _form_page(request: MemberRequest, form: WebhookForm) -> HttpResponse:
    back = reverse("webui:webhook", args=[form.stored.id]) if form.stored else reverse("webui:webhooks")
    return render(request, "webui/webhooks/form.html", {"section": "webhooks", "form": form, "back_url": back})


def _secret_shown(request: MemberRequest, made: WebhookSecret) -> HttpResponse:
    shown_once_keep(request, kind=_SECRET, object_id=made.endpoint.id, secrets={"secret": made.secret})
    return redirect("webui:webhook", webhook_id=made.endpoint.id)


def _get(webhook_id: UUID) -> WebhookEndpoint:
    try:
        return webhook_get(webhook_id=webhook_id)
    except WebhookNotFound as error:
        raise Http404(str(error)) from error
