"""PostgreSQL's roles for Mirror, and the database they work in.

| role            | logs in | what for                                                                     |
|-----------------|---------|------------------------------------------------------------------------------|
| mirror_owner    | yes     | owns the database and its tables, migrates                                   |
| mirror_app      | yes     | runs Mirror; owns nothing, and row-level security binds it                   |
| mirror_platform | no      | owns the SECURITY DEFINER look-ups that find the tenant of a key or a person |
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg import sql

OWNER = "mirror_owner"
APP = "mirror_app"
PLATFORM = "mirror_platform"
MIN_SERVER_VERSION = 150_000
# Roles belong to the whole server, so two starts at once must take turns. Any number that is ours will do.
_ADVISORY_LOCK = 7_016_871_034


class RolesNotCreated(RuntimeError):
    """The roles could not be made; the message says what the admin URL lacks."""


@dataclass(frozen=True, slots=True)
class RolesReport:
    """What a run made; both are empty when everything was there already."""

    roles: tuple[str, ...]
    database: str | None


def roles_create(
    *,
    admin_url: str,
    database: str = "mirror",
    owner_password: str | None = None,
    app_password: str | None = None,
) -> RolesReport:
    """Make the three roles and `database`, or bring them into shape; running it again changes nothing.

    `admin_url` logs in to any database of the server as a superuser, or as a role with CREATEROLE and CREATEDB.
    Passwords are set when given, sent as SCRAM hashes; without them a role keeps the one it has.
    Raises RolesNotCreated when the server cannot be reached, is older than PostgreSQL 15, or refuses.
    """
    try:
        with psycopg.connect(admin_url, autocommit=True, connect_timeout=10) as admin:
            if admin.info.server_version < MIN_SERVER_VERSION:
                raise RolesNotCreated(
                    f"PostgreSQL {admin.info.server_version // 10_000} is too old; Mirror needs PostgreSQL 15 or later."
                )
            admin.execute("SELECT pg_advisory_lock(%s)", [_ADVISORY_LOCK])
            try:
                return _create(
                    admin, admin_url, database, passwords={OWNER: owner_password, APP: app_password, PLATFORM: None}
                )
            finally:
                admin.execute("SELECT pg_advisory_unlock(%s)", [_ADVISORY_LOCK])
    except psycopg.Error as error:
        # libpq's messages name host, port and role, never the password.
        raise RolesNotCreated(f"PostgreSQL refused to make Mirror's roles: {str(error).strip()}") from error


def _create(
    admin: psycopg.Connection[tuple[object, ...]],
    admin_url: str,
    database: str,
    *,
    passwords: dict[str, str | None],
) -> RolesReport:
    made = tuple(role for role, password in passwords.items() if _role(admin, role, password))
    # mirror_owner hands its look-ups over to mirror_platform, which takes the right to become it, not its rights.
    _grant_membership(admin, PLATFORM, OWNER)
    if not _one(admin, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
        admin.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(OWNER)))

    name = sql.Identifier(database)
    exists = _one(admin, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = %s)", database)
    if not exists:
        admin.execute(
            sql.SQL("CREATE DATABASE {} OWNER {} ENCODING 'UTF8' TEMPLATE template0").format(
                name, sql.Identifier(OWNER)
            )
        )
    elif _one(admin, "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s", database) != OWNER:
        admin.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(name, sql.Identifier(OWNER)))
    admin.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(name, sql.Identifier(APP)))

    with psycopg.connect(admin_url, dbname=database, autocommit=True, connect_timeout=10) as inside:
        owner, app = sql.Identifier(OWNER), sql.Identifier(APP)
        inside.execute(sql.SQL("GRANT USAGE ON SCHEMA public TO {}, {}").format(app, sql.Identifier(PLATFORM)))
        # Django's own tables (sessions, content types) come from migrations that know nothing of our roles.
        inside.execute(
            sql.SQL(
                "ALTER DEFAULT PRIVILEGES FOR ROLE {} IN SCHEMA public "
                "GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {}"
            ).format(owner, app)
        )
        inside.execute(
            sql.SQL(
                "ALTER DEFAULT PRIVILEGES FOR ROLE {} IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO {}"
            ).format(owner, app)
        )
    return RolesReport(roles=made, database=None if exists else database)


def _role(admin: psycopg.Connection[tuple[object, ...]], role: str, password: str | None) -> bool:
    """Make one role if need be, and take from it what would get around row-level security. True when it was made."""
    name = sql.Identifier(role)
    login = sql.SQL("NOLOGIN" if role == PLATFORM else "LOGIN")
    attributes = admin.execute(
        "SELECT rolsuper, rolbypassrls, rolcanlogin FROM pg_roles WHERE rolname = %s", [role]
    ).fetchone()
    if attributes is None:
        admin.execute(sql.SQL("CREATE ROLE {} {}").format(name, login))
    else:
        superuser, bypass, can_login = attributes
        if superuser or bypass:
            admin.execute(sql.SQL("ALTER ROLE {} NOSUPERUSER NOBYPASSRLS").format(name))
        if can_login != (role != PLATFORM):
            admin.execute(sql.SQL("ALTER ROLE {} {}").format(name, login))
    if password is not None:
        scram = admin.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
        admin.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, sql.Literal(scram)))
    return attributes is None


def _grant_membership(admin: psycopg.Connection[tuple[object, ...]], role: str, member: str) -> None:
    if _one(
        admin,
        "SELECT EXISTS (SELECT FROM pg_auth_members WHERE roleid = %s::regrole AND member = %s::regrole)",
        role,
        member,
    ):
        return
    # PostgreSQL 15 has no INHERIT option of a grant; there mirror_owner inherits the look-ups' read policies.
    options = "WITH INHERIT FALSE, SET TRUE" if admin.info.server_version >= 160_000 else ""
    admin.execute(sql.SQL("GRANT {} TO {} {}").format(sql.Identifier(role), sql.Identifier(member), sql.SQL(options)))


def _one(admin: psycopg.Connection[tuple[object, ...]], query: str, *parameters: object) -> object:
    row = admin.execute(query.encode(), parameters).fetchone()
    return row[0] if row else None
