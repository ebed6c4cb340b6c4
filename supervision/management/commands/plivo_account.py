"""`manage.py plivo_account`: store the auth token of a tenant's Plivo account, see which are stored, forget one."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from supervision.models import ProviderCredential
from supervision.selectors.plivo_accounts import plivo_account_list
from supervision.services.plivo_accounts import plivo_account_remove, plivo_account_save
from tenants.context import tenant_context
from tenants.selectors.tenants import TenantNotFound, tenant_by_slug

_FLAGS = {"auth_id": "--auth-id", "auth_token": "the auth token", "name": "--name"}


class Command(BaseCommand):
    help = (
        "Store the auth token of a tenant's Plivo account, so that Plivo's requests are checked and agents get its"
        " signature. The token is read from standard input (or asked for), and never shown again. Without --auth-id:"
        " list the stored accounts."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="SLUG", help="whose account it is")
        parser.add_argument("--auth-id", metavar="ID", help="the Auth ID of the account (MA…) or sub-account (SA…)")
        parser.add_argument("--name", default="", help="what to call the account in lists")
        # No option takes the token itself: arguments stand in process lists and shell histories.
        parser.add_argument("--token-file", type=Path, metavar="FILE", help="read the token from here instead")
        parser.add_argument("--remove", action="store_true", help="forget the account and its token")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            tenant = tenant_by_slug(slug=options["tenant"])
        except TenantNotFound as error:
            raise CommandError(f"--tenant: {error}") from error
        auth_id = options["auth_id"]
        if auth_id is None:
            if options["remove"]:
                raise CommandError("--auth-id is missing: say which account to forget.")
            with tenant_context(tenant.id):
                accounts = plivo_account_list()
            for account in accounts:
                self.stdout.write(f"{account.auth_id}  {account.updated_at:%Y-%m-%d %H:%M} UTC  {account.name}")
            return
        token = "" if options["remove"] else _token(options["token_file"])
        try:
            with tenant_context(tenant.id):
                if options["remove"]:
                    plivo_account_remove(auth_id=auth_id)
                else:
                    plivo_account_save(auth_id=auth_id, auth_token=token, name=options["name"])
        except ProviderCredential.DoesNotExist as error:
            raise CommandError(f"--auth-id: {error}") from error
        except ValidationError as error:
            shown = (f"{_FLAGS.get(field, field)}: {' '.join(texts)}" for field, texts in error.message_dict.items())
            raise CommandError(" ".join(shown)) from error
        self.stdout.write(f"{auth_id} is {'forgotten' if options['remove'] else 'stored'}.")


def _token(path: Path | None) -> str:
    if path is not None:
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"--token-file: {path} cannot be read.") from error
    if sys.stdin.isatty():
        return getpass.getpass("Plivo auth token: ")
    return sys.stdin.readline()
