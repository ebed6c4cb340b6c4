"""May this tool call run? The gate, and the ledger that lets an irreversible call run only once.

An irreversible call goes through these states in the ledger of its call:

    (none) --asked--> JUDGING --refused--> (none)
                      JUDGING --allowed--> PENDING --tool_done(ok)--> DONE
                                           PENDING --tool_done(not ok, or cancelled)--> (none)

A repeat (same tool, same arguments, same key) of what is DONE is a `duplicate` with the first run's result; a repeat of
what is JUDGING or PENDING waits until that is settled, or gets `in_doubt` at its deadline. It never runs a second time.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from supervision.engine.config import PolicyConfig
from supervision.engine.context import (
    NO_USAGE,
    HistoryEntry,
    JudgingState,
    ToolCallIntent,
    ToolCode,
    ToolVerdict,
    Usage,
)
from supervision.engine.llm.deadline import DeadlineAsker, InvalidAnswer, exact_keys, score_of, text_of
from supervision.engine.llm.limiter import Risk
from supervision.engine.policy.compiler import MAX_ARGS_CHARS, TOOLS_SCHEMA, CompiledPolicy, json_of, user_message

logger = logging.getLogger(__name__)

BeforeAllow = Callable[[ToolCallIntent], Awaitable[None]]
OnVerdict = Callable[[ToolVerdict], None]

# How long an allow may be acted upon. The agent waits for it, so it is used at once or not at all.
ALLOW_VALID_MS = 30_000
# Kept back from the judge's time, so that a late but valid answer can still be written down before it is given.
RECORD_RESERVE_S = 0.1
MAX_TOOLS_AT_ONCE = 64
MAX_LEDGER_ENTRIES = 500
MAX_DECISIONS = 500
MAX_RESULT_CHARS = 16_000
MAX_NAME_CHARS = 200
MAX_TEXT_CHARS = 1_000
TOKENS_PER_FURTHER_TOOL = 150

_DECISION_KEYS = frozenset(TOOLS_SCHEMA["properties"]["decisions"]["items"]["properties"])


class ToolDenied(Exception):
    """Raised by `before_allow` to refuse a call that the judge allowed, with a code, a reason and an instruction."""

    def __init__(self, reason: str, instruction: str = "", *, code: ToolCode = ToolCode.DENIED) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.instruction = instruction


@dataclass(slots=True, eq=False)
class LedgerEntry:
    """One irreversible call in the ledger. `settled` is set when it is DONE or freed. `earlier`: while it was being
    judged here, it turned out that an earlier connection had been allowed the same."""

    owner: str
    done: bool = False
    freed: bool = False
    earlier: bool = False
    result: Any = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)


LedgerKey = tuple[str, bytes, str]
"""Tool name, case-folded; digest of the canonical arguments (SHA-256, or what a `Digest` makes); the agent's key."""

Digest = Callable[[bytes], bytes]
"""From the canonical arguments (UTF-8) to what stands for them in a ledger that is written down: a keyed one, when
whoever reads the ledger must not be able to try arguments out."""


class LedgerJournal(Protocol):
    """Where a ledger is written down, so that it outlives its process."""

    @property
    def durable(self) -> bool:
        """Whether there is anywhere to write to; `pending` is awaited only then."""
        ...

    async def ready(self) -> None:
        """Returns when what was written down before is in the ledger, or cannot be had."""
        ...

    async def pending(self, key: LedgerKey, tool_id: str) -> None:
        """Returns when it is safely written that this call may run. Raises `ToolDenied` to refuse it, anything else
        when it could not be written."""
        ...

    def done(self, key: LedgerKey, tool_id: str, result: Any) -> None:
        """The call ran, with this result."""
        ...

    def freed(self, key: LedgerKey, tool_id: str) -> None:
        """The call did not run, and may be tried again."""
        ...


class Ledger:
    """The irreversible calls of one supervised call, by tool name (case-folded), canonical arguments and key."""

    def __init__(self) -> None:
        self._entries: dict[LedgerKey, LedgerEntry] = {}
        self.journal: LedgerJournal | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: LedgerKey) -> LedgerEntry | None:
        """The call with this key; None when there was none."""
        return self._entries.get(key)

    def entries(self) -> tuple[tuple[LedgerKey, LedgerEntry], ...]:
        """All that is in it, oldest first."""
        return tuple(self._entries.items())

    def owned_by(self, tool_id: str) -> tuple[LedgerKey, LedgerEntry] | None:
        """The entry, not DONE yet, that the tool call with this id took."""
        return next(((k, e) for k, e in self._entries.items() if e.owner == tool_id and not e.done), None)

    def restore(self, key: LedgerKey, owner: str, *, done: bool, result: Any) -> None:
        """Takes in what an earlier connection of the call, or another process, had written down."""
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = LedgerEntry(owner)
        elif not entry.done:
            entry.owner, entry.earlier = owner, True
        if done and not entry.done:
            entry.done, entry.result = True, result
            entry.settled.set()

    def reserve(self, key: LedgerKey, owner: str) -> LedgerEntry | None:
        """Takes a free key for the tool call with the id `owner`. None when the ledger is full: to forget an entry
        would be to let it run again."""
        if len(self._entries) >= MAX_LEDGER_ENTRIES:
            return None
        entry = self._entries[key] = LedgerEntry(owner)
        return entry

    def done(self, key: LedgerKey, entry: LedgerEntry, result: Any) -> None:
        """It ran. Results of more than 16,000 characters are remembered as having happened, without their content."""
        entry.done = True
        entry.result = result if _fits(result) else None
        self._entries[key] = entry
        entry.settled.set()
        if self.journal is not None:
            self.journal.done(key, entry.owner, entry.result)

    def free(self, key: LedgerKey, entry: LedgerEntry) -> None:
        """It did not run, and may be tried again."""
        if self._entries.get(key) is entry and not entry.done:
            del self._entries[key]
            entry.freed = True
            entry.settled.set()
            if self.journal is not None:
                self.journal.freed(key, entry.owner)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _fits(result: Any) -> bool:
    try:
        return len(json.dumps(result)) <= MAX_RESULT_CHARS
    except (TypeError, ValueError, RecursionError):
        return False


@dataclass(slots=True, eq=False)
class _Decision:
    """What is known of one tool call id: what was asked, and the verdict once there is one."""

    intent: ToolCallIntent
    turn_id: str
    irreversible: bool
    key: LedgerKey
    serial: str = ""
    entry: LedgerEntry | None = None
    verdict: ToolVerdict | None = None
    decided: asyncio.Event = field(default_factory=asyncio.Event)
    finished: bool = False

    def answers(self, later: _Decision) -> bool:
        """Whether a later request with the same id is this one again, for instance first in a turn and then alone."""
        return (
            self.key == later.key
            and (self.irreversible or not later.irreversible)
            and (not self.turn_id or not later.turn_id or self.turn_id == later.turn_id)
        )


@dataclass(frozen=True, slots=True)
class FinishedTool:
    """What `ToolGate.done` knows of the tool call that an agent says has ended.

    `serial` is unlike that of any other tool call of the call, also when an agent uses an id again. `again` when it
    had been reported before, `refused` when it had not been allowed.
    """

    serial: str
    intent: ToolCallIntent
    irreversible: bool
    again: bool = False
    refused: bool = False


@dataclass(frozen=True, slots=True)
class _Scene:
    """The turn that the asked calls belong to, and how long there is to decide."""

    customer_text: str
    agent_text: str
    turn_id: str
    history: Sequence[HistoryEntry]
    started: float
    deadline: float
    before_allow: BeforeAllow | None

    def ms(self) -> int:
        return round((asyncio.get_running_loop().time() - self.started) * 1000)


@dataclass(frozen=True, slots=True)
class _Judgement:
    allow: bool
    score: float
    reason: str
    instruction: str


class ToolGate:
    """The gate of one supervised call."""

    def __init__(
        self,
        asker: DeadlineAsker,
        policy: CompiledPolicy,
        config: PolicyConfig,
        irreversible: Callable[[ToolCallIntent], bool],
        *,
        run: str = "",
        digest: Digest | None = None,
    ) -> None:
        self._asker = asker
        self._policy = policy
        self._config = config
        self._irreversible = irreversible
        self._named = frozenset(name.casefold() for rule in config.rules for name in rule.tools)
        self.ledger = Ledger()
        self._decisions: dict[str, _Decision] = {}
        self._serial = 0
        # What tells this gate's serials from those of the call's earlier connections.
        self._run = run
        self._digest = digest or _sha256

    def key(self, tool_id: str) -> LedgerKey | None:
        """What the irreversible tool call that was decided under this id stands under in the ledger."""
        decision = self._decisions.get(tool_id)
        return decision.key if decision is not None and decision.irreversible else None

    def earlier(self, tool_id: str, owner: str, *, done: bool, result: Any) -> None:
        """Takes in that the call which was decided under this id had been allowed to somebody else before (`owner` is
        the id that they asked with), and has run since (`done`) or may be running."""
        decision = self._decisions.pop(tool_id, None)
        if decision is not None:
            self.ledger.restore(decision.key, owner, done=done, result=result)

    def forget_ids(self) -> None:
        """From now on ids mean other tool calls. What is being judged is freed when it is not allowed, as ever."""
        self._decisions.clear()

    def pending(self, tool_id: str) -> str | None:
        """The serial of a decided tool call that has not been reported as ended; None when there is none."""
        decision = self._decisions.get(tool_id)
        return None if decision is None or decision.finished else decision.serial

    def intent(self, tool_id: str) -> ToolCallIntent | None:
        """The tool call that was decided under this id."""
        decision = self._decisions.get(tool_id)
        return None if decision is None else decision.intent

    async def decide(
        self,
        intents: Sequence[ToolCallIntent],
        *,
        customer_text: str,
        agent_text: str = "",
        turn_id: str = "",
        history: Sequence[HistoryEntry] = (),
        keys: Mapping[str, str] | None = None,
        timeout_ms: int | None = None,
        before_allow: BeforeAllow | None = None,
        on_verdict: OnVerdict | None = None,
    ) -> list[ToolVerdict]:
        """Decides about tool calls, in order. See `CallSupervisor.gate_tools`."""
        loop = asyncio.get_running_loop()
        limit_ms = self._config.tool_gate_timeout_ms
        if timeout_ms is not None:
            limit_ms = max(0, min(limit_ms, timeout_ms))
        started = loop.time()
        scene = _Scene(customer_text, agent_text, turn_id, history, started, started + limit_ms / 1000, before_allow)
        verdicts: dict[int, ToolVerdict] = {}

        def settle(index: int, verdict: ToolVerdict) -> None:
            verdicts[index] = verdict
            if on_verdict is not None:
                on_verdict(verdict)

        judge_now: dict[int, _Decision] = {}
        repeats: dict[int, tuple[_Decision, LedgerEntry]] = {}
        echoes: dict[int, _Decision] = {}
        twins: dict[int, int] = {}
        ids: dict[str, int] = {}
        for index, intent in enumerate(intents):
            first = ids.setdefault(intent.id, index)
            complaint = _complaint(intent)
            if complaint is None and first != index:
                complaint = "another tool call of this turn has the same id"
            if complaint is None and index >= MAX_TOOLS_AT_ONCE:
                complaint = f"more than {MAX_TOOLS_AT_ONCE} tool calls in one turn"
            canonical = None if complaint else json_of(intent.args)
            if canonical is None:
                complaint = complaint or f"the arguments are not JSON, or have more than {MAX_ARGS_CHARS} characters"
                settle(index, _bad_args(intent, complaint))
                continue
            irreversible = self._irreversible(intent)
            digest = self._digest(canonical.encode())
            key = (intent.name.strip().casefold(), digest, (keys or {}).get(intent.id, ""))
            decision = _Decision(intent, turn_id, irreversible, key)
            known = self._decisions.get(intent.id)
            if known is not None and known.answers(decision):
                echoes[index] = known
                continue
            if not irreversible and not self._config.tool_gate_enabled and key[0] not in self._named:
                settle(index, self._allowed(decision, JudgingState.SKIPPED, None, scene, ToolCode.OK))
                self._remember(decision, verdicts[index])
                continue
            if irreversible:
                entry = self.ledger.get(key)
                if entry is None:
                    decision.entry = self.ledger.reserve(key, intent.id)
                    if decision.entry is None:
                        settle(index, self._failed(decision, ToolCode.FAILED, scene, _FULL, allow=False))
                        continue
                elif entry.done:
                    settle(index, _duplicate(decision, entry, scene))
                    self._remember(decision, verdicts[index])
                    continue
                else:
                    twin = next((i for i, d in judge_now.items() if d.entry is entry), None)
                    if twin is not None:
                        twins[index] = twin
                    else:
                        repeats[index] = (decision, entry)
                    continue
            self._remember(decision, None)
            judge_now[index] = decision

        async def judge_group() -> None:
            for index, verdict in zip(judge_now, await self._judge(list(judge_now.values()), scene), strict=True):
                settle(index, verdict)
            for index, first in twins.items():
                settle(index, _twin(intents[index], verdicts[first], scene))

        async def wait_for_repeat(index: int, decision: _Decision, entry: LedgerEntry) -> None:
            settle(index, await self._after_repeat(decision, entry, scene))

        async def wait_for_echo(index: int, known: _Decision) -> None:
            settle(index, await self._again(known, scene))

        async with asyncio.TaskGroup() as group:
            for index, (decision, entry) in repeats.items():
                group.create_task(wait_for_repeat(index, decision, entry))
            for index, known in echoes.items():
                group.create_task(wait_for_echo(index, known))
            if judge_now:
                await judge_group()
        return [verdicts[index] for index in range(len(intents))]

    def done(self, tool_id: str, ok: bool, result: Any, *, cancelled: bool = False) -> FinishedTool | None:
        """Takes note that a tool call has ended. None when the gate never saw its id."""
        decision = self._decisions.get(tool_id)
        if decision is None:
            return self._done_elsewhere(tool_id, ok and not cancelled, result)
        verdict = decision.verdict
        refused = verdict is not None and not verdict.allow
        finished = FinishedTool(decision.serial, decision.intent, decision.irreversible, decision.finished, refused)
        if decision.finished:
            return finished
        ran = ok and not cancelled
        decision.finished = True
        if decision.irreversible:
            entry = decision.entry or self.ledger.get(decision.key)
            if ran:
                # Also when it had been refused: what ran must not run again.
                entry = entry or LedgerEntry(tool_id)
                if not entry.done:
                    self.ledger.done(decision.key, entry, result)
            elif entry is not None and entry.owner == tool_id:
                self.ledger.free(decision.key, entry)
        if not ran:
            # The same id may ask again.
            self._decisions.pop(tool_id, None)
        return finished

    def _done_elsewhere(self, tool_id: str, ran: bool, result: Any) -> FinishedTool | None:
        """The end of a call that an earlier connection was allowed, or one that is no longer remembered by its id."""
        found = self.ledger.owned_by(tool_id)
        if found is None:
            return None
        key, entry = found
        if ran:
            self.ledger.done(key, entry, result)
        else:
            self.ledger.free(key, entry)
        self._serial += 1
        return FinishedTool(f"{self._run}{self._serial}", ToolCallIntent(tool_id, key[0]), True)

    # Judging

    async def _judge(self, decisions: list[_Decision], scene: _Scene) -> list[ToolVerdict]:
        """One question about all of them. Whatever happens, an entry that was not allowed is free afterwards."""
        verdicts: list[ToolVerdict] = []
        try:
            verdicts = await self._judged(decisions, scene)
        finally:
            for index, decision in enumerate(decisions):
                verdict = verdicts[index] if verdicts else None
                refused = verdict is None or not verdict.allow
                if refused and decision.entry is not None and not decision.entry.earlier:
                    self.ledger.free(decision.key, decision.entry)
                if verdict is None:
                    self._decisions.pop(decision.intent.id, None)
                decision.verdict = verdict
                decision.decided.set()
        return verdicts

    async def _judged(self, decisions: list[_Decision], scene: _Scene) -> list[ToolVerdict]:
        records = any(decision.irreversible and self._recorded_first(scene) for decision in decisions)
        budget = scene.deadline - scene.started
        ids = [decision.intent.id for decision in decisions]
        answer = await self._asker.ask(
            system=self._policy.tools_prompt,
            user=user_message(
                customer_text=scene.customer_text,
                agent_text=scene.agent_text,
                tool_calls=((decision.intent, decision.irreversible) for decision in decisions),
                history=scene.history,
            ),
            schema_name="mirror_tools",
            schema=TOOLS_SCHEMA,
            max_tokens=self._config.judge_max_tokens + TOKENS_PER_FURTHER_TOOL * (len(ids) - 1),
            deadline=scene.deadline - (min(RECORD_RESERVE_S, budget / 4) if records else 0.0),
            validate=lambda value: _judgements(value, ids),
            risk=Risk.IRREVERSIBLE if any(decision.irreversible for decision in decisions) else Risk.TOOL,
        )
        # What the question cost is counted once, with the first call that it was about.
        usages = [answer.usage, *[NO_USAGE] * (len(decisions) - 1)]
        return list(
            await asyncio.gather(
                *(
                    self._concluded(
                        decision,
                        answer.state,
                        answer.value[decision.intent.id] if answer.value is not None else None,
                        answer.detail,
                        usage,
                        scene,
                        (answer.model, answer.fallback),
                    )
                    for decision, usage in zip(decisions, usages, strict=True)
                )
            )
        )

    async def _concluded(
        self,
        decision: _Decision,
        state: JudgingState,
        judgement: _Judgement | None,
        detail: str,
        usage: Usage,
        scene: _Scene,
        judge: tuple[str, bool],
    ) -> ToolVerdict:
        model, fallback = judge
        if judgement is not None and not judgement.allow:
            return ToolVerdict(
                id=decision.intent.id,
                name=decision.intent.name,
                allow=False,
                code=ToolCode.POLICY,
                state=state,
                score=judgement.score,
                reason=judgement.reason,
                instruction=judgement.instruction or _INSTEAD_OF_REFUSED,
                stored_result=None,
                valid_ms=0,
                latency_ms=scene.ms(),
                usage=usage,
                model=model,
                fallback=fallback,
            )
        if judgement is not None:
            verdict = self._allowed(decision, state, judgement.score, scene, ToolCode.OK, judgement.reason)
        else:
            code = ToolCode.TIMEOUT if state is JudgingState.TIMED_OUT else ToolCode.FAILED
            verdict = self._failed(decision, code, scene, detail, state=state)
        if verdict.allow and decision.irreversible and self._recorded_first(scene):
            verdict = await self._recorded(decision, verdict, scene)
        return replace(verdict, usage=usage, latency_ms=scene.ms(), model=model, fallback=fallback)

    def _recorded_first(self, scene: _Scene) -> bool:
        journal = self.ledger.journal
        return scene.before_allow is not None or (journal is not None and journal.durable)

    async def _recorded(self, decision: _Decision, verdict: ToolVerdict, scene: _Scene) -> ToolVerdict:
        """Waits for the ledger's journal and for `before_allow`, which are what makes an irreversible allow good."""
        journal = self.ledger.journal
        try:
            async with asyncio.timeout_at(scene.deadline):
                if journal is not None and journal.durable:
                    await journal.ready()
                    if decision.entry is not None and decision.entry.earlier:
                        return self._ran_or_runs(decision, decision.entry, scene)
                    await journal.pending(decision.key, decision.intent.id)
                if scene.before_allow is not None:
                    await scene.before_allow(decision.intent)
        except ToolDenied as denied:
            return replace(
                verdict,
                allow=False,
                code=denied.code,
                reason=denied.reason,
                instruction=denied.instruction or _INSTEAD_OF_REFUSED,
                valid_ms=0,
            )
        except TimeoutError:
            detail, code = "the decision could not be recorded in time", ToolCode.TIMEOUT
        except Exception as error:
            logger.error("recording the allow of a tool call failed: %s", type(error).__name__)
            detail, code = "the decision could not be recorded", ToolCode.FAILED
        else:
            return verdict
        failed = self._failed(decision, code, scene, detail, state=verdict.state)
        return replace(failed, score=verdict.score)

    def _ran_or_runs(self, decision: _Decision, entry: LedgerEntry, scene: _Scene) -> ToolVerdict:
        if entry.done:
            return _duplicate(decision, entry, scene)
        return _in_doubt(decision.intent, scene)

    async def _after_repeat(self, decision: _Decision, entry: LedgerEntry | None, scene: _Scene) -> ToolVerdict:
        """A repeat of a call that is under way: waits for how that ends."""
        while entry is not None:
            try:
                async with asyncio.timeout_at(scene.deadline):
                    await entry.settled.wait()
            except TimeoutError:
                verdict = _in_doubt(decision.intent, scene)
                self._remember(decision, verdict)
                return verdict
            if entry.done:
                verdict = _duplicate(decision, entry, scene)
                self._remember(decision, verdict)
                return verdict
            entry = self.ledger.get(decision.key)
        decision.entry = self.ledger.reserve(decision.key, decision.intent.id)
        if decision.entry is None:
            return self._failed(decision, ToolCode.FAILED, scene, _FULL, allow=False)
        self._remember(decision, None)
        return (await self._judge([decision], scene))[0]

    async def _again(self, known: _Decision, scene: _Scene) -> ToolVerdict:
        """The same tool call asks again: it gets the same answer, unless it has run meanwhile."""
        try:
            async with asyncio.timeout_at(scene.deadline):
                await known.decided.wait()
        except TimeoutError:
            return self._failed(known, ToolCode.TIMEOUT, scene, "the first request is still being judged", allow=False)
        if known.verdict is None:
            detail = "the first request was given up before it was decided"
            return self._failed(known, ToolCode.CANCELLED, scene, detail, allow=False)
        entry = self.ledger.get(known.key) if known.irreversible else None
        if entry is not None and entry.done:
            return _duplicate(known, entry, scene)
        return replace(known.verdict, usage=NO_USAGE, latency_ms=scene.ms())

    # Verdicts

    def _allowed(
        self,
        decision: _Decision,
        state: JudgingState,
        score: float | None,
        scene: _Scene,
        code: ToolCode,
        reason: str = "",
    ) -> ToolVerdict:
        intent = decision.intent
        return ToolVerdict(
            intent.id, intent.name, True, code, state, score, reason, "", None, ALLOW_VALID_MS, scene.ms()
        )

    def _failed(
        self,
        decision: _Decision,
        code: ToolCode,
        scene: _Scene,
        detail: str,
        *,
        state: JudgingState | None = None,
        allow: bool | None = None,
    ) -> ToolVerdict:
        """What a call gets that could not be judged or recorded: irreversible ones by policy, others are allowed."""
        if state is None:
            state = JudgingState.TIMED_OUT if code is ToolCode.TIMEOUT else JudgingState.FAILED
        if allow is None:
            allow = not decision.irreversible or self._config.tool_gate_on_failure == "allow"
        if allow:
            return self._allowed(decision, state, None, scene, code, f"{detail}; allowed all the same")
        intent = decision.intent
        return ToolVerdict(
            intent.id, intent.name, False, code, state, None, detail, _INSTEAD_OF_FAILED, None, 0, scene.ms()
        )

    def _remember(self, decision: _Decision, verdict: ToolVerdict | None) -> None:
        self._serial += 1
        decision.serial = f"{self._run}{self._serial}"
        decision.verdict = verdict
        if verdict is not None:
            decision.decided.set()
        self._decisions[decision.intent.id] = decision
        while len(self._decisions) > MAX_DECISIONS:
            # The oldest; an irreversible call is still in the ledger, so that it cannot run twice.
            del self._decisions[next(iter(self._decisions))]


_FULL = f"this call has asked for more than {MAX_LEDGER_ENTRIES} irreversible tool calls"
_INSTEAD_OF_REFUSED = (
    "Do not run it, and do not say that it was done. Clear up with the customer what they want, then ask again."
)
_INSTEAD_OF_FAILED = (
    "It did not run: do not say that it did. Tell the customer that this cannot be completed right now, and ask "
    "whether to try again in a moment or to be connected with a colleague."
)
_INSTEAD_OF_DUPLICATE = "It has already run; do not run it again. Go on with its result, which is in stored_result."
_INSTEAD_OF_DOUBT = (
    "The same call was allowed before, and whether it ran is not known yet. Do not run it again. Find out how the "
    "first one ended, or tell the customer that it is being processed."
)
_INSTEAD_OF_BAD_ARGS = "It did not run. Call the tool again with arguments that are one JSON object."


def _complaint(intent: ToolCallIntent) -> str | None:
    if intent.error is not None:
        return f"the arguments cannot be read: {intent.error}"[:MAX_TEXT_CHARS]
    if not isinstance(intent.args, dict):
        return "the arguments are not a JSON object"
    if not intent.name.strip() or len(intent.name) > MAX_NAME_CHARS:
        return f"the tool's name is blank, or longer than {MAX_NAME_CHARS} characters"
    return None


def _bad_args(intent: ToolCallIntent, complaint: str) -> ToolVerdict:
    return ToolVerdict(
        intent.id,
        intent.name[:MAX_NAME_CHARS],
        False,
        ToolCode.BAD_ARGS,
        JudgingState.SKIPPED,
        None,
        complaint,
        _INSTEAD_OF_BAD_ARGS,
        None,
        0,
        0,
    )


def _duplicate(decision: _Decision, entry: LedgerEntry, scene: _Scene) -> ToolVerdict:
    return ToolVerdict(
        decision.intent.id,
        decision.intent.name,
        False,
        ToolCode.DUPLICATE,
        JudgingState.SKIPPED,
        None,
        "the same call already ran",
        _INSTEAD_OF_DUPLICATE,
        entry.result,
        0,
        scene.ms(),
    )


def _in_doubt(intent: ToolCallIntent, scene: _Scene) -> ToolVerdict:
    return ToolVerdict(
        intent.id,
        intent.name,
        False,
        ToolCode.IN_DOUBT,
        JudgingState.SKIPPED,
        None,
        "the same call is under way",
        _INSTEAD_OF_DOUBT,
        None,
        0,
        scene.ms(),
    )


def _twin(intent: ToolCallIntent, first: ToolVerdict, scene: _Scene) -> ToolVerdict:
    """The second of two identical irreversible calls in one turn: refused like the first, or in doubt beside it."""
    if first.allow:
        return _in_doubt(intent, scene)
    return replace(first, id=intent.id, name=intent.name, usage=NO_USAGE, latency_ms=scene.ms())


def _judgements(answer: dict[str, Any], ids: Iterable[str]) -> dict[str, _Judgement]:
    decisions = exact_keys(answer, frozenset({"decisions"}))["decisions"]
    if not isinstance(decisions, list):
        raise InvalidAnswer("decisions has to be a list")
    wanted = set(ids)
    judged: dict[str, _Judgement] = {}
    for value in decisions:
        decision = exact_keys(value, _DECISION_KEYS, "a decision")
        tool_id, allow = decision["id"], decision["allow"]
        if not isinstance(tool_id, str) or tool_id not in wanted or tool_id in judged:
            raise InvalidAnswer("decisions has to cover every tool call once, by its id, and no other")
        if not isinstance(allow, bool):
            raise InvalidAnswer("allow has to be true or false")
        judged[tool_id] = _Judgement(
            allow,
            score_of(decision["score"]),
            text_of(decision["reason"], "reason", MAX_TEXT_CHARS),
            text_of(decision["instruction"], "instruction", MAX_TEXT_CHARS),
        )
    if judged.keys() != wanted:
        raise InvalidAnswer("decisions has to cover every tool call once, by its id, and no other")
    return judged
