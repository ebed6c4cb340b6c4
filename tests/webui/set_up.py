"""A tenant that was set up with care, for whoever looks at its pages."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from supervision.models import ProviderCredential, WebhookAttempt, WebhookDelivery, WebhookEndpoint
from supervision.services.alarms import alarm_kinds_set
from supervision.services.credentials import credential_change, credential_create
from supervision.services.plivo_accounts import plivo_account_save
from supervision.services.privacy import privacy_update
from supervision.services.webhooks import webhook_create, webhook_test
from tenants.models import Membership
from tests.factories import Tenancy


@dataclass(frozen=True, slots=True)
class SetUp:
    """A webhook that is paused, and one of its deliveries, which failed."""

    webhook: UUID
    delivery: UUID


def set_up(tenancy: Tenancy, now: datetime) -> SetUp:
    """Credentials of three kinds, webhooks in three states, privacy, and somebody who is mailed of alarms."""
    with tenancy.context():
        credential_change(credential_id=tenancy.credential.id, prompt_price="0.15", completion_price="0.6")  # type: ignore[arg-type]
        credential_create(
            name="Corrections’ voice",
            kind=ProviderCredential.Kind.TTS,
            base_url="http://127.0.0.1:1/v1",
            model="gpt-4o-mini-tts",
            api_key="k",
        )
        plivo_account_save(auth_id="MAYTFMZJCXNWQ5OWMYMZ", auth_token="t" * 40)
        privacy_update(
            retention_days=None,
            redact=["card", "email", "phone"],
            phone_region="DE",
            patterns=[{"name": "member number", "pattern": r"M-\d{6}"}],
        )
        alarm_kinds_set(membership_id=Membership.objects.order_by("created_at")[0].id, kinds=["coverage", "call"])
        off = webhook_create(url="http://127.0.0.1:9/old", event_types=["call.ended"], enabled=False).endpoint
        WebhookEndpoint.objects.filter(id=off.id).update(off_reason="gone")
        webhook_create(
            url="http://127.0.0.1:9/mirror",
            event_types=["coverage.alarm", "tool.blocked", "approval.requested"],
            description="Alarms to the on-call channel",
        )
        paused = webhook_create(
            url="http://127.0.0.1:9/warehouse/calls?source=mirror",
            event_types=["call.started", "call.ended"],
            description="Calls, into the warehouse",
        ).endpoint
        WebhookEndpoint.objects.filter(id=paused.id).update(failures=6, paused_until=now + timedelta(minutes=9))
        failed, taken, _ = (webhook_test(webhook_id=paused.id) for _ in range(3))
        for number in range(3):
            WebhookAttempt.objects.create(
                delivery=failed,
                at=now - timedelta(minutes=30 - 9 * number),
                status=503 if number else None,
                duration_ms=15_000 if not number else 240 + number,
                error="the receiver answered (503)" if number else "no answer within 15 s",
                excerpt='{"error": "warehouse is closed"}' if number else "",
            )
        WebhookDelivery.objects.filter(id=failed.id).update(
            state="failed", next_attempt_at=None, attempts=12, error="the receiver answered (503)"
        )
        WebhookDelivery.objects.filter(id=taken.id).update(
            state="delivered", next_attempt_at=None, attempts=1, delivered_at=now
        )
        return SetUp(paused.id, failed.id)
