"""Which running calls the live page shows. It reads the URL: a part that is wrong filters nothing and says why."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from django import forms

from webui.forms import AgentChoiceForm, ErrorAwareMixin
from webui.presenters.live import HIGH, RAISED, UNKNOWN, LiveRow


@dataclass(frozen=True, slots=True)
class LiveShown:
    """Which rows, and in which order."""

    agent_id: UUID | None = None
    risk: int = UNKNOWN
    by_risk: bool = True

    def shows(self, row: LiveRow) -> bool:
        return row.risk >= self.risk and self.agent_id in (None, row.agent_id)

    def order(self, row: LiveRow) -> str:
        """What the browser sorts rows by, the greatest first."""
        return row.riskiest if self.by_risk else row.newest


class LiveFilterForm(ErrorAwareMixin, AgentChoiceForm):
    """The filters of the live page."""

    risk = forms.ChoiceField(
        required=False, choices=[("", "Any risk"), ("raised", "Raised and high"), ("high", "High only")]
    )
    agent = forms.TypedChoiceField(required=False, coerce=UUID, empty_value=None)
    order = forms.ChoiceField(
        required=False, label="Order", choices=[("", "Riskiest first"), ("newest", "Newest first")]
    )

    def shown(self) -> LiveShown:
        """What is right of the form."""
        self.is_valid()
        cleaned = self.cleaned_data
        return LiveShown(
            agent_id=cleaned.get("agent"),
            risk={"high": HIGH, "raised": RAISED}.get(cleaned.get("risk") or "", UNKNOWN),
            by_risk=cleaned.get("order") != "newest",
        )

    def query(self) -> list[tuple[str, str]]:
        """The filters as they stand in the URL."""
        return [(name, self.data[name]) for name in self.fields if self.data.get(name)]

    @property
    def active(self) -> bool:
        return bool(self.query())
