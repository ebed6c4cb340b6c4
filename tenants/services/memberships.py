"""Who belongs to the current tenant, as what: joining, another role, being removed, leaving."""

from __future__ import annotations

from uuid import UUID

from django.db.models import Q

from mirror_saas.errors import Conflict
from tenants.models import Membership, User
from tenants.roles import Role, capability_require, role_needs
from tenants.selectors.memberships import MemberNotFound
from tenants.services.audit import auditevent_record, changes, snapshot


class LastOwner(Conflict):
    """A tenant always has an owner: its last one cannot go or become something else."""

    def __init__(self) -> None:
        super().__init__("This is the tenant’s last owner. Make somebody else an owner first.")


def membership_create(*, user: User, role: Role) -> Membership:
    """Make `user` a member of the current tenant, or give an existing member `role`.

    For commands and for those who have asked who may do this. Raises LastOwner.
    """
    found = Membership.objects.filter(user=user).first()
    if found is not None:
        return _role_set(_locked(found.id), role)
    membership = Membership.objects.create(user=user, role=role.value)
    auditevent_record(action="membership.create", row=membership, object_label=user.email, after=snapshot(membership))
    return membership


def membership_role_change(*, membership_id: UUID, role: Role, capabilities: frozenset[str]) -> Membership:
    """Give a member of the current tenant another role, as somebody with `capabilities`.

    Raises MemberNotFound, CapabilityMissing (the old or the new role is not theirs to take or give) and LastOwner.
    """
    membership = _locked(membership_id)
    capability_require(capabilities, role_needs(membership.role))
    capability_require(capabilities, role_needs(role.value))
    return _role_set(membership, role)


def membership_remove(*, membership_id: UUID, capabilities: frozenset[str]) -> None:
    """End a membership of the current tenant, as somebody with `capabilities`: all access ends with the row.

    Invitations that the person sent become void with it (tenants.services.invitations).
    Raises MemberNotFound, CapabilityMissing and LastOwner.
    """
    membership = _locked(membership_id)
    capability_require(capabilities, role_needs(membership.role))
    _end(membership, "membership.remove")


def membership_leave(*, user_id: UUID) -> None:
    """End one's own membership of the current tenant. Raises MemberNotFound and LastOwner."""
    found = Membership.objects.filter(user_id=user_id).first()
    if found is None:
        raise MemberNotFound
    _end(_locked(found.id), "membership.leave")


def _locked(membership_id: UUID) -> Membership:
    """The membership, locked together with every owner's: whoever counts owners next waits until this is done.

    Locks are taken in the order of ids, so that two who do the same wait for each other in turn.
    """
    rows = (
        Membership.objects.select_for_update(no_key=True, of=("self",))
        .select_related("user")
        .filter(Q(id=membership_id) | Q(role=Role.OWNER.value))
        .order_by("id")
    )
    for membership in list(rows):
        if membership.id == membership_id:
            return membership
    raise MemberNotFound


def _last_owner_stays(membership: Membership) -> None:
    if membership.role != Role.OWNER:
        return
    if not Membership.objects.filter(role=Role.OWNER.value).exclude(id=membership.id).exists():
        raise LastOwner


def _role_set(membership: Membership, role: Role) -> Membership:
    if membership.role == role.value:
        return membership
    _last_owner_stays(membership)
    was = snapshot(membership)
    membership.role = role.value
    membership.save(update_fields=["role"])
    before, after = changes(was, snapshot(membership))
    auditevent_record(
        action="membership.update", row=membership, object_label=membership.user.email, before=before, after=after
    )
    return membership


def _end(membership: Membership, action: str) -> None:
    _last_owner_stays(membership)
    auditevent_record(action=action, row=membership, object_label=membership.user.email, before=snapshot(membership))
    Membership.objects.filter(id=membership.id).delete()
