"""Accepting an invitation. Looking at the link does nothing: mail scanners follow links."""

from __future__ import annotations

from http import HTTPStatus

from allauth.account.internal.flows.login import perform_password_login
from allauth.account.models import Login
from django.contrib.auth import logout
from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables
from django.views.decorators.http import require_http_methods

from mirror_saas.ids import uuid7
from tenants.actors import actor_context, actor_of_request
from tenants.middleware import session_tenant_set
from tenants.models import User
from tenants.roles import Role
from tenants.selectors.invitations import InvitationGone, InvitationOpened, invitation_open
from tenants.services.invitations import (
    AddressUnproven,
    InvitationOfAnother,
    address_proof_needed,
    invitation_accept,
    invitation_accept_new,
)
from webui.member_forms import ROLE_WORDS, JoinForm


@login_not_required
@never_cache
@sensitive_post_parameters("password")
@sensitive_variables("token")
@require_http_methods(["GET", "HEAD", "POST"])
def invitation(request: HttpRequest, token: str) -> HttpResponse:
    """Whom the link is for, and what they can do about it; POST accepts, or signs somebody else out."""
    if request.method == "POST" and request.POST.get("do") == "sign_out":
        logout(request)
        return redirect("webui:invitation", token=token)
    try:
        opened = invitation_open(token=token)
        user = request.user
        if isinstance(user, User):
            return _as_member(request, token, opened, user)
        if opened.has_account:
            query = reverse("webui:invitation", kwargs={"token": token})
            return _shown(request, opened, step="sign_in", back=query)
        if address_proof_needed(proven=opened.proven):
            return _shown(request, opened, step="unproven")
        return _as_new(request, token, opened)
    except InvitationGone:
        # Used, revoked, replaced, expired, and never made look alike.
        return render(request, "webui/invitation/gone.html", status=HTTPStatus.NOT_FOUND)


def _as_member(request: HttpRequest, token: str, opened: InvitationOpened, user: User) -> HttpResponse:
    if opened.email != user.email:
        return _shown(request, opened, step="another", status=HTTPStatus.FORBIDDEN if request.POST else HTTPStatus.OK)
    if request.method != "POST":
        return _shown(request, opened, step="accept")
    with actor_context(actor_of_request(request, kind="user", actor_id=user.pk, label=user.email)):
        try:
            tenant = invitation_accept(token=token, user=user)
        except InvitationOfAnother:
            return _shown(request, opened, step="another", status=HTTPStatus.FORBIDDEN)
    session_tenant_set(request, tenant.id)
    return redirect("webui:home")


def _as_new(request: HttpRequest, token: str, opened: InvitationOpened) -> HttpResponse:
    form = JoinForm(request.POST if request.method == "POST" else None, email=opened.email)
    if request.method != "POST" or not form.is_valid():
        return _shown(request, opened, step="join", form=form)
    user_id = uuid7()
    try:
        with actor_context(actor_of_request(request, kind="user", actor_id=user_id, label=opened.email)):
            user, tenant = invitation_accept_new(
                token=token, user_id=user_id, name=form.cleaned_data["name"], password=form.cleaned_data["password"]
            )
    except AddressUnproven:
        return _shown(request, opened, step="unproven")
    except ValidationError as error:
        form.refuse(error)
        return _shown(request, opened, step="join", form=form)
    # As every sign-in: the session, its record and the audit log know of it.
    answer: HttpResponse = perform_password_login(
        request, {"email": user.email}, Login(user=user, redirect_url=reverse("webui:home"))
    )
    if request.user.is_authenticated:
        session_tenant_set(request, tenant.id)
    return answer


def _shown(
    request: HttpRequest,
    opened: InvitationOpened,
    *,
    step: str,
    form: JoinForm | None = None,
    back: str = "",
    status: HTTPStatus = HTTPStatus.OK,
) -> HttpResponse:
    return render(
        request,
        "webui/invitation/invitation.html",
        {"opened": opened, "step": step, "form": form, "back": back, "does": ROLE_WORDS[Role(opened.role)]},
        status=status,
    )
