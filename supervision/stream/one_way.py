"""A call whose stream has no way back for audio: Mirror speaks by Plivo's Speak API, and estimates when.

What the agent says reaches the caller on a way that Mirror does not see, and Plivo tells when it has queued a line,
not when it has played. So all times are estimated from the words, and the record says so: what was heard is
`estimated`, silence is `unproven`, and an intervention's detail names who spoke.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from supervision.audio.heard import Heard, estimate_heard
from supervision.engine.adapters.outlets import SinkOutlet
from supervision.engine.adapters.turn_audio import TurnAudio
from supervision.engine.intervention.orchestrator import Line, Playing, SilenceProof
from supervision.engine.tts.protocol import TTSError
from supervision.engine.tts.sink import estimated_s
from supervision.stream.plivo_rest import PlivoCall

logger = logging.getLogger(__name__)

SPOKEN_BY: Final = "spoken by Plivo's Speak API; times are estimated"
NO_ACCOUNT: Final = "the stream has no way back for audio, and no Plivo account is stored to speak with"


class OneWay:
    """The words of one such call. Belongs to its event loop."""

    def __init__(self, plivo: PlivoCall | None) -> None:
        self._plivo = plivo
        self._outlet: SinkOutlet | None = None
        self._language = ""

    @property
    def speaks(self) -> bool:
        """Whether Mirror can say anything on this call."""
        return self._plivo is not None

    def turn_begins(self, audio: TurnAudio) -> None:
        """A turn was reported: as far as anybody knows, the caller hears it from now on."""
        if audio.text.strip():
            audio.started = audio.ended = True
            audio.runs.add(asyncio.get_running_loop().time(), estimated_s(audio.text))

    def play(self, line: Line, language: str, on_played: Callable[[], None] | None = None) -> Playing:
        """Let Plivo say a line, behind those before it. Requires :attr:`speaks`."""
        assert self._plivo is not None
        if self._outlet is None or language != self._language:
            self._outlet, self._language = SinkOutlet(self._plivo.voice(), language), language
        return self._outlet.play(line, on_played)

    async def clear(self, audio: TurnAudio | None) -> SilenceProof:
        """Stop what Plivo says on this call, a turn that the agent has it say included."""
        loop = asyncio.get_running_loop()
        if audio is not None and audio.cut_at is None and (audio.runs.ends_at or 0.0) > loop.time():
            audio.cut_at = loop.time()
            audio.cut_low_s = audio.runs.position(loop.time())
        if self._plivo is None:
            return "unproven"
        try:
            await (self._outlet or SinkOutlet(self._plivo.voice(), self._language)).clear()
        except TTSError as problem:
            # What is said next takes the place of what still speaks.
            logger.warning("Plivo could not be told to be silent: %s", problem)
        if audio is not None and audio.cut_low_s is not None and audio.cut_high_s is None:
            audio.cut_high_s = audio.runs.position(loop.time())
        return "unproven"

    def heard(self, audio: TurnAudio, now: float) -> tuple[Heard, float]:
        """What was heard of a turn by loop time ``now``, and at most how many seconds of it, by its words alone."""
        low, high = audio.heard_span(now)
        heard = estimate_heard(
            audio.text, None, 8000, low * 1000, high * 1000, (), anchored=False, complete=audio.cut_at is None
        )
        return heard, high
