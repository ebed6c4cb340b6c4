"""Background work about calls, and telling webhooks of them."""

from __future__ import annotations

import logging

from celery import shared_task
from django.utils import timezone

from mirror_saas.tasks import SCHEDULE, TenantTask
from supervision.selectors.webhooks import webhook_tenants_due
from supervision.services.privacy import calls_prune
from supervision.services.webhook_deliveries import deliveries_prune, deliveries_send

logger = logging.getLogger(__name__)


@shared_task(name="supervision.calls_prune", base=TenantTask)  # type: ignore[untyped-decorator]
def prune() -> None:
    """Delete the tenant's calls that are older than it keeps them, and store what each day came to before that."""
    pruned = calls_prune(now=timezone.now())
    if pruned:
        logger.info("%d calls were deleted for their age", pruned)


@shared_task(name="supervision.webhooks_sweep")  # type: ignore[untyped-decorator]
def webhooks_sweep() -> None:
    """Have each tenant that has something in its outbox send it."""
    for tenant_id in webhook_tenants_due(now=timezone.now()):
        webhooks_send.apply_async_as(tenant_id, SCHEDULE)


@shared_task(name="supervision.webhooks_send", base=TenantTask, bind=True)  # type: ignore[untyped-decorator]
def webhooks_send(self: TenantTask) -> None:
    """Send what is due in the tenant's outbox."""
    deliveries_send(tenant_id=self.tenant_id)


# Receivers are waited for; no transaction stays open meanwhile.
webhooks_send.in_transaction = False


@shared_task(name="supervision.webhooks_prune", base=TenantTask)  # type: ignore[untyped-decorator]
def webhooks_prune() -> None:
    """Forget the tenant's old deliveries."""
    pruned = deliveries_prune(now=timezone.now())
    if pruned:
        logger.info("%d webhook deliveries were deleted for their age", pruned)
