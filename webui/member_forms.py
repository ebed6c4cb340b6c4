"""Forms about members and invitations."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib.auth import password_validation

from tenants.models import User
from tenants.names import NAME_CHARS
from tenants.roles import Role, roles_grantable
from webui.forms import ErrorAwareMixin

# What each role is for, in the words of the page.
ROLE_WORDS = {
    Role.OWNER: "everything, and who the owners are",
    Role.ADMIN: "everything but that: members, invitations, API keys, the audit log",
    Role.EDITOR: "policies, calls, replays and reports",
    Role.REVIEWER: "looks at calls and says whether Mirror was right",
    Role.VIEWER: "looks at calls and policies",
}


class InviteForm(ErrorAwareMixin, forms.Form):
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

    def refuse(self, field: str | None, message: str) -> None:
        """Say at `field` what the service says is wrong with it."""
        self.add_error(field if field in self.fields else None, message)
        self.mark_errors()


class JoinForm(ErrorAwareMixin, forms.Form):
    """A new person's name and password."""

    name = forms.CharField(
        label="Your name",
        max_length=NAME_CHARS,
        widget=forms.TextInput(attrs={"autocomplete": "name", "autofocus": True}),
        error_messages={"required": "Type your name.", "max_length": f"Use {NAME_CHARS} characters at most."},
    )
    password = forms.CharField(
        label="Choose a password",
        strip=False,
        max_length=4096,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
        error_messages={"required": "Type a password.", "max_length": "Use 4096 characters at most."},
    )

    def __init__(self, *args: Any, email: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.email = email

    def clean_password(self) -> str:
        password = str(self.cleaned_data["password"])
        password_validation.validate_password(
            password, User(email=self.email, name=str(self.cleaned_data.get("name", "")))
        )
        return password

    def refuse(self, field: str, messages: list[str]) -> None:
        """Say at `field` what the service says is wrong with it."""
        self.add_error(field if field in self.fields else None, " ".join(messages))
        self.mark_errors()
