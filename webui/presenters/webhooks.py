"""What pages say of webhooks and of what was sent to them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit
from uuid import UUID

from supervision.models import WebhookAttempt, WebhookDelivery, WebhookEndpoint
from supervision.webhooks import EVENT_TYPES, body_make
from webui.presenters.pieces import Badge


@dataclass(frozen=True, slots=True)
class WebhookRow:
    """An endpoint; `why` explains its state where that is not what somebody of the tenant chose."""

    id: UUID
    host: str
    url: str
    description: str
    events: tuple[tuple[str, str], ...]
    enabled: bool
    state: Badge
    why: str
    paused_until: datetime | None
    previous_secret_until: datetime | None
    insecure: bool
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """An event on its way to an endpoint, or there."""

    id: UUID
    event_id: UUID
    type: str
    occurred_at: datetime
    state: Badge
    is_pending: bool
    attempts: int
    next_attempt_at: datetime | None
    delivered_at: datetime | None
    error: str


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One attempt; `status` is empty when there was no answer."""

    at: datetime
    status: str
    good: bool
    duration_ms: int
    error: str
    excerpt: str


def event_words(event_type: str) -> str:
    """When an event comes, in words of a page, which shows names of fields as they are."""
    return EVENT_TYPES.get(event_type, "").replace("`", "")


def webhook_rows(endpoints: Iterable[WebhookEndpoint], *, now: datetime) -> tuple[WebhookRow, ...]:
    return tuple(webhook_row(endpoint, now=now) for endpoint in endpoints)


def webhook_row(endpoint: WebhookEndpoint, *, now: datetime) -> WebhookRow:
    paused = endpoint.paused_until if endpoint.paused_until and endpoint.paused_until > now else None
    parts = urlsplit(endpoint.url)
    state, why = _state(endpoint, paused is not None)
    signs_too = endpoint.previous_secret_until
    return WebhookRow(
        id=endpoint.id,
        host=parts.netloc,
        url=endpoint.url,
        description=endpoint.description,
        events=tuple((name, event_words(name)) for name in endpoint.event_types),
        enabled=endpoint.enabled,
        state=state,
        why=why,
        paused_until=paused,
        previous_secret_until=signs_too if signs_too and signs_too > now else None,
        insecure=parts.scheme != "https",
        created_at=endpoint.created_at,
        updated_at=endpoint.updated_at,
    )


def _state(endpoint: WebhookEndpoint, paused: bool) -> tuple[Badge, str]:
    off = Badge("Switched off", "alert", "bad")
    match endpoint.enabled, endpoint.off_reason:
        case False, WebhookEndpoint.OffReason.GONE:
            return off, "Its receiver answered 410 Gone, so Mirror switched it off."
        case False, WebhookEndpoint.OffReason.FAILING:
            return off, "Its receiver took nothing for days, so Mirror switched it off."
        case False, _:
            return Badge("Off", "ban"), ""
    if paused:
        attempts = endpoint.failures
        return Badge("Paused", "clock", "warn"), f"{attempts} attempts in a row failed. Then one delivery is tried."
    return Badge("On", "check", "good"), ""


def delivery_rows(deliveries: Iterable[WebhookDelivery]) -> tuple[DeliveryRow, ...]:
    return tuple(delivery_row(delivery) for delivery in deliveries)


def delivery_row(delivery: WebhookDelivery) -> DeliveryRow:
    pending = delivery.state == WebhookDelivery.State.PENDING
    match delivery.state:
        case WebhookDelivery.State.DELIVERED:
            state = Badge("Delivered", "check", "good")
        case WebhookDelivery.State.FAILED:
            state = Badge("Failed", "alert", "bad")
        case _:
            state = Badge("Trying again", "clock", "warn") if delivery.error else Badge("On its way", "clock")
    return DeliveryRow(
        id=delivery.id,
        event_id=delivery.event_id,
        type=delivery.type,
        occurred_at=delivery.occurred_at,
        state=state,
        is_pending=pending,
        attempts=delivery.attempts,
        next_attempt_at=delivery.next_attempt_at,
        delivered_at=delivery.delivered_at,
        error=delivery.error,
    )


def delivery_body(delivery: WebhookDelivery) -> str:
    """The message as it is sent, indented."""
    body = body_make(event_type=delivery.type, occurred_at=delivery.occurred_at, data=delivery.data)
    return json.dumps(json.loads(body), indent=2, ensure_ascii=False)


def attempt_rows(attempts: Iterable[WebhookAttempt]) -> tuple[AttemptRow, ...]:
    return tuple(
        AttemptRow(
            at=attempt.at,
            status="" if attempt.status is None else str(attempt.status),
            good=not attempt.error,
            duration_ms=attempt.duration_ms,
            error=attempt.error,
            excerpt=attempt.excerpt,
        )
        for attempt in attempts
    )
