"""Where words become sound without Mirror: what a voice must do that speaks by itself.

Mirror renders audio and plays it on the stream where it can. Where it cannot, because the stream has no way back or
because the agent's platform does the speaking, it hands the words to a sink.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

WORDS_PER_MINUTE: Final = 150  # of unhurried speech; the usual voices of telephone services read 140 to 180
_PAUSE_S: Final = 0.35  # at the end of a sentence
_LETTERS_PER_WORD: Final = 5.7  # with the space; for scripts and words of any length


@dataclass(frozen=True, slots=True)
class Spoken:
    """A line that a sink has accepted. `duration_s` is how long it will play, in seconds; None when only the words
    tell, from which it is then estimated."""

    duration_s: float | None = None


@runtime_checkable
class TTSSink(Protocol):
    """A voice that takes words, for `Supervisor.attach(tts_sink=...)`.

    Mirror asks for one line at a time, and for the next one when the one before it should have been played, so a sink
    needs no queue of its own. Errors may be of any type: an intervention then ends as `failed`, and says why.
    """

    async def speak(self, text: str, *, language: str) -> Spoken | None:
        """Begin to speak a line in a language (a BCP 47 tag); return when it was accepted, not when it was played."""
        ...

    async def clear(self) -> bool | None:
        """Stop speaking at once. True when it is certain that the caller hears nothing any more."""
        ...


def estimated_s(text: str) -> float:
    """How many seconds a line takes to say, from its words alone; wrong by a third either way."""
    text = text.strip()
    if not text:
        return 0.0
    words = len(text) / _LETTERS_PER_WORD
    # A sign of Chinese, Japanese or Korean is a syllable or more; there are no spaces to count words by.
    words += len(re.findall(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]", text)) * 0.4
    # Digits are read out.
    words += sum(map(str.isdigit, text)) * 0.6
    pauses = len(re.findall(r"[.!?。！？।…]+(?=\s|$)|[。！？]", text))
    return math.ceil(100 * (words * 60 / WORDS_PER_MINUTE + pauses * _PAUSE_S)) / 100
