"""One voice is made as loud as another, without clipping."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervision.audio.levels import LOUDEST_DBFS, QUIETEST_DBFS, apply_gain, match_level, rms_dbfs
from tests.support.speech import render

LINES = [
    "Let me correct that. I cannot promise a refund, but I can open a ticket for you.",
    "One moment, please.",
    "No.",
]


def speech_rms_dbfs(pcm: np.ndarray, rate: int) -> float:
    """The level measured another way than the code does: RMS over the 50 ms windows within 25 dB of the loudest."""
    size = rate // 20
    windows = pcm[: len(pcm) // size * size].astype(float).reshape(-1, size)
    power = (windows**2).mean(axis=1) / 32768**2
    return 10 * np.log10(power[power > power.max() / 10**2.5].mean())


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("target", [-40.0, -30.0, -24.0, -20.0, -16.0, -12.0])
def test_speech_comes_within_2_db_of_the_target_and_never_clips(line, target):
    speech = render(line)
    louder = match_level(speech.samples, speech.sample_rate, target)
    assert abs(rms_dbfs(louder, speech.sample_rate) - target) <= 2
    assert abs(speech_rms_dbfs(louder, speech.sample_rate) - target) <= 2
    assert np.abs(louder.astype(int)).max() <= 32768 * 10 ** (-0.9 / 20)
    assert len(louder) == len(speech.samples)


def test_the_loudest_target_is_still_reached_without_clipping():
    speech = render(LINES[0])
    loudest = match_level(speech.samples, speech.sample_rate, 0.0)
    assert abs(rms_dbfs(loudest, speech.sample_rate) - LOUDEST_DBFS) <= 2
    assert np.abs(loudest.astype(int)).max() <= 32768 * 10 ** (-0.9 / 20)


def test_targets_beyond_the_range_are_moved_to_its_ends():
    speech = render(LINES[1])
    quietest = match_level(speech.samples, speech.sample_rate, -90.0)
    assert rms_dbfs(quietest, speech.sample_rate) == pytest.approx(QUIETEST_DBFS, abs=0.5)


def test_pauses_do_not_count():
    speech = render(LINES[0])
    gap = np.zeros(speech.sample_rate * 20, np.int16)
    padded = np.concatenate([gap, speech.samples, gap])
    assert rms_dbfs(padded, speech.sample_rate) == pytest.approx(rms_dbfs(speech.samples, speech.sample_rate), abs=1.0)


def test_a_tone_has_the_level_that_arithmetic_gives_it():
    tone = (10_000 * np.sin(np.arange(8000) * 0.4)).astype(np.int16)
    assert rms_dbfs(tone, 8000) == pytest.approx(20 * np.log10(10_000 / np.sqrt(2) / 32768), abs=0.05)


@pytest.mark.parametrize(
    "pcm",
    [np.zeros(0, np.int16), np.zeros(3, np.int16), np.zeros(8000, np.int16), np.full(8000, 700, np.int16)],
    ids=["nothing", "less than a frame", "silence", "an offset"],
)
def test_audio_without_a_voice_has_no_level_and_is_left_alone(pcm):
    assert rms_dbfs(pcm, 8000) is None
    assert np.array_equal(match_level(pcm, 8000, -20), pcm)


@pytest.mark.parametrize("target", [float("nan"), float("inf")])
def test_a_target_that_is_no_number_is_refused(target):
    with pytest.raises(ValueError, match="target_dbfs"):
        match_level(np.ones(800, np.int16), 8000, target)


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), length=st.integers(0, 3000), gain=st.floats(-60, 60))
def test_no_gain_clips_any_signal(seed, length, gain):
    signal = np.random.default_rng(seed).integers(-32768, 32768, length).astype(np.int16)
    out = apply_gain(signal, 8000, gain)
    assert len(out) == length
    assert not length or np.abs(out.astype(int)).max() <= round(0.89 * 32768) + 1


def test_the_limiter_keeps_the_sign_and_what_lies_far_from_a_peak():
    signal = np.full(8000, 3000, np.int16)
    signal[4000] = 32767
    out = apply_gain(signal, 8000, 6.0)
    plain = round(3000 * 10 ** (6 / 20))
    assert (out > 0).all()
    assert np.abs(out[:3900] - plain).max() <= 1
    assert np.abs(out[4100:] - plain).max() <= 1
