"""`/members`: who belongs to the tenant, as what. Only owners make, change and remove owners; no key can."""

from datetime import datetime
from uuid import UUID

from django.http import HttpRequest
from ninja import Query, Router, Status
from pydantic import ConfigDict

from mirror_saas.problems import problem_responses
from mirror_saas.schemas import In, Out, PageOut, PageQuery
from tenants.api.auth import principal_of, requires
from tenants.api.writes import writes
from tenants.models import Membership
from tenants.roles import Role, Scope
from tenants.selectors.memberships import member_get, member_list
from tenants.services.memberships import membership_remove, membership_role_change

router = Router(tags=["members"])


class MemberOut(Out):
    """A member. `id` is the membership's: a person in two tenants has two."""

    id: UUID
    user_id: UUID
    email: str
    name: str
    role: Role
    created_at: datetime

    @classmethod
    def of(cls, member: Membership) -> "MemberOut":
        return cls(
            id=member.id,
            user_id=member.user_id,
            email=member.user.email,
            name=member.user.name,
            role=Role(member.role),
            created_at=member.created_at,
        )


class MemberPatchIn(In):
    """What changes of a member."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"role": "editor"}]})

    role: Role


@router.get(
    "/members",
    response={200: PageOut[MemberOut], **problem_responses(401, 403, 422)},
    operation_id="member_list",
    summary="List members",
)
@requires(Scope.ADMIN)
def members(request: HttpRequest, query: Query[PageQuery]) -> PageOut[MemberOut]:
    """The tenant's members, who joined last first."""
    page = member_list(cursor=query.cursor, limit=query.limit)
    return PageOut[MemberOut](items=[MemberOut.of(member) for member in page.items], next=page.next)


@router.get(
    "/members/{uuid:member_id}",
    response={200: MemberOut, **problem_responses(401, 403, 404)},
    operation_id="member_get",
    summary="One member",
)
@requires(Scope.ADMIN)
def member(request: HttpRequest, member_id: UUID) -> MemberOut:
    """One member. Another tenant's member and one that never was are both 404."""
    return MemberOut.of(member_get(membership_id=member_id))


@router.patch(
    "/members/{uuid:member_id}",
    response={200: MemberOut, **problem_responses(400, 401, 403, 404, 409, 422)},
    operation_id="member_update",
    summary="Give a member another role",
)
@writes(Scope.ADMIN, recent=True)
def member_patch(request: HttpRequest, member_id: UUID, member: MemberPatchIn) -> MemberOut:
    """409 for the last owner. From the console's session this needs a recent sign-in."""
    changed = membership_role_change(
        membership_id=member_id, role=member.role, capabilities=principal_of(request).capabilities
    )
    return MemberOut.of(changed)


@router.delete(
    "/members/{uuid:member_id}",
    response={204: None, **problem_responses(401, 403, 404, 409)},
    operation_id="member_remove",
    summary="Remove a member",
)
@writes(Scope.ADMIN, recent=True)
def member_delete(request: HttpRequest, member_id: UUID) -> Status[None]:
    """All access ends at once; the person's account stays. 409 for the last owner. API keys go on working.

    From the console's session this needs a recent sign-in.
    """
    membership_remove(membership_id=member_id, capabilities=principal_of(request).capabilities)
    return Status(204, None)
