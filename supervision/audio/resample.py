"""Sample-rate conversion by a polyphase FIR low-pass, streaming or in one go.

A telephone line ends at 4 kHz. Whatever a 24 kHz voice has above that folds back as a hiss over its own sibilants
unless it is filtered out first, which is why this is not a matter of taking every third sample.

The filter is a Kaiser-windowed sinc (Oppenheim & Schafer, Discrete-Time Signal Processing, section 7.6): flat to 0.86
and at least 60 dB down from 1.1 of the lower Nyquist frequency, so for 8 kHz flat to 3.4 kHz and silent from 4.4 kHz.
It is causal, and delays by about 2 ms towards 8 kHz.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, gcd

import numpy as np
import numpy.typing as npt

from supervision.audio.pcm import Pcm

RATES = (8000, 16000, 22050, 24000, 44100, 48000)
"""Sample rates in Hz that can be converted into one another."""

_PASS_EDGE = 0.86
_STOP_EDGE = 1.10
_ATTENUATION_DB = 66.0  # designed with some reserve to the 60 dB that are promised
_ROW = 16  # outputs computed together, see _kernel

# OpenBLAS puts a product on several threads from 2**18 multiplications on. On a server whose cores are all at work,
# waiting for the other thread costs 10 ms or more, a hundred times what the product takes on one.
_LARGEST_PRODUCT = 1 << 18

# Taps are multiples of 2**-24. An int16 sample times such a tap, summed over a window, stays below 2**53, so float64
# adds it up without rounding and in any order: that is what makes a stream equal the one-shot result bit for bit.
_TAP_SCALE = float(1 << 24)


class ResampleError(ValueError):
    """A sample rate that cannot be converted."""


class Resampler:
    """Converts a stream from one sample rate to another, chunk by chunk.

    After n input samples, in whatever chunks they came, exactly ceil(n * to_rate / from_rate) have come out.
    Not safe for use from two threads at once.
    """

    def __init__(self, from_rate: int, to_rate: int) -> None:
        """Rates in Hz, both of `RATES`. Raises ResampleError for any other."""
        for rate in (from_rate, to_rate):
            if rate not in RATES:
                raise ResampleError(f"sample rate {rate} Hz is not supported; use one of {', '.join(map(str, RATES))}")
        self._passes = from_rate == to_rate
        self._kernel, self._taken_per_row = _kernel(from_rate, to_rate)
        self._history = self._kernel.shape[0] - self._taken_per_row
        common = gcd(from_rate, to_rate)
        self._up, self._down = to_rate // common, from_rate // common
        self._pending = np.zeros(self._history, dtype=np.int16)
        self._given = 0  # output samples of the unfinished row that have been returned already

    def push(self, pcm: Pcm) -> Pcm:
        """The next samples of the stream; returns what can be said of the output so far."""
        pcm = np.asarray(pcm, dtype=np.int16)
        if self._passes:
            return pcm.copy()
        signal = np.concatenate((self._pending, pcm))
        new = len(signal) - self._history  # inputs since the start of the unfinished row
        due = -(-new * self._up // self._down)
        span, per_row = self._kernel.shape
        rows = -(-due // per_row)
        block = min(max(1, _LARGEST_PRODUCT // self._kernel.size), max(rows, 1))
        rows = -(-rows // block) * block
        # Outputs that need inputs still to come are computed on zeros, and cut off again.
        padded = np.zeros(rows * self._taken_per_row + self._history)
        known = min(len(signal), len(padded))
        padded[:known] = signal[:known]
        windows = np.lib.stride_tricks.sliding_window_view(padded, span)[:: self._taken_per_row] if rows else padded[:0]
        blocks = np.ascontiguousarray(windows).reshape(rows // block, block, span)
        summed = (blocks @ self._kernel).ravel()[self._given : due]
        finished = new // self._taken_per_row
        self._pending = signal[finished * self._taken_per_row :]
        self._given = due - finished * per_row
        return np.clip(np.rint(summed), -32768, 32767).astype(np.int16)


def resample(pcm: Pcm, from_rate: int, to_rate: int) -> Pcm:
    """`pcm` at `from_rate` Hz as ceil(n * to_rate / from_rate) samples at `to_rate` Hz.

    Equal to what a Resampler gives for the same samples. Raises ResampleError for a rate not in `RATES`.
    """
    return Resampler(from_rate, to_rate).push(pcm)


@lru_cache(maxsize=len(RATES) ** 2)
def _kernel(from_rate: int, to_rate: int) -> tuple[npt.NDArray[np.float64], int]:
    """The whole conversion as one matrix, and how many inputs it moves on by.

    A row of outputs is a row of consecutive inputs times the matrix, of shape (inputs, outputs). Rows are at least
    _ROW outputs long: the product of two matrices is many times faster than as many single sums.
    """
    common = gcd(from_rate, to_rate)
    up, down = to_rate // common, from_rate // common
    phases = _phase_taps(from_rate, to_rate)
    width = phases.shape[1]
    cycles = ceil(_ROW / up)
    kernel = np.zeros((width - 1 + down * cycles, up * cycles))
    for output in range(up * cycles):
        newest = output * down // up  # the newest input that this output may use
        kernel[newest : newest + width, output] = phases[output * down % up]
    return kernel, down * cycles


def _phase_taps(from_rate: int, to_rate: int) -> npt.NDArray[np.float64]:
    """Taps by output phase, shape (up, width), to be multiplied with the last `width` inputs, oldest first."""
    up = to_rate // gcd(from_rate, to_rate)
    rate = from_rate * up  # the common rate at which the filter is thought to run
    nyquist = min(from_rate, to_rate) / 2
    width_hz = (_STOP_EDGE - _PASS_EDGE) * nyquist
    length = ceil((_ATTENUATION_DB - 7.95) / (2.285 * 2 * np.pi * width_hz / rate)) + 1
    width = ceil(length / up)
    length = width * up
    cutoff = (_STOP_EDGE + _PASS_EDGE) / 2 * nyquist / rate
    time = np.arange(length) - (length - 1) / 2
    taps = 2 * cutoff * np.sinc(2 * cutoff * time) * np.kaiser(length, 0.1102 * (_ATTENUATION_DB - 8.7))
    # Each phase passes a constant signal unchanged; otherwise silence with an offset would get a tone.
    phases = taps.reshape(width, up).T
    phases = phases / phases.sum(axis=1, keepdims=True)
    return np.ascontiguousarray(np.rint(phases[:, ::-1] * _TAP_SCALE) / _TAP_SCALE)
