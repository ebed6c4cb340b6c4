"""Judges recorded calls as if they were running: the same engine, the same prompts, the same gate.

Every turn is judged once, against what was recorded before it. Nothing of a verdict flows back into the call (the
agent said what it said), so all turns can be judged at the same time, and one pass serves every threshold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from supervision.engine.config import MirrorConfig
from supervision.engine.context import (
    HistoryEntry,
    JudgingState,
    SupervisorContext,
    ToolCallIntent,
    ToolCode,
    ToolVerdict,
    TurnPayload,
    Usage,
    Verdict,
)
from supervision.engine.llm.deadline import DeadlineAsker
from supervision.engine.llm.protocol import (
    FirstToken,
    LLMClient,
    LLMError,
    LLMResult,
    LogprobClient,
    close_client,
)
from supervision.engine.policy.compiler import MAX_HISTORY_ENTRIES
from supervision.engine.replay.recordings import Label, RecordedCall, RecordedTurn
from supervision.engine.scorer.pregate import PreGate, PreGateDecision
from supervision.engine.scorer.tool_gate import ToolGate
from supervision.engine.supervisor import CallSupervisor, Supervisor

_Answer = TypeVar("_Answer")

Tools = Literal["all", "irreversible", "off"]

# So many questions in a row without an answer, at least, and twice the concurrency: nobody is there.
GIVE_UP_AFTER = 10

NOT_ASKED = "not asked any more: the judge had stopped answering"


@dataclass(frozen=True, slots=True)
class TurnResult:
    """What judging a recorded turn came to. `call` counts the calls from 0, since ids may repeat. `speech` is None when
    the agent said nothing in it; `tools` has a verdict for each of its tool calls, in order, and is empty when tools
    were left out. `pregate` is whether the policy's pre-gate would have had the speech judged in a live call; None when
    there is no speech or the policy has no pre-gate."""

    call: int
    call_id: str
    index: int
    label: Label
    speech: Verdict | None
    tools: tuple[ToolVerdict, ...]
    pregate: PreGateDecision | None = None


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay came to. `seconds` is how long judging took, `usage` all tokens of all answers.

    `questions` were put to the judge, of which `answers` were answered at all; `gave_up` says why it was not asked any
    more, when it stopped answering.
    """

    calls: int
    turns: tuple[TurnResult, ...]
    questions: int
    answers: int
    usage: Usage
    seconds: float
    gave_up: str | None = None

    @property
    def judge_unreachable(self) -> str | None:
        """Why the judge cannot be said to have been reached: it stopped answering, or never began. None when it did."""
        if self.gave_up is None and self.questions and not self.answers:
            return "the judge answered none of the questions"
        return self.gave_up


class _Watched:
    """The policy's LLM client, with a look at whether anybody answers."""

    def __init__(self, llm: LLMClient, give_up_after: int) -> None:
        self.questions = 0
        self.answers = 0
        self.usage = Usage()
        self.gave_up: str | None = None
        self._llm = llm
        self._give_up_after = give_up_after
        self._silent = 0

    async def complete_json(
        self, *, system: str, user: str, schema_name: str, schema: dict[str, Any], max_tokens: int, timeout_s: float
    ) -> LLMResult:
        result = await self.watch(
            self._llm.complete_json(
                system=system,
                user=user,
                schema_name=schema_name,
                schema=schema,
                max_tokens=max_tokens,
                timeout_s=timeout_s,
            )
        )
        self.usage += result.usage
        return result

    async def watch(self, question: Awaitable[_Answer]) -> _Answer:
        """Waits for an answer, and takes note of whether one came."""
        self.questions += 1
        why = "the judge did not answer in time"
        answered = False
        try:
            answer = await question
            answered = True
        except LLMError as error:
            why = str(error)
            raise
        except Exception as error:
            why = f"the LLM client raised {type(error).__name__}"
            raise
        finally:
            self._silent = 0 if answered else self._silent + 1
            if self._silent >= self._give_up_after and self.gave_up is None:
                self.gave_up = why
        self.answers += 1
        return answer

    async def aclose(self) -> None:
        await close_client(self._llm)


class _WatchedLogprobs(_Watched):
    """The same for a client that tells probabilities."""

    async def first_token_logprobs(
        self, *, system: str, examples: Sequence[tuple[str, str]], user: str, top: int, timeout_s: float
    ) -> FirstToken:
        assert isinstance(self._llm, LogprobClient)
        answer = await self.watch(
            self._llm.first_token_logprobs(system=system, examples=examples, user=user, top=top, timeout_s=timeout_s)
        )
        self.usage += answer.usage
        return answer


@dataclass(slots=True)
class _Judging:
    """A turn whose verdicts come in."""

    number: int
    call: RecordedCall
    turn: RecordedTurn
    speech: Verdict | None = None
    tools: dict[int, ToolVerdict] = field(default_factory=dict)
    pregate: PreGateDecision | None = None

    def result(self) -> TurnResult:
        tools = tuple(self.tools[index] for index in sorted(self.tools))
        turn = self.turn
        return TurnResult(self.number, self.call.call_id, turn.index, turn.label, self.speech, tools, self.pregate)


@dataclass(frozen=True, slots=True)
class _Speech:
    """The question about what the agent said in a turn."""

    judging: _Judging
    call: CallSupervisor
    payload: TurnPayload
    pregate: PreGate | None

    async def ask(self) -> None:
        if self.pregate is not None:
            try:
                self.judging.pregate = self.pregate.decide(self.payload)
            except Exception as error:
                # As in a live call: a turn that it cannot look at is judged.
                self.judging.pregate = PreGateDecision(True, f"the pre-gate failed ({type(error).__name__})")
        self.judging.speech = await self.call.judge_turn(self.payload)

    def leave(self) -> None:
        threshold = self.call.config.intervention_threshold
        self.judging.speech = Verdict(
            self.payload.turn_id, JudgingState.FAILED, None, None, "", "", threshold, 0, detail=NOT_ASKED
        )

    def errors(self) -> int:
        return self.judging.speech is not None and self.judging.speech.state not in (
            JudgingState.JUDGED,
            JudgingState.SKIPPED,
        )


@dataclass(frozen=True, slots=True)
class _ToolCalls:
    """The question about tool calls of a turn, from the one at `first` on."""

    judging: _Judging
    gate: ToolGate
    first: int
    count: int
    agent_text: str
    history: tuple[HistoryEntry, ...]

    @property
    def intents(self) -> list[ToolCallIntent]:
        tools = self.judging.turn.tools[self.first : self.first + self.count]
        return [tool.intent for tool in tools]

    async def ask(self) -> None:
        turn = self.judging.turn
        verdicts = await self.gate.decide(
            self.intents,
            customer_text=turn.customer_text,
            agent_text=self.agent_text,
            turn_id=f"{turn.index}.{self.first}",
            history=self.history,
        )
        # In the recording it ran, or did not, whatever the gate says now: what comes later in the call builds on that.
        for offset, verdict in enumerate(verdicts):
            tool = turn.tools[self.first + offset]
            self.gate.done(tool.intent.id, tool.outcome != "failed", tool.result)
            self.judging.tools[self.first + offset] = verdict

    def leave(self) -> None:
        for offset, intent in enumerate(self.intents):
            self.judging.tools[self.first + offset] = ToolVerdict(
                id=intent.id,
                name=intent.name,
                allow=False,
                code=ToolCode.FAILED,
                state=JudgingState.FAILED,
                score=None,
                reason=NOT_ASKED,
                instruction="",
                stored_result=None,
                valid_ms=0,
                latency_ms=0,
            )

    def errors(self) -> int:
        verdicts = (self.judging.tools[self.first + offset] for offset in range(self.count))
        return sum(is_error(verdict) for verdict in verdicts)


def is_error(verdict: ToolVerdict) -> bool:
    """Whether a tool call was not decided: the gate failed or was late, whichever way it then let it go."""
    return verdict.code in (ToolCode.FAILED, ToolCode.TIMEOUT)


def _questions(
    number: int,
    call: RecordedCall,
    supervised: CallSupervisor,
    gate: ToolGate,
    pregate: PreGate | None,
    tools: Tools,
    judgings: list[_Judging],
) -> Iterator[_Speech | _ToolCalls]:
    """Everything there is to ask about a call, in order, each with the history as it was at that moment."""
    history: list[HistoryEntry] = []
    for turn in call.turns:
        judging = _Judging(number, call, turn)
        judgings.append(judging)
        history += turn.before
        # Without the customer's words, which are the turn's own: no turn is compared with itself.
        past = history[-MAX_HISTORY_ENTRIES:]
        one_by_one = any(tool.in_turn for tool in turn.tools)
        if tools != "off" and turn.tools:
            if not one_by_one:
                yield _ToolCalls(judging, gate, 0, len(turn.tools), turn.agent_text, tuple(past))
            else:
                # Each saw the results of those before it. What the agent said afterwards, nobody knew yet.
                for index, tool in enumerate(turn.tools):
                    seen = [*past, *(earlier.entry() for earlier in turn.tools[:index])][-MAX_HISTORY_ENTRIES:]
                    yield _ToolCalls(judging, gate, index, 1, tool.said_before or "", tuple(seen))
        ran_first = [tool.entry() for tool in turn.tools if tool.in_turn and tool.said_before != turn.agent_text]
        ran_after = [tool.entry() for tool in turn.tools if tool.in_turn and tool.said_before == turn.agent_text]
        if turn.agent_text.strip():
            payload = TurnPayload(
                turn.customer_text,
                turn.agent_text,
                tuple(tool.intent for tool in turn.tools),
                tuple([*past, *ran_first][-MAX_HISTORY_ENTRIES:]),
                str(turn.index),
                call.language,
            )
            yield _Speech(judging, supervised, payload, pregate)
        history += [*turn.customer_words, *ran_first]
        if turn.agent_text.strip():
            history.append(HistoryEntry("agent", turn.agent_text))
        history += ran_after
        history += [tool.entry() for tool in turn.tools if not tool.in_turn and not tool.noted_later]


async def replay(
    calls: Sequence[RecordedCall],
    config: MirrorConfig,
    *,
    concurrency: int = 16,
    tools: Tools = "all",
    pregate: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Replayed:
    """Judges every turn and tool call of `calls` by `config`, at most `concurrency` questions at a time.

    `tools` says which tool calls are judged: `all`, only `irreversible` ones, or none (`off`). Every turn with speech
    is judged, and what the policy's pre-gate would have skipped in a live call is told beside it; with `pregate` those
    turns are really skipped, which saves their questions. Questions have the deadlines of the configuration. A judge
    that answers nothing for a while is not asked any more; see `gave_up`. `on_progress` gets how many questions are
    done and how many of the verdicts so far are errors.

    The configuration's LLM client is left open. Raises `ValueError` on a concurrency below 1, `PreGateModelError` when
    the pre-gate's model is not installed, and nothing for what goes wrong with the judge: that is in the verdicts.
    """
    if concurrency < 1:
        raise ValueError("concurrency has to be at least 1")
    watching = _WatchedLogprobs if isinstance(config.llm, LogprobClient) else _Watched
    watched = watching(config.llm, max(GIVE_UP_AFTER, 2 * concurrency))
    changes: dict[str, Any] = {"llm": watched, "tool_gate_enabled": tools == "all"}
    if not pregate:
        changes["tiered_scoring_enabled"] = False
    watched_config = config.model_copy(update=changes)
    supervisor = Supervisor(watched_config)
    gate_before = PreGate(config) if config.tiered_scoring_enabled else None
    asker = DeadlineAsker(watched)
    judgings: list[_Judging] = []

    def all_questions() -> Iterator[_Speech | _ToolCalls]:
        for number, call in enumerate(calls):
            supervised = supervisor.call(SupervisorContext(call_id=call.call_id))
            gate = ToolGate(asker, supervisor.policy, watched_config, supervisor.is_irreversible)
            yield from _questions(number, call, supervised, gate, gate_before, tools, judgings)

    questions = all_questions()
    done = errors = 0

    async def worker() -> None:
        nonlocal done, errors
        for question in questions:
            if watched.gave_up is None:
                await question.ask()
            else:
                question.leave()
            done += 1
            errors += question.errors()
            if on_progress is not None:
                on_progress(done, errors)

    loop = asyncio.get_running_loop()
    started = loop.time()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())
    return Replayed(
        calls=len(calls),
        turns=tuple(judging.result() for judging in judgings),
        questions=watched.questions,
        answers=watched.answers,
        usage=watched.usage,
        seconds=loop.time() - started,
        gave_up=watched.gave_up,
    )


def question_count(calls: Sequence[RecordedCall], tools: Tools = "all") -> int:
    """How many steps `replay` will report as done for these calls."""
    count = 0
    for call in calls:
        for turn in call.turns:
            count += bool(turn.agent_text.strip())
            if tools != "off" and turn.tools:
                count += len(turn.tools) if any(tool.in_turn for tool in turn.tools) else 1
    return count
