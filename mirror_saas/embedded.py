"""Embedded PostgreSQL and Valkey (being written)."""

import json
from dataclasses import dataclass, field
from pathlib import Path

SERVERS_FILE = "servers.json"


@dataclass(frozen=True, slots=True)
class EmbeddedServers:
    """Where the embedded servers answer. The admin URL logs in as PostgreSQL's superuser."""

    database_admin_url: str = field(repr=False)
    redis_url: str = field(repr=False)


def servers_read(home: Path) -> EmbeddedServers:
    """The URLs of the servers under `home`: of the running ones, else addresses at which nobody answers."""
    try:
        stored = json.loads((home / SERVERS_FILE).read_text(encoding="utf-8"))
        return EmbeddedServers(str(stored["database_admin_url"]), str(stored["redis_url"]))
    except (OSError, ValueError, KeyError, TypeError):
        return EmbeddedServers(f"postgresql://postgres@/postgres?host={home / 'postgres'}", "redis://127.0.0.1:1/0")
