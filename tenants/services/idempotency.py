"""`Idempotency-Key`: a write that is sent twice is done once, and the second sender gets the first one's answer.

The answer is stored in the transaction of the write itself: whatever ends that transaction early (an error, a crash, a
killed process) leaves neither a write nor an answer, so sending it again does it then. While a write runs, a lock that
belongs to its transaction tells its twin so; it cannot outlive the process.

Answers are stored sealed, because some carry a secret that is shown once, and belong to the key or person that asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.db import connection
from django.utils import timezone
from django.utils.crypto import salted_hmac

from mirror_saas.errors import Conflict, InvalidInput
from mirror_saas.ids import uuid7
from tenants.context import tenant_id_required
from tenants.models import IdempotencyKey
from tenants.sealing import seal, sealed_field, unseal_text

KEPT: Final = timedelta(hours=24)
FIELD: Final = "Idempotency-Key"
# With each answer that is stored, so many that have expired are forgotten: more than come in.
FORGET_WITH_EACH: Final = 20


class WriteRuns(Conflict):
    """The same write is being done right now."""

    def __init__(self) -> None:
        super().__init__("A request with this Idempotency-Key is being worked on; ask again shortly for its answer.")


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """What a write was answered with. `headers` are those that belong to the answer, such as ETag and Location."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: str = field(repr=False)


def request_fingerprint(*parts: bytes) -> bytes:
    """What tells two requests apart, 32 bytes; nothing of the requests can be found out from it."""
    # Each part's length before it, so that no two requests run together to the same bytes.
    joined = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return salted_hmac("mirror idempotency", joined, algorithm="sha256").digest()


def idempotency_begin(
    *, key: str, actor_id: UUID, fingerprint: bytes, now: datetime | None = None
) -> StoredAnswer | None:
    """Take `key` for the transaction that runs: None when the write is to be done, else the answer that it had.

    Raises WriteRuns while another transaction has it, and InvalidInput (field `Idempotency-Key`) when the stored answer
    is that of another request.
    """
    tenant_id = tenant_id_required("An Idempotency-Key")
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))", [f"mirror write {tenant_id} {actor_id} {key}"]
        )
        if not cursor.fetchone()[0]:
            raise WriteRuns
    stored = IdempotencyKey.objects.filter(actor_id=actor_id, key=key).first()
    if stored is None:
        return None
    if stored.created_at <= (now or timezone.now()) - KEPT:
        stored.delete()
        return None
    if bytes(stored.fingerprint) != fingerprint:
        raise InvalidInput(FIELD, "This key was used for another request; give each new request a new key.")
    answer = json.loads(
        unseal_text(
            bytes(stored.answer_sealed),
            tenant_id=tenant_id,
            field=sealed_field("tenants_idempotencykey", "answer_sealed", stored.id),
        )
    )
    return StoredAnswer(status=stored.status, headers=answer["headers"], body=answer["body"])


def idempotency_store(
    *, key: str, actor_id: UUID, fingerprint: bytes, answer: StoredAnswer, now: datetime | None = None
) -> None:
    """Keep the answer of a write that `idempotency_begin` let through, in the write's own transaction."""
    tenant_id = tenant_id_required("An Idempotency-Key")
    row_id = uuid7()
    IdempotencyKey.objects.create(
        id=row_id,
        actor_id=actor_id,
        key=key,
        fingerprint=fingerprint,
        status=answer.status,
        answer_sealed=seal(
            json.dumps({"headers": dict(answer.headers), "body": answer.body}),
            tenant_id=tenant_id,
            field=sealed_field("tenants_idempotencykey", "answer_sealed", row_id),
        ),
        created_at=now or timezone.now(),
    )
    idempotency_forget(now=now, most=FORGET_WITH_EACH)


def idempotency_forget(*, now: datetime | None = None, most: int = 1_000) -> int:
    """Delete the current tenant's answers that are older than a day, at most `most`. Returns how many."""
    expired = IdempotencyKey.objects.filter(created_at__lte=(now or timezone.now()) - KEPT)
    # Two at once take different rows instead of waiting for each other.
    ids = expired.order_by("created_at").select_for_update(skip_locked=True).values_list("id", flat=True)[:most]
    deleted, _ = IdempotencyKey.objects.filter(id__in=list(ids)).delete()
    return deleted
