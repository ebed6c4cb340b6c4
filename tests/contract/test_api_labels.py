"""Labels of turns, interventions and tool decisions through the real URLs, and two reviewers at once."""

from __future__ import annotations

import threading
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from django.test import Client

from mirror_saas.ids import uuid7
from supervision.models import Intervention, Label, ToolDecision, Turn
from supervision.services.labels import turn_label
from tenants.models import AuditEvent
from tests.contract.test_api_calls import assert_problem, get
from tests.factories import PASSWORD, Tenancy, call_create

pytestmark = pytest.mark.django_db


def put(tenancy: Tenancy, path: str, body: Any) -> Any:
    client = Client(headers={"Authorization": f"Bearer {tenancy.api_key}"})
    return client.put(f"/api/v1{path}", data=body, content_type="application/json")


def ids(tenancy: Tenancy) -> tuple[UUID, UUID]:
    with tenancy.context():
        return Turn.objects.get().id, Intervention.objects.get().id


@pytest.fixture
def called(tenant: Tenancy) -> Tenancy:
    call_create(tenant)
    return tenant


def test_a_turn_is_labelled_and_shows_it(called: Tenancy) -> None:
    turn_id, _ = ids(called)
    made = put(called, f"/turns/{turn_id}/label", {"label": "missed", "note": "It promised a date."}).json()
    assert (made["label"], made["note"], made["turn_id"]) == ("missed", "It promised a date.", str(turn_id))
    assert made["labelled_by"].startswith("tests (")
    with called.context():
        call_id = Turn.objects.get().call_id
    [turn] = get(called, f"/calls/{call_id}/turns").json()["items"]
    assert turn["label"] == made


def test_an_intervention_is_labelled_and_found_by_it(called: Tenancy) -> None:
    _, intervention_id = ids(called)
    assert len(get(called, "/interventions", label="none").json()["items"]) == 1
    assert put(called, f"/interventions/{intervention_id}/label", {"label": "false_alarm"}).status_code == 200
    assert get(called, "/interventions", label="none").json()["items"] == []
    [row] = get(called, "/interventions", label="false_alarm").json()["items"]
    assert row["label"]["label"] == "false_alarm"
    assert get(called, "/interventions", label="confirmed").json()["items"] == []


def test_a_tool_decision_is_labelled_and_found_by_it(called: Tenancy) -> None:
    with called.context():
        decision_id = ToolDecision.objects.get().id
    assert [row["label"] for row in get(called, "/tool-decisions", label="none").json()["items"]] == [None]
    made = put(called, f"/tool-decisions/{decision_id}/label", {"label": "false_alarm"}).json()
    assert (made["tool_decision_id"], made["turn_id"], made["intervention_id"]) == (str(decision_id), None, None)
    assert get(called, "/tool-decisions", label="none").json()["items"] == []
    [row] = get(called, "/tool-decisions", label="false_alarm").json()["items"]
    assert row["label"] == made
    assert get(called, "/tool-decisions", label="confirmed").json()["items"] == []
    body = assert_problem(put(called, f"/tool-decisions/{decision_id}/label", {"label": "missed"}), 422)
    assert list(body["errors"]) == ["label"]


def test_a_second_word_replaces_the_first_and_the_log_has_both_without_the_note(called: Tenancy) -> None:
    turn_id, _ = ids(called)
    first = put(called, f"/turns/{turn_id}/label", {"label": "unsure", "note": "He says 4711."}).json()
    second = put(called, f"/turns/{turn_id}/label", {"label": "confirmed"}).json()
    assert second["id"] == first["id"]
    assert (second["label"], second["note"]) == ("confirmed", "")
    with called.context():
        events = AuditEvent.objects.filter(action="turn.label").order_by("seq")
        assert [(event.object_id, event.object_label) for event in events] == [
            (str(turn_id), "unsure"),
            (str(turn_id), "confirmed"),
        ]
        assert not any("4711" in (event.before or "") + (event.after or "") for event in events)
        # The same again is nothing new.
        put(called, f"/turns/{turn_id}/label", {"label": "confirmed"})
        assert events.count() == 2


def test_a_reviewer_may_and_a_viewer_may_not(called: Tenancy) -> None:
    turn_id, _ = ids(called)
    client = Client()
    assert client.login(username=called.users["bob"].email, password=PASSWORD)
    response = client.put(f"/api/v1/turns/{turn_id}/label", {"label": "unsure"}, content_type="application/json")
    assert "labels:write" in assert_problem(response, 403)["detail"]


@pytest.mark.parametrize("kind", ["turns", "interventions", "tool-decisions"])
def test_a_strangers_and_a_missing_one_are_alike(called: Tenancy, stranger: Tenancy, kind: str) -> None:
    with stranger.context():
        decision_id = ToolDecision.objects.get().id
    foreign = dict(zip(("turns", "interventions", "tool-decisions"), (*ids(stranger), decision_id), strict=True))[kind]
    answers = [
        assert_problem(put(called, f"/{kind}/{object_id}/label", {"label": "confirmed"}), 404)
        for object_id in (foreign, uuid7())
    ]
    assert {**answers[0], "request_id": ""} == {**answers[1], "request_id": ""}
    with stranger.context():
        assert not Label.objects.exists()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "label"),
        ({"label": "wrong"}, "label"),
        ({"label": None}, "label"),
        ({"label": ["confirmed"]}, "label"),
        ({"label": "confirmed", "note": 5}, "note"),
        ({"label": "confirmed", "note": "n" * 4001}, "note"),
        ({"label": "confirmed", "note": "a\x00b"}, "note"),
        ([], "body"),
    ],
)
def test_a_bad_label_names_its_field(called: Tenancy, body: Any, field: str) -> None:
    turn_id, _ = ids(called)
    assert list(assert_problem(put(called, f"/turns/{turn_id}/label", body), 422)["errors"]) == [field]


def test_an_intervention_was_not_missed(called: Tenancy) -> None:
    _, intervention_id = ids(called)
    body = assert_problem(put(called, f"/interventions/{intervention_id}/label", {"label": "missed"}), 422)
    assert list(body["errors"]) == ["label"]


def test_broken_json_is_a_problem(called: Tenancy) -> None:
    turn_id, _ = ids(called)
    assert_problem(put(called, f"/turns/{turn_id}/label", "{"), 400)


@pytest.mark.django_db(transaction=True)
def test_reviewers_at_once_leave_one_label_and_a_log_with_all_of_them(tenant: Tenancy) -> None:
    call_create(tenant)
    turn_id, _ = ids(tenant)
    together = threading.Barrier(4)
    problems: list[Exception] = []

    def review(value: str) -> None:
        try:
            together.wait(10)
            with tenant.context():
                turn_label(turn_id=turn_id, value=value)
        except Exception as error:
            problems.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=review, args=[value]) for value in Label.Value.values]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert problems == []
    with tenant.context():
        label = Label.objects.get()
        events = list(AuditEvent.objects.filter(action="turn.label").order_by("seq"))
    assert {event.object_label for event in events} == set(Label.Value.values)
    assert events[-1].object_label == label.value
