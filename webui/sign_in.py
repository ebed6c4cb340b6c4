"""What allauth asks of us at sign-in: its addresses are ours, nobody signs up, and the audit log hears of it."""

from __future__ import annotations

from typing import Any, ClassVar

from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.authentication import get_authentication_records
from django.contrib.auth.base_user import AbstractBaseUser
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.http import url_has_allowed_host_and_scheme

from mirror_saas.clients import client_address
from tenants.actors import actor_context, actor_of_request, actor_unknown
from tenants.authentication import recently_authenticated
from tenants.models import User
from tenants.services.people_audit import personevent_record

TOO_MANY = "Too many attempts. Wait five minutes, then try again; a right password does not help until then."


class AccountAdapter(DefaultAccountAdapter):  # type: ignore[misc]
    """See the module. A request is `self.request`, as allauth keeps it for the time of the request."""

    error_messages: ClassVar[dict[str, Any]] = {
        **DefaultAccountAdapter.error_messages,
        "email_password_mismatch": "Email or password is wrong. Check both and try again.",
        "too_many_login_attempts": TOO_MANY,
        "rate_limited": TOO_MANY,
    }

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return False

    def is_ajax(self, request: HttpRequest) -> bool:
        # Answers are pages, whatever a request says that it accepts.
        return False

    def get_client_ip(self, request: HttpRequest) -> str:
        return client_address(request)

    def is_safe_url(self, url: str) -> bool:
        return url_has_allowed_host_and_scheme(
            url, allowed_hosts={self.request.get_host()}, require_https=self.request.is_secure()
        )

    def is_reauthentication_required(self, *, app: str, **kwargs: Any) -> bool:
        return not recently_authenticated(self.request)

    def add_message(self, request: HttpRequest, level: int, *args: Any, **kwargs: Any) -> None:
        # What happened is on the page that comes next.
        return None

    def respond_user_inactive(self, request: HttpRequest, user: AbstractBaseUser) -> HttpResponse:
        return redirect("webui:sign_in")

    def _get_login_attempts_cache_key(self, request: HttpRequest, **credentials: Any) -> str:
        # Whichever of our names the browser used for us, it is the same account.
        return str(credentials.get("email", "")).strip().lower()

    def authentication_failed(self, request: HttpRequest, **credentials: Any) -> None:
        user = User.objects.filter(email=str(credentials.get("email", "")).strip().lower()).first()
        if user is not None:
            with actor_context(actor_unknown(request)):
                personevent_record(user=user, action="user.sign_in_failed", after={"failed": "password"})

    def login(self, request: HttpRequest, user: User) -> None:
        super().login(request, user)
        factors = {"recovery_codes": "recovery code", "totp": "authenticator app"}
        used = [
            factors.get(record.get("type", ""), "")
            for record in get_authentication_records(request, user)
            if record["method"] == "mfa"
        ]
        actor = actor_of_request(request, kind="user", actor_id=user.pk, label=user.email)
        with actor_context(actor):
            personevent_record(user=user, action="user.sign_in", after={"second_factor": used[-1] if used else None})
