"""Alarms: who is mailed of them, raising them, and making up the mails that tell of them.

What happens in calls raises alarms in the recorder (`supervision.recorder.outbox`); mails are sent by
`supervision.services.alarm_mails`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Max
from django.utils import timezone

from mirror_saas.ids import uuid7
from supervision.alarms import KEPT, KINDS, LIMITS, REMEMBERED, quiet_time
from supervision.models import Alarm, AlarmRecipient
from supervision.selectors.alarms import alarm_kinds_wanted
from supervision.webhooks import event_id
from tenants.models import Tenant
from tenants.selectors.limits import refused_since
from tenants.selectors.memberships import member_get
from tenants.services.audit import auditevent_record

MAX_RECIPIENTS: Final = 50


@dataclass(frozen=True, slots=True)
class AlarmMails:
    """A mail that was made up, and to whom it goes."""

    mail_id: UUID
    recipient_ids: Sequence[UUID]


def alarm_kinds_set(*, membership_id: UUID, kinds: Collection[str]) -> frozenset[str]:
    """What a member of the current tenant is mailed of from now on; nothing: no alarm mails. Returns what it was.

    Raises MemberNotFound and ValidationError (field `kinds`).
    """
    wanted = [kind for kind in KINDS if kind in kinds]
    if unknown := sorted(set(kinds) - set(wanted)):
        raise ValidationError({"kinds": f"{unknown[0]!r} is not known; use {', '.join(KINDS)}."})
    with transaction.atomic():
        # One at a time, so that two at once make no second row and cannot pass the limit together.
        Tenant.objects.select_for_update(no_key=True).get()
        member = member_get(membership_id=membership_id)
        row = AlarmRecipient.objects.filter(membership_id=member.id).first()
        before = list(row.kinds) if row is not None else []
        if before == wanted:
            return frozenset(wanted)
        if not wanted:
            AlarmRecipient.objects.filter(membership_id=member.id).delete()
        elif row is None:
            if AlarmRecipient.objects.count() >= MAX_RECIPIENTS:
                raise ValidationError(
                    {"kinds": f"{MAX_RECIPIENTS} members get alarm mails, which is the most; take one away first."}
                )
            AlarmRecipient.objects.create(membership=member, kinds=wanted)
        else:
            row.kinds, row.updated_at = wanted, timezone.now()
            row.save(update_fields=["kinds", "updated_at"])
        auditevent_record(
            action="alarm_mails.update",
            object_id=member.id,
            object_label=member.user.email,
            before={"kinds": before},
            after={"kinds": wanted},
        )
    return frozenset(before)


def alarm_raise(
    *, kind: str, subject: UUID, data: Mapping[str, Any], now: datetime | None = None, state: str = ""
) -> bool:
    """Raise an alarm if somebody is mailed of its kind; say whether it is a new one.

    `subject` is what it happened to, `state` tells those apart that may happen to it more than once.
    """
    if kind not in alarm_kinds_wanted():
        return False
    identity = event_id(f"alarm.{kind}", subject, state)
    if Alarm.objects.filter(event_id=identity).exists():
        return False
    now = now or timezone.now()
    Alarm.objects.bulk_create(
        [Alarm(kind=kind, event_id=identity, occurred_at=now, data=dict(data), created_at=now)], ignore_conflicts=True
    )
    return True


def alarms_check(*, now: datetime) -> None:
    """Raise the alarms of limits that have refused something today, once for each limit and UTC day, and forget alarms
    that are older than 30 days."""
    day = now.astimezone(UTC).date()
    tenant = Tenant.objects.get()
    for limit, refused in refused_since(day=day).items():
        if limit in LIMITS:
            alarm_raise(
                kind="limit",
                subject=tenant.id,
                data={"limit": limit, "refused": refused},
                now=now,
                state=f"{limit} {day.isoformat()}",
            )
    Alarm.objects.filter(created_at__lt=now - KEPT).delete()


def alarms_mail_make(*, now: datetime) -> AlarmMails | None:
    """Put the alarms that wait into one mail, unless too little time has gone by since the one before; None then.

    Who gets it is decided here, and what stands in it for them when it is sent.
    """
    # Two workers at once make one mail.
    Tenant.objects.select_for_update(no_key=True).get()
    lately = Alarm.objects.filter(mailed_at__gt=now - REMEMBERED)
    newest = lately.aggregate(newest=Max("mailed_at"))["newest"]
    mails = lately.values("mail_id").distinct().count()
    if newest is not None and now < newest + quiet_time(mails):
        return None
    waiting = Alarm.objects.filter(mail_id__isnull=True)
    kinds = set(waiting.values_list("kind", flat=True).distinct())
    if not kinds:
        return None
    mail_id = uuid7()
    waiting.filter(kind__in=kinds).update(mail_id=mail_id, mailed_at=now)
    recipients = AlarmRecipient.objects.order_by("id").values_list("id", "kinds")
    return AlarmMails(mail_id, [recipient_id for recipient_id, wanted in recipients if kinds & set(wanted)])
