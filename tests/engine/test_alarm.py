"""One timer that goes off at the earliest of the times it was set to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from supervision.engine.alarm import Alarm


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> asyncio.Runner:
    return asyncio.Runner(loop_factory=request.param)


def rung(runner: asyncio.Runner, use: Callable[[Alarm, float], None]) -> list[float]:
    """Loop times of the rings, from when it began until 50 ms after."""

    async def run() -> list[float]:
        loop = asyncio.get_running_loop()
        rings: list[float] = []
        began = loop.time()
        alarm = Alarm(lambda: rings.append(loop.time() - began))
        ended = loop.create_future()
        loop.call_at(began + 0.05, ended.set_result, None)
        use(alarm, began)
        await ended
        return rings

    with runner:
        return runner.run(run())


def test_it_rings_once_and_at_the_earliest_time(runner: asyncio.Runner) -> None:
    def use(alarm: Alarm, now: float) -> None:
        alarm.set(now + 0.03)
        alarm.set(now + 0.01)
        alarm.set(now + 0.02)

    (at,) = rung(runner, use)
    assert at >= 0.009


def test_times_that_have_passed_ring_at_once_and_once(runner: asyncio.Runner) -> None:
    def use(alarm: Alarm, now: float) -> None:
        alarm.set(now - 1)
        alarm.set(now - 2)
        alarm.set(now + 1)

    assert len(rung(runner, use)) == 1


def test_a_cancelled_one_is_silent_and_can_be_set_again(runner: asyncio.Runner) -> None:
    def use(alarm: Alarm, now: float) -> None:
        alarm.set(now - 1)
        alarm.cancel()
        alarm.set(now + 0.01)

    (at,) = rung(runner, use)
    assert at >= 0.009
