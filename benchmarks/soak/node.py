"""The servers of a soak: a PostgreSQL and a Valkey that can be stopped alone, a stream node, and a tenant's agents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import psutil
import psycopg
import redis

from mirror_saas import embedded
from mirror_saas.databases import database_url_for
from mirror_saas.ids import uuid7
from tenants.services.roles import APP, OWNER, roles_create
from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
RULE = "Never say that money was refunded.\n"
READY_S = 60.0


@dataclass
class Servers:
    """PostgreSQL of one embedded pair and Valkey of another, so that either can be stopped by itself."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)
    app_url: str = ""

    def start(self) -> None:
        database = embedded.start(self.home / "a")
        broker = embedded.start(self.home / "b")
        roles_create(admin_url=database.database_admin_url)
        self.app_url = database_url_for(database.database_admin_url, user=APP, database="mirror")
        self.environment = {
            **os.environ,
            "DATABASE_URL": self.app_url,
            "DATABASE_OWNER_URL": database_url_for(database.database_admin_url, user=OWNER, database="mirror"),
            "REDIS_URL": broker.redis_url,
            "MIRROR_ENV": "development",
            "MIRROR_HOME": str(self.home / "mirror"),
            "MIRROR_DRAIN_S": "1",
        }
        subprocess.run(
            [sys.executable, "manage.py", "migrate", "--skip-checks", "--verbosity", "0"],
            cwd=ROOT,
            env={**self.environment, "MIRROR_DATABASE_ROLE": "owner"},
            check=True,
        )

    def stop(self) -> None:
        embedded.stop(self.home / "a")
        embedded.stop(self.home / "b")

    def database_stop(self) -> None:
        embedded.stop(self.home / "a")

    def database_start(self) -> None:
        embedded.start(self.home / "a")

    def broker_stop(self) -> None:
        embedded.stop(self.home / "b")

    def broker_start(self) -> None:
        """Start Valkey where it was, with the password that it had: an embedded one makes another at each start."""
        before = self.environment["REDIS_URL"]
        with redis.Redis.from_url(embedded.start(self.home / "b").redis_url) as client:
            client.config_set("requirepass", urlsplit(before).password or "")


class Node:
    """`manage.py serve --only stream`, as a process of its own; its log goes to a pipe that a thread empties."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.log = servers.home / "node.log"

    @property
    def ws(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def start(self, changes: Mapping[str, str] | None = None) -> None:
        """Start it, and return when it is ready for calls."""
        http = f"http://127.0.0.1:{self.port}"
        env = {**self._servers.environment, "PORT": str(self.port), "MIRROR_PUBLIC_URL": http, **(changes or {})}
        # `cat` holds the log, so that what limits the node's own files does not silence it.
        self._logger = subprocess.Popen(
            ["/bin/sh", "-c", f'exec cat >>"{self.log}"'], stdin=subprocess.PIPE, start_new_session=True
        )
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", "serve", "--only", "stream"],
            cwd=ROOT,
            env=env,
            stdout=self._logger.stdin,
            stderr=subprocess.STDOUT,
        )
        assert self._logger.stdin is not None
        self._logger.stdin.close()
        deadline = time.monotonic() + READY_S
        while True:
            try:
                urllib.request.urlopen(f"{http}/readyz", timeout=2)
                return
            except (urllib.error.URLError, OSError):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the node did not start:\n{self.log.read_text()[-4000:]}") from None
                time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.kill()

    def file_size_limit(self, limit: int | None) -> None:
        """Let the node write no file beyond this many bytes, None for any: what a full disk is to it."""
        assert self.process is not None
        most = limit if limit is not None else psutil.RLIM_INFINITY
        psutil.Process(self.process.pid).rlimit(psutil.RLIMIT_FSIZE, (most, psutil.RLIM_INFINITY))

    def failures(self, since: int) -> list[str]:
        """The tracebacks that it has logged from byte `since` of its log on."""
        lines = self.log.read_bytes()[since:].decode("utf-8", "replace").splitlines() if self.log.exists() else []
        return [line for line in lines if "Traceback" in line]


@dataclass(frozen=True)
class Tenant:
    """A tenant with agents; each has a stream URL, less scheme and host."""

    id: UUID
    slug: str
    streams: dict[str, str]


def tenant_make(servers: Servers, node: Node, agents: Mapping[str, str], llm_base_url: str) -> Tenant:
    """A tenant with an agent for each of `agents`, whose values are the URLs at which they answer."""
    tenant_id = uuid7()
    slug = f"soak-{tenant_id.hex[-8:]}"
    with psycopg.connect(servers.app_url) as connection:
        connection.execute("SELECT set_config('app.tenant_id', %s, true)", [str(tenant_id)])
        connection.execute(
            "INSERT INTO tenants_tenant (id, slug, name, created_at) VALUES (%s, %s, 'Soak', now())", [tenant_id, slug]
        )
    rules = servers.home / "rules.txt"
    rules.write_text(RULE)
    streams = {}
    for name, upstream in agents.items():
        judge = ["--llm-base-url", llm_base_url, "--llm-model", "judge-1", "--llm-api-key", "key"]
        agent = ["--tenant", slug, "--name", name, "--upstream", upstream, "--policies", str(rules)]
        made = subprocess.run(
            [sys.executable, "manage.py", "create_agent", *agent, *judge, "--json"],
            cwd=ROOT,
            env={**servers.environment, "PORT": str(node.port)},
            capture_output=True,
            check=True,
            text=True,
        )
        url: str = json.loads(made.stdout)["stream_url"]
        streams[name] = "/stream/" + url.partition("/stream/")[2]
    return Tenant(tenant_id, slug, streams)
