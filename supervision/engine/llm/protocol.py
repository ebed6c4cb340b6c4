"""What the engine asks of a language model: one JSON object, or the probabilities of one token, for a system and a user
message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from supervision.engine.context import NO_USAGE, Usage


class LLMError(Exception):
    """The model could not be asked, or did not answer. The message is fit to show to the policy's owner.

    Messages never contain keys, nor anything that was said in a call.
    """


class LLMTimeout(LLMError):
    """No answer within the time that was given."""


class LLMUnreachable(LLMError):
    """The endpoint could not be connected to, or the connection broke before the answer was whole."""


class LLMRejected(LLMError):
    """The endpoint answered with an HTTP error. `status` is its code (400 to 599)."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class LLMBadAnswer(LLMError):
    """The endpoint answered 200 with something that is not a chat completion with text in it."""


class LLMClosed(LLMError):
    """`aclose` was called before this question was asked."""


@dataclass(frozen=True, slots=True)
class LLMResult:
    """A model's answer: `text` as it came (meant to be one JSON object, but not yet checked) and its token usage.

    `model` is the name of the model that answered, where the client knows it; `fallback` says that it is the second
    provider's, because the first did not answer. Neither makes it another answer.
    """

    text: str
    usage: Usage = NO_USAGE
    model: str = field(default="", compare=False)
    fallback: bool = field(default=False, compare=False)


@runtime_checkable
class LLMClient(Protocol):
    """A language model that answers in JSON. Bring your own by implementing this one method.

    Instances are shared by all calls of a process and must allow any number of concurrent questions. A client that has
    something to close has `async def aclose(self) -> None` besides: `Supervisor.aclose` calls it. It releases
    connections; questions under way are answered first, later ones raise `LLMClosed`; and it may be called twice.
    """

    async def complete_json(
        self, *, system: str, user: str, schema_name: str, schema: dict[str, Any], max_tokens: int, timeout_s: float
    ) -> LLMResult:
        """Asks once and returns the model's text.

        `schema` is a JSON Schema of the wanted object, `schema_name` its name (`mirror_turn`, `mirror_tools`,
        `mirror_correction`, `mirror_policy`), `max_tokens` the longest answer wanted. The answer has to be there within
        `timeout_s` seconds; the engine stops waiting then, cancels the call, and never acts on a later answer.

        Raises `LLMError` (or a subclass) when there is no answer.
        """
        ...


async def close_client(llm: LLMClient) -> None:
    """Closes a client that can be closed, see `LLMClient`. Raises what its `aclose` raises."""
    aclose = getattr(llm, "aclose", None)
    if aclose is not None:
        await aclose()


@dataclass(frozen=True, slots=True)
class FirstToken:
    """How an answer may begin: by first token, as the model spells it (`" Yes"`), the natural logarithm of its
    probability (0 or less); and the question's token usage. Tokens that are not listed are less likely than those.
    `model` is as in `LLMResult`."""

    logprobs: Mapping[str, float] = field(default_factory=dict)
    usage: Usage = NO_USAGE
    model: str = field(default="", compare=False)


@runtime_checkable
class LogprobClient(Protocol):
    """What an `LLMClient` has to be able to do besides, for `scoring="logprob"`."""

    async def first_token_logprobs(
        self, *, system: str, examples: Sequence[tuple[str, str]], user: str, top: int, timeout_s: float
    ) -> FirstToken:
        """Asks for one token and returns the likeliest `top` tokens (at most 20) in its place.

        `examples` are earlier user messages with the answers that were right, in order, between `system` and `user`.
        Deadline, cancellation and errors are those of `LLMClient.complete_json`; a model that does not tell
        probabilities raises `LLMError` too.
        """
        ...
