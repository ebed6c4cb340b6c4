"""`manage.py audit_isolation`: ask PostgreSQL whether it keeps the tenants apart."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError

from tenants.isolation import connection_findings, isolation_audit


class Command(BaseCommand):
    help = (
        "Look at every table, policy, index, key, function and role in PostgreSQL's catalogue, and say what could let"
        " one tenant reach another's rows. Exits with 1 on a finding. Changes nothing."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            report = isolation_audit()
            findings = [*connection_findings(), *report.findings]
        except (DatabaseError, InterfaceError) as error:
            raise CommandError(
                "The catalogue cannot be read. Start Mirror first, or check DATABASE_URL and MIRROR_HOME."
            ) from error
        if options["json"]:
            told = {
                "tables": report.tables,
                "functions": report.functions,
                "findings": [dataclasses.asdict(finding) for finding in findings],
            }
            self.stdout.write(json.dumps(told))
        else:
            bad = {finding.subject for finding in findings}
            for name in (*report.tables, *report.functions):
                self.stdout.write(f"{'FINDING' if name in bad else 'ok':<8} {name}")
            for finding in findings:
                self.stdout.write(str(finding))
        if findings:
            raise CommandError(f"{len(findings)} findings: tenants are not kept apart as they should be.")
        if not options["json"]:
            self.stdout.write(
                f"{len(report.tables)} tenant tables and {len(report.functions)} look-ups: PostgreSQL keeps the tenants"
                " apart."
            )
