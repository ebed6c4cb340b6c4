"""Working through the review queue: reserving an item, labelling it, taking that back.

A reviewer is whoever acts (`tenants.actors`). Reservations say nothing of an item and are gone in minutes, so the audit
log has none of them; it has every label and every label that was taken back.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import connection, transaction
from django.db.models import Q

from mirror_saas.errors import Conflict
from mirror_saas.ids import uuid7
from supervision.models import Intervention, Label, ReviewReservation, ToolDecision, Turn
from supervision.selectors.reviews import Place, ReviewFilters, ReviewItem, review_candidates, review_item
from supervision.services.labels import (
    LabelNotFound,
    intervention_label,
    label_remove,
    label_subject,
    tool_decision_label,
    turn_label,
)
from supervision.services.privacy import redactor_of_tenant
from tenants.actors import actor_current
from tenants.context import tenant_id_required

# Long enough to read a call around an item, short enough that one that was left open is soon somebody else's.
RESERVED_FOR: Final = timedelta(minutes=10)
# More than a team's reviewers; whoever finds so many taken is told that others are at the rest.
MOST_TRIED: Final = 200


class ItemReserved(Conflict):
    """Somebody else looks at this item."""

    def __init__(self, *, reviewer: str, until: datetime) -> None:
        self.reviewer, self.until = reviewer, until
        super().__init__(f"{reviewer} is reviewing this right now.")


class ItemLabelled(Conflict):
    """Somebody labelled this item since the page that the label comes from was shown."""

    def __init__(self, label: Label | None) -> None:
        self.label = label
        if label is None:
            super().__init__("What was said of this was taken back meanwhile.")
        else:
            super().__init__(f"{label.labelled_by} labelled this meanwhile: {Label.Value(label.value).label}.")


class LabelChanged(Conflict):
    """A label that is to be taken back is not the one that was given."""

    def __init__(self) -> None:
        super().__init__("Somebody labelled it anew since; that label stands.")


def review_reserve(*, item_id: UUID, call_id: UUID, now: datetime) -> datetime:
    """Keep an item for whoever acts, until the moment that is returned, and let go of what they had before.

    Raises ItemReserved while somebody else has it.
    """
    reviewer = _reviewer()
    with transaction.atomic():
        until = now + RESERVED_FOR
        with connection.cursor() as cursor:
            # Of two at once one inserts and the other waits for it, then finds its row.
            cursor.execute(
                _RESERVED,
                {
                    "id": uuid7(),
                    "tenant": tenant_id_required("A reservation"),
                    "item": item_id,
                    "call": call_id,
                    "reviewer_id": reviewer.id,
                    "reviewer": reviewer.name,
                    "until": until,
                    "now": now,
                },
            )
            taken = cursor.fetchone() is not None
        if not taken:
            theirs = ReviewReservation.objects.get(item_id=item_id)
            raise ItemReserved(reviewer=theirs.reviewer, until=theirs.expires_at)
        # Only now, and without waiting for anybody: of two who take each other's items neither must wait for the other.
        over = ReviewReservation.objects.filter(Q(reviewer_id=reviewer.id) | Q(expires_at__lte=now))
        rows = over.exclude(item_id=item_id).select_for_update(skip_locked=True)
        ReviewReservation.objects.filter(id__in=[row.id for row in rows]).delete()
        return until


def review_next(*, filters: ReviewFilters, now: datetime, after: Place | None = None) -> UUID | None:
    """Reserve the next item, from the start of the queue or behind `after`, and then from its start; None when there
    is nothing left but what others look at."""
    reviewer = _reviewer()
    for start in (None,) if after is None else (after, None):
        items = review_candidates(filters=filters, now=now, reviewer_id=reviewer.id, after=start)
        for _, item in zip(range(MOST_TRIED), items, strict=False):
            if after is not None and item.place == after:
                continue
            try:
                review_reserve(item_id=item.item_id, call_id=item.call_id, now=now)
            except ItemReserved:
                continue
            return item.item_id
    return None


def review_label(*, item_id: UUID, value: str, note: str = "", seen: datetime | None, now: datetime) -> Label:
    """Label an item for whoever acts and let go of it. `seen` is when the label was written that its page showed, None
    for none: nobody's word is overwritten unread. The same label again changes nothing.

    Raises ReviewItemNotFound, ItemReserved, ItemLabelled, and ValidationError naming `label` or `note`.
    """
    reviewer = _reviewer()
    with transaction.atomic():
        _lock(item_id)
        item = review_item(item_id=item_id, around=0)
        _check(item, value)
        label = item.label
        if label is not None and label.updated_at != seen:
            if (label.labelled_by, label.value, label.note) == (reviewer.name, value, _redacted(note)):
                return label
            raise ItemLabelled(label)
        if label is None and seen is not None:
            raise ItemLabelled(None)
        other = ReviewReservation.objects.filter(item_id=item_id, expires_at__gt=now).exclude(reviewer_id=reviewer.id)
        if (theirs := other.first()) is not None:
            raise ItemReserved(reviewer=theirs.reviewer, until=theirs.expires_at)
        if item.intervention is not None:
            made = intervention_label(intervention_id=item_id, value=value, note=note)
        elif item.tool_decision is not None:
            made = tool_decision_label(decision_id=item_id, value=value, note=note)
        else:
            made = turn_label(turn_id=item_id, value=value, note=note)
        # After the audit log: whoever waits for that must not hold up those who look for an item.
        ReviewReservation.objects.filter(item_id=item_id).delete()
        return made


def review_undo(*, label_id: UUID, labelled_at: datetime) -> UUID:
    """Take back a label that whoever acts gave at `labelled_at`, and tell what it was of.

    Raises LabelNotFound and LabelChanged.
    """
    with transaction.atomic():
        label = Label.objects.select_for_update(no_key=True).filter(id=label_id).first()
        if label is None:
            raise LabelNotFound
        if label.updated_at != labelled_at or label.labelled_by != _reviewer().name:
            raise LabelChanged
        label_remove(label_id=label_id)
        return label_subject(label)[1]


def values_of(item: ReviewItem) -> tuple[Label.Value, ...]:
    """What can be said of an item: whether an alarm was one, or whether what passed should have."""
    if item.passed:
        return Label.Value.CONFIRMED, Label.Value.MISSED, Label.Value.UNSURE
    return Label.Value.CONFIRMED, Label.Value.FALSE_ALARM, Label.Value.UNSURE


def _check(item: ReviewItem, value: str) -> None:
    if value in values_of(item):
        return
    if value == Label.Value.FALSE_ALARM:
        message = "Mirror let this pass, so it was no alarm: say that it was right, or that something was missed."
    elif value == Label.Value.MISSED:
        message = "Mirror did not let this pass, so it was not missed: say whether the alarm was right."
    else:
        message = "Say what it was."
    raise ValidationError({"label": message})


class _Reviewer(NamedTuple):
    """Whoever acts; `name` is as labels have it."""

    id: UUID
    name: str


def _reviewer() -> _Reviewer:
    actor = actor_current()
    if actor.id is None:
        raise ValidationError("Nobody is signed in, so nothing can be reserved for them.")
    return _Reviewer(actor.id, actor.label[:300])


def _redacted(note: str) -> str:
    return redactor_of_tenant().text(note)


def _lock(item_id: UUID) -> None:
    """As the services of labels do: of two reviewers at once the second waits, and then sees what the first said."""
    for model in (Intervention, ToolDecision, Turn):
        if model.objects.select_for_update(no_key=True).filter(id=item_id).first() is not None:
            return


_RESERVED: Final = """
INSERT INTO supervision_reviewreservation (id, tenant_id, item_id, call_id, reviewer_id, reviewer, expires_at)
VALUES (%(id)s, %(tenant)s, %(item)s, %(call)s, %(reviewer_id)s, %(reviewer)s, %(until)s)
ON CONFLICT (tenant_id, item_id) DO UPDATE
   SET reviewer_id = excluded.reviewer_id, reviewer = excluded.reviewer, expires_at = excluded.expires_at
 WHERE supervision_reviewreservation.reviewer_id = excluded.reviewer_id
    OR supervision_reviewreservation.expires_at <= %(now)s
RETURNING id
"""
