"""`manage.py create_roles`: make PostgreSQL's roles and database for Mirror."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from psycopg.conninfo import conninfo_to_dict

from tenants.services.roles import APP, OWNER, RolesNotCreated, roles_create


class Command(BaseCommand):
    help = (
        "Make the roles mirror_owner, mirror_app and mirror_platform and the database. Passwords come from "
        "DATABASE_OWNER_URL and DATABASE_URL. Running it again changes nothing."
    )
    # It runs before there is a database to check.
    requires_system_checks: list[str] = []  # noqa: RUF012

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--admin-url",
            default=None,
            help="URL of a role that may make roles and databases; default: DATABASE_ADMIN_URL",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        admin_url = options["admin_url"] or settings.DATABASE_ADMIN_URL
        if not admin_url:
            raise CommandError("--admin-url is missing, and so is DATABASE_ADMIN_URL; give one of them.")
        database, app_password = _login(settings.DATABASE_URL, "DATABASE_URL", APP)
        owner_password = None
        if settings.DATABASE_OWNER_URL:
            owner_database, owner_password = _login(settings.DATABASE_OWNER_URL, "DATABASE_OWNER_URL", OWNER)
            if owner_database != database:
                raise CommandError(
                    f"DATABASE_OWNER_URL names database {owner_database!r}, but DATABASE_URL {database!r}; "
                    "let both name the same one."
                )
        try:
            report = roles_create(
                admin_url=admin_url, database=database, owner_password=owner_password, app_password=app_password
            )
        except RolesNotCreated as error:
            raise CommandError(str(error)) from error
        made = [f"role {role}" for role in report.roles]
        if report.database:
            made.append(f"database {report.database}")
        self.stdout.write("Made " + ", ".join(made) + "." if made else "Roles and database are there already.")


def _login(url: str, name: str, role: str) -> tuple[str, str | None]:
    """Database and password of `url`, which has to log in as `role`."""
    login = conninfo_to_dict(url)
    if login.get("user") != role:
        raise CommandError(f"{name} logs in as {login.get('user')!r}; let it log in as {role}.")
    database = login.get("dbname")
    if not database:
        raise CommandError(f"{name} names no database; end it with /mirror, for example.")
    password = login.get("password")
    return str(database), str(password) if password else None
