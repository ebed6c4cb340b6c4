"""How many mails a tenant may have sent: counted in Valkey for all nodes, in this process while Valkey is down."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from functools import lru_cache
from typing import Final
from uuid import UUID

import redis
from django.conf import settings
from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerHour
from limits.storage import MemoryStorage, RedisStorage, Storage
from limits.strategies import FixedWindowRateLimiter

logger = logging.getLogger(__name__)

TENANT: Final = RateLimitItemPerHour(60, namespace="mail-tenant")
ADDRESS_OF_TENANT: Final = RateLimitItemPerHour(5, namespace="mail-address")
# Tenants together: nobody's mailbox is flooded by somebody who makes many tenants.
ADDRESS: Final = RateLimitItemPerDay(20, namespace="mail-address-of-all")
TIMEOUT_S: Final = 0.5


class TooManyMails(RuntimeError):
    """More mails than a tenant may have sent, or than an address should get. `retry_after_s` is in seconds."""

    def __init__(self, what: str, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        minutes = max(1, math.ceil(retry_after_s / 60))
        super().__init__(f"{what} Try again in {minutes} minute{'s' if minutes != 1 else ''}.")


def mail_take(*, tenant_id: UUID, email: str) -> None:
    """Count one mail of `tenant_id` to `email`. Raises TooManyMails, and counts nothing then."""
    # An address is a person's: what stands in Valkey does not tell it.
    address = hashlib.sha256(email.strip().lower().encode()).hexdigest()[:32]
    wanted: list[tuple[RateLimitItem, tuple[str, ...], str]] = [
        (TENANT, (tenant_id.hex,), "This tenant has sent many invitations within an hour."),
        (ADDRESS_OF_TENANT, (tenant_id.hex, address), "This address was sent several mails within an hour."),
        (ADDRESS, (address,), "This address was sent many mails today."),
    ]
    try:
        _take(FixedWindowRateLimiter(_shared(settings.REDIS_URL)), wanted)
    except (redis.RedisError, OSError) as error:
        # The broker is mostly the same server: then no mail goes out, and this is not why.
        logger.warning("Valkey does not answer (%s): mails are counted in this process only", type(error).__name__)
        _take(FixedWindowRateLimiter(_own), wanted)


def _take(limiter: FixedWindowRateLimiter, wanted: list[tuple[RateLimitItem, tuple[str, ...], str]]) -> None:
    for item, whose, what in wanted:
        if not limiter.test(item, *whose):
            left = limiter.get_window_stats(item, *whose).reset_time - time.time()
            raise TooManyMails(what, max(1, math.ceil(left)))
    for item, whose, _ in wanted:
        limiter.hit(item, *whose)


_own: Final[Storage] = MemoryStorage()


@lru_cache(maxsize=1)
def _shared(url: str) -> Storage:
    return RedisStorage(url, key_prefix="mirror:mail", socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
