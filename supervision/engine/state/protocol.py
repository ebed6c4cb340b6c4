"""What is known of a call, kept outside the process: so that a reconnect, or another node, goes on where it stopped.

A `StateStore` keeps named fields per (tenant, call) and forgets a call some time after its last change. It knows
nothing of what the fields mean; `supervision.engine.state.call.CallState` does. The one rule that it enforces is whose
call it is: `claim` makes the claimant the call's owner, and whoever owned it before cannot change it any more, so that
the late end of an old connection never harms the new one.

Stores: `state.memory` (this process), `state.redis` (Redis, Valkey), `state.postgres`. Bring your own by implementing
`claim`, `write`, `forget` and `aclose`; `tests/engine/test_state.py` is the suite that it has to pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

DEFAULT_TTL_S = 3600.0
MAX_ID_CHARS = 200


class StateError(Exception):
    """What a store could not do. Messages name no addresses, keys or passwords, and nothing that was said."""


class StateUnavailable(StateError):
    """The store cannot be reached, or did not answer in time. Trying again later may help."""


class StateTaken(StateError):
    """Somebody else has claimed the call since; this owner may not change it any more."""

    def __init__(self) -> None:
        super().__init__("another connection has taken this call over")


class StateLost(StateError):
    """The store holds nothing of this call any more: it expired, or was wiped. Claim it again and write everything."""

    def __init__(self) -> None:
        super().__init__("the store holds nothing of this call any more")


@dataclass(frozen=True, slots=True)
class CallKey:
    """Which call. `tenant_id` None is a library's only tenant, unlike any named one.

    Raises `ValueError` when an id is blank or has more than 200 characters.
    """

    tenant_id: str | None
    call_id: str

    def __post_init__(self) -> None:
        for name, value in (("tenant_id", self.tenant_id), ("call_id", self.call_id)):
            if value is None and name == "tenant_id":
                continue
            if not isinstance(value, str) or not value.strip() or len(value) > MAX_ID_CHARS or not _storable(value):
                raise ValueError(f"{name} has to be a text of 1 to {MAX_ID_CHARS} characters (Unicode, without NUL)")


def _storable(text: str) -> bool:
    """Whether every store can hold the text: half a surrogate pair has no UTF-8, and PostgreSQL's texts no NUL."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


@dataclass(frozen=True, slots=True)
class Claimed:
    """A call as its new owner finds it. `owner` is the token to write with; `fields` are empty for a new call."""

    owner: str
    fields: Mapping[str, str]


@runtime_checkable
class StateStore(Protocol):
    """Fields per call. Field names are ASCII of at most 100 characters, values are ASCII (JSON escapes the rest).

    Every method raises `StateUnavailable` when the store is down, after a bounded time (a second by default). One
    store serves all calls of a process.
    """

    async def claim(self, key: CallKey, *, opened_at: float, late: bool = False) -> Claimed:
        """Makes the caller the owner of a call, whoever owned it, and returns what is known of it.

        `opened_at` (seconds since 1970) says when the caller's connection began. With `late`, for a connection that
        could not claim when it began, raises `StateTaken` when the owner's connection began after this one.
        """
        ...

    async def write(self, key: CallKey, owner: str, changes: Mapping[str, str | None]) -> None:
        """Sets fields, and removes those that are None; all of it or nothing. The call's expiry starts anew.

        Raises `StateTaken` when somebody else has claimed the call, `StateLost` when there is nothing of it.
        """
        ...

    async def forget(self, key: CallKey, owner: str) -> bool:
        """Removes a call. False, and nothing is changed, when it is not (or no longer) this owner's."""
        ...

    async def aclose(self) -> None:
        """Releases connections. What was written stays. Idempotent."""
        ...


def check_ttl(ttl_s: float) -> float:
    """The expiry in seconds, if it is one. Raises `ValueError`."""
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, int | float) or not 1 <= ttl_s <= 30 * 86_400:
        raise ValueError("ttl_s has to be a number of seconds from 1 to 2592000 (30 days)")
    return float(ttl_s)
