"""What the record of calls takes in the database."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from django.db import connection

from tenants.context import tenant_id_required
from tenants.services.limits import storage_use_add, storage_use_set

# The JSON that the recorder sends for an event besides its data: ids, number, time and kind.
_ENVELOPE_BYTES = 190
_MEASURE = (
    "SELECT coalesce(sum(octet_length(data::text) + %s), 0)::bigint FROM supervision_callevent WHERE tenant_id = %s"
)


def calls_storage_bytes(*, call_ids: Collection[UUID]) -> int:
    """About how many bytes the record of these calls of the current tenant takes."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"{_MEASURE} AND call_id = ANY(%s)",
            [_ENVELOPE_BYTES, tenant_id_required("Measuring calls"), list(call_ids)],
        )
        return int(cursor.fetchone()[0])


def storage_release(*, storage_bytes: int) -> None:
    """Note that so much of the current tenant's record is gone; the last step of the transaction that deletes it."""
    storage_use_add(storage_bytes=-storage_bytes)


def storage_measure() -> int:
    """Measure what the current tenant's record takes, and correct the count of it; reads every event."""
    with connection.cursor() as cursor:
        cursor.execute(_MEASURE, [_ENVELOPE_BYTES, tenant_id_required("Measuring calls")])
        measured = int(cursor.fetchone()[0])
    storage_use_set(storage_bytes=measured)
    return measured
