"""One intervention of a supervised call, from the verdict to its record."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from mirror_saas.ids import uuid7
from supervision.audio.heard import span_times
from supervision.engine.adapters.playback import RelayPlayback, marks_of, pcm_of, played_out
from supervision.engine.context import Verdict
from supervision.engine.intervention.clauses import quotes
from supervision.engine.intervention.correction_lines import CorrectionLines
from supervision.engine.intervention.note import note_text
from supervision.engine.intervention.orchestrator import (
    Intervention,
    Line,
    Outcome,
    Plan,
    Playing,
    Report,
    SilenceProof,
)
from supervision.engine.supervisor import CallSupervisor
from supervision.recorder import events as record
from supervision.stream.one_way import SPOKEN_BY
from supervision.stream.turns import TurnState

if TYPE_CHECKING:
    from supervision.stream.escalation import Escalation
    from supervision.stream.supervised import SupervisedCall


class Running(RelayPlayback):
    """One intervention of this call: where its audio goes, and who learns of it."""

    def __init__(self, call: SupervisedCall, turn: TurnState, verdict: Verdict, plan: Plan) -> None:
        super().__init__(
            call.relay,
            turn.audio,
            on_buffer_played=lambda: self.step("buffer_played"),
            agent_voice=call.agent_voice,
        )
        self.id = uuid7()
        self.note_id = uuid7()
        self.turn = turn
        self.verdict = verdict
        self.plan = plan
        self.intervention: Intervention | None = None
        self.agent_cleared = False
        self.note_sent_at: float | None = None
        self.dropped: list[str] = []
        self.lines: CorrectionLines | None = None
        self.instead: Escalation | None = None
        self.over = asyncio.Event()
        self._call = call
        self._rev = 0
        self._line: Line | None = None

    # -- PlaybackSink, where the stream has no way back

    async def clear(self) -> SilenceProof:
        one_way = self._call.one_way
        return await super().clear() if one_way is None else await one_way.clear(self.turn.audio)

    def play(self, line: Line, label: str) -> Playing:
        one_way = self._call.one_way
        if one_way is None:
            return super().play(line, label)
        return one_way.play(line, self._call.language, lambda: self.step(f"{label}_played"))

    # -- Observer

    def phase(self, phase: str, text: str = "") -> None:
        if self._call.hello is None or self._call._ended:
            return
        self._call._to_agent(
            {
                "event": "mirror.intervention",
                "id": str(self.id),
                "turn_id": self.turn.ref,
                "phase": phase,
                "text": text,
            }
        )

    def step(self, step: str, detail: str = "") -> None:
        self._call._record(
            record.InterventionStep(intervention_id=self.id, step=step, at_ms=self._call._at_ms(), detail=detail)
        )

    def note(self, line: Line) -> None:
        self._line = line
        self.send_note(None)

    # -- the agent's note

    def send_note(self, report: Report | None) -> None:
        """Tell the agent what was said in its place; a higher `rev` replaces what it was told before."""
        self._rev += 1
        call = self._call
        heard, high_s = call._heard(self.turn.audio, call._hearing())
        said = self.said(report)
        text = note_text(
            self.verdict,
            spoke=self.plan is not Plan.NOTE_ONLY,
            said=said,
            heard=heard.heard_text,
            uncertain=heard.uncertain_text,
            dropped=self.dropped,
        )
        note = {
            "id": str(self.note_id),
            "rev": self._rev,
            "turn_id": self.turn.ref,
            "text": text,
            "said": said,
            "heard_text": heard.heard_text,
            "heard_ms": round(high_s * 1000),
            "dropped": list(self.dropped),
            "expires_turns": 1,
        }
        call._record(
            record.NoteSent(
                note_id=self.note_id,
                rev=self._rev,
                intervention_id=self.id,
                turn_id=self.turn.turn_id,
                text=text,
                said=said,
                heard_text=heard.heard_text,
                heard_ms=round(high_s * 1000),
                dropped=list(self.dropped),
                expires_turns=1,
                at_ms=call._at_ms(),
            )
        )
        call.notes.sent(note)
        if call.hello is not None and "notes" in call.hello.wants and not call._ended:
            call._to_agent({"event": "mirror.note", **note})
        if self.note_sent_at is None:
            self.note_sent_at = call._loop.time()
            if self.intervention is not None:
                self.step("note_sent")

    def said(self, report: Report | None) -> str:
        """What Mirror said (or is about to say), as far as the caller can have heard it."""
        if report is None:
            buffer = self.intervention.buffer_text if self.intervention is not None and self._line else ""
            return " ".join(part for part in (buffer, self._line.text if self._line else "") if part)
        return report.said(asyncio.get_running_loop().time())

    def spoken_words(self) -> set[str]:
        """The words that Mirror says in this intervention, for telling an echo."""
        texts = [self.intervention.buffer_text] if self.intervention is not None else []
        if self._line is not None:
            texts.append(self._line.text)
        return set(words_of(" ".join(texts)))

    # -- what happens meanwhile

    def interrupt(self) -> None:
        """The caller speaks or presses a key."""
        if self.intervention is not None:
            self.intervention.stop(Outcome.INTERRUPTED)

    def joined(self, turn: TurnState) -> None:
        """Another turn was found wrong while this intervention runs."""
        if turn is not self.turn and turn.ref not in self.dropped:
            self.dropped.append(turn.ref)

    def correct_history(self, supervisor: CallSupervisor) -> None:
        """The conversation goes on from what the caller heard, not from what the agent had meant to say."""
        heard, _ = self._call._heard(self.turn.audio, self._call._hearing())
        supervisor.note_agent(self.turn.payload.agent_text, heard=heard.heard_text, turn_id=self.turn.ref)

    def ended(self, report: Report | None, outcome: str = "", detail: str = "") -> None:
        """Record how it ended, and how much of the violation was heard."""
        call = self._call
        if self.plan is not Plan.NOTE_ONLY:
            call.agent_voice.close()
        audio = self.turn.audio
        _, high_s = audio.heard_span(call._hearing())
        violation_ms, basis = self._violation_heard(high_s)
        call._record(
            record.InterventionEnded(
                intervention_id=self.id,
                outcome=report.outcome.value if report is not None else outcome,
                buffer_text=report.buffer.text if report is not None and report.buffer is not None else "",
                correction_text=report.correction.text if report is not None and report.correction is not None else "",
                correction_source=report.correction.source
                if report is not None and report.correction is not None
                else None,
                heard_ms=round(high_s * 1000),
                violation_heard_ms=violation_ms,
                violation_basis=basis,
                silence_proof=report.silence_proof if report is not None else None,
                gap_ms_cut_to_buffer=report.gap_cut_to_buffer_ms if report is not None else None,
                gap_ms_buffer_to_correction=report.gap_buffer_to_correction_ms if report is not None else None,
                at_ms=call._at_ms(),
                detail="; ".join(part for part in (detail, *self._details(report)) if part),
            )
        )
        self.over.set()

    def _details(self, report: Report | None) -> tuple[str, ...]:
        if report is None:
            return ()
        chosen = self.lines.detail(report.correction) if self.lines is not None and report.correction else ""
        return report.detail, chosen, SPOKEN_BY if self._call.one_way is not None else ""

    def _violation_heard(self, high_s: float) -> tuple[int, str]:
        """Milliseconds of the violating words that were heard at most; of the whole turn when nobody quoted them."""
        audio, relay = self.turn.audio, self._call.relay
        pcm = pcm_of(relay, audio)
        spans = [(quote, "quote") for quote in quotes(self.verdict.reason)]
        if self.turn.violates_from:
            spans.append((audio.text[self.turn.violates_from :], "clause"))
        for span, basis in spans:
            times = span_times(
                audio.text,
                span,
                pcm,
                relay.format.sample_rate,
                marks_of(audio),
                complete=audio.ended or played_out(relay, audio, self._call._hearing()),
            )
            if times is not None:
                start_ms, end_ms = times
                return round(max(0.0, min(high_s * 1000, end_ms) - start_ms)), basis
        return round(high_s * 1000), "turn"


def words_of(text: str) -> list[str]:
    """The words of a text, folded, for comparing what was said."""
    return re.findall(r"\w+", text.casefold())
