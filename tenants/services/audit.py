"""The audit log: every service that changes something of a tenant records it here, in the same transaction."""

from __future__ import annotations

import copy
import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from uuid import UUID

from django.db import connection, models, transaction
from django.utils import timezone

from mirror_saas.ids import uuid7
from mirror_saas.logging import MASK, mask_secrets
from tenants.actors import actor_current
from tenants.audit_chain import GENESIS, AuditVerification, ChainPoint, ChainVerifier, canonical
from tenants.context import tenant_id_required
from tenants.models import AuditEvent
from tenants.selectors.audit import PAGE, auditevent_fields, auditevent_page

# What one request checks of a log, so that a long one does not hold up others.
VERIFY_EVENTS: Final = 10_000
VERIFY_S: Final = 5.0

# A value under such a name is a secret, wherever it stands.
_SECRET_NAME: Final = re.compile(
    r"secret|password|passwd|token|api_?key|authorization|private_?key|cookie", re.IGNORECASE
)
_URL_QUERY: Final = re.compile(r"([?&][^=&#\s]*=)[^&#\s]*")
# What says nothing that the event does not say itself.
_LEFT_OUT: Final = frozenset({"id", "tenant_id", "created_at", "updated_at", "last_used_at", "last_login"})


@dataclass(frozen=True, slots=True)
class Hidden:
    """A secret in a snapshot: shown as `***`, yet known from another by its digest."""

    digest: bytes


Snapshot = dict[str, Any]


def snapshot(row: models.Model, *, only: tuple[str, ...] | None = None) -> Snapshot:
    """The columns of `row` as the audit log may show them; `only` names some of them.

    Binary columns (sealed values, hashes) and columns with a secret's name are hidden.
    """
    taken: Snapshot = {}
    for column in row._meta.concrete_fields:
        name = column.attname
        if name in _LEFT_OUT if only is None else name not in only:
            continue
        value = getattr(row, name)
        if isinstance(value, bytes | memoryview):
            taken[name] = Hidden(hashlib.sha256(value).digest())
        elif isinstance(value, str) and value and _SECRET_NAME.search(name):
            taken[name] = Hidden(hashlib.sha256(value.encode()).digest())
        else:
            taken[name] = _plain(copy.deepcopy(value), name)
    return taken


def changes(before: Snapshot, after: Snapshot) -> tuple[Snapshot, Snapshot]:
    """What differs between two snapshots. A secret that was written anew shows as `***` on both sides."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return ({name: before.get(name) for name in names}, {name: after.get(name) for name in names})


def auditevent_record(
    *,
    action: str,
    row: models.Model | None = None,
    object_id: UUID | str = "",
    object_label: str = "",
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> AuditEvent:
    """Append to the current tenant's log that the current actor did `action` (`agent.create`).

    `row` is what it was done to; or give `object_id` and `object_label`. Its type is the first word of `action`.
    `before` and `after` are snapshots, None when there was or is nothing. Secrets in them are masked.

    Events of a tenant are appended one after the other: a second transaction waits here until the first one has ended,
    so record last in a transaction. Services lock rows with `select_for_update(no_key=True)`: a plain FOR UPDATE would
    also hold up the foreign keys that the first one checks when it commits, and the two would wait for each other.
    """
    tenant_id = tenant_id_required("An audit event")
    if row is not None:
        object_id, object_label = object_id or row.pk, object_label or str(row)
    actor = actor_current()
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended('mirror audit ' || %s, 0))", [str(tenant_id)])
        head = AuditEvent.objects.order_by("-seq").values_list("seq", "hash").first()
        seq, prev_hash = (head[0] + 1, bytes(head[1])) if head is not None else (1, GENESIS)
        event = AuditEvent(
            id=uuid7(),
            tenant_id=tenant_id,
            seq=seq,
            at=timezone.now(),
            actor_kind=actor.kind,
            actor_id=actor.id,
            actor_label=_text(actor.label, 300),
            action=action,
            object_type=action.partition(".")[0],
            object_id=str(object_id),
            object_label=_text(object_label, 300),
            before=None if before is None else canonical(_masked(before)),
            after=None if after is None else canonical(_masked(after)),
            ip=_text(actor.ip, 64),
            user_agent=_text(actor.user_agent, 300),
            session=actor.session,
            request_id=_text(actor.request_id, 36),
            prev_hash=prev_hash,
        )
        event.hash = hashlib.sha256(canonical(auditevent_fields(event)).encode()).digest()
        event.save(force_insert=True)
    return event


def auditevents_verify(
    *,
    expected: ChainPoint | None = None,
    after: ChainPoint | None = None,
    limit: int | None = None,
    budget_s: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> AuditVerification:
    """Check the chain of the current tenant, and that it contains `expected`, if that is given.

    `limit` events, or about `budget_s` seconds by `clock`, end the check before the log's end; it is then not
    `complete`, and another one goes on `after` its head. Without them the whole log is checked.
    """
    verifier = ChainVerifier(expected)
    if after is not None:
        stored = AuditEvent.objects.filter(seq=after.seq).values_list("hash", flat=True).first()
        if not verifier.go_on_after(after, None if stored is None else bytes(stored)):
            return verifier.done()
    # From far below the first number: what should not be there is found too.
    last_seq, left, began = after.seq if after else -(2**62), limit, clock()
    while events := auditevent_page(after_seq=last_seq, limit=PAGE if left is None else min(left, PAGE)):
        for event in events:
            if not verifier.take(auditevent_fields(event), bytes(event.hash)):
                return verifier.done()
        last_seq = events[-1].seq
        left = None if left is None else left - len(events)
        if left == 0 or (budget_s is not None and clock() - began >= budget_s):
            return verifier.done(complete=not auditevent_page(after_seq=last_seq, limit=1))
    return verifier.done()


def _masked(value: Any, name: str = "") -> Any:
    if isinstance(value, Hidden):
        return MASK
    if isinstance(value, Mapping):
        return {str(key): _masked(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(inner, name) for inner in value]
    if isinstance(value, str):
        if value and _SECRET_NAME.search(name):
            return MASK
        shown = _URL_QUERY.sub(rf"\1{MASK}", value) if name.endswith("url") else value
        return mask_secrets(shown)
    return _plain(value, name)


def _plain(value: Any, name: str) -> Any:
    """`value` as JSON has it."""
    match value:
        case None | bool() | int() | float() | dict() | list() | tuple() | set() | frozenset():
            return value
        case datetime():
            return value.astimezone(UTC).isoformat()
        case UUID():
            return str(value)
        case Decimal():
            # As a text: JSON's numbers are no decimals. 0.150000, as the database gives it, is 0.15.
            return format(value.normalize(), "f")
        case Enum():
            return value.value
        case str():
            return value
    raise TypeError(f"The audit log cannot show {name}, a {type(value).__name__}.")


def _text(text: str, length: int) -> str:
    # U+0000 cannot be stored; half a surrogate pair neither.
    return mask_secrets(text).replace("\x00", "").encode(errors="replace").decode()[:length]
