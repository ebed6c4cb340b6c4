"""The audit log's pages."""

from __future__ import annotations

import html
import re
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.test import Client

from supervision.services.policies import policy_create
from tenants.actors import Actor, actor_context
from tenants.audit_chain import export_verify
from tenants.models import AuditEvent, Membership
from tenants.roles import Role
from tenants.services.audit import auditevent_record
from tenants.services.memberships import membership_create
from tenants.services.tenants import user_create
from tests.factories import PASSWORD, Tenancy, tenancy_create, unique
from webui.presenters.audit import Change, changes_between

pytestmark = pytest.mark.django_db


@pytest.fixture
def alice(client: Client, tenant: Tenancy) -> Client:
    client.force_login(tenant.users["alice"])
    return client


def page_of(client: Client, path: str, **query: Any) -> str:
    answer = client.get(path, query)
    assert answer.status_code == 200, (path, query)
    return html.unescape(answer.content.decode())


def shown(client: Client, **query: Any) -> list[int]:
    """The numbers of the events that the page shows, from the top."""
    return [int(seq) for seq in re.findall(r'<li id="event-(\d+)"', page_of(client, "/audit", **query))]


# -- the list ------------------------------------------------------------------------------------------------------


def test_events_stand_newest_first_with_who_did_what_to_what(alice: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    with (
        tenant.context(),
        actor_context(
            Actor(kind="user", id=tenant.users["bob"].id, label="bob@x.example", ip="203.0.113.9", user_agent="Lynx")
        ),
    ):
        policy_create(name="<b>Care</b>")
    assert shown(alice) == list(range(11, 0, -1))
    answer = alice.get("/audit")
    assert "no-store" in answer.headers["Cache-Control"]
    raw = answer.content.decode()
    assert "&lt;b&gt;Care&lt;/b&gt;" in raw
    assert "<b>Care" not in raw
    first = html.unescape(raw[raw.index('id="event-11"') : raw.index('id="event-10"')])
    for told in (
        "policy.create",
        "bob@x.example",
        "(a person)",
        "203.0.113.9",
        "Lynx",
        f"actor={tenant.users['bob'].id}",
    ):
        assert told in first, told
    assert "charlie" not in raw.lower()
    assert stranger.slug not in raw


def test_what_changed_is_shown_before_and_after_and_secrets_are_not(alice: Client, tenant: Tenancy) -> None:
    with tenant.context():
        auditevent_record(
            action="thing.update",
            object_id="t1",
            before={"name": "old", "config": {"threshold": 0.7, "same": 1}, "api_key": "canary-old"},
            after={"name": "new", "config": {"threshold": 0.8, "same": 1}, "api_key": "canary-new"},
        )
    page = page_of(alice, "/audit", action="thing.update")
    fields = re.findall(r'<th scope="row"><code>([^<]*)</code></th>\s*<td[^>]*>(.*?)</td>\s*<td[^>]*>(.*?)</td>', page)
    assert fields == [
        ("api_key", '<span class="quiet">a secret</span>', '<span class="quiet">another secret</span>'),
        ("config.threshold", "<pre>0.7</pre>", "<pre>0.8</pre>"),
        ("name", "<pre>old</pre>", "<pre>new</pre>"),
    ]
    assert "canary" not in page
    whole = page_of(alice, "/audit")
    for secret in (tenant.api_key.split("_", 2)[2], tenant.stream_key, tenant.signing_secret, "llm-secret"):
        assert secret not in whole


def test_filters_stand_in_the_url_and_narrow(alice: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    bob = tenant.users["bob"]
    with tenant.context(), actor_context(Actor(kind="user", id=bob.id, label=bob.email)):
        policy_create(name="by bob")
    assert shown(alice, action="policy.create") == [11, 6]
    assert len(shown(alice, action="membership")) == 2
    assert shown(alice, actor=str(bob.id)) == [11]
    assert shown(alice, actor="system") == list(range(10, 0, -1))
    assert shown(alice, actor=str(bob.id), action="agent") == []
    assert shown(alice, object=str(tenant.id)) == [1]
    assert shown(alice, object=str(stranger.id)) == []
    with tenant.context():
        at = AuditEvent.objects.get(seq=11).at
    minute = at.strftime("%Y-%m-%dT%H:%M")
    assert 11 in shown(alice, after=minute, before=minute)
    assert shown(alice, before=(at - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M")) == []
    page = page_of(alice, "/audit", actor=str(bob.id))
    assert f'<option value="{bob.id}" selected>{bob.email}</option>' in page
    assert "charlie" not in page.lower()


def test_somebody_who_left_can_still_be_asked_for(alice: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    bob, charlie = tenant.users["bob"], stranger.users["charlie"]
    with tenant.context():
        with actor_context(Actor(kind="user", id=bob.id, label=bob.email)):
            policy_create(name="by bob")
        Membership.objects.filter(user=bob).delete()
    assert f'<option value="{bob.id}" selected>{bob.email}</option>' in page_of(alice, "/audit", actor=str(bob.id))
    # A stranger is nobody here, not even by name.
    page = page_of(alice, "/audit", actor=str(charlie.id))
    assert "Choose one of the list." in page
    assert "charlie" not in page.lower()


def test_what_is_wrong_in_the_url_filters_nothing_and_says_why(alice: Client) -> None:
    everything = list(range(10, 0, -1))
    wrong = [
        ({"action": "DROP TABLE"}, "such as agent.create"),
        ({"action": "x" * 65}, "at most 64 characters"),
        ({"action": "\x00"}, "Null characters"),
        ({"actor": "nobody"}, "Choose one of the list."),
        ({"actor": "\x00"}, "Choose one of the list."),
        ({"object": "x" * 65}, "at most 64 characters"),
        ({"object": "a\x00"}, "Null characters"),
        ({"after": "yesterday"}, "Give a date and time."),
        ({"before": "9" * 5000}, "Give a date and time."),
        ({"after": "2026-01-02T00:00", "before": "2026-01-01T00:00"}, "Give a time after"),
    ]
    for query, told in wrong:
        assert told in page_of(alice, "/audit", **query), query
        if "after" not in query or "before" not in query:
            assert shown(alice, **query) == everything, query
    alice.cookies["tz"] = "Pacific/Auckland"
    for edge in ("0001-01-01T00:00", "9999-12-31T23:59"):
        for name in ("after", "before"):
            assert alice.get("/audit", {name: edge}).status_code == 200


def test_pages_hang_together_with_their_filters(
    alice: Client, tenant: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webui.views.audit.PAGE_ROWS", 4)
    assert shown(alice, actor="system") == [10, 9, 8, 7]
    older = re.search(r'href="(/audit\?actor=system&cursor=[^"]+)"', page_of(alice, "/audit", actor="system"))
    assert older is not None
    with tenant.context():
        auditevent_record(action="thing.create", object_id="1")
    page = page_of(alice, older.group(1))
    assert re.findall(r'<li id="event-(\d+)"', page) == ["6", "5", "4", "3"]
    assert 'href="/audit?actor=system"' in page
    for cursor in ("nonsense", "\x00", "x" * 5000):
        assert alice.get("/audit", {"cursor": cursor, "action": "agent"})["Location"] == "/audit?action=agent"


def test_the_export_is_a_link_that_a_session_may_follow(alice: Client, tenant: Tenancy) -> None:
    link = re.search(r'href="([^"]+)" download', page_of(alice, "/audit"))
    assert link is not None
    assert export_verify(alice.get(link.group(1)).getvalue().decode().splitlines()).valid  # type: ignore[attr-defined]


# -- verifying -----------------------------------------------------------------------------------------------------


def head_of(page: str) -> str:
    found = re.search(r'<code class="wrap" translate="no">(\d+:[0-9a-f]{64})</code>', page)
    assert found is not None
    return found.group(1)


def test_a_whole_log_is_called_whole_and_shows_a_head_to_keep(
    alice: Client, tenant: Tenancy, stranger: Tenancy
) -> None:
    page = page_of(alice, "/audit/verify")
    assert "Events 1 to 10, its newest, are there" in page
    head = head_of(page)
    with tenant.context():
        auditevent_record(action="thing.create", object_id="1")
    assert "Events 1 to 11" in page_of(alice, "/audit/verify", expect=head)
    charlie = Client()
    charlie.force_login(stranger.users["charlie"])
    assert "The log is not as it was written." in page_of(charlie, "/audit/verify", expect=head)


def test_a_long_log_is_checked_in_parts(alice: Client, tenant: Tenancy, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = head_of(page_of(alice, "/audit/verify"))
    monkeypatch.setattr("webui.views.audit.VERIFY_EVENTS", 4)
    page, parts = page_of(alice, "/audit/verify", expect=whole), []
    while on := re.search(r'href="(/audit/verify\?after=[^"]+)"', page):
        parts += re.findall(r"Events (\d+) to (\d+) are there", page)
        page = page_of(alice, on.group(1))
    assert parts == [("1", "4"), ("5", "8")]
    assert "The log is whole." in page
    assert head_of(page) == whole


@pytest.mark.django_db(transaction=True)
def test_a_log_that_was_touched_is_called_so(client: Client) -> None:
    tenant = tenancy_create(owner="alice")
    client.force_login(tenant.users["alice"])
    assert "The log is whole." in page_of(client, "/audit/verify")
    with psycopg.connect(str(settings.DATABASE_ADMIN_URL), dbname=connection_name()) as admin:
        admin.execute(
            "UPDATE tenants_auditevent SET actor_label = 'mallory' WHERE tenant_id = %s AND seq = 4", [tenant.id]
        )
    page = page_of(client, "/audit/verify")
    assert "The log is not as it was written." in page
    assert "Event 4:" in page
    assert "3 events before it are right" in page
    assert 'class="wrap"' not in page


def connection_name() -> str:
    from django.db import connection

    return str(connection.settings_dict["NAME"])


def test_wrong_points_are_refused_in_words(alice: Client) -> None:
    for point in (
        "x",
        "1:ab",
        "0:" + "0" * 64,
        "-1:" + "0" * 64,
        f"{2**80}:" + "0" * 64,
        "\x00",
        "1" * 5000,
        "٣:" + "0" * 64,
    ):
        page = page_of(alice, "/audit/verify", expect=point)
        assert 'id="id_expect-error"' in page or "The log is not as it was written." in page, point
        after = page_of(alice, "/audit/verify", after=point)
        assert "Begin anew." in after or "The log is not as it was written." in after, point


# -- who may -------------------------------------------------------------------------------------------------------


def test_only_who_administers_sees_the_log(client: Client, tenant: Tenancy) -> None:
    for role in (Role.EDITOR, Role.REVIEWER, Role.VIEWER):
        with tenant.context():
            user = user_create(email=f"{unique(role.value)}@x.example", password=PASSWORD)
            membership_create(user=user, role=role)
        client.force_login(user)
        for path in ("/audit", "/audit/verify"):
            assert client.get(path).status_code == 403
        assert 'href="/audit"' not in client.get("/calls").content.decode()


def test_the_log_is_read_only(alice: Client) -> None:
    for path in ("/audit", "/audit/verify"):
        for method in ("post", "put", "patch", "delete"):
            assert getattr(alice, method)(path).status_code == 405


# -- what changed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        (None, {"a": 1}, [Change("a", None, "1")]),
        ({"a": None, "b": 0}, None, [Change("b", "0", None)]),
        ({"a": None}, {"a": 1}, [Change("a", "null", "1")]),
        ({"a": ["x"]}, {"a": ["x", "y"]}, [Change("a", "x", "x\ny")]),
        (None, None, []),
        ({"a": {"b": {"c": 1, "d": 2}}}, {"a": {"b": {"c": 3, "d": 2}}}, [Change("a.b.c", "1", "3")]),
        (None, {"a": {"b": "x"}}, [Change("a.b", None, "x")]),
        ({"a": {}}, {"a": {"b": 1}}, [Change("a", "{}", '{\n  "b": 1\n}')]),
        ({"a": [1]}, {"a": [1, 2]}, [Change("a", "[\n  1\n]", "[\n  1,\n  2\n]")]),
        ({"k": "***"}, {"k": "***"}, [Change("k", "***", "***")]),
        ("no object", None, [Change("", "no object", "null")]),
        (
            {"a": {"b": {"c": {"d": {"e": 1}}}}},
            {"a": {"b": {"c": {"d": {"e": 2}}}}},
            [Change("a.b.c.d", '{\n  "e": 1\n}', '{\n  "e": 2\n}')],
        ),
    ],
)
def test_fields_that_differ(before: Any, after: Any, changes: list[Change]) -> None:
    assert list(changes_between(before, after)) == changes
