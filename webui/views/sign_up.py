"""Signing up: an address, the link that proves it, then an account and a tenant. Whoever is signed in adds a tenant."""

from __future__ import annotations

import logging
from http import HTTPStatus

from allauth.account.internal.flows.login import perform_password_login
from allauth.account.models import Login
from allauth.core import ratelimit
from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables
from django.views.decorators.http import require_http_methods, require_safe
from kombu.exceptions import OperationalError

from mirror_saas.ids import uuid7
from tenants.actors import actor_context, actor_of_request
from tenants.middleware import session_tenant_set
from tenants.models import User
from tenants.services import sign_up as services
from tenants.services.invitations import AddressUnproven
from tenants.services.sign_up import SignUpClosed, SignUpLinkInvalid, sign_up_is_open, sign_up_of, sign_up_token
from tenants.tasks import sign_up_send
from webui.sign_up_forms import AccountForm, SignUpForm, TenantForm

logger = logging.getLogger(__name__)

# The mailed link's token leaves the address at once: addresses end up in histories and logs.
_LINK = "sign_up_link"


@login_not_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def sign_up(request: HttpRequest) -> HttpResponse:
    """Ask for an address. The answer is the same whether it has an account, and takes the same time."""
    if not sign_up_is_open():
        return _closed(request)
    if isinstance(request.user, User):
        return _tenant(request, request.user)
    form = SignUpForm(request.POST if request.method == "POST" else None)
    if request.method != "POST" or not form.is_valid():
        return render(request, "webui/sign_up/email.html", {"form": form})
    email = form.cleaned_data["email"]
    refused: HttpResponse | None = ratelimit.consume_or_429(request, action="sign_up", key=email)
    if refused is not None:
        return refused
    if settings.MIRROR.email is None:
        # Nothing can prove the address, so nothing is waited for.
        request.session[_LINK] = sign_up_token(email=email, proven=False)
        return redirect("webui:sign_up_new")
    try:
        sign_up_send.apply_async((email,), argsrepr="…")
    except OperationalError:
        logger.warning("a mail to sign up could not be handed to the workers: the broker does not answer")
        form.add_error(None, "The mail cannot be sent just now. Try again in a few minutes.")
        return render(request, "webui/sign_up/email.html", {"form": form}, status=HTTPStatus.SERVICE_UNAVAILABLE)
    return redirect("webui:sign_up_sent")


@login_not_required
@require_safe
def sign_up_sent(request: HttpRequest) -> HttpResponse:
    return render(request, "webui/sign_up/sent.html")


@login_not_required
@never_cache
@sensitive_variables("token")
@require_safe
def sign_up_link(request: HttpRequest, token: str) -> HttpResponse:
    """The mailed link. Looking at it does nothing: mail scanners do."""
    request.session[_LINK] = token
    return redirect("webui:sign_up_new")


@login_not_required
@never_cache
@sensitive_post_parameters("password")
@sensitive_variables("token")
@require_http_methods(["GET", "HEAD", "POST"])
def sign_up_new(request: HttpRequest) -> HttpResponse:
    """Choose name, tenant and password, and be signed in."""
    if not sign_up_is_open():
        return _closed(request)
    if request.user.is_authenticated:
        return redirect("webui:home")
    token = str(request.session.get(_LINK, ""))
    try:
        found = sign_up_of(token)
    except SignUpLinkInvalid as error:
        return _gone(request, str(error))
    if found.has_account:
        # Made before: by them in another window, or by the first of two sendings.
        return render(request, "webui/sign_up/known.html", {"email": found.email})
    form = AccountForm(request.POST if request.method == "POST" else None, email=found.email)
    if request.method != "POST" or not form.is_valid():
        return _new(request, form, found.email)
    refused: HttpResponse | None = ratelimit.consume_or_429(request, action="sign_up_new")
    if refused is not None:
        return refused
    user_id = uuid7()
    try:
        with actor_context(actor_of_request(request, kind="user", actor_id=user_id, label=found.email)):
            user, tenant = services.sign_up(
                token=token,
                user_id=user_id,
                name=form.cleaned_data["name"],
                tenant_name=form.cleaned_data["tenant_name"],
                password=form.cleaned_data["password"],
            )
    except (SignUpLinkInvalid, AddressUnproven) as error:
        return _gone(request, str(error))
    except ValidationError as error:
        if "email" in error.message_dict:
            # The first of two sendings was quicker.
            return redirect("webui:sign_up_new")
        form.refuse(error)
        return _new(request, form, found.email)
    # As every sign-in: the session, its record and the audit log know of it.
    answer: HttpResponse = perform_password_login(
        request, {"email": user.email}, Login(user=user, redirect_url=reverse("webui:welcome"))
    )
    if request.user.is_authenticated:
        request.session.pop(_LINK, None)
        session_tenant_set(request, tenant.id)
    return answer


def _tenant(request: HttpRequest, user: User) -> HttpResponse:
    """Another tenant of somebody who has an account."""
    form = TenantForm(request.POST if request.method == "POST" else None, person=user.pk)
    if request.method == "POST" and form.is_valid():
        refused: HttpResponse | None = ratelimit.consume_or_429(request, action="sign_up_new")
        if refused is not None:
            return refused
        try:
            with actor_context(actor_of_request(request, kind="user", actor_id=user.pk, label=user.email)):
                tenant = services.tenant_add(
                    user=user, tenant_id=form.cleaned_data["once"], tenant_name=form.cleaned_data["tenant_name"]
                )
        except SignUpClosed:
            return _closed(request)
        except ValidationError as error:
            form.refuse(error)
        else:
            session_tenant_set(request, tenant.id)
            return redirect("webui:welcome")
    return render(request, "webui/sign_up/tenant.html", {"form": form})


def _new(request: HttpRequest, form: AccountForm, email: str) -> HttpResponse:
    return render(request, "webui/sign_up/new.html", {"form": form, "email": email})


def _gone(request: HttpRequest, why: str) -> HttpResponse:
    return render(request, "webui/sign_up/gone.html", {"why": why}, status=HTTPStatus.NOT_FOUND)


def _closed(request: HttpRequest) -> HttpResponse:
    return render(request, "webui/sign_up/closed.html", status=HTTPStatus.FORBIDDEN)
