"""Judging turns and tool calls that are no part of a call of Mirror's: detection only, in an agent's policy.

The engine is asynchronous and keeps its connections to models on one event loop, and whoever asks here is not: so each
process has one loop for it, in a thread of its own, which starts with the first question.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, TypeVar
from uuid import UUID

from mirror_saas.egress import egress_http_client
from mirror_saas.errors import Conflict, NotFound
from supervision.engine.context import (
    HistoryEntry,
    JudgingState,
    SupervisorContext,
    ToolCallIntent,
    ToolVerdict,
    TurnPayload,
    Verdict,
)
from supervision.engine.llm.limiter import Risk, asking
from supervision.engine.llm.openai import OpenAIPool
from supervision.engine.supervisor import CallSupervisor
from supervision.models import ProviderCredential
from supervision.selectors.credentials import credential_secret
from supervision.selectors.policies import VersionContent
from supervision.selectors.usage import UsageFigures
from supervision.services.credentials import credential_of_kind
from supervision.services.usage import usage_add
from supervision.stream.directory import AgentBinding, ProviderSettings, agent_binding
from supervision.stream.supervisors import Supervisors, scoring_pool
from tenants.limits import LIMITS
from tenants.sealing import SealBroken
from tenants.selectors.tenants import TenantRef

logger = logging.getLogger(__name__)

T = TypeVar("T")

# The engine keeps its own deadlines; this is for a loop that is stuck.
_BEYOND_DEADLINE_S: Final = 15.0
CLOSE_S: Final = 5.0


class AgentNotFound(NotFound):
    """The current tenant has no agent with this id, or has archived it."""

    def __init__(self) -> None:
        super().__init__("There is no such agent.")


class NothingJudges(Conflict):
    """The agent has no policy that could judge, or the version has no model that could."""

    def __init__(
        self,
        why: str = "This agent has no published policy with a language model that can be used; publish a version that"
        " names a credential, and let the agent use the policy.",
    ) -> None:
        super().__init__(why)


@dataclass(frozen=True, slots=True)
class Judge:
    """What judges an agent's turns now."""

    binding: AgentBinding

    @property
    def mode(self) -> str:
        """`live` or `shadow`."""
        return self.binding.mode


def judge_of_agent(*, tenant: TenantRef, agent_id: UUID) -> Judge:
    """Who judges a turn of this agent now; runs in the tenant's context. Raises AgentNotFound and NothingJudges."""
    binding = agent_binding(tenant=tenant, agent_id=agent_id)
    if binding is None:
        raise AgentNotFound
    if binding.policy_version_id is None or binding.llm is None:
        raise NothingJudges
    # The engine's mode is the policy's; an agent in shadow mode, or one that follows a shadow version, only watches.
    overrides = {**binding.overrides, "mode": binding.mode}
    return Judge(replace(binding, overrides=overrides, config={**binding.config, "mode": binding.mode}))


def judge_of_content(*, tenant: TenantRef, policy_id: UUID, number: int, content: VersionContent) -> Judge:
    """Who would judge by `content`, which is or is to become version `number` of a policy; runs in the tenant's
    context. It judges as a call's turns are judged that overrides nothing. Raises NothingJudges, and ValidationError
    naming a credential that there is not."""
    first = credential_of_kind(content.llm_credential_id, ProviderCredential.Kind.LLM)
    second = credential_of_kind(
        content.fallback_credential_id, ProviderCredential.Kind.LLM, field="fallback_credential_id"
    )
    llm = _provider(first)
    if llm is None:
        raise NothingJudges("This version has no language model that can be used: choose one that judges.")
    binding = AgentBinding(
        tenant_id=tenant.id,
        tenant_slug=tenant.slug,
        # It is nobody's call.
        agent_id=_NOBODY,
        stream_key_id=_NOBODY,
        agent_name="",
        upstream_url="",
        signing_secret="",
        mode=str(content.config.get("mode", "live")),
        language="en",
        voice="",
        policy_id=policy_id,
        policy_version_id=_content_id(policy_id, content),
        policy_version=number,
        rules=tuple(content.rules),
        config=content.config,
        llm=llm,
        fallback_llm=_provider(second),
        limits=LIMITS.get(tenant.id),
    )
    return Judge(binding)


_NOBODY: Final = UUID(int=0)


def _content_id(policy_id: UUID, content: VersionContent) -> UUID:
    """What the engine of a text that can still change is known by: the same text finds what was prepared for it, such
    as its rules as statements, and another one nothing."""
    text = json.dumps([str(policy_id), content.rules, dict(content.config)], sort_keys=True)
    return UUID(bytes=hashlib.sha256(text.encode()).digest()[:16])


def _provider(credential: ProviderCredential | None) -> ProviderSettings | None:
    if credential is None:
        return None
    try:
        return ProviderSettings(credential.base_url, credential.model, credential_secret(credential))
    except SealBroken as error:
        # As a call's judge that cannot be used.
        logger.error("%s", error)
        return None


def turn_review(judge: Judge, payload: TurnPayload) -> Verdict:
    """The verdict on one turn and its tool calls. Blocks, for as long as the policy lets the judge take; no transaction
    should be open meanwhile. What goes wrong in judging is the verdict's state. Raises NothingJudges."""

    async def review(call: CallSupervisor) -> Verdict:
        # Nobody hears the turn through Mirror: those who do go first.
        with asking(Risk.REVIEW):
            return await call.judged_with_tools(payload)

    return _judging().run(lambda loop: loop.ask(judge, review))


def tool_review(
    judge: Judge,
    intent: ToolCallIntent,
    *,
    customer_text: str,
    agent_text: str = "",
    turn_id: str = "",
    history: Sequence[HistoryEntry] = (),
    timeout_ms: int | None = None,
) -> ToolVerdict:
    """Whether a tool call may run. Blocks, at most for `timeout_ms` or the policy's own limit. Nothing is remembered,
    so nothing is a duplicate. Raises NothingJudges."""

    async def gate(call: CallSupervisor) -> ToolVerdict:
        for entry in history:
            _NOTE[entry.role](call, entry.text)
        verdict = await call.gate_tool_call(
            customer_text=customer_text,
            intents=[intent],
            agent_text=agent_text,
            turn_id=turn_id,
            timeout_ms=timeout_ms,
        )
        return verdict.tools[0]

    return _judging().run(lambda loop: loop.ask(judge, gate))


def review_count(*, judge: Judge, verdict: Verdict | None, tools: Sequence[ToolVerdict], now: datetime) -> None:
    """Count in the tenant's usage what judging came to."""
    states: Mapping[str, int] = {} if verdict is None else {verdict.state.value: 1, "turns": 1}
    usages = [*([verdict.usage] if verdict is not None else []), *(tool.usage for tool in tools)]
    figures = UsageFigures(
        **states,
        tool_decisions=len(tools),
        tools_blocked=sum(not tool.allow for tool in tools),
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
    )
    assert judge.binding.llm is not None  # or nothing would have judged
    answered = [*([verdict.model] if verdict is not None else []), *(tool.model for tool in tools)]
    model = next(filter(None, answered), judge.binding.llm.model)
    usage_add(day=now.astimezone(UTC).date(), source="api", model=model, figures=figures)


_NOTE: Final[dict[str, Callable[[CallSupervisor, str], None]]] = {
    "customer": lambda call, text: call.note_customer(text),
    "agent": lambda call, text: call.note_agent(text),
    "tool": lambda call, text: call.note_tool("tool", text),
    "mirror": lambda call, text: call.note_mirror(text),
}
assert {state.value for state in JudgingState} <= set(UsageFigures.__dataclass_fields__)


class JudgingLoop:
    """An event loop in a thread, with the engines and connections that live on it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self.llms = OpenAIPool(http_client=egress_http_client)
        self._supervisors = Supervisors(self.llms, scoring_pool())
        threading.Thread(target=self._run, name="mirror-judging", daemon=True).start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def ask(self, judge: Judge, question: Callable[[CallSupervisor], Coroutine[Any, Any, T]]) -> T:
        """The answer of a call that has just begun and ends with it."""
        binding = judge.binding
        supervisor = self._supervisors.get(binding)
        if supervisor is None:
            raise NothingJudges
        context = SupervisorContext(
            call_id="",
            tenant_id=str(judge.binding.tenant_id),
            agent_id=str(judge.binding.agent_id),
            policy_id=str(judge.binding.policy_id),
            policy_version=judge.binding.policy_version,
        )
        config = supervisor.config
        limit_s = max(config.semantic_review_timeout_s, config.tool_gate_timeout_ms / 1000) + _BEYOND_DEADLINE_S
        async with asyncio.timeout(limit_s):
            return await question(supervisor.call(context))

    def run(self, question: Callable[[JudgingLoop], Coroutine[Any, Any, T]]) -> T:
        """Answer on the loop, for a caller on another thread, who waits."""
        return asyncio.run_coroutine_threadsafe(question(self), self._loop).result()

    def close(self) -> None:
        """Close the connections to models and end the thread, for a caller on another one. What is asked after this
        has no answer."""
        try:
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(CLOSE_S)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)

    async def _close(self) -> None:
        await self._supervisors.aclose()
        await self.llms.aclose()


_lock = threading.Lock()
_made: tuple[int, JudgingLoop] | None = None


def judging_close() -> None:
    """Close what reviews shared, when the server stops. Blocks for 5 seconds at most."""
    global _made
    with _lock:
        made, _made = _made, None
    if made is not None and made[0] == os.getpid():
        try:
            made[1].close()
        except TimeoutError:
            logger.warning("Questions of reviews were still under way when the server stopped")


def _judging() -> JudgingLoop:
    """This process's. A forked child has none of its parent's threads, so it makes its own."""
    global _made
    with _lock:
        if _made is None or _made[0] != os.getpid():
            _made = (os.getpid(), JudgingLoop())
        return _made[1]
