"""Who is mailed of what goes wrong, and what went wrong."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.utils import timezone

from supervision.models.fields import list_column, tenant_key
from tenants.managers import TenantModel


class AlarmRecipient(TenantModel):
    """A member who gets alarm mails. Who leaves the tenant gets none any more: the row goes with the membership."""

    membership = tenant_key("tenants.Membership", related_name="+")
    # The kinds that they want, of supervision.alarms.KINDS.
    kinds = list_column()
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="alarmrecipient_tenant_id"),
            models.UniqueConstraint(fields=["tenant", "membership"], name="alarmrecipient_one_a_member"),
        ]

    def __str__(self) -> str:
        return f"alarm mails of member {self.membership_id}"


class Alarm(TenantModel):
    """Something that went wrong while somebody wanted to hear of it, written in the transaction of what happened."""

    kind = models.CharField(max_length=16)
    # Made of what happened: told twice, it is one alarm.
    event_id = models.UUIDField()
    occurred_at = models.DateTimeField()
    # Ids and facts, as webhooks have them.
    data: models.JSONField[dict[str, object], dict[str, object]] = models.JSONField()
    # The mail that told of it, and when that was made up; NULL while it waits for one.
    mail_id = models.UUIDField(null=True, blank=True)
    mailed_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="alarm_tenant_id"),
            models.UniqueConstraint(fields=["tenant", "event_id"], name="alarm_one_an_event"),
            models.CheckConstraint(
                condition=models.Q(mail_id__isnull=True, mailed_at__isnull=True)
                | models.Q(mail_id__isnull=False, mailed_at__isnull=False),
                name="alarm_mailed_by_a_mail",
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "-created_at", "-id"], name="alarm_age"),
            models.Index(fields=["tenant", "mail_id"], name="alarm_mail"),
            models.Index(
                fields=["tenant", "created_at"], condition=models.Q(mail_id__isnull=True), name="alarm_waiting"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.event_id}"
