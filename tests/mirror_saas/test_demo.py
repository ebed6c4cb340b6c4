"""`make run`'s command, whole: a supervised call without Plivo, without a key, twice with the same login."""

import http.client
import json
import shutil
import signal
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from mirror_saas.demo.ports import kept_ports
from mirror_saas.management.commands.demo import DEMO_FIELDS
from tests.mirror_saas.running import Command, ended
from tests.support.ports import free_port

# A call of about a minute in real time, between two starts of everything.
pytestmark = pytest.mark.timeout(420)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="mirror-"))
    yield folder / "home"
    shutil.rmtree(folder)


def api(demo: dict[str, str], path: str) -> Any:
    address = urlsplit(demo["console_url"])
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=20)
    try:
        connection.request("GET", f"/api/v1{path}", headers={"Authorization": f"Bearer {demo['api_key']}"})
        response = connection.getresponse()
        body = json.loads(response.read())
        assert response.status == 200, body
        return body
    finally:
        connection.close()


def test_the_demo_supervises_a_call_and_a_second_start_goes_on_where_the_first_ended(home: Path) -> None:
    port = free_port()
    env = {"MIRROR_HOME": str(home), "PORT": str(port)}
    with Command("demo", env=env) as first:
        first.until("Password", timeout=240)
        first.until("Ctrl-C stops everything")
        assert "call     | completed" in first.text
        assert "No model is judging" in first.text
        assert "Traceback" not in first.text

        file = home / "demo.json"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        demo = json.loads(file.read_text())
        assert tuple(demo) == DEMO_FIELDS
        assert demo["console_url"] == f"http://127.0.0.1:{port}/"
        assert f"  Password   {demo['password']}\n" in first.lines
        # Who is told to watch the call has to be able to sign in while it runs.
        (placed,) = [line for line in first.lines if line.startswith("Placing a simulated call")]
        assert f"(login {demo['email']}, password {demo['password']})" in placed

        assert api(demo, "/me")["tenant"]["slug"] == demo["tenant"]
        (call,) = api(demo, "/calls")["items"]
        turns = api(demo, f"/calls/{call['id']}/turns")["items"]
        assert any(turn["interventions"] for turn in turns)
        outside_turns = api(demo, f"/calls/{call['id']}")["tool_decisions"]
        decided = [*outside_turns, *(decision for turn in turns for decision in turn["tool_decisions"])]
        assert {decision["allow"] for decision in decided} == {True, False}

        # Whoever signs up is offered the demo's agent, at an address that the next start keeps.
        ports = json.loads((home / "demo-ports.json").read_text())
        web = first.children()["--only all"].environ()
        assert web["MIRROR_DEMO_AGENT_URL"] == f"ws://127.0.0.1:{ports['agent']}/"
        assert web["MIRROR_DEMO_JUDGE_URL"] == f"http://127.0.0.1:{ports['judge']}/v1"
        running = list(first.children().values())
        assert set(first.children()) >= {"--only all", "worker", "beat", "demo.agent", "demo.judge"}
        assert first.end(signal.SIGINT) == 0
        assert all(ended(process) for process in running)

    with Command("demo", "--no-call", env=env) as second:
        second.until("Ctrl-C stops everything")
        assert json.loads(file.read_text()) == demo
        assert json.loads((home / "demo-ports.json").read_text()) == ports
        assert [earlier["id"] for earlier in api(demo, "/calls")["items"]] == [call["id"]]
        assert second.end(signal.SIGTERM) == 0


def test_ports_are_kept_while_nobody_else_has_them(tmp_path: Path) -> None:
    file = tmp_path / "ports.json"
    first = kept_ports(file, ("agent", "judge"))
    assert kept_ports(file, ("agent", "judge")) == first
    with socket.socket() as other:
        other.bind(("127.0.0.1", first["agent"]))
        other.listen()
        moved = kept_ports(file, ("agent", "judge"))
    assert moved["judge"] == first["judge"]
    assert moved["agent"] != first["agent"]
    assert kept_ports(file, ("agent", "judge")) == moved
    for wrong in ("", "[]", '{"agent": "80"}', '{"agent": 99999999}'):
        file.write_text(wrong)
        assert all(0 < port < 65536 for port in kept_ports(file, ("agent", "judge")).values())


def test_the_demo_refuses_production(home: Path) -> None:
    env = {"MIRROR_HOME": str(home), "PORT": str(free_port()), "MIRROR_ENV": "production"}
    with Command("demo", env=env) as command:
        assert command.end() == 1
    assert "MIRROR_ENV=production" in command.text
    assert "Traceback" not in command.text
