"""Every page and form of the console as everybody. The rows, and how to add one, are in sweep.py."""

from __future__ import annotations

import pytest

from tests.isolation.sweep import (
    HOOKS,
    NOBODY,
    PAGES,
    PERSON,
    PUBLIC,
    Door,
    Question,
    World,
    answer_alike,
    leaks,
    marks,
    question,
    row_ids,
    rows,
    undone,
    urls,
)

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
def test_who_may_is_served_and_a_role_without_the_capability_is_refused(world: World, door: Door) -> None:
    stranger = world.stranger
    with undone():
        response = question(door, stranger).ask(world.charlie)
        assert response.status_code in door.answers, response.getvalue()
        if door.needs != PUBLIC:
            assert response.headers.get("Location", "").partition("?")[0] not in ("/sign-in", "/account/confirm")
    if door.needs in (PUBLIC, PERSON):
        return
    asked = question(door, stranger)
    before = rows(stranger)
    for asker in world.members_without(door.needs):
        response = asked.ask(asker)
        assert response.status_code == 403, response.getvalue()
    assert rows(stranger) == before


@every_page
def test_nobody_else_reaches_anything(world: World, door: Door) -> None:
    """What a stranger gets for somebody's object is what they get for nothing, and nothing has changed."""
    stranger = world.stranger
    asked = question(door, stranger)
    before = rows(stranger)
    foreign = set() if door.tells else marks(stranger, before)
    nothing = asked.missing(row_ids(before) | {stranger.users["charlie"].id})

    for asker in (world.alice, world.elsewhere):
        with undone():
            response = asked.ask(asker)
            assert leaks(response, asked, foreign) == []
            assert rows(stranger) == before
        if door.needs == PUBLIC:
            assert response.status_code in door.answers, response.getvalue()
            continue
        if asker is world.elsewhere and door.method != "GET" and door.needs != PERSON:
            # What is written for one tenant is never done in another: such a session has none (TenantMiddleware).
            assert (response.status_code, response.headers["Location"]) == (302, "/no-tenant")
            continue
        if nothing.text == asked.text:
            assert response.status_code in door.answers, response.getvalue()
            continue
        assert response.status_code == 404, response.getvalue()
        with undone():
            assert _unnamed(nothing, answer_alike(nothing.ask(asker))) == _unnamed(asked, answer_alike(response))

    for asker in (NOBODY, world.dora, world.dora_elsewhere):
        with undone():
            response = asked.ask(asker)
            assert leaks(response, asked, foreign) == []
            assert rows(stranger) == before
        if door.needs == PUBLIC:
            assert response.status_code in door.answers, response.getvalue()
        elif asker is NOBODY:
            assert response.status_code == 302
            assert response.headers["Location"].startswith("/sign-in")
        elif door.needs == PERSON:
            assert response.status_code in {404, *door.answers}
        else:
            assert (response.status_code, response.headers["Location"]) == (302, "/no-tenant")


def test_a_method_without_a_row_does_nothing(world: World) -> None:
    """Also for those who may do everything: what changes something has a row of its own above."""
    stranger = world.stranger
    known = {(door.method, door.path) for door in PAGES}
    tried = 0
    for door in {door.path: door for door in PAGES}.values():
        asked = question(door, stranger)
        before = rows(stranger)
        unknown = [method for method in ("POST", "PUT", "PATCH", "DELETE") if (method, door.path) not in known]
        for method in unknown:
            response = Question(_with_method(door, method), asked.made, {}).ask(world.charlie)
            assert response.status_code < 500, (method, door.path)
        assert rows(stranger) == before, (unknown, door.path)
        tried += len(unknown)
    assert tried > len(PAGES)


def _with_method(door: Door, method: str) -> Door:
    return Door(method, door.path, door.needs, door.made, door.body, door.answers, door.prefix, json=False)


def _unnamed(asked: Question, answer: str) -> str:
    """An answer without the path that was asked for; where it leads back to, for example."""
    for name in asked.door.parameters:
        # As a part of a path: a number stands in other places, too.
        answer = answer.replace(f"/{asked.made[name]}", "/*")
    return answer
