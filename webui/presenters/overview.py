"""What a tenant's calls came to, as the overview shows it: figures of the whole range, and a row for each day."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from supervision.selectors.label_statistics import Proportion
from supervision.selectors.overview import Overview, OverviewDay
from webui.formats import UNKNOWN, count_of, duration, money, number, share
from webui.presenters.pieces import Fact

NO_PRICE = "Some of the models that judged have no price: set it at their credentials."


@dataclass(frozen=True, slots=True)
class DayRow:
    """A day as the charts and the table have it; what is not known is None."""

    day: date
    calls: int
    interventions: int
    coverage: float | None
    false_alarms: Proportion | None
    judged: int
    skipped: int
    unjudged: int
    p50_ms: int | None
    p95_ms: int | None
    tokens: int
    cost: Decimal | None
    saved_tokens: int | None
    saved_cost: Decimal | None


@dataclass(frozen=True, slots=True)
class OverviewPage:
    """`facts` are about the whole range."""

    facts: tuple[Fact, ...]
    rows: tuple[DayRow, ...]
    total: DayRow
    priced: bool
    """Whether there are costs to draw."""
    labelled: bool
    empty: bool


def overview_page(found: Overview) -> OverviewPage:
    total = _row(found.total)
    return OverviewPage(
        facts=tuple(_facts(found.total, total)),
        rows=tuple(_row(day) for day in found.days),
        total=total,
        priced=any(day.spent.cost for day in found.days),
        labelled=total.false_alarms is not None,
        empty=not (total.calls or total.judged or total.tokens),
    )


def _row(day: OverviewDay) -> DayRow:
    spent = day.spent.figures
    return DayRow(
        day=day.day,
        calls=day.of_calls.calls,
        interventions=day.of_calls.interventions,
        coverage=day.coverage,
        false_alarms=day.alarms.false_alarms,
        judged=day.of_calls.judged,
        skipped=day.of_calls.skipped,
        unjudged=day.unjudged,
        p50_ms=day.p50_ms,
        p95_ms=day.p95_ms,
        tokens=spent.prompt_tokens + spent.completion_tokens,
        cost=day.spent.cost,
        saved_tokens=day.spent.saved_tokens,
        saved_cost=day.spent.saved_cost,
    )


def _facts(found: OverviewDay, total: DayRow) -> list[Fact]:
    calls = found.of_calls
    return [
        Fact("Calls", number(total.calls), f"{duration(calls.call_ms)} in all" if total.calls else ""),
        _coverage_fact(found, total),
        Fact(
            "Interventions",
            number(total.interventions),
            " · ".join(
                part
                for part in (
                    f"{total.interventions / total.calls * 100:.1f} in 100 calls" if total.calls else "",
                    f"{count_of(calls.tools_blocked, 'tool')} blocked" if calls.tools_blocked else "",
                )
                if part
            ),
            "mirror" if total.interventions else "plain",
            "mirror" if total.interventions else "",
        ),
        _false_alarm_fact(total.false_alarms),
        Fact("Turns judged", number(total.judged), _judged_why(total)),
        Fact(
            "Judge, p50 and p95",
            UNKNOWN if total.p50_ms is None else f"{duration(total.p50_ms)}, {duration(total.p95_ms)}",
            "No judge answered." if total.p50_ms is None else "within 5 %",
        ),
        Fact("Tokens", number(total.tokens), _saved_tokens(total)),
        _cost_fact(total),
    ]


def _coverage_fact(found: OverviewDay, total: DayRow) -> Fact:
    if total.coverage is None:
        return Fact("Coverage", UNKNOWN, "No turn was reported.")
    if total.unjudged:
        calls = found.of_calls
        missed = [
            (calls.timed_out, "timed out"),
            (calls.failed, "failed"),
            (calls.shed, "shed under load"),
        ]
        why = ", ".join(f"{number(count)} {words}" for count, words in missed if count)
        return Fact("Coverage", share(total.coverage), f"not judged: {why}", "warn", "alert")
    return Fact("Coverage", share(total.coverage), "of turns judged or skipped", "good", "check")


def _false_alarm_fact(found: Proportion | None) -> Fact:
    if found is None:
        return Fact("False alarms", UNKNOWN, "Nothing that Mirror objected to was reviewed.")
    return Fact(
        "False alarms",
        share(found.share),
        f"of {count_of(found.of, 'review')}; {share(found.low)} to {share(found.high)} with 95 % confidence",
    )


def _judged_why(total: DayRow) -> str:
    turns = total.judged + total.skipped
    if not turns:
        return ""
    return f"{number(total.skipped)} skipped: no need to ask ({share(total.skipped / turns)})"


def _saved_tokens(total: DayRow) -> str:
    return "" if not total.saved_tokens else f"about {number(total.saved_tokens)} saved by skipping"


def _cost_fact(total: DayRow) -> Fact:
    if total.cost is None:
        return Fact("Cost", UNKNOWN, NO_PRICE)
    saved = f"about {money(total.saved_cost)} saved by skipping" if total.saved_cost else ""
    return Fact("Cost", money(total.cost), saved)
