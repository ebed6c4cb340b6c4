"""Which Plivo accounts a tenant has stored; never with their tokens."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from supervision.models import ProviderCredential


@dataclass(frozen=True, slots=True)
class PlivoAccountRef:
    """A stored Plivo account; `updated_at` is when its token was stored last."""

    id: UUID
    auth_id: str
    name: str
    updated_at: datetime


def plivo_account_list() -> list[PlivoAccountRef]:
    """The current tenant's Plivo accounts, the one stored last first."""
    rows = (
        ProviderCredential.objects.filter(kind=ProviderCredential.Kind.PLIVO)
        .order_by("-updated_at", "id")
        .values_list("id", "account", "name", "updated_at")
    )
    return [PlivoAccountRef(*row) for row in rows]
