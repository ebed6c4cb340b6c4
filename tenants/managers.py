"""Managers and the base model of every row that belongs to a tenant."""

from __future__ import annotations

from typing import Any, ClassVar, Self, TypeVar

from django.db import models

from mirror_saas.ids import uuid7
from tenants.context import tenant_id_default, tenant_id_required

ModelT = TypeVar("ModelT", bound=models.Model)


class TenantManager(models.Manager[ModelT]):
    """Rows of the current tenant. Without a tenant context every query raises TenantContextMissing."""

    def get_queryset(self) -> models.QuerySet[ModelT]:
        tenant_id = tenant_id_required(f"A query of {self.model.__name__}")
        return super().get_queryset().filter(tenant_id=tenant_id)


class TenantModel(models.Model):
    """A row of a tenant. The tables' foreign keys, row-level security and grants are in the migrations:
    Django knows neither composite foreign keys nor policies."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    tenant: models.ForeignKey[Any, Any] = models.ForeignKey(
        "tenants.Tenant",
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        db_index=False,
        default=tenant_id_default,
        editable=False,
        related_name="+",
    )

    objects: ClassVar[TenantManager[Self]] = TenantManager()

    class Meta:
        abstract = True
