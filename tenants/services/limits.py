"""Writing a tenant's limits, and what is counted against them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date

from django.conf import settings
from django.db import connection, connections, transaction
from django.db.utils import ConnectionHandler
from django.utils import timezone

from mirror_saas.databases import database_settings
from mirror_saas.errors import InvalidInput
from mirror_saas.ids import uuid7
from mirror_saas.limits import MOST
from tenants.context import tenant_id_required
from tenants.limits import MIB, NAMES, limits_of
from tenants.models import TenantLimits, TenantUse
from tenants.selectors.limits import storage_bytes_get
from tenants.services.audit import auditevent_record, changes, snapshot


class OwnerUnknown(RuntimeError):
    """There is no access as the role that may write limits."""

    def __init__(self) -> None:
        super().__init__(
            "DATABASE_OWNER_URL is not set; limits are written with it as the role mirror_owner, because mirror_app,"
            " which acts for tenants, must not."
        )


class StorageLimitReached(RuntimeError):
    """The tenant's record takes all that it may."""

    def __init__(self, limit_mib: int) -> None:
        self.limit_mib = limit_mib
        super().__init__(
            f"This tenant has used the {limit_mib} MiB that it may store. Erase what is not needed any more, or ask the"
            " operator for more."
        )


@contextmanager
def as_owner() -> Iterator[None]:
    """Run a block with a connection of mirror_owner, which row-level security binds too. Raises OwnerUnknown."""
    url = settings.DATABASE_OWNER_URL
    if url is None:
        raise OwnerUnknown
    handler = ConnectionHandler({"default": database_settings(url)})
    former = connections["default"]
    connections["default"] = handler["default"]
    try:
        yield
    finally:
        connections["default"].close()
        connections["default"] = former


def tenant_limits_update(*, changed: Mapping[str, int | None]) -> TenantLimits:
    """Set the current tenant's limits that `changed` names: a number, TenantLimits.UNLIMITED, or None for the default.

    Runs inside `as_owner`: mirror_app may not. Raises InvalidInput, which names the limit.
    """
    for name, value in changed.items():
        if name not in NAMES:
            raise InvalidInput(name, f"There is no such limit; there are {', '.join(NAMES)}.")
        if value is not None and not TenantLimits.UNLIMITED <= value <= MOST:
            raise InvalidInput(name, f"Use a number from 0 to {MOST}.")
    with transaction.atomic():
        row = TenantLimits.objects.select_for_update(no_key=True).first()
        was = snapshot(row, only=NAMES) if row is not None else None
        row = row or TenantLimits()
        for name, value in changed.items():
            setattr(row, name, value)
        row.updated_at = timezone.now()
        after = snapshot(row, only=NAMES)
        if was == after or (was is None and not any(value is not None for value in after.values())):
            return row
        row.save()
        before, after = changes(was or dict.fromkeys(NAMES), after)
        auditevent_record(action="limits.update", row=row, object_label="limits", before=before, after=after)
    return row


def limitrefusals_add(*, counts: Mapping[tuple[date, str], int]) -> None:
    """Add to the current tenant's refusals, by day and kind."""
    tenant_id = tenant_id_required("Refusals")
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO tenants_limitrefusal (id, tenant_id, day, kind, count) VALUES (%s, %s, %s, %s, %s)"
            " ON CONFLICT (tenant_id, day, kind) DO UPDATE SET count = tenants_limitrefusal.count + EXCLUDED.count",
            [(uuid7(), tenant_id, day, kind, count) for (day, kind), count in sorted(counts.items())],
        )


def storage_check(*, more_bytes: int = 0) -> None:
    """Whether the current tenant may store `more_bytes` more: what every upload asks first.

    Raises StorageLimitReached. Calls do not ask: they go on, and record less (see Call.storage_limit).
    """
    limit = limits_of(TenantLimits.objects.first()).storage_mib
    if limit is not None and storage_bytes_get() + more_bytes > limit * MIB:
        raise StorageLimitReached(limit)


def storage_use_add(*, storage_bytes: int) -> None:
    """Add to what the current tenant's record takes, or subtract; never below nothing.

    All who write for the tenant meet at this row: do it last in a transaction.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tenants_tenantuse (id, tenant_id, storage_bytes) VALUES (%s, %s, greatest(%s, 0))"
            " ON CONFLICT (tenant_id) DO UPDATE"
            " SET storage_bytes = greatest(tenants_tenantuse.storage_bytes + %s, 0)",
            [uuid7(), tenant_id_required("Storage"), storage_bytes, storage_bytes],
        )


def storage_use_set(*, storage_bytes: int) -> None:
    """Correct what the current tenant's record is known to take, after it was measured."""
    TenantUse.objects.update_or_create(defaults={"storage_bytes": storage_bytes})
