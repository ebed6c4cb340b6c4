"""Members: another role, removal, leaving; owners stay owners' business, and one always stays."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connections

from mirror_saas.ids import uuid7
from tenants.audit_chain import canonical
from tenants.models import AuditEvent, Membership, User
from tenants.roles import ALL_SCOPES, ROLE_CAPABILITIES, CapabilityMissing, Role
from tenants.selectors.memberships import MemberNotFound, member_get, member_list, membership_get
from tenants.services.memberships import (
    LastOwner,
    membership_create,
    membership_leave,
    membership_remove,
    membership_role_change,
)
from tenants.services.tenants import user_create
from tests.factories import PASSWORD, Tenancy, unique

OWNER = ROLE_CAPABILITIES["owner"]
ADMIN = ROLE_CAPABILITIES["admin"]
KEY = ALL_SCOPES


def join(tenancy: Tenancy, role: Role) -> Membership:
    """Somebody new with `role`."""
    with tenancy.context():
        user = user_create(email=f"{unique(role.value)}@x.example", password=PASSWORD)
        return membership_create(user=user, role=role)


def membership_of(tenancy: Tenancy, name: str) -> Membership:
    with tenancy.context():
        return Membership.objects.get(user=tenancy.users[name])


def newest_event(tenancy: Tenancy) -> AuditEvent:
    with tenancy.context():
        event = AuditEvent.objects.order_by("-seq").first()
    assert event is not None
    return event


# -- another role ---------------------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("capabilities", [OWNER, ADMIN, KEY, frozenset({"admin"})])
@pytest.mark.parametrize("role", [Role.ADMIN, Role.EDITOR, Role.REVIEWER])
def test_who_administers_gives_every_role_but_owner(
    tenant: Tenancy, stranger: Tenancy, capabilities: frozenset[str], role: Role
) -> None:
    bob = membership_of(tenant, "bob")
    with tenant.context():
        membership_role_change(membership_id=bob.id, role=role, capabilities=capabilities)
        assert member_get(membership_id=bob.id).role == role
    event = newest_event(tenant)
    assert (event.action, event.object_label) == ("membership.update", tenant.users["bob"].email)
    assert (event.before, event.after) == (canonical({"role": "viewer"}), canonical({"role": role.value}))
    assert membership_of(stranger, "charlie").role == "owner"


@pytest.mark.django_db
@pytest.mark.parametrize("capabilities", [ADMIN, KEY, ROLE_CAPABILITIES["editor"], frozenset()])
def test_only_owners_give_and_take_the_owner_role(tenant: Tenancy, capabilities: frozenset[str]) -> None:
    bob, alice = membership_of(tenant, "bob"), membership_of(tenant, "alice")
    other = join(tenant, Role.OWNER)
    with tenant.context():
        for membership_id, role in ((bob.id, Role.OWNER), (alice.id, Role.ADMIN), (other.id, Role.OWNER)):
            with pytest.raises(CapabilityMissing):
                membership_role_change(membership_id=membership_id, role=role, capabilities=capabilities)
        with pytest.raises(CapabilityMissing):
            membership_remove(membership_id=other.id, capabilities=capabilities)
    assert (membership_of(tenant, "bob").role, membership_of(tenant, "alice").role) == ("viewer", "owner")


@pytest.mark.django_db
@pytest.mark.parametrize("role", ["editor", "reviewer", "viewer"])
def test_who_does_not_administer_changes_nobody(tenant: Tenancy, role: str) -> None:
    bob = membership_of(tenant, "bob")
    with tenant.context():
        with pytest.raises(CapabilityMissing, match="scope admin"):
            membership_role_change(membership_id=bob.id, role=Role.VIEWER, capabilities=ROLE_CAPABILITIES[role])
        with pytest.raises(CapabilityMissing, match="scope admin"):
            membership_remove(membership_id=bob.id, capabilities=ROLE_CAPABILITIES[role])


@pytest.mark.django_db
def test_an_owner_makes_another_owner_and_steps_back(tenant: Tenancy) -> None:
    bob, alice = membership_of(tenant, "bob"), membership_of(tenant, "alice")
    with tenant.context():
        with pytest.raises(LastOwner, match="Make somebody else an owner first"):
            membership_role_change(membership_id=alice.id, role=Role.ADMIN, capabilities=OWNER)
        membership_role_change(membership_id=bob.id, role=Role.OWNER, capabilities=OWNER)
        membership_role_change(membership_id=alice.id, role=Role.ADMIN, capabilities=OWNER)
    assert (membership_of(tenant, "bob").role, membership_of(tenant, "alice").role) == ("owner", "admin")


@pytest.mark.django_db
def test_the_same_role_again_changes_and_records_nothing(tenant: Tenancy) -> None:
    before = newest_event(tenant).seq
    with tenant.context():
        membership_role_change(membership_id=membership_of(tenant, "bob").id, role=Role.VIEWER, capabilities=ADMIN)
        # The last owner stays what they are, too.
        membership_role_change(membership_id=membership_of(tenant, "alice").id, role=Role.OWNER, capabilities=OWNER)
    assert newest_event(tenant).seq == before


@pytest.mark.django_db
def test_no_command_takes_the_last_owner_either(tenant: Tenancy) -> None:
    with tenant.context(), pytest.raises(LastOwner):
        membership_create(user=tenant.users["alice"], role=Role.ADMIN)


# -- going ----------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_removed_member_belongs_to_nothing_and_the_log_says_who_went(tenant: Tenancy, stranger: Tenancy) -> None:
    bob = membership_of(tenant, "bob")
    with tenant.context():
        membership_remove(membership_id=bob.id, capabilities=ADMIN)
        assert not Membership.objects.filter(user=tenant.users["bob"]).exists()
    assert membership_get(user_id=tenant.users["bob"].id) is None
    event = newest_event(tenant)
    assert (event.action, event.object_label, event.after) == (
        "membership.remove",
        tenant.users["bob"].email,
        None,
    )
    assert event.before == canonical({"role": "viewer", "user_id": str(tenant.users["bob"].id)})
    assert membership_of(stranger, "charlie").role == "owner"


@pytest.mark.django_db
def test_a_removed_member_keeps_their_other_tenants(tenant: Tenancy, stranger: Tenancy) -> None:
    bob = tenant.users["bob"]
    with stranger.context():
        membership_create(user=bob, role=Role.EDITOR)
    with tenant.context():
        membership_remove(membership_id=membership_of(tenant, "bob").id, capabilities=OWNER)
    left = membership_get(user_id=bob.id, tenant_id=tenant.id)
    assert left is not None
    assert (left.tenant, left.role) == (stranger.tenant, "editor")


@pytest.mark.django_db
def test_a_member_leaves_and_the_last_owner_stays(tenant: Tenancy) -> None:
    with tenant.context():
        membership_leave(user_id=tenant.users["bob"].id)
        assert newest_event(tenant).action == "membership.leave"
        with pytest.raises(MemberNotFound):
            membership_leave(user_id=tenant.users["bob"].id)
        with pytest.raises(LastOwner):
            membership_leave(user_id=tenant.users["alice"].id)
        with pytest.raises(LastOwner):
            membership_remove(membership_id=membership_of(tenant, "alice").id, capabilities=OWNER)
    assert membership_of(tenant, "alice").role == "owner"


@pytest.mark.django_db
def test_a_strangers_member_and_a_missing_one_are_the_same(tenant: Tenancy, stranger: Tenancy) -> None:
    theirs = membership_of(stranger, "charlie")
    told = []
    with tenant.context():
        for membership_id in (theirs.id, uuid7()):
            for attempt in (
                lambda membership_id=membership_id: member_get(membership_id=membership_id),
                lambda membership_id=membership_id: membership_remove(membership_id=membership_id, capabilities=OWNER),
                lambda membership_id=membership_id: membership_role_change(
                    membership_id=membership_id, role=Role.VIEWER, capabilities=OWNER
                ),
            ):
                with pytest.raises(MemberNotFound) as error:
                    attempt()
                told.append(str(error.value))
        with pytest.raises(MemberNotFound):
            membership_leave(user_id=stranger.users["charlie"].id)
    assert set(told) == {"There is no such member."}
    assert membership_of(stranger, "charlie").role == "owner"


@pytest.mark.django_db
def test_members_are_listed_newest_first_in_pages_without_strangers(tenant: Tenancy, stranger: Tenancy) -> None:
    made = [join(tenant, Role.EDITOR).user_id for _ in range(3)]
    expected = [*reversed(made), tenant.users["bob"].id, tenant.users["alice"].id]
    seen: list[Any] = []
    cursor = None
    with tenant.context():
        while True:
            page = member_list(cursor=cursor, limit=2)
            seen += [member.user_id for member in page.items]
            cursor = page.next
            if cursor is None:
                break
    assert seen == expected


# -- at the same moment ---------------------------------------------------------------------------------------------


def together(*works: Callable[[], None]) -> list[BaseException | None]:
    """Run each of `works` in a thread with a connection of its own, from the same moment on; what each raised."""
    start = threading.Barrier(len(works))
    outcomes: list[BaseException | None] = [None] * len(works)

    def run(number: int, work: Callable[[], None]) -> None:
        try:
            start.wait(10)
            work()
        except BaseException as error:
            outcomes[number] = error
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(number, work)) for number, work in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return outcomes


def going(how: str, tenancy: Tenancy, user: User, membership: Membership) -> Callable[[], None]:
    def work() -> None:
        with tenancy.context():
            if how == "leave":
                membership_leave(user_id=user.id)
            elif how == "remove":
                membership_remove(membership_id=membership.id, capabilities=OWNER)
            else:
                membership_role_change(membership_id=membership.id, role=Role.ADMIN, capabilities=OWNER)

    return work


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("how", [("leave", "leave"), ("leave", "demote"), ("remove", "demote"), ("demote", "demote")])
def test_of_two_owners_who_go_at_the_same_moment_one_stays(
    tenant: Tenancy, stranger: Tenancy, how: tuple[str, str]
) -> None:
    alice, bob = membership_of(tenant, "alice"), membership_of(tenant, "bob")
    with tenant.context():
        membership_role_change(membership_id=bob.id, role=Role.OWNER, capabilities=OWNER)
    outcomes = together(
        going(how[0], tenant, tenant.users["alice"], alice), going(how[1], tenant, tenant.users["bob"], bob)
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["LastOwner", "NoneType"]
    with tenant.context():
        assert Membership.objects.filter(role="owner").count() == 1
        # What was refused left nothing in the log.
        assert (
            AuditEvent.objects.filter(action__startswith="membership.", object_id__in=[alice.id, bob.id]).count() == 4
        )
    assert membership_of(stranger, "charlie").role == "owner"


@pytest.mark.django_db(transaction=True)
def test_who_waits_for_another_to_leave_counts_after_them(tenant: Tenancy) -> None:
    """The unlucky order by force: the second one asks while the first has left and not committed."""
    alice, bob = membership_of(tenant, "alice"), membership_of(tenant, "bob")
    with tenant.context():
        membership_role_change(membership_id=bob.id, role=Role.OWNER, capabilities=OWNER)
    left, asked = threading.Event(), threading.Event()

    def first() -> None:
        with tenant.context():
            membership_leave(user_id=alice.user_id)
            left.set()
            assert asked.wait(10)
            _until_someone_waits()

    def second() -> None:
        assert left.wait(10)
        with tenant.context():
            asked.set()
            membership_leave(user_id=bob.user_id)

    outcomes = together(first, second)
    assert [type(outcome).__name__ for outcome in outcomes] == ["NoneType", "LastOwner"]


def _until_someone_waits() -> None:
    """Until PostgreSQL itself says that another connection waits for a lock of this one's."""
    import time

    from django.db import connection

    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT EXISTS (SELECT 1 FROM pg_locks l WHERE NOT l.granted"
                " AND pg_backend_pid() = ANY(pg_blocking_pids(l.pid)))"
            )
            if cursor.fetchone()[0]:
                return
    raise AssertionError("nobody waited")
