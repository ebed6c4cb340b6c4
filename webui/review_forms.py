"""Forms of the review queue. The filters read the URL: a part that is wrong filters nothing and says why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import MAXYEAR, datetime, timedelta
from typing import Any
from uuid import UUID

from django import forms
from django.core.exceptions import ValidationError

from supervision.models import Label
from supervision.selectors.reviews import Kind, ReviewFilters
from supervision.services.labels import MAX_NOTE_CHARS
from webui.forms import AgentChoiceForm, ErrorAwareMixin, LocalDateTimeInput, ServiceErrorsMixin
from webui.presenters.review import KIND_NAMES

_LABEL_CHOICES = [
    ("", "Nothing yet"),
    (Label.Value.UNSURE.value, "Unsure"),
    (Label.Value.FALSE_ALARM.value, "False alarm"),
    (Label.Value.MISSED.value, "Missed"),
    (Label.Value.CONFIRMED.value, "Confirmed"),
]


class ReviewFilterForm(ErrorAwareMixin, AgentChoiceForm):
    """Which items are gone through."""

    kind = forms.ChoiceField(
        required=False,
        label="What",
        choices=[("", "Everything"), *((kind.value, name) for kind, name in KIND_NAMES.items())],
    )
    agent = forms.TypedChoiceField(required=False, coerce=UUID, empty_value=None)
    label = forms.ChoiceField(required=False, label="Said of it", choices=_LABEL_CHOICES)
    calls = forms.ChoiceField(required=False, choices=[("", "By telephone"), ("test", "Test calls")])
    after = forms.DateTimeField(required=False, label="From", widget=LocalDateTimeInput())
    before = forms.DateTimeField(required=False, label="To", widget=LocalDateTimeInput())

    def __init__(self, data: Mapping[str, Any], *, agents: Sequence[tuple[UUID, str]]) -> None:
        super().__init__(data, agents=agents)
        for field in self.fields.values():
            field.error_messages["invalid"] = "Give a date and time."

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        after, before = cleaned.get("after"), cleaned.get("before")
        if after and before and before < after:
            self.add_error("before", "Give a time after “From”.")
        return cleaned

    def filters(self) -> ReviewFilters:
        """What is right of the form, as filters. `To` includes its minute."""
        self.is_valid()
        cleaned = self.cleaned_data
        kind = cleaned.get("kind")
        before: datetime | None = cleaned.get("before")
        return ReviewFilters(
            kind=Kind(kind) if kind else None,
            agent_id=cleaned.get("agent"),
            label=cleaned.get("label") or None,
            test=cleaned.get("calls") == "test",
            made_from=cleaned.get("after"),
            # The end of all years has no minute after it.
            made_to=before + timedelta(minutes=1) if before and before.year < MAXYEAR else None,
        )

    def query(self) -> list[tuple[str, str]]:
        """The filters as they stand in the URL."""
        return [(name, self.data[name]) for name in self.fields if self.data.get(name)]

    @property
    def active(self) -> bool:
        return bool(self.query())


class SeenField(forms.CharField):
    """When the label was written that the page showed; empty for none."""

    def __init__(self) -> None:
        super().__init__(required=False, max_length=40, widget=forms.HiddenInput())

    def clean(self, value: Any) -> datetime | None:
        text = super().clean(value)
        if not text:
            return None
        try:
            seen = datetime.fromisoformat(text)
        except ValueError:
            seen = None
        if seen is None or seen.tzinfo is None:
            raise ValidationError("The page was changed on its way. Load it again.")
        return seen


class LabelForm(ServiceErrorsMixin, forms.Form):
    """What a reviewer says of an item."""

    label = forms.CharField(max_length=16, error_messages={"required": "Say what it was before you go on."})
    note = forms.CharField(
        required=False,
        strip=True,
        label="Note",
        widget=forms.Textarea(attrs={"rows": 2, "maxlength": MAX_NOTE_CHARS}),
    )
    seen = SeenField()


class UndoForm(forms.Form):
    """The label that is taken back, and when it was given."""

    label = forms.UUIDField()
    at = SeenField()
