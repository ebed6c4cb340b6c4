"""Who may know whom, as far as the contracts in pyproject.toml (`lint-imports`) cannot say it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FRAMEWORKS = ("django", "channels", "celery", "ninja", "daphne", "twisted", "psycopg", "redis")


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, absolutely named, wherever in the file it does."""
    package = path.relative_to(ROOT).with_suffix("").parts
    package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def files_of(module: str) -> list[Path]:
    """The files of a module, or of a package with all below it."""
    path = ROOT.joinpath(*module.split("."))
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    assert files
    assert all(file.is_file() for file in files)
    return files


def test_the_reader_of_imports_sees_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    file = folder / "c.py"
    file.write_text(
        "import x.y\nfrom . import d\nfrom ..e import f\ndef g():\n    from h import i\nif True:\n    import j as k\n"
    )
    assert set(imports_of(file)) == {"x.y", "a.b", "a.b.d", "a.e", "a.e.f", "h", "h.i", "j"}


def test_the_client_needs_the_standard_library_only() -> None:
    for file in files_of("supervision.client"):
        foreign = {name for name in imports_of(file) if name.split(".")[0] not in sys.stdlib_module_names}
        assert foreign == set()


def test_the_plivo_stand_in_shares_nothing_with_what_it_tests() -> None:
    own = "supervision.plivo.simulator"
    for file in files_of(own):
        ours = {
            name
            for name in imports_of(file)
            if name.split(".")[0] in ("mirror_saas", "tenants", "supervision", "webui", "tests")
            and name != own
            and not name.startswith(f"{own}.")
        }
        assert ours == set(), file


@pytest.mark.parametrize("package", ["mirror_saas", "supervision", "tenants", "webui"])
def test_importing_a_package_does_nothing(package: str) -> None:
    tree = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))
    assert [
        node for node in tree.body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ] == []


@pytest.mark.parametrize(
    "module", ["supervision.engine", "supervision.plivo.events", "supervision.audio.mulaw", "supervision.client"]
)
def test_the_library_works_where_no_framework_is_installed(module: str) -> None:
    code = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {FRAMEWORKS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
import {module}
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_the_engine_opens_and_starts_nothing() -> None:
    code = """
import sys, threading

events = []
forbidden = ("socket.connect", "socket.bind", "subprocess.Popen", "os.system", "os.fork", "os.mkdir", "os.remove")

def hook(event, arguments):
    if event in forbidden:
        events.append((event, arguments[1:]))
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        events.append((event, arguments[0]))

import numpy, pydantic  # what these do at import is theirs
sys.dont_write_bytecode = True
sys.addaudithook(hook)
before = threading.active_count()
import supervision.engine
import supervision.engine.supervisor
assert events == [], events
assert threading.active_count() == before
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
