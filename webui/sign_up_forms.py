"""Forms of signing up."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django import forms
from django.contrib.auth import password_validation
from django.core import signing
from django.http import QueryDict

from mirror_saas.errors import InvalidInput
from mirror_saas.ids import uuid7
from tenants.emails import EMAIL_CHARS, email_clean
from tenants.models import User
from tenants.names import NAME_CHARS
from webui.forms import ErrorAwareMixin, NewPasswordField, ServiceErrorsMixin

_ONE_LINE = "Give a name in one line, without control characters."
_ONCE_SALT = "webui.sign_up.once"


class SignUpForm(ErrorAwareMixin, forms.Form):
    """The address that somebody wants to sign in with."""

    email = forms.EmailField(
        label="Email",
        max_length=EMAIL_CHARS,
        widget=forms.EmailInput(attrs={"autocomplete": "email", "autofocus": True, "spellcheck": "false"}),
        error_messages={
            "required": "Type the email that you want to sign in with.",
            "invalid": "This is not an email address. Type one such as name@example.com.",
        },
    )

    def clean_email(self) -> str:
        try:
            return email_clean(str(self.cleaned_data["email"]))
        except InvalidInput as error:
            raise forms.ValidationError(str(error)) from error


class _TenantName(forms.CharField):
    """What people call the tenant."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(
            label="Company or team",
            max_length=NAME_CHARS,
            widget=forms.TextInput(attrs={"autocomplete": "organization", **attributes}),
            error_messages={
                "required": "Type the name of your company or team.",
                "max_length": f"Use {NAME_CHARS} characters at most.",
                "null_characters_not_allowed": _ONE_LINE,
            },
            help_text="Its calls, agents and policies are kept apart from everybody else’s.",
        )


class AccountForm(ServiceErrorsMixin, forms.Form):
    """A new person, and the tenant that they will own."""

    name = forms.CharField(
        label="Your name",
        max_length=NAME_CHARS,
        widget=forms.TextInput(attrs={"autocomplete": "name", "autofocus": True}),
        error_messages={
            "required": "Type your name.",
            "max_length": f"Use {NAME_CHARS} characters at most.",
            "null_characters_not_allowed": _ONE_LINE,
        },
    )
    tenant_name = _TenantName()
    password = NewPasswordField("Choose a password", required="Type a password.")

    def __init__(self, *args: Any, email: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.email = email
        self.fields["password"].help_text = "12 characters or more, not a common one, nothing like your email."

    def clean_password(self) -> str:
        password = str(self.cleaned_data["password"])
        user = User(email=self.email, name=str(self.cleaned_data.get("name", "")))
        password_validation.validate_password(password, user)
        return password


class TenantForm(ServiceErrorsMixin, forms.Form):
    """Another tenant of somebody who has an account."""

    tenant_name = _TenantName(autofocus=True)
    # The tenant's id goes along with the form, so that sending it twice makes one. It is signed: ids are ours.
    once = forms.Field(widget=forms.HiddenInput, required=False)

    def __init__(self, data: QueryDict | None = None, *, person: UUID) -> None:
        super().__init__(data)
        self._person = str(person)
        self.initial["once"] = signing.dumps([str(uuid7()), self._person], salt=_ONCE_SALT)

    def clean_once(self) -> UUID:
        try:
            tenant_id, person = signing.loads(self.cleaned_data["once"] or "", salt=_ONCE_SALT)
        except signing.BadSignature:
            tenant_id, person = "", ""
        if person != self._person:
            self.data = again = QueryDict(mutable=True)
            again.update({"tenant_name": str(self.cleaned_data.get("tenant_name", "")), "once": self.initial["once"]})
            self.add_error(None, "This form was not made for you here and now. Look it over and send it again.")
            return UUID(int=0)
        return UUID(tenant_id)
