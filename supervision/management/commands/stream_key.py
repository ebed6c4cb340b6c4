"""`manage.py stream_key`: see an agent's stream keys, make a new one while the old go on for a time, revoke one."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from supervision.models import Agent, StreamKey
from supervision.selectors.stream_keys import StreamKeyRef, agent_stream_key_list
from supervision.services.agents import (
    ROTATION_OVERLAP,
    agent_stream_key_revoke,
    agent_stream_key_rotate,
    answer_url,
    stream_url,
)
from tenants.context import tenant_context
from tenants.selectors.tenants import TenantNotFound, tenant_by_slug


class Command(BaseCommand):
    help = (
        "List an agent's stream keys, by id: the keys themselves are not kept. With --rotate: make a new one and print"
        " its URLs, this once; the keys before it work for the overlap, so that calls go on while the new URLs are"
        " entered at Plivo. With --revoke: end one now."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="SLUG", help="whose agent it is")
        parser.add_argument("--agent", required=True, metavar="ID", type=UUID, help="the agent's id")
        what = parser.add_mutually_exclusive_group()
        what.add_argument("--rotate", action="store_true", help="make a new key")
        what.add_argument("--revoke", metavar="KEY_ID", type=UUID, help="end this key and its calls now, for good")
        parser.add_argument(
            "--overlap-h",
            type=float,
            default=ROTATION_OVERLAP / timedelta(hours=1),
            metavar="HOURS",
            help="how long the old keys go on after a rotation, in hours; 0 ends them now (default: %(default)g)",
        )
        parser.add_argument("--json", action="store_true", help="print JSON and nothing else")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            tenant = tenant_by_slug(slug=options["tenant"])
            with tenant_context(tenant.id):
                keys = agent_stream_key_list(agent_id=options["agent"])
                if options["rotate"]:
                    self._rotate(tenant.slug, options)
                elif options["revoke"] is not None:
                    self._revoke(options["revoke"], keys)
                else:
                    self._list(keys, options["json"])
        except TenantNotFound as error:
            raise CommandError(f"--tenant: {error}") from error
        except Agent.DoesNotExist as error:
            raise CommandError(f"--agent: {options['tenant']} has no such agent.") from error
        except StreamKey.DoesNotExist as error:
            raise CommandError("--revoke: the agent has no such key.") from error

    def _rotate(self, slug: str, options: dict[str, Any]) -> None:
        try:
            made = agent_stream_key_rotate(agent_id=options["agent"], overlap=timedelta(hours=options["overlap_h"]))
        except ValidationError as error:
            raise CommandError(f"--overlap-h: {' '.join(error.message_dict['overlap'])}") from error
        except (OverflowError, ValueError) as error:
            raise CommandError("--overlap-h: Give a number of hours.") from error
        where = {"public_url": settings.MIRROR.public_url, "tenant_slug": slug, "key": made.key}
        shown = {
            "id": str(made.stream_key.id),
            "stream_url": stream_url(**where),
            "answer_url": answer_url(**where),
        }
        if options["json"]:
            self.stdout.write(json.dumps(shown))
        else:
            self.stdout.write("\n".join(f"{name:<11} {value}" for name, value in shown.items()))

    def _revoke(self, key_id: UUID, keys: list[StreamKeyRef]) -> None:
        if key_id not in {key.id for key in keys}:
            raise StreamKey.DoesNotExist
        agent_stream_key_revoke(stream_key_id=key_id)
        self.stdout.write(f"{key_id} is revoked. Calls that came in with it end within five seconds.")

    def _list(self, keys: list[StreamKeyRef], as_json: bool) -> None:
        rows = [
            {
                "id": str(key.id),
                "state": key.state,
                "created_at": key.created_at.isoformat(timespec="seconds"),
                "expires_at": key.expires_at and key.expires_at.isoformat(timespec="seconds"),
            }
            for key in keys
        ]
        if as_json:
            self.stdout.write(json.dumps(rows))
        else:
            self.stdout.write("\n".join("  ".join(str(value or "") for value in row.values()) for row in rows))
