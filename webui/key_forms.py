"""Forms about API keys."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django import forms
from django.core import signing
from django.http import QueryDict
from django.utils import timezone

from mirror_saas.ids import uuid7
from tenants.names import NAME_CHARS
from tenants.roles import Scope
from webui.forms import LocalDateTimeInput, ServiceErrorsMixin

# What each scope lets a program do, in the words of the page.
SCOPE_WORDS = {
    Scope.CALLS_READ: "see calls: what was said, verdicts, interventions",
    Scope.CALLS_WRITE: "report turns of running calls, erase calls",
    Scope.POLICIES_READ: "see policies and their versions",
    Scope.POLICIES_WRITE: "write policies and publish them to new calls",
    Scope.LABELS_WRITE: "say whether Mirror was right",
    Scope.JUDGE: "have turns and tool calls judged, which costs tokens",
    Scope.REPLAY: "run replays, which cost tokens",
    Scope.REPORTS: "see failure reports and open their fixes",
    Scope.ADMIN: "members, API keys, settings, the audit log; for tools that manage the tenant only",
}
DAYS = {"7": "7 days", "30": "30 days", "90": "90 days", "365": "1 year"}
ON_A_DATE, NEVER = "date", "never"

_ONCE_SALT = "webui.api_keys.once"


class _DateField(forms.DateTimeField):
    def __init__(self, label: str) -> None:
        super().__init__(
            required=False,
            label=label,
            widget=LocalDateTimeInput(),
            error_messages={"invalid": "Give a date and time."},
        )


class ApiKeyForm(ServiceErrorsMixin, forms.Form):
    """A key to make. It offers the scopes that whoever makes it has."""

    service_fields = {"expires_at": "until"}  # noqa: RUF012

    name = forms.CharField(
        label="Name",
        max_length=NAME_CHARS,
        widget=forms.TextInput(attrs={"autocomplete": "off", "placeholder": "Nightly evaluation"}),
        error_messages={
            "required": "Say what the key is for.",
            "max_length": f"Use {NAME_CHARS} characters at most.",
            "null_characters_not_allowed": "Give a name in one line, without control characters.",
        },
    )
    scopes = forms.MultipleChoiceField(
        label="What it may do",
        widget=forms.CheckboxSelectMultiple,
        error_messages={
            "required": "Choose at least one.",
            "invalid_choice": "Choose from the list.",
            "invalid_list": "Choose from the list.",
        },
    )
    expiry = forms.ChoiceField(
        label="It ends",
        choices=[
            *((days, f"in {words}") for days, words in DAYS.items()),
            (ON_A_DATE, "on a date…"),
            (NEVER, "never, until it is revoked"),
        ],
        initial="90",
        error_messages={"required": "Choose when it ends.", "invalid_choice": "Choose one of the list."},
    )
    until = _DateField("On this date")
    once = forms.Field(widget=forms.HiddenInput, required=False)

    def __init__(
        self,
        data: QueryDict | None = None,
        *,
        held: Collection[str],
        person: UUID,
        tenant: UUID,
        initial: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(data, initial=initial)
        self._sent = data if data is not None else QueryDict()
        self._whose = [str(person), str(tenant)]
        scopes = self.fields["scopes"]
        assert isinstance(scopes, forms.MultipleChoiceField)
        scopes.choices = [(scope.value, SCOPE_WORDS[scope]) for scope in Scope if scope.value in held]
        # The key's id goes along with the form, so that sending it twice makes one key. It is signed: ids are ours.
        self.initial["once"] = signing.dumps([str(uuid7()), *self._whose], salt=_ONCE_SALT)

    def clean_once(self) -> UUID:
        try:
            key_id, *whose = signing.loads(self.cleaned_data["once"] or "", salt=_ONCE_SALT)
        except signing.BadSignature:
            key_id, whose = "", []
        if whose != self._whose:
            self.data = again = self._sent.copy()
            again["once"] = self.initial["once"]
            self.add_error(None, "This form was not made for you here and now. Look it over and send it again.")
            return UUID(int=0)
        return UUID(key_id)

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if cleaned.get("expiry") == ON_A_DATE and "until" in cleaned and cleaned["until"] is None:
            self.add_error("until", "Give the date and time that it ends.")
        return cleaned

    def expires_at(self) -> datetime | None:
        """When the key ends; None for never."""
        expiry = self.cleaned_data["expiry"]
        if expiry == NEVER:
            return None
        if expiry == ON_A_DATE:
            until: datetime = self.cleaned_data["until"]
            return until
        return timezone.now() + timedelta(days=int(expiry))

    def draft(self) -> dict[str, Any]:
        """What was typed, for when the person has to confirm first who they are."""
        return {
            "name": self._sent.get("name", "")[:NAME_CHARS],
            "scopes": [scope for scope in self._sent.getlist("scopes") if scope in Scope.values],
            "expiry": self._sent.get("expiry", "")[:8],
            "until": self._sent.get("until", "")[:32],
        }


class ApiKeyEditForm(ServiceErrorsMixin, forms.Form):
    """What can change of a key."""

    service_fields = {"expires_at": "until"}  # noqa: RUF012

    name = forms.CharField(
        label="Name",
        max_length=NAME_CHARS,
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
        error_messages={
            "required": "Say what the key is for.",
            "max_length": f"Use {NAME_CHARS} characters at most.",
            "null_characters_not_allowed": "Give a name in one line, without control characters.",
        },
    )
    until = _DateField("Let it end earlier, on")
