"""Tells the console which calls changed, after their events are in PostgreSQL.

Announcements are hints: one that is lost or late costs a screen its freshness, never the record. So they run beside
the drain, newest per call only, and a broker that is down is skipped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final
from uuid import UUID

from channels.layers import get_channel_layer

from tenants.channel_groups import TenantGroup, group_send

logger = logging.getLogger(__name__)

_TIMEOUT_S: Final = 2.0


def calls_group(tenant_id: UUID) -> TenantGroup:
    """The channel-layer group that hears of every call of a tenant."""
    return TenantGroup(tenant_id, "calls")


async def announce_to_channel_layer(tenant_id: UUID, changed: Mapping[UUID, int]) -> None:
    """Send `calls.changed` to the tenant's group: the newest seq of each call that changed.

    One message however many calls: a message for each would be most of the work that a busy node does for its screens.
    Raises what the channel layer raises, or TimeoutError.
    """
    layer = get_channel_layer()
    if layer is None:
        return
    calls = {str(call_id): seq for call_id, seq in changed.items()}
    async with asyncio.timeout(_TIMEOUT_S):
        await group_send(layer, calls_group(tenant_id), {"type": "calls.changed", "calls": calls})
