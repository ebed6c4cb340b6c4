"""What a tenant wants kept of its calls, and for how long."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.utils import timezone

from supervision.models.fields import list_column
from tenants.managers import TenantModel

REDACTED_KINDS = ("card", "email", "phone")


def redacted_by_default() -> list[str]:
    return list(REDACTED_KINDS)


class PrivacySettings(TenantModel):
    """A tenant's choice; without a row everything that is known is redacted and nothing is deleted for its age."""

    # Calls that ended longer ago are deleted; NULL keeps them.
    retention_days = models.IntegerField(null=True, blank=True)
    # Of `card`, `email` and `phone`.
    redact: models.JSONField[Any, Any] = models.JSONField(
        default=redacted_by_default,
        db_default=models.Value(list(REDACTED_KINDS), models.JSONField()),
    )
    # Numbers without a country code are read as this region's (ISO 3166-1 alpha-2).
    phone_region = models.CharField(max_length=2, default="US", db_default="US")
    # The tenant's own: a list of {"name": str, "pattern": str}, RE2 syntax.
    patterns = list_column()
    updated_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="privacysettings_tenant_id"),
            models.UniqueConstraint(fields=["tenant"], name="privacysettings_one_a_tenant"),
            models.CheckConstraint(
                condition=models.Q(retention_days__isnull=True) | models.Q(retention_days__gte=1),
                name="privacysettings_retention",
            ),
        ]

    def __str__(self) -> str:
        return f"privacy of {self.tenant_id}"
