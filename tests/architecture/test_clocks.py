"""Nothing on the call path waits, or measures how long something took, by a clock that can be set."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import daphne.http_protocol
import daphne.server
import daphne.ws_protocol
import pytest

import mirror_saas.accepting  # noqa: F401  (sets Daphne's clocks)

ROOT = Path(__file__).resolve().parents[2]
CALL_PATH = tuple(f"supervision/{part}" for part in ("stream", "engine", "recorder", "plivo", "audio"))
MODULES = ("throttle", "accepting", "draining", "direct_frames", "daphne_frames", "serving", "uvicorn_serving")

# Where the wall clock is read, and what for. None of it is waited for.
WALL_CLOCK = {
    "supervision/engine/state/call.py": "how long ago something was, as other processes have to read it",
    "supervision/engine/supervisor.py": "the same",
    "supervision/recorder/events.py": "when something happened, for people",
    "supervision/stream/dial.py": "the time that the agent checks in our signature",
    "supervision/stream/directory.py": "when a stream key expires",
    "supervision/stream/limits.py": "leases that other nodes count; ours are renewed by the loop's clock",
    "supervision/stream/owners.py": "when a call began or was taken, for other nodes",
    "supervision/stream/session.py": "when the call began, for people; a call token's age",
    "supervision/stream/token.py": "a call token's age",
}


def wall_clocks(source: str) -> bool:
    """Whether a module reads the wall clock, or hands on what does."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in {("time", "time"), ("time", "time_ns")}:
                return True
            if node.value.id == "datetime" and node.attr in ("now", "utcnow", "today"):
                return True
    return False


def test_the_wall_clock_is_read_only_where_it_is_said_why() -> None:
    paths = [path for folder in CALL_PATH for path in (ROOT / folder).rglob("*.py") if "simulator" not in path.parts]
    paths += [path for name in MODULES if (path := ROOT / "mirror_saas" / f"{name}.py").exists()]
    assert len(paths) > 60
    found = {str(path.relative_to(ROOT)) for path in paths if wall_clocks(path.read_text(encoding="utf-8"))}
    assert found == set(WALL_CLOCK)


def test_daphne_measures_with_a_clock_that_never_jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (daphne.http_protocol, daphne.server, daphne.ws_protocol):
        before = module.time.time()
        with monkeypatch.context() as changed:
            changed.setattr(time, "time", lambda: 4_000_000_000.0)
            assert 0 <= module.time.time() - before < 60
