"""`manage.py rotate_stream_key`: a new stream key for an agent, while the old one goes on for a time."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from supervision.models import Agent
from supervision.services.agents import ROTATION_OVERLAP, agent_stream_key_rotate, answer_url, stream_url
from tenants.context import tenant_context
from tenants.selectors.tenants import TenantNotFound, tenant_by_slug


class Command(BaseCommand):
    help = (
        "Make a new stream key for an agent and print its URLs, this once. The keys before it work for the overlap,"
        " so that calls go on while the new URLs are entered at Plivo."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="SLUG", help="whose agent it is")
        parser.add_argument("--agent", required=True, metavar="ID", type=UUID, help="the agent's id")
        parser.add_argument(
            "--overlap-h",
            type=float,
            default=ROTATION_OVERLAP / timedelta(hours=1),
            metavar="HOURS",
            help="how long the old keys go on, in hours; 0 ends them now (default: %(default)g)",
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            tenant = tenant_by_slug(slug=options["tenant"])
            with tenant_context(tenant.id):
                made = agent_stream_key_rotate(agent_id=options["agent"], overlap=timedelta(hours=options["overlap_h"]))
        except TenantNotFound as error:
            raise CommandError(f"--tenant: {error}") from error
        except Agent.DoesNotExist as error:
            raise CommandError(f"--agent: {tenant.slug} has no agent {options['agent']}.") from error
        except ValidationError as error:
            raise CommandError(f"--overlap-h: {' '.join(error.message_dict['overlap'])}") from error
        except (OverflowError, ValueError) as error:
            raise CommandError("--overlap-h: Give a number of hours.") from error
        where = {"public_url": settings.MIRROR.public_url, "tenant_slug": tenant.slug, "key": made.key}
        shown = {"stream_url": stream_url(**where), "answer_url": answer_url(**where)}
        if options["json"]:
            self.stdout.write(json.dumps(shown))
        else:
            self.stdout.write("\n".join(f"{name:<11} {value}" for name, value in shown.items()))
