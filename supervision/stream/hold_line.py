"""What the caller hears while a tool waits for a person: a short line when the line is quiet, never over a voice."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from supervision.engine.adapters.relay import CallRelay
from supervision.engine.approval import HOLD_EVERY_S, HoldRhythm
from supervision.engine.intervention.orchestrator import Line
from supervision.engine.tts.protocol import TTSError
from supervision.engine.tts.voice import CallVoice

logger = logging.getLogger(__name__)


class HoldLine:
    """The hold lines of one call, in Mirror's own voice: the agent waits, too."""

    def __init__(
        self,
        *,
        relay: CallRelay,
        voice: CallVoice,
        lines: Callable[[], Sequence[str]],
        somebody_speaks: Callable[[], bool],
        said: Callable[[str], None],
    ) -> None:
        """``lines`` are those of the call's language, in order of use. ``somebody_speaks`` asks for the caller, an
        intervention, and the agent's words that are still held. ``said`` hears of each line."""
        self._relay = relay
        self._voice = voice
        self._lines = lines
        self._somebody_speaks = somebody_speaks
        self._said = said
        self._number = 0

    async def say(self, rhythm: HoldRhythm) -> float:
        """Say the next line if it may be said now; returns the seconds after which to ask again."""
        loop = asyncio.get_running_loop()
        if (wait_s := self._due_in(rhythm, loop.time())) > 0:
            return wait_s
        lines = self._lines()
        if not lines:
            return HOLD_EVERY_S
        text = lines[min(self._number, len(lines) - 1)]
        try:
            line = await self._voice.spoken(Line(text, b"", "template"))
        except TTSError as problem:
            logger.warning("A hold line could not be spoken: %s", problem)
            return HOLD_EVERY_S
        # Rendering took a moment, in which somebody may have begun to speak.
        now = loop.time()
        if (wait_s := self._due_in(rhythm, now)) > 0:
            return wait_s
        self._relay.inject(line.audio, "hold", now=now, on_sent=lambda at: None, on_played=lambda at: None)
        self._number += 1
        rhythm.said(now)
        self._said(text)
        return HOLD_EVERY_S

    def _due_in(self, rhythm: HoldRhythm, now: float) -> float:
        speaks = self._somebody_speaks() or self._relay.owed_s(now) > 0
        return rhythm.due_in(now, quiet_since=None if speaks else self._relay.clock.end_at)
