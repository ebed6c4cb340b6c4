"""PostgreSQL and Valkey for a test run: one of each, however many processes test.

The first process that needs them starts them, the last that leaves stops them. Each process gets a database of its
own, copied from a template that was migrated once as mirror_owner; it then works as mirror_app, so every test runs
under row-level security. `TEST_DATABASE_ADMIN_URL` and `TEST_REDIS_URL` name outside servers instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from mirror_saas import embedded
from mirror_saas.databases import database_url_for
from tenants.services.roles import APP, OWNER, roles_create

ROOT = Path(__file__).resolve().parents[2]
# An outside server asks for passwords; it is one for tests, so the roles' passwords on it are ours to set.
_PASSWORD = "mirror-tests"


@dataclass(frozen=True, slots=True)
class DatabaseUrls:
    """URLs of one test process's database. A server started by a test gets `owner` and `app`."""

    name: str
    app: str = field(repr=False)
    owner: str = field(repr=False)
    admin: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Servers:
    """The servers of this run."""

    admin_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    embedded_home: Path | None
    password: str | None = field(repr=False)

    def urls(self, database: str) -> DatabaseUrls:
        """The URLs of `database`, one per role."""
        return DatabaseUrls(
            name=database,
            app=database_url_for(self.admin_url, user=APP, database=database, password=self.password),
            owner=database_url_for(self.admin_url, user=OWNER, database=database, password=self.password),
            admin=_with_database(self.admin_url, database),
        )


def run_home() -> Path:
    """The folder of this test run, shared by its processes."""
    return Path(os.environ["TEST_RUN_HOME"])


def worker_number() -> int:
    """0 without xdist, else 1 for worker gw0, and so on."""
    match = re.fullmatch(r"gw(\d+)", os.environ.get("PYTEST_XDIST_WORKER", ""))
    return int(match.group(1)) + 1 if match else 0


def servers_start() -> Servers:
    """Start the run's servers, or find those that another process of the run started."""
    run_home().mkdir(mode=0o700, exist_ok=True)
    admin_url = os.environ.get("TEST_DATABASE_ADMIN_URL")
    redis_url = os.environ.get("TEST_REDIS_URL")
    home: Path | None = None
    if not admin_url or not redis_url:
        home = run_home() / "servers"
        started = embedded.start(home)
        admin_url, redis_url = admin_url or started.database_admin_url, redis_url or started.redis_url
    # A login without a password (the embedded server's socket) needs none for our roles either.
    password = _PASSWORD if urlsplit(admin_url).password else None
    return Servers(admin_url=admin_url, redis_url=_redis_database(redis_url), embedded_home=home, password=password)


def servers_stop(servers: Servers) -> None:
    """Leave the servers; the last process of the run stops what the run started."""
    if servers.embedded_home is not None:
        embedded.stop(servers.embedded_home)


def database_create(servers: Servers) -> DatabaseUrls:
    """A migrated database for this process."""
    template = f"mirror_test_{_run_name()}"
    database = f"{template}_{worker_number()}_{os.getpid()}"
    with _locked(run_home() / "template.lock"):
        ready = run_home() / "template.ready"
        if not ready.exists():
            roles_create(
                admin_url=servers.admin_url,
                database=template,
                owner_password=servers.password,
                app_password=servers.password,
            )
            _migrate(servers.urls(template))
            ready.touch()
        with psycopg.connect(servers.admin_url, autocommit=True) as admin:
            admin.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {}").format(
                    sql.Identifier(database), sql.Identifier(template), sql.Identifier(OWNER)
                )
            )
    return servers.urls(database)


def database_drop(servers: Servers, database: str) -> None:
    """Drop a database of this run; connections that tests left open are closed."""
    with psycopg.connect(servers.admin_url, autocommit=True) as admin:
        admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database)))


def run_clean() -> None:
    """At the end of the run, drop the template on an outside server (an embedded one is thrown away whole)."""
    admin_url = os.environ.get("TEST_DATABASE_ADMIN_URL")
    if admin_url and (run_home() / "template.ready").exists():
        with psycopg.connect(admin_url, autocommit=True) as admin:
            admin.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(f"mirror_test_{_run_name()}"))
            )


@contextlib.contextmanager
def roles_held() -> Iterator[None]:
    """Roles belong to the server, which all processes of the run share: whoever changes them, or looks whether they are
    right, does it alone."""
    with _locked(run_home() / "roles.lock"):
        yield


def _migrate(urls: DatabaseUrls) -> None:
    """Migrate as mirror_owner, the way an installation does: in a process of its own."""
    environment = {
        **os.environ,
        "DATABASE_URL": urls.app,
        "DATABASE_OWNER_URL": urls.owner,
        "MIRROR_DATABASE_ROLE": "owner",
        "REDIS_URL": "redis://127.0.0.1:1/0",
    }
    done = subprocess.run(
        [sys.executable, "manage.py", "migrate", "--skip-checks", "--verbosity", "0"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"The test database could not be migrated:\n{done.stderr}")


def _run_name() -> str:
    return re.sub(r"[^a-z0-9]", "_", run_home().name.removeprefix("mirror-tests-").lower())


def _with_database(url: str, database: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, f"/{database}", parts.query, ""))


def _redis_database(url: str) -> str:
    """One of Valkey's sixteen databases per process; channel names carry tenants, so sharing one is harmless."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, f"/{worker_number() % 16}", parts.query, ""))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
