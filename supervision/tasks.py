"""Background work about calls."""

from __future__ import annotations

import logging

from celery import shared_task
from django.utils import timezone

from mirror_saas.tasks import TenantTask
from supervision.services.privacy import calls_prune

logger = logging.getLogger(__name__)


@shared_task(name="supervision.calls_prune", base=TenantTask)  # type: ignore[untyped-decorator]
def prune() -> None:
    """Delete the tenant's calls that are older than it keeps them, and store what each day came to before that."""
    pruned = calls_prune(now=timezone.now())
    if pruned:
        logger.info("%d calls were deleted for their age", pruned)
