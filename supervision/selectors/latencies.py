"""How long judges took, day by day: counted in classes, so that days can be stored and added up, as percentiles cannot.

A class is an eighth of a doubling: what is read from the counts is within 5 % of what was counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final

from django.db import connection

from supervision.models import JudgeLatencyDay
from tenants.context import tenant_id_required

# The last class holds whatever took longer than about two minutes.
CLASSES: Final = 136
_PER_DOUBLING: Final = 8

# How many fell into each class; classes without any are left out.
LatencyCounts = Mapping[int, int]


def class_middle_ms(number: int) -> int:
    """What a class stands for, in milliseconds: its middle on the scale that it is an equal part of."""
    return round(2 ** ((number + 0.5) / _PER_DOUBLING))


def percentile_ms(counts: LatencyCounts, share: float) -> int | None:
    """The latency in milliseconds that `share` (above 0, at most 1) of what was counted kept to; None of nothing."""
    wanted, seen = share * sum(counts.values()), 0
    for number in sorted(counts):
        seen += counts[number]
        if seen >= wanted:
            return class_middle_ms(number)
    return None


def latencies_sum(counts: Iterable[LatencyCounts]) -> dict[int, int]:
    """The counts of all of them together."""
    added: dict[int, int] = {}
    for each in counts:
        for number, count in each.items():
            added[number] = added.get(number, 0) + count
    return added


def latency_days(*, first: date, last: date, now: datetime) -> dict[date, LatencyCounts]:
    """The judge's answers of the calls that began on the UTC days from `first` to `last`, both included; days without
    any are left out. Days that are over are stored, newer ones are counted from their calls."""
    stored = JudgeLatencyDay.objects.filter(day__gte=first, day__lte=last)
    found: dict[date, LatencyCounts] = {row.day: counts_of(row) for row in stored}
    newest = JudgeLatencyDay.objects.order_by("-day").values_list("day", flat=True).first()
    begins = first if newest is None else max(first, newest + timedelta(days=1))
    return found | latencies_counted(first=begins, last=min(last, now.astimezone(UTC).date()))


def counts_of(row: JudgeLatencyDay) -> dict[int, int]:
    """The counts of a stored day."""
    return {int(number): int(count) for number, count in row.counts.items()}


def latencies_counted(*, first: date, last: date) -> dict[date, dict[int, int]]:
    """The counts by day, from the calls that began on these UTC days. Answers that came too late are answers."""
    if last < first:
        return {}
    parameters: dict[str, Any] = {
        "tenant": tenant_id_required("Latencies"),
        "begins": datetime.combine(first, time(), UTC),
        "ends": datetime.combine(last + timedelta(days=1), time(), UTC),
        "last_class": CLASSES - 1,
        "per": _PER_DOUBLING,
    }
    found: dict[date, dict[int, int]] = {}
    with connection.cursor() as cursor:
        cursor.execute(_COUNTED, parameters)
        for day, number, count in cursor.fetchall():
            found.setdefault(day, {})[number] = count
    return found


# OFFSET 0: call by call, by their index. Left to itself, PostgreSQL reads all verdicts that there are.
_COUNTED: Final = """
SELECT c.day, v.class, count(*)
  FROM (SELECT id, (started_at AT TIME ZONE 'UTC')::date AS day FROM supervision_call
         WHERE tenant_id = %(tenant)s AND started_at >= %(begins)s AND started_at < %(ends)s) AS c,
 LATERAL (SELECT least(%(last_class)s,
                       floor(%(per)s * ln(greatest(latency_ms, 1)::double precision) / ln(2)))::int AS class
            FROM supervision_verdict
           WHERE tenant_id = %(tenant)s AND call_id = c.id AND state = 'judged' AND latency_ms IS NOT NULL
          OFFSET 0) AS v
 GROUP BY 1, 2
"""
