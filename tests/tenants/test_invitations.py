"""Invitations: who may send them, what their links open, what the mail says, and what happens at the same moment."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from celery import Task
from django.core import mail
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from mirror_saas.env import MailServer
from mirror_saas.errors import Conflict, InvalidInput
from mirror_saas.ids import uuid7
from tenants.actors import Actor, actor_context
from tenants.mail_limits import ADDRESS, ADDRESS_OF_TENANT, TooManyMails, mail_take
from tenants.models import ApiKey, AuditEvent, Invitation, Membership, User
from tenants.roles import ALL_SCOPES, ROLE_CAPABILITIES, CapabilityMissing, Role
from tenants.selectors.invitations import (
    InvitationGone,
    InvitationNotFound,
    invitation_get,
    invitation_list,
    invitation_open,
)
from tenants.services.api_keys import api_key_create, api_key_revoke
from tenants.services.invitations import (
    AddressUnproven,
    InvitationClosed,
    InvitationOfAnother,
    NewInvitation,
    invitation_accept,
    invitation_accept_new,
    invitation_create,
    invitation_link,
    invitation_mail_send,
    invitation_mark,
    invitation_resend,
    invitation_revoke,
)
from tenants.services.memberships import membership_create, membership_remove, membership_role_change
from tenants.services.tenants import user_create
from tenants.tasks import MAIL_RETRIES, invitation_send
from tests.factories import PASSWORD, Tenancy, unique
from tests.tenants.test_members import OWNER, join, newest_event, together

GOOD = "correct horse battery"


def address(name: str = "dora") -> str:
    return f"{unique(name)}@x.example"


def token_of(link: str) -> str:
    return link.rsplit("/", 1)[1]


def invite(
    tenancy: Tenancy,
    email: str | None = None,
    *,
    role: Role = Role.EDITOR,
    capabilities: frozenset[str] = OWNER,
    actor: Actor | None = None,
) -> NewInvitation:
    """An invitation from the tenancy's owner, or another actor."""
    owner = next(iter(tenancy.users.values()))
    with actor_context(actor or Actor(kind="user", id=owner.id, label=owner.email)), tenancy.context():
        return invitation_create(email=address() if email is None else email, role=role, capabilities=capabilities)


def mailed(made: NewInvitation) -> str:
    """The token of the link that goes by mail."""
    return token_of(invitation_link(made.invitation, proven=True))


def accept_new(token: str, **changed: Any) -> Any:
    return invitation_accept_new(**{"token": token, "user_id": uuid7(), "name": "Dora", "password": GOOD, **changed})


# -- sending --------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_an_invitation_is_kept_without_its_token(tenant: Tenancy, stranger: Tenancy) -> None:
    made = invite(tenant, "  Dora.New@X.example ")
    row = made.invitation
    assert (row.email, row.role, row.invited_by_id) == ("dora.new@x.example", "editor", tenant.users["alice"].id)
    assert row.expires_at - row.created_at == timedelta(days=7)
    copied, proven = token_of(made.link), mailed(made)
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", copied)
    assert re.fullmatch(re.escape(copied) + r"\.[A-Za-z0-9_-]{43}", proven)
    with tenant.context():
        stored = Invitation.objects.values().get(id=row.id)
    kept = " ".join(bytes(value).hex() if isinstance(value, memoryview) else str(value) for value in stored.values())
    for part in proven.split("."):
        assert part not in kept
        assert part.encode().hex() not in kept
    event = newest_event(tenant)
    assert (event.action, event.object_label) == ("invitation.create", "dora.new@x.example")
    assert "token" not in (event.after or "")
    with stranger.context():
        assert invitation_list().items == []


@pytest.mark.django_db
@pytest.mark.parametrize(
    "email",
    ["", "dora", "a@", "@x.example", "a b@x.example", "a@x.example\nBcc: b@x.example", "a" * 250 + "@x.example"],
)
def test_what_is_no_address_is_refused_at_its_field(tenant: Tenancy, email: str) -> None:
    with pytest.raises(InvalidInput) as error:
        invite(tenant, email)
    assert error.value.field == "email"


@pytest.mark.django_db
@pytest.mark.parametrize("email", ["dörà@x.example", "a@İx.example", "a@x.example\u200b"])
def test_an_address_that_two_programs_may_read_differently_is_refused(tenant: Tenancy, email: str) -> None:
    with pytest.raises(InvalidInput) as error:
        invite(tenant, email)
    assert error.value.field == "email"


@pytest.mark.django_db
def test_a_member_is_not_invited_and_nobody_twice(tenant: Tenancy, stranger: Tenancy) -> None:
    with pytest.raises(InvalidInput, match="is a member already") as error:
        invite(tenant, tenant.users["bob"].email.upper())
    assert error.value.field == "email"
    email = address()
    invite(tenant, email)
    with pytest.raises(InvalidInput, match="is invited already"):
        invite(tenant, email)
    # Somebody else's members and invitations are nothing to us.
    invite(stranger, email)
    invite(stranger, tenant.users["bob"].email)


@pytest.mark.django_db
def test_nobody_invites_to_more_than_they_may(tenant: Tenancy) -> None:
    for capabilities, role in (
        (ROLE_CAPABILITIES["admin"], Role.OWNER),
        (ALL_SCOPES, Role.OWNER),
        (ROLE_CAPABILITIES["editor"], Role.VIEWER),
        (frozenset(), Role.VIEWER),
    ):
        with pytest.raises(CapabilityMissing):
            invite(tenant, role=role, capabilities=capabilities)
    invite(tenant, role=Role.OWNER, capabilities=OWNER)
    invite(tenant, role=Role.ADMIN, capabilities=frozenset({"admin"}))


@pytest.mark.django_db
def test_an_expired_invitation_makes_room_for_a_new_one(tenant: Tenancy) -> None:
    email = address()
    old = invite(tenant, email)
    with tenant.context():
        Invitation.objects.filter(id=old.invitation.id).update(expires_at=timezone.now())
    new = invite(tenant, email)
    with tenant.context():
        assert invitation_get(invitation_id=old.invitation.id).state == "revoked"
        assert invitation_get(invitation_id=new.invitation.id).state == "pending"


@pytest.mark.django_db
def test_sending_again_kills_the_old_link_and_revoking_the_new_one(tenant: Tenancy, stranger: Tenancy) -> None:
    made = invite(tenant)
    old = mailed(made)
    assert invitation_open(token=old).tenant == tenant.tenant
    with tenant.context():
        again = invitation_resend(invitation_id=made.invitation.id, capabilities=OWNER)
    with pytest.raises(InvitationGone):
        invitation_open(token=old)
    new = mailed(again)
    assert invitation_open(token=new).proven
    with stranger.context():
        for attempt in (invitation_resend, invitation_revoke):
            with pytest.raises(InvitationNotFound):
                attempt(invitation_id=made.invitation.id, capabilities=OWNER)
    with tenant.context():
        invitation_revoke(invitation_id=made.invitation.id, capabilities=OWNER)
        seq = newest_event(tenant).seq
        invitation_revoke(invitation_id=made.invitation.id, capabilities=OWNER)
        assert newest_event(tenant).seq == seq
        with pytest.raises(InvitationClosed, match="was revoked"):
            invitation_resend(invitation_id=made.invitation.id, capabilities=OWNER)
    with pytest.raises(InvitationGone):
        invitation_open(token=new)


@pytest.mark.django_db
def test_an_owners_invitation_is_the_owners_business(tenant: Tenancy) -> None:
    made = invite(tenant, role=Role.OWNER)
    with tenant.context():
        for attempt in (invitation_resend, invitation_revoke):
            with pytest.raises(CapabilityMissing):
                attempt(invitation_id=made.invitation.id, capabilities=ROLE_CAPABILITIES["admin"])


@pytest.mark.django_db
def test_mails_to_one_address_are_few(tenant: Tenancy, stranger: Tenancy) -> None:
    made = invite(tenant)
    with tenant.context():
        for _ in range(ADDRESS_OF_TENANT.amount - 1):
            invitation_resend(invitation_id=made.invitation.id, capabilities=OWNER)
        nonce = bytes(Invitation.objects.get(id=made.invitation.id).token_nonce)
        with pytest.raises(TooManyMails, match=r"several mails within an hour\. Try again in \d+ minutes?\.") as error:
            invitation_resend(invitation_id=made.invitation.id, capabilities=OWNER)
        assert 0 < error.value.retry_after_s <= 3600
        # The link that was mailed last still works.
        assert bytes(Invitation.objects.get(id=made.invitation.id).token_nonce) == nonce
    mail_take(tenant_id=stranger.id, email=made.invitation.email)


@pytest.mark.django_db
def test_mails_are_counted_over_all_nodes_and_here_while_valkey_is_down(
    redis_url: str, tenant: Tenancy, stranger: Tenancy, settings: Any
) -> None:
    email = address()
    for _ in range(ADDRESS_OF_TENANT.amount):
        mail_take(tenant_id=tenant.id, email=email)
    with pytest.raises(TooManyMails):
        mail_take(tenant_id=tenant.id, email=email.upper())
    mail_take(tenant_id=stranger.id, email=email)
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    for _ in range(ADDRESS_OF_TENANT.amount):
        mail_take(tenant_id=tenant.id, email=email)
    with pytest.raises(TooManyMails):
        mail_take(tenant_id=tenant.id, email=email)


@pytest.mark.django_db
def test_nobodys_mailbox_is_flooded_by_many_tenants() -> None:
    email = address()
    for _ in range(ADDRESS.amount):
        mail_take(tenant_id=uuid7(), email=email)
    with pytest.raises(TooManyMails, match="many mails today"):
        mail_take(tenant_id=uuid7(), email=email)
    mail_take(tenant_id=uuid7(), email=address())


# -- accepting ------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_new_person_joins_with_a_name_and_a_password(tenant: Tenancy, stranger: Tenancy) -> None:
    made = invite(tenant)
    token = mailed(made)
    opened = invitation_open(token=token)
    assert (opened.tenant, opened.role, opened.proven, opened.has_account) == (tenant.tenant, "editor", True, False)
    user_id = uuid7()
    user, joined = accept_new(token, user_id=user_id, name=" Dora ")
    assert (user.id, user.email, user.name, joined) == (user_id, made.invitation.email, "Dora", tenant.tenant)
    assert User.objects.get(id=user_id).check_password(GOOD)
    with tenant.context():
        assert Membership.objects.get(user=user).role == "editor"
        assert invitation_get(invitation_id=made.invitation.id).state == "accepted"
        actions = list(AuditEvent.objects.order_by("-seq").values_list("action", flat=True)[:2])
    assert actions == ["membership.create", "invitation.accept"]
    with stranger.context():
        assert not Membership.objects.filter(user=user).exists()
    with pytest.raises(InvitationGone):
        accept_new(token)
    with tenant.context(), pytest.raises(InvitationClosed, match="was accepted"):
        invitation_revoke(invitation_id=made.invitation.id, capabilities=OWNER)


@pytest.mark.django_db
@pytest.mark.parametrize("password", ["short", "correct", "passwordpassword"[:8], "dora@x.example"])
def test_a_weak_password_makes_no_account(tenant: Tenancy, password: str) -> None:
    made = invite(tenant, "dora@x.example")
    with pytest.raises(ValidationError) as error:
        accept_new(mailed(made), password=password)
    assert list(error.value.message_dict) == ["password"]
    assert not User.objects.filter(email="dora@x.example").exists()
    assert invitation_open(token=mailed(made)).email == "dora@x.example"


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["", "  ", "a\x00b", "a\nb", "x" * 201])
def test_a_name_that_cannot_be_shown_makes_no_account(tenant: Tenancy, name: str) -> None:
    made = invite(tenant)
    with pytest.raises(ValidationError) as error:
        accept_new(mailed(made), name=name)
    assert list(error.value.message_dict) == ["name"]


@pytest.mark.django_db
def test_somebody_with_an_account_joins_as_themselves_only(tenant: Tenancy, stranger: Tenancy) -> None:
    charlie, bob = stranger.users["charlie"], tenant.users["bob"]
    made = invite(tenant, charlie.email, role=Role.ADMIN)
    token = mailed(made)
    assert invitation_open(token=token).has_account
    with pytest.raises(InvitationOfAnother):
        invitation_accept(token=token, user=bob)
    with pytest.raises(ValidationError, match="account with this email already"):
        accept_new(token)
    assert invitation_accept(token=token, user=charlie) == tenant.tenant
    with tenant.context():
        assert Membership.objects.get(user=charlie).role == "admin"
    with stranger.context():
        assert Membership.objects.get(user=charlie).role == "owner"
    with pytest.raises(InvitationGone):
        invitation_accept(token=token, user=charlie)


@pytest.mark.django_db
def test_who_became_a_member_meanwhile_keeps_their_role(tenant: Tenancy, stranger: Tenancy) -> None:
    charlie = stranger.users["charlie"]
    made = invite(tenant, charlie.email, role=Role.VIEWER)
    with tenant.context():
        membership_create(user=charlie, role=Role.OWNER)
        with pytest.raises(Conflict, match="is a member already"):
            invitation_resend(invitation_id=made.invitation.id, capabilities=OWNER)
    invitation_accept(token=mailed(made), user=charlie)
    with tenant.context():
        assert Membership.objects.get(user=charlie).role == "owner"
        assert invitation_get(invitation_id=made.invitation.id).state == "accepted"


@pytest.mark.django_db
def test_tokens_that_open_nothing_look_alike(tenant: Tenancy, stranger: Tenancy) -> None:
    used, revoked, expired, good = (invite(tenant) for _ in range(4))
    accept_new(mailed(used))
    with tenant.context():
        invitation_revoke(invitation_id=revoked.invitation.id, capabilities=OWNER)
        Invitation.objects.filter(id=expired.invitation.id).update(expires_at=timezone.now())
    secret, proof = mailed(good).split(".")
    other_proof = mailed(invite(stranger)).split(".")[1]
    tokens = [
        *(mailed(each) for each in (used, revoked, expired)),
        "A" * 43,
        f"{secret}.{other_proof}",
        f"{secret}.",
        f"{secret}.{proof}.{proof}",
        proof,
        f"{proof}.{secret}",
        secret[:-1],
        f"{secret}\n",
        "",
        "../../etc/passwd",
        "\x00" * 43,
        str(good.invitation.id),
    ]
    told = set()
    for token in tokens:
        for attempt in (
            lambda token=token: invitation_open(token=token),
            lambda token=token: accept_new(token),
            lambda token=token: invitation_accept(token=token, user=tenant.users["bob"]),
        ):
            with pytest.raises(InvitationGone) as error:
                attempt()
            told.add(str(error.value))
    assert len(told) == 1
    assert invitation_open(token=mailed(good)).email == good.invitation.email


@pytest.mark.django_db
def test_a_copied_link_makes_no_account_where_mail_can_prove_the_address(
    tenant: Tenancy, stranger: Tenancy, settings: Any
) -> None:
    """Whoever invites an address and copies the link does not read its mail."""
    import dataclasses

    made = invite(tenant)
    settings.MIRROR = dataclasses.replace(
        settings.MIRROR, email=MailServer(host="mail.example", port=587, security="starttls")
    )
    assert not invitation_open(token=token_of(made.link)).proven
    with pytest.raises(AddressUnproven):
        accept_new(token_of(made.link))
    assert not User.objects.filter(email=made.invitation.email).exists()
    # An account proves itself by its password.
    theirs = invite(tenant, stranger.users["charlie"].email)
    invitation_accept(token=token_of(theirs.link), user=stranger.users["charlie"])
    accept_new(mailed(made))


@pytest.mark.django_db
def test_without_a_mail_server_the_copied_link_does(tenant: Tenancy) -> None:
    made = invite(tenant)
    user, _ = accept_new(token_of(made.link))
    assert user.email == made.invitation.email


# -- what becomes of it when the inviter changes -----------------------------------------------------------------------


@pytest.mark.django_db
def test_who_loses_the_right_leaves_void_invitations(tenant: Tenancy) -> None:
    admin = join(tenant, Role.ADMIN)
    actor = Actor(kind="user", id=admin.user_id, label="an admin")
    made = invite(tenant, capabilities=ROLE_CAPABILITIES["admin"], actor=actor)
    state = lambda: _state(tenant, made)  # noqa: E731
    assert state() == "pending"
    with tenant.context():
        membership_role_change(membership_id=admin.id, role=Role.EDITOR, capabilities=OWNER)
    assert state() == "void"
    with pytest.raises(InvitationGone):
        accept_new(mailed(made))
    with tenant.context():
        membership_role_change(membership_id=admin.id, role=Role.ADMIN, capabilities=OWNER)
    assert state() == "pending"
    with tenant.context():
        membership_remove(membership_id=admin.id, capabilities=OWNER)
    assert state() == "void"
    with pytest.raises(InvitationGone):
        invitation_open(token=mailed(made))
    # Somebody else makes it theirs.
    alice = tenant.users["alice"]
    with actor_context(Actor(kind="user", id=alice.id, label=alice.email)), tenant.context():
        again = invitation_resend(invitation_id=made.invitation.id, capabilities=OWNER)
    assert state() == "pending"
    accept_new(mailed(again))


def _state(tenancy: Tenancy, made: NewInvitation) -> str:
    with tenancy.context():
        return invitation_get(invitation_id=made.invitation.id).state


@pytest.mark.django_db
def test_an_owner_who_is_one_no_more_has_made_no_owner(tenant: Tenancy) -> None:
    made = invite(tenant, role=Role.OWNER)
    other = invite(tenant, role=Role.ADMIN)
    bob = tenant.users["bob"]
    with tenant.context():
        membership_create(user=bob, role=Role.OWNER)
        membership_create(user=tenant.users["alice"], role=Role.ADMIN)
    assert (_state(tenant, made), _state(tenant, other)) == ("void", "pending")
    with pytest.raises(InvitationGone):
        accept_new(mailed(made))


@pytest.mark.django_db
def test_a_revoked_key_takes_its_invitations_along_and_an_expired_one_does_not(tenant: Tenancy) -> None:
    with tenant.context():
        keys = [api_key_create(name=name, scopes=["admin"]).api_key for name in ("provisioning", "stolen")]
    made = [
        invite(tenant, capabilities=frozenset({"admin"}), actor=Actor(kind="api_key", id=key.id, label=key.name))
        for key in keys
    ]
    with tenant.context():
        assert invitation_get(invitation_id=made[0].invitation.id).invited_by == "the API key provisioning"
        ApiKey.objects.filter(id=keys[0].id).update(expires_at=timezone.now())
        api_key_revoke(api_key_id=keys[1].id)
    assert [_state(tenant, each) for each in made] == ["pending", "void"]


@pytest.mark.django_db
def test_an_account_that_is_deleted_has_invited_nobody(tenant: Tenancy) -> None:
    admin = join(tenant, Role.ADMIN)
    made = invite(tenant, actor=Actor(kind="user", id=admin.user_id, label="an admin"))
    User.objects.get(id=admin.user_id).delete()
    with tenant.context():
        view = invitation_get(invitation_id=made.invitation.id)
    assert (view.state, view.invited_by) == ("void", "a deleted account")


# -- the mail -------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_the_mail_is_sent_by_a_task_that_is_told_no_token(
    tenant: Tenancy, stranger: Tenancy, monkeypatch: pytest.MonkeyPatch, django_capture_on_commit_callbacks: Any
) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(
        Task,
        "apply_async",
        lambda self, args=None, kwargs=None, **options: sent.append((args, kwargs, options)),
    )
    with django_capture_on_commit_callbacks(execute=True):
        made = invite(tenant)
    [(args, kwargs, options)] = sent
    assert options["headers"]["mirror_tenant"] == str(tenant.id)
    message = repr((args, kwargs, options))
    for part in mailed(made).split("."):
        assert part not in message
    assert args == (str(made.invitation.id), invitation_mark(made.invitation))

    with stranger.context():
        invitation_send.apply(args)
    assert mail.outbox == []
    with tenant.context():
        invitation_send.apply(args)
        [message] = mail.outbox
        assert message.to == [made.invitation.email]
        assert message.subject == "Join Alice's tenant on Mirror"
        [(html, kind)] = message.alternatives
        link = invitation_link(made.invitation, proven=True)
        assert kind == "text/html"
        assert link in message.body
        assert f'href="{link}"' in html
        assert tenant.users["alice"].email in message.body
        assert invitation_get(invitation_id=made.invitation.id).invitation.mail_state == "sent"
        # A message that is delivered twice is one mail.
        invitation_send.apply(args)
    assert len(mail.outbox) == 1


@pytest.mark.django_db
def test_what_was_replaced_or_revoked_is_not_mailed(tenant: Tenancy) -> None:
    made, gone = invite(tenant), invite(tenant)
    old_mark = invitation_mark(made.invitation)
    with tenant.context():
        invitation_resend(invitation_id=made.invitation.id, capabilities=OWNER)
        invitation_revoke(invitation_id=gone.invitation.id, capabilities=OWNER)
    for invitation, mark in ((made.invitation, old_mark), (gone.invitation, invitation_mark(gone.invitation))):
        invitation_mail_send(tenant_id=tenant.id, invitation_id=invitation.id, mark=mark)
    assert mail.outbox == []


@pytest.mark.django_db
def test_a_tenants_name_is_text_in_the_mail(tenant: Tenancy) -> None:
    from tenants.models import Tenant

    with tenant.context():
        Tenant.objects.update(name='<a href="https://evil.example">Acme</a>\r\nBcc: x@evil.example')
    made = invite(tenant)
    invitation_mail_send(tenant_id=tenant.id, invitation_id=made.invitation.id, mark=invitation_mark(made.invitation))
    [message] = mail.outbox
    assert "\n" not in message.subject
    assert message.recipients() == [made.invitation.email]
    assert '<a href="https://evil.example"' not in message.alternatives[0][0]


@pytest.mark.django_db
def test_another_secret_key_is_told_and_no_dead_link_is_mailed(
    tenant: Tenancy, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    made = invite(tenant)
    mark = invitation_mark(made.invitation)
    settings.SECRET_KEY = "another" * 8
    invitation_mail_send(tenant_id=tenant.id, invitation_id=made.invitation.id, mark=mark)
    assert mail.outbox == []
    assert "MIRROR_SECRET_KEY has changed" in caplog.text
    with tenant.context():
        assert invitation_get(invitation_id=made.invitation.id).invitation.mail_state == "failed"


@pytest.mark.django_db
def test_a_mail_server_that_refuses_or_hangs_is_told_on_the_page(
    tenant: Tenancy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from smtplib import SMTPRecipientsRefused, SMTPServerDisconnected

    from django.core.mail.backends.locmem import EmailBackend

    failing: list[Exception] = [SMTPServerDisconnected("gone")]
    tries: list[str] = []

    def refuse(self: Any, messages: Any) -> int:
        tries.append(state())
        raise failing[0]

    def state() -> str:
        with tenant.context():
            return invitation_get(invitation_id=made.invitation.id).invitation.mail_state

    monkeypatch.setattr(EmailBackend, "send_messages", refuse)
    made = invite(tenant)
    with tenant.context():
        # Tried at once here, whatever the countdown; the page says that it is on its way until the last one failed.
        invitation_send.apply((str(made.invitation.id), invitation_mark(made.invitation)))
    assert tries == ["waiting"] * (MAIL_RETRIES + 1)
    assert state() == "failed"

    failing[:] = [SMTPRecipientsRefused({made.invitation.email: (550, b"no such user")})]
    tries.clear()
    with tenant.context():
        again = invitation_resend(invitation_id=made.invitation.id, capabilities=OWNER).invitation
        invitation_send.apply((str(again.id), invitation_mark(again)))
    # Another try would get the same answer.
    assert tries == ["waiting"]
    assert state() == "failed"
    for part in (*mailed(made).split("."), made.invitation.email):
        assert part not in caplog.text


@pytest.mark.django_db(transaction=True)
def test_when_the_broker_is_down_the_invitation_is_made_and_says_so(
    tenant: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kombu.exceptions import OperationalError

    def down(self: Any, *args: Any, **options: Any) -> None:
        raise OperationalError("[Errno 111] Connection refused")

    monkeypatch.setattr(Task, "apply_async", down)
    made = invite(tenant)
    with tenant.context():
        assert invitation_get(invitation_id=made.invitation.id).invitation.mail_state == "not_queued"
    assert invitation_open(token=token_of(made.link)).email == made.invitation.email


# -- at the same moment ---------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_accepting_twice_at_the_same_moment_makes_one_account_and_one_membership(
    tenant: Tenancy, stranger: Tenancy
) -> None:
    made = invite(tenant)
    token = mailed(made)
    outcomes = together(*[lambda: accept_new(token) and None] * 3)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["InvitationGone", "InvitationGone", "NoneType"]
    user = User.objects.get(email=made.invitation.email)
    with tenant.context():
        assert Membership.objects.filter(user=user).count() == 1

    charlie = stranger.users["charlie"]
    theirs = mailed(invite(tenant, charlie.email))
    outcomes = together(*[lambda: invitation_accept(token=theirs, user=charlie) and None] * 3)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["InvitationGone", "InvitationGone", "NoneType"]
    with tenant.context():
        assert Membership.objects.filter(user=charlie).count() == 1


@pytest.mark.django_db(transaction=True)
def test_two_tenants_invitations_accepted_at_the_same_moment_make_one_account(
    tenant: Tenancy, stranger: Tenancy
) -> None:
    email = address()
    tokens = [mailed(invite(each, email)) for each in (tenant, stranger)]
    outcomes = together(*[_accepting(token) for token in tokens])
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType", "ValidationError"]
    user = User.objects.get(email=email)
    left = tokens[next(number for number, outcome in enumerate(outcomes) if outcome is not None)]
    # The other one is as good as before.
    invitation_accept(token=left, user=user)


def _accepting(token: str) -> Callable[[], None]:
    return lambda: accept_new(token) and None


@pytest.mark.django_db(transaction=True)
def test_two_who_invite_the_same_person_at_the_same_moment_send_one_invitation(tenant: Tenancy) -> None:
    email = address()
    outcomes = together(*[lambda: invite(tenant, email) and None] * 3)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["InvalidInput", "InvalidInput", "NoneType"]
    with tenant.context():
        assert Invitation.objects.filter(email=email).count() == 1


@pytest.mark.django_db(transaction=True)
def test_an_acceptance_that_fails_leaves_nothing(tenant: Tenancy, monkeypatch: pytest.MonkeyPatch) -> None:
    from tenants.services import invitations

    made = invite(tenant)

    def fail(**arguments: Any) -> None:
        raise RuntimeError("on the way")

    monkeypatch.setattr(invitations, "membership_create", fail)
    with pytest.raises(RuntimeError, match="on the way"):
        accept_new(mailed(made))
    assert not transaction.get_connection().in_atomic_block
    assert not User.objects.filter(email=made.invitation.email).exists()
    assert invitation_open(token=mailed(made)).email == made.invitation.email


@pytest.mark.django_db
def test_a_link_is_not_in_what_an_error_shows(tenant: Tenancy) -> None:
    made = invite(tenant)
    assert token_of(made.link) not in repr(made)


@pytest.mark.django_db
def test_a_listed_page_of_invitations_has_no_strangers(tenant: Tenancy, stranger: Tenancy) -> None:
    made = [invite(tenant).invitation.id for _ in range(3)]
    invite(stranger)
    with tenant.context():
        first = invitation_list(limit=2)
        second = invitation_list(limit=2, cursor=first.next)
        invitation_revoke(invitation_id=made[1], capabilities=OWNER)
        still_open = invitation_list(open_only=True)
    assert [view.invitation.id for view in (*first.items, *second.items)] == list(reversed(made))
    assert second.next is None
    assert [view.invitation.id for view in still_open.items] == [made[2], made[0]]


@pytest.mark.django_db
def test_an_account_of_a_person_is_found_whoever_made_it(tenant: Tenancy) -> None:
    email = address()
    user_create(email=email, password=PASSWORD)
    assert invitation_open(token=mailed(invite(tenant, email))).has_account
