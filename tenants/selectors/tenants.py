"""Finding tenants, also before one is current."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from django.db import connection

from tenants.context import tenant_context
from tenants.models import Tenant


@dataclass(frozen=True, slots=True)
class TenantRef:
    """What pages and answers say of a tenant."""

    id: UUID
    slug: str
    name: str


class TenantNotFound(LookupError):
    """No tenant has this slug."""

    def __init__(self, slug: str) -> None:
        super().__init__(f"There is no tenant {slug!r}.")


def tenant_get() -> Tenant:
    """The current tenant with its settings. Raises TenantContextMissing and Tenant.DoesNotExist."""
    return Tenant.objects.get()


def tenant_current() -> TenantRef:
    """The current tenant. Raises TenantContextMissing without one, Tenant.DoesNotExist when it was deleted."""
    tenant = tenant_get()
    return TenantRef(id=tenant.id, slug=tenant.slug, name=tenant.name)


def tenant_by_slug(*, slug: str) -> TenantRef:
    """The tenant called `slug`. Raises TenantNotFound."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT tenant_lookup(%s)", [slug])
        tenant_id = cursor.fetchone()[0]
    if tenant_id is None:
        raise TenantNotFound(slug)
    with tenant_context(tenant_id):
        return tenant_current()


def tenant_ids_list() -> list[UUID]:
    """Every tenant's id, oldest first: for schedules that visit each tenant in turn."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT tenant_ids_list()")
        return [row[0] for row in cursor.fetchall()]
