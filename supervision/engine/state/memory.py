"""Call state in this process: survives a reconnect, not a restart."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from supervision.engine.state.protocol import DEFAULT_TTL_S, CallKey, Claimed, StateLost, StateTaken, check_ttl

# Claims between two looks for expired calls.
_SWEEP_EVERY = 256


@dataclass(slots=True)
class _Kept:
    owner: str
    opened_at: float
    until: float
    fields: dict[str, str] = field(default_factory=dict)


class MemoryStateStore:
    """A `StateStore` in a dictionary.

    `ttl_s` is how many seconds after its last change a call is forgotten; `clock` gives seconds that only go forward.
    Raises `ValueError` on a `ttl_s` that is none.
    """

    def __init__(self, *, ttl_s: float = DEFAULT_TTL_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._ttl_s = check_ttl(ttl_s)
        self._clock = clock
        self._calls: dict[CallKey, _Kept] = {}
        self._claims = 0

    def __len__(self) -> int:
        """How many calls are held, expired ones included until they are swept."""
        return len(self._calls)

    async def claim(self, key: CallKey, *, opened_at: float, late: bool = False) -> Claimed:
        """See `StateStore.claim`."""
        self._claims += 1
        if self._claims % _SWEEP_EVERY == 0:
            self._sweep()
        kept = self._live(key)
        if late and kept is not None and kept.opened_at > opened_at:
            raise StateTaken
        fields = kept.fields if kept is not None else {}
        owner = secrets.token_hex(12)
        self._calls[key] = _Kept(owner, opened_at, self._clock() + self._ttl_s, fields)
        return Claimed(owner, dict(fields))

    async def write(self, key: CallKey, owner: str, changes: Mapping[str, str | None]) -> None:
        """See `StateStore.write`."""
        kept = self._live(key)
        if kept is None:
            raise StateLost
        if kept.owner != owner:
            raise StateTaken
        for name, value in changes.items():
            if value is None:
                kept.fields.pop(name, None)
            else:
                kept.fields[name] = value
        kept.until = self._clock() + self._ttl_s

    async def forget(self, key: CallKey, owner: str) -> bool:
        """See `StateStore.forget`."""
        kept = self._live(key)
        if kept is None or kept.owner != owner:
            return False
        del self._calls[key]
        return True

    async def aclose(self) -> None:
        """See `StateStore.aclose`."""

    def _live(self, key: CallKey) -> _Kept | None:
        kept = self._calls.get(key)
        if kept is not None and kept.until <= self._clock():
            del self._calls[key]
            return None
        return kept

    def _sweep(self) -> None:
        now = self._clock()
        for key in [key for key, kept in self._calls.items() if kept.until <= now]:
            del self._calls[key]
