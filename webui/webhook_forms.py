"""Forms about webhooks."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from django import forms
from django.http import QueryDict

from supervision.models import WebhookDelivery, WebhookEndpoint
from supervision.services.webhooks import MAX_DESCRIPTION_CHARS, MAX_URL_CHARS
from supervision.webhooks import EVENT_TYPES, TEST_TYPE
from webui.forms import ErrorAwareMixin, ServiceErrorsMixin
from webui.presenters.webhooks import event_words

_OVERLAPS = {
    "24": "for a day more, beside the new one",
    "1": "for an hour more, beside the new one",
    "168": "for seven days more, beside the new one",
    "0": "not any more: somebody may have got hold of it",
}


class WebhookForm(ServiceErrorsMixin, forms.Form):
    """An endpoint to make, or (with `stored`) to change."""

    url = forms.CharField(
        label="URL",
        max_length=MAX_URL_CHARS,
        widget=forms.URLInput(
            attrs={"autocomplete": "off", "spellcheck": "false", "placeholder": "https://hooks.example.com/mirror"}
        ),
        help_text="Messages are sent there by POST, as JSON. Use https; private addresses are refused.",
        error_messages={
            "required": "Give the URL that events are sent to.",
            "max_length": f"Use {MAX_URL_CHARS} characters at most.",
        },
    )
    description = forms.CharField(
        label="Description",
        required=False,
        max_length=MAX_DESCRIPTION_CHARS,
        widget=forms.TextInput(attrs={"autocomplete": "off", "placeholder": "Alarms to the on-call channel"}),
        error_messages={"max_length": f"Use {MAX_DESCRIPTION_CHARS} characters at most."},
    )
    event_types = forms.MultipleChoiceField(
        label="What to send",
        choices=[(name, event_words(name)) for name in EVENT_TYPES],
        widget=forms.CheckboxSelectMultiple,
        error_messages={
            "required": "Choose at least one.",
            "invalid_choice": "Choose from the list.",
            "invalid_list": "Choose from the list.",
        },
    )
    enabled = forms.BooleanField(
        label="Send events",
        required=False,
        help_text="What happens while this is off is not sent later either.",
    )

    def __init__(
        self,
        data: QueryDict | None = None,
        *,
        stored: WebhookEndpoint | None = None,
        draft: Mapping[str, Any] | None = None,
    ) -> None:
        initial: dict[str, Any] = {}
        if stored is not None:
            initial = {name: getattr(stored, name) for name in ("url", "description", "event_types", "enabled")}
        super().__init__(data, initial={**initial, **(draft or {})})
        self.stored = stored
        if stored is None:
            del self.fields["enabled"]

    @staticmethod
    def draft(sent: QueryDict) -> dict[str, Any]:
        """What was typed, for when the person has to confirm first who they are."""
        return {
            "url": sent.get("url", "")[:MAX_URL_CHARS],
            "description": sent.get("description", "")[:MAX_DESCRIPTION_CHARS],
            "event_types": [each for each in sent.getlist("event_types") if each in EVENT_TYPES],
            "enabled": sent.get("enabled") == "on",
        }


class RotateForm(ErrorAwareMixin, forms.Form):
    """For how long the secret that there is goes on signing."""

    overlap = forms.ChoiceField(
        label="The secret that there is signs",
        choices=list(_OVERLAPS.items()),
        widget=forms.RadioSelect,
        initial="24",
        error_messages={"required": "Choose one.", "invalid_choice": "Choose one of the list."},
    )

    def duration(self) -> timedelta:
        return timedelta(hours=int(self.cleaned_data["overlap"]))


class DeliveryFilterForm(ErrorAwareMixin, forms.Form):
    """Which deliveries a webhook's page shows. It reads the URL: a part that is wrong filters nothing and says why."""

    state = forms.ChoiceField(
        required=False,
        choices=[("", "Any state"), *WebhookDelivery.State.choices],
        error_messages={"invalid_choice": "Choose one of the list."},
    )
    type = forms.ChoiceField(
        required=False,
        choices=[("", "Any event"), *((name, name) for name in (*EVENT_TYPES, TEST_TYPE))],
        error_messages={"invalid_choice": "Choose one of the list."},
    )

    def chosen(self) -> tuple[str | None, str | None]:
        """State and type, as far as they are right."""
        self.is_valid()
        return self.cleaned_data.get("state") or None, self.cleaned_data.get("type") or None

    def query(self) -> list[tuple[str, str]]:
        """The filters as they stand in the URL."""
        return [(name, self.data[name]) for name in self.fields if self.data.get(name)]

    @property
    def active(self) -> bool:
        return bool(self.query())
