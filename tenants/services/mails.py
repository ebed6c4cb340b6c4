"""Mails as text and HTML, from templates, handed to the mail server.

A mail called `tenants/mail/invitation` is three templates: `…_subject.txt`, `….txt` and `….html`. HTML ones extend
`tenants/mail/base.html`. Each is given `public_url`, the address of this installation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.core.mail import EmailMultiAlternatives
from django.template.loader import render_to_string


def mail_make(
    *, to: str, template: str, told: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> EmailMultiAlternatives:
    """The mail `template` to one address, filled with `told`; `.send()` hands it over.

    That raises what the mail server answers: SMTPException or OSError. Have no transaction open meanwhile.
    """
    context = {"public_url": settings.MIRROR.public_url, **told}
    mail = EmailMultiAlternatives(
        # In one line, whatever a name in it holds: another line would be another header.
        subject=" ".join(render_to_string(f"{template}_subject.txt", context).split()),
        body=render_to_string(f"{template}.txt", context),
        to=[to],
        headers=dict(headers or {}),
    )
    mail.attach_alternative(render_to_string(f"{template}.html", context), "text/html")
    return mail
