"""Which of a tenant's credentials new drafts and new agents get."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.utils import timezone

from supervision.models.fields import tenant_key
from tenants.managers import TenantModel


class ModelDefaults(TenantModel):
    """A tenant's choice; without a row there are no defaults."""

    # The language model that judges, kind `llm`.
    llm_credential = tenant_key("supervision.ProviderCredential", related_name="default_for_drafts", null=True)
    # The voice, kind `tts`.
    tts_credential = tenant_key("supervision.ProviderCredential", related_name="default_for_agents", null=True)
    updated_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="modeldefaults_tenant_id"),
            models.UniqueConstraint(fields=["tenant"], name="modeldefaults_one_a_tenant"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "llm_credential"], name="modeldefaults_tenant_llm"),
            models.Index(fields=["tenant", "tts_credential"], name="modeldefaults_tenant_tts"),
        ]

    def __str__(self) -> str:
        return f"default models of {self.tenant_id}"
