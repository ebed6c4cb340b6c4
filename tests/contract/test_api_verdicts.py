"""`/verdicts`, `/tool-decisions` and `/interventions` through the real URLs: pages, filters and files."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.test import AsyncClient, Client

from mirror_saas.exports import cell
from mirror_saas.ids import uuid7
from supervision.models import Intervention, ToolDecision, Turn, Verdict
from supervision.selectors import decisions
from tests.contract.test_api_calls import assert_problem, get
from tests.factories import Tenancy, call_create, tenancy_create

pytestmark = pytest.mark.django_db

LISTS = ("verdicts", "tool-decisions", "interventions")
every_list = pytest.mark.parametrize("name", LISTS)


def more_verdicts(tenancy: Tenancy, number: int, **fields: Any) -> list[str]:
    """Ids of verdicts of one call, a minute apart, oldest first."""
    call = call_create(tenancy)
    start = datetime(2026, 5, 1, tzinfo=UTC)
    with tenancy.context():
        turn = Turn.objects.get(call=call)
        Verdict.objects.filter(call=call).update(turn=turn)
        made = [
            Verdict(
                id=uuid7(unix_ms=int((start + timedelta(minutes=n)).timestamp() * 1000)),
                call=call,
                turn=turn,
                at_ms=n,
                **{"state": "judged", "score": n / 100, **fields},
            )
            for n in range(number)
        ]
        Verdict.objects.bulk_create(made)
    return [str(verdict.id) for verdict in made]


def download(tenancy: Tenancy, path: str, accept: str = "*/*", **query: Any) -> Any:
    client = Client(headers={"Authorization": f"Bearer {tenancy.api_key}", "Accept": accept})
    return client.get(f"/api/v1{path}", query)


@every_list
def test_a_row_names_its_call_its_agent_and_its_time(tenant: Tenancy, stranger: Tenancy, name: str) -> None:
    call = call_create(tenant)
    body = get(tenant, f"/{name}").json()
    assert body["next"] is None
    [row] = body["items"]
    assert (row["call_id"], row["agent_id"]) == (str(call.id), str(tenant.agent.id))
    assert abs(datetime.fromisoformat(row["at"]) - datetime.now(UTC)) < timedelta(minutes=5)
    assert "charlie" not in json.dumps(body)


def test_pages_are_newest_first_and_do_not_shift_under_inserts(tenant: Tenancy) -> None:
    ids = more_verdicts(tenant, 7)
    with tenant.context():
        ids = [str(Verdict.objects.exclude(id__in=ids).get().id), *reversed(ids)]
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = get(tenant, "/verdicts", limit=3, **cursor).json()
        seen += [row["id"] for row in page["items"]]
        call_create(tenant)
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert seen == ids


@pytest.mark.parametrize(
    ("name", "query", "hits"),
    [
        ("verdicts", {"state": "judged"}, 1),
        ("verdicts", {"state": "failed"}, 0),
        ("verdicts", {"intervene": "true", "acted": "true"}, 1),
        ("verdicts", {"intervene": "false"}, 0),
        ("verdicts", {"rule": "Never confirm a refund."}, 1),
        ("verdicts", {"rule": "Never"}, 0),
        ("verdicts", {"min_score": "0.93"}, 1),
        ("verdicts", {"min_score": "0.94"}, 0),
        ("verdicts", {"late": "true"}, 0),
        ("verdicts", {"withheld": "shadow"}, 0),
        ("tool-decisions", {"allow": "false", "code": "policy"}, 1),
        ("tool-decisions", {"allow": "true"}, 0),
        ("tool-decisions", {"name": "process_payment", "irreversible": "true", "state": "judged"}, 1),
        ("tool-decisions", {"name": "send_sms"}, 0),
        ("interventions", {"outcome": "completed", "plan": "cut_now"}, 1),
        ("interventions", {"outcome": "failed"}, 0),
        ("interventions", {"rule": "Never confirm a refund."}, 1),
    ],
)
def test_filters(tenant: Tenancy, stranger: Tenancy, name: str, query: dict[str, str], hits: int) -> None:
    call_create(tenant)
    assert len(get(tenant, f"/{name}", **query).json()["items"]) == hits


@every_list
def test_filters_of_all_lists(tenant: Tenancy, stranger: Tenancy, name: str) -> None:
    call = call_create(tenant)
    call_create(tenant)
    with tenant.context():
        turn = Turn.objects.filter(call=call).get()
    now = datetime.now(UTC)
    for query, hits in (
        ({"call_id": call.id}, 1),
        ({"turn_id": turn.id}, 1),
        ({"agent_id": tenant.agent.id}, 2),
        ({"agent_id": stranger.agent.id}, 0),
        ({"call_id": uuid7()}, 0),
        ({"from": (now - timedelta(hours=1)).isoformat()}, 2),
        ({"from": (now + timedelta(hours=1)).isoformat()}, 0),
        ({"to": (now - timedelta(hours=1)).isoformat()}, 0),
        ({"to": "9999-12-31T23:59:59Z"}, 2),
        ({"from": "0001-01-01T00:00:00Z"}, 2),
    ):
        assert len(get(tenant, f"/{name}", **query).json()["items"]) == hits, query


@every_list
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"limit": "0"}, "limit"),
        ({"cursor": "!!"}, "cursor"),
        ({"cursor": "WyJ4Il0"}, "cursor"),
        ({"cursor": "WzFd"}, "cursor"),
        ({"agent_id": "x"}, "agent_id"),
        ({"from": "yesterday"}, "from"),
        ({"format": "xml"}, "format"),
    ],
)
def test_a_bad_query_names_its_field(tenant: Tenancy, name: str, query: dict[str, str], field: str) -> None:
    assert list(assert_problem(get(tenant, f"/{name}", **query), 422)["errors"]) == [field]


@every_list
def test_the_number_of_queries_does_not_grow_with_the_rows(
    tenant: Tenancy, name: str, django_assert_max_num_queries: Any
) -> None:
    for _ in range(12):
        call_create(tenant)
    # The key's first request notes its use and reads the tenant's limits; ten of the others are key and settings.
    get(tenant, f"/{name}")
    with django_assert_max_num_queries(14):
        assert len(get(tenant, f"/{name}").json()["items"]) == 12


# -- files ---------------------------------------------------------------------------------------------------------


@every_list
@pytest.mark.parametrize("by", ["header", "query"])
def test_json_lines_are_the_rows_of_the_pages(tenant: Tenancy, stranger: Tenancy, name: str, by: str) -> None:
    for _ in range(3):
        call_create(tenant)
    items = get(tenant, f"/{name}").json()["items"]
    response = (
        download(tenant, f"/{name}", accept="application/jsonl")
        if by == "header"
        else download(tenant, f"/{name}", format="jsonl")
    )
    assert response.headers["Content-Type"] == "application/jsonl"
    assert response.headers["Content-Disposition"] == f'attachment; filename="{name}.jsonl"'
    assert [json.loads(line) for line in response.getvalue().decode().splitlines()] == items


@every_list
def test_csv_has_a_line_of_names_and_the_same_rows(tenant: Tenancy, stranger: Tenancy, name: str) -> None:
    for _ in range(3):
        call_create(tenant)
    items = get(tenant, f"/{name}").json()["items"]
    response = download(tenant, f"/{name}", accept="text/csv, application/json;q=0.5", limit=1)
    assert response.headers["Content-Type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(response.getvalue().decode())))
    assert [row["id"] for row in rows] == [item["id"] for item in items]
    assert set(rows[0]) == set(items[0])


def test_an_export_is_fetched_in_batches_and_filtered(tenant: Tenancy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions.batch_before, "__defaults__", (2,))
    ids = more_verdicts(tenant, 5, acted=True)
    response = download(tenant, "/verdicts", format="jsonl", acted="true", to="2026-06-01T00:00:00Z")
    assert [json.loads(line)["id"] for line in response.getvalue().decode().splitlines()] == ids[::-1]


def test_an_empty_export_has_no_rows(tenant: Tenancy) -> None:
    assert download(tenant, "/verdicts", format="jsonl").getvalue() == b""
    assert download(tenant, "/verdicts", format="csv").getvalue().startswith(b"id,turn_id,state,")


def test_what_a_spreadsheet_would_run_is_text(tenant: Tenancy) -> None:
    call = call_create(tenant)
    with tenant.context():
        Verdict.objects.filter(call=call).update(reason='=HYPERLINK("http://evil.example","x")', correction="+1 555")
    [row] = csv.DictReader(io.StringIO(download(tenant, "/verdicts", format="csv").getvalue().decode()))
    assert row["reason"] == '\'=HYPERLINK("http://evil.example","x")'
    assert row["correction"] == "'+1 555"
    assert row["score"] == "0.93"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""),
        ("", ""),
        (True, "true"),
        (-1.5, "-1.5"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("  =1", "'  =1"),
        ("\uff1d1", "'\uff1d1"),
        ("a=1", "a=1"),
        ({"a": ["=1"]}, '{"a":["=1"]}'),
        ([], "[]"),
    ],
)
def test_cells(value: Any, shown: str) -> None:
    assert cell(value) == shown


def test_accept_headers_that_ask_for_something_else_get_json(tenant: Tenancy) -> None:
    for accept in ("*/*", "text/html", "", "garbage", "application/json, text/csv;q=0.9"):
        assert download(tenant, "/verdicts", accept=accept).headers["Content-Type"].startswith("application/json")


@pytest.mark.django_db(transaction=True)
async def test_under_asgi_the_export_streams_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    from asgiref.sync import sync_to_async

    monkeypatch.setattr(decisions.batch_before, "__defaults__", (2,))
    tenancy = await sync_to_async(tenancy_create)()
    ids = await sync_to_async(more_verdicts)(tenancy, 4)
    response = await AsyncClient().get(
        "/api/v1/verdicts",
        {"format": "jsonl", "to": "2026-06-01T00:00:00Z"},
        headers={"Authorization": f"Bearer {tenancy.api_key}"},
    )
    parts = [part async for part in response.streaming_content]  # type: ignore[attr-defined]
    assert len(parts) == 2
    assert [json.loads(line)["id"] for line in b"".join(parts).decode().splitlines()] == ids[::-1]


def test_the_lists_are_of_calls_that_are_there(tenant: Tenancy) -> None:
    call = call_create(tenant)
    with tenant.context():
        call.delete()
        assert not any(model.objects.exists() for model in (Verdict, ToolDecision, Intervention))
    for name in LISTS:
        assert get(tenant, f"/{name}").json()["items"] == []
