"""Reading what the current tenant wants kept of its calls."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from supervision.models import Call, PrivacySettings


def privacy_get() -> PrivacySettings:
    """The tenant's choice; while it has made none, what counts then."""
    return PrivacySettings.objects.first() or PrivacySettings()


def calls_older_count(*, days: int, now: datetime, most: int) -> int:
    """How many calls ended more than `days` ago, counted up to `most`."""
    before = now.astimezone(UTC) - timedelta(days=days)
    old = Call.objects.filter(started_at__lt=before, ended_at__lt=before, state=Call.State.ENDED)
    return old.order_by()[:most].count()
