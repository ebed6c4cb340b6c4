"""Where a tenant wants to hear of what happens, and what is on its way there."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.utils import timezone

from supervision.models.fields import count_column, list_column, tenant_key, text_column, word_column
from tenants.managers import TenantModel
from tenants.sealing import SealedField


class WebhookEndpoint(TenantModel):
    """A URL that events are sent to, signed."""

    class OffReason(models.TextChoices):
        GONE = "gone", "The receiver answered 410 Gone"
        FAILING = "failing", "The receiver took nothing for days"

    url = models.TextField()
    description = text_column()
    # The event types that it wants, of supervision.webhooks.EVENT_TYPES.
    event_types = list_column()
    enabled = models.BooleanField(default=True, db_default=True)
    # Why it is off, when nobody of the tenant switched it off.
    off_reason = word_column(16, choices=OffReason.choices)
    secret_sealed = SealedField()
    # What signs beside it until then, after a rotation.
    previous_secret_sealed = SealedField(null=True, blank=True)
    previous_secret_until = models.DateTimeField(null=True, blank=True)
    # The circuit breaker: attempts that failed in a row, and until when nothing is sent for that.
    failures = count_column()
    paused_until = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="webhookendpoint_tenant_id"),
        ]

    def __str__(self) -> str:
        return f"webhook {self.id}"


class WebhookDelivery(TenantModel):
    """The outbox: an event for an endpoint, written in the transaction of what happened."""

    class State(models.TextChoices):
        PENDING = "pending", "Pending"
        DELIVERED = "delivered", "Delivered"
        FAILED = "failed", "Failed"

    endpoint = tenant_key("supervision.WebhookEndpoint", related_name="deliveries")
    # What the receiver knows it by (`webhook-id`): the same for every attempt and every endpoint.
    event_id = models.UUIDField()
    type = models.CharField(max_length=64)
    occurred_at = models.DateTimeField()
    data: models.JSONField[dict[str, object], dict[str, object]] = models.JSONField()
    state = models.CharField(max_length=16, choices=State.choices, default=State.PENDING, db_default="pending")
    # Attempts that began since it was written or last redelivered.
    attempts = count_column()
    # NULL unless pending. While an attempt is under way: when somebody else may make it, because whoever did is dead.
    next_attempt_at = models.DateTimeField(null=True, blank=True, default=timezone.now)
    # Why it is not delivered, as the last attempt had it.
    error = text_column()
    delivered_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="webhookdelivery_tenant_id"),
            models.UniqueConstraint(fields=["tenant", "endpoint", "event_id"], name="webhookdelivery_one_an_event"),
            models.CheckConstraint(
                condition=models.Q(state__in=["pending", "delivered", "failed"]), name="webhookdelivery_state"
            ),
            models.CheckConstraint(
                condition=models.Q(state="pending", next_attempt_at__isnull=False)
                | (~models.Q(state="pending") & models.Q(next_attempt_at__isnull=True)),
                name="webhookdelivery_due_if_pending",
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "endpoint", "-created_at", "-id"], name="webhookdelivery_log"),
            models.Index(
                fields=["tenant", "endpoint", "next_attempt_at"],
                condition=models.Q(next_attempt_at__isnull=False),
                name="webhookdelivery_due",
            ),
            models.Index(fields=["tenant", "created_at"], name="webhookdelivery_age"),
        ]

    def __str__(self) -> str:
        return f"{self.type} {self.event_id}"


class WebhookAttempt(TenantModel):
    """What came of sending a delivery once."""

    delivery = tenant_key("supervision.WebhookDelivery", related_name="log")
    at = models.DateTimeField(default=timezone.now)
    # Of the answer; NULL when there was none.
    status = models.IntegerField(null=True, blank=True)
    duration_ms = models.BigIntegerField()
    error = text_column()
    # The first characters of an answer that was no success.
    excerpt = text_column()

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="webhookattempt_tenant_id"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "delivery", "id"], name="webhookattempt_delivery"),
        ]

    def __str__(self) -> str:
        return f"attempt at {self.at.isoformat()}"
