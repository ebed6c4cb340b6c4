"""Health of a server process: /livez says that it answers, /readyz that it may take calls.

The texts name what to do and never a credential, because a probe's output ends up in other people's dashboards.
"""

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import redis
from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, JsonResponse

from mirror_saas.draining import drain
from tenants.sealing import WrongEncryptionKey
from tenants.services.keys import encryption_key_check

logger = logging.getLogger(__name__)

APP_ROLE = "mirror_app"
BROKER_TIMEOUT_S = 2.0


class NotReady(Exception):
    """A check failed; the text says what to do about it."""


def check_database() -> None:
    """The database answers, to the role mirror_app, which row-level security binds.

    A superuser, a role with BYPASSRLS or the owner of the tables would read every tenant's rows: refused.
    """
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT current_user, rolsuper, rolbypassrls,"
                " EXISTS (SELECT FROM pg_class WHERE relkind = 'r' AND relowner = pg_roles.oid"
                "         AND relnamespace = 'public'::regnamespace)"
                " FROM pg_roles WHERE rolname = current_user"
            )
            role, superuser, bypasses, owns_tables = cursor.fetchone()
    except DatabaseError as error:
        logger.warning("the database does not answer: %s", error)
        raise NotReady("the database does not answer; check DATABASE_URL and that the server runs") from error
    if role != APP_ROLE or superuser or bypasses or owns_tables:
        raise NotReady(
            f"connected as {role!r}, which row-level security does not bind; DATABASE_URL must log in as {APP_ROLE}"
        )


def check_migrations() -> None:
    """Every migration on disk is applied."""
    try:
        executor = MigrationExecutor(connection)
        pending = executor.migration_plan(executor.loader.graph.leaf_nodes())
    except DatabaseError as error:
        raise NotReady("the migrations cannot be read; check DATABASE_URL and that the server runs") from error
    if pending:
        raise NotReady(f"{len(pending)} migrations are not applied; run `manage.py serve --only migrate`")


def check_broker() -> None:
    """Redis or Valkey answers a PING."""
    client = redis.Redis.from_url(
        settings.REDIS_URL, socket_timeout=BROKER_TIMEOUT_S, socket_connect_timeout=BROKER_TIMEOUT_S
    )
    try:
        client.ping()
    except (redis.RedisError, OSError) as error:
        logger.warning("the broker does not answer: %s", type(error).__name__)
        raise NotReady("the broker does not answer; check REDIS_URL and that the server runs") from error
    finally:
        client.close()


def check_journal() -> None:
    """The journal's folder can be written: without it no irreversible tool call can be allowed."""
    folder = Path(settings.MIRROR.journal_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".probe-", dir=folder)
        try:
            os.write(descriptor, b"0")
        finally:
            os.close(descriptor)
            os.unlink(name)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise NotReady(f"the journal folder cannot be written ({reason}); check MIRROR_JOURNAL_DIR") from error


def check_encryption_key() -> None:
    """The environment's key is the one that stored secrets were sealed with."""
    try:
        encryption_key_check()
    except WrongEncryptionKey as error:
        raise NotReady(str(error)) from error
    except (DatabaseError, InterfaceError) as error:
        raise NotReady("the check values of keys cannot be read; check the database and its migrations") from error


def check_draining() -> None:
    """A process that is stopping takes no new calls."""
    if drain.starting:
        raise NotReady("preparing for calls; ready in a moment")
    if drain.draining:
        raise NotReady("this process is stopping")


CHECKS: dict[str, Callable[[], None]] = {
    "draining": check_draining,
    "database": check_database,
    "migrations": check_migrations,
    "encryption_key": check_encryption_key,
    "broker": check_broker,
    "journal": check_journal,
}


def readiness() -> dict[str, str]:
    """Every check's name with `ok` or what is wrong."""
    report: dict[str, str] = {}
    for name, check in CHECKS.items():
        try:
            check()
        except NotReady as error:
            report[name] = str(error)
        else:
            report[name] = "ok"
    return report


def livez(request: HttpRequest) -> JsonResponse:
    """200 as long as the process answers at all."""
    return JsonResponse({"live": True})


def readyz(request: HttpRequest) -> JsonResponse:
    """200 when every check passes, else 503; the body names each check."""
    report = readiness()
    ready = all(text == "ok" for text in report.values())
    return JsonResponse({"ready": ready, "checks": report}, status=200 if ready else 503)
