"""`manage.py api_key`: see a tenant's API keys, make one, revoke one."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from tenants.context import tenant_context
from tenants.models import ApiKey
from tenants.roles import Scope
from tenants.selectors.api_keys import ApiKeyNotFound, api_key_list, api_key_state
from tenants.selectors.tenants import TenantNotFound, tenant_by_slug
from tenants.services.api_keys import MAX_LIFETIME, api_key_create, api_key_revoke

DAYS = 90
_OPTIONS = {"name": "--create", "scopes": "--scope", "expires_at": "--days"}


class Command(BaseCommand):
    help = (
        "List a tenant's API keys, by id: the keys themselves are not kept. With --create: make one and print it, this"
        " once. With --revoke: end one now; the next request with it is refused, on every node."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="SLUG", help="whose keys")
        what = parser.add_mutually_exclusive_group()
        what.add_argument("--create", metavar="NAME", help="make a key, named after what it is for")
        what.add_argument("--revoke", metavar="KEY_ID", type=UUID, help="end this key now, for good")
        parser.add_argument(
            "--scope",
            action="append",
            choices=sorted(Scope.values),
            default=[],
            metavar="SCOPE",
            help=f"what a new key may do, repeatable: {', '.join(sorted(Scope.values))}",
        )
        parser.add_argument(
            "--days",
            type=float,
            default=DAYS,
            metavar="DAYS",
            help="when a new key ends, in days; 0: when it is revoked (default: %(default)g)",
        )
        parser.add_argument("--json", action="store_true", help="print JSON and nothing else")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            tenant = tenant_by_slug(slug=options["tenant"])
            with tenant_context(tenant.id):
                if options["create"] is not None:
                    self._create(options)
                elif options["revoke"] is not None:
                    revoked = api_key_revoke(api_key_id=options["revoke"])
                    self.stdout.write(json.dumps(_shown(revoked)) if options["json"] else f"{revoked.id} is revoked.")
                else:
                    self._list(options["json"])
        except TenantNotFound as error:
            raise CommandError(f"--tenant: {error}") from error
        except ApiKeyNotFound as error:
            raise CommandError(f"--revoke: {options['tenant']} has no such key.") from error

    def _create(self, options: dict[str, Any]) -> None:
        days: float = options["days"]
        if not 0 <= days <= MAX_LIFETIME / timedelta(days=1):
            raise CommandError(f"--days: Give 0 to {MAX_LIFETIME.days}; 0 is a key without an end.")
        try:
            made = api_key_create(
                name=options["create"],
                scopes=options["scope"],
                expires_at=timezone.now() + timedelta(days=days) if days else None,
            )
        except ValidationError as error:
            if not hasattr(error, "error_dict"):
                raise CommandError(" ".join(error.messages)) from error
            raise CommandError(
                " ".join(f"{_OPTIONS[field]}: {' '.join(told)}" for field, told in error.message_dict.items())
            ) from error
        if options["json"]:
            self.stdout.write(json.dumps({**_shown(made.api_key), "key": made.key}))
        else:
            self.stdout.write(f"id          {made.api_key.id}\nkey         {made.key}")

    def _list(self, as_json: bool) -> None:
        rows, cursor = [], None
        while True:
            page = api_key_list(cursor=cursor, limit=200)
            rows += [_shown(api_key) for api_key in page.items]
            cursor = page.next
            if cursor is None:
                break
        if as_json:
            self.stdout.write(json.dumps(rows))
            return
        for row in rows:
            used = row["last_used_at"] and f"used {row['last_used_at']} from {row['last_used_ip'] or 'somewhere'}"
            ends = row["expires_at"] and f"ends {row['expires_at']}"
            told = (row["id"], row["state"], f"mk_{row['prefix']}_…", ",".join(row["scopes"]), row["name"])
            self.stdout.write("  ".join((*told, used or "never used", ends or "never ends")))


def _shown(api_key: ApiKey) -> dict[str, Any]:
    moments = {
        name: moment and moment.isoformat(timespec="seconds")
        for name in ("created_at", "expires_at", "revoked_at", "last_used_at")
        for moment in (getattr(api_key, name),)
    }
    return {
        "id": str(api_key.id),
        "state": api_key_state(api_key, now=timezone.now()),
        "name": api_key.name,
        "prefix": api_key.prefix,
        "scopes": api_key.scopes,
        "created_by": api_key.created_by_label,
        "last_used_ip": api_key.last_used_ip,
        **moments,
    }
