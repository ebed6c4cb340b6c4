"""Forms about members and invitations."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib.auth import password_validation

from tenants.models import User
from tenants.names import NAME_CHARS
from tenants.roles import Role, roles_grantable
from webui.forms import NewPasswordField, ServiceErrorsMixin

# What each role is for, in the words of the page.
ROLE_WORDS = {
    Role.OWNER: "everything, and who the owners are",
    Role.ADMIN: "everything but that: members, invitations, API keys, the audit log",
    Role.EDITOR: "policies, calls, replays and reports",
    Role.REVIEWER: "looks at calls and says whether Mirror was right",
    Role.VIEWER: "looks at calls and policies",
}


class InviteForm(ServiceErrorsMixin, forms.Form):
    """Whom to invite, as what. It offers the roles that the inviter may give."""

    email = forms.EmailField(
        label="Email",
        max_length=254,
        widget=forms.EmailInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
        error_messages={
            "required": "Type the email of the person to invite.",
            "invalid": "This is not an email address. Type one such as name@example.com.",
        },
    )
    role = forms.ChoiceField(error_messages={"invalid_choice": "Choose one of the list."})

    def __init__(self, *args: Any, capabilities: frozenset[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        role = self.fields["role"]
        assert isinstance(role, forms.ChoiceField)
        role.choices = [(choice.value, choice.label) for choice in reversed(roles_grantable(capabilities))]


class JoinForm(ServiceErrorsMixin, forms.Form):
    """A new person's name and password."""

    name = forms.CharField(
        label="Your name",
        max_length=NAME_CHARS,
        widget=forms.TextInput(attrs={"autocomplete": "name", "autofocus": True}),
        error_messages={"required": "Type your name.", "max_length": f"Use {NAME_CHARS} characters at most."},
    )
    password = NewPasswordField("Choose a password", required="Type a password.")

    def __init__(self, *args: Any, email: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.email = email

    def clean_password(self) -> str:
        password = str(self.cleaned_data["password"])
        password_validation.validate_password(
            password, User(email=self.email, name=str(self.cleaned_data.get("name", "")))
        )
        return password
