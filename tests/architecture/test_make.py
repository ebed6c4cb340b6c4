"""`make run` on a machine that lacks something says so in one line; the machine's lacks are played by stand-ins."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OLD_PYTHON = '#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.18" && exit 0\nexit 1\n'
# New enough, with a disk as large as FREE says; "-m venv" makes a python that fails to install as REASON says.
PYTHON = """#!/bin/sh
case "$*" in
    *ensurepip*) exit ${NO_VENV:-0} ;;
    *disk_usage*) echo "${FREE:-99999}" ;;
    *--version*) echo "Python 3.12.1" ;;
    *"-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
    *"pip install"*) echo "$REASON" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with what `make` reads before it installs anything."""
    for name in ("Makefile", "scripts/preflight", "requirements/run.txt", "requirements/dev.txt"):
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, target)
    return tmp_path


def make(clone: Path, script: str, **environment: str) -> list[str]:
    """What `make run` prints with an interpreter that is `script`; it has to fail."""
    python = clone / "python"
    python.write_text(script)
    python.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "run", f"PYTHON={python}"],
        cwd=clone,
        env={**kept, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode != 0
    return [line for line in done.stdout.splitlines() if line.startswith("make: ") and "***" not in line]


def test_an_old_python_is_named_with_its_version(clone: Path) -> None:
    (line,) = make(clone, OLD_PYTHON)
    assert "Python 3.9.18" in line
    assert "needs Python 3.11 or newer" in line


def test_a_python_without_venv_is_named(clone: Path) -> None:
    (line,) = make(clone, PYTHON, NO_VENV="1")
    assert "no venv module" in line


def test_too_little_space_is_noticed_before_anything_is_installed(clone: Path) -> None:
    (line,) = make(clone, PYTHON, FREE="40")
    assert "only 40 MB are free here" in line
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("error: command 'gcc' failed: No such file or directory", "the compiler or Python's headers are missing"),
        ("fatal error: Python.h: No such file or directory", "the compiler or Python's headers are missing"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("ConnectionError: Failed to establish a new connection", "check the network"),
        ("THESE PACKAGES DO NOT MATCH THE HASHES", "installing failed"),
    ],
)
def test_a_failed_install_says_what_to_do_and_is_tried_again_next_time(clone: Path, reason: str, said: str) -> None:
    (line,) = make(clone, PYTHON, REASON=reason)
    assert said in line
    assert not (clone / ".venv" / ".run").exists()
    (again,) = make(clone, PYTHON, REASON=reason)
    assert again == line


def test_the_two_runs_of_make_test_are_all_tests_and_the_engines_are_measured() -> None:
    done = subprocess.run(["make", "-n", "test", "PYTEST_ARGS="], cwd=ROOT, capture_output=True, text=True, check=True)
    (line,) = (line for line in done.stdout.splitlines() if "pytest" in line)
    measured, rest = (command.split() for command in line.split("|| status=1;")[:2])
    paths = [word for word in measured if word.startswith("tests/")]
    assert "tests/engine" in paths
    assert {"--cov", "--cov-fail-under=95"} <= set(measured)
    assert [word for word in rest if word.startswith("--ignore=")] == [f"--ignore={path}" for path in paths]
    assert not [word for word in rest if word.startswith(("tests/", "--cov"))]
    assert all((ROOT / path).exists() for path in paths)
