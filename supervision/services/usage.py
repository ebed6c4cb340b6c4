"""Counting what a tenant used, so that it is known when the calls themselves are gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from typing import Final

from django.db import connection, transaction
from django.db.models import Min

from mirror_saas.ids import uuid7
from supervision.models import Call, JudgeLatencyDay, UsageDay
from supervision.selectors.latencies import latencies_counted
from supervision.selectors.usage import UsageFigures, usage_counted
from tenants.context import tenant_id_required

# What journals of nodes that were down for a while bring within this time is still counted.
CLOSES_AFTER_DAYS: Final = 2


def usage_days_close(*, now: datetime) -> int:
    """Store every day that is over for two days and not stored yet; returns how many were."""
    stored = UsageDay.objects.filter(source="calls").order_by("-day").values_list("day", flat=True).first()
    days = _days_to_store(stored, now)
    if days is None:
        return 0
    first, last = days
    counted = usage_counted(first=first, last=last)
    with transaction.atomic():
        UsageDay.objects.bulk_create(
            [
                UsageDay(day=day, model=model, source="calls", **asdict(figures))
                for (day, model), figures in counted.items()
            ],
            ignore_conflicts=True,
        )
    return len({day for day, _ in counted})


def latency_days_close(*, now: datetime) -> int:
    """Store how long judges took on every day that is over for two days and not stored yet; returns how many were."""
    stored = JudgeLatencyDay.objects.order_by("-day").values_list("day", flat=True).first()
    days = _days_to_store(stored, now)
    if days is None:
        return 0
    first, last = days
    counted = latencies_counted(first=first, last=last)
    JudgeLatencyDay.objects.bulk_create(
        [JudgeLatencyDay(day=day, counts=counts) for day, counts in counted.items()], ignore_conflicts=True
    )
    return len(counted)


def _days_to_store(stored: date | None, now: datetime) -> tuple[date, date] | None:
    """The first and the last day that can be stored, `stored` being the newest one that is; None without calls."""
    first_call = Call.objects.aggregate(first=Min("started_at"))["first"]
    if first_call is None:
        return None
    first = first_call.astimezone(UTC).date()
    if stored is not None:
        first = max(first, stored + timedelta(days=1))
    return first, now.astimezone(UTC).date() - timedelta(days=CLOSES_AFTER_DAYS + 1)


def usage_day_is_closed(*, day: date) -> bool:
    """Whether what calls of this day came to is stored."""
    return UsageDay.objects.filter(day__gte=day, source="calls").exists()


def usage_add(*, day: date, source: str, model: str, figures: UsageFigures) -> None:
    """Add to a day's row; safe beside others that add to it."""
    values: Mapping[str, int] = asdict(figures)
    names = list(values)
    columns = ", ".join(names)
    adds = ", ".join(f"{name} = t.{name} + EXCLUDED.{name}" for name in names)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO supervision_usageday AS t (id, tenant_id, day, source, model, {columns})"  # noqa: S608 (names)
            f" VALUES (%s, %s, %s, %s, %s, {', '.join(['%s'] * len(names))})"
            f" ON CONFLICT (tenant_id, day, source, model) DO UPDATE SET {adds}",
            [uuid7(), tenant_id_required("Usage"), day, source, model, *values.values()],
        )
