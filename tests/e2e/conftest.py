"""A real Mirror for end-to-end tests: its own process on Daphne, real PostgreSQL and Valkey, real sockets."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit
from uuid import UUID

import pytest
from asgiref.sync import sync_to_async

from tests.factories import Tenancy, tenancy_create
from tests.mirror_saas.running import Command
from tests.support.ports import free_port

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class MirrorServer:
    """A running Mirror: ``ws://`` and ``http://`` base URLs, its process and its log."""

    http: str
    process: subprocess.Popen[bytes]
    log: Path
    home: Path
    environment: dict[str, str]

    @property
    def ws(self) -> str:
        return "ws" + self.http.removeprefix("http")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def server_start(environment: Mapping[str, str], home: Path, *arguments: str) -> MirrorServer:
    """Start `manage.py serve --only all` and return once it answers."""
    port = free_port()
    http = f"http://127.0.0.1:{port}"
    env = {
        **environment,
        "PORT": str(port),
        "MIRROR_HOME": str(home),
        "MIRROR_ENV": "development",
        "MIRROR_PUBLIC_URL": http,
        "MIRROR_DRAIN_S": "1",
    }
    home.mkdir(parents=True, exist_ok=True)
    log = home / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "manage.py", "serve", "--only", "all", *arguments],
            cwd=ROOT,
            env=env,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    server = MirrorServer(http, process, log, home, env)
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{http}/readyz", timeout=1)
            return server
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > deadline:
                server.stop()
                raise RuntimeError(f"Mirror did not start:\n{log.read_text()[-4000:]}") from None
            select_wait(0.05)


def select_wait(seconds: float) -> None:
    """Wait for a process that cannot tell when it is ready."""
    import select

    select.select([], [], [], seconds)


@pytest.fixture(scope="session")
def mirror(
    database_urls: Any, redis_url: str, django_db_setup: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MirrorServer]:
    """One Mirror for all end-to-end tests of this process."""
    environment = {
        **os.environ,
        "DATABASE_URL": database_urls.app,
        "DATABASE_OWNER_URL": database_urls.owner,
        "REDIS_URL": redis_url,
    }
    server = server_start(environment, tmp_path_factory.mktemp("mirror") / "home")
    yield server
    server.stop()
    said = server.log.read_text()
    assert "Traceback" not in said, said[-6000:]


@dataclass
class Fortress:
    """A whole `manage.py serve` behind a public https address, at its most talkative."""

    command: Command
    port: int
    home: Path
    environment: dict[str, str]
    secrets: dict[str, str]
    """What no process may ever print, by what it is: the environment's, and whatever tests add."""
    # Tests of what happens without a database shut the one that they share with this server for a moment.
    expected: list[str] = field(default_factory=lambda: ["is not currently accepting connections"])
    """Words of failures that tests brought about; any other traceback is one of ours."""

    ORIGIN = "https://mirror.test"

    @property
    def said(self) -> str:
        """All that its processes have printed so far."""
        return self.command.text


@pytest.fixture(scope="session")
def fortress(
    database_urls: Any, redis_url: str, django_db_setup: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fortress]:
    """Server, worker and beat at DEBUG, with the public URL https://mirror.test and this machine as its proxy."""
    port = free_port()
    home = tmp_path_factory.mktemp("fortress")
    password = f"canary-{token_hex(8)}"
    environment = {
        **os.environ,
        # Where the server asks for no password, one that is sent all the same is not looked at.
        "DATABASE_URL": with_password(database_urls.app, password),
        "DATABASE_OWNER_URL": with_password(database_urls.owner, password),
        "REDIS_URL": redis_url,
        "PORT": str(port),
        "MIRROR_HOME": str(home),
        "MIRROR_ENV": "development",
        "MIRROR_PUBLIC_URL": Fortress.ORIGIN,
        "MIRROR_ALLOWED_HOSTS": "other.test",
        "MIRROR_TRUSTED_PROXIES": "127.0.0.1",
        "MIRROR_LOG_LEVEL": "DEBUG",
        "MIRROR_DRAIN_S": "1",
        "OPENAI_API_KEY": f"sk-canary-{token_hex(8)}",
        "OPENAI_TTS_API_KEY": f"sk-canary-{token_hex(8)}",
    }
    secrets = {
        name: environment[name]
        for name in ("MIRROR_SECRET_KEY", "MIRROR_ENCRYPTION_KEY", "OPENAI_API_KEY", "OPENAI_TTS_API_KEY")
    }
    for name in ("DATABASE_URL", "REDIS_URL"):
        if given := urlsplit(environment[name]).password:
            secrets[f"{name}'s password"] = unquote(given)
    with Command("serve", "--no-migrate", env=environment) as command:
        command.until("Mirror runs")
        served = Fortress(command, port, home, environment, secrets)
        yield served
    failures = [line for line in command.lines if "Traceback" in line and not any(w in line for w in served.expected)]
    assert failures == []
    assert [name for name, secret in secrets.items() if secret in command.text] == []


def with_password(url: str, password: str) -> str:
    """A database URL that gives a password, unless it has one already."""
    login, at, rest = url.partition("@")
    return url if not at or urlsplit(url).password else f"{login}:{password}@{rest}"


TenancyMaker = Callable[..., Tenancy]


@pytest.fixture
def new_tenancy(transactional_db: None) -> TenancyMaker:
    """Make a tenant with an agent that is dialled at ``upstream_url`` and judged by ``llm_base_url``."""

    def make(
        *,
        upstream_url: str,
        llm_base_url: str = "http://127.0.0.1:1/v1",
        rules: Sequence[str | Mapping[str, Any]] = ("Never confirm a refund.",),
        config: Mapping[str, Any] | None = None,
        mode: str = "live",
    ) -> Tenancy:
        return tenancy_create(
            upstream_url=upstream_url, llm_base_url=llm_base_url, rules=rules, config=config, mode=mode
        )

    return make


@dataclass
class CallRows:
    """What the database holds of one call, as its tenant sees it."""

    call: Any
    turns: list[Any]
    tool_decisions: list[Any]
    interventions: list[Any]
    timeline: list[Any]


def call_rows(tenancy: Tenancy) -> CallRows | None:
    """The newest call of the tenant once it has ended."""
    from supervision.selectors.calls import (
        call_interventions,
        call_list,
        call_timeline,
        call_tool_decisions,
        call_turns,
    )

    with tenancy.context():
        items = call_list().items
        if not items or items[0].state != "ended":
            return None
        call_id: UUID = items[0].id
        return CallRows(
            call=items[0],
            turns=call_turns(call_id=call_id),
            tool_decisions=call_tool_decisions(call_id=call_id),
            interventions=call_interventions(call_id=call_id),
            timeline=call_timeline(call_id=call_id),
        )


async def found(tenancy: Tenancy, look: Callable[[], T | None], timeout_s: float = 20.0) -> T:
    """What `look` finds among the tenant's rows, as soon as it finds something."""

    @sync_to_async
    def looked() -> T | None:
        with tenancy.context():
            return look()

    async with asyncio.timeout(timeout_s):
        while (row := await looked()) is None:  # noqa: ASYNC110 (another process writes, and tells nobody here)
            await asyncio.sleep(0.05)
    return row


async def recorded(tenancy: Tenancy, timeout_s: float = 20.0) -> CallRows:
    """The rows of the tenant's newest call, once its end is in the database."""
    return await found(tenancy, lambda: call_rows(tenancy), timeout_s)
