"""`manage.py export_tenant`: everything that a tenant has, as JSON lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import InterfaceError, OperationalError, transaction

from tenants.context import tenant_context
from tenants.selectors.tenants import TenantNotFound, tenant_by_slug
from tenants.services.audit import auditevent_record
from tenants.services.export import snapshot_begin, tenant_export_lines


class Command(BaseCommand):
    help = (
        "Write everything that a tenant has, as of one moment: a line of JSON for each row, with its table. Secrets,"
        " which are sealed or hashed, are left out. The audit log notes it."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", metavar="SLUG", required=True, help="whose rows")
        parser.add_argument(
            "--output", metavar="FILE", help="a new file that only you may read; standard output without it"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            tenant = tenant_by_slug(slug=options["tenant"])
            with _opened(options["output"], self.stdout) as output:
                with tenant_context(tenant.id):
                    auditevent_record(action="tenant.export", object_id=tenant.id, object_label=tenant.slug)
                number = 0
                with transaction.atomic(durable=True):
                    snapshot_begin()
                    with tenant_context(tenant.id):
                        for line in tenant_export_lines():
                            output.write(line)
                            number += 1
        except TenantNotFound as error:
            raise CommandError(f"--tenant: {error}") from error
        except OSError as error:
            raise CommandError(f"--output: {options['output']} cannot be written ({error.strerror}).") from error
        except (OperationalError, InterfaceError) as error:
            raise CommandError(
                "The database does not answer. Start Mirror first, or check DATABASE_URL and MIRROR_HOME."
            ) from error
        print(f"{number} rows of {tenant.slug}", file=sys.stderr)


@contextmanager
def _opened(path: str | None, stdout: Any) -> Iterator[IO[str]]:
    if path is None:
        # Without the command's own ending of lines.
        yield stdout._out if hasattr(stdout, "_out") else stdout
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        yield file
