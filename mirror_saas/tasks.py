"""Background work: tasks of a tenant, tasks of the installation, and schedules that visit each tenant.

    @shared_task(base=TenantTask, bind=True, max_retries=5)
    def invitation_mail(self: TenantTask, invitation_id: str) -> None: ...

    with tenant_context(tenant_id):
        invitation_mail.delay(str(invitation.id))  # sent when the transaction commits, with tenant and actor

A tenant task's message says in its headers whose it is. Arguments are ids: the worker reads what it needs as that
tenant, under row-level security, so an id of somebody else's finds nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from typing import Any, ClassVar, Final
from uuid import UUID

from celery import Task, current_app, shared_task
from celery.exceptions import Reject
from celery.result import AsyncResult
from celery.utils import uuid as task_uuid
from django.conf import settings
from django.db import transaction

from tenants.actors import Actor, actor_context, actor_current
from tenants.context import TenantContextMissing, tenant_context, tenant_context_current
from tenants.models import Tenant
from tenants.selectors.tenants import tenant_ids_list

logger = logging.getLogger(__name__)

TENANT_HEADER: Final = "mirror_tenant"
ACTOR_HEADER: Final = "mirror_actor"
SCHEDULE: Final = Actor(kind="system", label="schedule")
# Arguments are shown in the worker's events and in a failure's log otherwise.
_NOT_SHOWN: Final = "…"


class TaskHeaderInvalid(ValueError):
    """A message of a tenant task that does not say, or says wrongly, whose it is."""


class TenantTask(Task):  # type: ignore[misc]  # celery has no types
    """Base of the tasks that work for one tenant: `shared_task(base=TenantTask)`.

    `delay` and `apply_async` need a tenant context and raise TenantContextMissing without one. The message is sent
    when the caller's transaction commits, and never when it is rolled back.

    In the worker `run` is one transaction as the message's tenant, and acts as whoever sent it; a failed attempt
    writes nothing, and a retry keeps both. A message without a valid header is rejected: logged, not tried again.

    A task that talks to others between its reads and writes sets `in_transaction = False`: `run` then opens
    `tenant_context(self.tenant_id)` around each service call, and no transaction stays open meanwhile.
    """

    abstract = True
    in_transaction: ClassVar[bool] = True

    @property
    def tenant_id(self) -> UUID:
        """Whose task runs. Raises TenantContextMissing where nobody said."""
        headers = self.request.headers
        if not self.request.called_directly and headers:
            return _headers_read(headers)[0]
        return _context_required(self.name)

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> AsyncResult:
        headers = dict(options.pop("headers", None) or {})
        # A retry, and a schedule's visit, carry whose they are; there is no transaction of theirs to wait for.
        carried = TENANT_HEADER in headers
        options["headers"] = self._headers(headers)
        options.setdefault("argsrepr", _NOT_SHOWN)
        options.setdefault("kwargsrepr", _NOT_SHOWN)
        if carried:
            return super().apply_async(args, kwargs, **options)
        task_id = options.setdefault("task_id", task_uuid())
        send = super().apply_async
        transaction.on_commit(lambda: send(args, kwargs, **options))
        return self.AsyncResult(task_id)

    def apply(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        options["headers"] = self._headers(dict(options.pop("headers", None) or {}))
        return super().apply(args, kwargs, **options)

    def apply_async_as(self, tenant_id: UUID, actor: Actor, args: Any = None, kwargs: Any = None) -> AsyncResult:
        """Send the task for a tenant that is not the current one, at once: for schedules."""
        return self.apply_async(args, kwargs, headers=_headers_make(tenant_id, actor))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.request.called_directly:
            # An ordinary function call, in the caller's context.
            _context_required(self.name)
            return super().__call__(*args, **kwargs)
        try:
            tenant_id, actor = _headers_read(self.request.headers)
        except TaskHeaderInvalid as error:
            logger.error("a message of the task %s was refused: %s", self.name, error)
            raise Reject(str(error), requeue=False) from None
        with actor_context(actor):
            with tenant_context(tenant_id):
                if not Tenant.objects.exists():
                    logger.info("a message of the task %s was dropped: its tenant was deleted", self.name)
                    raise Reject("the tenant was deleted", requeue=False)
                if self.in_transaction:
                    return self.run(*args, **kwargs)
            return self.run(*args, **kwargs)

    def _headers(self, given: Mapping[str, Any]) -> dict[str, Any]:
        if TENANT_HEADER not in given:
            return {**given, **_headers_make(_context_required(self.name), actor_current())}
        tenant_id, _ = _headers_read(given)
        context = tenant_context_current()
        if context is not None and context.tenant_id != tenant_id:
            raise TaskHeaderInvalid(f"The task {self.name} cannot be sent for another tenant than the current one.")
        return dict(given)


def _context_required(name: str) -> UUID:
    context = tenant_context_current()
    if context is None:
        raise TenantContextMissing(f"The task {name}")
    return context.tenant_id


def _headers_make(tenant_id: UUID, actor: Actor) -> dict[str, str]:
    return {TENANT_HEADER: str(tenant_id), ACTOR_HEADER: json.dumps(asdict(actor), default=str)}


def _headers_read(headers: Mapping[str, Any] | None) -> tuple[UUID, Actor]:
    """Whose a message is. Raises TaskHeaderInvalid, which repeats nothing of it."""
    tenant, actor = (headers or {}).get(TENANT_HEADER), (headers or {}).get(ACTOR_HEADER)
    if not isinstance(tenant, str) or not isinstance(actor, str):
        raise TaskHeaderInvalid("its headers name no tenant and actor")
    try:
        fields = json.loads(actor)
        kind, actor_id = fields.pop("kind"), fields.pop("id")
        if kind not in ("user", "api_key", "system") or not all(isinstance(text, str) for text in fields.values()):
            raise ValueError
        return UUID(tenant), Actor(kind=kind, id=None if actor_id is None else UUID(actor_id), **fields)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise TaskHeaderInvalid("its headers name no tenant and actor that could be one") from error


# -- schedules ----------------------------------------------------------------------------------------------------


@shared_task(name="mirror_saas.each_tenant")  # type: ignore[untyped-decorator]
def each_tenant(name: str) -> None:
    """Send the tenant task `name` once for each tenant, as the schedule."""
    task = current_app.tasks[name]
    if not isinstance(task, TenantTask):
        raise TypeError(f"{name} is no task of a tenant.")
    for tenant_id in tenant_ids_list():
        task.apply_async_as(tenant_id, SCHEDULE)


@shared_task(name="mirror_saas.sessions_clear")  # type: ignore[untyped-decorator]
def sessions_clear() -> None:
    """Delete sessions that have expired; nobody can use them any more, and the table would grow for ever."""
    import_module(settings.SESSION_ENGINE).SessionStore.clear_expired()
