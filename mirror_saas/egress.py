"""The only door for outbound connections: every URL that a tenant gave is checked when its socket is opened.

What counts is the address that is connected to, not the name or how it was written, so a name that resolves differently
the second time (DNS rebinding) passes nothing: it is resolved once, and the very address that was checked is connected
to. Anything but a public address is refused, unless `MIRROR_EGRESS_ALLOW` names it or, for loopback, `MIRROR_ENV` is
`development`; of the ports below 1024 only 80 and 443 are for us, because mail, shells and the like listen on the rest.

WebSockets are dialled over :func:`egress_socket`; `mirror_saas.egress_http` makes HTTP clients with the same rules.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
# An entry of `socket.getaddrinfo`: family, kind, protocol, canonical name, address.
AddressInfo = tuple[int, int, int, str, Any]

CONNECT_TIMEOUT_S: Final = 10.0
ATTEMPT_TIMEOUT_S: Final = 2.0  # for one address, while there are others to try
RESOLVE_TIMEOUT_S: Final = 5.0
MAX_ADDRESSES: Final = 8  # of one name; the rest are not tried
_RESOLVER_THREADS: Final = 16
_WEB_PORTS: Final = (80, 443)

# What `ipaddress` calls global in some version of Python, or IANA does, and what is no public host all the same.
_NOT_PUBLIC: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's metadata and DNS, on a public address
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata among them
        "192.80.8.124/32",  # Equinix Metal's metadata, likewise
        "192.88.99.0/24",  # relays from 6to4
        "198.18.0.0/15",  # benchmarks
        "240.0.0.0/4",  # reserved, broadcast
        "2001::/23",  # protocol assignments, Teredo
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an IPv4 address inside
        "3fff::/20",  # documentation
    )
)
# Everything public in IPv6 is in here. NAT64, IPv4-compatible and IPv4-translated addresses, unique local, link-local,
# site-local and multicast ones are not.
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP: Final = (0x00005EFE, 0x02005EFE)  # RFC 5214: the interface's id, in front of an IPv4 address


class EgressRefused(PermissionError):
    """An outbound connection that is not allowed. The message names the host and what an operator can do."""


def refused(host: str, port: int) -> EgressRefused:
    """The error for a host that may not be reached."""
    return EgressRefused(
        f"{host}:{port} is a private or local address, or a port below {_FIRST_FREE_PORT} other than 80 and 443; an"
        " operator can allow it with MIRROR_EGRESS_ALLOW"
    )


_FIRST_FREE_PORT: Final = 1024


def address_allowed(address: IPAddress, host: str, port: int, *, allow: Sequence[str], loopback: bool) -> bool:
    """Whether ``address`` may be connected to. ``allow`` holds `host`, `host:port` and CIDR entries.

    ``host`` is the name under which it was asked for. An entry `64:ff9b::/96` lets the public addresses behind a NAT64
    be reached, and no others.
    """
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or ipaddress.IPv6Address(int(address))  # without a zone
    if _listed(address, host, port, tuple(allow)):
        if isinstance(address, ipaddress.IPv6Address) and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
            return address_allowed(inner, host, port, allow=allow, loopback=False)
        return True
    if address.is_loopback:
        return loopback
    return _public(address) and (port in _WEB_PORTS or port >= _FIRST_FREE_PORT)


def name_allowed(host: str, port: int, *, allow: Sequence[str]) -> bool:
    """Whether an operator listed ``host`` itself, so that whatever it resolves to may be reached on ``port``."""
    host = host_clean(host)
    return any(host_clean(entry) in (host, f"{host}:{port}") for entry in allow)


def host_clean(host: str) -> str:
    """A host's name in the form that entries are compared in."""
    return host.lower().removesuffix(".")


def egress_check(host: str, port: int) -> None:
    """Raises :class:`EgressRefused` for a host that has only addresses that may not be connected to, as of now.

    For telling a person early. What counts is the check when a connection is opened; a name that cannot be resolved at
    the moment passes here.
    """
    if not 0 < port < 65536:
        raise EgressRefused(f"{port} is no port")
    resolving = _resolvers().submit(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        found = resolving.result(RESOLVE_TIMEOUT_S)
    except ValueError as problem:
        raise EgressRefused(f"{host!r} is no host name") from problem
    except OSError:  # a name server that does not answer in time included
        return
    allow, loopback = rules()
    if found and not any(entry_allowed(entry, host, port, allow=allow, loopback=loopback) for entry in found):
        raise refused(host, port)


async def egress_addresses(host: str, port: int) -> list[AddressInfo]:
    """The addresses of ``host`` that may be connected to, at most 8, in the resolver's order.

    Raises :class:`EgressRefused` when it has none but others, `OSError` when it cannot be resolved within 5 s.
    """
    if not 0 < port < 65536:
        raise EgressRefused(f"{port} is no port")
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            found = await asyncio.get_running_loop().run_in_executor(
                _resolvers(), functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
            )
    except TimeoutError as problem:
        raise OSError(f"{host!r} could not be resolved within {RESOLVE_TIMEOUT_S:.0f} s") from problem
    except ValueError as problem:
        # IDNA's errors are ValueErrors; so is that of a name with a NUL in it.
        raise EgressRefused(f"{host!r} is no host name") from problem
    allow, loopback = rules()
    allowed: list[AddressInfo] = [
        entry for entry in found if entry_allowed(entry, host, port, allow=allow, loopback=loopback)
    ]
    if not allowed:
        raise refused(host, port)
    return allowed[:MAX_ADDRESSES]


async def egress_socket(host: str, port: int, *, receive_buffer: int | None = None) -> socket.socket:
    """A connected, non-blocking TCP socket to ``host``, within 10 s.

    ``receive_buffer`` bounds the bytes that wait in the kernel to be read, and so those that its peer may send ahead.

    Raises :class:`EgressRefused` when every address of the host is refused, and `OSError` when none answers.
    """
    loop = asyncio.get_running_loop()
    last: OSError | None = None
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        entries = await egress_addresses(host, port)
        for entry in entries:
            opened = socket_open(entry)
            try:
                if receive_buffer is not None:  # before it connects: TCP settles its window's scale then
                    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
                # A network without a way back for IPv6, say, must not cost the time for the address that answers.
                async with asyncio.timeout(None if entry is entries[-1] else ATTEMPT_TIMEOUT_S):
                    await loop.sock_connect(opened, entry[4])
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
    """An HTTP client for the openai package whose every connection passes the check; see `mirror_saas.egress_http`."""
    from mirror_saas.egress_http import llm_http_client

    return llm_http_client()


def socket_open(entry: AddressInfo) -> socket.socket:
    """An unconnected, non-blocking socket for an address that was checked."""
    family, kind, proto, _, _ = entry
    opened = socket.socket(family, kind, proto)
    opened.setblocking(False)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return opened


def entry_allowed(entry: AddressInfo, host: str, port: int, *, allow: Sequence[str], loopback: bool) -> bool:
    """:func:`address_allowed` for an entry of `getaddrinfo`; only IPv4 and IPv6 are."""
    if entry[0] not in (socket.AF_INET, socket.AF_INET6):
        return False
    address = ipaddress.ip_address(str(entry[4][0]).split("%", 1)[0])
    return address_allowed(address, host, port, allow=allow, loopback=loopback)


@functools.lru_cache(maxsize=1)
def rules() -> tuple[tuple[str, ...], bool]:
    """What the operator allows: the entries of `MIRROR_EGRESS_ALLOW`, and whether loopback is."""
    from django.conf import settings

    return tuple(settings.MIRROR.egress_allow), bool(settings.MIRROR.loopback_upstreams_allowed)


def _listed(address: IPAddress, host: str, port: int, allow: tuple[str, ...]) -> bool:
    if name_allowed(host, port, allow=allow):
        return True
    written = (f"{address}:{port}", f"[{address}]:{port}", f"[{address}]")
    return any(entry in written for entry in allow) or any(address in network for network in _networks(allow))


@functools.lru_cache(maxsize=8)
def _networks(allow: tuple[str, ...]) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    found = []
    for entry in allow:
        try:
            found.append(ipaddress.ip_network(entry, strict=False))
        except ValueError:
            continue  # a name
    return tuple(found)


def _public(address: IPAddress) -> bool:
    if not address.is_global or address.is_multicast or any(address in network for network in _NOT_PUBLIC):
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return True
    return address in _GLOBAL_UNICAST and (int(address) >> 32) & 0xFFFFFFFF not in _ISATAP


@functools.lru_cache(maxsize=1)
def _resolvers() -> ThreadPoolExecutor:
    # Threads of their own: a tenant's name server that never answers must not hold up other work of the process.
    return ThreadPoolExecutor(_RESOLVER_THREADS, thread_name_prefix="egress-resolver")
