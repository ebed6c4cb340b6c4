"""The call token: what the answer URL knows of a call, carried to the stream socket in the query parameter `mt`.

Plivo's `start` names neither caller nor callee; the answer webhook does. The token is encrypted and bound to the
tenant, so nobody can read or make one, and it belongs to one call.
"""

from __future__ import annotations

import binascii
import json
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

from tenants.sealing import SealBroken, key_ring

FIRST_USE_S: Final = 300
PARAMETER: Final = "mt"
_FIELD: Final = "stream.call_token"


class TokenInvalid(Exception):
    """A call token that was not made here, for this agent, or is too old."""


@dataclass(frozen=True, slots=True)
class CallToken:
    """Who calls whom. ``call_id`` is Plivo's, empty when the webhook named none."""

    agent_id: UUID
    call_id: str
    from_number: str
    to_number: str
    made_at: int


def token_make(*, tenant_id: UUID, agent_id: UUID, call_id: str, from_number: str, to_number: str) -> str:
    """A token for the query string of a stream URL."""
    plain = json.dumps([str(agent_id), call_id[:200], from_number[:100], to_number[:100], int(time.time())])
    sealed = key_ring().transient_seal(plain.encode(), tenant_id=tenant_id, field=_FIELD)
    return urlsafe_b64encode(sealed).rstrip(b"=").decode("ascii")


def token_read(token: str, *, tenant_id: UUID, agent_id: UUID) -> CallToken:
    """What a token says. Raises :class:`TokenInvalid`."""
    try:
        sealed = urlsafe_b64decode(token + "=" * (-len(token) % 4))
        plain = key_ring().transient_open(sealed, tenant_id=tenant_id, field=_FIELD)
        agent, call_id, from_number, to_number, made_at = json.loads(plain)
    except (SealBroken, binascii.Error, ValueError) as problem:
        raise TokenInvalid("the call token is not one of ours") from problem
    if agent != str(agent_id):
        raise TokenInvalid("the call token is of another agent")
    return CallToken(UUID(agent), call_id, from_number, to_number, made_at)


def query_split(query: str) -> tuple[str | None, str]:
    """The token in a query string, and the query without it (order and repetitions of the rest are kept)."""
    token = None
    rest = []
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if name == PARAMETER:
            token = dict(parse_qsl(part)).get(PARAMETER, value)
        elif part:
            rest.append(part)
    return token, "&".join(rest)


def query_with(query: str, token: str) -> str:
    """A query string with the token behind it."""
    added = urlencode({PARAMETER: token})
    return f"{query}&{added}" if query else added
