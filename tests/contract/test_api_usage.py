"""`/usage`: days counted from calls, days that were stored, and what stays when calls go."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from supervision.models import Call, ProviderCredential, UsageDay
from supervision.selectors.usage import UsageFigures
from supervision.services.erasure import call_erase
from supervision.services.usage import usage_add, usage_days_close
from tests.contract.test_api_calls import assert_problem, get
from tests.factories import CALL_START, Tenancy, call_create

pytestmark = pytest.mark.django_db

DAY = CALL_START.date()
NOW = CALL_START + timedelta(days=10)


def usage(tenancy: Tenancy, **query: Any) -> Any:
    return get(tenancy, "/usage", **{"from": DAY.isoformat(), "to": DAY.isoformat(), **query}).json()


def close(tenancy: Tenancy, now: datetime = NOW) -> int:
    with tenancy.context():
        return usage_days_close(now=now)


def test_a_day_is_the_sum_of_its_calls(tenant: Tenancy, stranger: Tenancy) -> None:
    call_create(tenant)
    call_create(tenant, started_at=CALL_START + timedelta(hours=2))
    call_create(tenant, started_at=CALL_START + timedelta(days=1))
    body = usage(tenant)
    [day] = body["days"]
    assert {name: day[name] for name in ("day", "source", "model")} == {
        "day": "2026-03-04",
        "source": "calls",
        "model": "judge-1",
    }
    figures = {
        "calls": 2,
        "call_ms": 60_000,
        "turns": 2,
        "judged": 2,
        "skipped": 0,
        "timed_out": 0,
        "failed": 0,
        "shed": 0,
        "tool_decisions": 2,
        "tools_blocked": 2,
        "interventions": 2,
        "prompt_tokens": 840,
        "completion_tokens": 62,
        "cost": None,
        "saved_tokens": 0,
        "saved_cost": None,
    }
    assert {name: day[name] for name in figures} == figures
    assert body["total"] == figures


def test_the_price_of_the_model_says_what_it_cost_and_what_was_saved(tenant: Tenancy) -> None:
    call = call_create(tenant)
    with tenant.context():
        Call.objects.filter(id=call.id).update(turn_count=4, judged_count=1, skipped_count=3)
        ProviderCredential.objects.filter(id=tenant.credential.id).update(
            prompt_price=Decimal("0.15"), completion_price=Decimal("0.6")
        )
    total = usage(tenant)["total"]
    assert Decimal(total["cost"]) == Decimal("0.000082")  # 420 × 0.15 + 31 × 0.6, over a million
    assert total["saved_tokens"] == 3 * (420 + 31)
    assert Decimal(total["saved_cost"]) == Decimal("0.000245")


def test_tokens_of_the_second_model_are_that_models(tenant: Tenancy, stranger: Tenancy) -> None:
    call = call_create(tenant)
    call_create(tenant)
    call_create(stranger)
    with tenant.context():
        call.verdicts.update(fallback=True, model="second-1")
    days = {day["model"]: day for day in usage(tenant)["days"]}
    first, second = days["judge-1"], days["second-1"]
    assert (first["calls"], first["judged"], first["prompt_tokens"], first["completion_tokens"]) == (2, 2, 420, 31)
    assert (second["calls"], second["judged"], second["prompt_tokens"], second["completion_tokens"]) == (0, 0, 420, 31)


def test_a_day_ends_at_midnight_utc_and_today_is_the_default(tenant: Tenancy) -> None:
    midnight = datetime(2026, 3, 5, tzinfo=UTC)
    call_create(tenant, started_at=midnight - timedelta(microseconds=1))
    call_create(tenant, started_at=midnight)
    assert [day["day"] for day in usage(tenant, to="2026-03-05")["days"]] == ["2026-03-05", "2026-03-04"]
    call_create(tenant, started_at=datetime.now(UTC))
    body = get(tenant, "/usage").json()
    assert body["last"] == datetime.now(UTC).date().isoformat()
    assert [day["calls"] for day in body["days"]] == [1]


def test_stored_days_say_the_same_and_stay_when_the_calls_go(tenant: Tenancy, stranger: Tenancy) -> None:
    call_create(tenant)
    before = usage(tenant)
    assert close(tenant) == 1
    assert usage(tenant) == before
    assert close(tenant) == 0
    with tenant.context():
        Call.objects.all().delete()
    assert usage(tenant) == before
    with stranger.context():
        assert not UsageDay.objects.exists()


def test_a_day_is_not_stored_before_it_is_over_for_two_days(tenant: Tenancy) -> None:
    call_create(tenant)
    assert close(tenant, CALL_START + timedelta(days=2)) == 0
    assert close(tenant, CALL_START + timedelta(days=3)) == 1


@pytest.mark.parametrize("closed", [False, True], ids=["before the day is stored", "after"])
def test_an_erased_call_stays_counted(tenant: Tenancy, closed: bool) -> None:
    call = call_create(tenant)
    call_create(tenant)
    before = usage(tenant)
    if closed:
        close(tenant)
    with tenant.context():
        call_erase(call_id=call.id)
    assert usage(tenant) == before
    close(tenant)
    assert usage(tenant) == before


def test_what_the_judge_endpoints_were_asked_is_a_row_of_its_own(tenant: Tenancy) -> None:
    with tenant.context():
        for _ in range(2):
            usage_add(day=DAY, source="api", model="m", figures=UsageFigures(turns=1, judged=1, prompt_tokens=10))
    [row] = usage(tenant)["days"]
    assert (row["source"], row["model"], row["turns"], row["prompt_tokens"], row["calls"]) == ("api", "m", 2, 20, 0)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"from": "2026-03-05", "to": "2026-03-04"}, "to"),
        ({"from": "2020-01-01", "to": "2026-03-04"}, "from"),
        ({"from": "today"}, "from"),
        ({"to": "2026-13-01"}, "to"),
    ],
)
def test_a_bad_range_names_its_field(tenant: Tenancy, query: dict[str, str], field: str) -> None:
    assert list(assert_problem(get(tenant, "/usage", **query), 422)["errors"]) == [field]


@pytest.mark.parametrize("day", [date.min.isoformat(), date.max.isoformat()])
def test_the_ends_of_the_calendar_are_days_too(tenant: Tenancy, day: str) -> None:
    assert get(tenant, "/usage", **{"from": day, "to": day}).json()["days"] == []
    assert get(tenant, "/usage", to=day).status_code == 200


def test_the_number_of_queries_does_not_grow_with_the_days(tenant: Tenancy, django_assert_max_num_queries: Any) -> None:
    for days in range(5):
        call_create(tenant, started_at=CALL_START + timedelta(days=days))
    # The key's first request notes its use and reads the tenant's limits.
    usage(tenant)
    with django_assert_max_num_queries(15):
        assert len(usage(tenant, to="2026-04-01")["days"]) == 5
