"""Linear PCM: the one shape in which audio is worked on, and L16, the form in which Plivo sends it.

Everywhere in `supervision.audio` a signal is a one-dimensional numpy array of int16 samples, mono.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Pcm = npt.NDArray[np.int16]
FULL_SCALE = 32768.0


def encode_l16(pcm: Pcm) -> bytes:
    """Samples as little-endian 16-bit bytes, the byte order that Plivo uses for `audio/x-l16`."""
    return np.asarray(pcm, dtype="<i2").tobytes()


def decode_l16(data: bytes) -> Pcm:
    """Little-endian 16-bit bytes as samples. Half a sample at the end, as broken senders produce, is left out."""
    return np.frombuffer(data, dtype="<i2", count=len(data) // 2).astype(np.int16, copy=False)


def from_float(signal: npt.NDArray[np.floating]) -> Pcm:
    """A signal in [-1, 1] as int16 samples; what lies outside is clipped and NaN becomes 0."""
    scaled = np.rint(np.asarray(signal, dtype=np.float64) * 32767.0)
    clipped: Pcm = np.nan_to_num(np.clip(scaled, -32768, 32767)).astype(np.int16)
    return clipped


def duration_ms(pcm: Pcm, sample_rate: int) -> float:
    """How long `pcm` lasts, in milliseconds."""
    return len(pcm) * 1000.0 / sample_rate
