"""Reading the current tenant's audit log."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from mirror_saas.pages import DEFAULT_LIMIT, Page, cursor_decode, cursor_encode, limit_check
from tenants.audit_chain import ChainPoint
from tenants.models import AuditEvent, Membership
from tenants.selectors.api_keys import api_keys_active

PAGE = 500
_MAX_SEQ = 2**63 - 1


@dataclass(frozen=True, slots=True)
class AuditFilters:
    """Which events a list shows; None leaves a filter out. `at_from` is inclusive, `at_to` is not."""

    action: str | None = None
    actor_kind: str | None = None
    actor_id: UUID | None = None
    object_type: str | None = None
    object_id: str | None = None
    at_from: datetime | None = None
    at_to: datetime | None = None


_ALL = AuditFilters()


def auditevent_list(
    *, cursor: str | None = None, limit: int = DEFAULT_LIMIT, filters: AuditFilters = _ALL
) -> Page[AuditEvent]:
    """Events, newest first. `limit` is 1 to 200. Raises InvalidInput and BadCursor."""
    limit_check(limit)
    wanted = {
        "action": filters.action,
        "actor_kind": filters.actor_kind,
        "actor_id": filters.actor_id,
        "object_type": filters.object_type,
        "object_id": filters.object_id,
        "at__gte": filters.at_from,
        "at__lt": filters.at_to,
    }
    events = AuditEvent.objects.filter(**{name: value for name, value in wanted.items() if value is not None})
    if cursor is not None:
        before = int(cursor_decode(cursor, int)[0])
        events = events.filter(seq__lt=min(before, _MAX_SEQ)) if before > 0 else events.none()
    rows = list(events.order_by("-seq")[: limit + 1])
    more = len(rows) > limit
    return Page(items=rows[:limit], next=cursor_encode(rows[limit - 1].seq) if more else None)


def auditevent_actors(*, also: UUID | None = None) -> list[tuple[UUID, str]]:
    """Who may have done something: members by their address, keys that work by their name, each with their id.

    `also` is somebody else, who left, say, by the name that the newest event of theirs has; nobody without an event.
    """
    people = Membership.objects.select_related("user").order_by("user__email")
    actors = [(membership.user_id, membership.user.email) for membership in people]
    actors += [(key.id, f"{key.name} ({key.prefix})") for key in api_keys_active().order_by("name", "id")]
    if also is not None and also not in {actor_id for actor_id, _ in actors}:
        newest = AuditEvent.objects.filter(actor_id=also).order_by("-seq").first()
        actors += [(also, newest.actor_label)] if newest is not None else []
    return actors


def auditevent_head() -> ChainPoint | None:
    """The newest event's number and hash; None for an empty log."""
    head = AuditEvent.objects.order_by("-seq").values_list("seq", "hash").first()
    return None if head is None else ChainPoint(head[0], bytes(head[1]))


def auditevent_page(*, after_seq: int, last_seq: int = _MAX_SEQ, limit: int = PAGE) -> list[AuditEvent]:
    """Up to `limit` events behind `after_seq`, oldest first, none behind `last_seq`."""
    return list(AuditEvent.objects.filter(seq__gt=after_seq, seq__lte=last_seq).order_by("seq")[:limit])


def auditevent_fields(event: AuditEvent) -> dict[str, Any]:
    """What the event's hash is of; see tenants.audit_chain."""
    return {
        "id": str(event.id),
        "tenant_id": str(event.tenant_id),
        "seq": event.seq,
        "at": event.at.astimezone(UTC).isoformat(timespec="microseconds"),
        "actor_kind": event.actor_kind,
        "actor_id": None if event.actor_id is None else str(event.actor_id),
        "actor_label": event.actor_label,
        "action": event.action,
        "object_type": event.object_type,
        "object_id": event.object_id,
        "object_label": event.object_label,
        "before": _parsed(event.before),
        "after": _parsed(event.after),
        "ip": event.ip,
        "user_agent": event.user_agent,
        "session": event.session,
        "request_id": event.request_id,
        "prev_hash": bytes(event.prev_hash).hex(),
    }


def _parsed(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        # Nothing of ours: somebody wrote into the table. As text it does not fit the hash, so verifying reports it.
        return text
