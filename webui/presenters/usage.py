"""What a tenant used: each model's sum, and each of its days."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from supervision.selectors.usage import UsageFigures, UsageRow, UsageTotal, usage_total


@dataclass(frozen=True, slots=True)
class UsageLine:
    """What one model came to through calls or through the judge endpoints, on one day or on all of them."""

    model: str
    through: str
    calls: int | None
    """None where there are no calls: of the judge endpoints."""
    call_ms: int | None
    turns: int
    judged: int
    skipped: int
    unjudged: int
    tool_decisions: int
    prompt_tokens: int
    completion_tokens: int
    cost: Decimal | None
    saved_tokens: int | None
    saved_cost: Decimal | None


@dataclass(frozen=True, slots=True)
class UsageDayLines:
    """A UTC day's lines."""

    day: date
    lines: tuple[UsageLine, ...]


@dataclass(frozen=True, slots=True)
class UsagePage:
    """`models` are the sums of the range by model and source; `unpriced` are models with tokens and without a price."""

    models: tuple[UsageLine, ...]
    total: UsageLine
    days: tuple[UsageDayLines, ...]
    unpriced: tuple[str, ...]


def usage_page(rows: Sequence[UsageRow]) -> UsagePage:
    """`rows` as they come: the newest day first."""
    by_model: dict[tuple[str, str], list[UsageRow]] = {}
    by_day: dict[date, list[UsageRow]] = {}
    for row in rows:
        by_model.setdefault((row.source, row.model), []).append(row)
        by_day.setdefault(row.day, []).append(row)
    models = [_line(model, source, usage_total(found)) for (source, model), found in sorted(by_model.items())]
    return UsagePage(
        models=tuple(models),
        total=_line("", "", usage_total(rows)),
        days=tuple(
            UsageDayLines(day, tuple(_line(row.model, row.source, usage_total([row])) for row in found))
            for day, found in by_day.items()
        ),
        unpriced=tuple(sorted({line.model for line in models if line.cost is None and line.model})),
    )


def _line(model: str, source: str, sums: UsageTotal) -> UsageLine:
    figures: UsageFigures = sums.figures
    of_calls = source != "api"
    return UsageLine(
        model=model,
        through="the judge endpoints" if source == "api" else "calls",
        calls=figures.calls if of_calls else None,
        call_ms=figures.call_ms if of_calls else None,
        turns=figures.turns,
        judged=figures.judged,
        skipped=figures.skipped,
        unjudged=figures.timed_out + figures.failed + figures.shed,
        tool_decisions=figures.tool_decisions,
        prompt_tokens=figures.prompt_tokens,
        completion_tokens=figures.completion_tokens,
        cost=sums.cost,
        saved_tokens=sums.saved_tokens,
        saved_cost=sums.saved_cost,
    )
