"""Inviting people by mail: sending, sending again, revoking, accepting.

A link is `/invitation/<secret>` and in the mail `/invitation/<secret>.<proof>`, two times 256 bits. Only hashes are
kept, and neither part travels through the broker: the task that mails derives both from the row's nonce and this
installation's secret key. Whoever copies the link from the console gets it without the proof, so they cannot make an
account in the name of an address whose mail they do not read.
"""

from __future__ import annotations

import base64
import logging
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from smtplib import SMTPException, SMTPRecipientsRefused
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import IntegrityError, transaction
from django.urls import reverse
from django.utils import timezone
from django.utils.crypto import salted_hmac
from kombu.exceptions import OperationalError

from mirror_saas.errors import Conflict, InvalidInput
from tenants.actors import actor_context, actor_current
from tenants.context import tenant_context, tenant_id_required
from tenants.emails import email_clean
from tenants.mail_limits import mail_take
from tenants.models import Invitation, Membership, User
from tenants.roles import Role, capability_require, role_needs
from tenants.selectors.invitations import (
    InvitationGone,
    InvitationNotFound,
    invitation_lookup,
    invitation_states,
    invitation_views,
    token_hash,
    token_parts,
)
from tenants.selectors.tenants import TenantRef, tenant_current
from tenants.services.accounts import account_create
from tenants.services.audit import auditevent_record, changes, snapshot
from tenants.services.mails import mail_make
from tenants.services.memberships import membership_create

logger = logging.getLogger(__name__)

VALID_FOR: Final = timedelta(days=7)
NONCE_BYTES: Final = 32
_SHOWN: Final = ("email", "role", "expires_at", "accepted_at", "revoked_at")


class InvitationClosed(Conflict):
    """The invitation was accepted or revoked before."""

    def __init__(self, state: str) -> None:
        what = {
            "accepted": "This invitation was accepted. Change or remove the member instead.",
            "revoked": "This invitation was revoked. Invite the person anew.",
        }
        super().__init__(what[state])


class InvitationOfAnother(PermissionError):
    """Somebody is signed in whom the invitation is not for."""

    def __init__(self) -> None:
        super().__init__("This invitation is for another email than the one that you are signed in with.")


class AddressUnproven(PermissionError):
    """A new account needs the mailed link, which proves that the address is theirs."""

    def __init__(self) -> None:
        super().__init__("Open the link in the mail: it proves that the address is yours.")


@dataclass(frozen=True, slots=True)
class NewInvitation:
    """An invitation just sent. `link` is for whoever sent it to pass on, and shown once."""

    invitation: Invitation
    link: str = field(repr=False)


@transaction.atomic
def invitation_create(
    *, email: str, role: Role, capabilities: frozenset[str], now: datetime | None = None
) -> NewInvitation:
    """Invite the person with this address into the current tenant, as somebody with `capabilities`.

    The mail is handed to the workers when the transaction commits; `mail_state` then says whether that worked.
    Raises InvalidInput (field `email`: no address, a member already, invited already), CapabilityMissing and
    TooManyMails.
    """
    now = now or timezone.now()
    email = email_clean(email)
    capability_require(capabilities, role_needs(role.value))
    if Membership.objects.filter(user__email=email).exists():
        raise InvalidInput("email", f"{email} is a member already.")
    for pending in Invitation.objects.select_for_update(no_key=True).filter(
        email=email, accepted_at=None, revoked_at=None
    ):
        if invitation_states([pending], now=now)[pending.id] == "pending":
            raise InvalidInput("email", f"{email} is invited already. Send that invitation again, or revoke it.")
        # What nobody can accept any more makes room for the new one.
        _close(pending, now)
    mail_take(tenant_id=tenant_id_required(), email=email)
    invitation = Invitation(email=email, role=role.value, created_at=now)
    _renew(invitation, now)
    try:
        with transaction.atomic():
            invitation.save(force_insert=True)
    except IntegrityError as error:
        # Two invited the same person at the same moment.
        raise InvalidInput("email", f"{email} is invited already. Send that invitation again, or revoke it.") from error
    auditevent_record(
        action="invitation.create", row=invitation, object_label=email, after=snapshot(invitation, only=_SHOWN)
    )
    _mail_on_commit(invitation)
    return NewInvitation(invitation=invitation, link=invitation_link(invitation))


@transaction.atomic
def invitation_resend(
    *, invitation_id: UUID, capabilities: frozenset[str], now: datetime | None = None
) -> NewInvitation:
    """Send an open invitation again, as one's own: with a new link for seven more days; the old link is dead.

    Raises InvitationNotFound, InvitationClosed, CapabilityMissing, Conflict (a member already) and TooManyMails.
    """
    now = now or timezone.now()
    invitation = _locked(invitation_id)
    capability_require(capabilities, role_needs(invitation.role))
    _open_required(invitation)
    if Membership.objects.filter(user__email=invitation.email).exists():
        raise Conflict(f"{invitation.email} is a member already; revoke the invitation.")
    mail_take(tenant_id=tenant_id_required(), email=invitation.email)
    was = snapshot(invitation, only=_SHOWN)
    _renew(invitation, now)
    invitation.save()
    before, after = changes(was, snapshot(invitation, only=_SHOWN))
    auditevent_record(
        action="invitation.resend", row=invitation, object_label=invitation.email, before=before, after=after
    )
    _mail_on_commit(invitation)
    return NewInvitation(invitation=invitation, link=invitation_link(invitation))


@transaction.atomic
def invitation_revoke(*, invitation_id: UUID, capabilities: frozenset[str], now: datetime | None = None) -> None:
    """End an invitation; its link is dead at once. Revoked before: nothing happens.

    Raises InvitationNotFound, CapabilityMissing and InvitationClosed (accepted).
    """
    invitation = _locked(invitation_id)
    capability_require(capabilities, role_needs(invitation.role))
    if invitation.accepted_at is not None:
        raise InvitationClosed("accepted")
    if invitation.revoked_at is None:
        _close(invitation, now or timezone.now())


@transaction.atomic
def invitation_accept(*, token: str, user: User, now: datetime | None = None) -> TenantRef:
    """Make `user`, who is signed in, a member of the tenant that invited their address.

    Who is a member already keeps their role. Raises InvitationGone and InvitationOfAnother.
    """
    secret, proof = token_parts(token)
    tenant_id, invitation_id = invitation_lookup(secret=secret)
    with tenant_context(tenant_id):
        invitation = _acceptable(invitation_id, secret, proof, now or timezone.now())
        if invitation.email != user.email:
            raise InvitationOfAnother
        _accept(invitation, user, now or timezone.now())
        return tenant_current()


@transaction.atomic
def invitation_accept_new(
    *, token: str, user_id: UUID, name: str, password: str, now: datetime | None = None
) -> tuple[User, TenantRef]:
    """Make an account for the invited address, and the person a member. `user_id` becomes the account's id.

    Raises InvitationGone, AddressUnproven, and ValidationError (fields `name`, `password`, and `email` when there is
    an account already).
    """
    secret, proof = token_parts(token)
    tenant_id, invitation_id = invitation_lookup(secret=secret)
    with tenant_context(tenant_id):
        invitation = _acceptable(invitation_id, secret, proof, now or timezone.now())
        if address_proof_needed(proven=proof is not None):
            raise AddressUnproven
        user = account_create(user_id=user_id, email=invitation.email, name=name, password=password)
        _accept(invitation, user, now or timezone.now())
        return user, tenant_current()


def address_proof_needed(*, proven: bool) -> bool:
    """Whether a link makes no account because it was not mailed. Where no mail server is set up, any link does."""
    return not proven and settings.MIRROR.email is not None


# -- the link and its mail ----------------------------------------------------------------------------------------


def invitation_link(invitation: Invitation, *, proven: bool = False) -> str:
    """The invitation's URL; `proven` is the one that goes by mail and nowhere else."""
    secret, proof = _token(invitation)
    token = f"{secret}.{proof}" if proven else secret
    return f"{settings.MIRROR.public_url}{reverse('webui:invitation', kwargs={'token': token})}"


def invitation_mail_send(*, tenant_id: UUID, invitation_id: UUID, mark: str, last: bool = False) -> None:
    """Mail the invitation's newest link, unless it was mailed, replaced or closed meanwhile.

    `mark` is `invitation_mark` of when the mail was ordered; `last`: there will be no other try. Raises what the mail
    server answers. No transaction is open while it does.
    """
    with tenant_context(tenant_id):
        invitation = Invitation.objects.filter(id=invitation_id, accepted_at=None, revoked_at=None).first()
        if invitation is None or invitation_mark(invitation) != mark:
            return
        if invitation.mail_state == Invitation.MailState.SENT:
            return
        if token_hash(_token(invitation)[0]) != bytes(invitation.token_hash):
            # MIRROR_SECRET_KEY was changed in between; a resent one is made with the key that there is now.
            logger.error("an invitation could not be mailed: MIRROR_SECRET_KEY has changed since it was made")
            _mail_state_set(invitation, Invitation.MailState.FAILED)
            return
        [view] = invitation_views([invitation])
        told = {
            "tenant": tenant_current(),
            "invitation": invitation,
            "role": Role(invitation.role).label.lower(),
            "invited_by": view.invited_by,
            "link": invitation_link(invitation, proven=True),
            "days": VALID_FOR.days,
        }
    mail = mail_make(to=invitation.email, template="tenants/mail/invitation", told=told)
    try:
        mail.send()
    except (SMTPException, OSError) as error:
        if last or isinstance(error, SMTPRecipientsRefused):
            with tenant_context(tenant_id):
                _mail_state_set(invitation, Invitation.MailState.FAILED)
        raise
    with tenant_context(tenant_id):
        _mail_state_set(invitation, Invitation.MailState.SENT)


def invitation_mark(invitation: Invitation) -> str:
    """Tells one link of an invitation from the next, and opens nothing."""
    return bytes(invitation.token_hash).hex()[:16]


def _mail_on_commit(invitation: Invitation) -> None:
    tenant_id, actor = tenant_id_required(), actor_current()

    def hand_over() -> None:
        from tenants.tasks import invitation_send

        try:
            with actor_context(actor), tenant_context(tenant_id):
                # Not tried again here: a person waits for the page, which says what became of it.
                invitation_send.apply_async((str(invitation.id), invitation_mark(invitation)), retry=False)
        except OperationalError as error:
            logger.warning("an invitation's mail could not be queued: %s", type(error).__name__)
            with tenant_context(tenant_id):
                _mail_state_set(invitation, Invitation.MailState.NOT_QUEUED)

    transaction.on_commit(hand_over)


def _mail_state_set(invitation: Invitation, state: Invitation.MailState) -> None:
    mailed = {"mailed_at": timezone.now()} if state == Invitation.MailState.SENT else {}
    # Of a link that was replaced meanwhile nothing is told.
    Invitation.objects.filter(id=invitation.id, token_hash=bytes(invitation.token_hash)).update(
        mail_state=state.value, **mailed
    )


def _token(invitation: Invitation) -> tuple[str, str]:
    """The secret and the proof of the invitation's newest link."""
    secret, proof = (
        base64.urlsafe_b64encode(
            salted_hmac(
                f"tenants.invitation.{purpose}",
                invitation.id.bytes + bytes(invitation.token_nonce),
                algorithm="sha256",
            ).digest()
        )
        .decode()
        .rstrip("=")
        for purpose in ("secret", "proof")
    )
    return secret, proof


# -- rows ---------------------------------------------------------------------------------------------------------


def _renew(invitation: Invitation, now: datetime) -> None:
    """A new token, for another seven days, from whoever acts now."""
    actor = actor_current()
    invitation.token_nonce = secrets.token_bytes(NONCE_BYTES)
    secret, proof = _token(invitation)
    invitation.token_hash, invitation.proof_hash = token_hash(secret), token_hash(proof)
    invitation.expires_at = now + VALID_FOR
    invitation.mail_state = Invitation.MailState.WAITING.value
    invitation.mailed_at = None
    invitation.invited_by_kind = Invitation.Inviter(actor.kind).value
    invitation.invited_by_id = actor.id if actor.kind == "user" else None
    invitation.invited_by_key_id = actor.id if actor.kind == "api_key" else None


def _locked(invitation_id: UUID) -> Invitation:
    found = Invitation.objects.select_for_update(no_key=True).filter(id=invitation_id).first()
    if found is None:
        raise InvitationNotFound
    return found


def _open_required(invitation: Invitation) -> None:
    if invitation.accepted_at is not None:
        raise InvitationClosed("accepted")
    if invitation.revoked_at is not None:
        raise InvitationClosed("revoked")


def _close(invitation: Invitation, now: datetime) -> None:
    invitation.revoked_at = now
    invitation.save(update_fields=["revoked_at"])
    auditevent_record(
        action="invitation.revoke",
        row=invitation,
        object_label=invitation.email,
        before={"revoked_at": None},
        after={"revoked_at": now},
    )


def _acceptable(invitation_id: UUID, secret: str, proof: str | None, now: datetime) -> Invitation:
    """The invitation, locked: of two who accept it at the same moment the second finds it used."""
    invitation = (
        Invitation.objects.select_for_update(no_key=True)
        .filter(id=invitation_id, token_hash=token_hash(secret))
        .first()
    )
    if invitation is None or invitation_states([invitation], now=now)[invitation.id] != "pending":
        raise InvitationGone
    if proof is not None and token_hash(proof) != bytes(invitation.proof_hash):
        raise InvitationGone
    return invitation


def _accept(invitation: Invitation, user: User, now: datetime) -> None:
    invitation.accepted_at = now
    invitation.save(update_fields=["accepted_at"])
    auditevent_record(
        action="invitation.accept",
        row=invitation,
        object_label=invitation.email,
        before={"accepted_at": None},
        after={"accepted_at": now},
    )
    if not Membership.objects.filter(user=user).exists():
        membership_create(user=user, role=Role(invitation.role))
