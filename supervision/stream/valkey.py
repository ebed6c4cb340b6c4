"""Valkey, asked by what must not wait for it: a quarter of a second to answer, and no question while it is down."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from redis import RedisError
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from mirror_saas.outage import Outage

logger = logging.getLogger(__name__)

T = TypeVar("T")

ANSWER_WITHIN_S: Final = 0.25
DOWN_FOR_S: Final = 5.0
CONNECTIONS: Final = 16


class QuickValkey:
    """A client whose questions have an answer soon or none. Belongs to one event loop."""

    def __init__(
        self,
        url: str | None,
        *,
        meanwhile: str,
        again: str,
        clock: Callable[[], float] = time.monotonic,
        answer_within_s: float = ANSWER_WITHIN_S,
    ) -> None:
        """`url` is Valkey's or Redis'; None: there is nobody to ask. `meanwhile` and `again` say, for the log, what
        happens while it is down and once it is back. `clock` gives seconds for waiting."""
        self.redis: Redis | None = None
        if url is not None:
            # Calls that end or begin together wait for a connection: a crowd is no outage, nor are thousands of sockets
            # an answer to it.
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS,
                timeout=answer_within_s,
                socket_timeout=answer_within_s,
                socket_connect_timeout=answer_within_s,
                retry=Retry(NoBackoff(), 0),
            )
            self.redis = Redis.from_pool(pool)
        self._answer_within_s = answer_within_s
        self._outage = Outage(
            logger,
            down=f"Valkey does not answer (%s): {meanwhile}",
            up=f"Valkey answers again: {again}",
            alone_s=DOWN_FOR_S,
            clock=clock,
        )

    async def ask(self, question: Callable[[], Awaitable[T]]) -> T | None:
        """What Valkey answers; None when it does not in time, and for five seconds after that."""
        if self.redis is None or self._outage.lasts:
            return None
        try:
            async with asyncio.timeout(self._answer_within_s):
                answer = await question()
        except (RedisError, OSError, TimeoutError) as error:
            self._outage.failed(type(error).__name__)
            return None
        self._outage.answered()
        return answer

    async def aclose(self) -> None:
        """Close the connections."""
        if self.redis is not None:
            await self.redis.aclose()
