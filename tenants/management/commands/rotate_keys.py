"""`manage.py rotate_keys`: bring stored secrets under the environment's current key."""

from __future__ import annotations

import dataclasses
import json
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import InterfaceError, OperationalError

from tenants.sealing import WrongEncryptionKey
from tenants.selectors.tenants import TenantNotFound, tenant_by_slug
from tenants.services.keys import BATCH, Rotation, RotationRuns, keys_rotate


class Command(BaseCommand):
    help = (
        "Wrap every tenant's data key with MIRROR_ENCRYPTION_KEY. The key before it stands in"
        " MIRROR_ENCRYPTION_KEY_PREVIOUS until this has ended; afterwards nothing needs it. It may run while Mirror"
        " does; interrupted, run it again. Exits with 1 when a secret does not open, and names its place."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--new-data-keys",
            action="store_true",
            help="also make a new data key for each tenant and seal all of its secrets with it",
        )
        parser.add_argument(
            "--min-age-h",
            type=float,
            default=24.0,
            metavar="HOURS",
            help="with --new-data-keys: leave data keys alone that are younger, so that a run can be repeated"
            " (default: 24)",
        )
        parser.add_argument("--tenant", metavar="SLUG", help="this tenant only; former keys stay in use")
        parser.add_argument("--batch", type=int, default=BATCH, help=f"rows in one transaction (default: {BATCH})")
        parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["batch"] < 1:
            raise CommandError("--batch: give 1 or more rows.")
        if options["min_age_h"] < 0:
            raise CommandError("--min-age-h: give 0 or more hours.")
        try:
            tenant_ids = [tenant_by_slug(slug=options["tenant"]).id] if options["tenant"] else None
            rotation = keys_rotate(
                new_data_keys=options["new_data_keys"],
                min_age=timedelta(hours=options["min_age_h"]),
                tenant_ids=tenant_ids,
                batch=options["batch"],
            )
        except TenantNotFound as error:
            raise CommandError(f"--tenant: {error}") from error
        except (WrongEncryptionKey, RotationRuns) as error:
            raise CommandError(str(error)) from error
        except (OperationalError, InterfaceError) as error:
            raise CommandError(
                "The database does not answer. Start Mirror first, or check DATABASE_URL and MIRROR_HOME."
                " What was done so far is kept; run this again."
            ) from error
        self.stdout.write(json.dumps(dataclasses.asdict(rotation)) if options["json"] else _told(rotation))
        if rotation.broken:
            raise CommandError(
                f"{len(rotation.broken)} secrets do not open and were left as they are: {', '.join(rotation.broken)}."
                " Set them anew, then run this again; until then keep MIRROR_ENCRYPTION_KEY_PREVIOUS."
            )


def _told(rotation: Rotation) -> str:
    return (
        f"{rotation.tenants} tenants: {rotation.rewrapped} data keys wrapped anew, {rotation.data_keys_made} made,"
        f" {rotation.data_keys_retired} retired, {rotation.data_keys_deleted} deleted;"
        f" {rotation.resealed} secrets sealed anew; {rotation.second_factors_resealed} second factors sealed anew."
    )
