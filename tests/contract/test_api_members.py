"""`/members` and `/invitations`: shapes, refusals, and what a key and a session may do."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from django.test import Client

from mirror_saas.ids import uuid7
from tenants.mail_limits import ADDRESS_OF_TENANT
from tenants.models import Invitation, Membership
from tenants.roles import Role
from tenants.selectors.invitations import invitation_open
from tenants.services.api_keys import api_key_create
from tenants.services.memberships import membership_create
from tenants.services.tenants import user_create
from tests.factories import PASSWORD, Tenancy, unique
from tests.support.mails import mails_count_anew

pytestmark = pytest.mark.django_db

API = "/api/v1"


@pytest.fixture(autouse=True)
def mails(monkeypatch: pytest.MonkeyPatch) -> None:
    mails_count_anew(monkeypatch)


def with_key(tenancy: Tenancy, *scopes: str) -> Client:
    key = tenancy.api_key
    if scopes:
        with tenancy.context():
            key = api_key_create(name="some", scopes=scopes).key
    return Client(headers={"Authorization": f"Bearer {key}"})


def signed_in(tenancy: Tenancy, name: str, *, recently: bool = True) -> Client:
    """A session of this person, who proved now or an hour ago who they are."""
    client = Client()
    user = tenancy.users[name]
    client.force_login(user)
    session = client.session
    session["account_authentication_methods"] = [{"method": "password", "at": time.time() - (0 if recently else 3600)}]
    session["account_authentication_methods_user"] = str(user.pk)
    session.save()
    return client


def send(client: Client, method: str, path: str, body: Any = None) -> Any:
    return client.generic(
        method, f"{API}{path}", json.dumps(body) if body is not None else "", content_type="application/json"
    )


def member_of(tenancy: Tenancy, name: str) -> Membership:
    with tenancy.context():
        return Membership.objects.get(user=tenancy.users[name])


# -- members --------------------------------------------------------------------------------------------------------


def test_members_are_listed_with_their_people(tenant: Tenancy, stranger: Tenancy) -> None:
    first = send(with_key(tenant), "GET", "/members?limit=1").json()
    second = send(with_key(tenant), "GET", f"/members?limit=1&cursor={first['next']}").json()
    assert second["next"] is None
    bob, alice = first["items"][0], second["items"][0]
    assert bob == {
        "id": str(member_of(tenant, "bob").id),
        "user_id": str(tenant.users["bob"].id),
        "email": tenant.users["bob"].email,
        "name": "Bob",
        "role": "viewer",
        "created_at": bob["created_at"],
    }
    assert (alice["email"], alice["role"]) == (tenant.users["alice"].email, "owner")
    assert send(with_key(tenant), "GET", f"/members/{bob['id']}").json() == bob
    assert send(with_key(tenant), "GET", "/members?cursor=x").json()["errors"].keys() == {"cursor"}


def test_a_key_changes_and_removes_members_and_touches_no_owner(tenant: Tenancy, stranger: Tenancy) -> None:
    key = with_key(tenant, "admin")
    bob, alice = member_of(tenant, "bob"), member_of(tenant, "alice")
    assert send(key, "PATCH", f"/members/{bob.id}", {"role": "admin"}).json()["role"] == "admin"
    for method, path, body in (
        ("PATCH", f"/members/{bob.id}", {"role": "owner"}),
        ("PATCH", f"/members/{alice.id}", {"role": "viewer"}),
        ("DELETE", f"/members/{alice.id}", None),
        ("POST", "/invitations", {"email": "new@x.example", "role": "owner"}),
    ):
        refused = send(key, method, path, body)
        assert refused.status_code == 403
        assert refused.json()["detail"].startswith("This needs the capability owners:manage.")
    assert send(key, "DELETE", f"/members/{bob.id}").status_code == 204
    assert send(key, "GET", f"/members/{bob.id}").status_code == 404
    assert member_of(tenant, "alice").role == "owner"


def test_the_last_owner_stays(tenant: Tenancy) -> None:
    alice = member_of(tenant, "alice")
    session = signed_in(tenant, "alice")
    for method, body in (("PATCH", {"role": "admin"}), ("DELETE", None)):
        refused = send(session, method, f"/members/{alice.id}", body)
        assert refused.status_code == 409
        assert "Make somebody else an owner first." in refused.json()["detail"]


@pytest.mark.parametrize("body", [{}, {"role": "king"}, {"role": None}, {"role": "viewer", "email": "x"}, [], "x"])
def test_what_is_no_role_is_refused_by_name(tenant: Tenancy, body: Any) -> None:
    refused = send(with_key(tenant), "PATCH", f"/members/{member_of(tenant, 'bob').id}", body)
    assert refused.status_code == 422
    assert refused.json()["errors"]
    assert member_of(tenant, "bob").role == "viewer"


def test_a_session_needs_a_recent_sign_in_for_what_is_dangerous(tenant: Tenancy) -> None:
    bob = member_of(tenant, "bob")
    stale = signed_in(tenant, "alice", recently=False)
    for method, path, body in (
        ("PATCH", f"/members/{bob.id}", {"role": "admin"}),
        ("DELETE", f"/members/{bob.id}", None),
        ("POST", "/invitations", {"email": "new@x.example", "role": "owner"}),
    ):
        refused = send(stale, method, path, body)
        assert refused.status_code == 403
        assert "recent sign-in" in refused.json()["detail"]
    assert member_of(tenant, "bob").role == "viewer"
    # What is not dangerous goes on.
    assert send(stale, "POST", "/invitations", {"email": "new@x.example", "role": "viewer"}).status_code == 201
    assert send(signed_in(tenant, "alice"), "PATCH", f"/members/{bob.id}", {"role": "owner"}).status_code == 200


def test_foreign_and_missing_members_are_the_same(tenant: Tenancy, stranger: Tenancy) -> None:
    theirs = member_of(stranger, "charlie").id
    for method, body in (("GET", None), ("PATCH", {"role": "viewer"}), ("DELETE", None)):
        foreign = send(with_key(tenant), method, f"/members/{theirs}", body)
        missing = send(with_key(tenant), method, f"/members/{uuid7()}", body)
        assert foreign.status_code == missing.status_code == 404
        assert foreign.json()["detail"] == missing.json()["detail"]
    assert "charlie" not in send(with_key(tenant), "GET", "/members").content.decode()
    assert member_of(stranger, "charlie").role == "owner"


def test_a_removed_member_is_nobody_at_once(tenant: Tenancy) -> None:
    bob = signed_in(tenant, "bob")
    assert send(bob, "GET", "/calls").status_code == 200
    send(with_key(tenant), "DELETE", f"/members/{member_of(tenant, 'bob').id}")
    assert send(bob, "GET", "/calls").status_code == 401
    assert send(bob, "GET", "/me").status_code == 401


def test_a_role_that_was_changed_counts_at_once(tenant: Tenancy) -> None:
    bob = signed_in(tenant, "bob")
    assert send(bob, "GET", "/members").status_code == 403
    send(with_key(tenant), "PATCH", f"/members/{member_of(tenant, 'bob').id}", {"role": "admin"})
    assert send(bob, "GET", "/members").status_code == 200


# -- invitations ----------------------------------------------------------------------------------------------------


def test_an_invitation_is_made_and_its_link_shown_once(tenant: Tenancy, stranger: Tenancy) -> None:
    key = with_key(tenant)
    answer = send(key, "POST", "/invitations", {"email": "Dora@X.example", "role": "editor"})
    assert answer.status_code == 201
    assert answer.headers["Cache-Control"] == "no-store"
    made = answer.json()
    link = made.pop("link")
    assert invitation_open(token=link.rsplit("/", 1)[1]).tenant == tenant.tenant
    assert (made["email"], made["role"], made["state"], made["mail_state"]) == (
        "dora@x.example",
        "editor",
        "pending",
        "waiting",
    )
    assert made["invited_by"] == "the API key tests"
    assert send(key, "GET", f"/invitations/{made['id']}").json() == made
    assert send(key, "GET", "/invitations").json() == {"items": [made], "next": None}
    everything = send(key, "GET", "/invitations").content.decode() + send(key, "GET", "/audit-events").content.decode()
    assert link.rsplit("/", 1)[1] not in everything
    assert send(with_key(stranger), "GET", "/invitations").json()["items"] == []

    again = send(key, "POST", f"/invitations/{made['id']}/resend").json()
    assert again["link"] != link
    assert send(key, "DELETE", f"/invitations/{made['id']}").status_code == 204
    assert send(key, "DELETE", f"/invitations/{made['id']}").status_code == 204
    assert send(key, "GET", f"/invitations/{made['id']}").json()["state"] == "revoked"
    assert send(key, "GET", "/invitations?open=true").json()["items"] == []
    closed = send(key, "POST", f"/invitations/{made['id']}/resend")
    assert (closed.status_code, "was revoked" in closed.json()["detail"]) == (409, True)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"email": "dora", "role": "viewer"}, "email"),
        ({"email": "", "role": "viewer"}, "email"),
        ({"email": "a\u0000@x.example", "role": "viewer"}, "email"),
        ({"email": "x" * 300 + "@x.example", "role": "viewer"}, "email"),
        ({"email": 5, "role": "viewer"}, "email"),
        ({"email": "dora@x.example", "role": "king"}, "role"),
        ({"email": "dora@x.example"}, "role"),
        ({"email": "dora@x.example", "role": "viewer", "tenant_id": "x"}, "tenant_id"),
    ],
)
def test_what_cannot_be_invited_is_refused_at_its_field(tenant: Tenancy, body: Any, field: str) -> None:
    refused = send(with_key(tenant), "POST", "/invitations", body)
    assert refused.status_code == 422, refused.content
    assert list(refused.json()["errors"]) == [field]
    with tenant.context():
        assert not Invitation.objects.exists()


def test_members_and_the_invited_are_not_invited_again(tenant: Tenancy) -> None:
    key = with_key(tenant)
    member = send(key, "POST", "/invitations", {"email": tenant.users["bob"].email, "role": "viewer"})
    assert member.json()["errors"]["email"] == [f"{tenant.users['bob'].email} is a member already."]
    assert send(key, "POST", "/invitations", {"email": "dora@x.example", "role": "viewer"}).status_code == 201
    twice = send(key, "POST", "/invitations", {"email": "DORA@x.example", "role": "admin"})
    assert twice.status_code == 422
    assert "is invited already" in twice.json()["errors"]["email"][0]


def test_too_many_mails_are_429_with_a_time_to_wait(tenant: Tenancy) -> None:
    key = with_key(tenant)
    made = send(key, "POST", "/invitations", {"email": f"{unique('d')}@x.example", "role": "viewer"}).json()
    for _ in range(ADDRESS_OF_TENANT.amount - 1):
        assert send(key, "POST", f"/invitations/{made['id']}/resend").status_code == 200
    refused = send(key, "POST", f"/invitations/{made['id']}/resend")
    assert refused.status_code == 429
    assert 0 < int(refused.headers["Retry-After"]) <= 3600
    assert refused.json()["title"] == "Too Many Requests"


def test_foreign_and_missing_invitations_are_the_same(tenant: Tenancy, stranger: Tenancy) -> None:
    theirs = send(with_key(stranger), "POST", "/invitations", {"email": "d@x.example", "role": "viewer"}).json()["id"]
    for method, end in (("GET", ""), ("DELETE", ""), ("POST", "/resend")):
        foreign = send(with_key(tenant), method, f"/invitations/{theirs}{end}")
        missing = send(with_key(tenant), method, f"/invitations/{uuid7()}{end}")
        assert foreign.status_code == missing.status_code == 404
        assert foreign.json()["detail"] == missing.json()["detail"]
    assert send(with_key(stranger), "GET", f"/invitations/{theirs}").json()["state"] == "pending"


@pytest.mark.parametrize("role", [Role.EDITOR, Role.REVIEWER, Role.VIEWER])
def test_who_does_not_administer_sees_and_changes_nobody(tenant: Tenancy, role: Role) -> None:
    user = user_create(email=f"{unique('x')}@x.example", password=PASSWORD)
    with tenant.context():
        membership_create(user=user, role=role)
    client = Client()
    client.force_login(user)
    bob = member_of(tenant, "bob").id
    for method, path, body in (
        ("GET", "/members", None),
        ("GET", f"/members/{bob}", None),
        ("PATCH", f"/members/{bob}", {"role": "viewer"}),
        ("DELETE", f"/members/{bob}", None),
        ("GET", "/invitations", None),
        ("POST", "/invitations", {"email": "d@x.example", "role": "viewer"}),
    ):
        answer = send(client, method, path, body)
        assert answer.status_code == 403, path
        assert "alice" not in answer.content.decode()
