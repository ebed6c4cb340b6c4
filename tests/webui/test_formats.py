"""How figures are written."""

from __future__ import annotations

import pytest

from webui import formats


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0 ms"),
        (420, "420 ms"),
        (999, "999 ms"),
        (1000, "1.0 s"),
        (3149, "3.1 s"),
        (59_999, "59.9 s"),
        (60_000, "1 min 00 s"),
        (72_400, "1 min 12 s"),
        (3_599_999, "59 min 59 s"),
        (7_500_000, "2 h 05 min"),
        (-71, "-71 ms"),
        (None, "–"),
    ],
)
def test_a_duration_reads_like_a_persons(ms: int | None, text: str) -> None:
    assert formats.duration(ms) == text


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "0:00.0"), (4_260, "0:04.2"), (751_000, "12:31.0"), (3_751_000, "1:02:31.0"), (-300, "-0:00.3")],
)
def test_an_offset_reads_like_a_players(ms: int, text: str) -> None:
    assert formats.offset(ms) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "100 %"), (0.999, "99 %"), (0.29, "29 %"), (0.0, "0 %"), (None, "–")]
)
def test_only_a_whole_share_reads_as_all(value: float | None, text: str) -> None:
    assert formats.share(value) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        ("+14155552671", "+14 ••• 671"),
        ("+4930901820", "+49 ••• 820"),
        ("1005", "•••"),
        ("sip:alice@example.com", "sip:a•••@example.com"),
        ("", "unknown"),
    ],
)
def test_a_number_is_masked(number: str, text: str) -> None:
    masked = formats.number_masked(number)
    assert masked == text
    assert number == "" or number not in masked


def test_counts_have_their_plural() -> None:
    assert formats.count_of(1, "turn") == "1 turn"
    assert formats.count_of(0, "turn") == "0 turns"
    assert formats.count_of(12_345, "turn") == "12\u202f345 turns"
