"""The review pages: who gets them, what an item shows, what is kept of a form, and where each thing leads."""

from __future__ import annotations

import re
from datetime import timedelta
from html import unescape
from typing import Any
from uuid import UUID

import pytest
from django.test import Client
from django.utils import timezone

from mirror_saas.ids import uuid7
from supervision.models import Call, Intervention, Label, ReviewReservation, ToolDecision, Turn
from supervision.services.labels import intervention_label
from tenants.roles import Role
from tenants.services.tenants import membership_create, user_create
from tests.factories import PASSWORD, Tenancy, call_create, unique
from tests.support.reviews import turn_create
from webui.presenters.review import Piece, said_pieces

pytestmark = pytest.mark.django_db


def signed_in(tenancy: Tenancy, role: Role) -> tuple[Client, str]:
    """A client of a new member, and their email."""
    with tenancy.context():
        user = user_create(email=f"{unique(role.value)}@x.example", password=PASSWORD)
        membership_create(user=user, role=role)
    client = Client()
    client.force_login(user)
    return client, user.email


@pytest.fixture
def client(tenant: Tenancy) -> Client:
    """A reviewer's."""
    return signed_in(tenant, Role.REVIEWER)[0]


@pytest.fixture
def call(tenant: Tenancy) -> Call:
    return call_create(tenant)


def page_of(client: Client, path: str, status: int = 200) -> str:
    answer = client.get(path, follow=True)
    assert answer.status_code == status, path
    return unescape(answer.content.decode())


def ids(tenancy: Tenancy) -> tuple[UUID, UUID]:
    with tenancy.context():
        return Intervention.objects.get().id, ToolDecision.objects.get().id


def label_of(tenancy: Tenancy) -> tuple[str, str, str]:
    with tenancy.context():
        label = Label.objects.get()
        return label.value, label.note, label.labelled_by


# -- who ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", list(Role), ids=lambda role: role.value)
def test_reviewers_and_those_above_review_and_viewers_do_not(tenant: Tenancy, call: Call, role: Role) -> None:
    client, _ = signed_in(tenant, role)
    intervention, _ = ids(tenant)
    may = role is not Role.VIEWER
    for path in ("/review", f"/review/{intervention}"):
        assert client.get(path, follow=True).status_code == (200 if may else 403)
    assert client.post(f"/review/{intervention}", {"label": "confirmed"}).status_code == (302 if may else 403)
    assert ('href="/review"' in client.get("/calls").content.decode()) is may


def test_a_strangers_item_is_no_item_and_nobody_signs_in_first(
    client: Client, tenant: Tenancy, stranger: Tenancy
) -> None:
    foreign = [*ids(stranger)]
    with stranger.context():
        foreign.append(Turn.objects.get().id)
    missing = client.get(f"/review/{uuid7()}")
    for item in foreign:
        answer = client.get(f"/review/{item}")
        assert (answer.status_code, answer.content) == (404, missing.content)
        assert client.post(f"/review/{item}", {"label": "confirmed"}).status_code == 404
    assert "charlie" not in page_of(client, "/review")
    with stranger.context():
        assert Label.objects.count() == ReviewReservation.objects.count() == 0
    assert Client().get("/review")["Location"].startswith("/sign-in?next=")


# -- an item ---------------------------------------------------------------------------------------------------------


def test_the_queue_leads_to_its_first_item_and_shows_why_it_is_there(client: Client, tenant: Tenancy) -> None:
    call = call_create(tenant, text='Yes, I have refunded it. "Gladly" <b>done</b>.')
    turn_create(tenant, call, score=0.1, text="Is there anything else?")
    intervention, tool = ids(tenant)
    answer = client.get("/review?agent=" + str(tenant.agent.id))
    assert answer["Location"] == f"/review/{intervention}?agent={tenant.agent.id}"
    page = page_of(client, answer["Location"])
    for shown in (
        "Never confirm a refund.",
        "Mirror objected to this turn.",
        "0.93 reaches threshold 0.70",
        "Was it right to step in?",
        "Can I have my money back?",
        "Is there anything else?",
        "I cannot confirm that. May I connect you to a colleague?",
        "alice's policy v1",
        f'href="/calls/{call.id}?turn=',
        "2 items left, 0 labelled today",
    ):
        assert shown in page, shown
    assert re.search(r'<time-left [^>]*ms="(599|600)\d{3}"', page)
    assert re.findall(r'name="label" value="(\w+)"', page) == ["confirmed", "false_alarm", "unsure"]
    # What comes next, with the same filters.
    assert f'href="/review/{tool}?agent={tenant.agent.id}"' in page
    assert "<b>done" not in client.get(answer["Location"]).content.decode()


def test_a_blocked_tool_shows_what_it_was_to_do(client: Client, tenant: Tenancy, call: Call) -> None:
    page = page_of(client, "/review?kind=tool")
    for shown in ("Mirror kept the agent from running this tool.", '"amount": 5', "Irreversible", "against a rule"):
        assert shown in page, shown
    assert "Was it right to block this tool?" in page


@pytest.mark.parametrize(
    ("verdict", "shown", "values"),
    [
        ({"score": 0.9, "withheld": "shadow"}, "shadow mode only watches", ["confirmed", "false_alarm", "unsure"]),
        ({"score": 0.62}, "it stayed 0.08 below the threshold", ["confirmed", "missed", "unsure"]),
        ({"score": 0.1, "sampled": True}, "Picked at random", ["confirmed", "missed", "unsure"]),
        (
            {"score": None, "sampled": True, "detail": "no answer in time"},
            "Timed out",
            ["confirmed", "missed", "unsure"],
        ),
    ],
    ids=["violation", "near", "sampled", "not-judged"],
)
def test_a_turn_says_why_it_was_picked(
    client: Client, tenant: Tenancy, call: Call, verdict: dict[str, Any], shown: str, values: list[str]
) -> None:
    turn = turn_create(tenant, call, **verdict)
    page = page_of(client, f"/review/{turn.id}")
    assert shown in page
    assert re.findall(r'name="label" value="(\w+)"', page) == values


def test_the_judges_quotes_are_marked_where_they_stand_and_what_was_heard_too() -> None:
    turn = Turn(
        tenant_id=uuid7(),
        text="Of course! I have just refunded your 189 dollars.",
        heard_text="Of course! I have",
        uncertain_text="just refunded",
        unheard_text="your 189 dollars.",
        heard_basis="pauses",
    )
    reason = 'It says "have just refunded your", which no rule allows; "never said" it did not say.'
    assert list(said_pieces(turn, reason)) == [
        Piece("heard", "Of course! I ", False),
        Piece("heard", "have", True),
        Piece("said", " ", True),
        Piece("uncertain", "just refunded", True),
        Piece("said", " ", True),
        Piece("unheard", "your", True),
        Piece("unheard", " 189 dollars.", False),
    ]
    # What was heard is told in words of its own.
    turn.heard_text, turn.uncertain_text, turn.unheard_text = "Sure! I just refunded it", "", ""
    pieces = list(said_pieces(turn, 'It says "just refunded".'))
    assert [(piece.text, piece.quoted) for piece in pieces] == [
        ("Sure! I ", False),
        ("just refunded", True),
        (" it", False),
        (" ", False),
    ]


# -- a label -----------------------------------------------------------------------------------------------------------


def test_a_label_is_kept_and_leads_on_to_the_next_item_with_the_same_filters(client: Client, tenant: Tenancy) -> None:
    call_create(tenant, started_at=timezone.now() - timedelta(hours=1))
    intervention, tool = ids(tenant)
    query = f"?agent={tenant.agent.id}"
    answer = client.post(f"/review/{intervention}{query}", {"label": "false_alarm", "note": " Nothing was said. "})
    assert answer["Location"] == f"/review/{tool}{query}"
    with tenant.context():
        user_email = Label.objects.get().labelled_by
    assert label_of(tenant) == ("false_alarm", "Nothing was said.", user_email)
    page = page_of(client, answer["Location"])
    assert "1 labelled by you today" in re.sub("<[^>]+>", "", page)
    assert "You said last:" in page
    assert "1 item left, 1 labelled today" in page
    assert client.post(f"/review/{tool}{query}", {"label": "confirmed"})["Location"] == f"/review{query}"
    assert "Nothing left under these filters" in page_of(client, f"/review{query}")
    done = page_of(client, "/review")
    assert "All reviewed" in done
    # One alarm of two was false; that says little.
    assert "50 %" in done
    assert "9 to 91 % with 95 % confidence, from 2 reviewed alarms of the last 30 days" in done


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "Say what it was before you go on."),
        ({"label": "missed"}, "Mirror did not let this pass, so it was not missed"),
        ({"label": "confirmed", "note": "n" * 4001}, "Write at most 4000 characters."),
        ({"label": "confirmed", "note": "a\x00b"}, ""),
    ],
    ids=["no-label", "wrong-label", "long-note", "null-in-note"],
)
def test_what_is_wrong_is_said_at_its_field_and_what_was_typed_is_kept(
    client: Client, tenant: Tenancy, call: Call, body: dict[str, str], message: str
) -> None:
    intervention, _ = ids(tenant)
    body.setdefault("note", "The caller asked twice.")
    answer = client.post(f"/review/{intervention}", body)
    assert answer.status_code == 200
    page = unescape(answer.content.decode())
    assert message in page
    assert 'class="field-error"' in page
    if "\x00" not in body["note"]:
        assert body["note"] in page
    if body.get("label") == "confirmed":
        assert re.search(r'value="confirmed" checked', page)
    with tenant.context():
        assert not Label.objects.exists()


def test_a_form_sent_twice_labels_once(client: Client, tenant: Tenancy, call: Call) -> None:
    intervention, _ = ids(tenant)
    answers = [client.post(f"/review/{intervention}", {"label": "unsure", "note": "Hm."}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [302, 302]
    with tenant.context():
        assert Label.objects.count() == 1


def test_somebodys_newer_word_is_shown_before_it_is_replaced(client: Client, tenant: Tenancy, call: Call) -> None:
    intervention, _ = ids(tenant)
    page_of(client, f"/review/{intervention}")
    with tenant.context():
        intervention_label(intervention_id=intervention, value="false_alarm", note="No promise.")
    answer = client.post(f"/review/{intervention}", {"label": "confirmed", "note": "It is one.", "seen": ""})
    page = unescape(answer.content.decode())
    assert answer.status_code == 409
    assert "labelled this meanwhile: False alarm" in page
    assert "Nothing of yours was saved." in page
    assert "It is one." in page
    assert label_of(tenant)[0] == "false_alarm"
    (seen,) = re.findall(r'name="seen" value="([^"]+)"', page)
    again = client.post(f"/review/{intervention}", {"label": "confirmed", "note": "It is one.", "seen": seen})
    assert again.status_code == 302
    assert label_of(tenant)[:2] == ("confirmed", "It is one.")
    assert client.post(f"/review/{intervention}", {"label": "unsure", "seen": "yesterday"}).status_code == 200
    assert label_of(tenant)[0] == "confirmed"


def test_an_item_that_somebody_else_has_is_shown_and_not_labelled(client: Client, tenant: Tenancy, call: Call) -> None:
    intervention, tool = ids(tenant)
    other, email = signed_in(tenant, Role.EDITOR)
    page_of(other, f"/review/{intervention}")
    assert client.get("/review")["Location"] == f"/review/{tool}"
    page = page_of(client, f"/review/{intervention}")
    assert f"{email} is reviewing this right now." in page
    assert 'name="label" value="confirmed"' not in page
    answer = client.post(f"/review/{intervention}", {"label": "confirmed", "note": "Mine."})
    assert "Nothing of yours was saved." in unescape(answer.content.decode())
    assert "Mine." in answer.content.decode()
    page_of(client, f"/review/{tool}")
    page_of(other, f"/review/{intervention}")
    with tenant.context():
        assert not Label.objects.exists()
    third, _ = signed_in(tenant, Role.REVIEWER)
    assert "The rest is with other reviewers" in page_of(third, "/review")


def test_a_label_is_taken_back_from_wherever_one_is(client: Client, tenant: Tenancy, call: Call) -> None:
    intervention, _ = ids(tenant)
    client.post(f"/review/{intervention}", {"label": "false_alarm"})
    page = page_of(client, "/review")
    form = dict(re.findall(r'<input type="hidden" name="(label|at|once)" value="([^"]+)"', page))
    for wrong in ({}, {"label": "x", "at": form["at"]}, {"label": form["label"]}):
        assert client.post("/review/undo", wrong).status_code == 404
    other, _ = signed_in(tenant, Role.REVIEWER)
    assert "that label stands" in unescape(other.post("/review/undo", form, follow=True).content.decode())
    answer = client.post("/review/undo?kind=intervention", form)
    assert answer["Location"] == f"/review/{intervention}?kind=intervention"
    assert "Your label was taken back." in page_of(client, answer["Location"])
    again = client.post("/review/undo?kind=intervention", form, follow=True)
    assert "It was done once." in again.content.decode()
    assert client.post("/review/undo", {**form, "once": ""}).status_code == 404
    with tenant.context():
        assert not Label.objects.exists()


# -- around it ------------------------------------------------------------------------------------------------------


def test_filters_that_make_no_sense_say_so_and_filter_nothing(client: Client, tenant: Tenancy, call: Call) -> None:
    page = page_of(client, "/review?kind=nonsense&after=yesterday&before=9999-12-31T23:59&agent=1")
    assert page.count("Choose one of the list.") == 2
    assert "Give a date and time." in page
    assert "Never confirm a refund." in page
    wrong = page_of(client, "/review?after=2026-03-04T12:00&before=2026-03-04T11:00")
    assert "Give a time after “From”." in wrong


def test_without_anything_to_review_the_page_says_what_will_be(client: Client, tenant: Tenancy) -> None:
    assert "Nothing to review yet" in page_of(client, "/review")
    call = call_create(tenant)
    with tenant.context():
        Call.objects.filter(id=call.id).update(test=True)
    assert "Nothing to review yet" in page_of(client, "/review")
    assert "Never confirm a refund." in page_of(client, "/review?calls=test")


def test_words_that_were_not_stored_are_said_to_be_missing(client: Client, tenant: Tenancy, call: Call) -> None:
    with tenant.context():
        Call.objects.update(storage_limit=True)
        Turn.objects.update(text="", customer_text="", heard_text="", uncertain_text="", unheard_text="")
    assert "what was said in it is not stored" in page_of(client, "/review")
