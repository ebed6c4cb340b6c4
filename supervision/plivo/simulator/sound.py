"""Audio as it travels on a Plivo stream, for the stand-in's own use.

This shares nothing with Mirror's audio package on purpose: a mistake there must not cancel out here.
"""

from __future__ import annotations

import math
import re
import wave
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = [
    "L16_8K",
    "L16_16K",
    "MULAW_8K",
    "FormatError",
    "Pcm",
    "WireFormat",
    "read_wav",
    "resample",
    "tone",
    "write_wav",
]

Pcm = npt.NDArray[np.int16]

FRAME_MS = 20
"""Plivo sends 50 frames a second on each track."""


class FormatError(ValueError):
    """An audio format or file that a Plivo stream cannot carry; the message says what can be used."""


@dataclass(frozen=True, slots=True)
class WireFormat:
    """What `<Stream contentType>` and `start.mediaFormat` agree on.

    `encoding` is `audio/x-mulaw` or `audio/x-l16` (16-bit little-endian), `sample_rate` is in Hz.
    """

    encoding: str
    sample_rate: int

    def __post_init__(self) -> None:
        if (self.encoding, self.sample_rate) not in _KNOWN:
            raise FormatError(
                f"Plivo has no format {self.encoding};rate={self.sample_rate}; use one of: {', '.join(_names())}"
            )

    @classmethod
    def parse(cls, content_type: str) -> WireFormat:
        """Read `audio/x-mulaw;rate=8000`; raises `FormatError` naming the three that Plivo has."""
        match = re.fullmatch(r"\s*(audio/x-mulaw|audio/x-l16)\s*;\s*rate\s*=\s*(8000|16000)\s*", content_type)
        if match is None:
            raise FormatError(f"Plivo has no content type {content_type!r}; use one of: {', '.join(_names())}")
        return cls(match[1], int(match[2]))

    @property
    def content_type(self) -> str:
        return f"{self.encoding};rate={self.sample_rate}"

    @property
    def sample_bytes(self) -> int:
        return 1 if self.encoding == "audio/x-mulaw" else 2

    @property
    def bytes_per_second(self) -> int:
        return self.sample_rate * self.sample_bytes

    @property
    def frame_bytes(self) -> int:
        """Bytes in one 20 ms frame: 160, 320 or 640."""
        return self.bytes_per_second * FRAME_MS // 1000

    @property
    def silent_byte(self) -> int:
        return 0xFF if self.encoding == "audio/x-mulaw" else 0

    def silence(self, seconds: float) -> bytes:
        return bytes([self.silent_byte]) * (round(seconds * self.sample_rate) * self.sample_bytes)

    def encode(self, pcm: Pcm, rate: int) -> bytes:
        """16-bit mono samples at `rate` Hz as wire bytes, resampled when the rates differ."""
        samples = resample(pcm, rate, self.sample_rate)
        if self.encoding == "audio/x-mulaw":
            return _mulaw_encoder()[samples.view(np.uint16)].tobytes()
        return samples.astype("<i2").tobytes()

    def decode(self, data: bytes | bytearray | memoryview) -> Pcm:
        """Wire bytes as 16-bit samples at `sample_rate`; a trailing odd byte of L16 is left out."""
        if self.encoding == "audio/x-mulaw":
            return _mulaw_decoder()[np.frombuffer(data, dtype=np.uint8)]
        usable = len(data) // 2 * 2
        return np.frombuffer(memoryview(data)[:usable], dtype="<i2").astype(np.int16)


_KNOWN = {("audio/x-mulaw", 8000), ("audio/x-l16", 8000), ("audio/x-l16", 16000)}


def _names() -> list[str]:
    return sorted(f"{encoding};rate={rate}" for encoding, rate in _KNOWN)


MULAW_8K = WireFormat("audio/x-mulaw", 8000)
L16_8K = WireFormat("audio/x-l16", 8000)
L16_16K = WireFormat("audio/x-l16", 16000)


@cache
def _mulaw_encoder() -> npt.NDArray[np.uint8]:
    """G.711 mu-law byte of every 16-bit sample, indexed by the sample's unsigned view."""
    sample = np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.int32) >> 2
    magnitude = np.minimum(np.abs(sample) + 33, 8191)
    segment = np.floor(np.log2(magnitude)).astype(np.int32) - 5
    code = (segment << 4) | ((magnitude >> (segment + 1)) & 0x0F)
    table: npt.NDArray[np.uint8] = (code ^ np.where(sample < 0, 0x7F, 0xFF)).astype(np.uint8)
    return table


@cache
def _mulaw_decoder() -> npt.NDArray[np.int16]:
    """16-bit sample of every G.711 mu-law byte."""
    code = ~np.arange(256, dtype=np.int32) & 0xFF
    magnitude = (((code & 0x0F) << 3) + 0x84) << ((code & 0x70) >> 4)
    table: npt.NDArray[np.int16] = np.where(code & 0x80, 0x84 - magnitude, magnitude - 0x84).astype(np.int16)
    return table


def resample(pcm: Pcm, source: int, target: int) -> Pcm:
    """Change the rate of a whole utterance by cutting or padding its spectrum.

    For finished audio only, not for streams: the whole signal is transformed at once.
    """
    if source == target or not len(pcm):
        return pcm.astype(np.int16)
    length = round(len(pcm) * target / source)
    margin = source // 50  # silence at the ends takes the ringing of the sharp cut-off
    padded = np.concatenate([np.zeros(margin), pcm.astype(np.float64), np.zeros(margin)])
    padded_length = round(len(padded) * target / source)
    spectrum = np.fft.rfft(padded)
    wanted = padded_length // 2 + 1
    spectrum = spectrum[:wanted] if len(spectrum) >= wanted else np.pad(spectrum, (0, wanted - len(spectrum)))
    resampled = np.fft.irfft(spectrum, padded_length) * (target / source)
    begin = round(margin * target / source)
    return np.clip(np.rint(resampled[begin : begin + length]), -32768, 32767).astype(np.int16)


def tone(hz: float, seconds: float, rate: int, *, dbfs: float = -12.0) -> Pcm:
    """A sine of `hz` at `dbfs` (peak, relative to full scale)."""
    if not 0 < hz < rate / 2:
        raise FormatError(f"a tone of {hz} Hz does not fit a rate of {rate} Hz; use less than {rate / 2:g} Hz")
    amplitude = 32767 * 10 ** (dbfs / 20)
    moments = np.arange(round(seconds * rate)) / rate
    wave_form: Pcm = np.rint(amplitude * np.sin(2 * math.pi * hz * moments)).astype(np.int16)
    return wave_form


def read_wav(path: Path) -> tuple[Pcm, int]:
    """Mono 16-bit samples and rate of a PCM WAV file (8 or 16 bit; channels are averaged).

    Raises `FormatError` when the file cannot be used.
    """
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            data = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise FormatError(f"cannot read {path}: {error}; a PCM WAV file is needed") from error
    if width == 1:
        samples = (np.frombuffer(data, dtype=np.uint8).astype(np.int32) - 128) << 8
    elif width == 2:
        samples = np.frombuffer(data, dtype="<i2").astype(np.int32)
    else:
        raise FormatError(f"{path} has {8 * width}-bit samples; use 16-bit PCM")
    return samples.reshape(-1, channels).mean(axis=1).astype(np.int16), rate


def write_wav(path: Path, pcm: Pcm, rate: int) -> None:
    """Write mono 16-bit samples; raises `OSError` as `open` does."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm.astype("<i2").tobytes())
