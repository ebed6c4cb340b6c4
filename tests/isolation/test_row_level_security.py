"""With every filter of ours taken away, PostgreSQL alone still shows a tenant its own rows and no others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.apps import apps
from django.db import DatabaseError, IntegrityError, ProgrammingError, connection, models, transaction

from mirror_saas.ids import uuid7
from supervision.models import (
    Alarm,
    AlarmRecipient,
    Approval,
    Call,
    CallEvent,
    ErasedCall,
    JudgeLatencyDay,
    Label,
    LedgerEntry,
    ModelDefaults,
    Policy,
    PrivacySettings,
    ReviewReservation,
    StreamKey,
    Turn,
    UsageDay,
    WebhookAttempt,
)
from supervision.services.agents import stream_key_hash
from supervision.services.webhooks import webhook_create, webhook_test
from tenants.context import tenant_context
from tenants.isolation import READ_ONLY
from tenants.managers import TenantModel
from tenants.models import ApiKey, Membership, Tenant
from tenants.roles import ROLE_CAPABILITIES, Role
from tenants.services.idempotency import StoredAnswer, idempotency_store
from tenants.services.invitations import invitation_create
from tests.factories import CALL_START, Tenancy, call_create

TENANT_MODELS = [model for model in apps.get_models() if issubclass(model, TenantModel)]


@pytest.mark.django_db
@pytest.mark.usefixtures("without_filters")
def test_every_table_of_the_stranger_has_rows_and_none_of_them_is_seen(tenant: Tenancy, stranger: Tenancy) -> None:
    call_create(tenant)
    for tenancy in (tenant, stranger):
        with tenancy.context():
            invitation_create(
                email=f"dora@{tenancy.slug}.example", role=Role.VIEWER, capabilities=ROLE_CAPABILITIES[Role.OWNER]
            )
            answer = StoredAnswer(status=201, headers={}, body="{}")
            idempotency_store(key="k", actor_id=tenancy.id, fingerprint=bytes(32), answer=answer)
            turn = Turn.objects.all()[0]
            Label.objects.create(call_id=turn.call_id, turn=turn, value="unsure", labelled_by="tests")
            ReviewReservation.objects.create(
                item_id=turn.id, call_id=turn.call_id, reviewer_id=uuid7(), reviewer="tests", expires_at=CALL_START
            )
            PrivacySettings.objects.create()
            ModelDefaults.objects.create()
            called = {"call_id": turn.call_id, "ref": "t1", "tool": "charge_card"}
            LedgerEntry.objects.create(plivo_call_id="p1", args_digest=bytes(32), state="pending", **called)
            Approval.objects.create(
                agent=tenancy.agent, on_silence="deny", requested_at=CALL_START, expires_at=CALL_START, **called
            )
            AlarmRecipient.objects.create(membership=Membership.objects.all()[0])
            Alarm.objects.create(kind="webhook", event_id=uuid7(), occurred_at=CALL_START, data={})
            UsageDay.objects.create(day=CALL_START.date())
            JudgeLatencyDay.objects.create(day=CALL_START.date())
            ErasedCall.objects.create(erased_at=CALL_START)
            endpoint = webhook_create(url="http://127.0.0.1:1/x", event_types=["call.ended"]).endpoint
            WebhookAttempt.objects.create(delivery=webhook_test(webhook_id=endpoint.id), duration_ms=1)
    # Rows that only the operator's command can write are looked at in tests/tenants/test_limits.py.
    for model in [model for model in TENANT_MODELS if model._meta.db_table not in READ_ONLY]:
        with stranger.context():
            theirs = set(model._default_manager.values_list("id", flat=True))
        assert theirs, f"{model.__name__}: the factories make no row of it, so nothing would be proved"
        with tenant.context():
            ours = set(model._default_manager.values_list("id", flat=True))
            owners = set(model._default_manager.values_list("tenant_id", flat=True))
        assert ours, model.__name__
        assert not ours & theirs, model.__name__
        assert owners == {tenant.id}, model.__name__


@pytest.mark.django_db
@pytest.mark.usefixtures("without_filters")
def test_a_tenant_sees_itself_only(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context():
        assert [row.id for row in Tenant.objects.all()] == [tenant.id]


@pytest.mark.django_db
@pytest.mark.usefixtures("without_filters")
@pytest.mark.parametrize("setting", [None, "", "00000000-0000-0000-0000-000000000000"])
def test_without_a_tenant_there_are_no_rows(tenant: Tenancy, stranger: Tenancy, setting: str | None) -> None:
    if setting is not None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('app.tenant_id', %s, true)", [setting])
    models_of_tenants: list[type[models.Model]] = [*TENANT_MODELS, Tenant]
    for model in models_of_tenants:
        assert model._default_manager.count() == 0, model.__name__


@pytest.mark.django_db
@pytest.mark.usefixtures("without_filters")
def test_a_setting_that_is_no_id_is_an_error_and_not_a_way_in(tenant: Tenancy) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('app.tenant_id', %s, true)", ["' OR true --"])
    with pytest.raises(DatabaseError, match="invalid input syntax for type uuid"), transaction.atomic():
        Call.objects.count()


@pytest.mark.django_db
@pytest.mark.usefixtures("without_filters")
def test_a_strangers_rows_cannot_be_changed_deleted_or_made(tenant: Tenancy, stranger: Tenancy) -> None:
    with stranger.context():
        foreign = Call.objects.get()
    with tenant.context():
        assert Call.objects.filter(id=foreign.id).update(reason="taken") == 0
        assert Call.objects.filter(id=foreign.id).delete()[0] == 0
        with pytest.raises(ProgrammingError, match="row-level security"), transaction.atomic():
            Policy.objects.create(tenant_id=stranger.id, name="planted")
        own = Policy.objects.get()
        with pytest.raises(ProgrammingError, match="row-level security"), transaction.atomic():
            Policy.objects.filter(id=own.id).update(tenant_id=stranger.id)
    with stranger.context():
        assert Call.objects.get().reason == ""


def checked_at_once(make: Callable[[], object]) -> None:
    """Make a row, and check the foreign keys that would be checked at commit."""
    with transaction.atomic():
        make()
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")


@pytest.mark.django_db
def test_a_row_cannot_point_at_a_strangers_row(tenant: Tenancy, stranger: Tenancy) -> None:
    with stranger.context():
        foreign_call, foreign_turn = Call.objects.get(), Turn.objects.get()
    with tenant.context():
        for make in (
            lambda: CallEvent.objects.create(call_id=foreign_call.id, seq=1, at=foreign_call.started_at, kind="x"),
            lambda: Turn.objects.create(call_id=foreign_call.id, index=0, at_ms=0),
            lambda: StreamKey.objects.create(agent_id=stranger.agent.id, key_hash=b"x" * 32),
            lambda: Call.objects.create(agent_id=stranger.agent.id, started_at=foreign_call.started_at),
            lambda: Turn.objects.create(id=foreign_turn.id, call_id=call_create(tenant).id, index=0, at_ms=0),
        ):
            with pytest.raises(IntegrityError):
                checked_at_once(make)


@pytest.mark.django_db
def test_a_foreign_key_to_a_strangers_row_is_refused_like_one_to_a_missing_row(
    tenant: Tenancy, stranger: Tenancy
) -> None:
    messages = []
    for agent_id in (stranger.agent.id, uuid7()):
        with tenant.context(), pytest.raises(IntegrityError) as error:
            checked_at_once(lambda agent_id=agent_id: StreamKey.objects.create(agent_id=agent_id, key_hash=b"k" * 32))
        messages.append(str(error.value).replace(str(agent_id), "ID"))
    assert messages[0] == messages[1]


# -- look-ups -----------------------------------------------------------------------------------------------------


def lookup(statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return list(cursor.fetchall())


@pytest.mark.django_db
def test_a_stream_key_opens_its_own_tenants_slug_only(tenant: Tenancy, stranger: Tenancy) -> None:
    key_hash = stream_key_hash(tenant.stream_key)
    statement = "SELECT * FROM stream_key_lookup(%s, %s)"
    assert lookup(statement, tenant.slug, key_hash) == [(tenant.id, tenant.agent.id)]
    assert lookup(statement, stranger.slug, key_hash) == []
    assert lookup(statement, "nobody", key_hash) == []
    with tenant.context():
        StreamKey.objects.update(expires_at=tenant.agent.created_at - timedelta(hours=1))
    assert lookup(statement, tenant.slug, key_hash) == []


@pytest.mark.django_db
def test_look_ups_answer_the_same_whatever_tenant_is_set(tenant: Tenancy, stranger: Tenancy) -> None:
    with stranger.context():
        prefix = tenant.api_key.split("_")[1]
        with tenant.context():
            key = ApiKey.objects.get()
        found = lookup("SELECT * FROM api_key_lookup(%s, %s)", prefix, bytes(key.secret_hash))
        assert found == [(tenant.id, key.id)]
        assert lookup("SELECT tenant_id FROM membership_lookup(%s)", tenant.users["bob"].id) == [(tenant.id,)]


# -- many at once -------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("without_filters")
def test_four_hundred_interleaved_blocks_on_shared_connections_never_see_a_stranger(
    tenant: Tenancy, stranger: Tenancy
) -> None:
    call_create(tenant)
    seen_by: list[tuple[UUID, set[UUID]]] = []
    barrier = threading.Barrier(4)

    def work(number: int) -> None:
        barrier.wait(timeout=30)
        try:
            for turn in range(100):
                who = (tenant, stranger)[(number + turn) % 2]
                try:
                    with tenant_context(who.id):
                        seen = {tenant_id for (tenant_id,) in Call.objects.values_list("tenant_id")}
                        seen_by.append((who.id, seen))
                        if turn % 7 == 0:
                            raise LookupError
                except LookupError:
                    # Outside of a context the same connection shows nothing, also after an exception.
                    seen_by.append((who.id, {who.id} | set(Call.objects.values_list("tenant_id", flat=True))))
        finally:
            connection.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(seen_by) >= 400
    assert all(seen == {who} for who, seen in seen_by)


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("without_filters")
def test_a_poisoned_session_setting_does_not_outlive_the_next_context(tenant: Tenancy, stranger: Tenancy) -> None:
    call_create(tenant)
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('app.tenant_id', %s, false)", [str(stranger.id)])
    try:
        with tenant.context():
            assert set(Call.objects.values_list("tenant_id", flat=True)) == {tenant.id}
    finally:
        connection.close()


@pytest.mark.django_db(transaction=True)
def test_deleting_a_tenant_takes_its_rows_and_no_others(tenant: Tenancy, stranger: Tenancy) -> None:
    call_create(tenant)
    with stranger.context():
        Tenant.objects.all().delete()
        for model in TENANT_MODELS:
            assert model._default_manager.count() == 0, model.__name__
    with tenant.context():
        assert Call.objects.count() == 1
