"""Where a tenant's events are sent to: endpoints, their secrets, and what somebody asks to be sent.

What happens in calls is put into the outbox by the recorder (`supervision.recorder.outbox`); sending is in
`supervision.services.webhook_deliveries`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, TypedDict, Unpack
from urllib.parse import urlsplit
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from mirror_saas.egress import EgressRefused, egress_check
from mirror_saas.egress_http import url_check
from mirror_saas.errors import Conflict
from mirror_saas.ids import uuid7
from supervision.models import WebhookDelivery, WebhookEndpoint
from supervision.selectors.webhooks import DeliveryNotFound, WebhookNotFound
from supervision.services.alarms import alarm_raise
from supervision.webhooks import EVENT_TYPES, TEST_TYPE, secret_make
from tenants.context import tenant_id_required
from tenants.models import Tenant
from tenants.sealing import seal, sealed_field, unseal_text
from tenants.services.audit import auditevent_record, changes, snapshot

MAX_ENDPOINTS: Final = 20
MAX_URL_CHARS: Final = 2000
MAX_DESCRIPTION_CHARS: Final = 500
MAX_OVERLAP: Final = timedelta(days=7)
DEFAULT_OVERLAP: Final = timedelta(hours=24)
SWITCHED_OFF: Final = "the endpoint was switched off"

_AUDITED: Final = (
    "url",
    "description",
    "event_types",
    "enabled",
    "off_reason",
    "secret_sealed",
    "previous_secret_sealed",
    "previous_secret_until",
)


class WebhookFields(TypedDict, total=False):
    """What of an endpoint is to change."""

    url: str
    description: str
    event_types: Sequence[str]
    enabled: bool


@dataclass(frozen=True, slots=True)
class WebhookSecret:
    """An endpoint with its new secret, which is not shown again."""

    endpoint: WebhookEndpoint
    secret: str = field(repr=False)


def webhook_create(
    *, url: str, event_types: Sequence[str], description: str = "", enabled: bool = True
) -> WebhookSecret:
    """An endpoint of the current tenant, which gets what happens from now on.

    Raises ValidationError naming the field, and Conflict when the tenant has as many as it may.
    """
    endpoint = WebhookEndpoint(id=uuid7())
    _fill(endpoint, url=_url(url), event_types=event_types, description=description, enabled=enabled)
    with transaction.atomic():
        # One after the other, so that two at once cannot pass the limit together.
        Tenant.objects.select_for_update(no_key=True).get()
        if WebhookEndpoint.objects.count() >= MAX_ENDPOINTS:
            raise Conflict(f"This tenant has {MAX_ENDPOINTS} webhooks, which is the most; delete one first.")
        secret = secret_make()
        endpoint.secret_sealed = _sealed(endpoint, "secret_sealed", secret)
        endpoint.save(force_insert=True)
        auditevent_record(
            action="webhook.create",
            row=endpoint,
            object_label=_label(endpoint),
            after=snapshot(endpoint, only=_AUDITED),
        )
    return WebhookSecret(endpoint, secret)


def webhook_update(
    *, webhook_id: UUID, now: datetime | None = None, **fields: Unpack[WebhookFields]
) -> WebhookEndpoint:
    """Change an endpoint; what is not named stays as it is. Another URL keeps the secret: it signs, it is never sent.

    What was on its way to an endpoint that is switched off is given up, and can be redelivered. Raises WebhookNotFound
    and ValidationError naming the field.
    """
    if "url" in fields:
        fields["url"] = _url(fields["url"])
    with transaction.atomic():
        endpoint = webhook_locked(webhook_id=webhook_id)
        was = snapshot(endpoint, only=_AUDITED)
        _fill(endpoint, **fields)
        if "enabled" in fields:
            endpoint.off_reason = ""
        before, after = changes(was, snapshot(endpoint, only=_AUDITED))
        if after:
            if after.keys() & {"url", "enabled"}:
                endpoint.failures, endpoint.paused_until = 0, None
            endpoint.updated_at = now or timezone.now()
            endpoint.save()
            if not endpoint.enabled:
                deliveries_give_up(endpoint=endpoint, error=SWITCHED_OFF)
            auditevent_record(
                action="webhook.update", row=endpoint, object_label=_label(endpoint), before=before, after=after
            )
        return endpoint


def webhook_delete(*, webhook_id: UUID) -> None:
    """Forget an endpoint, its secret, its log and what was on its way. Raises WebhookNotFound."""
    with transaction.atomic():
        # Waits for whoever puts something into its outbox now.
        endpoint = WebhookEndpoint.objects.select_for_update().filter(id=webhook_id).first()
        if endpoint is None:
            raise WebhookNotFound
        before = snapshot(endpoint, only=_AUDITED)
        auditevent_record(action="webhook.delete", row=endpoint, object_label=_label(endpoint), before=before)
        endpoint.delete()


def webhook_secret_rotate(
    *, webhook_id: UUID, overlap: timedelta = DEFAULT_OVERLAP, now: datetime | None = None
) -> WebhookSecret:
    """Give an endpoint a new secret. For `overlap` messages are signed with both, so that the receiver can change over
    when it likes; a secret of a rotation before that ends now.

    Raises WebhookNotFound and ValidationError (field `overlap_ms`).
    """
    if not timedelta() <= overlap <= MAX_OVERLAP:
        raise ValidationError({"overlap_ms": f"Give 0 to {MAX_OVERLAP // timedelta(milliseconds=1)} ms (7 days)."})
    now = now or timezone.now()
    with transaction.atomic():
        endpoint = webhook_locked(webhook_id=webhook_id)
        was = snapshot(endpoint, only=_AUDITED)
        if overlap:
            former = _unsealed(endpoint, "secret_sealed")
            endpoint.previous_secret_sealed = _sealed(endpoint, "previous_secret_sealed", former)
            endpoint.previous_secret_until = now + overlap
        else:
            endpoint.previous_secret_sealed = endpoint.previous_secret_until = None
        secret = secret_make()
        endpoint.secret_sealed = _sealed(endpoint, "secret_sealed", secret)
        endpoint.updated_at = now
        endpoint.save()
        before, after = changes(was, snapshot(endpoint, only=_AUDITED))
        auditevent_record(
            action="webhook.rotate_secret", row=endpoint, object_label=_label(endpoint), before=before, after=after
        )
    return WebhookSecret(endpoint, secret)


def webhook_test(*, webhook_id: UUID, now: datetime | None = None) -> WebhookDelivery:
    """Put an event of the type `webhook.test` on its way, whatever the endpoint wants to hear of.

    Raises WebhookNotFound, and Conflict when it is switched off.
    """
    now = now or timezone.now()
    with transaction.atomic():
        endpoint = _on(webhook_locked(webhook_id=webhook_id))
        delivery = WebhookDelivery.objects.create(
            endpoint=endpoint,
            event_id=uuid7(),
            type=TEST_TYPE,
            occurred_at=now,
            data={"webhook_id": str(endpoint.id)},
            next_attempt_at=now,
            created_at=now,
        )
        auditevent_record(
            action="webhook.test", row=endpoint, object_label=_label(endpoint), after={"delivery_id": str(delivery.id)}
        )
    return delivery


def delivery_redeliver(*, webhook_id: UUID, delivery_id: UUID, now: datetime | None = None) -> WebhookDelivery:
    """Send a delivery again, with all its attempts, under the same `webhook-id`; one that is pending is due at once.

    Raises WebhookNotFound, DeliveryNotFound, and Conflict when the endpoint is switched off.
    """
    now = now or timezone.now()
    with transaction.atomic():
        endpoint = _on(webhook_locked(webhook_id=webhook_id))
        delivery = (
            WebhookDelivery.objects.select_for_update(no_key=True).filter(endpoint=endpoint, id=delivery_id).first()
        )
        if delivery is None:
            raise DeliveryNotFound
        delivery.state = WebhookDelivery.State.PENDING
        delivery.attempts, delivery.next_attempt_at = 0, now
        delivery.delivered_at, delivery.error = None, ""
        delivery.save()
        auditevent_record(
            action="webhook.redeliver",
            row=endpoint,
            object_label=_label(endpoint),
            after={"delivery_id": str(delivery.id), "event_id": str(delivery.event_id)},
        )
    return delivery


def webhook_locked(*, webhook_id: UUID) -> WebhookEndpoint:
    """The endpoint, held for this transaction. Raises WebhookNotFound."""
    endpoint = WebhookEndpoint.objects.select_for_update(no_key=True).filter(id=webhook_id).first()
    if endpoint is None:
        raise WebhookNotFound
    return endpoint


def webhook_switch_off(*, endpoint: WebhookEndpoint, reason: WebhookEndpoint.OffReason, now: datetime) -> None:
    """Switch an endpoint off for what its receiver does, and give up what is on its way; the caller has locked it."""
    was = snapshot(endpoint, only=_AUDITED)
    endpoint.enabled, endpoint.off_reason = False, reason
    endpoint.failures, endpoint.paused_until, endpoint.updated_at = 0, None, now
    endpoint.save()
    deliveries_give_up(endpoint=endpoint, error=f"{reason.label[0].lower()}{reason.label[1:]}; {SWITCHED_OFF}")
    before, after = changes(was, snapshot(endpoint, only=_AUDITED))
    alarm_raise(
        kind="webhook",
        subject=endpoint.id,
        data={
            "webhook_id": str(endpoint.id),
            "host": urlsplit(endpoint.url).hostname or "",
            "reason": f"{reason.label[0].lower()}{reason.label[1:]}",
        },
        now=now,
        state=now.isoformat(),
    )
    auditevent_record(
        action="webhook.switch_off", row=endpoint, object_label=_label(endpoint), before=before, after=after
    )


def deliveries_give_up(*, endpoint: WebhookEndpoint, error: str) -> int:
    """Nothing that is pending for an endpoint is sent; returns how many that were."""
    pending = WebhookDelivery.objects.filter(endpoint=endpoint, next_attempt_at__isnull=False)
    return pending.update(state=WebhookDelivery.State.FAILED, next_attempt_at=None, error=error)


def webhook_secrets(*, endpoint: WebhookEndpoint, now: datetime) -> list[str]:
    """What signs a message at `now`, the newest first. Raises SealBroken."""
    found = [_unsealed(endpoint, "secret_sealed")]
    until = endpoint.previous_secret_until
    if endpoint.previous_secret_sealed is not None and until is not None and now < until:
        found.append(_unsealed(endpoint, "previous_secret_sealed"))
    return found


def _on(endpoint: WebhookEndpoint) -> WebhookEndpoint:
    if not endpoint.enabled:
        raise Conflict("This webhook is switched off; switch it on first.")
    return endpoint


def _fill(endpoint: WebhookEndpoint, **fields: Unpack[WebhookFields]) -> None:
    if "url" in fields:
        endpoint.url = fields["url"]
    if "description" in fields:
        endpoint.description = fields["description"].strip()
        if len(endpoint.description) > MAX_DESCRIPTION_CHARS:
            raise ValidationError({"description": f"Give at most {MAX_DESCRIPTION_CHARS} characters."})
    if "event_types" in fields:
        wanted = set(fields["event_types"])
        if not wanted or wanted - EVENT_TYPES.keys():
            raise ValidationError({"event_types": f"Choose at least one of {', '.join(EVENT_TYPES)}."})
        endpoint.event_types = [known for known in EVENT_TYPES if known in wanted]
    if "enabled" in fields:
        endpoint.enabled = fields["enabled"]


def _url(url: str) -> str:
    # Resolves the name, which takes time: before any row is locked.
    url = url.strip()
    if len(url) > MAX_URL_CHARS:
        raise ValidationError({"url": f"Give at most {MAX_URL_CHARS} characters."})
    try:
        parts = urlsplit(url_check(url))
        if parts.fragment:
            raise ValidationError({"url": "Leave out what follows #; it is never sent."})
        egress_check(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    except EgressRefused as error:
        raise ValidationError({"url": f"{str(error).rstrip('.')}."}) from error
    return url


def _label(endpoint: WebhookEndpoint) -> str:
    return f"webhook to {urlsplit(endpoint.url).hostname}"


def _sealed(endpoint: WebhookEndpoint, column: str, secret: str) -> bytes:
    return seal(
        secret,
        tenant_id=tenant_id_required("Sealing a webhook's secret"),
        field=sealed_field("supervision_webhookendpoint", column, endpoint.id),
    )


def _unsealed(endpoint: WebhookEndpoint, column: str) -> str:
    return unseal_text(
        bytes(getattr(endpoint, column)),
        tenant_id=tenant_id_required("A webhook's secret"),
        field=sealed_field("supervision_webhookendpoint", column, endpoint.id),
    )
