"""UUIDv7."""

from __future__ import annotations

import time

import pytest

from mirror_saas.ids import uuid7


def test_an_id_is_version_7_and_carries_its_time() -> None:
    made = uuid7(unix_ms=0x0123456789AB)
    assert (made.version, made.variant) == (7, "specified in RFC 4122")
    assert made.int >> 80 == 0x0123456789AB


def test_ids_sort_by_time_and_do_not_repeat() -> None:
    ids = [uuid7(unix_ms=ms) for ms in range(1000)]
    assert ids == sorted(ids)
    assert len({uuid7(unix_ms=5) for _ in range(1000)}) == 1000


def test_the_wall_clock_is_the_default() -> None:
    before = time.time_ns() // 1_000_000
    assert before <= uuid7().int >> 80 <= time.time_ns() // 1_000_000


@pytest.mark.parametrize("unix_ms", [-1, 1 << 48])
def test_a_time_that_does_not_fit_is_refused(unix_ms: int) -> None:
    with pytest.raises(ValueError, match="unix_ms"):
        uuid7(unix_ms=unix_ms)
