"""`/usage`: what was judged, what it cost, and what the pre-gate saved."""

from datetime import UTC, date, timedelta
from decimal import Decimal

from django.http import HttpRequest, StreamingHttpResponse
from django.utils import timezone
from ninja import Query, Router
from pydantic import Field

from mirror_saas.exports import ExportQuery, export_content, export_format, export_response
from mirror_saas.problems import problem_responses
from mirror_saas.schemas import Day, Out
from supervision.selectors.usage import UsageFigures, UsageRow, usage_list, usage_total
from tenants.api.auth import requires
from tenants.roles import Scope

router = Router(tags=["usage"])

DEFAULT_DAYS = 30


class UsageQuery(ExportQuery):
    """Which days, and as what."""

    first: Day | None = Field(None, alias="from", description="First UTC day; 29 days before the last by default.")
    last: Day | None = Field(None, alias="to", description="Last UTC day, included; today by default.")


class UsageFiguresOut(Out):
    """Sums; `call_ms` is the duration of calls. Costs are US dollars, null while no credential of the model has a
    price. `saved_tokens` and `saved_cost` estimate what the skipped turns would have come to."""

    calls: int
    call_ms: int
    turns: int
    judged: int
    skipped: int
    timed_out: int
    failed: int
    shed: int
    tool_decisions: int
    tools_blocked: int
    interventions: int
    prompt_tokens: int
    completion_tokens: int
    cost: Decimal | None
    saved_tokens: int | None
    saved_cost: Decimal | None


class UsageRowOut(UsageFiguresOut):
    """What one UTC day came to, from one source and with one model."""

    day: date
    source: str = Field(description="`calls`, or `api` for the judge endpoints.")
    model: str = Field(description="The judging model; empty for calls without one.")

    @classmethod
    def of(cls, row: UsageRow) -> "UsageRowOut":
        return cls(
            day=row.day,
            source=row.source,
            model=row.model,
            cost=row.cost,
            saved_tokens=row.saved_tokens,
            saved_cost=row.saved_cost,
            **_figures(row.figures),
        )


class UsageOut(Out):
    """`total.cost` and `total.saved_cost` are null when a row's is."""

    first: date
    last: date
    total: UsageFiguresOut
    days: list[UsageRowOut]


@router.get(
    "/usage",
    response={200: UsageOut, **problem_responses(401, 403, 422)},
    operation_id="usage_list",
    summary="Usage by day and model",
    openapi_extra=export_content("What a day came to, with one model"),
)
@requires(Scope.CALLS_READ)
def usage(request: HttpRequest, query: Query[UsageQuery]) -> UsageOut | StreamingHttpResponse:
    """What each UTC day came to, newest first; days without any are left out. Erased and deleted calls stay counted."""
    now = timezone.now()
    last = query.last or now.astimezone(UTC).date()
    first = query.first or _days_before(last, DEFAULT_DAYS - 1)
    rows = usage_list(first=first, last=last, now=now)
    if (kind := export_format(request, query.format)) != "json":
        made = [UsageRowOut.of(row) for row in rows]
        return export_response(request, kind=kind, name="usage", columns=UsageRowOut, batches=iter([made]))
    return _out(first, last, rows)


def _out(first: date, last: date, rows: list[UsageRow]) -> UsageOut:
    sums = usage_total(rows)
    total = UsageFiguresOut(
        **_figures(sums.figures), cost=sums.cost, saved_tokens=sums.saved_tokens, saved_cost=sums.saved_cost
    )
    return UsageOut(first=first, last=last, total=total, days=[UsageRowOut.of(row) for row in rows])


def _figures(figures: UsageFigures) -> dict[str, int]:
    return {name: getattr(figures, name) for name in UsageFigures.__dataclass_fields__}


def _days_before(day: date, days: int) -> date:
    return day - timedelta(days=days) if day.toordinal() > days else date.min
