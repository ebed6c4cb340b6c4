"""The playout queue by itself, on made-up time."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervision.plivo.simulator import L16_8K, L16_16K, MULAW_8K, Cleared, HeardSegment, Playout, Reached, WireFormat

FRAME = 160


def frames(count: int, first: int = 1) -> bytes:
    """Frames that can be told apart: 20 ms of byte 1, 20 ms of byte 2, …"""
    return b"".join(bytes([first + index]) * FRAME for index in range(count))


def rounded(playout: Playout) -> list[tuple[float, float, bytes]]:
    return [(round(s.start, 9), round(s.end, 9), s.audio) for s in playout.segments()]


def playout(**options: bool) -> Playout:
    return Playout(MULAW_8K, start=0.0, **options)


def test_audio_is_heard_at_the_tick_after_it_arrived_and_then_without_a_gap() -> None:
    line = playout()
    line.push(frames(3), 0.005)
    line.advance(1.0)
    assert rounded(line) == [(0.02, 0.08, frames(3))]


def test_audio_that_arrives_exactly_at_a_tick_is_too_late_for_it() -> None:
    line = playout()
    line.push(frames(1), 0.02)
    line.advance(1.0)
    assert rounded(line) == [(0.04, 0.06, frames(1))]


def test_a_tick_that_has_begun_is_heard_to_its_end() -> None:
    line = playout()
    line.push(frames(5), 0.0)
    line.advance(0.041)
    assert rounded(line) == [(0.02, 0.06, frames(2))]


def test_chunks_of_any_size_join_without_a_gap() -> None:
    line = playout()
    data = frames(4)
    for begin in range(0, len(data), 7):
        line.push(data[begin : begin + 7], 0.0)
    line.advance(1.0)
    assert rounded(line) == [(0.02, 0.1, data)]


def test_a_chunk_shorter_than_a_tick_is_followed_by_silence_until_the_next_tick() -> None:
    line = playout()
    line.push(b"a" * 40, 0.0)
    line.push(b"b" * 40, 0.025)
    line.advance(1.0)
    assert rounded(line) == [(0.02, 0.025, b"a" * 40), (0.04, 0.045, b"b" * 40)]


def test_undersupply_is_silence_and_nothing_is_lost() -> None:
    line = playout()
    line.push(frames(1, 1), 0.001)
    line.push(frames(1, 2), 0.095)
    line.advance(1.0)
    assert rounded(line) == [(0.02, 0.04, frames(1, 1)), (0.1, 0.12, frames(1, 2))]


def test_a_checkpoint_is_reached_when_the_last_byte_before_it_has_been_played() -> None:
    line = playout()
    line.push(b"a" * 200, 0.0)
    line.checkpoint("after 25 ms", 0.0)
    line.push(b"b" * 200, 0.0)
    line.checkpoint("after 50 ms", 0.0)
    assert line.next_due() == pytest.approx(0.045)
    assert line.advance(0.0449) == []
    assert line.advance(0.0451) == [Reached("after 25 ms", pytest.approx(0.045))]
    assert line.next_due() == pytest.approx(0.07)
    assert line.advance(1.0) == [Reached("after 50 ms", pytest.approx(0.07))]
    assert line.next_due() is None


def test_a_checkpoint_on_an_empty_queue_fires_at_once() -> None:
    line = playout()
    line.checkpoint("now", 0.5)
    assert line.next_due() == 0.5
    assert line.advance(0.5) == [Reached("now", 0.5)]


def test_a_checkpoint_on_an_empty_queue_can_stay_unanswered() -> None:
    line = playout(fire_on_empty=False)
    line.checkpoint("never", 0.5)
    assert line.next_due() is None
    assert line.advance(100.0) == []


def test_a_checkpoint_behind_audio_that_is_still_playing_waits_for_its_end_even_then() -> None:
    line = playout(fire_on_empty=False)
    line.push(frames(1), 0.0)
    line.checkpoint("end", 0.03)
    assert line.advance(0.039) == []
    assert line.advance(0.04) == [Reached("end", pytest.approx(0.04))]


def test_equal_names_are_answered_as_often_as_they_were_sent() -> None:
    line = playout()
    line.push(frames(1), 0.0)
    line.checkpoint("x", 0.0)
    line.checkpoint("x", 0.0)
    assert [reached.name for reached in line.advance(1.0)] == ["x", "x"]


def test_clear_empties_the_queue_and_names_what_was_pending() -> None:
    line = playout()
    line.push(frames(2), 0.0)
    line.checkpoint("heard", 0.0)
    line.push(frames(10, 3), 0.0)
    line.checkpoint("cut", 0.0)
    assert line.advance(0.1) == [Reached("heard", pytest.approx(0.06))]
    # ticks at 20, 40, 60, 80 and 100 ms have begun
    assert line.clear(0.1) == Cleared(7 * FRAME, ("cut",))
    assert line.next_due() is None
    assert line.advance(10.0) == []
    assert rounded(line) == [(0.02, 0.12, frames(5))]


def test_a_checkpoint_whose_last_tick_is_still_playing_counts_as_pending() -> None:
    line = playout()
    line.push(frames(1), 0.0)
    line.checkpoint("cut", 0.0)
    line.advance(0.03)
    assert line.clear(0.03) == Cleared(0, ("cut",))
    assert line.advance(1.0) == []


def test_audio_after_a_clear_is_heard_from_the_next_tick() -> None:
    line = playout()
    line.push(frames(10, 1), 0.0)
    line.clear(0.05)
    line.push(frames(2, 100), 0.05)
    line.advance(1.0)
    assert rounded(line) == [(0.02, 0.1, frames(2, 1) + frames(2, 100))]


def test_a_megabyte_in_one_message_is_played_in_real_time() -> None:
    line = playout()
    blob = bytes(range(256)) * 4096
    line.push(blob, 0.0)
    line.checkpoint("end", 0.0)
    assert line.advance(60.0) == []
    assert line.heard_bytes == 3000 * FRAME
    assert line.advance(1000.0) == [Reached("end", pytest.approx(0.02 + len(blob) / 8000))]
    assert line.segments()[0].audio == blob


@pytest.mark.parametrize("media_format", [MULAW_8K, L16_8K, L16_16K], ids=lambda f: f.content_type)
def test_a_second_of_each_format_lasts_a_second(media_format: WireFormat) -> None:
    line = Playout(media_format, start=0.0)
    second = bytes(range(200)) * (media_format.bytes_per_second // 200)
    line.push(second, 0.0)
    line.advance(5.0)
    assert rounded(line) == [(0.02, 1.02, second)]


def test_reading_on_gives_every_heard_byte_once_with_its_time() -> None:
    line = playout()
    cursor = (0, 0)
    pieces: list[tuple[float, bytes]] = []
    for moment, chunk in [(0.0, frames(2, 1)), (0.03, frames(1, 3)), (0.3, frames(2, 4)), (0.31, b""), (0.5, b"")]:
        line.push(chunk, moment)
        cursor, new = line.read_heard(cursor)
        pieces += new
    joined = b"".join(audio for _, audio in pieces)
    assert joined == b"".join(segment.audio for segment in line.segments())
    for start, audio in pieces:
        assert any(s.start - 1e-9 <= start and start + len(audio) / 8000 <= s.end + 1e-9 for s in line.segments())


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["push", "push", "push", "checkpoint", "clear", "advance"]),
        st.floats(0, 0.2),
        st.integers(0, 900),
    ),
    max_size=30,
)


def played(steps: list[tuple[str, float, int]], *, looks: int) -> tuple[tuple[HeardSegment, ...], list[Reached]]:
    line, now, reached = playout(), 0.0, []
    for index, (step, wait, size) in enumerate(steps):
        for look in range(looks):
            reached += line.advance(now + wait * look / looks)
        now += wait
        reached += line.advance(now)
        if step == "push":
            line.push(bytes([index + 1]) * size, now)
        elif step == "checkpoint":
            line.checkpoint(str(index), now)
        elif step == "clear":
            line.clear(now)
    reached += line.advance(now + 60)
    return line.segments(), reached


@given(STEPS, st.integers(1, 5))
def test_how_often_it_is_looked_at_changes_nothing(steps: list[tuple[str, float, int]], looks: int) -> None:
    assert played(steps, looks=looks) == played(steps, looks=0)


@given(STEPS)
def test_bytes_keep_their_order_and_only_clear_loses_any(steps: list[tuple[str, float, int]]) -> None:
    segments, reached = played(steps, looks=0)
    heard = b"".join(segment.audio for segment in segments)
    order = [byte for position, byte in enumerate(heard) if position == 0 or heard[position - 1] != byte]
    assert order == sorted(set(order))
    if not any(step == "clear" for step, _, _ in steps):
        pushed = b"".join(bytes([i + 1]) * size for i, (step, _, size) in enumerate(steps) if step == "push")
        assert heard == pushed
        names = [str(index) for index, (step, _, _) in enumerate(steps) if step == "checkpoint"]
        assert [checkpoint.name for checkpoint in reached] == names
    assert all(before.end < after.start for before, after in pairwise(segments))
    assert all(before.at <= after.at for before, after in pairwise(reached))
