"""OpenAI's chat completions, and everything that speaks like them: any `base_url` will do.

The `openai` package is imported when the first client is made, not when this module is.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeVar

from supervision.engine.llm.admission import MIN_ANSWER_S, Admission
from supervision.engine.llm.breaker import BreakerCounts, BreakerState, CircuitBreaker
from supervision.engine.llm.completion import Dialect, Rejected, adapted, first_token_of, rejected, result_of
from supervision.engine.llm.endpoint import (
    MAX_CONNECTIONS,
    PATH,
    Address,
    Turnstile,
    auth_headers,
    find_address,
    open_sdk,
    packages,
    tls_context,
)
from supervision.engine.llm.protocol import (
    FirstToken,
    LLMBadAnswer,
    LLMClosed,
    LLMResult,
    LLMTimeout,
    LLMUnreachable,
)
from supervision.engine.llm.secrets import Key, Secret, SecretResolver

if TYPE_CHECKING:
    import httpx2
    import openai

__all__ = ["OpenAIClient", "OpenAIPool", "Secret", "tls_context", "warm_up"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

DEFAULT_MODEL = "gpt-4o-mini"

# First retry at once: a pooled connection that the server closed meanwhile fails exactly once.
RETRY_AFTER_S = (0.0, 0.2)
RETRIED_STATUSES = frozenset({408, 409, 429, 500, 502, 503, 504, 529})
ADAPTABLE_STATUSES = frozenset({400, 404, 422})
# Statuses whose Retry-After is for everybody who asks with this key, not for this question.
RESTING_STATUSES = frozenset({429, 503})
# How long an endpoint that no client uses any more keeps its warm connections.
IDLE_ENDPOINT_S = 300.0


@dataclass
class _Endpoint:
    """One address with its connections; shared by the clients that use it."""

    sdk: openai.AsyncOpenAI
    address: Address
    owned: bool
    clock: Callable[[], float] = time.monotonic
    turnstile: Turnstile = field(default_factory=Turnstile)
    dialects: dict[str, Dialect] = field(default_factory=dict)
    breakers: dict[str, CircuitBreaker] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    clients: int = 0
    idle_since: float = 0.0

    def breaker(self, model: str) -> CircuitBreaker:
        """Each model has its own: providers limit and lose them one by one."""
        breaker = self.breakers.get(model)
        if breaker is None:
            breaker = self.breakers[model] = CircuitBreaker(clock=self.clock)
        return breaker

    async def close(self) -> None:
        if self.owned:
            await self.sdk.close()


def warm_up() -> None:
    """Imports the openai package and reads the certificates, so that the first call need not wait for it.

    Takes a second or two, and holds up an event loop for as long: call it before there is one. Raises `ImportError`
    when the package is not installed.
    """
    packages()
    tls_context()


class OpenAIClient:
    """An `LLMClient` for one model behind an OpenAI-compatible endpoint, Azure's among them.

        OpenAIClient(api_key="sk-…", model="gpt-4o-mini")
        OpenAIClient(api_key="any", model="qwen", base_url="http://127.0.0.1:8080/v1")
        OpenAIClient(api_key=Secret("openai/judge"), model="gpt-4o-mini")      # looked up by MirrorConfig.secrets
        OpenAIClient(api_key="…", azure_endpoint="https://NAME.openai.azure.com", azure_deployment="judge",
                     api_version="2024-10-21")
        OpenAIClient(api_key="…", base_url="https://NAME.openai.azure.com/openai/v1", model="judge")

    Without `base_url` and `azure_endpoint`, the endpoint is what `AZURE_OPENAI_ENDPOINT`, else `OPENAI_BASE_URL` says,
    else OpenAI's own. Without `api_key`, the key is `AZURE_OPENAI_API_KEY` for Azure, else `OPENAI_API_KEY`; a key from
    the environment is never sent to a `base_url` that was given. Azure is recognised by the arguments that begin with
    `azure_` or by its host names: it is asked with an `api-key` header, at the deployment's path with `api_version`
    (or `OPENAI_API_VERSION`), at its v1 API without. The deployment is `azure_deployment`, else `model`. Nothing else
    is taken from the environment: no organization, no project, no headers.

    `http_client` takes the place of the client that is made otherwise, and is not closed by `aclose`. `extra_body` is
    added to every request (e.g. `{"seed": 1}`).

    Answers are asked for as `json_schema`; an endpoint that refuses that (HTTP 400, 404 or 422) gets `json_object` with
    the schema in the prompt from then on. Connection errors and HTTP 408, 409, 429 and 5xx are retried at most twice,
    inside the question's deadline; a 401 once, when the key is a `Secret` that has changed since it was looked up.
    Where questions keep failing, or the endpoint asks to be left alone, it is not asked for a while: `BreakerOpen`, see
    `supervision.engine.llm.breaker`; `clock` is that one's. Answers of more than 2 MiB are refused. Raises `ValueError`
    on a blank key or model, or an address that is none.
    """

    def __init__(
        self,
        *,
        api_key: str | Secret | None = None,
        model: str | None = None,
        base_url: str | None = None,
        azure_endpoint: str | None = None,
        api_version: str | None = None,
        azure_deployment: str | None = None,
        http_client: httpx2.AsyncClient | None = None,
        extra_body: Mapping[str, Any] | None = None,
        max_connections: int = MAX_CONNECTIONS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        model = _named(model, azure_deployment)
        address = find_address(
            model=model,
            base_url=base_url,
            azure_endpoint=azure_endpoint,
            api_version=api_version,
            azure_deployment=azure_deployment,
            environ=os.environ,
        )
        if api_key is None and base_url is None:
            variable = "AZURE_OPENAI_API_KEY" if address.azure else "OPENAI_API_KEY"
            api_key = os.environ.get(variable, "").strip() or None
            if api_key is None:
                raise ValueError(f"api_key is missing: give it, or set {variable}")
        key = _key(api_key)
        sdk = open_sdk(address, http_client, max_connections)
        self._set_up(_Endpoint(sdk, address, owned=http_client is None, clock=clock), key, model, extra_body)

    @classmethod
    def from_env(cls, *, model: str | None = None) -> Self:
        """A client for what the environment names: `OPENAI_API_KEY`, `OPENAI_BASE_URL` and `OPENAI_MODEL`; or
        `AZURE_OPENAI_ENDPOINT`, `AZURE_OPENAI_API_KEY`, `OPENAI_API_VERSION` and `AZURE_OPENAI_DEPLOYMENT`.

        `model` goes before the environment's; without either it is gpt-4o-mini, except on Azure, where deployments have
        names of their own. Raises `ValueError`, naming the variable.
        """
        azure = bool(os.environ.get("AZURE_OPENAI_ENDPOINT", "").strip())
        names = ("AZURE_OPENAI_DEPLOYMENT", "OPENAI_MODEL") if azure else ("OPENAI_MODEL",)
        found = (os.environ.get(name, "").strip() for name in names)
        model = model or next(filter(None, found), None if azure else DEFAULT_MODEL)
        if model is None:
            raise ValueError("AZURE_OPENAI_DEPLOYMENT is missing; set it to the name of the deployment")
        return cls(model=model)

    def _set_up(self, endpoint: _Endpoint, key: Key, model: str, extra_body: Mapping[str, Any] | None) -> None:
        self.model = model
        self._endpoint = endpoint
        self._key = key
        self._headers: tuple[str, dict[str, Any]] = ("", {})
        self._extra_body = dict(extra_body or {})
        self._on_close: Callable[[_Endpoint], Any] | None = None
        self._closed = False
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        endpoint.clients += 1

    def __repr__(self) -> str:
        return f"OpenAIClient(model={self.model!r}, base_url={self._endpoint.address.url!r})"

    @property
    def breaker(self) -> CircuitBreaker:
        """Whether the endpoint is asked. Shared by the clients of a pool that have address, key and model in common."""
        return self._endpoint.breaker(self.model)

    @property
    def is_ready(self) -> bool:
        """Whether a question would be sent now."""
        return self.breaker.is_ready

    @property
    def needs_secrets(self) -> str | None:
        """The name of the secret that is this client's key, while nobody has said how to look secrets up."""
        return self._key.name if self._key.needs_resolver else None

    def use_secrets(self, resolver: SecretResolver) -> None:
        """Says how the key is looked up when it is a `Secret`; `Supervisor` does so with `MirrorConfig.secrets`. The
        first to say so counts."""
        self._key.use(resolver)

    async def complete_json(
        self, *, system: str, user: str, schema_name: str, schema: dict[str, Any], max_tokens: int, timeout_s: float
    ) -> LLMResult:
        """See `LLMClient.complete_json`. Cancelling it closes its connection."""

        def body(dialect: Dialect) -> dict[str, Any]:
            return self._body(dialect, system, user, schema_name, schema, max_tokens)

        return result_of(await self._ask(body, timeout_s), max_tokens, self.model)

    async def first_token_logprobs(
        self, *, system: str, examples: Sequence[tuple[str, str]], user: str, top: int, timeout_s: float
    ) -> FirstToken:
        """See `LogprobClient.first_token_logprobs`. Raises `LLMBadAnswer` when the endpoint leaves the probabilities
        out, as some models do."""
        messages = [{"role": "system", "content": system}]
        for asked, answered in examples:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        messages.append({"role": "user", "content": user})

        def body(dialect: Dialect) -> dict[str, Any]:
            wanted = {"model": self.model, "messages": messages, "logprobs": True, "top_logprobs": top}
            wanted |= {dialect.token_field: 1, **({"temperature": 0} if dialect.temperature else {})}
            return {**wanted, **self._extra_body}

        return first_token_of(await self._ask(body, timeout_s), self.model)

    async def _ask(self, body: Callable[[Dialect], dict[str, Any]], timeout_s: float) -> Any:
        """The endpoint's answer. `body` makes the request in the dialect that the model understands."""
        if self._closed:
            raise LLMClosed("this LLM client is closed")
        self._running += 1
        self._idle.clear()
        try:
            return await self._ask_until(body, asyncio.get_running_loop().time() + timeout_s)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def aclose(self) -> None:
        """Closes it, see `LLMClient`. Connections that other clients of a pool share stay open for them."""
        already, self._closed = self._closed, True
        await self._idle.wait()
        if already:
            return
        self._key.cancel()
        self._endpoint.clients -= 1
        if self._on_close is not None:
            self._on_close(self._endpoint)
        else:
            await self._endpoint.close()

    async def _ask_until(self, make_body: Callable[[Dialect], dict[str, Any]], deadline: float) -> Any:
        known_key = self._key.known
        key = known_key if known_key is not None else await self._by(deadline, self._key.value())
        question = Admission(self.breaker, self._endpoint.outcomes, deadline)
        try:
            answer = await self._answer(make_body, key, question)
        except BaseException as error:
            question.ended(error)
            raise
        question.ended(None)
        return answer

    async def _answer(self, make_body: Callable[[Dialect], dict[str, Any]], key: str, question: Admission) -> Any:
        deadline = question.deadline
        known = self._endpoint.dialects.get(self.model, Dialect())
        dialect, tries = known, 0
        refusal: Rejected | None = None
        renewed = False
        while True:
            await question.admit()
            body = make_body(dialect)
            try:
                answer = await self._post(body, key, deadline)
            except Rejected as error:
                if error.status == 401 and not renewed:
                    renewed, newer = True, await self._by(deadline, self._key.renewed(key))
                    if newer is not None:
                        key = newer
                        continue
                changed = adapted(dialect, error) if error.status in ADAPTABLE_STATUSES else None
                if changed is not None:
                    # Kept for the message: what went wrong at first says more than what the last guess led to.
                    refusal = refusal or error
                    dialect = changed
                    continue
                if error.status in RESTING_STATUSES:
                    question.breaker.rest(error.retry_after_s, str(error))
                wait = max(error.retry_after_s, RETRY_AFTER_S[-1] / 2)
                if error.status not in RETRIED_STATUSES or not await self._may_retry(tries, deadline, wait):
                    raise (refusal or error) from error.__cause__
                tries += 1
            except LLMUnreachable:
                if not await self._may_retry(tries, deadline, 0.0):
                    raise
                tries += 1
            else:
                if dialect is not known:
                    self._endpoint.dialects[self.model] = dialect
                    logger.info("model %s is asked differently from now on: %s", self.model, dialect)
                return answer

    @staticmethod
    async def _by(deadline: float, key: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout_at(deadline):
                return await key
        except TimeoutError as error:
            raise LLMTimeout("the API key could not be looked up in time") from error

    async def _may_retry(self, tries: int, deadline: float, at_least_s: float) -> bool:
        """Waits for the next try. False when there is none, or no time for it."""
        if tries >= len(RETRY_AFTER_S):
            return False
        wait = max(RETRY_AFTER_S[tries], at_least_s)
        if asyncio.get_running_loop().time() + wait + MIN_ANSWER_S > deadline:
            return False
        await asyncio.sleep(wait)
        return True

    def _body(
        self, dialect: Dialect, system: str, user: str, name: str, schema: dict[str, Any], max_tokens: int
    ) -> dict[str, Any]:
        if dialect.json_object:
            # After the policy, so that the provider's prompt cache still finds the policy where it was.
            system = (
                f"{system}\n\nAnswer with one JSON object, nothing before or after it, that is valid under the JSON "
                f"Schema {name}:\n{json.dumps(schema, ensure_ascii=False)}"
            )
            wanted: dict[str, Any] = {"type": "json_object"}
        else:
            wanted = {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
            "response_format": wanted,
            dialect.token_field: max_tokens,
        }
        if dialect.temperature:
            body["temperature"] = 0
        return {**body, **self._extra_body}

    async def _post(self, body: dict[str, Any], key: str, deadline: float) -> Any:
        import openai

        if self._headers[0] != key:
            self._headers = (key, auth_headers(self._endpoint.address, key))
        # Half a surrogate pair, which no UTF-8 can hold, becomes a question mark instead of a question not asked.
        content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
        try:
            async with asyncio.timeout_at(deadline):
                await self._endpoint.turnstile.enter()
                return await self._endpoint.sdk.post(
                    PATH, content=content, cast_to=object, options={"headers": self._headers[1]}
                )
        except TimeoutError as error:
            raise LLMTimeout("the model did not answer in time") from error
        except openai.APIStatusError as error:
            raise rejected(error) from error
        except openai.APIConnectionError as error:
            # Includes APITimeoutError: the timeout is ours, so what the SDK calls one is a connection that broke.
            raise LLMUnreachable("the model's endpoint cannot be reached, or broke the connection off") from error
        except openai.OpenAIError as error:
            raise LLMBadAnswer(
                f"the model's endpoint answered with something unexpected ({type(error).__name__})"
            ) from error
        except (ValueError, RecursionError) as error:
            raise LLMBadAnswer("the model's endpoint did not answer with JSON") from error


def _named(model: str | None, azure_deployment: str | None) -> str:
    for given, what in ((azure_deployment, "azure_deployment"), (model, "model")):
        if given is not None and (not isinstance(given, str) or not given.strip()):
            raise ValueError(f'{what} is blank; name one, for instance "gpt-4o-mini"')
    named = model or azure_deployment
    if named is None:
        raise ValueError('model is missing; name one, for instance "gpt-4o-mini"')
    return named


def _key(api_key: str | Secret | None) -> Key:
    if isinstance(api_key, Secret):
        return Key(api_key)
    if not isinstance(api_key, str) or not api_key.strip():
        raise ValueError("api_key is blank; for a server that wants none, give any word")
    if not api_key.strip().isascii() or not api_key.strip().isprintable():
        raise ValueError("api_key has characters that no header can carry; check that it was copied whole")
    return Key(api_key.strip())


@dataclass(frozen=True, slots=True)
class EndpointFigures:
    """What a pool of clients has now, and what it did since it was made.

    `outcomes` counts questions by how they ended: `answered`, `timed_out`, `unreachable`, `failing` (an HTTP error that
    any question would get), `rejected` (another one), `bad_answer`, `not_asked` (for the breaker), `dropped` (by
    whoever asked).
    """

    endpoints: int
    breakers: Mapping[BreakerState, int]
    opened: int
    refused: int
    probes_answered: int
    probes_failed: int
    outcomes: Mapping[str, int]


class OpenAIPool:
    """OpenAI clients for a process that serves many policies: one set of connections per (address, key).

        pool = OpenAIPool()
        llm = pool.client(api_key=..., model=..., base_url=...)   # cheap; as many as there are calls
        await llm.aclose()                                        # its questions end; the connections stay warm
        await pool.aclose()

    An endpoint that no open client uses is closed after `idle_s` seconds, when the pool is next used. `http_client`
    makes the HTTP client of a new endpoint; the pool closes it. `clock` is the circuit breakers', of which each
    (address, key, model) has one: a wrong key, or a limit that is used up, is nobody else's. The environment is never
    looked at: the keys are tenants', and the environment is the operator's.
    """

    def __init__(
        self,
        *,
        http_client: Callable[[], httpx2.AsyncClient] | None = None,
        idle_s: float = IDLE_ENDPOINT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make_http_client = http_client
        self._idle_s = idle_s
        self._clock = clock
        self._outcomes: Counter[str] = Counter()
        # Of the breakers of endpoints that were closed.
        self._before = BreakerCounts()
        self._endpoints: dict[tuple[Address, str], _Endpoint] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def client(
        self,
        *,
        api_key: str,
        model: str | None = None,
        base_url: str | None = None,
        azure_endpoint: str | None = None,
        api_version: str | None = None,
        azure_deployment: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> OpenAIClient:
        """A client on the shared connections of (address, key). Needs a running event loop. Arguments and errors as
        OpenAIClient's, but the key is one, and without an address it is OpenAI's own."""
        self._close_idle()
        model = _named(model, azure_deployment)
        address = find_address(
            model=model,
            base_url=base_url,
            azure_endpoint=azure_endpoint,
            api_version=api_version,
            azure_deployment=azure_deployment,
        )
        if isinstance(api_key, Secret):
            raise ValueError("api_key: the pool needs the key itself, not a Secret; look it up first")
        key = _key(api_key)
        endpoint = self._endpoints.get((address, api_key))
        if endpoint is None:
            http_client = self._make_http_client() if self._make_http_client else None
            sdk = open_sdk(address, http_client, MAX_CONNECTIONS)
            endpoint = _Endpoint(sdk, address, owned=True, clock=self._clock, outcomes=self._outcomes)
            self._endpoints[address, api_key] = endpoint
        client = OpenAIClient.__new__(OpenAIClient)
        client._set_up(endpoint, key, model, extra_body)
        client._on_close = self._released
        return client

    def figures(self) -> EndpointFigures:
        """See `EndpointFigures`. May be asked for in any thread."""
        endpoints = list(self._endpoints.values())
        breakers = [breaker for endpoint in endpoints for breaker in list(endpoint.breakers.values())]
        states = Counter(breaker.state for breaker in breakers)
        counts = [self._before, *(breaker.counts for breaker in breakers)]
        return EndpointFigures(
            endpoints=len(endpoints),
            breakers={state: states[state] for state in BreakerState},
            opened=sum(one.opened for one in counts),
            refused=sum(one.refused for one in counts),
            probes_answered=sum(one.probes_answered for one in counts),
            probes_failed=sum(one.probes_failed for one in counts),
            outcomes=dict(self._outcomes),
        )

    async def aclose(self) -> None:
        """Closes every endpoint. Close the clients first: questions under way would break off."""
        endpoints = list(self._endpoints.values())
        self._endpoints.clear()
        for endpoint in endpoints:
            self._remember(endpoint)
            await endpoint.close()
        while self._closing:
            await asyncio.wait(self._closing)

    def _released(self, endpoint: _Endpoint) -> None:
        endpoint.idle_since = asyncio.get_running_loop().time()

    def _close_idle(self) -> None:
        loop = asyncio.get_running_loop()
        for key, endpoint in list(self._endpoints.items()):
            if not endpoint.clients and loop.time() - endpoint.idle_since >= self._idle_s:
                del self._endpoints[key]
                self._remember(endpoint)
                task = loop.create_task(endpoint.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    def _remember(self, endpoint: _Endpoint) -> None:
        for breaker in endpoint.breakers.values():
            for name in ("opened", "refused", "probes_answered", "probes_failed"):
                setattr(self._before, name, getattr(self._before, name) + getattr(breaker.counts, name))
