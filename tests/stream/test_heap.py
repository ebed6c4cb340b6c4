"""A stream process does not stop its calls to look for garbage among what it loaded before them."""

from __future__ import annotations

import gc

import pytest

from supervision.stream import runtime as runtimes


async def test_what_is_loaded_when_calls_begin_is_never_looked_through_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Runtime:
        warmed = False

        async def warm(self) -> None:
            assert gc.get_freeze_count() == 0
            self.warmed = True

    made = Runtime()

    async def stream_runtime() -> Runtime:
        return made

    monkeypatch.setattr(runtimes, "stream_runtime", stream_runtime)
    loaded = len(gc.get_objects())
    try:
        await runtimes.stream_runtime_open()
        assert made.warmed
        assert len(gc.get_objects()) < loaded / 10
    finally:
        gc.unfreeze()
