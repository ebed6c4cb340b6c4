"""What a running Mirror consists of, as `manage.py serve` and `manage.py demo` start it.

Order: embedded servers (without outside ones), migrations, then the long-running processes; stopping goes backwards.
Children read the embedded servers' addresses from MIRROR_HOME themselves, so no password stands in an environment.
"""

import asyncio
import contextlib
import fcntl
import http.client
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from mirror_saas import embedded
from mirror_saas.env import ADDRESS_FILE, Environment
from mirror_saas.processes import ProcessError, ProcessGroup, ProcessSpec, Stopped, Write
from mirror_saas.serving import ListenError, port_check

MANAGE_PY = Path(__file__).resolve().parent.parent / "manage.py"

# A server that stops still answers its requests and cancels its tasks after its calls have ended.
WEB_STOP_EXTRA_S = 25.0
WORKER_STOP_S = 30.0


class StackError(Exception):
    """Mirror cannot be started; the text is one line that says what to do."""


def manage(*arguments: str) -> tuple[str, ...]:
    """The command line of a `manage.py` command in this interpreter."""
    return (sys.executable, str(MANAGE_PY), *arguments)


@dataclass(slots=True)
class ReadyProbe:
    """Asks a server's /readyz; remembers why it was not ready."""

    host: str
    port: int
    last: str = "it does not answer"

    async def __call__(self) -> bool:
        return await asyncio.to_thread(self._ask)

    def _ask(self) -> bool:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104  (compared, not bound)
        connection = http.client.HTTPConnection(host, self.port, timeout=10)
        try:
            connection.request("GET", "/readyz", headers={"Host": "localhost"})
            response = connection.getresponse()
            body = response.read(65536)
        except (OSError, http.client.HTTPException) as error:
            self.last = f"it does not answer ({type(error).__name__})"
            return False
        finally:
            connection.close()
        if response.status == 200:
            return True
        try:
            checks = json.loads(body)["checks"]
            self.last = "; ".join(f"{name}: {text}" for name, text in checks.items() if text != "ok")
        except (ValueError, KeyError, TypeError, AttributeError):
            self.last = f"/readyz answers {response.status}"
        return False


def migrate_spec(env: Mapping[str, str]) -> ProcessSpec:
    """Roles and migrations; runs to its end."""
    return ProcessSpec(name="migrate", command=manage("serve", "--only", "migrate"), env=env)


def web_spec(environment: Environment, env: Mapping[str, str]) -> ProcessSpec:
    """Console, API and calls on one Daphne."""
    probe = ReadyProbe(environment.bind, environment.port)
    return ProcessSpec(
        name="web",
        command=manage("serve", "--only", "all"),
        env=env,
        ready_probe=probe,
        ready_hint=lambda: probe.last,
        stop_within_s=environment.drain_accept_s + environment.drain_s + WEB_STOP_EXTRA_S,
    )


def worker_spec(env: Mapping[str, str]) -> ProcessSpec:
    """The Celery worker."""
    return ProcessSpec(
        name="worker",
        command=manage("serve", "--only", "worker"),
        env=env,
        ready_line=r"@\S+ ready\.",
        stop_within_s=WORKER_STOP_S,
    )


def beat_spec(env: Mapping[str, str]) -> ProcessSpec:
    """Celery's clock."""
    return ProcessSpec(name="beat", command=manage("serve", "--only", "beat"), env=env, ready_line=r"beat: Starting")


@contextlib.contextmanager
def home_claimed(home: Path) -> Iterator[None]:
    """Hold `home` for one running Mirror. Raises `StackError` when another one holds it."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        file = open(home / "serve.lock", "a+", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise StackError(
            f"{error.filename} cannot be used ({error.strerror}); set MIRROR_HOME to a folder this user may write."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise StackError(
                f"Mirror already runs on {home} (process {file.read().strip() or 'unknown'});"
                " stop it first, or set MIRROR_HOME and PORT to others."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def address_published(environment: Environment) -> Iterator[None]:
    """Leave the address of this Mirror in its home, so that commands run beside it print URLs that work."""
    file = environment.home / ADDRESS_FILE
    file.write_text(environment.public_url, encoding="utf-8")
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def servers_running(environment: Environment, write: Write) -> Iterator[None]:
    """Embedded PostgreSQL and Valkey for the time of the block, unless outside ones are configured."""
    if not environment.embedded:
        yield
        return
    write(f"Starting PostgreSQL and Valkey under {environment.home}")
    embedded.start(environment.home, notify=write)
    try:
        yield
    finally:
        # Whoever presses Ctrl-C again must not leave a server behind; this ends by itself within a minute.
        with _ignored(signal.SIGINT, signal.SIGTERM):
            embedded.stop(environment.home)


def stack_run(environment: Environment, body: Callable[[ProcessGroup], Awaitable[None]], *, write: Write) -> None:
    """Claim the home, start the servers, run `body` with a process group, and stop everything again; blocks.

    `body` starts its children and then returns; this waits until a signal arrives or a child ends.
    Raises `StackError` with one line when something cannot be started or ends by itself.
    """

    async def main() -> None:
        async with ProcessGroup(write) as group:
            group.stop_on_signals()
            try:
                await body(group)
                await group.wait()
            except Stopped:
                pass
            write("Stopping.")

    try:
        with _interrupting(signal.SIGTERM, signal.SIGHUP), home_claimed(environment.home):
            port_check(environment.bind, environment.port)
            with servers_running(environment, write), address_published(environment):
                asyncio.run(main())
    except (ProcessError, ListenError, embedded.EmbeddedError) as error:
        raise StackError(str(error)) from error


@contextlib.contextmanager
def _interrupting(*numbers: signal.Signals) -> Iterator[None]:
    """Let these signals interrupt as Ctrl-C does, so that what was started is stopped on the way out."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _ignored(*numbers: signal.Signals) -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
