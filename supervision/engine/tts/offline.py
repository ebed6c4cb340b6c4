"""Speech without a network: hibari-tts, an English voice small enough to come with its package."""

from __future__ import annotations

import asyncio
import importlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from supervision.audio.levels import match_level
from supervision.audio.pcm import encode_l16, from_float
from supervision.engine.tts.protocol import Speech, TTSError, TTSFailure, primary_language

SAMPLE_RATE = 24000
LEVEL_DBFS = -20.0
"""How loud lines come out. hibari speaks at about -27 dBFS, too quiet beside the usual agent on a telephone line."""

MAX_CHARS = 2000


class HibariTTS:
    """The American voice that is inside the hibari-tts wheel (extra `local-speech`).

    Other voices of hibari would be downloaded behind our back, so `voice` is ignored. The model is loaded once, by the
    first line or by `warm_up`, in the one worker thread that also speaks: a line costs some 10 ms of it per second.
    The same text always gives the same audio.
    """

    def __init__(self, *, level_dbfs: float = LEVEL_DBFS) -> None:
        self._level_dbfs = level_dbfs
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hibari-tts")
        self._model: Any = None
        self._closed = False

    async def warm_up(self) -> None:
        """Load the model (about half a second of worker time). Raises TTSError when hibari-tts is not installed."""
        await self._run(self._load)

    async def synthesize(self, text: str, *, language: str, voice: str | None = None) -> Speech:
        """See TTSProvider. English only."""
        if primary_language(language) != "en":
            raise TTSError(
                TTSFailure.LANGUAGE, f"hibari-tts speaks English only, not {language!r}; configure another TTS provider"
            )
        if len(text) > MAX_CHARS:
            raise TTSError(TTSFailure.BAD_TEXT, f"hibari-tts: the line has {len(text)} characters; {MAX_CHARS} at most")
        speech: Speech = await self._run(self._speak, text)
        return speech

    def languages(self) -> frozenset[str] | None:
        """See TTSProvider."""
        return frozenset({"en"})

    async def aclose(self) -> None:
        """See TTSProvider. A line that is being rendered is finished and thrown away."""
        self._closed = True
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def _run(self, function: Any, *args: Any) -> Any:
        if self._closed:
            raise TTSError(TTSFailure.UNAVAILABLE, "hibari-tts: the provider is closed")
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *args)

    def _load(self) -> Any:
        if self._model is None:
            try:
                hibari = importlib.import_module("hibari")
                self._model = hibari.Hibari(voice="heart")
            except ImportError as error:
                raise TTSError(
                    TTSFailure.UNAVAILABLE, "hibari-tts is not installed; install the extra `local-speech`"
                ) from error
            except Exception as error:
                raise TTSError(TTSFailure.UNAVAILABLE, f"hibari-tts could not load its voice: {error}") from error
        return self._model

    def _speak(self, text: str) -> Speech:
        model = self._load()
        try:
            signal = model(text, seed=0)
        except Exception as error:
            raise TTSError(TTSFailure.BAD_AUDIO, f"hibari-tts failed on the line: {type(error).__name__}") from error
        if not len(signal):
            raise TTSError(TTSFailure.BAD_TEXT, "hibari-tts found nothing to say in the line")
        return Speech(encode_l16(match_level(from_float(signal), SAMPLE_RATE, self._level_dbfs)), SAMPLE_RATE)
