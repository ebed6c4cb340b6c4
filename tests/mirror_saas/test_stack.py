"""`manage.py serve`, whole: it starts in order on an empty folder, says what is wrong in a line, leaves nothing."""

import http.client
import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mirror_saas.stack import ReadyProbe, StackError, home_claimed
from tests.mirror_saas.running import Command, ended
from tests.support.ports import free_port

# Each of these starts and stops five real servers, on a machine that may be busy.
pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="mirror-"))
    yield folder / "home"
    shutil.rmtree(folder)


def serve(home: Path, port: int, *arguments: str) -> Command:
    return Command("serve", *arguments, env={"MIRROR_HOME": str(home), "PORT": str(port)})


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def postgres_of(home: Path) -> psutil.Process:
    return psutil.Process(int((home / "postgres" / "postmaster.pid").read_text().splitlines()[0]))


def test_everything_starts_on_an_empty_folder_stops_on_ctrl_c_and_starts_again(home: Path) -> None:
    port = free_port()
    with serve(home, port) as command:
        command.until("Mirror runs:")
        assert json.loads(get(port, "/readyz")[1])["ready"] is True
        running = [*command.children().values(), postgres_of(home)]
        assert set(command.children()) == {"--only all", "worker", "beat", "valkey-server"}
        with Command("serve", env={"MIRROR_HOME": str(home), "PORT": str(free_port())}) as second:
            assert second.end() == 1
            assert f"already runs on {home} (process {command.process.pid})" in second.lines[-1]
        assert command.end(signal.SIGINT) == 0
        assert all(ended(process) for process in running)
        assert "Traceback" not in command.text
    with serve(home, port) as again:
        again.until("Mirror runs:")
        assert "No migrations to apply" in again.text
        assert again.end(signal.SIGTERM) == 0


def test_one_process_dying_stops_the_others_and_is_named(home: Path) -> None:
    with serve(home, free_port()) as command:
        command.until("Mirror runs:")
        running = [*command.children().values(), postgres_of(home)]
        command.children()["worker"].kill()
        assert command.end() == 1
        assert command.lines[-1] == "CommandError: worker ended (by SIGKILL); stopping the others.\n"
        assert all(ended(process) for process in running)


def test_a_signal_while_it_starts_leaves_nothing_behind(home: Path) -> None:
    with serve(home, free_port()) as command:
        command.until("migrate")
        running = [*psutil.Process(command.process.pid).children(recursive=True), postgres_of(home)]
        assert command.end(signal.SIGTERM) == 0
        assert all(ended(process) for process in running)
        assert "Traceback" not in command.text


def test_a_taken_port_is_one_line_before_anything_starts(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with serve(home, port) as command:
            assert command.end() == 1
    assert command.lines == [
        f"CommandError: Port {port} on 127.0.0.1 is taken by another program; choose another one with PORT=…\n"
    ]
    assert not (home / "postgres").exists()


def test_a_bad_environment_is_listed_without_a_traceback(home: Path) -> None:
    with Command("serve", env={"MIRROR_HOME": str(home), "PORT": "none", "MIRROR_ENV": "test"}) as command:
        assert command.end() == 1
    assert [line.split(":")[0].strip() for line in command.lines] == [
        "Mirror cannot start, its environment is not usable",
        "MIRROR_ENV",
        "PORT",
    ]


def test_a_home_that_cannot_be_used_is_one_line(home: Path) -> None:
    home.write_text("a file")
    with Command("serve", env={"MIRROR_HOME": str(home), "PORT": str(free_port())}) as command:
        assert command.end() == 1
    assert len(command.lines) == 1
    assert str(home) in command.lines[0]


def test_a_home_is_claimed_by_one_process_at_a_time(tmp_path: Path) -> None:
    with home_claimed(tmp_path), pytest.raises(StackError, match=rf"process {os.getpid()}"), home_claimed(tmp_path):
        pass
    with home_claimed(tmp_path):
        pass


async def test_the_probe_says_why_a_server_is_not_ready() -> None:
    probe = ReadyProbe("127.0.0.1", free_port())
    assert await probe() is False
    assert probe.last == "it does not answer (ConnectionRefusedError)"
