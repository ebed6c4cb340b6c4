"""`/invitations`: people who may become members. A link is in the answer that makes it, and in no other."""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from ninja import Query, Router, Status
from pydantic import ConfigDict, Field

from mirror_saas.problems import problem_responses
from mirror_saas.schemas import In, Out, PageOut, PageQuery, Text
from tenants.api.auth import principal_of, recent_require, requires
from tenants.api.writes import writes
from tenants.emails import EMAIL_CHARS
from tenants.roles import Role, Scope
from tenants.selectors.invitations import (
    InvitationState,
    InvitationView,
    invitation_get,
    invitation_list,
    invitation_views,
)
from tenants.services.invitations import (
    NewInvitation,
    invitation_create,
    invitation_resend,
    invitation_revoke,
)

router = Router(tags=["invitations"])


class InvitationOut(Out):
    """An invitation. Its token is kept nowhere."""

    id: UUID
    email: str
    role: Role
    state: InvitationState
    """`void`: whoever sent it may not give the role any more; send it again to make it yours."""
    mail_state: str
    """`waiting`, `sent`, `failed` (not delivered), or `not_queued` (the queue did not answer: send it again)."""
    mailed_at: datetime | None
    invited_by: str
    created_at: datetime
    expires_at: datetime
    accepted_at: datetime | None
    revoked_at: datetime | None

    @classmethod
    def of(cls, view: InvitationView) -> "InvitationOut":
        return cls(**_fields(view))


class InvitationCreatedOut(InvitationOut):
    """A new invitation, or one sent again. This is the only time that `link` is shown.

    It is for somebody who has an account, or for anybody where no mail server is set up; otherwise a new person needs
    the mailed link, which proves their address.
    """

    link: str


class InvitationIn(In):
    """Whom to invite."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"email": "alice@example.com", "role": "viewer"}]})

    email: Text = Field(max_length=EMAIL_CHARS)
    role: Role = Field(description="No more than you may give: only owners make owners.")


class InvitationsQuery(PageQuery):
    """Which invitations."""

    open: bool = Field(False, description="Leave out what was accepted or revoked.")


@router.get(
    "/invitations",
    response={200: PageOut[InvitationOut], **problem_responses(401, 403, 422)},
    operation_id="invitation_list",
    summary="List invitations",
)
@requires(Scope.ADMIN)
def invitations(request: HttpRequest, query: Query[InvitationsQuery]) -> PageOut[InvitationOut]:
    """Invitations, newest first."""
    page = invitation_list(cursor=query.cursor, limit=query.limit, open_only=query.open)
    return PageOut[InvitationOut](items=[InvitationOut.of(view) for view in page.items], next=page.next)


@router.post(
    "/invitations",
    response={201: InvitationCreatedOut, **problem_responses(400, 401, 403, 422)},
    operation_id="invitation_create",
    summary="Invite somebody",
)
@writes(Scope.ADMIN)
def invitation_post(
    request: HttpRequest, response: HttpResponse, invitation: InvitationIn
) -> Status[InvitationCreatedOut]:
    """Send a mail with a link that is good for seven days. 429 when there were too many mails.

    To invite an owner from the console's session needs a recent sign-in.
    """
    if invitation.role == Role.OWNER:
        recent_require(request)
    made = invitation_create(
        email=invitation.email, role=invitation.role, capabilities=principal_of(request).capabilities
    )
    response.headers["Location"] = f"/api/v1/invitations/{made.invitation.id}"
    return Status(201, _created(made, response))


@router.get(
    "/invitations/{uuid:invitation_id}",
    response={200: InvitationOut, **problem_responses(401, 403, 404)},
    operation_id="invitation_get",
    summary="One invitation",
)
@requires(Scope.ADMIN)
def invitation(request: HttpRequest, invitation_id: UUID) -> InvitationOut:
    """One invitation. Another tenant's and one that never was are both 404."""
    return InvitationOut.of(invitation_get(invitation_id=invitation_id))


@router.delete(
    "/invitations/{uuid:invitation_id}",
    response={204: None, **problem_responses(401, 403, 404, 409)},
    operation_id="invitation_revoke",
    summary="Revoke an invitation",
)
@writes(Scope.ADMIN)
def invitation_delete(request: HttpRequest, invitation_id: UUID) -> Status[None]:
    """Its link is dead at once. It stays in the list. Again, this changes nothing; 409 when it was accepted."""
    invitation_revoke(invitation_id=invitation_id, capabilities=principal_of(request).capabilities)
    return Status(204, None)


@router.post(
    "/invitations/{uuid:invitation_id}/resend",
    response={200: InvitationCreatedOut, **problem_responses(401, 403, 404, 409)},
    operation_id="invitation_resend",
    summary="Send an invitation again",
)
@writes(Scope.ADMIN)
def invitation_again(request: HttpRequest, response: HttpResponse, invitation_id: UUID) -> InvitationCreatedOut:
    """With a new link for seven more days, as yours; the old link is dead. 429 when there were too many mails.

    To invite an owner from the console's session needs a recent sign-in.
    """
    if invitation_get(invitation_id=invitation_id).invitation.role == Role.OWNER:
        recent_require(request)
    made = invitation_resend(invitation_id=invitation_id, capabilities=principal_of(request).capabilities)
    return _created(made, response)


def _created(made: NewInvitation, response: HttpResponse) -> InvitationCreatedOut:
    response.headers["Cache-Control"] = "no-store"
    [view] = invitation_views([made.invitation])
    return InvitationCreatedOut(**_fields(view), link=made.link)


def _fields(view: InvitationView) -> dict[str, Any]:
    names = ("id", "email", "mail_state", "mailed_at", "created_at", "expires_at", "accepted_at", "revoked_at")
    return {
        **{name: getattr(view.invitation, name) for name in names},
        "role": Role(view.invitation.role),
        "state": view.state,
        "invited_by": view.invited_by,
    }
