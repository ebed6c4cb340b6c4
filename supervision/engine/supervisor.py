"""The engine's front: a `Supervisor` per policy, a `CallSupervisor` per call.

    supervisor = Supervisor(MirrorConfig(llm=OpenAIClient(...), policies=["Never confirm a refund."]))
    call = supervisor.call(SupervisorContext(call_id="c-1"))
    verdict = await call.judge_turn(call.payload(customer_text="...", agent_text="..."))
    if verdict.should_intervene: ...

Time is the running event loop's (`loop.time()`), so tests run on virtual time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from supervision.engine.config import MirrorConfig
from supervision.engine.context import (
    Correction,
    HistoryEntry,
    JudgingState,
    Role,
    SupervisorContext,
    ToolCallIntent,
    ToolCode,
    ToolVerdict,
    TurnPayload,
    Verdict,
)
from supervision.engine.intervention.generator import CorrectionWriter, OnCandidate
from supervision.engine.intervention.templates import buffer_lines, correction_lines, opener_lines
from supervision.engine.llm.deadline import DeadlineAsker
from supervision.engine.policy.compiler import (
    MAX_HISTORY_CHARS,
    MAX_HISTORY_ENTRIES,
    CompiledPolicy,
    compile_policy,
)
from supervision.engine.scorer.llm import LLMScorer
from supervision.engine.scorer.pregate import PreGate
from supervision.engine.scorer.tool_gate import BeforeAllow, FinishedTool, OnVerdict, ToolGate

logger = logging.getLogger(__name__)

Withheld = Literal["shadow", "limit", "cooldown"]

MAX_ARGS_SHOWN_CHARS = 400
MAX_RESULT_SHOWN_CHARS = 800


class Supervisor:
    """Supervises calls by one configuration. Shared by all calls under it; make one per policy version."""

    def __init__(self, config: MirrorConfig) -> None:
        self.config = config
        self.policy: CompiledPolicy = compile_policy(config)
        irreversible = frozenset(name.casefold() for name in config.irreversible_tools)

        def is_irreversible(intent: ToolCallIntent) -> bool:
            return intent.irreversible or intent.name.strip().casefold() in irreversible

        self.is_irreversible: Callable[[ToolCallIntent], bool] = is_irreversible
        self.pregate = PreGate(config)
        self._asker = DeadlineAsker(config.llm)
        self.scorer = LLMScorer(self._asker, self.policy, config, is_irreversible)
        self.writer = CorrectionWriter(self._asker, self.scorer, self.policy, config, is_irreversible)

    def call(self, context: SupervisorContext) -> CallSupervisor:
        """Starts supervising a call. The context's tenant is the configuration's unless it names one."""
        if context.tenant_id is None and self.config.tenant_id is not None:
            context = replace(context, tenant_id=self.config.tenant_id)
        gate = ToolGate(self._asker, self.policy, self.config, self.is_irreversible)
        return CallSupervisor(self, context, gate)

    async def aclose(self) -> None:
        """Waits for questions under way, then closes the LLM client."""
        await self._asker.aclose()
        await self.config.llm.aclose()


@dataclass(slots=True)
class _Note:
    """A line of the history that may still change: `key` is the turn or tool call that it tells of."""

    key: str
    entry: HistoryEntry


class CallSupervisor:
    """One supervised call: its history, its tool ledger, and how its turns were judged.

    Bounded: 60 history entries of 2,000 characters, 500 irreversible tool calls.
    """

    def __init__(self, supervisor: Supervisor, context: SupervisorContext, gate: ToolGate) -> None:
        self.context = context
        self.config = supervisor.config
        self.policy = supervisor.policy
        self.states: Counter[JudgingState] = Counter()
        """How many turns ended in each judging state."""
        self.interventions = 0
        """How many interventions were noted with `note_intervention`."""
        self._supervisor = supervisor
        self._gate = gate
        self._notes: deque[_Note] = deque(maxlen=MAX_HISTORY_ENTRIES)
        self._acted_at: dict[str | None, float] = {}
        self._templates_used = 0
        self._openers_used = 0
        # After an intervention the agent is off its script: until a later turn was judged, none is skipped. This is
        # the number of interventions that a judged turn came after.
        self._judged_after = 0

    # Turns

    def payload(
        self,
        *,
        customer_text: str,
        agent_text: str,
        tool_calls: Sequence[ToolCallIntent] = (),
        turn_id: str = "",
        language: str = "en",
    ) -> TurnPayload:
        """A turn for review with this call's history, without what belongs to the turn itself.

        The caller's words may have been noted before the agent's answer is reviewed: those at the end of the history
        that are in `customer_text` are left out, so that no turn is compared with itself.
        """
        return TurnPayload(
            customer_text,
            agent_text,
            tuple(tool_calls),
            self._history_before(customer_text, turn_id),
            turn_id,
            language,
        )

    async def judge_turn(self, payload: TurnPayload) -> Verdict:
        """Judges a turn within `semantic_review_timeout_s`, with `payload.history` as it is given.

        Every turn gets a verdict in exactly one state, which `states` and `coverage` count; nothing is raised but
        `asyncio.CancelledError`. `skipped` are, with the reason in `detail`, a turn with an empty `agent_text` ("no
        speech") and what the pre-gate lets pass, which is nothing after an intervention until a turn was judged.
        """
        interventions = self.interventions
        try:
            verdict = self._skipped(payload) or await self._supervisor.scorer.score(payload)
        except Exception as error:
            _log_broken("judging a turn", error)
            detail = f"the engine failed ({type(error).__name__})"
            threshold = self.config.intervention_threshold
            verdict = Verdict(payload.turn_id, JudgingState.FAILED, None, None, "", "", threshold, 0, detail=detail)
        if verdict.state is JudgingState.JUDGED:
            self._judged_after = max(self._judged_after, interventions)
        self.states[verdict.state] += 1
        return verdict

    def _skipped(self, payload: TurnPayload) -> Verdict | None:
        """The verdict of a turn that needs no judge; None when it does."""
        if self._judged_after < self.interventions:
            return None
        try:
            decision = self._supervisor.pregate.decide(payload)
        except Exception as error:
            # A turn that cannot be looked at is judged.
            _log_broken("the pre-gate", error)
            return None
        if decision.score:
            return None
        threshold = self.config.intervention_threshold
        return Verdict(payload.turn_id, JudgingState.SKIPPED, None, None, "", "", threshold, 0, detail=decision.reason)

    def note_shed(self) -> None:
        """Counts a turn that was not judged because of overload."""
        self.states[JudgingState.SHED] += 1

    @property
    def coverage(self) -> float | None:
        """The share (0 to 1) of this call's turns that were judged or skipped; None before the first."""
        turns = self.states.total()
        if not turns:
            return None
        return (self.states[JudgingState.JUDGED] + self.states[JudgingState.SKIPPED]) / turns

    # Tools

    async def gate_tools(
        self,
        intents: Sequence[ToolCallIntent],
        *,
        customer_text: str,
        agent_text: str = "",
        turn_id: str = "",
        keys: Mapping[str, str] | None = None,
        timeout_ms: int | None = None,
        before_allow: BeforeAllow | None = None,
        on_verdict: OnVerdict | None = None,
    ) -> list[ToolVerdict]:
        """Decides whether tool calls may run; one verdict for each, in order, at the latest after
        min(`timeout_ms`, `tool_gate_timeout_ms`) milliseconds.

        All calls that need judging are one question. A cooldown, a clean turn or shadow mode change nothing here.
        Irreversible calls (listed in `irreversible_tools`, or flagged) that cannot be judged are blocked or allowed by
        `tool_gate_on_failure`; other calls are allowed then. `keys` gives, by tool call id, what tells two wanted
        identical orders apart. The same id, tool and arguments asking again get the same verdict.

        `before_allow` is awaited for each irreversible call before it is allowed, for writing the decision down: its
        exceptions, or its missing the deadline, are failures of the gate; `ToolDenied` refuses the call.
        `on_verdict` gets each verdict as soon as it is known, which is before the others when a repeat has to wait.

        Raises nothing but `asyncio.CancelledError`; calls that were not allowed by then may be asked for again.
        """
        try:
            return await self._gate_tools(
                intents, customer_text, agent_text, turn_id, keys, timeout_ms, before_allow, on_verdict
            )
        except Exception as error:
            _log_broken("gating tool calls", error)
            return [self._gate_broke(intent, error) for intent in intents]

    async def _gate_tools(
        self,
        intents: Sequence[ToolCallIntent],
        customer_text: str,
        agent_text: str,
        turn_id: str,
        keys: Mapping[str, str] | None,
        timeout_ms: int | None,
        before_allow: BeforeAllow | None,
        on_verdict: OnVerdict | None,
    ) -> list[ToolVerdict]:
        verdicts = await self._gate.decide(
            intents,
            customer_text=customer_text,
            agent_text=agent_text,
            turn_id=turn_id,
            history=self._history_before(customer_text, turn_id),
            keys=keys,
            timeout_ms=timeout_ms,
            before_allow=before_allow,
            on_verdict=on_verdict,
        )
        for intent, verdict in zip(intents, verdicts, strict=True):
            serial = self._gate.pending(intent.id)
            if verdict.code is ToolCode.DUPLICATE or (verdict.allow and serial is None):
                # The history tells already how it ended.
                continue
            what = "was allowed to run, no result yet"
            if not verdict.allow:
                what = f"was blocked, it did not run: {verdict.reason}"
            self._note(f"tool:{serial}" if serial else "", "tool", f"{_shown_call(intent)} {what}")
        return verdicts

    def _gate_broke(self, intent: ToolCallIntent, error: Exception) -> ToolVerdict:
        allow = not self._supervisor.is_irreversible(intent) or self.config.tool_gate_on_failure == "allow"
        allow = allow and intent.error is None and isinstance(intent.args, dict)
        return ToolVerdict(
            id=intent.id,
            name=intent.name,
            allow=allow,
            code=ToolCode.FAILED,
            state=JudgingState.FAILED,
            score=None,
            reason=f"the engine failed ({type(error).__name__})",
            instruction="" if allow else "It did not run. Tell the customer that this cannot be done right now.",
            stored_result=None,
            valid_ms=0,
            latency_ms=0,
        )

    def tool_done(self, tool_id: str, ok: bool, result: Any = None, *, cancelled: bool = False) -> FinishedTool | None:
        """Takes note that a gated tool call has ended, in the ledger and in the history.

        With `ok` false, or `cancelled`, it did not run, and the same call may be asked for again. None when the gate
        never saw this id (tools that were not gated go to `note_tool`).
        """
        finished = self._gate.done(tool_id, ok, result, cancelled=cancelled)
        if finished is None or finished.again:
            return finished
        if cancelled:
            outcome = "was cancelled, it did not run"
        elif not ok:
            outcome = f"failed: {_shown(result, MAX_RESULT_SHOWN_CHARS)}"
        else:
            outcome = "ran although it was blocked" if finished.refused else "ran"
            outcome += f": {_shown(result, MAX_RESULT_SHOWN_CHARS)}"
        self._note(f"tool:{finished.serial}", "tool", f"{_shown_call(finished.intent)} {outcome}")
        return finished

    # History

    @property
    def history(self) -> tuple[HistoryEntry, ...]:
        """What was said and done so far, oldest first."""
        return tuple(note.entry for note in self._notes)

    def note_customer(self, text: str) -> None:
        """The caller said this. The same words twice running count once."""
        text = text.strip()
        if self._notes and self._notes[-1].entry == HistoryEntry("customer", text[:MAX_HISTORY_CHARS]):
            return
        self._note("", "customer", text)

    def note_agent(self, text: str, heard: str | None = None, *, turn_id: str = "") -> None:
        """The agent said this; of it the caller heard `heard`, or all of it when that is None.

        With a `turn_id`, noting the turn again (when it is known what was heard) replaces what was noted first.
        """
        if heard is not None and heard.strip() != text.strip():
            heard = heard.strip()
            text = f"{heard} … [cut off here; the rest was not heard]" if heard else "[cut off before it was heard]"
        self._note(f"turn:{turn_id}" if turn_id else "", "agent", text)

    def note_tool(self, name: str, outcome: str) -> None:
        """A tool that did not go through the gate ran, with this outcome."""
        self._note("", "tool", f"{name}: {outcome}")

    def note_mirror(self, text: str) -> None:
        """Mirror said this in the agent's place."""
        self._note("", "mirror", text)

    def _note(self, key: str, role: Role, text: str) -> None:
        text = text.strip()[:MAX_HISTORY_CHARS]
        if not text:
            return
        entry = HistoryEntry(role, text)
        if key:
            for note in self._notes:
                if note.key == key:
                    note.entry = entry
                    return
        self._notes.append(_Note(key, entry))

    def _history_before(self, customer_text: str, turn_id: str) -> tuple[HistoryEntry, ...]:
        """The history without what belongs to the turn that answers `customer_text`."""
        notes = [note.entry for note in self._notes if not turn_id or note.key != f"turn:{turn_id}"]
        words = " ".join(customer_text.split()).casefold()
        while notes and notes[-1].role == "customer" and " ".join(notes[-1].text.split()).casefold() in words:
            notes.pop()
        return tuple(notes)

    # Interventions

    def withheld(self, verdict: Verdict) -> Withheld | None:
        """Why a verdict that calls for an intervention should not be acted upon now, or None.

        `shadow`: the policy only watches; `limit`: `max_interventions_per_call` is used up; `cooldown`: the same rule
        acted less than `cooldown_s` ago and its severity is not `high`.
        """
        if self.config.mode == "shadow":
            return "shadow"
        if self.interventions >= self.config.max_interventions_per_call:
            return "limit"
        acted_at = self._acted_at.get(verdict.rule)
        if acted_at is None or self.policy.severity(verdict.rule) == "high":
            return None
        recent = asyncio.get_running_loop().time() - acted_at < self.config.cooldown_s
        return "cooldown" if recent else None

    def note_intervention(self, verdict: Verdict) -> None:
        """An intervention because of this verdict began; `withheld` counts from here, and the next turn is judged."""
        self.interventions += 1
        self._acted_at[verdict.rule] = asyncio.get_running_loop().time()

    def buffer_lines(self, language: str) -> tuple[str, ...]:
        """Buffer lines for a language in order of use, the policy's own first; empty when there are none."""
        return buffer_lines(language, self.config.buffer_text)

    async def correct(
        self,
        payload: TurnPayload,
        verdict: Verdict,
        *,
        opener: bool = False,
        timeout_s: float = 4.0,
        on_candidate: OnCandidate | None = None,
    ) -> Correction:
        """What to say instead of a violating turn, within `timeout_s` seconds.

        It is what the model writes for this turn; if that is late or not clean, what the judge suggested in
        `verdict.correction`; else a template in the call's language. `Correction.detail` says why it is not the first.
        Either text of the model must have at most 20 words, be said by the agent to the customer, not speak of checks
        or systems, not repeat what the judge quoted, end with a question or the next step, and be judged clean under
        the same policy. `opener` begins it with a retraction, for a turn that was heard to its end. The text is empty
        when the language has no template and no text of the model is any good.

        `on_candidate` gets every text that may be spoken as soon as that is known, the template at once and each
        later one better than the one before, so that it can be rendered while a better one is awaited; the last one is
        what is returned. It must not raise. To use the best one so far at any moment, cancel.

        Raises nothing but `asyncio.CancelledError`.
        """
        start = self._next(opener_lines(payload.language), self._openers_used) if opener else ""
        template = self._next(correction_lines(payload.language), self._templates_used)
        best = Correction(f"{start} {template}".strip(), "template")

        def candidate(correction: Correction) -> None:
            nonlocal best
            best = correction
            if on_candidate is not None:
                on_candidate(correction)

        try:
            best = await self._supervisor.writer.write(
                payload, verdict, opener=start, template=template, timeout_s=timeout_s, on_candidate=candidate
            )
        except Exception as error:
            _log_broken("writing a correction", error)
            failed = f"the engine failed ({type(error).__name__})"
            best = replace(best, detail=f"{best.detail}; {failed}" if best.detail else failed)
        finally:
            # Whoever cancels speaks the best there is.
            self._openers_used += opener
            self._templates_used += best.source == "template"
        return best

    @staticmethod
    def _next(lines: Sequence[str], used: int) -> str:
        return lines[used % len(lines)] if lines else ""


def _log_broken(doing: str, error: Exception) -> None:
    # With the way to the error but without its message, which may hold what was said in the call.
    where = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s failed inside the engine with %s\n%s", doing, type(error).__name__, where)


def _shown_call(intent: ToolCallIntent) -> str:
    return f"{intent.name} {_shown(intent.args, MAX_ARGS_SHOWN_CHARS)}"


def _shown(value: Any, limit: int) -> str:
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return "(not JSON)"
    return text if len(text) <= limit else f"{text[:limit]} …"


def tool_entry(intent: ToolCallIntent, outcome: str, result: Any = None) -> HistoryEntry:
    """The line of a history that tells of a tool call: what was called, and what became of it (`ran`, `failed`)."""
    told = f"{_shown_call(intent)} {outcome}"
    if result is not None:
        told += f": {_shown(result, MAX_RESULT_SHOWN_CHARS)}"
    return HistoryEntry("tool", told[:MAX_HISTORY_CHARS])
