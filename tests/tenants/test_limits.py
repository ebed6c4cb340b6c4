"""A tenant's limits: what they are, who may change them, what is counted, and what a full storage means."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from io import StringIO
from typing import Any

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import DatabaseError, ProgrammingError, connection, models, transaction

from mirror_saas.env import EnvironmentInvalid, environment_parse
from mirror_saas.errors import InvalidInput
from mirror_saas.ids import uuid7
from mirror_saas.limits import Limits, limit_parse
from tenants.context import TenantContextMissing, tenant_context
from tenants.limits import KNOWN_FOR_S, MIB, NAMES, LimitsKnown
from tenants.limits_refused import RefusalCounter, Refused
from tenants.managers import TenantManager
from tenants.models import AuditEvent, LimitRefusal, TenantLimits, TenantUse
from tenants.selectors.limits import tenant_limits_get, tenant_use_get
from tenants.services.limits import (
    OwnerUnknown,
    StorageLimitReached,
    as_owner,
    storage_check,
    storage_use_add,
    storage_use_set,
    tenant_limits_update,
)
from tests.factories import Tenancy

committed = pytest.mark.django_db(transaction=True)


def update(tenancy: Tenancy, **changed: int | None) -> TenantLimits:
    with as_owner(), tenancy.context():
        return tenant_limits_update(changed=changed)


def limits(tenancy: Tenancy) -> Limits:
    with tenancy.context():
        return tenant_limits_get()


# -- the environment ------------------------------------------------------------------------------------------------


def environment(tmp_path: Any, **variables: str) -> Limits:
    return environment_parse(variables, base_dir=tmp_path).limits


def test_the_environment_has_the_defaults(tmp_path: Any) -> None:
    given = environment(tmp_path, MIRROR_LIMIT_CALLS="12", MIRROR_LIMIT_STORAGE_MIB="unlimited")
    assert (given.calls, given.storage_mib) == (12, None)
    nothing = environment(tmp_path)
    assert all((getattr(nothing, name) or 0) > 0 for name in NAMES)


@pytest.mark.parametrize("value", ["-1", "many", "1.5", "9999999999", "٣"])
def test_what_is_no_limit_is_named_at_start(tmp_path: Any, value: str) -> None:
    with pytest.raises(EnvironmentInvalid, match=r"MIRROR_LIMIT_JUDGE_CALLS: is .*use a whole number from 0"):
        environment(tmp_path, MIRROR_LIMIT_JUDGE_CALLS=value)


def test_limits_are_written_as_people_do() -> None:
    assert [limit_parse(text) for text in ("0", " 12 ", "Unlimited")] == [0, 12, None]


# -- whose they are -------------------------------------------------------------------------------------------------


@committed
def test_a_tenant_has_the_defaults_until_the_operator_says_otherwise(tenant: Tenancy, stranger: Tenancy) -> None:
    defaults = settings.MIRROR.limits
    assert limits(tenant) == defaults
    update(tenant, calls=3, storage_mib=TenantLimits.UNLIMITED)
    changed = limits(tenant)
    assert (changed.calls, changed.storage_mib) == (3, None)
    assert changed.requests_per_minute == defaults.requests_per_minute
    assert limits(stranger) == defaults
    update(tenant, calls=None)
    assert limits(tenant).calls == defaults.calls


@pytest.mark.django_db
@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO tenants_tenantlimits (id, tenant_id, calls, updated_at) VALUES (gen_random_uuid(), %s, -1, now())",
        "UPDATE tenants_tenantlimits SET calls = -1 WHERE tenant_id = %s",
        "DELETE FROM tenants_tenantlimits WHERE tenant_id = %s",
    ],
)
def test_mirror_app_cannot_write_them(tenant: Tenancy, statement: str) -> None:
    with tenant.context(), pytest.raises(ProgrammingError, match="permission denied"), transaction.atomic():
        connection.cursor().execute(statement, [tenant.id])


@pytest.mark.django_db
def test_the_service_cannot_either_without_the_owners_connection(tenant: Tenancy) -> None:
    with tenant.context(), pytest.raises(DatabaseError, match="permission denied"):
        tenant_limits_update(changed={"calls": 1000})


@committed
def test_a_change_stands_in_the_tenants_audit_log_and_no_change_does_not(tenant: Tenancy, stranger: Tenancy) -> None:
    update(tenant, calls=3)
    update(tenant, calls=3)
    update(tenant, calls=5, judge_calls=0)
    with tenant.context():
        events = list(AuditEvent.objects.filter(action="limits.update").order_by("seq"))
    assert [(json.loads(event.before or ""), json.loads(event.after or "")) for event in events] == [
        ({"calls": None}, {"calls": 3}),
        ({"calls": 3, "judge_calls": None}, {"calls": 5, "judge_calls": 0}),
    ]
    assert events[0].actor_kind == "system"
    with stranger.context():
        assert not AuditEvent.objects.filter(action="limits.update").exists()


@committed
def test_the_owner_is_behind_the_wall_too(tenant: Tenancy, stranger: Tenancy) -> None:
    update(stranger, calls=1)
    with as_owner(), tenant.context(), connection.cursor() as cursor:
        cursor.execute("SELECT current_user::text, count(*) FROM tenants_tenantlimits GROUP BY 1")
        assert cursor.fetchall() == []
        cursor.execute("UPDATE tenants_tenantlimits SET calls = 99")
        assert cursor.rowcount == 0
    assert limits(stranger).calls == 1


@committed
@pytest.mark.parametrize("filtered", [True, False])
def test_a_tenant_reads_its_own_limits_only(
    tenant: Tenancy, stranger: Tenancy, filtered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    update(tenant, calls=5)
    update(stranger, calls=1)
    if not filtered:
        monkeypatch.setattr(TenantManager, "get_queryset", models.Manager.get_queryset)
    for tenancy, calls in ((tenant, 5), (stranger, 1)):
        with tenancy.context():
            assert list(TenantLimits.objects.values_list("tenant_id", "calls")) == [(tenancy.id, calls)]
    if not filtered:
        assert TenantLimits.objects.count() == 0, "without a tenant"


@committed
def test_after_the_owner_everything_is_mirror_apps_again(tenant: Tenancy) -> None:
    with pytest.raises(ZeroDivisionError), as_owner():
        _ = 1 / 0
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_user::text")
        assert cursor.fetchone() == ("mirror_app",)


@committed
@pytest.mark.parametrize("changed", [{"calls": -2}, {"calls": 10**9}, {"people": 3}])
def test_what_cannot_be_a_limit_is_refused(tenant: Tenancy, changed: dict[str, int]) -> None:
    with pytest.raises(InvalidInput) as caught:
        update(tenant, **changed)
    assert caught.value.field == next(iter(changed))
    assert limits(tenant) == settings.MIRROR.limits


def test_nobody_has_limits_without_a_tenant() -> None:
    with pytest.raises(TenantContextMissing):
        tenant_limits_get()


@committed
def test_a_process_reads_them_again_after_ten_seconds(tenant: Tenancy, django_assert_num_queries: Any) -> None:
    now = [100.0]
    known = LimitsKnown(clock=lambda: now[0])
    assert known.get(tenant.id).calls == settings.MIRROR.limits.calls
    update(tenant, calls=3)
    now[0] += KNOWN_FOR_S - 0.1
    with django_assert_num_queries(0):
        assert known.get(tenant.id).calls == settings.MIRROR.limits.calls
    now[0] += 0.1
    assert known.get(tenant.id).calls == 3


# -- the command ----------------------------------------------------------------------------------------------------


def run(*arguments: str) -> str:
    out = StringIO()
    call_command("tenant_limits", *arguments, stdout=out)
    return out.getvalue()


@committed
def test_the_command_shows_and_changes(tenant: Tenancy, stranger: Tenancy, redis_url: str) -> None:
    assert f"calls: {settings.MIRROR.limits.calls} (default), now 0" in run(tenant.slug)
    said = run(tenant.slug, "--calls", "7", "--judge-calls", "unlimited", "--storage-mib", "0")
    assert "calls: 7, now 0\njudge_calls: unlimited\n" in said
    assert "storage_mib: 0, now 0.000\n" in said
    told = json.loads(run(tenant.slug, "--json"))
    assert told["limits"]["calls"] == 7
    assert told["limits"]["judge_calls"] is None
    assert told["use"]["storage_bytes"] == 0
    assert f"calls: {settings.MIRROR.limits.calls} (default)" in run(stranger.slug)
    assert f"calls: {settings.MIRROR.limits.calls} (default)" in run(tenant.slug, "--calls", "default")


@committed
@pytest.mark.parametrize("value", ["-1", "lots", "", "1e3"])
def test_the_command_names_the_option_that_is_wrong(tenant: Tenancy, value: str) -> None:
    with pytest.raises(CommandError, match="--calls: use a whole number from 0 to 999999999, or unlimited, or default"):
        run(tenant.slug, f"--calls={value}")


@committed
def test_the_command_says_what_is_missing(tenant: Tenancy, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CommandError, match="no tenant 'nobody'"):
        run("nobody", "--calls", "1")
    monkeypatch.setattr(settings, "DATABASE_OWNER_URL", None)
    assert "calls:" in run(tenant.slug), "reading needs no owner"
    with pytest.raises(CommandError, match="DATABASE_OWNER_URL is not set"):
        run(tenant.slug, "--calls", "1")
    with pytest.raises(OwnerUnknown), as_owner():
        pass


# -- refusals -------------------------------------------------------------------------------------------------------


class Later:
    """Runs what it is given when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []
        self.seconds: list[float] = []

    def __call__(self, seconds: float, what: Callable[[], None]) -> None:
        self.seconds.append(seconds)
        self.waiting.append(what)


@pytest.fixture
def later() -> Later:
    return Later()


@pytest.fixture
def counter(later: Later) -> RefusalCounter:
    return RefusalCounter(now=lambda: datetime(2026, 11, 22, 23, 59, tzinfo=UTC), start=later)


@pytest.mark.django_db
def test_a_flood_of_refusals_is_one_write(
    tenant: Tenancy, stranger: Tenancy, counter: RefusalCounter, later: Later, django_assert_max_num_queries: Any
) -> None:
    with django_assert_max_num_queries(0):
        for _ in range(1000):
            counter.note(tenant.id, Refused.REQUESTS)
        counter.note(tenant.id, Refused.CALLS)
        counter.note(stranger.id, Refused.REQUESTS)
    assert (len(later.waiting), later.seconds) == (1, [10.0])
    with django_assert_max_num_queries(14):
        counter.flush()
    counter.note(tenant.id, Refused.REQUESTS)
    counter.flush()
    with tenant.context():
        rows = list(LimitRefusal.objects.order_by("kind").values_list("day", "kind", "count"))
    day = date(2026, 11, 22)
    assert rows == [(day, "calls", 1), (day, "requests", 1001)]
    with stranger.context():
        assert LimitRefusal.objects.get(kind="requests").count == 1


@pytest.mark.django_db
def test_refusals_show_by_kind_today_and_in_thirty_days(tenant: Tenancy, stranger: Tenancy, redis_url: str) -> None:
    today = datetime.now(UTC)
    from datetime import timedelta

    for days_ago, kind in ((0, Refused.CALLS), (29, Refused.CALLS), (30, Refused.CALLS), (1, Refused.STORAGE)):
        then = today - timedelta(days=days_ago)
        counter = RefusalCounter(now=lambda then=then: then, start=lambda *_: None)  # type: ignore[misc]
        counter.note(tenant.id, kind)
        counter.note(stranger.id, Refused.JUDGE_CALLS)
        counter.flush()
    with tenant.context():
        use = tenant_use_get()
    assert use.refused_today == {"calls": 1}
    assert use.refused_30_days == {"calls": 2, "storage": 1}


@committed
def test_refusals_wait_while_the_database_is_down(
    tenant: Tenancy, counter: RefusalCounter, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tenants import limits_refused

    def down(**_: Any) -> None:
        raise DatabaseError("down")

    with monkeypatch.context() as patch:
        patch.setattr(limits_refused, "limitrefusals_add", down)
        counter.note(tenant.id, Refused.CALLS)
        counter.flush()
        assert counter.pending(tenant.id) == {"calls": 1}
        counter.note(tenant.id, Refused.CALLS)
    assert len(later.waiting) == 2
    counter.flush()
    assert counter.pending(tenant.id) == {}
    with tenant.context():
        assert LimitRefusal.objects.get().count == 2


@committed
def test_refusals_of_a_tenant_that_is_gone_are_forgotten(tenant: Tenancy, counter: RefusalCounter) -> None:
    gone = uuid7()
    counter.note(gone, Refused.CALLS)
    counter.note(tenant.id, Refused.CALLS)
    counter.flush()
    assert counter.pending(gone) == {}
    with tenant.context():
        assert LimitRefusal.objects.count() == 1


# -- storage --------------------------------------------------------------------------------------------------------


@committed
def test_uploads_are_refused_when_storage_is_used_up(tenant: Tenancy, stranger: Tenancy) -> None:
    update(tenant, storage_mib=2)
    with tenant.context():
        storage_use_add(storage_bytes=MIB)
        storage_check()
        storage_check(more_bytes=MIB)
        with pytest.raises(StorageLimitReached, match="2 MiB"):
            storage_check(more_bytes=MIB + 1)
        storage_use_add(storage_bytes=2 * MIB)
        with pytest.raises(StorageLimitReached):
            storage_check()
        storage_use_add(storage_bytes=-MIB)
        storage_check()
        storage_use_add(storage_bytes=-99 * MIB)
        assert TenantUse.objects.get().storage_bytes == 0
        storage_use_set(storage_bytes=5)
        assert tenant_use_get().storage_bytes == 5
    with stranger.context():
        storage_check()
        assert 0 < tenant_use_get().storage_bytes < MIB, "what his call takes"


@committed
def test_without_a_limit_nothing_is_too_much(tenant: Tenancy) -> None:
    update(tenant, storage_mib=TenantLimits.UNLIMITED)
    with tenant.context():
        storage_use_add(storage_bytes=10**15)
        storage_check(more_bytes=10**15)


@committed
def test_the_column_refuses_what_the_service_would(tenant: Tenancy) -> None:
    with pytest.raises(DatabaseError), as_owner(), tenant_context(tenant.id):
        TenantLimits.objects.create(calls=-2)
