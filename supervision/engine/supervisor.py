"""The engine's front: a `Supervisor` per policy, a `CallSupervisor` per call.

    supervisor = Supervisor(MirrorConfig(llm=OpenAIClient(...), policies=["Never confirm a refund."]))
    async with supervisor.attach(handler, tts_provider=my_tts) as sup:  # a call with its audio
        sup.bind_call(call_id)
        verdict = await sup.review_turn(customer_text="...", primary_text="...", tool_calls=[...])
        if verdict.should_intervene: ...

    call = supervisor.call(SupervisorContext(call_id="c-1"))            # a call without
    verdict = await call.review_turn(customer_text="...", primary_text="...")

Time is the running event loop's (`loop.time()`), so tests run on virtual time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from supervision.engine.approval import Approver, PersonGate
from supervision.engine.config import Delivery, MirrorConfig
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
    Withheld,
)
from supervision.engine.intervention.generator import CorrectionWriter, OnCandidate
from supervision.engine.intervention.templates import buffer_lines, correction_lines, opener_lines
from supervision.engine.llm.deadline import DeadlineAsker
from supervision.engine.llm.limiter import QuestionLimiter, Risk, asking
from supervision.engine.llm.protocol import close_client
from supervision.engine.policy.compiler import MAX_HISTORY_CHARS, CompiledPolicy, compile_policy
from supervision.engine.scorer.llm import LLMScorer
from supervision.engine.scorer.pregate import PreGate, PreGateDecision
from supervision.engine.scorer.protocol import TurnScorer
from supervision.engine.scorer.streaming import StreamedTurn
from supervision.engine.scorer.tool_gate import (
    BeforeAllow,
    Digest,
    FinishedTool,
    Ledger,
    LedgerJournal,
    LedgerKey,
    OnVerdict,
    ToolGate,
)
from supervision.engine.state.call_memory import CallMemory
from supervision.engine.state.carried import CarriedMemory
from supervision.engine.state.memory import MemoryStateStore
from supervision.engine.state.protocol import CallKey, StateStore
from supervision.engine.tool_loop import LoopResult, ToolExecutor, run_tool_loop

if TYPE_CHECKING:
    from supervision.engine.attached import AttachedCall

logger = logging.getLogger(__name__)

MAX_IN_A_ROW: Final = 2  # interventions without a clean turn between them; a third apology convinces nobody

ToolCalls = Iterable[ToolCallIntent | Mapping[str, Any]]
"""Tool calls as `ToolCallIntent.of` reads them."""

MAX_ARGS_SHOWN_CHARS = 400
MAX_RESULT_SHOWN_CHARS = 800
OVERRIDE_TTL_S = 300.0
# How long the memory of a call that was left is kept where nobody gave a store.
RECONNECT_WITHIN_S = 900.0


class Supervisor:
    """Supervises calls by one configuration. Shared by all calls under it; make one per policy version.

    `state` keeps what is known of each call, by tenant and call id, so that a reconnect under the same call id goes on
    where it stopped: a `MemoryStateStore` of this supervisor (15 minutes) unless another is given, which stays its
    owner's to close. `clock` gives seconds since 1970, as everybody who shares the store sees them. `limiter` bounds
    how many questions are with the model at a time, see `ScoringPool`: what gets no place is `shed`; an irreversible
    tool call waits for its place to its deadline, and is then decided by `tool_gate_on_failure`. `approver` asks a
    person about the tools in `approval_tools`. Raises `TypeError` for a `state` that is no `StateStore`.
    """

    def __init__(
        self,
        config: MirrorConfig,
        state: StateStore | None = None,
        *,
        clock: Callable[[], float] = time.time,
        limiter: QuestionLimiter | None = None,
        approver: Approver | None = None,
    ) -> None:
        if state is not None and not isinstance(state, StateStore):
            raise TypeError(
                "state: give a StateStore such as MemoryStateStore(), RedisStateStore(url) or PostgresStateStore(dsn); "
                f"got {type(state).__name__}"
            )
        self.config = config
        self.approver = approver
        self.state: StateStore = state if state is not None else MemoryStateStore(ttl_s=RECONNECT_WITHIN_S)
        self.clock = clock
        self.policy: CompiledPolicy = compile_policy(config)
        irreversible = frozenset(name.casefold() for name in config.irreversible_tools)

        def is_irreversible(intent: ToolCallIntent) -> bool:
            return intent.irreversible or intent.name.strip().casefold() in irreversible

        self.is_irreversible: Callable[[ToolCallIntent], bool] = is_irreversible
        self.pregate = PreGate(config)
        if config.secrets is not None and callable(use_secrets := getattr(config.llm, "use_secrets", None)):
            use_secrets(config.secrets)
        self._asker = DeadlineAsker(config.llm, limiter, only_watches=config.mode == "shadow")
        self.scorer = self._make_scorer()
        self._preparing: asyncio.Task[Any] | None = None
        self.writer = CorrectionWriter(self._asker, self.scorer, self.policy, config, is_irreversible)

    def _make_scorer(self) -> TurnScorer:
        config = self.config
        if config.scoring == "logprob":
            from supervision.engine.scorer.logprob import LogprobScorer

            return LogprobScorer(self._asker, self.policy, config, self.is_irreversible)
        return LLMScorer(self._asker, self.policy, config, self.is_irreversible)

    def call(
        self, context: SupervisorContext, *, journal: LedgerJournal | None = None, digest: Digest | None = None
    ) -> CallSupervisor:
        """Starts supervising a call without its audio. The context's tenant is the configuration's unless it names one.

        What the call remembers is its own; `CallSupervisor.bind_call` joins it with what the state store knows.
        `journal` is where its irreversible tool calls are written down instead, with `digest` in place of SHA-256 for
        their arguments.
        """
        self.prepare()
        return CallSupervisor(self, context, journal=journal, digest=digest)

    def prepare(self) -> None:
        """Asks the model, once and in the background, for what its way of scoring needs once per policy, so that the
        first turn need not wait for it. The first call does this by itself. Without a running loop it does nothing."""
        prepare = getattr(self.scorer, "prepare", None)
        if prepare is None or self._preparing is not None:
            return
        with contextlib.suppress(RuntimeError):
            loop = asyncio.get_running_loop()
            with asking(Risk.BACKGROUND):
                self._preparing = loop.create_task(prepare(), name="prepare scoring")

    def attach(
        self,
        handler: Any = None,
        *,
        tts_provider: Any = None,
        tts_sink: Any = None,
        language: str = "en",
        **options: Any,
    ) -> AbstractAsyncContextManager[AttachedCall]:
        """Supervises a call with its audio; see `supervision.engine.attached.attach`, which has the options.

        `handler` is a `plivo_stream` handler, a `RawPlivoWSAdapter`, or a Starlette, FastAPI or `websockets` socket;
        `tts_sink` takes its place where there is no way back to the caller's audio. `tts_provider` is the voice.
        `language` is a BCP 47 tag.
        """
        from supervision.engine.attached import attach

        self.prepare()
        return attach(self, handler, tts_provider=tts_provider, tts_sink=tts_sink, language=language, **options)

    async def review(
        self,
        *,
        customer_text: str,
        primary_text: str,
        tool_calls: ToolCalls = (),
        history: Iterable[HistoryEntry | Mapping[str, str]] = (),
        turn_id: str = "",
        language: str = "en",
    ) -> Verdict:
        """Judges one turn on its own, its words and its tool calls at the same time: detection only, of no call.

        `history` is what was said before it, oldest first, as `HistoryEntry`s or mappings with `role` and `text`.
        Nothing is remembered, so no tool call is a duplicate and nothing is in cooldown. Raises `TypeError` or
        `ValueError` for arguments that are none; what goes wrong in judging is the verdict's state and detail.
        """
        call = CallSupervisor(self, SupervisorContext(call_id=""))
        payload = TurnPayload(
            customer_text, primary_text, call.intents(tool_calls), map(_history_entry, history), turn_id, language
        )
        return await call.judged_with_tools(payload)

    async def aclose(self) -> None:
        """Waits for questions under way, then closes the LLM client if it can be. The state store is not closed."""
        if self._preparing is not None:
            self._preparing.cancel()
            await asyncio.wait({self._preparing})
        await self._asker.aclose()
        await close_client(self.config.llm)


@dataclass(slots=True)
class _Stream:
    """A turn whose text is arriving. `after` is how many interventions came before it; `counted`: it is in the call's
    `states` already; `told`: its agent has had a verdict."""

    turn: StreamedTurn
    payload: TurnPayload
    after: int
    counted: bool = False
    told: bool = False
    tools: dict[str, ToolCallIntent] = field(default_factory=dict)
    gates: list[asyncio.Task[list[ToolVerdict]]] = field(default_factory=list)
    verdicts: dict[str, ToolVerdict] = field(default_factory=dict)


class CallSupervisor:
    """One supervised call: its history, its tool ledger, and how its turns were judged.

    Bounded: 60 history entries of 2,000 characters, 500 irreversible tool calls.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        context: SupervisorContext,
        *,
        journal: LedgerJournal | None = None,
        digest: Digest | None = None,
    ) -> None:
        if context.tenant_id is None and supervisor.config.tenant_id is not None:
            context = replace(context, tenant_id=supervisor.config.tenant_id)
        self.context = context
        self.language = "en"
        """The call's language (a BCP 47 tag), unless a turn names another."""
        self.config = supervisor.config
        self.policy = supervisor.policy
        self.states: Counter[JudgingState] = Counter()
        """How many turns ended in each judging state."""
        self.tool_states: Counter[JudgingState] = Counter()
        """How many tool calls ended in each judging state."""
        self._supervisor = supervisor
        # What tells the ids that are made here from those of the call's earlier connections.
        self._run = secrets.token_hex(4)
        self._numbered = 0
        self._gate = ToolGate(
            supervisor._asker,
            supervisor.policy,
            supervisor.config,
            supervisor.is_irreversible,
            run=f"{self._run}-",
            digest=digest,
        )
        self._memory = CallMemory(self._gate.ledger, supervisor.clock)
        self._gate.ledger.journal = self._memory if journal is None else journal
        self._bound = False
        self._templates_used = 0
        self._openers_used = 0
        # After an intervention the agent is off its script: until a later turn was judged, none is skipped. This is
        # the number of interventions that a judged turn came after.
        self._judged_after = 0
        self._in_a_row = 0  # interventions without a clean turn since
        # What the pre-gate said of the newest turn: whether it is held is asked before it is judged.
        self._looked_at: tuple[TurnPayload | None, PreGateDecision | None] = (None, None)
        self._stream: _Stream | None = None
        self._finishing: set[asyncio.Task[None]] = set()
        self._noted_by_review: str | None = None
        self._persons = PersonGate(
            self.config,
            supervisor.approver,
            serial_of=self._gate.pending,
            refused=lambda tool_id: self.tool_done(tool_id, False, cancelled=True),
        )
        self._reviewed_by_loop: tuple[TurnPayload, Verdict] | None = None

    # The call

    def bind_call(self, call_id: str, *, tenant_id: str | None = None) -> None:
        """Says which call this is, and begins to take over what the state store knows of it under (tenant, call id).

        Does not wait: whoever judges next does, for at most 1.5 seconds (see `degraded`). Needs a running event loop.
        Binding again to the same call changes nothing. Raises `ValueError` for ids that are blank or have more than
        200 characters, `RuntimeError` when this is another call already.
        """
        key = CallKey(tenant_id or self.context.tenant_id, call_id)
        if self._bound:
            if (self.context.tenant_id, self.context.call_id) != (key.tenant_id, key.call_id):
                raise RuntimeError(f"this supervises the call {self.context.call_id} already; attach again for another")
            return
        self._memory.open(self._supervisor.state, key)
        self.context = replace(self.context, tenant_id=key.tenant_id, call_id=key.call_id)
        self._bound = True

    async def opened(self) -> None:
        """Returns when what the state store knows of the call is here, at the latest 1.5 seconds after it was asked."""
        await self._memory.opened()

    @property
    def degraded(self) -> str | None:
        """Why what this call remembers does not reach the state store at the moment, fit for people; None while it
        does, and while the call is not bound. Irreversible tool calls are then decided by `tool_gate_on_failure`."""
        return self._memory.degraded

    async def aclose(self, *, ended: bool = False) -> None:
        """Ends supervision: judges the tail of a stream that nobody flushed, and writes what is left to the store.

        What the store knows of the call stays for a reconnect, until it expires; with `ended` it is removed.
        """
        self._abandon_stream()
        while self._finishing:
            await asyncio.wait(self._finishing)
        await self._memory.close(ended=ended)

    async def __aenter__(self) -> Self:
        if self.context.call_id:
            self.bind_call(self.context.call_id)
            await self.opened()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def carried(self) -> CarriedMemory:
        """What this call remembers, for the process that goes on with it."""
        return self._memory.carried()

    def carry_on(self, carried: CarriedMemory) -> None:
        """Goes on with a call that another process supervised until now: its history, its irreversible tool calls, its
        interventions. Before the first turn, and instead of `bind_call`."""
        self._memory.carry_on(carried)

    # Turns

    def payload(
        self,
        *,
        customer_text: str,
        agent_text: str | None = None,
        tool_calls: Sequence[ToolCallIntent] = (),
        turn_id: str = "",
        language: str = "en",
        primary_text: str | None = None,
    ) -> TurnPayload:
        """A turn for review with this call's history, without what belongs to the turn itself.

        `agent_text` and `primary_text` are two names for what the agent answers. The caller's words may have been noted
        before the agent's answer is reviewed: those at the end of the history that are in `customer_text` are left out,
        so that no turn is compared with itself.
        """
        return TurnPayload(
            customer_text,
            agent_text,
            tool_calls,
            self._history_before(customer_text, turn_id),
            turn_id,
            language,
            primary_text=primary_text,
        )

    async def judge_turn(self, payload: TurnPayload) -> Verdict:
        """Judges a turn within `semantic_review_timeout_s`, with `payload.history` as it is given.

        Every turn gets a verdict in exactly one state, which `states` and `coverage` count; nothing is raised but
        `asyncio.CancelledError`. `skipped` are, with the reason in `detail`, a turn with an empty `agent_text` ("no
        speech") and what the pre-gate lets pass, which is nothing after an intervention until a turn was judged.
        """
        interventions = self.interventions
        verdict = await self._scored(payload)
        self._count(verdict, interventions)
        return verdict

    @property
    def delivery(self) -> Delivery:
        """When this call's turns are heard; in shadow mode at once, whatever the policy says."""
        return "stream_first" if self.config.mode == "shadow" else self.config.delivery

    def holds(self, payload: TurnPayload, *, growing: bool = False) -> bool:
        """Whether a turn's audio waits for its verdict (`delivery`). ``growing``: its text has only begun to arrive, so
        that nothing is known of it yet."""
        if self.delivery == "stream_first":
            return False
        return self.delivery == "hold_all" or growing or self._skipped(payload) is None

    def streamed(
        self, payload: TurnPayload, *, on_answer: Callable[[Verdict, int], object] | None = None
    ) -> StreamedTurn:
        """A turn of this call that is judged at clause boundaries while its text arrives, unless the policy sets
        `streaming_mode` to false. Each question has what became of the turn's tool calls by then. Whoever finishes the
        turn counts its verdict (`note_streamed`)."""
        by_clause = self.config.streaming_mode or "streaming_mode" not in self.config.model_fields_set

        async def score(so_far: TurnPayload) -> Verdict:
            history = self._history_before(payload.customer_text, payload.turn_id)
            return await self._scored(replace(so_far, history=history))

        return StreamedTurn(score, payload, clause_by_clause=by_clause, on_answer=on_answer)

    def note_streamed(self, verdict: Verdict, interventions: int) -> None:
        """Counts the verdict of a `streamed` turn; ``interventions`` is how many there had been when it began."""
        self._count(verdict, interventions)

    async def _scored(self, payload: TurnPayload) -> Verdict:
        try:
            return self._skipped(payload) or await self._supervisor.scorer.score(payload)
        except Exception as error:
            _log_broken("judging a turn", error)
            detail = f"the engine failed ({type(error).__name__})"
            threshold = self.config.intervention_threshold
            return Verdict(payload.turn_id, JudgingState.FAILED, None, None, "", "", threshold, 0, detail=detail)

    def _count(self, verdict: Verdict, interventions: int) -> None:
        """Counts the one state that a turn ended in; `interventions` is how many there had been when it began."""
        if verdict.state is JudgingState.JUDGED:
            self._judged_after = max(self._judged_after, interventions)
            if not verdict.should_intervene and interventions == self.interventions:
                self._in_a_row = 0
        self.states[verdict.state] += 1

    def _skipped(self, payload: TurnPayload) -> Verdict | None:
        """The verdict of a turn that needs no judge; None when it does."""
        if self._judged_after < self.interventions:
            return None
        looked_at, decision = self._looked_at
        if looked_at is not payload or decision is None:
            try:
                decision = self._supervisor.pregate.decide(payload)
            except Exception as error:
                # A turn that cannot be looked at is judged.
                _log_broken("the pre-gate", error)
                return None
            self._looked_at = payload, decision
        if decision.score:
            return None
        threshold = self.config.intervention_threshold
        return Verdict(payload.turn_id, JudgingState.SKIPPED, None, None, "", "", threshold, 0, detail=decision.reason)

    async def review_turn(
        self,
        *,
        customer_text: str,
        primary_text: str | None = None,
        tool_calls: ToolCalls = (),
        agent_text: str | None = None,
        turn_id: str = "",
        language: str = "",
        keys: Mapping[str, str] | None = None,
    ) -> Verdict:
        """Judges a turn of this call, its words and its tool calls at the same time, and says what to do about it.

        `primary_text` (or `agent_text`) is what the agent is about to say; `tool_calls` are read by
        `ToolCallIntent.of`, and each gets a verdict in `Verdict.tools`; `keys` as in `gate_tools`. A turn without an id
        gets one, and `language` is the call's unless it is given. When the words call for an intervention no tool of
        the turn may run. Both are taken into the history, so they need not be noted (to do so all the same changes
        nothing); the words of a turn that calls for an intervention are not: it is for whoever intervenes to say what
        was heard.

        Raises `TypeError` for arguments that are none; else nothing but `asyncio.CancelledError`.
        """
        await self._memory.opened()
        payload = self.payload(
            customer_text=customer_text,
            agent_text=agent_text,
            primary_text=primary_text,
            tool_calls=self.intents(tool_calls),
            turn_id=turn_id or self._number("turn"),
            language=language or self.language,
        )
        return await self._review(payload, keys)

    async def _review(self, payload: TurnPayload, keys: Mapping[str, str] | None = None) -> Verdict:
        verdict = self._known_from_loop(payload)
        if verdict is not None:
            return verdict
        self.note_customer(payload.customer_text)
        verdict = await self.judged_with_tools(payload, keys)
        self._note_reviewed(payload, verdict)
        return verdict

    async def judged_with_tools(self, payload: TurnPayload, keys: Mapping[str, str] | None = None) -> Verdict:
        """Judges a turn's words and its tool calls at the same time, with `payload.history` as it is given, and joins
        the verdicts. Takes nothing into the history but what becomes of the tools. Raises nothing but
        `asyncio.CancelledError`."""
        if not payload.tool_calls:
            return self._joined(await self.judge_turn(payload), ())
        verdict, tools = await asyncio.gather(
            self.judge_turn(payload),
            self.gate_tools(
                payload.tool_calls,
                customer_text=payload.customer_text,
                agent_text=payload.agent_text,
                turn_id=payload.turn_id,
                keys=keys,
                history=payload.history,
            ),
        )
        return self._joined(verdict, tools)

    def _joined(self, verdict: Verdict, tools: Sequence[ToolVerdict]) -> Verdict:
        """One verdict on words and tools: whether to act, and what that means for the tools."""
        if tools:
            verdict = replace(
                verdict, tools=tuple(tools), latency_ms=max(verdict.latency_ms, *(tool.latency_ms for tool in tools))
            )
        refused = verdict.refused_tools if tools else ()
        if not refused and not verdict.violates:
            return verdict
        withheld = self.withheld(verdict)
        if refused and withheld in ("cooldown", "limit"):
            # Neither disables the gate: an agent whose tool call was blocked must not go on as if it had run.
            withheld = None
        if refused and not verdict.violates:
            first = refused[0]
            verdict = replace(verdict, rule=None, reason=first.reason, correction=first.instruction)
        if withheld == "shadow":
            tools = [_shadowed(tool) for tool in tools]
        elif withheld is None and verdict.violates:
            tools = [self._denied_with_words(tool) for tool in tools]
        return replace(verdict, tools=tuple(tools), withheld=withheld)

    def _denied_with_words(self, tool: ToolVerdict) -> ToolVerdict:
        if not tool.allow:
            return tool
        self.tool_done(tool.id, False, cancelled=True)
        return replace(
            tool,
            allow=False,
            code=ToolCode.DENIED,
            reason="the words of this turn broke a rule, so nothing that it wanted to do may run",
            instruction="It did not run. Go on from what is said to the customer now; ask again if it is wanted.",
            valid_ms=0,
        )

    def intents(self, calls: ToolCalls) -> tuple[ToolCallIntent, ...]:
        """Tool calls as `ToolCallIntent`s; those without an id get one. Raises `TypeError` for what is no tool call."""
        if isinstance(calls, Mapping | str):
            raise TypeError("tool_calls: give a list of tool calls")
        intents = map(ToolCallIntent.of, calls)
        return tuple(intent if intent.id else replace(intent, id=self._number("tool")) for intent in intents)

    def _number(self, what: str) -> str:
        self._numbered += 1
        return f"{what}-{self._run}-{self._numbered}"

    def _note_reviewed(self, payload: TurnPayload, verdict: Verdict) -> None:
        if verdict.should_intervene:
            return
        self.note_agent(payload.agent_text, turn_id=payload.turn_id)
        self._noted_by_review = payload.agent_text.strip()

    def _known_from_loop(self, payload: TurnPayload) -> Verdict | None:
        """The verdict of `run_supervised_loop` on these very words, once: they are one turn, judged once."""
        known, self._reviewed_by_loop = self._reviewed_by_loop, None
        if known is None or payload.tool_calls:
            return None
        judged, verdict = known
        same = (judged.customer_text, judged.agent_text) == (payload.customer_text, payload.agent_text)
        return verdict if same else None

    # Streamed turns

    async def review_stream_delta(
        self,
        *,
        customer_text: str,
        delta: str,
        tool_calls: ToolCalls | None = None,
        turn_id: str = "",
        language: str = "",
    ) -> Verdict | None:
        """Takes the next piece of a turn that is being generated, cut anywhere, and never waits for the judge.

        Returns a verdict as soon as one calls for an intervention, and again with every later piece; None until then.
        With `streaming_mode` the turn so far is judged at every clause boundary, otherwise only as a whole by
        `flush_stream`. `tool_calls` go through the gate at once; the same ones may be given again with later pieces.

        A turn begins with the first piece after `flush_stream`, with other customer words (or another `turn_id`), and
        after an intervention in the turn; the turn before it is then judged to its end all the same, and counted.
        Raises `TypeError` when `delta` is no string.
        """
        stream = self._stream
        if stream is None or not self._goes_on(stream, customer_text, turn_id):
            await self._memory.opened()
            self._abandon_stream()
            stream = self._stream = self._begin_stream(customer_text, turn_id, language)
        if tool_calls:
            self._gate_in_stream(stream, tool_calls)
        found = stream.turn.push(delta)
        # Where nothing else in the agent's loop waits, the judge's answers could not come in.
        await asyncio.sleep(0)
        found = found or stream.turn.violation
        tools = tuple(stream.verdicts.values())
        if found is None and not any(not tool.allow for tool in tools):
            return None
        verdict = self._joined(found or self._unspoken(stream.payload.turn_id), tools)
        if not verdict.should_intervene:
            return None
        stream.told = True
        if found is not None and not stream.counted:
            # Whoever stops here and never flushes has had a verdict on this turn.
            stream.counted = True
            self._count(found, stream.after)
        return verdict

    async def flush_stream(
        self,
        *,
        customer_text: str,
        tool_calls: ToolCalls | None = None,
        turn_id: str = "",
        language: str = "",
    ) -> Verdict:
        """Ends a streamed turn: its tail is judged together with all of it, and its tool calls are decided.

        Returns the worst verdict of the turn. Takes the turn into the history like `review_turn`. Raises nothing but
        `asyncio.CancelledError` and `TypeError` for arguments that are none.
        """
        stream, self._stream = self._stream, None
        if stream is None:
            return await self.review_turn(
                customer_text=customer_text,
                primary_text="",
                tool_calls=tool_calls or (),
                turn_id=turn_id,
                language=language,
            )
        if tool_calls:
            self._gate_in_stream(stream, tool_calls)
        payload = replace(stream.payload, tool_calls=tuple(stream.tools.values()))
        verdict = await self._finish_stream(stream, payload)
        payload = replace(payload, agent_text=stream.turn.text)
        verdict = self._joined(verdict, tuple(stream.verdicts.values()))
        self._note_reviewed(payload, verdict)
        return verdict

    def _goes_on(self, stream: _Stream, customer_text: str, turn_id: str) -> bool:
        """Whether a piece belongs to the turn that is arriving."""
        if turn_id:
            return stream.payload.turn_id == turn_id
        if stream.told and self.interventions > stream.after:
            # The agent answers the same words anew: what was wrong with its first answer is not wrong with this one.
            return False
        return stream.payload.customer_text.split() == customer_text.split()

    def _begin_stream(self, customer_text: str, turn_id: str, language: str) -> _Stream:
        payload = self.payload(
            customer_text=customer_text,
            agent_text="",
            turn_id=turn_id or self._number("turn"),
            language=language or self.language,
        )
        self.note_customer(customer_text)
        turn = StreamedTurn(self._scored, payload, clause_by_clause=self.config.streaming_mode)
        return _Stream(turn, payload, self.interventions)

    def _gate_in_stream(self, stream: _Stream, tool_calls: ToolCalls) -> None:
        """Sends those of the tool calls through the gate that have not been, with what was said up to now."""
        if isinstance(tool_calls, Mapping | str):
            raise TypeError("tool_calls: give a list of tool calls")
        new = []
        for place, intent in enumerate(map(ToolCallIntent.of, tool_calls)):
            if not intent.id:
                # Agents that give no ids give all calls of the turn so far, each time.
                intent = replace(intent, id=f"{stream.payload.turn_id}-{place}")
            if stream.tools.get(intent.id) != intent:
                stream.tools[intent.id] = intent
                new.append(intent)
        if new:
            stream.gates.append(asyncio.get_running_loop().create_task(self._gated_in_stream(stream, new)))

    async def _gated_in_stream(self, stream: _Stream, intents: list[ToolCallIntent]) -> list[ToolVerdict]:
        verdicts = await self.gate_tools(
            intents,
            customer_text=stream.payload.customer_text,
            agent_text=stream.turn.text,
            turn_id=stream.payload.turn_id,
            history=stream.payload.history,
        )
        stream.verdicts.update((verdict.id, verdict) for verdict in verdicts)
        return verdicts

    def _abandon_stream(self) -> None:
        """A turn that nobody flushed is judged to its end and counted, but acted upon no more."""
        stream, self._stream = self._stream, None
        if stream is None:
            return
        task = asyncio.get_running_loop().create_task(self._finish_abandoned(stream), name="judge an unfinished stream")
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)

    async def _finish_abandoned(self, stream: _Stream) -> None:
        await self._finish_stream(stream, None)
        for tool in stream.verdicts.values():
            if tool.allow and not stream.told:
                # Nobody was told that it may run.
                self.tool_done(tool.id, False, cancelled=True)

    async def _finish_stream(self, stream: _Stream, payload: TurnPayload | None) -> Verdict:
        verdict, _ = await asyncio.gather(stream.turn.finish(payload), asyncio.gather(*stream.gates))
        if not stream.counted:
            stream.counted = True
            self._count(verdict, stream.after)
        return verdict

    def _unspoken(self, turn_id: str) -> Verdict:
        threshold = self.config.intervention_threshold
        return Verdict(turn_id, JudgingState.SKIPPED, None, None, "", "", threshold, 0, detail="no speech")

    # Counting

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

    async def gate_tool_call(
        self,
        *,
        customer_text: str,
        intents: ToolCalls,
        agent_text: str = "",
        turn_id: str = "",
        keys: Mapping[str, str] | None = None,
        timeout_ms: int | None = None,
    ) -> Verdict:
        """Decides whether tool calls may run before they do: a verdict with a `ToolVerdict` for each in `tools`.

        `intents` are read by `ToolCallIntent.of`; the other arguments and the times are those of `gate_tools`. The
        verdict's `state` is that of the tool call that went worst, its `score` the highest of a refused one (0 when all
        may run), `reason` and `correction` are the first refused one's. It counts as no turn. After an allowed call has
        run, say so with `tool_done`. Raises `TypeError` for what is no tool call; else as `gate_tools`.
        """
        await self._memory.opened()
        started = asyncio.get_running_loop().time()
        tools = await self.gate_tools(
            self.intents(intents),
            customer_text=customer_text,
            agent_text=agent_text,
            turn_id=turn_id,
            keys=keys,
            timeout_ms=timeout_ms,
        )
        verdict = self._joined(self._unspoken(turn_id), tools)
        state = max((tool.state for tool in tools), key=_WORST.index, default=JudgingState.SKIPPED)
        scores = [tool.score for tool in tools if not tool.allow and tool.score is not None]
        return replace(
            verdict,
            state=state,
            score=max(scores, default=0.0) if state is JudgingState.JUDGED else None,
            latency_ms=round((asyncio.get_running_loop().time() - started) * 1000),
            detail="" if tools else "no tool calls",
        )

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
        history: Sequence[HistoryEntry] | None = None,
        ask_person: bool = True,
    ) -> list[ToolVerdict]:
        """Decides whether tool calls may run; one verdict for each, in order, at the latest after
        min(`timeout_ms`, `tool_gate_timeout_ms`) milliseconds. `history` takes the place of the call's own.

        What is allowed and stands in `approval_tools` then waits for the supervisor's `approver`, for
        min(`timeout_ms`, `approval_timeout_ms`) in all; without `ask_person` that is left to whoever asks.

        All calls that need judging are one question. A cooldown, a clean turn or shadow mode change nothing here.
        Irreversible calls (listed in `irreversible_tools`, or flagged) that cannot be judged are blocked or allowed by
        `tool_gate_on_failure`; other calls are allowed then. `keys` gives, by tool call id, what tells two wanted
        identical orders apart. The same id, tool and arguments asking again get the same verdict.

        `before_allow` is awaited for each irreversible call before it is allowed, for writing the decision down: its
        exceptions, or its missing the deadline, are failures of the gate; `ToolDenied` refuses the call. In a bound
        call the same holds for the state store, in which the decision is before the allow leaves.
        `on_verdict` gets each verdict as soon as it is known, which is before the others when a repeat has to wait.

        Raises nothing but `asyncio.CancelledError`; calls that were not allowed by then may be asked for again.
        """
        waiting = self._persons.begin(intents if ask_person else (), self.context, timeout_ms, on_verdict)
        try:
            verdicts = await self._gate_tools(
                intents, customer_text, agent_text, turn_id, keys, timeout_ms, before_allow, waiting.judged, history
            )
            verdicts = await waiting.decided(intents, verdicts)
        except Exception as error:
            _log_broken("gating tool calls", error)
            verdicts = [self._gate_broke(intent, error) for intent in intents]
        self.tool_states.update(verdict.state for verdict in verdicts)
        return verdicts

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
        history: Sequence[HistoryEntry] | None,
    ) -> list[ToolVerdict]:
        verdicts = await self._gate.decide(
            intents,
            customer_text=customer_text,
            agent_text=agent_text,
            turn_id=turn_id,
            history=self._history_before(customer_text, turn_id) if history is None else history,
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

    @property
    def ledger(self) -> Ledger:
        """The call's irreversible tool calls."""
        return self._gate.ledger

    def agent_replaced(self) -> None:
        """Another agent goes on with the call, with ids of its own: an id that was decided before says nothing any
        more. What may be running, or has run, stays in the ledger."""
        self._gate.forget_ids()

    def ledger_key(self, tool_id: str) -> LedgerKey | None:
        """What a decided irreversible tool call stands under in the ledger; None for any other id."""
        return self._gate.key(tool_id)

    def tool_earlier(self, tool_id: str, owner: str, *, done: bool, result: Any = None) -> None:
        """Takes note that an irreversible call which the gate allowed must not run after all: another connection or
        process was allowed the same before, asked with the id `owner`. `done`: it has run, with this result."""
        serial, intent = self._gate.pending(tool_id), self._gate.intent(tool_id)
        self._gate.earlier(tool_id, owner, done=done, result=result)
        if serial is not None and intent is not None:
            what = f"ran before: {_shown(result, MAX_RESULT_SHOWN_CHARS)}" if done else "was allowed before; it may run"
            self._note(f"tool:{serial}", "tool", f"{_shown_call(intent)} {what}")

    async def run_supervised_loop(
        self,
        *,
        llm_client: Any,
        model: str,
        system_prompt: str,
        tool_specs: Sequence[Mapping[str, Any]],
        tool_executors: Mapping[str, ToolExecutor],
        customer_text: str,
        extra_system_note: str | None = None,
        irreversible: Iterable[str] = (),
        messages: Sequence[Mapping[str, Any]] | None = None,
        max_rounds: int = 8,
        llm_timeout_s: float = 30.0,
        tool_timeout_s: float = 30.0,
        turn_id: str = "",
        language: str = "",
        **request: Any,
    ) -> LoopResult:
        """Has the agent's own model answer the customer with tools, every tool call gated before it runs and the final
        words judged. See `supervision.engine.tool_loop.run_tool_loop`."""
        await self._memory.opened()
        return await run_tool_loop(
            self,
            llm_client=llm_client,
            model=model,
            system_prompt=system_prompt,
            tool_specs=tool_specs,
            tool_executors=tool_executors,
            customer_text=customer_text,
            extra_system_note=extra_system_note,
            irreversible=irreversible,
            messages=messages,
            max_rounds=max_rounds,
            llm_timeout_s=llm_timeout_s,
            tool_timeout_s=tool_timeout_s,
            turn_id=turn_id or self._number("turn"),
            language=language or self.language,
            request=request,
        )

    async def review_final(self, payload: TurnPayload) -> Verdict:
        """Judges the final words of `run_supervised_loop`, as `review_turn` does. A review of the same words that comes
        next (`review_and_speak`, to have them spoken) gets the same verdict: they are one turn, judged once."""
        verdict = await self._review(payload)
        if not verdict.should_intervene:
            self._reviewed_by_loop = (payload, verdict)
        return verdict

    async def spoke_instead(self, payload: TurnPayload, verdict: Verdict) -> str | None:
        """What the tool loop does about a turn that must not be spoken as it is: speaks the correction in its place,
        where there is a voice, and returns the words that were spoken. None where there is none."""
        return None

    def tool_broke(self, tool_id: str, what: str) -> dict[str, str]:
        """Takes note that a gated tool call failed with an error, such as "raised TimeoutError", and returns what to
        tell the agent. An irreversible one may have had its effect all the same: it stays in doubt, and does not run
        again in this call until `tool_done` says how it ended. Any other may be asked for again."""
        intent = self._gate.intent(tool_id)
        if intent is None or not self._supervisor.is_irreversible(intent):
            self.tool_done(tool_id, False, what)
            return {"error": f"the tool failed: it {what}"}
        serial = self._gate.pending(tool_id)
        outcome = f"{what}; whether it took effect is not known"
        if serial is not None:
            self._note(f"tool:{serial}", "tool", f"{_shown_call(intent)} {outcome}")
        return {
            "error": f"the tool {outcome}",
            "instruction": "Do not run it again, and do not say that it was done or that it was not. Tell the customer "
            "that it has to be looked into.",
        }

    # History

    @property
    def history(self) -> tuple[HistoryEntry, ...]:
        """What was said and done so far, oldest first."""
        return self._memory.history

    def note_customer_turn(self, text: str) -> None:
        """The caller said this. The same words twice running count once, so noting what is reviewed next, or has just
        been, changes nothing."""
        self.note_customer(text)

    def note_agent_turn(self, text: str, *, heard: str | None = None, turn_id: str = "") -> None:
        """The agent said this; of it the caller heard `heard`, or all of it when that is None. See `note_agent`; the
        words of the turn that was just reviewed are in the history already."""
        known, self._noted_by_review = self._noted_by_review, None
        if not turn_id and heard is None and known == text.strip():
            return
        self.note_agent(text, heard, turn_id=turn_id)

    def note_customer(self, text: str) -> None:
        """The caller said this. The same words twice running count once."""
        text = text.strip()
        if self._memory.newest == HistoryEntry("customer", text[:MAX_HISTORY_CHARS]):
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

    def note_instead(self, text: str) -> None:
        """These words are said in place of a turn, by whoever has the voice. To note them as the agent's besides
        changes nothing."""
        self.note_mirror(text)
        self._noted_by_review = text.strip()

    def _note(self, key: str, role: Role, text: str) -> None:
        self._reviewed_by_loop = None
        self._memory.note(key, role, text)

    def _history_before(self, customer_text: str, turn_id: str) -> tuple[HistoryEntry, ...]:
        """The history without what belongs to the turn that answers `customer_text`."""
        own = f"turn:{turn_id}" if turn_id else None
        notes = [entry for key, entry in self._memory.keyed() if own is None or key != own]
        # The turn's own tools may have come between the caller's words and the agent's.
        end = len(notes)
        while end and notes[end - 1].role == "tool":
            end -= 1
        start = end
        words = " ".join(customer_text.split()).casefold()
        while start and notes[start - 1].role == "customer":
            if " ".join(notes[start - 1].text.split()).casefold() not in words:
                break
            start -= 1
        return (*notes[:start], *notes[end:])

    # The note to the agent

    def set_override(self, text: str, *, ttl_s: float | None = OVERRIDE_TTL_S) -> None:
        """Leaves a system note for the agent's next prompt, in place of one that waits. Dropped after `ttl_s` seconds
        (None: never). Cut to 4,000 characters."""
        self._memory.set_override(text, ttl_s)

    async def consume_override(self) -> str | None:
        """The system note that waits for the agent's next prompt, or None. Each is given out once, and not when it is
        too old."""
        await self._memory.opened()
        return self._memory.take_override()

    # Interventions

    @property
    def interventions(self) -> int:
        """How many interventions there were in this call, those before a reconnect included."""
        return self._memory.interventions

    def withheld(self, verdict: Verdict) -> Withheld | None:
        """Why a verdict that calls for an intervention should not be acted upon now, or None.

        `shadow`: the policy only watches; `limit`: `max_interventions_per_call` is used up; `cooldown`: the same rule
        acted less than `cooldown_s` ago and its severity is not `high`.
        """
        if self.config.mode == "shadow":
            return "shadow"
        if self.interventions >= self.config.max_interventions_per_call:
            return "limit"
        acted_ago_s = self._memory.acted_ago_s(verdict.rule)
        if acted_ago_s is None or self.policy.severity(verdict.rule) == "high":
            return None
        return "cooldown" if acted_ago_s < self.config.cooldown_s else None

    @property
    def spent(self) -> bool:
        """Whether another intervention would be one too many: `max_interventions_per_call` is used up, or there were
        two without a clean turn between them. Then `config.escalation` says what happens; nobody hears a third
        apology."""
        return self._in_a_row >= MAX_IN_A_ROW or self.interventions >= self.config.max_interventions_per_call

    def note_intervention(self, verdict: Verdict) -> None:
        """An intervention because of this verdict began; `withheld` counts from here, and the next turn is judged."""
        self._in_a_row += 1
        self._memory.note_intervention(verdict.rule)

    def buffer_lines(self, language: str) -> tuple[str, ...]:
        """Buffer lines for a language in order of use, the policy's own first; empty when there are none."""
        return buffer_lines(language, self.config.buffer_text_for(language))

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


# From the state that says most about a tool call to the one that says least.
_WORST = (
    JudgingState.JUDGED,
    JudgingState.SKIPPED,
    JudgingState.SHED,
    JudgingState.FAILED,
    JudgingState.TIMED_OUT,
)


def _shadowed(tool: ToolVerdict) -> ToolVerdict:
    """What becomes of a refusal where the policy only watches."""
    if tool.allow:
        return tool
    reason = f"shadow: would have been refused ({tool.code.value}): {tool.reason}"
    return replace(tool, allow=True, code=ToolCode.OK, reason=reason, instruction="", stored_result=None)


_ROLES: dict[str, Role] = {
    "customer": "customer",
    "agent": "agent",
    "tool": "tool",
    "mirror": "mirror",
    "user": "customer",
    "assistant": "agent",
}


def _history_entry(value: HistoryEntry | Mapping[str, str]) -> HistoryEntry:
    if isinstance(value, HistoryEntry):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(f"history: give HistoryEntrys or mappings with role and text, not {type(value).__name__}")
    role, text = _ROLES.get(value.get("role", "")), value.get("text", value.get("content"))
    if role is None or not isinstance(text, str):
        raise ValueError("history: an entry needs a role (customer, agent, tool, mirror) and a text")
    return HistoryEntry(role, text)


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
