"""Background work about people."""

from __future__ import annotations

import logging
from smtplib import SMTPException, SMTPRecipientsRefused
from typing import Any, Final
from uuid import UUID

from celery import Task, shared_task

from mirror_saas.tasks import TenantTask
from tenants.services.idempotency import idempotency_forget
from tenants.services.invitations import invitation_mail_send
from tenants.services.people import password_reset_mail
from tenants.services.sign_up import sign_up_mail

logger = logging.getLogger(__name__)

# 1, 2, 4, 8 and 16 minutes.
MAIL_RETRIES: Final = 5
MAIL_RETRY_S: Final = 60
# What a mail server that is down, or that does not want a mail, raises.
MAIL_ERRORS: Final = (SMTPException, OSError)


@shared_task(  # type: ignore[untyped-decorator]
    name="tenants.password_reset_send", bind=True, max_retries=MAIL_RETRIES
)
def password_reset_send(task: Task, email: str) -> None:
    """Mail a link to whoever signs in with `email`; nothing happens when nobody does."""
    try:
        password_reset_mail(email=email)
    except MAIL_ERRORS as error:
        mail_again(task, error, what="a password link", argsrepr="…")


@shared_task(name="tenants.sign_up_send", bind=True, max_retries=MAIL_RETRIES)  # type: ignore[untyped-decorator]
def sign_up_send(task: Task, email: str) -> None:
    """Mail whoever wants to sign up with `email` the link to go on with."""
    try:
        sign_up_mail(email=email)
    except MAIL_ERRORS as error:
        mail_again(task, error, what="a link to sign up", argsrepr="…")


def mail_again(task: Task, error: Exception, *, what: str, **options: Any) -> None:
    """Log that the mail server did not take a mail, and have the task, which allows MAIL_RETRIES, try again later.

    Raises celery's Retry, unless the address was refused, where another try gets the same answer, or this was the last.
    """
    if isinstance(error, SMTPRecipientsRefused):
        logger.warning("the mail server refused the address of %s", what)
        return
    logger.warning("the mail server did not take %s: %s", what, type(error).__name__)
    if task.request.retries < MAIL_RETRIES:
        raise task.retry(exc=error, countdown=MAIL_RETRY_S * 2**task.request.retries, **options) from error


@shared_task(name="tenants.idempotency_clear", base=TenantTask)  # type: ignore[untyped-decorator]
def idempotency_clear() -> None:
    """Forget the tenant's stored answers that are older than a day, also when nobody writes any more."""
    while idempotency_forget():
        pass


@shared_task(  # type: ignore[untyped-decorator]
    name="tenants.invitation_send", base=TenantTask, bind=True, in_transaction=False, max_retries=MAIL_RETRIES
)
def invitation_send(task: TenantTask, invitation_id: str, mark: str) -> None:
    """Mail an invitation; a mail server that is down is tried again for half an hour. The link is made here."""
    last = task.request.retries >= MAIL_RETRIES
    try:
        invitation_mail_send(tenant_id=task.tenant_id, invitation_id=UUID(invitation_id), mark=mark, last=last)
    except MAIL_ERRORS as error:
        # After the last try the page says that the mail was not delivered.
        mail_again(task, error, what="an invitation")
