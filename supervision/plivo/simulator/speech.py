"""The caller's voice: text spoken by the small offline synthesizer, when it is installed."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import numpy as np

from .sound import Pcm

__all__ = ["SpeechUnavailable", "speak"]

_LEVEL_DBFS = -20.0
"""RMS of the spoken part; the voice is quiet as it comes."""

_lock = threading.Lock()


class SpeechUnavailable(Exception):
    """Text cannot be spoken here; the message says what to do."""


def speak(text: str) -> tuple[Pcm, int]:
    """Speak English text: 16-bit mono samples and their rate in Hz (24,000). Blocks for about 1 % of what it says.

    Raises `SpeechUnavailable` without the `local-speech` extra, or when there is nothing to say in the text.
    """
    voice = _voice()
    with _lock:  # one ONNX session; several calls may render at a time
        raw = np.asarray(voice(text), dtype=np.float64)
    if not len(raw):
        raise SpeechUnavailable(f"nothing to say in {text!r}")
    loud = np.abs(raw) > 0.1 * np.max(np.abs(raw), initial=0.0)
    level = float(np.sqrt(np.mean(raw[loud] ** 2))) if loud.any() else 0.0
    gain = 10 ** (_LEVEL_DBFS / 20) / level if level else 0.0
    gain = min(gain, 0.95 / float(np.max(np.abs(raw)))) if level else 0.0
    return np.rint(raw * gain * 32767).astype(np.int16), int(voice.sample_rate)


@cache
def _voice() -> Any:
    try:
        from hibari import Hibari  # type: ignore[import-untyped]
    except ImportError:
        raise SpeechUnavailable(
            "`say` needs the offline voice; install it with `pip install mirror[local-speech]`, or use `wav` or `tone`"
        ) from None
    return Hibari()
