"""What flows through the engine: turns in, verdicts out. Plain frozen dataclasses, cheap to make on the call path."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

Role = Literal["customer", "agent", "tool", "mirror"]

Withheld = Literal["shadow", "cooldown", "limit", "in_progress", "late"]
"""Why a verdict that calls for an intervention is not acted upon: the policy only watches; the same rule acted just
now; `max_interventions_per_call` is used up; another intervention is under way; the turn is over."""

MAX_ERROR_CHARS = 200


class JudgingState(StrEnum):
    """How the judging of a turn or a tool call ended. Each ends in exactly one of these; coverage counts them."""

    JUDGED = "judged"
    """The judge answered in time, with an answer that validates."""
    SKIPPED = "skipped"
    """There was no need to ask, for the reason in `detail`."""
    TIMED_OUT = "timed_out"
    """No answer by the deadline. Final: a later answer is dropped."""
    FAILED = "failed"
    """The judge could not be asked, or what it answered does not validate."""
    SHED = "shed"
    """Not asked because of overload."""


class ToolCode(StrEnum):
    """Why a tool call was allowed or not; `mirror.tool_verdict`'s `code`."""

    OK = "ok"
    """The judge allowed it, or it is not gated."""
    POLICY = "policy"
    """The judge refused it."""
    DUPLICATE = "duplicate"
    """The same irreversible call already ran in this call; its result is in `stored_result`."""
    IN_DOUBT = "in_doubt"
    """The same irreversible call was allowed before and nobody said yet how it ended."""
    TIMEOUT = "timeout"
    """The judge, or the record of the decision, was not ready by the deadline."""
    FAILED = "failed"
    """The judge, or the record of the decision, failed."""
    CANCELLED = "cancelled"
    """Overtaken, by an intervention for instance."""
    BAD_ARGS = "bad_args"
    """The arguments are not a JSON object."""
    DENIED = "denied"
    """Somebody with a say in it refused."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a question to a model cost, as the provider counted them; 0 where it did not say."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
        )


NO_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class SupervisorContext:
    """Whose call is supervised, and by which policy. Travels with everything that is recorded of the call."""

    call_id: str
    tenant_id: str | None = None
    agent_id: str | None = None
    policy_id: str | None = None
    policy_version: int | None = None


@dataclass(frozen=True, slots=True)
class ToolCallIntent:
    """A tool that the agent wants to run.

    `id` is the agent's own; a blank one is numbered by the call that it belongs to, and then a tool that is asked about
    twice is two tool calls. `args` is the parsed JSON object, or None with the parser's message in `error` when the
    arguments could not be read. `irreversible` is the agent's own flag; it adds to `MirrorConfig.irreversible_tools`
    and cannot take away from it.
    """

    id: str = ""
    name: str = ""
    args: dict[str, Any] | None = None
    irreversible: bool = False
    error: str | None = None

    @classmethod
    def of(cls, call: ToolCallIntent | Mapping[str, Any] | Any) -> ToolCallIntent:
        """Reads a tool call as agents have it: `{"name", "args" | "arguments"}`, with `id` and `irreversible` if there
        are any, or OpenAI's `{"id", "function": {"name", "arguments"}}`, as a mapping or as the SDK's own object.

        Without arguments they are an empty object; those that cannot be read are kept as `error`, and the gate refuses
        the call, as it does when there is no name. Raises `TypeError` for what is no tool call at all.
        """
        if isinstance(call, ToolCallIntent):
            return call
        told = call if isinstance(call, Mapping) else _attributes(call)
        function = told.get("function")
        if function is not None:
            function = function if isinstance(function, Mapping) else _attributes(function)
            told = {"id": told.get("id"), **function}
        tool_id, name = told.get("id"), told.get("name")
        args, error = _arguments(told.get("args", told.get("arguments", {})))
        return cls(
            id="" if tool_id is None else str(tool_id),
            name=name if isinstance(name, str) else "",
            args=args,
            irreversible=told.get("irreversible") is True,
            error=error,
        )


def _attributes(call: Any) -> dict[str, Any]:
    found = {name: getattr(call, name) for name in ("id", "function", "name", "arguments") if hasattr(call, name)}
    if "function" not in found and "name" not in found:
        raise TypeError(
            f'tool_calls: give ToolCallIntents or mappings with "name" and "args", not {type(call).__name__}'
        )
    return found


def _arguments(value: Any) -> tuple[dict[str, Any] | None, str | None]:
    """A tool call's arguments, or why they are none."""
    if isinstance(value, str | bytes):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as problem:
            return None, str(problem)[:MAX_ERROR_CHARS]
    if not isinstance(value, Mapping):
        return None, f"a JSON object is wanted, this is {_JSON_NAMES.get(type(value), type(value).__name__)}"
    return dict(value), None


_JSON_NAMES: dict[type, str] = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One thing that was said or done earlier in the call. `mirror` is what Mirror said in the agent's place."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True, init=False)
class TurnPayload:
    """An agent turn under review.

    `customer_text` is what the caller said and `agent_text` (or `primary_text`, the same under the library's other
    name) what the agent is about to answer; `tool_calls` are the turn's tool calls, as context. `history` is the
    conversation before the turn and contains nothing of it. `language` is a BCP 47 tag. Raises `TypeError` when it is
    made without an answer, or with two.
    """

    customer_text: str
    agent_text: str
    tool_calls: tuple[ToolCallIntent, ...]
    history: tuple[HistoryEntry, ...]
    turn_id: str
    language: str

    def __init__(
        self,
        customer_text: str,
        agent_text: str | None = None,
        tool_calls: Iterable[ToolCallIntent] = (),
        history: Iterable[HistoryEntry] = (),
        turn_id: str = "",
        language: str = "en",
        *,
        primary_text: str | None = None,
    ) -> None:
        if (agent_text is None) == (primary_text is None):
            raise TypeError("TurnPayload: give the agent's words once, as agent_text or as primary_text")
        put = object.__setattr__
        put(self, "customer_text", customer_text)
        put(self, "agent_text", primary_text if agent_text is None else agent_text)
        put(self, "tool_calls", tuple(tool_calls))
        put(self, "history", tuple(history))
        put(self, "turn_id", turn_id)
        put(self, "language", language)

    @property
    def primary_text(self) -> str:
        """What the agent is about to answer; `agent_text` under the library's other name."""
        return self.agent_text


@dataclass(frozen=True, slots=True)
class ToolVerdict:
    """Whether a tool call may run.

    `id` is the agent's, `state` how judging it ended, `score` (0 to 1: how sure the judge is that the call is wrong)
    None unless judged. `instruction` is what the agent should say or ask instead of a refused call. `stored_result`
    is the first run's result when `code` is `duplicate`. An allow holds for `valid_ms` milliseconds; a refusal has 0.
    `model` and `fallback` are as in `Verdict`.
    """

    id: str
    name: str
    allow: bool
    code: ToolCode
    state: JudgingState
    score: float | None
    reason: str
    instruction: str
    stored_result: Any
    valid_ms: int
    latency_ms: int
    usage: Usage = NO_USAGE
    model: str = ""
    fallback: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What judging a turn came to.

    `score` (0 to 1: how sure the judge is that a rule is broken) is None unless `state` is `judged`. `rule` is the
    text of the broken rule, `reason` the judge's, with the offending words in double quotes, `correction` what the
    agent should say instead. `threshold` is the policy's. `latency_ms` runs from the start of judging to the verdict.
    `detail` says why a turn was not judged. `model` is the model that judged, where its client knows the name, and
    `fallback` says that it is the second provider's, because the first did not answer.

    `tools` has the verdict on each tool call of the turn, in order. Where the words are clean and a tool call was
    refused, `reason` and `correction` are the tool's, and the latter is addressed to the agent. `withheld` says why a
    verdict that calls for an intervention is not to be acted upon; in shadow mode a refused tool call is allowed all
    the same, with the refusal in its `reason`.
    """

    turn_id: str
    state: JudgingState
    score: float | None
    rule: str | None
    reason: str
    correction: str
    threshold: float
    latency_ms: int
    usage: Usage = NO_USAGE
    detail: str = ""
    tools: tuple[ToolVerdict, ...] = ()
    withheld: Withheld | None = None
    model: str = ""
    fallback: bool = False

    @property
    def violates(self) -> bool:
        """The turn's words were judged, and their score reaches the policy's threshold."""
        return self.state is JudgingState.JUDGED and self.score is not None and self.score >= self.threshold

    @property
    def refused_tools(self) -> tuple[ToolVerdict, ...]:
        """The tool calls that may not run, but for duplicates, which have run already."""
        return tuple(tool for tool in self.tools if not tool.allow and tool.code is not ToolCode.DUPLICATE)

    @property
    def should_intervene(self) -> bool:
        """The words violate a rule, or a tool call was refused, and nothing says to withhold the intervention."""
        return self.withheld is None and (self.violates or bool(self.tools and self.refused_tools))

    @property
    def should_report(self) -> bool:
        """The turn belongs in a failure report: it called for an intervention, or the judge held a violation for at
        least as likely as not while the policy's threshold is higher than that."""
        return self.state is JudgingState.JUDGED and self.score is not None and self.score >= min(self.threshold, 0.5)


@dataclass(frozen=True, slots=True)
class Correction:
    """What to say instead of a violating turn.

    `source` is `llm` when words of the model passed every check, else `template`. `detail` is empty for what the model
    wrote for this turn; else it says that it is the judge's suggestion, or a template, and why.
    """

    text: str
    source: Literal["llm", "template"]
    detail: str = ""
    usage: Usage = NO_USAGE


@dataclass(frozen=True, slots=True)
class TurnOutcome:
    """What became of a turn that was judged and spoken in one go (`review_and_speak`).

    `intervened`: Mirror spoke in the agent's place. `spoken_text` is what the caller was given to hear: the turn, the
    correction, or "" when nothing was (the caller is gone, or no voice worked). `detail` says what did not go as it
    should; empty when all did.
    """

    verdict: Verdict
    intervened: bool
    spoken_text: str
    detail: str = ""
