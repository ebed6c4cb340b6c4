"""/readyz says no for a database that is down, a role that row-level security does not bind, and all else amiss."""

import json
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connections
from django.test import RequestFactory
from django.utils.connection import ConnectionProxy

from mirror_saas import health
from mirror_saas.databases import database_settings, database_url_for
from mirror_saas.draining import Drain
from tests.support.servers import DatabaseUrls


@pytest.fixture
def connected_to(monkeypatch: pytest.MonkeyPatch, django_db_blocker: Any) -> Any:
    """Let the checks use a connection to another URL."""
    opened = []

    def connect(url: str) -> None:
        entry = {**connections["default"].settings_dict, **database_settings(url)}
        connections.settings["probe"] = entry
        opened.append("probe")
        monkeypatch.setattr(health, "connection", ConnectionProxy(connections, "probe"))

    with django_db_blocker.unblock():
        yield connect
        for alias in opened:
            connections[alias].close()
            del connections[alias]
            connections.settings.pop(alias, None)


@pytest.mark.django_db
def test_the_role_that_runs_mirror_passes_every_check(redis_url: str) -> None:
    assert health.readiness() == dict.fromkeys(health.CHECKS, "ok")
    response = health.readyz(RequestFactory().get("/readyz"))
    assert response.status_code == 200
    assert json.loads(response.content)["ready"] is True


@pytest.mark.parametrize("who", ["owner", "admin"])
def test_a_role_that_row_level_security_does_not_bind_is_refused(
    database_urls: DatabaseUrls, connected_to: Any, who: str
) -> None:
    connected_to(getattr(database_urls, who))
    with pytest.raises(health.NotReady, match="must log in as mirror_app"):
        health.check_database()


def test_a_database_that_is_down_is_named_without_its_password(
    connected_to: Any, caplog: pytest.LogCaptureFixture
) -> None:
    connected_to("postgresql://mirror_app:hunter2@127.0.0.1:1/mirror")
    for check in (health.check_database, health.check_migrations):
        with pytest.raises(health.NotReady, match="DATABASE_URL") as caught:
            check()
        assert "hunter2" not in str(caught.value)
    assert "hunter2" not in caplog.text


def test_a_database_without_our_tables_is_not_ready(database_urls: DatabaseUrls, connected_to: Any) -> None:
    connected_to(database_url_for(database_urls.admin, user="mirror_app", database="postgres"))
    with pytest.raises(health.NotReady, match="serve --only migrate"):
        health.check_migrations()


def test_a_broker_that_is_down_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "REDIS_URL", "redis://:hunter2@127.0.0.1:1/0")
    with pytest.raises(health.NotReady, match="REDIS_URL") as caught:
        health.check_broker()
    assert "hunter2" not in str(caught.value)


def test_a_journal_folder_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    class Home:
        journal_dir = tmp_path / "file" / "journal"

    monkeypatch.setattr(settings, "MIRROR", Home)
    with pytest.raises(health.NotReady, match="MIRROR_JOURNAL_DIR"):
        health.check_journal()


def test_a_stopping_process_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    stopping = Drain()
    monkeypatch.setattr(health, "drain", stopping)
    health.check_draining()
    stopping.begin()
    with pytest.raises(health.NotReady, match="stopping"):
        health.check_draining()


def test_livez_needs_nothing() -> None:
    assert health.livez(RequestFactory().get("/livez")).status_code == 200
