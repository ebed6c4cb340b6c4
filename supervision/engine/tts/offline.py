"""Speech without a network: hibari-tts, an English voice small enough to come with its package."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from supervision.audio.levels import match_level
from supervision.audio.pcm import encode_l16, from_float
from supervision.engine.tts.protocol import Speech, TTSError, TTSFailure, primary_language

T = TypeVar("T")

SAMPLE_RATE = 24000
LEVEL_DBFS = -20.0
"""How loud lines come out. hibari speaks at about -25 dBFS, too quiet beside the usual agent on a telephone line."""

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
        self._loading = threading.Lock()
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
        return await self._run(self.render, text)

    def languages(self) -> frozenset[str] | None:
        """See TTSProvider."""
        return frozenset({"en"})

    async def aclose(self) -> None:
        """See TTSProvider. Lines that were asked for before are still rendered."""
        self._closed = True
        # Cancelling them would reach their callers as a CancelledError that nobody asked for.
        self._worker.shutdown(wait=False)

    def render(self, text: str) -> Speech:
        """`synthesize` for code that may block: scripts, tests and the worker thread. Raises TTSError."""
        if len(text) > MAX_CHARS:
            raise TTSError(TTSFailure.BAD_TEXT, f"hibari-tts: the line has {len(text)} characters; {MAX_CHARS} at most")
        model = self._load()
        try:
            signal = model(text, seed=0)
        except Exception as error:
            raise TTSError(TTSFailure.BAD_AUDIO, f"hibari-tts failed on the line: {type(error).__name__}") from error
        if not len(signal):
            raise TTSError(TTSFailure.BAD_TEXT, "hibari-tts found nothing to say in the line")
        return Speech(encode_l16(match_level(from_float(signal), SAMPLE_RATE, self._level_dbfs)), SAMPLE_RATE)

    async def _run(self, function: Callable[..., T], *args: object) -> T:
        if self._closed:
            raise TTSError(TTSFailure.UNAVAILABLE, "hibari-tts: the provider is closed")
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *args)

    def _load(self) -> Any:
        with self._loading:
            if self._model is None:
                self._model = _load_model()
            return self._model


def _load_model() -> Any:
    try:
        hibari = importlib.import_module("hibari")
    except ImportError as error:
        raise TTSError(
            TTSFailure.UNAVAILABLE, "hibari-tts is not installed; install the extra `local-speech`"
        ) from error
    try:
        model = hibari.Hibari(voice="heart")
        _ = model.g2p  # loaded on first use otherwise, which would be in the middle of the first line
    except Exception as error:
        raise TTSError(TTSFailure.UNAVAILABLE, f"hibari-tts could not load its voice: {error}") from error
    return model
