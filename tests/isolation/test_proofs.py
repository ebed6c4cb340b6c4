"""Through the real doors, with our own filters taken away: row-level security alone lets no foreign row pass.

Not on poisoned connections, not after errors inside a transaction, not across hundreds of requests that take turns on
the same connections, and not in sockets and look-ups that share a process.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from asgiref.sync import sync_to_async
from channels.testing import WebsocketCommunicator
from django.apps import apps
from django.db import DatabaseError, connection, models, transaction
from django.test import Client

from supervision.models import Call
from supervision.stream.directory import StreamDirectory
from tenants.context import tenant_context
from tenants.managers import TenantModel
from tests.factories import PASSWORD, Tenancy, call_create, tenancy_create
from tests.support.servers import DatabaseUrls

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("without_filters")]

TENANT_MODELS = [model for model in apps.get_models() if issubclass(model, TenantModel)]


class Party:
    """A tenant with a call, and every way to ask as it."""

    def __init__(self, owner: str) -> None:
        self.tenancy: Tenancy = tenancy_create(owner=owner)
        self.owner = owner
        self.secret = f"{owner}-said-this-{self.tenancy.slug[-8:]}"
        self.call = call_create(self.tenancy, customer_text=self.secret, text=self.secret)
        self.marks = (str(self.tenancy.id), str(self.call.id), str(self.tenancy.agent.id), self.secret)

    @property
    def id(self) -> UUID:
        return self.tenancy.id

    def program(self) -> Client:
        return Client(headers={"Authorization": f"Bearer {self.tenancy.api_key}"}, raise_request_exception=False)

    def person(self) -> Client:
        client = Client(raise_request_exception=False)
        assert client.login(username=self.tenancy.users[self.owner].email, password=PASSWORD)
        return client


@pytest.fixture
def alice(transactional_db: None) -> Party:
    return Party("alice")


@pytest.fixture
def charlie(transactional_db: None) -> Party:
    return Party("charlie")


@pytest.fixture(autouse=True)
def clean_connection() -> Iterator[None]:
    """Whatever a test did to this thread's connection ends with the test."""
    yield
    connection.close()


def paths(party: Party, other: Party) -> list[tuple[str, int]]:
    """What a party asks of the API, and the status it gets."""
    return [
        ("/api/v1/calls", 200),
        (f"/api/v1/calls/{party.call.id}", 200),
        (f"/api/v1/calls/{party.call.id}/turns", 200),
        (f"/api/v1/calls/{party.call.id}/timeline", 200),
        ("/api/v1/audit-events", 200),
        ("/api/v1/audit-events/export", 200),
        ("/api/v1/me", 200),
        ("/api/v1/tenant", 200),
        ("/api/v1/members", 200),
        ("/api/v1/invitations", 200),
        ("/api/v1/api-keys", 200),
        (f"/api/v1/calls/{other.call.id}", 404),
        (f"/api/v1/calls/{other.call.id}/turns", 404),
        (f"/api/v1/calls?agent_id={other.tenancy.agent.id}", 200),
    ]


def leaks(body: str, asked: str, other: Party) -> list[str]:
    """The other party's marks in an answer, but for those that the question itself named."""
    return [mark for mark in other.marks if mark in body.replace(asked, "")]


def tenants_seen() -> set[UUID]:
    """Whose rows of any table can be seen right now, by the model's manager without its filter."""
    return {
        tenant_id
        for model in TENANT_MODELS
        for tenant_id in model._default_manager.order_by().values_list("tenant_id", flat=True).distinct()
    }


# -- poisoned connections -----------------------------------------------------------------------------------------


def poison(value: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('app.tenant_id', %s, false)", [value])


def test_a_request_on_a_connection_that_somebody_left_as_a_stranger_sees_its_own_rows(
    alice: Party, charlie: Party
) -> None:
    for client in (alice.program(), alice.person()):
        for path, status in paths(alice, charlie):
            poison(str(charlie.id))
            response = client.get(path)
            body = response.getvalue().decode()
            assert response.status_code == status, path
            assert leaks(body, path, charlie) == [], path


@pytest.mark.parametrize("value", ["' OR true --", "00000000-0000-0000-0000-000000000000", "", "*", "%"])
def test_a_setting_that_names_nobody_opens_nothing(alice: Party, charlie: Party, value: str) -> None:
    client = alice.program()
    for path, status in paths(alice, charlie):
        poison(value)
        response = client.get(path)
        # A value that is no id is an error of the database; whatever the answer is, it is not a stranger's row.
        assert response.status_code in (status, 500), path
        assert leaks(response.getvalue().decode(), path, charlie) == [], path


def test_a_context_on_a_poisoned_connection_is_the_contexts_in_every_table(alice: Party, charlie: Party) -> None:
    poison(str(charlie.id))
    with alice.tenancy.context():
        assert tenants_seen() == {alice.id}
        with charlie.tenancy.context():
            assert tenants_seen() == {charlie.id}
        assert tenants_seen() == {alice.id}


def test_a_new_connection_begins_as_nobody(alice: Party, charlie: Party) -> None:
    poison(str(charlie.id))
    connection.close()
    assert tenants_seen() == set()


# -- after an exception in a transaction --------------------------------------------------------------------------


def database_error() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 / 0")


def python_error() -> None:
    raise LookupError


@pytest.mark.parametrize("fail", [database_error, python_error])
def test_after_an_exception_nobody_is_left_behind(alice: Party, charlie: Party, fail: Callable[[], None]) -> None:
    try:
        with charlie.tenancy.context():
            assert tenants_seen() == {charlie.id}
            fail()
    except (DatabaseError, LookupError):
        pass
    assert tenants_seen() == set()
    with alice.tenancy.context():
        assert tenants_seen() == {alice.id}


@pytest.mark.parametrize("fail", [database_error, python_error])
def test_after_an_exception_in_an_inner_context_the_outer_one_stands(
    alice: Party, charlie: Party, fail: Callable[[], None]
) -> None:
    with alice.tenancy.context():
        try:
            with charlie.tenancy.context():
                fail()
        except (DatabaseError, LookupError):
            pass
        assert tenants_seen() == {alice.id}
    assert tenants_seen() == set()


@pytest.mark.parametrize("fail", [database_error, python_error])
def test_after_a_savepoint_that_failed_inside_a_context_the_context_stands(
    alice: Party, charlie: Party, fail: Callable[[], None]
) -> None:
    with alice.tenancy.context():
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SELECT set_config('app.tenant_id', %s, true)", [str(charlie.id)])
                fail()
        except (DatabaseError, LookupError):
            pass
        assert tenants_seen() == {alice.id}


@pytest.mark.parametrize("fail", [database_error, python_error])
def test_after_a_request_that_failed_the_next_ones_see_their_own_rows(
    alice: Party, charlie: Party, monkeypatch: pytest.MonkeyPatch, fail: Callable[[], None]
) -> None:
    from supervision.api import calls

    with monkeypatch.context() as patch:
        patch.setattr(calls, "call_get", lambda **_: (list(Call.objects.all()), fail()))
        response = charlie.program().get(f"/api/v1/calls/{charlie.call.id}")
        assert response.status_code >= 500
        assert charlie.secret not in response.content.decode()
    assert tenants_seen() == set()
    for path, status in paths(alice, charlie):
        response = alice.program().get(path)
        assert response.status_code == status
        assert leaks(response.getvalue().decode(), path, charlie) == []


# -- four hundred requests in turns -------------------------------------------------------------------------------


def test_four_hundred_requests_that_take_turns_on_shared_connections_leak_nothing(
    alice: Party, charlie: Party, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four threads with a connection each; every request is another tenant's than the one before on its connection,
    one in nine fails in the middle, by the database or by us, and one in eleven begins on a poisoned connection."""
    from supervision.api import calls

    turn = threading.local()
    real = calls.call_get

    def call_get_or_fail(**arguments: Any) -> Any:
        found = real(**arguments)
        if turn.fail is not None:
            turn.fail()
        return found

    monkeypatch.setattr(calls, "call_get", call_get_or_fail)
    barrier = threading.Barrier(4)
    found: list[tuple[str, list[str]]] = []
    wrong: list[tuple[str, int]] = []
    failed: list[int] = []
    errors: list[BaseException] = []

    def work(number: int) -> None:
        parties = (alice, charlie)
        try:
            clients = [(party.program(), party.person() if number % 2 else party.program()) for party in parties]
            barrier.wait(timeout=60)
            for request in range(100):
                who = (number + request) % 2
                party, other = parties[who], parties[1 - who]
                questions = paths(party, other)
                path, status = questions[(request * 7 + number) % len(questions)]
                turn.fail = None
                if request % 9 == 4:
                    path, status = f"/api/v1/calls/{party.call.id}", 500
                    turn.fail = database_error if request % 2 else python_error
                if request % 11 == 5:
                    poison(str(other.id))
                response = clients[who][request % 2].get(path)
                body = response.getvalue().decode()
                found.append((path, leaks(body, path, other)))
                if status == 500:
                    failed.append(response.status_code)
                elif response.status_code != status:
                    wrong.append((path, response.status_code))
        except BaseException as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=110)
    assert errors == []
    assert len(found) == 400
    assert [entry for entry in found if entry[1]] == []
    assert wrong == []
    assert len(failed) == 44
    assert all(status >= 500 for status in failed)


# -- in one process -----------------------------------------------------------------------------------------------


async def test_sockets_that_share_a_process_get_their_own_rows(alice: Party, charlie: Party, redis_url: str) -> None:
    from mirror_saas.asgi import application

    async def listen(party: Party, other: Party) -> list[str]:
        cookie = (await sync_to_async(party.person)()).cookies["sessionid"].value
        wire = WebsocketCommunicator(
            application,
            "/ws/console",
            headers=[
                (b"host", b"localhost"),
                (b"origin", b"http://localhost"),
                (b"cookie", f"sessionid={cookie}".encode()),
            ],
        )
        connected, _ = await wire.connect(timeout=30)
        assert connected
        heard = []
        try:
            for topic in ("calls", f"call:{party.call.id}", f"call:{other.call.id}"):
                await wire.send_to(text_data=json.dumps({"type": "subscribe", "topic": topic}))
                while True:
                    text = await wire.receive_from(timeout=30)
                    message = json.loads(text)
                    if message["type"] == "update":
                        await wire.send_to(
                            text_data=json.dumps({"type": "ack", "topic": message["topic"], "n": message["n"]})
                        )
                    if message["type"] != "beat":
                        heard.append(text)
                        assert message["type"] == ("refused" if str(other.call.id) in topic else "update")
                        break
        finally:
            await wire.disconnect()
        return heard

    rounds = [(alice, charlie), (charlie, alice)] * 6
    heard = await asyncio.gather(*(listen(party, other) for party, other in rounds))
    for (party, other), texts in zip(rounds, heard, strict=True):
        whole = "".join(texts)
        assert party.call.id.hex in whole.replace("-", "")
        assert other.secret not in whole
        assert other.call.id.hex not in "".join(text for text in texts if '"refused"' not in text).replace("-", "")


async def test_look_ups_of_calls_that_share_a_process_and_a_pool_find_their_own_agent(
    alice: Party, charlie: Party, database_urls: DatabaseUrls
) -> None:
    directory = StreamDirectory(database_urls.app)
    parties = (alice, charlie)

    async def lookup(number: int) -> None:
        party, other = parties[number % 2], parties[1 - number % 2]
        found = await directory.lookup(party.tenancy.slug, party.tenancy.stream_key)
        assert found is not None
        assert (found.tenant_id, found.agent_id) == (party.id, party.tenancy.agent.id)
        assert found.signing_secret == party.tenancy.signing_secret
        assert await directory.lookup(party.tenancy.slug, other.tenancy.stream_key) is None

    try:
        for start in range(0, 200, 20):
            await asyncio.gather(*(lookup(number) for number in range(start, start + 20)))
    finally:
        await directory.aclose()


def test_every_model_really_has_lost_its_filter(alice: Party) -> None:
    # Without this, the tests above would prove our filters and not PostgreSQL's.
    for model in TENANT_MODELS:
        assert "tenant_id" not in str(model._default_manager.all().query.where)
        assert isinstance(model._default_manager.all(), models.QuerySet)


def test_these_tests_can_see_a_leak(alice: Party, charlie: Party, database_urls: DatabaseUrls) -> None:
    # The same question on a connection that row-level security does not bind sees both.
    with psycopg.connect(database_urls.admin) as admin:
        seen = {row[0] for row in admin.execute("SELECT DISTINCT tenant_id FROM supervision_call").fetchall()}
    assert {alice.id, charlie.id} <= seen
    with tenant_context(alice.id):
        assert tenants_seen() == {alice.id}
