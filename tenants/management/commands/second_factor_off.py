"""`manage.py second_factor_off`: let somebody in who lost their authenticator app and their recovery codes."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import InterfaceError, OperationalError

from tenants.models import User
from tenants.services.second_factor import SecondFactorOff, second_factor_off


class Command(BaseCommand):
    help = "Turn off the second factor of a person who lost it. Make sure first that it is them who ask."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--email", required=True, help="what the person signs in with")

    def handle(self, *args: Any, **options: Any) -> None:
        email = options["email"].strip().lower()
        try:
            second_factor_off(user=User.objects.get(email=email))
        except User.DoesNotExist as error:
            raise CommandError(f"--email: nobody signs in with {email!r}.") from error
        except SecondFactorOff as error:
            raise CommandError(f"--email: {email} has no second factor.") from error
        except (OperationalError, InterfaceError) as error:
            raise CommandError(
                "The database does not answer. Start Mirror first, or check DATABASE_URL and MIRROR_HOME."
            ) from error
        self.stdout.write(f"{email} signs in with the password alone now.")
