"""HTTP through the door of `mirror_saas.egress`: for judges, and for whatever else asks a URL that a tenant gave.

Addresses are checked as the sockets are opened. Answers are bounded in size and, except for a judge's, whose question
has a deadline of its own, in time. No proxy of the environment is used: behind one, nobody would check the address.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urljoin, urlsplit

import aiohttp
import httpx2
import openai
from aiohttp.abc import AbstractResolver, ResolveResult

from mirror_saas.egress import (
    AddressInfo,
    EgressRefused,
    egress_addresses,
    entry_allowed,
    name_allowed,
    refused,
    rules,
    socket_open,
)
from supervision.engine.llm.openai import tls_context

MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
TIMEOUT_S: Final = 10.0
MAX_REDIRECTS: Final = 3
MAX_URL_CHARS: Final = 8192

_MAX_CONNECTIONS: Final = 10_000  # one question at a time for each of thousands of calls
_KEEPALIVE_S: Final = 60.0  # longer than the pause between two turns
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_LOGINS: Final = frozenset({"authorization", "cookie", "proxy-authorization", "private-token", "x-api-key"})
# Longer than the connector remembers a name's addresses (10 s), by far shorter than anybody keeps an old one.
_NAMED_FOR_S: Final = 30.0


class EgressFailed(OSError):
    """A request that got no usable answer. The message names the host, never path, query or headers."""


@dataclass(frozen=True, slots=True)
class EgressResponse:
    """An answer. `headers` have names in lower case; `body` is as it came, never compressed."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    url: str = field(repr=False)


def url_check(url: str) -> str:
    """``url`` if it can be asked for: http or https, with a host, without a login. Raises :class:`EgressRefused`."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        login = parts.username is not None or parts.password is not None
    except ValueError:
        usable = login = False
    # Parsers disagree about what blanks, control characters and backslashes mean.
    plain = len(url) <= MAX_URL_CHARS and re.fullmatch(r"[^\x00-\x20\x7f\\]+", url) is not None
    if not usable or not plain:
        raise EgressRefused(
            "This is no URL that can be asked for: it starts with http:// or https:// and names a host."
        )
    if login:
        raise EgressRefused("A URL with a login in it is not asked for; give the login as a header.")
    return url


class EgressClient:
    """Asks URLs that tenants gave:

    async with EgressClient() as client:
        answer = await client.request("POST", url, headers={…}, body=b"…")

    Belongs to one event loop. Redirects of GET and HEAD are followed, each through the same checks, without logins to
    another origin and never from https to http; others are given back as they are.
    """

    def __init__(self) -> None:
        self._session = _session(limit=100)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout_s: float = TIMEOUT_S,
        max_bytes: int = MAX_ANSWER_BYTES,
        max_redirects: int = MAX_REDIRECTS,
    ) -> EgressResponse:
        """The answer, whatever its status. ``timeout_s`` is for all of it, redirects and body included.

        Raises :class:`EgressRefused` for a URL or an address that is not allowed, :class:`EgressFailed` for everything
        that goes wrong on the way, an answer of more than ``max_bytes`` and a compressed one included.
        """
        sent = {**(headers or {}), "Accept-Encoding": "identity"}
        follows = method.upper() in ("GET", "HEAD")
        host = ""
        try:
            async with asyncio.timeout(timeout_s):
                for _ in range(max_redirects + 1):
                    host = urlsplit(url_check(url)).hostname or ""
                    answer = await self._ask(method, url, sent, body, max_bytes, host)
                    if not follows or answer.status not in _REDIRECTS or "location" not in answer.headers:
                        return answer
                    following = url_check(_joined(url, answer.headers["location"]))
                    sent, url = _onward(sent, url, following), following
        except TimeoutError as problem:
            raise EgressFailed(f"{host} did not answer within {timeout_s:g} s") from problem
        raise EgressFailed(f"{host} redirected more than {max_redirects} times")

    async def _ask(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, max_bytes: int, host: str
    ) -> EgressResponse:
        try:
            async with self._session.request(
                method, url, headers=headers, data=body, allow_redirects=False, max_line_size=8190, max_field_size=8190
            ) as answer:
                given = {name.lower(): value for name, value in answer.headers.items()}
                if given.get("content-encoding", "identity").lower() != "identity":
                    raise EgressFailed(f"{host} compressed its answer although it was asked not to")
                content = bytearray()
                async for chunk in answer.content.iter_any():
                    content += chunk
                    if len(content) > max_bytes:
                        raise EgressFailed(f"{host} answered with more than {max_bytes} bytes")
                return EgressResponse(answer.status, given, bytes(content), url)
        except EgressRefused:
            raise
        except aiohttp.ClientConnectorError as problem:
            if isinstance(problem.os_error, EgressRefused):
                raise problem.os_error from problem
            raise EgressFailed(f"{host} cannot be reached") from problem
        except (aiohttp.ClientError, ValueError) as problem:
            raise EgressFailed(f"{host} did not answer as a web server does ({type(problem).__name__})") from problem


def llm_http_client() -> httpx2.AsyncClient:
    """An HTTP client for the openai package whose every connection passes the check; redirects are not followed.

    Answers have at most 4 MiB and come uncompressed. Must be made on the loop that uses it, and closed.
    """
    client = openai.DefaultAioHttpClient(
        limits=httpx2.Limits(max_connections=_MAX_CONNECTIONS, keepalive_expiry=_KEEPALIVE_S),
        follow_redirects=False,
        verify=tls_context(),
        headers={"Accept-Encoding": "identity"},
        # With proxies of the environment, requests would leave through transports that check nothing.
        trust_env=False,
    )
    # The package's aiohttp transport takes a session factory, but its public client does not pass one on.
    transport: Any = client._transport
    transport.client = lambda: _session(limit=_MAX_CONNECTIONS)
    client._transport = _Bounded(transport)
    return client


class _Bounded(httpx2.AsyncBaseTransport):
    """Passes requests on, and answers of at most :data:`MAX_ANSWER_BYTES`, which must not be compressed."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = await self._inner.handle_async_request(request)
        assert isinstance(answer.stream, httpx2.AsyncByteStream)
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            await answer.stream.aclose()
            raise httpx2.ReadError("a compressed answer, although it was asked not to be", request=request)
        answer.stream = _BoundedStream(answer.stream, request)
        return answer

    async def aclose(self) -> None:
        await self._inner.aclose()


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream, request: httpx2.Request) -> None:
        self._inner = inner
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        async for chunk in self._inner:
            read += len(chunk)
            if read > MAX_ANSWER_BYTES:
                raise httpx2.ReadError(f"an answer of more than {MAX_ANSWER_BYTES} bytes", request=self._request)
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Resolver(AbstractResolver):
    """Resolves names for aiohttp and opens its sockets: only here are both the name and the address known."""

    def __init__(self) -> None:
        # Addresses of names that an operator allowed, and until when: of the socket only the address is known.
        self._named: dict[tuple[str, int], float] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of ``host`` that may be connected to. Raises `OSError`, :class:`EgressRefused` among them."""
        found = await egress_addresses(host, port)
        if name_allowed(host, port, allow=rules()[0]):
            now = asyncio.get_running_loop().time()
            self._named = {place: until for place, until in self._named.items() if until > now}
            self._named.update(((str(entry[4][0]), port), now + _NAMED_FOR_S) for entry in found)
        return [
            ResolveResult(
                hostname=host,
                host=str(entry[4][0]),
                port=port,
                family=entry[0],
                proto=entry[2],
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for entry in found
        ]

    async def close(self) -> None:
        """Nothing to close."""

    def socket(self, entry: AddressInfo) -> socket.socket:
        """A socket for one address, or :class:`EgressRefused`."""
        host, port = str(entry[4][0]), int(entry[4][1])
        allow, loopback = rules()
        if self._named.get((host, port), 0.0) <= asyncio.get_running_loop().time() and not entry_allowed(
            entry, host, port, allow=allow, loopback=loopback
        ):
            raise refused(host, port)
        return socket_open(entry)


def _session(*, limit: int) -> aiohttp.ClientSession:
    resolver = _Resolver()
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=limit,
            keepalive_timeout=_KEEPALIVE_S,
            ssl=tls_context(),
            resolver=resolver,
            socket_factory=resolver.socket,
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        timeout=aiohttp.ClientTimeout(total=None),
    )


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as problem:
        raise EgressRefused(f"{urlsplit(url).hostname} redirects to what is no URL") from problem


def _onward(headers: Mapping[str, str], url: str, following: str) -> dict[str, str]:
    """The headers for a redirect's target. Raises :class:`EgressRefused` when it leaves TLS."""
    before, after = urlsplit(url), urlsplit(following)
    if before.scheme == "https" and after.scheme == "http":
        raise EgressRefused(f"{before.hostname} redirects from https to http; that is not followed")
    if (before.scheme, before.netloc.lower()) == (after.scheme, after.netloc.lower()):
        return dict(headers)
    return {name: value for name, value in headers.items() if name.lower() not in _LOGINS}
