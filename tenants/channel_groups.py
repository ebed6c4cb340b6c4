"""Groups of the channel layer: each belongs to a tenant, and its name says whose it is.

What travels over the layer are hints that somebody should look into the database; who may look is decided there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID


@dataclass(frozen=True, slots=True)
class TenantGroup:
    """A group of one tenant: `topic` is a few words of letters, digits and hyphens with points between them."""

    tenant_id: UUID
    topic: str

    @property
    def name(self) -> str:
        """Its name in the layer."""
        return f"t.{self.tenant_id.hex}.{self.topic}"


async def group_join(layer: Any, group: TenantGroup, channel: str) -> None:
    """Let `channel` hear what is sent to `group`. Raises what the layer raises."""
    await layer.group_add(group.name, channel)


async def group_leave(layer: Any, group: TenantGroup, channel: str) -> None:
    """Let `channel` hear of `group` no more."""
    await layer.group_discard(group.name, channel)


async def group_send(layer: Any, group: TenantGroup, message: dict[str, Any]) -> None:
    """Send `message` to every channel in `group`."""
    await layer.group_send(group.name, message)
