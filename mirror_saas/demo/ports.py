"""Ports for the demo's own servers."""

import json
import socket
from collections.abc import Iterable
from pathlib import Path

from mirror_saas.embedded import write_private


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kept_ports(file: Path, names: Iterable[str]) -> dict[str, int]:
    """A port for each name: those that `file` has from the last time while they are free, else others; kept in `file`.

    Tenants' agents and credentials name them, so they are to be the same after a new start.
    """
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    known = before if isinstance(before, dict) else {}
    ports = {name: known[name] if _is_free(known.get(name)) else free_port() for name in names}
    if ports != known:
        write_private(file, json.dumps(ports) + "\n")
    return ports


def _is_free(port: object) -> bool:
    if not isinstance(port, int) or not 0 < port < 65536:
        return False
    with socket.socket() as probe:
        # As servers listen: a port whose last connections are still being forgotten is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
