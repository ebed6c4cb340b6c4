"""Which headers of the agent's handshake a tenant cannot set."""

from __future__ import annotations

from typing import Final

_OF_THE_PROTOCOL: Final = frozenset(
    {"connection", "content-length", "expect", "host", "te", "trailer", "transfer-encoding", "upgrade"}
)


def header_reserved(name: str) -> bool:
    """Whether a header belongs to the handshake itself, to Mirror, or to Plivo's signature."""
    name = name.lower()
    return name in _OF_THE_PROTOCOL or name.startswith(("sec-websocket", "x-mirror-", "x-plivo-signature"))
