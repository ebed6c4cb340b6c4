"""Reading invitations: the tenant's own, and the one that a link's token names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from django.db import connection
from django.db.models import Q
from django.utils import timezone

from mirror_saas.errors import NotFound
from mirror_saas.pages import DEFAULT_LIMIT, Page, cursor_of_row, cursor_row, limit_check
from tenants.context import tenant_context
from tenants.models import Invitation, Membership, User
from tenants.roles import role_capabilities, role_grantable
from tenants.selectors.tenants import TenantRef, tenant_current

InvitationState = Literal["pending", "void", "expired", "accepted", "revoked"]

_TOKEN = re.compile(r"([A-Za-z0-9_-]{43})(?:\.([A-Za-z0-9_-]{43}))?")


class InvitationNotFound(NotFound):
    """The current tenant has no such invitation."""

    def __init__(self) -> None:
        super().__init__("There is no such invitation.")


class InvitationGone(LookupError):
    """A link's token opens nothing: it was used, revoked, replaced or is too old, or never was one."""

    def __init__(self) -> None:
        super().__init__("This invitation does not work, or not any more.")


@dataclass(frozen=True, slots=True)
class InvitationView:
    """An invitation as a list shows it: what it is good for now, and who sent it."""

    invitation: Invitation
    state: InvitationState
    invited_by: str
    """An email, a key's name, or who else it was."""


@dataclass(frozen=True, slots=True)
class InvitationOpened:
    """What a link opens."""

    invitation_id: UUID
    tenant: TenantRef
    email: str
    role: str
    proven: bool
    """It came by the mail: whoever has it reads what is sent to the address."""
    has_account: bool
    """Somebody signs in with this address already."""


def token_hash(part: str) -> bytes:
    """What is kept of a part of a token. 256 random bits: nothing to guess, so a plain fast hash is enough."""
    return hashlib.sha256(part.encode()).digest()


def token_parts(token: str) -> tuple[str, str | None]:
    """A token's secret and its proof of the address, which a copied link does not have. Raises InvitationGone."""
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise InvitationGone
    return match.group(1), match.group(2)


def invitation_lookup(*, secret: str) -> tuple[UUID, UUID]:
    """The tenant and id of the open invitation with this token. Raises InvitationGone."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT tenant_id, invitation_id FROM invitation_lookup(%s)", [token_hash(secret)])
        found = cursor.fetchone()
    if found is None:
        raise InvitationGone
    return found[0], found[1]


def invitation_open(*, token: str) -> InvitationOpened:
    """What a link's token opens, without using it up. Raises InvitationGone."""
    secret, proof = token_parts(token)
    tenant_id, invitation_id = invitation_lookup(secret=secret)
    with tenant_context(tenant_id):
        invitation = Invitation.objects.filter(id=invitation_id, token_hash=token_hash(secret)).first()
        if invitation is None or invitation_states([invitation])[invitation.id] != "pending":
            raise InvitationGone
        if proof is not None and bytes(invitation.proof_hash) != token_hash(proof):
            raise InvitationGone
        return InvitationOpened(
            invitation_id=invitation.id,
            tenant=tenant_current(),
            email=invitation.email,
            role=invitation.role,
            proven=proof is not None,
            has_account=User.objects.filter(email=invitation.email).exists(),
        )


def invitation_states(invitations: Sequence[Invitation], *, now: datetime | None = None) -> dict[UUID, InvitationState]:
    """What each invitation is good for at `now`, by its id.

    `void`: whoever sent it may not give this role any more, because their membership ended or changed, or their key was
    revoked. Somebody who may can send it anew.
    """
    now = now or timezone.now()
    people = {invitation.invited_by_id for invitation in invitations if invitation.invited_by_id}
    roles = dict(Membership.objects.filter(user_id__in=people).values_list("user_id", "role"))
    states: dict[UUID, InvitationState] = {}
    for invitation in invitations:
        if invitation.accepted_at is not None:
            states[invitation.id] = "accepted"
        elif invitation.revoked_at is not None:
            states[invitation.id] = "revoked"
        elif invitation.expires_at <= now:
            states[invitation.id] = "expired"
        elif not role_grantable(_inviter_capabilities(invitation, roles), invitation.role):
            states[invitation.id] = "void"
        else:
            states[invitation.id] = "pending"
    return states


def _inviter_capabilities(invitation: Invitation, roles: dict[UUID, str]) -> frozenset[str]:
    if invitation.invited_by_kind == Invitation.Inviter.SYSTEM:
        return role_capabilities("owner")
    if invitation.invited_by_kind == Invitation.Inviter.USER:
        return role_capabilities(roles.get(invitation.invited_by_id, "")) if invitation.invited_by_id else frozenset()
    key = invitation.invited_by_key
    # A key that has expired did its work while it was good; one that was revoked may have been in wrong hands.
    return frozenset(key.scopes) if key is not None and key.revoked_at is None else frozenset()


def invitation_get(*, invitation_id: UUID) -> InvitationView:
    """One invitation of the current tenant. Raises InvitationNotFound."""
    found = Invitation.objects.select_related("invited_by", "invited_by_key").filter(id=invitation_id).first()
    if found is None:
        raise InvitationNotFound
    return invitation_views([found])[0]


def invitation_list(
    *, cursor: str | None = None, limit: int = DEFAULT_LIMIT, open_only: bool = False
) -> Page[InvitationView]:
    """The current tenant's invitations, newest first; `open_only` leaves out what was accepted or revoked.

    Raises InvalidInput and BadCursor.
    """
    limit_check(limit)
    invitations = Invitation.objects.select_related("invited_by", "invited_by_key").order_by("-created_at", "-id")
    if open_only:
        invitations = invitations.filter(accepted_at=None, revoked_at=None)
    if cursor is not None:
        at, last_id = cursor_row(cursor)
        invitations = invitations.filter(Q(created_at__lt=at) | Q(created_at=at, id__lt=last_id))
    rows = list(invitations[: limit + 1])
    more = len(rows) > limit
    rows = rows[:limit]
    return Page(items=invitation_views(rows), next=cursor_of_row(rows[-1].created_at, rows[-1].id) if more else None)


def invitation_views(invitations: Sequence[Invitation]) -> list[InvitationView]:
    """Invitations with what they are good for and who sent them."""
    states = invitation_states(invitations)
    return [
        InvitationView(invitation=invitation, state=states[invitation.id], invited_by=_inviter(invitation))
        for invitation in invitations
    ]


def _inviter(invitation: Invitation) -> str:
    if invitation.invited_by_kind == Invitation.Inviter.SYSTEM:
        return "the operator"
    if invitation.invited_by_kind == Invitation.Inviter.USER:
        return invitation.invited_by.email if invitation.invited_by else "a deleted account"
    return f"the API key {invitation.invited_by_key.name}" if invitation.invited_by_key else "a deleted API key"
