"""Turns whose text arrives while they are said (`mirror.delta`): each clause is judged as soon as it is complete.

A turn grows until its last delta, until another turn is reported, or until the agent clears its audio; its tail is
judged then. The first clause that breaks a rule decides the turn, whatever of it is still to come.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from supervision.engine.adapters.hold import position_of
from supervision.engine.adapters.turn_audio import TurnAudio
from supervision.engine.context import Verdict
from supervision.engine.intervention.clauses import violation_starts
from supervision.engine.llm.limiter import asking
from supervision.engine.supervisor import CallSupervisor
from supervision.recorder import events as record
from supervision.stream import frames
from supervision.stream.turns import TurnState

if TYPE_CHECKING:
    from supervision.stream.supervised import SupervisedCall

logger = logging.getLogger(__name__)

# Verdicts that change nothing of the turn: what it goes on to say is judged all the same.
_GOES_ON: Final = ("shadow", "cooldown")


class StreamedTurns:
    """The turns of one call that arrive in deltas; one grows at a time."""

    def __init__(self, call: SupervisedCall, supervisor: CallSupervisor | None) -> None:
        self._call = call
        self._supervisor = supervisor
        self._growing: TurnState | None = None

    def take(self, delta: frames.Delta) -> None:
        """Take `mirror.delta`. Raises `FrameError`."""
        turn = self._call.turn(delta.ref)
        if turn is None:
            report = frames.Turn(delta.ref, delta.customer_text, delta.text, (), delta.language, delta.seen)
            self._begins(self._call.take_turn(report, growing=True))
        elif turn is self._growing:
            self._grows(turn, delta.text)
        elif turn.audio.muted:
            return  # it was stopped; what its agent had sent by then is nothing to complain about
        else:
            message = "turn_id: the text of this turn is complete; the next turn needs an id of its own"
            raise frames.FrameError("duplicate_turn", message, delta.ref)
        if delta.final:
            self.close()

    def _begins(self, turn: TurnState) -> None:
        self._growing = turn
        if self._supervisor is not None:
            turn.interventions = self._supervisor.interventions
            turn.stream = self._supervisor.streamed(turn.payload, on_answer=partial(self._answered, turn))
            self._push(turn, turn.audio.text)

    def _grows(self, turn: TurnState, text: str) -> None:
        if len(turn.audio.text) + len(text) > frames.MAX_TEXT:
            message = f"text: a turn has at most {frames.MAX_TEXT} characters in all"
            raise frames.FrameError("bad_field", message, turn.ref)
        turn.audio.text += text
        turn.payload = replace(turn.payload, agent_text=turn.audio.text)
        if not turn.judged.done():
            self._push(turn, text)

    def _push(self, turn: TurnState, text: str) -> None:
        if turn.stream is not None:
            with asking(self._call.risk_of(turn)):
                turn.stream.push(text)

    def agent_cleared(self) -> None:
        """The agent took its audio back: a turn that was being said ends with it."""
        if self._growing is not None and self._growing.audio.started:
            self.close()

    def close(self) -> None:
        """No more text of the turn that grows: its tail is judged."""
        turn, self._growing = self._growing, None
        if turn is None:
            return
        audio = turn.audio
        audio.growing = False
        if not audio.text.strip():
            self._call.relay.withdraw(audio)
        elif self._supervisor is not None and not audio.muted:
            self._supervisor.note_agent(audio.text, turn_id=turn.ref)
        self._call._record(record.TurnCompleted(turn_id=turn.turn_id, text=audio.text, at_ms=self._call._at_ms()))
        if not turn.judged.done():
            self._call._spawn(self._finish(turn))

    async def _finish(self, turn: TurnState) -> None:
        with asking(self._call.risk_of(turn)):
            verdict = await turn.stream.finish() if turn.stream is not None else self._call.ungoverned(turn)
        if not turn.judged.done():
            self._judged(turn, verdict, self._call.decide(turn, verdict))

    def _answered(self, turn: TurnState, verdict: Verdict, chars: int) -> None:
        """A question about the first ``chars`` characters of a turn was answered."""
        try:
            self._take_answer(turn, verdict, chars)
        except Exception:
            logger.exception("The verdict on a clause could not be acted upon")

    def _take_answer(self, turn: TurnState, verdict: Verdict, chars: int) -> None:
        assert turn.stream is not None
        if turn.judged.done():
            return
        clean_chars = turn.stream.clean_chars
        if verdict.violates:
            turn.violates_from = violation_starts(
                turn.audio.text, verdict.reason, clean_chars if clean_chars < chars else 0
            )
            decided = self._call.decide(turn, verdict)
            if decided[1] not in _GOES_ON:
                turn.stream.cancel()
                self._judged(turn, verdict, decided)
                if turn is self._growing and turn.audio.muted:
                    self.close()
                return
            clean_chars = max(clean_chars, chars)
        if clean_chars:
            self._may_be_heard(turn.audio, clean_chars)
            turn.clean.set()

    def _judged(self, turn: TurnState, verdict: Verdict, decided: tuple[bool, str | None]) -> None:
        if self._supervisor is not None:
            self._supervisor.note_streamed(verdict, turn.interventions)
        self._call.judged(turn, verdict, decided)

    def _may_be_heard(self, audio: TurnAudio, chars: int) -> None:
        now = asyncio.get_running_loop().time()
        self._call.relay.decide(audio, now, position_of(chars, audio.marks))
