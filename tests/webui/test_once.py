"""A form that is sent twice is done once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connections
from django.template import Context, Template
from django.test import Client

from tenants.models import ApiKey
from tests.factories import Tenancy
from tests.webui import once_urls
from webui import once as module

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.webui.once_urls")]


def signed_in(tenancy: Tenancy, name: str = "alice") -> Client:
    client = Client()
    client.force_login(tenancy.users[name])
    return client


@pytest.fixture
def alice(tenant: Tenancy) -> Client:
    return signed_in(tenant)


def form(**fields: Any) -> dict[str, Any]:
    return {"once": str(uuid4()), "name": "Nightly", **fields}


def names(tenancy: Tenancy) -> list[str]:
    with tenancy.context():
        return sorted(ApiKey.objects.exclude(name="tests").values_list("name", flat=True))


def test_the_second_sending_does_nothing_and_leads_where_the_first_did(alice: Client, tenant: Tenancy) -> None:
    sent = form()
    first = alice.post("/make", sent)
    assert alice.get(first["Location"]).content.endswith(b": Made.")
    # Gone back to, on a page that was rendered anew in between.
    second = alice.post("/make", {**sent, "csrfmiddlewaretoken": "another"})
    assert (second.status_code, second["Location"]) == (302, first["Location"])
    assert alice.get(second["Location"]).content.endswith(b": You sent this form before. It was done once.")
    assert names(tenant) == ["Nightly"]


def test_other_fields_are_something_new(alice: Client, tenant: Tenancy) -> None:
    sent = form()
    answers = [alice.post("/make", {**sent, "name": name}) for name in ("One", "Two", "One")]
    answers += [
        alice.post("/make", {**sent, "name": "One", "file": SimpleUploadedFile("f", content)})
        for content in (b"1", b"2", b"2")
    ]
    assert names(tenant) == ["One", "One", "One", "Two"]
    assert len({answer["Location"] for answer in answers}) == 4


def test_a_form_that_was_refused_is_done_when_it_is_right(alice: Client, tenant: Tenancy) -> None:
    sent = form()
    for fields in ({"do": "refuse"}, {"do": "refuse"}, {"do": "confirm"}, {"do": "confirm"}):
        alice.post("/make", {**sent, **fields})
    with pytest.raises(ValueError):
        alice.post("/make", {**sent, "do": "break"})
    assert alice.post("/make", {**sent, "do": "refuse"}).content == b"Give a name."
    assert alice.post("/make", {**sent, "do": "confirm"})["Location"].startswith("/account/confirm")
    assert names(tenant) == []
    alice.post("/make", sent)
    assert names(tenant) == ["Nightly"]


def test_forms_without_a_token_are_done_each_time(alice: Client, tenant: Tenancy) -> None:
    for once in ("", "no uuid", "", "no uuid"):
        alice.post("/make", form(once=once))
    assert names(tenant) == ["Nightly"] * 4


def test_a_token_is_one_persons(alice: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    sent = form()
    theirs = signed_in(stranger, "charlie").post("/make", sent)
    others = signed_in(tenant, "bob").post("/make", sent)
    mine = alice.post("/make", sent)
    assert len({answer["Location"] for answer in (theirs, others, mine)}) == 3
    assert (names(tenant), names(stranger)) == (["Nightly", "Nightly"], ["Nightly"])


def test_each_rendering_has_a_token_of_its_own() -> None:
    template = Template("{% load console %}{% once %}")
    one, other = template.render(Context()), template.render(Context())
    assert one.startswith('<input type="hidden" name="once" value="')
    assert one != other


@pytest.fixture
def held() -> Iterator[None]:
    """The view stands still after what it does, until it is told to go on."""
    once_urls.entered.clear()
    once_urls.go_on.clear()
    yield
    once_urls.go_on.set()


def twice(tenancy: Tenancy, sent: dict[str, Any]) -> tuple[Future[Any], Future[Any], ThreadPoolExecutor]:
    """The form is sent, and sent again while the first sending is being worked on."""
    clients = [signed_in(tenancy)]
    # The page that the form stands on.
    assert clients[0].get("/account").status_code == 200
    other = Client()
    other.cookies = clients[0].cookies
    clients.append(other)

    def send(client: Client) -> Any:
        try:
            return client.post("/make", sent)
        finally:
            connections.close_all()

    pool = ThreadPoolExecutor(2)
    first = pool.submit(send, clients[0])
    assert once_urls.entered.wait(20)
    return first, pool.submit(send, clients[1]), pool


@pytest.mark.django_db(transaction=True)
def test_of_two_at_once_the_second_waits_for_the_first(
    tenant: Tenancy, held: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = threading.Event()

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return 0.0

        @staticmethod
        def sleep(seconds: float) -> None:
            waits.set()
            once_urls.go_on.wait(seconds)

    monkeypatch.setattr(module, "time", Clock)
    first, second, pool = twice(tenant, form())
    with pool:
        assert waits.wait(20)
        once_urls.go_on.set()
        answers = [first.result(20), second.result(20)]
    assert [answer.status_code for answer in answers] == [302, 302]
    assert answers[0]["Location"] == answers[1]["Location"]
    assert names(tenant) == ["Nightly"]
    # What the first one left in the session is there for whoever follows the second one's answer.
    key_id = answers[0]["Location"].rpartition("/")[2]
    follower: Client = answers[1].client
    assert follower.get(answers[1]["Location"]).content.startswith(key_id.encode())


@pytest.mark.django_db(transaction=True)
def test_whoever_waits_too_long_is_told_that_nothing_is_done_twice(
    tenant: Tenancy, held: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.0)
    first, second, pool = twice(tenant, form())
    with pool:
        answer = second.result(20)
        assert answer.status_code == 409
        assert b"Nothing is done a second time" in answer.content
        once_urls.go_on.set()
        assert first.result(20).status_code == 302
    assert names(tenant) == ["Nightly"]
