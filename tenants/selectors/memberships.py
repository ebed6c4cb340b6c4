"""Which tenants a person belongs to, and who belongs to the current one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from uuid import UUID

from django.db import connection
from django.db.models import Q

from mirror_saas.errors import NotFound
from mirror_saas.pages import DEFAULT_LIMIT, Page, cursor_of_row, cursor_row, limit_check
from tenants.context import tenant_context
from tenants.models import Membership
from tenants.roles import ALL_SCOPES, Role, role_capabilities
from tenants.selectors.tenants import TenantRef, tenant_current


class MemberNotFound(NotFound):
    """The current tenant has no such member."""

    def __init__(self) -> None:
        super().__init__("There is no such member.")


@dataclass(frozen=True, slots=True)
class MembershipRef:
    """A person's place in one tenant."""

    membership_id: UUID
    user_id: UUID
    role: str
    tenant: TenantRef
    is_one_of_several: bool = False
    """The person belongs to other tenants too."""

    @property
    def scopes(self) -> frozenset[str]:
        """What the role may do, in the words of API scopes; nothing for a role that is not known."""
        return self.capabilities & ALL_SCOPES

    @property
    def capabilities(self) -> frozenset[str]:
        """What the role may do: scopes, and what no scope covers."""
        return role_capabilities(self.role)


def membership_list(*, user_id: UUID) -> list[MembershipRef]:
    """The person's memberships, oldest first."""
    found = (_membership(user_id, tenant_id) for tenant_id in _tenant_ids(user_id))
    return [membership for membership in found if membership is not None]


def membership_get(*, user_id: UUID, tenant_id: UUID | None = None) -> MembershipRef | None:
    """The person's membership in `tenant_id`; if they are no member there, or none is named, their oldest one.

    None for a person who belongs to no tenant.
    """
    tenant_ids = _tenant_ids(user_id)
    if not tenant_ids:
        return None
    membership = _membership(user_id, tenant_id if tenant_id in tenant_ids else tenant_ids[0])
    return replace(membership, is_one_of_several=len(tenant_ids) > 1) if membership else None


def member_list(*, cursor: str | None = None, limit: int = DEFAULT_LIMIT) -> Page[Membership]:
    """The current tenant's members with their people, newest first. Raises InvalidInput and BadCursor."""
    limit_check(limit)
    members = Membership.objects.select_related("user").order_by("-created_at", "-id")
    if cursor is not None:
        at, last_id = cursor_row(cursor)
        members = members.filter(Q(created_at__lt=at) | Q(created_at=at, id__lt=last_id))
    rows = list(members[: limit + 1])
    if len(rows) <= limit:
        return Page(items=rows, next=None)
    last = rows[limit - 1]
    return Page(items=rows[:limit], next=cursor_of_row(last.created_at, last.id))


def member_get(*, membership_id: UUID) -> Membership:
    """One member of the current tenant with their person. Raises MemberNotFound."""
    membership = Membership.objects.select_related("user").filter(id=membership_id).first()
    if membership is None:
        raise MemberNotFound
    return membership


def owner_count() -> int:
    """How many owners the current tenant has."""
    return Membership.objects.filter(role=Role.OWNER.value).count()


def _tenant_ids(user_id: UUID) -> list[UUID]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT tenant_id FROM membership_lookup(%s)", [user_id])
        return [row[0] for row in cursor.fetchall()]


def _membership(user_id: UUID, tenant_id: UUID | None) -> MembershipRef | None:
    if tenant_id is None:
        return None
    with tenant_context(tenant_id):
        # Gone between the look-up and here: no member any more.
        membership = Membership.objects.filter(user_id=user_id).first()
        if membership is None:
            return None
        tenant = tenant_current()
    return MembershipRef(membership_id=membership.id, user_id=user_id, role=membership.role, tenant=tenant)
