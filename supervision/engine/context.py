"""What flows through the engine: turns in, verdicts out. Plain frozen dataclasses, cheap to make on the call path."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

Role = Literal["customer", "agent", "tool", "mirror"]


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

    `id` is the agent's own. `args` is the parsed JSON object, or None with the parser's message in `error` when the
    arguments could not be read. `irreversible` is the agent's own flag; it adds to `MirrorConfig.irreversible_tools`
    and cannot take away from it.
    """

    id: str
    name: str
    args: dict[str, Any] | None
    irreversible: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One thing that was said or done earlier in the call. `mirror` is what Mirror said in the agent's place."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class TurnPayload:
    """An agent turn under review.

    `customer_text` is what the caller said and `agent_text` what the agent is about to answer; `tool_calls` are the
    turn's tool calls, as context. `history` is the conversation before the turn and contains nothing of it.
    `language` is a BCP 47 tag.
    """

    customer_text: str
    agent_text: str
    tool_calls: tuple[ToolCallIntent, ...] = ()
    history: tuple[HistoryEntry, ...] = ()
    turn_id: str = ""
    language: str = "en"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What judging a turn came to.

    `score` (0 to 1: how sure the judge is that a rule is broken) is None unless `state` is `judged`. `rule` is the
    text of the broken rule, `reason` the judge's, with the offending words in double quotes, `correction` what the
    agent should say instead. `threshold` is the policy's. `latency_ms` runs from the start of judging to the verdict.
    `detail` says why a turn was not judged.
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

    @property
    def should_intervene(self) -> bool:
        """The turn was judged, and its score reaches the policy's threshold."""
        return self.state is JudgingState.JUDGED and self.score is not None and self.score >= self.threshold

    @property
    def should_report(self) -> bool:
        """The turn belongs in a failure report: it called for an intervention, or the judge held a violation for at
        least as likely as not while the policy's threshold is higher than that."""
        return self.state is JudgingState.JUDGED and self.score is not None and self.score >= min(self.threshold, 0.5)


@dataclass(frozen=True, slots=True)
class ToolVerdict:
    """Whether a tool call may run.

    `id` is the agent's, `state` how judging it ended, `score` (0 to 1: how sure the judge is that the call is wrong)
    None unless judged. `instruction` is what the agent should say or ask instead of a refused call. `stored_result`
    is the first run's result when `code` is `duplicate`. An allow holds for `valid_ms` milliseconds; a refusal has 0.
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
