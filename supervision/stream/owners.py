"""Who has a call: a record in Valkey for each, with node, epoch and a lease that its owner renews.

The epoch counts the sockets that a call has had. Whoever claims a call raises it, so the newest socket has the highest
one; an owner that finds a higher one in the record, however late, has lost the call and ends. While Valkey is down
calls go on, and a claim has no answer; what was claimed meanwhile is written when it is back.

    claim = await owners.claim(key, call_id=uuid7())     # None: Valkey does not answer
    lost = await owners.renew([...])                      # calls that somebody else has by now
    await owners.over(held, back=True)                    # the call has ended; it may come back
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from redis import Redis, RedisError

from supervision.stream.valkey import ANSWER_WITHIN_S, QuickValkey
from tenants.cache_keys import tenant_key

LEASE_S: Final = 15.0
RENEW_EVERY_S: Final = 5.0
# How long a call is known after its end, or after its node fell silent: for reconnects and for the call's token.
KNOWN_FOR_S: Final = 60.0
MAX_ID_CHARS: Final = 200

# KEYS: the record. ARGV: now, lease, how long the record is known beyond it (seconds), the claiming node, the id of the
# call if it is a new one, the least epoch, the prefix of the records by call. Returns: whether the call was known, its
# id and epoch, the node that had it, whether that one's lease holds.
_CLAIM: Final = """
local now, call, epoch, node, known, holds = tonumber(ARGV[1]), ARGV[5], 1, '', 0, 0
local kept = redis.call('hmget', KEYS[1], 'call', 'epoch', 'node', 'until', 'over')
if kept[1] then
    known = 1
    if kept[5] ~= '1' then
        call, epoch, node = kept[1], tonumber(kept[2]) + 1, kept[3]
        if tonumber(kept[4]) > now then holds = 1 end
    end
end
epoch = math.max(epoch, tonumber(ARGV[6]))
local keep = math.ceil(tonumber(ARGV[2]) + tonumber(ARGV[3]))
redis.call('hset', KEYS[1], 'call', call, 'epoch', epoch, 'node', ARGV[4], 'until', now + tonumber(ARGV[2]),
           'over', '0', 'claimed', ARGV[1])
redis.call('expire', KEYS[1], keep)
redis.call('set', ARGV[7] .. call, ARGV[4], 'EX', keep)
return {known, call, epoch, node, holds}
"""

# KEYS: the records of one tenant. ARGV: now, lease, how long they are known beyond it, the node, the prefix of the
# records by call, then call, epoch and time of the claim for each key. Returns the places, from 1, of those that
# somebody else has by now. A record that was lost, or that an older claim wrote while Valkey was away, is written anew.
_RENEW: Final = """
local lost = {}
local keep = math.ceil(tonumber(ARGV[2]) + tonumber(ARGV[3]))
for n, key in ipairs(KEYS) do
    local call, epoch, claimed = ARGV[3 * n + 3], tonumber(ARGV[3 * n + 4]), tonumber(ARGV[3 * n + 5])
    local kept = redis.call('hmget', key, 'call', 'epoch', 'node', 'claimed', 'over')
    local theirs = false
    if kept[1] and kept[5] ~= '1' then
        if kept[1] == call then
            local newer = tonumber(kept[2])
            theirs = newer > epoch or (newer == epoch and kept[3] ~= ARGV[4] and tonumber(kept[4]) > claimed)
        else
            theirs = tonumber(kept[4]) > claimed
        end
    end
    if theirs then
        table.insert(lost, n)
    else
        redis.call('hset', key, 'call', call, 'epoch', epoch, 'node', ARGV[4],
                   'until', tonumber(ARGV[1]) + tonumber(ARGV[2]), 'over', '0', 'claimed', ARGV[3 * n + 5])
        redis.call('expire', key, keep)
        redis.call('set', ARGV[5] .. call, ARGV[4], 'EX', keep)
    end
end
return lost
"""

# KEYS: the record, the record by call. ARGV: the call, its epoch, whether it may come back, how long it is known.
_OVER: Final = """
local kept = redis.call('hmget', KEYS[1], 'call', 'epoch')
if kept[1] == ARGV[1] and kept[2] == ARGV[2] then
    redis.call('hset', KEYS[1], 'until', 0, 'over', ARGV[3] == '1' and '0' or '1')
    redis.call('expire', KEYS[1], math.ceil(tonumber(ARGV[4])))
    redis.call('del', KEYS[2])
end
return 1
"""


@dataclass(frozen=True, slots=True)
class CallKey:
    """What names a call on every node: its tenant, its agent, and Plivo's id of it.

    Two agents may have streams of one call of Plivo's, one after the other or at once: those are two calls here.
    """

    tenant_id: UUID
    agent_id: UUID
    plivo_call_id: str

    @property
    def name(self) -> str:
        """The name of the call's record in Valkey."""
        plivo_call_id = self.plivo_call_id[:MAX_ID_CHARS].encode("utf-8", "replace").decode()
        return f"{_prefix(self.tenant_id)}of:{self.agent_id}:{plivo_call_id}"


@dataclass(frozen=True, slots=True)
class Claim:
    """What a claim found. `known`: the call runs, or ended less than a minute ago. `call_id` and `epoch` are the
    call's from now on; above epoch 1 it goes on. `node` had it, and its lease `holds`."""

    known: bool
    call_id: UUID
    epoch: int
    node: str = ""
    holds: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """A call that this process has."""

    key: CallKey
    call_id: UUID
    epoch: int
    claimed_at: float


class CallOwners:
    """The owner records, as one node writes them. Belongs to one event loop; opens nothing before the first call."""

    def __init__(
        self,
        url: str | None,
        node: str,
        *,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        answer_within_s: float = ANSWER_WITHIN_S,
    ) -> None:
        """`url` is Valkey's or Redis', None when there is one process only. `now` gives Unix time as the other nodes
        have it, `clock` seconds for waiting."""
        self.node = node
        self.now = now
        self._valkey = QuickValkey(
            url,
            meanwhile="calls go on, and one that reconnects is looked for in this process and in the record",
            again="calls that reconnect are found on all nodes",
            clock=clock,
            answer_within_s=answer_within_s,
        )
        if (redis := self._valkey.redis) is not None:
            self._claim: Callable[..., Awaitable[Any]] = redis.register_script(_CLAIM)
            self._renew: Callable[..., Awaitable[Any]] = redis.register_script(_RENEW)
            self._over: Callable[..., Awaitable[Any]] = redis.register_script(_OVER)

    @property
    def shared(self) -> bool:
        """Whether there is a Valkey, so that other nodes can see the records."""
        return self._valkey.redis is not None

    async def knows(self, key: CallKey) -> bool | None:
        """Whether a call runs somewhere, or ended less than a minute ago; None when Valkey does not answer."""
        redis = self._valkey.redis
        if redis is None:
            return None
        found = await self._valkey.ask(lambda: redis.exists(key.name))
        return None if found is None else bool(found)

    async def claim(self, key: CallKey, *, call_id: UUID, least_epoch: int = 1) -> Claim | None:
        """Make this node the owner of a call; None when Valkey does not answer.

        `call_id` is its id if the call is new, or if its record is gone; `least_epoch` its epoch at least.
        """
        arguments = [self.now(), LEASE_S, KNOWN_FOR_S, self.node, str(call_id), least_epoch, _prefix(key.tenant_id)]
        answer = await self._valkey.ask(lambda: self._claim(keys=[key.name], args=arguments))
        if answer is None:
            return None
        known, claimed, epoch, node, holds = answer
        return Claim(bool(known), UUID(claimed.decode()), int(epoch), node.decode(), bool(holds))

    async def renew(self, held: Iterable[Held]) -> list[Held]:
        """Put off when the leases of `held` lapse; returns those that somebody else has by now."""
        by_tenant: dict[UUID, list[Held]] = {}
        for one in held:
            by_tenant.setdefault(one.key.tenant_id, []).append(one)
        lost: list[Held] = []
        for tenant_id, calls in by_tenant.items():
            arguments: list[Any] = [self.now(), LEASE_S, KNOWN_FOR_S, self.node, _prefix(tenant_id)]
            for one in calls:
                arguments += [str(one.call_id), one.epoch, one.claimed_at]
            keys = [one.key.name for one in calls]
            answer = await self._valkey.ask(
                lambda keys=keys, arguments=arguments: self._renew(keys=keys, args=arguments)  # type: ignore[misc]
            )
            lost += [calls[place - 1] for place in answer or ()]
        return lost

    async def over(self, held: Held, *, back: bool) -> None:
        """The call has ended on this node. `back`: if its stream comes again within a minute, it goes on."""
        keys = [held.key.name, f"{_prefix(held.key.tenant_id)}{held.call_id}"]
        arguments = [str(held.call_id), held.epoch, int(back), KNOWN_FOR_S]
        await self._valkey.ask(lambda: self._over(keys=keys, args=arguments))

    async def aclose(self) -> None:
        """Close the connections. The records of calls that still run lapse by themselves."""
        await self._valkey.aclose()


def call_is_owned(url: str | None, *, tenant_id: UUID, call_id: UUID) -> bool:
    """Whether some node has this call, or had it a minute ago and fell silent. Blocks; False while Valkey is down."""
    if url is None:
        return False
    try:
        with Redis.from_url(url, socket_connect_timeout=ANSWER_WITHIN_S, socket_timeout=ANSWER_WITHIN_S) as redis:
            return bool(redis.exists(f"{_prefix(tenant_id)}{call_id}"))
    except (RedisError, OSError):
        return False


def _prefix(tenant_id: UUID) -> str:
    return f"{tenant_key('call-owners', tenant_id)}:"
