"""Virtual time for asyncio tests: a minute of a call in a millisecond, and no sleeping.

`VirtualTimeLoop` is an ordinary selector event loop whose clock stands still while anything can run and jumps to
the next timer when nothing can. Code under test uses the running loop's time (`asyncio.get_running_loop().time()`,
`asyncio.sleep`, `asyncio.timeout`) and so needs no change.

    @virtual_time
    async def test_the_judge_has_four_seconds() -> None:
        started = asyncio.get_running_loop().time()
        ...
        assert asyncio.get_running_loop().time() - started == pytest.approx(4.0)

Real sockets and subprocesses have no place here: the clock would jump past their deadlines while the kernel works.
Threads do, through `asyncio.to_thread` and `run_in_executor`: time stands still until they have answered.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Somewhere that is not 0, so that code which takes a time for a duration (or tests `if started:`) is found out.
START_S = 1_000.0

# How long, in real seconds, to wait for a thread that the loop does not know of before calling a test stuck.
STUCK_AFTER_S = 2.0


class VirtualTimeStuck(RuntimeError):
    """Every task waits and no timer is set, so nothing can ever happen any more."""


class _JumpingSelector(selectors.BaseSelector):
    """Polls the real selector; where the loop would have slept, moves the clock instead."""

    def __init__(self) -> None:
        self._real = selectors.DefaultSelector()
        self.now = START_S
        self.threads_busy = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._real.select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if self.threads_busy:
            # A thread works in real time; whatever it takes is no time at all on the virtual clock.
            return self._real.select(None)
        if timeout is None:
            ready = self._real.select(STUCK_AFTER_S)
            if not ready:
                raise VirtualTimeStuck("all tasks wait for something, and no timer is set that could wake one of them")
            return ready
        self.now += timeout
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Any:
        return self._real.get_map()

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.get_key(fileobj)

    def close(self) -> None:
        self._real.close()


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time. Starts at `START_S` seconds."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Seconds on the virtual clock."""
        return self._jumping.now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future: asyncio.Future[Any] = super().run_in_executor(executor, func, *args)
        self._jumping.threads_busy += 1
        future.add_done_callback(self._thread_done)
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:
        """Waits for the executor's threads; Python 3.12 and later watch them from a thread that the loop ignores."""
        self._jumping.threads_busy += 1
        try:
            await super().shutdown_default_executor(*args)
        finally:
            self._jumping.threads_busy -= 1

    def _thread_done(self, _future: asyncio.Future[Any]) -> None:
        self._jumping.threads_busy -= 1


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end on a new virtual-time loop and returns its result.

    Raises `VirtualTimeStuck` instead of hanging when nothing is left that could wake a task.
    """
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def virtual_time(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Decorates an async test so that it runs on virtual time.

    The decorated test is a plain function to pytest, so it works in every directory, with synchronous fixtures,
    `parametrize` and hypothesis' `given` (which goes above it). Async fixtures would run on another loop: make such
    things inside the test.
    """

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return run_virtual(test(*args, **kwargs))

    return run


async def elapsed_s(awaitable: Awaitable[Any]) -> float:
    """Awaits something and returns how long it took on the loop's clock, in seconds."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    await awaitable
    return loop.time() - started
