"""Mirror's own PostgreSQL and Valkey: real ones, started, found, stopped, and what is said when they cannot start."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from mirror_saas import embedded

ROOT = Path(__file__).resolve().parents[2]
START_ELSEWHERE = """
import sys
from pathlib import Path
from mirror_saas import embedded
home = Path(sys.argv[1])
servers = embedded.start(home, notify=lambda line: None)
print(servers.database_admin_url)
print(servers.redis_url)
print(embedded.stop(home))
"""


@pytest.fixture
def home() -> Iterator[Path]:
    # Not tmp_path: its name is too long for a socket, which has a test of its own.
    folder = Path(tempfile.mkdtemp(prefix="mirror-"))
    yield folder / "home"
    embedded.stop(folder / "home")
    shutil.rmtree(folder)


def start(home: Path) -> embedded.EmbeddedServers:
    return embedded.start(home, notify=lambda line: None)


def pids(home: Path) -> tuple[int, int]:
    """The process numbers of PostgreSQL and Valkey."""
    postgres = int((home / "postgres" / "postmaster.pid").read_text().splitlines()[0])
    return postgres, int((home / "valkey" / "valkey.pid").read_text())


def ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def write(servers: embedded.EmbeddedServers) -> None:
    with psycopg.connect(servers.database_admin_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept (word text)")
        connection.execute("INSERT INTO kept VALUES ('grüße')")
    with redis.Redis.from_url(servers.redis_url) as client:
        client.set("kept", "yes")


def read(servers: embedded.EmbeddedServers) -> tuple[object, object]:
    with psycopg.connect(servers.database_admin_url) as connection:
        row = connection.execute("SELECT word FROM kept").fetchone()
    with redis.Redis.from_url(servers.redis_url) as client:
        return row, client.get("kept")


def test_both_servers_answer_and_what_they_hold_survives_a_stop(home: Path) -> None:
    write(start(home))
    running = pids(home)
    assert embedded.stop(home)
    assert all(ended(pid) for pid in running)
    assert read(start(home)) == (("grüße",), b"yes")


def test_nobody_else_can_reach_them(home: Path) -> None:
    servers = start(home)
    assert stat.S_IMODE((home / "servers.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((home / "valkey" / "valkey.conf").stat().st_mode) == 0o600
    port = int(servers.redis_url.rpartition(":")[2].partition("/")[0])
    with redis.Redis(port=port) as without_password, pytest.raises(redis.AuthenticationError):
        without_password.ping()
    with psycopg.connect(servers.database_admin_url) as connection:
        row = connection.execute(
            "SELECT current_setting('listen_addresses'), current_setting('unix_socket_permissions')"
        ).fetchone()
    assert row == ("", "0700")


def test_a_second_process_finds_the_first_ones_servers_and_leaves_them_running(home: Path) -> None:
    servers = start(home)
    running = pids(home)
    other = subprocess.run(
        [sys.executable, "-c", START_ELSEWHERE, str(home)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert other.stdout.splitlines() == [servers.database_admin_url, servers.redis_url, "False"]
    assert pids(home) == running
    assert start(home) == servers


def test_servers_survive_the_process_that_started_them_if_it_is_killed(home: Path) -> None:
    code = START_ELSEWHERE.replace("print(embedded.stop(home))", "import os; sys.stdout.flush(); os._exit(9)")
    first = subprocess.run([sys.executable, "-c", code, str(home)], cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 9
    running = pids(home)
    assert not any(ended(pid) for pid in running)
    assert start(home).redis_url == first.stdout.splitlines()[1]
    assert embedded.stop(home)
    assert all(ended(pid) for pid in running)


def test_killed_servers_come_back_with_their_data(home: Path) -> None:
    write(start(home))
    with redis.Redis.from_url(embedded.servers_read(home).redis_url) as client:
        client.waitaof(1, 0, 5000)
    for pid in pids(home):
        os.kill(pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=1)
    assert read(start(home)) == (("grüße",), b"yes")


def test_pid_files_that_name_other_peoples_processes_are_not_believed(home: Path) -> None:
    start(home)
    postmaster = (home / "postgres" / "postmaster.pid").read_text()
    embedded.stop(home)
    lines = postmaster.splitlines()
    (home / "postgres" / "postmaster.pid").write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    (home / "valkey" / "valkey.pid").write_text(str(os.getpid()))
    start(home)
    assert os.getpid() not in pids(home)


def test_a_home_too_long_for_a_socket_works(home: Path) -> None:
    deep = home / ("d" * 60) / ("e" * 60)
    try:
        with psycopg.connect(start(deep).database_admin_url) as connection:
            row = connection.execute("SHOW unix_socket_directories").fetchone()
        assert row is not None
        assert stat.S_IMODE(Path(str(row[0])).stat().st_mode) == 0o700
    finally:
        embedded.stop(deep)


def test_a_home_with_spaces_and_quotes_works(home: Path) -> None:
    odd = home / "it's my project"
    try:
        write(start(odd))
        embedded.stop(odd)
        assert read(start(odd)) == (("grüße",), b"yes")
    finally:
        embedded.stop(odd)


def test_a_stop_without_a_start_says_that_nothing_was_stopped(home: Path) -> None:
    assert embedded.stop(home) is False


def test_addresses_of_servers_that_never_ran_lead_nowhere(home: Path) -> None:
    servers = embedded.servers_read(home)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(servers.database_admin_url, connect_timeout=2)
    with redis.Redis.from_url(servers.redis_url) as client, pytest.raises(redis.ConnectionError):
        client.ping()


def error_of(home: Path) -> str:
    with pytest.raises(embedded.EmbeddedError) as caught:
        start(home)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_full_disk_is_one_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage("/").free
    monkeypatch.setattr(embedded, "SPACE_NEEDED_BYTES", free * 2)
    assert "MB are free" in error_of(home)
    assert "MIRROR_HOME" in error_of(home)


def test_a_home_that_is_a_file_is_one_line(home: Path) -> None:
    home.write_text("")
    assert str(home) in error_of(home)
    home.unlink()


@pytest.mark.parametrize(
    ("number", "said"), [(errno.EACCES, "may write"), (errno.ENOSPC, "No space left"), (errno.EROFS, "may write")]
)
def test_a_home_that_cannot_be_used_is_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    # root may write anywhere, so the refusal of the system is played here.
    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number), str(self))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", refuse)
        text = error_of(home)
    assert said in text
    assert str(home) in text


def test_a_taken_socket_is_one_line(home: Path) -> None:
    start(home)
    embedded.stop(home)
    # PostgreSQL looks at the lock beside its socket, and asks whether that process lives; as root it runs as another
    # user, whose processes are the only ones it can ask about.
    user = "pgserver" if os.geteuid() == 0 else None
    holder = subprocess.Popen(["sleep", "60"], user=user)
    try:
        lock = home / "postgres" / ".s.PGSQL.5432.lock"
        lock.write_text(f"{holder.pid}\n{home / 'postgres'}\n0\n5432\n{home / 'postgres'}\n")
        if user is not None:
            shutil.chown(lock, user)
        text = error_of(home)
    finally:
        holder.kill()
        holder.wait()
    assert "another server uses" in text
    lock.unlink()


def test_data_of_another_postgresql_is_one_line_and_stays_untouched(home: Path) -> None:
    start(home)
    embedded.stop(home)
    version = home / "postgres" / "PG_VERSION"
    version.write_text("14\n")
    assert "PostgreSQL 14" in error_of(home)
    version.write_text("18\n")
    start(home)


def test_a_taken_port_makes_valkey_move_to_another(home: Path) -> None:
    import socket

    port = int(start(home).redis_url.rpartition(":")[2].partition("/")[0])
    embedded.stop(home)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        moved = start(home)
    assert f":{port}/" not in moved.redis_url
    with redis.Redis.from_url(moved.redis_url) as client:
        assert client.ping()


def test_folders_that_a_start_as_root_opens_are_named_before(tmp_path: Path) -> None:
    closed, data = tmp_path / "closed", tmp_path / "closed" / "home" / "postgres"
    data.mkdir(parents=True)
    closed.chmod(0o700)
    data.parent.chmod(0o755)
    data.chmod(0o700)
    opened = embedded.folders_to_open([data])
    assert closed in opened
    assert data.parent not in opened
    assert data not in opened


@pytest.mark.skipif(os.geteuid() != 0, reason="says what a start as root does")
def test_a_start_as_root_says_what_it_does_in_one_line(home: Path) -> None:
    lines: list[str] = []
    embedded.start(home, notify=lines.append)
    assert len(lines) == 1
    assert "system user 'pgserver'" in lines[0]
    assert str(home) in lines[0]
    lines.clear()
    embedded.start(home, notify=lines.append)
    assert lines == []
