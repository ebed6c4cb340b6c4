"""API keys `mk_<prefix>_<secret>`: made once, shown once, kept as a hash."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import connection, transaction
from django.db.models import Q
from django.db.models.functions import Now

from mirror_saas.ids import uuid7
from mirror_saas.limits import MOST
from mirror_saas.logging import mask_secrets
from tenants.actors import actor_current
from tenants.context import tenant_context
from tenants.limits_redis import wrong_keys
from tenants.models import ApiKey, Tenant
from tenants.names import name_clean
from tenants.roles import ALL_SCOPES, CapabilityMissing
from tenants.selectors.api_keys import ApiKeyNotFound, api_keys_active
from tenants.selectors.tenants import TenantRef, tenant_current
from tenants.services.audit import auditevent_record, changes, snapshot

PREFIX_CHARS: Final = 12
SECRET_BYTES: Final = 32
# One write per key and minute is enough to tell a used key from a forgotten one.
LAST_USED_EVERY: Final = timedelta(minutes=1)
# Keys of one tenant that work at the same time. A program needs one; this is for a mistake in a loop.
MAX_ACTIVE: Final = 100
# Whoever wants a key for good says so, by giving no end; a date that far off is a slip of the pen.
MAX_LIFETIME: Final = timedelta(days=3660)

_PREFIX_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_KEY = re.compile(rf"mk_([a-z0-9]{{{PREFIX_CHARS}}})_([A-Za-z0-9_-]{{43}})")
_AUDITED = ("name", "prefix", "scopes", "expires_at", "revoked_at", "requests_per_minute")


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
    # Fewer than the tenant's keys may otherwise make, or None.
    requests_per_minute: int | None = None


class ScopesNotHeld(CapabilityMissing):
    """Somebody wanted to give a key more than they have themselves."""

    def __init__(self, missing: Collection[str]) -> None:
        named = ", ".join(sorted(missing))
        super().__init__(named)
        self.args = (f"You cannot give a key what you lack yourself: {named}.",)


class ApiKeyMade(Exception):
    """This very key was made before; its secret was shown then and is not known any more."""

    def __init__(self, api_key: ApiKey) -> None:
        self.api_key = api_key
        super().__init__(f"The key {api_key} was made before.")


def api_key_create(
    *,
    name: str,
    scopes: Iterable[str],
    expires_at: datetime | None = None,
    requests_per_minute: int | None = None,
    held: Collection[str] | None = None,
    api_key_id: UUID | None = None,
    now: datetime | None = None,
) -> NewApiKey:
    """A new key of the current tenant, until `expires_at` (None: until it is revoked).

    `requests_per_minute` holds where it is lower than what each of the tenant's keys may make (None: that).

    `held` are the scopes of whoever asks: nobody gives a key more than they have. Without it, only the system itself
    (a command) may make one. `api_key_id`, one that we made, lets the same form be sent twice. `now` is the database's
    time unless given.

    Raises ValidationError (fields `name`, `scopes`, `expires_at`, none for too many keys), ScopesNotHeld, and
    ApiKeyMade when there is a key `api_key_id` already.
    """
    actor = actor_current()
    if held is None and actor.kind != "system":
        raise TypeError("api_key_create needs `held`, the scopes of the person or key that asks.")
    name = _name(name)
    wanted = sorted(set(scopes))
    unknown = [scope for scope in wanted if scope not in ALL_SCOPES]
    if unknown or not wanted:
        # What was sent is not repeated: it may be long, and it may be a secret in the wrong field.
        what = "Choose at least one scope" if not wanted else "This is no scope that there is; choose"
        raise ValidationError({"scopes": f"{what} of {', '.join(sorted(ALL_SCOPES))}."})
    if held is not None and (missing := set(wanted) - set(held)):
        raise ScopesNotHeld(missing)
    if requests_per_minute is not None and not 1 <= requests_per_minute <= MOST:
        raise ValidationError({"requests_per_minute": f"Give a number from 1 to {MOST}, or none."})
    with transaction.atomic():
        # Keys of a tenant are made one after the other, so that two at once cannot pass the limit together.
        Tenant.objects.select_for_update(no_key=True).get()
        now = now or _database_time()
        if expires_at is not None:
            _expiry_check(expires_at, now)
        if api_key_id is not None and (made := ApiKey.objects.filter(id=api_key_id).first()) is not None:
            raise ApiKeyMade(made)
        if api_keys_active(now=now).count() >= MAX_ACTIVE:
            raise ValidationError(
                f"This tenant has {MAX_ACTIVE} API keys that work, which is the most; revoke one that is not needed."
            )
        prefix = "".join(secrets.choice(_PREFIX_ALPHABET) for _ in range(PREFIX_CHARS))
        secret = secrets.token_urlsafe(SECRET_BYTES)
        api_key = ApiKey.objects.create(
            id=api_key_id or uuid7(),
            name=name,
            prefix=prefix,
            secret_hash=_hash(secret),
            scopes=wanted,
            created_at=now,
            expires_at=expires_at,
            requests_per_minute=requests_per_minute,
            created_by_kind=actor.kind,
            created_by_id=actor.id,
            created_by_label=actor.label[:300],
        )
        auditevent_record(
            action="api_key.create", row=api_key, object_label=name, after=snapshot(api_key, only=_AUDITED)
        )
        key = f"mk_{prefix}_{secret}"
        # Every node lets it pass from the start, also from an address that sends wrong ones.
        transaction.on_commit(lambda: wrong_keys().right(key), robust=True)
    return NewApiKey(api_key=api_key, key=key)


def api_key_authenticate(*, key: str, ip: str = "") -> ApiKeyPrincipal | None:
    """Who `key` speaks for; None when it is malformed, unknown, expired or revoked, which look alike.

    Every request asks the database, so a key that was revoked on any node is refused by the next request on all.
    `ip`, the address that it is used from, is noted with the time at most once a minute.
    """
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
        api_key = ApiKey.objects.annotate(unnoted=_UNNOTED).filter(id=api_key_id, revoked_at=None).first()
        if api_key is None:
            return None
        tenant = tenant_current()
        if api_key.unnoted:
            _last_use_note(api_key_id, ip)
    return ApiKeyPrincipal(
        api_key_id=api_key.id,
        name=api_key.name,
        prefix=api_key.prefix,
        tenant=tenant,
        scopes=frozenset(api_key.scopes),
        expires_at=api_key.expires_at,
        requests_per_minute=api_key.requests_per_minute,
    )


def api_key_update(
    *, api_key_id: UUID, name: str | None = None, expires_at: datetime | None = None, now: datetime | None = None
) -> ApiKey:
    """Give a key another name, or an earlier end; None leaves it as it is.

    A key that shall live longer, or do more, is a new key: so whoever holds an old one gains nothing. `now` is the
    database's time unless given. Raises ApiKeyNotFound and ValidationError (fields `name`, `expires_at`).
    """
    with transaction.atomic():
        api_key = _locked(api_key_id)
        was = snapshot(api_key, only=_AUDITED)
        if name is not None:
            api_key.name = _name(name)
        if expires_at is not None and expires_at != api_key.expires_at:
            _expiry_check(expires_at, now or _database_time())
            if api_key.expires_at is not None and expires_at > api_key.expires_at:
                raise ValidationError({"expires_at": "A key's end can come earlier, not later; make a new key."})
            api_key.expires_at = expires_at
        before, after = changes(was, snapshot(api_key, only=_AUDITED))
        if after:
            api_key.save(update_fields=["name", "expires_at"])
            auditevent_record(
                action="api_key.update", row=api_key, object_label=api_key.name, before=before, after=after
            )
    return api_key


def api_key_revoke(*, api_key_id: UUID) -> ApiKey:
    """Switch a key of the current tenant off, at once and for good; again, it changes nothing.

    Raises ApiKeyNotFound.
    """
    with transaction.atomic():
        api_key = _locked(api_key_id)
        if api_key.revoked_at is None:
            was = snapshot(api_key, only=_AUDITED)
            api_key.revoked_at = _database_time()
            api_key.save(update_fields=["revoked_at"])
            before, after = changes(was, snapshot(api_key, only=_AUDITED))
            auditevent_record(
                action="api_key.revoke", row=api_key, object_label=api_key.name, before=before, after=after
            )
    return api_key


_UNNOTED = Q(last_used_at=None) | Q(last_used_at__lte=Now() - LAST_USED_EVERY)


def _last_use_note(api_key_id: UUID, ip: str) -> None:
    """Note the use, unless another request is just noting one or has done so: none waits for another here."""
    due = ApiKey.objects.select_for_update(skip_locked=True, no_key=True).filter(_UNNOTED, id=api_key_id)
    ApiKey.objects.filter(id__in=due.values("id")).update(last_used_at=Now(), last_used_ip=ip[:64])


def _locked(api_key_id: UUID) -> ApiKey:
    try:
        return ApiKey.objects.select_for_update(no_key=True).get(id=api_key_id)
    except ApiKey.DoesNotExist as error:
        raise ApiKeyNotFound from error


def _name(name: str) -> str:
    name = name_clean(name)
    if mask_secrets(name) != name:
        raise ValidationError({"name": "This looks like a secret. Give a name that says what the key is for."})
    return name


def _expiry_check(expires_at: datetime, now: datetime) -> None:
    if expires_at.utcoffset() is None:
        raise ValidationError({"expires_at": "Give a time with its zone."})
    if expires_at <= now:
        raise ValidationError({"expires_at": "Give a time that is still to come."})
    if expires_at - now > MAX_LIFETIME:
        raise ValidationError({"expires_at": "Give a time in the next ten years, or none for a key without an end."})


def _database_time() -> datetime:
    # The look-up asks this clock too, whatever the nodes' clocks say.
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement_timestamp()")
        now: datetime = cursor.fetchone()[0]
    return now


def _hash(secret: str) -> bytes:
    # The secret has 256 random bits: nothing to guess, so a plain fast hash is enough.
    return hashlib.sha256(secret.encode()).digest()
