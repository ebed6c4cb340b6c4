"""A person's decision about a tool call that waits for one."""

from __future__ import annotations

from functools import partial
from typing import Final
from uuid import UUID

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from mirror_saas.errors import Conflict
from supervision.models import Approval
from supervision.selectors.approvals import ApprovalNotFound
from supervision.services.privacy import redactor_of_tenant
from supervision.stream.approvals import APPROVAL
from supervision.stream.mailbox import call_tell
from tenants.actors import actor_current
from tenants.context import tenant_id_required
from tenants.services.audit import auditevent_record

MAX_NOTE_CHARS: Final = 500
_MAX_NAME_CHARS: Final = 300

_HOW: Final = {
    Approval.State.APPROVED: "was approved",
    Approval.State.DENIED: "was denied",
    Approval.State.EXPIRED: "ran out of time",
    Approval.State.CANCELLED: "does not wait any more: the call ended, or the agent withdrew it",
    Approval.State.VOID: "was approved too late",
}


class ApprovalDecided(Conflict):
    """The tool call does not wait any more."""

    def __init__(self, approval: Approval) -> None:
        by = f" by {approval.decided_by}" if approval.decided_by else ""
        super().__init__(f"This tool call {_HOW[Approval.State(approval.state)]}{by}.")


class ApprovalExpired(Conflict):
    """Its time is over, so a decision would be void."""

    def __init__(self) -> None:
        super().__init__("The agent has stopped waiting for this tool call, so a decision would be void.")


def approval_decide(*, decision_id: UUID, approve: bool, note: str = "") -> Approval:
    """Approve or deny a tool call that waits, for the current tenant; its call hears of it at once, wherever it runs.
    The same decision by the same person again changes nothing. The agent is told the note.

    Raises ApprovalNotFound, ApprovalDecided, ApprovalExpired, and ValidationError naming `note`.
    """
    if len(note) > MAX_NOTE_CHARS:
        raise ValidationError({"note": f"Write at most {MAX_NOTE_CHARS} characters."})
    if "\x00" in note:
        raise ValidationError({"note": "The character U+0000 cannot be stored."})
    state = Approval.State.APPROVED if approve else Approval.State.DENIED
    who = actor_current().label[:_MAX_NAME_CHARS]
    with transaction.atomic():
        # Whoever else decides, the call's own process included, waits here or was first.
        approval = Approval.objects.select_for_update(no_key=True).filter(id=decision_id).first()
        if approval is None:
            raise ApprovalNotFound
        if approval.state == state and approval.decided_by == who:
            return approval
        if approval.state != Approval.State.WAITING:
            raise ApprovalDecided(approval)
        # By the database's clock, which its time was set by.
        if not Approval.objects.filter(id=decision_id, expires_at__gt=Now()).exists():
            raise ApprovalExpired
        approval.state, approval.decided_by, approval.decided_at = state, who, timezone.now()
        # It may quote the caller.
        approval.note = redactor_of_tenant().text(note.strip())
        approval.save(update_fields=["state", "decided_by", "decided_at", "note"])
        auditevent_record(
            action="approval.decide",
            object_id=decision_id,
            object_label=approval.tool,
            before={"state": "waiting"},
            # Not the note: the log outlives the erasure of a call.
            after={"state": state.value, "call_id": str(approval.call_id), "note_chars": len(approval.note)},
        )
        transaction.on_commit(
            partial(
                call_tell,
                settings.REDIS_URL,
                tenant_id=tenant_id_required("An approval"),
                call_id=approval.call_id,
                message={APPROVAL: str(decision_id)},
            )
        )
    return approval
