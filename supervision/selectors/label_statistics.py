"""How often Mirror was right, as far as reviewers have said: counts of labels, and rates with their intervals.

Every function runs inside `tenants.context.tenant_context` and raises TenantContextMissing outside of one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final
from uuid import UUID

from django.db import connection

from mirror_saas.errors import InvalidInput
from tenants.context import tenant_id_required

# As many as supervision.selectors.usage answers for at once.
MAX_DAYS: Final = 366
# The 97.5th percentile of the normal distribution: intervals hold the true share 95 times of 100.
_Z: Final = 1.959964


@dataclass(frozen=True, slots=True)
class Proportion:
    """A share of `of` cases with its 95 % Wilson score interval, all from 0 to 1."""

    share: float
    low: float
    high: float
    of: int


def proportion(part: int, of: int) -> Proportion | None:
    """`part` of `of` cases; None of no cases.

    Source of the interval: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    JASA 22 (1927); it holds for few cases and for shares near 0 and 1, where reviews mostly are.
    """
    if of <= 0:
        return None
    share = part / of
    shrunk = 1 + _Z**2 / of
    middle = (share + _Z**2 / (2 * of)) / shrunk
    reach = _Z / shrunk * math.sqrt(share * (1 - share) / of + _Z**2 / (4 * of**2))
    # At the ends rounding would leave the share just outside of its interval.
    return Proportion(share, middle - reach if part else 0.0, middle + reach if part < of else 1.0, of)


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """How many were labelled as what."""

    confirmed: int = 0
    false_alarm: int = 0
    missed: int = 0
    unsure: int = 0

    def __add__(self, other: LabelCounts) -> LabelCounts:
        return LabelCounts(
            self.confirmed + other.confirmed,
            self.false_alarm + other.false_alarm,
            self.missed + other.missed,
            self.unsure + other.unsure,
        )

    @property
    def total(self) -> int:
        return self.confirmed + self.false_alarm + self.missed + self.unsure

    @property
    def false_alarms(self) -> Proportion | None:
        """The share of false alarms among what reviewers were sure of; None while they were sure of nothing."""
        return proportion(self.false_alarm, self.confirmed + self.false_alarm)

    @property
    def misses(self) -> Proportion | None:
        """The share that should not have been let pass, likewise."""
        return proportion(self.missed, self.confirmed + self.missed)


@dataclass(frozen=True, slots=True)
class LabelDay:
    """The labels of what happened in the calls that began on a UTC day, by what was labelled.

    `interventions` are turns that Mirror stepped in at or sent a note about, `violations` turns that the judge found
    against a rule and that were let pass (shadow, cooldown, limit), `tools` blocked tool calls, `passed` turns that
    nobody objected to, and `sampled` those among them that were picked at random.
    """

    day: date
    interventions: LabelCounts = LabelCounts()
    violations: LabelCounts = LabelCounts()
    tools: LabelCounts = LabelCounts()
    passed: LabelCounts = LabelCounts()
    sampled: LabelCounts = LabelCounts()

    @property
    def alarms(self) -> LabelCounts:
        """Whatever Mirror called wrong: `alarms.false_alarms` is the false-alarm rate."""
        return self.interventions + self.violations + self.tools


@dataclass(frozen=True, slots=True)
class LabelStatistics:
    """Labels of some days. `days` has those with labels, the oldest first.

    What reviewers are shown of turns that passed is not drawn at random, but for `sampled`: so `sampled.misses` is the
    share that Mirror misses, and the misses among all of `passed` say nothing about turns that nobody looked at.
    """

    days: tuple[LabelDay, ...] = field(default=())

    @property
    def alarms(self) -> LabelCounts:
        return _sum(day.alarms for day in self.days)

    @property
    def interventions(self) -> LabelCounts:
        return _sum(day.interventions for day in self.days)

    @property
    def violations(self) -> LabelCounts:
        return _sum(day.violations for day in self.days)

    @property
    def tools(self) -> LabelCounts:
        return _sum(day.tools for day in self.days)

    @property
    def passed(self) -> LabelCounts:
        return _sum(day.passed for day in self.days)

    @property
    def sampled(self) -> LabelCounts:
        return _sum(day.sampled for day in self.days)


def label_statistics(*, first: date, last: date, agent_id: UUID | None = None) -> LabelStatistics:
    """Labels of the calls that began on the UTC days from `first` to `last`, both included; test calls are left out.

    A turn that is labelled itself and in its intervention counts once, as its intervention. Raises InvalidInput
    (`from`, `to`) for a range that is empty or longer than 366 days.
    """
    if last < first:
        raise InvalidInput("to", "The last day is before the first.")
    if (last - first).days >= MAX_DAYS:
        raise InvalidInput("from", f"Ask for at most {MAX_DAYS} days at a time.")
    parameters: dict[str, Any] = {
        "tenant": tenant_id_required("Label statistics"),
        "begins": datetime.combine(first, time(), UTC),
        "ends": datetime.combine(last + timedelta(days=1), time(), UTC),
        "agent": agent_id,
    }
    with connection.cursor() as cursor:
        cursor.execute(_COUNTED, parameters)
        rows = cursor.fetchall()
    counts: dict[tuple[date, str], dict[str, int]] = {}
    for day, about, value, count, sampled in rows:
        counts.setdefault((day, about), {})[value] = count
        if sampled:
            counts.setdefault((day, "sampled"), {})[value] = sampled
    days = sorted({day for day, _ in counts})
    return LabelStatistics(
        tuple(LabelDay(day, *(LabelCounts(**counts.get((day, group), {})) for group in _GROUPS)) for day in days)
    )


def _sum(counts: Iterable[LabelCounts]) -> LabelCounts:
    return sum(counts, LabelCounts())


# Fields of LabelDay, in their order.
_GROUPS: Final = ("interventions", "violations", "tools", "passed", "sampled")

# What is sampled is what supervision.selectors.reviews takes into the queue as a sample.
_COUNTED: Final = """
WITH said AS MATERIALIZED (
    SELECT l.value, l.turn_id, l.intervention_id, l.tool_decision_id, (c.started_at AT TIME ZONE 'UTC')::date AS day
      FROM supervision_label AS l
      JOIN supervision_call AS c ON c.tenant_id = l.tenant_id AND c.id = l.call_id
     WHERE l.tenant_id = %(tenant)s AND c.started_at >= %(begins)s AND c.started_at < %(ends)s AND NOT c.test
       AND (%(agent)s::uuid IS NULL OR c.agent_id = %(agent)s::uuid)),
placed AS MATERIALIZED (
    SELECT s.day, s.value, v.sampled,
           CASE WHEN s.intervention_id IS NOT NULL OR i.acted THEN 'interventions'
                WHEN s.tool_decision_id IS NOT NULL THEN 'tools'
                WHEN v.violation THEN 'violations' ELSE 'passed' END AS about
      FROM said AS s
      LEFT JOIN LATERAL (
           SELECT bool_or(v.state = 'judged' AND v.score >= v.threshold) AS violation,
                  bool_or(NOT v.late AND get_byte(uuid_send(v.id), 15) < 5) AS sampled
             FROM supervision_verdict AS v
            WHERE v.tenant_id = %(tenant)s AND v.turn_id = s.turn_id) AS v ON s.turn_id IS NOT NULL
      LEFT JOIN LATERAL (
           SELECT count(*) > 0 AS acted, bool_or(o.id IS NOT NULL) AS labelled
             FROM supervision_intervention AS i
             LEFT JOIN supervision_label AS o ON o.tenant_id = i.tenant_id AND o.intervention_id = i.id
            WHERE i.tenant_id = %(tenant)s AND i.turn_id = s.turn_id) AS i ON s.turn_id IS NOT NULL
     WHERE i.labelled IS NOT TRUE)
SELECT day, about, value, count(*), count(*) FILTER (WHERE about = 'passed' AND sampled)
  FROM placed GROUP BY day, about, value
"""
