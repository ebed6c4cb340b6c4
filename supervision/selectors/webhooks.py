"""Reading the current tenant's webhooks and what was sent to them, without their secrets."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.db import connection

from mirror_saas.pages import DEFAULT_LIMIT, Page
from supervision.errors import NotFound
from supervision.models import WebhookAttempt, WebhookDelivery, WebhookEndpoint
from supervision.selectors.pages import newest_page


class WebhookNotFound(NotFound):
    """The current tenant has no webhook with this id."""

    def __init__(self) -> None:
        super().__init__("There is no such webhook.")


class DeliveryNotFound(NotFound):
    """The webhook has no delivery with this id; it may have been pruned."""

    def __init__(self) -> None:
        super().__init__("There is no such delivery.")


def webhook_list(*, cursor: str | None = None, limit: int = DEFAULT_LIMIT) -> Page[WebhookEndpoint]:
    """Endpoints, newest first. Raises InvalidInput and BadCursor."""
    return newest_page(WebhookEndpoint.objects.all(), cursor=cursor, limit=limit)


def webhook_get(*, webhook_id: UUID) -> WebhookEndpoint:
    """One endpoint. Raises WebhookNotFound."""
    endpoint = WebhookEndpoint.objects.filter(id=webhook_id).first()
    if endpoint is None:
        raise WebhookNotFound
    return endpoint


def delivery_list(
    *,
    webhook_id: UUID,
    state: str | None = None,
    event_type: str | None = None,
    cursor: str | None = None,
    limit: int = DEFAULT_LIMIT,
) -> Page[WebhookDelivery]:
    """Deliveries of an endpoint, newest first. Raises WebhookNotFound, InvalidInput and BadCursor."""
    deliveries = WebhookDelivery.objects.filter(endpoint=webhook_get(webhook_id=webhook_id))
    if state is not None:
        deliveries = deliveries.filter(state=state)
    if event_type is not None:
        deliveries = deliveries.filter(type=event_type)
    return newest_page(deliveries, cursor=cursor, limit=limit)


def delivery_get(*, webhook_id: UUID, delivery_id: UUID) -> WebhookDelivery:
    """One delivery of an endpoint. Raises WebhookNotFound and DeliveryNotFound."""
    delivery = WebhookDelivery.objects.filter(endpoint=webhook_get(webhook_id=webhook_id), id=delivery_id).first()
    if delivery is None:
        raise DeliveryNotFound
    return delivery


def attempt_list(*, delivery_id: UUID, limit: int = 100) -> list[WebhookAttempt]:
    """The newest attempts at a delivery, the newest first."""
    return list(WebhookAttempt.objects.filter(delivery_id=delivery_id).order_by("-id")[:limit])


def webhook_tenants_due(*, now: datetime) -> list[UUID]:
    """The tenants that have something to send at `now`: for the schedule that tells them to."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT webhook_tenants_due(%s)", [now])
        return [row[0] for row in cursor.fetchall()]
