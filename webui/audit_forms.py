"""Forms about the audit log. They read the URL: a part that is wrong filters nothing and says why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django import forms
from django.core.exceptions import ValidationError

from tenants.audit_chain import ChainPoint
from tenants.selectors.audit import AuditFilters
from webui.forms import ErrorAwareMixin, LocalDateTimeInput

SYSTEM = "system"

_ACTION = re.compile(r"[a-z_]+(\.[a-z_]+)?")


class AuditFilterForm(ErrorAwareMixin, forms.Form):
    """Which events the page shows."""

    action = forms.CharField(
        required=False,
        max_length=64,
        widget=forms.TextInput(attrs={"placeholder": "agent, or agent.create", "autocomplete": "off"}),
    )
    actor = forms.ChoiceField(required=False, label="Who")
    object = forms.CharField(
        required=False, label="Object’s id", max_length=64, widget=forms.TextInput(attrs={"autocomplete": "off"})
    )
    after = forms.DateTimeField(required=False, label="From", widget=LocalDateTimeInput())
    before = forms.DateTimeField(required=False, label="To", widget=LocalDateTimeInput())

    def __init__(self, data: Mapping[str, Any], *, actors: Sequence[tuple[UUID, str]]) -> None:
        super().__init__(data)
        actor = self.fields["actor"]
        assert isinstance(actor, forms.ChoiceField)
        actor.choices = [
            ("", "Anybody"),
            *((str(actor_id), label) for actor_id, label in actors),
            (SYSTEM, "Commands and Mirror itself"),
        ]
        actor.error_messages["invalid_choice"] = "Choose one of the list."
        for name in ("after", "before"):
            self.fields[name].error_messages["invalid"] = "Give a date and time."

    def clean_action(self) -> str:
        action = str(self.cleaned_data["action"]).strip()
        if action and not _ACTION.fullmatch(action):
            raise ValidationError("Give an action such as agent.create, or its first word.")
        return action

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        after, before = cleaned.get("after"), cleaned.get("before")
        if after and before and before < after:
            self.add_error("before", "Give a time after “From”.")
        return cleaned

    def filters(self) -> AuditFilters:
        """What is right of the form, as filters. `To` includes its minute."""
        self.is_valid()
        cleaned = self.cleaned_data
        action, actor = cleaned.get("action") or "", cleaned.get("actor") or ""
        before: datetime | None = cleaned.get("before")
        return AuditFilters(
            # The first word of an action is the type of what it was done to.
            action=action if "." in action else None,
            object_type=action if action and "." not in action else None,
            actor_kind=SYSTEM if actor == SYSTEM else None,
            actor_id=UUID(actor) if actor and actor != SYSTEM else None,
            object_id=cleaned.get("object") or None,
            at_from=cleaned.get("after"),
            at_to=_minute_after(before) if before else None,
        )

    def query(self) -> list[tuple[str, str]]:
        """The filters as they stand in the URL."""
        return [(name, self.data[name]) for name in self.fields if self.data.get(name)]

    @property
    def active(self) -> bool:
        return bool(self.query())


class PointField(forms.CharField):
    """`SEQ:HASH`, an event that is known."""

    def __init__(self, label: str = "") -> None:
        super().__init__(
            required=False,
            label=label,
            max_length=100,
            widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false", "placeholder": "1234:9f86d0…"}),
        )

    def clean(self, value: Any) -> ChainPoint | None:
        text = super().clean(value)
        if not text:
            return None
        try:
            point = ChainPoint.parse(text)
        except ValueError:
            point = None
        # The number stands in a bigint.
        if point is None or point.seq >= 2**62:
            raise ValidationError("Give a number, a colon and 64 hexadecimal digits, as a check has shown them.")
        return point


class VerifyForm(ErrorAwareMixin, forms.Form):
    """What the log has to contain, and where to go on with verifying it."""

    expect = PointField("The log’s head at an earlier check")
    after = PointField()


def _minute_after(moment: datetime) -> datetime | None:
    try:
        return moment + timedelta(minutes=1)
    except OverflowError:
        # The end of all years: nothing comes after it.
        return None
