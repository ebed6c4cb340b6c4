"""A call's page: which turn it shows, windows of long calls, labels, erasure; the list's search and its file."""

from __future__ import annotations

import csv
import io
import json
import re
from datetime import timedelta
from html import unescape
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from mirror_saas.ids import uuid7
from supervision.models import Call, CallEvent, ErasedCall, Intervention, Label, Policy, ToolDecision, Turn, Verdict
from supervision.recorder.events import epoch_of
from tenants.models import AuditEvent
from tenants.roles import Role
from tenants.services.tenants import membership_create, user_create
from tests.factories import CALL_START, Tenancy, call_create, client_sign_in, tenancy_create, unique
from webui.call_parts import EVENTS_SHOWN, TURNS_SHOWN

pytestmark = pytest.mark.django_db

OPENED = {"Sec-Fetch-Mode": "navigate"}


@pytest.fixture
def alice(client: Client, tenant: Tenancy) -> Client:
    client_sign_in(client, tenant.users["alice"])
    return client


def text_of(client: Client, path: str, **headers: str) -> str:
    response = client.get(path, headers=headers or None)
    assert response.status_code == 200, (path, response.status_code)
    return response.content.decode()


def long_call(tenancy: Tenancy, turns: int) -> Call:
    """A call of `turns` turns, 8 s apart, each judged clean but for the last one."""
    call = call_create(tenancy)
    with tenancy.context():
        Turn.objects.filter(call=call).delete()
        CallEvent.objects.filter(call=call).delete()
        made = [
            Turn(call=call, tenant_id=tenancy.id, ref=f"t{n}", index=n, text=f"Answer {n}.", at_ms=8_000 * n)
            for n in range(1, turns + 1)
        ]
        Turn.objects.bulk_create(made)
        Verdict.objects.bulk_create(
            Verdict(
                call=call,
                tenant_id=tenancy.id,
                turn=turn,
                state="judged",
                score=0.9 if turn is made[-1] else 0.1,
                threshold=0.7,
                rule="Never promise a date." if turn is made[-1] else None,
                intervene=turn is made[-1],
                withheld="cooldown" if turn is made[-1] else "",
                latency_ms=300,
                at_ms=turn.at_ms + 400,
            )
            for turn in made
        )
        CallEvent.objects.bulk_create(
            CallEvent(
                call=call,
                tenant_id=tenancy.id,
                seq=turn.index,
                at=CALL_START + timedelta(milliseconds=turn.at_ms),
                kind="turn.reported",
                data={"turn_id": str(turn.id), "at_ms": turn.at_ms},
            )
            for turn in made
        )
    return call


def rows_of(tenancy: Tenancy, call: Call) -> list[Turn]:
    with tenancy.context():
        return list(Turn.objects.filter(call=call).order_by("at_ms", "id"))


def shown_turns(page: str) -> list[str]:
    return re.findall(r'<li id="turn-([0-9a-f]{32})"', page)


def chosen_of(page: str) -> str:
    """The turn that the panel shows; the list marks the same one."""
    (panel,) = re.findall(r'<section id="chosen"[^>]* data-turn="([^"]*)"', page)
    marked = re.findall(r'<li id="turn-([0-9a-f]{32})"[^>]* aria-current="true"', page)
    assert marked == [UUID(panel).hex]
    return str(panel)


def timeline_of(page: str) -> dict[str, Any]:
    (data,) = re.findall(r'<data id="timeline-data" hidden>(.*?)</data>', page)
    found: dict[str, Any] = json.loads(unescape(data))
    return found


# -- which turn it shows --------------------------------------------------------------------------------------------


def test_an_ended_call_opens_at_what_stands_out_and_the_url_names_another_turn(alice: Client, tenant: Tenancy) -> None:
    call = long_call(tenant, 5)
    turns = rows_of(tenant, call)
    with tenant.context():
        Intervention.objects.filter(call=call).delete()
        ToolDecision.objects.filter(call=call).delete()
    url = f"/calls/{call.id}"
    assert chosen_of(text_of(alice, url)) == str(turns[4].id)
    assert chosen_of(text_of(alice, f"{url}?turn={turns[1].id}")) == str(turns[1].id)
    # During the third one; before the first one; and what makes no sense.
    assert chosen_of(text_of(alice, f"{url}?at={turns[2].at_ms + 10}")) == str(turns[2].id)
    assert chosen_of(text_of(alice, f"{url}?at=0")) == str(turns[0].id)
    assert chosen_of(text_of(alice, f"{url}?said=%22answer+3%22")) == str(turns[2].id)
    for nonsense in (
        "said=nothing+like+it",
        "said=%00",
        "said=" + "x" * 201,
        f"turn={uuid7()}",
        "turn=x",
        "at=-1",
        "at=9" + "9" * 40,
        "at=²",
        "before=x",
    ):
        assert chosen_of(text_of(alice, f"{url}?{nonsense}")) == str(turns[4].id)


def test_the_panel_says_who_judged_why_how_fast_and_what_was_quoted(alice: Client, tenant: Tenancy) -> None:
    call = call_create(tenant)
    page = text_of(alice, f"/calls/{call.id}")
    panel = page[page.index('<section id="chosen"') :]
    for shown in (
        "0.93 reaches threshold 0.70",
        "alice&#x27;s policy v1",
        "judge-1 · 451 tokens",
        "Clause end",
        "+210 ms",
        "clearAudio sent",
        "Plivo acknowledged",
        "Was it right to step in?",
        "Was it right to block this tool?",
        "Note to the agent",
    ):
        assert shown in panel, shown
    assert re.search(r"<mark>.*Yes, I have refunded it\.?</mark>", panel)
    assert f'href="/policies/{tenant.policy.id}/versions/1?turn=' in panel
    with tenant.context():
        Policy.objects.filter(id=tenant.policy.id).update(archived_at=timezone.now())
    # What is archived has no page any more.
    assert f"/policies/{tenant.policy.id}" not in text_of(alice, f"/calls/{call.id}")
    # A turn that Mirror stepped in at is labelled by that.
    assert "Was this turn against the rule?" not in panel


def test_a_tool_that_named_no_turn_is_shown_with_the_turn_during_which_it_came(alice: Client, tenant: Tenancy) -> None:
    call = long_call(tenant, 3)
    turns = rows_of(tenant, call)
    with tenant.context():
        ToolDecision.objects.filter(call=call).delete()
        for name, at_ms in (("early", 100), ("second", turns[1].at_ms + 500)):
            ToolDecision.objects.create(call=call, name=name, ref=name, allow=True, code="ok", args={}, at_ms=at_ms)
    for turn, names in ((turns[0], {"early"}), (turns[1], {"second"}), (turns[2], set())):
        panel = text_of(alice, f"/calls/{call.id}/turns/{turn.id}")
        assert set(re.findall(r'<code class="tool-name">(\w+)</code>', panel)) == names


def test_the_timeline_has_every_turn_and_nothing_that_was_said(alice: Client, tenant: Tenancy) -> None:
    call = long_call(tenant, TURNS_SHOWN + 40)
    timeline = timeline_of(text_of(alice, f"/calls/{call.id}"))
    assert (timeline["live"], timeline["ms"]) == (False, 30_000)
    assert [item["n"] for item in timeline["items"] if "n" in item] == list(range(1, TURNS_SHOWN + 41))
    assert "Answer" not in json.dumps(timeline)


# -- long calls -----------------------------------------------------------------------------------------------------


def test_a_long_call_comes_in_windows_that_together_are_all_of_it(alice: Client, tenant: Tenancy) -> None:
    call = long_call(tenant, 2 * TURNS_SHOWN + 30)
    turns = [turn.id.hex for turn in rows_of(tenant, call)]
    url = f"/calls/{call.id}"
    page = text_of(alice, f"{url}?turn={UUID(turns[0])}")
    seen = shown_turns(page)
    assert seen == turns[:TURNS_SHOWN]
    # Only a list that reaches the end takes in what is new.
    assert 'id="turns-part"' in page
    while more := re.search(r'data-more="([^"]+after=[^"]+)"', page):
        page = text_of(alice, unescape(more.group(1)))
        seen += shown_turns(page)
    assert seen == turns

    page = text_of(alice, f"{url}?turn={UUID(turns[-1])}")
    assert 'id="turns"' in page
    seen = shown_turns(page)
    while more := re.search(r'data-more="([^"]+before=[0-9a-f-]{36})"', page):
        page = text_of(alice, unescape(more.group(1)))
        seen = shown_turns(page) + seen
    assert seen == turns


def test_the_log_comes_from_its_end(alice: Client, tenant: Tenancy) -> None:
    call = long_call(tenant, EVENTS_SHOWN + 30)
    page = text_of(alice, f"/calls/{call.id}")
    found = [int(seq) for seq in re.findall(r'<li id="event-(\d+)"', page)]
    assert found == list(range(31, EVENTS_SHOWN + 31))
    assert epoch_of(found[0]) == 1
    older = text_of(alice, f"/calls/{call.id}/events?before=31")
    assert [int(seq) for seq in re.findall(r'<li id="event-(\d+)"', older)] == list(range(1, 31))
    assert "data-more" not in older
    # Without JavaScript the link shows them on a page, to which nothing new is added.
    assert 'id="events-part"' in text_of(alice, f"/calls/{call.id}?before=31")


def test_a_page_takes_the_same_queries_however_long_the_call(alice: Client, tenant: Tenancy) -> None:
    def queries(call: Call) -> int:
        with CaptureQueriesContext(
            connection,
        ) as made:
            text_of(alice, f"/calls/{call.id}")
        return len(made)

    short, long = long_call(tenant, 3), long_call(tenant, 300)
    queries(short)
    assert queries(short) == queries(long) < 60


def test_parts_that_are_opened_as_pages_lead_to_the_page(alice: Client, tenant: Tenancy) -> None:
    call = call_create(tenant)
    (turn,) = rows_of(tenant, call)
    there = f"/calls/{call.id}?turn={turn.id}#chosen"
    for part, page in (
        (f"turns/{turn.id}", there),
        (f"turns?around={turn.id}", there),
        ("turns", f"/calls/{call.id}"),
        ("events", f"/calls/{call.id}"),
    ):
        assert alice.get(f"/calls/{call.id}/{part}", headers=OPENED)["Location"] == page


# -- labels ---------------------------------------------------------------------------------------------------------


def say(client: Client, call: Call, about: str, subject: Any, label: str, note: str = "", **more: Any) -> HttpResponse:
    headers = more.pop("headers", None)
    sent = {"turn": subject.turn_id if about != "turn" else subject.id, "about": about, "subject_id": subject.id}
    return client.post(f"/calls/{call.id}/label", {**sent, "label": label, "note": note, **more}, headers=headers)  # type: ignore[return-value]


def labels_of(tenancy: Tenancy) -> list[tuple[str, str]]:
    with tenancy.context():
        return list(Label.objects.order_by("created_at").values_list("value", "note"))


@pytest.mark.parametrize(
    ("about", "model", "label"),
    [("intervention", Intervention, "false_alarm"), ("tool_decision", ToolDecision, "confirmed")],
)
def test_a_reviewer_labels_what_mirror_did_and_comes_back_to_its_turn(
    client: Client, tenant: Tenancy, about: str, model: Any, label: str
) -> None:
    call = call_create(tenant)
    with tenant.context():
        reviewer = user_create(email=f"{unique('rita')}@x.example", password=None, name="Rita")
        membership_create(user=reviewer, role=Role.REVIEWER)
        subject = model.objects.get(call=call)
    client.force_login(reviewer)
    answer = say(client, call, about, subject, label, "Looked twice.")
    assert answer["Location"] == f"/calls/{call.id}?turn={subject.turn_id}#chosen"
    assert labels_of(tenant) == [(label, "Looked twice.")]
    page = client.get(answer["Location"]).content.decode()
    assert "Labelled: " in page
    assert "Looked twice." in page
    assert re.search(rf'value="{label}" aria-pressed="true"', page)

    # The same again changes nothing and is not written down again.
    with tenant.context():
        before = AuditEvent.objects.count()
    say(client, call, about, subject, label, "Looked twice.")
    assert labels_of(tenant) == [(label, "Looked twice.")]
    with tenant.context():
        assert AuditEvent.objects.count() == before


def test_a_turn_that_was_let_pass_is_labelled_in_place(alice: Client, tenant: Tenancy) -> None:
    call = long_call(tenant, 2)
    turn = rows_of(tenant, call)[0]
    assert "Was it right to let this turn pass?" in text_of(alice, f"/calls/{call.id}?turn={turn.id}")
    answer = say(alice, call, "turn", turn, "missed", headers={"HX-Request": "true"})
    panel = answer.content.decode()
    assert answer.status_code == 200
    assert panel.strip().startswith('<section id="chosen"')
    assert re.search(r'value="missed" aria-pressed="true"', panel)
    assert labels_of(tenant) == [("missed", "")]


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(
    ("label", "note", "words"),
    [("unsure", "x" * 4_001, "at most 4\u202f000 characters"), ("nonsense", "Why", "Choose one.")],
    ids=["note", "label"],
)
def test_a_label_that_is_wrong_keeps_what_was_typed(
    alice: Client, tenant: Tenancy, in_place: bool, label: str, note: str, words: str
) -> None:
    call = long_call(tenant, 1)
    (turn,) = rows_of(tenant, call)
    headers = {"HX-Request": "true"} if in_place else None
    page = say(alice, call, "turn", turn, label, note, headers=headers).content.decode()
    assert f">{note}</textarea>" in page
    assert words in page
    assert 'aria-invalid="true"' in page
    assert ("<html" in page) is not in_place
    assert labels_of(tenant) == []


def test_who_may_not_label_sees_what_was_said_and_no_buttons(client: Client, tenant: Tenancy) -> None:
    call = call_create(tenant)
    with tenant.context():
        subject = Intervention.objects.get(call=call)
        Label.objects.create(call=call, intervention=subject, value="unsure", note="Hard to say.", labelled_by="Rita")
    client.force_login(tenant.users["bob"])
    page = text_of(client, f"/calls/{call.id}")
    assert "Hard to say." in page
    assert 'name="label"' not in page
    assert "Erase this call" not in page
    assert say(client, call, "intervention", subject, "confirmed").status_code == 403


def test_what_is_of_another_turn_call_or_tenant_is_not_labelled(
    alice: Client, tenant: Tenancy, stranger: Tenancy
) -> None:
    call, other = call_create(tenant), call_create(tenant)
    with stranger.context():
        theirs = Intervention.objects.select_related("call").get()
    with tenant.context():
        own = Intervention.objects.get(call=call)
        elsewhere = Intervention.objects.get(call=other)
    assert say(alice, theirs.call, "intervention", theirs, "unsure").status_code == 404
    assert say(alice, call, "intervention", elsewhere, "unsure").status_code == 404
    assert say(alice, call, "intervention", elsewhere, "unsure", turn=own.turn_id).status_code == 404
    assert say(alice, call, "intervention", own, "unsure", subject_id="x").status_code == 404
    assert say(alice, call, "call", own, "unsure").status_code == 404
    assert labels_of(tenant) == labels_of(stranger) == []


# -- erasing --------------------------------------------------------------------------------------------------------


def test_a_call_is_erased_once_after_a_question(alice: Client, tenant: Tenancy) -> None:
    call, kept = call_create(tenant), call_create(tenant)
    page = text_of(alice, f"/calls/{call.id}/erase")
    assert "Erase this call?" in page
    (once,) = re.findall(r'name="once" value="([^"]+)"', page)
    for _ in range(2):
        assert alice.post(f"/calls/{call.id}/erase", {"once": once})["Location"] == "/calls"
    with tenant.context():
        assert list(Call.objects.values_list("id", flat=True)) == [kept.id]
        assert [each.id for each in ErasedCall.objects.all()] == [call.id]
    assert "The call is erased." in text_of(alice, "/calls")
    assert alice.get(f"/calls/{call.id}").status_code == 404


def test_a_running_call_is_not_erased(alice: Client, tenant: Tenancy) -> None:
    call = call_create(tenant, state="live", started_at=timezone.now())
    assert "Erase this call" not in text_of(alice, f"/calls/{call.id}")
    assert "can be erased when it has ended" in text_of(alice, f"/calls/{call.id}/erase")
    answer = alice.post(f"/calls/{call.id}/erase")
    assert answer["Location"] == f"/calls/{call.id}"
    assert "still running" in text_of(alice, answer["Location"])


def test_erasing_asks_who_it_is_and_takes_the_right_to(client: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    call = call_create(tenant)
    client_sign_in(client, tenant.users["alice"], ago=timedelta(hours=1))
    assert client.post(f"/calls/{call.id}/erase")["Location"].startswith("/account/confirm?next=")
    client_sign_in(client, tenant.users["bob"])
    assert client.post(f"/calls/{call.id}/erase").status_code == 403
    client_sign_in(client, stranger.users["charlie"])
    assert client.post(f"/calls/{call.id}/erase").status_code == 404
    with tenant.context():
        assert Call.objects.count() == 1


# -- the list -------------------------------------------------------------------------------------------------------


def ended(page: str) -> set[str]:
    return set(re.findall(r'<tr id="call-([0-9a-f]{32})"', page))


def test_calls_are_found_by_what_was_said_and_by_how_they_went(alice: Client, tenant: Tenancy) -> None:
    refund, parcel = call_create(tenant), call_create(tenant, customer_text="Where is my parcel?", text="On its way.")
    with tenant.context():
        Call.objects.filter(id=parcel.id).update(coverage_state="partial", intervention_count=0)
    both = {refund.id.hex, parcel.id.hex}
    for query, found in (
        ("text=parcel", {parcel.id.hex}),
        ("text=%22money+back%22", {refund.id.hex}),
        ("text=nothing+of+this", set()),
        ("coverage=partial", {parcel.id.hex}),
        ("interventions=yes", {refund.id.hex}),
        ("interventions=no", {parcel.id.hex}),
        ("text=" + "x" * 201, both),
        ("text=%00", both),
    ):
        assert ended(text_of(alice, f"/calls?{query}")) == found, query
    # The row leads to the turn in which it was said.
    (link,) = re.findall(r'<a href="(/calls/[^"]+said=[^"]+)"', text_of(alice, "/calls?text=%22my+parcel%22+or+%26"))
    assert link == f"/calls/{parcel.id}?said=%22my%20parcel%22%20or%20%26"
    assert "Search for at most 200 characters." in text_of(alice, "/calls?text=" + "x" * 201)


@pytest.fixture
def two_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webui.call_csv.MAX_LIMIT", 2)


@pytest.mark.usefixtures("two_a_page")
def test_the_list_as_a_file_has_what_the_filters_let_through(alice: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    made = [call_create(tenant, started_at=CALL_START + timedelta(minutes=n)) for n in range(5)]
    with tenant.context():
        Call.objects.filter(id=made[1].id).update(reason="=HYPERLINK(1)", outcome="failed")
    page = text_of(alice, "/calls?outcome=failed")
    (link,) = re.findall(r'href="(/calls\.csv[^"]*)"', page)
    assert link == "/calls.csv?outcome=failed"

    def rows(path: str) -> list[dict[str, str]]:
        answer = alice.get(path)
        assert answer["Content-Type"] == "text/csv; charset=utf-8"
        assert answer["Content-Disposition"] == 'attachment; filename="calls.csv"'
        return list(csv.DictReader(io.StringIO(answer.getvalue().decode())))

    (failed,) = rows(link)
    assert failed["id"] == str(made[1].id)
    assert failed["reason"] == "'=HYPERLINK(1)"
    assert (failed["agent"], failed["policy"], failed["policy_version"]) == ("alice's agent", "alice's policy", "1")
    assert (failed["from_number"], failed["turns"], failed["coverage"]) == ("'+15 ••• 100", "1", "1.0")
    everything = rows("/calls.csv")
    assert [row["id"] for row in everything] == [str(call.id) for call in reversed(made)]


def test_a_stranger_reads_nothing_of_a_call(client: Client, tenant: Tenancy) -> None:
    call = call_create(tenant)
    (turn,) = rows_of(tenant, call)
    other = tenancy_create(owner="charlie")
    client_sign_in(client, other.users["charlie"])
    for part in ("", "/turns", f"/turns/{turn.id}", f"/turns?after={turn.id}", "/events", "/erase"):
        assert client.get(f"/calls/{call.id}{part}").status_code == 404, part
    assert call.id.hex not in client.get("/calls.csv").getvalue().decode().replace("-", "")
