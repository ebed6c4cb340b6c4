"""Who acts: set at each entry point beside the tenant, read by the audit log."""

from __future__ import annotations

import getpass
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from django.conf import settings
from django.http import HttpRequest

from mirror_saas.clients import client_ip, forwarded_ip
from mirror_saas.problems import request_id_of

USER_AGENT_CHARS = 300


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something, and from where. `session` tells one session from another and opens none."""

    kind: Literal["user", "api_key", "system"]
    label: str
    id: UUID | None = None
    ip: str = ""
    user_agent: str = ""
    session: str = ""
    request_id: str = ""


_current: ContextVar[Actor | None] = ContextVar("actor", default=None)


def actor_current() -> Actor:
    """Whoever acts; without anybody, this process: `manage.py create_agent by root`, `celery`."""
    return _current.get() or Actor(kind="system", label=_process())


@contextmanager
def actor_context(actor: Actor) -> Iterator[Actor]:
    """Run a block as `actor`."""
    token = _current.set(actor)
    try:
        yield actor
    finally:
        _current.reset(token)


def actor_of_request(request: HttpRequest, *, kind: Literal["user", "api_key"], actor_id: UUID, label: str) -> Actor:
    """A person or a key behind a request."""
    session_key = getattr(getattr(request, "session", None), "session_key", None) if kind == "user" else None
    return Actor(
        kind=kind,
        id=actor_id,
        label=label,
        ip=client_ip(request),
        # Headers are anybody's text; what PostgreSQL cannot store is left out.
        user_agent=request.headers.get("User-Agent", "").replace("\x00", "")[:USER_AGENT_CHARS],
        session=_session_mark(session_key),
        request_id=request_id_of(request),
    )


def actor_of_socket(scope: Mapping[str, Any], *, actor_id: UUID, label: str) -> Actor:
    """A person behind a WebSocket of the console; `scope` is its handshake, with its session."""
    headers = {name.lower(): value.decode("latin-1") for name, value in scope.get("headers") or ()}
    peer = str((scope.get("client") or ("",))[0])
    session_key = getattr(scope.get("session"), "session_key", None)
    return Actor(
        kind="user",
        id=actor_id,
        label=label,
        ip=forwarded_ip(peer, headers.get(b"x-forwarded-for", ""), settings.MIRROR.trusted_proxies),
        user_agent=headers.get(b"user-agent", "").replace("\x00", "")[:USER_AGENT_CHARS],
        session=_session_mark(session_key),
    )


def actor_unknown(request: HttpRequest) -> Actor:
    """Whoever sent a request without proving who they are."""
    return Actor(
        kind="system",
        label="somebody who is not signed in",
        ip=client_ip(request),
        user_agent=request.headers.get("User-Agent", "").replace("\x00", "")[:USER_AGENT_CHARS],
        request_id=request_id_of(request),
    )


def _session_mark(session_key: str | None) -> str:
    return hashlib.sha256(session_key.encode()).hexdigest()[:16] if session_key else ""


def _process() -> str:
    program = os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else "python"
    if program == "__main__.py":
        program = os.path.basename(os.path.dirname(sys.argv[0]))
    command = f"{program} {sys.argv[1]}" if program == "manage.py" and len(sys.argv) > 1 else program
    try:
        return f"{command} by {getpass.getuser()}"
    except (OSError, KeyError):
        # A container's user may have no name.
        return f"{command} by user {os.getuid()}"
