"""A `manage.py` command as a process: its lines as they come, its children, and its end."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import psutil

ROOT = Path(__file__).resolve().parents[2]


def ended(process: psutil.Process) -> bool:
    """Whether a process runs no more (a zombie only waits for its parent)."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Command:
    """Use as a context manager: leaving it stops the command."""

    def __init__(self, *arguments: str, env: Mapping[str, str]) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "Command":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.end(signal.SIGTERM)

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line)
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def until(self, text: str, *, timeout: float = 100) -> str:
        """The first line that contains `text`, once it was printed."""
        found: list[str] = []

        def seen() -> bool:
            found[:] = [line for line in self.lines if text in line]
            return bool(found) or not self._reader.is_alive()

        with self._news:
            self._news.wait_for(seen, timeout)
        assert found, f"{text!r} was never printed:\n{self.text}"
        return found[0]

    def children(self) -> dict[str, psutil.Process]:
        """The processes it started, by what their command line says they are."""
        named = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            line = " ".join(child.cmdline())
            for name in ("--only all", "worker", "beat", "valkey-server", "demo.agent", "demo.judge"):
                if name in line and name not in named:
                    named[name] = child
        return named

    def end(self, number: signal.Signals | None = None, *, timeout: float = 60) -> int:
        """Signal it (or not) and return its exit status."""
        if number is not None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"it did not end within {timeout} s:\n{self.text}") from None
        self._reader.join(10)
        return code
