"""G.711 mu-law by table: 65,536 entries to encode, 256 to decode.

Source: ITU-T G.711 (11/1988), tables 2a and 2b. G.711 compresses 14-bit samples; a 16-bit sample becomes one by an
arithmetic shift right of two bits, as in Sun's reference code and in Python's former `audioop`, with which both tables
agree on every value.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from supervision.audio.pcm import Pcm

SILENCE = 0xFF
"""The byte for a sample of 0."""

_BIAS = 33  # makes every segment begin at a power of two
_LARGEST = 8158  # the largest 14-bit magnitude with a code of its own; all above share it


def _decode_table() -> npt.NDArray[np.int16]:
    code = ~np.arange(256, dtype=np.int32) & 0xFF
    segment = (code >> 4) & 7
    step = code & 0x0F
    magnitude = (((2 * step + _BIAS) << segment) - _BIAS) << 2
    return np.where(code & 0x80, -magnitude, magnitude).astype(np.int16)


def _encode_table() -> npt.NDArray[np.uint8]:
    # Indexed by the sample's bits read as unsigned, so that encoding is one look-up without an offset.
    sample = np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.int32) >> 2
    biased = np.minimum(np.abs(sample), _LARGEST) + _BIAS
    segment = np.floor(np.log2(biased)).astype(np.int32) - 5
    step = (biased >> (segment + 1)) & 0x0F
    code = (segment << 4) | step
    table: npt.NDArray[np.uint8] = np.where(sample < 0, ~(code | 0x80), ~code).astype(np.uint8)
    return table


_DECODE = _decode_table()
_ENCODE = _encode_table()


@lru_cache(maxsize=8)
def _quiet(peak: int) -> bytes:
    return bytes(code for code in range(256) if abs(int(_DECODE[code])) <= peak)


def louder_than(data: bytes, peak: int) -> bool:
    """Whether any sample of mu-law bytes is further from 0 than ``peak`` (of 32,768)."""
    return bool(data.translate(None, _quiet(peak)))


def encode(pcm: Pcm) -> bytes:
    """int16 samples as mu-law, one byte a sample."""
    bits = np.ascontiguousarray(pcm, dtype=np.int16).view(np.uint16)
    return _ENCODE[bits].tobytes()


def decode(data: bytes) -> Pcm:
    """mu-law bytes as int16 samples, one sample a byte."""
    return _DECODE[np.frombuffer(data, dtype=np.uint8)]
