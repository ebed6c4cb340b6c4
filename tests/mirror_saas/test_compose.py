"""docker-compose.yml without Docker: each service's command runs as a real process against real servers."""

import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import yaml
from psycopg import sql

from mirror_saas import embedded
from mirror_saas.env import environment_parse
from mirror_saas.stack import WEB_STOP_EXTRA_S
from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OURS = {name: service for name, service in COMPOSE["services"].items() if "build" in service}
DOTENV = {
    "POSTGRES_PASSWORD": "a" * 48,
    "MIRROR_OWNER_PASSWORD": "b" * 48,
    "MIRROR_APP_PASSWORD": "c" * 48,
    "VALKEY_PASSWORD": "d" * 48,
    "MIRROR_SECRET_KEY": "e" * 64,
    "MIRROR_ENCRYPTION_KEY": "ZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmY=",
    "MIRROR_PUBLIC_URL": "https://mirror.example.com",
    "MIRROR_EGRESS_ALLOW": "",
    "MIRROR_EMAIL_URL": "smtps://mirror:gggg@mail.example.com",
    "MIRROR_EMAIL_FROM": "Mirror <mirror@example.com>",
    "MIRROR_SIGN_UP": "",
}


def interpolated(value: str) -> str:
    """A value of the compose file with the variables of .env, as Compose puts them in."""
    return re.sub(r"\$\{(\w+)(?::[?-][^}]*)?\}", lambda match: DOTENV.get(match[1], ""), value)


def environment_of(service: str) -> dict[str, str]:
    return {name: interpolated(str(value)) for name, value in OURS[service]["environment"].items()}


def test_the_file_has_every_process_of_the_architecture() -> None:
    assert set(COMPOSE["services"]) == {"migrate", "web", "stream", "worker", "beat", "postgres", "valkey"}
    assert set(OURS) == {"migrate", "web", "stream", "worker", "beat"}


def test_what_compose_asks_for_is_in_the_example() -> None:
    asked = set(re.findall(r"\$\{(\w+):\?", (ROOT / "docker-compose.yml").read_text()))
    offered = {line.partition("=")[0] for line in (ROOT / ".env.example").read_text().splitlines() if "=" in line}
    assert asked <= offered
    assert set(DOTENV) == offered


@pytest.mark.parametrize("service", sorted(OURS))
def test_each_service_gets_an_environment_that_mirror_accepts(service: str) -> None:
    environment = environment_parse(environment_of(service), base_dir=ROOT)
    assert environment.mode == "production"
    assert not environment.embedded


@pytest.mark.parametrize("service", ["web", "stream"])
def test_a_stopped_server_has_the_time_that_its_calls_may_take(service: str) -> None:
    environment = environment_parse(environment_of(service), base_dir=ROOT)
    grace_s = float(OURS[service]["stop_grace_period"].removesuffix("s"))
    calls_s = environment.drain_s if service == "stream" else 0.0
    assert grace_s >= environment.drain_accept_s + calls_s + WEB_STOP_EXTRA_S
    interval_s = float(OURS[service]["healthcheck"]["interval"].removesuffix("s"))
    assert environment.drain_accept_s >= 2 * interval_s


@pytest.mark.parametrize("service", sorted(set(OURS) - {"migrate"}))
def test_only_migrations_get_more_than_the_bound_role(service: str) -> None:
    assert urlsplit(environment_of(service)["DATABASE_URL"]).username == "mirror_app"
    assert not {"DATABASE_OWNER_URL", "DATABASE_ADMIN_URL"} & set(OURS[service]["environment"])


def test_the_image_holds_what_the_commands_import() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    copied = set(re.findall(r"^COPY (\S+) ", dockerfile, re.MULTILINE))
    ignored = (ROOT / ".dockerignore").read_text()
    for name in ("manage.py", "mirror_saas", "tenants", "supervision", "webui", "requirements/run.txt"):
        assert name in copied
        assert f"!{name}" in ignored.splitlines()
    assert 'ENTRYPOINT ["python", "manage.py"]' in dockerfile


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, str]]:
    """Servers of this module's own: roles belong to a whole server, and these get passwords."""
    folder = Path(tempfile.mkdtemp(prefix="mirror-"))
    started = embedded.start(folder, notify=lambda line: None)
    with psycopg.connect(started.database_admin_url, autocommit=True) as admin:
        admin.execute(sql.SQL("ALTER ROLE postgres PASSWORD {}").format(sql.Literal(DOTENV["POSTGRES_PASSWORD"])))
        # The socket lets everyone of this user in; from here on it asks for passwords, as the container's port does.
        row = admin.execute("SHOW hba_file").fetchone()
        assert row is not None
        Path(str(row[0])).write_text("local all all scram-sha-256\n")
        admin.execute("SELECT pg_reload_conf()")
    socket_folder = urlsplit(started.database_admin_url).query
    yield {"query": socket_folder, "redis": started.redis_url}
    embedded.stop(folder)
    shutil.rmtree(folder)


def process_environment(service: str, servers: dict[str, str], home: Path, port: int) -> dict[str, str]:
    """The service's environment with its hosts replaced by this machine's servers; nothing else is changed."""
    environment = environment_of(service)
    for name, value in environment.items():
        environment[name] = re.sub(r"@postgres:5432/(\w+)$", rf"@/\1?{servers['query']}", value)
    environment["REDIS_URL"] = servers["redis"]
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    # Nobody here asks whether calls may still be sent.
    own = {"MIRROR_HOME": str(home), "MIRROR_BIND": "127.0.0.1", "PORT": str(port), "MIRROR_DRAIN_ACCEPT_S": "0"}
    return {**kept, **environment, **own}


class Service:
    """A running service: its command as a process, and what it printed."""

    def __init__(self, name: str, servers: dict[str, str], home: Path) -> None:
        self.port = free_port()
        self.environment = process_environment(name, servers, home, self.port)
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", *OURS[name]["command"]],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line)
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def until(self, text: str) -> None:
        with self._news:
            seen = self._news.wait_for(lambda: any(text in line for line in self.lines), timeout=60)
        assert seen, "".join(self.lines)

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"Host": "localhost"})
            response = connection.getresponse()
            return response.status, response.read()

    def until_ready(self) -> dict[str, Any]:
        waiting = threading.Event()
        for _ in range(600):
            assert self.process.poll() is None, "".join(self.lines)
            with contextlib.suppress(OSError):
                status, body = self.get("/readyz")
                if status == 200:
                    return dict(json.loads(body))
            waiting.wait(0.1)
        raise AssertionError("".join(self.lines))

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            code = self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._reader.join(10)
        return code


@pytest.fixture(scope="module")
def migrated(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The servers after the service `migrate` ran to its end."""
    service = Service("migrate", servers, tmp_path_factory.mktemp("migrate"))
    code = service.process.wait(120)
    service.stop()
    assert code == 0, "".join(service.lines)
    return servers


@contextlib.contextmanager
def running(name: str, servers: dict[str, str], home: Path) -> Iterator[Service]:
    service = Service(name, servers, home)
    try:
        yield service
    finally:
        service.stop()


def test_migrate_makes_roles_that_log_in_with_their_passwords_and_can_run_again(
    migrated: dict[str, str], tmp_path: Path
) -> None:
    url = process_environment("web", migrated, tmp_path, 1)["DATABASE_URL"]
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT rolname, rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user"
        ).fetchone()
    assert row == ("mirror_app", False, False)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(url.replace(DOTENV["MIRROR_APP_PASSWORD"], "wrong"))
    again = Service("migrate", migrated, tmp_path)
    assert again.process.wait(120) == 0
    again.stop()
    assert any("No migrations to apply" in line for line in again.lines)


def test_web_serves_the_console_and_no_calls(migrated: dict[str, str], tmp_path: Path) -> None:
    with running("web", migrated, tmp_path) as web:
        report = web.until_ready()
        assert report["checks"] == dict.fromkeys(report["checks"], "ok")
        assert set(report["checks"]) >= {"database", "migrations", "broker", "journal"}
        assert web.get("/livez")[0] == 200
        assert web.get("/")[0] in (200, 302)
        assert web.get("/plivo/demo/key/answer")[0] == 404
        assert web.stop() == 0


def test_stream_serves_calls_and_no_console(migrated: dict[str, str], tmp_path: Path) -> None:
    with running("stream", migrated, tmp_path) as stream:
        stream.until_ready()
        assert stream.get("/")[0] == 404
        assert stream.get("/plivo/demo/no-such-key/answer")[0] == 403
        assert stream.stop() == 0
        assert not any("no-such-key" in line for line in stream.lines)


def test_the_worker_answers_its_health_check(migrated: dict[str, str], tmp_path: Path) -> None:
    with running("worker", migrated, tmp_path) as worker:
        worker.until(" ready.")
        check = OURS["worker"]["healthcheck"]["test"]
        assert check[:2] == ["CMD", "celery"]
        pinged = subprocess.run(
            [sys.executable, "-m", *check[1:]], cwd=ROOT, env=worker.environment, capture_output=True, text=True
        )
        assert pinged.returncode == 0, pinged.stdout + pinged.stderr
        assert "pong" in pinged.stdout
        assert worker.stop() == 0


def test_beat_starts_and_stops(migrated: dict[str, str], tmp_path: Path) -> None:
    with running("beat", migrated, tmp_path) as beat:
        beat.until("beat: Starting")
        # What it keeps its schedule in; before it is there, stopping would prove little.
        while not list(tmp_path.rglob("celerybeat-schedule*")):
            assert beat.process.poll() is None
            time.sleep(0.05)
        assert beat.stop() == 0


def test_readyz_names_what_is_wrong(migrated: dict[str, str], tmp_path: Path) -> None:
    with running("web", migrated, tmp_path) as web:
        web.until_ready()
        shutil.rmtree(tmp_path / "journal", ignore_errors=True)
        (tmp_path / "journal").write_text("a file where the journal's folder should be")
        status, body = web.get("/readyz")
    assert status == 503
    checks = json.loads(body)["checks"]
    assert "MIRROR_JOURNAL_DIR" in checks["journal"]
    assert checks["database"] == "ok"
