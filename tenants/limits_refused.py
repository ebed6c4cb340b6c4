"""Counts what limits refused: in memory, and every ten seconds into the database, so that a flood is a few writes."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from django.db import Error, IntegrityError, connection

from tenants.context import tenant_context
from tenants.services.limits import limitrefusals_add

logger = logging.getLogger(__name__)

FLUSH_EVERY_S: Final = 10.0
# Tenants, days and kinds that are counted while the database is down; more are not.
_ENTRIES_MOST: Final = 10_000


class Refused(StrEnum):
    """Which limit refused."""

    CALLS = "calls"
    JUDGE_CALLS = "judge_calls"
    REQUESTS = "requests"
    STORAGE = "storage"


Key = tuple[UUID, date, str]


class RefusalCounter:
    """Counts for one process. Threads share it."""

    def __init__(
        self,
        *,
        every_s: float = FLUSH_EVERY_S,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        start: Callable[[float, Callable[[], None]], None] | None = None,
    ) -> None:
        """`start(seconds, what)` runs `what` later, once."""
        self._every_s = every_s
        self._now = now
        self.start = start or _in_thread
        self._lock = threading.Lock()
        self._counts: Counter[Key] = Counter()
        self._waiting = False

    def note(self, tenant_id: UUID, kind: Refused) -> None:
        """One more. Never blocks on the database, never raises."""
        key = (tenant_id, self._now().date(), kind.value)
        with self._lock:
            if key not in self._counts and len(self._counts) >= _ENTRIES_MOST:
                return
            self._counts[key] += 1
            if self._waiting:
                return
            self._waiting = True
        self.start(self._every_s, self._flush_later)

    def pending(self, tenant_id: UUID) -> Mapping[str, int]:
        """What is counted and not written yet."""
        with self._lock:
            counts = dict(self._counts)
        found: Counter[str] = Counter()
        for (tenant, _, kind), count in counts.items():
            if tenant == tenant_id:
                found[kind] += count
        return found

    def flush(self) -> None:
        """Write what is counted. What cannot be written waits for the next time."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
            self._waiting = False
        by_tenant: dict[UUID, dict[tuple[date, str], int]] = {}
        for (tenant_id, day, kind), count in counts.items():
            by_tenant.setdefault(tenant_id, {})[day, kind] = count
        failed: Exception | None = None
        for tenant_id, refused in by_tenant.items():
            try:
                with tenant_context(tenant_id):
                    limitrefusals_add(counts=refused)
            except IntegrityError:
                # The tenant is gone.
                continue
            except Error as error:
                failed = error
                self._keep(tenant_id, refused)
        if failed is not None:
            logger.warning("Refusals cannot be counted in the database at the moment: %s", type(failed).__name__)

    def _keep(self, tenant_id: UUID, refused: Mapping[tuple[date, str], int]) -> None:
        with self._lock:
            for (day, kind), count in refused.items():
                self._counts[tenant_id, day, kind] += count
            if self._waiting:
                return
            self._waiting = True
        self.start(self._every_s, self._flush_later)

    def _flush_later(self) -> None:
        try:
            self.flush()
        finally:
            # This thread's own; it ends here.
            connection.close()


def _in_thread(seconds: float, what: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, what)
    timer.daemon = True
    timer.name = "mirror-refusals"
    timer.start()


REFUSALS: Final = RefusalCounter()


def refused(tenant_id: UUID, kind: Refused) -> None:
    """Count that a limit of the tenant refused something."""
    REFUSALS.note(tenant_id, kind)
