"""One engine per policy version, models and agent's own settings, shared by all that is judged by them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import weakref
from collections import OrderedDict
from functools import partial
from typing import Any, Final

from django.conf import settings

from supervision.engine.config import MirrorConfig
from supervision.engine.llm.fallback import with_fallback
from supervision.engine.llm.openai import OpenAIPool
from supervision.engine.llm.pool import PoolShare, ScoringPool
from supervision.engine.llm.protocol import LLMClient, close_client
from supervision.engine.supervisor import Supervisor
from supervision.stream.directory import AgentBinding
from tenants.limits_refused import Refused, refused

logger = logging.getLogger(__name__)

SUPERVISORS: Final = 256  # kept by one process for calls to come


class Supervisors:
    """The engines of one event loop.

    Those used longest ago are forgotten; calls that run on them keep theirs. When nothing uses an engine any more, its
    model's client is closed, so that connections to models that nobody asks any more are.
    """

    def __init__(self, llms: OpenAIPool, pool: ScoringPool, *, most: int = SUPERVISORS) -> None:
        self._llms = llms
        if isinstance(llms, OpenAIPool):
            _llm_pools.add(llms)
        self._pool = pool
        self._most = most
        self._known: OrderedDict[tuple[Any, ...], Supervisor] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    def get(self, binding: AgentBinding) -> Supervisor | None:
        """The engine of the agent's policy version; None when it has none that can be used. Needs a running loop."""
        if binding.policy_version_id is None or binding.llm is None:
            return None
        share = self._share(binding)
        models = (binding.llm, binding.fallback_llm)
        key = (binding.policy_version_id, models, json.dumps(dict(binding.overrides), sort_keys=True))
        supervisor = self._known.get(key)
        if supervisor is None:
            made = self._made(binding, share)
            if made is None:
                return None
            supervisor = self._known[key] = made
            while len(self._known) > self._most:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return supervisor

    async def aclose(self) -> None:
        """Close the clients of all engines, after the questions under way. Close the calls first."""
        self._closed = True
        clients = [supervisor.config.llm for supervisor in self._known.values()]
        self._known.clear()
        await asyncio.gather(*map(close_client, clients))
        while self._closing:
            await asyncio.wait(self._closing)

    def _share(self, binding: AgentBinding) -> PoolShare:
        """The tenant's part of the places for questions; kept while an engine of the tenant has it."""
        return self._pool.share(
            str(binding.tenant_id),
            limit=binding.limits.judge_calls,
            on_limit=partial(refused, binding.tenant_id, Refused.JUDGE_CALLS),
        )

    def _made(self, binding: AgentBinding, share: PoolShare) -> Supervisor | None:
        clients: list[LLMClient] = []
        try:
            clients.extend(
                self._llms.client(api_key=one.api_key, model=one.model, base_url=one.base_url or None)
                for one in (binding.llm, binding.fallback_llm)
                if one is not None
            )
            config = MirrorConfig.from_stored(
                [dict(rule) for rule in binding.rules],
                dict(binding.config),
                with_fallback(*clients) if len(clients) == 2 else clients[0],
                tenant_id=str(binding.tenant_id),
            )
        except ValueError:
            logger.exception("Policy version %s cannot be used", binding.policy_version_id)
            for client in clients:
                self._close(client)
            return None
        supervisor = Supervisor(config, limiter=share)
        gone = weakref.finalize(supervisor, _unused, asyncio.get_running_loop(), weakref.ref(self), config.llm)
        gone.atexit = False  # type: ignore[misc]
        return supervisor

    def _close(self, llm: LLMClient) -> None:
        if self._closed:
            return  # nobody waits for it any more, and its connections are closed with the others
        task = asyncio.get_running_loop().create_task(close_client(llm), name="close a model's client")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _unused(loop: asyncio.AbstractEventLoop, whose: weakref.ref[Supervisors], llm: LLMClient) -> None:
    """An engine is gone; in which thread is the garbage collector's business."""
    supervisors = whose()
    if supervisors is None or loop.is_closed():
        return  # the connections went with the loop
    loop.call_soon_threadsafe(supervisors._close, llm)


_llm_pools: weakref.WeakSet[OpenAIPool] = weakref.WeakSet()


def llm_pools() -> list[OpenAIPool]:
    """The connections to models of this process, by event loop."""
    return list(_llm_pools)


_lock = threading.Lock()
_pool: tuple[int, ScoringPool] | None = None


def scoring_pool() -> ScoringPool:
    """The places for questions of this process, whatever asks them: calls and reviews run on loops of their own."""
    global _pool
    with _lock:
        if _pool is None or _pool[0] != os.getpid():
            _pool = (os.getpid(), ScoringPool(limit=settings.MIRROR.judge_calls_total))
        return _pool[1]
