"""Every operation of the API with everybody's credentials. The rows, and how to add one, are in sweep.py."""

from __future__ import annotations

import pytest

from tenants.roles import ALL_SCOPES
from tenants.services.api_keys import api_key_create
from tests.isolation.sweep import (
    API,
    MEMBER,
    NOBODY,
    Door,
    World,
    answer_alike,
    api_operations,
    leaks,
    marks,
    question,
    row_ids,
    rows,
    undone,
    with_key,
)

every_door = pytest.mark.parametrize("door", API, ids=lambda door: f"{door.method} {door.path}")


def test_every_operation_of_the_api_is_in_the_table() -> None:
    assert set(api_operations()) == {(door.method, door.path) for door in API}


def test_operations_ask_for_what_the_table_says() -> None:
    """What an operation declares by `requires`, and what the table expects and the tests below see."""
    for (method, path), function in api_operations().items():
        (door,) = [door for door in API if (door.method, door.path) == (method, path)]
        assert hasattr(function, "capability"), (
            f"{method} {path} does not say what it needs: use tenants.api.auth.requires"
        )
        assert (function.capability or MEMBER) == door.needs, f"{method} {path}"


@every_door
def test_its_own_people_and_keys_are_served_if_they_have_the_capability(world: World, door: Door) -> None:
    stranger = world.stranger
    for asker in (with_key(stranger.api_key), world.charlie):
        with undone():
            response = question(door, stranger).ask(asker)
            assert response.status_code in door.answers, response.getvalue()
    if door.needs == MEMBER:
        return
    with stranger.context():
        others = with_key(api_key_create(name="others", scopes=ALL_SCOPES - {door.needs}).key)
        own = [api_key_create(name="own", scopes=[door.needs]).key] if door.needs in ALL_SCOPES else []
    asked = question(door, stranger)
    before = rows(stranger)
    for asker in (others, *world.members_without(door.needs)):
        response = asked.ask(asker)
        assert response.status_code == 403, response.getvalue()
    assert rows(stranger) == before
    for key in own:
        assert question(door, stranger).ask(with_key(key)).status_code in door.answers


@every_door
def test_nobody_else_reaches_anything(world: World, door: Door) -> None:
    """What a stranger gets for somebody's object is what they get for nothing, and nothing has changed."""
    stranger = world.stranger
    asked = question(door, stranger)
    before = rows(stranger)
    foreign = marks(stranger, before)
    nothing = asked.missing(row_ids(before) | {stranger.users["charlie"].id})

    # By key, by session, by a session that says it belongs to the other tenant, and by a key beside their session.
    for asker in (with_key(world.tenant.api_key), world.alice, world.elsewhere, world.beside):
        with undone():
            response = asked.ask(asker)
            assert leaks(response, asked, foreign) == []
            assert rows(stranger) == before
        if asker is world.elsewhere and door.method != "GET":
            # What is written for one tenant is never done in another: such a session has none (TenantMiddleware).
            assert response.status_code == 401, response.getvalue()
            continue
        if door.parameters:
            assert response.status_code == 404, response.getvalue()
        if nothing.text == asked.text:
            assert response.status_code in door.answers, response.getvalue()
            continue
        with undone():
            assert answer_alike(nothing.ask(asker)) == answer_alike(response)

    # Nobody, somebody who belongs to no tenant, and a wrong key beside the right session.
    for asker in (NOBODY, world.dora, world.dora_elsewhere, world.wrong):
        response = asked.ask(asker)
        assert response.status_code == 401, response.getvalue()
        assert leaks(response, asked, foreign) == []
    assert rows(stranger) == before
