"""Policies: a named bundle of rules, and its versions."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.db.models.functions import Now
from django.utils import timezone

from supervision.models.fields import tenant_key, text_column
from tenants.managers import TenantModel


class Policy(TenantModel):
    """A named policy. What new calls get is its live version."""

    name = models.CharField(max_length=200)
    # Counts renames and whatever changes what new calls get: the policy's ETag, and part of its versions'.
    revision = models.IntegerField(default=1, db_default=1)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(default=timezone.now, db_default=Now(), editable=False)
    # Calls point at their policy for as long as they are kept, so it is archived, never deleted.
    archived_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="policy_tenant_id"),
            models.UniqueConstraint(
                fields=["tenant", "name"], condition=models.Q(archived_at=None), name="policy_tenant_name"
            ),
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
    # A list of {"text": str, "severity": "low" | "medium" | "high"}, and where a rule has them {"statement": str},
    # {"tools": [str]}, {"enabled": false}.
    rules: models.JSONField[Any, Any] = models.JSONField(default=list)
    # MirrorConfig's fields without `llm`, `policies`, secrets and `tenant_id`; {} means the engine's defaults.
    config: models.JSONField[Any, Any] = models.JSONField(default=dict, blank=True)
    llm_credential = tenant_key("supervision.ProviderCredential", related_name="policy_versions", null=True)
    # Asked when the first does not answer.
    fallback_credential = tenant_key("supervision.ProviderCredential", related_name="fallback_versions", null=True)
    # What changed and why, for people.
    note = text_column()
    # Counts the changes of the draft and of its status.
    revision = models.IntegerField(default=1, db_default=1)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(default=timezone.now, db_default=Now(), editable=False)
    # When it went live last.
    published_at = models.DateTimeField(null=True, blank=True)
    # When it was taken back; a rollback does not return to it by itself.
    rolled_back_at = models.DateTimeField(null=True, blank=True)

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
            models.Index(fields=["tenant", "fallback_credential"], name="policyversion_tenant_fallback"),
        ]

    def __str__(self) -> str:
        return f"version {self.number}"
