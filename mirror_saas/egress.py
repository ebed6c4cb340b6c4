"""The only door for outbound connections: every URL that a tenant gave is checked when its socket is opened.

The check looks at the address that is connected to, not at the name, so a name that resolves differently the second
time (DNS rebinding) passes nothing. Private, loopback, link-local, metadata and translated addresses are refused,
unless `MIRROR_EGRESS_ALLOW` names them or, for loopback, `MIRROR_ENV` is `development`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from aiohttp.resolver import ThreadedResolver

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# Prefixes under which an IPv4 address hides inside an IPv6 one: what is inside is what is connected to.
_NAT64: Final = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))


_MAX_CONNECTIONS: Final = 10_000  # one question at a time for each of thousands of calls
_KEEPALIVE_S: Final = 60.0  # longer than the pause between two turns


class EgressRefused(PermissionError):
    """An outbound connection that is not allowed. The message names the host and what an operator can do."""


def address_allowed(address: IPAddress, host: str, port: int, *, allow: Sequence[str], loopback: bool) -> bool:
    """Whether ``address`` may be connected to. ``allow`` holds `host`, `host:port` and CIDR entries."""
    for entry in allow:
        if entry in (host, f"{host}:{port}", str(address), f"{address}:{port}", f"[{address}]:{port}"):
            return True
        try:
            if address in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:
            continue
    inner = _inner(address)
    if inner.is_loopback:
        return loopback
    return inner.is_global and not inner.is_multicast


def _inner(address: IPAddress) -> IPAddress:
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.sixtofour is not None:
            return address.sixtofour
        if address.teredo is not None:
            return address.teredo[1]
        if any(address in prefix for prefix in _NAT64):
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


async def egress_socket(host: str, port: int) -> socket.socket:
    """A connected, non-blocking TCP socket to ``host``.

    Raises :class:`EgressRefused` when every address of the host is refused, and `OSError` when none answers.
    """
    loop = asyncio.get_running_loop()
    allow, loopback = _rules()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    allowed = [entry for entry in found if _entry_allowed(entry, host, port, allow, loopback)]
    if not allowed:
        raise refused(host, port)
    last: OSError | None = None
    for family, kind, proto, _, sockaddr in allowed:
        opened = socket.socket(family, kind, proto)
        opened.setblocking(False)
        try:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(opened, sockaddr)
        except OSError as problem:
            opened.close()
            last = problem
        except BaseException:
            opened.close()
            raise
        else:
            return opened
    raise last or OSError(f"{host} has no address")


def egress_http_client() -> Any:
    """An HTTP client for the openai package whose every connection passes the check; redirects are not followed.

    Must be made on the loop that uses it, and closed.
    """
    import aiohttp
    import httpx2
    import openai

    from supervision.engine.llm.openai import tls_context

    client = openai.DefaultAioHttpClient(
        limits=httpx2.Limits(max_connections=_MAX_CONNECTIONS, keepalive_expiry=_KEEPALIVE_S),
        follow_redirects=False,
        verify=tls_context(),
    )

    def session() -> aiohttp.ClientSession:
        resolver = _Resolver()
        connector = aiohttp.TCPConnector(
            limit=_MAX_CONNECTIONS,
            keepalive_timeout=_KEEPALIVE_S,
            ssl=tls_context(),
            resolver=resolver,
            socket_factory=resolver.socket,
        )
        return aiohttp.ClientSession(connector=connector)

    # The package's aiohttp transport takes a session factory, but its public client does not pass one on.
    transport: Any = client._transport
    transport.client = session
    return client


class _Resolver(ThreadedResolver):
    """Resolves names for aiohttp and opens its sockets: only here are both the name and the address known."""

    def __init__(self) -> None:
        super().__init__()
        self._named: set[tuple[str, int]] = set()

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> Any:
        """The host's addresses; those of a host that an operator allowed by name are remembered as allowed."""
        found = await super().resolve(host, port, family)
        allow, _ = _rules()
        if host in allow or f"{host}:{port}" in allow:
            self._named.update((entry["host"], entry["port"]) for entry in found)
        return found

    def socket(self, entry: Any) -> socket.socket:
        """A socket for one address, or :class:`EgressRefused`."""
        family, kind, proto, _, sockaddr = entry
        host, port = str(sockaddr[0]), int(sockaddr[1])
        allow, loopback = _rules()
        if (host, port) not in self._named and not _entry_allowed(entry, host, port, allow, loopback):
            raise refused(host, port)
        opened = socket.socket(family, kind, proto)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return opened


def refused(host: str, port: int) -> EgressRefused:
    """The error for a host that may not be reached."""
    return EgressRefused(
        f"{host}:{port} is a private or local address; an operator can allow it with MIRROR_EGRESS_ALLOW"
    )


def _entry_allowed(entry: Any, host: str, port: int, allow: Sequence[str], loopback: bool) -> bool:
    address = ipaddress.ip_address(str(entry[4][0]).split("%", 1)[0])
    return address_allowed(address, host, port, allow=allow, loopback=loopback)


@lru_cache(maxsize=1)
def _rules() -> tuple[tuple[str, ...], bool]:
    from django.conf import settings

    return tuple(settings.MIRROR.egress_allow), bool(settings.MIRROR.loopback_upstreams_allowed)
