"""Erasing what is known of a call."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, timedelta
from typing import Final
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from mirror_saas.errors import Conflict
from supervision.models import Approval, Call, ErasedCall, LedgerEntry
from supervision.selectors.calls import CallNotFound
from supervision.selectors.usage import usage_counted
from supervision.services.storage import calls_storage_bytes, storage_release
from supervision.services.usage import usage_add, usage_day_is_closed
from tenants.services.audit import auditevent_record

# No stream of Plivo's is longer; a call that began earlier and never ended lost its process and its journal.
LONGEST_CALL: Final = timedelta(hours=24)


class CallRunning(Conflict):
    """The call is still going on, so more of it would be recorded after its erasure."""

    def __init__(self) -> None:
        super().__init__("This call is still running; erase it when it has ended.")


def call_erase(*, call_id: UUID) -> None:
    """Delete a call with its turns, verdicts, tool decisions, interventions, notes, events and labels.

    What journals still hold of it is dropped when it comes (ErasedCall). Usage keeps its figures, which tell of nobody.
    Raises CallNotFound and CallRunning.
    """
    with transaction.atomic():
        call = Call.objects.select_for_update().filter(id=call_id).first()
        if call is None:
            raise CallNotFound
        now = timezone.now()
        if call.state == Call.State.LIVE and now - call.started_at < LONGEST_CALL:
            raise CallRunning
        usage_keep(calls=[call])
        stored = calls_storage_bytes(call_ids=[call_id])
        # Rows that point at the call go with it, by the foreign keys.
        Call.objects.filter(id=call_id).delete()
        calls_tools_forget(call_ids=[call_id])
        ErasedCall.objects.create(id=call_id, erased_at=now)
        storage_release(storage_bytes=stored)
        # Nothing of the caller's: the log outlives this.
        auditevent_record(
            action="call.erase",
            object_id=call_id,
            object_label=f"call of {call.started_at:%Y-%m-%d %H:%M} UTC",
            before={"agent_id": str(call.agent_id), "started_at": call.started_at, "turn_count": call.turn_count},
        )


def calls_tools_forget(*, call_ids: Collection[UUID]) -> None:
    """Delete what is kept of the calls' tools while they run: no foreign key does, since those rows come first."""
    LedgerEntry.objects.filter(call_id__in=call_ids).delete()
    Approval.objects.filter(call_id__in=call_ids).delete()


def usage_keep(*, calls: Sequence[Call]) -> None:
    """Keep the figures of calls that are about to go, as far as their days are not stored yet."""
    open_calls = [call for call in calls if not usage_day_is_closed(day=call.started_at.astimezone(UTC).date())]
    if not open_calls:
        return
    days = [call.started_at.astimezone(UTC).date() for call in open_calls]
    ids = [call.id for call in open_calls]
    for (day, model), figures in usage_counted(first=min(days), last=max(days), call_ids=ids).items():
        usage_add(day=day, source="erased", model=model, figures=figures)
