"""Every Celery task as its tenant, as another one and as nobody. The rows, and how to add one, are in sweep.py."""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

import pytest
from celery.exceptions import Reject
from django.core import mail

from mirror_saas.celery import app
from mirror_saas.ids import uuid7
from mirror_saas.tasks import TenantTask
from tenants.context import TenantContextMissing
from tests.factories import Tenancy
from tests.isolation.sweep import GLOBAL, TASKS, TENANT, marks, rows, undone

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_url")]

every_task = pytest.mark.parametrize("name", TASKS)
tenant_tasks = pytest.mark.parametrize("name", [name for name, (kind, _) in TASKS.items() if kind == TENANT])


@pytest.fixture(scope="module", autouse=True)
def tasks_loaded() -> None:
    app.loader.import_default_modules()


def test_every_task_is_in_the_table() -> None:
    registered = {name for name in app.tasks if not name.startswith(("celery.", "tests."))}
    assert registered == set(TASKS)


@every_task
def test_a_task_is_of_the_kind_that_the_table_says(name: str) -> None:
    assert isinstance(app.tasks[name], TenantTask) == (TASKS[name][0] == TENANT)


@tenant_tasks
def test_another_tenants_task_does_with_a_foreign_object_what_it_does_with_none(
    tenant: Tenancy, stranger: Tenancy, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    task = app.tasks[name]
    with stranger.context():
        arguments = TASKS[name][1](stranger)
    before = rows(stranger)
    caplog.set_level(logging.DEBUG)

    def outcome(tenancy: Tenancy, given: tuple[Any, ...]) -> tuple[str, str, int]:
        sent = len(mail.outbox)
        with undone(), tenancy.context():
            result = task.apply(given)
        return str(result.status), repr(result.result).replace(str(given[0]), "*"), len(mail.outbox) - sent

    if not arguments:
        # It is about all that its tenant has.
        with undone(), tenant.context():
            assert task.apply().successful()
            assert rows(stranger) == before
        return
    missing = tuple(str(uuid7()) if _is_id(argument) else argument for argument in arguments)
    assert missing != arguments
    foreign = outcome(tenant, arguments)
    assert foreign == outcome(tenant, missing)
    assert foreign[2] == 0
    assert rows(stranger) == before
    said = caplog.text + foreign[1]
    assert [mark for mark in marks(stranger, before) if mark in said and mark not in arguments] == []
    # And its own does something, or nothing would be proved.
    own = outcome(stranger, arguments)
    assert own != foreign


@tenant_tasks
def test_a_tenants_task_of_nobody_is_refused_at_the_caller_and_in_the_worker(stranger: Tenancy, name: str) -> None:
    task = app.tasks[name]
    with stranger.context():
        arguments = TASKS[name][1](stranger)
    before = rows(stranger)
    for send in (task.delay, task):
        with pytest.raises(TenantContextMissing):
            send(*arguments)
    task.push_request(called_directly=False, headers={})
    try:
        with pytest.raises(Reject):
            task(*arguments)
    finally:
        task.pop_request()
    assert rows(stranger) == before


@pytest.mark.parametrize("name", [name for name, (kind, _) in TASKS.items() if kind == GLOBAL])
def test_a_global_task_writes_no_row_of_a_tenant(
    tenant: Tenancy, stranger: Tenancy, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr("celery.app.task.Task.apply_async", lambda *_args, **options: sent.append(options))
    with stranger.context():
        arguments = TASKS[name][1](stranger)
    before = rows(stranger), rows(tenant)
    assert app.tasks[name].apply(arguments).successful()
    assert (rows(stranger), rows(tenant)) == before
    # What it sends to tenants is sent to each as itself.
    whose = [options["headers"]["mirror_tenant"] for options in sent]
    assert len(whose) == len(set(whose))


def _is_id(argument: Any) -> bool:
    try:
        UUID(str(argument))
    except ValueError:
        return False
    return True
