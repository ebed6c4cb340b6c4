"""A person's word on a tool call: what is asked, what an answer means, and when the caller hears that it takes long.

The gate judges first, so nobody is asked about what the policy forbids anyway. A tool that needs a person
(`MirrorConfig.approval_tools`) then waits for an `Approver`; when nobody answers in time, `approval_on_silence`
decides. A person who may not be asked (there is no approver) is a refusal.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from supervision.engine.config import PolicyConfig
from supervision.engine.context import ToolCallIntent, ToolCode, ToolVerdict

logger = logging.getLogger(__name__)

HOLD_EVERY_S: Final = 8.0
HOLD_AFTER_SILENCE_S: Final = 0.7  # of everybody on the line: a hold line is no interruption

_INSTEAD_OF_DENIED: Final = (
    "It did not run: do not say that it did. Tell the customer that it cannot be done, and offer what you can do."
)
_INSTEAD_OF_SILENT: Final = (
    "It did not run: do not say that it did. Tell the customer that nobody could confirm it just now, and offer to "
    "have somebody call back."
)


@dataclass(frozen=True, slots=True)
class ApprovalRequest:
    """What a person is asked: may this tool call run? The policy's judge let it pass, for `reason`.

    `within_s` is how long there is for an answer; `context` says which call it belongs to (`SupervisorContext`).
    """

    intent: ToolCallIntent
    context: Any
    reason: str
    within_s: float


@dataclass(frozen=True, slots=True)
class Approval:
    """A person's answer. `note` is for the agent, `by` says who it was."""

    approve: bool
    note: str = ""
    by: str = ""


Approver = Callable[[ApprovalRequest], Awaitable[Approval | None]]
"""Asks a person, and returns the answer, or None for nobody. It is cancelled when its time is up."""


def approval_needed(config: PolicyConfig, intent: ToolCallIntent) -> bool:
    """Whether the policy wants a person's approval for this tool; names compare without regard to case."""
    name = intent.name.strip().casefold()
    return any(name == wanted.casefold() for wanted in config.approval_tools)


def with_approval(verdict: ToolVerdict, approval: Approval) -> ToolVerdict:
    """The gate's verdict once a person has answered."""
    who = f" by {approval.by}" if approval.by else ""
    note = f": {approval.note}" if approval.note else ""
    if approval.approve:
        return replace(verdict, reason=f"approved{who}{note}")
    return refused_by(verdict, ToolCode.DENIED, f"a person denied it{note}", _INSTEAD_OF_DENIED)


def with_silence(verdict: ToolVerdict, config: PolicyConfig) -> ToolVerdict:
    """The gate's verdict when nobody answered in time."""
    if config.approval_on_silence == "allow":
        return replace(verdict, reason="nobody answered in time; the policy allows it then")
    return refused_by(verdict, ToolCode.TIMEOUT, "nobody approved it in time", _INSTEAD_OF_SILENT)


def without_approver(verdict: ToolVerdict) -> ToolVerdict:
    """The gate's verdict where there is nobody who could be asked."""
    return refused_by(
        verdict, ToolCode.DENIED, "it needs a person's approval, and nobody can be asked here", _INSTEAD_OF_SILENT
    )


def refused_by(verdict: ToolVerdict, code: ToolCode, reason: str, instruction: str) -> ToolVerdict:
    """The verdict as a refusal."""
    return replace(
        verdict, allow=False, code=code, reason=reason, instruction=instruction, stored_result=None, valid_ms=0
    )


class PersonGate:
    """Where one call's tools wait for the program's own `Approver`."""

    def __init__(
        self,
        config: PolicyConfig,
        approver: Approver | None,
        *,
        serial_of: Callable[[str], str | None],
        refused: Callable[[str], object],
    ) -> None:
        """``serial_of`` tells apart tool calls of one id (`ToolGate.pending`); ``refused`` hears of an id that the gate
        allowed and a person did not."""
        self._config = config
        self._approver = approver
        self._serial_of = serial_of
        self._refused = refused
        # Tool calls that a person approved: who asks about one again gets the same answer.
        self._yes: set[str] = set()

    def begin(
        self,
        intents: Sequence[ToolCallIntent],
        context: Any,
        timeout_ms: int | None,
        on_verdict: Callable[[ToolVerdict], None] | None,
    ) -> PersonsWait:
        """What is asked now and may have to wait. ``on_verdict`` gets each verdict when it is final."""
        persons = frozenset(intent.id for intent in intents if approval_needed(self._config, intent))
        limit_ms = self._config.approval_timeout_ms
        within_s = (limit_ms if timeout_ms is None else min(limit_ms, timeout_ms)) / 1000
        return PersonsWait(self, persons, context, within_s, on_verdict)

    async def ask(self, intent: ToolCallIntent, verdict: ToolVerdict, context: Any, until: float) -> ToolVerdict:
        """The verdict once a person has answered, at loop time ``until`` at the latest."""
        serial = self._serial_of(intent.id)
        if serial is not None and serial in self._yes:
            return verdict
        decided = await self._answer(intent, verdict, context, until)
        if not decided.allow:
            self._refused(intent.id)
        elif serial is not None:
            self._yes.add(serial)
        return decided

    async def _answer(self, intent: ToolCallIntent, verdict: ToolVerdict, context: Any, until: float) -> ToolVerdict:
        if self._approver is None:
            return without_approver(verdict)
        within_s = max(0.0, until - asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout_at(until):
                answer = await self._approver(ApprovalRequest(intent, context, verdict.reason, within_s))
        except TimeoutError:
            answer = None
        except Exception as error:
            # Its message may hold what was said.
            logger.error("asking for a person's approval failed: %s", type(error).__name__)
            return refused_by(verdict, ToolCode.FAILED, "a person could not be asked", _INSTEAD_OF_SILENT)
        return with_silence(verdict, self._config) if answer is None else with_approval(verdict, answer)


class PersonsWait:
    """Tool calls that were asked about at once, of which some wait for a person when the gate lets them pass."""

    def __init__(
        self,
        gate: PersonGate,
        persons: frozenset[str],
        context: Any,
        within_s: float,
        on_verdict: Callable[[ToolVerdict], None] | None,
    ) -> None:
        self._gate = gate
        self._persons = persons
        self._context = context
        self._started = asyncio.get_running_loop().time()
        self._until = self._started + within_s
        self._on_verdict = on_verdict

    def judged(self, verdict: ToolVerdict) -> None:
        """The gate's verdict on one of them: final, unless a person has a say in it."""
        if self._on_verdict is not None and not self._waits(verdict):
            self._on_verdict(verdict)

    async def decided(self, intents: Sequence[ToolCallIntent], verdicts: Sequence[ToolVerdict]) -> list[ToolVerdict]:
        """The final verdicts, in order."""
        if not self._persons:
            return list(verdicts)
        return list(await asyncio.gather(*map(self._decide, intents, verdicts)))

    async def _decide(self, intent: ToolCallIntent, verdict: ToolVerdict) -> ToolVerdict:
        if not self._waits(verdict):
            return verdict
        decided = await self._gate.ask(intent, verdict, self._context, self._until)
        decided = replace(decided, latency_ms=round((asyncio.get_running_loop().time() - self._started) * 1000))
        if self._on_verdict is not None:
            self._on_verdict(decided)
        return decided

    def _waits(self, verdict: ToolVerdict) -> bool:
        return verdict.allow and verdict.id in self._persons


class HoldRhythm:
    """When a hold line may be said: when nobody has spoken for a moment, and at most every 8 seconds. All times are of
    one clock, in seconds."""

    def __init__(self) -> None:
        self._said_at = -math.inf

    def due_in(self, now: float, *, quiet_since: float | None) -> float:
        """Seconds until a line may be said, 0 for now; `quiet_since` is when the last voice ended, None while there is
        one: then ask again after what is returned."""
        wait = self._said_at + HOLD_EVERY_S - now
        silence = HOLD_AFTER_SILENCE_S if quiet_since is None else quiet_since + HOLD_AFTER_SILENCE_S - now
        return max(0.0, wait, silence)

    def said(self, at: float) -> None:
        """A line was said."""
        self._said_at = at
