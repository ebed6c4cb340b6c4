"""An agent's stream keys, without what opens anything: keys are kept as hashes only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from django.utils import timezone

from supervision.models import Agent, StreamKey

State = Literal["active", "expiring", "expired", "revoked"]


@dataclass(frozen=True, slots=True)
class StreamKeyRef:
    """A stream key; `state` is what it is at the moment of asking."""

    id: UUID
    state: State
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


def agent_stream_key_list(*, agent_id: UUID) -> list[StreamKeyRef]:
    """The keys of an agent of the current tenant, newest first. Raises Agent.DoesNotExist."""
    agent = Agent.objects.get(id=agent_id)
    now = timezone.now()
    return [
        StreamKeyRef(key.id, _state(key, now), key.created_at, key.expires_at, key.revoked_at)
        for key in StreamKey.objects.filter(agent=agent).order_by("-created_at", "-id")
    ]


def agent_stream_key_get(*, agent_id: UUID, stream_key_id: UUID) -> StreamKeyRef:
    """One key of an agent of the current tenant. Raises StreamKey.DoesNotExist."""
    key = StreamKey.objects.get(agent_id=agent_id, id=stream_key_id)
    return StreamKeyRef(key.id, _state(key, timezone.now()), key.created_at, key.expires_at, key.revoked_at)


def _state(key: StreamKey, now: datetime) -> State:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is None:
        return "active"
    return "expiring" if key.expires_at > now else "expired"
