"""What it takes to see row-level security stand alone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from django.db import connection, models, transaction

from tenants.managers import TenantManager
from tenants.models import Tenant

if TYPE_CHECKING:
    from pytest_django import DjangoDbBlocker

    from tests.isolation.sweep import World


@pytest.fixture
def without_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Managers as Django makes them: no filter, no question about a context."""
    monkeypatch.setattr(TenantManager, "get_queryset", models.Manager.get_queryset)
    monkeypatch.setattr(type(Tenant.objects), "get_queryset", models.Manager.get_queryset)


@pytest.fixture(scope="module")
def world_of_module(django_db_setup: None, django_db_blocker: DjangoDbBlocker, redis_url: str) -> Iterator[World]:
    """Two tenants and everybody who asks, made once for the sweep's hundreds of questions."""
    from tests.isolation.sweep import world_create

    with pytest.MonkeyPatch.context() as patched, django_db_blocker.unblock():
        # They sign in once, and the questions may take longer than a sign-in counts as recent.
        patched.setattr("tenants.authentication.RECENT", timedelta(days=1))
        with transaction.atomic():
            yield world_create()
            transaction.set_rollback(True)
        connection.close()


@pytest.fixture
def world(world_of_module: World, django_db_blocker: DjangoDbBlocker) -> Iterator[World]:
    """What a test changes did not happen for the next one."""
    with django_db_blocker.unblock(), transaction.atomic():
        yield world_of_module
        transaction.set_rollback(True)
