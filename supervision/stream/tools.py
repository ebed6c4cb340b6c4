"""The tools of a call: which may run, what the agent is told, and what the record says of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from mirror_saas.ids import uuid7
from supervision.engine.config import DEFAULT_IRREVERSIBLE_TOOLS
from supervision.engine.context import JudgingState, ToolCallIntent, ToolCode, ToolVerdict
from supervision.engine.supervisor import CallSupervisor
from supervision.recorder import events as record
from supervision.recorder.events import CallLog
from supervision.recorder.recorder import JournalUnavailable, Recorder
from supervision.stream import frames
from supervision.stream.turns import TurnState

COMMIT_WITHIN_S: Final = 1.0  # a journal that takes longer to write a permission down has failed
MAX_TOOLS_KEPT: Final = 512


@dataclass(slots=True)
class ToolState:
    """A tool call that was asked about."""

    intent: ToolCallIntent
    decision_id: UUID
    decided: asyncio.Future[ToolVerdict]
    asked_at: float
    turn_ref: str | None = None
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
        turn_of: Callable[[str], TurnState | None],
        to_agent: Callable[[dict[str, Any]], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        at_ms: Callable[[], int],
    ) -> None:
        self.blocked = 0  # tools that were refused
        self._supervisor = supervisor
        self._mode = mode
        self._log = log
        self._recorder = recorder
        self._turn_of = turn_of
        self._to_agent = to_agent
        self._spawn = spawn
        self._at_ms = at_ms
        self._loop = asyncio.get_running_loop()
        self._tools: dict[str, ToolState] = {}
        self._ended = False

    # ------------------------------------------------------------------ what the agent asks and tells

    def ask(self, tool: frames.Tool, turn: TurnState | None, customer_text: str) -> None:
        """Take `mirror.tool`; its verdict goes to the agent when it is known."""
        known = self._tools.get(tool.intent.id)
        if known is not None and known.repeated_by(tool.intent, tool.turn_ref):
            self._spawn(self._repeat_verdict(known))
            return
        keys = {tool.intent.id: tool.key} if tool.key is not None else {}
        asked = self._asked(tool.intent, tool.turn_ref)
        self._spawn(self._gate([asked], turn, customer_text, keys, tool.timeout_ms))

    def ask_all(self, intents: Sequence[ToolCallIntent], turn: TurnState, customer_text: str) -> None:
        """Take the tools of a reported turn; each gets its verdict."""
        tools = []
        for intent in intents:
            known = self._tools.get(intent.id)
            if known is not None and known.repeated_by(intent, turn.ref):
                self._spawn(self._repeat_verdict(known))
            else:
                tools.append(self._asked(intent, turn.ref))
        if tools:
            self._spawn(self._gate(tools, turn, customer_text, keys={}, timeout_ms=None))

    def done(self, done: frames.ToolDone) -> None:
        """Take `mirror.tool_done`.

        Raises:
            FrameError: No such tool call was asked about.
        """
        tool = self._tools.get(done.ref)
        if tool is None:
            raise frames.FrameError("unknown_id", "id: no such tool call was asked about", done.ref)
        tool.finished = True
        if self._supervisor is not None:
            self._supervisor.tool_done(done.ref, done.ok, done.result, cancelled=done.cancelled)
        self._record(
            record.ToolDone(
                decision_id=tool.decision_id,
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

    def ended(self) -> None:
        """The call is over: nothing may run any more, and nobody is told anything."""
        self._ended = True

    # ------------------------------------------------------------------ the gate

    def _asked(self, intent: ToolCallIntent, turn_ref: str | None) -> ToolState:
        asked = ToolState(intent, uuid7(), self._loop.create_future(), self._loop.time(), turn_ref)
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
                await self._tool_decided(tool, verdict, turn, started)
            return
        verdicts = await self._supervisor.gate_tools(
            [tool.intent for tool in tools],
            customer_text=customer_text,
            agent_text=turn.payload.agent_text if turn is not None else "",
            turn_id=turn.ref if turn is not None else "",
            keys=keys,
            timeout_ms=timeout_ms,
        )
        limit_ms = self._supervisor.config.tool_gate_timeout_ms
        if timeout_ms is not None:
            limit_ms = min(limit_ms, timeout_ms)
        turn = turn or self._turn_of(tools[0].turn_ref or "")
        clean = await self._speech_clean(turn, started + limit_ms / 1000)
        for tool, verdict in zip(tools, verdicts, strict=True):
            await self._tool_decided(tool, self._with_speech(tool, verdict, clean), turn, started)

    async def _speech_clean(self, turn: TurnState | None, until: float) -> bool | None:
        """Whether the words of the tool's own turn passed; None when that is not known by ``until``."""
        if turn is None:
            return True
        if not turn.judged.done():
            await asyncio.wait({turn.judged}, timeout=max(0.0, until - self._loop.time()))
        return not turn.flagged if turn.judged.done() else None

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
        self, tool: ToolState, verdict: ToolVerdict, turn: TurnState | None, started: float
    ) -> None:
        if self._mode == "shadow" and not verdict.allow:
            verdict = _shadowed(verdict)
        if self._ended and verdict.allow:
            self._take_back(tool)
            verdict = _refused(verdict, ToolCode.CANCELLED, verdict.state, "the call ended")
        irreversible = self._irreversible(tool.intent)
        self._record_tool(tool, verdict, turn, irreversible, started)
        if irreversible and verdict.allow:
            # What cannot be undone may run only when the permission is on disk.
            try:
                async with asyncio.timeout(COMMIT_WITHIN_S):
                    await self._recorder.commit(self._log.call_id)
            except (JournalUnavailable, TimeoutError):
                if not self._fails_open():
                    self._take_back(tool)
                    verdict = _refused(
                        verdict, ToolCode.FAILED, JudgingState.FAILED, "the decision could not be recorded"
                    )
                    self._record_tool(tool, verdict, turn, irreversible, started)
        self._tool_answered(tool, verdict)

    def _take_back(self, tool: ToolState) -> None:
        """A permission of the gate that does not reach the agent: the call may be asked for again."""
        if self._supervisor is not None and self._mode != "shadow":
            self._supervisor.tool_done(tool.intent.id, False, None, cancelled=True)

    def _tool_answered(self, tool: ToolState, verdict: ToolVerdict) -> None:
        if not verdict.allow:
            self.blocked += 1
        if not tool.decided.done():
            tool.decided.set_result(verdict)
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
