"""The tenants of these tests are made once a module: making one takes longer than most of what is asked here."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest

from tenants.limits import LIMITS
from tests.factories import Tenancy, call_create, tenancy_create

if TYPE_CHECKING:
    from pytest_django import DjangoDbBlocker

Two = tuple[Tenancy, Tenancy]


def tenants_make() -> Two:
    """Alice's and charlie's tenants, as tests have them everywhere."""
    stranger = tenancy_create(owner="charlie")
    call_create(stranger, customer_text="charlie's secret question", text="charlie's secret answer")
    return tenancy_create(owner="alice", viewer="bob"), stranger


@pytest.fixture(scope="module")
def tenants_made(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Two:
    """Committed: what a test in a transaction changes of them did not happen for the next one. What is counted outside
    the database goes on counting."""
    with django_db_blocker.unblock():
        return tenants_make()


@pytest.fixture
def tenants(request: pytest.FixtureRequest, tenants_made: Two, db: None) -> Two:
    """Those of the module; a test that commits gets its own."""
    marker = request.node.get_closest_marker("django_db")
    if (marker and marker.kwargs.get("transaction")) or "transactional_db" in request.fixturenames:
        return tenants_make()
    LIMITS.forget()  # what the test before may have set
    return copy.deepcopy(tenants_made)


@pytest.fixture
def tenant(tenants: Two) -> Tenancy:
    return tenants[0]


@pytest.fixture
def stranger(tenants: Two) -> Tenancy:
    return tenants[1]
