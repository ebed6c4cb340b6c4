"""Ports for the demo's own servers."""

import json
from collections.abc import Iterable
from pathlib import Path

from mirror_saas.embedded import write_private
from mirror_saas.ports import free_port, port_is_free


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
    return isinstance(port, int) and 0 < port < 65536 and port_is_free(port)
