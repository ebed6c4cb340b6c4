"""Forms of signing in and of one's own account."""

from __future__ import annotations

from typing import Any

from allauth.account.adapter import get_adapter
from allauth.account.forms import LoginForm
from allauth.core.internal import ratelimit
from django import forms
from django.contrib.auth import password_validation
from django.core.exceptions import NON_FIELD_ERRORS
from django.http import HttpRequest

from tenants.actors import actor_context, actor_unknown
from tenants.models import User
from tenants.services.people_audit import personevent_record
from tenants.services.second_factor import CodeWrong, code_verify
from webui.forms import ErrorAwareMixin, NewPasswordField, PasswordField
from webui.sign_in import TOO_MANY

THROTTLED = ("too_many_login_attempts", "rate_limited")


def is_throttled(form: forms.Form) -> bool:
    """Whether a form was refused because there were too many attempts."""
    return any(form.has_error(name, code) for name in (NON_FIELD_ERRORS, *form.fields) for code in THROTTLED)


class SignInForm(ErrorAwareMixin, LoginForm):  # type: ignore[misc]
    """Email and password. Which of the two was wrong is not told."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["login"] = forms.EmailField(
            label="Email",
            max_length=254,
            widget=forms.EmailInput(attrs={"autocomplete": "username", "autofocus": True, "spellcheck": "false"}),
            error_messages={
                "required": "Type the email that you were invited with.",
                "invalid": "This is not an email address. Type the one that you were invited with.",
            },
        )
        self.fields["password"] = PasswordField("Password")
        self.order_fields(["login", "password"])

    def clean_login(self) -> str:
        return str(self.cleaned_data["login"]).strip().lower()


def _code_field(label: str) -> forms.CharField:
    return forms.CharField(
        label=label,
        max_length=64,
        widget=forms.TextInput(
            attrs={"autocomplete": "one-time-code", "inputmode": "numeric", "spellcheck": "false", "autofocus": True}
        ),
        error_messages={"required": "Type the code.", "max_length": "A code has six or ten digits."},
    )


class CodeForm(ErrorAwareMixin, forms.Form):
    """A code of the person's authenticator app, or one of their recovery codes. Wrong ones are throttled."""

    code = _code_field("Code")

    def __init__(self, *args: Any, request: HttpRequest, user: User, autofocus: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.request, self.user = request, user
        self.authenticator: Any = None
        self.fields["code"].widget.attrs["autofocus"] = autofocus

    def clean_code(self) -> str:
        code = str(self.cleaned_data["code"])
        usage = _attempt(self.request, self.user)
        try:
            self.authenticator = code_verify(user=self.user, code=code)
        except CodeWrong as error:
            failed = "user.confirm_failed" if self.request.user.is_authenticated else "user.sign_in_failed"
            with actor_context(actor_unknown(self.request)):
                personevent_record(user=self.user, action=failed, after={"failed": "code"})
            raise forms.ValidationError(str(error), code="wrong") from error
        usage.rollback()
        return code


class EnrolForm(ErrorAwareMixin, forms.Form):
    """The first code of an app that is being set up. Attempts are counted; the view says when one was right."""

    code = _code_field("Code that the app shows")

    def __init__(self, *args: Any, request: HttpRequest, user: User, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.request, self.user = request, user
        self._usage: ratelimit.RateLimitUsage | None = None

    def clean_code(self) -> str:
        self._usage = _attempt(self.request, self.user)
        return str(self.cleaned_data["code"])

    def attempt_succeeded(self) -> None:
        """The code was right: it does not count as an attempt."""
        if self._usage is not None:
            self._usage.rollback()


class PasswordForm(ErrorAwareMixin, forms.Form):
    """The password of somebody who is signed in. Wrong ones are throttled like those of a sign-in."""

    password = PasswordField("Password", autofocus=True)

    def __init__(self, *args: Any, request: HttpRequest, user: User, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.request, self.user = request, user

    def clean_password(self) -> str:
        password = str(self.cleaned_data["password"])
        _password_check(self.request, self.user, password)
        return password


class NewPasswordForm(ErrorAwareMixin, forms.Form):
    """A password typed twice, strong enough."""

    password1 = NewPasswordField("New password")
    password2 = NewPasswordField("New password, once more")

    def __init__(self, *args: Any, user: User, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.user = user

    def clean_password1(self) -> str:
        password = str(self.cleaned_data["password1"])
        password_validation.validate_password(password, self.user)
        return password

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        first, second = cleaned.get("password1"), cleaned.get("password2")
        if first and second and first != second:
            self.add_error("password2", "The two are not the same. Type the new password again.")
        return cleaned


class ChangePasswordForm(NewPasswordForm):
    """The password there is, and a new one."""

    password = PasswordField("Current password")
    field_order = ("password", "password1", "password2")

    def __init__(self, *args: Any, request: HttpRequest, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.request = request

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean()
        if self.errors.keys() & {"password1", "password2"} or not cleaned.get("password"):
            # The current password is tried only when the rest is right: typing slips do not count as attempts.
            return cleaned
        try:
            _password_check(self.request, self.user, cleaned["password"])
        except forms.ValidationError as error:
            self.add_error("password", error)
        return cleaned


class ForgotPasswordForm(ErrorAwareMixin, forms.Form):
    """Whose password was forgotten."""

    email = forms.EmailField(
        label="Email",
        max_length=254,
        widget=forms.EmailInput(attrs={"autocomplete": "username", "autofocus": True, "spellcheck": "false"}),
        error_messages={
            "required": "Type the email that you sign in with.",
            "invalid": "This is not an email address. Type the one that you sign in with.",
        },
    )

    def clean_email(self) -> str:
        return str(self.cleaned_data["email"]).strip().lower()


def _attempt(request: HttpRequest, user: User) -> ratelimit.RateLimitUsage:
    """Count an attempt at a person's codes; taken back when it was right. Raises ValidationError: too many."""
    usage = ratelimit.consume(
        request, app="allauth.account", action="login_failed", key=f"second factor {user.pk}", limit_get=True
    )
    if usage is None:
        raise forms.ValidationError(TOO_MANY, code="too_many_login_attempts")
    return usage


def _password_check(request: HttpRequest, user: User, password: str) -> None:
    """Raise ValidationError unless `password` is that of `user`."""
    found = get_adapter().authenticate(request, email=user.email, password=password)
    if found is None or found.pk != user.pk:
        raise forms.ValidationError("This is not your password. Try again.", code="wrong")
