"""Policies: a named bundle of rules, and its versions."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.utils import timezone

from supervision.models.fields import tenant_key
from tenants.managers import TenantModel


class Policy(TenantModel):
    """A named policy. What new calls get is its live version."""

    name = models.CharField(max_length=200)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    archived_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="policy_tenant_id"),
            models.UniqueConstraint(fields=["tenant", "name"], name="policy_tenant_name"),
        ]

    def __str__(self) -> str:
        return self.name


class PolicyVersion(TenantModel):
    """Rules and settings of a policy. A draft can change; a published version cannot."""

    class Status(models.TextChoices):
        DRAFT = "draft", "Draft"
        SHADOW = "shadow", "Shadow"
        LIVE = "live", "Live"
        RETIRED = "retired", "Retired"

    policy = tenant_key("supervision.Policy", related_name="versions")
    number = models.IntegerField()
    status = models.CharField(max_length=8, choices=Status.choices, default=Status.DRAFT, db_default="draft")
    # A list of {"text": str, "severity": "low" | "medium" | "high"}.
    rules: models.JSONField[Any, Any] = models.JSONField(default=list)
    # MirrorConfig's fields without `llm`, `policies`, secrets and `tenant_id`; {} means the engine's defaults.
    config: models.JSONField[Any, Any] = models.JSONField(default=dict, blank=True)
    llm_credential = tenant_key("supervision.ProviderCredential", related_name="policy_versions", null=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    published_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="policyversion_tenant_id"),
            models.UniqueConstraint(fields=["tenant", "policy", "number"], name="policyversion_tenant_number"),
            models.UniqueConstraint(
                fields=["tenant", "policy"], condition=models.Q(status="live"), name="policyversion_one_live"
            ),
            models.CheckConstraint(
                condition=models.Q(status__in=["draft", "shadow", "live", "retired"]), name="policyversion_status"
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "llm_credential"], name="policyversion_tenant_llm"),
        ]

    def __str__(self) -> str:
        return f"version {self.number}"
