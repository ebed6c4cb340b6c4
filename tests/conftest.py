"""What every test can ask for. Nothing here starts a server until a test wants one.

Database tests run as mirror_app, on real PostgreSQL, under row-level security:

- `@pytest.mark.django_db` (or the fixture `db`) wraps the test in a transaction that is rolled back;
- `@pytest.mark.django_db(transaction=True)` commits, for tests with threads, sockets or processes. Nothing is
  flushed afterwards, since mirror_app may not truncate: such tests make tenants of their own, as the fixtures
  `tenant` and `stranger` do.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support import servers as support

if TYPE_CHECKING:
    from pytest_django import DjangoDbBlocker

    from tests.factories import Tenancy


def pytest_configure(config: pytest.Config) -> None:
    from django.test import TransactionTestCase

    # A shell lets what it runs in the background ignore Ctrl-C, and what tests start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Flushing is TRUNCATE, which the role that runs Mirror may not do; see the module's docstring.
    TransactionTestCase._fixture_teardown = lambda self: None  # type: ignore[attr-defined]


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        support.run_clean()
        shutil.rmtree(support.run_home(), ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def refusals_wait() -> None:
    """What limits refuse is counted in memory; a test that wants it in the database says `REFUSALS.flush()`."""
    from tenants.limits_refused import REFUSALS

    REFUSALS.start = lambda seconds, what: None


@pytest.fixture(scope="session")
def servers() -> Iterator[support.Servers]:
    """The run's PostgreSQL and Valkey."""
    started = support.servers_start()
    yield started
    support.servers_stop(started)


@pytest.fixture(scope="session")
def database_urls(servers: support.Servers) -> Iterator[support.DatabaseUrls]:
    """This process's migrated database: `.app` and `.owner` for servers that a test starts, `.admin` for mishaps."""
    urls = support.database_create(servers)
    yield urls
    support.database_drop(servers, urls.name)


@pytest.fixture(scope="session")
def redis_url(servers: support.Servers) -> str:
    """The run's Valkey. Django's channel layer and Celery in this process use it from here on."""
    from channels.layers import channel_layers
    from django.conf import settings

    from mirror_saas.celery import app as celery

    settings.REDIS_URL = settings.CELERY_BROKER_URL = servers.redis_url
    settings.CHANNEL_LAYERS["default"]["CONFIG"]["hosts"][0]["address"] = servers.redis_url
    channel_layers.backends.clear()
    # Processes of a run share the server; each keeps to a queue of its own, because each has its own database.
    celery.conf.update(broker_url=servers.redis_url, task_default_queue=f"tests-{support.worker_number()}")
    return servers.redis_url


@pytest.fixture(scope="session")
def django_db_setup(database_urls: support.DatabaseUrls, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """Point Django at this process's database as mirror_app (pytest-django's own would create one as mirror_app)."""
    from django.conf import settings
    from django.db import connections

    from mirror_saas.databases import database_settings

    settings.DATABASE_URL, settings.DATABASE_OWNER_URL = database_urls.app, database_urls.owner
    settings.DATABASE_ADMIN_URL = database_urls.admin
    connections["default"].settings_dict.update(database_settings(database_urls.app))
    yield
    with django_db_blocker.unblock():
        connections.close_all()


@pytest.fixture
def server_environment(
    database_urls: support.DatabaseUrls, redis_url: str, tmp_path: os.PathLike[str]
) -> dict[str, str]:
    """Environment of a Mirror process that a test starts: this run's servers, a home of its own."""
    return {
        **os.environ,
        "DATABASE_URL": database_urls.app,
        "DATABASE_OWNER_URL": database_urls.owner,
        "REDIS_URL": redis_url,
        "MIRROR_HOME": os.path.join(tmp_path, "home"),
    }


@pytest.fixture
def tenant(db: None) -> Tenancy:
    """A tenant with people (alice owns it, bob may look), an API key, an agent and a live policy."""
    from tests.factories import tenancy_create

    return tenancy_create(owner="alice", viewer="bob")


@pytest.fixture
def stranger(db: None) -> Tenancy:
    """Charlie's tenant, with the same of its own and a finished call: whatever of it shows up elsewhere is a leak."""
    from tests.factories import call_create, tenancy_create

    tenancy = tenancy_create(owner="charlie")
    call_create(tenancy, customer_text="charlie's secret question", text="charlie's secret answer")
    return tenancy
