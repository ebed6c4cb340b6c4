"""The tools of a call: which may run, what the agent is told, and what the record says of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

from mirror_saas.ids import uuid7
from supervision.engine.config import DEFAULT_IRREVERSIBLE_TOOLS
from supervision.engine.context import JudgingState, ToolCallIntent, ToolCode, ToolVerdict
from supervision.engine.scorer.tool_gate import LedgerKey
from supervision.engine.supervisor import CallSupervisor
from supervision.recorder import events as record
from supervision.recorder.events import CallLog
from supervision.recorder.recorder import JournalUnavailable, Recorder
from supervision.stream import frames
from supervision.stream.approvals import CallApprovals
from supervision.stream.carried import CarriedTool
from supervision.stream.database import DatabaseSilent
from supervision.stream.ledger import CallLedger, Kept
from supervision.stream.turns import TurnState

logger = logging.getLogger(__name__)

COMMIT_WITHIN_S: Final = 1.0  # a journal that takes longer to write a permission down has failed
MAX_TOOLS_KEPT: Final = 512
_UNRECORDED: Final = "the decision could not be recorded"


@dataclass(slots=True)
class ToolState:
    """A tool call that was asked about."""

    intent: ToolCallIntent
    decision_id: UUID
    decided: asyncio.Future[ToolVerdict]
    asked_at: float
    turn_ref: str | None = None
    timeout_ms: int | None = None
    socket: int = 0
    key: LedgerKey | None = None  # of one that was undecided when its socket broke: ids say nothing of it any more
    finished: bool = False

    def repeated_by(self, later: ToolCallIntent, turn_ref: str | None) -> bool:
        """Whether ``later`` asks about the same call again. An id alone proves nothing: agents use one twice, and a
        permission must never pass on to other arguments, to another turn, or to a call that has run."""
        same_turn = self.turn_ref is None or turn_ref is None or self.turn_ref == turn_ref
        return not self.finished and later == self.intent and same_turn


class CallTools:
    """The gate of one call: every tool that is asked about gets one answer, and what it did is remembered."""

    def __init__(
        self,
        *,
        supervisor: CallSupervisor | None,
        mode: str,
        log: CallLog,
        recorder: Recorder,
        ledger: CallLedger | None,
        approvals: CallApprovals,
        turn_of: Callable[[str], TurnState | None],
        to_agent: Callable[[dict[str, Any]], None],
        rejected: Callable[[str, str, str | None], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        at_ms: Callable[[], int],
    ) -> None:
        """``ledger`` is None where no permission has to outlive the process: nothing is governed, or nothing acted on.
        ``rejected`` tells the agent that a frame was not taken."""
        self.blocked = 0  # tools that were refused
        self._supervisor = supervisor
        self._mode = mode
        self._log = log
        self._recorder = recorder
        self._ledger = ledger
        self._approvals = approvals
        self._rejected = rejected
        self._turn_of = turn_of
        self._to_agent = to_agent
        self._spawn = spawn
        self._at_ms = at_ms
        self._loop = asyncio.get_running_loop()
        self._tools: dict[str, ToolState] = {}
        self._ended = False
        self._socket = 0

    # ------------------------------------------------------------------ what the agent asks and tells

    def ask(self, tool: frames.Tool, turn: TurnState | None, customer_text: str) -> None:
        """Take `mirror.tool`; its verdict goes to the agent when it is known."""
        known = self._tools.get(tool.intent.id)
        if known is not None and known.repeated_by(tool.intent, tool.turn_ref):
            self._spawn(self._repeat_verdict(known))
            return
        keys = {tool.intent.id: tool.key} if tool.key is not None else {}
        asked = self._asked(tool.intent, tool.turn_ref, tool.timeout_ms)
        self._spawn(self._gate([asked], turn, customer_text, keys, tool.timeout_ms))

    def ask_all(self, intents: Sequence[ToolCallIntent], turn: TurnState, customer_text: str) -> None:
        """Take the tools of a reported turn; each gets its verdict."""
        tools = []
        for intent in intents:
            known = self._tools.get(intent.id)
            if known is not None and known.repeated_by(intent, turn.ref):
                self._spawn(self._repeat_verdict(known))
            else:
                tools.append(self._asked(intent, turn.ref, None))
        if tools:
            self._spawn(self._gate(tools, turn, customer_text, keys={}, timeout_ms=None))

    def done(self, done: frames.ToolDone) -> None:
        """Take `mirror.tool_done`, also for what an earlier connection of the call was allowed."""
        tool = self._tools.get(done.ref)
        if tool is not None:
            tool.finished = True
            self._approvals.withdrawn(tool.decision_id)
            self._tool_done(done, tool.decision_id)
        else:
            self._spawn(self._done_elsewhere(done))

    async def _done_elsewhere(self, done: frames.ToolDone) -> None:
        decision_id = None
        if self._ledger is not None:
            await self._ledger.ready()
            decision_id = self._ledger.decision(done.ref)
        if decision_id is None:
            self._rejected("unknown_id", "id: no such tool call was asked about", done.ref)
        else:
            self._tool_done(done, decision_id)

    def _tool_done(self, done: frames.ToolDone, decision_id: UUID) -> None:
        if self._supervisor is not None:
            self._supervisor.tool_done(done.ref, done.ok, done.result, cancelled=done.cancelled)
        self._record(
            record.ToolDone(
                decision_id=decision_id,
                ref=done.ref,
                ok=done.ok,
                result=done.result,
                cancelled=done.cancelled,
                at_ms=self._at_ms(),
            )
        )

    def decisions(self, intents: Sequence[ToolCallIntent]) -> list[asyncio.Future[ToolVerdict]]:
        """The verdicts, known or to come, of those of ``intents`` that were asked about."""
        return [known.decided for intent in intents if (known := self._tools.get(intent.id)) is not None]

    def carried(self) -> tuple[CarriedTool, ...]:
        """What was decided, for the socket that goes on with the call."""
        return tuple(
            CarriedTool(tool.intent, tool.decision_id, tool.decided.result(), tool.turn_ref, tool.finished)
            for tool in self._tools.values()
            if tool.decided.done() and not tool.decided.cancelled()
        )

    def carry_on(self, tools: Sequence[CarriedTool]) -> None:
        """Go on from what was decided on an earlier socket of the call."""
        for tool in tools:
            decided: asyncio.Future[ToolVerdict] = self._loop.create_future()
            decided.set_result(tool.verdict)
            known = ToolState(tool.intent, tool.decision_id, decided, self._loop.time(), tool.turn_ref)
            known.finished = tool.finished
            self._tools[tool.intent.id] = known

    def ended(self) -> None:
        """The call is over: nothing may run any more, and nobody is told anything."""
        self._ended = True
        self._approvals.end()

    def agent_replaced(self) -> None:
        """Another socket takes the agent's place. Ids are the socket's: what the old one was allowed is in the ledger
        from now on, like another connection's, and what it still waits for is nobody's any more."""
        self._socket += 1
        for tool in self._tools.values():
            self._approvals.withdrawn(tool.decision_id)
            if self._supervisor is not None and not tool.decided.done():
                tool.key = self._supervisor.ledger_key(tool.intent.id)
        self._tools.clear()
        if self._supervisor is not None:
            self._supervisor.agent_replaced()
        if self._ledger is not None:
            self._ledger.socket_replaced()

    def approval_look(self, decision_id: UUID) -> bool:
        """Somebody decided about a tool call; False when it does not wait (any more)."""
        return self._approvals.look(decision_id)

    # ------------------------------------------------------------------ the gate

    def _asked(self, intent: ToolCallIntent, turn_ref: str | None, timeout_ms: int | None) -> ToolState:
        now, decided = self._loop.time(), self._loop.create_future()
        asked = ToolState(intent, uuid7(), decided, now, turn_ref, timeout_ms, self._socket)
        self._tools[intent.id] = asked
        while len(self._tools) > MAX_TOOLS_KEPT:
            self._tools.pop(next(iter(self._tools)))
        return asked

    async def _gate(
        self,
        tools: list[ToolState],
        turn: TurnState | None,
        customer_text: str,
        keys: dict[str, str],
        timeout_ms: int | None,
    ) -> None:
        code, reason = ToolCode.FAILED, "the call could not be judged"
        try:
            await self._gated(tools, turn, customer_text, keys, timeout_ms)
        except asyncio.CancelledError:
            code, reason = ToolCode.CANCELLED, "the call ended before this was decided"
            raise
        finally:
            # Whatever happened: a tool that was asked about has an answer, and nothing was allowed by accident.
            for tool in tools:
                if not tool.decided.done():
                    verdict = _undecided(tool.intent, code, reason)
                    self._record_tool(tool, verdict, turn, self._irreversible(tool.intent), tool.asked_at)
                    self._tool_answered(tool, verdict)

    async def _gated(
        self,
        tools: list[ToolState],
        turn: TurnState | None,
        customer_text: str,
        keys: dict[str, str],
        timeout_ms: int | None,
    ) -> None:
        started = self._loop.time()
        if self._supervisor is None:
            for tool in tools:
                verdict = _ungoverned(tool.intent, self._irreversible(tool.intent))
                await self._tool_decided(tool, verdict, turn, started, until=started)
            return
        limit_ms = self._supervisor.config.tool_gate_timeout_ms
        if timeout_ms is not None:
            limit_ms = min(limit_ms, timeout_ms)
        until = started + limit_ms / 1000
        async with contextlib.AsyncExitStack() as stack:
            if self._ledger is not None and any(self._irreversible(tool.intent) for tool in tools):
                await self._ledger.ready()
                await stack.enter_async_context(self._ledger.followed())
            verdicts = await self._supervisor.gate_tools(
                [tool.intent for tool in tools],
                customer_text=customer_text,
                agent_text=turn.payload.agent_text if turn is not None else "",
                turn_id=turn.ref if turn is not None else "",
                keys=keys,
                timeout_ms=max(0, round((until - self._loop.time()) * 1000)),
                ask_person=False,
            )
        turn = turn or self._turn_of(tools[0].turn_ref or "")
        clean = await self._speech_clean(turn, until)
        spoken = [self._with_speech(tool, verdict, clean) for tool, verdict in zip(tools, verdicts, strict=True)]
        # Each for itself: one that waits for a person keeps no other waiting.
        async with asyncio.TaskGroup() as group:
            for tool, verdict in zip(tools, spoken, strict=True):
                group.create_task(self._tool_decided(tool, verdict, turn, started, until=until))

    async def _speech_clean(self, turn: TurnState | None, until: float) -> bool | None:
        """Whether the words of the tool's own turn passed; None when that is not known by ``until``."""
        if turn is None:
            return True
        judging = self._loop.create_task(turn.words_clean())
        try:
            await asyncio.wait({judging}, timeout=max(0.0, until - self._loop.time()))
            return judging.result() if judging.done() else None
        finally:
            judging.cancel()

    def _with_speech(self, tool: ToolState, verdict: ToolVerdict, clean: bool | None) -> ToolVerdict:
        """A tool runs only when its own verdict and that of its turn's words allow it."""
        if not verdict.allow or clean:
            return verdict
        if clean is None:
            if not self._irreversible(tool.intent) or self._fails_open():
                return verdict
            code, state = ToolCode.TIMEOUT, JudgingState.TIMED_OUT
            reason = "the words of this turn were not judged in time"
        else:
            code, state = ToolCode.DENIED, verdict.state
            reason = "the words of this turn broke a rule, so nothing that it wanted to do may run"
        self._take_back(tool)
        return _refused(verdict, code, state, reason)

    async def _tool_decided(
        self, tool: ToolState, verdict: ToolVerdict, turn: TurnState | None, started: float, *, until: float
    ) -> None:
        if self._mode == "shadow" and not verdict.allow:
            verdict = _shadowed(verdict)
        irreversible = self._irreversible(tool.intent)
        if verdict.allow and not self._ended:
            verdict = await self._approved(tool, verdict, turn, irreversible)
        if irreversible and verdict.allow and not self._ended:
            verdict = await self._claimed(tool, verdict, until)
        verdict = self._unless_ended(tool, verdict)
        self._record_tool(tool, verdict, turn, irreversible, started)
        if irreversible and verdict.allow:
            # What cannot be undone may run only when the permission is on disk.
            decided = verdict
            try:
                async with asyncio.timeout(COMMIT_WITHIN_S):
                    await self._recorder.commit(self._log.call_id)
            except (JournalUnavailable, TimeoutError):
                if not self._fails_open():
                    self._take_back(tool)
                    verdict = _refused(verdict, ToolCode.FAILED, JudgingState.FAILED, _UNRECORDED)
            verdict = self._unless_ended(tool, verdict)
            if verdict is not decided:
                self._record_tool(tool, verdict, turn, irreversible, started)
        self._tool_answered(tool, verdict)

    def _unless_ended(self, tool: ToolState, verdict: ToolVerdict) -> ToolVerdict:
        """A permission that does not reach its agent any more is none, and leaves nothing in doubt."""
        stale = tool.socket != self._socket
        if not (self._ended or stale) or not verdict.allow:
            return verdict
        self._take_back(tool)
        return _refused(
            verdict, ToolCode.CANCELLED, verdict.state, "the agent's socket broke" if stale else "the call ended"
        )

    async def _approved(
        self, tool: ToolState, verdict: ToolVerdict, turn: TurnState | None, irreversible: bool
    ) -> ToolVerdict:
        """The verdict once a person has decided, for a tool that needs one."""
        config = self._supervisor.config if self._supervisor is not None else None
        if config is None or self._mode == "shadow" or not self._approvals.needed(config, tool.intent):
            return verdict
        verdict = await self._approvals.decided(
            verdict,
            tool.intent,
            config=config,
            decision_id=tool.decision_id,
            turn_id=turn.turn_id if turn is not None else None,
            irreversible=irreversible,
            asked_at=tool.asked_at,
            timeout_ms=tool.timeout_ms,
            fails_open=not irreversible or self._fails_open(),
        )
        if not verdict.allow:
            self._take_back(tool)
            return verdict
        # Its turn may have been found wrong meanwhile.
        return self._with_speech(tool, verdict, turn is None or not turn.flagged)

    async def _claimed(self, tool: ToolState, verdict: ToolVerdict, until: float) -> ToolVerdict:
        """The verdict once it is in the ledger that this call may run; another one when it may not after all."""
        key = self._supervisor.ledger_key(tool.intent.id) if self._supervisor is not None else None
        if self._supervisor is None or self._ledger is None or key is None:
            return verdict
        try:
            earlier = await self._ledger.claim(key, tool.intent.id, tool.decision_id, until=until)
        except DatabaseSilent as problem:
            logger.warning("an irreversible tool call could not be written down: %s", problem)
            if self._fails_open():
                self._ledger.claim_later(key, tool.intent.id, tool.decision_id)
                return verdict
            self._ledger.unclaim(key, tool.intent.id, tool.decision_id)
            self._take_back(tool)
            return _refused(verdict, ToolCode.FAILED, JudgingState.FAILED, _UNRECORDED)
        if earlier is None:
            return verdict
        self._supervisor.tool_earlier(tool.intent.id, earlier.ref, done=earlier.done, result=earlier.result)
        return _ran_or_runs(verdict, earlier)

    def _take_back(self, tool: ToolState) -> None:
        """A permission of the gate that does not reach the agent: the call may be asked for again."""
        if self._supervisor is None or self._mode == "shadow":
            return
        if tool.socket == self._socket:
            self._supervisor.tool_done(tool.intent.id, False, None, cancelled=True)
        elif tool.key is not None and (entry := self._supervisor.ledger.get(tool.key)) is not None:
            self._supervisor.ledger.free(tool.key, entry)

    def _tool_answered(self, tool: ToolState, verdict: ToolVerdict) -> None:
        if not verdict.allow:
            self.blocked += 1
        if not tool.decided.done():
            tool.decided.set_result(verdict)
        if tool.socket == self._socket:
            self._send_tool_verdict(verdict)

    def _record_tool(
        self, tool: ToolState, verdict: ToolVerdict, turn: TurnState | None, irreversible: bool, started: float
    ) -> None:
        self._record(
            record.ToolDecided(
                decision_id=tool.decision_id,
                turn_id=turn.turn_id if turn is not None else None,
                ref=tool.intent.id,
                name=tool.intent.name,
                args=tool.intent.args,
                irreversible=irreversible,
                allow=verdict.allow,
                code=verdict.code.value,
                state=verdict.state.value,
                score=verdict.score,
                reason=verdict.reason,
                instruction=verdict.instruction,
                latency_ms=round((self._loop.time() - started) * 1000),
                prompt_tokens=verdict.usage.prompt_tokens,
                completion_tokens=verdict.usage.completion_tokens,
                model=verdict.model,
                fallback=verdict.fallback,
                at_ms=self._at_ms(),
            )
        )

    async def _repeat_verdict(self, tool: ToolState) -> None:
        await asyncio.wait({tool.decided})
        self._send_tool_verdict(tool.decided.result())

    def _send_tool_verdict(self, verdict: ToolVerdict) -> None:
        if self._ended:
            return
        self._to_agent({"event": "mirror.tool_verdict", **tool_verdict_fields(verdict)})

    def _irreversible(self, intent: ToolCallIntent) -> bool:
        names = DEFAULT_IRREVERSIBLE_TOOLS if self._supervisor is None else self._supervisor.config.irreversible_tools
        return intent.irreversible or intent.name.strip().casefold() in {name.casefold() for name in names}

    def _fails_open(self) -> bool:
        if self._mode == "shadow":
            return True
        return self._supervisor is not None and self._supervisor.config.tool_gate_on_failure == "allow"

    def _record(self, event: record.EventData) -> None:
        self._log.add(event)


def tool_verdict_fields(verdict: ToolVerdict) -> dict[str, Any]:
    """The fields of `mirror.tool_verdict`."""
    return {
        "id": verdict.id,
        "allow": verdict.allow,
        "code": verdict.code.value,
        "reason": verdict.reason,
        "instruction": verdict.instruction,
        "stored_result": verdict.stored_result,
        "valid_ms": verdict.valid_ms,
    }


def intent_fields(intent: ToolCallIntent) -> dict[str, Any]:
    """A tool call as the frames and the record have it."""
    return {"id": intent.id, "name": intent.name, "args": intent.args, "irreversible": intent.irreversible}


def _ungoverned(intent: ToolCallIntent, irreversible: bool) -> ToolVerdict:
    """Without a policy nothing can be judged: what cannot be undone, or cannot be read, is refused."""
    allow = not irreversible and intent.error is None
    return ToolVerdict(
        id=intent.id,
        name=intent.name,
        allow=allow,
        code=ToolCode.OK if allow else ToolCode.FAILED if intent.error is None else ToolCode.BAD_ARGS,
        state=JudgingState.FAILED,
        score=None,
        reason="this agent has no live policy, so the call could not be judged",
        instruction="" if allow else "Say that you cannot do this right now and offer to have somebody call back.",
        stored_result=None,
        valid_ms=0,
        latency_ms=0,
    )


def _undecided(intent: ToolCallIntent, code: ToolCode, reason: str) -> ToolVerdict:
    """Nothing was decided, so nothing is allowed."""
    return ToolVerdict(
        id=intent.id,
        name=intent.name,
        allow=False,
        code=code,
        state=JudgingState.FAILED,
        score=None,
        reason=reason,
        instruction="It did not run. Tell the caller that this cannot be done right now.",
        stored_result=None,
        valid_ms=0,
        latency_ms=0,
    )


def _refused(verdict: ToolVerdict, code: ToolCode, state: JudgingState, reason: str) -> ToolVerdict:
    return ToolVerdict(
        id=verdict.id,
        name=verdict.name,
        allow=False,
        code=code,
        state=state,
        score=verdict.score,
        reason=reason,
        instruction="Do not claim that this was done. Put your last words right first, then ask the caller again.",
        stored_result=None,
        valid_ms=0,
        latency_ms=verdict.latency_ms,
        usage=verdict.usage,
    )


def _ran_or_runs(verdict: ToolVerdict, earlier: Kept) -> ToolVerdict:
    """The same call had been allowed before, on another socket or another node."""
    if earlier.done:
        code, reason = ToolCode.DUPLICATE, "the same call already ran"
        instruction = "It has already run; do not run it again. Go on with its result, which is in stored_result."
    else:
        code, reason = ToolCode.IN_DOUBT, "the same call was allowed before, and whether it ran is not known"
        instruction = "Do not run it again. Find out how the first one ended, or say that it is being processed."
    return replace(
        verdict,
        allow=False,
        code=code,
        reason=reason,
        instruction=instruction,
        stored_result=earlier.result,
        valid_ms=0,
    )


def _shadowed(verdict: ToolVerdict) -> ToolVerdict:
    return ToolVerdict(
        id=verdict.id,
        name=verdict.name,
        allow=True,
        code=ToolCode.OK,
        state=verdict.state,
        score=verdict.score,
        reason=f"shadow: would have been refused ({verdict.code.value}): {verdict.reason}",
        instruction="",
        stored_result=None,
        valid_ms=verdict.valid_ms,
        latency_ms=verdict.latency_ms,
        usage=verdict.usage,
    )
