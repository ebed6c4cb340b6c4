"""`manage.py openapi`: the API's OpenAPI document, as docs/openapi.json has it."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from mirror_saas import openapi
from mirror_saas.api import api


class Command(BaseCommand):
    help = "Print the API's OpenAPI document. `make openapi` writes it to docs/openapi.json, which reviews look at."
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(openapi.text(api.get_openapi_schema()), ending="")
