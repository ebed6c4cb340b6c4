"""Names of what stands in Valkey for a tenant."""

from __future__ import annotations

from uuid import UUID


def tenant_key(area: str, tenant_id: UUID) -> str:
    """The key of a tenant's things of one area, such as "calls". In a cluster a tenant's keys share a node."""
    return f"mirror:{area}:{{{tenant_id}}}"
