"""`manage.py agent_headers`: the headers that Mirror dials an agent with, such as a login."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from supervision.models import Agent
from supervision.services.agents import agent_headers_update
from tenants.context import tenant_context
from tenants.selectors.tenants import TenantNotFound, tenant_by_slug


class Command(BaseCommand):
    help = (
        "Replace the headers that Mirror dials an agent with. They are read from standard input, one `Name: value` a"
        " line, stored sealed, and never shown again; empty input takes them all away."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="SLUG", help="whose agent it is")
        parser.add_argument("--agent", required=True, metavar="ID", type=UUID, help="the agent's id")
        # No option takes a header: arguments stand in process lists and shell histories.
        parser.add_argument("--file", type=Path, metavar="FILE", help="read the headers from here instead")

    def handle(self, *args: Any, **options: Any) -> None:
        headers = _headers(_text(options["file"]))
        try:
            tenant = tenant_by_slug(slug=options["tenant"])
            with tenant_context(tenant.id):
                agent = Agent.objects.get(id=options["agent"], archived_at=None)
                agent_headers_update(agent=agent, headers=headers)
        except TenantNotFound as error:
            raise CommandError(f"--tenant: {error}") from error
        except Agent.DoesNotExist as error:
            raise CommandError(f"--agent: {options['tenant']} has no such agent.") from error
        except ValidationError as error:
            raise CommandError(" ".join(error.message_dict["headers"])) from error
        self.stdout.write(f"Stored: {', '.join(headers)}." if headers else "The agent is dialled without headers.")


def _text(path: Path | None) -> str:
    if path is None:
        return sys.stdin.read()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--file: {path} cannot be read.") from error


def _headers(text: str) -> dict[str, str]:
    headers: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        name, colon, value = line.partition(":")
        if not colon:
            raise CommandError(f"Line {number} is no header; write `Name: value`.")
        if name in headers:
            raise CommandError(f"Line {number} gives a header that was given before.")
        headers[name] = value.strip()
    return headers
