"""A Mirror of a benchmark's own: PostgreSQL and Valkey from wheels, in a folder that goes with them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import psycopg

from mirror_saas import embedded
from mirror_saas.databases import database_url_for
from mirror_saas.ports import free_port
from tenants.services.roles import APP, OWNER, roles_create

ROOT: Final = Path(__file__).resolve().parents[1]


@dataclass(slots=True)
class OwnMirror:
    """Its database is migrated and empty, and this process's environment names it; `serve` starts its servers."""

    home: Path
    admin_url: str
    port: int
    server: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def vacuum(self) -> str:
        """What autovacuum would have done by and by; how large the database is."""
        parts = urlsplit(self.admin_url)
        url = urlunsplit((parts.scheme, parts.netloc, "/mirror", parts.query, ""))
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute("VACUUM ANALYZE")
            size = admin.execute("SELECT pg_size_pretty(pg_database_size('mirror'))").fetchone()
        return str(size[0]) if size else ""

    def serve(self) -> None:
        """Start `manage.py serve`; it ends with this Mirror."""
        with (self.home / "server.log").open("wb") as log:
            self.server = subprocess.Popen(
                [sys.executable, "manage.py", "serve"], cwd=ROOT, env=dict(os.environ), stdout=log, stderr=log
            )


@contextmanager
def own_mirror() -> Iterator[OwnMirror]:
    """Servers, roles and tables; everything is gone afterwards."""
    home = Path(tempfile.mkdtemp(prefix="mirror-bench-"))
    mirror: OwnMirror | None = None
    try:
        servers = embedded.start(home / "servers")
        admin_url = servers.database_admin_url
        roles_create(admin_url=admin_url)
        mirror = OwnMirror(home, admin_url, free_port())
        os.environ.update(
            {
                "MIRROR_ENV": "development",
                "MIRROR_HOME": str(home / "home"),
                "DJANGO_SETTINGS_MODULE": "mirror_saas.settings",
                "DATABASE_URL": database_url_for(admin_url, user=APP, database="mirror"),
                "DATABASE_OWNER_URL": database_url_for(admin_url, user=OWNER, database="mirror"),
                "REDIS_URL": servers.redis_url,
                "PORT": str(mirror.port),
            }
        )
        subprocess.run(
            [sys.executable, "manage.py", "migrate", "--skip-checks", "--verbosity", "0"],
            cwd=ROOT,
            env={**os.environ, "MIRROR_DATABASE_ROLE": "owner"},
            check=True,
        )
        yield mirror
    finally:
        if mirror is not None and mirror.server is not None:
            mirror.server.terminate()
            mirror.server.wait(30)
        embedded.stop(home / "servers")
        shutil.rmtree(home, ignore_errors=True)
