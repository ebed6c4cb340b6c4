"""Who the current tenant is: set once at each entry point, read by managers and by PostgreSQL.

The ContextVar feeds the managers' filter; the database setting `app.tenant_id` feeds row-level security.
`tenant_context` sets both or neither, so the two walls cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from uuid import UUID

from django.db import DEFAULT_DB_ALIAS, transaction

SETTING = "app.tenant_id"


@dataclass(frozen=True, slots=True)
class TenantContext:
    """The tenant on whose behalf the running code reads and writes."""

    tenant_id: UUID


class TenantContextMissing(RuntimeError):
    """Tenant rows were asked for while nobody had said whose."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} needs a tenant: run it inside tenants.context.tenant_context(tenant_id).")


_current: ContextVar[TenantContext | None] = ContextVar("tenant_context", default=None)


def tenant_context_current() -> TenantContext | None:
    """The context that is set, or None."""
    return _current.get()


def tenant_id_required(what: str = "This") -> UUID:
    """The current tenant's id. Raises TenantContextMissing, naming `what` asked for it."""
    context = _current.get()
    if context is None:
        raise TenantContextMissing(what)
    return context.tenant_id


def tenant_id_default() -> UUID:
    """Default of every `tenant` column: the current tenant, never a guess."""
    return tenant_id_required("A new row of a tenant")


@contextmanager
def tenant_context(tenant_id: UUID, *, using: str = DEFAULT_DB_ALIAS) -> Iterator[TenantContext]:
    """Run a block as `tenant_id`, in a transaction of its own (a savepoint inside another one).

    The setting is local to the transaction, but PostgreSQL keeps a local setting until the *outermost*
    transaction ends; so the previous value is put back on the way out. When the block raises, rolling back
    to the savepoint does that.
    """
    if not isinstance(tenant_id, UUID):
        raise TypeError(f"tenant_id must be a UUID, got {type(tenant_id).__name__}")
    context = TenantContext(tenant_id)
    with transaction.atomic(using=using):
        connection = transaction.get_connection(using)
        with connection.cursor() as cursor:
            # One round trip: the target list is evaluated left to right, so the old value is read first.
            cursor.execute(
                "SELECT coalesce(current_setting(%s, true), ''), set_config(%s, %s, true)",
                [SETTING, SETTING, str(tenant_id)],
            )
            previous = cursor.fetchone()[0]
        token = _current.set(context)
        try:
            yield context
        finally:
            _current.reset(token)
        if not connection.needs_rollback:
            with connection.cursor() as cursor:
                cursor.execute("SELECT set_config(%s, %s, true)", [SETTING, previous])
