"""`create_roles`: whatever the server looks like, afterwards row-level security binds the role that runs Mirror."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tenants.services.roles import APP, OWNER, PLATFORM, RolesNotCreated, roles_create
from tests.factories import unique
from tests.support.servers import DatabaseUrls, Servers, roles_held


@pytest.fixture(autouse=True)
def roles(servers: Servers) -> Iterator[None]:
    with roles_held():
        yield


@pytest.fixture
def database(database_urls: DatabaseUrls) -> Iterator[str]:
    """The name of a database that is not there yet."""
    name = unique("roles")
    yield name
    with psycopg.connect(database_urls.admin, autocommit=True) as admin:
        admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def query(url: str, statement: str, *parameters: object) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement.encode(), parameters).fetchall()


def test_running_it_again_changes_nothing(database_urls: DatabaseUrls, database: str) -> None:
    first = roles_create(admin_url=database_urls.admin, database=database)
    # The roles are the server's, and this run's tests already use them.
    assert first.roles == ()
    assert first.database == database
    again = roles_create(admin_url=database_urls.admin, database=database)
    assert (again.roles, again.database) == ((), None)


def test_the_roles_are_what_they_should_be(database_urls: DatabaseUrls, database: str) -> None:
    roles_create(admin_url=database_urls.admin, database=database)
    roles = query(
        database_urls.admin,
        "SELECT rolname, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolcanlogin FROM pg_roles"
        " WHERE rolname = ANY(%s) ORDER BY rolname",
        [OWNER, APP, PLATFORM],
    )
    assert roles == [
        (APP, False, False, False, False, True),
        (OWNER, False, False, False, False, True),
        (PLATFORM, False, False, False, False, False),
    ]
    [(owner,)] = query(
        database_urls.admin, "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s", database
    )
    assert owner == OWNER


def test_the_owners_new_tables_serve_the_app_which_may_not_truncate_or_make_any(
    database_urls: DatabaseUrls, database: str
) -> None:
    roles_create(admin_url=database_urls.admin, database=database)
    owner, app = (make_conninfo(url, dbname=database) for url in (database_urls.owner, database_urls.app))
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute("CREATE TABLE things (id serial PRIMARY KEY)")
    with psycopg.connect(app, autocommit=True) as connection:
        connection.execute("INSERT INTO things DEFAULT VALUES")
        assert connection.execute("SELECT count(*) FROM things").fetchone() == (1,)
        for forbidden in ("TRUNCATE things", "CREATE TABLE mine ()", "DROP TABLE things", "SET ROLE mirror_owner"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(forbidden.encode())


def test_a_role_that_could_get_around_row_level_security_is_put_right(
    database_urls: DatabaseUrls, database: str
) -> None:
    with psycopg.connect(database_urls.admin, autocommit=True) as admin:
        admin.execute("ALTER ROLE mirror_platform BYPASSRLS LOGIN")
    roles_create(admin_url=database_urls.admin, database=database)
    [row] = query(database_urls.admin, "SELECT rolbypassrls, rolcanlogin FROM pg_roles WHERE rolname = %s", PLATFORM)
    assert row == (False, False)


def test_an_admin_without_superuser_rights_suffices(database_urls: DatabaseUrls, database: str) -> None:
    admin = unique("admin")
    with psycopg.connect(database_urls.admin, autocommit=True) as superuser:
        superuser.execute(
            sql.SQL("CREATE ROLE {} LOGIN CREATEROLE CREATEDB PASSWORD 'pw'").format(sql.Identifier(admin))
        )
        # It did not make the roles here (that is the server's earlier life), so it is let administer them.
        for role in (OWNER, APP, PLATFORM):
            superuser.execute(
                sql.SQL("GRANT {} TO {} WITH ADMIN TRUE").format(sql.Identifier(role), sql.Identifier(admin))
            )
    try:
        url = make_conninfo(database_urls.admin, user=admin, password="pw")
        assert roles_create(admin_url=url, database=database).database == database
        assert roles_create(admin_url=url, database=database).database is None
    finally:
        with psycopg.connect(database_urls.admin, autocommit=True) as superuser:
            superuser.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(database)))
            superuser.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(admin)))
            superuser.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(admin)))


def test_a_password_travels_hashed(servers: Servers, database_urls: DatabaseUrls, database: str) -> None:
    if servers.password is not None:
        pytest.skip("on an outside server the other tests need the roles' passwords as they are")
    roles_create(admin_url=database_urls.admin, database=database, app_password="p'w%1")
    try:
        [(stored,)] = query(database_urls.admin, "SELECT rolpassword FROM pg_authid WHERE rolname = %s", APP)
        assert stored.startswith("SCRAM-SHA-256$")
        roles_create(admin_url=database_urls.admin, database=database)
        [(kept,)] = query(database_urls.admin, "SELECT rolpassword FROM pg_authid WHERE rolname = %s", APP)
        assert kept == stored
    finally:
        with psycopg.connect(database_urls.admin, autocommit=True) as admin:
            admin.execute("ALTER ROLE mirror_app PASSWORD NULL")


def test_a_server_that_does_not_answer_is_one_clear_error() -> None:
    with pytest.raises(RolesNotCreated, match="PostgreSQL refused") as error:
        roles_create(admin_url="postgresql://admin:s3cret@127.0.0.1:1/postgres")
    assert "s3cret" not in str(error.value)


# -- manage.py create_roles ---------------------------------------------------------------------------------------


@pytest.fixture
def urls_of(database_urls: DatabaseUrls, database: str, settings: Any) -> None:
    """Settings that name the database of this test."""
    parts = conninfo_to_dict(database_urls.app)
    assert parts["user"] == APP
    settings.DATABASE_URL = make_conninfo(database_urls.app, dbname=database)
    settings.DATABASE_OWNER_URL = make_conninfo(database_urls.owner, dbname=database)


def create_roles(*arguments: str) -> str:
    out = io.StringIO()
    call_command("create_roles", *arguments, stdout=out)
    return out.getvalue().strip()


@pytest.mark.usefixtures("urls_of")
def test_the_command_says_what_it_made(database_urls: DatabaseUrls, database: str) -> None:
    assert create_roles("--admin-url", database_urls.admin) == f"Made database {database}."
    assert create_roles("--admin-url", database_urls.admin) == "Roles and database are there already."


@pytest.mark.usefixtures("urls_of")
def test_the_command_names_the_setting_that_does_not_fit(database_urls: DatabaseUrls, settings: Any) -> None:
    settings.DATABASE_OWNER_URL = database_urls.owner
    with pytest.raises(CommandError, match="DATABASE_OWNER_URL names database"):
        create_roles("--admin-url", database_urls.admin)
    settings.DATABASE_URL = database_urls.admin
    with pytest.raises(CommandError, match="DATABASE_URL logs in as 'postgres'; let it log in as mirror_app"):
        create_roles("--admin-url", database_urls.admin)
    settings.DATABASE_ADMIN_URL = None
    with pytest.raises(CommandError, match="--admin-url is missing"):
        create_roles()


def test_the_environment_of_the_tests_has_no_servers_of_the_shell() -> None:
    assert not {"DATABASE_URL", "DATABASE_ADMIN_URL", "REDIS_URL", "OPENAI_API_KEY"} & set(os.environ)
