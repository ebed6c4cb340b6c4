"""What a reviewer says of a turn, an intervention or a tool call."""

from __future__ import annotations

from django import forms

from supervision.models import Label
from supervision.services.labels import MAX_NOTE_CHARS

SUBJECTS = ("turn", "intervention", "tool_decision")


class LabelForm(forms.Form):
    """One of the buttons and a note. `about` and `subject_id` say of what, `turn` is the turn that shows it."""

    turn = forms.UUIDField(required=False)
    about = forms.ChoiceField(choices=[(each, each) for each in SUBJECTS])
    subject_id = forms.UUIDField()
    label = forms.ChoiceField(
        choices=Label.Value.choices, error_messages={"required": "Choose one.", "invalid_choice": "Choose one."}
    )
    note = forms.CharField(
        required=False,
        max_length=MAX_NOTE_CHARS,
        error_messages={
            "max_length": f"Write at most {MAX_NOTE_CHARS:,} characters.".replace(",", "\u202f"),
            "null_characters_not_allowed": "Leave out the character U+0000.",
        },
    )

    @property
    def names_something(self) -> bool:
        """Whether it says what it is about, right or wrong as the rest may be."""
        self.is_valid()
        return "about" in self.cleaned_data and "subject_id" in self.cleaned_data and "turn" in self.cleaned_data
