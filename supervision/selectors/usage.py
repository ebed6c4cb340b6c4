"""What the current tenant used: days that are over are stored, newer ones are counted from their calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from django.db import connection

from mirror_saas.errors import InvalidInput
from supervision.models import ProviderCredential, UsageDay
from tenants.context import tenant_id_required

MAX_DAYS: Final = 366


@dataclass(frozen=True, slots=True)
class UsageFigures:
    """Sums. `call_ms` is the calls' duration in milliseconds."""

    calls: int = 0
    call_ms: int = 0
    turns: int = 0
    judged: int = 0
    skipped: int = 0
    timed_out: int = 0
    failed: int = 0
    shed: int = 0
    tool_decisions: int = 0
    tools_blocked: int = 0
    interventions: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: UsageFigures) -> UsageFigures:
        mine, theirs = asdict(self), asdict(other)
        return UsageFigures(**{name: mine[name] + theirs[name] for name in mine})


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens."""

    prompt: Decimal
    completion: Decimal

    def of(self, prompt_tokens: float, completion_tokens: float) -> Decimal:
        """What so many tokens cost, in US dollars."""
        cost = self.prompt * Decimal(prompt_tokens) + self.completion * Decimal(completion_tokens)
        return (cost / 1_000_000).quantize(Decimal("0.000001"))


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What one model came to on one UTC day, through calls (`calls`) or the judge endpoints (`api`).

    `cost` is None while no credential with this model has a price. `saved_tokens` is what the skipped turns would have
    cost had they been judged like the others of the row, an estimate; None where none was judged.
    """

    day: date
    source: str
    model: str
    figures: UsageFigures
    cost: Decimal | None
    saved_tokens: int | None
    saved_cost: Decimal | None


@dataclass(frozen=True, slots=True)
class UsageTotal:
    """What rows came to together. `cost` is None while tokens of one of them have no price; `saved_tokens` while
    nothing can be estimated, and `saved_cost` while it cannot be estimated of every row that has `saved_tokens`."""

    figures: UsageFigures
    cost: Decimal | None
    saved_tokens: int | None
    saved_cost: Decimal | None


Key = tuple[date, str, str]


def usage_list(*, first: date, last: date, now: datetime) -> list[UsageRow]:
    """Usage of the UTC days from `first` to `last`, both included, newest day first.

    Raises InvalidInput (`from`, `to`) for a range that is empty or longer than 366 days.
    """
    if last < first:
        raise InvalidInput("to", "The last day is before the first.")
    if (last - first).days >= MAX_DAYS:
        raise InvalidInput("from", f"Ask for at most {MAX_DAYS} days at a time.")
    sums: dict[Key, UsageFigures] = {}
    for row in UsageDay.objects.filter(day__gte=first, day__lte=last):
        key = (row.day, "api" if row.source == "api" else "calls", row.model)
        sums[key] = sums.get(key, UsageFigures()) + figures_of(row)
    counted = usage_counted(first=max(first, _first_open(first)), last=min(last, now.astimezone(UTC).date()))
    for (day, model), figures in counted.items():
        key = (day, "calls", model)
        sums[key] = sums.get(key, UsageFigures()) + figures
    prices = model_prices(models={model for _, _, model in sums})
    rows = [_row(key, figures, prices.get(key[2])) for key, figures in sums.items()]
    return sorted(rows, key=lambda row: (-row.day.toordinal(), row.source, row.model))


def usage_total(rows: Iterable[UsageRow]) -> UsageTotal:
    """The sum of `rows`."""
    rows = list(rows)
    saved = [row.saved_tokens for row in rows if row.saved_tokens is not None]
    costs = [row.cost for row in rows if row.cost is not None]
    saved_costs = [row.saved_cost for row in rows if row.saved_cost is not None]
    asked = [row for row in rows if row.figures.prompt_tokens or row.figures.completion_tokens]
    return UsageTotal(
        figures=sum((row.figures for row in rows), UsageFigures()),
        cost=sum(costs, Decimal()) if all(row.cost is not None for row in asked) else None,
        saved_tokens=sum(saved) if saved else None,
        saved_cost=sum(saved_costs, Decimal()) if saved and len(saved_costs) == len(saved) else None,
    )


def usage_counted(
    *, first: date, last: date, call_ids: Sequence[UUID] | None = None
) -> dict[tuple[date, str], UsageFigures]:
    """The figures by day and model, from the calls that started on these UTC days (or from some of them only)."""
    if last < first:
        return {}
    begins = datetime.combine(first, time(), UTC)
    ends = datetime.combine(last + timedelta(days=1), time(), UTC)
    parameters: dict[str, Any] = {
        "tenant": tenant_id_required("Usage"),
        "begins": begins,
        "ends": ends,
        "calls": None if call_ids is None else list(call_ids),
    }
    with connection.cursor() as cursor:
        cursor.execute(_COUNTED, parameters)
        rows = cursor.fetchall()
    return {(day, model): UsageFigures(*map(int, sums)) for day, model, *sums in rows}


def _first_open(first: date) -> date:
    """The first day that is not stored: days are stored in order."""
    stored = UsageDay.objects.filter(source="calls").order_by("-day").values_list("day", flat=True).first()
    return first if stored is None else stored + timedelta(days=1)


def figures_of(row: UsageDay) -> UsageFigures:
    """The figures of a stored day."""
    return UsageFigures(**{figure.name: getattr(row, figure.name) for figure in fields(UsageFigures)})


def model_prices(*, models: Iterable[str]) -> dict[str, Price]:
    """The price of each model, from the credential with it that was changed last and has one."""
    rows = (
        ProviderCredential.objects.filter(
            kind="llm", model__in=set(models), prompt_price__isnull=False, completion_price__isnull=False
        )
        .order_by("updated_at")
        .values_list("model", "prompt_price", "completion_price")
    )
    return {
        model: Price(prompt, completion)
        for model, prompt, completion in rows
        if prompt is not None and completion is not None
    }


def _row(key: Key, figures: UsageFigures, price: Price | None) -> UsageRow:
    saved: Mapping[str, float] | None = None
    if figures.judged:
        share = figures.skipped / figures.judged
        saved = {"prompt": figures.prompt_tokens * share, "completion": figures.completion_tokens * share}
    return UsageRow(
        *key,
        figures=figures,
        cost=price.of(figures.prompt_tokens, figures.completion_tokens) if price else None,
        saved_tokens=round(sum(saved.values())) if saved is not None else None,
        saved_cost=price.of(saved["prompt"], saved["completion"]) if price and saved is not None else None,
    )


# OFFSET 0: call by call, by their index. Left to itself, PostgreSQL reads all verdicts that there are.
_COUNTED: Final = """
WITH day_call AS MATERIALIZED (
    SELECT c.id, (c.started_at AT TIME ZONE 'UTC')::date AS day, coalesce(l.model, '') AS model,
           coalesce(c.duration_ms, 0) AS ms, c.turn_count, c.judged_count, c.skipped_count, c.timed_out_count,
           c.failed_count, c.shed_count, c.intervention_count
      FROM supervision_call AS c
      LEFT JOIN supervision_policyversion AS v ON v.tenant_id = c.tenant_id AND v.id = c.policy_version_id
      LEFT JOIN supervision_providercredential AS l ON l.tenant_id = c.tenant_id AND l.id = v.llm_credential_id
     WHERE c.tenant_id = %(tenant)s AND c.started_at >= %(begins)s AND c.started_at < %(ends)s
       AND (%(calls)s::uuid[] IS NULL OR c.id = ANY(%(calls)s::uuid[]))),
asked AS (
    SELECT d.id AS call_id, a.* FROM day_call AS d,
   LATERAL (SELECT 0 AS decisions, 0 AS blocked, prompt_tokens, completion_tokens,
                   CASE WHEN fallback THEN nullif(model, '') END AS instead
              FROM supervision_verdict
             WHERE tenant_id = %(tenant)s AND call_id = d.id OFFSET 0) AS a
     UNION ALL
    SELECT d.id, a.* FROM day_call AS d,
   LATERAL (SELECT 1, (NOT allow)::int, prompt_tokens, completion_tokens,
                   CASE WHEN fallback THEN nullif(model, '') END
              FROM supervision_tooldecision
             WHERE tenant_id = %(tenant)s AND call_id = d.id OFFSET 0) AS a),
of_call AS (
    SELECT call_id, sum(decisions) AS decisions, sum(blocked) AS blocked,
           sum(prompt_tokens) FILTER (WHERE instead IS NULL) AS prompt_tokens,
           sum(completion_tokens) FILTER (WHERE instead IS NULL) AS completion_tokens
      FROM asked GROUP BY call_id),
-- A call counts for the model that was to judge it, tokens for the one that used them.
counted AS (
    SELECT d.day, d.model, 1 AS calls, d.ms, d.turn_count, d.judged_count, d.skipped_count, d.timed_out_count,
           d.failed_count, d.shed_count, coalesce(o.decisions, 0) AS decisions, coalesce(o.blocked, 0) AS blocked,
           d.intervention_count, coalesce(o.prompt_tokens, 0) AS prompt_tokens,
           coalesce(o.completion_tokens, 0) AS completion_tokens
      FROM day_call AS d LEFT JOIN of_call AS o ON o.call_id = d.id
     UNION ALL
    SELECT d.day, a.instead, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a.prompt_tokens, a.completion_tokens
      FROM asked AS a JOIN day_call AS d ON d.id = a.call_id WHERE a.instead IS NOT NULL)
SELECT day, model, sum(calls), sum(ms), sum(turn_count), sum(judged_count), sum(skipped_count), sum(timed_out_count),
       sum(failed_count), sum(shed_count), sum(decisions), sum(blocked), sum(intervention_count), sum(prompt_tokens),
       sum(completion_tokens)
  FROM counted GROUP BY day, model
"""
