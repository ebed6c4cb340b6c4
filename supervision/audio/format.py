"""The audio format of a call: what Plivo's `start.mediaFormat` names, and how to speak it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from supervision.audio import mulaw
from supervision.audio.pcm import Pcm, decode_l16, encode_l16
from supervision.audio.resample import resample

MULAW = "audio/x-mulaw"
L16 = "audio/x-l16"
FRAME_MS = 20
"""How much audio Plivo sends, and we send, in one frame."""

_RATES = {MULAW: (8000,), L16: (8000, 16000)}
_SAMPLE_BYTES = {MULAW: 1, L16: 2}


class MediaFormatError(ValueError):
    """A media format that Plivo does not define. The message names the field."""


@dataclass(frozen=True, slots=True)
class MediaFormat:
    """An encoding and a sample rate in Hz: mu-law at 8000, or L16 at 8000 or 16000.

    Raises MediaFormatError for anything else.
    """

    encoding: str = MULAW
    sample_rate: int = 8000

    def __post_init__(self) -> None:
        rates = _RATES.get(self.encoding)
        if rates is None:
            raise MediaFormatError(f"mediaFormat.encoding {self.encoding!r} is not known; expected {MULAW} or {L16}")
        if self.sample_rate not in rates:
            allowed = " or ".join(map(str, rates))
            raise MediaFormatError(
                f"mediaFormat.sampleRate {self.sample_rate!r} does not go with {self.encoding}; expected {allowed}"
            )

    @classmethod
    def from_start(cls, media_format: Any) -> MediaFormat:
        """Of the `mediaFormat` object of Plivo's `start` event.

        Takes a numeric string for the rate and an encoding with a `;rate=` suffix too: sources disagree on both.
        Raises MediaFormatError when a field is missing or not known.
        """
        if not isinstance(media_format, Mapping):
            raise MediaFormatError("start.mediaFormat is missing or not an object")
        encoding, rate = media_format.get("encoding"), media_format.get("sampleRate")
        if not isinstance(encoding, str):
            raise MediaFormatError("mediaFormat.encoding is missing or not a string")
        if isinstance(rate, str) and rate.isascii() and rate.isdigit() and len(rate) <= 6:
            rate = int(rate)
        if isinstance(rate, bool) or not isinstance(rate, int):
            raise MediaFormatError("mediaFormat.sampleRate is missing or not a number")
        return cls(encoding.split(";", 1)[0].strip().lower(), rate)

    @property
    def content_type(self) -> str:
        """As `playAudio` wants it, without a rate."""
        return self.encoding

    @property
    def xml_content_type(self) -> str:
        """As the `contentType` attribute of `<Stream>` wants it, with the rate."""
        return f"{self.encoding};rate={self.sample_rate}"

    @property
    def bytes_per_ms(self) -> int:
        """8 for mu-law; 16 or 32 for L16."""
        return _SAMPLE_BYTES[self.encoding] * self.sample_rate // 1000

    @property
    def frame_bytes(self) -> int:
        """Bytes in a frame of FRAME_MS milliseconds."""
        return self.bytes_per_ms * FRAME_MS

    def duration_ms(self, nbytes: int) -> float:
        """How long `nbytes` of this format play, in milliseconds."""
        return nbytes / self.bytes_per_ms

    def silence(self, ms: int) -> bytes:
        """`ms` milliseconds of digital silence."""
        fill = mulaw.SILENCE if self.encoding == MULAW else 0
        return bytes([fill]) * (self.bytes_per_ms * ms)

    def encode(self, pcm: Pcm, sample_rate: int) -> bytes:
        """int16 samples at `sample_rate` Hz as bytes of this format. Raises ResampleError for an odd rate.

        Two seconds of audio take a few milliseconds: longer lines belong in a worker thread.
        """
        samples = np.asarray(pcm, dtype=np.int16)
        if sample_rate != self.sample_rate:
            samples = resample(samples, sample_rate, self.sample_rate)
        return mulaw.encode(samples) if self.encoding == MULAW else encode_l16(samples)

    def decode(self, data: bytes) -> Pcm:
        """Bytes of this format as int16 samples at `sample_rate`. Half an L16 sample at the end is left out."""
        return mulaw.decode(data) if self.encoding == MULAW else decode_l16(data)

    def louder_than(self, data: bytes, peak: int) -> bool:
        """Whether any sample of `data`, bytes of this format, is further from 0 than `peak` (of 32,768)."""
        if self.encoding == MULAW:
            return mulaw.louder_than(data, peak)
        samples = decode_l16(data)
        return bool(samples.size) and (int(samples.max()) > peak or int(samples.min()) < -peak)

    def pad(self, data: bytes) -> bytes:
        """`data` lengthened by silence to whole frames of FRAME_MS; empty stays empty."""
        missing = -len(data) % self.frame_bytes
        fill = mulaw.SILENCE if self.encoding == MULAW else 0
        return data + bytes([fill]) * missing
