"""`manage.py check_templates`: compile every template, so that a typo fails `make check` and not a page."""

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.template import TemplateSyntaxError
from django.template.loader import get_template
from django.template.utils import get_app_template_dirs


class Command(BaseCommand):
    help = "Compile every template of Mirror's apps; fails with a list of those that do not compile."
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        names = template_names([Path(folder) for folder in get_app_template_dirs("templates")])
        broken = []
        for name in names:
            try:
                get_template(name)
            except TemplateSyntaxError as error:
                broken.append(f"{name}: {error}")
        if broken:
            raise CommandError("Templates that do not compile:\n" + "\n".join(broken))
        self.stdout.write(f"{len(names)} templates compile.")


def template_names(folders: list[Path]) -> list[str]:
    """Names, as `get_template` takes them, of the files under those of `folders` that are ours."""
    root = Path(__file__).resolve().parents[3]
    ours = [folder for folder in folders if folder.is_relative_to(root) and ".venv" not in folder.parts]
    return sorted({str(path.relative_to(folder)) for folder in ours for path in folder.rglob("*") if path.is_file()})
