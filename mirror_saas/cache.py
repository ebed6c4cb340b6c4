"""Django's cache, shared by all nodes over Valkey or Redis; while that is down, each process goes on by itself.

What stands in it may be lost at any time: counters of sign-in attempts, nothing that is true only here. With the server
down a limit holds per process, which is less than it should be, and people can sign in.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import redis
from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache
from django.core.cache.backends.locmem import LocMemCache
from django.core.cache.backends.redis import RedisCache

from mirror_saas.outage import Outage

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A server that does not answer is left alone for so long, so that not every request waits for it.
RETRY_AFTER_S: Final = 5.0
TIMEOUT_S: Final = 1.0
# The server is down, still starting, failing over, or full.
_UNAVAILABLE: Final = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.exceptions.BusyLoadingError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ClusterDownError,
)


class JsonSerializer:
    """Values as JSON: whoever can write to the server must not be able to run code here, as pickle would."""

    def dumps(self, value: Any) -> bytes | int:
        # Whole numbers stay numbers, for INCR.
        if type(value) is int:
            return value
        return json.dumps(value, separators=(",", ":")).encode()

    def loads(self, data: bytes) -> Any:
        return json.loads(data)


class SharedCache(BaseCache):
    """RedisCache with a way out: calls go to process-local memory while the server is away.

    `OPTIONS` are those of RedisCache. An outage is logged once, and so is its end.
    """

    def __init__(self, server: str, params: dict[str, Any]) -> None:
        super().__init__(params)
        options = {
            "serializer": JsonSerializer(),
            "socket_timeout": TIMEOUT_S,
            "socket_connect_timeout": TIMEOUT_S,
            **params.get("OPTIONS", {}),
        }
        self.clock: Callable[[], float] = options.pop("clock", time.monotonic)
        self.shared = RedisCache(server, {**params, "OPTIONS": options})
        self.local = LocMemCache(f"mirror {server}", {**params, "OPTIONS": {}})
        self._outage = _outage(server, self.clock)

    def get(self, key: str, default: Any = None, version: int | None = None) -> Any:
        return self._ask(lambda cache: cache.get(key, default, version))

    def add(self, key: str, value: Any, timeout: float | None = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        return self._ask(lambda cache: cache.add(key, value, timeout, version))

    def set(self, key: str, value: Any, timeout: float | None = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        self._ask(lambda cache: cache.set(key, value, timeout, version))

    def touch(self, key: str, timeout: float | None = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        return self._ask(lambda cache: cache.touch(key, timeout, version))

    def delete(self, key: str, version: int | None = None) -> bool:
        return self._ask(lambda cache: cache.delete(key, version))

    def incr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        return self._ask(lambda cache: cache.incr(key, delta, version))

    def has_key(self, key: str, version: int | None = None) -> bool:
        return self._ask(lambda cache: cache.has_key(key, version))

    def clear(self) -> None:
        """Not offered: RedisCache would empty the whole server, and queues stand there too."""
        raise NotImplementedError("This cache shares its server with queues; delete keys instead.")

    def _ask(self, question: Callable[[BaseCache], T]) -> T:
        if self._outage.lasts:
            return question(self.local)
        try:
            answer = question(self.shared)
        except _UNAVAILABLE as error:
            # The error's text may carry the server's address, never its password; its kind says enough.
            self._outage.failed(type(error).__name__)
            return question(self.local)
        self._outage.answered()
        return answer


_outages: dict[str, Outage] = {}
_lock = threading.Lock()


def _outage(server: str, clock: Callable[[], float]) -> Outage:
    """One for all threads of this process: Django makes a cache object for each."""
    with _lock:
        return _outages.setdefault(
            server,
            Outage(
                logger,
                down="the shared cache does not answer (%s): limits on sign-in hold per process until it is back",
                up="the shared cache answers again",
                alone_s=RETRY_AFTER_S,
                clock=clock,
            ),
        )
