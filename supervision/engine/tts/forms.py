"""The forms in which users have a voice, each as a `TTSProvider`.

- a `TTSProvider` (`synthesize(text, *, language, voice) -> Speech`),
- an object with `synthesize(text) -> bytes`, or
- a callable `text -> bytes`; both sync or async, or giving the bytes in pieces.

Bytes are raw samples in the call's codec, mu-law at 8 kHz unless Plivo's `start` says otherwise.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterable, Callable
from typing import Any

from supervision.audio.format import MediaFormat
from supervision.audio.pcm import encode_l16
from supervision.engine.tts.protocol import Speech, TTSError, TTSFailure

WANTED = (
    "an async or sync callable text -> bytes (raw samples in the call's codec), or an object with synthesize(text) "
    "or synthesize(text, *, language, voice)"
)


def checked_voice(tts_provider: Any) -> Callable[..., Any]:
    """The function of a user's voice that speaks. Raises `TypeError` naming `tts_provider` when it has none."""
    if isinstance(tts_provider, type):
        raise TypeError(f"tts_provider: {tts_provider.__name__} is a class; give an instance of it, or {WANTED}")
    speak: Callable[..., Any] | None = getattr(tts_provider, "synthesize", None)
    if speak is None and callable(tts_provider):
        speak = tts_provider
    if not callable(speak):
        raise TypeError(f"tts_provider: a {type(tts_provider).__name__} cannot speak; give {WANTED}")
    try:
        parameters = inspect.signature(speak).parameters.values()
    except (TypeError, ValueError):  # of functions that are not written in Python
        return speak
    if not any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL) for p in parameters):
        raise TypeError(f"tts_provider: {_name(speak)} takes no text; give {WANTED}")
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    unknown = [p.name for p in needed[1:] if p.name not in ("language", "voice")]
    if unknown:
        raise TypeError(f"tts_provider: {_name(speak)} wants {', '.join(unknown)} besides the text; give {WANTED}")
    return speak


class UserVoice:
    """A user's voice as a `TTSProvider`, for calls of one media format.

    Sync functions run in a worker thread: a voice that waits for a server must not stop the call's audio.
    """

    def __init__(self, tts_provider: Any, media_format: MediaFormat) -> None:
        """Raises `TypeError` for what cannot be a voice."""
        self._speak = checked_voice(tts_provider)
        self._provider = tts_provider
        self._format = media_format
        self._takes = _takes(self._speak)

    async def synthesize(self, text: str, *, language: str, voice: str | None = None) -> Speech:
        """See TTSProvider."""
        said = await self._said(text, language, voice)
        if isinstance(said, Speech):
            return said
        return Speech(encode_l16(self._format.decode(said)), self._format.sample_rate)

    async def audio(self, text: str, *, language: str, voice: str | None = None) -> bytes:
        """A line in the call's codec, as loud as the voice speaks it: for the agent's own words. Raises TTSError."""
        said = await self._said(text, language, voice)
        if isinstance(said, Speech):
            return await asyncio.to_thread(self._format.encode, said.samples, said.sample_rate)
        return said

    def languages(self) -> frozenset[str] | None:
        """See TTSProvider."""
        languages = getattr(self._provider, "languages", None)
        known: frozenset[str] | None = languages() if callable(languages) else None
        return known

    async def aclose(self) -> None:
        """The user's voice stays the user's to close."""

    async def _said(self, text: str, language: str, voice: str | None) -> Speech | bytes:
        options = {"language": language, "voice": voice}
        given = {name: value for name, value in options.items() if name in self._takes}
        try:
            if inspect.iscoroutinefunction(self._speak) or inspect.isasyncgenfunction(self._speak):
                said = self._speak(text, **given)
            else:
                said = await asyncio.to_thread(self._speak, text, **given)
            if inspect.isawaitable(said):
                said = await said
            if isinstance(said, AsyncIterable):
                said = b"".join([bytes(piece) async for piece in said])
        except TTSError:
            raise
        except Exception as error:
            raise TTSError(TTSFailure.UNAVAILABLE, f"tts_provider failed on a line: {type(error).__name__}") from error
        if isinstance(said, Speech):
            return said
        if not isinstance(said, bytes | bytearray | memoryview):
            raise TTSError(
                TTSFailure.BAD_AUDIO, f"tts_provider gave a {type(said).__name__}; bytes or a Speech are wanted"
            )
        audio = bytes(said)
        if not audio:
            raise TTSError(TTSFailure.BAD_AUDIO, "tts_provider gave no audio for a line")
        if audio[:4] in (b"RIFF", b"OggS", b"fLaC") or audio[:3] == b"ID3":
            raise TTSError(
                TTSFailure.BAD_AUDIO,
                "tts_provider gave a file; raw samples without a header are wanted (mu-law, 8 kHz)",
            )
        return audio


def _takes(speak: Callable[..., Any]) -> frozenset[str]:
    """Which of `language` and `voice` a function takes by name."""
    try:
        parameters = inspect.signature(speak).parameters
    except (TypeError, ValueError):
        return frozenset()
    return frozenset({"language", "voice"} & set(parameters))


def _name(speak: Callable[..., Any]) -> str:
    return getattr(speak, "__qualname__", type(speak).__name__)
