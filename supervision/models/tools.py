"""What must be known of a running call's tools whatever becomes of the process that carries it."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.utils import timezone

from supervision.models.fields import flag_column, tenant_key, text_column, word_column
from tenants.managers import TenantModel
from tenants.sealing import SealedField


class LedgerEntry(TenantModel):
    """An irreversible tool call that was allowed; `id` is that of its ToolDecision.

    Stream processes write it before the permission leaves, with SQL of their own, and before anything else of the call
    has to be in the database: so `call_id` is no foreign key. It is needed while its call can go on.
    """

    class State(models.TextChoices):
        PENDING = "pending", "Allowed; whether it ran is not known"
        DONE = "done", "It ran"

    # Plivo's id, by which a call is known on whatever socket it comes back.
    plivo_call_id = models.CharField(max_length=200)
    call_id = models.UUIDField()
    # The agent's own id of the tool call, the tool's name, case-folded, and the agent's key.
    ref = models.CharField(max_length=200)
    tool = models.CharField(max_length=200)
    key = word_column(200)
    # HMAC of the canonical arguments: arguments that can be guessed cannot be tried out on it.
    args_digest = models.BinaryField()
    state = models.CharField(max_length=8, choices=State.choices)
    # What the agent said came of it, as JSON; NULL for no result, and for one that is too long to be kept.
    result_sealed = SealedField(null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now)
    done_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="ledgerentry_tenant_id"),
            models.UniqueConstraint(
                fields=["tenant", "plivo_call_id", "tool", "args_digest", "key"], name="ledgerentry_once_a_call"
            ),
            models.CheckConstraint(condition=models.Q(state__in=["pending", "done"]), name="ledgerentry_state"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "call_id"], name="ledgerentry_tenant_call"),
            models.Index(fields=["tenant", "created_at"], name="ledgerentry_tenant_age"),
        ]

    def __str__(self) -> str:
        return f"{self.tool} {self.state}"


class Approval(TenantModel):
    """A tool call that waits, or waited, for a person; `id` is that of its ToolDecision.

    The process that has the call writes it, and decides it when nobody did in time; a person decides it by
    `supervision.services.approvals`. It is decided once.
    """

    class State(models.TextChoices):
        WAITING = "waiting", "Waiting"
        APPROVED = "approved", "Approved"
        DENIED = "denied", "Denied"
        # Nobody decided in time; `on_silence` says what that meant.
        EXPIRED = "expired", "Nobody decided"
        # The caller hung up, or the agent withdrew the tool call.
        CANCELLED = "cancelled", "Withdrawn"
        # It was approved, and the agent had stopped waiting when that reached the call.
        VOID = "void", "Approved too late"

    call_id = models.UUIDField()
    agent = tenant_key("supervision.Agent", related_name="approvals")
    ref = models.CharField(max_length=200)
    tool = models.CharField(max_length=200)
    # As the tenant's redaction leaves them; NULL when they were too long to be shown.
    args: models.JSONField[Any, Any] = models.JSONField(null=True, blank=True)
    irreversible = flag_column()
    # `deny` or `allow`: what becomes of the tool call when nobody decides.
    on_silence = models.CharField(max_length=8)
    state = models.CharField(max_length=16, choices=State.choices, default=State.WAITING, db_default="waiting")
    requested_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    decided_at = models.DateTimeField(null=True, blank=True)
    # Who decided, as in the audit log; empty when nobody did.
    decided_by = text_column()
    note = text_column()

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="approval_tenant_id"),
            models.CheckConstraint(
                condition=models.Q(state__in=["waiting", "approved", "denied", "expired", "cancelled", "void"]),
                name="approval_state",
            ),
            models.CheckConstraint(condition=models.Q(on_silence__in=["deny", "allow"]), name="approval_on_silence"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "call_id"], name="approval_tenant_call"),
            models.Index(fields=["tenant", "requested_at"], name="approval_tenant_age"),
            models.Index(fields=["tenant", "agent"], name="approval_tenant_agent"),
            models.Index(
                fields=["tenant", "expires_at"],
                condition=models.Q(state="waiting"),
                name="approval_tenant_waiting",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.tool} {self.state}"
