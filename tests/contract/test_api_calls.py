"""The API of calls, through the real URLs, as a program with a key."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.contrib.staticfiles import finders
from django.db import connection
from django.test import Client
from django.utils import timezone

from mirror_saas.ids import uuid7
from mirror_saas.openapi import resolved
from supervision.models import (
    AgentNote,
    Call,
    CallEvent,
    ErasedCall,
    Intervention,
    ToolDecision,
    Turn,
    Verdict,
)
from tenants.models import AuditEvent
from tenants.services.api_keys import api_key_create
from tests.factories import CALL_START, Tenancy, call_create

pytestmark = pytest.mark.django_db


def get(tenancy: Tenancy, path: str, **query: Any) -> Any:
    return Client().get(f"/api/v1{path}", query, headers={"Authorization": f"Bearer {tenancy.api_key}"})


def test_me_names_the_key_its_tenant_and_its_scopes(tenant: Tenancy) -> None:
    response = get(tenant, "/me")
    assert response.status_code == 200
    body = response.json()
    assert body["kind"] == "api_key"
    assert body["tenant"] == {"id": str(tenant.id), "slug": tenant.slug, "name": tenant.tenant.name}
    assert "calls:read" in body["scopes"]
    assert body["api_key"]["prefix"] == tenant.api_key.split("_")[1]
    assert body["user"] is None


def test_a_call_is_listed_with_the_fields_of_its_row(tenant: Tenancy) -> None:
    call = call_create(tenant)
    body = get(tenant, "/calls").json()
    assert body["next"] is None
    [item] = body["items"]
    assert item["id"] == str(call.id)
    assert item["agent_name"] == "alice's agent"
    assert item["policy_version_id"] == str(tenant.version.id)
    assert item["policy_version"] == 1
    assert item["started_at"] == "2026-03-04T12:00:00Z"
    assert (item["turn_count"], item["intervention_count"], item["tools_blocked_count"]) == (1, 1, 1)


def test_pages_show_every_call_once_newest_first_although_calls_start_meanwhile(tenant: Tenancy) -> None:
    # Three of the seven start in the same instant: only their ids tell them apart.
    calls = [call_create(tenant, started_at=CALL_START + timedelta(seconds=max(0, n - 2))) for n in range(7)]
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        body = get(tenant, "/calls", limit=2, **cursor).json()
        seen += [item["id"] for item in body["items"]]
        call_create(tenant, started_at=CALL_START + timedelta(hours=1, seconds=len(seen)))
        if body["next"] is None:
            break
        cursor = {"cursor": body["next"]}
    expected = [str(call.id) for call in sorted(calls, key=lambda call: (call.started_at, call.id), reverse=True)]
    assert seen == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"state": "live"}, {"live"}),
        ({"state": "ended"}, {"done", "failed"}),
        ({"outcome": "failed"}, {"failed"}),
        ({"from": "2026-03-04T12:10:00Z"}, {"failed", "live"}),
        ({"to": "2026-03-04T12:10:00+00:00"}, {"done"}),
        ({"from": "2026-03-04T12:00:00Z", "to": "2026-03-04T12:00:00.001Z"}, {"done"}),
        ({"state": "live", "outcome": "failed"}, set()),
    ],
)
def test_filters_narrow_the_list(tenant: Tenancy, query: dict[str, str], expected: set[str]) -> None:
    names = {
        str(call_create(tenant).id): "done",
        str(call_create(tenant, outcome="failed", started_at=CALL_START + timedelta(minutes=10)).id): "failed",
        str(call_create(tenant, state="live", started_at=CALL_START + timedelta(minutes=20)).id): "live",
    }
    assert {names[item["id"]] for item in get(tenant, "/calls", **query).json()["items"]} == expected


def test_calls_of_one_agent_can_be_asked_for(tenant: Tenancy, stranger: Tenancy) -> None:
    call = call_create(tenant)
    assert [c["id"] for c in get(tenant, "/calls", agent_id=str(tenant.agent.id)).json()["items"]] == [str(call.id)]
    assert get(tenant, "/calls", agent_id=str(stranger.agent.id)).json()["items"] == []


def test_a_call_comes_with_its_counts_and_every_tool_decision(tenant: Tenancy) -> None:
    call = call_create(tenant)
    with tenant.context():
        ToolDecision.objects.create(call=call, ref="x", name="lookup", args=None, allow=False, code="bad_args", at_ms=5)
    body = get(tenant, f"/calls/{call.id}").json()
    assert body["policy_name"] == "alice's policy"
    assert body["coverage"] == 1.0
    assert [decision["name"] for decision in body["tool_decisions"]] == ["lookup", "process_payment"]
    assert body["tool_decisions"][0]["args"] is None
    assert [decision["turn_id"] is None for decision in body["tool_decisions"]] == [True, False]


def test_a_turn_comes_with_verdict_heard_text_tools_and_the_steps_of_its_intervention(tenant: Tenancy) -> None:
    call = call_create(tenant)
    body = get(tenant, f"/calls/{call.id}/turns").json()
    assert body["next"] is None
    [turn] = body["items"]
    assert turn["customer_text"] == "Can I have my money back?"
    assert (turn["heard_text"], turn["uncertain_text"], turn["unheard_text"]) == ("Yes, I", "have", "refunded it.")
    assert turn["heard_basis"] == "pauses"
    assert (turn["verdict"]["state"], turn["verdict"]["score"], turn["verdict"]["acted"]) == ("judged", 0.93, True)
    [decision] = turn["tool_decisions"]
    assert (decision["name"], decision["allow"], decision["code"]) == ("process_payment", False, "policy")
    [intervention] = turn["interventions"]
    assert intervention["violation_heard_ms"] == 300
    assert [step["step"] for step in intervention["steps"]] == ["clear_sent", "cleared", "correction_played"]
    assert all(isinstance(step["at_ms"], int) for step in intervention["steps"])
    [note] = turn["notes"]
    assert note["intervention_id"] == intervention["id"]


def test_a_late_verdict_is_shown_as_late_and_does_not_replace_the_one_that_counted(tenant: Tenancy) -> None:
    call = call_create(tenant)
    with tenant.context():
        turn = Turn.objects.create(call=call, ref="t2", index=1, at_ms=9_000)
        Verdict.objects.create(call=call, turn=turn, state="timed_out", at_ms=13_000)
        Verdict.objects.create(call=call, turn=turn, state="judged", score=0.9, late=True, at_ms=14_000)
        Turn.objects.create(call=call, ref="t3", index=2, at_ms=15_000)
    late, pending = get(tenant, f"/calls/{call.id}/turns").json()["items"][1:]
    assert late["verdict"]["state"] == "timed_out"
    assert [verdict["score"] for verdict in late["late_verdicts"]] == [0.9]
    assert pending["verdict"] is None


def test_turns_are_paged_in_the_order_of_the_call(tenant: Tenancy) -> None:
    call = call_create(tenant)
    with tenant.context():
        for index in range(1, 5):
            Turn.objects.create(call=call, ref=f"t{index}", index=index, at_ms=index * 1000)
    first = get(tenant, f"/calls/{call.id}/turns", limit=3).json()
    second = get(tenant, f"/calls/{call.id}/turns", limit=3, cursor=first["next"]).json()
    assert [turn["index"] for turn in first["items"] + second["items"]] == [0, 1, 2, 3, 4]
    assert second["next"] is None


def test_the_timeline_is_every_event_in_order_also_of_equal_sequence_numbers(tenant: Tenancy) -> None:
    call = call_create(tenant)
    with tenant.context():
        for _ in range(2):
            CallEvent.objects.create(call=call, seq=6, at=CALL_START, kind="note.sent", data={"text": "x"})
    everything = get(tenant, f"/calls/{call.id}/timeline").json()
    assert [event["seq"] for event in everything["items"]] == [1, 2, 3, 4, 5, 6, 6]
    assert everything["items"][0]["kind"] == "call.started"
    first = get(tenant, f"/calls/{call.id}/timeline", limit=6).json()
    second = get(tenant, f"/calls/{call.id}/timeline", limit=6, cursor=first["next"]).json()
    assert [event["id"] for event in first["items"] + second["items"]] == [e["id"] for e in everything["items"]]


def test_the_number_of_queries_does_not_grow_with_the_rows(tenant: Tenancy, django_assert_max_num_queries: Any) -> None:
    call = call_create(tenant)
    with tenant.context():
        for index in range(1, 30):
            turn = Turn.objects.create(call=call, ref=f"t{index}", index=index, at_ms=index * 1000)
            Verdict.objects.create(call=call, turn=turn, state="judged", score=0.1, at_ms=index * 1000 + 200)
    # Ten of each are the key and the tenant's settings; the first also notes its use, and reads the tenant's limits.
    for path, queries in ((f"/calls/{call.id}/turns", 24), ("/calls", 12), (f"/calls/{call.id}/timeline", 13)):
        with django_assert_max_num_queries(queries):
            assert get(tenant, path).status_code == 200


# -- what goes wrong ----------------------------------------------------------------------------------------------


def assert_problem(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.content
    assert response.headers["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert set(body) == {"type", "title", "status", "detail", "errors", "request_id"}
    assert body["status"] == status
    assert body["request_id"] == response.headers["X-Request-Id"]
    return body


@pytest.mark.parametrize("path", ["", "/turns", "/timeline"])
def test_a_strangers_call_and_a_missing_one_give_the_same_answer(tenant: Tenancy, stranger: Tenancy, path: str) -> None:
    with stranger.context():
        foreign_id = Call.objects.get().id
    foreign = assert_problem(get(tenant, f"/calls/{foreign_id}{path}"), 404)
    missing = assert_problem(get(tenant, f"/calls/{uuid7()}{path}"), 404)
    assert {**foreign, "request_id": ""} == {**missing, "request_id": ""}
    assert get(stranger, f"/calls/{foreign_id}{path}").status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer mk_aaaaaaaaaaaa_" + "a" * 43,
        "Bearer sk_abc",
        "Bearer mk_\x00",
        "Basic dXNlcjpwYXNz",
        "Bearer mk_é",
    ],
)
def test_without_a_good_key_everything_is_401_and_says_how_to_ask(tenant: Tenancy, header: str | None) -> None:
    response = Client().get("/api/v1/calls", headers={"Authorization": header} if header is not None else {})
    body = assert_problem(response, 401)
    assert "Authorization: Bearer mk_" in body["detail"]
    assert response.headers["WWW-Authenticate"].startswith("Bearer")


def test_a_key_without_the_scope_is_403_and_the_scope_is_named(tenant: Tenancy) -> None:
    with tenant.context():
        key = api_key_create(name="judge only", scopes=["judge"]).key
    client = Client(headers={"Authorization": f"Bearer {key}"})
    for path in ("/calls", f"/calls/{uuid7()}", f"/calls/{uuid7()}/turns", f"/calls/{uuid7()}/timeline"):
        assert "calls:read" in assert_problem(client.get(f"/api/v1{path}"), 403)["detail"]
    assert client.get("/api/v1/me").status_code == 200


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "201"}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"cursor": "!!"}, "cursor"),
        ({"cursor": "é"}, "cursor"),
        ({"cursor": "WzEsMl0"}, "cursor"),
        ({"cursor": "W10"}, "cursor"),
        ({"cursor": "WyJ4IiwieSJd"}, "cursor"),
        ({"state": "paused"}, "state"),
        ({"agent_id": "me"}, "agent_id"),
        ({"from": "yesterday"}, "from"),
        ({"from": "2026-03-04T12:00:00"}, "from"),
        ({"to": "9" * 400}, "to"),
    ],
)
def test_a_bad_query_names_its_field(tenant: Tenancy, query: dict[str, str], field: str) -> None:
    assert list(assert_problem(get(tenant, "/calls", **query), 422)["errors"]) == [field]


@pytest.mark.parametrize("path", ["turns", "timeline"])
@pytest.mark.parametrize("cursor", ["x", "WyJ4IiwieSJd", "WzFd" * 3, "WzEsInkiXQ"])
def test_a_bad_cursor_of_a_call_names_its_field(tenant: Tenancy, path: str, cursor: str) -> None:
    call = call_create(tenant)
    body = assert_problem(get(tenant, f"/calls/{call.id}/{path}", cursor=cursor), 422)
    assert list(body["errors"]) == ["cursor"]


def test_an_unknown_path_and_a_wrong_method_are_problems_too(tenant: Tenancy) -> None:
    client = Client(headers={"Authorization": f"Bearer {tenant.api_key}"})
    assert_problem(client.get("/api/v1/no-such-thing"), 404)
    assert_problem(client.get("/api/v1/calls/not-a-uuid"), 404)
    response = client.put("/api/v1/calls")
    assert_problem(response, 405)
    assert "GET" in response.headers["Allow"]


def test_an_error_of_ours_is_500_without_a_trace_and_the_log_has_its_id(
    tenant: Tenancy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(**_: Any) -> None:
        raise RuntimeError("caller's words")

    monkeypatch.setattr("supervision.api.calls.call_list", broken)
    response = get(tenant, "/calls")
    body = assert_problem(response, 500)
    assert "caller's words" not in response.content.decode()
    assert "Traceback" not in response.content.decode()
    assert [vars(record)["request_id"] for record in caplog.records if record.message == "a request failed"] == [
        body["request_id"]
    ]


# -- the document -------------------------------------------------------------------------------------------------


def test_the_document_lists_every_path_with_its_errors(tenant: Tenancy) -> None:
    document = get(tenant, "/openapi.json").json()
    assert {"/api/v1/me", "/api/v1/calls/{call_id}/turns", "/api/v1/audit-events/export"} <= set(document["paths"])
    for path, operations in document["paths"].items():
        for operation in operations.values():
            responses = operation["responses"]
            assert "application/problem+json" in resolved(document, responses["401"])["content"], path
            good = next(response for status, response in responses.items() if int(status) < 400)
            if "204" not in responses:
                assert {"application/json", "application/jsonl"} & set(good["content"]), path


def test_the_docs_page_loads_nothing_from_another_host() -> None:
    page = Client().get("/api/v1/docs").content.decode()
    assert "swagger-ui-bundle" in page
    assert "http://" not in page
    assert "https://" not in page
    for asset in re.findall(r'(?:src|href)="/static/([^"]+)"', page):
        assert finders.find(asset), asset


# -- filters, search and erasure ----------------------------------------------------------------------------------


def test_filters_of_coverage_interventions_and_text(tenant: Tenancy, stranger: Tenancy) -> None:
    corrected = call_create(tenant, text="I have refunded the charlie-free order.")
    quiet = call_create(tenant, customer_text="Hello", text="Good morning.", started_at=CALL_START + timedelta(hours=1))
    with tenant.context():
        Call.objects.filter(id=quiet.id).update(intervention_count=0, coverage_state="partial", test=True)
    for query, calls in (
        ({}, [quiet, corrected]),
        ({"coverage": "partial"}, [quiet]),
        ({"coverage": "none"}, []),
        ({"interventions": "true"}, [corrected]),
        ({"interventions": "false"}, [quiet]),
        ({"test": "true"}, [quiet]),
        ({"test": "false"}, [corrected]),
        ({"text": "refunded"}, [corrected]),
        ({"text": "good morning", "coverage": "partial"}, [quiet]),
        ({"text": "secret"}, []),
    ):
        found = [row["id"] for row in get(tenant, "/calls", **query).json()["items"]]
        assert found == [str(call.id) for call in calls], query


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"coverage": "most"}, "coverage"),
        ({"interventions": "several"}, "interventions"),
        ({"test": "perhaps"}, "test"),
        ({"outcome": "a\x00"}, "outcome"),
        ({"text": ""}, "text"),
        ({"text": "x" * 201}, "text"),
        ({"text": "a\x00"}, "text"),
    ],
)
def test_a_bad_filter_names_its_field(tenant: Tenancy, query: dict[str, str], field: str) -> None:
    assert list(assert_problem(get(tenant, "/calls", **query), 422)["errors"]) == [field]


def erase(tenancy: Tenancy, call_id: UUID) -> Any:
    return Client(headers={"Authorization": f"Bearer {tenancy.api_key}"}).delete(f"/api/v1/calls/{call_id}")


def test_erasing_a_call_leaves_nothing_of_it_and_the_log_knows_no_caller(tenant: Tenancy, stranger: Tenancy) -> None:
    call, other = call_create(tenant, customer_text="my number is 4711"), call_create(tenant)
    response = erase(tenant, call.id)
    assert (response.status_code, response.content) == (204, b"")
    assert_problem(get(tenant, f"/calls/{call.id}"), 404)
    assert_problem(erase(tenant, call.id), 404)
    tables = (Turn, Verdict, ToolDecision, Intervention, AgentNote, CallEvent)
    with tenant.context():
        assert {row.call_id for table in tables for row in table.objects.all()} == {other.id}
        assert [erased.id for erased in ErasedCall.objects.all()] == [call.id]
        event = AuditEvent.objects.get(action="call.erase")
        assert event.object_id == str(call.id)
        assert not [word for word in ("4711", call.from_number, call.plivo_call_id) if word in str(vars(event))]
    with stranger.context():
        assert Turn.objects.count() == 1


def test_a_call_that_runs_is_not_erased_and_one_that_never_ended_can_be(tenant: Tenancy) -> None:
    running = call_create(tenant, state="live", started_at=timezone.now())
    assert "when it has ended" in assert_problem(erase(tenant, running.id), 409)["detail"]
    assert get(tenant, f"/calls/{running.id}").status_code == 200
    lost = call_create(tenant, state="live", started_at=timezone.now() - timedelta(hours=25))
    assert erase(tenant, lost.id).status_code == 204


def test_a_strangers_call_is_not_erased(tenant: Tenancy, stranger: Tenancy) -> None:
    with stranger.context():
        foreign = Call.objects.get().id
    answers = [assert_problem(erase(tenant, call_id), 404) for call_id in (foreign, uuid7())]
    assert {**answers[0], "request_id": ""} == {**answers[1], "request_id": ""}
    with stranger.context():
        assert Call.objects.filter(id=foreign).exists()


def test_ten_thousand_calls_are_walked_once_each_while_calls_are_written(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context(), connection.cursor() as cursor_:
        # Many begin in the same second, as they do.
        cursor_.execute(
            "INSERT INTO supervision_call (id, tenant_id, agent_id, state, started_at)"
            " SELECT gen_random_uuid(), %s, %s, 'ended', %s + n / 7 * interval '1 second'"
            " FROM generate_series(1, 10000) n",
            [tenant.id, tenant.agent.id, CALL_START],
        )
        there = {str(call_id) for call_id in Call.objects.values_list("id", flat=True)}
    seen: list[str] = []
    cursor: dict[str, str] = {}
    pages = 0
    while True:
        page = get(tenant, "/calls", limit=200, **cursor).json()
        seen += [row["id"] for row in page["items"]]
        with tenant.context():
            # One that begins now, one that began in the middle and is only recorded now.
            for started_at in (CALL_START + timedelta(days=1), CALL_START + timedelta(seconds=pages * 10)):
                Call.objects.create(agent=tenant.agent, started_at=started_at)
        pages += 1
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert len(seen) == len(set(seen))
    assert there <= set(seen)
