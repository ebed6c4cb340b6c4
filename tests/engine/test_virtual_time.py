"""The test clock itself: jumps when idle, stands still while threads work, and never hangs."""

import asyncio
import time

import pytest

from tests.support.virtual_time import START_S, VirtualTimeStuck, elapsed_s, run_virtual, virtual_time


@virtual_time
async def test_a_day_passes_at_once() -> None:
    started = time.monotonic()
    assert await elapsed_s(asyncio.sleep(86_400)) == pytest.approx(86_400)
    assert time.monotonic() - started < 5


@virtual_time
async def test_timers_fire_in_order_and_timeouts_expire_on_the_same_clock() -> None:
    order: list[str] = []

    async def after(seconds: float, name: str) -> None:
        await asyncio.sleep(seconds)
        order.append(name)

    async with asyncio.TaskGroup() as group:
        group.create_task(after(3, "third"))
        group.create_task(after(1, "first"))
        group.create_task(after(2, "second"))
    assert order == ["first", "second", "third"]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.25):
            await asyncio.sleep(0.5)
    assert asyncio.get_running_loop().time() == pytest.approx(START_S + 3.25)


@virtual_time
async def test_threads_take_no_virtual_time() -> None:
    def work() -> str:
        time.sleep(0.05)
        return "done"

    loop = asyncio.get_running_loop()
    alarm = loop.call_later(0.01, lambda: None)
    before = loop.time()
    assert await asyncio.to_thread(work) == "done"
    assert loop.time() == before
    alarm.cancel()


def test_waiting_for_nothing_is_an_error_and_not_a_hang() -> None:
    async def wait_for_ever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(VirtualTimeStuck):
        run_virtual(wait_for_ever())


@pytest.mark.parametrize("seconds", [1, 60])
@virtual_time
async def test_the_decorator_goes_with_parametrize_and_fixtures(seconds: int, tmp_path: object) -> None:
    assert tmp_path is not None
    assert await elapsed_s(asyncio.sleep(seconds)) == pytest.approx(seconds)
