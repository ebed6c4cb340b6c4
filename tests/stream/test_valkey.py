"""Valkey, asked by what must not wait for it."""

from __future__ import annotations

import asyncio

from supervision.stream.valkey import CONNECTIONS, QuickValkey


async def test_a_crowd_that_asks_at_once_is_answered_over_few_connections(redis_url: str) -> None:
    valkey = QuickValkey(redis_url, meanwhile="", again="", answer_within_s=10.0)
    redis = valkey.redis
    assert redis is not None
    try:
        answers = await asyncio.gather(*(valkey.ask(lambda n=n: redis.echo(str(n))) for n in range(300)))
        assert answers == [str(n).encode() for n in range(300)]
        mine = [client for client in await redis.client_list() if client["cmd"].startswith(("echo", "client"))]
        assert len(mine) <= CONNECTIONS
    finally:
        await valkey.aclose()
