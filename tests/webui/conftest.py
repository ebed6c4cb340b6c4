"""A real server, a real browser, and calls from the real recorder."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from django.contrib.auth.hashers import make_password
from django.db import connections
from django.test import override_settings

from tests.factories import PASSWORD, Tenancy
from tests.support.ports import free_port
from tests.webui.story import Recording

if TYPE_CHECKING:
    from tests.support.servers import DatabaseUrls

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
# Without these Chromium looks for Google's hosts at every start.
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
)


@pytest.fixture
def recorded(database_urls: DatabaseUrls, redis_url: str, tmp_path: Path) -> Iterator[Recording]:
    """`recorded(events)` brings events into PostgreSQL with the real recorder, which announces them."""
    recording = Recording(dsn=database_urls.app, journal_dir=tmp_path / "journal")
    yield recording
    recording.close()


class Console:
    """A running console: `url`, and ways to take it away and bring it back."""

    def __init__(self, environment: dict[str, str], port: int) -> None:
        self.environment = {**environment, "PORT": str(port), "MIRROR_PUBLIC_URL": f"http://127.0.0.1:{port}"}
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", "serve", "--only", "all"], cwd=ROOT, env=self.environment
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            try:
                connection.request("GET", "/livez", headers={"Host": "localhost"})
                if connection.getresponse().status == 200:
                    return
            except OSError:
                if self.process.poll() is not None:
                    raise RuntimeError("the console's server ended at once; its output stands above") from None
                time.sleep(0.1)
            finally:
                connection.close()
        raise RuntimeError("the console's server did not answer /livez within 60 s")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(30)
            self.process = None


@pytest.fixture(scope="session")
def console(database_urls: DatabaseUrls, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    """The real server on this process's database."""
    environment = {
        **os.environ,
        "DATABASE_URL": database_urls.app,
        "DATABASE_OWNER_URL": database_urls.owner,
        "REDIS_URL": redis_url,
        "MIRROR_HOME": str(tmp_path_factory.mktemp("console")),
    }
    served = Console(environment, free_port())
    served.start()
    yield served
    served.stop()


def let_sign_in(tenancy: Tenancy) -> None:
    """Give the tenancy's people a password that the real server's hashers know (the tests' own hasher is a toy)."""
    with override_settings(PASSWORD_HASHERS=["django.contrib.auth.hashers.PBKDF2PasswordHasher"]):
        hashed = make_password(PASSWORD)
    for user in tenancy.users.values():
        user.password = hashed
        user.save(update_fields=["password"])


def in_thread(work: Callable[[], None]) -> None:
    """Run `work` in a thread with database connections of its own and wait; what it raises is raised here."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
