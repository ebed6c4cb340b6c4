"""API keys `mk_<prefix>_<secret>`: made once, shown once, kept as a hash."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import connection
from django.utils import timezone

from tenants.context import tenant_context
from tenants.models import ApiKey
from tenants.roles import ALL_SCOPES
from tenants.selectors.tenants import TenantRef, tenant_current
from tenants.services.audit import auditevent_record, changes, snapshot

PREFIX_CHARS = 12
SECRET_BYTES = 32
# One write per key and minute is enough to tell a used key from a forgotten one.
LAST_USED_EVERY = timedelta(minutes=1)

_PREFIX_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_KEY = re.compile(rf"mk_([a-z0-9]{{{PREFIX_CHARS}}})_([A-Za-z0-9_-]{{43}})")


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """A key just made. `key` is the only copy of the secret."""

    api_key: ApiKey
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ApiKeyPrincipal:
    """Who an API key speaks for, and what for."""

    api_key_id: UUID
    name: str
    prefix: str
    tenant: TenantRef
    scopes: frozenset[str]
    expires_at: datetime | None


def api_key_create(*, name: str, scopes: Iterable[str], expires_at: datetime | None = None) -> NewApiKey:
    """A new key of the current tenant.

    Raises ValidationError (field `scopes`) for a scope that does not exist.
    """
    wanted = sorted(set(scopes))
    unknown = [scope for scope in wanted if scope not in ALL_SCOPES]
    if unknown or not wanted:
        named = ", ".join(unknown) or "An empty list"
        raise ValidationError({"scopes": f"{named} is not usable; choose from {', '.join(sorted(ALL_SCOPES))}."})
    prefix = "".join(secrets.choice(_PREFIX_ALPHABET) for _ in range(PREFIX_CHARS))
    secret = secrets.token_urlsafe(SECRET_BYTES)
    api_key = ApiKey.objects.create(
        name=name, prefix=prefix, secret_hash=_hash(secret), scopes=wanted, expires_at=expires_at
    )
    auditevent_record(action="api_key.create", row=api_key, object_label=name, after=snapshot(api_key))
    return NewApiKey(api_key=api_key, key=f"mk_{prefix}_{secret}")


def api_key_authenticate(*, key: str) -> ApiKeyPrincipal | None:
    """Who `key` speaks for; None when it is malformed, unknown, expired or revoked, which look alike."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    prefix, secret = match.groups()
    with connection.cursor() as cursor:
        cursor.execute("SELECT tenant_id, api_key_id FROM api_key_lookup(%s, %s)", [prefix, _hash(secret)])
        found = cursor.fetchone()
    if found is None:
        return None
    tenant_id, api_key_id = found
    with tenant_context(tenant_id):
        # Revoked between the look-up and here: not there any more.
        api_key = ApiKey.objects.filter(id=api_key_id, revoked_at=None).first()
        if api_key is None:
            return None
        tenant = tenant_current()
        now = timezone.now()
        if api_key.last_used_at is None or now - api_key.last_used_at >= LAST_USED_EVERY:
            ApiKey.objects.filter(id=api_key_id).update(last_used_at=now)
    return ApiKeyPrincipal(
        api_key_id=api_key.id,
        name=api_key.name,
        prefix=api_key.prefix,
        tenant=tenant,
        scopes=frozenset(api_key.scopes),
        expires_at=api_key.expires_at,
    )


def api_key_revoke(*, api_key_id: UUID) -> None:
    """Switch a key of the current tenant off, at once and for good. Raises ApiKey.DoesNotExist."""
    api_key = ApiKey.objects.get(id=api_key_id)
    if api_key.revoked_at is None:
        was = snapshot(api_key)
        api_key.revoked_at = timezone.now()
        api_key.save(update_fields=["revoked_at"])
        before, after = changes(was, snapshot(api_key))
        auditevent_record(action="api_key.revoke", row=api_key, object_label=api_key.name, before=before, after=after)


def _hash(secret: str) -> bytes:
    # The secret has 256 random bits: nothing to guess, so a plain fast hash is enough.
    return hashlib.sha256(secret.encode()).digest()
