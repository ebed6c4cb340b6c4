"""API keys: shown once, kept hashed, refused for good once they are revoked or expired."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta, timezone

import pytest
from django.core.exceptions import ValidationError
from django.db import connection
from django.utils import timezone as django_timezone
from pytest_django import DjangoAssertNumQueries

from mirror_saas.ids import uuid7
from mirror_saas.pages import BadCursor, cursor_encode
from tenants.actors import Actor, actor_context
from tenants.context import tenant_context
from tenants.models import ApiKey, AuditEvent, Membership
from tenants.roles import ALL_SCOPES, CapabilityMissing
from tenants.selectors import api_keys as selectors
from tenants.selectors.api_keys import (
    ApiKeyFilters,
    ApiKeyNotFound,
    api_key_get,
    api_key_list,
    api_key_state,
    api_keys_without_maker,
)
from tenants.services import api_keys as services
from tenants.services.api_keys import (
    MAX_LIFETIME,
    ApiKeyMade,
    ScopesNotHeld,
    api_key_authenticate,
    api_key_create,
    api_key_revoke,
    api_key_update,
)
from tests.factories import Tenancy, tenancy_create

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)


def person(tenancy: Tenancy, name: str) -> Actor:
    user = tenancy.users[name]
    return Actor(kind="user", id=user.id, label=user.email)


def the_key(tenancy: Tenancy) -> ApiKey:
    with tenancy.context():
        return ApiKey.objects.get(prefix=tenancy.api_key.split("_")[1])


def aged(tenancy: Tenancy, by: timedelta) -> None:
    """Let the tenancy's key have been used `by` earlier than it was."""
    with tenancy.context():
        noted = the_key(tenancy).last_used_at
        assert noted is not None
        ApiKey.objects.update(last_used_at=noted - by)


# -- what a key is -------------------------------------------------------------------------------------------------


def test_a_key_speaks_for_its_tenant_with_its_scopes(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context():
        made = api_key_create(name="reader", scopes=["calls:read", "judge", "judge"])
    principal = api_key_authenticate(key=made.key)
    assert principal is not None
    assert (principal.tenant, principal.name, principal.scopes) == (
        tenant.tenant,
        "reader",
        frozenset({"calls:read", "judge"}),
    )


def test_the_secret_is_not_stored(tenant: Tenancy) -> None:
    secret = tenant.api_key.split("_", 2)[2]
    stored = the_key(tenant)
    assert secret not in str(vars(stored))
    assert len(bytes(stored.secret_hash)) == 32
    assert tenant.api_key not in repr(tenant)


def test_a_new_keys_secret_shows_nowhere_but_in_its_one_answer(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context(), actor_context(person(tenant, "alice")):
        made = api_key_create(name="ci", scopes=["judge"], held=ALL_SCOPES)
        secret = made.key.split("_", 2)[2]
        api_key_update(api_key_id=made.api_key.id, name="ci 2")
        api_key_revoke(api_key_id=made.api_key.id)
        told = [str(made), repr(made), str(made.api_key), repr(made.api_key)]
        told += [f"{event.object_label} {event.before} {event.after}" for event in AuditEvent.objects.all()]
        told.append(str(vars(ApiKey.objects.get(id=made.api_key.id))))
    assert [text for text in told if secret in text] == []


def test_a_wrong_secret_with_a_right_prefix_is_refused(tenant: Tenancy) -> None:
    last = "A" if tenant.api_key[-1] != "A" else "B"
    assert api_key_authenticate(key=tenant.api_key[:-1] + last) is None
    assert api_key_authenticate(key=tenant.api_key) is not None


def test_a_secret_of_a_stranger_fits_no_prefix_of_ours(tenant: Tenancy, stranger: Tenancy) -> None:
    prefix, secret = tenant.api_key.split("_", 2)[1], stranger.api_key.split("_", 2)[2]
    assert api_key_authenticate(key=f"mk_{prefix}_{secret}") is None


def test_what_is_no_key_is_refused_without_a_question_to_the_database(
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    prefix = "mk_" + "a" * 12 + "_"
    keys = ["", "mk_", "mk__", prefix, "sk_x", "mk_\x00_\x00", "\ud800" * 59, "mk_" + "é" * 12 + "_" + "é" * 43]
    keys += [prefix + "A" * 42, prefix + "A" * 44, prefix + "A" * 100_000, prefix + "A" * 43 + "\n"]
    with django_assert_num_queries(0):
        assert [key for key in keys if api_key_authenticate(key=key) is not None] == []


# -- its end -------------------------------------------------------------------------------------------------------


def test_revoked_and_expired_keys_are_refused(tenant: Tenancy, stranger: Tenancy) -> None:
    now = django_timezone.now()
    with tenant.context():
        revoked = api_key_create(name="revoked", scopes=["judge"])
        api_key_revoke(api_key_id=revoked.api_key.id)
        long_ago = now - timedelta(days=2)
        expired = api_key_create(name="expired", scopes=["judge"], expires_at=now - timedelta(seconds=1), now=long_ago)
        running = api_key_create(name="running", scopes=["judge"], expires_at=now + timedelta(hours=1))
    assert api_key_authenticate(key=revoked.key) is None
    assert api_key_authenticate(key=expired.key) is None
    assert api_key_authenticate(key=running.key) is not None
    assert api_key_authenticate(key=stranger.api_key) is not None


def test_a_key_begins_to_be_expired_at_its_very_end(tenant: Tenancy) -> None:
    with tenant.context():
        key = api_key_create(name="x", scopes=["judge"], expires_at=NOW, now=NOW - timedelta(days=1)).api_key
        states = [api_key_state(key, now=NOW + timedelta(microseconds=by)) for by in (-1, 0)]
        assert states == ["active", "expired"]
        for state, now in (("active", NOW - timedelta(microseconds=1)), ("expired", NOW)):
            listed = api_key_list(filters=ApiKeyFilters(state=state), now=now).items  # type: ignore[arg-type]
            assert key in listed
        key = api_key_revoke(api_key_id=key.id)
        assert api_key_state(key, now=NOW) == "revoked"


def test_an_end_has_to_be_ahead_by_the_databases_clock_or_the_one_given(tenant: Tenancy) -> None:
    for expires_at, told in (
        (NOW, "still to come"),
        (NOW - timedelta(days=1), "still to come"),
        (datetime.min.replace(tzinfo=timezone(timedelta(hours=14))), "still to come"),
        (NOW + MAX_LIFETIME + timedelta(seconds=1), "next ten years"),
        (datetime.max.replace(tzinfo=timezone(-timedelta(hours=23))), "next ten years"),
        (NOW.replace(tzinfo=None) + timedelta(days=1), "zone"),
    ):
        with tenant.context(), pytest.raises(ValidationError) as error:
            api_key_create(name="x", scopes=["judge"], expires_at=expires_at, now=NOW)
        assert told in error.value.message_dict["expires_at"][0], expires_at


def test_without_a_clock_the_databases_counts(tenant: Tenancy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "_database_time", lambda: NOW)
    with tenant.context():
        key = api_key_create(name="x", scopes=["judge"], expires_at=NOW + timedelta(hours=1)).api_key
        assert key.created_at == NOW
        with pytest.raises(ValidationError):
            api_key_create(name="x", scopes=["judge"], expires_at=NOW)
        assert api_key_revoke(api_key_id=key.id).revoked_at == NOW


def test_revoking_again_changes_nothing(tenant: Tenancy) -> None:
    with tenant.context():
        first = api_key_revoke(api_key_id=the_key(tenant).id).revoked_at
        assert api_key_revoke(api_key_id=the_key(tenant).id).revoked_at == first
        assert AuditEvent.objects.filter(action="api_key.revoke").count() == 1


def test_a_strangers_key_is_not_there(tenant: Tenancy, stranger: Tenancy) -> None:
    foreign = the_key(stranger).id
    with tenant.context():
        for do in (api_key_revoke, api_key_get, api_key_update):
            for key_id in (foreign, uuid7()):
                with pytest.raises(ApiKeyNotFound) as error:
                    do(api_key_id=key_id)
                assert str(error.value) == "There is no such API key."
        assert foreign not in {key.id for key in api_key_list().items}
    assert api_key_authenticate(key=stranger.api_key) is not None


@pytest.mark.django_db(transaction=True)
def test_a_key_revoked_on_one_connection_is_refused_on_every_other_at_once() -> None:
    """Each thread has a database connection of its own, as each node has; none keeps what it has seen."""
    tenant, stranger = tenancy_create(owner="alice"), tenancy_create(owner="charlie")
    turns = threading.Barrier(3, timeout=30)
    seen: dict[str, list[bool]] = {"one": [], "two": []}

    def node(name: str) -> None:
        try:
            for _ in range(2):
                seen[name].append(api_key_authenticate(key=tenant.api_key) is not None)
                turns.wait()
                turns.wait()
        finally:
            connection.close()

    nodes = [threading.Thread(target=node, args=(name,)) for name in seen]
    for each in nodes:
        each.start()
    turns.wait()
    with tenant.context():
        api_key_revoke(api_key_id=the_key(tenant).id)
    turns.wait()
    turns.wait()
    turns.wait()
    for each in nodes:
        each.join(timeout=30)
    assert seen == {"one": [True, False], "two": [True, False]}
    assert api_key_authenticate(key=stranger.api_key) is not None


# -- its last use --------------------------------------------------------------------------------------------------


def test_last_use_is_noted_with_its_address_but_not_with_every_request(tenant: Tenancy, stranger: Tenancy) -> None:
    assert (the_key(tenant).last_used_at, the_key(tenant).last_used_ip) == (None, "")
    api_key_authenticate(key=tenant.api_key, ip="203.0.113.9")
    first = the_key(tenant)
    assert first.last_used_at is not None
    assert first.last_used_ip == "203.0.113.9"
    api_key_authenticate(key=tenant.api_key, ip="2001:db8::1")
    assert (the_key(tenant).last_used_at, the_key(tenant).last_used_ip) == (first.last_used_at, "203.0.113.9")
    aged(tenant, timedelta(minutes=2))
    api_key_authenticate(key=tenant.api_key, ip="2001:db8::1")
    assert the_key(tenant).last_used_ip == "2001:db8::1"
    assert the_key(stranger).last_used_at is None


def test_a_request_within_the_minute_writes_nothing(tenant: Tenancy) -> None:
    from django.test.utils import CaptureQueriesContext

    api_key_authenticate(key=tenant.api_key)
    with CaptureQueriesContext(connection) as queries:
        assert api_key_authenticate(key=tenant.api_key) is not None
    assert [query["sql"] for query in queries if "UPDATE" in query["sql"]] == []


@pytest.mark.django_db(transaction=True)
def test_requests_at_the_same_time_note_one_use_and_wait_for_nobody() -> None:
    tenant = tenancy_create(owner="alice")
    key_id = the_key(tenant).id
    done = threading.Event()

    def ask() -> None:
        try:
            assert api_key_authenticate(key=tenant.api_key, ip="203.0.113.2") is not None
            done.set()
        finally:
            connection.close()

    # Another node is just noting a use; it has the row and has not committed.
    with tenant.context():
        services._last_use_note(key_id, "203.0.113.1")
        asking = threading.Thread(target=ask)
        asking.start()
        assert done.wait(timeout=30)
        asking.join(timeout=30)
    assert the_key(tenant).last_used_ip == "203.0.113.1"
    # And a late one of before, which saw no use noted, finds that there is one.
    with tenant.context():
        services._last_use_note(key_id, "203.0.113.3")
    assert the_key(tenant).last_used_ip == "203.0.113.1"


# -- who may give what ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scopes", [[], ["calls:read", "everything"], ["owners:manage"], ["x" * 100_000, "\x00"]])
def test_scopes_that_do_not_exist_are_refused_with_those_that_do(tenant: Tenancy, scopes: list[str]) -> None:
    with tenant.context(), pytest.raises(ValidationError) as error:
        api_key_create(name="x", scopes=scopes)
    told = error.value.message_dict["scopes"][0]
    assert "calls:read" in told
    assert len(told) < 300


def test_nobody_gives_a_key_more_than_they_have(tenant: Tenancy) -> None:
    with tenant.context(), actor_context(person(tenant, "alice")):
        with pytest.raises(ScopesNotHeld, match="judge, replay") as error:
            api_key_create(name="x", scopes=["replay", "admin", "judge"], held={"admin", "calls:read"})
        assert isinstance(error.value, CapabilityMissing)
        made = api_key_create(name="x", scopes=["admin"], held={"admin", "calls:read"})
        assert made.api_key.scopes == ["admin"]
        assert ApiKey.objects.filter(name="x").count() == 1


def test_a_door_that_forgets_what_the_asker_has_makes_no_key(tenant: Tenancy) -> None:
    with tenant.context(), actor_context(person(tenant, "bob")), pytest.raises(TypeError, match="held"):
        api_key_create(name="x", scopes=["judge"])


def test_a_key_says_who_made_it_and_goes_on_when_they_leave(tenant: Tenancy, stranger: Tenancy) -> None:
    bob = tenant.users["bob"]
    with tenant.context():
        with actor_context(person(tenant, "bob")):
            made = api_key_create(name="bob's", scopes=["calls:read"], held={"calls:read"})
        with actor_context(Actor(kind="api_key", id=made.api_key.id, label="bob's (x)")):
            second = api_key_create(name="made by a key", scopes=["calls:read"], held={"calls:read"})
        key = ApiKey.objects.get(id=made.api_key.id)
        assert (key.created_by_kind, key.created_by_id, key.created_by_label) == ("user", bob.id, bob.email)
        assert api_keys_without_maker([key, second.api_key, the_key(tenant)]) == frozenset()
        assert api_key_list(filters=ApiKeyFilters(created_by_id=bob.id)).items == [key]
        Membership.objects.filter(user=bob).delete()
        assert api_keys_without_maker([key, second.api_key, the_key(tenant)]) == {key.id}
    assert api_key_authenticate(key=made.key) is not None
    with stranger.context():
        assert api_key_list(filters=ApiKeyFilters(created_by_id=bob.id)).items == []


# -- names, renaming, an earlier end -------------------------------------------------------------------------------


def test_a_name_that_cannot_be_used_is_refused(tenant: Tenancy) -> None:
    names = {
        "": "Give a name.",
        " \t\n ": "Give a name.",
        "x" * 201: "at most 200 characters",
        "a\x00b": "control characters",
        "a\nb": "one line",
        "a\u2028b": "one line",
        "a\ud800b": "control characters",
        "mk_abcdefghijkl_" + "s" * 43: "looks like a secret",
        "sk_" + "s" * 43: "looks like a secret",
    }
    with tenant.context():
        for name, told in names.items():
            with pytest.raises(ValidationError) as error:
                api_key_create(name=name, scopes=["judge"])
            assert told in error.value.message_dict["name"][0], name
            with pytest.raises(ValidationError) as error:
                api_key_update(api_key_id=the_key(tenant).id, name=name)
            assert told in error.value.message_dict["name"][0], name
        assert ApiKey.objects.count() == 1


def test_a_key_is_renamed_and_the_log_says_so(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context():
        made = api_key_update(api_key_id=the_key(tenant).id, name="  Nächtlicher Lauf 🌙 ")
        assert made.name == the_key(tenant).name == "Nächtlicher Lauf 🌙"
        event = AuditEvent.objects.latest("seq")
        assert (event.action, event.before) == ("api_key.update", '{"name":"tests"}')
        api_key_update(api_key_id=made.id, name="Nächtlicher Lauf 🌙")
        assert AuditEvent.objects.latest("seq") == event
    assert api_key_authenticate(key=tenant.api_key) is not None


def test_a_keys_end_can_come_earlier_and_not_later(tenant: Tenancy) -> None:
    with tenant.context():
        key_id = the_key(tenant).id
        api_key_update(api_key_id=key_id, expires_at=NOW + timedelta(days=9), now=NOW)
        api_key_update(api_key_id=key_id, expires_at=NOW + timedelta(days=2), now=NOW)
        # The same end again, even when it has come, is no change.
        api_key_update(api_key_id=key_id, expires_at=NOW + timedelta(days=2), now=NOW + timedelta(days=3))
        for wrong in (NOW + timedelta(days=3), NOW):
            with pytest.raises(ValidationError) as error:
                api_key_update(api_key_id=key_id, expires_at=wrong, now=NOW)
            assert list(error.value.message_dict) == ["expires_at"]
        assert the_key(tenant).expires_at == NOW + timedelta(days=2)


def test_what_is_wrong_changes_nothing_of_the_rest(tenant: Tenancy) -> None:
    with tenant.context():
        with pytest.raises(ValidationError):
            api_key_update(api_key_id=the_key(tenant).id, name="new", expires_at=NOW, now=NOW)
        assert the_key(tenant).name == "tests"


# -- how many ------------------------------------------------------------------------------------------------------


def test_a_tenant_has_so_many_keys_that_work_and_no_more(
    tenant: Tenancy, stranger: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "MAX_ACTIVE", 3)
    with tenant.context():
        keys = [api_key_create(name=str(n), scopes=["judge"]).api_key for n in range(2)]
        with pytest.raises(ValidationError, match=r"3 API keys that work.*revoke one"):
            api_key_create(name="4", scopes=["judge"])
        api_key_revoke(api_key_id=keys[0].id)
        api_key_create(name="5", scopes=["judge"])
    with stranger.context():
        api_key_create(name="not their business", scopes=["judge"])


@pytest.mark.django_db(transaction=True)
def test_two_keys_made_at_once_do_not_pass_the_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    tenant = tenancy_create(owner="alice")
    monkeypatch.setattr(services, "MAX_ACTIVE", 2)
    start = threading.Barrier(4, timeout=30)
    refused: list[ValidationError] = []

    def make() -> None:
        try:
            start.wait()
            with tenant_context(tenant.id):
                api_key_create(name="x", scopes=["judge"])
        except ValidationError as error:
            refused.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(refused) == 3
    with tenant.context():
        assert ApiKey.objects.count() == 2


def test_the_same_key_is_made_once(tenant: Tenancy) -> None:
    key_id = uuid7()
    with tenant.context():
        first = api_key_create(name="x", scopes=["judge"], api_key_id=key_id)
        with pytest.raises(ApiKeyMade) as error:
            api_key_create(name="x", scopes=["judge"], api_key_id=key_id)
        assert error.value.api_key == first.api_key
        assert first.key.split("_", 2)[2] not in str(error.value)
        assert ApiKey.objects.filter(name="x").count() == 1


# -- the list ------------------------------------------------------------------------------------------------------


def test_pages_show_every_key_once_although_keys_are_made_meanwhile(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context():
        ApiKey.objects.update(created_at=NOW)
        # Two of the same moment are told apart by their ids.
        wanted = [
            api_key_create(name=str(n), scopes=["judge"], now=NOW + timedelta(seconds=n // 2)).api_key.id
            for n in range(2, 7)
        ]
        seen: list[str] = []
        cursor: str | None = None
        while True:
            page = api_key_list(cursor=cursor, limit=2)
            seen += [key.name for key in page.items]
            api_key_create(name="meanwhile", scopes=["judge"], now=NOW + timedelta(days=1))
            cursor = page.next
            if cursor is None:
                break
    assert len(wanted) == 5
    assert seen == ["6", "5", "4", "3", "2", "tests"]


@pytest.mark.parametrize(
    "cursor",
    [
        "nonsense",
        cursor_encode(7),
        cursor_encode("2026-03-04T12:00:00", str(uuid7())),
        cursor_encode("9999-12-31T23:59:59-23:59", str(uuid7())),
        cursor_encode("2026-03-04T12:00:00Z", "\x00"),
    ],
    ids=["no cursor", "a number", "no time zone", "no time of any zone", "no id"],
)
def test_a_cursor_of_nowhere_is_refused(tenant: Tenancy, cursor: str) -> None:
    with tenant.context(), pytest.raises(BadCursor):
        selectors.api_key_list(cursor=cursor)
