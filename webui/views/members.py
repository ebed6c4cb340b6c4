"""Who belongs to the tenant: members, invitations, and leaving."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from mirror_saas.errors import Conflict, InvalidInput
from mirror_saas.pages import BadCursor
from tenants.authentication import recently_authenticated
from tenants.mail_limits import TooManyMails
from tenants.models import Membership
from tenants.roles import Role, capability_require, role_grantable, role_needs, roles_grantable
from tenants.selectors.invitations import InvitationNotFound, InvitationView, invitation_get, invitation_list
from tenants.selectors.memberships import MemberNotFound, member_get, member_list, owner_count
from tenants.services.invitations import (
    NewInvitation,
    invitation_create,
    invitation_link,
    invitation_resend,
    invitation_revoke,
)
from tenants.services.memberships import LastOwner, membership_leave, membership_remove, membership_role_change
from webui.access import MemberRequest, member_view, reauthenticated, to_confirm
from webui.member_forms import ROLE_WORDS, InviteForm
from webui.once import once
from webui.pager import pager_urls

# The invitation whose link the next page shows, once; the link itself is made when it is shown.
_LINK = "invitation_link"
# What was typed before the person had to confirm who they are.
_DRAFT = "invitation_draft"


@never_cache
@require_safe
@member_view(scope="admin")
def members(request: MemberRequest) -> HttpResponse:
    """Members and open invitations."""
    draft = request.session.pop(_DRAFT, None)
    form = InviteForm(
        initial=draft if isinstance(draft, dict) else {"role": Role.VIEWER.value},
        capabilities=request.membership.capabilities,
    )
    return _page(request, form)


@never_cache
@require_POST
@member_view(scope="admin")
@once
def invite(request: MemberRequest) -> HttpResponse:
    """Send an invitation. What is wrong stands at the field, and what was typed stays."""
    capabilities = request.membership.capabilities
    form = InviteForm(request.POST, capabilities=capabilities)
    if not form.is_valid():
        return _page(request, form)
    role = Role(form.cleaned_data["role"])
    if role == Role.OWNER and not recently_authenticated(request):
        request.session[_DRAFT] = {"email": form.cleaned_data["email"], "role": role.value}
        return to_confirm(reverse("webui:members"))
    try:
        made = invitation_create(email=form.cleaned_data["email"], role=role, capabilities=capabilities)
    except InvalidInput as error:
        form.refuse_field(error.field, str(error))
        return _page(request, form)
    except TooManyMails as error:
        form.refuse_field(None, str(error))
        return _page(request, form, HTTPStatus.TOO_MANY_REQUESTS)
    return _sent(request, made)


@never_cache
@require_POST
@member_view(scope="admin")
@once
def resend(request: MemberRequest, invitation_id: UUID) -> HttpResponse:
    """Send an invitation again, with a new link."""
    view = _invitation(request, invitation_id)
    if view.invitation.role == Role.OWNER and not recently_authenticated(request):
        return to_confirm(reverse("webui:members"))
    try:
        made = invitation_resend(invitation_id=invitation_id, capabilities=request.membership.capabilities)
    except (Conflict, TooManyMails) as error:
        messages.error(request, str(error))
        return redirect("webui:members")
    return _sent(request, made)


@never_cache
@require_POST
@member_view(scope="admin")
def revoke(request: MemberRequest, invitation_id: UUID) -> HttpResponse:
    """End an invitation."""
    view = _invitation(request, invitation_id)
    try:
        invitation_revoke(invitation_id=invitation_id, capabilities=request.membership.capabilities)
    except Conflict as error:
        messages.error(request, str(error))
    else:
        messages.success(request, f"The invitation of {view.invitation.email} is revoked; its link is dead.")
    return redirect("webui:members")


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="admin")
def role(request: MemberRequest, membership_id: UUID) -> HttpResponse:
    """Give a member another role. What makes or unmakes an owner is confirmed first, by who they are and on a page."""
    member = _member(membership_id)
    given = request.POST if request.method == "POST" else request.GET
    try:
        wanted = Role(given.get("role", ""))
    except ValueError:
        messages.error(request, "Choose one of the roles in the list.")
        return redirect("webui:members")
    if Role.OWNER in (wanted, member.role) and wanted != member.role:
        # Refused before it is confirmed: nobody proves who they are for what they may not do.
        _grantable_required(request, wanted, Role(member.role))
        if request.method != "POST" or given.get("confirmed") != "yes" or not recently_authenticated(request):
            return _role_confirm(request, member, wanted)
    elif request.method != "POST":
        return redirect("webui:members")
    _grantable_required(request, wanted, Role(member.role))
    try:
        membership_role_change(membership_id=membership_id, role=wanted, capabilities=request.membership.capabilities)
    except LastOwner as error:
        messages.error(request, str(error))
    except MemberNotFound as error:
        raise Http404(str(error)) from error
    else:
        messages.success(request, f"{member.user.email} is {_a(wanted)} now.")
    if member.user_id == request.user.pk:
        # Their own role may not show them this page any more.
        return redirect("webui:home")
    return redirect("webui:members")


@reauthenticated
def _role_confirm(request: MemberRequest, member: Membership, wanted: Role) -> HttpResponse:
    if request.method == "POST":
        query = urlencode({"role": wanted.value})
        return redirect(f"{reverse('webui:member_role', kwargs={'membership_id': member.id})}?{query}")
    return render(
        request,
        "webui/members/role.html",
        {"section": "members", "person": member, "wanted": wanted, "does": ROLE_WORDS[wanted]},
    )


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="admin")
@reauthenticated
def remove(request: MemberRequest, membership_id: UUID) -> HttpResponse:
    """Ask, then end a membership."""
    member = _member(membership_id)
    _grantable_required(request, Role(member.role))
    if member.user_id == request.user.pk:
        return redirect("webui:leave")
    if request.method != "POST":
        return render(request, "webui/members/remove.html", {"section": "members", "person": member})
    try:
        membership_remove(membership_id=membership_id, capabilities=request.membership.capabilities)
    except LastOwner as error:
        messages.error(request, str(error))
    except MemberNotFound as error:
        raise Http404(str(error)) from error
    else:
        messages.success(request, f"{member.user.email} is no member any more, and sees nothing of this tenant.")
    return redirect("webui:members")


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="membership")
def leave(request: MemberRequest) -> HttpResponse:
    """Ask, then end one's own membership."""
    tenant = request.membership.tenant
    last_owner = request.membership.role == Role.OWNER and owner_count() == 1
    if request.method == "POST":
        try:
            membership_leave(user_id=request.user.pk)
        except LastOwner:
            last_owner = True
        else:
            messages.success(request, f"You have left {tenant.name}.")
            return redirect("webui:account")
    return render(request, "webui/members/leave.html", {"section": "", "last_owner": last_owner})


# -- parts --------------------------------------------------------------------------------------------------------


def _page(request: MemberRequest, form: InviteForm, status: HTTPStatus = HTTPStatus.OK) -> HttpResponse:
    capabilities = request.membership.capabilities
    try:
        shown = member_list(cursor=request.GET.get("cursor"))
    except BadCursor:
        return redirect("webui:members")
    owners = owner_count()
    invitations = invitation_list(open_only=True, limit=200)
    fresh = None
    fresh_id = request.session.pop(_LINK, None)
    for view in invitations.items:
        if str(view.invitation.id) == fresh_id and view.state == "pending":
            fresh = {"view": view, "link": invitation_link(view.invitation)}
    return render(
        request,
        "webui/members/list.html",
        {
            "section": "members",
            "form": form,
            "members": [_row(member, capabilities, owners, request.user.pk) for member in shown.items],
            **pager_urls(reverse("webui:members"), cursor=request.GET.get("cursor"), older=shown.next),
            "invitations": [
                {"view": view, "mine": role_grantable(capabilities, view.invitation.role)} for view in invitations.items
            ],
            "more_invitations": invitations.next is not None,
            "fresh": fresh,
            "mail_server": settings.MIRROR.email is not None,
            "role_words": [(choice.label, ROLE_WORDS[choice]) for choice in Role],
        },
        status=status,
    )


def _row(member: Membership, capabilities: frozenset[str], owners: int, viewer: UUID) -> dict[str, Any]:
    last_owner = member.role == Role.OWNER and owners == 1
    may = role_grantable(capabilities, member.role) and not last_owner
    return {
        "member": member,
        "you": member.user_id == viewer,
        "last_owner": last_owner,
        "roles": roles_grantable(capabilities) if may else [],
        "removable": may,
    }


def _sent(request: MemberRequest, made: NewInvitation) -> HttpResponse:
    request.session[_LINK] = str(made.invitation.id)
    return redirect("webui:members")


def _member(membership_id: UUID) -> Membership:
    try:
        return member_get(membership_id=membership_id)
    except MemberNotFound as error:
        raise Http404(str(error)) from error


def _invitation(request: MemberRequest, invitation_id: UUID) -> InvitationView:
    try:
        view = invitation_get(invitation_id=invitation_id)
    except InvitationNotFound as error:
        raise Http404(str(error)) from error
    _grantable_required(request, Role(view.invitation.role))
    return view


def _grantable_required(request: MemberRequest, *roles: Role) -> None:
    for each in roles:
        capability_require(request.membership.capabilities, role_needs(each.value))


def _a(wanted: Role) -> str:
    return f"{'an' if wanted.value[0] in 'aeo' else 'a'} {wanted.label.lower()}"
