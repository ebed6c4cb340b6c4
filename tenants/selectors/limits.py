"""What the current tenant may use, and what it uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta

from django.db.models import Sum
from django.utils import timezone

from mirror_saas.limits import Limits
from tenants.context import tenant_id_required
from tenants.limits import MIB, limits_of
from tenants.limits_redis import calls_running, requests_in_minute
from tenants.models import LimitRefusal, TenantLimits, TenantUse

REFUSED_DAYS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What a tenant uses. Numbers that live in Valkey are None while it cannot be asked."""

    calls: int | None
    """Calls that run now."""
    requests_per_minute: int | None
    """Requests of all keys and people within the last minute, by the sliding window that limits them."""
    storage_bytes: int
    """What the record of calls takes."""
    refused_today: Mapping[str, int]
    """How often each limit (`calls`, `judge_calls`, `requests`, `storage`) refused something today, UTC. Counts are up
    to 10 seconds old."""
    refused_30_days: Mapping[str, int]

    @property
    def storage_mib(self) -> float:
        """The same in MiB."""
        return round(self.storage_bytes / MIB, 3)


def tenant_limits_get() -> Limits:
    """The current tenant's limits, as they stand in the database."""
    return limits_of(TenantLimits.objects.first())


def tenant_use_get() -> Use:
    """What the current tenant uses."""
    tenant_id = tenant_id_required("Use")
    today = timezone.now().date()
    return Use(
        calls=calls_running(tenant_id),
        requests_per_minute=requests_in_minute(tenant_id),
        storage_bytes=storage_bytes_get(),
        refused_today=refused_since(day=today),
        refused_30_days=refused_since(day=today - timedelta(days=REFUSED_DAYS - 1)),
    )


def storage_bytes_get() -> int:
    """What the current tenant's record takes, in bytes."""
    return TenantUse.objects.values_list("storage_bytes", flat=True).first() or 0


def refused_since(*, day: date) -> dict[str, int]:
    """How often each limit of the current tenant refused something from this UTC day on."""
    rows = LimitRefusal.objects.filter(day__gte=day).values_list("kind").annotate(Sum("count")).order_by("kind")
    return dict(rows)
