"""Where Plivo connects: who may, and which agent it is for.

The consumer runs its own receive loop. Channels' dispatch would cost a coroutine, a dictionary of handlers and a thread
hop's worth of bookkeeping for each of a hundred frames a second; a call needs none of it.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any, Final

from channels.consumer import AsyncConsumer
from django.conf import settings

from mirror_saas.direct_frames import direct_frames
from supervision.plivo import signatures
from supervision.stream.directory import AgentBinding, DirectoryUnavailable
from supervision.stream.limits import CallLease, lease_name
from supervision.stream.owners import CallKey
from supervision.stream.plivo_leg import Send
from supervision.stream.revocation import WatchedKey
from supervision.stream.runtime import StreamRuntime, stream_runtime
from supervision.stream.session import CallSession, CallStart, Receive, StartInvalid, now_unix
from supervision.stream.takeover import Taken
from supervision.stream.token import FIRST_USE_S, CallToken, TokenInvalid, query_split, token_read
from tenants.limits_refused import Refused, refused

logger = logging.getLogger(__name__)

START_WITHIN_S: Final = 15.0
POLICY_FRESH_S: Final = 0.5  # a policy that was looked up longer ago than that before `start` is looked up again
BEFORE_START: Final = 100  # frames kept that come before `start`
BEFORE_START_CHARS: Final = 64 * 1024  # of each: nobody knows yet whose call this is
DISCONNECTED: Final = object()

Admitted = tuple[AgentBinding, CallToken | None, str]  # who it is for, the call's token, the rest of the query


class StreamConsumer(AsyncConsumer):  # type: ignore[misc]  # channels has no types
    """One Plivo stream: checks its key, waits for `start`, and hands it to a :class:`CallSession`."""

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if (await receive())["type"] != "websocket.connect":
            return
        arguments = scope["url_route"]["kwargs"]
        runtime = await stream_runtime()
        admitted = await _admit(runtime, arguments["slug"], arguments["key"], scope)
        if admitted is None:
            # Unknown tenant, unknown key, revoked key, another tenant's key, forged token: all alike, a plain 403.
            await send({"type": "websocket.close", "code": 1008})
            return
        lease = await _lease(runtime, admitted)
        if lease is None:
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            with runtime.keys.watched(admitted[0].stream_key_id) as key:
                await self._serve(runtime, admitted, lease, key, scope, receive, send)
        finally:
            await runtime.calls.release(lease)

    async def _serve(
        self,
        runtime: StreamRuntime,
        admitted: Admitted,
        lease: CallLease,
        key: WatchedKey,
        scope: dict[str, Any],
        receive: Receive,
        send: Send,
    ) -> None:
        """Take the socket, wait for its call, and see that through."""
        binding, token, query = admitted
        offered = list(scope.get("subprotocols") or [])
        await runtime.start()
        await send({"type": "websocket.accept", "subprotocol": offered[0] if offered else None})
        accepted_at = asyncio.get_running_loop().time()
        before: list[str] = []
        try:
            async with asyncio.timeout(START_WITHIN_S) as waiting:
                key.on_revoked = lambda: waiting.reschedule(asyncio.get_running_loop().time())
                start = await wait_for_start(receive, before)
            key.on_revoked = None
        except TimeoutError:
            if not key.revoked:
                logger.info("A stream socket sent no start within %d s", START_WITHIN_S)
            await send({"type": "websocket.close", "code": 1008})
            return
        if start is None:
            return
        of_call = CallKey(binding.tenant_id, binding.agent_id, start.call_id)
        if token is not None and not await _token_fits(runtime, token, of_call):
            logger.warning("A call token was used for another call, or too late")
            await send({"type": "websocket.close", "code": 1008})
            return
        arguments = scope["url_route"]["kwargs"]
        if asyncio.get_running_loop().time() - accepted_at > POLICY_FRESH_S:
            binding = await _looked_up_again(runtime, binding, arguments)
        async with runtime.takeovers.claiming(of_call) as take:
            taken = await take()
            await runtime.calls.name(lease, lease_name(binding.agent_id, start.call_id))
            session = CallSession(
                runtime=runtime,
                binding=await _pinned(runtime, binding, taken, arguments),
                taken=taken,
                start=start,
                send=send,
                frames=direct_frames(scope),
                query=query,
                subprotocols=offered,
                from_number=token.from_number if token is not None else "",
                to_number=token.to_number if token is not None else "",
            )
            session.open()
        key.on_revoked = session.key_revoked
        await session.run(receive, before)


async def _looked_up_again(runtime: StreamRuntime, binding: AgentBinding, arguments: dict[str, str]) -> AgentBinding:
    """What a call that begins now is judged by: its socket was open for a while, and something may have been published.
    A key that was revoked meanwhile is found by its watch."""
    try:
        return await runtime.directory.lookup(arguments["slug"], arguments["key"]) or binding
    except DirectoryUnavailable:
        return binding


async def _pinned(
    runtime: StreamRuntime, binding: AgentBinding, taken: Taken, arguments: dict[str, str]
) -> AgentBinding:
    """What the call has been judged by since it began, whatever was published meanwhile."""
    if taken.pinned is not None:
        return taken.pinned
    carried = taken.carried
    if carried is None or carried.policy_version_id is None:
        return binding
    if carried.policy_version_id != binding.policy_version_id:
        version = carried.policy_version_id
        try:
            pinned = await runtime.directory.lookup(arguments["slug"], arguments["key"], pinned_version=version)
        except DirectoryUnavailable:
            pinned = None
        if pinned is None or pinned.policy_version_id != version:
            logger.error("A call that reconnects goes on under another version of its policy; its own cannot be read")
            return binding
        binding = pinned
    return replace(binding, mode=carried.mode or binding.mode)


async def _lease(runtime: StreamRuntime, admitted: Admitted) -> CallLease | None:
    """A place among the calls that the tenant may have at a time; None when there is none left."""
    binding, token, _ = admitted
    limit = binding.limits.calls
    # Only the token says before `start` which call a socket is for, and nobody can make one up.
    call = lease_name(binding.agent_id, token.call_id) if token is not None else ""
    lease = await runtime.calls.take(binding.tenant_id, limit=limit, call=call)
    if lease is None:
        refused(binding.tenant_id, Refused.CALLS)
        logger.warning(
            "A stream of agent %s was refused: tenant %s has %s concurrent calls, which is its limit",
            binding.agent_id,
            binding.tenant_slug,
            limit,
        )
    return lease


async def _admit(runtime: StreamRuntime, slug: str, key: str, scope: dict[str, Any]) -> Admitted | None:
    try:
        binding = await runtime.directory.lookup(slug, key)
    except DirectoryUnavailable:
        logger.error("A stream was refused: the database is down and its key is not known from the last hour")
        return None
    if binding is None or not _signature_fits(binding, slug, key, scope):
        return None
    written, query = query_split(scope.get("query_string", b"").decode("latin-1"))
    if written is None:
        return binding, None, query
    try:
        return binding, token_read(written, tenant_id=binding.tenant_id, agent_id=binding.agent_id), query
    except TokenInvalid as problem:
        logger.warning("A stream was refused: %s", problem)
        return None


def _signature_fits(binding: AgentBinding, slug: str, key: str, scope: dict[str, Any]) -> bool:
    """Whether Plivo's signature of a handshake is right, where it can and has to be.

    No document says whether Plivo signs handshakes, or for which form of the URL; its SDKs for Python and Node check
    one if they are told to. So one that is there must fit in any of those forms, and one that is not is missed only
    where the operator said `MIRROR_HANDSHAKE_SIGNATURE=require`. What admits a stream is its key.
    """
    wanted = settings.MIRROR.handshake_signature
    if not binding.plivo_tokens or wanted == "ignore":
        return True
    headers: dict[str, str] = {}
    for name, value in scope.get("headers") or ():
        one, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[one] = f"{headers[one]},{text}" if one in headers else text
    if not signatures.is_signed(headers):
        if wanted == "require":
            logger.warning(
                "A stream of agent %s was refused: its handshake carries no signature of Plivo's, and"
                " MIRROR_HANDSHAKE_SIGNATURE asks for one",
                binding.agent_id,
            )
        return bool(wanted != "require")
    query = scope.get("query_string", b"").decode("latin-1")
    public: str = settings.MIRROR.public_url
    urls = signatures.handshake_urls(
        f"ws{public.removeprefix('http')}/stream/{slug}/{key}{'?' + query if query else ''}"
    )
    found = signatures.verify(headers, tokens=binding.plivo_tokens, method="GET", urls=urls)
    if found is None:
        logger.warning(
            "A stream of agent %s was refused: Plivo's signature does not fit the stored auth token and"
            " MIRROR_PUBLIC_URL (%s); MIRROR_HANDSHAKE_SIGNATURE=ignore leaves it unchecked",
            binding.agent_id,
            public,
        )
        return False
    logger.info(
        "A handshake of agent %s was signed: %s, form %d of the URL", binding.agent_id, found.version, found.url_index
    )
    return True


async def _token_fits(runtime: StreamRuntime, token: CallToken, of_call: CallKey) -> bool:
    """Whether a socket may use its token: within 300 s for the first time, then for its call until 60 s after that."""
    if token.call_id and token.call_id != of_call.plivo_call_id:
        return False
    if now_unix() - token.made_at <= FIRST_USE_S:
        return True
    return bool(token.call_id) and await runtime.takeovers.knows(of_call)


async def wait_for_start(receive: Receive, before: list[str]) -> CallStart | None:
    """The `start` event, or None when Plivo closed first. Other text frames are kept in ``before``."""
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return None
        text = message.get("text")
        if text is None:
            continue
        try:
            start = CallStart.parse(text)
        except StartInvalid as problem:
            logger.warning("A start event cannot be used: %s", problem)
            continue
        if start is not None:
            return start
        if len(before) < BEFORE_START and len(text) <= BEFORE_START_CHARS:
            before.append(text)
