"""What reviewers say of turns and interventions."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from mirror_saas.errors import NotFound
from supervision.models import Intervention, Label, Turn
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
    label.save()
    if changed:
        # Not the note: it may quote the caller, and the log outlives the erasure of a call.
        after = {"label": value, "labelled_by": label.labelled_by, "note_chars": len(note)}
        auditevent_record(action=action, object_id=object_id, object_label=value, before=before, after=after)
    return label
