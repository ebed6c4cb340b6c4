"""Static files are collected when a server starts, under names with a hash of their content."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.staticfiles.storage import staticfiles_storage
from django.templatetags.static import static
from django.test import override_settings

from mirror_saas import static_files
from mirror_saas.static_files import static_collect

HASHED = re.compile(r"\.[0-9a-f]{12}\.\w+$")
# How our style sheets and modules name one another.
REFERENCE = re.compile(r"""(?:(?:import|export)[^;"']*?["']|import\(["']|url\(["']?)(\.{1,2}/[^"')]+)""")


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("static") / "files"
    with override_settings(STATIC_ROOT=str(root)):
        assert static_collect()
    return root


@pytest.fixture
def root(collected: Path) -> Iterator[Path]:
    """The folder as a process that starts now finds it."""
    with override_settings(STATIC_ROOT=str(collected)):
        yield collected


def test_pages_name_files_by_their_content(root: Path) -> None:
    url = static("webui/css/tokens.css")
    assert HASHED.search(url)
    served = root / url.removeprefix("/static/")
    assert "light-dark(" in served.read_text()
    assert served.with_name(served.name + ".gz").stat().st_size < served.stat().st_size / 2


def test_modules_load_one_another_by_those_names(root: Path) -> None:
    storage: Any = staticfiles_storage
    seen = 0
    for name, hashed in storage.hashed_files.items():
        if not name.startswith("webui/") or not name.endswith((".js", ".css")) or "/vendor/" in name:
            continue
        file = root / hashed
        for reference in REFERENCE.findall(file.read_text()):
            assert HASHED.search(reference), f"{name} loads {reference}"
            assert (file.parent / reference).resolve().is_file(), f"{name} loads {reference}"
            seen += 1
    assert seen > 8


def test_what_has_not_changed_is_not_collected_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(static_files, "call_command", lambda name, **options: asked.append(name))
    assert not static_collect()
    assert asked == []
    before = static_files.sources_fingerprint()
    changed = Path(static_files.__file__).parents[1] / "webui" / "static" / "webui" / "favicon.svg"
    real = Path.stat

    def touched(self: Path, **options: Any) -> Any:
        found = real(self, **options)
        return os.stat_result((*found[:8], found.st_mtime + 1, found.st_ctime)) if self == changed else found

    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", touched)
        assert static_files.sources_fingerprint() != before
    (root / ".sources").unlink()
    assert static_collect()
    assert asked == ["collectstatic"]


def test_open_pages_find_what_they_name_for_a_week(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_files, "call_command", lambda name, **options: None)
    folder = root / "webui" / "css"
    old, recent = folder / "tokens.000000000000.css", folder / "tokens.111111111111.css"
    for file in (old, recent):
        file.write_text("")
    current = root / static("webui/css/tokens.css").removeprefix("/static/")
    for file, age_s in ((old, 8 * 24 * 3600), (recent, 6 * 24 * 3600), (current, 30 * 24 * 3600)):
        os.utime(file, (0, time.time() - age_s))
    (root / ".sources").unlink()
    assert static_collect()
    assert [file.exists() for file in (old, recent, current)] == [False, True, True]
    recent.unlink()


def test_what_was_not_collected_is_served_by_its_plain_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    with override_settings(STATIC_ROOT=str(tmp_path / "file" / "static")):
        with caplog.at_level(logging.WARNING):
            assert not static_collect()
        assert "cannot be written (Not a directory)" in caplog.text
        assert static("webui/css/tokens.css") == "/static/webui/css/tokens.css"


def test_a_manifest_of_a_killed_process_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "staticfiles.json").write_text('{"paths": {"webui/css/tok')
    with override_settings(STATIC_ROOT=str(tmp_path)):
        assert static("webui/css/tokens.css") == "/static/webui/css/tokens.css"
