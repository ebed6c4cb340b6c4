"""Which decided tool calls the approvals page lists. It reads the URL: a part that is wrong filters nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms

from supervision.models import Approval
from webui.forms import ErrorAwareMixin


class ApprovalFilterForm(ErrorAwareMixin, forms.Form):
    """What became of them."""

    state = forms.ChoiceField(
        required=False,
        label="What became of it",
        choices=[("", "Anything"), *((value, label) for value, label in Approval.State.choices if value != "waiting")],
        error_messages={"invalid_choice": "Choose one of the list."},
    )

    def __init__(self, data: Mapping[str, Any]) -> None:
        super().__init__(data)

    def state_chosen(self) -> str | None:
        """The state to list, None for all."""
        self.is_valid()
        return self.cleaned_data.get("state") or None

    def query(self) -> list[tuple[str, str]]:
        """The filters as they stand in the URL."""
        return [(name, self.data[name]) for name in self.fields if self.data.get(name)]

    @property
    def active(self) -> bool:
        return bool(self.query())
