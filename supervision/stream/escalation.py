"""What happens instead of a third apology: the call is transferred or hung up, and the caller told so before."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from supervision.engine.intervention.orchestrator import Intervention, Line, Outcome, Report
from supervision.engine.intervention.templates import escalation_line
from supervision.engine.supervisor import CallSupervisor
from supervision.engine.tts.protocol import TTSError
from supervision.engine.tts.voice import CallVoice
from supervision.plivo.rest import PlivoRestError
from supervision.stream.plivo_rest import PlivoCall

if TYPE_CHECKING:
    from supervision.stream.running import Running

logger = logging.getLogger(__name__)

SILENCE_MS: Final = 20  # of the line that says nothing: something has to play, or nothing is acknowledged
_DONE: Final = {"transfer": "the call was transferred", "hangup": "the call was hung up"}


class Escalation:
    """One call's: at most once, by its policy, on the tenant's Plivo account."""

    def __init__(
        self,
        supervisor: CallSupervisor | None,
        plivo: PlivoCall | None,
        voice: CallVoice,
        leaving: Callable[[str], None],
        close: Callable[[], None],
    ) -> None:
        """``leaving(reason)`` says that the call is about to end, and why; an empty reason that it is not, after all.
        ``close()`` ends its stream."""
        self._config = supervisor.config if supervisor is not None else None
        self._plivo = plivo
        self._voice = voice
        self._leaving = leaving
        self._close = close
        self._words: Line | None = None  # without audio, for an agent that speaks them
        self._line: Line | None = None
        self._tried = False

    @property
    def kind(self) -> Literal["note", "transfer", "hangup"]:
        """What the policy says."""
        return self._config.escalation if self._config is not None else "note"

    @property
    def possible(self) -> bool:
        """Whether more than a note can be done about the call, and was not tried yet."""
        return self.kind != "note" and self._plivo is not None and not self._tried

    async def arm(self, language: str) -> None:
        """Get the line ready. Without one the call is transferred, or hung up, without words."""
        self._words = self._line = None
        if self._config is None or self.kind == "note" or self._plivo is None:
            return
        text = escalation_line(self.kind, language, self._config.escalation_text)
        if not text:
            return
        self._words = Line(text, b"")
        try:
            self._line = await self._voice.spoken(self._words)
        except TTSError as problem:
            logger.warning("The line before an escalation could not be rendered: %s", problem)

    def intervention(self, running: Running, begins_at: float | None, *, speaks: bool) -> Intervention:
        """The agent is made silent and the line said, or, unless Mirror ``speaks``, nothing."""
        self._tried = True
        line = (self._line or (self._words if self._voice.by_words else None)) if speaks else None

        async def nothing_better() -> Line | None:
            return None

        return Intervention(
            plan=running.plan,
            sink=running,
            observer=running,
            buffer=None,
            fallback=line or self._silence(),
            correct=nothing_better,
            begins_at=begins_at,
            reached=running.reached,
        )

    async def carry_out(self, running: Running, report: Report) -> bool:
        """Ask Plivo, whatever became of the line; False when the call goes on as it was. Never raises."""
        config, plivo = self._config, self._plivo
        if report.outcome is Outcome.CALLER_GONE or plivo is None or config is None:
            return False
        # Plivo may end the stream before it has answered.
        self._leaving(f"{_DONE[config.escalation]} after too many interventions")
        try:
            await (plivo.hangup() if config.escalation == "hangup" else plivo.transfer(config.escalation_url or ""))
        except (PlivoRestError, ValueError) as problem:
            logger.warning("A call could not be escalated: %s", problem)
            self._leaving("")
            running.step("escalation_failed", str(problem))
            report.detail = f"the escalation failed: {problem}"
            return False
        report.detail = f"{_DONE[self.kind]} after too many interventions"
        running.step("escalated", self.kind)
        return True

    def finish(self) -> None:
        """Plivo took the call and left its stream open."""
        self._close()

    def _silence(self) -> Line:
        rate = self._voice.format.sample_rate
        return Line("", self._voice.format.encode(np.zeros(rate * SILENCE_MS // 1000, dtype=np.int16), rate))
