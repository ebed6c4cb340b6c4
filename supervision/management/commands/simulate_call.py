"""`manage.py simulate_call URL`: call a stream or an answer URL as Plivo would, without Plivo."""

import argparse
import sys
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from supervision.plivo.simulator import cli


class Command(BaseCommand):
    help = (
        "Place a simulated call to a stream URL (ws, wss) or an answer URL (http, https) and print its timeline. "
        "Exits 0 when the call completed, 1 when it failed, 2 when the script cannot be used."
    )
    requires_system_checks = ()  # needs no database and no settings

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        epilog = f"scripts: {cli.script_help()}\nswitches for --set:\n{cli.switches_help()}"
        return super().create_parser(
            prog_name, subcommand, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs
        )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("url", metavar="URL", help="stream URL (wss://…/stream/…) or answer URL (https://…/answer)")
        parser.add_argument(
            "--script", type=Path, metavar="FILE", help="what the caller does, as YAML; without it, a short chat"
        )
        parser.add_argument(
            "--set", action="append", default=[], metavar="SWITCH=VALUE", help="how this Plivo behaves; see below"
        )
        parser.add_argument("--json", action="store_true", help="print events as JSON lines, a summary last")
        parser.add_argument("--wav", type=Path, metavar="FILE", help="write what the caller heard")

    def handle(self, *args: Any, **options: Any) -> None:
        sys.exit(
            cli.simulate_call(
                options["url"],
                out=self.stdout,
                errors=self.stderr,
                script_file=options["script"],
                settings=options["set"],
                as_json=options["json"],
                wav_file=options["wav"],
            )
        )
