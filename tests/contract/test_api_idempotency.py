"""`Idempotency-Key`: a write that is sent twice is done once, whatever happens in between."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.utils import timezone

from mirror_saas.api import api
from mirror_saas.errors import InvalidInput
from supervision.models import Policy, StreamKey
from supervision.services import policies as policies_module
from tenants.models import AuditEvent, IdempotencyKey
from tenants.roles import Scope
from tenants.services.api_keys import api_key_create
from tenants.services.idempotency import (
    KEPT,
    StoredAnswer,
    WriteRuns,
    idempotency_begin,
    idempotency_forget,
    idempotency_store,
)
from tenants.tasks import idempotency_clear
from tests.contract.client import ask, errors
from tests.factories import PASSWORD, Tenancy, unique

pytestmark = pytest.mark.django_db


def names(tenancy: Tenancy) -> list[str]:
    with tenancy.context():
        return list(Policy.objects.order_by("created_at", "id").values_list("name", flat=True))


def test_the_same_request_again_gets_the_stored_answer_and_does_nothing(tenant: Tenancy) -> None:
    first = ask(tenant, "POST", "/policies", {"name": "Refunds"}, Idempotency_Key="k-1")
    again = ask(tenant, "POST", "/policies", {"name": "Refunds"}, Idempotency_Key="k-1")
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.content == first.content
    assert again.headers["Location"] == first.headers["Location"]
    assert again.headers["ETag"] == first.headers["ETag"]
    assert again.headers["Content-Type"] == first.headers["Content-Type"]
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert names(tenant) == ["alice's policy", "Refunds"]
    with tenant.context():
        assert AuditEvent.objects.filter(action="policy.create", object_label="Refunds").count() == 1


def test_json_in_another_order_is_the_same_request(tenant: Tenancy) -> None:
    rules = [{"text": "Be kind.", "severity": "low"}]
    path = f"/policies/{tenant.policy.id}/versions"
    first = ask(tenant, "POST", path, {"rules": rules, "note": "n"}, Idempotency_Key="k")
    again = ask(
        tenant, "POST", path, {"note": "n", "rules": [{"severity": "low", "text": "Be kind."}]}, Idempotency_Key="k"
    )
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()


@pytest.mark.parametrize(
    ("method", "path", "body", "headers"),
    [
        ("POST", "/policies", {"name": "Another"}, {}),
        ("POST", "/policies?x=1", {"name": "One"}, {}),
        ("POST", "/policies", {"name": "One"}, {"If_Match": '"1"'}),
        ("POST", "/credentials", {"kind": "llm", "secret": "s"}, {}),
    ],
)
def test_another_request_with_the_key_is_refused_and_names_it(
    tenant: Tenancy, method: str, path: str, body: Any, headers: dict[str, str]
) -> None:
    assert ask(tenant, "POST", "/policies", {"name": "One"}, Idempotency_Key="k").status_code == 201
    assert list(errors(ask(tenant, method, path, body, Idempotency_Key="k", **headers))) == ["Idempotency-Key"]
    assert names(tenant) == ["alice's policy", "One"]


@pytest.mark.parametrize("key", ["", " ", "x" * 256, "with blank", "ümlaut", "line\x7f"])
def test_a_key_that_is_none_is_refused(tenant: Tenancy, key: str) -> None:
    assert list(errors(ask(tenant, "POST", "/policies", {"name": "One"}, Idempotency_Key=key))) == ["Idempotency-Key"]
    assert names(tenant) == ["alice's policy"]


def test_an_error_is_not_stored_so_the_corrected_state_is_asked_anew(tenant: Tenancy) -> None:
    draft = ask(tenant, "POST", "/policies", {"name": "alice's policy"}, Idempotency_Key="k")
    assert draft.status_code == 422
    with tenant.context():
        Policy.objects.update(name="moved away")
        assert not IdempotencyKey.objects.exists()
    assert ask(tenant, "POST", "/policies", {"name": "alice's policy"}, Idempotency_Key="k").status_code == 201


def test_answers_without_a_body_are_replayed_too(tenant: Tenancy) -> None:
    made = ask(tenant, "POST", "/policies", {"name": "Gone soon"}).json()
    path, etag = f"/policies/{made['id']}", made["etag"]
    first = ask(tenant, "DELETE", path, If_Match=etag, Idempotency_Key="k")
    again = ask(tenant, "DELETE", path, If_Match=etag, Idempotency_Key="k")
    assert (first.status_code, again.status_code, again.content) == (204, 204, b"")
    assert ask(tenant, "DELETE", path, If_Match=etag).status_code == 404


def test_a_secret_that_is_shown_once_is_replayed_to_who_asked_and_rests_sealed(
    tenant: Tenancy, stranger: Tenancy
) -> None:
    path = f"/agents/{tenant.agent.id}/stream-key"
    first = ask(tenant, "POST", path, Idempotency_Key="k")
    key = first.json()["stream_url"].rsplit("/", 1)[1]
    assert ask(tenant, "POST", path, Idempotency_Key="k").json() == first.json()
    with tenant.context():
        assert StreamKey.objects.count() == 2  # the factory's, and one
        row = IdempotencyKey.objects.get()
        assert key.encode() not in bytes(row.answer_sealed) + bytes(row.fingerprint)
        assert key not in f"{row!r} {row.__dict__}"
        colleague = api_key_create(name="colleague", scopes=[Scope.ADMIN.value]).key
    # The same tenant's other key, and another tenant's: for them it is another key, so they do not get that answer.
    other = ask(tenant, "POST", path, api_key=colleague, Idempotency_Key="k")
    assert other.status_code == 201
    assert other.json()["id"] != first.json()["id"]
    foreign = ask(stranger, "POST", path, Idempotency_Key="k")
    assert foreign.status_code == 404
    assert key not in foreign.content.decode()
    with stranger.context():
        assert not IdempotencyKey.objects.exists()


def test_a_person_has_keys_of_their_own(tenant: Tenancy) -> None:
    made = ask(tenant, "POST", "/policies", {"name": "By program"}, Idempotency_Key="k").json()
    session = Client()
    assert session.login(username=tenant.users["alice"].email, password=PASSWORD)

    def by_person() -> Any:
        return session.post(
            "/api/v1/policies", {"name": "By person"}, content_type="application/json", headers={"Idempotency-Key": "k"}
        )

    first, again = by_person(), by_person()
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json() != made
    assert names(tenant) == ["alice's policy", "By program", "By person"]


def test_a_key_without_the_scope_gets_no_stored_answer(tenant: Tenancy) -> None:
    path = f"/agents/{tenant.agent.id}/stream-key"
    with tenant.context():
        row = api_key_create(name="soon less", scopes=[Scope.ADMIN.value])
    assert ask(tenant, "POST", path, api_key=row.key, Idempotency_Key="k").status_code == 201
    with tenant.context():
        row.api_key.scopes = [Scope.POLICIES_READ.value]
        row.api_key.save()
    assert ask(tenant, "POST", path, api_key=row.key, Idempotency_Key="k").status_code == 403


# -- the service --------------------------------------------------------------------------------------------------


def begin(tenancy: Tenancy, key: str = "k", fingerprint: bytes = b"f" * 32, **times: Any) -> StoredAnswer | None:
    return idempotency_begin(key=key, actor_id=tenancy.id, fingerprint=fingerprint, **times)


def store(tenancy: Tenancy, key: str = "k", **times: Any) -> None:
    answer = StoredAnswer(status=201, headers={"ETag": '"1"'}, body='{"é": 1}')
    idempotency_store(key=key, actor_id=tenancy.id, fingerprint=b"f" * 32, answer=answer, **times)


def test_an_answer_is_kept_for_a_day_and_then_forgotten(tenant: Tenancy, stranger: Tenancy) -> None:
    stored_at = timezone.now()
    with stranger.context():
        store(stranger, now=stored_at)
    with tenant.context():
        store(tenant, now=stored_at)
        late = stored_at + KEPT - timedelta(microseconds=1)
        found = begin(tenant, now=late)
        assert found is not None
        assert (found.status, dict(found.headers), found.body) == (201, {"ETag": '"1"'}, '{"é": 1}')
        with pytest.raises(InvalidInput):
            begin(tenant, fingerprint=b"g" * 32, now=late)
        assert begin(tenant, fingerprint=b"g" * 32, now=stored_at + KEPT) is None
        store(tenant, now=stored_at + KEPT)
        assert IdempotencyKey.objects.count() == 1


def test_expired_answers_go_with_the_next_one_that_is_stored(tenant: Tenancy, stranger: Tenancy) -> None:
    long_ago = timezone.now() - KEPT
    with stranger.context():
        store(stranger, now=long_ago)
    with tenant.context():
        for number in range(5):
            store(tenant, f"old-{number}", now=long_ago)
        assert IdempotencyKey.objects.count() == 5
        store(tenant, "new")
        assert list(IdempotencyKey.objects.values_list("key", flat=True)) == ["new"]
        assert idempotency_forget() == 0
    # Another tenant's are that tenant's.
    with stranger.context():
        assert idempotency_forget() == 1


# -- at once, and in the middle -----------------------------------------------------------------------------------


class Stop(BaseException):
    """As good as a process that dies: nothing on the way catches it."""


@pytest.fixture
def in_the_middle(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Run something when a policy was written, and its request has not ended."""

    def arrange(action: Callable[[], None]) -> None:
        record = policies_module.auditevent_record

        def recorded(**event: Any) -> Any:
            done = record(**event)
            if event["action"] == "policy.create":
                action()
            return done

        monkeypatch.setattr(policies_module, "auditevent_record", recorded)

    return arrange


@pytest.mark.django_db(transaction=True)
def test_a_twin_is_told_to_wait_and_then_gets_the_answer(
    tenant: Tenancy, in_the_middle: Callable[[Callable[[], None]], None]
) -> None:
    written, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        written.set()
        assert go_on.wait(30)

    in_the_middle(pause)
    answers: list[Any] = []

    def send() -> None:
        try:
            answers.append(ask(tenant, "POST", "/policies", {"name": "Twins"}, Idempotency_Key="k"))
        finally:
            connection.close()

    first = threading.Thread(target=send)
    first.start()
    assert written.wait(30)
    twin = ask(tenant, "POST", "/policies", {"name": "Twins"}, Idempotency_Key="k")
    assert errors(twin, 409) == {}
    assert twin.headers["Retry-After"] == "1"
    go_on.set()
    first.join(30)
    again = ask(tenant, "POST", "/policies", {"name": "Twins"}, Idempotency_Key="k")
    assert (answers[0].status_code, again.status_code) == (201, 201)
    assert again.json() == answers[0].json()
    assert names(tenant).count("Twins") == 1


@pytest.mark.django_db(transaction=True)
def test_of_many_twins_one_writes(tenant: Tenancy) -> None:
    name = unique("twins")
    barrier = threading.Barrier(8)
    answers: list[Any] = []

    def send() -> None:
        try:
            barrier.wait(30)
            answers.append(ask(tenant, "POST", "/policies", {"name": name}, Idempotency_Key="k"))
        finally:
            connection.close()

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {answer.status_code for answer in answers} <= {201, 409}
    done = [answer for answer in answers if answer.status_code == 201]
    assert len({answer.content for answer in done}) == 1
    assert names(tenant).count(name) == 1


@pytest.mark.django_db(transaction=True)
def test_a_request_that_dies_in_the_middle_leaves_nothing_and_can_be_sent_again(
    tenant: Tenancy, in_the_middle: Callable[[Callable[[], None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> None:
        # The database sees what it sees of a killed process: a connection that is gone in the middle of a transaction.
        connection.connection.close()
        raise Stop

    with monkeypatch.context():
        in_the_middle(die)
        died = threading.Event()

        def send() -> None:
            try:
                ask(tenant, "POST", "/policies", {"name": "Phoenix"}, Idempotency_Key="k")
            except BaseException:
                died.set()
            finally:
                connection.close()

        thread = threading.Thread(target=send)
        thread.start()
        thread.join(30)
        assert died.is_set()
    monkeypatch.undo()
    assert names(tenant) == ["alice's policy"]
    again = ask(tenant, "POST", "/policies", {"name": "Phoenix"}, Idempotency_Key="k")
    assert again.status_code == 201
    assert "Idempotency-Replayed" not in again.headers


@pytest.mark.django_db(transaction=True)
def test_the_lock_is_the_transactions(tenant: Tenancy) -> None:
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with tenant.context():
                assert begin(tenant) is None
                taken.set()
                assert done.wait(30)
        finally:
            connection.close()

    holder = threading.Thread(target=hold)
    holder.start()
    assert taken.wait(30)
    with tenant.context():
        with pytest.raises(WriteRuns):
            begin(tenant)
        assert begin(tenant, "another") is None
    done.set()
    holder.join(30)
    with tenant.context():
        assert begin(tenant) is None


# -- the whole API ------------------------------------------------------------------------------------------------

# Sent again, these do the same again and no harm, or are told apart by ids of their own.
WITHOUT = {
    "/api/v1/review": "judges, and stores nothing but its usage",
    "/api/v1/tool-gate": "judges, and stores nothing but its usage",
    "/api/v1/calls/{call_id}/turns": "a turn_id is taken once",
}


def test_every_write_of_the_api_takes_a_key() -> None:
    """Of what the API says of itself, so that an operation that is forgotten is found."""
    without = {
        f"{method.upper()} {path}"
        for path, operations in api.get_openapi_schema()["paths"].items()
        for method, operation in operations.items()
        if method not in ("get", "head") and path not in WITHOUT
        if "Idempotency-Key" not in [parameter["name"] for parameter in operation.get("parameters", [])]
    }
    assert without == set()


def test_writes_of_people_and_keys_are_done_once_too(tenant: Tenancy) -> None:
    body = {"name": "robot", "scopes": ["calls:read"]}
    first = ask(tenant, "POST", "/api-keys", body, Idempotency_Key="k")
    again = ask(tenant, "POST", "/api-keys", body, Idempotency_Key="k")
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert again.headers["Cache-Control"] == "no-store"
    path = f"/api-keys/{first.json()['id']}"
    assert ask(tenant, "DELETE", path, Idempotency_Key="d").status_code == 204
    assert ask(tenant, "DELETE", path, Idempotency_Key="d").status_code == 204


def test_the_schedule_forgets_what_nobody_asks_for_any_more(tenant: Tenancy, stranger: Tenancy) -> None:
    for tenancy in (tenant, stranger):
        with tenancy.context():
            store(tenancy, "old", now=timezone.now() - KEPT)
            store(tenancy, "new", now=timezone.now() - KEPT + timedelta(minutes=5))
    with tenant.context():
        idempotency_clear.apply()
        assert list(IdempotencyKey.objects.values_list("key", flat=True)) == ["new"]
    with stranger.context():
        assert IdempotencyKey.objects.count() == 2
