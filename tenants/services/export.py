"""Everything that a tenant has, as JSON lines: for a tenant that leaves, or wants to know.

Found in PostgreSQL's own catalogue, so that a table that a later version brings is in it, too. Secrets stay out: what
is sealed, hashed or wrapped belongs to the installation that made it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from django.core.serializers.json import DjangoJSONEncoder
from django.db import connection, transaction

from tenants.context import tenant_id_required
from tenants.isolation import TENANTS, tenant_tables

_BATCH: Final = 500
# Columns that open something, or that are another form of what stands beside them.
_LEFT_OUT_TYPES: Final = frozenset({"bytea", "tsvector"})


def tenant_rows() -> Iterator[tuple[str, dict[str, Any]]]:
    """Table and row of everything that the current tenant has, as of one moment; its own row first.

    Runs in one transaction that only reads, so it must be the outermost one. Binary columns are left out.
    """
    tenant_id = tenant_id_required("An export")
    for table in [TENANTS, *tenant_tables()]:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT a.attname::text FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid"
                " WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped AND NOT t.typname = ANY(%s)"
                " ORDER BY a.attnum",
                [f"public.{table}", list(_LEFT_OUT_TYPES)],
            )
            columns = [name for (name,) in cursor.fetchall()]
        yield from _rows(table, columns, tenant_id)


def tenant_export_lines() -> Iterator[str]:
    """`tenant_rows` as lines of JSON: `{"table": …, "row": {…}}`."""
    for table, row in tenant_rows():
        yield json.dumps({"table": table, "row": row}, cls=DjangoJSONEncoder, ensure_ascii=False) + "\n"


def _rows(table: str, columns: list[str], tenant_id: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    whose = "id" if table == TENANTS else "tenant_id"
    quoted = ", ".join(connection.ops.quote_name(column) for column in columns)
    last = None
    while True:
        with connection.cursor() as cursor:
            # Names are the catalogue's; row-level security stands behind the condition.
            cursor.execute(
                f"SELECT to_jsonb(r) FROM (SELECT {quoted} FROM public.{table} WHERE {whose} = %s"  # noqa: S608
                " AND (%s::uuid IS NULL OR id > %s::uuid) ORDER BY id LIMIT %s) AS r",
                [tenant_id, last, last, _BATCH],
            )
            rows = [json.loads(row) if isinstance(row, str) else row for (row,) in cursor.fetchall()]
        if not rows:
            return
        for row in rows:
            yield table, row
        last = rows[-1]["id"]


def snapshot_begin() -> None:
    """Let the rest of this transaction see one moment, and change nothing. Right after the transaction has begun."""
    if not transaction.get_connection().in_atomic_block:
        raise RuntimeError("A snapshot is of a transaction; begin one first.")
    with connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
