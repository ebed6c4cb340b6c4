"""Database URLs become Django's settings, and one role's URL becomes another's."""

from mirror_saas.databases import database_settings, database_url_for


def test_a_url_becomes_djangos_settings() -> None:
    settings = database_settings("postgresql://mirror_app:p%40ss@db.internal:6432/mirror?sslmode=require")
    assert settings["USER"] == "mirror_app"
    assert settings["PASSWORD"] == "p@ss"
    assert settings["HOST"] == "db.internal"
    assert settings["PORT"] == "6432"
    assert settings["NAME"] == "mirror"
    assert settings["OPTIONS"] == {"connect_timeout": 5, "sslmode": "require"}
    assert settings["ATOMIC_REQUESTS"] is False


def test_a_socket_folder_becomes_the_host() -> None:
    settings = database_settings("postgresql://mirror_app@/mirror?host=/var/run/postgresql")
    assert settings["HOST"] == "/var/run/postgresql"
    assert "PASSWORD" not in settings


def test_another_role_keeps_the_server_and_drops_the_first_ones_password() -> None:
    url = database_url_for("postgresql://postgres:secret@db:5433/postgres?sslmode=require", user="app", database="m")
    assert url == "postgresql://app@db:5433/m?sslmode=require"
    assert (
        database_url_for("postgresql://postgres@/postgres?host=/run", user="app", database="m", password="a/b")
        == "postgresql://app:a%2Fb@/m?host=/run"
    )
