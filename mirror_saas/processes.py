"""Child processes of one Mirror: started in order, watched together, stopped in reverse order.

`ProcessGroup` is what `manage.py serve` and `manage.py demo` share. Every line that a child prints comes out with the
child's name in front. When one child ends that should not, a line says so and the others are stopped.
"""

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

Write = Callable[[str], None]
Probe = Callable[[], Awaitable[bool]]
Result = TypeVar("Result")

POLL_S = 0.1
# After SIGKILL nothing runs any more; this only waits for the kernel.
KILL_S = 5.0
NAME_WIDTH = 8


class ProcessError(Exception):
    """The child `name` failed; the text is one line that names it and says how."""

    def __init__(self, name: str, what: str) -> None:
        self.name = name
        super().__init__(f"{name} {what}")


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """How to run one child, and when it counts as up.

    It is up when a line of its output matches `ready_line` or when `ready_probe` returns True, within
    `ready_within_s` seconds; with neither it is up as soon as it runs. `ready_hint` says why it was not, for the error.
    `stop_within_s` is how long it may take to end after SIGTERM before it is killed.
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    ready_line: str | None = None
    ready_probe: Probe | None = None
    ready_within_s: float = 60.0
    ready_hint: Callable[[], str] | None = None
    stop_within_s: float = 10.0


class ProcessGroup:
    """The children of one command. Use as an async context manager: leaving it stops what still runs."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._children: list[_Child] = []
        self._stop = asyncio.Event()

    async def __aenter__(self) -> "ProcessGroup":
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    def stop_on_signals(self) -> None:
        """Let SIGINT, SIGTERM and SIGHUP end `wait` (and `start`, with `Stopped`)."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop.set)

    def request_stop(self) -> None:
        """End `wait` as a signal would."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    async def start(self, *specs: ProcessSpec) -> None:
        """Start children, in this order, and return once all are up; they come up side by side.

        Raises `ProcessError` when one ends or takes too long.
        """
        started = []
        for spec in specs:
            started.append(await self._spawn(spec))
            self._children.append(started[-1])
        await self._race(asyncio.gather(*(child.wait_ready() for child in started)), started)

    async def run(self, spec: ProcessSpec) -> None:
        """Run a child to its end. Raises `ProcessError` unless it exits with 0."""
        child = await self._spawn(spec)
        self._children.append(child)
        code = await self._race(child.process.wait(), [child])
        await child.output_done()
        self._children.remove(child)
        if code != 0:
            raise ProcessError(spec.name, f"failed ({_how(code)}); its lines above say why.")

    async def wait(self) -> None:
        """Return when a stop was asked for; raise `ProcessError` when a child ends before that."""
        ends = {asyncio.ensure_future(child.process.wait()): child for child in self._children}
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            done, _ = await asyncio.wait({*ends, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancelled(*ends, stop)
        if stop in done:
            return
        child = next(ends[task] for task in done if task in ends)
        await child.output_done()
        raise ProcessError(child.spec.name, f"ended ({_how(child.process.returncode)}); stopping the others.")

    async def stop(self) -> None:
        """Stop what runs, the newest first: SIGTERM, then SIGKILL for whoever takes longer than it may."""
        while self._children:
            child = self._children[-1]
            await child.stop(self._write)
            self._children.pop()

    async def _spawn(self, spec: ProcessSpec) -> "_Child":
        if self._stop.is_set():
            raise Stopped
        try:
            process = await asyncio.create_subprocess_exec(
                *spec.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **spec.env},
                # Ctrl-C reaches every process of the terminal's group; the children are stopped in order, by us.
                start_new_session=True,
            )
        except OSError as error:
            raise ProcessError(spec.name, f"cannot be started: {error.strerror} ({spec.command[0]})") from error
        return _Child(spec, process, self._write)

    async def _race(self, work: Awaitable[Result], children: "Sequence[_Child]") -> Result:
        """Await `work` on `children`, unless a stop is asked for or one of the others ends first."""
        task: asyncio.Future[Any] = asyncio.ensure_future(work)
        stop: asyncio.Future[Any] = asyncio.ensure_future(self._stop.wait())
        others: dict[asyncio.Future[Any], _Child] = {
            asyncio.ensure_future(child.process.wait()): child for child in self._children if child not in children
        }
        try:
            done, _ = await asyncio.wait({task, stop, *others}, return_when=asyncio.FIRST_COMPLETED)
            if task in done:
                return cast(Result, task.result())
            if stop in done:
                raise Stopped
            dead = next(others[other] for other in done if other in others)
            await dead.output_done()
            raise ProcessError(dead.spec.name, f"ended ({_how(dead.process.returncode)}); stopping the others.")
        finally:
            await _cancelled(task, stop, *others)


class Stopped(Exception):
    """A signal asked to stop while children were being started."""


class _Child:
    def __init__(self, spec: ProcessSpec, process: asyncio.subprocess.Process, write: Write) -> None:
        self.spec = spec
        self.process = process
        self._ready = asyncio.Event()
        self._pattern = re.compile(spec.ready_line) if spec.ready_line else None
        self._reader = asyncio.ensure_future(self._relay(write))

    async def _relay(self, write: Write) -> None:
        stream = self.process.stdout
        if stream is None:
            raise RuntimeError("a child without a pipe")
        rest = b""
        # Not readline(): it fails on lines longer than its limit, and a child may print anything.
        while chunk := await stream.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._line(line, write)
            if len(rest) > 1_000_000:
                self._line(rest, write)
                rest = b""
        if rest:
            self._line(rest, write)

    def _line(self, line: bytes, write: Write) -> None:
        text = line.decode(errors="replace").rstrip("\r")
        write(f"{self.spec.name:<{NAME_WIDTH}} | {text}")
        if self._pattern is not None and self._pattern.search(text):
            self._ready.set()

    async def wait_ready(self) -> None:
        if self.spec.ready_line is None and self.spec.ready_probe is None:
            return
        ready = asyncio.ensure_future(self._wait_ready())
        ended = asyncio.ensure_future(self.process.wait())
        try:
            done, _ = await asyncio.wait(
                {ready, ended}, timeout=self.spec.ready_within_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            await _cancelled(ready, ended)
        if ready in done:
            ready.result()  # a probe that raised is a mistake of ours, not a child that is slow
            return
        if ended in done:
            await self.output_done()
            raise ProcessError(self.spec.name, f"did not start ({_how(self.process.returncode)}).")
        hint = f": {self.spec.ready_hint()}" if self.spec.ready_hint else "."
        raise ProcessError(self.spec.name, f"was not up within {self.spec.ready_within_s:g} s{hint}")

    async def _wait_ready(self) -> None:
        if self.spec.ready_probe is None:
            await self._ready.wait()
            return
        while not await self.spec.ready_probe():  # noqa: ASYNC110  (another process: there is no event to wait for)
            await asyncio.sleep(POLL_S)

    async def output_done(self) -> None:
        """Return when everything the child printed has been written (or a grandchild keeps its pipe open)."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._reader), KILL_S)

    async def stop(self, write: Write) -> None:
        if self.process.returncode is None:
            self._signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self.process.wait(), self.spec.stop_within_s)
            except TimeoutError:
                write(f"{self.spec.name:<{NAME_WIDTH}} | did not end within {self.spec.stop_within_s:g} s; killed")
                self._signal(signal.SIGKILL, group=True)
                await self.process.wait()
        # What a child leaves behind (a pool's workers, say) must not outlive it.
        self._signal(signal.SIGKILL, group=True)
        await self.output_done()
        await _cancelled(self._reader)

    def _signal(self, number: signal.Signals, *, group: bool = False) -> None:
        # The child leads its own session, so its number is also its group's. Gone already is what we want.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if group:
                os.killpg(self.process.pid, number)
            else:
                os.kill(self.process.pid, number)


async def _cancelled(*futures: "asyncio.Future[Any]") -> None:
    """Cancel what still runs and take every outcome, so that nothing is reported as never looked at."""
    for future in futures:
        future.cancel()
    await asyncio.gather(*futures, return_exceptions=True)


def _how(code: int | None) -> str:
    if code is None:
        return "still running"
    if code < 0:
        try:
            return f"by {signal.Signals(-code).name}"
        except ValueError:
            return f"by signal {-code}"
    return f"exit status {code}"
