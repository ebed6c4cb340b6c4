"""What pages say of an API key."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from tenants.models import ApiKey
from tenants.roles import Scope
from tenants.selectors.api_keys import api_key_state
from webui.presenters.pieces import Badge

STATES = {"": "All", "active": "Active", "expired": "Expired", "revoked": "Revoked"}
# Long enough to exchange a key everywhere without haste.
SOON = timedelta(days=14)


@dataclass(frozen=True, slots=True)
class ApiKeyRow:
    """A key. `left`: the person who made it is no member any more."""

    id: UUID
    name: str
    shown: str
    scopes: tuple[tuple[str, str], ...]
    state: Badge
    works: bool
    created_at: datetime
    made_by: str
    made_by_id: UUID | None
    left: bool
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    last_used_ip: str


def api_key_rows(api_keys: Iterable[ApiKey], *, now: datetime, left: Collection[UUID]) -> tuple[ApiKeyRow, ...]:
    return tuple(_row(api_key, now, api_key.id in left) for api_key in api_keys)


def _row(api_key: ApiKey, now: datetime, left: bool) -> ApiKeyRow:
    return ApiKeyRow(
        id=api_key.id,
        name=api_key.name,
        shown=str(api_key),
        scopes=tuple((scope, Scope(scope).label if scope in Scope.values else scope) for scope in api_key.scopes),
        state=_state(api_key, now),
        works=api_key_state(api_key, now=now) == "active",
        created_at=api_key.created_at,
        made_by=api_key.created_by_label,
        made_by_id=api_key.created_by_id,
        left=left,
        expires_at=api_key.expires_at,
        revoked_at=api_key.revoked_at,
        last_used_at=api_key.last_used_at,
        last_used_ip=api_key.last_used_ip,
    )


def _state(api_key: ApiKey, now: datetime) -> Badge:
    match api_key_state(api_key, now=now):
        case "revoked":
            return Badge("Revoked", "ban")
        case "expired":
            return Badge("Expired", "clock")
    if api_key.expires_at is not None and api_key.expires_at - now <= SOON:
        return Badge("Ends soon", "clock", "warn")
    return Badge("Active", "check", "good")
