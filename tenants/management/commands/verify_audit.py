"""`manage.py verify_audit`: check the audit log's hash chain, in the database or in an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import InterfaceError, OperationalError

from tenants.audit_chain import AuditVerification, ChainPoint, ExportUnreadable, export_verify
from tenants.context import tenant_context
from tenants.selectors.tenants import TenantNotFound, TenantRef, tenant_by_slug, tenant_current, tenant_ids_list
from tenants.services.audit import auditevents_verify


class Command(BaseCommand):
    help = (
        "Check that every event of the audit log is there, unchanged and in its place; of every tenant, of one, or of"
        " an exported file, for which no database is needed. Exits with 1 when one is not."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        which = parser.add_mutually_exclusive_group()
        which.add_argument("--tenant", metavar="SLUG", help="this tenant only")
        which.add_argument("--file", metavar="FILE", type=Path, help="an export of GET /api/v1/audit-events/export")
        parser.add_argument(
            "--expect",
            metavar="SEQ:HASH",
            help="an event that an earlier run printed as the head; without it, a log that was cut off at its end or"
            " written anew as a whole looks right",
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object a line and nothing else")

    def handle(self, *args: Any, **options: Any) -> None:
        expected = None
        if options["expect"]:
            if not options["tenant"] and not options["file"]:
                raise CommandError("--expect: say whose log with --tenant or --file.")
            try:
                expected = ChainPoint.parse(options["expect"])
            except ValueError as error:
                raise CommandError("--expect: give SEQ:HASH as this command prints it.") from error
        if options["file"] is not None:
            self._tell(str(options["file"]), _file(options["file"], expected), as_json=options["json"])
            return
        try:
            wrong = [
                tenant.slug
                for tenant in _tenants(options["tenant"])
                if not self._tell(tenant.slug, _log(tenant, expected), as_json=options["json"], fail=False)
            ]
        except TenantNotFound as error:
            raise CommandError(f"--tenant: {error}") from error
        except (OperationalError, InterfaceError) as error:
            raise CommandError(
                "The database does not answer. Start Mirror first, or check DATABASE_URL and MIRROR_HOME."
            ) from error
        if wrong:
            raise CommandError(f"The audit log is not as it was written: {', '.join(wrong)}.")

    def _tell(self, whose: str, found: AuditVerification, *, as_json: bool, fail: bool = True) -> bool:
        told = f"{whose}: {found.count} events are right"
        told += f", head {found.head}." if found.head is not None else "."
        if found.problem is not None:
            told += f" Event {found.problem.seq}: {found.problem.what}"
        if as_json:
            told = json.dumps(
                {
                    "log": whose,
                    "valid": found.valid,
                    "count": found.count,
                    "head": str(found.head) if found.head else None,
                    "problem_seq": found.problem.seq if found.problem else None,
                    "problem": found.problem.what if found.problem else None,
                }
            )
        self.stdout.write(told)
        if not found.valid and fail:
            raise CommandError(f"{whose} is not as it was written.")
        return found.valid


def _tenants(slug: str | None) -> list[TenantRef]:
    if slug:
        return [tenant_by_slug(slug=slug)]
    tenants = []
    for tenant_id in tenant_ids_list():
        with tenant_context(tenant_id):
            tenants.append(tenant_current())
    return tenants


def _log(tenant: TenantRef, expected: ChainPoint | None) -> AuditVerification:
    with tenant_context(tenant.id):
        return auditevents_verify(expected=expected)


def _file(path: Path, expected: ChainPoint | None) -> AuditVerification:
    try:
        with path.open(encoding="utf-8") as lines:
            return export_verify(lines, expected=expected)
    except OSError as error:
        raise CommandError(f"--file: {path} cannot be read ({error.strerror}).") from error
    except (UnicodeDecodeError, ExportUnreadable) as error:
        raise CommandError(f"--file: {error}") from error
