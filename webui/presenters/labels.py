"""What a reviewer said of a turn, an intervention or a tool call, and what they may say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from supervision.models import Label
from webui.presenters.pieces import Badge

Subject = Literal["turn", "intervention", "tool_decision"]

LABELS = {
    Label.Value.CONFIRMED.value: Badge("Confirmed", "check", "good"),
    Label.Value.FALSE_ALARM.value: Badge("False alarm", "cross", "warn"),
    Label.Value.MISSED.value: Badge("Missed", "alert", "bad"),
    Label.Value.UNSURE.value: Badge("Unsure", "dash"),
}

# What somebody may say of what Mirror objected to, and of what it let pass.
OF_ALARMS = (Label.Value.CONFIRMED.value, Label.Value.FALSE_ALARM.value, Label.Value.UNSURE.value)
OF_PASSED = (Label.Value.CONFIRMED.value, Label.Value.MISSED.value, Label.Value.UNSURE.value)

_WORDS = {
    True: {"confirmed": "Mirror was right", "false_alarm": "nothing was wrong", "unsure": "cannot tell"},
    False: {"confirmed": "rightly let pass", "missed": "something was wrong", "unsure": "cannot tell"},
}


@dataclass(frozen=True, slots=True)
class LabelOption:
    """One of the buttons. `meaning` is what it says of this subject."""

    value: str
    badge: Badge
    meaning: str
    chosen: bool


@dataclass(frozen=True, slots=True)
class LabelView:
    """What was said of a subject, and the buttons to say something else. `badge` is None while nobody said anything.

    `error` and `note` are of a form that was refused: what was typed is kept.
    """

    subject: Subject
    id: UUID
    question: str
    options: tuple[LabelOption, ...]
    badge: Badge | None
    note: str
    by: str
    at: datetime | None
    error: str = ""

    @property
    def dom_id(self) -> str:
        return f"label-{self.id.hex}"


QUESTIONS: dict[tuple[Subject, bool], str] = {
    ("turn", True): "Was this turn against the rule?",
    ("turn", False): "Was it right to let this turn pass?",
    ("intervention", True): "Was it right to step in?",
    ("tool_decision", True): "Was it right to block this tool?",
    ("tool_decision", False): "Was it right to let this tool run?",
}


def label_view(
    subject: Subject, subject_id: UUID, labels: Iterable[Label], *, alarm: bool, refused: Refused | None = None
) -> LabelView:
    """The label of `subject_id` among `labels`. `alarm`: Mirror objected to it, rather than let it pass."""
    label = next((label for label in labels if getattr(label, f"{subject}_id") == subject_id), None)
    words = _WORDS[alarm]
    offered = list(OF_ALARMS if alarm else OF_PASSED)
    if label is not None and label.value not in offered:
        offered.append(label.value)
    own = refused if refused is not None and refused.id == subject_id else None
    return LabelView(
        subject=subject,
        id=subject_id,
        question=QUESTIONS[subject, alarm],
        options=tuple(
            LabelOption(value, LABELS[value], words.get(value, ""), label is not None and label.value == value)
            for value in offered
        ),
        badge=None if label is None else LABELS[label.value],
        note=own.note if own is not None else "" if label is None else label.note,
        by="" if label is None else label.labelled_by,
        at=None if label is None else label.updated_at,
        error="" if own is None else own.error,
    )


@dataclass(frozen=True, slots=True)
class Refused:
    """A label that could not be stored: of what, the note as it was typed, and why."""

    id: UUID
    note: str
    error: str
