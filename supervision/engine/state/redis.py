"""Call state in Redis or Valkey: one hash per call, gone by itself when it expires.

The `redis` package is imported when the store is first used, not when this module is.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from supervision.engine.state.protocol import (
    DEFAULT_TTL_S,
    CallKey,
    Claimed,
    StateLost,
    StateTaken,
    StateUnavailable,
    check_ttl,
)

if TYPE_CHECKING:
    from redis.asyncio import Redis

T = TypeVar("T")

# Beside `owner` and `opened_at`, the hash has the call's own fields under names that begin with this.
_FIELD = "f:"
CONNECTIONS = 16

# ARGV: owner, milliseconds to live, when the connection began, whether the claim is late.
_CLAIM = """
if ARGV[4] == '1' then
    local opened_at = redis.call('HGET', KEYS[1], 'opened_at')
    if opened_at and tonumber(opened_at) > tonumber(ARGV[3]) then return false end
end
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'opened_at', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('HGETALL', KEYS[1])
"""
# ARGV: owner, milliseconds to live, how many fields to set, name and value of each, then the names to remove. One
# command for each: Lua's unpack() has a limit that a long call could reach.
_WRITE = """
local owner = redis.call('HGET', KEYS[1], 'owner')
if not owner then return 0 end
if owner ~= ARGV[1] then return 1 end
local set = tonumber(ARGV[3])
for i = 1, set do redis.call('HSET', KEYS[1], ARGV[2 + 2 * i], ARGV[3 + 2 * i]) end
for i = 4 + 2 * set, #ARGV do redis.call('HDEL', KEYS[1], ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 2
"""
_FORGET = """
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""


class RedisStateStore:
    """A `StateStore` in Redis 6 or Valkey, standalone or cluster-proxied (each call is one key).

    `url` as redis-py takes it (`redis://`, `rediss://`, `unix://`). Keys are `prefix`, the tenant and the call.
    `ttl_s` is how many seconds after its last change a call is forgotten, `timeout_s` how long one operation may take.
    Needs a running event loop from its first use on, and stays with that loop. Raises `ValueError` on wrong values,
    `ImportError` at first use when redis-py is not installed.
    """

    def __init__(
        self, url: str, *, prefix: str = "mirror:state:", ttl_s: float = DEFAULT_TTL_S, timeout_s: float = 1.0
    ) -> None:
        if not isinstance(url, str) or not url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("url has to start with redis://, rediss:// or unix://")
        if not 0 < timeout_s <= 60:
            raise ValueError("timeout_s has to be more than 0 and at most 60 seconds")
        self._url = url
        self._prefix = prefix
        self._ttl_ms = str(round(check_ttl(ttl_s) * 1000))
        self._timeout_s = timeout_s
        self._client: Redis | None = None

    def __repr__(self) -> str:
        return f"RedisStateStore(prefix={self._prefix!r})"

    async def claim(self, key: CallKey, *, opened_at: float, late: bool = False) -> Claimed:
        """See `StateStore.claim`."""
        owner = secrets.token_hex(12)
        flat = await self._eval(_CLAIM, key, owner, self._ttl_ms, repr(float(opened_at)), str(int(late)))
        if flat is None:
            raise StateTaken
        texts = [item.decode() for item in flat]
        pairs = zip(texts[::2], texts[1::2], strict=True)
        return Claimed(owner, {name[len(_FIELD) :]: value for name, value in pairs if name.startswith(_FIELD)})

    async def write(self, key: CallKey, owner: str, changes: Mapping[str, str | None]) -> None:
        """See `StateStore.write`."""
        sets = [(name, value) for name, value in changes.items() if value is not None]
        arguments = [owner, self._ttl_ms, str(len(sets))]
        for name, value in sets:
            arguments += [_FIELD + name, value]
        arguments += [_FIELD + name for name, value in changes.items() if value is None]
        outcome = await self._eval(_WRITE, key, *arguments)
        if outcome == 0:
            raise StateLost
        if outcome == 1:
            raise StateTaken

    async def forget(self, key: CallKey, owner: str) -> bool:
        """See `StateStore.forget`."""
        return bool(await self._eval(_FORGET, key, owner))

    async def aclose(self) -> None:
        """See `StateStore.aclose`."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def key_of(self, key: CallKey) -> str:
        """The Redis key of a call. No two calls have the same, whatever their ids contain."""
        tenant = "-" if key.tenant_id is None else "=" + quote(key.tenant_id, safe="")
        return f"{self._prefix}{tenant}:{quote(key.call_id, safe='')}"

    async def _eval(self, script: str, key: CallKey, *arguments: str) -> Any:
        client = self._connected()
        # redis-py sends EVAL's text each time; these are a few hundred bytes, and no script cache can be flushed away.
        return await self._bounded(client.eval(script, 1, self.key_of(key), *arguments))

    def _connected(self) -> Redis:
        if self._client is None:
            try:
                from redis.asyncio import BlockingConnectionPool, Redis
                from redis.asyncio.retry import Retry
                from redis.backoff import NoBackoff
            except ImportError as error:
                raise ImportError("RedisStateStore needs the redis package: install mirror[redis]") from error
            # A connection that the server closed meanwhile fails once; a server that is down must not cost more.
            # Many calls at once wait for a connection; a pool that does not wait refuses the hundred-and-first.
            pool = BlockingConnectionPool.from_url(
                self._url,
                max_connections=CONNECTIONS,
                timeout=self._timeout_s,
                retry=Retry(NoBackoff(), 1),
                socket_connect_timeout=self._timeout_s,
                socket_timeout=self._timeout_s,
            )
            self._client = Redis.from_pool(pool)
        return self._client

    async def _bounded(self, answer: Awaitable[T]) -> T:
        from redis.exceptions import RedisError

        try:
            async with asyncio.timeout(self._timeout_s):
                return await answer
        except TimeoutError as error:
            raise StateUnavailable("the Redis state store did not answer in time") from error
        except (RedisError, OSError) as error:
            raise StateUnavailable(f"the Redis state store cannot be used ({type(error).__name__})") from error
