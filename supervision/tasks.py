"""Background work about calls, and telling webhooks and people of them."""

from __future__ import annotations

import logging
from uuid import UUID

from celery import shared_task
from django.utils import timezone

from mirror_saas.tasks import SCHEDULE, TenantTask
from supervision.selectors.alarms import alarm_tenants_waiting
from supervision.selectors.webhooks import webhook_tenants_due
from supervision.services.alarm_mails import alarm_mail_send
from supervision.services.alarms import alarms_check, alarms_mail_make
from supervision.services.privacy import calls_prune
from supervision.services.webhook_deliveries import deliveries_prune, deliveries_send
from tenants.tasks import MAIL_ERRORS, MAIL_RETRIES, mail_again

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


@shared_task(name="supervision.alarms_sweep")  # type: ignore[untyped-decorator]
def alarms_sweep() -> None:
    """Have each tenant that has alarms which nobody was mailed of make up a mail."""
    for tenant_id in alarm_tenants_waiting():
        alarms_mail.apply_async_as(tenant_id, SCHEDULE)


@shared_task(name="supervision.alarms_mail", base=TenantTask)  # type: ignore[untyped-decorator]
def alarms_mail() -> None:
    """Put the tenant's alarms that wait into a mail, if it is time, and have it sent to each who wants it."""
    made = alarms_mail_make(now=timezone.now())
    if made is not None:
        for recipient_id in made.recipient_ids:
            alarm_send.apply_async((str(recipient_id), str(made.mail_id)))


@shared_task(  # type: ignore[untyped-decorator]
    name="supervision.alarm_send", base=TenantTask, bind=True, in_transaction=False, max_retries=MAIL_RETRIES
)
def alarm_send(task: TenantTask, recipient_id: str, mail_id: str) -> None:
    """Mail alarms to one member; a mail server that is down is tried again for half an hour."""
    try:
        alarm_mail_send(tenant_id=task.tenant_id, recipient_id=UUID(recipient_id), mail_id=UUID(mail_id))
    except MAIL_ERRORS as error:
        mail_again(task, error, what="an alarm")


@shared_task(name="supervision.alarms_check", base=TenantTask)  # type: ignore[untyped-decorator]
def alarms_check_() -> None:
    """Raise the alarms of limits that have refused something, and forget old alarms."""
    alarms_check(now=timezone.now())
