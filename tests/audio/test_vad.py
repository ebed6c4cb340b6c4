"""Speech is found, and what a quiet line carries is not taken for it."""

import numpy as np
import pytest

from supervision.audio import mulaw
from supervision.audio.format import L16, MULAW, MediaFormat
from supervision.audio.levels import match_level
from supervision.audio.vad import BargeIn, SpeechDetector
from tests.support.speech import say

FORMATS = [MediaFormat(MULAW, 8000), MediaFormat(L16, 8000), MediaFormat(L16, 16000)]
CALLER = "Wait a moment, that is not what I asked you for."


def frames_of(payload: bytes, media_format: MediaFormat) -> list[bytes]:
    size = media_format.frame_bytes
    return [payload[at : at + size] for at in range(0, len(payload), size)]


def speech_share(payload: bytes, media_format: MediaFormat) -> float:
    detector = SpeechDetector(media_format)
    found = [detector.push(frame) for frame in frames_of(payload, media_format)]
    return sum(found) / len(found)


def noise(dbfs: float, seconds: float = 10.0) -> np.ndarray:
    signal = np.random.default_rng(7).normal(0, 32768 * 10 ** (dbfs / 20), int(8000 * seconds))
    return np.clip(signal, -32768, 32767).astype(np.int16)


@pytest.mark.parametrize("media_format", FORMATS, ids=lambda f: f.xml_content_type)
@pytest.mark.parametrize("level_dbfs", [-15.0, -25.0, -38.0])
def test_speech_is_detected_at_every_usual_level(media_format, level_dbfs):
    spoken = match_level(mulaw.decode(say(CALLER)), 8000, level_dbfs)
    assert speech_share(media_format.encode(spoken, 8000), media_format) > 0.6


@pytest.mark.parametrize("media_format", FORMATS, ids=lambda f: f.xml_content_type)
def test_digital_silence_is_no_speech(media_format):
    assert speech_share(media_format.silence(5000), media_format) == 0


@pytest.mark.parametrize("dbfs", [-72, -60, -50, -42])
def test_comfort_noise_is_no_speech(dbfs):
    payload = mulaw.encode(noise(dbfs))
    # A fresh detector takes up to 100 ms to learn the noise of the line.
    assert speech_share(payload, FORMATS[0]) <= 100 / 10_000
    barge_in = BargeIn(FORMATS[0])
    assert not any(barge_in.push(frame, need_ms=200) for frame in frames_of(payload, FORMATS[0]))


def test_the_size_of_the_chunks_does_not_matter():
    payload = say(CALLER)
    by_frame = SpeechDetector(FORMATS[0])
    by_odd_chunk = SpeechDetector(FORMATS[0])
    one = [found for frame in frames_of(payload, FORMATS[0]) for found in by_frame.frames(frame)]
    other = [found for at in range(0, len(payload), 217) for found in by_odd_chunk.frames(payload[at : at + 217])]
    assert one == other
    assert len(one) == len(payload) // 160


def test_a_payload_too_short_for_a_frame_keeps_the_last_answer():
    detector = SpeechDetector(FORMATS[0])
    spoken = frames_of(say(CALLER), FORMATS[0])
    speaking = [detector.push(frame) for frame in spoken]
    detector = SpeechDetector(FORMATS[0])
    for frame in spoken[: speaking.index(True) + 1]:
        detector.push(frame)
    assert detector.push(b"") is True
    assert detector.push(b"\xff" * 10) is True


def test_a_caller_who_speaks_up_barges_in_after_400_ms_of_speech():
    barge_in = BargeIn(FORMATS[0])
    quiet = FORMATS[0].silence(3000)
    assert not any(barge_in.push(frame) for frame in frames_of(quiet, FORMATS[0]))
    frames = frames_of(say(CALLER), FORMATS[0])
    at = next(i for i, frame in enumerate(frames) if barge_in.push(frame))
    assert 380 <= (at + 1) * 20 <= 900
    assert barge_in.speech_ms >= 400


def test_a_short_sound_does_not_barge_in_unless_the_agent_gave_way_too():
    speech = say(CALLER)
    detector = SpeechDetector(FORMATS[0])
    frames = frames_of(speech, FORMATS[0])
    spoken = [i for i, frame in enumerate(frames) if detector.push(frame)]
    short = b"".join(frames[spoken[0] : spoken[0] + 13])
    payload = FORMATS[0].silence(1000) + short + FORMATS[0].silence(1000)
    usual, agent_cleared = BargeIn(FORMATS[0]), BargeIn(FORMATS[0])
    assert not any(usual.push(frame) for frame in frames_of(payload, FORMATS[0]))
    assert any(agent_cleared.push(frame, need_ms=200) for frame in frames_of(payload, FORMATS[0]))


def test_a_barge_in_inside_one_large_payload_is_found_even_when_silence_follows():
    assert BargeIn(FORMATS[0]).push(say(CALLER) + FORMATS[0].silence(3000))


def test_reset_forgets_the_speech_so_far():
    barge_in = BargeIn(FORMATS[0])
    assert barge_in.push(say(CALLER))
    barge_in.reset()
    assert barge_in.speech_ms == 0
    assert not barge_in.push(b"")


@pytest.mark.parametrize("need_ms", [0, 19, 601])
def test_a_need_that_cannot_be_met_is_refused(need_ms):
    with pytest.raises(ValueError, match="need_ms must be from 20 to window_ms"):
        BargeIn(FORMATS[0], window_ms=600, need_ms=need_ms)
