"""Requests per minute at the API's door: counted once somebody is known, held up before that for wrong keys.

Answers carry `RateLimit-Limit`, `RateLimit-Remaining` and `RateLimit-Reset` (seconds), the form of
draft-ietf-httpapi-ratelimit-headers up to its sixth version, of the limit that leaves the least room.
"""

from __future__ import annotations

from uuid import UUID

from django.http import HttpRequest

from mirror_saas.clients import client_ip
from mirror_saas.limits import MOST
from mirror_saas.problems import answer_headers
from tenants.limits import LIMITS
from tenants.limits_redis import Rate, Window, rates, tenant_window, wrong_keys
from tenants.limits_refused import Refused, refused
from tenants.services.api_keys import ApiKeyPrincipal, api_key_authenticate


class RateLimited(Exception):
    """Too many requests within a minute."""

    def __init__(self, rate: Rate, message: str) -> None:
        self.rate = rate
        super().__init__(message)


def key_authenticate(request: HttpRequest, key: str) -> ApiKeyPrincipal | None:
    """Who `key` speaks for, or None. Raises RateLimited for an address that tries too many wrong ones."""
    guard = wrong_keys()
    address = client_ip(request)
    blocked = guard.blocked(address, key)
    if blocked is not None:
        _show(request, blocked)
        raise RateLimited(blocked, "Too many wrong API keys came from this address; wait before you try another.")
    principal = api_key_authenticate(key=key, ip=address)
    if principal is None:
        _show(request, guard.wrong(address, key))
        return None
    guard.right(key)
    return principal


def request_count(
    request: HttpRequest, *, tenant_id: UUID, asker: str, asker_id: UUID, asker_limit: int | None = None
) -> None:
    """Count a request against the limits of its tenant and of who sent it, a `key` or a `person`.

    `asker_limit` is a key's own limit, which holds where it is lower. Raises RateLimited, and then counts nothing.
    """
    limits = LIMITS.get(tenant_id)
    own = MOST if limits.key_requests_per_minute is None else limits.key_requests_per_minute
    whole = MOST if limits.requests_per_minute is None else limits.requests_per_minute
    rate = rates().take(
        [
            tenant_window(tenant_id, whole),
            Window(own if asker_limit is None else min(own, asker_limit), f"{tenant_id}/{asker}/{asker_id}"),
        ]
    )
    _show(request, rate)
    if not rate.allowed:
        refused(tenant_id, Refused.REQUESTS)
        whose = "this tenant" if rate.limit == whole else f"this {asker}"
        raise RateLimited(
            rate, f"The API takes {rate.limit} requests a minute from {whose}; the next one in {rate.reset_s} s."
        )


def _show(request: HttpRequest, rate: Rate) -> None:
    if rate.limit < MOST:
        answer_headers(request).update(
            {
                "RateLimit-Limit": str(rate.limit),
                "RateLimit-Remaining": str(rate.remaining),
                "RateLimit-Reset": str(rate.reset_s),
            }
        )
