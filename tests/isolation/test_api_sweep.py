"""Every route of the API with everybody's credentials. A route without a line here fails the last test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from django.test import Client

from mirror_saas.api import api
from supervision.models import Call
from tenants.roles import ALL_SCOPES
from tenants.services.api_keys import api_key_create
from tests.factories import PASSWORD, Tenancy, call_create

pytestmark = pytest.mark.django_db


@dataclass(frozen=True)
class Route:
    """One operation: what a stranger gets for another tenant's object, and the scope that it needs (None: any key)."""

    method: str
    path: str
    scope: str | None
    foreign: int


ROUTES = [
    Route("GET", "/me", None, 200),
    Route("GET", "/audit-events", "admin", 200),
    Route("GET", "/audit-events/export", "admin", 200),
    Route("GET", "/audit-events/verify", "admin", 200),
    Route("GET", "/calls", "calls:read", 200),
    Route("GET", "/calls/{uuid:call_id}", "calls:read", 404),
    Route("GET", "/calls/{uuid:call_id}/turns", "calls:read", 404),
    Route("GET", "/calls/{uuid:call_id}/timeline", "calls:read", 404),
]
every_route = pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")


def ask(client: Client, route: Route, tenancy: Tenancy) -> Any:
    """The route, about `tenancy`'s newest call."""
    with tenancy.context():
        call = Call.objects.order_by("-started_at").first()
        assert call is not None
    return client.generic(route.method, "/api/v1" + route.path.replace("{uuid:call_id}", str(call.id)))


def with_key(key: str) -> Client:
    return Client(headers={"Authorization": f"Bearer {key}"})


@every_route
def test_the_owner_is_served_by_key_and_by_session(stranger: Tenancy, route: Route) -> None:
    assert ask(with_key(stranger.api_key), route, stranger).status_code == 200
    session = Client()
    assert session.login(username=stranger.users["charlie"].email, password=PASSWORD)
    assert ask(session, route, stranger).status_code == 200


@every_route
def test_another_tenant_sees_nothing_by_key_or_by_session(tenant: Tenancy, stranger: Tenancy, route: Route) -> None:
    call_create(tenant)
    session = Client()
    assert session.login(username=tenant.users["alice"].email, password=PASSWORD)
    for client in (with_key(tenant.api_key), session):
        response = ask(client, route, stranger)
        assert response.status_code == route.foreign
        body = response.getvalue().decode()
        with stranger.context():
            foreign = [str(Call.objects.get().id), str(stranger.id), str(stranger.agent.id), "charlie"]
        assert [word for word in foreign if word in body] == []


@every_route
def test_a_session_cannot_choose_a_tenant_that_it_does_not_belong_to(
    tenant: Tenancy, stranger: Tenancy, route: Route
) -> None:
    session = Client()
    assert session.login(username=tenant.users["alice"].email, password=PASSWORD)
    state = session.session
    state["tenant_id"] = str(stranger.id)
    state.save()
    response = ask(session, route, stranger)
    assert response.status_code == route.foreign
    assert "charlie" not in response.getvalue().decode()


@every_route
def test_a_key_beside_a_session_speaks_for_the_keys_tenant(tenant: Tenancy, stranger: Tenancy, route: Route) -> None:
    client = with_key(tenant.api_key)
    assert client.login(username=stranger.users["charlie"].email, password=PASSWORD)
    assert ask(client, route, stranger).status_code == route.foreign
    wrong = with_key(tenant.api_key[:-4] + "AAAA")
    assert wrong.login(username=stranger.users["charlie"].email, password=PASSWORD)
    assert ask(wrong, route, stranger).status_code == 401


@every_route
def test_every_scope_but_its_own_is_refused(stranger: Tenancy, route: Route) -> None:
    if route.scope is None:
        return
    with stranger.context():
        others = api_key_create(name="others", scopes=ALL_SCOPES - {route.scope}).key
        own = api_key_create(name="own", scopes=[route.scope]).key
    assert ask(with_key(others), route, stranger).status_code == 403
    assert ask(with_key(own), route, stranger).status_code == 200


@every_route
def test_nobody_is_refused(stranger: Tenancy, route: Route) -> None:
    assert ask(Client(), route, stranger).status_code == 401


def test_every_route_of_the_api_is_in_the_table() -> None:
    found = set()
    for prefix, router in api._routers:
        for path, view in router.path_operations.items():
            for operation in view.operations:
                found |= {(method, f"{prefix}{path}".replace("{uuidstr:", "{uuid:")) for method in operation.methods}
    assert found == {(route.method, route.path) for route in ROUTES}
