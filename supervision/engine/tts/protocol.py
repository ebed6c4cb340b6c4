"""What a text-to-speech provider must do to be Mirror's voice."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from supervision.audio.pcm import Pcm, decode_l16


@dataclass(frozen=True, slots=True)
class Speech:
    """A spoken line: `pcm` is little-endian 16-bit mono at `sample_rate` Hz, one of `audio.resample.RATES`."""

    pcm: bytes
    sample_rate: int

    @property
    def samples(self) -> Pcm:
        """The line as int16 samples."""
        return decode_l16(self.pcm)

    @property
    def duration_ms(self) -> float:
        """How long the line lasts, in milliseconds."""
        return len(self.pcm) // 2 * 1000.0 / self.sample_rate


class TTSFailure(StrEnum):
    """What failed when a line could not be spoken."""

    LANGUAGE = "language"  # the provider has no voice for the language
    TIMEOUT = "timeout"
    CONNECTION = "connection"  # the server could not be reached or hung up
    REFUSED = "refused"  # the server answered with an error; `status` says which
    BAD_AUDIO = "bad_audio"  # something came back, but it is not the audio that was asked for
    UNAVAILABLE = "unavailable"  # the provider is not installed, misconfigured or closed
    BAD_TEXT = "bad_text"  # there is nothing to say, or too much


class TTSError(Exception):
    """A line could not be spoken. The message names the provider and what to do; it never contains the line itself."""

    def __init__(self, failure: TTSFailure, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.failure = failure
        self.status = status


class TTSProvider(Protocol):
    """Turns a line of text into speech."""

    async def synthesize(self, text: str, *, language: str, voice: str | None = None) -> Speech:
        """`text` spoken in `language` (a BCP 47 tag); `voice` is the provider's own name for a voice.

        Raises TTSError and nothing else, besides CancelledError when the caller gives up.
        """
        ...

    def languages(self) -> frozenset[str] | None:
        """Primary language subtags that can be spoken ("en"), or None when the provider takes any."""
        ...

    async def aclose(self) -> None:
        """Free connections and threads. No line can be spoken afterwards."""
        ...


def primary_language(tag: str) -> str:
    """The primary subtag of a BCP 47 tag, lower case: "en" of "en-US"."""
    return tag.strip().replace("_", "-").split("-", 1)[0].lower()
