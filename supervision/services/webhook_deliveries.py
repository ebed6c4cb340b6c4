"""Sending what is in the outbox, at least once, and keeping the log of it.

A delivery is claimed by moving the time of its next attempt behind the longest attempt, in a transaction that is over
before anything is sent. Who dies in between leaves it pending, and due again when that time has come; who is merely
slow finds, by that time, that it is not its own any more.
"""

from __future__ import annotations

import asyncio
import random as random_module
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.db.models import Q
from django.utils import timezone

from mirror_saas.egress import EgressRefused
from mirror_saas.egress_http import EgressClient, EgressFailed
from mirror_saas.logging import mask_secrets
from supervision.models import WebhookAttempt, WebhookDelivery, WebhookEndpoint
from supervision.services.webhooks import SWITCHED_OFF, deliveries_give_up, webhook_secrets, webhook_switch_off
from supervision.webhooks import (
    BREAKER_FAILURES,
    MAX_ATTEMPTS,
    Random,
    body_make,
    breaker_pause,
    headers_make,
    retry_after_read,
    retry_delay,
)
from tenants.context import tenant_context
from tenants.envelope import SealBroken

ATTEMPT_TIMEOUT_S: Final = 15.0
# Longer than an attempt and what is done before and after it; what was claimed by somebody who died waits for it.
LEASE: Final = timedelta(seconds=60)
MAX_ANSWER_BYTES: Final = 64 * 1024
EXCERPT_CHARS: Final = 200
KEPT: Final = timedelta(days=30)
# Endpoints that have had something due for so long, and take nothing, are switched off.
OVERDUE: Final = timedelta(days=3)
# At once to one endpoint; to one that is being tried again, one.
_AT_ONCE: Final = 8
# A worker has other tenants, too: the schedule comes again.
_RUN_S: Final = 20.0
_PRUNE_BATCH: Final = 1000

Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class Claimed:
    """A delivery that is ours to attempt until `until`."""

    delivery_id: UUID
    endpoint_id: UUID
    until: datetime
    url: str = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    # The one that is tried after a pause.
    probe: bool
    # Why it cannot be sent at all.
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attempt. `error` is empty when the receiver took it."""

    at: datetime
    duration_ms: int
    status: int | None
    error: str
    excerpt: str = field(default="", repr=False)
    retry_after_s: float | None = None


def deliveries_send(
    *,
    tenant_id: UUID,
    now: Clock = timezone.now,
    random: Random = random_module.random,
    run_s: float = _RUN_S,
    elapsed: Callable[[], float] = time.monotonic,
) -> int:
    """Attempt what is due for a tenant, until nothing is or `run_s` are over; returns the number of attempts.

    No transaction may be open: receivers are slow.
    """
    end = elapsed() + run_s
    attempts = 0
    while True:
        with tenant_context(tenant_id):
            batch = deliveries_claim(now=now())
        if not batch:
            return attempts
        for claimed, outcome in zip(batch, asyncio.run(_attempts(batch, now)), strict=True):
            with tenant_context(tenant_id):
                delivery_settle(claimed=claimed, outcome=outcome, now=now(), random=random)
        attempts += len(batch)
        if elapsed() >= end:
            return attempts


def deliveries_claim(*, now: datetime) -> list[Claimed]:
    """Claim what is due at `now` in the current tenant, at most 8 for each endpoint: of one that was paused, 1."""
    claimed = []
    awake = WebhookEndpoint.objects.filter(Q(paused_until__isnull=True) | Q(paused_until__lte=now), enabled=True)
    for endpoint in awake.order_by("id").select_for_update(no_key=True, skip_locked=True):
        probe = endpoint.failures >= BREAKER_FAILURES
        due = WebhookDelivery.objects.filter(endpoint=endpoint, next_attempt_at__lte=now)
        rows = list(
            due.order_by("next_attempt_at", "id").select_for_update(no_key=True, skip_locked=True)[
                : 1 if probe else _AT_ONCE
            ]
        )
        if not rows:
            continue
        if probe:
            # Nobody else tries it meanwhile.
            endpoint.paused_until = now + LEASE
            endpoint.save(update_fields=["paused_until"])
        try:
            secrets, problem = webhook_secrets(endpoint=endpoint, now=now), ""
        except SealBroken:
            secrets, problem = [], "the secret cannot be opened with the keys of this installation; rotate it"
        for row in rows:
            row.attempts += 1
            row.next_attempt_at = now + LEASE
            row.save(update_fields=["attempts", "next_attempt_at"])
            body = body_make(event_type=row.type, occurred_at=row.occurred_at, data=row.data)
            headers = headers_make(message_id=row.event_id, body=body, secrets=secrets, now=now)
            claimed.append(
                Claimed(row.id, endpoint.id, row.next_attempt_at, endpoint.url, headers, body, probe, problem)
            )
    return claimed


def delivery_settle(*, claimed: Claimed, outcome: Outcome, now: datetime, random: Random) -> None:
    """Write down what came of an attempt, and what follows for the delivery and its endpoint."""
    endpoint = WebhookEndpoint.objects.select_for_update(no_key=True).filter(id=claimed.endpoint_id).first()
    rows = WebhookDelivery.objects.select_for_update(no_key=True).filter(id=claimed.delivery_id)
    delivery = rows.first()
    if endpoint is None or delivery is None:
        # Deleted meanwhile, and its log with it.
        return
    WebhookAttempt.objects.create(
        delivery=delivery,
        at=outcome.at,
        status=outcome.status,
        duration_ms=outcome.duration_ms,
        error=outcome.error,
        excerpt=outcome.excerpt,
    )
    if delivery.next_attempt_at == claimed.until:
        _delivery_follow(delivery, outcome, now, random)
    if endpoint.enabled:
        _endpoint_follow(endpoint, claimed, outcome, now, random)


def deliveries_prune(*, now: datetime) -> int:
    """Switch off endpoints that are paused and have had something due for 3 days; forget what is over and older than 30
    days, and say how many that were."""
    overdue = WebhookDelivery.objects.filter(next_attempt_at__lt=now - OVERDUE)
    # Failures in a row: after an outage of our own, too, much has been due for long, and nobody is to blame but us.
    down = WebhookEndpoint.objects.filter(enabled=True, failures__gte=BREAKER_FAILURES)
    down = down.filter(id__in=overdue.values("endpoint_id"))
    for endpoint in down.order_by("id").select_for_update(no_key=True):
        webhook_switch_off(endpoint=endpoint, reason=WebhookEndpoint.OffReason.FAILING, now=now)
    # Written while the endpoint was being switched off.
    for endpoint in WebhookEndpoint.objects.filter(enabled=False):
        deliveries_give_up(endpoint=endpoint, error=SWITCHED_OFF)
    over = WebhookDelivery.objects.filter(created_at__lt=now - KEPT, next_attempt_at__isnull=True)
    pruned = 0
    while ids := list(over.order_by("created_at").values_list("id", flat=True)[:_PRUNE_BATCH]):
        WebhookDelivery.objects.filter(id__in=ids).delete()
        pruned += len(ids)
    return pruned


def _delivery_follow(delivery: WebhookDelivery, outcome: Outcome, now: datetime, random: Random) -> None:
    delivery.error = outcome.error
    if not outcome.error:
        delivery.state, delivery.next_attempt_at, delivery.delivered_at = WebhookDelivery.State.DELIVERED, None, now
    elif delivery.attempts >= MAX_ATTEMPTS:
        delivery.state, delivery.next_attempt_at = WebhookDelivery.State.FAILED, None
    else:
        delay = retry_delay(attempts=delivery.attempts, random=random, retry_after_s=outcome.retry_after_s)
        delivery.next_attempt_at = now + delay
    delivery.save(update_fields=["state", "next_attempt_at", "delivered_at", "error"])


def _endpoint_follow(
    endpoint: WebhookEndpoint, claimed: Claimed, outcome: Outcome, now: datetime, random: Random
) -> None:
    if outcome.status == 410:
        webhook_switch_off(endpoint=endpoint, reason=WebhookEndpoint.OffReason.GONE, now=now)
        return
    if not outcome.error:
        failures, paused_until = 0, None
    elif endpoint.failures >= BREAKER_FAILURES and not claimed.probe:
        # Under way when the others failed: they have paused it.
        return
    else:
        failures = endpoint.failures + 1
        pause = breaker_pause(failures=failures, random=random)
        paused_until = None if pause is None else now + pause
    if (failures, paused_until) != (endpoint.failures, endpoint.paused_until):
        endpoint.failures, endpoint.paused_until = failures, paused_until
        endpoint.save(update_fields=["failures", "paused_until"])


async def _attempts(batch: list[Claimed], now: Clock) -> list[Outcome]:
    async with EgressClient() as client:
        return await asyncio.gather(*(_attempt(client, claimed, now) for claimed in batch))


async def _attempt(client: EgressClient, claimed: Claimed, now: Clock) -> Outcome:
    at, began = now(), time.monotonic()

    def outcome(status: int | None, error: str, excerpt: str = "", retry_after_s: float | None = None) -> Outcome:
        return Outcome(at, round((time.monotonic() - began) * 1000), status, error, excerpt, retry_after_s)

    if claimed.problem:
        return outcome(None, claimed.problem)
    try:
        answer = await client.request(
            "POST",
            claimed.url,
            headers=claimed.headers,
            body=claimed.body,
            timeout_s=ATTEMPT_TIMEOUT_S,
            max_bytes=MAX_ANSWER_BYTES,
            max_redirects=0,
        )
    except (EgressRefused, EgressFailed) as problem:
        return outcome(None, str(problem))
    if 200 <= answer.status < 300:
        return outcome(answer.status, "")
    said = "answered with a redirect, which is not followed" if 300 <= answer.status < 400 else "answered"
    return outcome(
        answer.status,
        f"the receiver {said} ({answer.status})",
        _excerpt(answer.body),
        retry_after_read(answer.headers.get("retry-after")),
    )


def _excerpt(body: bytes) -> str:
    text = body[: 4 * EXCERPT_CHARS].decode("utf-8", "replace")
    return mask_secrets(text).replace("\x00", "")[:EXCERPT_CHARS]
