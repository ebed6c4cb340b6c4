"""Holding at the relay, frame by frame, on a clock that the test turns."""

from __future__ import annotations

import json

import pytest

from mirror_saas.ids import uuid7
from supervision.engine.adapters.hold import Hold, position_of
from supervision.engine.adapters.playback import soft_cut
from supervision.engine.adapters.turn_audio import TurnAudio
from supervision.engine.intervention.orchestrator import Plan
from tests.stream.test_relay import CHECKPOINT, CLEAR, CLEARED, SPEECH, Call, play

SILENT = b"\xff" * 160
SPEECH_TEXT = play(SPEECH)


def held(call: Call, ref: str, at: float, *, budget_s: float = 0.8, text: str = "Some words.") -> TurnAudio:
    call.relay.clock.round_trip_s = 0.0
    turn = TurnAudio(uuid7(), ref, at, None, text, hold=Hold(budget_s))
    call.relay.turn_reported(turn)
    return turn


def pumped(call: Call, start: float, end: float) -> float:
    """Let time pass as the relay asks to be woken; returns the longest time that Plivo had nothing to play."""
    now, dry = start, 0.0
    while now < end:
        wake = call.listener.wakes[-1] if call.listener.wakes else end
        now = min(end, max(now + 0.001, wake))
        dry = max(dry, now - call.relay.clock.end_at)
        call.relay.pump(now)
    return dry


def test_nothing_of_a_held_turn_goes_before_its_verdict_and_200_ms_at_a_time_after_it() -> None:
    call = Call()
    turn = held(call, "t1", 0.0)
    sent = [call.play(0.1) for _ in range(100)]
    call.relay.agent_text(CHECKPOINT, 0.1)
    pumped(call, 0.1, 0.5)
    assert call.plivo == []
    call.relay.decide(turn, 0.5)
    assert call.audio_sent() == sent[:10]  # 200 ms
    assert pumped(call, 0.5, 2.49) < 0.001
    assert call.audio_sent() == sent
    assert call.plivo.index(CHECKPOINT) > call.plivo.index(sent[-1])
    assert turn.hold is not None
    assert turn.hold.held_s == pytest.approx(0.4)
    assert turn.hold.by_verdict


def test_the_budget_ends_a_hold_and_what_is_not_judged_then_goes_60_ms_ahead() -> None:
    call = Call()
    turn = held(call, "t1", 0.0, budget_s=0.3)
    sent = [call.play(0.1 + 0.001 * n) for n in range(100)]
    assert call.listener.wakes[-1] == pytest.approx(0.4)  # from the first held byte
    pumped(call, 0.2, 0.399)
    assert call.plivo == []
    now = 0.4
    while now < 1.4:
        call.relay.pump(now)
        assert call.relay.clock.lead(now) <= 0.08 + 1e-9
        assert call.relay.clock.end_at >= now
        now = max(now + 0.001, call.listener.wakes[-1])
    before = len(call.audio_sent())
    call.relay.decide(turn, now)
    assert call.relay.clock.lead(now) == pytest.approx(0.2, abs=0.02)
    assert call.audio_sent() == sent[: len(call.audio_sent())]
    assert len(call.audio_sent()) > before
    assert turn.hold is not None
    assert not turn.hold.by_verdict


def test_what_is_judged_of_a_growing_turn_goes_and_the_rest_only_when_plivo_runs_dry() -> None:
    call = Call()
    turn = held(call, "t1", 0.0)
    for _ in range(100):
        call.play(0.0)
    call.relay.decide(turn, 0.1, until_s=0.1)
    assert len(call.audio_sent()) == 5
    assert pumped(call, 0.1, 1.1) < 0.001
    assert 1.0 <= len(call.audio_sent()) * 0.02 <= 1.1


def test_large_frames_are_held_and_forwarded_whole() -> None:
    call = Call()
    turn = held(call, "t1", 0.0)
    large = [play(bytes([0x10, 0x90] * 80) * 25) for _ in range(3)]  # 500 ms each
    for text in large:
        call.relay.agent_text(text, 0.0)
    call.relay.decide(turn, 0.2)
    assert call.audio_sent() == large[:1]
    dry = pumped(call, 0.2, 1.69)
    assert call.audio_sent() == large
    assert dry < 0.001


def test_a_turn_behind_a_held_one_waits_and_one_without_a_hold_goes_as_ever() -> None:
    call = Call()
    first = held(call, "t1", 0.0, budget_s=5.0)
    call.play(0.0)
    second = call.report("t2", 0.0)
    late = [call.play(0.5 + step * 0.02) for step in range(40)]
    assert call.plivo == []
    call.relay.decide(first, 1.0)
    assert call.relay.current is second
    assert call.audio_sent()[1:] == late[: len(call.audio_sent()) - 1]
    assert call.relay.clock.lead(1.0) == pytest.approx(0.4, abs=0.03)


def test_the_agents_clear_empties_held_audio_first_and_is_forwarded() -> None:
    call = Call()
    turn = held(call, "t1", 0.0)
    for _ in range(10):
        call.play(0.1)
    call.relay.agent_text(CHECKPOINT, 0.1)
    call.relay.agent_text(CLEAR, 0.2)
    call.relay.plivo_text(CLEARED, 0.25)
    call.relay.decide(turn, 0.3)
    pumped(call, 0.3, 3.0)
    assert call.plivo == [CLEAR]
    assert call.agent == [CLEARED]


def test_what_stays_of_a_muted_turn_plays_before_what_mirror_says() -> None:
    call = Call()
    turn = call.report("t1", 0.0)
    call.relay.clock.round_trip_s = 0.0
    sent = [call.play(0.0) for _ in range(100)]
    call.relay.agent_text(CHECKPOINT, 0.0)
    call.relay.mute(turn, 0.1, keep_s=1.0)
    call.relay.take_over(turn, 0.1)
    began: list[float] = []
    call.relay.inject(b"\x10" * 800, "buffer", now=0.1, on_sent=began.append, on_played=lambda at: None)
    pumped(call, 0.1, 3.0)
    assert [text for text in call.audio_sent() if text in sent] == sent[:50]
    assert began == [pytest.approx(1.0)]
    call.relay.hand_back(3.0)
    # Its audio was muted, so the checkpoint behind it is answered by Mirror.
    assert [json.loads(text)["name"] for text in call.agent] == ["mine"]
    assert CHECKPOINT not in call.plivo


def test_audio_that_nobody_reported_is_held_for_the_budget_and_once() -> None:
    call = Call()
    call.relay.clock.round_trip_s = 0.0
    call.relay.hold_undecided_s = 0.5
    sent = [call.play(5.0 + n * 0.02) for n in range(40)]
    assert call.audio_sent() == sent[: len(call.audio_sent())]
    assert 14 <= len(call.audio_sent()) <= 20  # since 5.5
    assert pumped(call, 5.8, 6.29) < 0.001
    assert call.audio_sent() == sent


def test_a_pause_within_a_long_turn_is_not_taken_for_a_new_one() -> None:
    call = Call()
    call.relay.clock.round_trip_s = 0.0
    call.relay.hold_undecided_s = 0.5
    call.report("t1", 0.0, text="A turn with many words, of which some come later because a tool has to run first.")
    call.play(0.1)
    later = call.play(3.0)
    assert call.audio_sent()[-1] == later


def test_silence_that_is_sent_all_the_time_hides_no_unreported_speech() -> None:
    call = Call()
    call.relay.clock.round_trip_s = 0.0
    call.relay.hold_undecided_s = 0.5
    for step in range(150):
        call.play(10.0 + step * 0.02, SILENT)
    assert len(call.audio_sent()) > 100  # held once, as nobody had said what it is
    sent = len(call.audio_sent())
    spoken_at = 13.0
    for step in range(10):
        call.play(spoken_at + step * 0.02)
    waiting = [text for text in call.audio_sent()[sent:] if text == SPEECH_TEXT]
    assert waiting == []
    pumped(call, 13.2, 13.7)
    assert SPEECH_TEXT in call.audio_sent()


def test_what_a_turn_says_ahead_of_its_words_after_a_silence_waits_for_them() -> None:
    call = Call()
    call.relay.clock.round_trip_s = 0.0
    call.relay.hold_undecided_s = 0.5
    turn = call.report("t1", 0.0, text="One moment.")
    turn.growing = True
    first = [call.play(0.1) for _ in range(40)]
    pumped(call, 0.1, 1.0)
    later = call.play(3.0)
    assert call.audio_sent() == first
    turn.text += " It is here."
    call.relay.decide(turn, 3.2)
    assert call.audio_sent() == [*first, later]


def test_with_marks_only_audio_outside_of_them_is_undecided() -> None:
    call = Call(marks=True)
    call.relay.clock.round_trip_s = 0.0
    call.relay.hold_undecided_s = 0.5
    turn = call.report("t1", 0.0)
    unmarked = call.play(0.1)
    assert call.plivo == []
    pumped(call, 0.1, 0.7)
    assert call.audio_sent() == [unmarked]
    call.relay.audio_mark(turn, "start", None, 2.0)
    marked = call.play(2.0)
    assert call.audio_sent() == [unmarked, marked]


def test_words_are_placed_by_marks_and_else_by_an_average_pace() -> None:
    assert position_of(28, ()) == pytest.approx(2.0)
    marks = [(1.0, 10), (3.0, 30)]
    assert position_of(20, marks) == pytest.approx(2.0)
    assert position_of(5, marks) == pytest.approx(0.5)
    assert position_of(44, marks) == pytest.approx(4.0)


# The soft cut

TEXT = "Let me look at that. You will get all of your money back."


def spoken(call: Call, turn: TurnAudio, *, first_s: float, then_s: float, at: float) -> None:
    """Two sentences with a pause of 200 ms between them, all at once."""
    for audio, seconds in ((SPEECH, first_s), (SILENT, 0.2), (SPEECH, then_s)):
        for _ in range(round(seconds / 0.02)):
            call.play(at, audio)


@pytest.mark.parametrize(
    ("now", "plan", "keep_s"),
    [
        (0.1, Plan.REPLACE_HELD, 1.1),  # the second sentence is still at Mirror
        (0.9, Plan.CUT_WHEN_REACHED, 1.1),  # it is at Plivo, behind 200 ms of the first one
        (1.4, None, None),  # it is audible
    ],
)
def test_a_cut_spares_the_words_before_the_violation(now: float, plan: Plan | None, keep_s: float | None) -> None:
    call = Call()
    call.relay.clock.round_trip_s = 0.0
    turn = call.report("t1", 0.0, text=TEXT)
    spoken(call, turn, first_s=1.0, then_s=2.0, at=0.0)
    pumped(call, 0.0, now)
    cut = soft_cut(call.relay, turn, now, from_char=TEXT.index("You"))
    if plan is None:
        assert cut is None
        return
    assert cut is not None
    assert (cut[0], cut[2]) == (plan, pytest.approx(keep_s, abs=0.06))
    if plan is Plan.CUT_WHEN_REACHED:
        assert cut[1] == pytest.approx(1.1, abs=0.06)  # when the clear has to be there


def test_nothing_is_spared_of_a_turn_that_is_wrong_from_its_start_or_was_not_heard_yet() -> None:
    call = Call()
    turn = call.report("t1", 0.0, text=TEXT)
    assert soft_cut(call.relay, turn, 0.0, from_char=20) is None
    spoken(call, turn, first_s=1.0, then_s=2.0, at=0.0)
    assert soft_cut(call.relay, turn, 0.1, from_char=0) is None


def test_words_that_are_not_here_yet_are_not_waited_for() -> None:
    call = Call()
    call.relay.clock.round_trip_s = 0.0
    turn = call.report("t1", 0.0, text=TEXT)
    for step in range(20):  # 400 ms of the first sentence, at the pace of speech
        call.play(step * 0.02)
    cut = soft_cut(call.relay, turn, 0.1, from_char=TEXT.index("You"))
    assert cut is not None
    assert 0.1 < cut[2] <= 0.4
