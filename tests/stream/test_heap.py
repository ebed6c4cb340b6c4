"""A stream process does not stop its calls to look for garbage, but looks for it all the same."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field

import pytest

from supervision.stream import runtime as runtimes
from supervision.stream.heap import LOOK_S, MOST_S, NEVER, Heap


async def test_what_is_loaded_when_calls_begin_is_never_looked_through_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Runtime:
        warmed = False
        calls = 0
        heap = Heap(lambda: Runtime.calls)

        async def warm(self) -> None:
            assert gc.get_freeze_count() == 0
            self.warmed = True

    made = Runtime()

    async def stream_runtime() -> Runtime:
        return made

    monkeypatch.setattr(runtimes, "stream_runtime", stream_runtime)
    loaded = len(gc.get_objects())
    before = gc.get_threshold()
    try:
        await runtimes.stream_runtime_open()
        assert made.warmed
        assert len(gc.get_objects()) < loaded / 10
        assert gc.get_threshold() == before
        Runtime.calls = 1
        made.heap.look()
        assert gc.get_threshold() == (*before[:2], NEVER)
    finally:
        made.heap.close()
        gc.unfreeze()
    assert gc.get_threshold() == before


@dataclass
class Process:
    """A process whose calls and time a test decides."""

    calls: int = 0
    now: float = 0.0
    collected_at: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.heap = Heap(lambda: self.calls, clock=lambda: self.now, collect=lambda: self.collected_at.append(self.now))

    def passes(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += LOOK_S
            self.heap.look()


def test_garbage_is_looked_for_as_soon_as_no_call_runs() -> None:
    process = Process(calls=3)
    process.passes(60)
    assert process.collected_at == []
    process.calls = 0
    process.passes(60)
    assert process.collected_at == [65]


def test_calls_that_never_pause_are_stopped_for_it_every_ten_minutes_only() -> None:
    process = Process(calls=150)
    process.passes(2 * MOST_S + 60)
    assert process.collected_at == [LOOK_S + MOST_S, LOOK_S + 2 * MOST_S]
