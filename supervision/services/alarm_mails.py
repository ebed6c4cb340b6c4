"""The mail that tells a member of alarms, and the link in it that stops such mails."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.core import signing
from django.core.mail import EmailMultiAlternatives
from django.urls import reverse

from supervision.alarms import REMEMBERED, alarm_text, quiet_time
from supervision.models import Alarm, AlarmRecipient, WebhookEndpoint
from supervision.selectors.alarms import alarm_agents
from supervision.services.alarms import alarm_kinds_set
from tenants.context import tenant_context, tenant_id_required
from tenants.models import User
from tenants.selectors.tenants import TenantRef, tenant_current
from tenants.services.mails import mail_make

# Of each kind a mail names so many, the newest first, and counts the others.
SHOWN: Final = 10
_SALT: Final = "supervision.alarm_mails.off"

# What stands over the alarms of a kind, and what to do about them.
_TITLES: Final = {
    "coverage": "Turns that were not judged",
    "call": "Calls that failed",
    "webhook": "Webhooks that were switched off",
    "limit": "Limits that are reached",
}
_ADVICE: Final = {
    "coverage": "Look whether the judge’s model answers, and in time. What was not judged was not stopped either.",
    "call": "Look whether the agent runs and can be reached. “Check” on its page dials it.",
    "webhook": "When its receiver works again, switch the webhook on; what it missed is not sent later.",
    "limit": "The operator of this Mirror sets the limits. Until then the rest is refused.",
}


class AlarmLinkInvalid(LookupError):
    """A link that stops alarm mails is none of ours, or these mails were stopped before."""

    def __init__(self) -> None:
        super().__init__("This link does not work any more. It stops no mails, or they were stopped already.")


@dataclass(frozen=True, slots=True)
class AlarmLine:
    """One alarm: when, what, and the page that shows more."""

    at: datetime
    text: str
    url: str


@dataclass(frozen=True, slots=True)
class AlarmGroup:
    """The alarms of one kind; `more` of them are not shown."""

    title: str
    advice: str
    lines: tuple[AlarmLine, ...]
    more: int


@dataclass(frozen=True, slots=True)
class AlarmsOff:
    """Whose alarm mails a link stops, and of which tenant."""

    tenant: TenantRef
    email: str


def alarm_mail_send(*, tenant_id: UUID, recipient_id: UUID, mail_id: UUID) -> bool:
    """Send a member the alarms of a mail that they want to hear of; False when there are none, or they left meanwhile.

    Raises what the mail server answers. No transaction is open while it does.
    """
    with tenant_context(tenant_id):
        mail = _mail(recipient_id, mail_id)
    if mail is None:
        return False
    mail.send()
    return True


def alarms_off_read(*, token: str) -> AlarmsOff:
    """Whose mails a mailed link stops. Raises AlarmLinkInvalid."""
    tenant_id, recipient_id = _token_read(token)
    with tenant_context(tenant_id):
        recipient = _recipient(recipient_id)
        return AlarmsOff(tenant=tenant_current(), email=recipient.membership.user.email)


def alarms_off(*, token: str) -> AlarmsOff:
    """Stop the alarm mails that a mailed link is of. Raises AlarmLinkInvalid."""
    tenant_id, recipient_id = _token_read(token)
    with tenant_context(tenant_id):
        recipient = _recipient(recipient_id)
        off = AlarmsOff(tenant=tenant_current(), email=recipient.membership.user.email)
        alarm_kinds_set(membership_id=recipient.membership_id, kinds=())
    return off


def alarms_off_url(recipient: AlarmRecipient) -> str:
    """The link that stops these mails without signing in."""
    token = signing.dumps([tenant_id_required("A link").hex, recipient.id.hex], salt=_SALT)
    return settings.MIRROR.public_url + reverse("webui:alarm_mails_off", kwargs={"token": token})


def _token_read(token: str) -> tuple[UUID, UUID]:
    try:
        tenant_id, recipient_id = signing.loads(token, salt=_SALT)
        return UUID(hex=tenant_id), UUID(hex=recipient_id)
    except (signing.BadSignature, ValueError, TypeError, AttributeError) as error:
        raise AlarmLinkInvalid from error


def _recipient(recipient_id: UUID) -> AlarmRecipient:
    found = AlarmRecipient.objects.select_related("membership__user").filter(id=recipient_id).first()
    if found is None:
        raise AlarmLinkInvalid
    return found


def _mail(recipient_id: UUID, mail_id: UUID) -> EmailMultiAlternatives | None:
    found = AlarmRecipient.objects.select_related("membership__user").filter(id=recipient_id).first()
    if found is None:
        return None
    alarms = list(Alarm.objects.filter(mail_id=mail_id, kind__in=found.kinds).order_by("-occurred_at", "-id"))
    if not alarms:
        return None
    user: User = found.membership.user
    off = alarms_off_url(found)
    groups = _groups(alarms)
    # Names of agents, and of hosts, stand in the mail; what was said in calls never does.
    told = {
        "tenant": tenant_current(),
        "count": len(alarms),
        "groups": groups,
        "first": groups[0],
        "quiet": _words(quiet_time(_mails_lately(alarms[0]))),
        "name": user.name or user.email,
        "settings_url": settings.MIRROR.public_url + reverse("webui:alarm_mails"),
        "off_url": off,
    }
    return mail_make(
        to=user.email, template="supervision/mail/alarms", told=told, headers={"List-Unsubscribe": f"<{off}>"}
    )


def _mails_lately(alarm: Alarm) -> int:
    """How many mails there were within a day up to the one of `alarm`."""
    at = alarm.mailed_at
    if at is None:
        return 0
    return Alarm.objects.filter(mailed_at__gt=at - REMEMBERED, mailed_at__lte=at).values("mail_id").distinct().count()


def _groups(alarms: Iterable[Alarm]) -> list[AlarmGroup]:
    by_kind: dict[str, list[Alarm]] = {kind: [] for kind in _TITLES}
    for alarm in alarms:
        by_kind.setdefault(alarm.kind, []).append(alarm)
    agents = alarm_agents(alarm for found in by_kind.values() for alarm in found[:SHOWN])
    return [
        AlarmGroup(
            title=_TITLES[kind],
            advice=_ADVICE[kind],
            lines=tuple(_line(alarm, agents) for alarm in found[:SHOWN]),
            more=max(0, len(found) - SHOWN),
        )
        for kind, found in by_kind.items()
        if found
    ]


def _line(alarm: Alarm, agents: dict[str, str]) -> AlarmLine:
    data: dict[str, Any] = dict(alarm.data)
    return AlarmLine(
        at=alarm.occurred_at,
        text=alarm_text(alarm.kind, data, agents=agents),
        url=settings.MIRROR.public_url + _path(alarm.kind, data),
    )


def _path(kind: str, data: dict[str, Any]) -> str:
    match kind:
        case "coverage" | "call":
            return reverse("webui:call", args=[data["call_id"]])
        case "webhook":
            # A deleted one has no page.
            known = WebhookEndpoint.objects.filter(id=data["webhook_id"]).exists()
            return reverse("webui:webhook", args=[data["webhook_id"]]) if known else reverse("webui:webhooks")
    return reverse("webui:settings")


def _words(time: timedelta) -> str:
    minutes = time // timedelta(minutes=1)
    if minutes < 60:
        return f"{minutes} minutes"
    return "hour" if minutes < 120 else f"{minutes // 60} hours"
