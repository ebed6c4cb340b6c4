"""What calls came to: the overview, usage by model, and the latencies that are stored for days that are over."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from django.test import Client
from django.utils import timezone

from supervision.models import Call, JudgeLatencyDay, Turn, Verdict
from supervision.selectors.latencies import (
    CLASSES,
    class_middle_ms,
    latencies_counted,
    latencies_sum,
    latency_days,
    percentile_ms,
)
from supervision.selectors.overview import overview
from supervision.services.labels import intervention_label
from supervision.services.usage import latency_days_close, usage_days_close
from tests.factories import CALL_START, Tenancy, call_create
from webui import formats
from webui.range_forms import RangeForm

DAY = CALL_START.date()


def judged(tenancy: Tenancy, started_at: datetime, *latencies_ms: int, state: str = "judged") -> Call:
    """A call with a verdict of each latency."""
    with tenancy.context():
        call = Call.objects.create(agent=tenancy.agent, state="ended", started_at=started_at, duration_ms=60_000)
        turn = Turn.objects.create(call=call, ref="t", index=0, at_ms=0)
        for at_ms, latency_ms in enumerate(latencies_ms):
            Verdict.objects.create(call=call, turn=turn, state=state, latency_ms=latency_ms, at_ms=at_ms)
        return call


# -- latencies in classes ---------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_what_is_counted_in_classes_is_within_five_per_cent(tenant: Tenancy, stranger: Tenancy) -> None:
    latencies = [1, 3, 17, 64, 100, 256, 419, 420, 1_000, 2_500, 4_096, 60_000, 99_999]
    for latency_ms in latencies:
        judged(tenant, CALL_START, latency_ms)
    judged(stranger, CALL_START, 777)
    judged(tenant, CALL_START, 5, state="timed_out")
    with tenant.context():
        counts = latencies_counted(first=DAY, last=DAY)[DAY]
    assert sum(counts.values()) == len(latencies)
    read = [class_middle_ms(number) for number in sorted(counts) for _ in range(counts[number])]
    for latency_ms, shown_ms in zip(latencies, read, strict=True):
        # Of the shortest, rounding to whole milliseconds is more than a class.
        assert abs(shown_ms - latency_ms) <= max(0.05 * latency_ms, 1)


def test_percentiles_are_of_all_that_was_counted_together() -> None:
    quick, slow = {64: 95}, {80: 5, CLASSES - 1: 1}
    assert percentile_ms({}, 0.5) is None
    assert percentile_ms(quick, 0.95) == class_middle_ms(64)
    both = latencies_sum([quick, slow, {}])
    assert both == {64: 95, 80: 5, CLASSES - 1: 1}
    assert percentile_ms(both, 0.5) == class_middle_ms(64)
    assert percentile_ms(both, 0.95) == class_middle_ms(80)
    assert percentile_ms(both, 1) == class_middle_ms(CLASSES - 1)


@pytest.mark.django_db
def test_days_that_are_over_are_stored_once_and_outlive_their_calls(tenant: Tenancy, stranger: Tenancy) -> None:
    judged(tenant, CALL_START - timedelta(days=5), 100, 200)
    judged(tenant, CALL_START - timedelta(days=1), 300)
    judged(tenant, CALL_START, 400)
    judged(stranger, CALL_START - timedelta(days=5), 999)
    with tenant.context():
        first = DAY - timedelta(days=5)
        before = latency_days(first=first, last=DAY, now=CALL_START)
        assert latency_days_close(now=CALL_START) == 1
        assert latency_days_close(now=CALL_START) == 0
        assert [row.day for row in JudgeLatencyDay.objects.all()] == [first]
        assert latency_days(first=first, last=DAY, now=CALL_START) == before
        assert {day: sum(counts.values()) for day, counts in before.items()} == {
            first: 2,
            DAY - timedelta(days=1): 1,
            DAY: 1,
        }
        Verdict.objects.all().delete()
        assert list(latency_days(first=first, last=DAY, now=CALL_START)) == [first]


# -- the overview -----------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_the_overview_has_every_day_and_the_same_figures_stored_or_counted(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context():
        type(tenant.credential).objects.update(prompt_price=Decimal(1), completion_price=Decimal(2))
    call = call_create(tenant, started_at=CALL_START - timedelta(days=4))
    judged(tenant, CALL_START, 100, 100)
    call_create(stranger, started_at=CALL_START)
    with tenant.context():
        Call.objects.filter(id=call.id).update(skipped_count=1, timed_out_count=1, failed_count=1)
        intervention_label(intervention_id=call.interventions.get().id, value="false_alarm", note="")
        first = DAY - timedelta(days=4)
        found = overview(first=first, last=DAY, now=CALL_START)
        usage_days_close(now=CALL_START)
        latency_days_close(now=CALL_START)
        assert overview(first=first, last=DAY, now=CALL_START) == found
    assert [day.day for day in found.days] == [first + timedelta(days=number) for number in range(5)]
    oldest, newest = found.days[0], found.days[-1]
    assert (oldest.of_calls.calls, oldest.of_calls.interventions, oldest.unjudged) == (1, 1, 2)
    assert oldest.coverage == 0.5
    assert oldest.alarms.false_alarms is not None
    assert oldest.alarms.false_alarms.share == 1
    assert oldest.spent.cost == Decimal("0.000482")
    assert found.days[1].coverage is None
    assert found.days[1].p50_ms is None
    assert newest.p50_ms == class_middle_ms(53)
    assert found.total.of_calls.calls == 2
    assert sum(found.total.latencies.values()) == 3


def page_of(tenancy: Tenancy, path: str, person: str = "bob") -> str:
    client = Client()
    client.force_login(tenancy.users[person])
    answer = client.get(path)
    assert answer.status_code == 200
    return answer.content.decode()


@pytest.mark.django_db
def test_the_page_says_it_in_figures_and_in_a_table(tenant: Tenancy, stranger: Tenancy) -> None:
    now = timezone.now()
    call = call_create(tenant, started_at=now)
    for _ in range(3):
        call_create(stranger, started_at=now)
    with tenant.context():
        intervention_label(intervention_id=call.interventions.get().id, value="confirmed", note="")
    page = page_of(tenant, "/overview")
    rows = re.findall(r'<tr data-day="([\d-]+)">', page)
    assert len(rows) == 30
    assert rows[0] == now.astimezone(UTC).date().isoformat()
    (today,) = re.findall(rf'<tr data-day="{rows[0]}">(.*?)</tr>', page, re.S)
    figures = dict(re.findall(r'data-(\w+)="([\d.]*)"', today))
    assert figures["calls"] == "1"
    assert figures["interventions"] == "1"
    assert figures["coverage"] == "1.0"
    assert figures["alarms"] == "0.0"
    assert figures["p95"] == str(class_middle_ms(61))
    assert figures["tokens"] == "451"
    # No price, no cost, and what to do about it.
    assert figures["cost"] == ""
    assert "have no price" in page
    assert "of 1 review; 0 %" in page


@pytest.mark.django_db
def test_days_without_anything_say_what_to_do(tenant: Tenancy, stranger: Tenancy) -> None:
    assert "Nothing happened on these days" in page_of(tenant, "/overview")
    assert "Nothing was used on these days" in page_of(tenant, "/usage")
    assert "<day-chart" not in page_of(tenant, "/overview")


@pytest.mark.django_db
def test_usage_is_told_by_model_and_by_day(tenant: Tenancy, stranger: Tenancy) -> None:
    now = timezone.now()
    call_create(tenant, started_at=now)
    call_create(tenant, started_at=now - timedelta(days=1))
    call_create(stranger, started_at=now)
    with stranger.context():
        type(stranger.credential).objects.update(model="strangers-model")
    page = page_of(tenant, "/usage")
    assert page.count("judge-1</span>") == 3
    assert "No price is known for judge-1." in page
    assert "strangers-model" not in page
    assert page.count('scope="rowgroup" rowspan="1"') == 2
    with tenant.context():
        type(tenant.credential).objects.update(prompt_price=Decimal(1), completion_price=Decimal(2))
    priced = page_of(tenant, "/usage")
    assert "$0.00096" in priced
    assert "No price is known" not in priced
    today = now.astimezone(UTC).date()
    link = re.search(r'href="(/api/v1/usage[^"]*)" download', priced)
    assert link is not None
    client = Client()
    client.force_login(tenant.users["bob"])
    sheet = client.get(link.group(1).replace("&amp;", "&"))
    assert sheet["Content-Type"].startswith("text/csv")
    lines = b"".join(sheet.streaming_content).decode().splitlines()  # type: ignore[arg-type]
    assert len(lines) == 3
    assert today.isoformat() in lines[1]


# -- which days -------------------------------------------------------------------------------------------------------

TODAY = date(2026, 3, 10)


@pytest.mark.parametrize(
    ("data", "first", "last"),
    [
        ({}, date(2026, 2, 9), TODAY),
        ({"first": "2026-03-01"}, date(2026, 3, 1), TODAY),
        ({"last": "2026-03-05"}, date(2026, 2, 4), date(2026, 3, 5)),
        ({"first": "2026-03-01", "last": "2026-03-01"}, date(2026, 3, 1), date(2026, 3, 1)),
        ({"last": "0001-01-05"}, date(1, 1, 1), date(1, 1, 5)),
    ],
    ids=["nothing", "from", "to", "one-day", "the-first-days"],
)
def test_a_range_is_what_the_url_says(data: dict[str, str], first: date, last: date) -> None:
    form = RangeForm(data, today=TODAY)
    assert form.days() == (first, last)
    assert not form.errors
    # The fields say what is shown, and the URL what was asked for.
    assert (form["first"].value(), form["last"].value()) == (first.isoformat(), last.isoformat())
    assert form.query() == list(data.items())


@pytest.mark.parametrize(
    ("data", "field", "words"),
    [
        ({"first": "yesterday"}, "first", "Give a date."),
        ({"first": "2026-03-06", "last": "2026-03-05"}, "first", "Give a day before “To”."),
        ({"first": "2025-03-09"}, "first", "Ask for at most 366 days at a time."),
        ({"last": "2026-03-11"}, "last", "This day has not begun yet."),
        ({"last": "9999-12-31"}, "last", "This day has not begun yet."),
    ],
    ids=["no-date", "backwards", "too-long", "tomorrow", "the-end-of-time"],
)
def test_a_wrong_range_says_why_at_its_field_and_shows_the_newest_days(
    data: dict[str, str], field: str, words: str
) -> None:
    form = RangeForm(data, today=TODAY)
    assert form.days() == (date(2026, 2, 9), TODAY)
    assert form.errors[field] == [words]
    assert form.fields[field].widget.attrs["aria-invalid"] == "true"
    assert form[field].value() == data[field]
    assert form.query() == list(data.items())


def test_a_range_that_one_click_shows_is_marked() -> None:
    assert [preset.chosen for preset in RangeForm({}, today=TODAY).presets()] == [False, True, False]
    assert [preset.chosen for preset in RangeForm({"first": "2026-03-04"}, today=TODAY).presets()] == [
        True,
        False,
        False,
    ]


# -- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dollars", "words"),
    [
        (None, "–"),
        ("0", "$0.00"),
        ("12.345", "$12.34"),
        ("1234567.8", "$1\u202f234\u202f567.80"),
        ("0.01", "$0.01"),
        ("0.0042", "$0.0042"),
        ("0.000096", "$0.000096"),
        ("-3", "-$3.00"),
    ],
    ids=["unknown", "nothing", "cents", "millions", "a-cent", "less", "much-less", "negative"],
)
def test_money_keeps_what_counts(dollars: str | None, words: str) -> None:
    assert formats.money(None if dollars is None else Decimal(dollars)) == words


def test_counts_have_narrow_blanks() -> None:
    assert formats.number(None) == "–"
    assert formats.number(1_234_567) == "1\u202f234\u202f567"
