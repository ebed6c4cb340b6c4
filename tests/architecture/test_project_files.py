"""What must never stand in the project's files, and what must stay in step with each other."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Written in pieces, so that this file does not contain what it looks for.
REGISTRIES = re.compile(
    "|".join(("py" + r"pi\.org", "python" + "hosted", "npm" + r"js\.(?:org|com)", r"^--(?:extra-)?index-url"))
)
MACHINE_PATHS = re.compile("|".join(("/" + r"root/", "/" + r"work/", "/" + r"home/[a-z]", r"file:" + "///")))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def texts() -> list[tuple[Path, str]]:
    found = []
    for path in tracked():
        try:
            found.append((path.relative_to(ROOT), path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue  # a picture or a recording
    return found


def test_no_file_names_a_package_registry_or_a_machines_folder() -> None:
    found = [
        f"{path}:{number}: {line.strip()[:120]}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if REGISTRIES.search(line) or MACHINE_PATHS.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("name", ["run", "dev"])
def test_every_locked_package_has_a_version_and_hashes(name: str) -> None:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    entries = [number for number, line in enumerate(lines) if line and not line.startswith((" ", "#"))]
    assert len(entries) > 50
    for number in entries:
        assert re.match(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==\S+( ;.*)? \\$", lines[number]), lines[number]
        assert lines[number + 1].strip().startswith("--hash=sha256:")


def test_the_locks_hold_what_pyproject_asks_for() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    run = [*PYPROJECT["project"]["dependencies"], *extras["server"], *extras["openai"], *extras["local-speech"]]
    for name, wanted in (("run", run), ("dev", [*run, *PYPROJECT["dependency-groups"]["dev"]])):
        lock = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").lower()
        for requirement in wanted:
            package = re.split(r"[\[<>=!~; ]", requirement)[0].lower().replace("_", "-")
            if package != "mirror":
                assert re.search(rf"^{re.escape(package)}(\[[a-z,]+\])?==", lock, re.MULTILINE), (
                    f"{package} in {name}.txt"
                )


def test_scripts_can_be_run() -> None:
    for name in (".ci/run", "manage.py", "scripts/preflight"):
        assert (ROOT / name).stat().st_mode & 0o111, name
