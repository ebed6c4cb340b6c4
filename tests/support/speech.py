"""Real speech for tests: each line is rendered once per test process, as the bytes that a call carries."""

from __future__ import annotations

from functools import cache

from supervision.audio.format import MULAW, MediaFormat
from supervision.engine.tts.offline import HibariTTS
from supervision.engine.tts.protocol import Speech


@cache
def _voice() -> HibariTTS:
    return HibariTTS()


@cache
def render(line: str) -> Speech:
    """`line` in English as the offline voice speaks it, 24 kHz. Blocks: some 10 ms per second of speech."""
    return _voice().render(line)


@cache
def say(line: str, *, encoding: str = MULAW, sample_rate: int = 8000) -> bytes:
    """`line` in English, encoded for a call (8 kHz mu-law unless told otherwise) and padded to whole 20 ms frames."""
    media_format = MediaFormat(encoding, sample_rate)
    speech = render(line)
    return media_format.pad(media_format.encode(speech.samples, speech.sample_rate))
