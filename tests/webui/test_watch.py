"""What ends a right to look on ends the sockets that use it, silent ones too, and costs a process one query."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.models import Session
from django.db import DatabaseError, connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from mirror_saas.ids import uuid7
from tenants.context import tenant_context
from tenants.models import Membership, Tenant, User
from tenants.roles import Role
from tenants.services.tenants import membership_create
from tests.factories import Tenancy
from tests.support.virtual_time import virtual_time
from tests.webui.test_socket import Connect, Socket, connect  # noqa: F401  (a fixture)
from webui import consumers
from webui.live import viewer_check
from webui.watch import CHECK_S, Standing, ViewerWatch, standing_still, viewer_watch

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("redis_url")]


def sessions_of(user: User) -> list[Session]:
    return [row for row in Session.objects.all() if row.get_decoded().get(SESSION_KEY) == str(user.pk)]


def signed_out(tenancy: Tenancy, user: User) -> None:
    for session in sessions_of(user):
        session.delete()


def expired(tenancy: Tenancy, user: User) -> None:
    keys = [session.session_key for session in sessions_of(user)]
    Session.objects.filter(session_key__in=keys).update(expire_date=timezone.now() - timedelta(seconds=1))


def password_changed(tenancy: Tenancy, user: User) -> None:
    user.set_password("another correct horse")
    user.save(update_fields=["password"])


def deactivated(tenancy: Tenancy, user: User) -> None:
    User.objects.filter(pk=user.pk).update(is_active=False)


def removed(tenancy: Tenancy, user: User) -> None:
    with tenancy.context():
        Membership.objects.filter(user=user).delete()


def tenant_deleted(tenancy: Tenancy, user: User) -> None:
    with tenancy.context():
        Tenant.objects.all().delete()


def switched(tenancy: Tenancy, user: User) -> None:
    for session in sessions_of(user):
        store = settings_store(session.session_key)
        store["tenant_id"] = str(uuid7())
        store.save()


def settings_store(key: str) -> Any:
    from importlib import import_module

    return import_module(settings.SESSION_ENGINE).SessionStore(key)


async def round_of_the_watch() -> None:
    await viewer_watch(consumers._still).check()


async def settled(socket: Socket) -> None:
    """The socket is served and watched: its first beat comes before it is, a subscription's answer after."""
    await socket.subscribe("calls")
    await socket.hear("update")
    await socket.say(type="unsubscribe", topic="calls")


ENDS: list[tuple[Callable[[Tenancy, User], None], int]] = [
    (signed_out, consumers.SIGNED_OUT),
    (expired, consumers.SIGNED_OUT),
    (password_changed, consumers.SIGNED_OUT),
    (deactivated, consumers.SIGNED_OUT),
    (removed, consumers.NO_MEMBER),
    (tenant_deleted, consumers.NO_MEMBER),
    (switched, consumers.SWITCHED),
]


@pytest.mark.parametrize(("end", "code"), ENDS, ids=lambda value: getattr(value, "__name__", str(value)))
async def test_a_silent_socket_is_closed_and_others_are_not(
    connect: Connect,  # noqa: F811
    tenant: Tenancy,
    stranger: Tenancy,
    end: Callable[[Tenancy, User], None],
    code: int,
) -> None:
    bob = tenant.users["bob"]
    async with connect(bob) as silent, connect(bob) as busy, connect(stranger.users["charlie"]) as charlie:
        for socket in (silent, busy, charlie):
            await settled(socket)
        await busy.subscribe("calls")
        await busy.hear("update")
        await round_of_the_watch()
        await sync_to_async(end)(tenant, bob)
        await round_of_the_watch()
        for socket in (silent, busy):
            assert await socket.close_code() == code
        await round_of_the_watch()
        await settled(charlie)


async def test_another_role_that_may_look_on_too_keeps_the_socket(
    connect: Connect,  # noqa: F811
    tenant: Tenancy,
) -> None:
    bob = tenant.users["bob"]

    @sync_to_async
    def promote() -> None:
        with tenant.context():
            membership_create(user=bob, role=Role.EDITOR)

    async with connect(bob) as socket:
        await settled(socket)
        await promote()
        for _ in range(2):
            await round_of_the_watch()
        await settled(socket)


async def test_a_round_is_one_query_for_all_sockets_and_nothing_more_while_nothing_changes(
    connect: Connect,  # noqa: F811
    tenant: Tenancy,
    stranger: Tenancy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int, int]] = []

    def counted(standings: Sequence[Standing]) -> set[int]:
        with CaptureQueriesContext(connection) as queries:
            still = standing_still(standings)
        asked.append((len(standings), len(still), len(queries)))
        return still

    monkeypatch.setattr(consumers, "standing_still", counted)
    checks: list[dict[str, Any]] = []

    def checked(**arguments: Any) -> Any:
        checks.append(arguments)
        return viewer_check(**arguments)

    people = [tenant.users["alice"], tenant.users["bob"], stranger.users["charlie"]]
    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(connect(people[number % 3])) for number in range(30)]
        for socket in sockets:
            await settled(socket)
        asked.clear()
        monkeypatch.setattr(consumers, "viewer_check", checked)
        for _ in range(3):
            await round_of_the_watch()
        assert set(asked) == {(30, 30, 1)}
        assert checks == []


@pytest.mark.usefixtures("tenant")
async def test_without_sockets_nothing_is_asked(connect: Connect, tenant: Tenancy) -> None:  # noqa: F811
    async with connect(tenant.users["alice"]) as alice:
        await settled(alice)
    watch = viewer_watch(consumers._still)
    assert watch._task is None
    assert not watch._sockets


def test_who_is_asked_about_is_not_found_by_somebody_elses_marks(tenant: Tenancy, stranger: Tenancy) -> None:
    """Each part of a standing has to be that of the same viewer."""
    from tests.webui.test_socket import cookie_of

    def standing(tenancy: Tenancy, name: str) -> Standing:
        viewer = viewer_check(session_key=cookie_of(tenancy.users[name]), tenant_id=tenancy.id, strict=True, zone=None)
        return viewer.standing

    alice, charlie = standing(tenant, "alice"), standing(stranger, "charlie")
    mixed = [
        Standing(
            **{name: getattr(charlie if name == changed else alice, name) for name in Standing.__dataclass_fields__}
        )
        for changed in ("session_key", "session_mark", "user_id", "password_mark")
    ]
    assert standing_still([alice, *mixed, charlie, alice]) == {0, 5, 6}
    # Also asked in somebody's context, and with rows of nobody.
    with tenant_context(tenant.id):
        nobody = Standing("none", "none", uuid7(), "none", uuid7(), "owner")
        assert standing_still([nobody, charlie, alice]) == {1, 2}


class Counted:
    """A socket that only counts."""

    def __init__(self) -> None:
        self.checks = 0
        self.standing = Standing("k", "s", uuid7(), "p", uuid7(), "viewer")

    async def check(self) -> None:
        self.checks += 1


@virtual_time
async def test_rounds_come_every_two_seconds_and_failures_are_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    answers: list[set[int] | Exception] = [{0}, DatabaseError("down"), DatabaseError("down"), set(), {0}]
    at: list[float] = []

    async def still(standings: Sequence[Standing]) -> set[int]:
        at.append(asyncio.get_running_loop().time())
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    watch, socket = ViewerWatch(still), Counted()
    began = asyncio.get_running_loop().time()
    watch.add(socket)
    await asyncio.sleep(5 * CHECK_S + 0.1)
    watch.discard(socket)
    await asyncio.sleep(3 * CHECK_S)
    assert [round(when - began, 3) for when in at] == [CHECK_S * number for number in range(1, 6)]
    assert socket.checks == 1
    assert caplog.text.count("cannot be checked") == 1
