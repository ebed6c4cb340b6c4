"""What a tenant may use: the operator's defaults, and what `manage.py tenant_limits` set in their place."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields
from typing import Final
from uuid import UUID

from django.conf import settings

from mirror_saas.limits import Limits
from tenants.cache_keys import tenant_key
from tenants.context import tenant_context
from tenants.models import TenantLimits

NAMES: Final = tuple(field.name for field in fields(Limits))
MIB: Final = 1 << 20

# A change of a tenant's limits counts everywhere after this time at the latest.
KNOWN_FOR_S: Final = 10.0
_KNOWN_MOST: Final = 10_000


def limits_of(row: TenantLimits | None) -> Limits:
    """The limits of a tenant whose row is `row`; the defaults where it says nothing."""
    defaults: Limits = settings.MIRROR.limits
    return Limits(**{name: limit_of(getattr(row, name, None), getattr(defaults, name)) for name in NAMES})


def limit_of(stored: int | None, default: int | None) -> int | None:
    """One limit: NULL is the default, -1 none."""
    if stored is None:
        return default
    return None if stored == TenantLimits.UNLIMITED else stored


class LimitsKnown:
    """The limits of the tenants that this process has to do with, each read again after 10 seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._known: OrderedDict[UUID, tuple[float, Limits]] = OrderedDict()

    def get(self, tenant_id: UUID) -> Limits:
        """The tenant's limits, 10 seconds old at most."""
        now = self._clock()
        with self._lock:
            known = self._known.get(tenant_id)
        if known is not None and now - known[0] < KNOWN_FOR_S:
            return known[1]
        with tenant_context(tenant_id):
            limits = limits_of(TenantLimits.objects.first())
        with self._lock:
            self._known[tenant_id] = (now, limits)
            self._known.move_to_end(tenant_id)
            if len(self._known) > _KNOWN_MOST:
                self._known.popitem(last=False)
        return limits

    def forget(self) -> None:
        """Read everything again."""
        with self._lock:
            self._known.clear()


LIMITS: Final = LimitsKnown()


def calls_key(tenant_id: UUID) -> str:
    """Where the leases of the tenant's running calls stand in Valkey."""
    return tenant_key("calls", tenant_id)
