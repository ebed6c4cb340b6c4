"""What reviewers say of turns, interventions and tool decisions."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from mirror_saas.errors import NotFound
from supervision.models import Intervention, Label, ToolDecision, Turn
from supervision.services.privacy import redactor_of_tenant
from tenants.actors import actor_current
from tenants.services.audit import auditevent_record

MAX_NOTE_CHARS: Final = 4_000


class TurnNotFound(NotFound):
    """The current tenant has no turn with this id."""

    def __init__(self) -> None:
        super().__init__("There is no such turn.")


class InterventionNotFound(NotFound):
    """The current tenant has no intervention with this id."""

    def __init__(self) -> None:
        super().__init__("There is no such intervention.")


class ToolDecisionNotFound(NotFound):
    """The current tenant has no tool decision with this id."""

    def __init__(self) -> None:
        super().__init__("There is no such tool decision.")


class LabelNotFound(NotFound):
    """The current tenant has no label with this id."""

    def __init__(self) -> None:
        super().__init__("There is no such label.")


def turn_label(*, turn_id: UUID, value: str, note: str = "") -> Label:
    """Say what a turn was; what was said of it before is replaced.

    Raises TurnNotFound, or ValidationError naming `label` or `note`.
    """
    _check(value, note)
    with transaction.atomic():
        # Two reviewers at once: the second waits here and then replaces what the first one said.
        turn = Turn.objects.select_for_update(no_key=True).filter(id=turn_id).first()
        if turn is None:
            raise TurnNotFound
        label = Label.objects.filter(turn_id=turn_id).first()
        return _write(label or Label(call_id=turn.call_id, turn_id=turn_id), value, note, "turn.label", turn_id)


def intervention_label(*, intervention_id: UUID, value: str, note: str = "") -> Label:
    """Say what an intervention was; what was said of it before is replaced.

    Raises InterventionNotFound, or ValidationError naming `label` or `note`.
    """
    _check(value, note)
    if value == Label.Value.MISSED:
        raise ValidationError(
            {"label": "An intervention is not something that was missed; label the turn that was let pass."}
        )
    with transaction.atomic():
        row = Intervention.objects.select_for_update(no_key=True).filter(id=intervention_id).first()
        if row is None:
            raise InterventionNotFound
        label = Label.objects.filter(intervention_id=intervention_id).first()
        return _write(
            label or Label(call_id=row.call_id, intervention_id=intervention_id),
            value,
            note,
            "intervention.label",
            intervention_id,
        )


def tool_decision_label(*, decision_id: UUID, value: str, note: str = "") -> Label:
    """Say whether a tool call was rightly blocked, or wrongly allowed; what was said of it before is replaced.

    Raises ToolDecisionNotFound, or ValidationError naming `label` or `note`.
    """
    _check(value, note)
    with transaction.atomic():
        row = ToolDecision.objects.select_for_update(no_key=True).filter(id=decision_id).first()
        if row is None:
            raise ToolDecisionNotFound
        if value == (Label.Value.FALSE_ALARM if row.allow else Label.Value.MISSED):
            was = "allowed, so it was no alarm" if row.allow else "blocked, so it was not missed"
            raise ValidationError({"label": f"This tool call was {was}."})
        label = Label.objects.filter(tool_decision_id=decision_id).first()
        return _write(
            label or Label(call_id=row.call_id, tool_decision_id=decision_id),
            value,
            note,
            "tool_decision.label",
            decision_id,
        )


def label_remove(*, label_id: UUID) -> None:
    """Take back what was said; the turn, intervention or tool decision is unlabelled again. Raises LabelNotFound."""
    with transaction.atomic():
        label = Label.objects.select_for_update(no_key=True).filter(id=label_id).first()
        if label is None:
            raise LabelNotFound
        Label.objects.filter(id=label_id).delete()
        name, subject_id = label_subject(label)
        auditevent_record(
            action=f"{name}.unlabel",
            object_id=subject_id,
            object_label=label.value,
            before={"label": label.value, "labelled_by": label.labelled_by},
        )


def label_subject(label: Label) -> tuple[str, UUID]:
    """What a label is of: `turn`, `intervention` or `tool_decision`, and its id."""
    if label.turn_id is not None:
        return "turn", label.turn_id
    if label.intervention_id is not None:
        return "intervention", label.intervention_id
    assert label.tool_decision_id is not None
    return "tool_decision", label.tool_decision_id


def _check(value: str, note: str) -> None:
    if value not in Label.Value.values:
        raise ValidationError({"label": f"Give one of {', '.join(Label.Value.values)}."})
    if len(note) > MAX_NOTE_CHARS:
        raise ValidationError({"note": f"Write at most {MAX_NOTE_CHARS} characters."})
    if "\x00" in note:
        raise ValidationError({"note": "The character U+0000 cannot be stored."})


def _write(label: Label, value: str, note: str, action: str, object_id: UUID) -> Label:
    # A note may quote the caller.
    note = redactor_of_tenant().text(note)
    before = None if label._state.adding else {"label": label.value, "labelled_by": label.labelled_by}
    changed = label._state.adding or (label.value, label.note) != (value, note)
    label.value, label.note = value, note
    label.labelled_by = actor_current().label[:300]
    label.updated_at = timezone.now()
    if label._state.adding:
        label.created_at = label.updated_at
    label.save()
    if changed:
        # Not the note: it may quote the caller, and the log outlives the erasure of a call.
        after = {"label": value, "labelled_by": label.labelled_by, "note_chars": len(note)}
        auditevent_record(action=action, object_id=object_id, object_label=value, before=before, after=after)
    return label
