"""Static files under names that carry a hash of their content, so that browsers keep them and never show an old one.

`manage.py serve` collects them when it starts and something has changed, compressed as well. A file that was not
collected is served from its package by its plain name, so that a process that cannot write has a console all the same.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import time
from pathlib import Path
from typing import Any, Final

import django
from django.conf import settings
from django.contrib.staticfiles import finders
from django.contrib.staticfiles.storage import HashedFilesMixin
from django.core.management import call_command
from servestatic.storage import CompressedManifestStaticFilesStorage

logger = logging.getLogger(__name__)

# Of the API's documentation: what it does not load.
IGNORED: Final = ["*.map", "redoc*"]
# Pages that are open may still load what was collected before.
KEPT_S: Final = 7 * 24 * 3600
_SOURCES: Final = ".sources"
_LOCK: Final = ".lock"


class HashedStorage(CompressedManifestStaticFilesStorage):  # type: ignore[misc]
    """Files with hashes in their names, and in the names by which our style sheets and modules load one another."""

    # Ours alone: others' bundles are whole, and searching megabytes of them for imports takes long.
    patterns = (
        ("webui/*.css", HashedFilesMixin.patterns[0][1]),
        ("webui/*.js", HashedFilesMixin._js_module_import_aggregation_patterns[1]),  # type: ignore[attr-defined]
    )

    def stored_name(self, name: str) -> str:
        return str(self.hashed_files.get(self.hash_key(self.clean_name(name)), name))

    def load_manifest(self) -> tuple[dict[str, str], str]:
        try:
            loaded: tuple[dict[str, str], str] = super().load_manifest()
        except (ValueError, OSError):
            # Half written by a process that was killed, and collected anew by the next start; or not to be had at all.
            return {}, ""
        return loaded


def static_collect() -> bool:
    """Collect the static files into STATIC_ROOT unless they are there as they are now. Returns whether they were not.

    Processes that start together wait for the first of them. To be called before a page is rendered.
    """
    root = Path(settings.STATIC_ROOT)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return _collect(root)
    except OSError as error:
        logger.warning("static files are served without hashes: %s cannot be written (%s)", root, error.strerror)
        return False


def _collect(root: Path) -> bool:
    sources = root / _SOURCES
    fingerprint = sources_fingerprint()
    if sources.exists() and sources.read_text() == fingerprint:
        return False
    sources.unlink(missing_ok=True)
    call_command("collectstatic", interactive=False, verbosity=0, ignore_patterns=IGNORED)
    _forget_old(root)
    sources.write_text(fingerprint)
    return True


def sources_fingerprint() -> str:
    """What tells that no static file of any package has changed: their names, sizes and times, and who hashes them."""
    digest = hashlib.sha256(f"{django.get_version()} {HashedStorage.__module__} 1\n".encode())
    for name, path in sorted(_sources()):
        stat = Path(path).stat()
        digest.update(f"{name}\0{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _sources() -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for finder in finders.get_finders():
        listed: Any = finder.list(IGNORED)
        for name, storage in listed:
            found.setdefault(name, storage.path(name))
    return list(found.items())


def _forget_old(root: Path) -> None:
    """Delete what was collected long ago and is not served any more."""
    from django.contrib.staticfiles.storage import staticfiles_storage

    storage: Any = staticfiles_storage
    current = {str(root / name) for name in storage.hashed_files.values()}
    oldest = time.time() - KEPT_S
    for path in root.rglob("*"):
        base = str(path).removesuffix(".gz")
        ours = base in current or path.name in (_SOURCES, _LOCK, storage.manifest_name)
        if path.is_file() and not ours and path.stat().st_mtime < oldest:
            path.unlink()
