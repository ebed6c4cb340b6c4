"""A person's own account: password, second factor, sessions."""

from __future__ import annotations

import base64
from http import HTTPStatus
from urllib.parse import quote

from allauth.account.internal.flows.reauthentication import reauthenticate_by_password
from allauth.mfa.adapter import get_adapter as get_mfa_adapter
from allauth.mfa.base.internal.flows import post_authentication
from django.contrib import messages
from django.contrib.auth import update_session_auth_hash
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_GET, require_http_methods, require_POST, require_safe

from tenants.envelope import SealBroken
from tenants.mfa import text_open, text_seal
from tenants.selectors.memberships import membership_list
from tenants.services.people import (
    SessionNotFound,
    password_change,
    session_key_changed,
    session_list,
    session_revoke,
    sessions_revoke_others,
)
from tenants.services.second_factor import (
    CodeWrong,
    SecondFactorOff,
    SecondFactorOn,
    recovery_codes_left,
    recovery_codes_renew,
    recovery_codes_show,
    second_factor_is_on,
    second_factor_off,
    totp_activate,
    totp_secret_new,
)
from webui.access import PersonRequest, person_view, reauthenticated
from webui.account_forms import (
    ChangePasswordForm,
    CodeForm,
    EnrolForm,
    PasswordForm,
    is_throttled,
)
from webui.browsers import browser_name

# The secret of an app that is being set up waits in the session, sealed.
_PENDING = "second_factor_pending"


@never_cache
@require_safe
@person_view
def account(request: PersonRequest) -> HttpResponse:
    """Everything about the account on one page."""
    user = request.user
    key = request.session.session_key
    return render(
        request,
        "webui/account/account.html",
        {
            "second_factor": second_factor_is_on(user=user),
            "recovery_codes_left": recovery_codes_left(user=user),
            "memberships": membership_list(user_id=user.pk),
            "sessions": [
                {
                    "id": session.id,
                    "browser": browser_name(session.user_agent),
                    "user_agent": session.user_agent,
                    "ip": session.ip,
                    "created_at": session.created_at,
                    "last_seen_at": session.last_seen_at,
                    "current": session.session_key == key,
                }
                for session in session_list(user=user)
            ],
        },
    )


@never_cache
@sensitive_post_parameters()
@require_http_methods(["GET", "HEAD", "POST"])
@person_view
def confirm(request: PersonRequest) -> HttpResponse:
    """Prove anew who you are, by password or code, before something dangerous."""
    user = request.user
    back = request.POST.get("next") or request.GET.get("next") or ""
    if not url_has_allowed_host_and_scheme(back, allowed_hosts={request.get_host()}, require_https=request.is_secure()):
        back = reverse("webui:account")
    by_code = second_factor_is_on(user=user)
    sent = request.POST.get("by") if request.method == "POST" else None
    password = PasswordForm(request.POST if sent == "password" else None, request=request, user=user)
    code = CodeForm(request.POST if sent == "code" and by_code else None, request=request, user=user, autofocus=False)
    status = HTTPStatus.OK
    if sent == "password" and password.is_valid():
        reauthenticate_by_password(request)
        return redirect(back)
    if sent == "code" and by_code and code.is_valid():
        post_authentication(request, code.authenticator, reauthenticated=True)
        return redirect(back)
    if is_throttled(password) or is_throttled(code):
        status = HTTPStatus.TOO_MANY_REQUESTS
    return render(
        request,
        "webui/account/confirm.html",
        {
            "password": password if user.has_usable_password() else None,
            "code": code if by_code else None,
            "next": back,
        },
        status=status,
    )


@never_cache
@sensitive_post_parameters()
@require_http_methods(["GET", "HEAD", "POST"])
@person_view
def password(request: PersonRequest) -> HttpResponse:
    """Change the password. All other sessions end."""
    form = ChangePasswordForm(request.POST or None, request=request, user=request.user)
    if request.method == "POST" and form.is_valid():
        before = request.session.session_key
        password_change(user=request.user, password=form.cleaned_data["password1"], keep_session_key=before)
        update_session_auth_hash(request, request.user)
        if before is not None and request.session.session_key is not None:
            session_key_changed(before=before, after=request.session.session_key)
        messages.success(request, "Your password is changed. Your other sessions have ended.")
        return redirect("webui:account")
    status = HTTPStatus.TOO_MANY_REQUESTS if is_throttled(form) else HTTPStatus.OK
    return render(request, "webui/account/password.html", {"form": form}, status=status)


# -- second factor -------------------------------------------------------------------------------------------------


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@person_view
@reauthenticated
def two_factor(request: PersonRequest) -> HttpResponse:
    """Set up an authenticator app: scan, then type its code."""
    user = request.user
    if second_factor_is_on(user=user):
        # A form that was sent twice goes on to what the first one leads to.
        return redirect("webui:recovery_codes" if request.method == "POST" else "webui:account")
    secret = _pending_secret(request)
    form = EnrolForm(request.POST or None, request=request, user=user)
    if request.method == "POST" and form.is_valid():
        try:
            totp_activate(user=user, secret=secret, code=form.cleaned_data["code"])
        except CodeWrong as error:
            form.add_error("code", str(error))
            form.mark_errors()
        except SecondFactorOn:
            return redirect("webui:recovery_codes")
        else:
            form.attempt_succeeded()
            request.session.pop(_PENDING, None)
            messages.success(request, "Two-factor authentication is on.")
            return redirect("webui:recovery_codes")
    return render(
        request,
        "webui/account/two_factor.html",
        {
            "form": form,
            "secret": " ".join(secret[at : at + 4] for at in range(0, len(secret), 4)),
            "qr": _qr_data_url(get_mfa_adapter().build_totp_url(user, secret)),
        },
        status=HTTPStatus.TOO_MANY_REQUESTS if is_throttled(form) else HTTPStatus.OK,
    )


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@person_view
@reauthenticated
def two_factor_off(request: PersonRequest) -> HttpResponse:
    """Turn the second factor off, after one more question."""
    if request.method == "POST":
        try:
            second_factor_off(user=request.user)
        except SecondFactorOff:
            # Sent twice: what was wanted is so already.
            return redirect("webui:account")
        messages.success(request, "Two-factor authentication is off, and your recovery codes are gone.")
        return redirect("webui:account")
    if not second_factor_is_on(user=request.user):
        return redirect("webui:account")
    return render(request, "webui/account/two_factor_off.html")


@never_cache
@require_GET
@person_view
@reauthenticated
def recovery_codes(request: PersonRequest) -> HttpResponse:
    """The recovery codes, once."""
    if not second_factor_is_on(user=request.user):
        return redirect("webui:account")
    codes = recovery_codes_show(user=request.user)
    text = ""
    if codes:
        lines = "\n".join(codes)
        text = f"Recovery codes of {request.user.email} for Mirror. Each works once.\n\n{lines}\n"
    return render(
        request,
        "webui/account/recovery_codes.html",
        {
            "codes": codes,
            "download": f"data:text/plain;charset=utf-8,{quote(text)}",
            "left": recovery_codes_left(user=request.user),
        },
    )


@never_cache
@require_POST
@person_view
@reauthenticated
def recovery_codes_new(request: PersonRequest) -> HttpResponse:
    """Make new recovery codes; the old ones stop working."""
    try:
        recovery_codes_renew(user=request.user)
    except SecondFactorOff:
        return redirect("webui:account")
    return redirect("webui:recovery_codes")


# -- sessions ------------------------------------------------------------------------------------------------------


@require_POST
@person_view
def session_end(request: PersonRequest, session_id: int) -> HttpResponse:
    """End one of the person's own sessions. Somebody else's and a missing one are the same 404."""
    try:
        session_revoke(user=request.user, session_id=session_id)
    except SessionNotFound as error:
        raise Http404(str(error)) from error
    messages.success(request, "The session has ended.")
    return redirect("webui:account")


@require_POST
@person_view
def sessions_end(request: PersonRequest) -> HttpResponse:
    """End all of the person's sessions but this one."""
    ended = sessions_revoke_others(user=request.user, keep_session_key=request.session.session_key)
    messages.success(request, f"{ended} other session{'' if ended == 1 else 's'} ended.")
    return redirect("webui:account")


def _pending_secret(request: PersonRequest) -> str:
    """The secret of the app that is being set up: the same one until it is, so that a reloaded page shows it again."""
    field = f"session.{_PENDING}:{request.user.pk}"
    try:
        return text_open(str(request.session.get(_PENDING, "")), field=field)
    except SealBroken:
        # There is none yet, or the key was exchanged meanwhile.
        secret = totp_secret_new()
        request.session[_PENDING] = text_seal(secret, field=field)
        return secret


def _qr_data_url(url: str) -> str:
    """`url` as a QR code without a ground of its own."""
    svg: str = get_mfa_adapter().build_totp_svg(url)
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
