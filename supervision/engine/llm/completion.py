"""What an OpenAI-compatible endpoint answers: chat completions, and refusals that say how else it may be asked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from supervision.engine.context import NO_USAGE, Usage
from supervision.engine.llm.protocol import FirstToken, LLMBadAnswer, LLMRejected, LLMResult

if TYPE_CHECKING:
    import openai

# No other way of asking helps when the model is not there, or the provider's filter objects to what was said.
_FINAL_CODES = ("model_not_found", "deploymentnotfound", "content_filter", "responsibleaipolicyviolation")

_HINTS = {
    400: "it did not accept the request",
    401: "check the API key",
    403: "the API key may not use this model",
    404: "check base_url and the model's name (on Azure the endpoint, api_version and the deployment's name)",
    429: "rate limit or quota reached",
}


@dataclass
class Dialect:
    """What a model on an endpoint turned out to want other than the usual. Learnt once, kept as long as the pool."""

    json_object: bool = False
    token_field: str = "max_tokens"  # noqa: S105 - a field of the request
    temperature: bool = True

    def __or__(self, changes: Mapping[str, Any]) -> Dialect:
        return Dialect(
            **{
                "json_object": self.json_object,
                "token_field": self.token_field,
                "temperature": self.temperature,
                **changes,
            }
        )


class Rejected(LLMRejected):
    """An HTTP error with what the client needs to decide about another try; none of it is shown to anybody."""

    def __init__(self, message: str, *, status: int, retry_after_s: float, about: str) -> None:
        super().__init__(message, status=status)
        self.retry_after_s = retry_after_s
        self.about = about


def rejected(error: openai.APIStatusError) -> Rejected:
    """The HTTP error that the openai package raised, without what the server wrote."""
    status = error.status_code
    # The server's own message may repeat the key or the conversation, so only its code is passed on.
    code = error.code or error.type or ""
    named = f", {code}" if re.fullmatch(r"[A-Za-z0-9_.-]{1,60}", str(code)) else ""
    hint = _HINTS.get(status, "the model's endpoint has a problem" if status >= 500 else "see the provider's manual")
    return Rejected(
        f"the model's endpoint answered HTTP {status}{named}: {hint}",
        status=status,
        retry_after_s=_retry_after_s(error.response.headers),
        about=f"{error.param or ''} {code} {error.message}".lower(),
    )


def adapted(dialect: Dialect, error: Rejected) -> Dialect | None:
    """The next thing to try with an endpoint that refused a request, or None when nothing is left."""
    if any(code in error.about for code in _FINAL_CODES):
        return None
    if "max_tokens" in error.about and dialect.token_field == "max_tokens":  # noqa: S105 - a field of the request
        return dialect | {"token_field": "max_completion_tokens"}
    if "temperature" in error.about and dialect.temperature:
        return dialect | {"temperature": False}
    if not dialect.json_object:
        return dialect | {"json_object": True}
    return None


def _retry_after_s(headers: Mapping[str, str]) -> float:
    """How long the server wants to be left alone, in seconds; 0 when it does not say (RFC 9110, section 10.2.3)."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        after = headers.get("retry-after", "0").strip()
        if after[:1].isalpha():
            # A time of day: by the server's own clock, which need not agree with ours.
            wait = parsedate_to_datetime(after) - parsedate_to_datetime(headers.get("date", ""))
            return max(0.0, wait.total_seconds())
        return max(0.0, float(after))
    except (ValueError, TypeError):
        return 0.0


def result_of(answer: Any, max_tokens: int, model: str) -> LLMResult:
    """What a chat completion says. Raises `LLMBadAnswer`."""
    try:
        choice = answer["choices"][0]
        content = choice["message"]["content"]
        finish = choice.get("finish_reason")
        refused = choice["message"].get("refusal")
    except (LookupError, TypeError, AttributeError) as error:
        raise LLMBadAnswer("the model's endpoint answered with something that is no chat completion") from error
    if finish == "length":
        raise LLMBadAnswer(f"the model's answer was cut off at {max_tokens} tokens; allow it more")
    if finish == "content_filter":
        raise LLMBadAnswer("the provider's content filter held the model's answer back")
    if refused:
        raise LLMBadAnswer("the model declined to answer")
    if not isinstance(content, str) or not content.strip():
        raise LLMBadAnswer("the model's answer was empty")
    return LLMResult(content, _usage(answer.get("usage")), model)


def first_token_of(answer: Any, model: str) -> FirstToken:
    """The probabilities of a chat completion's first token. Raises `LLMBadAnswer`."""
    try:
        choice = answer["choices"][0]
        logprobs = choice["logprobs"]
    except (LookupError, TypeError) as error:
        raise LLMBadAnswer("the model's endpoint answered with something that is no chat completion") from error
    try:
        top = logprobs["content"][0]["top_logprobs"]
        # Of two spellings that look the same (tokens of half a character) the likelier one counts.
        found = {entry["token"]: entry["logprob"] for entry in reversed(top)}
    except (LookupError, TypeError) as error:
        raise LLMBadAnswer(
            'the model\'s endpoint tells no token probabilities (logprobs); use a model that does, or scoring="json"'
        ) from error
    return FirstToken(found, _usage(answer.get("usage")), model)


def _usage(usage: Any) -> Usage:
    if not isinstance(usage, dict):
        return NO_USAGE
    details = usage.get("prompt_tokens_details")
    return Usage(
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        _count(details.get("cached_tokens")) if isinstance(details, dict) else 0,
    )


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
