"""The keys behind stored secrets: checked when a process starts, exchanged by `manage.py rotate_keys`.

Rotating is safe while Mirror runs and may be interrupted anywhere: each step is a short transaction of one tenant that
looks for what is left to do, so a second run does the rest and a third one nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.apps import apps
from django.db import connection, transaction
from django.utils import timezone

from tenants.context import tenant_context
from tenants.envelope import KeyRing, KeyUnusable, SealBroken, TenantKeys, sealed_field, sealed_head, wrapped_by
from tenants.managers import TenantModel
from tenants.models import DataKey, KeyCheck
from tenants.sealing import SealedField, WrongEncryptionKey, data_key_create, key_check, key_ring, seal, tenant_keys
from tenants.selectors.tenants import tenant_ids_list
from tenants.services.audit import auditevent_record
from tenants.services.second_factor import second_factors_reseal

BATCH = 200
# Whoever read a row before it was sealed anew can still open it for this long.
RETIRED_KEPT = timedelta(hours=1)
_COUNTS = ("rewrapped", "data_keys_made", "resealed", "data_keys_retired", "data_keys_deleted")
# Any two numbers that are ours will do.
_CHECK_LOCK = 7_016_871_035
_ROTATE_LOCK = 7_016_871_036


class RotationRuns(RuntimeError):
    """Another rotation has not ended yet."""

    def __init__(self) -> None:
        super().__init__("Another rotate_keys runs on this database; wait for its end.")


@dataclass(frozen=True, slots=True)
class SealedColumn:
    """One column of secrets."""

    table: str
    column: str


@dataclass(slots=True)
class Rotation:
    """What a rotation did; `broken` names the secrets that do not open, `table.column:row`."""

    tenants: int = 0
    rewrapped: int = 0
    data_keys_made: int = 0
    resealed: int = 0
    data_keys_retired: int = 0
    data_keys_deleted: int = 0
    second_factors_resealed: int = 0
    broken: list[str] = field(default_factory=list)


def sealed_columns() -> list[SealedColumn]:
    """Every column that holds sealed values, of whatever app."""
    return [
        SealedColumn(model._meta.db_table, column.column)
        for model in apps.get_models()
        if issubclass(model, TenantModel)
        for column in model._meta.concrete_fields
        if isinstance(column, SealedField)
    ]


def encryption_key_check() -> None:
    """Raise WrongEncryptionKey when the environment's keys do not open what is stored.

    The keys in use are known by their check values. On a database of before there were any, the key has to open the
    first stored secret that is found; then it is noted.
    """
    ring = key_ring()
    noted = set(KeyCheck.objects.values_list("key_id", flat=True))
    if ring.current.id in noted and noted <= ring.ids:
        return
    with transaction.atomic():
        with connection.cursor() as cursor:
            # Two first starts at once, with different keys: the second one sees what the first one noted.
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_CHECK_LOCK])
        if not KeyCheck.objects.exists():
            _legacy_check(ring)
        key_check(ring)


def keys_rotate(
    *,
    new_data_keys: bool = False,
    min_age: timedelta = timedelta(days=1),
    tenant_ids: list[UUID] | None = None,
    batch: int = BATCH,
    progress: Callable[[UUID, Rotation], None] | None = None,
) -> Rotation:
    """Wrap every data key with the environment's current key; with `new_data_keys` also make a new data key for each
    tenant whose newest is at least `min_age` old, seal the tenant's secrets with it, and retire the old one.

    Secrets of before there were data keys are sealed anew in any case, and so are those of people's second factors.
    `tenant_ids` limits it to some tenants, and then to no people.
    `progress` is called after each tenant. Raises WrongEncryptionKey and RotationRuns.
    """
    encryption_key_check()
    rotation = Rotation()
    with _alone():
        for tenant_id in tenant_ids if tenant_ids is not None else tenant_ids_list():
            _tenant_rotate(tenant_id, rotation, min_age if new_data_keys else None, batch)
            rotation.tenants += 1
            if progress is not None:
                progress(tenant_id, rotation)
        if tenant_ids is None:
            # People belong to no tenant, and neither do the secrets of their second factors.
            factors = second_factors_reseal(ring=key_ring(), batch=batch)
            rotation.second_factors_resealed = factors.resealed
            rotation.broken += factors.broken
        if tenant_ids is None and not rotation.broken:
            # Nothing needs the former keys any more; a start without them is right from now on.
            KeyCheck.objects.exclude(key_id=key_ring().current.id).delete()
    return rotation


def _tenant_rotate(tenant_id: UUID, rotation: Rotation, new_key_after: timedelta | None, batch: int) -> None:
    broken, before = len(rotation.broken), dataclasses.replace(rotation)
    _rewrap(tenant_id, rotation)
    _forget_retired(tenant_id, rotation)
    if new_key_after is not None and len(rotation.broken) == broken:
        _new_data_key(tenant_id, rotation, new_key_after)
    for column in sealed_columns():
        after = None
        while True:
            with tenant_context(tenant_id):
                after, more = _reseal_batch(tenant_id, column, rotation, after=after, batch=batch)
            if not more:
                break
    if len(rotation.broken) == broken:
        _retire(tenant_id, rotation, batch)
    done = {name: getattr(rotation, name) - getattr(before, name) for name in _COUNTS}
    if any(done.values()):
        with tenant_context(tenant_id):
            auditevent_record(action="data_key.rotate", object_id=tenant_id, object_label="data keys", after=done)


def _rewrap(tenant_id: UUID, rotation: Rotation) -> None:
    ring = key_ring()
    with tenant_context(tenant_id):
        # no_key: whoever seals with a key meanwhile holds its row, and is not in the way.
        for data_key in DataKey.objects.select_for_update(no_key=True).order_by("number"):
            wrapped = bytes(data_key.wrapped)
            if wrapped_by(wrapped) == ring.current.id:
                continue
            try:
                plain = ring.unwrap(wrapped, tenant_id=tenant_id, key_id=data_key.id)
            except KeyUnusable:
                rotation.broken.append(sealed_field("tenants_datakey", "wrapped", data_key.id))
                continue
            data_key.wrapped = ring.wrap(plain, tenant_id=tenant_id, key_id=data_key.id)
            data_key.save(update_fields=["wrapped"])
            rotation.rewrapped += 1


def _forget_retired(tenant_id: UUID, rotation: Rotation) -> None:
    with tenant_context(tenant_id):
        for data_key in DataKey.objects.select_for_update().filter(retired_at__lt=timezone.now() - RETIRED_KEPT):
            if not any(_sealed_with(tenant_id, column, data_key.id) for column in sealed_columns()):
                data_key.delete()
                rotation.data_keys_deleted += 1


def _new_data_key(tenant_id: UUID, rotation: Rotation, min_age: timedelta) -> None:
    with tenant_context(tenant_id):
        in_use = list(DataKey.objects.filter(retired_at=None).order_by("-number"))
        # Two in use: an earlier run was interrupted, and this one goes on with it. None: nothing was ever sealed.
        if len(in_use) != 1 or timezone.now() - in_use[0].created_at < min_age:
            return
        rotation.data_keys_made += data_key_create(tenant_id, number=in_use[0].number + 1)


def _retire(tenant_id: UUID, rotation: Rotation, batch: int) -> None:
    with tenant_context(tenant_id):
        newest = DataKey.objects.filter(retired_at=None).order_by("-number").first()
        if newest is None:
            return
        # Waits for every transaction that sealed with one of them, so what those stored is seen below.
        olds = list(DataKey.objects.select_for_update().filter(retired_at=None, number__lt=newest.number))
        if not olds:
            return
        broken = len(rotation.broken)
        for column in sealed_columns():
            after, more = None, True
            while more:
                after, more = _reseal_batch(tenant_id, column, rotation, after=after, batch=batch)
        if len(rotation.broken) == broken:
            rotation.data_keys_retired += DataKey.objects.filter(id__in=[old.id for old in olds]).update(
                retired_at=timezone.now()
            )


def _reseal_batch(
    tenant_id: UUID, column: SealedColumn, rotation: Rotation, *, after: UUID | None, batch: int
) -> tuple[UUID | None, bool]:
    """Seal up to `batch` secrets behind row `after` with the newest data key. Returns the last row and whether there
    may be more."""
    newest = DataKey.objects.filter(retired_at=None).order_by("-number").first()
    head = sealed_head(newest.id) if newest is not None else b""
    table, name = connection.ops.quote_name(column.table), connection.ops.quote_name(column.column)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT id, {name} FROM {table} WHERE tenant_id = %s AND {name} IS NOT NULL"  # noqa: S608  (ours, quoted)
            f" AND substring({name} FROM 1 FOR 17) <> %s AND (%s::uuid IS NULL OR id > %s)"
            " ORDER BY id LIMIT %s FOR NO KEY UPDATE",
            [tenant_id, head, after, after, batch],
        )
        rows = cursor.fetchall()
        keys: TenantKeys | None = None
        for row_id, sealed in rows:
            place = sealed_field(column.table, column.column, row_id)
            keys = keys or tenant_keys(tenant_id)
            try:
                plain = keys.unseal(sealed, field=place)
                resealed = seal(plain, tenant_id=tenant_id, field=place)
            except SealBroken:
                rotation.broken.append(place)
                continue
            cursor.execute(
                f"UPDATE {table} SET {name} = %s WHERE tenant_id = %s AND id = %s",  # noqa: S608
                [resealed, tenant_id, row_id],
            )
            rotation.resealed += 1
    return (rows[-1][0] if rows else after), len(rows) == batch


def _sealed_with(tenant_id: UUID, column: SealedColumn, key_id: UUID) -> bool:
    return _first(tenant_id, column, sealed_head(key_id)) is not None


def _first(tenant_id: UUID, column: SealedColumn, head: bytes) -> tuple[UUID, bytes] | None:
    """Row and value of the column's first secret that begins with `head`."""
    table, name = connection.ops.quote_name(column.table), connection.ops.quote_name(column.column)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT id, {name} FROM {table} WHERE tenant_id = %s"  # noqa: S608  (ours, quoted)
            f" AND substring({name} FROM 1 FOR %s) = %s LIMIT 1",
            [tenant_id, len(head), head],
        )
        found: tuple[Any, Any] | None = cursor.fetchone()
    return None if found is None else (found[0], bytes(found[1]))


def _legacy_check(ring: KeyRing) -> None:
    """One secret that opens proves the key; only when there are some and none opens, the key is wrong."""
    closed = False
    for tenant_id in tenant_ids_list():
        with tenant_context(tenant_id):
            for column in sealed_columns():
                found = _first(tenant_id, column, b"\x01")
                if found is None:
                    continue
                row_id, sealed = found
                try:
                    ring.legacy_open(
                        sealed, tenant_id=tenant_id, field=sealed_field(column.table, column.column, row_id)
                    )
                except SealBroken:
                    closed = True
                    continue
                return
    if closed:
        raise WrongEncryptionKey(ring, ["unknown"])


@contextmanager
def _alone() -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", [_ROTATE_LOCK])
        if not cursor.fetchone()[0]:
            raise RotationRuns
        try:
            yield
        finally:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [_ROTATE_LOCK])
