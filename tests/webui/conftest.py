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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from django.contrib.auth.hashers import make_password
from django.db import connections
from django.test import override_settings

from tests.factories import PASSWORD, Tenancy, tenancy_create
from tests.support.ports import free_port
from tests.webui.story import Recording

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from pytest_django import DjangoDbBlocker

    from tests.support.servers import DatabaseUrls
    from tests.webui.browser import OpenPage, Scheme, Watched

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
    # A beep every second in place of a microphone, for pages that are allowed to use one.
    "--use-fake-device-for-media-stream",
)


@pytest.fixture
def recorded(database_urls: DatabaseUrls, redis_url: str, tmp_path: Path) -> Iterator[Recording]:
    """`recorded(events)` brings events into PostgreSQL with the real recorder, which announces them."""
    recording = Recording(dsn=database_urls.app, journal_dir=tmp_path / "journal")
    yield recording
    recording.close()


class Console:
    """A running console: `url`, and ways to take it away and bring it back. It offers the demo's agent, which tests
    start on `agent_port` and its judge on `judge_port`."""

    def __init__(self, environment: dict[str, str], port: int) -> None:
        self.agent_port, self.judge_port = free_port(), free_port()
        self.environment = {
            **environment,
            "PORT": str(port),
            "MIRROR_PUBLIC_URL": f"http://127.0.0.1:{port}",
            "MIRROR_DEMO_AGENT_URL": f"ws://127.0.0.1:{self.agent_port}/",
            "MIRROR_DEMO_JUDGE_URL": f"http://127.0.0.1:{self.judge_port}/v1",
        }
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


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, headless. Of one module only: its loop would be in the way of other tests' databases."""
    from playwright.sync_api import expect, sync_playwright

    # How long something takes is asked for by name where it matters; several browsers share a small machine here.
    expect.set_options(timeout=20_000)
    if CHROMIUM is None:
        pytest.fail("Chromium is not installed: apt-get install chromium, or name it in CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Browser, console: Console) -> Iterator[OpenPage]:
    """`open_page(width=390, scheme="dark")`: a new browser window; at the end none may have complained."""
    from tests.webui.browser import Watched

    opened: list[Watched] = []

    def opener(
        *, width: int = 1440, scheme: Scheme = "light", zone: str = "Europe/Berlin", permissions: Sequence[str] = ()
    ) -> Watched:
        context = chromium.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            timezone_id=zone,
            reduced_motion="reduce",
            permissions=list(permissions),
        )
        watched = Watched(context.new_page(), console.url)
        watched.watch()
        opened.append(watched)
        return watched

    yield opener
    for watched in opened:
        watched.page.context.close()
    assert [complaint for watched in opened for complaint in watched.complaints] == []


@pytest.fixture
def shop(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Tenancy:
    """Alice's tenant, with a password that the real server knows."""
    tenancies: list[Tenancy] = []

    def make() -> None:
        tenancies.append(tenancy_create(owner="alice", viewer="bob", llm_model="demo-script"))
        let_sign_in(tenancies[0])

    with django_db_blocker.unblock():
        in_thread(make)
    return tenancies[0]


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
