"""Background work about people."""

from __future__ import annotations

from celery import shared_task

from tenants.services.people import password_reset_mail


@shared_task(name="tenants.password_reset_send")  # type: ignore[untyped-decorator]
def password_reset_send(email: str) -> None:
    """Mail a link to whoever signs in with `email`; nothing happens when nobody does."""
    password_reset_mail(email=email)
