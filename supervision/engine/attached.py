"""A supervised call with its audio: what the agent says is spoken here, and corrected here.

    async with supervisor.attach(handler, tts_provider=my_tts) as sup:
        verdict = await sup.review_turn(customer_text=..., primary_text=..., tool_calls=[...])
        await (sup.intervene(verdict) if verdict.should_intervene else sup.speak(agent_text))

The call's frames are read below the agent's framework, so an agent may wait for Mirror wherever it likes, its own
callbacks included. No failure of Mirror's, and none of a voice's, is raised into the agent's code.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self
from uuid import uuid4
from weakref import WeakKeyDictionary

from supervision.audio.format import MediaFormat
from supervision.audio.heard import Heard
from supervision.engine.adapters.link import Start, StreamLink
from supervision.engine.adapters.outlets import (
    InterventionSink,
    LineCaches,
    Outlet,
    OutletError,
    SinkOutlet,
    StreamOutlet,
    Words,
)
from supervision.engine.adapters.plivo_stream import connect
from supervision.engine.adapters.raw_ws import RawPlivoWSAdapter
from supervision.engine.adapters.turn_audio import TurnAudio
from supervision.engine.context import SupervisorContext, TurnOutcome, TurnPayload, Verdict, Withheld
from supervision.engine.intervention.correction_lines import CorrectionLines
from supervision.engine.intervention.note import note_text
from supervision.engine.intervention.orchestrator import Intervention, Line, Outcome, Plan, Playing, Report
from supervision.engine.intervention.templates import correction_lines, opener_lines
from supervision.engine.llm.secrets import give_secrets
from supervision.engine.supervisor import CallSupervisor, ToolCalls
from supervision.engine.tts.forms import checked_voice
from supervision.engine.tts.protocol import TTSError
from supervision.engine.tts.sink import TTSSink
from supervision.engine.tts.ws_inject import PlivoStreamTTSSink
from supervision.plivo import events

if TYPE_CHECKING:
    from supervision.engine.supervisor import Supervisor, _Stream

logger = logging.getLogger(__name__)

ARMED_WITHIN_S: Final = 1.0  # how long an intervention waits for lines that are just being rendered
SETTLES_S: Final = 0.5  # after a turn has played, until its last acknowledgements are in
BIND_AFTER_S: Final = 0.25  # after Plivo's start; an agent that binds the call itself does so by then
CLOSE_WAITS_S: Final = 2.0  # for what is still to be noted when supervision ends
NOTE_TTL_S: Final = 120.0  # a note about a turn is worth nothing when the call has long gone on
BARGE_IN_MS: Final = 400
BARGE_IN_WITH_CLEAR_MS: Final = 200
MAX_TURNS_KEPT: Final = 64

_LINE_CACHES: WeakKeyDictionary[Supervisor, LineCaches] = WeakKeyDictionary()


class BargeInDetector(Protocol):
    """See `supervision.audio.vad.BargeIn`."""

    def push(self, payload: bytes, *, need_ms: int | None = None) -> bool:
        """Take the caller's next audio; True when it holds a barge-in by now."""
        ...


@dataclass(frozen=True, slots=True)
class Speaking:
    """A turn that `speak` was asked to say. `ok` is False when it will not be heard, and `detail` says why."""

    ok: bool
    detail: str = ""
    playing: Playing | None = None
    """When it plays, in seconds of the running loop's clock; None when it does not."""

    async def played(self) -> None:
        """Return when it has been played; at once when it never will be. Waits at most until 1.5 seconds after its
        last sample should have played. Raises nothing."""
        if self.playing is None:
            return
        loop = asyncio.get_running_loop()
        waiting = asyncio.ensure_future(self.playing.played())
        try:
            while not waiting.done() and (left_s := self.playing.ends_at + 1.5 - loop.time()) > 0:
                await asyncio.wait({waiting}, timeout=left_s)
        finally:
            waiting.cancel()
            await asyncio.wait({waiting})


@dataclass(slots=True, eq=False)
class _Turn:
    """A turn of the agent's and what became of it."""

    audio: TurnAudio
    payload: TurnPayload
    index: int
    """How many turns there were before it."""
    judged: asyncio.Event = field(default_factory=asyncio.Event)
    said: bool = False
    heard: Heard | None = None

    @property
    def ref(self) -> str:
        return self.audio.ref


class AttachedCall(CallSupervisor):
    """One supervised call with its audio. Made by `Supervisor.attach`; an async context manager.

    One event loop drives it. Bounded: the newest 64 turns.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        context: SupervisorContext,
        *,
        handler: Any,
        outlet: Outlet,
        sink: TTSSink | None,
        language: str,
        media_format: MediaFormat,
    ) -> None:
        super().__init__(supervisor, context)
        self.language = language
        self._handler = handler
        self._outlet = outlet
        self._sink = sink
        self._media_format = media_format
        self._link: StreamLink | None = None
        self._turns: dict[str, _Turn] = {}
        self._begun_turns = 0
        self._said_instead: str | None = None
        self._running: _Running | None = None
        self._ended = False
        self._started = asyncio.Event()
        self._over = asyncio.Event()
        self._left_at: float | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._arming: asyncio.Task[Any] | None = None
        self._bound_by_start = False
        self._binding: asyncio.TimerHandle | None = None
        self._warned_of_vad = False

    # The call

    async def __aenter__(self) -> Self:
        if self._handler is not None:
            self._link = StreamLink(self)
            connect(self._handler, self._link, self._media_format)
        await super().__aenter__()
        if self._sink is not None:
            self._arm()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._binding is not None:
            self._binding.cancel()
        if self._running is not None:
            self._running.stop(Outcome.CALLER_GONE if self._ended else Outcome.FAILED)
        self._end()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=CLOSE_WAITS_S)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        if self._link is not None:
            self._link.close()
        if isinstance(self._handler, RawPlivoWSAdapter):
            self._handler.disconnect()
        await super().__aexit__(kind, error, trace)

    def bind_call(self, call_id: str, *, tenant_id: str | None = None) -> None:
        """Says which call this is; see `CallSupervisor.bind_call`. Plivo's `start` does so by itself, so this is needed
        only for streams without one, and for a call that is to be known under another id than Plivo's.

        Raises `ValueError` for ids that are blank or too long, and `RuntimeError` when this is another call already.
        """
        if self._binding is not None:
            self._binding.cancel()
            self._binding = None
        if self._bound_by_start and call_id != self.context.call_id:
            # Raised inside an SDK's callback, an error would never be seen.
            logger.warning("bind_call came too late: the call is known by the id of Plivo's start already")
            return
        super().bind_call(call_id, tenant_id=tenant_id)
        self._tell_sink(call_id)

    def _tell_sink(self, call_id: str) -> None:
        bind = getattr(self._sink, "bind", None)
        if callable(bind) and not getattr(self._sink, "call_id", None):
            try:
                bind(call_id)
            except ValueError as problem:
                logger.warning("The tts_sink cannot speak on this call: %s", problem)

    def _bind_by_start(self, call_id: str) -> None:
        self._binding = None
        if not self._bound:
            super().bind_call(call_id)
            self._bound_by_start = True
            self._tell_sink(call_id)

    # What the link tells

    def stream_started(self, start: Start) -> None:
        """See `LinkListener`."""
        if start.call_id and not self._bound and self._binding is None:
            loop = asyncio.get_running_loop()
            self._binding = loop.call_later(BIND_AFTER_S, self._bind_by_start, start.call_id)
            self._tell_sink(start.call_id)
        if isinstance(self._outlet, StreamOutlet) and self._link is not None:
            if self._link.relay is not None and start.media_format is not None:
                self._outlet.open(self._link.relay)
                self._arm()
            else:
                self._outlet.refuse(start.problem)
            self._started.set()

    def caller_pressed(self) -> None:
        """See `LinkListener`. A key interrupts as a voice does."""
        if self._running is not None:
            self._running.stop(Outcome.INTERRUPTED)

    def agent_cleared(self) -> None:
        """See `LinkListener`."""
        if self._running is not None:
            self._running.agent_cleared = True

    def turn_started(self, turn: TurnAudio) -> None:
        """See `LinkListener`."""
        if self._running is not None:
            self._running.sink.moved.set()

    def turn_ended(self, turn: TurnAudio) -> None:
        """See `LinkListener`."""
        if self._running is not None:
            self._running.sink.moved.set()
        state = self._turns.get(turn.ref)
        if state is not None and not self._ended:
            self._spawn(self._turn_heard(state))

    def caller_gone(self) -> None:
        """See `LinkListener`. Whatever Mirror was saying ends at once."""
        if self._running is not None:
            self._running.stop(Outcome.CALLER_GONE)
        self._end()

    async def quiet(self) -> None:
        """Return when no intervention is running."""
        while self._running is not None:
            await self._running.over.wait()

    @property
    def intervening(self) -> bool:
        """Whether Mirror is speaking in the agent's place, or about to."""
        return self._running is not None

    @property
    def armed(self) -> bool:
        """Whether an intervention could speak now; `unarmed_reason` says why not."""
        return self._outlet.armed

    @property
    def unarmed_reason(self) -> str:
        """Why an intervention could not speak now, fit for people; empty when it could."""
        return "" if self._outlet.armed else self._outlet.unarmed_reason

    def heard(self, turn_id: str) -> Heard | None:
        """What the caller heard of a turn (`Verdict.turn_id`): `heard_text`, `uncertain_text` and `unheard_text`.

        None when that is not known yet, or no more.
        """
        state = self._turns.get(turn_id)
        return state.heard if state is not None else None

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        relay = self._link.relay if self._link is not None else None
        # Plivo's goodbye was on its way for a while, too.
        self._left_at = asyncio.get_running_loop().time() - (relay.clock.one_way_s if relay is not None else 0.0)
        self._over.set()
        for state in self._turns.values():
            if state.audio.started and state.heard is None:
                self._note_heard(state)

    def _arm(self) -> None:
        fallback, opener = correction_lines(self.language)[:1], opener_lines(self.language)[:1]
        self._arming = self._spawn(
            self._outlet.arm(
                buffers=self.buffer_lines(self.language),
                fallback=fallback[0] if fallback else "",
                opener=opener[0] if opener else "",
            )
        )

    # Turns

    async def _review(self, payload: TurnPayload, keys: Mapping[str, str] | None = None) -> Verdict:
        # Audio that the agent sends itself from now on is taken for this turn's.
        state = self._turn_begins(payload)
        try:
            return await super()._review(payload, keys)
        finally:
            state.judged.set()

    def _begin_stream(self, customer_text: str, turn_id: str, language: str) -> _Stream:
        stream = super()._begin_stream(customer_text, turn_id, language)
        # What is not said yet has a place among the turns all the same: its audio may come with the first words.
        self._turn_begins(replace(stream.payload, agent_text=" … "))
        return stream

    async def review_stream_delta(
        self,
        *,
        customer_text: str,
        delta: str,
        tool_calls: ToolCalls | None = None,
        turn_id: str = "",
        language: str = "",
    ) -> Verdict | None:
        """See `CallSupervisor.review_stream_delta`."""
        verdict = await super().review_stream_delta(
            customer_text=customer_text,
            delta=delta,
            tool_calls=tool_calls,
            turn_id=turn_id,
            language=language,
        )
        self._stream_grew(self._stream)
        return verdict

    async def flush_stream(
        self,
        *,
        customer_text: str,
        tool_calls: ToolCalls | None = None,
        turn_id: str = "",
        language: str = "",
    ) -> Verdict:
        """See `CallSupervisor.flush_stream`."""
        stream = self._stream
        verdict = await super().flush_stream(
            customer_text=customer_text, tool_calls=tool_calls, turn_id=turn_id, language=language
        )
        self._stream_grew(stream)
        if (state := self._turns.get(verdict.turn_id)) is not None:
            state.judged.set()
        return verdict

    def _stream_grew(self, stream: _Stream | None) -> None:
        state = self._turns.get(stream.payload.turn_id) if stream is not None else None
        if stream is not None and state is not None:
            state.audio.text = stream.turn.text
            state.payload = replace(state.payload, agent_text=stream.turn.text)

    def note_customer_turn(self, text: str) -> None:
        """See `CallSupervisor.note_customer_turn`. Where nothing tells Mirror when the caller speaks (see `attach`),
        this interrupts an intervention, unless the words are an echo of what Mirror says."""
        running = self._running
        if running is not None and running.barge_in is None and text.strip() and not running.is_echo(text):
            running.stop(Outcome.INTERRUPTED)
        super().note_customer_turn(text)

    def _turn_begins(self, payload: TurnPayload) -> _Turn:
        known = self._turns.get(payload.turn_id)
        if known is not None:
            return known
        audio = TurnAudio(uuid4(), payload.turn_id, asyncio.get_running_loop().time(), text=payload.agent_text)
        state = self._turns[payload.turn_id] = _Turn(audio, payload, self._begun_turns)
        self._begun_turns += 1
        while len(self._turns) > MAX_TURNS_KEPT:
            self._turns.pop(next(iter(self._turns)))
        self._outlet.reported(audio)
        return state

    # Speaking

    async def speak(self, text: str) -> Speaking:
        """Says what the agent has to say, with the call's voice; returns when it is on its way, not when it is played.

        It belongs to the turn that was last reviewed with these words. While Mirror speaks, it waits; what was
        generated before the agent could know of the intervention is then dropped. Raises nothing but
        `asyncio.CancelledError`: a voice that fails is told in the result.
        """
        reviewed = (turn for turn in reversed(self._turns.values()) if turn.payload.agent_text.strip() == text.strip())
        state = next((turn for turn in reviewed if not turn.said), None)
        if state is None:
            payload = TurnPayload("", text, turn_id=self._number("turn"), language=self.language)
            state = self._turn_begins(payload)
            state.judged.set()
        if self._waits_for_start:
            self._spawn(self._speak_when_started(state, text))
            return Speaking(True, "the stream has not started; this is said when it has")
        return await self._speak(state, text)

    @property
    def _waits_for_start(self) -> bool:
        """Whether a stream is awaited that there will be a voice for."""
        outlet = self._outlet
        return isinstance(outlet, StreamOutlet) and outlet.has_voice and not self._started.is_set() and not self._ended

    async def _speak_when_started(self, state: _Turn, text: str) -> None:
        await _first(self._started.wait(), self._over.wait())
        if self._started.is_set():
            await self._speak(state, text)

    async def _speak(self, state: _Turn, text: str) -> Speaking:
        try:
            words = await self._outlet.words(text, state.payload.language)
        except Exception as problem:
            return self._unspoken_because(problem)
        return self._say(state, words)

    def _say(self, state: _Turn, words: Words) -> Speaking:
        if self._ended:
            return Speaking(False, "the caller is gone")
        if state.audio.muted:
            return Speaking(False, "the turn was stopped by an intervention")
        instead, self._said_instead = self._said_instead, None
        if instead == state.payload.agent_text.strip():
            # The tool loop's result, handed on to be spoken.
            return Speaking(True, "Mirror has said this already")
        try:
            playing = self._outlet.say(state.audio, words)
        except Exception as problem:
            return self._unspoken_because(problem)
        state.said = True
        self.note_agent(state.payload.agent_text, turn_id=state.ref)
        if self._outlet.estimated:
            self._spawn(self._turn_heard(state))
        return Speaking(True, playing=playing)

    def _unspoken_because(self, problem: Exception) -> Speaking:
        detail = _told(problem)
        logger.warning("A turn of the agent's was not spoken: %s", detail)
        return Speaking(False, detail)

    async def review_and_speak(
        self,
        *,
        customer_text: str,
        primary_text: str,
        tool_calls: ToolCalls = (),
        turn_id: str = "",
        language: str = "",
        keys: Mapping[str, str] | None = None,
    ) -> TurnOutcome:
        """Judges a turn and says it, or says the correction in its place; its voice is rendered while it is judged.

        `delivery` decides what the caller may hear before the verdict: with `stream_first` the turn begins at once and
        is cut when the verdict says so; with `hold_all`, and with `hold_risky` for turns that the pre-gate would have
        judged, it waits for the verdict, at most `hold_budget_ms`. Arguments are those of `review_turn`.

        Returns when the turn is on its way and judged, or when the intervention has ended. Raises `TypeError` for
        arguments that are none; else nothing but `asyncio.CancelledError`.
        """
        turn_id = turn_id or self._number("turn")
        intents = self.intents(tool_calls)
        language = language or self.language
        payload = self.payload(
            customer_text=customer_text,
            agent_text=primary_text,
            tool_calls=intents,
            turn_id=turn_id,
            language=language,
        )
        state = self._turn_begins(payload)
        loop = asyncio.get_running_loop()
        until = loop.time() + (self.config.hold_budget_ms / 1000 if self.holds(payload) else 0.0)
        judging = loop.create_task(
            self.review_turn(
                customer_text=customer_text,
                primary_text=primary_text,
                tool_calls=intents,
                turn_id=turn_id,
                language=language,
                keys=keys,
            )
        )
        rendering = loop.create_task(self._outlet.words(primary_text, language))
        try:
            either: set[asyncio.Task[Any]] = {judging, rendering}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not judging.done() and until > loop.time():
                await asyncio.wait({judging}, timeout=until - loop.time())
            spoken = Speaking(False)
            if not (judging.done() and judging.result().should_intervene):
                spoken = await self._said_when_rendered(state, rendering, judging)
            verdict = await judging
        finally:
            rendering.cancel()
            judging.cancel()
        if not verdict.should_intervene:
            return TurnOutcome(verdict, False, primary_text if spoken.ok else "", spoken.detail)
        report = await self.intervene(verdict)
        acted = report.outcome is not Outcome.WITHHELD and report.outcome is not Outcome.FAILED
        said = report.said(report.ended_at or loop.time())
        if not acted and not said and spoken.ok:
            said = primary_text
        return TurnOutcome(verdict, acted or bool(report.buffer), said, report.detail)

    async def _said_when_rendered(
        self, state: _Turn, rendering: asyncio.Task[Words], judging: asyncio.Task[Verdict]
    ) -> Speaking:
        """Say a turn as soon as it is rendered, unless its verdict is there first and forbids it."""
        while not rendering.done():
            if judging.done():
                if judging.result().should_intervene:
                    return Speaking(False)
                await asyncio.wait({rendering})
            else:
                either: set[asyncio.Task[Any]] = {judging, rendering}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if judging.done() and judging.result().should_intervene:
            return Speaking(False)
        try:
            words = rendering.result()
        except Exception as problem:
            return self._unspoken_because(problem)
        return self._say(state, words)

    # Intervening

    def withheld(self, verdict: Verdict) -> Withheld | None:
        """See `CallSupervisor.withheld`; `in_progress` while another intervention runs."""
        found = self._withheld_anyway(verdict)
        if found is None and self._running is not None and self._running.verdict.turn_id != verdict.turn_id:
            return "in_progress"
        return found

    def _withheld_anyway(self, verdict: Verdict) -> Withheld | None:
        found = super().withheld(verdict)
        return "limit" if self.spent and found != "shadow" else found

    async def spoke_instead(self, payload: TurnPayload, verdict: Verdict) -> str | None:
        """See `CallSupervisor.spoke_instead`."""
        self._turn_begins(payload).judged.set()
        report = await self.intervene(replace(verdict, turn_id=payload.turn_id))
        self._said_instead = report.said(report.ended_at or asyncio.get_running_loop().time()) or None
        return self._said_instead

    async def intervene(self, verdict: Verdict) -> Report:
        """Stops the turn that this verdict is about, says what is right in its place, and leaves the agent a note.

        Returns how it ended, when it has: at once, as `withheld` with the reason in `detail`, when nothing may be said
        (`in_progress`, `late`, `limit`, `cooldown`, `shadow`, `unarmed`), as `interrupted` when the caller speaks or
        begins to, as `caller_gone` when they hang up. The agent's note (`consume_override`) is there before the
        correction can be heard. Cancelling the waiting task does not stop the intervention; leaving `attach` does.

        Raises nothing but `asyncio.CancelledError`: what fails is a `failed` report with the reason in `detail`.
        """
        try:
            running = await self._begun(verdict)
        except Exception as problem:
            return self._broke(problem)
        if isinstance(running, Report):
            return running
        return await asyncio.shield(running.task)

    async def _begun(self, verdict: Verdict) -> _Running | Report:
        """The intervention that this verdict starts, or why there is none."""
        if self._ended:
            return Report(Outcome.CALLER_GONE, detail="the caller is gone", estimated=self._outlet.estimated)
        if not verdict.should_intervene:
            return self._withheld_report(verdict.withheld or "the verdict does not call for an intervention")
        if self._running is not None:
            return self._joined_running(verdict)
        if (withheld := self._withheld_anyway(verdict)) is not None and not verdict.refused_tools:
            if withheld == "limit":
                self._note_only(verdict)
            return self._withheld_report(withheld)
        if self._waits_for_start:
            # Whoever awaits this may be the one who starts the stream.
            self._spawn(self._intervene_when_started(verdict))
            return self._withheld_report("the stream has not started; the correction is said when it has")
        if not self._outlet.armed and self._arming is not None:
            await asyncio.wait({self._arming}, timeout=ARMED_WITHIN_S)
            if self._running is not None:
                return self._joined_running(verdict)
        if not self._outlet.armed:
            self._note_only(verdict)
            return self._withheld_report(f"unarmed: {self._outlet.unarmed_reason}")
        return self._act(verdict)

    async def _intervene_when_started(self, verdict: Verdict) -> None:
        await _first(self._started.wait(), self._over.wait())
        if self._started.is_set():
            await self.intervene(verdict)

    def _joined_running(self, verdict: Verdict) -> Report:
        running = self._running
        state = self._turns.get(verdict.turn_id)
        if running is not None and state is not None and state is not running.turn:
            self._outlet.mute(state.audio)
            running.drop(state)
        return self._withheld_report("in_progress")

    def _act(self, verdict: Verdict) -> _Running | Report:
        state = self._turns.get(verdict.turn_id)
        if state is None:
            # Of a tool call that was gated by itself, or of words that nobody reviewed here: nothing of it is said yet.
            state = self._turn_begins(TurnPayload("", "", turn_id=verdict.turn_id or self._number("turn")))
        audio = state.audio
        newer = any(other.index > state.index for other in self._turns.values())
        barge_in = self._barge_in_detector()
        plan, begins_at = self._outlet.plan(audio, newer=newer, caller_speaks=self._caller_speaks)
        overtaken = plan is Plan.REPLACE_HELD and any(
            other.audio.started and other.index > state.index for other in self._turns.values()
        )
        if plan is Plan.NOTE_ONLY or overtaken:
            self._note_only(verdict)
            return self._withheld_report("late")
        if self._caller_speaks():
            return self._cut_for_speaking_caller(state, verdict, plan)
        self.note_intervention(verdict)
        self._outlet.match_level(audio)
        if plan is Plan.REPLACE_HELD:
            self._outlet.mute(audio)
        else:
            self._outlet.take_over(audio)
        self._running = _Running(self, state, verdict, plan, begins_at, barge_in)
        self._running.task = self._spawn(self._intervened(self._running))
        return self._running

    async def _intervened(self, running: _Running) -> Report:
        relay = self._link.relay if self._link is not None else None
        if relay is not None and running.barge_in is not None:
            relay.inbound_tap = running.inbound
        report = running.intervention.report
        try:
            await running.intervention.run()
            if not self._ended:
                await self._hand_back(running)
        except Exception as problem:
            self._broke(problem, report)
        finally:
            if relay is not None:
                relay.inbound_tap = None
            report.ended_at = self._hearing()
            report.estimated = self._outlet.estimated
            self._conclude(running)
            self._running = None
            if not self._ended:
                self._outlet.hand_back()
            running.over.set()
        return report

    async def _hand_back(self, running: _Running) -> None:
        """Drop what was generated before the note; what was generated after it waits for its verdict."""
        noted_at = running.noted_at
        if noted_at is None:
            noted_at = asyncio.get_running_loop().time()
        later = [state for state in self._turns.values() if state.index > running.turn.index and not state.audio.muted]
        for state in later:
            if state.audio.reported_at < noted_at:
                self._outlet.mute(state.audio)
                running.drop(state)
        self._outlet.drop_unreported(noted_at)
        for state in later:
            if not state.audio.muted:
                # Bounded by the engine's own deadline for a turn.
                await _first(state.judged.wait(), self._over.wait())

    def _conclude(self, running: _Running) -> None:
        """The conversation goes on from what the caller heard, and the agent is told of it."""
        report, now = running.intervention.report, self._hearing()
        heard = self._outlet.heard(running.turn.audio, now)
        running.turn.heard = heard
        report.heard_text = heard.heard_text
        said = report.said(now)
        self.note_agent(running.turn.payload.agent_text, heard.heard_text, turn_id=running.turn.ref)
        self.note_mirror(said)
        if running.noted_at is None or running.dropped or report.outcome is not Outcome.COMPLETED:
            self._leave_note(running.verdict, said=said, heard=heard, dropped=running.dropped)

    def _cut_for_speaking_caller(self, state: _Turn, verdict: Verdict, plan: Plan) -> Report:
        """The caller speaks: the turn is silenced, nothing is said over them, and the agent is told what to say."""
        self._outlet.mute(state.audio)
        if plan in (Plan.CUT_NOW, Plan.CUT_WHEN_REACHED):
            self._outlet.cut()
        self.note_intervention(verdict)
        heard = self._outlet.heard(state.audio, self._hearing())
        self.note_agent(state.payload.agent_text, heard.heard_text, turn_id=state.ref)
        self._leave_note(verdict, said="", heard=heard, dropped=())
        self._outlet.hand_back()
        return Report(
            Outcome.INTERRUPTED,
            detail="the caller is speaking",
            heard_text=heard.heard_text,
            estimated=self._outlet.estimated,
        )

    def _note_only(self, verdict: Verdict) -> None:
        """Nothing is said; the agent has to take it back itself."""
        self.set_override(note_text(verdict, spoke=False), ttl_s=NOTE_TTL_S)
        if (state := self._turns.get(verdict.turn_id)) is not None:
            self.note_agent(state.payload.agent_text, turn_id=state.ref)

    def _leave_note(self, verdict: Verdict, *, said: str, heard: Heard | None, dropped: list[str] | tuple[()]) -> None:
        text = note_text(
            verdict,
            spoke=True,
            said=said,
            heard=heard.heard_text if heard is not None else "",
            uncertain=heard.uncertain_text if heard is not None else "",
            dropped=dropped,
        )
        self.set_override(text, ttl_s=NOTE_TTL_S)

    def _withheld_report(self, detail: str) -> Report:
        return Report(Outcome.WITHHELD, detail=detail, estimated=self._outlet.estimated)

    def _broke(self, problem: Exception, report: Report | None = None) -> Report:
        logger.error("An intervention failed inside the engine with %s", type(problem).__name__, exc_info=problem)
        report = report or Report(estimated=self._outlet.estimated)
        report.outcome, report.detail = Outcome.FAILED, _told(problem)
        return report

    # The caller

    def _barge_in_detector(self) -> BargeInDetector | None:
        """Tells when the caller speaks; None where nothing does: no stream to listen to, or no detector installed."""
        relay = self._link.relay if self._link is not None else None
        if relay is None:
            return None
        try:
            from supervision.audio.vad import BargeIn
        except ImportError:
            if not self._warned_of_vad:
                self._warned_of_vad = True
                logger.warning(
                    "webrtcvad-wheels is not installed: only a key, or note_customer_turn, interrupts an intervention"
                )
            return None
        return BargeIn(relay.format, need_ms=BARGE_IN_MS)

    def _caller_speaks(self) -> bool:
        relay = self._link.relay if self._link is not None else None
        detector = self._barge_in_detector()
        if relay is None or detector is None:
            return False
        return any([detector.push(events.payload(text)) for text in list(relay.recent_inbound)][-1:])

    async def _turn_heard(self, state: _Turn) -> None:
        """Wait until a turn has played, and let the history say what was heard of it."""
        audio, loop = state.audio, asyncio.get_running_loop()
        while not self._ended:
            unplayed_s = self._outlet.unplayed_s(audio, loop.time())
            await _first(asyncio.sleep(unplayed_s + SETTLES_S), self._over.wait())
            if not unplayed_s:
                break
        if self._running is not None and self._running.turn is state:
            return  # how much was heard shows when the intervention ends
        self._note_heard(state)

    def _note_heard(self, state: _Turn) -> None:
        if state.heard is not None or not state.audio.started:
            return
        try:
            state.heard = self._outlet.heard(state.audio, self._hearing())
        except OutletError:
            return  # the stream is gone before it began
        state.audio.audio.clear()
        state.audio.heard_reported = True
        text = state.payload.agent_text
        if text.strip() and (state.heard.unheard_text or state.heard.uncertain_text):
            self.note_agent(text, state.heard.heard_text, turn_id=state.ref)

    def _hearing(self) -> float:
        """Loop time up to which the caller can have heard anything: now, or when they left."""
        return asyncio.get_running_loop().time() if self._left_at is None else self._left_at

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_log_failure)
        return task


class _Running:
    """One intervention of a call: it observes its steps, and keeps what its note and the history will say."""

    def __init__(
        self,
        call: AttachedCall,
        turn: _Turn,
        verdict: Verdict,
        plan: Plan,
        begins_at: float | None,
        barge_in: BargeInDetector | None,
    ) -> None:
        outlet = call._outlet
        self.turn = turn
        self.verdict = verdict
        self.barge_in = barge_in
        self.agent_cleared = False
        self.noted_at: float | None = None
        self.dropped: list[str] = []
        self.over = asyncio.Event()
        self.sink: InterventionSink = outlet.sink(turn.audio, on_buffer_played=lambda: None)
        self.task: asyncio.Task[Report]
        self._call = call
        self._line: Line | None = None
        fallback = outlet.fallback_line()
        lines = CorrectionLines(
            ask=lambda candidate: call.correct(turn.payload, verdict, on_candidate=candidate),
            voice=outlet,
            fallback=fallback,
            step=self.step,
        )
        self.intervention = Intervention(
            plan=plan,
            sink=self.sink,
            observer=self,
            buffer=outlet.opener_line() if plan is Plan.RETRACT else outlet.buffer_line(),
            fallback=fallback,
            correct=lines.best,
            so_far=lines.ready,
            begins_at=begins_at,
            reached=self.sink.reached,
        )

    # -- Observer

    def phase(self, phase: str, text: str = "") -> None:
        """See `Observer`."""
        logger.debug("Intervention in turn %s: %s", self.turn.ref, phase)

    def step(self, step: str, detail: str = "") -> None:
        """See `Observer`."""
        logger.debug("Intervention in turn %s: %s %s", self.turn.ref, step, detail)

    def note(self, line: Line) -> None:
        """See `Observer`."""
        self._line = line
        call = self._call
        said = " ".join(part for part in (self.intervention.buffer_text, line.text) if part)
        heard = call._outlet.heard(self.turn.audio, call._hearing())
        call._leave_note(self.verdict, said=said, heard=heard, dropped=self.dropped)
        self.noted_at = asyncio.get_running_loop().time()

    # -- what happens meanwhile

    def stop(self, outcome: Outcome) -> None:
        """The caller speaks, presses a key or is gone."""
        self.intervention.stop(outcome)

    def drop(self, state: _Turn) -> None:
        """A turn is not said because of this intervention."""
        if state.ref not in self.dropped:
            self.dropped.append(state.ref)
        self._call.note_agent(state.payload.agent_text, "", turn_id=state.ref)

    def inbound(self, text: str) -> None:
        """The caller's audio, frame by frame."""
        need = BARGE_IN_WITH_CLEAR_MS if self.agent_cleared else None
        if self.barge_in is not None and self.barge_in.push(events.payload(text), need_ms=need):
            self.stop(Outcome.INTERRUPTED)

    def is_echo(self, text: str) -> bool:
        """Whether the caller's transcript repeats what Mirror is saying right now."""
        said = set(_words(" ".join((self.intervention.buffer_text, self._line.text if self._line else ""))))
        words = _words(text)
        return len(words) >= 3 and bool(said) and len([word for word in words if word in said]) >= 0.8 * len(words)


def attach(
    supervisor: Supervisor,
    handler: Any = None,
    *,
    tts_provider: Any = None,
    tts_sink: Any = None,
    language: str = "en",
    voice: str | None = None,
    call_id: str = "",
    tenant_id: str | None = None,
    agent_id: str | None = None,
    media_format: MediaFormat | None = None,
) -> AttachedCall:
    """Supervises one call with its audio; what `Supervisor.attach` does. To be entered with `async with`.

    `handler` is a `plivo_stream` handler of either kind, a `RawPlivoWSAdapter`, or a Starlette, FastAPI or
    `websockets` socket. From entering on its frames are read and written below its owner. It may be left out with a
    `tts_sink` that needs no stream; then Mirror does not notice when the caller speaks, presses a key or hangs up,
    unless it is told (`note_customer_turn`, `caller_gone`).

    `tts_provider` is the voice: a callable `text -> bytes` (async or not) of raw samples in the call's codec, an object
    with `synthesize(text) -> bytes`, or a `TTSProvider`; `voice` is handed to those that take one. Without it the
    agent's own audio is supervised, and an intervention can only leave a note. `tts_sink` (a `TTSSink` such as
    `PlivoRESTTTSSink`) speaks in place of the stream.

    `call_id`, `tenant_id` and `agent_id` name the call where Plivo's `start` does not, or should not. `media_format` is
    the stream's where its `start` was read before (mu-law at 8 kHz unless it is given).

    A caller who speaks for 400 ms, presses a key or (without `webrtcvad-wheels`) whose words are noted interrupts an
    intervention.

    Raises `TypeError` and `ValueError` naming the argument that is wrong.
    """
    if isinstance(tts_sink, PlivoStreamTTSSink):
        if handler is not None or tts_provider is not None:
            raise TypeError("tts_sink: a PlivoStreamTTSSink holds handler and tts_provider already; give them once")
        handler, tts_provider, tts_sink = tts_sink.handler, tts_sink.tts_provider, None
    if handler is None and tts_sink is None:
        raise TypeError("handler: give the call's stream, or a tts_sink")
    if tts_provider is not None and tts_sink is not None:
        raise TypeError("tts_provider: a tts_sink speaks by itself; give one of the two")
    if tts_provider is not None:
        checked_voice(tts_provider)
        give_secrets(supervisor.config.secrets, tts_provider)
    if tts_sink is not None and (isinstance(tts_sink, type) or not isinstance(tts_sink, TTSSink)):
        raise TypeError(
            f"tts_sink: a {type(tts_sink).__name__} cannot speak; give an object with async speak(text, *, language) "
            "and clear()"
        )
    if not isinstance(language, str) or not re.fullmatch(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*", language):
        raise ValueError(f"language: must be a BCP 47 tag such as en-US, not {language!r}")
    outlet: Outlet
    if tts_sink is not None:
        outlet = SinkOutlet(tts_sink, language)
    else:
        outlet = StreamOutlet(tts_provider, language, voice, _caches(supervisor))
    context = SupervisorContext(call_id=call_id, tenant_id=tenant_id, agent_id=agent_id)
    return AttachedCall(
        supervisor,
        context,
        handler=handler,
        outlet=outlet,
        sink=tts_sink,
        language=language,
        media_format=media_format or MediaFormat(),
    )


def _caches(supervisor: Supervisor) -> LineCaches:
    """The rendered lines of a supervisor's calls: buffer lines and templates are the same in all of them."""
    return _LINE_CACHES.setdefault(supervisor, LineCaches())


async def _first(*waits: Coroutine[Any, Any, Any]) -> None:
    """Return when the first of these has; the others are cancelled."""
    tasks = {asyncio.ensure_future(wait) for wait in waits}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _told(problem: Exception) -> str:
    """What went wrong, fit for a report: the message of our own errors, the type of others, which may quote words."""
    return str(problem) if isinstance(problem, TTSError | OutletError) else type(problem).__name__


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (problem := task.exception()) is not None:
        logger.error("Supervising a call failed; the call goes on", exc_info=problem)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
