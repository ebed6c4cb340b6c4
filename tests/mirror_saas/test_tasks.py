"""Tasks of tenants: whose they are travels in the message, and a real worker works as nobody else."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from celery import Celery
from celery.beat import Scheduler
from celery.contrib.testing.worker import start_worker
from celery.exceptions import Reject
from django.contrib.sessions.models import Session
from django.db import connection
from django.utils import timezone

from mirror_saas.celery import app
from mirror_saas.ids import uuid7
from mirror_saas.tasks import ACTOR_HEADER, TENANT_HEADER, TaskHeaderInvalid, TenantTask, sessions_clear
from tenants.actors import Actor, actor_context, actor_current
from tenants.context import TenantContextMissing, tenant_context_current
from tenants.models import Membership, Tenant
from tests.factories import Tenancy

ALICE = Actor(kind="user", label="alice@example.com", id=uuid7(), ip="192.0.2.1", user_agent="x", session="0123")


@dataclass
class Ran:
    """What a task saw when it ran."""

    tenant: UUID | None
    setting: str
    actor: Actor
    in_transaction: bool
    names: list[str]
    retries: int
    arguments: tuple[Any, ...]


ran: queue.Queue[Ran] = queue.Queue()


def look(task: TenantTask, *arguments: Any) -> None:
    context = tenant_context_current()
    with connection.cursor() as cursor:
        cursor.execute("SELECT coalesce(current_setting('app.tenant_id', true), '')")
        setting = cursor.fetchone()[0]
    names = [] if context is None else list(Tenant.objects.values_list("name", flat=True))
    ran.put(
        Ran(
            tenant=context.tenant_id if context else None,
            setting=setting,
            actor=actor_current(),
            in_transaction=connection.in_atomic_block,
            names=names,
            retries=task.request.retries,
            arguments=arguments,
        )
    )


@app.task(base=TenantTask, bind=True, name="tests.looks")  # type: ignore[untyped-decorator]
def looks(self: TenantTask, *arguments: Any) -> None:
    look(self, *arguments)


@app.task(base=TenantTask, bind=True, name="tests.looks_alone")  # type: ignore[untyped-decorator]
def looks_alone(self: TenantTask) -> None:
    look(self)


looks_alone.in_transaction = False


@app.task(base=TenantTask, bind=True, name="tests.fails_once", max_retries=3)  # type: ignore[untyped-decorator]
def fails_once(self: TenantTask) -> None:
    look(self)
    Membership.objects.update(role="viewer")
    if self.request.retries == 0:
        raise self.retry(countdown=0, exc=RuntimeError("not yet"))


@app.task(  # type: ignore[untyped-decorator]
    base=TenantTask, bind=True, name="tests.fails_itself", autoretry_for=(LookupError,), default_retry_delay=0
)
def fails_itself(self: TenantTask) -> None:
    look(self)
    if self.request.retries == 0:
        raise LookupError


@pytest.fixture(autouse=True)
def nothing_ran() -> Iterator[None]:
    yield
    assert ran.empty()


@pytest.fixture(scope="module")
def worker(redis_url: str, django_db_setup: None) -> Iterator[Celery]:
    """A real worker in a thread, on the run's broker."""
    with start_worker(app, pool="solo", concurrency=1, perform_ping_check=False, shutdown_timeout=30):
        yield app


def seen() -> Ran:
    return ran.get(timeout=20)


# -- at the caller ------------------------------------------------------------------------------------------------


def test_without_a_tenant_nothing_is_sent() -> None:
    for send in (looks.delay, looks.apply_async, looks.apply, looks.s().apply_async, looks):
        with pytest.raises(TenantContextMissing, match=r"tests\.looks needs a tenant"):
            send()


@pytest.mark.django_db
def test_nothing_is_sent_before_the_commit_and_nothing_after_a_rollback(
    tenant: Tenancy, monkeypatch: pytest.MonkeyPatch, django_capture_on_commit_callbacks: Callable[..., Any]
) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr("celery.app.task.Task.apply_async", lambda *_args, **options: sent.append(options))

    def fail() -> None:
        with tenant.context():
            looks.delay("rolled back")
            raise LookupError

    with django_capture_on_commit_callbacks() as callbacks:
        with pytest.raises(LookupError):
            fail()
        with actor_context(ALICE), tenant.context():
            task_id = looks.delay("secret").id
    assert sent == []
    (commit,) = callbacks
    commit()
    (message,) = sent
    assert message["task_id"] == task_id
    assert message["headers"][TENANT_HEADER] == str(tenant.id)
    assert json.loads(message["headers"][ACTOR_HEADER])["label"] == "alice@example.com"
    # What a worker tells of a task, in events and in its log, shows no argument.
    assert "secret" not in message["argsrepr"] + message["kwargsrepr"]


@pytest.mark.django_db
def test_a_task_is_sent_for_no_other_tenant_than_the_current_one(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context(), pytest.raises(TaskHeaderInvalid, match="another tenant"):
        looks.apply_async_as(stranger.id, ALICE)


# -- in the worker ------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_worker_runs_as_tenant_and_actor_of_the_message(worker: Celery, tenant: Tenancy, stranger: Tenancy) -> None:
    for who in (tenant, stranger, tenant):
        with actor_context(ALICE), who.context():
            looks.delay(7)
        assert seen() == Ran(
            tenant=who.id,
            setting=str(who.id),
            actor=ALICE,
            in_transaction=True,
            names=[who.tenant.name],
            retries=0,
            arguments=(7,),
        )


@pytest.mark.django_db(transaction=True)
def test_a_task_without_a_transaction_has_no_context_but_knows_its_tenant(worker: Celery, tenant: Tenancy) -> None:
    with tenant.context():
        looks_alone.delay()
    found = seen()
    assert (found.tenant, found.setting, found.in_transaction) == (None, "", False)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("task", [fails_once, fails_itself])
def test_a_retry_keeps_tenant_and_actor(worker: Celery, tenant: Tenancy, stranger: Tenancy, task: TenantTask) -> None:
    with actor_context(ALICE), tenant.context():
        task.delay()
    for retries in (0, 1):
        found = seen()
        assert (found.retries, found.tenant, found.actor) == (retries, tenant.id, ALICE)
        assert found.names == [tenant.tenant.name]
    with stranger.context():
        assert set(Membership.objects.values_list("role", flat=True)) == {"owner"}


NOBODY = {"kind": "user", "label": "x", "id": None}
HEADERS: dict[str, Any] = {
    "none": {},
    "no actor": {TENANT_HEADER: str(uuid7())},
    "no tenant": {ACTOR_HEADER: json.dumps(NOBODY)},
    "no id": {TENANT_HEADER: "' OR true --", ACTOR_HEADER: json.dumps(NOBODY)},
    "a list": {TENANT_HEADER: [str(uuid7())], ACTOR_HEADER: "{}"},
    "no json": {TENANT_HEADER: str(uuid7()), ACTOR_HEADER: "{"},
    "json of another kind": {TENANT_HEADER: str(uuid7()), ACTOR_HEADER: "[]"},
    "nested": {TENANT_HEADER: str(uuid7()), ACTOR_HEADER: "[" * 100_000},
    "kind": {TENANT_HEADER: str(uuid7()), ACTOR_HEADER: json.dumps({**NOBODY, "kind": "root"})},
    "field": {TENANT_HEADER: str(uuid7()), ACTOR_HEADER: json.dumps({**NOBODY, "id": 7})},
    "more": {
        TENANT_HEADER: str(uuid7()),
        ACTOR_HEADER: json.dumps({**NOBODY, "y": ""}),
    },
}


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS.keys())
def test_a_message_without_a_valid_header_is_rejected(headers: dict[str, Any]) -> None:
    looks.push_request(called_directly=False, headers=headers)
    try:
        with pytest.raises(Reject) as rejected:
            looks()
    finally:
        looks.pop_request()
    assert rejected.value.requeue is False


@pytest.mark.django_db(transaction=True)
def test_a_worker_drops_what_it_refused_and_goes_on(
    worker: Celery, tenant: Tenancy, caplog: pytest.LogCaptureFixture
) -> None:
    # As somebody sends it who knows the task's name and not our base class.
    sent = [
        app.send_task("tests.looks", args=("a secret",), headers=headers).id
        for headers in ({}, {TENANT_HEADER: "x", ACTOR_HEADER: "{}"})
    ]
    with tenant.context():
        looks.delay("after it")
    assert seen().arguments == ("after it",)
    with app.connection_or_acquire() as broker:
        client = broker.default_channel.client
        assert client.llen(app.conf.task_default_queue) == 0
        kept = b"".join(client.hvals("unacked")).decode()
    assert [task_id for task_id in sent if task_id in kept] == []
    refused = [record.getMessage() for record in caplog.records if "was refused" in record.getMessage()]
    assert len(refused) == 2
    assert "a secret" not in caplog.text


@pytest.mark.django_db(transaction=True)
def test_a_task_of_a_deleted_tenant_does_not_run(worker: Celery, tenant: Tenancy, stranger: Tenancy) -> None:
    with stranger.context():
        Tenant.objects.all().delete()
        looks.delay("gone")
    with tenant.context():
        looks.delay("there")
    assert seen().arguments == ("there",)


# -- schedules ----------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_schedule_visits_each_tenant_as_itself(worker: Celery, tenant: Tenancy, stranger: Tenancy) -> None:
    app.send_task("mirror_saas.each_tenant", args=["tests.looks"])
    visits: dict[UUID | None, Ran] = {}
    while not {tenant.id, stranger.id} <= visits.keys():
        found = seen()
        assert found.tenant not in visits
        visits[found.tenant] = found
    # Other tests' tenants are visited too: the broker's queue is done when this one's answer comes.
    with tenant.context():
        looks.delay("last")
    while (found := seen()).arguments != ("last",):
        visits[found.tenant] = found
    for who in (tenant, stranger):
        assert visits[who.id].names == [who.tenant.name]
        assert visits[who.id].actor == Actor(kind="system", label="schedule")


def test_a_schedule_that_names_a_global_task_is_a_mistake() -> None:
    with pytest.raises(TypeError, match=r"mirror_saas\.sessions_clear is no task of a tenant"):
        app.tasks["mirror_saas.each_tenant"]("mirror_saas.sessions_clear")


def test_every_entry_of_the_schedule_can_run() -> None:
    app.loader.import_default_modules()
    assert app.conf.beat_schedule
    for name, entry in app.conf.beat_schedule.items():
        # A tenant's task has no tenant in beat; each_tenant brings one.
        assert entry["task"] in app.tasks, name
        assert not isinstance(app.tasks[entry["task"]], TenantTask), name
        if entry["task"] == "mirror_saas.each_tenant":
            assert isinstance(app.tasks[entry["args"][0]], TenantTask), name


@pytest.mark.django_db(transaction=True)
def test_what_beat_sends_is_done_by_a_worker(worker: Celery, tenant: Tenancy) -> None:
    app.loader.import_default_modules()
    key = uuid7().hex
    Session.objects.create(session_key=key, session_data="", expire_date=timezone.now() - timedelta(hours=1))
    beat = Scheduler(app, lazy=True)
    beat.setup_schedule()
    for entry in beat.schedule.values():
        # Raises SchedulingError for an entry that cannot be sent.
        beat.apply_async(entry, advance=False)
    with tenant.context():
        looks.delay("after it")
    assert seen().arguments == ("after it",)
    assert not Session.objects.filter(session_key=key).exists()


@pytest.mark.django_db
def test_expired_sessions_are_cleared_and_others_are_not() -> None:
    now = timezone.now()
    for key, hours in (("old" * 10, -1), ("new" * 10, 1)):
        Session.objects.create(session_key=key, session_data="", expire_date=now + timedelta(hours=hours))
    sessions_clear()
    keys = set(Session.objects.values_list("session_key", flat=True))
    assert "new" * 10 in keys
    assert "old" * 10 not in keys
