"""What the audit page says of an event."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from mirror_saas.logging import MASK
from tenants.models import AuditEvent
from tenants.selectors.audit import auditevent_fields

# Deeper than this a value is shown whole.
DEPTH = 4


@dataclass(frozen=True, slots=True)
class Change:
    """A field before and after, as text; None where it did not exist."""

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class AuditRow:
    """An event."""

    seq: int
    at: datetime
    action: str
    actor_kind: str
    actor_id: UUID | None
    actor: str
    object_type: str
    object_id: str
    object: str
    changes: tuple[Change, ...]
    ip: str
    user_agent: str
    session: str
    request_id: str
    hash: str

    @property
    def changed(self) -> str:
        """The names of what changed, a few of them."""
        names = [change.name for change in self.changes]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        return ", ".join(names[:4]) + more


def audit_rows(events: Iterable[AuditEvent]) -> tuple[AuditRow, ...]:
    return tuple(_row(event) for event in events)


def changes_between(before: Any, after: Any) -> tuple[Change, ...]:
    """The fields that differ, those of objects inside by their path (`config.threshold`). Either may be None."""
    if not isinstance(before, Mapping | None) or not isinstance(after, Mapping | None):
        # Nothing of ours; shown as it stands.
        return (Change("", _text(before), _text(after)),)
    if before is None or after is None:
        # Of something that was made or removed, what it did not have says nothing.
        before, after = (
            {name: value for name, value in (side or {}).items() if value is not None} for side in (before, after)
        )
    return tuple(_changes(before, after, "", DEPTH))


_MISSING = object()


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], path: str, depth: int) -> Iterator[Change]:
    for name in {**before, **after}:
        was, now = before.get(name, _MISSING), after.get(name, _MISSING)
        # A secret that was written anew is *** on both sides, and yet another.
        if was == now and was != MASK:
            continue
        if depth > 1 and _is_object(was) and _is_object(now):
            yield from _changes(
                was if was is not _MISSING else {}, now if now is not _MISSING else {}, f"{path}{name}.", depth - 1
            )
        else:
            yield Change(path + name, _text(was), _text(now))


def _is_object(value: Any) -> bool:
    """An object with fields, or nothing in its place."""
    return value is _MISSING or (isinstance(value, Mapping) and bool(value))


def _text(value: Any) -> str | None:
    if value is _MISSING:
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return "\n".join(value)
    return json.dumps(value, indent=2, ensure_ascii=False)


def _row(event: AuditEvent) -> AuditRow:
    fields = auditevent_fields(event)
    return AuditRow(
        seq=event.seq,
        at=event.at,
        action=event.action,
        actor_kind=event.actor_kind,
        actor_id=event.actor_id,
        actor=event.actor_label,
        object_type=event.object_type,
        object_id=event.object_id,
        object=event.object_label,
        changes=changes_between(fields["before"], fields["after"]),
        ip=event.ip,
        user_agent=event.user_agent,
        session=event.session,
        request_id=event.request_id,
        hash=bytes(event.hash).hex(),
    )
