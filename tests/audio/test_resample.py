"""Sample counts are exact, what the line cannot carry is gone, and a stream equals one conversion."""

from math import ceil, gcd

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervision.audio.resample import RATES, ResampleError, Resampler, _phase_taps, resample

PAIRS = [(a, b) for a in RATES for b in RATES]


def tone(hz: float, rate: int, seconds: float = 1.0, amplitude: float = 16000) -> np.ndarray:
    return np.rint(amplitude * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)).astype(np.int16)


def gain_db(signal: np.ndarray, amplitude: float = 16000) -> float:
    """Level of a converted tone against the tone, its first 10 ms left out."""
    steady = signal[len(signal) // 100 :].astype(float)
    return 20 * np.log10(max(np.sqrt(np.mean(steady**2)), 1e-3) / (amplitude / np.sqrt(2)))


@pytest.mark.parametrize(("from_rate", "to_rate"), PAIRS)
def test_the_number_of_samples_is_exact(from_rate, to_rate):
    for count in (0, 1, 2, 79, 160, 441, 480, 1001):
        assert len(resample(np.zeros(count, np.int16), from_rate, to_rate)) == ceil(count * to_rate / from_rate)


def test_twenty_milliseconds_of_24_khz_are_a_frame_of_160_samples_every_time():
    resampler = Resampler(24_000, 8_000)
    assert [len(resampler.push(np.zeros(480, np.int16))) for _ in range(50)] == [160] * 50


def test_a_tone_swept_from_4500_hz_up_is_at_least_40_db_down_at_8_khz():
    """Measured frequency by frequency: all that comes out of such a tone is what folded back into the band."""
    worst = max(gain_db(resample(tone(hz, 24_000), 24_000, 8_000)) for hz in range(4500, 12_000, 50))
    assert worst <= -40
    # The design promises more, and 60 dB is about what 16-bit samples of this tone can show.
    assert worst <= -58


def test_one_long_sweep_leaves_nothing_audible():
    rate, seconds = 24_000, 4
    time = np.arange(rate * seconds) / rate
    sweep = np.sin(2 * np.pi * (4500 * time + (11_900 - 4500) / (2 * seconds) * time**2))
    ramp = np.minimum(1, np.minimum(time, seconds - time) / 0.05)  # a hard start is a click, which is all frequencies
    out = resample(np.rint(16000 * ramp * sweep).astype(np.int16), rate, 8_000)
    assert gain_db(out) <= -55


@pytest.mark.parametrize("hz", [100, 300, 1000, 2000, 3000, 3400])
@pytest.mark.parametrize("from_rate", [16_000, 22_050, 24_000, 44_100, 48_000])
def test_the_telephone_band_passes_unchanged(from_rate, hz):
    assert abs(gain_db(resample(tone(hz, from_rate), from_rate, 8_000))) < 0.1


@pytest.mark.parametrize("hz", [200, 1000, 3000])
@pytest.mark.parametrize("to_rate", [16_000, 22_050, 24_000, 44_100, 48_000])
def test_upsampling_adds_no_images(to_rate, hz):
    """The spectrum of the result holds the tone and, 55 dB below it, nothing."""
    out = resample(tone(hz, 8_000), 8_000, to_rate).astype(float)[to_rate // 10 :]
    spectrum = np.abs(np.fft.rfft(out * np.blackman(len(out))))
    peak = round(hz * len(out) / to_rate)
    around = np.zeros(len(spectrum), bool)
    around[max(0, peak - 5) : peak + 6] = True
    assert 20 * np.log10(spectrum[~around].max() / spectrum[around].max()) < -55


@pytest.mark.parametrize(("from_rate", "to_rate"), [(a, b) for a, b in PAIRS if a != b])
def test_the_result_is_the_plain_sum_over_the_filter(from_rate, to_rate):
    """Against a direct convolution of the zero-stuffed signal, which shares only the taps."""
    up, down = to_rate // gcd(from_rate, to_rate), from_rate // gcd(from_rate, to_rate)
    signal = np.random.default_rng(5).integers(-20_000, 20_000, 250).astype(np.int16)
    taps = _phase_taps(from_rate, to_rate)[:, ::-1].T.ravel()
    stuffed = np.zeros(len(signal) * up)
    stuffed[::up] = signal
    expected = np.convolve(stuffed, taps)[: len(stuffed)][::down]
    out = resample(signal, from_rate, to_rate)
    assert len(out) == len(expected)
    assert np.abs(out - expected).max() <= 0.5 + 1e-6


@settings(deadline=None, max_examples=150)
@given(
    pair=st.sampled_from(PAIRS),
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(0, 700), max_size=12),
)
def test_a_stream_in_any_chunks_equals_one_conversion(pair, seed, sizes):
    signal = np.random.default_rng(seed).integers(-32768, 32768, sum(sizes)).astype(np.int16)
    resampler = Resampler(*pair)
    parts, at = [], 0
    for size in sizes:
        parts.append(resampler.push(signal[at : at + size]))
        at += size
        assert sum(map(len, parts)) == ceil(at * pair[1] / pair[0])
    whole = resample(signal, *pair)
    assert np.array_equal(np.concatenate([*parts, whole[:0]]), whole)


def test_silence_stays_silent_and_an_offset_stays_flat():
    assert not resample(np.zeros(5000, np.int16), 24_000, 8_000).any()
    flat = resample(np.full(5000, 1000, np.int16), 44_100, 8_000)[60:]
    assert np.abs(flat - 1000).max() <= 1


def test_full_scale_is_clipped_and_does_not_wrap():
    square = np.where(np.arange(24_000) // 30 % 2, 32767, -32768).astype(np.int16)
    out = resample(square, 24_000, 8_000).astype(int)
    assert out.max() == 32767
    assert out.min() == -32768
    # A wrapped overshoot would be a jump across the whole range inside one half wave.
    assert np.abs(np.diff(out)).max() < 60_000


def test_the_same_rate_gives_a_copy():
    signal = tone(500, 8_000)
    out = resample(signal, 8_000, 8_000)
    assert np.array_equal(out, signal)
    out[0] = 99
    assert signal[0] == 0


@pytest.mark.parametrize(("from_rate", "to_rate", "named"), [(11_025, 8_000, "11025"), (8_000, 0, "0 Hz")])
def test_a_rate_that_is_not_supported_is_named(from_rate, to_rate, named):
    with pytest.raises(ResampleError, match=f"{named}.*use one of 8000, 16000"):
        resample(np.zeros(10, np.int16), from_rate, to_rate)
