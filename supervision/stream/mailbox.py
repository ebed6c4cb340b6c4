"""How a call is reached from outside its socket, on whatever node it runs: a Valkey channel per call.

A node listens for as long as it has the call, so the subscription is the record of who owns it: a message that nobody
receives has no owner. Nothing of this may keep a call waiting or cost it.

    mailbox.open(tenant_id, call_id, deliver)     # in the process that has the call
    mailbox.close(tenant_id, call_id)
    call_post(...)                                # anywhere
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from uuid import UUID, uuid4

from redis import Redis, RedisError
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.client import PubSub

from tenants.cache_keys import tenant_key

logger = logging.getLogger(__name__)

# What a call does with a message, and answers: both JSON objects.
Deliver = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]

REPLY_KEPT_S: Final = 60
CONNECT_S: Final = 2.0
# For a node to take a message and write it to its journal; what it waits for beyond is the sender's to say.
ANSWER_WITHIN_S: Final = 5.0
_RETRY_S: Final = 1.0


class NobodyThere(Exception):
    """No node has this call."""


class CallSilent(Exception):
    """A node has the call, or Valkey would know, and no answer came."""


def call_channel(tenant_id: UUID, call_id: UUID) -> str:
    """The channel on which a call hears from outside."""
    return f"{tenant_key('calls-outside', tenant_id)}:{call_id}"


def call_post(
    url: str | None, *, tenant_id: UUID, call_id: UUID, message: Mapping[str, Any], wait_s: float = 0.0
) -> dict[str, Any]:
    """Send `message` to the node that has the call, and return what the call answers within 5 s and `wait_s`.

    Blocks. Raises NobodyThere and CallSilent.
    """
    if url is None:
        raise CallSilent
    reply = f"{tenant_key('calls-replies', tenant_id)}:{uuid4()}"
    within_s = ANSWER_WITHIN_S + wait_s
    try:
        with Redis.from_url(url, socket_connect_timeout=CONNECT_S, socket_timeout=within_s + CONNECT_S) as redis:
            body = json.dumps({"reply": reply, "message": dict(message)})
            if not redis.publish(call_channel(tenant_id, call_id), body):
                raise NobodyThere
            answered = redis.blpop([reply], timeout=within_s)
    except (RedisError, OSError) as error:
        logger.warning("a call cannot be reached through Valkey: %s", type(error).__name__)
        raise CallSilent from error
    if answered is None:
        raise CallSilent
    answer: dict[str, Any] = json.loads(answered[1])
    return answer


def call_tell(url: str | None, *, tenant_id: UUID, call_id: UUID, message: Mapping[str, Any]) -> None:
    """Send `message` to the node that has the call and wait for no answer: for what the call finds out by itself, only
    later. Blocks for as long as Valkey takes, 2 s at most."""
    if url is None:
        return
    body = json.dumps({"reply": f"{tenant_key('calls-replies', tenant_id)}:{uuid4()}", "message": dict(message)})
    try:
        with Redis.from_url(url, socket_connect_timeout=CONNECT_S, socket_timeout=CONNECT_S) as redis:
            redis.publish(call_channel(tenant_id, call_id), body)
    except (RedisError, OSError) as error:
        logger.warning("a call cannot be told through Valkey: %s", type(error).__name__)


class Mailbox:
    """Hears for the calls of this process. Belongs to one event loop; nothing is opened before the first call."""

    def __init__(self, url: str | None) -> None:
        """`url` is Valkey's or Redis'; None: calls cannot be reached."""
        self._redis = AsyncRedis.from_url(url, socket_connect_timeout=CONNECT_S) if url is not None else None
        self._deliver: dict[str, Deliver] = {}
        self._pubsub: PubSub | None = None
        self._listening: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        # Redis clients may answer a cancellation with an error of their own: being cancelled is not enough to end.
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, tenant_id: UUID, call_id: UUID, deliver: Deliver) -> None:
        """Hear for a call from now on, as soon as Valkey knows."""
        if self._redis is None:
            return
        self._deliver[call_channel(tenant_id, call_id)] = deliver
        if self._listening is None:
            self._listening = asyncio.get_running_loop().create_task(self._listen(self._redis), name="mirror-mailbox")
        self._changed.set()

    def close(self, tenant_id: UUID, call_id: UUID) -> None:
        """The call has ended."""
        if self._deliver.pop(call_channel(tenant_id, call_id), None) is not None:
            self._changed.set()

    async def ask(
        self, tenant_id: UUID, call_id: UUID, message: Mapping[str, Any], *, within_s: float
    ) -> dict[str, Any]:
        """Send `message` to the node that has the call, as `call_post` does, and return its answer.

        Raises NobodyThere, and CallSilent after `within_s` seconds.
        """
        if self._redis is None:
            raise CallSilent
        reply = f"{tenant_key('calls-replies', tenant_id)}:{uuid4()}"
        body = json.dumps({"reply": reply, "message": dict(message)})
        try:
            async with asyncio.timeout(within_s):
                if not await self._redis.publish(call_channel(tenant_id, call_id), body):
                    raise NobodyThere
                answered = await self._redis.blpop([reply], timeout=within_s)
        except (RedisError, OSError, TimeoutError) as error:
            raise CallSilent from error
        if answered is None:
            raise CallSilent
        answer: dict[str, Any] = json.loads(answered[1])
        return answer

    async def aclose(self) -> None:
        """Stop hearing; what is being answered is given up."""
        self._closing = True
        tasks = [*self._tasks, *([self._listening] if self._listening is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listening = None
        if self._redis is not None:
            await self._redis.aclose()

    async def _listen(self, redis: AsyncRedis) -> None:
        failing = False
        while not self._closing:
            try:
                async with redis.pubsub() as pubsub:
                    # One channel that nobody knows, so that there is always something to read from.
                    await pubsub.subscribe(f"mirror:mailbox.{uuid4().hex}")
                    over = asyncio.Event()
                    subscribing = asyncio.create_task(self._subscribe(pubsub, over))
                    try:
                        failing = False
                        await self._read(redis, pubsub, subscribing)
                    finally:
                        over.set()
                        self._changed.set()
                        subscribing.cancel()
                        await asyncio.gather(subscribing, return_exceptions=True)
            except (RedisError, OSError) as error:
                if not failing:
                    logger.warning("calls cannot be reached from outside: %s", type(error).__name__)
                failing = True
                await asyncio.sleep(_RETRY_S)

    async def _subscribe(self, pubsub: PubSub, over: asyncio.Event) -> None:
        """Keep what Valkey sends in step with the calls, until it is `over`."""
        heard: set[str] = set()
        while not over.is_set():
            self._changed.clear()
            wanted = set(self._deliver)
            if new := wanted - heard:
                await pubsub.subscribe(*new)
            if old := heard - wanted:
                await pubsub.unsubscribe(*old)
            heard = wanted
            await self._changed.wait()

    async def _read(self, redis: AsyncRedis, pubsub: PubSub, subscribing: asyncio.Task[None]) -> None:
        while not subscribing.done() and not self._closing:
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=_RETRY_S)
            if message is not None:
                task = asyncio.create_task(self._answer(redis, message["channel"].decode(), message["data"]))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        if subscribing.done():
            await subscribing

    async def _answer(self, redis: AsyncRedis, channel: str, data: bytes) -> None:
        deliver = self._deliver.get(channel, _over)
        try:
            posted = json.loads(data)
            answer = await deliver(posted["message"])
            async with redis.pipeline(transaction=True) as pipe:
                pipe.rpush(posted["reply"], json.dumps(answer))
                pipe.expire(posted["reply"], REPLY_KEPT_S)
                await pipe.execute()
        except (RedisError, OSError) as error:
            logger.warning("an answer of a call was lost: %s", type(error).__name__)
        except Exception:
            # A defect of ours must not cost the other calls of this process their mail.
            logger.exception("a message to a call could not be handled")


async def _over(message: dict[str, Any]) -> dict[str, Any]:
    """What a call answers that ended before Valkey heard of it."""
    return {"taken": False, "code": "ended", "message": "the call has ended"}
