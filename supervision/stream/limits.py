"""How many calls of a tenant run at a time, over all nodes, and how many of its questions are with judges.

A call has a lease in Valkey, taken at the handshake, renewed while it runs and given back at its end; the leases of a
node that died lapse within a minute. A call that reconnects has one lease, whichever sockets it has. Nothing of this
may keep a call waiting or cost it: Valkey has a quarter of a second to answer; while it does not, this process counts
its own calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from uuid import UUID, uuid4

from redis import RedisError
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from mirror_saas.outage import Outage
from tenants.limits import calls_key

logger = logging.getLogger(__name__)

T = TypeVar("T")

LEASE_S: Final = 60.0
RENEW_EVERY_S: Final = 20.0
ANSWER_WITHIN_S: Final = 0.25
DOWN_FOR_S: Final = 5.0

# KEYS: the tenant's leases by the time they lapse, and who holds each. ARGV: now and the length of a lease (seconds),
# the limit (-1: none), the call, the holder. Returns whether the call has a lease.
_TAKE: Final = """
local now = tonumber(ARGV[1])
for _, lapsed in ipairs(redis.call('zrangebyscore', KEYS[1], '-inf', now)) do
    redis.call('zrem', KEYS[1], lapsed)
    redis.call('hdel', KEYS[2], lapsed)
end
local limit = tonumber(ARGV[3])
if limit >= 0 and not redis.call('zscore', KEYS[1], ARGV[4]) and redis.call('zcard', KEYS[1]) >= limit then
    return 0
end
redis.call('zadd', KEYS[1], now + tonumber(ARGV[2]), ARGV[4])
redis.call('hset', KEYS[2], ARGV[4], ARGV[5])
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
        self._answer_within_s = answer_within_s
        self._now = now
        self._redis: Redis | None = None
        if url is not None:
            self._redis = Redis.from_url(
                url,
                socket_timeout=answer_within_s,
                socket_connect_timeout=answer_within_s,
                retry=Retry(NoBackoff(), 0),
            )
            self._take = self._redis.register_script(_TAKE)
            self._release = self._redis.register_script(_RELEASE)
            self._renew = self._redis.register_script(_RENEW)
        # By tenant: the newest holder of each call.
        self._held: dict[UUID, dict[str, str]] = {}
        self._renewing: asyncio.Task[None] | None = None
        self._outage = Outage(
            logger,
            down="Valkey does not answer (%s): calls are counted in this process only until it does",
            up="Valkey answers again: calls are counted over all nodes",
            alone_s=DOWN_FOR_S,
            clock=clock,
        )

    async def take(self, tenant_id: UUID, *, limit: int | None, call: str = "") -> CallLease | None:
        """A lease for `call`, or None when the tenant has `limit` calls already (None: no limit).

        `call` is Plivo's id of it; while nobody knows that, it is empty, and `name` says it later. A call that has a
        lease already gets it again, whatever the limit.
        """
        lease = CallLease(tenant_id, _id(call) or f"socket {uuid4()}", str(uuid4()))
        arguments: list[Any] = [self._now(), LEASE_S, -1 if limit is None else limit, lease.call, lease.holder]
        allowed = await self._ask(lambda: self._take(keys=_keys(tenant_id), args=arguments))
        if allowed is None:
            own = self._held.get(tenant_id, {})
            allowed = limit is None or lease.call in own or len(own) < limit
        if not allowed:
            return None
        self._hold(lease)
        return lease

    async def is_free(self, tenant_id: UUID, *, limit: int | None, call: str = "") -> bool:
        """Whether `take` would have a lease for the call. Takes nothing."""
        call = _id(call)
        own = self._held.get(tenant_id, {})
        if limit is None or call in own:
            return True
        running = await self._ask(lambda: self._running(tenant_id, call))
        if running is None:
            return len(own) < limit
        number, known = running
        return known or number < limit

    async def name(self, lease: CallLease, call: str) -> None:
        """Say which call an unnamed lease is for; if that has one already, the two are one."""
        call = _id(call)
        if lease.call == call:
            return
        unnamed = CallLease(lease.tenant_id, lease.call, lease.holder)
        lease.call = call
        self._hold(lease)
        self._forget(unnamed)
        arguments: list[Any] = [self._now(), LEASE_S, -1, lease.call, lease.holder]
        keys = _keys(lease.tenant_id)
        await self._ask(lambda: self._take(keys=keys, args=arguments))
        await self._ask(lambda: self._release(keys=keys, args=[unnamed.call, unnamed.holder]))

    async def release(self, lease: CallLease) -> None:
        """The call, or one of its sockets, has ended."""
        self._forget(lease)
        await self._ask(lambda: self._release(keys=_keys(lease.tenant_id), args=[lease.call, lease.holder]))

    async def renew(self) -> None:
        """Put off when this process's leases lapse."""
        lapse = self._now() + LEASE_S
        for tenant_id, calls in list(self._held.items()):
            arguments: list[Any] = [lapse, LEASE_S, *(part for pair in calls.items() for part in pair)]
            keys = _keys(tenant_id)
            await self._ask(lambda keys=keys, arguments=arguments: self._renew(keys=keys, args=arguments))  # type: ignore[misc]

    async def aclose(self) -> None:
        """Stop renewing. Leases of calls that still run lapse by themselves."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        if self._redis is not None:
            await self._redis.aclose()

    def _hold(self, lease: CallLease) -> None:
        self._held.setdefault(lease.tenant_id, {})[lease.call] = lease.holder
        if self._redis is not None and self._renewing is None:
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
        assert self._redis is not None
        key, now = calls_key(tenant_id), self._now()
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zcount(key, f"({now}", "+inf")
            pipe.zscore(key, call)
            number, lapses = await pipe.execute()
        return int(number), lapses is not None and float(lapses) > now

    async def _ask(self, question: Callable[[], Awaitable[T]]) -> T | None:
        """What Valkey answers; None when it does not in time, and for five seconds after that."""
        if self._redis is None or self._outage.lasts:
            return None
        try:
            async with asyncio.timeout(self._answer_within_s):
                answer = await question()
        except (RedisError, OSError, TimeoutError) as error:
            self._outage.failed(type(error).__name__)
            return None
        self._outage.answered()
        return answer


def _id(call: str) -> str:
    """A call's id as it can be stored, whatever somebody sent as one; the ids of calls have 200 characters at most."""
    return call[:200].encode("utf-8", "replace").decode()


def _keys(tenant_id: UUID) -> list[Any]:
    calls = calls_key(tenant_id)
    return [calls, f"{calls}:holders"]


class JudgeSlots:
    """How many questions of one tenant are with judges at a time, in this process. Belongs to one event loop.

    Urgent ones (tool calls that wait for their verdict, corrections) go first, otherwise whoever came first.
    """

    def __init__(self, limit: int | None, on_refused: Callable[[], None]) -> None:
        """`on_refused` hears of each question that got no place in time."""
        self.in_flight = 0
        self._limit = limit
        self._on_refused = on_refused
        self._urgent: deque[asyncio.Future[None]] = deque()
        self._others: deque[asyncio.Future[None]] = deque()

    def allow(self, limit: int | None) -> None:
        """Change the limit. Questions that are under way beyond a lower one go on."""
        self._limit = limit
        self._let_in()

    async def acquire(self, *, within_s: float, urgent: bool) -> bool:
        """See QuestionLimiter."""
        if self._has_room() and not self._urgent and (urgent or not self._others):
            self.in_flight += 1
            return True
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._urgent if urgent else self._others
        waiting.append(place)
        try:
            async with asyncio.timeout(within_s):
                await place
            return True
        except TimeoutError:
            if place.done() and not place.cancelled():
                return True
            self._on_refused()
            return False
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.release()
            raise
        finally:
            if not place.done() or place.cancelled():
                with contextlib.suppress(ValueError):
                    waiting.remove(place)

    def release(self) -> None:
        """See QuestionLimiter."""
        self.in_flight -= 1
        self._let_in()

    def _has_room(self) -> bool:
        return self._limit is None or self.in_flight < self._limit

    def _let_in(self) -> None:
        for waiting in (self._urgent, self._others):
            while waiting and self._has_room():
                place = waiting.popleft()
                if not place.done():
                    self.in_flight += 1
                    place.set_result(None)
