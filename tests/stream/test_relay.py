"""The relay's rules, frame by frame, on a clock that the test turns."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from typing import Any

import orjson
import pytest

from mirror_saas.ids import uuid7
from supervision.audio.format import MediaFormat
from supervision.engine.adapters.relay import CallRelay
from supervision.engine.adapters.turn_audio import TurnAudio

STREAM = "20170ada-f610-433b-8758-c02a2aab3662"
SPEECH = bytes([0x10, 0x90] * 80)  # loud mu-law, 20 ms
SILENCE = b"\xff" * 160


class Listener:
    """Remembers what the relay told it."""

    def __init__(self) -> None:
        self.mirror: list[dict[str, Any]] = []
        self.garbled: list[str] = []
        self.begun: list[TurnAudio] = []
        self.over: list[TurnAudio] = []
        self.pressed = 0
        self.cleared = 0
        self.dropped: list[tuple[str, float]] = []
        self.wakes: list[float] = []

    def mirror_frame(self, frame: dict[str, Any]) -> None:
        self.mirror.append(frame)

    def mirror_garbled(self, message: str) -> None:
        self.garbled.append(message)

    def turn_started(self, turn: TurnAudio) -> None:
        self.begun.append(turn)

    def turn_ended(self, turn: TurnAudio) -> None:
        self.over.append(turn)

    def caller_pressed(self) -> None:
        self.pressed += 1

    def agent_cleared(self) -> None:
        self.cleared += 1

    def media_dropped(self, direction: str, seconds: float) -> None:
        self.dropped.append((direction, seconds))

    def wake_at(self, when: float) -> None:
        self.wakes.append(when)


class Call:
    """A relay with both its sides written down."""

    def __init__(self, *, hello: bool = True, marks: bool = False) -> None:
        self.plivo: list[str] = []
        self.agent: list[str] = []
        self.listener = Listener()
        self.relay = CallRelay(
            stream_id=STREAM,
            media_format=MediaFormat(),
            to_plivo=self.plivo.append,
            to_agent=self.agent.append,
            listener=self.listener,
            loads=orjson.loads,
        )
        self.relay.hello = hello
        self.relay.marks = marks

    def report(self, ref: str, at: float, text: str = "Some words.", seen: str | None = None) -> TurnAudio:
        turn = TurnAudio(uuid7(), ref, at, seen, text)
        self.relay.turn_reported(turn)
        return turn

    def play(self, at: float, audio: bytes = SPEECH) -> str:
        text = play(audio)
        self.relay.agent_text(text, at)
        return text

    def plivo_events(self) -> list[str]:
        return [json.loads(text)["event"] for text in self.plivo]

    def own_checkpoints(self) -> list[str]:
        names = [json.loads(text).get("name", "") for text in self.plivo]
        return [name for name in names if name.startswith("__mirror_")]

    def audio_sent(self) -> list[str]:
        return [text for text in self.plivo if '"playAudio"' in text]


def play(audio: bytes) -> str:
    media = {"contentType": "audio/x-mulaw", "sampleRate": 8000, "payload": b64encode(audio).decode()}
    return json.dumps({"event": "playAudio", "media": media})


def played(name: str) -> str:
    return json.dumps({"event": "playedStream", "sequenceNumber": 9, "streamId": STREAM, "name": name})


CLEARED = json.dumps({"event": "clearedAudio", "sequenceNumber": 9, "streamId": STREAM})
CHECKPOINT = json.dumps({"event": "checkpoint", "streamId": STREAM, "name": "mine"})
CLEAR = json.dumps({"event": "clearAudio", "streamId": STREAM})


def test_frames_pass_byte_for_byte_in_both_directions() -> None:
    call = Call(hello=False)
    odd = '{ "event" : "media", "sequenceNumber":"3", "media":{"payload":"' + b64encode(SPEECH).decode() + '"} }'
    unknown = '{"event":"muteStream","x":[1,2.50]}'
    call.relay.plivo_text(odd, 0.0)
    call.relay.plivo_text(unknown, 0.0)
    call.relay.plivo_text("not json", 0.0)
    call.relay.agent_text('{"event":"sendDTMF","dtmf":"12#"}', 0.0)
    call.relay.agent_text("[1, 2]", 0.0)
    call.relay.agent_text("not json either", 0.0)
    assert call.agent == [odd, unknown, "not json"]
    assert call.plivo == ['{"event":"sendDTMF","dtmf":"12#"}', "[1, 2]", "not json either"]


def test_mirror_frames_are_taken_out_and_never_reach_plivo() -> None:
    call = Call(hello=False)
    call.relay.agent_text('{"event":"mirror.hello","v":1}', 0.0)
    call.relay.agent_text('{"event":"mirror.turn", broken', 0.0)
    assert call.plivo == []
    assert call.listener.mirror == [{"event": "mirror.hello", "v": 1}]
    assert len(call.listener.garbled) == 1


def test_an_agent_without_hello_is_never_paced() -> None:
    call = Call(hello=False)
    sent = [call.play(0.0) for _ in range(200)]
    assert call.plivo == sent


def test_an_agent_that_said_hello_is_paced_400_ms_ahead_by_whole_frames() -> None:
    call = Call()
    call.relay.clock.round_trip_s = 0.0
    sent = [call.play(0.0) for _ in range(100)]
    assert call.audio_sent() == sent[:20]
    call.relay.pump(1.0)  # a second has played: one more second fits
    assert call.audio_sent() == sent[:40]  # the queue had run dry: 400 ms again
    now = 1.0
    while call.relay.clock.end_at < 3.0 and now < 5.0:
        now = max(now + 0.001, call.listener.wakes[-1])
        call.relay.pump(now)
        assert call.relay.clock.lead(now) <= 0.4 + 0.02 + 1e-9
    assert call.audio_sent() == sent


def test_a_checkpoint_never_overtakes_audio_that_waits() -> None:
    call = Call()
    for _ in range(40):
        call.play(0.0)
    call.relay.agent_text(CHECKPOINT, 0.0)
    assert CHECKPOINT not in call.plivo
    for step in range(1, 200):
        call.relay.pump(step * 0.02)
    assert call.plivo[-1] == CHECKPOINT
    assert len(call.audio_sent()) == 40


def test_only_acknowledgements_of_mirrors_own_checkpoints_are_swallowed() -> None:
    call = Call()
    turn = call.report("t1", 0.0)
    call.play(0.1)
    (anchor,) = call.own_checkpoints()
    call.relay.plivo_text(played(anchor), 0.2)
    call.relay.plivo_text(played("__mirror_somebody_else_1"), 0.2)
    call.relay.plivo_text(played("mine"), 0.3)
    assert call.agent == [played("__mirror_somebody_else_1"), played("mine")]
    assert turn.anchored


def test_a_turns_audio_starts_after_200_ms_without_agent_speech() -> None:
    call = Call()
    first = call.report("t1", 0.0)
    for step in range(10):
        call.play(step * 0.02)
    second = call.report("t2", 0.21)
    call.play(0.22)  # 40 ms after speech: still the first turn's
    assert call.relay.current is first
    call.play(0.5)
    assert call.relay.current is second
    assert call.listener.over == [first]


def test_a_turn_that_is_reported_just_after_its_audio_began_has_that_audio() -> None:
    call = Call()
    call.play(5.0)
    call.play(5.02)
    first = call.report("a", 5.3)
    call.play(5.31)
    assert call.listener.begun == [first]
    assert round(first.received_s, 3) == 0.06
    assert round(first.runs.total_s, 3) == 0.06
    # The next one after a pause: what was counted to the first meanwhile is the second's.
    call.play(8.0)
    second = call.report("b", 8.02)
    call.play(8.03)
    assert call.relay.current is second
    assert call.listener.over == [first]
    assert (round(first.received_s, 3), round(second.received_s, 3)) == (0.06, 0.04)
    assert first.ends_at is not None
    assert first.ends_at < 8.0
    assert (len(first.audio), len(second.audio)) == (480, 320)


def test_a_turn_that_is_reported_long_after_other_audio_began_waits_for_its_own() -> None:
    call = Call()
    for frame in range(100):
        call.play(frame * 0.02)
    turn = call.report("a", 2.0)
    call.play(2.01)
    assert not turn.started
    call.play(2.5)
    assert call.relay.current is turn


def test_a_pause_inside_a_turn_gives_none_of_it_to_the_next() -> None:
    call = Call()
    first = call.report("a", 0.0)
    call.play(0.1)
    call.play(0.9)
    second = call.report("b", 1.0)
    call.play(1.01)
    assert call.relay.current is first
    assert not second.started


def test_audio_that_waits_goes_with_the_turn_that_is_reported_late() -> None:
    call = Call()
    for _ in range(50):
        call.play(5.0)
    turn = call.report("a", 5.01)
    call.relay.mute(turn, 5.02)
    call.relay.pump(9.0)
    assert len(call.audio_sent()) == 21  # what had gone ahead of it
    assert call.relay.current is turn


def test_a_late_report_after_a_muted_turn_is_heard_from_there_on() -> None:
    call = Call()
    wrong = call.report("a", 0.0)
    call.play(0.1)
    call.relay.mute(wrong, 0.2)
    call.play(5.0)
    right = call.report("b", 5.01)
    sent = len(call.audio_sent())
    call.play(5.02)
    assert len(call.audio_sent()) == sent + 1
    assert round(right.received_s, 3) == 0.02


def test_a_turn_reported_while_mirror_speaks_takes_no_audio_that_is_held() -> None:
    call = Call()
    wrong = call.report("a", 0.0)
    call.play(0.1)
    call.relay.take_over(wrong, 0.2)
    call.play(5.0)
    later = call.report("b", 5.01)
    assert not later.started


def test_silence_that_an_agent_streams_counts_as_a_gap() -> None:
    call = Call()
    first = call.report("t1", 0.0)
    call.play(0.0)
    for step in range(1, 13):
        call.play(step * 0.02, SILENCE)
    second = call.report("t2", 0.26)
    call.play(0.27)
    assert first.ended
    assert call.relay.current is second


@pytest.mark.parametrize("frame_ms", [5, 10, 20, 100])
def test_silence_counts_as_a_gap_however_long_its_frames_are(frame_ms: int) -> None:
    call = Call()
    first = call.report("t1", 0.0)
    call.play(0.0)
    second = call.report("t2", 0.01)
    silence = b"\xff" * 8 * frame_ms
    for step in range(170 // frame_ms):
        call.play(0.02 + step * frame_ms / 1000, silence)
    assert call.relay.current is first
    call.play(0.2, silence)
    assert first.ended
    assert call.relay.current is second


def test_while_a_turn_waits_for_a_gap_few_frames_are_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0
    louder_than = MediaFormat.louder_than

    def counted(self: MediaFormat, audio: bytes, peak: int) -> bool:
        nonlocal looked
        looked += 1
        return louder_than(self, audio, peak)

    monkeypatch.setattr(MediaFormat, "louder_than", counted)
    call = Call()
    first = call.report("t1", 0.0)
    call.play(0.0)
    call.report("t2", 0.01)
    for step in range(1, 501):
        call.play(step * 0.02)
    assert call.relay.current is first
    assert looked < 70  # of 500 frames in 10 s: one for each 200 ms


def test_with_marks_only_mirror_audio_says_whose_audio_it_is() -> None:
    call = Call(marks=True)
    turn = call.report("t1", 0.0)
    call.play(1.0)
    assert call.relay.current is None
    call.relay.audio_mark(turn, "start", None, 1.1)
    call.play(1.2)
    assert call.relay.current is turn
    call.relay.audio_mark(turn, "end", None, 1.3)
    call.play(1.4)
    assert turn.received_s == 0.02


def test_a_muted_turn_stays_mute_however_late_its_audio_comes() -> None:
    call = Call()
    turn = call.report("t1", 0.0)
    call.play(0.0)
    call.relay.mute(turn, 0.1)
    before = len(call.plivo)
    for step in range(100):
        call.play(0.1 + step * 0.02)
    call.relay.agent_text(CHECKPOINT, 2.2)
    assert len(call.plivo) == before
    call.relay.hand_back(2.3)
    call.play(60.0)
    assert len(call.plivo) == before


def test_a_muted_checkpoint_is_answered_at_hand_back_in_order() -> None:
    call = Call()
    turn = call.report("t1", 0.0)
    call.play(0.0)
    call.relay.agent_text(CHECKPOINT, 0.01)
    call.relay.speaking = call.relay.holding = True
    call.relay.mute(turn, 0.1)
    call.relay.clear(lambda kind, at: None, 0.1)
    call.relay.agent_text(CHECKPOINT.replace("mine", "later"), 0.2)
    assert call.agent == []
    call.relay.hand_back(1.0)
    assert [json.loads(text)["name"] for text in call.agent] == ["mine", "later"]
    assert json.loads(call.agent[0]).keys() == {"event", "sequenceNumber", "streamId", "name"}
    call.relay.plivo_text(played("mine"), 1.5)  # the genuine one, late: the agent has had its answer
    assert len(call.agent) == 2


def test_a_genuine_answer_during_an_intervention_waits_for_hand_back() -> None:
    call = Call()
    turn = call.report("t1", 0.0)
    call.play(0.0)
    call.relay.agent_text(CHECKPOINT, 0.01)
    call.relay.speaking = call.relay.holding = True
    call.relay.mute(turn, 0.1)
    call.relay.clear(lambda kind, at: None, 0.1)
    call.relay.plivo_text(played("mine"), 0.2)
    assert call.agent == []
    call.relay.hand_back(1.0)
    assert len(call.agent) == 1
    call.relay.plivo_text(played("mine"), 1.1)  # the agent used the name again: this one is new
    assert len(call.agent) == 2


def test_an_owed_acknowledgement_goes_out_ten_seconds_after_it_was_due() -> None:
    call = Call()
    turn = call.report("t1", 0.0)
    call.play(0.0)
    call.relay.agent_text(CHECKPOINT, 0.01)
    call.relay.speaking = call.relay.holding = True
    call.relay.mute(turn, 0.1)
    call.relay.clear(lambda kind, at: None, 0.1)
    call.relay.pump(9.9)
    assert call.agent == []
    call.relay.pump(10.3)
    assert len(call.agent) == 1


def test_each_cleared_audio_goes_to_whoever_asked() -> None:
    call = Call()
    proofs: list[str] = []
    call.relay.agent_text(CLEAR, 0.0)
    call.relay.clear(lambda kind, at: proofs.append(kind), 0.1)
    call.relay.plivo_text(CLEARED, 0.2)
    assert call.agent == [CLEARED]
    assert proofs == []
    call.relay.plivo_text(CLEARED, 0.3)
    assert call.agent == [CLEARED]
    assert proofs == ["cleared"]


def test_the_fence_proves_silence_when_cleared_audio_is_lost_and_shifts_nothing() -> None:
    call = Call()
    proofs: list[str] = []
    call.relay.clear(lambda kind, at: proofs.append(kind), 0.0)
    fence = call.own_checkpoints()[-1]
    call.relay.plivo_text(played(fence), 0.1)
    assert proofs == ["fence"]
    call.relay.agent_text(CLEAR, 0.2)
    call.relay.plivo_text(CLEARED, 0.3)
    assert call.agent == [CLEARED]


def test_a_doubled_cleared_audio_is_not_shown_to_the_agent() -> None:
    call = Call()
    call.relay.clear(lambda kind, at: None, 0.0)
    call.relay.plivo_text(CLEARED, 0.1)
    call.relay.plivo_text(CLEARED, 0.1)
    assert call.agent == []


def test_a_clear_that_was_never_answered_expires() -> None:
    call = Call()
    call.relay.clear(lambda kind, at: None, 0.0)
    call.relay.agent_text(CLEAR, 3.0)
    call.relay.plivo_text(CLEARED, 3.1)
    assert call.agent == [CLEARED]


def test_the_agents_clear_is_answered_and_not_forwarded_while_mirror_speaks() -> None:
    call = Call()
    call.relay.speaking = call.relay.holding = True
    call.report("t2", 0.0)
    call.play(0.1)
    call.relay.agent_text(CLEAR, 0.2)
    assert call.plivo == []
    assert [json.loads(text)["event"] for text in call.agent] == ["clearedAudio"]
    assert call.listener.cleared == 1
    call.relay.hand_back(1.0)
    assert call.plivo == []  # what was held had been cleared


def test_the_agents_clear_empties_its_waiting_audio_first() -> None:
    call = Call()
    for _ in range(100):
        call.play(0.0)
    call.relay.agent_text(CLEAR, 0.1)
    count = len(call.plivo)
    call.relay.pump(1.0)
    assert call.plivo[-1] == CLEAR
    assert len(call.plivo) == count


def test_later_turns_are_held_in_order_and_released_at_hand_back() -> None:
    call = Call()
    bad = call.report("bad", 0.0)
    call.play(0.0)
    call.relay.speaking = call.relay.holding = True
    call.relay.mute(bad, 0.1)
    call.report("good", 0.5)
    frames = [call.play(0.6 + step * 0.02, bytes([0x10 + step] * 160)) for step in range(5)]
    call.relay.agent_text(CHECKPOINT, 0.8)
    before = len(call.plivo)
    call.relay.hand_back(1.0)
    released = [text for text in call.plivo[before:] if "__mirror_" not in text]
    assert released == [*frames, CHECKPOINT]


def test_held_audio_is_bounded_and_what_is_lost_is_counted() -> None:
    call = Call()
    call.relay.speaking = call.relay.holding = True
    call.report("t", 0.0)
    for step in range(40):
        call.play(step * 1.0, SPEECH * 50)  # a second each
    assert len(call.listener.dropped) == 10
    call.relay.hand_back(41.0)
    for step in range(400):
        call.relay.pump(41.0 + step * 0.1)
    assert len(call.audio_sent()) == 30


def test_injected_audio_is_paced_in_whole_frames_and_ends_with_its_checkpoint() -> None:
    call = Call()
    call.relay.clock.round_trip_s = 0.0
    starts: list[float] = []
    ends: list[float] = []
    # Speech ends where it ends: not at a frame, and not at a millisecond either.
    call.relay.inject(bytes(8 * 1010 + 3), "buffer", now=0.0, on_sent=starts.append, on_played=ends.append)
    assert len(call.audio_sent()) == 20
    now = 0.0
    while not call.own_checkpoints():
        now = call.listener.wakes[-1]
        call.relay.pump(now)
    assert len(call.audio_sent()) == 51
    assert {len(b64decode(json.loads(text)["media"]["payload"])) for text in call.audio_sent()} == {160}
    last = json.loads(call.audio_sent()[-1])
    assert last["streamId"] == STREAM
    assert starts == [0.0]
    call.relay.plivo_text(played(call.own_checkpoints()[-1]), 1.03)
    assert ends == [1.03]


def test_what_was_heard_is_bounded_by_clear_and_proof() -> None:
    call = Call()
    call.relay.clock.round_trip_s = 0.0
    turn = call.report("t1", 0.0)
    for step in range(15):
        call.play(step * 0.02)
    call.relay.clear(lambda kind, at: None, 0.16)
    call.relay.plivo_text(CLEARED, 0.2)
    low, high = turn.heard_span(5.0)
    assert abs(low - 0.16) < 1e-6
    assert abs(high - 0.2) < 1e-6


def test_an_anchor_moves_the_play_clock_to_what_plivo_says() -> None:
    call = Call()
    call.relay.clock.round_trip_s = 0.0
    turn = call.report("t1", 0.0)
    call.play(0.0)
    (anchor,) = call.own_checkpoints()
    call.relay.plivo_text(played(anchor), 0.12)  # 100 ms later than the clock thought
    assert abs((turn.runs.starts_at or 0) - 0.1) < 1e-6
    assert abs(call.relay.clock.end_at - 0.12) < 1e-6


def test_a_key_press_is_forwarded_and_noticed() -> None:
    call = Call()
    dtmf = json.dumps({"event": "dtmf", "dtmf": {"digit": "5"}})
    call.relay.plivo_text(dtmf, 0.0)
    assert call.agent == [dtmf]
    assert call.listener.pressed == 1


def test_frames_that_are_no_sense_cost_nothing_but_themselves() -> None:
    call = Call()
    for text in (
        "",
        "null",
        "[]",
        "{",
        '{"event":null}',
        '{"event":"playAudio"}',
        '{"event":"playAudio","media":null}',
        '{"event":"playAudio","media":{"payload":"%%%not base64"}}',
        '{"event":"checkpoint","name":7}',
        '{"event":"playedStream"}',
        "[" * 100_000,
        '{"event":"clearAudio","streamId":[]}',
    ):
        call.relay.agent_text(text, 0.0)
        call.relay.plivo_text(text, 0.0)
    assert len(call.agent) == 12
