"""Children are started in order, watched together, and stopped backwards, whatever they do."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator

import psutil
import pytest

from mirror_saas.processes import ProcessError, ProcessGroup, ProcessSpec, Stopped

FOREVER = "import threading; print('up', flush=True); threading.Event().wait()"
POLITE = """
import signal, sys, threading
end = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: end.set())
print('up', flush=True)
end.wait()
print('bye', flush=True)
"""
STUBBORN = """
import signal, subprocess, sys, threading
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, '-c', 'import threading; threading.Event().wait()'])
print('grandchild', child.pid, flush=True)
threading.Event().wait()
"""


def spec(name: str, code: str, **options: object) -> ProcessSpec:
    return ProcessSpec(name=name, command=(sys.executable, "-c", code), **options)  # type: ignore[arg-type]


class Written(list[str]):
    """The group's lines, and a way to wait for one."""

    def __init__(self) -> None:
        super().__init__()
        self.news = asyncio.Event()

    def __call__(self, line: str) -> None:
        self.append(line)
        self.news.set()

    async def until(self, text: str) -> str:
        while True:
            for line in self:
                if text in line:
                    return line
            self.news.clear()
            await self.news.wait()


@pytest.fixture
def written() -> Written:
    return Written()


@pytest.fixture
async def group(written: Written) -> AsyncIterator[ProcessGroup]:
    async with ProcessGroup(written) as started:
        yield started


async def test_every_line_comes_out_with_the_childs_name(group: ProcessGroup, written: Written) -> None:
    await group.run(spec("talker", "print('one'); print('two'); print('no line end', end='')"))
    assert written == ["talker   | one", "talker   | two", "talker   | no line end"]


async def test_a_line_longer_than_any_buffer_is_passed_on_whole(group: ProcessGroup, written: Written) -> None:
    await group.run(spec("long", "print('x' * 300_000)"))
    assert written == ["long     | " + "x" * 300_000]


async def test_start_returns_once_the_ready_line_was_printed(group: ProcessGroup, written: Written) -> None:
    await group.start(spec("server", FOREVER, ready_line="^up$"))
    assert written == ["server   | up"]


async def test_start_returns_once_the_probe_says_so(group: ProcessGroup) -> None:
    asked = iter([False, False, True])

    async def probe() -> bool:
        return next(asked)

    await group.start(spec("server", FOREVER, ready_probe=probe))
    assert list(asked) == []


async def test_a_child_that_ends_before_it_is_up_is_an_error_that_names_it(group: ProcessGroup) -> None:
    with pytest.raises(ProcessError, match=r"^server did not start \(exit status 3\)\.$"):
        await group.start(spec("server", "raise SystemExit(3)", ready_line="up"))


async def test_a_child_that_is_never_up_is_an_error_that_says_why(group: ProcessGroup) -> None:
    with pytest.raises(ProcessError, match=r"^server was not up within 0\.5 s: the database does not answer$"):
        await group.start(
            spec(
                "server",
                FOREVER,
                ready_line="never printed",
                ready_within_s=0.5,
                ready_hint=lambda: "the database does not answer",
            )
        )


async def test_a_program_that_does_not_exist_is_an_error_that_names_it(group: ProcessGroup) -> None:
    with pytest.raises(ProcessError, match=r"^ghost cannot be started: No such file or directory"):
        await group.start(ProcessSpec(name="ghost", command=("/nonexistent/program",)))


async def test_a_one_off_that_fails_is_an_error(group: ProcessGroup, written: Written) -> None:
    with pytest.raises(ProcessError, match=r"^migrate failed \(exit status 1\)"):
        await group.run(spec("migrate", "import sys; sys.exit('no such table')"))
    assert "migrate  | no such table" in written


async def test_one_child_ending_brings_a_line_and_the_others_are_stopped(written: Written) -> None:
    async with ProcessGroup(written) as group:
        await group.start(spec("web", POLITE, ready_line="up"))
        await group.start(spec("worker", "print('up', flush=True); import time; raise SystemExit(7)", ready_line="up"))
        with pytest.raises(ProcessError, match=r"^worker ended \(exit status 7\)"):
            await group.wait()
    assert "web      | bye" in written


async def test_a_child_that_dies_while_another_one_starts_is_noticed(group: ProcessGroup) -> None:
    await group.start(spec("web", "print('up', flush=True)", ready_line="up"))
    with pytest.raises(ProcessError, match=r"^web ended"):
        await group.start(spec("worker", FOREVER, ready_line="never printed", ready_within_s=60))


async def test_children_are_stopped_newest_first(written: Written) -> None:
    async with ProcessGroup(written) as group:
        for name in ("first", "second", "third"):
            await group.start(spec(name, POLITE, ready_line="up"))
    assert [line.split()[0] for line in written if line.endswith("bye")] == ["third", "second", "first"]


async def test_a_child_that_ignores_sigterm_is_killed_with_all_it_started(written: Written) -> None:
    async with ProcessGroup(written) as group:
        await group.start(spec("stubborn", STUBBORN, ready_line="grandchild", stop_within_s=0.2))
        grandchild = psutil.Process(int((await written.until("grandchild")).split()[-1]))
    assert "stubborn | did not end within 0.2 s; killed" in written
    _gone, alive = psutil.wait_procs([grandchild], timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_ends_the_wait(written: Written, number: signal.Signals) -> None:
    async with ProcessGroup(written) as group:
        group.stop_on_signals()
        await group.start(spec("web", POLITE, ready_line="up"))
        os.kill(os.getpid(), number)
        await group.wait()
    for used in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().remove_signal_handler(used)
    assert "web      | bye" in written


async def test_a_stop_while_a_child_starts_ends_the_start(written: Written) -> None:
    async with ProcessGroup(written) as group:
        starting = asyncio.ensure_future(group.start(spec("web", POLITE, ready_line="never printed")))
        await written.until("up")
        group.request_stop()
        with pytest.raises(Stopped):
            await starting
        with pytest.raises(Stopped):
            await group.start(spec("worker", POLITE))
    assert "web      | bye" in written
