"""How many calls of a tenant run at a time, over all nodes.

A call has a lease in Valkey, taken at the handshake, renewed while it runs and given back at its end; the leases of a
node that died lapse within a minute. A call that reconnects keeps its lease: it passes to the socket that takes the
call over, which ends the one before. Until that has said its `start`, one socket may wait in the call's name; any
further one counts by itself. Nothing of this may keep a call waiting or cost it: Valkey has a quarter of a second to
answer; while it does not, this process counts its own calls.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID, uuid4

from supervision.stream.valkey import ANSWER_WITHIN_S, DOWN_FOR_S, QuickValkey
from tenants.limits import calls_key

__all__ = ["ANSWER_WITHIN_S", "DOWN_FOR_S", "CallLease", "CallLeases", "lease_name"]

LEASE_S: Final = 60.0
RENEW_EVERY_S: Final = 20.0
# What a lease is called by which the next socket of a call waits for its `start`.
_NEXT: Final = " next"

# KEYS: the tenant's leases by the time they lapse, and who holds each. ARGV: now and the length of a lease (seconds),
# the limit (-1: none), the call, the holder, the call's name for a socket that waits. Returns the name of the lease
# that was taken, or nothing.
_TAKE: Final = """
local now = tonumber(ARGV[1])
for _, lapsed in ipairs(redis.call('zrangebyscore', KEYS[1], '-inf', now)) do
    redis.call('zrem', KEYS[1], lapsed)
    redis.call('hdel', KEYS[2], lapsed)
end
local limit, name = tonumber(ARGV[3]), ARGV[4]
local again = redis.call('zscore', KEYS[1], name)
if again then name = ARGV[6] end
if again and redis.call('zscore', KEYS[1], name) then
    again, name = false, 'socket ' .. ARGV[5]
end
if limit >= 0 and not again and redis.call('zcard', KEYS[1]) >= limit then
    return false
end
redis.call('zadd', KEYS[1], now + tonumber(ARGV[2]), name)
redis.call('hset', KEYS[2], name, ARGV[5])
redis.call('expire', KEYS[1], math.ceil(tonumber(ARGV[2])))
redis.call('expire', KEYS[2], math.ceil(tonumber(ARGV[2])))
return name
"""
# ARGV: when the lease lapses, its length, the name that it had, the call, the holder. Whoever held the call's lease
# holds it no more.
_NAME: Final = """
redis.call('zadd', KEYS[1], ARGV[1], ARGV[4])
redis.call('hset', KEYS[2], ARGV[4], ARGV[5])
if ARGV[3] ~= ARGV[4] and redis.call('hget', KEYS[2], ARGV[3]) == ARGV[5] then
    redis.call('zrem', KEYS[1], ARGV[3])
    redis.call('hdel', KEYS[2], ARGV[3])
end
redis.call('expire', KEYS[1], math.ceil(tonumber(ARGV[2])))
redis.call('expire', KEYS[2], math.ceil(tonumber(ARGV[2])))
return 1
"""
# ARGV: the call, the holder. What somebody else holds by now, a newer socket of the same call, stays.
_RELEASE: Final = """
if redis.call('hget', KEYS[2], ARGV[1]) == ARGV[2] then
    redis.call('zrem', KEYS[1], ARGV[1])
    redis.call('hdel', KEYS[2], ARGV[1])
end
return 1
"""
# ARGV: when the leases lapse, their length, then call and holder of each. One that lapsed meanwhile is taken again.
_RENEW: Final = """
for n = 3, #ARGV, 2 do
    local holder = redis.call('hget', KEYS[2], ARGV[n])
    if not holder or holder == ARGV[n + 1] then
        redis.call('zadd', KEYS[1], ARGV[1], ARGV[n])
        redis.call('hset', KEYS[2], ARGV[n], ARGV[n + 1])
    end
end
redis.call('expire', KEYS[1], math.ceil(tonumber(ARGV[2])))
redis.call('expire', KEYS[2], math.ceil(tonumber(ARGV[2])))
return 1
"""


@dataclass(slots=True)
class CallLease:
    """A running call's place among those that its tenant may have."""

    tenant_id: UUID
    call: str
    holder: str


class CallLeases:
    """The leases of this process's calls. Belongs to one event loop; nothing is opened before the first call."""

    def __init__(
        self,
        url: str | None,
        *,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        answer_within_s: float = ANSWER_WITHIN_S,
    ) -> None:
        """`url` is Valkey's or Redis', None to count in this process only. `now` gives Unix time as the other nodes
        have it, `clock` seconds for waiting."""
        self._now = now
        self._valkey = QuickValkey(
            url,
            meanwhile="calls are counted in this process only until it does",
            again="calls are counted over all nodes",
            clock=clock,
            answer_within_s=answer_within_s,
        )
        if (redis := self._valkey.redis) is not None:
            self._take: Callable[..., Awaitable[Any]] = redis.register_script(_TAKE)
            self._name: Callable[..., Awaitable[Any]] = redis.register_script(_NAME)
            self._release: Callable[..., Awaitable[Any]] = redis.register_script(_RELEASE)
            self._renew: Callable[..., Awaitable[Any]] = redis.register_script(_RENEW)
        # By tenant: the newest holder of each call.
        self._held: dict[UUID, dict[str, str]] = {}
        self._renewing: asyncio.Task[None] | None = None

    async def take(self, tenant_id: UUID, *, limit: int | None, call: str = "") -> CallLease | None:
        """A lease for `call`, or None when the tenant has `limit` calls already (None: no limit).

        `call` is the call's `lease_name`; while nobody knows that, it is empty, and `name` says it later. For a call
        that has a lease already, one socket may wait, whatever the limit.
        """
        call = _storable(call)
        lease = CallLease(tenant_id, call or f"socket {uuid4()}", str(uuid4()))
        arguments: list[Any] = [
            *(self._now(), LEASE_S, -1 if limit is None else limit),
            *(lease.call, lease.holder, lease.call + _NEXT),
        ]
        taken = await self._valkey.ask(lambda: self._taken(tenant_id, arguments))
        if taken is None:
            taken = self._taken_here(lease, limit)
        if not taken:
            return None
        lease.call = taken
        self._hold(lease)
        return lease

    async def _taken(self, tenant_id: UUID, arguments: list[Any]) -> str:
        name = await self._take(keys=_keys(tenant_id), args=arguments)
        return name.decode() if name else ""

    def _taken_here(self, lease: CallLease, limit: int | None) -> str:
        own = self._held.get(lease.tenant_id, {})
        name, again = lease.call, lease.call in own
        if again:
            name = lease.call + _NEXT
            if name in own:
                name, again = f"socket {lease.holder}", False
        return name if limit is None or again or len(own) < limit else ""

    async def is_free(self, tenant_id: UUID, *, limit: int | None, call: str = "") -> bool:
        """Whether `take` would have a lease for the call. Takes nothing."""
        call = _storable(call)
        own = self._held.get(tenant_id, {})
        if limit is None or call in own:
            return True
        running = await self._valkey.ask(lambda: self._running(tenant_id, call))
        if running is None:
            return len(own) < limit
        number, known = running
        return known or number < limit

    async def name(self, lease: CallLease, call: str) -> None:
        """Say which call a lease is for. If another socket had that call's lease, it has none any more: whoever names
        a lease ends that socket."""
        before = CallLease(lease.tenant_id, lease.call, lease.holder)
        lease.call = _storable(call)
        self._hold(lease)
        if before.call != lease.call:
            self._forget(before)
        arguments: list[Any] = [self._now() + LEASE_S, LEASE_S, before.call, lease.call, lease.holder]
        await self._valkey.ask(lambda: self._name(keys=_keys(lease.tenant_id), args=arguments))

    async def release(self, lease: CallLease) -> None:
        """The call, or one of its sockets, has ended."""
        self._forget(lease)
        await self._valkey.ask(lambda: self._release(keys=_keys(lease.tenant_id), args=[lease.call, lease.holder]))

    async def renew(self) -> None:
        """Put off when this process's leases lapse."""
        lapse = self._now() + LEASE_S
        for tenant_id, calls in list(self._held.items()):
            arguments: list[Any] = [lapse, LEASE_S, *(part for pair in calls.items() for part in pair)]
            keys = _keys(tenant_id)
            await self._valkey.ask(
                lambda keys=keys, arguments=arguments: self._renew(keys=keys, args=arguments)  # type: ignore[misc]
            )

    async def aclose(self) -> None:
        """Stop renewing. Leases of calls that still run lapse by themselves."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        await self._valkey.aclose()

    def _hold(self, lease: CallLease) -> None:
        self._held.setdefault(lease.tenant_id, {})[lease.call] = lease.holder
        if self._valkey.redis is not None and self._renewing is None:
            self._renewing = asyncio.get_running_loop().create_task(self._go_on_renewing(), name="mirror-call-leases")

    def _forget(self, lease: CallLease) -> None:
        calls = self._held.get(lease.tenant_id, {})
        if calls.get(lease.call) == lease.holder:
            del calls[lease.call]
            if not calls:
                del self._held[lease.tenant_id]

    async def _go_on_renewing(self) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            await self.renew()

    async def _running(self, tenant_id: UUID, call: str) -> tuple[int, bool]:
        redis = self._valkey.redis
        assert redis is not None
        key, now = calls_key(tenant_id), self._now()
        async with redis.pipeline(transaction=False) as pipe:
            pipe.zcount(key, f"({now}", "+inf")
            pipe.zscore(key, call)
            number, lapses = await pipe.execute()
        return int(number), lapses is not None and float(lapses) > now


def lease_name(agent_id: UUID, plivo_call_id: str) -> str:
    """What a call's lease is called: Plivo's call can have streams to several agents, and each counts."""
    return f"{agent_id} {plivo_call_id}" if plivo_call_id else ""


def _storable(call: str) -> str:
    """A call's name as it can be stored, whatever somebody sent as its id; ids have 200 characters at most."""
    return call[:240].encode("utf-8", "replace").decode()


def _keys(tenant_id: UUID) -> list[Any]:
    calls = calls_key(tenant_id)
    return [calls, f"{calls}:holders"]
