"""`manage.py member`, for operators."""

from __future__ import annotations

import io

import pytest
from django.core.management import CommandError, call_command

from tenants.models import AuditEvent, Invitation, Membership
from tenants.selectors.invitations import invitation_open
from tests.factories import Tenancy
from tests.support.mails import mails_count_anew

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def mails(monkeypatch: pytest.MonkeyPatch) -> None:
    mails_count_anew(monkeypatch)


def member(what: str, tenancy: Tenancy, *more: str) -> str:
    out = io.StringIO()
    call_command("member", what, "--tenant", tenancy.slug, *more, stdout=out)
    return out.getvalue()


def test_members_are_listed_with_their_roles(tenant: Tenancy, stranger: Tenancy) -> None:
    assert member("list", tenant).split() == [
        "owner",
        tenant.users["alice"].email,
        "viewer",
        tenant.users["bob"].email,
    ]


def test_somebody_with_an_account_is_added_changed_and_removed(tenant: Tenancy, stranger: Tenancy) -> None:
    charlie = stranger.users["charlie"]
    email = ("--email", charlie.email.upper())
    assert "is owner now" in member("add", tenant, *email, "--role", "owner")
    assert "is admin now" in member("role", tenant, *email, "--role", "admin")
    assert "no member any more" in member("remove", tenant, *email)
    with tenant.context():
        assert not Membership.objects.filter(user=charlie).exists()
        events = list(AuditEvent.objects.filter(object_label=charlie.email).order_by("seq").values_list("action"))
    assert events == [("membership.create",), ("membership.update",), ("membership.remove",)]
    with stranger.context():
        assert Membership.objects.get(user=charlie).role == "owner"


def test_an_operator_invites(tenant: Tenancy) -> None:
    told = member("invite", tenant, "--email", "dora@x.example", "--role", "owner")
    assert invitation_open(token=told.strip().rsplit("/", 1)[1]).role == "owner"
    with tenant.context():
        assert Invitation.objects.get().invited_by_kind == "system"


@pytest.mark.parametrize(
    ("what", "more", "said"),
    [
        ("add", [], "--email is missing"),
        ("add", ["--email", "alice"], "--role is missing"),
        ("add", ["--email", "nobody@x.example", "--role", "viewer"], "has no account"),
        ("add", ["--email", "ALICE", "--role", "viewer"], "is a member already"),
        ("role", ["--email", "nobody@x.example", "--role", "viewer"], "is no member of this tenant"),
        ("role", ["--email", "ALICE", "--role", "viewer"], "Make somebody else an owner first"),
        ("remove", ["--email", "ALICE"], "Make somebody else an owner first"),
        ("invite", ["--email", "x", "--role", "viewer"], "--email: Give an email"),
        ("invite", ["--email", "ALICE", "--role", "viewer"], "is a member already"),
    ],
)
def test_what_cannot_be_done_is_said(tenant: Tenancy, what: str, more: list[str], said: str) -> None:
    with pytest.raises(CommandError, match=said):
        member(what, tenant, *(tenant.users["alice"].email if word == "ALICE" else word for word in more))


def test_a_tenant_that_is_none_is_said() -> None:
    with pytest.raises(CommandError, match="no tenant 'nowhere'"):
        call_command("member", "list", "--tenant", "nowhere")
