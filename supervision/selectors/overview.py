"""What the current tenant's calls came to, day by day: how much was covered, how often Mirror was right, how quickly
judges answered, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from supervision.selectors.label_statistics import LabelCounts, label_statistics
from supervision.selectors.latencies import LatencyCounts, latencies_sum, latency_days, percentile_ms
from supervision.selectors.usage import UsageFigures, UsageRow, UsageTotal, usage_list, usage_total


@dataclass(frozen=True, slots=True)
class OverviewDay:
    """A UTC day, or several together. `of_calls` is what calls came to; `spent` also what the judge endpoints were
    asked. `alarms` are labels of what Mirror called wrong in calls that began then; test calls have none."""

    day: date
    of_calls: UsageFigures
    spent: UsageTotal
    latencies: LatencyCounts
    alarms: LabelCounts

    @property
    def unjudged(self) -> int:
        """Turns that were neither judged nor skipped."""
        return self.of_calls.timed_out + self.of_calls.failed + self.of_calls.shed

    @property
    def coverage(self) -> float | None:
        """The share of turns that ended as judged or skipped; None without a turn."""
        covered = self.of_calls.judged + self.of_calls.skipped
        return covered / (covered + self.unjudged) if covered + self.unjudged else None

    @property
    def p50_ms(self) -> int | None:
        """Half of the judges' answers took no longer, in milliseconds."""
        return percentile_ms(self.latencies, 0.5)

    @property
    def p95_ms(self) -> int | None:
        """95 of 100 of the judges' answers took no longer, in milliseconds."""
        return percentile_ms(self.latencies, 0.95)


@dataclass(frozen=True, slots=True)
class Overview:
    """Every day of a range, the oldest first, and all of them together (whose `day` is the first)."""

    days: Sequence[OverviewDay]
    total: OverviewDay


def overview(*, first: date, last: date, now: datetime) -> Overview:
    """The UTC days from `first` to `last`, both included, also those without calls.

    Raises InvalidInput (`from`, `to`) for a range that is empty or longer than 366 days.
    """
    rows = usage_list(first=first, last=last, now=now)
    by_day: dict[date, list[UsageRow]] = {}
    for row in rows:
        by_day.setdefault(row.day, []).append(row)
    latencies = latency_days(first=first, last=last, now=now)
    labels = {day.day: day.alarms for day in label_statistics(first=first, last=last).days}
    days = []
    for number in range((last - first).days + 1):
        day = first + timedelta(days=number)
        of_day = by_day.get(day, [])
        days.append(
            OverviewDay(
                day=day,
                of_calls=sum((row.figures for row in of_day if row.source == "calls"), UsageFigures()),
                spent=usage_total(of_day),
                latencies=latencies.get(day, {}),
                alarms=labels.get(day, LabelCounts()),
            )
        )
    total = OverviewDay(
        day=first,
        of_calls=sum((day.of_calls for day in days), UsageFigures()),
        spent=usage_total(rows),
        latencies=latencies_sum(day.latencies for day in days),
        alarms=sum((day.alarms for day in days), LabelCounts()),
    )
    return Overview(days, total)
