"""Mirror's voice in one call: the lines rendered when the call begins, and the corrections rendered on the way.

Acting needs a voice: until a buffer line, a template and an opener are rendered in the call's language the call is not
*armed*, and a violation gives the agent a note only.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from supervision.audio.format import MediaFormat
from supervision.audio.levels import match_level
from supervision.audio.pcm import Pcm
from supervision.audio.resample import resample
from supervision.engine.intervention.orchestrator import Line
from supervision.engine.tts.protocol import Speech, TTSError, TTSFailure, TTSProvider, primary_language

logger = logging.getLogger(__name__)

MAX_BUFFER_S: Final = 1.6  # a longer buffer line makes the caller wait for nothing
DEFAULT_DBFS: Final = -20.0  # until the agent has spoken there is no level to match
_CACHE_LINES: Final = 512
_QUIET: Final = 60  # of 32,768
_MARGIN_MS: Final = 30


class LineCache:
    """Rendered lines of a process: buffer lines and templates are the same in every call of an agent.

    They are kept ready to be spoken, so that a call whose lines are known is armed before its first turn.
    """

    def __init__(self, size: int = _CACHE_LINES) -> None:
        self._size = size
        self._lines: OrderedDict[tuple[int, str, str, str | None, int], Rendered] = OrderedDict()

    async def rendered(
        self, tts: TTSProvider, text: str, language: str, voice: str | None, media_format: MediaFormat
    ) -> Rendered:
        """``text`` at the format's sample rate; raises :class:`TTSError` when the provider cannot speak it."""
        key = (id(tts), text, primary_language(language), voice, media_format.sample_rate)
        found = self._lines.get(key)
        if found is None:
            speech = await tts.synthesize(text, language=language, voice=voice)
            found = self._lines[key] = await asyncio.to_thread(_converted, text, speech, media_format)
            while len(self._lines) > self._size:
                self._lines.popitem(last=False)
        else:
            self._lines.move_to_end(key)
        return found


@dataclass(frozen=True, slots=True)
class Rendered:
    """A line at the call's sample rate, before its level is matched to the agent's."""

    text: str
    pcm: Pcm

    def duration_s(self, sample_rate: int) -> float:
        """Seconds of speech."""
        return len(self.pcm) / sample_rate


def _converted(text: str, speech: Speech, media_format: MediaFormat) -> Rendered:
    pcm = np.frombuffer(speech.pcm, dtype="<i2").astype(np.int16)
    return Rendered(text, _trimmed(resample(pcm, speech.sample_rate, media_format.sample_rate), media_format))


def _trimmed(pcm: Pcm, media_format: MediaFormat) -> Pcm:
    """``pcm`` without the silence that voices put around a line: between two lines it would be heard as a gap."""
    loud = np.flatnonzero(np.abs(pcm.astype(np.int32)) > max(_QUIET, int(np.abs(pcm).max(initial=0)) // 100))
    if not loud.size:
        return pcm
    margin = media_format.sample_rate * _MARGIN_MS // 1000
    return pcm[max(0, int(loud[0]) - margin) : int(loud[-1]) + margin]


class CallVoice:
    """Renders Mirror's lines for one call, in its codec and at the agent's level."""

    def __init__(
        self,
        *,
        tts: TTSProvider | None,
        cache: LineCache,
        media_format: MediaFormat,
        language: str = "en",
        voice: str | None = None,
    ) -> None:
        self._tts = tts
        self._cache = cache
        self.format = media_format
        self.language = language
        self.voice = voice
        self.level_dbfs = DEFAULT_DBFS
        self.unarmed_reason = "the call's lines are not rendered yet"
        self.by_words = False
        """Whether words are enough, because the agent or Plivo speaks Mirror's lines: then what is rendered is for when
        they do not."""
        self._words: tuple[tuple[str, ...], str, str] | None = None  # buffer lines, template, opener
        self._buffers: list[Rendered] = []
        self._used: set[str] = set()
        self._fallback: Rendered | None = None
        self._opener: Rendered | None = None
        self._arming = 0

    @property
    def armed(self) -> bool:
        """Whether an intervention could speak now."""
        rendered = self._fallback is not None and self._opener is not None and bool(self._buffers)
        return rendered or (self.by_words and self._words is not None)

    async def arm(self, *, buffers: Sequence[str], fallback: str, opener: str) -> None:
        """Render the lines that an intervention needs. Never raises: :attr:`unarmed_reason` says what failed."""
        # What was rendered for another language, or still is being rendered, must not be spoken in this one.
        self._arming += 1
        arming = self._arming
        self._buffers, self._fallback, self._opener, self._words = [], None, None, None
        if not buffers or not fallback or not opener:
            self.unarmed_reason = f"there are no lines in {self.language}"
            return
        self._words = (tuple(buffers), fallback, opener)
        if self._tts is None:
            self.unarmed_reason = "no speech provider is configured"
            return
        languages = self._tts.languages()
        if languages is not None and primary_language(self.language) not in languages:
            self.unarmed_reason = f"the speech provider does not speak {self.language}"
            return
        try:
            rendered = [await self._render(text) for text in (fallback, opener, *buffers)]
            if arming == self._arming:
                self._fallback, self._opener = rendered[0], rendered[1]
                # A policy's own line is spoken however long it is; of the others those that keep nobody waiting.
                self._buffers = [
                    line
                    for index, line in enumerate(rendered[2:])
                    if index == 0 or line.duration_s(self.format.sample_rate) <= MAX_BUFFER_S
                ]
        except TTSError as problem:
            self.unarmed_reason = f"speech could not be rendered: {problem}"
            logger.warning("A call stays unarmed: %s", self.unarmed_reason)
        except Exception:
            self.unarmed_reason = "speech could not be rendered"
            logger.exception("A call stays unarmed: its lines could not be rendered")

    def buffer_line(self) -> Line:
        """The next buffer line; none twice in a call while others are left. Requires :attr:`armed`."""
        rendered = {line.text: line for line in self._buffers}
        texts = tuple(rendered) or (self._words[0] if self._words is not None else ())
        text = next((text for text in texts if text not in self._used), texts[0])
        self._used.add(text)
        return self._line(rendered[text]) if text in rendered else Line(text, b"")

    def fallback_line(self) -> Line:
        """The template that speaks when no correction is ready. Requires :attr:`armed`."""
        if self._fallback is None and self._words is not None:
            return Line(self._words[1], b"")
        assert self._fallback is not None
        return self._line(self._fallback)

    def opener_line(self) -> Line:
        """The line that takes back what was just said. Requires :attr:`armed`."""
        if self._opener is None and self._words is not None:
            return Line(self._words[2], b"")
        assert self._opener is not None
        return self._line(self._opener)

    async def render(self, text: str, source: Literal["llm", "template"]) -> Line:
        """``text`` as a line, without audio where words are enough. Raises :class:`TTSError` when the provider cannot
        speak it."""
        return Line(text, b"", source) if self.by_words else await self.spoken(Line(text, b"", source))

    async def spoken(self, line: Line) -> Line:
        """``line`` with audio, rendered now if it has none. Raises :class:`TTSError` when there is no provider, or it
        cannot speak it."""
        if line.audio:
            return line
        rendered = await self._render(line.text, cached=line.source == "template")
        return await asyncio.to_thread(self._line, rendered, line.source)

    async def _render(self, text: str, *, cached: bool = True) -> Rendered:
        if self._tts is None:
            raise TTSError(TTSFailure.UNAVAILABLE, "no speech provider is configured")
        if cached:
            return await self._cache.rendered(self._tts, text, self.language, self.voice, self.format)
        speech = await self._tts.synthesize(text, language=self.language, voice=self.voice)
        return await asyncio.to_thread(_converted, text, speech, self.format)

    def _line(self, line: Rendered, source: Literal["llm", "template"] = "template") -> Line:
        pcm = match_level(line.pcm, self.format.sample_rate, self.level_dbfs)
        return Line(line.text, self.format.encode(pcm, self.format.sample_rate), source)
