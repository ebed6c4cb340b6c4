"""Loudness: how loud speech is, and making one voice as loud as another without clipping."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from supervision.audio.pcm import FULL_SCALE, Pcm

LOUDEST_DBFS = -9.0
QUIETEST_DBFS = -45.0
"""Targets beyond these are moved to them: speech louder than the first can only be had by crushing it."""

_FRAME_MS = 20
_FLOOR_DBFS = -60.0  # below this nothing counts as voice
_VOICE_RANGE_DB = 25.0  # a frame is voiced when it is at most this far below the loud frames
_CEILING = 0.89 * FULL_SCALE  # -1 dBFS: mu-law and the line behind it need some room
_LIMITER_MS = 4
_PASSES = 4


def frame_levels(pcm: Pcm, sample_rate: int, frame_ms: int = _FRAME_MS) -> npt.NDArray[np.float64]:
    """RMS of each whole frame in dBFS (0 is a full-scale square wave), without its offset; digital silence is -120."""
    size = max(1, sample_rate * frame_ms // 1000)
    frames = np.asarray(pcm[: len(pcm) // size * size], dtype=np.float64).reshape(-1, size)
    return _dbfs(frames.var(axis=1))


def voiced_frames(levels: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which frames belong to the voice, by level alone: near the loud ones and above the floor."""
    if not len(levels):
        return np.zeros(0, dtype=np.bool_)
    loud = np.percentile(levels, 95)
    threshold = max(_FLOOR_DBFS, float(loud) - _VOICE_RANGE_DB)
    return np.asarray(levels >= threshold)


def rms_dbfs(pcm: Pcm, sample_rate: int) -> float | None:
    """RMS level in dBFS of the voiced part of `pcm`, pauses left out; None when there is no voice in it."""
    levels = frame_levels(pcm, sample_rate)
    voiced = levels[voiced_frames(levels)]
    if not len(voiced) or voiced.max() < _FLOOR_DBFS:
        return None
    return float(10 * np.log10(np.mean(10 ** (voiced / 10))))


def match_level(pcm: Pcm, sample_rate: int, target_dbfs: float) -> Pcm:
    """`pcm` with its voiced part at `target_dbfs`, at most 2 dB off, and no sample clipped.

    Peaks that would not fit are turned down for a few milliseconds around them. A target outside
    QUIETEST_DBFS to LOUDEST_DBFS is moved to the nearer end; audio without a voice comes back unchanged.
    Raises ValueError when the target is not a number.
    """
    if not np.isfinite(target_dbfs):
        raise ValueError(f"target_dbfs must be a number of decibels, not {target_dbfs}")
    target = min(max(target_dbfs, QUIETEST_DBFS), LOUDEST_DBFS)
    level = rms_dbfs(pcm, sample_rate)
    if level is None:
        return np.asarray(pcm, dtype=np.int16).copy()
    gain_db, result = 0.0, np.asarray(pcm, dtype=np.int16)
    # The limiter takes some loudness away, so measure again and give it back.
    for _ in range(_PASSES):
        gain_db += target - level
        result = apply_gain(pcm, sample_rate, gain_db)
        level = rms_dbfs(result, sample_rate)
        if level is None or abs(target - level) < 0.2:
            break
    return result


def apply_gain(pcm: Pcm, sample_rate: int, gain_db: float) -> Pcm:
    """`pcm` amplified by `gain_db`; a look-ahead limiter keeps every sample 1 dB below full scale."""
    signal = np.asarray(pcm, dtype=np.float64) * 10 ** (gain_db / 20)
    if len(signal) and np.abs(signal).max() > _CEILING:
        signal *= _limiter_gain(np.abs(signal), max(1, sample_rate * _LIMITER_MS // 1000))
    return np.clip(np.rint(signal), -32768, 32767).astype(np.int16)


def _limiter_gain(magnitude: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """A gain per sample that brings `magnitude` under the ceiling, changing only over spans of `size` samples."""
    blocks = -(-len(magnitude) // size)
    peaks = np.zeros(blocks * size)
    peaks[: len(magnitude)] = magnitude
    needed = np.minimum(1.0, _CEILING / np.maximum(peaks.reshape(blocks, size).max(axis=1), 1e-9))
    # A knot between two blocks takes the lower of both, so a line between knots stays below what its block needs.
    knots = np.minimum(np.append(needed, needed[-1]), np.insert(needed, 0, needed[0]))
    return np.asarray(np.interp(np.arange(len(magnitude)), np.arange(blocks + 1) * size, knots), dtype=np.float64)


def _dbfs(power: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(10 * np.log10(np.maximum(power / FULL_SCALE**2, 1e-12)))
