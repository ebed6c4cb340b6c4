"""Tells the console that a call changed, after its events are in PostgreSQL.

Announcements are hints: one that is lost or late costs a screen its freshness, never the record. So they run beside
the drain, newest per call only, and a broker that is down is skipped.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final
from uuid import UUID

from channels.layers import get_channel_layer

from tenants.channel_groups import TenantGroup, group_send

logger = logging.getLogger(__name__)

_TIMEOUT_S: Final = 2.0


def calls_group(tenant_id: UUID) -> TenantGroup:
    """The channel-layer group that hears of every call of a tenant."""
    return TenantGroup(tenant_id, "calls")


def call_group(tenant_id: UUID, call_id: UUID) -> TenantGroup:
    """The channel-layer group that hears of one call."""
    return TenantGroup(tenant_id, f"call.{call_id.hex}")


async def announce_to_channel_layer(tenant_id: UUID, call_id: UUID, seq: int) -> None:
    """Send `call.changed` to both groups of the call. Raises what the channel layer raises, or TimeoutError."""
    layer = get_channel_layer()
    if layer is None:
        return
    message = {"type": "call.changed", "call_id": str(call_id), "seq": seq}
    async with asyncio.timeout(_TIMEOUT_S):
        await group_send(layer, calls_group(tenant_id), message)
        await group_send(layer, call_group(tenant_id, call_id), message)
