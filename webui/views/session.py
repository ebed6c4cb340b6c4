"""Signing in and out, and what to do about a forgotten password."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from allauth.account.views import LoginView
from allauth.core import ratelimit
from allauth.mfa.base.internal.flows import post_authentication
from allauth.mfa.base.views import AuthenticateView
from django.contrib import messages
from django.contrib.auth import logout
from django.contrib.auth import views as auth_views
from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_safe
from kombu.exceptions import OperationalError

from tenants.services.people import ResetLinkInvalid, password_reset, password_reset_user
from tenants.services.sign_up import sign_up_is_open
from tenants.tasks import password_reset_send
from webui.account_forms import CodeForm, ForgotPasswordForm, NewPasswordForm, SignInForm, is_throttled

logger = logging.getLogger(__name__)

_RESET_KEY = "password_reset_key"


class SignIn(LoginView):  # type: ignore[misc]
    """Email and password, then a code if the person has a second factor."""

    template_name = "webui/sign_in.html"
    form_class = SignInForm

    def get_form_class(self) -> type[SignInForm]:
        return SignInForm

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        context: dict[str, Any] = super().get_context_data(**kwargs)
        return {**context, "sign_up_is_open": sign_up_is_open()}

    def _redirect_to_pending_stage(self, request: HttpRequest, stage: Any) -> None:
        # Whoever comes back here while a code is awaited wants to sign in anew.
        return None

    def form_invalid(self, form: SignInForm) -> HttpResponse:
        status = HTTPStatus.TOO_MANY_REQUESTS if is_throttled(form) else HTTPStatus.OK
        answer: HttpResponse = self.render_to_response(self.get_context_data(form=form), status=status)
        return answer


class SignInCode(AuthenticateView):  # type: ignore[misc]
    """The second step of signing in. Without the first one: back to sign-in."""

    template_name = "webui/sign_in_code.html"

    def _build_forms(self) -> CodeForm | None:
        posted = self.request.POST if self.request.method == "POST" else None
        self.webauthn_form = None
        self.auth_form = CodeForm(posted, request=self.request, user=self.stage.login.user)
        return self.auth_form if posted is not None else None

    def form_valid(self, form: CodeForm) -> HttpResponse:
        post_authentication(self.request, form.authenticator)
        answer: HttpResponse = self.stage.exit()
        return answer

    def form_invalid(self, form: CodeForm) -> HttpResponse:
        status = HTTPStatus.TOO_MANY_REQUESTS if is_throttled(form) else HTTPStatus.OK
        answer: HttpResponse = self.render_to_response(self.get_context_data(), status=status)
        return answer


class SignOut(auth_views.LogoutView):
    """Ends the session; POST only, so that no link or image of another site can."""

    next_page = "webui:sign_in"


@login_not_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def forgot_password(request: HttpRequest) -> HttpResponse:
    """Ask for a mail. The answer is the same whether there is such an account, and takes the same time."""
    form = ForgotPasswordForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        refused: HttpResponse | None = ratelimit.consume_or_429(
            request, action="reset_password", key=form.cleaned_data["email"]
        )
        if refused is not None:
            return refused
        # Found out and sent by a worker: how long this answer takes tells nothing either.
        try:
            password_reset_send.apply_async((form.cleaned_data["email"],), argsrepr="…")
        except OperationalError:
            logger.warning("a password mail could not be handed to the workers: the broker does not answer")
            form.add_error(None, "The mail cannot be sent just now. Try again in a few minutes.")
            return render(request, "webui/forgot_password.html", {"form": form}, status=503)
        return redirect("webui:forgot_password_sent")
    return render(request, "webui/forgot_password.html", {"form": form})


@login_not_required
@require_safe
def forgot_password_sent(request: HttpRequest) -> HttpResponse:
    return render(request, "webui/forgot_password_sent.html")


@login_not_required
@never_cache
@require_safe
def reset_password(request: HttpRequest, key: str) -> HttpResponse:
    """The mailed link. Its key leaves the address at once: addresses end up in histories and logs."""
    request.session[_RESET_KEY] = key
    return redirect("webui:reset_password_new")


@login_not_required
@never_cache
@sensitive_post_parameters()
@require_http_methods(["GET", "HEAD", "POST"])
def reset_password_new(request: HttpRequest) -> HttpResponse:
    """Choose a new password, once."""
    key = str(request.session.get(_RESET_KEY, ""))
    try:
        user = password_reset_user(key=key)
        form = NewPasswordForm(request.POST or None, user=user)
        if request.method == "POST" and form.is_valid():
            refused: HttpResponse | None = ratelimit.consume_or_429(request, action="reset_password_from_key")
            if refused is not None:
                return refused
            password_reset(key=key, password=form.cleaned_data["password1"])
            # Also for somebody who was signed in here: their session has just ended with the others.
            logout(request)
            messages.success(request, "Your password is changed, and all sessions have ended. Sign in with it.")
            return redirect("webui:sign_in")
    except ResetLinkInvalid as error:
        return render(request, "webui/reset_password.html", {"form": None, "why": str(error)})
    return render(request, "webui/reset_password.html", {"form": form, "email": user.email})


@require_safe
def no_tenant(request: HttpRequest) -> HttpResponse:
    """For a person whose last membership ended, or who was never invited."""
    if not request.user.is_authenticated:
        return redirect("webui:sign_in")
    membership = getattr(request, "membership", None)
    if membership is not None:
        # They come here when they sent something from a page of a tenant that they are no member of any more.
        messages.warning(request, f"This is {membership.tenant.name}. Nothing was changed.")
        return redirect("webui:calls")
    return render(request, "webui/no_tenant.html", {"sign_up_is_open": sign_up_is_open()}, status=403)
