"""How the typed lines of a test call's caller come to be heard: spoken, or beeped where nothing here can speak.

The voice is the one that Mirror itself would have in the call: the tenant's speech provider, else this process's. A
beep a word keeps the length and the pauses of a line, so that an agent which waits for the caller to finish can be
tried without any voice; one that transcribes hears no words, and nobody pretends that it does.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

import numpy as np

from supervision.audio.format import MediaFormat
from supervision.audio.levels import match_level
from supervision.engine.tts.protocol import TTSError, TTSProvider

logger = logging.getLogger(__name__)

LEVEL_DBFS: Final = -20.0
WITHIN_S: Final = 20.0
_BEEP_HZ: Final = 440.0
_BEEP_S: Final = 0.22
_GAP_S: Final = 0.06
_BEEP_DBFS: Final = -17.0


@dataclass(frozen=True, slots=True)
class Spoken:
    """A line in the call's format. `problem` says why it is beeps; empty when it is words."""

    audio: bytes
    problem: str = ""


class CallerVoice:
    """Renders lines for one call."""

    def __init__(self, tts: TTSProvider | None, *, language: str, media_format: MediaFormat) -> None:
        self._tts = tts
        self._language = language
        self._format = media_format

    async def spoken(self, text: str) -> Spoken:
        """`text` as the agent will hear it. Never raises for what a provider does."""
        if self._tts is None:
            return Spoken(await asyncio.to_thread(self._beeps, text), "no voice is installed or configured here")
        try:
            async with asyncio.timeout(WITHIN_S):
                speech = await self._tts.synthesize(text, language=self._language)
            return Spoken(await asyncio.to_thread(self._encoded, speech.samples, speech.sample_rate))
        except TTSError as error:
            # The provider's message names it and what to do, never the line.
            problem = str(error)
        except TimeoutError:
            problem = f"the voice did not answer within {WITHIN_S:g} s"
        except Exception as error:
            logger.exception("A caller's line could not be spoken")
            problem = f"the voice failed: {type(error).__name__}"
        return Spoken(await asyncio.to_thread(self._beeps, text), problem)

    def _encoded(self, samples: np.ndarray, rate: int) -> bytes:
        return self._format.encode(match_level(samples, rate, LEVEL_DBFS), rate)

    def _beeps(self, text: str) -> bytes:
        rate = self._format.sample_rate
        at = np.arange(round(_BEEP_S * rate)) / rate
        beep = np.sin(2 * np.pi * _BEEP_HZ * at) * 10 ** (_BEEP_DBFS / 20) * 32767 * np.sqrt(2)
        gap = np.zeros(round(_GAP_S * rate))
        beeps = [part for _ in text.split() or [text] for part in (beep, gap)]
        return self._format.encode(np.rint(np.concatenate(beeps)).astype(np.int16), rate)
