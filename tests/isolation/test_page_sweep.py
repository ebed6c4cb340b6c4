"""Every page and form of the console as everybody. The rows, and how to add one, are in sweep.py."""

from __future__ import annotations

import pytest
from django.test import Client

from tests.factories import Tenancy, call_create
from tests.isolation.sweep import (
    HOOKS,
    PAGES,
    PERSON,
    PUBLIC,
    Door,
    Question,
    answer_alike,
    leaks,
    marks,
    member,
    person,
    question,
    roles_without,
    row_ids,
    rows,
    signed_in,
    undone,
    urls,
)

# Some pages hand a mail to the workers.
pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]

every_page = pytest.mark.parametrize("door", PAGES, ids=lambda door: f"{door.method} /{door.path}")


def test_every_url_is_in_the_table() -> None:
    assert set(urls()) == {door.path for door in PAGES} | HOOKS


def test_pages_ask_for_what_the_table_says() -> None:
    views = urls()
    for door in PAGES:
        declared = getattr(views[door.path], "capability", None)
        if declared is not None:
            assert declared == door.needs, door
        else:
            assert door.needs in (PUBLIC, PERSON), f"{door}: the view asks for no capability (webui.access.member_view)"


@every_page
def test_who_may_is_served_and_a_role_without_the_capability_is_refused(stranger: Tenancy, door: Door) -> None:
    charlie = stranger.users["charlie"]
    with undone():
        response = question(door, stranger).ask(signed_in(charlie))
        assert response.status_code in door.answers, response.getvalue()
        if door.needs != PUBLIC:
            assert response.headers.get("Location", "").partition("?")[0] not in ("/sign-in", "/account/confirm")
    if door.needs in (PUBLIC, PERSON):
        return
    members = [signed_in(member(stranger, role)) for role in roles_without(door.needs)]
    asked = question(door, stranger)
    before = rows(stranger)
    for client in members:
        response = asked.ask(client)
        assert response.status_code == 403, response.getvalue()
    assert rows(stranger) == before


@every_page
def test_nobody_else_reaches_anything(tenant: Tenancy, stranger: Tenancy, door: Door) -> None:
    """What a stranger gets for somebody's object is what they get for nothing, and nothing has changed."""
    call_create(tenant)
    alice = tenant.users["alice"]
    asked = question(door, stranger)
    before = rows(stranger)
    foreign = set() if door.tells else marks(stranger, before)
    nothing = asked.missing(row_ids(before) | {stranger.users["charlie"].id})

    elsewhere = signed_in(alice, chosen=stranger.id)
    for client in (signed_in(alice), elsewhere):
        with undone():
            response = asked.ask(client)
            assert leaks(response, asked, foreign) == []
            assert rows(stranger) == before
        if door.needs == PUBLIC:
            assert response.status_code in door.answers, response.getvalue()
            continue
        if client is elsewhere and door.method != "GET" and door.needs != PERSON:
            # What is written for one tenant is never done in another: such a session has none (TenantMiddleware).
            assert (response.status_code, response.headers["Location"]) == (302, "/no-tenant")
            continue
        if nothing.text == asked.text:
            assert response.status_code in door.answers, response.getvalue()
            continue
        assert response.status_code == 404, response.getvalue()
        with undone():
            assert _unnamed(nothing, answer_alike(nothing.ask(client))) == _unnamed(asked, answer_alike(response))

    nobody, dora = Client(), person()
    for client in (nobody, signed_in(dora), signed_in(dora, chosen=stranger.id)):
        with undone():
            response = asked.ask(client)
            assert leaks(response, asked, foreign) == []
            assert rows(stranger) == before
        if door.needs == PUBLIC:
            assert response.status_code in door.answers, response.getvalue()
        elif client is nobody:
            assert response.status_code == 302
            assert response.headers["Location"].startswith("/sign-in")
        elif door.needs == PERSON:
            assert response.status_code in {404, *door.answers}
        else:
            assert (response.status_code, response.headers["Location"]) == (302, "/no-tenant")


def test_a_method_without_a_row_does_nothing(stranger: Tenancy) -> None:
    """Also for those who may do everything: what changes something has a row of its own above."""
    client = signed_in(stranger.users["charlie"])
    known = {(door.method, door.path) for door in PAGES}
    tried = 0
    for door in {door.path: door for door in PAGES}.values():
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            if (method, door.path) not in known:
                with undone():
                    asked = question(door, stranger)
                    before = rows(stranger)
                    unknown = Question(_with_method(door, method), asked.made, {})
                    assert unknown.ask(client).status_code < 500, (method, door.path)
                    assert rows(stranger) == before, (method, door.path)
                    tried += 1
    assert tried > len(PAGES)


def _with_method(door: Door, method: str) -> Door:
    return Door(method, door.path, door.needs, door.made, door.body, door.answers, door.prefix, json=False)


def _unnamed(asked: Question, answer: str) -> str:
    """An answer without the path that was asked for; where it leads back to, for example."""
    for value in asked.made.values():
        answer = answer.replace(str(value), "*")
    return answer
