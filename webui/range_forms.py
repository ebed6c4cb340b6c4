"""Which days a page is about. It reads the URL: a part that is wrong is said, and the newest days are shown instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Final

from django import forms

from supervision.selectors.usage import MAX_DAYS
from webui.forms import ErrorAwareMixin

DEFAULT_DAYS: Final = 30
PRESETS: Final = (7, 30, 90)


@dataclass(frozen=True, slots=True)
class Preset:
    """A range that one click shows: its name, its place in the URL, and whether it is the one that is shown."""

    name: str
    query: str
    chosen: bool


class DayInput(forms.DateInput):
    """The browser's field for a day. What no such field could hold is not written into it."""

    input_type = "date"

    def __init__(self) -> None:
        super().__init__(format="%Y-%m-%d")

    def format_value(self, value: Any) -> str | None:
        text = super().format_value(value)
        try:
            date.fromisoformat(text or "")
        except ValueError:
            return None
        return text


class DayField(forms.DateField):
    """A day, in the browser's own field."""

    def __init__(self, label: str) -> None:
        super().__init__(
            required=False,
            label=label,
            widget=DayInput(),
            input_formats=["%Y-%m-%d"],
            error_messages={"invalid": "Give a date."},
        )


class RangeForm(ErrorAwareMixin, forms.Form):
    """UTC days from `first` to `last`, both included; the newest 30 unless it says otherwise."""

    first = DayField("From")
    last = DayField("To")

    def __init__(self, data: Mapping[str, Any], *, today: date) -> None:
        self.today = today
        self.given = data
        super().__init__(
            {**_default_days(data.get("last"), today), **{name: data[name] for name in data if data[name]}}
        )

    def clean_last(self) -> date | None:
        last: date | None = self.cleaned_data["last"]
        if last is not None and last > self.today:
            raise forms.ValidationError("This day has not begun yet.")
        return last

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if not self.errors:
            first, last = cleaned["first"], cleaned["last"]
            if last < first:
                self.add_error("first", "Give a day before “To”.")
            elif (last - first).days >= MAX_DAYS:
                self.add_error("first", f"Ask for at most {MAX_DAYS} days at a time.")
        return cleaned

    def days(self) -> tuple[date, date]:
        """The first and the last day to show."""
        if self.is_valid():
            return self.cleaned_data["first"], self.cleaned_data["last"]
        return _before(self.today, DEFAULT_DAYS - 1), self.today

    def presets(self) -> list[Preset]:
        """Ranges that end today."""
        shown = self.days()
        found = []
        for days in PRESETS:
            first = _before(self.today, days - 1)
            query = "" if days == DEFAULT_DAYS else f"?first={first.isoformat()}"
            found.append(Preset(f"{days} days", query, shown == (first, self.today)))
        return found

    def query(self) -> list[tuple[str, str]]:
        """The range as it stands in the URL."""
        return [(name, self.given[name]) for name in self.fields if self.given.get(name)]

    @property
    def active(self) -> bool:
        return bool(self.query())


def _default_days(last: str | None, today: date) -> dict[str, str]:
    """What the fields say where the URL says nothing; `last` is what it says of that day, right or wrong."""
    try:
        end = date.fromisoformat(last or "")
    except ValueError:
        end = today
    return {"first": _before(end, DEFAULT_DAYS - 1).isoformat(), "last": today.isoformat()}


def _before(day: date, days: int) -> date:
    return day - timedelta(days=days) if day.toordinal() > days else date.min
