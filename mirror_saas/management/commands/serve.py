"""`manage.py serve`: the one way to start Mirror's processes."""

import asyncio
import logging
import os
import sys
from argparse import ArgumentParser
from typing import Any
from urllib.parse import unquote, urlsplit

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, InterfaceError, connection

from mirror_saas.env import Environment
from mirror_saas.processes import ProcessGroup
from mirror_saas.stack import StackError, beat_spec, manage, migrate_spec, stack_run, web_spec, worker_spec

logger = logging.getLogger(__name__)

SERVERS = ("daphne", "uvicorn")
PARTS = ("all", "web", "stream", "worker", "beat", "migrate")


class Command(BaseCommand):
    help = (
        "Start Mirror: console, API and calls on one server, a Celery worker and beat; with no DATABASE_URL and"
        " REDIS_URL also PostgreSQL and Valkey. Migrates first. --only runs one process in the foreground."
    )
    # Each process checks what it needs itself, and a start must not wait for the database.
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--only",
            choices=PARTS,
            help="run one process: web (console, API), stream (calls), all (both on one server), worker, beat;"
            " or migrate, which makes the database roles (with DATABASE_ADMIN_URL), migrates and ends",
        )
        parser.add_argument(
            "--stream-only",
            action="store_const",
            const="stream",
            dest="only",
            help="the same as --only stream: a node that carries calls and nothing else",
        )
        parser.add_argument(
            "--server",
            choices=SERVERS,
            default=SERVERS[0],
            help="what a process of calls runs on: daphne, or uvicorn, which needs less CPU for each call"
            " (pip install 'mirror[uvicorn]')",
        )
        parser.add_argument("--no-migrate", action="store_true", help="do not migrate before starting")

    def handle(self, *args: Any, **options: Any) -> None:
        environment: Environment = settings.MIRROR
        if options["server"] != SERVERS[0] and options["only"] != "stream":
            raise CommandError(
                f"--server {options['server']} goes with --stream-only: it serves calls, not the console."
            )
        try:
            match options["only"]:
                case None:
                    self._everything(environment, migrate=not options["no_migrate"])
                case "all" | "web" | "stream" as part:
                    encryption_key_require()
                    self._server(environment, part, options["server"])
                case "worker":
                    encryption_key_require()
                    _exec_celery(
                        "worker", "--concurrency=2", "--hostname=mirror@%h", "--without-gossip", "--without-mingle"
                    )
                case "beat":
                    encryption_key_require()
                    # Beat keeps its schedule's times there, and may be the first to start in it.
                    environment.home.mkdir(parents=True, exist_ok=True)
                    _exec_celery("beat", "--pidfile=")
                case "migrate":
                    migrate_exec()
        except StackError as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            sys.exit(130)

    def _everything(self, environment: Environment, *, migrate: bool) -> None:
        env = {"MIRROR_HOME": str(environment.home)}

        async def body(group: ProcessGroup) -> None:
            if migrate:
                await group.run(migrate_spec(env))
            await group.start(web_spec(environment, env), worker_spec(env), beat_spec(env))
            self._write(f"Mirror runs: {environment.public_url}/")

        stack_run(environment, body, write=self._write)

    def _server(self, environment: Environment, part: Any, server: str) -> None:
        if part != "stream":
            console_prepare()
        from mirror_saas.asgi import application
        from mirror_saas.serving import ListenError, server_run
        from supervision.services.judging import judging_close
        from supervision.stream.runtime import stream_runtime_close, stream_runtime_open

        run = server_run
        if server == "uvicorn":
            try:
                from mirror_saas.uvicorn_serving import uvicorn_run as run
            except ImportError as error:
                raise CommandError(f"{error}; install it with: pip install 'mirror[uvicorn]'") from error
        calls = part in ("all", "stream")

        async def on_stop() -> None:
            # A console without calls of Plivo's may have carried test calls.
            await stream_runtime_close()
            await asyncio.to_thread(judging_close)

        try:
            run(
                application,
                host=environment.bind,
                port=environment.port,
                part=part,
                drain_s=environment.drain_s,
                accept_s=environment.drain_accept_s,
                on_start=stream_runtime_open if calls else None,
                on_stop=on_stop,
                trusted_proxies=environment.trusted_proxies,
            )
        except ListenError as error:
            raise CommandError(str(error)) from error

    def _write(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()


def console_prepare() -> None:
    """Collect the console's static files, and say so when those of others, which `make` fetches, are missing."""
    from mirror_saas.static_files import static_collect
    from webui.vendor import MISSING, vendor_files_present

    static_collect()
    if not vendor_files_present():
        logger.warning(MISSING)


def encryption_key_require() -> None:
    """End the start with one clear line when MIRROR_ENCRYPTION_KEY does not open what is stored.

    A start does not wait for the database: while that is down or not migrated, /readyz says so, and checks the key
    once it answers.
    """
    from tenants.sealing import WrongEncryptionKey
    from tenants.services.keys import encryption_key_check

    try:
        encryption_key_check()
    except WrongEncryptionKey as error:
        raise CommandError(str(error)) from error
    except (DatabaseError, InterfaceError) as error:
        logger.warning("the encryption key is not checked yet, the database does not answer: %s", type(error).__name__)
    finally:
        connection.close()


def migrate_exec() -> None:
    """Make the roles where we may, then become `manage.py migrate` as the owner. Does not return."""
    from tenants.services.roles import RolesNotCreated, roles_create

    if settings.DATABASE_ADMIN_URL:
        try:
            roles_create(
                admin_url=settings.DATABASE_ADMIN_URL,
                database=database_name(settings.DATABASE_URL),
                owner_password=url_password(settings.DATABASE_OWNER_URL or ""),
                app_password=url_password(settings.DATABASE_URL),
            )
        except RolesNotCreated as error:
            raise CommandError(str(error)) from error
    command = manage("migrate", "--no-input", "--skip-checks")
    os.execve(command[0], command, {**os.environ, "MIRROR_DATABASE_ROLE": "owner"})  # noqa: S606  (no shell wanted)


def url_password(url: str) -> str | None:
    """The password in a database URL, decoded."""
    password = urlsplit(url).password
    return unquote(password) if password else None


def database_name(url: str) -> str:
    """The database that a URL names; `mirror` when it names none."""
    return unquote(urlsplit(url).path.strip("/")) or "mirror"


def _exec_celery(kind: str, *arguments: str) -> None:
    """Become Celery's own process, so that signals reach it and nothing else."""
    command = (
        sys.executable,
        "-m",
        "celery",
        "--quiet",
        "--app=mirror_saas.celery",
        kind,
        f"--loglevel={settings.MIRROR.log_level}",
        *arguments,
    )
    os.execv(command[0], command)  # noqa: S606  (no shell wanted)
