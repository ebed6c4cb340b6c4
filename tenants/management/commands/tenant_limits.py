"""`manage.py tenant_limits`: what a tenant may use, what it uses, and changing the former."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import InterfaceError, OperationalError

from mirror_saas.limits import Limits, limit_parse, limit_text
from tenants.context import tenant_context
from tenants.limits import NAMES
from tenants.limits_refused import Refused
from tenants.models import TenantLimits
from tenants.selectors.limits import Use, tenant_limits_get, tenant_use_get
from tenants.selectors.tenants import TenantNotFound, tenant_by_slug
from tenants.services.limits import OwnerUnknown, as_owner, tenant_limits_update

DEFAULT = "default"
_WHAT = {
    "calls": "calls at the same time, over all nodes",
    "judge_calls": "questions to the judge at the same time, in each process",
    "requests_per_minute": "requests a minute to the API, of all keys and people together",
    "key_requests_per_minute": "requests a minute to the API, of each key and each person",
    "storage_mib": "MiB that the record of calls may take",
}


class Command(BaseCommand):
    help = (
        "Print what a tenant may use and what it uses; with options, change what it may. Tenants cannot change their"
        " limits themselves: this writes as mirror_owner (DATABASE_OWNER_URL). A change counts within ten seconds, for"
        " calls from the next one on."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("slug", metavar="SLUG", help="the tenant")
        for name in NAMES:
            parser.add_argument(
                f"--{name.replace('_', '-')}",
                dest=name,
                metavar="N",
                help=f"{_WHAT[name]}: a number, 'unlimited', or 'default' for the installation's",
            )
        parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")

    def handle(self, *args: Any, **options: Any) -> None:
        changed = {name: _limit(name, options[name]) for name in NAMES if options[name] is not None}
        try:
            tenant = tenant_by_slug(slug=options["slug"])
            if changed:
                with as_owner(), tenant_context(tenant.id):
                    tenant_limits_update(changed=changed)
            with tenant_context(tenant.id):
                row = TenantLimits.objects.first()
                limits, use = tenant_limits_get(), tenant_use_get()
        except TenantNotFound as error:
            raise CommandError(str(error)) from error
        except OwnerUnknown as error:
            raise CommandError(str(error)) from error
        except (OperationalError, InterfaceError) as error:
            raise CommandError(
                "The database does not answer. Start Mirror first, or check DATABASE_URL, DATABASE_OWNER_URL and"
                " MIRROR_HOME."
            ) from error
        if options["json"]:
            used = dataclasses.asdict(use) | {"storage_mib": use.storage_mib}
            told = {"tenant": tenant.slug, "limits": dataclasses.asdict(limits), "use": used}
            self.stdout.write(json.dumps(told))
            return
        self._tell(limits, use, row)

    def _tell(self, limits: Limits, use: Use, row: TenantLimits | None) -> None:
        used = {
            "calls": _number(use.calls),
            "requests_per_minute": _number(use.requests_per_minute),
            "storage_mib": f"{use.storage_mib:.3f}",
        }
        for name in NAMES:
            limit = limit_text(getattr(limits, name))
            whose = "" if getattr(row, name, None) is not None else f" ({DEFAULT})"
            now = f", now {used[name]}" if name in used else ""
            self.stdout.write(f"{name}: {limit}{whose}{now}")
        for kind in Refused:
            today, days = use.refused_today.get(kind, 0), use.refused_30_days.get(kind, 0)
            if days:
                self.stdout.write(f"refused by {kind}: {today} today, {days} in 30 days")


def _limit(name: str, text: str) -> int | None:
    if text.strip().lower() == DEFAULT:
        return None
    try:
        limit = limit_parse(text)
    except ValueError as error:
        raise CommandError(f"--{name.replace('_', '-')}: {error}, or {DEFAULT}.") from error
    return TenantLimits.UNLIMITED if limit is None else limit


def _number(value: int | None) -> str:
    return "unknown (Valkey does not answer)" if value is None else str(value)
