"""Reading the current tenant's API keys. Nobody can read a key's secret: only its hash is kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

from django.db.models import Q, QuerySet
from django.utils import timezone

from mirror_saas.errors import NotFound
from mirror_saas.pages import DEFAULT_LIMIT, BadCursor, Page, cursor_decode, cursor_encode, limit_check
from tenants.models import ApiKey, Membership

ApiKeyState = Literal["active", "expired", "revoked"]


class ApiKeyNotFound(NotFound):
    """The current tenant has no such key."""

    def __init__(self) -> None:
        super().__init__("There is no such API key.")


@dataclass(frozen=True, slots=True)
class ApiKeyFilters:
    """Which keys a list shows; None leaves a filter out. `created_by_id` is a person's or a key's id."""

    state: ApiKeyState | None = None
    created_by_id: UUID | None = None


_ALL = ApiKeyFilters()


def api_key_state(api_key: ApiKey, *, now: datetime) -> ApiKeyState:
    """Whether the key works at `now`, and if not, why. A revoked key stays revoked, whatever its expiry."""
    if api_key.revoked_at is not None:
        return "revoked"
    if api_key.expires_at is not None and api_key.expires_at <= now:
        return "expired"
    return "active"


def api_key_get(*, api_key_id: UUID) -> ApiKey:
    """One key. Raises ApiKeyNotFound, for somebody else's too."""
    try:
        return ApiKey.objects.get(id=api_key_id)
    except ApiKey.DoesNotExist as error:
        raise ApiKeyNotFound from error


def api_keys_active(*, now: datetime | None = None) -> QuerySet[ApiKey]:
    """The keys that work at `now`."""
    return ApiKey.objects.filter(_in_state("active", now or timezone.now()))


def api_key_list(
    *,
    cursor: str | None = None,
    limit: int = DEFAULT_LIMIT,
    filters: ApiKeyFilters = _ALL,
    now: datetime | None = None,
) -> Page[ApiKey]:
    """Keys, newest first, those that work no more too. `limit` is 1 to 200. Raises InvalidInput and BadCursor."""
    limit_check(limit)
    keys = ApiKey.objects.all()
    if filters.state is not None:
        keys = keys.filter(_in_state(filters.state, now or timezone.now()))
    if filters.created_by_id is not None:
        keys = keys.filter(created_by_id=filters.created_by_id)
    if cursor is not None:
        at, api_key_id = _cursor_key(cursor)
        keys = keys.filter(Q(created_at__lt=at) | Q(created_at=at, id__lt=api_key_id))
    rows = list(keys.order_by("-created_at", "-id")[: limit + 1])
    last = rows[limit - 1] if len(rows) > limit else None
    return Page(
        items=rows[:limit],
        next=cursor_encode(last.created_at.isoformat(), str(last.id)) if last is not None else None,
    )


def api_keys_without_maker(api_keys: Iterable[ApiKey]) -> frozenset[UUID]:
    """The ids of those `api_keys` that a person made who is no member any more: an owner may want to revoke them."""
    made_by = {key.id: key.created_by_id for key in api_keys if key.created_by_kind == "user"}
    members = set(Membership.objects.filter(user_id__in=set(made_by.values())).values_list("user_id", flat=True))
    return frozenset(key_id for key_id, user_id in made_by.items() if user_id not in members)


def _in_state(state: ApiKeyState, now: datetime) -> Q:
    match state:
        case "revoked":
            return Q(revoked_at__isnull=False)
        case "expired":
            return Q(revoked_at=None, expires_at__lte=now)
        case "active":
            return Q(revoked_at=None) & (Q(expires_at=None) | Q(expires_at__gt=now))


def _cursor_key(cursor: str) -> tuple[datetime, UUID]:
    at_text, id_text = cursor_decode(cursor, str, str)
    try:
        at, api_key_id = datetime.fromisoformat(str(at_text)), UUID(str(id_text))
        if at.utcoffset() is None:
            raise BadCursor
        return at.astimezone(UTC), api_key_id
    except (ValueError, OverflowError) as error:
        raise BadCursor from error
