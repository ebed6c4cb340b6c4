"""Alarm mails: what raises an alarm, who is mailed of it and how often, and how they stop it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from smtplib import SMTPRecipientsRefused, SMTPServerDisconnected
from typing import Any
from uuid import UUID

import pytest
from celery.exceptions import Retry
from django.core import mail
from django.core.exceptions import ValidationError
from django.utils import timezone

from mirror_saas.celery import app as celery
from mirror_saas.ids import uuid7
from supervision import tasks
from supervision.alarms import KEPT, KINDS, MOST_QUIET, REMEMBERED, alarm_kind, quiet_time
from supervision.models import Alarm, AlarmRecipient, WebhookEndpoint
from supervision.recorder.events import RecordEvent
from supervision.recorder.store import connect, store_events
from supervision.selectors.alarms import alarm_kinds_wanted, alarm_tenants_waiting
from supervision.services import alarms as services
from supervision.services.alarm_mails import SHOWN, AlarmLinkInvalid, alarm_mail_send, alarms_off, alarms_off_read
from supervision.services.alarms import alarm_kinds_set, alarm_raise, alarms_check, alarms_mail_make
from supervision.services.webhooks import webhook_create, webhook_switch_off
from tenants.models import AuditEvent, Membership
from tenants.roles import Role
from tenants.selectors.memberships import MemberNotFound
from tenants.services.limits import limitrefusals_add
from tenants.services.memberships import membership_create, membership_remove
from tenants.services.tenants import user_create
from tests.factories import Tenancy, unique
from tests.recorder.calls import call_log, ended, judged, reported, started
from tests.support.servers import DatabaseUrls

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)


def member_of(tenancy: Tenancy, name: str = "bob") -> Membership:
    user = user_create(email=f"{unique(name)}@example.com", password=None, name=name.title())
    return membership_create(user=user, role=Role.VIEWER)


def owner_of(tenancy: Tenancy) -> Membership:
    return Membership.objects.get(user=next(iter(tenancy.users.values())))


def raised(tenancy: Tenancy, kind: str = "coverage", *, now: datetime = NOW, **data: Any) -> None:
    facts = {"call_id": str(uuid7()), "agent_id": str(tenancy.agent.id), "alarm": "low", **data}
    assert alarm_raise(kind=kind, subject=uuid7(), data=facts, now=now)


def mailed(tenancy: Tenancy, *, now: datetime) -> list[mail.EmailMultiAlternatives]:
    """One round of what the schedule has workers do at `now`."""
    before = len(mail.outbox)
    with tenancy.context():
        made = alarms_mail_make(now=now)
    for recipient_id in made.recipient_ids if made else ():
        alarm_mail_send(tenant_id=tenancy.id, recipient_id=recipient_id, mail_id=made.mail_id)
    return mail.outbox[before:]  # type: ignore[return-value]


# -- what is pure -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event_type", "data", "kind"),
    [
        ("coverage.alarm", {"alarm": "low"}, "coverage"),
        ("call.ended", {"outcome": "failed"}, "call"),
        ("call.ended", {"outcome": "completed"}, None),
        ("tool.blocked", {}, None),
    ],
)
def test_what_of_a_call_is_an_alarm(event_type: str, data: dict[str, Any], kind: str | None) -> None:
    assert alarm_kind(event_type, data) == kind


def test_the_more_mails_there_were_the_longer_is_waited() -> None:
    waits = [quiet_time(mails) // timedelta(minutes=1) for mails in range(8)]
    assert waits == [0, 15, 30, 60, 120, 240, 240, 240]
    assert quiet_time(10_000) == MOST_QUIET


# -- who gets them ------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_members_choose_and_every_choice_is_in_the_log(tenant: Tenancy, stranger: Tenancy) -> None:
    with stranger.context():
        charlie = owner_of(stranger)
    with tenant.context():
        alice = owner_of(tenant)
        assert alarm_kinds_wanted() == frozenset()
        assert alarm_kinds_set(membership_id=alice.id, kinds=["limit", "coverage"]) == frozenset()
        assert alarm_kinds_set(membership_id=alice.id, kinds=["coverage", "limit"]) == {"coverage", "limit"}
        assert alarm_kinds_wanted() == {"coverage", "limit"}
        with pytest.raises(ValidationError, match="'noise' is not known"):
            alarm_kinds_set(membership_id=alice.id, kinds=["noise"])
        with pytest.raises(MemberNotFound):
            alarm_kinds_set(membership_id=charlie.id, kinds=["limit"])
        alarm_kinds_set(membership_id=alice.id, kinds=[])
        assert not AlarmRecipient.objects.exists()
        log = AuditEvent.objects.filter(action="alarm_mails.update").order_by("seq")
        assert [event.after for event in log] == ['{"kinds":["coverage","limit"]}', '{"kinds":[]}']
    with stranger.context():
        assert not AlarmRecipient.objects.exists()


@pytest.mark.django_db
def test_the_number_of_those_who_are_mailed_is_bounded(tenant: Tenancy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "MAX_RECIPIENTS", 1)
    with tenant.context():
        alarm_kinds_set(membership_id=owner_of(tenant).id, kinds=["call"])
        with pytest.raises(ValidationError, match="take one away first"):
            alarm_kinds_set(membership_id=member_of(tenant).id, kinds=["call"])
        # Whoever is one already may choose anew.
        alarm_kinds_set(membership_id=owner_of(tenant).id, kinds=list(KINDS))


@pytest.mark.django_db
def test_who_leaves_gets_no_mails_any_more(tenant: Tenancy) -> None:
    with tenant.context():
        bob = member_of(tenant)
        alarm_kinds_set(membership_id=bob.id, kinds=["coverage"])
        raised(tenant)
        made = alarms_mail_make(now=NOW)
        assert made is not None
        (recipient_id,) = made.recipient_ids
        membership_remove(membership_id=bob.id, capabilities=frozenset({"admin"}))
        assert not AlarmRecipient.objects.exists()
    assert not alarm_mail_send(tenant_id=tenant.id, recipient_id=recipient_id, mail_id=made.mail_id)
    assert mail.outbox == []


# -- what raises them ---------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_the_recorder_raises_what_somebody_wants_to_hear_of_once(
    database_urls: DatabaseUrls, tenant: Tenancy, stranger: Tenancy
) -> None:
    async def store(tenancy: Tenancy, events: list[RecordEvent]) -> int:
        connection = await connect(database_urls.app)
        try:
            return await store_events(connection, tenancy.id, events)
        finally:
            await connection.close()

    with tenant.context():
        alarm_kinds_set(membership_id=owner_of(tenant).id, kinds=["coverage", "call"])
    for tenancy in (tenant, stranger):
        events: list[RecordEvent] = []
        calls = call_log(events.append, tenancy)
        calls.add(started(tenancy))
        for number in range(1, 4):
            turn, at_ms = uuid7(), number * 1000
            calls.add(reported(turn, index=number, at_ms=at_ms))
            calls.add(judged(turn, uuid7(), state="timed_out", intervene=False, acted=False, at_ms=at_ms + 9))
        assert asyncio.run(store(tenancy, events)) == len(events)
        assert asyncio.run(store(tenancy, events)) == 0
        calls.add(ended(outcome="failed", turns=3, judged=0, timed_out=3, coverage=0.0, coverage_state="partial"))
        assert asyncio.run(store(tenancy, events[-1:])) == 1
    # Whoever placed this one in the console has seen it fail.
    placed: list[RecordEvent] = []
    calls = call_log(placed.append, tenant)
    calls.add(started(tenant, test=True))
    calls.add(ended(outcome="failed", turns=0, judged=0, coverage=None, coverage_state="none"))
    assert asyncio.run(store(tenant, placed)) == 2
    with tenant.context():
        found = list(Alarm.objects.order_by("kind", "occurred_at"))
        assert [(alarm.kind, alarm.data.get("alarm")) for alarm in found] == [
            ("call", None),
            ("coverage", "degraded"),
            ("coverage", "ended"),
        ]
        assert {alarm.data["agent_id"] for alarm in found} == {str(tenant.agent.id)}
        assert all(alarm.mail_id is None for alarm in found)
    with stranger.context():
        # Nobody there wants to hear of any.
        assert not Alarm.objects.exists()
    waiting = alarm_tenants_waiting()
    assert tenant.id in waiting
    assert stranger.id not in waiting


@pytest.mark.django_db
def test_a_webhook_that_is_switched_off_raises_one_naming_its_host_only(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context():
        alarm_kinds_set(membership_id=owner_of(tenant).id, kinds=["webhook"])
        endpoint = webhook_create(url="http://127.0.0.1:1/secret-path?key=1", event_types=["call.ended"]).endpoint
        webhook_switch_off(endpoint=endpoint, reason=WebhookEndpoint.OffReason.GONE, now=NOW)
        (alarm,) = Alarm.objects.all()
        assert alarm.data == {
            "webhook_id": str(endpoint.id),
            "host": "127.0.0.1",
            "reason": "the receiver answered 410 Gone",
        }
    (message,) = mailed(tenant, now=NOW)
    assert f"/webhooks/{endpoint.id}" in message.body
    assert "secret-path" not in str(message.message())
    with stranger.context():
        assert not Alarm.objects.exists()


@pytest.mark.django_db
def test_a_limit_that_refuses_raises_one_a_day_and_old_ones_are_forgotten(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context():
        alarm_kinds_set(membership_id=owner_of(tenant).id, kinds=["limit"])
        limitrefusals_add(counts={(NOW.date(), "calls"): 7, (NOW.date(), "requests"): 99})
        alarms_check(now=NOW)
        alarms_check(now=NOW + timedelta(hours=1))
        assert [alarm.data for alarm in Alarm.objects.all()] == [{"limit": "calls", "refused": 7}]
        limitrefusals_add(counts={((NOW + timedelta(days=1)).date(), "calls"): 1})
        alarms_check(now=NOW + timedelta(days=1))
        assert Alarm.objects.count() == 2
        alarms_check(now=NOW + KEPT + timedelta(hours=1))
        assert Alarm.objects.count() == 1
    with stranger.context():
        limitrefusals_add(counts={(NOW.date(), "calls"): 7})
        alarms_check(now=NOW)
        assert not Alarm.objects.exists()


# -- the mails ----------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_each_is_mailed_what_they_want_in_text_and_html(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context():
        type(tenant.agent).objects.update(name='<b>Line</b> "1"')
        alice, bob = owner_of(tenant), member_of(tenant)
        alarm_kinds_set(membership_id=alice.id, kinds=["coverage", "limit"])
        alarm_kinds_set(membership_id=bob.id, kinds=["limit"])
        for number in range(SHOWN + 2):
            raised(tenant, now=NOW + timedelta(seconds=number))
        call_id = str(uuid7())
        raised(tenant, now=NOW + timedelta(minutes=1), call_id=call_id, alarm="degraded")
    (message,) = mailed(tenant, now=NOW + timedelta(minutes=2))
    [(html, kind)] = message.alternatives
    assert kind == "text/html"
    assert message.to == [alice.user.email]
    assert message.subject == f"{SHOWN + 3} Mirror alarms, Alice's tenant"
    for text in (message.body, html):
        assert f"/calls/{call_id}" in text
        assert "three turns in a row were not judged" in text
        assert "and 3 more" in text
        assert "15 minutes" in text
        assert "4 Mar 2026, 12:01:00 UTC" in text
    assert '<b>Line</b> "1": three turns' in message.body
    assert "<b>Line</b>" not in html
    assert "&lt;b&gt;Line&lt;/b&gt;" in html
    link = message.extra_headers["List-Unsubscribe"]
    assert link.strip("<>") in message.body
    with stranger.context():
        assert not Alarm.objects.exists()


@pytest.mark.django_db
def test_one_alarm_stands_in_the_subject_in_one_line(tenant: Tenancy) -> None:
    with tenant.context():
        type(tenant.agent).objects.update(name="Line\r\nBcc: x@evil.example")
        alarm_kinds_set(membership_id=owner_of(tenant).id, kinds=["call"])
        raised(tenant, "call")
    (message,) = mailed(tenant, now=NOW)
    assert message.subject == "Mirror alarm, Alice's tenant: Line Bcc: x@evil.example: the call failed"
    assert message.recipients() == [tenant.users["alice"].email]


@pytest.mark.django_db
def test_while_alarms_go_on_mails_come_ever_more_seldom_and_miss_none(tenant: Tenancy) -> None:
    sent: list[tuple[int, str]] = []
    now = NOW
    with tenant.context():
        alarm_kinds_set(membership_id=owner_of(tenant).id, kinds=["coverage"])
    for minute in range(0, 12 * 60, 5):
        now = NOW + timedelta(minutes=minute)
        with tenant.context():
            raised(tenant, now=now)
        sent += [(minute, message.subject) for message in mailed(tenant, now=now)]
    assert [minute for minute, _ in sent] == [0, 15, 45, 105, 225, 465, 705]
    assert sum(1 if "alarm," in subject else int(subject.split()[0]) for _, subject in sent) == 705 // 5 + 1
    # A day later the first one is mailed at once again.
    with tenant.context():
        raised(tenant, now=now + REMEMBERED)
    assert len(mailed(tenant, now=now + REMEMBERED)) == 1


@pytest.mark.django_db
def test_what_nobody_wants_any_more_waits_for_no_mail(tenant: Tenancy) -> None:
    with tenant.context():
        alarm_kinds_set(membership_id=owner_of(tenant).id, kinds=["coverage"])
        raised(tenant)
        alarm_kinds_set(membership_id=owner_of(tenant).id, kinds=["limit"])
    assert mailed(tenant, now=NOW) == []
    assert tenant.id not in alarm_tenants_waiting()


@pytest.mark.django_db
def test_workers_send_them_and_try_again_when_the_mail_server_is_down(
    tenant: Tenancy, stranger: Tenancy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with tenant.context():
        alarm_kinds_set(membership_id=owner_of(tenant).id, kinds=["coverage"])
        raised(tenant, now=timezone.now())
        sent: list[tuple[Any, ...]] = []
        monkeypatch.setattr(tasks.alarm_send, "apply_async", sent.append)
        celery.tasks["supervision.alarms_mail"].apply()
        ((recipient_id, mail_id),) = sent
        down = SMTPServerDisconnected("down")
        with monkeypatch.context() as broken:
            broken.setattr("django.core.mail.EmailMultiAlternatives.send", lambda self: (_ for _ in ()).throw(down))
            broken.setattr(tasks.alarm_send, "retry", lambda **options: Retry(when=options["countdown"]))
            assert tasks.alarm_send.apply((recipient_id, mail_id)).status == "RETRY"
        with monkeypatch.context() as refused:
            no = SMTPRecipientsRefused({})
            refused.setattr("django.core.mail.EmailMultiAlternatives.send", lambda self: (_ for _ in ()).throw(no))
            assert tasks.alarm_send.apply((recipient_id, mail_id)).successful()
        assert "the mail server refused the address of an alarm" in caplog.text
        assert tenant.users["alice"].email not in caplog.text
        assert mail.outbox == []
        assert tasks.alarm_send.apply((recipient_id, mail_id)).successful()
        assert [message.to for message in mail.outbox] == [[tenant.users["alice"].email]]
    # Its ids are nobody else's.
    with stranger.context():
        tasks.alarm_send.apply((recipient_id, mail_id))
    assert len(mail.outbox) == 1


# -- stopping them ------------------------------------------------------------------------------------------------


def link_of(tenancy: Tenancy) -> str:
    with tenancy.context():
        alarm_kinds_set(membership_id=owner_of(tenancy).id, kinds=["coverage"])
        raised(tenancy)
    (message,) = mailed(tenancy, now=NOW)
    return str(message.extra_headers["List-Unsubscribe"]).strip("<>").rpartition("/")[2]


@pytest.mark.django_db
def test_the_link_in_a_mail_stops_those_mails_and_no_others(tenant: Tenancy, stranger: Tenancy) -> None:
    token = link_of(tenant)
    with stranger.context():
        alarm_kinds_set(membership_id=owner_of(stranger).id, kinds=["coverage"])
    assert alarms_off_read(token=token).email == tenant.users["alice"].email
    assert alarms_off(token=token).tenant == tenant.tenant
    with tenant.context():
        assert not AlarmRecipient.objects.exists()
        assert AuditEvent.objects.filter(action="alarm_mails.update").count() == 2
    with stranger.context():
        assert AlarmRecipient.objects.count() == 1
    # Used, cut short, made up, and signed for something else.
    other = token.replace(token[:4], "AAAA", 1)
    for wrong in (token, token[:-3], other, "", "x", str(UUID(int=7)), "\x00", "a:b:c"):
        with pytest.raises(AlarmLinkInvalid):
            alarms_off(token=wrong)
