"""`manage.py measure_storage`: count anew what the record of calls takes."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import InterfaceError, OperationalError

from supervision.services.storage import storage_measure
from tenants.context import tenant_context
from tenants.limits import MIB
from tenants.selectors.tenants import TenantNotFound, tenant_by_slug, tenant_ids_list


class Command(BaseCommand):
    help = (
        "Measure what the record of every tenant's calls takes, or of one tenant's, and correct the number that its"
        " storage limit is compared with. Reads every event; calls go on meanwhile, and what they store until it has"
        " ended may be missing from the new number."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", metavar="SLUG", help="this tenant only")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            slug = options["tenant"]
            for tenant_id in [tenant_by_slug(slug=slug).id] if slug else tenant_ids_list():
                with tenant_context(tenant_id):
                    measured = storage_measure()
                self.stdout.write(f"{slug or tenant_id}: {measured / MIB:.3f} MiB")
        except TenantNotFound as error:
            raise CommandError(f"--tenant: {error}") from error
        except (OperationalError, InterfaceError) as error:
            raise CommandError(
                "The database does not answer. Start Mirror first, or check DATABASE_URL and MIRROR_HOME."
            ) from error
