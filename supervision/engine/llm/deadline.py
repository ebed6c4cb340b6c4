"""Asking a model under a deadline that holds whatever the client does, and taking nothing on trust of what it says."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from supervision.engine.context import NO_USAGE, JudgingState, Usage
from supervision.engine.llm.limiter import QuestionLimiter, Risk, risk_here
from supervision.engine.llm.protocol import LLMClient, LLMError, LLMResult, LLMTimeout

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Counted(Protocol):
    """A client's answer of any kind, with what it cost and who gave it."""

    @property
    def usage(self) -> Usage:
        """Tokens, as the provider counted them."""
        ...

    @property
    def model(self) -> str:
        """The model's name; empty when the client does not know."""
        ...


R = TypeVar("R", bound=Counted)

# Far more than any answer that was asked for; an endpoint that sends more is not answering the question.
MAX_ANSWER_CHARS = 200_000
# Of the time for a question, how much of it waits for a place where questions are limited: the judge needs the rest.
WAIT_SHARE = 0.25
TOO_MANY = "too many questions are with the judge already"


class InvalidAnswer(ValueError):
    """A model's answer is not what was asked for. The message says in what way, without repeating any of it."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """How a question ended. `value` is there exactly when `state` is `judged`; else `detail` says why it is not."""

    state: JudgingState
    value: T | None
    detail: str
    usage: Usage
    latency_ms: int
    model: str = ""
    """The model that answered, where its client knows it; empty when none did."""
    fallback: bool = False
    """Whether that is the second provider's."""


class DeadlineAsker:
    """Puts questions to a client and stops waiting at the deadline.

    The client runs in a task of its own: a client that is slow to be cancelled, or does not let itself be cancelled,
    costs the caller no time. What it answers after the deadline is dropped and logged as late.
    """

    def __init__(self, llm: LLMClient, limiter: QuestionLimiter | None = None, *, only_watches: bool = False) -> None:
        """`limiter` bounds how many questions are with the client at a time. With `only_watches` nobody acts upon the
        answers, and of the questions only gates of irreversible tools are more than `Risk.SHADOW`."""
        self._llm = llm
        self._limiter = limiter
        self._only_watches = only_watches
        self._running: set[asyncio.Task[Any]] = set()

    @property
    def llm(self) -> LLMClient:
        """The client that is asked."""
        return self._llm

    async def ask(
        self,
        *,
        system: str,
        user: str,
        schema_name: str,
        schema: dict[str, Any],
        max_tokens: int,
        deadline: float,
        validate: Callable[[dict[str, Any]], T],
        risk: Risk | None = None,
    ) -> Answer[T]:
        """Asks once. `deadline` is in seconds of the running loop's clock; `validate` turns the parsed object into the
        value and raises `InvalidAnswer`. `risk` is what hangs on it, by default what `asking` says. Where questions are
        limited, one that gets no place is `shed`: tools and corrections at the deadline, others after a quarter of the
        time. Gates of irreversible tools are never shed, they have `timed_out` then. Raises nothing but
        `asyncio.CancelledError`."""
        return await self.put(
            f"ask {schema_name}",
            lambda timeout_s: self._complete(system, user, schema_name, schema, max_tokens, timeout_s),
            deadline=deadline,
            read=lambda result: validate(parse_object(result.text)),
            risk=risk,
        )

    async def put(
        self,
        name: str,
        question: Callable[[float], Coroutine[Any, Any, R]],
        *,
        deadline: float,
        read: Callable[[R], T],
        risk: Risk | None = None,
    ) -> Answer[T]:
        """Puts a question of any kind: `question` gets the seconds that are left, `read` makes the value of what came
        back and raises `InvalidAnswer`. `name` is for the log. Otherwise as `ask`."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        timeout_s = deadline - started
        if timeout_s <= 0:
            return Answer(JudgingState.TIMED_OUT, None, "no time was left to ask the judge", NO_USAGE, 0)
        limiter = self._limiter
        if limiter is not None:
            risk = risk_here() if risk is None else risk
            if self._only_watches and risk is not Risk.IRREVERSIBLE:
                risk = min(risk, Risk.SHADOW)
            within_s = timeout_s if risk.is_patient else timeout_s * WAIT_SHARE
            if not await limiter.acquire(within_s=within_s, risk=risk):
                state = JudgingState.TIMED_OUT if risk is Risk.IRREVERSIBLE else JudgingState.SHED
                return Answer(state, None, TOO_MANY, NO_USAGE, round((loop.time() - started) * 1000))
            timeout_s = max(0.0, deadline - loop.time())
        task = loop.create_task(question(timeout_s), name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        if limiter is not None:
            # A client that goes on after the deadline still has its place.
            task.add_done_callback(lambda _: limiter.release())
        try:
            await asyncio.wait((task,), timeout=timeout_s)
        except asyncio.CancelledError:
            _abandon(task)
            raise
        usage, model, fallback = NO_USAGE, "", False
        value: T | None = None
        if not task.done():
            _abandon(task)
            state, detail = JudgingState.TIMED_OUT, "the judge did not answer in time"
        else:
            try:
                result = task.result()
                usage, model, fallback = result.usage, result.model, getattr(result, "fallback", False)
                value = read(result)
                state, detail = JudgingState.JUDGED, ""
            except InvalidAnswer as error:
                state, detail = JudgingState.FAILED, f"the judge's answer is not valid: {error}"
            except LLMTimeout as error:
                state, detail = JudgingState.TIMED_OUT, str(error)
            except LLMError as error:
                state, detail = JudgingState.FAILED, str(error)
            except asyncio.CancelledError:
                state, detail = JudgingState.FAILED, "the LLM client gave the question up"
            except Exception as error:
                # A client of somebody's own may raise anything; its message may hold what was said, so it is not kept.
                logger.error("the LLM client %s raised %s", type(self._llm).__name__, type(error).__name__)
                state, detail = JudgingState.FAILED, f"the LLM client raised {type(error).__name__}"
        return Answer(state, value, detail, usage, round((loop.time() - started) * 1000), model, fallback)

    async def aclose(self) -> None:
        """Waits until no question is under way any more."""
        while self._running:
            await asyncio.wait(self._running)

    async def _complete(
        self, system: str, user: str, name: str, schema: dict[str, Any], max_tokens: int, timeout_s: float
    ) -> LLMResult:
        result = await self._llm.complete_json(
            system=system, user=user, schema_name=name, schema=schema, max_tokens=max_tokens, timeout_s=timeout_s
        )
        if not isinstance(result, LLMResult) or not isinstance(result.text, str):
            raise InvalidAnswer("the LLM client has to return an LLMResult with a text")
        return result


def _abandon(task: asyncio.Task[Any]) -> None:
    task.cancel()
    task.add_done_callback(_log_late)


def _log_late(task: asyncio.Task[Any]) -> None:
    if task.cancelled():
        return
    error = task.exception()
    if error is None:
        logger.info("late: an answer to '%s' came after its deadline and was dropped", task.get_name())
    else:
        logger.debug("'%s' ended with %s after its deadline", task.get_name(), type(error).__name__)


def parse_object(text: str) -> dict[str, Any]:
    """Parses a model's answer, which has to be one JSON object. Raises `InvalidAnswer`."""
    if len(text) > MAX_ANSWER_CHARS:
        raise InvalidAnswer("it is far too long")
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidAnswer("it is not JSON") from error
    if not isinstance(value, dict):
        raise InvalidAnswer("it is not a JSON object")
    return value


def _no_constant(_name: str) -> NoReturn:
    raise InvalidAnswer("NaN and Infinity are not numbers in JSON")


def exact_keys(value: Any, keys: frozenset[str], where: str = "it") -> dict[str, Any]:
    """The value, if it is an object with exactly these keys. Raises `InvalidAnswer`."""
    if not isinstance(value, dict):
        raise InvalidAnswer(f"{where} is not a JSON object")
    if value.keys() != keys:
        missing = ", ".join(sorted(keys - value.keys()))
        raise InvalidAnswer(f"{where} lacks {missing}" if missing else f"{where} has fields that were not asked for")
    return value


def score_of(value: Any) -> float:
    """A score: a number from 0 to 1, and not a boolean. Raises `InvalidAnswer`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InvalidAnswer("score has to be a number from 0 to 1")
    return float(value)


def text_of(value: Any, name: str, limit: int) -> str:
    """A text, stripped and cut to `limit` characters. Raises `InvalidAnswer` when it is none."""
    if not isinstance(value, str):
        raise InvalidAnswer(f"{name} has to be a string")
    return value.strip()[:limit]
