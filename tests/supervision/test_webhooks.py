"""Webhooks: what is sent, to real receivers that behave badly, and what of it survives who sends it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
import standardwebhooks
from django.db import connection
from django.utils import timezone

from mirror_saas import egress
from mirror_saas.celery import app as celery
from mirror_saas.ids import uuid7
from supervision import tasks
from supervision.models import WebhookAttempt, WebhookDelivery, WebhookEndpoint
from supervision.recorder.events import ApprovalDecided, ApprovalRequested, RecordEvent, ToolDecided
from supervision.recorder.store import connect, store_events
from supervision.selectors.webhooks import webhook_tenants_due
from supervision.services import webhook_deliveries
from supervision.services.webhook_deliveries import (
    EXCERPT_CHARS,
    KEPT,
    LEASE,
    OVERDUE,
    deliveries_claim,
    deliveries_prune,
    deliveries_send,
    delivery_settle,
)
from supervision.services.webhooks import (
    WebhookSecret,
    delivery_redeliver,
    webhook_create,
    webhook_delete,
    webhook_secret_rotate,
    webhook_test,
    webhook_update,
)
from supervision.webhook_messages import MESSAGES
from supervision.webhooks import (
    BREAKER_FAILURES,
    EVENT_TYPES,
    MAX_ATTEMPTS,
    body_make,
    breaker_pause,
    headers_make,
    retry_after_read,
    retry_delay,
    secret_make,
)
from tenants.context import tenant_context
from tenants.models import AuditEvent
from tests.factories import Tenancy, call_create
from tests.isolation.sweep import rows
from tests.recorder.calls import call_log, ended, event, judged, reported, started, whole_call
from tests.support.receiver import (
    Receiver,
    busy,
    floods,
    garbage,
    receiver,
    redirected,
    refuses_at_length,
    slams,
)
from tests.support.servers import DatabaseUrls

ALL = list(EVENT_TYPES)


class Clock:
    """The time that a test says it is."""

    def __init__(self) -> None:
        self.now = timezone.now()

    def __call__(self) -> datetime:
        return self.now

    def pass_(self, **time: float) -> None:
        self.now += timedelta(**time)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


def endpoint_create(tenancy: Tenancy, url: str, event_types: list[str] | None = None) -> WebhookSecret:
    with tenancy.context():
        return webhook_create(url=url, event_types=event_types or ALL)


def sent_test(tenancy: Tenancy, made: WebhookSecret, clock: Clock) -> WebhookDelivery:
    with tenancy.context():
        return webhook_test(webhook_id=made.endpoint.id, now=clock.now)


def send(tenancy: Tenancy, clock: Clock) -> int:
    """One round of what the schedule has a worker do; no random part is taken off."""
    return deliveries_send(tenant_id=tenancy.id, now=clock, random=lambda: 0.0, run_s=0.0)


def state(tenancy: Tenancy, delivery: WebhookDelivery) -> WebhookDelivery:
    with tenancy.context():
        return WebhookDelivery.objects.get(id=delivery.id)


def log(tenancy: Tenancy, delivery: WebhookDelivery) -> list[WebhookAttempt]:
    with tenancy.context():
        return list(WebhookAttempt.objects.filter(delivery=delivery).order_by("id"))


def endpoint(tenancy: Tenancy, made: WebhookSecret) -> WebhookEndpoint:
    with tenancy.context():
        return WebhookEndpoint.objects.get(id=made.endpoint.id)


# -- what is pure -------------------------------------------------------------------------------------------------


def test_a_foreign_library_takes_the_signature_and_refuses_what_was_changed() -> None:
    secret, message_id, now = secret_make(), uuid7(), datetime.now(tz=UTC)
    body = body_make(event_type="call.ended", occurred_at=now, data={"call_id": str(message_id), "coverage": 0.5})
    headers = headers_make(message_id=message_id, body=body, secrets=[secret], now=now)
    read = standardwebhooks.Webhook(secret).verify(body, headers)
    assert read["type"] == "call.ended"
    assert datetime.fromisoformat(read["timestamp"]) == now
    for changed in (
        (body.replace(b"0.5", b"1.0"), headers),
        (body, {**headers, "webhook-id": str(uuid7())}),
        (body, {**headers, "webhook-timestamp": str(int(headers["webhook-timestamp"]) + 1)}),
    ):
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            standardwebhooks.Webhook(secret).verify(*changed)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(secret_make()).verify(body, headers)
    old = headers_make(message_id=message_id, body=body, secrets=[secret], now=now - timedelta(minutes=6))
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(secret).verify(body, old)


def test_waiting_grows_to_hours_with_a_random_part_and_is_as_long_as_the_receiver_asks() -> None:
    waits = [retry_delay(attempts=n, random=lambda: 0.0).total_seconds() for n in range(1, MAX_ATTEMPTS)]
    assert waits[:4] == [5, 20, 80, 320]
    assert waits == sorted(waits)
    assert waits[-1] == 12 * 3600
    assert timedelta(days=2) < timedelta(seconds=sum(waits)) < timedelta(days=3)
    assert retry_delay(attempts=3, random=lambda: 1.0).total_seconds() == 40
    assert retry_delay(attempts=1, random=lambda: 1.0, retry_after_s=100.0).total_seconds() == 100
    assert retry_delay(attempts=1, random=lambda: 1.0, retry_after_s=1e9).total_seconds() == 12 * 3600
    assert [retry_after_read(text) for text in ("7", None, "-1", "1e3", "Wed, 21 Oct 2026", "9" * 10, "٣")] == [
        7.0,
        *[None] * 6,
    ]


def test_an_endpoint_is_paused_after_failures_in_a_row_and_no_longer_than_an_hour() -> None:
    assert breaker_pause(failures=BREAKER_FAILURES - 1, random=lambda: 0.0) is None
    pauses = [breaker_pause(failures=n, random=lambda: 0.0) for n in range(BREAKER_FAILURES, BREAKER_FAILURES + 20)]
    assert pauses[:2] == [timedelta(seconds=30), timedelta(seconds=60)]
    assert pauses[-1] == timedelta(hours=1)


# -- the outbox ---------------------------------------------------------------------------------------------------


async def stored(urls: DatabaseUrls, tenancy: Tenancy, events: list[RecordEvent]) -> int:
    connection = await connect(urls.app)
    try:
        return await store_events(connection, tenancy.id, events)
    finally:
        await connection.close()


def run(coroutine: Coroutine[Any, Any, int]) -> int:
    return asyncio.run(coroutine)


def whole(tenancy: Tenancy, **changes: Any) -> list[RecordEvent]:
    made: list[RecordEvent] = []
    calls = call_log(made.append, tenancy)
    for data in whole_call(tenancy)[:-1]:
        calls.add(data)
    decision_id = uuid7()
    calls.add(
        ApprovalRequested(
            decision_id=decision_id,
            turn_id=None,
            ref="c9",
            name="wire_transfer",
            args={"amount": 900},
            irreversible=True,
            on_silence="deny",
            within_ms=60_000,
            at_ms=9_000,
        )
    )
    calls.add(
        ApprovalDecided(
            decision_id=decision_id,
            outcome="denied",
            by="bob@example.com",
            note="No money.",
            waited_ms=900,
            at_ms=9_900,
        )
    )
    calls.add(ended(**changes))
    return made


def outbox(tenancy: Tenancy) -> list[WebhookDelivery]:
    with tenancy.context():
        return list(WebhookDelivery.objects.order_by("occurred_at", "type"))


@pytest.mark.django_db(transaction=True)
def test_what_the_recorder_writes_is_in_the_outbox_once_and_names_ids_and_facts(
    database_urls: DatabaseUrls, tenant: Tenancy, stranger: Tenancy
) -> None:
    made = endpoint_create(tenant, "http://127.0.0.1:1/all")
    some = endpoint_create(tenant, "http://127.0.0.1:1/some", ["tool.blocked"])
    off = endpoint_create(tenant, "http://127.0.0.1:1/off")
    with tenant.context():
        webhook_update(webhook_id=off.endpoint.id, enabled=False)
    endpoint_create(stranger, "http://127.0.0.1:1/charlie")
    events = whole(tenant, coverage_state="partial", coverage=0.5, timed_out=1)
    assert run(stored(database_urls, tenant, events)) == len(events)
    # A batch that comes again, whole or in part, tells nothing again.
    assert run(stored(database_urls, tenant, events)) == 0
    everything = outbox(tenant)
    assert {row.endpoint_id for row in everything} == {made.endpoint.id, some.endpoint.id}
    [blocked] = [row for row in everything if row.endpoint_id == some.endpoint.id]
    told = {row.type: row for row in everything if row.endpoint_id == made.endpoint.id}
    assert sorted(told) == sorted(ALL)
    assert len(everything) == len(ALL) + 1
    assert blocked.event_id == told["tool.blocked"].event_id
    assert len({row.event_id for row in told.values()}) == len(ALL)
    call_id = str(events[0].call_id)
    assert {row.data["call_id"] for row in everything} == {call_id}
    assert {row.data["agent_id"] for row in everything} == {str(tenant.agent.id)}
    assert {row.data["test"] for row in everything} == {False}
    assert told["call.ended"].data["outcome"] == "completed"
    assert told["call.ended"].data["turn_count"] == 1
    alarm = told["coverage.alarm"].data
    assert (alarm["coverage_state"], alarm["coverage"], alarm["timed_out_count"]) == ("partial", 0.5, 1)
    assert alarm["alarm"] == "ended"
    # As the API's document describes them, no field more.
    assert [row.data for row in everything if not MESSAGES[row.type].model_validate(row.data)] == []
    assert told["intervention.ended"].data["violation_heard_ms"] == 300
    assert told["tool.blocked"].data["name"] == "process_payment"
    asked, decided = told["approval.requested"].data, told["approval.decided"].data
    assert (asked["name"], asked["within_ms"], asked["on_silence"]) == ("wire_transfer", 60_000, "deny")
    assert (decided["outcome"], decided["waited_ms"]) == ("denied", 900)
    assert asked["decision_id"] == decided["decision_id"]
    said = json.dumps([row.data for row in everything])
    for private in ("refund", "money", "bob@", "+1555", "amount", "Offer", "Never confirm", "plivo-1", "stopped"):
        assert private not in said, private
    assert outbox(stranger) == []
    assert webhook_tenants_due(now=timezone.now() + timedelta(seconds=1)).count(tenant.id) == 1
    assert stranger.id not in webhook_tenants_due(now=timezone.now() + timedelta(days=1))


@pytest.mark.django_db(transaction=True)
def test_a_batch_that_is_rolled_back_leaves_neither_rows_nor_events_to_tell(
    database_urls: DatabaseUrls, tenant: Tenancy, stranger: Tenancy
) -> None:
    endpoint_create(tenant, "http://127.0.0.1:1/all")
    events = whole(tenant)
    # The last one's turn is nowhere: the foreign key refuses the transaction when it commits.
    lost = event(
        ToolDecided(
            decision_id=uuid7(),
            turn_id=None,
            ref="x",
            name="pay",
            args={},
            irreversible=True,
            allow=False,
            code="policy",
            state="judged",
            score=1.0,
            reason="",
            instruction="",
            latency_ms=1,
            at_ms=1,
        ),
        tenant,
        uuid7(),
        1,
    )
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        run(stored(database_urls, tenant, [*events, lost]))
    assert outbox(tenant) == []
    assert run(stored(database_urls, tenant, events)) == len(events)
    # The call was covered in full: there is no alarm.
    assert sorted({row.type for row in outbox(tenant)}) == sorted(set(ALL) - {"coverage.alarm"})
    assert outbox(stranger) == []


@pytest.mark.django_db(transaction=True)
def test_a_call_whose_process_died_ends_once_with_counts_of_its_rows(
    database_urls: DatabaseUrls, tenant: Tenancy, stranger: Tenancy
) -> None:
    endpoint_create(tenant, "http://127.0.0.1:1/all", ["call.ended", "coverage.alarm"])
    made: list[RecordEvent] = []
    calls = call_log(made.append, tenant)
    for data in (
        started(tenant),
        reported(uuid7()),
        reported(uuid7(), index=2),
        ended(reason="process_died", outcome="failed", coverage_state=None, coverage=None, turns=None, judged=None),
    ):
        calls.add(data)
    run(stored(database_urls, tenant, made))
    by_type = {row.type: row.data for row in outbox(tenant)}
    assert by_type["coverage.alarm"]["coverage_state"] == "partial"
    assert by_type["call.ended"]["failed_count"] == by_type["call.ended"]["turn_count"] == 2
    # Its own process ends it too late: what ended it first stands.
    again = event(ended(), tenant, made[0].call_id, 99)
    assert run(stored(database_urls, tenant, [again])) == 1
    assert {row.type: row.data for row in outbox(tenant)} == by_type
    assert len(outbox(tenant)) == 2
    assert outbox(stranger) == []


class Alarms:
    """A call that runs, stored turn by turn, and what its tenant's endpoint is told of it."""

    def __init__(self, urls: DatabaseUrls, tenancy: Tenancy) -> None:
        endpoint_create(tenancy, "http://127.0.0.1:1/alarms", ["coverage.alarm"])
        self.urls, self.tenancy = urls, tenancy
        self.events: list[RecordEvent] = []
        self.log = call_log(self.events.append, tenancy)
        self.log.add(started(tenancy))
        self.turns = 0

    def judged(self, *states: str) -> list[str]:
        """Store turns that ended so, in one batch, and give the alarms since the call began."""
        for state in states:
            self.turns += 1
            turn, at_ms = uuid7(), self.turns * 1_000
            self.log.add(reported(turn, index=self.turns, at_ms=at_ms))
            self.log.add(judged(turn, uuid7(), state=state, intervene=False, acted=False, at_ms=at_ms + 300))
        return self.store()

    def store(self) -> list[str]:
        run(stored(self.urls, self.tenancy, self.events))
        self.events.clear()
        return [row.data["alarm"] for row in outbox(self.tenancy)]


@pytest.mark.django_db(transaction=True)
def test_a_running_call_whose_judging_fails_raises_the_alarm_once_for_each_state(
    database_urls: DatabaseUrls, tenant: Tenancy, stranger: Tenancy
) -> None:
    quiet = Alarms(database_urls, stranger)
    assert quiet.judged("judged", "skipped", "timed_out", "failed") == []
    call = Alarms(database_urls, tenant)
    assert call.judged("judged", "judged", "skipped") == []
    assert call.judged("timed_out") == []
    # Two in a row and a share of 60 %.
    assert call.judged("failed") == ["low"]
    assert call.judged("shed") == ["low", "degraded"]
    # However long it lasts, and when it comes back.
    assert call.judged("failed", "failed") == ["low", "degraded"]
    assert call.judged("judged", "judged", "judged", "failed", "failed", "failed") == ["low", "degraded"]
    low, degraded = outbox(tenant)
    assert low.event_id != degraded.event_id
    assert (low.data["turn_count"], low.data["coverage"], low.data["coverage_state"]) == (5, 0.6, None)
    assert (degraded.data["shed_count"], degraded.data["coverage"]) == (1, 0.5)
    for row in (low, degraded):
        MESSAGES["coverage.alarm"].model_validate(row.data)
    call.log.add(ended(turns=14, judged=6, skipped=1, timed_out=1, failed=6, coverage=0.5, coverage_state="partial"))
    assert call.store() == ["low", "degraded", "ended"]
    assert quiet.judged("judged") == []


@pytest.mark.django_db(transaction=True)
def test_a_call_that_is_stored_when_it_has_ended_raises_one_alarm(
    database_urls: DatabaseUrls, tenant: Tenancy, stranger: Tenancy
) -> None:
    """The database was down meanwhile: that judging failed then is no news."""
    call = Alarms(database_urls, tenant)
    call.log.add(ended(turns=6, failed=6, judged=0, coverage=0.0, coverage_state="partial"))
    ending = call.events.pop()
    for number in range(1, 7):
        turn = uuid7()
        call.log.add(reported(turn, index=number))
        call.log.add(judged(turn, uuid7(), state="failed", intervene=False, acted=False))
    call.events.append(ending)
    assert call.store() == ["ended"]
    assert outbox(stranger) == []


@pytest.mark.django_db(transaction=True)
def test_few_turns_and_late_answers_raise_no_alarm(
    database_urls: DatabaseUrls, tenant: Tenancy, stranger: Tenancy
) -> None:
    call = Alarms(database_urls, tenant)
    assert call.judged("failed", "failed", "judged", "judged") == []
    turn = uuid7()
    call.log.add(reported(turn, index=5, at_ms=9_000))
    for number in range(4):
        call.log.add(judged(turn, uuid7(), state="failed", late=True, at_ms=9_000 + number))
    assert call.store() == []
    assert outbox(stranger) == []


# -- receivers ----------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_message_arrives_signed_and_is_written_down(
    tenant: Tenancy, stranger: Tenancy, hook: Receiver, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    made = endpoint_create(tenant, hook.url + "?token=in-the-url", ["call.ended"])
    others = endpoint_create(stranger, hook.url)
    before = rows(stranger)
    delivery = sent_test(tenant, made, clock)
    assert send(tenant, clock) == 1
    [got] = hook.got
    assert standardwebhooks.Webhook(made.secret).verify(got.body, got.headers) == {
        "type": "webhook.test",
        "timestamp": clock.now.isoformat().replace("+00:00", "Z"),
        "data": {"webhook_id": str(made.endpoint.id)},
    }
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(others.secret).verify(got.body, got.headers)
    assert got.headers["content-type"] == "application/json"
    row = state(tenant, delivery)
    assert (row.state, row.attempts, row.next_attempt_at, row.delivered_at) == ("delivered", 1, None, clock.now)
    [attempt] = log(tenant, delivery)
    assert (attempt.status, attempt.error, attempt.excerpt) == (204, "", "")
    assert send(tenant, clock) == 0
    assert rows(stranger) == before
    assert made.secret.removeprefix("whsec_") not in caplog.text
    assert "in-the-url" not in caplog.text


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("answer", "status", "error", "excerpt"),
    [
        (500, 500, r"the receiver answered \(500\)", ""),
        (404, 404, r"answered \(404\)", ""),
        (refuses_at_length, 500, r"answered \(500\)", "Stack trace: yyy"),
        (redirected, 307, "redirect, which is not followed", ""),
        (slams, None, "did not answer as a web server does", ""),
        (garbage, None, "did not answer as a web server does", ""),
        (floods, None, "more than 65536 bytes", ""),
    ],
)
def test_what_is_no_success_is_tried_again_later_and_then_arrives_under_the_same_id(
    tenant: Tenancy,
    stranger: Tenancy,
    hook: Receiver,
    clock: Clock,
    answer: Any,
    status: int | None,
    error: str,
    excerpt: str,
) -> None:
    made = endpoint_create(tenant, hook.url)
    delivery = sent_test(tenant, made, clock)
    before = rows(stranger)
    hook.answers = [answer, 200]
    assert send(tenant, clock) == 1
    row = state(tenant, delivery)
    assert (row.state, row.attempts) == ("pending", 1)
    assert row.next_attempt_at == clock.now + timedelta(seconds=5)
    assert re.search(error, row.error)
    [attempt] = log(tenant, delivery)
    assert (attempt.status, attempt.error) == (status, row.error)
    assert attempt.excerpt.startswith(excerpt)
    assert len(attempt.excerpt) <= EXCERPT_CHARS
    # Not before it is due.
    clock.pass_(seconds=4)
    assert send(tenant, clock) == 0
    clock.pass_(seconds=1)
    assert send(tenant, clock) == 1
    assert state(tenant, delivery).state == "delivered"
    assert [got.path for got in hook.got] == ["/hook", "/hook"]
    assert hook.ids == [str(delivery.event_id)] * 2
    first, second = (got.headers for got in hook.got)
    assert first["webhook-timestamp"] != second["webhook-timestamp"]
    assert hook.got[0].body == hook.got[1].body
    assert endpoint(tenant, made).failures == 0
    assert rows(stranger) == before


@pytest.mark.django_db(transaction=True)
def test_a_receiver_that_is_down_is_tried_to_the_end_and_can_be_asked_again(
    tenant: Tenancy, stranger: Tenancy, clock: Clock
) -> None:
    with receiver() as down:
        url = down.url
    made = endpoint_create(tenant, url)
    delivery = sent_test(tenant, made, clock)
    before = rows(stranger)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert send(tenant, clock) == 1, attempt
        clock.pass_(hours=12)
    row = state(tenant, delivery)
    assert (row.state, row.attempts, row.next_attempt_at) == ("failed", MAX_ATTEMPTS, None)
    assert "cannot be reached" in row.error
    assert "/hook" not in row.error
    assert send(tenant, clock) == 0
    assert len(log(tenant, delivery)) == MAX_ATTEMPTS
    with tenant.context():
        delivery_redeliver(webhook_id=made.endpoint.id, delivery_id=delivery.id, now=clock.now)
        assert webhook_tenants_due(now=clock.now).count(tenant.id) == 1
    assert send(tenant, clock) == 1
    assert state(tenant, delivery).attempts == 1
    assert rows(stranger) == before


@pytest.mark.django_db(transaction=True)
def test_a_slow_receiver_is_given_up_in_time(
    tenant: Tenancy, stranger: Tenancy, hook: Receiver, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert webhook_deliveries.ATTEMPT_TIMEOUT_S == 15.0
    assert timedelta(seconds=webhook_deliveries.ATTEMPT_TIMEOUT_S) < LEASE
    monkeypatch.setattr(webhook_deliveries, "ATTEMPT_TIMEOUT_S", 0.2)
    made = endpoint_create(tenant, hook.url)
    delivery = sent_test(tenant, made, clock)
    hook.answers = [hook.hold]
    assert send(tenant, clock) == 1
    assert state(tenant, delivery).error == "127.0.0.1 did not answer within 0.2 s"
    [attempt] = log(tenant, delivery)
    assert 150 <= attempt.duration_ms < 5000
    assert outbox(stranger) == []


@pytest.mark.django_db(transaction=True)
def test_410_switches_the_endpoint_off_and_says_so(
    tenant: Tenancy, stranger: Tenancy, hook: Receiver, clock: Clock
) -> None:
    made, other = endpoint_create(tenant, hook.url), endpoint_create(stranger, hook.url)
    deliveries = [sent_test(tenant, made, clock)]
    hook.answers = [410]
    assert send(tenant, clock) == 1
    row = endpoint(tenant, made)
    assert (row.enabled, row.off_reason) == (False, "gone")
    assert state(tenant, deliveries[0]).state == "failed"
    assert "410 Gone" in state(tenant, deliveries[0]).error
    with tenant.context():
        assert AuditEvent.objects.filter(action="webhook.switch_off", object_id=str(made.endpoint.id)).count() == 1
        # On again, it says nothing of that any more.
        assert webhook_update(webhook_id=made.endpoint.id, enabled=True).off_reason == ""
    assert endpoint(stranger, other).enabled
    assert outbox(stranger) == []


@pytest.mark.django_db(transaction=True)
def test_a_receiver_that_asks_for_time_gets_it(
    tenant: Tenancy, stranger: Tenancy, hook: Receiver, clock: Clock
) -> None:
    delivery = sent_test(tenant, endpoint_create(tenant, hook.url), clock)
    hook.answers = [busy]
    send(tenant, clock)
    assert state(tenant, delivery).next_attempt_at == clock.now + timedelta(hours=1)
    assert outbox(stranger) == []


@pytest.mark.django_db(transaction=True)
def test_after_failures_in_a_row_one_delivery_at_a_time_tries_the_endpoint(
    tenant: Tenancy, stranger: Tenancy, hook: Receiver, clock: Clock
) -> None:
    made = endpoint_create(tenant, hook.url)
    healthy = endpoint_create(tenant, hook.url.replace("/hook", "/healthy"))
    for _ in range(7):
        sent_test(tenant, made, clock)
    hook.answers = [503]
    assert send(tenant, clock) == 7
    row = endpoint(tenant, made)
    assert (row.failures, row.paused_until) == (BREAKER_FAILURES, clock.now + timedelta(seconds=30))
    clock.pass_(seconds=29)
    # Nothing is sent to it, and the schedule does not come for it; others are not held up.
    assert tenant.id not in webhook_tenants_due(now=clock.now)
    hook.answers = [204]
    sent_test(tenant, healthy, clock)
    assert send(tenant, clock) == 1
    assert hook.got[-1].path == "/healthy"
    hook.answers = [503]
    clock.pass_(seconds=1)
    assert send(tenant, clock) == 1
    row = endpoint(tenant, made)
    assert (row.failures, row.paused_until) == (BREAKER_FAILURES + 1, clock.now + timedelta(seconds=60))
    clock.pass_(seconds=60)
    hook.answers = [204]
    # The one that is tried arrives, and then all the others may come.
    assert send(tenant, clock) == 1
    assert endpoint(tenant, made).paused_until is None
    assert send(tenant, clock) == 6
    assert {row.state for row in outbox(tenant)} == {"delivered"}
    assert outbox(stranger) == []


@pytest.mark.django_db(transaction=True)
def test_private_addresses_are_refused_when_the_socket_is_opened(
    tenant: Tenancy, stranger: Tenancy, hook: Receiver, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It was allowed when it was stored; what counts is where a connection goes now.
    delivery = sent_test(tenant, endpoint_create(tenant, hook.url), clock)
    monkeypatch.setattr(egress, "rules", lambda: ((), False))
    monkeypatch.setattr("mirror_saas.egress_http.rules", lambda: ((), False))
    assert send(tenant, clock) == 1
    assert "MIRROR_EGRESS_ALLOW" in state(tenant, delivery).error
    assert hook.got == []
    assert outbox(stranger) == []


@pytest.mark.django_db(transaction=True)
def test_both_secrets_sign_until_the_overlap_is_over(
    tenant: Tenancy, stranger: Tenancy, hook: Receiver, clock: Clock
) -> None:
    made = endpoint_create(tenant, hook.url)
    with tenant.context():
        rotated = webhook_secret_rotate(webhook_id=made.endpoint.id, overlap=timedelta(hours=1), now=clock.now)
    assert rotated.secret != made.secret
    sent_test(tenant, made, clock)
    send(tenant, clock)
    got = hook.got[-1]
    for secret in (rotated.secret, made.secret):
        standardwebhooks.Webhook(secret).verify(got.body, got.headers)
    # For the former one it is over; nothing else changes. The timestamp would be too new for the library.
    with tenant.context():
        WebhookEndpoint.objects.update(previous_secret_until=clock.now)
    sent_test(tenant, made, clock)
    send(tenant, clock)
    got = hook.got[-1]
    standardwebhooks.Webhook(rotated.secret).verify(got.body, got.headers)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(made.secret).verify(got.body, got.headers)
    # Without overlap it ends at once.
    with tenant.context():
        last = webhook_secret_rotate(webhook_id=made.endpoint.id, overlap=timedelta(), now=clock.now)
    sent_test(tenant, made, clock)
    send(tenant, clock)
    assert len(hook.got[-1].headers["webhook-signature"].split()) == 1
    standardwebhooks.Webhook(last.secret).verify(hook.got[-1].body, hook.got[-1].headers)
    assert outbox(stranger) == []


# -- whoever sends it dies ----------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_who_was_too_slow_does_not_overwrite_what_another_one_found(
    tenant: Tenancy, stranger: Tenancy, hook: Receiver, clock: Clock
) -> None:
    delivery = sent_test(tenant, endpoint_create(tenant, hook.url), clock)
    with tenant.context():
        [slow] = deliveries_claim(now=clock.now)
        # Claimed is claimed, until its time is over.
        assert deliveries_claim(now=clock.now + LEASE - timedelta(seconds=1)) == []
    clock.pass_(seconds=LEASE.total_seconds())
    assert send(tenant, clock) == 1
    late = webhook_deliveries.Outcome(clock.now, 1, 500, "too late")
    with tenant.context():
        delivery_settle(claimed=slow, outcome=late, now=clock.now, random=lambda: 0.0)
    assert state(tenant, delivery).state == "delivered"
    assert [attempt.error for attempt in log(tenant, delivery)] == ["", "too late"]
    with tenant.context():
        webhook_delete(webhook_id=delivery.endpoint_id)
        # And what was deleted meanwhile is gone.
        delivery_settle(claimed=slow, outcome=late, now=clock.now, random=lambda: 0.0)
        assert not WebhookAttempt.objects.exists()
    assert outbox(stranger) == []


WORKER = (
    "from mirror_saas.celery import app; app.worker_main(['worker', '--pool', 'solo', '-Q', '{queue}', '-l', 'ERROR'])"
)


@pytest.mark.django_db(transaction=True)
def test_an_event_arrives_although_the_worker_that_sent_it_is_killed(
    tenant: Tenancy, stranger: Tenancy, hook: Receiver, server_environment: dict[str, str], redis_url: str
) -> None:
    clock, queue = Clock(), f"webhooks-{uuid7().hex}"
    made = endpoint_create(tenant, hook.url)
    delivery = sent_test(tenant, made, clock)
    before = rows(stranger)
    hook.answers = [hook.hold, 204]

    def worker() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", WORKER.format(queue=queue)], env=server_environment)

    def tell() -> None:
        # What the sweep sends, to this test's queue.
        with tenant.context():
            message = tasks.webhooks_send._headers({})
        celery.send_task("supervision.webhooks_send", queue=queue, headers=message)

    tell()
    first = worker()
    try:
        # It has the message in hand, and no answer yet.
        assert hook.arrived.acquire(timeout=60)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait(10)
    row = state(tenant, delivery)
    assert (row.state, row.attempts) == ("pending", 1)
    assert row.next_attempt_at is not None
    assert row.next_attempt_at > timezone.now()
    assert log(tenant, delivery) == []
    # A minute later: nobody has to wait for it here.
    with tenant.context():
        WebhookDelivery.objects.filter(id=delivery.id).update(next_attempt_at=timezone.now())
    assert webhook_tenants_due(now=timezone.now()).count(tenant.id) == 1
    tell()
    second = worker()
    try:
        assert hook.arrived.acquire(timeout=60)
        # SIGTERM: it ends what it has begun, and writes it down.
        second.send_signal(signal.SIGTERM)
        second.wait(30)
    finally:
        second.kill()
    assert hook.ids == [str(delivery.event_id)] * 2
    for got in hook.got:
        standardwebhooks.Webhook(made.secret).verify(got.body, got.headers)
    row = state(tenant, delivery)
    assert (row.state, row.attempts) == ("delivered", 2)
    assert rows(stranger) == before


# -- what is not kept ---------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_old_deliveries_are_forgotten_and_what_cannot_be_sent_for_days_is_given_up(
    tenant: Tenancy, stranger: Tenancy, clock: Clock
) -> None:
    made = endpoint_create(tenant, "http://127.0.0.1:1/x")
    old, stuck, fresh = (sent_test(tenant, made, clock) for _ in range(3))
    theirs = sent_test(stranger, endpoint_create(stranger, "http://127.0.0.1:1/y"), clock)
    with tenant.context():
        WebhookDelivery.objects.filter(id=old.id).update(
            state="failed", next_attempt_at=None, created_at=clock.now - KEPT - timedelta(minutes=1)
        )
        WebhookAttempt.objects.create(delivery=old, duration_ms=1)
        WebhookDelivery.objects.filter(id=stuck.id).update(next_attempt_at=clock.now - OVERDUE - timedelta(minutes=1))
        assert deliveries_prune(now=clock.now) == 1
        assert not WebhookAttempt.objects.exists()
        # Nothing was tried: it was we who were down.
        assert {row.id: row.state for row in WebhookDelivery.objects.all()} == {
            stuck.id: "pending",
            fresh.id: "pending",
        }
        WebhookEndpoint.objects.update(failures=BREAKER_FAILURES)
        assert deliveries_prune(now=clock.now) == 0
        row = WebhookEndpoint.objects.get()
        assert (row.enabled, row.off_reason) == (False, "failing")
        assert {row.state for row in WebhookDelivery.objects.all()} == {"failed"}
        assert "took nothing for days" in WebhookDelivery.objects.all()[0].error
        webhook_update(webhook_id=row.id, enabled=True)
        webhook_test(webhook_id=row.id, now=clock.now)
        # One that came in while its endpoint was being switched off.
        WebhookEndpoint.objects.update(enabled=False)
        assert deliveries_prune(now=clock.now) == 0
        assert set(WebhookDelivery.objects.values_list("state", flat=True)) == {"failed"}
    assert state(stranger, theirs).state == "pending"


@pytest.mark.django_db(transaction=True)
def test_two_workers_at_once_send_everything_once(
    tenant: Tenancy, stranger: Tenancy, hook: Receiver, clock: Clock
) -> None:
    made = endpoint_create(tenant, hook.url)
    ids = {str(sent_test(tenant, made, clock).event_id) for _ in range(20)}
    ready = threading.Barrier(2)

    def work() -> int:
        try:
            ready.wait(10)
            return sum(iter(lambda: send(tenant, clock), 0))
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as pool:
        sent = sum(future.result(60) for future in [pool.submit(work), pool.submit(work)])
    # Who finds the endpoint held by the other leaves it to them.
    assert sent == len(hook.ids) == 20
    assert set(hook.ids) == ids
    assert {row.state for row in outbox(tenant)} == {"delivered"}
    assert outbox(stranger) == []


@pytest.mark.django_db
def test_switching_off_gives_up_what_is_on_its_way(tenant: Tenancy, stranger: Tenancy, clock: Clock) -> None:
    made = endpoint_create(tenant, "http://127.0.0.1:1/x")
    delivery = sent_test(tenant, made, clock)
    theirs = sent_test(stranger, endpoint_create(stranger, "http://127.0.0.1:1/y"), clock)
    with tenant.context():
        webhook_update(webhook_id=made.endpoint.id, enabled=False)
    assert (state(tenant, delivery).state, state(tenant, delivery).error) == ("failed", "the endpoint was switched off")
    assert state(stranger, theirs).state == "pending"


@pytest.mark.django_db
def test_the_sweep_sends_each_tenant_that_has_something_as_itself(
    tenant: Tenancy, stranger: Tenancy, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[UUID] = []
    monkeypatch.setattr(tasks.webhooks_send, "apply_async_as", lambda tenant_id, actor: sent.append(tenant_id))
    sent_test(tenant, endpoint_create(tenant, "http://127.0.0.1:1/x"), clock)
    endpoint_create(stranger, "http://127.0.0.1:1/y")
    call_create(stranger)
    tasks.webhooks_sweep()
    assert sent.count(tenant.id) == 1
    assert stranger.id not in sent
    with tenant_context(tenant.id):
        assert WebhookDelivery.objects.get().state == "pending"
