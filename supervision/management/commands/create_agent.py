"""`manage.py create_agent`: an agent with a live policy and the URLs that Plivo needs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import InterfaceError, OperationalError, transaction

from mirror_saas.demo.seed import demo_judge_get, demo_rules
from supervision.models import ProviderCredential
from supervision.services.agents import SupervisedAgent, supervised_agent_create
from supervision.services.credentials import credential_create
from supervision.services.first_run import NO_API_KEY
from supervision.services.policies import rules_parse
from tenants.context import tenant_context
from tenants.selectors.tenants import TenantNotFound, tenant_by_slug

# Which flag a field of the services came from.
_FLAGS = {
    "name": "--name",
    "upstream_url": "--upstream",
    "rules": "--policies",
    "base_url": "--llm-base-url",
    "model": "--llm-model",
    "api_key": "--llm-api-key",
}


class Command(BaseCommand):
    help = "Make an agent with a live policy in a tenant, and print the URLs for Plivo. Keys are shown this once."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", required=True, metavar="SLUG", help="whose agent it is")
        parser.add_argument("--name", required=True, help="what the agent is called")
        parser.add_argument("--upstream", required=True, metavar="URL", help="the agent's WebSocket, ws:// or wss://")
        parser.add_argument(
            "--policies",
            metavar="FILE",
            type=Path,
            help="rules, one a line; blank lines and lines with # are left out (default: the demo's rules)",
        )
        parser.add_argument(
            "--llm-base-url",
            metavar="URL",
            help="an OpenAI-compatible server that judges, https://api.openai.com/v1 for one (default: the demo's)",
        )
        parser.add_argument("--llm-model", metavar="MODEL", help="the model to ask there")
        parser.add_argument("--llm-api-key", metavar="KEY", help="its API key, if the server wants one")
        parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            made = self._make(options)
        except TenantNotFound as error:
            raise CommandError(f"--tenant: {error}") from error
        except ValidationError as error:
            raise CommandError(_one_line(error.message_dict)) from error
        except (OperationalError, InterfaceError) as error:
            raise CommandError(
                "The database does not answer. Start Mirror first (make run), or check DATABASE_URL and MIRROR_HOME."
            ) from error
        shown = {
            "agent_id": str(made.agent.id),
            "stream_url": made.stream_url,
            "answer_url": made.answer_url,
            "signing_secret": made.signing_secret,
        }
        if options["json"]:
            self.stdout.write(json.dumps(shown))
        else:
            self.stdout.write("\n".join(f"{name:<15} {value}" for name, value in shown.items()))

    def _make(self, options: Mapping[str, Any]) -> SupervisedAgent:
        tenant = tenant_by_slug(slug=options["tenant"])
        with transaction.atomic(), tenant_context(tenant.id):
            return supervised_agent_create(
                tenant=tenant,
                name=options["name"],
                upstream_url=options["upstream"],
                rules=_rules(options["policies"]),
                llm_credential=_judge(options),
                public_url=settings.MIRROR.public_url,
            )


def _rules(path: Path | None) -> list[str]:
    if path is None:
        return demo_rules()
    try:
        rules = rules_parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"--policies: {path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise CommandError(f"--policies: {path} is not UTF-8 text.") from error
    if not rules:
        raise CommandError(f"--policies: {path} has no rules; write one a line.")
    return rules


def _judge(options: Mapping[str, Any]) -> ProviderCredential:
    base_url, model, api_key = options["llm_base_url"], options["llm_model"], options["llm_api_key"]
    if base_url is None and model is None and api_key is None:
        judge = demo_judge_get()
        if judge is None:
            raise CommandError(
                f"--llm-base-url and --llm-model are missing: the tenant {options['tenant']!r} has no demo judge."
            )
        return judge
    for flag, value in (("--llm-base-url", base_url), ("--llm-model", model)):
        if not value:
            raise CommandError(f"{flag} is missing: give the server and the model that judge together.")
    return credential_create(
        name=f"Judge of {options['name'].strip()}"[:200],
        kind=ProviderCredential.Kind.LLM,
        base_url=base_url,
        model=model,
        api_key=api_key or NO_API_KEY,
    )


def _one_line(messages: Mapping[str, Sequence[str]]) -> str:
    return " ".join(f"{_FLAGS.get(field, field)}: {' '.join(texts)}" for field, texts in messages.items())
