"""Requests per minute: counted in Valkey for all nodes at once, in this process while Valkey is down.

A sliding window counter, as `limits` has it: this minute's requests, and those of the minute before as far as it still
overlaps the last 60 seconds. One script asks and counts for tenant and key together, in one round trip, so that a
request that either refuses costs the other nothing. The windows are those of `limits`, whose other functions read them.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final
from uuid import UUID

import redis
from django.conf import settings
from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage, RedisStorage
from redis.backoff import NoBackoff
from redis.retry import Retry

from mirror_saas.outage import Outage
from tenants.limits import calls_key

logger = logging.getLogger(__name__)

MINUTE_S: Final = 60
# What an answer may wait for Valkey, and how long it is then left alone.
TIMEOUT_S: Final = 0.25
DOWN_FOR_S: Final = 5.0
_PREFIX: Final = "mirror:rate"
_NAMESPACE: Final = "minute"

# KEYS: for each window the previous and the current counter. ARGV: the window in ms, then each limit.
# Returns 1 or 0, then for each window what the counters and their times to live (ms) are afterwards. The current
# counter lives for two windows: while it has more than one of them left it is the current one.
_TAKE: Final = """
local window = tonumber(ARGV[1])
local state = {}
local allowed = 1
for n = 1, #KEYS / 2 do
    local previous, current = KEYS[2 * n - 1], KEYS[2 * n]
    local ttl = redis.call('pttl', current)
    if ttl > 0 and ttl < window then
        redis.call('rename', current, previous)
        redis.call('set', current, 0, 'PX', ttl + window)
    end
    local before = tonumber(redis.call('get', previous)) or 0
    local before_ttl = math.max(redis.call('pttl', previous), 0)
    local now = tonumber(redis.call('get', current)) or 0
    local weighted = math.floor(before * before_ttl / window) + now
    state[n] = {before, before_ttl, now, math.max(redis.call('pttl', current), 0)}
    if weighted + 1 > tonumber(ARGV[1 + n]) then
        allowed = 0
    end
end
if allowed == 1 then
    for n = 1, #KEYS / 2 do
        local current = KEYS[2 * n]
        if redis.call('exists', current) == 1 then
            redis.call('incr', current)
        else
            redis.call('set', current, 1, 'PX', window * 2)
            state[n][4] = window * 2
        end
        state[n][3] = state[n][3] + 1
    end
end
local answer = {allowed}
for n = 1, #KEYS / 2 do
    for part = 1, 4 do
        answer[#answer + 1] = state[n][part]
    end
end
return answer
"""


@dataclass(frozen=True, slots=True)
class Window:
    """One limit: how many a minute, and of whom."""

    limit: int
    who: str
    """Starts with the tenant's id, or says `address`."""

    @property
    def item(self) -> RateLimitItem:
        return RateLimitItemPerMinute(self.limit, namespace=_NAMESPACE)

    @property
    def key(self) -> str:
        # `limits` puts the limit itself into its keys; here it may change without starting a new window.
        return f"{_NAMESPACE}/{self.who}"


@dataclass(frozen=True, slots=True)
class Rate:
    """How a request fares, by the limit that leaves the least room."""

    allowed: bool
    limit: int
    remaining: int
    reset_s: int
    """Whole seconds until the current minute of the window ends; of a refused request, until one more fits."""


# The minute before: requests, seconds for which it still counts; this minute: requests, seconds until its counter goes.
State = tuple[int, float, int, float]


def _state(parts: Sequence[Any]) -> State:
    before, before_left_ms, now, now_left_ms = (max(0, int(part or 0)) for part in parts)
    return before, before_left_ms / 1000, now, now_left_ms / 1000


class _Storage(RedisStorage):
    """`limits`' windows in Valkey, and several of them at once."""

    # Not one that a URL chooses.
    STORAGE_SCHEME = []  # noqa: RUF012  (as the base class declares it)

    def initialize_storage(self, uri: str) -> None:
        super().initialize_storage(uri)
        self._take = self.get_connection().register_script(_TAKE.encode())

    def windows_take(self, windows: Sequence[Window]) -> tuple[bool, list[State]]:
        """Whether there is room for one more in each of `windows`, which is then taken; and their counters."""
        keys = []
        for window in windows:
            keys.append(self.prefixed_key(self._previous_window_key(window.key)))
            keys.append(self.prefixed_key(self._current_window_key(window.key)))
        allowed, *parts = self._take(keys, [MINUTE_S * 1000, *(window.limit for window in windows)])
        return bool(allowed), [_state(parts[n : n + 4]) for n in range(0, len(parts), 4)]

    def window_seen(self, window: Window, name: str) -> tuple[State, bool]:
        """The counters of a window, not counting anything, and whether there is a key `name`."""
        current = self.prefixed_key(self._current_window_key(window.key))
        previous = self.prefixed_key(self._previous_window_key(window.key))
        with self.storage.pipeline(transaction=True) as pipe:
            pipe.get(previous).pttl(previous).get(current).pttl(current).exists(name)
            *parts, named = pipe.execute()
        before, before_left_s, now, now_left_s = _state(parts)
        if 0 < now_left_s < MINUTE_S:
            # The minute is over, and nobody has counted since: what was this one is the one before.
            return (now, now_left_s, 0, now_left_s + MINUTE_S), bool(named)
        return (before, before_left_s, now, now_left_s), bool(named)


class RequestRates:
    """Counts requests. Threads share it."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`url` is Valkey's or Redis'. Nothing is opened before the first request."""
        self._client = redis.Redis.from_url(
            url,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            # A refused connection is tried again after DOWN_FOR_S, not while a request waits.
            retry=Retry(NoBackoff(), 0),
        )
        self._shared = _Storage(url, connection_pool=self._client.connection_pool, key_prefix=_PREFIX)
        self._own = MemoryStorage()
        self._own_lock = threading.Lock()
        self._outage = Outage(
            logger,
            down="Valkey does not answer (%s): limits count in this process only until it does",
            up="Valkey answers again: limits count over all nodes",
            alone_s=DOWN_FOR_S,
            clock=clock,
        )
        self.wrong_keys = WrongKeys(self)

    def take(self, windows: Sequence[Window]) -> Rate:
        """Count one request against all of `windows`, at least one, unless one of them is full."""
        found = self.ask(lambda _: self._shared.windows_take(windows))
        allowed, states = found if found is not None else self._take_own(windows)
        return min(
            (_rate(allowed, window.limit, *state) for window, state in zip(windows, states, strict=True)),
            key=lambda rate: (rate.remaining, -rate.reset_s),
        )

    def seen(self, window: Window, name: str) -> tuple[Rate, bool]:
        """How a request would fare that is not counted, and whether Valkey has `name`; in one round trip."""
        found = self.ask(lambda _: self._shared.window_seen(window, name))
        if found is None:
            with self._own_lock:
                found = self._own.get_sliding_window(window.key, MINUTE_S), False
        state, named = found
        return _rate(_weighted(*state[:3]) < window.limit, window.limit, *state), named

    def count(self, window: Window) -> int | None:
        """The requests of the last minute as the window counts them; None while Valkey cannot be asked."""
        state = self.ask(lambda _: self._shared.get_sliding_window(window.key, MINUTE_S))
        return None if state is None else _weighted(*state[:3])

    def ask(self, question: Callable[[redis.Redis], Any]) -> Any:
        """The answer of Valkey, or None while it is down: then it is left alone for five seconds."""
        if self._outage.lasts:
            return None
        try:
            answer = question(self._client)
        except (redis.RedisError, OSError) as error:
            self._outage.failed(type(error).__name__)
            return None
        self._outage.answered()
        return answer

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _take_own(self, windows: Sequence[Window]) -> tuple[bool, list[State]]:
        with self._own_lock:
            states = [self._own.get_sliding_window(window.key, MINUTE_S) for window in windows]
            allowed = all(_weighted(*state[:3]) < window.limit for state, window in zip(states, windows, strict=True))
            if allowed:
                for window in windows:
                    self._own.acquire_sliding_window_entry(window.key, window.limit, MINUTE_S)
                states = [self._own.get_sliding_window(window.key, MINUTE_S) for window in windows]
        return allowed, states


def _weighted(before: int, before_left_s: float, now: int) -> int:
    return math.floor(before * before_left_s / MINUTE_S) + now


def _rate(allowed: bool, limit: int, before: int, before_left_s: float, now: int, now_left_s: float) -> Rate:
    """`before_left_s` is how long the last minute's counter still matters, `now_left_s` how long this one's will."""
    remaining = max(0, limit - _weighted(before, before_left_s, now))
    until_next = max(0.0, now_left_s - MINUTE_S)
    if allowed or remaining > 0 or limit == 0:
        return Rate(allowed, limit, remaining, max(1, math.ceil(until_next if now_left_s else MINUTE_S)))
    if now < limit:
        # As the minute before slides out, room for one more comes when its share has fallen to limit - now - 1.
        wait = before_left_s - MINUTE_S * (limit - now) / before
    else:
        # This minute is full by itself; it starts to slide out when the next one begins.
        wait = until_next + MINUTE_S * max(0.0, 1 - limit / now)
    return Rate(allowed, limit, remaining, max(0, math.floor(wait)) + 1)


_lock = threading.Lock()
_rates: RequestRates | None = None
_rates_url = ""


def rates() -> RequestRates:
    """This process's, made when the first request comes."""
    global _rates, _rates_url
    with _lock:
        if _rates is None or _rates_url != settings.REDIS_URL:
            _rates, _rates_url = RequestRates(settings.REDIS_URL), settings.REDIS_URL
        return _rates


def tenant_window(tenant_id: UUID, limit: int) -> Window:
    """The window of all requests of a tenant."""
    return Window(limit, str(tenant_id))


def requests_in_minute(tenant_id: UUID) -> int | None:
    """How many requests the tenant made in the last minute; None while Valkey cannot be asked."""
    return rates().count(tenant_window(tenant_id, 0))


def calls_running(tenant_id: UUID, now: float | None = None) -> int | None:
    """How many calls of the tenant run, by their leases; None while Valkey cannot be asked. `now` is Unix time."""
    since = time.time() if now is None else now
    found = rates().ask(lambda client: client.zcount(calls_key(tenant_id), f"({since}", "+inf"))
    return None if found is None else int(found)


class WrongKeys:
    """Holds up whoever tries keys: after so many wrong ones a minute, an address may use known keys only.

    A key that was right before passes whatever else comes from its address, so one program with a wrong key, or
    somebody who guesses, locks nobody out behind the same proxy. Of keys only the first bytes of a hash are kept.
    """

    PER_MINUTE: ClassVar[int] = 30
    KNOWN_FOR_S: ClassVar[int] = 30 * 24 * 3600
    _KNOWN_MOST: ClassVar[int] = 10_000

    def __init__(self, counted: RequestRates) -> None:
        self._rates = counted
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, None] = OrderedDict()

    def blocked(self, address: str, key: str) -> Rate | None:
        """The rate of an address that may not try a key that nobody knows; None when it may, or the key is known."""
        digest = _digest(key)
        with self._lock:
            if digest in self._known:
                return None
        rate, known = self._rates.seen(self._window(address), _known_key(digest))
        return None if known or rate.remaining > 0 else rate

    def wrong(self, address: str, key: str) -> Rate:
        """Count a wrong key."""
        digest = _digest(key)
        with self._lock:
            self._known.pop(digest, None)
        # It may have been right until it was revoked.
        self._rates.ask(lambda client: client.delete(_known_key(digest)))
        rate = self._rates.take([self._window(address)])
        if rate.allowed and not rate.remaining:
            logger.warning("%s sent %d wrong API keys within a minute and is held up", address, self.PER_MINUTE)
        return rate

    def right(self, key: str) -> None:
        """Remember a key that is right, here at once and for every node when it is new to this process."""
        digest = _digest(key)
        with self._lock:
            if digest in self._known:
                return
            self._known[digest] = None
            if len(self._known) > self._KNOWN_MOST:
                self._known.popitem(last=False)
        self._rates.ask(lambda client: client.set(_known_key(digest), 1, ex=self.KNOWN_FOR_S))

    def _window(self, address: str) -> Window:
        return Window(self.PER_MINUTE, f"wrong keys/{_network(address)}")


def _digest(key: str) -> bytes:
    return hashlib.sha256(b"mirror api key " + key.encode("utf-8", "replace")).digest()[:16]


def _known_key(digest: bytes) -> str:
    return f"mirror:key:{digest.hex()}"


def _network(address: str) -> str:
    """Who has an IPv6 address has the 2**64 beside it as well."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network(f"{parsed}/64", strict=False).network_address)
    return address


def wrong_keys() -> WrongKeys:
    """This process's."""
    return rates().wrong_keys
