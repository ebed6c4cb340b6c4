"""`manage.py create_tenant`: a tenant with an owner who can sign in, and an API key."""

from __future__ import annotations

import json
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import InterfaceError, OperationalError

from tenants.services.tenants import tenant_with_owner_create


class Command(BaseCommand):
    help = "Make a tenant with an owner and an API key, and print them. Password and key are shown this once."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--slug", required=True, help="its name in URLs: a-z, 0-9 and -")
        parser.add_argument("--name", required=True, help="what people call it")
        parser.add_argument("--email", required=True, help="the owner's; an account that exists keeps its password")
        parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            made = tenant_with_owner_create(slug=options["slug"], name=options["name"], email=options["email"])
        except ValidationError as error:
            told = " ".join(f"--{field}: {' '.join(texts)}" for field, texts in error.message_dict.items())
            raise CommandError(told) from error
        except (OperationalError, InterfaceError) as error:
            raise CommandError(
                "The database does not answer. Start Mirror first, or check DATABASE_URL and MIRROR_HOME."
            ) from error
        shown = {
            "console_url": f"{settings.MIRROR.public_url}/",
            "tenant": made.tenant.slug,
            "email": made.email,
            "password": made.password,
            "api_key": made.api_key,
        }
        if options["json"]:
            self.stdout.write(json.dumps(shown))
            return
        shown["password"] = made.password or "(unchanged)"
        self.stdout.write("\n".join(f"{name:<12} {value}" for name, value in shown.items()))
