"""Forms of the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django import forms
from django.core.exceptions import ValidationError

from supervision.models import Call
from supervision.selectors.calls import CallFilters
from supervision.selectors.search import MAX_QUERY_CHARS


class ErrorAwareMixin:
    """Marks fields with errors for screen readers and points them to the error's text."""

    def is_valid(self) -> bool:
        valid: bool = super().is_valid()  # type: ignore[misc]
        self.mark_errors()
        return valid

    def mark_errors(self: Any) -> None:
        for name in self.errors:
            if name in self.fields:
                attributes = self.fields[name].widget.attrs
                attributes["aria-invalid"] = "true"
                about = [f"{self[name].auto_id}_helptext"] if self.fields[name].help_text else []
                attributes["aria-describedby"] = " ".join([*about, f"{self[name].auto_id}-error"])


class ServiceErrorsMixin(ErrorAwareMixin):
    """Shows what a service says is wrong at the fields of the form."""

    # Field of the service → field of the form.
    service_fields: dict[str, str] = {}  # noqa: RUF012

    def refuse(self: Any, error: ValidationError) -> None:
        found = error.message_dict if hasattr(error, "error_dict") else {"": error.messages}
        for name, messages in found.items():
            self.refuse_field(self.service_fields.get(name, name), *messages)

    def refuse_field(self: Any, field: str | None, *messages: str) -> None:
        """Say at `field` what is wrong with it; above the form when it has no such field."""
        for message in messages:
            self.add_error(field if field in self.fields else None, message)
        self.mark_errors()


class PasswordField(forms.CharField):
    """A password as it was typed, of at most 4096 characters; `autofocus` puts the cursor there."""

    def __init__(self, label: str, *, autofocus: bool = False) -> None:
        attributes = {"autocomplete": "current-password", **({"autofocus": True} if autofocus else {})}
        super().__init__(
            label=label,
            strip=False,
            max_length=4096,
            widget=forms.PasswordInput(attrs=attributes),
            error_messages={"required": "Type your password.", "max_length": "This is longer than any password here."},
        )


class NewPasswordField(forms.CharField):
    """A password to be, of at most 4096 characters."""

    def __init__(self, label: str, *, required: str = "Type the new password.") -> None:
        super().__init__(
            label=label,
            strip=False,
            max_length=4096,
            widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
            error_messages={"required": required, "max_length": "Use 4096 characters at most."},
        )


class LocalDateTimeInput(forms.DateTimeInput):
    """The browser's field for date and time in the viewer's zone. What no such field could hold is not written into
    it: the field's error says what is wrong."""

    input_type = "datetime-local"

    def __init__(self) -> None:
        super().__init__(format="%Y-%m-%dT%H:%M")

    def format_value(self, value: Any) -> str | None:
        text = super().format_value(value)
        try:
            datetime.fromisoformat(text or "")
        except ValueError:
            return None
        return text


class AgentChoiceForm(forms.Form):
    """A filter form with a field `agent`, a choice among these agents or all."""

    def __init__(self, data: Mapping[str, Any], *, agents: Sequence[tuple[UUID, str]]) -> None:
        super().__init__(data)
        agent = self.fields["agent"]
        assert isinstance(agent, forms.TypedChoiceField)
        agent.choices = [("", "Any agent"), *((str(agent_id), name) for agent_id, name in agents)]
        for field in self.fields.values():
            field.error_messages["invalid_choice"] = "Choose one of the list."


class CallFilterForm(AgentChoiceForm):
    """Which calls the list shows. It reads the URL: a part that is wrong filters nothing and says why."""

    text = forms.CharField(
        required=False,
        label="What was said",
        max_length=MAX_QUERY_CHARS,
        widget=forms.TextInput(
            attrs={"type": "search", "placeholder": 'refund or "money back"', "autocomplete": "off"}
        ),
        error_messages={
            "max_length": f"Search for at most {MAX_QUERY_CHARS} characters.",
            "null_characters_not_allowed": "The character U+0000 cannot be searched for.",
        },
    )
    state = forms.ChoiceField(required=False, choices=[("", "Any state"), *Call.State.choices])
    outcome = forms.ChoiceField(
        required=False, choices=[("", "Any outcome"), ("completed", "Completed"), ("failed", "Failed")]
    )
    coverage = forms.ChoiceField(
        required=False,
        choices=[
            ("", "Any coverage"),
            ("full", "All judged"),
            ("partial", "Partly judged"),
            ("none", "Nothing judged"),
        ],
    )
    interventions = forms.ChoiceField(
        required=False, choices=[("", "With and without"), ("yes", "Mirror stepped in"), ("no", "Did not step in")]
    )
    test = forms.ChoiceField(
        required=False,
        label="Placed",
        choices=[("", "From anywhere"), ("yes", "As a test, from here"), ("no", "By telephone")],
    )
    agent = forms.TypedChoiceField(required=False, coerce=UUID, empty_value=None)
    after = forms.DateTimeField(
        required=False,
        label="From",
        widget=LocalDateTimeInput(),
        error_messages={"invalid": "Give a date and time."},
    )
    before = forms.DateTimeField(
        required=False,
        label="To",
        widget=LocalDateTimeInput(),
        error_messages={"invalid": "Give a date and time."},
    )

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        after, before = cleaned.get("after"), cleaned.get("before")
        if after and before and before <= after:
            self.add_error("before", "Give a time after “From”.")
        return cleaned

    def filters(self) -> CallFilters:
        """What is right of the form, as filters. `To` includes its minute."""
        self.is_valid()
        cleaned = self.cleaned_data
        before: datetime | None = cleaned.get("before")
        return CallFilters(
            agent_id=cleaned.get("agent"),
            state=cleaned.get("state") or None,
            outcome=cleaned.get("outcome") or None,
            coverage=cleaned.get("coverage") or None,
            interventions={"yes": True, "no": False}.get(cleaned.get("interventions", "")),
            text=cleaned.get("text") or None,
            test={"yes": True, "no": False}.get(cleaned.get("test", "")),
            started_from=cleaned.get("after"),
            started_to=before + timedelta(minutes=1) if before else None,
        )

    def query(self) -> list[tuple[str, str]]:
        """The filters as they stand in the URL."""
        return [(name, self.data[name]) for name in self.fields if self.data.get(name)]

    @property
    def active(self) -> bool:
        return bool(self.query())
