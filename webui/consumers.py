"""The console's one WebSocket, `/ws/console`: topics, each authorised by itself, each at its viewer's pace.

browser → server: `subscribe {topic, after, query}`, `unsubscribe {topic}`, `ack {topic, n}`
server → browser: `update {topic, n, seq, parts, announce}`, `refused {topic}`, `beat`

Topics are `live`, `calls`, `call:<uuid>` and `approvals`. Announcements in the channel layer are hints only: what is
sent is read from the database, as the viewer's tenant, at the time of sending. `n` counts a subscription's updates from
1 without gaps. Between two updates of a topic the browser must acknowledge the first; hints that come meanwhile become
one later update, so a slow browser costs a set of ids and no queue.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Final, ParamSpec, TypeVar
from urllib.parse import parse_qs
from uuid import UUID

from asgiref.sync import sync_to_async
from channels.consumer import AsyncConsumer
from channels.exceptions import StopConsumer
from django.db import close_old_connections

from supervision.recorder.announce import calls_group
from tenants.channel_groups import TenantGroup, group_join, group_leave
from tenants.middleware import session_tenant_id
from webui.live import (
    ApprovalsTopic,
    CallsTopic,
    CallTopic,
    Topic,
    TopicRefused,
    Update,
    Viewer,
    ViewerGone,
    viewer_check,
)
from webui.live_topic import LiveTopic
from webui.middleware import TIME_ZONE_COOKIE, zone_named
from webui.watch import Standing, standing_still, viewer_watch

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

# Shared by all console sockets of the process: however many browsers watch, the database sees this many at once.
DATABASE_THREADS = 4
_threads = ThreadPoolExecutor(max_workers=DATABASE_THREADS, thread_name_prefix="console")
# Who may look on is asked beside them, however busy they are.
_watching = ThreadPoolExecutor(max_workers=1, thread_name_prefix="console-watch")

MAX_TOPICS = 16
MAX_MESSAGE_CHARS = 4096
# A burst of events becomes one update per interval.
UPDATE_INTERVAL_S = 0.2
# Hints can be lost (the layer drops them when full), so topics are read again from time to time without one.
RECHECK_S = 15.0
BEAT_S = 10.0
# A browser that has not acknowledged an update by then is gone or hangs; it reconnects when it is back.
ACK_WITHIN_S = 30.0

SIGNED_OUT = 4401
NO_MEMBER = 4403
BAD_MESSAGE = 4400
TOO_SLOW = 4408
SWITCHED = 4409
FAILED = 1011


async def in_database_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `function` in the bounded pool. Each call opens its own transactions; no setting outlives it."""
    return await _in_thread_of(_threads, lambda: function(*args, **kwargs))


async def _still(standings: Sequence[Standing]) -> set[int]:
    return await _in_thread_of(_watching, lambda: standing_still(standings))


async def _in_thread_of(threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    def run() -> T:
        close_old_connections()
        try:
            return work()
        finally:
            close_old_connections()

    result: T = await sync_to_async(run, thread_sensitive=False, executor=threads)()
    return result


def _query(request: dict[str, Any]) -> str:
    query = request.get("query", "")
    return query if isinstance(query, str) else ""


def _calls_topic(tenant_id: UUID, about: str, request: dict[str, Any]) -> tuple[Topic, TenantGroup] | None:
    return None if about else (CallsTopic(_query(request)), calls_group(tenant_id))


def _live_topic(tenant_id: UUID, about: str, request: dict[str, Any]) -> tuple[Topic, TenantGroup] | None:
    return None if about else (LiveTopic(_query(request)), calls_group(tenant_id))


def _approvals_topic(tenant_id: UUID, about: str, request: dict[str, Any]) -> tuple[Topic, TenantGroup] | None:
    return None if about else (ApprovalsTopic(), calls_group(tenant_id))


def _call_topic(tenant_id: UUID, about: str, request: dict[str, Any]) -> tuple[Topic, TenantGroup] | None:
    call_id, after = _uuid(about), request.get("after", 0)
    if call_id is None:
        return None
    return CallTopic(call_id, after if type(after) is int and after >= 0 else 0), calls_group(tenant_id)


# A topic's name is one of these, or one of these and `:` and an id; None for one that makes no topic. tests/isolation
# asks for each of them as everybody.
TOPICS: Final[dict[str, Callable[[UUID, str, dict[str, Any]], tuple[Topic, TenantGroup] | None]]] = {
    "approvals": _approvals_topic,
    "calls": _calls_topic,
    "call": _call_topic,
    "live": _live_topic,
}


class _Subscription:
    """One topic of one socket: a task that reads when something changed and sends when the browser is ready."""

    def __init__(self, topic: Topic, group: TenantGroup) -> None:
        self.topic = topic
        self.group = group
        self.changed = asyncio.Event()
        self.changed.set()
        self.sent = 0
        self.acknowledged = asyncio.Event()
        self.acknowledged.set()
        self.task: asyncio.Task[None] | None = None


class ConsoleConsumer(AsyncConsumer):  # type: ignore[misc]
    """See the module. Anything that fails closes the socket with a code; the browser comes back by itself."""

    handler_types: ClassVar[tuple[str, ...]] = ("subscribe", "unsubscribe", "ack")

    def __init__(self) -> None:
        super().__init__()
        self.viewer: Viewer | None = None
        self.session_key: str | None = None
        self.subscriptions: dict[str, _Subscription] = {}
        self.beat: asyncio.Task[None] | None = None
        self.closed = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Also when the channel layer fails under us: nothing of a socket outlives it.
            await self._end()

    # -- from the server ------------------------------------------------------------------------------------------

    async def websocket_connect(self, message: dict[str, Any]) -> None:
        # Accepted before it is known who this is: a browser cannot read why a handshake was refused, but a close code.
        await self.send({"type": "websocket.accept"})
        await self._guarded(self._enter)

    async def _enter(self) -> None:
        session = self.scope["session"]
        self.session_key = session.session_key
        self.viewer = await in_database_thread(
            viewer_check,
            session_key=self.session_key,
            tenant_id=await in_database_thread(session_tenant_id, session),
            strict=False,
            zone=zone_named(self.scope["cookies"].get(TIME_ZONE_COOKIE, "")),
        )
        page = parse_qs(self.scope["query_string"].decode("latin-1")).get("tenant", [""])[0]
        if page and page != str(self.viewer.tenant_id):
            # A page of one tenant is not filled up with another's calls.
            raise ViewerGone(switched=True)
        if self.closed:
            return
        self.beat = asyncio.create_task(self._guarded(self._beat))
        viewer_watch(_still).add(self)

    async def websocket_receive(self, message: dict[str, Any]) -> None:
        if self.closed:
            return
        text = message.get("text")
        try:
            if text is None or len(text) > MAX_MESSAGE_CHARS:
                raise ValueError
            request = json.loads(text)
            kind, topic = request["type"], request["topic"]
            if kind not in self.handler_types or not isinstance(topic, str):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            await self.close(BAD_MESSAGE)
            return
        if kind == "subscribe":
            await self._subscribe(topic, request)
        elif kind == "unsubscribe":
            await self._unsubscribe(topic)
        elif (subscription := self.subscriptions.get(topic)) is not None and request.get("n") == subscription.sent:
            subscription.acknowledged.set()

    async def websocket_disconnect(self, message: dict[str, Any]) -> None:
        await self._end()
        raise StopConsumer

    async def calls_changed(self, message: dict[str, Any]) -> None:
        """A hint from the recorder: `{"calls": {call_id: seq}}`. It says where to look, and is not believed
        otherwise."""
        try:
            calls = [UUID(call_id) for call_id in message["calls"]]
        except (KeyError, ValueError, TypeError, AttributeError):
            logger.warning("a calls.changed announcement without calls was ignored")
            return
        for subscription in self.subscriptions.values():
            # Each topic is told of all of them: it remembers which.
            if sum(subscription.topic.concerns(call_id) for call_id in calls):
                subscription.changed.set()

    # -- topics -----------------------------------------------------------------------------------------------------

    async def _subscribe(self, name: str, request: dict[str, Any]) -> None:
        if self.viewer is None:
            return
        await self._unsubscribe(name)
        if len(self.subscriptions) >= MAX_TOPICS:
            await self._send({"type": "refused", "topic": name})
            return
        kind, colon, about = name.partition(":")
        known = kind in TOPICS and bool(about) == bool(colon)
        made = TOPICS[kind](self.viewer.tenant_id, about, request) if known else None
        if made is None:
            await self._send({"type": "refused", "topic": name})
            return
        topic, group = made
        subscription = _Subscription(topic, group)
        self.subscriptions[name] = subscription
        # Joined before the first read: what changes in between is a hint that waits, not a gap.
        await group_join(self.channel_layer, group, self.channel_name)
        subscription.task = asyncio.create_task(self._guarded(lambda: self._feed(name, subscription)))

    async def _unsubscribe(self, name: str) -> None:
        subscription = self.subscriptions.pop(name, None)
        if subscription is None:
            return
        await _cancel(subscription.task)
        if all(other.group != subscription.group for other in self.subscriptions.values()):
            await group_leave(self.channel_layer, subscription.group, self.channel_name)

    async def _feed(self, name: str, subscription: _Subscription) -> None:
        while True:
            try:
                async with asyncio.timeout(RECHECK_S):
                    await subscription.changed.wait()
            except TimeoutError:
                subscription.topic.recheck()
            try:
                async with asyncio.timeout(ACK_WITHIN_S):
                    await subscription.acknowledged.wait()
            except TimeoutError:
                await self.close(TOO_SLOW)
                return
            subscription.changed.clear()
            try:
                update = await in_database_thread(self._read, subscription.topic)
            except TopicRefused:
                # Not there, or not theirs: one answer, and nothing more of this topic.
                await self._send({"type": "refused", "topic": name})
                await self._unsubscribe(name)
                return
            if update is not None:
                subscription.sent += 1
                subscription.acknowledged.clear()
                await self._send({"type": "update", "topic": name, "n": subscription.sent, **update.message()})
                if update.more:
                    subscription.changed.set()
            await asyncio.sleep(UPDATE_INTERVAL_S)

    def _read(self, topic: Topic) -> Update | None:
        return topic.read(self._viewer_now())

    def _viewer_now(self) -> Viewer:
        """Who is looking, asked anew: a session that ended or a membership that was taken away ends the socket."""
        assert self.viewer is not None
        return viewer_check(
            session_key=self.session_key, tenant_id=self.viewer.tenant_id, strict=True, zone=self.viewer.zone
        )

    async def _beat(self) -> None:
        while True:
            await self._send({"type": "beat"})
            await asyncio.sleep(BEAT_S)

    # -- who looks on -------------------------------------------------------------------------------------------------

    @property
    def standing(self) -> Standing:
        """What the viewer's right rested on at the last full check (webui.watch)."""
        assert self.viewer is not None
        return self.viewer.standing

    async def check(self) -> None:
        """Something of it changed: check in full, and close the socket or let its topics see the viewer anew."""
        await self._guarded(self._check)

    async def _check(self) -> None:
        if self.closed:
            return
        self.viewer = await in_database_thread(self._viewer_now)
        for subscription in self.subscriptions.values():
            subscription.changed.set()

    # -- the socket -------------------------------------------------------------------------------------------------

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except ViewerGone as gone:
            await self.close(SWITCHED if gone.switched else SIGNED_OUT if gone.signed_out else NO_MEMBER)
        except Exception:
            logger.exception("a console socket failed")
            await self.close(FAILED)

    async def _send(self, message: dict[str, Any]) -> None:
        if not self.closed:
            await self.send({"type": "websocket.send", "text": json.dumps(message, ensure_ascii=False)})

    async def close(self, code: int) -> None:
        if self.closed:
            return
        self.closed = True
        await self.send({"type": "websocket.close", "code": code})
        await self._end()

    async def _end(self) -> None:
        self.closed = True
        viewer_watch(_still).discard(self)
        for task in (self.beat, *(subscription.task for subscription in self.subscriptions.values())):
            await _cancel(task)
        for name in list(self.subscriptions):
            try:
                await self._unsubscribe(name)
            except Exception as error:
                # The layer is gone; it forgets groups by itself.
                logger.warning("a console socket could not leave its group: %s", type(error).__name__)


async def _cancel(task: asyncio.Task[None] | None) -> None:
    """End `task`, unless it is the one that asks: that one is about to return by itself."""
    if task is None or task is asyncio.current_task():
        return
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
