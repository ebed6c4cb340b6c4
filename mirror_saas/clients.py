"""Where a request came from."""

from __future__ import annotations

import ipaddress

from django.conf import settings
from django.http import HttpRequest


def client_ip(request: HttpRequest) -> str:
    """The address of whoever sent the request; empty when the server does not know (a Unix socket).

    `X-Forwarded-For` is believed only as far as MIRROR_TRUSTED_PROXIES wrote it: from the right, the first address that
    is no trusted proxy. Anybody can send the rest of the header.
    """
    return forwarded_ip(
        request.META.get("REMOTE_ADDR", ""), request.headers.get("X-Forwarded-For", ""), settings.MIRROR.trusted_proxies
    )


def client_address(request: HttpRequest) -> str:
    """`client_ip` as a column of addresses holds it: without a zone, and `0.0.0.0` where the server knows none."""
    try:
        return str(ipaddress.ip_address(client_ip(request).partition("%")[0]))
    except ValueError:
        return "0.0.0.0"  # noqa: S104  (nothing is bound to it)


def forwarded_ip(peer: str, forwarded_for: str, trusted: tuple[str, ...]) -> str:
    """`client_ip` of a peer's address and a header's text."""
    networks = [ipaddress.ip_network(entry) for entry in trusted]
    address = _plain(peer)
    for hop in reversed(forwarded_for.split(",")):
        if not _is_in(address, networks):
            break
        try:
            address = _plain(str(ipaddress.ip_address(hop.strip())))
        except ValueError:
            # What a trusted proxy did not write as an address says nothing; the last known one stands.
            break
    return address


def is_trusted_proxy(peer: str, trusted: tuple[str, ...]) -> bool:
    """Whether what this peer says about whoever is behind it is believed."""
    return _is_in(_plain(peer), [ipaddress.ip_network(entry) for entry in trusted])


def _plain(address: str) -> str:
    """An IPv4 address that an IPv6 socket wrapped (::ffff:10.0.0.1) is that IPv4 address."""
    try:
        mapped = ipaddress.IPv6Address(address).ipv4_mapped
    except ValueError:
        return address
    return str(mapped) if mapped is not None else address


def _is_in(address: str, networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in networks)
