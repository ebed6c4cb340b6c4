"""Where questions go: addresses of OpenAI-compatible and Azure endpoints, and the connections to them.

The `openai` package is imported when the first endpoint is opened, not when this module is.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit, urlunsplit

from supervision.engine.llm.protocol import LLMBadAnswer

if TYPE_CHECKING:
    import ssl

    import httpx2
    from openai import AsyncOpenAI

OPENAI_URL = "https://api.openai.com/v1"
PATH = "/chat/completions"

# A call is one question at a time, a node has thousands of calls: the SDK's own limit of 1,000 would queue them.
MAX_CONNECTIONS = 10_000
# Longer than the pause between two turns of a call, so that the next turn finds a warm connection.
KEEPALIVE_S = 60.0
# About as many as take the loop 5 ms to begin, which is what a frame of audio may have to wait for.
STARTS_PER_ROUND = 8
# Several times the longest answer that is ever asked for; what an endpoint of a tenant's choosing may make us hold.
MAX_RESPONSE_BYTES = 2 * 1024 * 1024

# learn.microsoft.com, "Azure OpenAI in Azure AI Foundry Models REST API reference", and its sovereign clouds.
_AZURE_HOST = re.compile(r"\.(openai|cognitiveservices|services\.ai)\.azure\.(com|us|cn)$")
_DEPLOYMENT = re.compile(r"^(?P<before>.*)/openai/deployments/(?P<name>[^/]+)$")


@dataclass(frozen=True, slots=True)
class Address:
    """A base URL (without a slash at its end), what is asked in its query, and whether it is Azure's."""

    url: str
    query: tuple[tuple[str, str], ...] = ()
    azure: bool = False


def find_address(
    *,
    model: str,
    base_url: str | None = None,
    azure_endpoint: str | None = None,
    api_version: str | None = None,
    azure_deployment: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Address:
    """Where an endpoint is asked, by what was said about it, else by the environment, else OpenAI's own.

    Azure it is when `azure_endpoint`, `api_version` or `azure_deployment` is given, when the host is one of Azure's, or
    when `AZURE_OPENAI_ENDPOINT` is set and nothing else was given. With an API version (given, in the URL's query, or
    `OPENAI_API_VERSION`) the deployment's own path is asked, `…/openai/deployments/NAME?api-version=…`; without one, or
    with a URL that ends in `/openai/v1`, Azure's v1 API, which needs none. Raises `ValueError`, naming the argument.
    """
    if base_url is not None and azure_endpoint is not None:
        raise ValueError("base_url and azure_endpoint exclude each other; give one of them")
    environ = environ or {}
    said = "azure_endpoint" if azure_endpoint is not None else "base_url"
    url = azure_endpoint if azure_endpoint is not None else base_url
    azure = azure_endpoint is not None or api_version is not None or azure_deployment is not None
    if url is None and environ.get("AZURE_OPENAI_ENDPOINT", "").strip():
        said, url, azure = "AZURE_OPENAI_ENDPOINT", environ["AZURE_OPENAI_ENDPOINT"].strip(), True
    elif url is None and azure:
        raise ValueError("azure_endpoint is missing: give it, or set AZURE_OPENAI_ENDPOINT")
    elif url is None:
        said, url = "OPENAI_BASE_URL", environ.get("OPENAI_BASE_URL", "").strip() or OPENAI_URL
    host, path, query = _taken_apart(url, said)
    azure = azure or _AZURE_HOST.search(host) is not None
    origin, path = url[: url.index("://") + 3] + urlsplit(url).netloc, path.removesuffix(PATH)
    if not azure:
        return Address(origin + path, tuple(query.items()))
    version = api_version or query.pop("api-version", None)
    if path.endswith("/openai/v1"):
        if version is not None and re.match(r"\d{4}-", version):
            raise ValueError(f"api_version {version} is not for {said} that ends in /openai/v1; leave one of them out")
        return Address(origin + path, _versioned(query, version), azure=True)
    deployed = _DEPLOYMENT.match(path)
    version = version or environ.get("OPENAI_API_VERSION", "").strip() or None
    before = (deployed["before"] if deployed else path).removesuffix("/openai")
    if version is None or not re.match(r"\d{4}-", version):
        if deployed is not None:
            raise ValueError(f"api_version is missing: {said} names a deployment, which is asked by version")
        return Address(f"{origin}{before}/openai/v1", _versioned(query, version), azure=True)
    name = azure_deployment or (deployed["name"] if deployed else model)
    return Address(
        f"{origin}{before}/openai/deployments/{quote(name, safe='')}", _versioned(query, version), azure=True
    )


def _versioned(query: Mapping[str, str], version: str | None) -> tuple[tuple[str, str], ...]:
    return tuple({**query, **({"api-version": version} if version else {})}.items())


def _taken_apart(url: Any, said: str) -> tuple[str, str, dict[str, str]]:
    if not isinstance(url, str) or not re.match(r"https?://[^/]", url):
        hint = f"; write https://{url}" if isinstance(url, str) and re.match(r"[\w-]+(\.[\w-]+)+", url) else ""
        raise ValueError(f"{said} has to start with http:// or https:// and name a host{hint}")
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"{said} must not hold a name or a password; give api_key")
    try:
        host = parts.hostname or ""
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{said} has a port that is none") from error
    if not host or port == 0:
        raise ValueError(f"{said} has to name a host and, if any, a port from 1 to 65535")
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    return host, parts.path.rstrip("/"), query


@functools.cache
def tls_context() -> ssl.SSLContext:
    """The TLS settings of all connections that are made here. Shared: reading the certificates takes 0.1 s."""
    httpx2, _openai = packages()
    context: ssl.SSLContext = httpx2.create_ssl_context()
    return context


def packages() -> tuple[Any, Any]:
    """The modules httpx2 and openai. Raises `ImportError` when they are not installed."""
    try:
        import httpx2
        import openai
    except ImportError as error:
        raise ImportError("OpenAIClient needs the openai package: install mirror[openai]") from error
    return httpx2, openai


def open_sdk(address: Address, http_client: httpx2.AsyncClient | None, max_connections: int) -> AsyncOpenAI:
    """The openai package's client for an address. It has no key of its own: `auth_headers` go with each request."""
    httpx2, openai = packages()
    if http_client is None:
        http_client = openai.DefaultAioHttpClient(
            limits=httpx2.Limits(max_connections=max_connections, keepalive_expiry=KEEPALIVE_S),
            follow_redirects=False,
            verify=tls_context(),
        )
    hooks = http_client.event_hooks["response"]
    if _bound not in hooks:
        hooks.append(_bound)
    # The deadline of a question is ours, over connecting, waiting and reading together; the SDK's timeouts are per
    # read, and its retries know nothing of the deadline.
    sdk = sdk_class()(
        api_key="sent with each request",
        base_url=address.url,
        default_query=dict(address.query) or None,
        http_client=http_client,
        max_retries=0,
        timeout=None,
    )
    if _is_plain(http_client):
        query = urlencode(address.query)
        url = urlunsplit(urlsplit(address.url + PATH)._replace(query=query))
        sdk.lean_url = httpx2.URL(url)
    opened: AsyncOpenAI = sdk
    return opened


def _is_plain(http_client: httpx2.AsyncClient) -> bool:
    """Whether an HTTP client adds nothing to requests that was not in them, so that asking it to is a waste."""
    own = set(http_client.headers) - {"accept", "accept-encoding", "connection", "user-agent"}
    return not (own or http_client.params or http_client.cookies or http_client.auth or str(http_client.base_url))


class Turnstile:
    """Lets a few questions begin in each round of the event loop, in the order in which they came.

    A thousand that begin in the same round would each be made, then each be sent, then each be read: all answers would
    be ready at the end of it all, and none before the deadline when there is not enough CPU for all. One after the
    other, the first are answered while later ones are made, on connections that the later ones can use again.
    """

    def __init__(self) -> None:
        self._left = 0
        self._open = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        """Waits for its turn; when few want to begin, not at all."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # What waited on a loop that was closed waits no more.
            self._loop, self._open = loop, False
            self._waiting.clear()
        if not self._open:
            self._open, self._left = True, STARTS_PER_ROUND
            loop.call_soon(self._next_round, loop)
        if self._left and not self._waiting:
            self._left -= 1
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _next_round(self, loop: asyncio.AbstractEventLoop) -> None:
        self._left = STARTS_PER_ROUND
        while self._waiting and self._left:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._left -= 1
        self._open = self._left < STARTS_PER_ROUND
        if self._open:
            loop.call_soon(self._next_round, loop)


def auth_headers(address: Address, key: str) -> dict[str, Any]:
    """The headers that carry the key: Azure has its own, which the package's must not accompany."""
    if not address.azure:
        return {"Authorization": f"Bearer {key}"}
    _httpx2, openai = packages()
    return {"api-key": key, "Authorization": openai.omit}


@functools.cache
def sdk_class() -> Any:
    """The openai package's `AsyncOpenAI` without what it takes from the environment."""
    httpx2, openai = packages()

    class Sdk(openai.AsyncOpenAI):  # type: ignore[misc, name-defined]
        lean_url: Any = None

        @property
        def default_headers(self) -> dict[str, Any]:
            # The package adds OPENAI_ORG_ID, OPENAI_PROJECT_ID and OPENAI_CUSTOM_HEADERS from the environment: the
            # operator's account must not go along with somebody else's key. Nothing is to be compressed, because it
            # would be unpacked before its size is known.
            return {
                "Accept": "application/json",
                "Content-Type": "application/json",
                "User-Agent": self.user_agent,
                "Accept-Encoding": "identity",
            }

        def _build_request(self, options: Any, *, retries_taken: int = 0) -> Any:
            if self.lean_url is None or options.url != PATH:
                return super()._build_request(options, retries_taken=retries_taken)
            headers = {**self.default_headers, **options.headers}
            return httpx2.Request(
                "POST",
                self.lean_url,
                headers=[(name.encode(), value.encode()) for name, value in headers.items() if isinstance(value, str)],
                content=options.content,
            )

    return Sdk


async def _bound(response: httpx2.Response) -> None:
    """A response hook: what is read of an answer, whatever its status, has a limit."""
    if not response.request.url.path.endswith(PATH):
        return
    length = response.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MAX_RESPONSE_BYTES:
        raise _too_long()
    if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise LLMBadAnswer("the model's endpoint sent a compressed answer, which it was asked not to do")
    response.stream = _bounded_class()(response.stream)


@functools.cache
def _bounded_class() -> Any:
    httpx2, _openai = packages()

    class Bounded(httpx2.AsyncByteStream):  # type: ignore[misc, name-defined]
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            left = MAX_RESPONSE_BYTES
            async for chunk in self._stream:
                left -= len(chunk)
                if left < 0:
                    raise _too_long()
                yield chunk

        async def aclose(self) -> None:
            await self._stream.aclose()

    return Bounded


def _too_long() -> LLMBadAnswer:
    return LLMBadAnswer(f"the model's endpoint sent more than {MAX_RESPONSE_BYTES // 1024} KiB; no answer is that long")
