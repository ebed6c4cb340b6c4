"""The supervised part of a call: turns and tools are judged, violating turns are replaced, the agent is told.

Everything here runs beside the relay: whatever fails, audio goes on. Verdicts are bound to their turn, so a late one
never acts on a newer one; one intervention runs at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final
from uuid import UUID

from mirror_saas.ids import uuid7
from supervision.audio.heard import Heard
from supervision.audio.levels import rms_dbfs
from supervision.audio.vad import BargeIn
from supervision.engine.adapters.agent_voice import LEAD_S, AgentVoice, SayExpired, SayUnknown
from supervision.engine.adapters.hold import Hold
from supervision.engine.adapters.playback import heard_of, plan_for, soft_cut
from supervision.engine.adapters.relay import CallRelay
from supervision.engine.adapters.turn_audio import TurnAudio
from supervision.engine.config import Delivery
from supervision.engine.context import JudgingState, TurnPayload, Verdict
from supervision.engine.intervention.clauses import violation_starts
from supervision.engine.intervention.correction_lines import CorrectionLines
from supervision.engine.intervention.orchestrator import (
    CORRECTION_BEFORE_END_S,
    Intervention,
    Outcome,
    Plan,
    Report,
)
from supervision.engine.intervention.templates import hold_lines
from supervision.engine.llm.limiter import Risk, asking
from supervision.engine.state.carried import CarriedMemory
from supervision.engine.supervisor import CallSupervisor
from supervision.engine.tts.voice import CallVoice
from supervision.plivo import events as plivo_events
from supervision.recorder import events as record
from supervision.recorder.events import CallLog, EventData
from supervision.recorder.recorder import JournalUnavailable, Recorder
from supervision.stream import frames
from supervision.stream.announcement import announce
from supervision.stream.approvals import CallApprovals
from supervision.stream.carried import CarriedCall, CarriedTurn
from supervision.stream.escalation import Escalation
from supervision.stream.failure import PLIVO_ENDS_WITHIN_S
from supervision.stream.hold_line import HoldLine
from supervision.stream.ledger import CallLedger
from supervision.stream.one_way import NO_ACCOUNT, OneWay
from supervision.stream.pending_notes import PendingNotes
from supervision.stream.plivo_rest import PlivoCall
from supervision.stream.running import Running, words_of
from supervision.stream.streamed import StreamedTurns
from supervision.stream.tools import COMMIT_WITHIN_S, CallTools, intent_fields, tool_verdict_fields
from supervision.stream.turns import TurnState

logger = logging.getLogger(__name__)

SETTLES_S: Final = 0.5  # after a turn has played, until its last acknowledgements are in and it is known what was heard
BARGE_IN_MS: Final = 400
BARGE_IN_WITH_CLEAR_MS: Final = 200
MOVES_WITHIN_S: Final = 0.3  # for the same when the call goes on on another socket, whose caller waits
END_WAITS_S: Final = 5.0  # for what is still being judged when the call is over; ASGI servers give 10 s in all
MAX_TURNS_KEPT: Final = 64
REJECTIONS_TOLD: Final = 500  # in the record each by itself; of more of them one a second
LEVEL_FROM_S: Final = 3.0
ANNOUNCED_WITHIN_S: Final = 5.0  # of an intervention that is still going on, whose words come first


@dataclass(slots=True)
class Counts:
    """What the record of the call ends with."""

    turns: int = 0
    states: dict[JudgingState, int] = field(default_factory=lambda: dict.fromkeys(JudgingState, 0))
    why: dict[JudgingState, str] = field(default_factory=dict)  # of each state, what its last turn's verdict said
    interventions: int = 0


class SupervisedCall:
    """The dialogue with an agent that said `mirror.hello`, and what Mirror does about its turns and tools."""

    def __init__(
        self,
        *,
        relay: CallRelay,
        supervisor: CallSupervisor | None,
        voice: CallVoice,
        log: CallLog,
        recorder: Recorder,
        ledger: CallLedger | None,
        approvals: CallApprovals,
        mode: str,
        ready: dict[str, Any],
        arm_lines: Callable[[str], dict[str, Any]],
        plivo_call: PlivoCall | None,
        bidirectional: bool,
        leaving: Callable[[str], None],
        close: Callable[[], None],
        to_agent: Callable[[dict[str, Any]], None],
        at_ms: Callable[[], int],
    ) -> None:
        self.relay = relay
        self.counts = Counts()
        self.hello: frames.Hello | None = None
        self.language = voice.language
        self._supervisor = supervisor
        self._voice = voice
        self.agent_voice = AgentVoice(relay=relay, ask=self._ask_to_say, spoken=voice.spoken)
        self._log = log
        self._recorder = recorder
        self._mode = mode
        self._ready = ready
        self._arm_lines = arm_lines
        self.plivo_call = plivo_call
        self.bidirectional = bidirectional
        self.one_way = None if bidirectional else OneWay(plivo_call)
        self.escalation = Escalation(supervisor, plivo_call, voice, leaving, close)
        self._replaced = 0
        self._to_agent = to_agent
        self._at_ms = at_ms
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns: dict[str, TurnState] = {}
        self._heard_customer: list[str] = []
        self._running: Running | None = None
        self._playing_on: dict[UUID, Callable[[], None]] = {}  # by turn: ends of interventions that were only a note
        self._ended = False
        self._moved = False
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._left_at: float | None = None
        # Frames that were not taken: how many, and how many and until when the record tells of.
        self._rejected = self._rejections_told = self._rejection_told_ms = 0
        # Once the line is lost: how what was running ends, which shows when the stream comes back, or does not.
        self._fate: asyncio.Future[Outcome] | None = None
        self.notes = PendingNotes()
        self._turns_before: dict[str, CarriedTurn] = {}  # reported on an earlier socket of the call
        self._hold_budget_s = supervisor.config.hold_budget_ms / 1000 if supervisor is not None else 0.0
        self.delivery: Delivery = "stream_first"
        """When this call's turns are heard."""
        if supervisor is not None and mode != "shadow":
            self.delivery = supervisor.delivery
        if self.delivery != "stream_first":
            relay.hold_undecided_s = self._hold_budget_s
        self.streamed = StreamedTurns(self, supervisor)
        self.tools = CallTools(
            supervisor=supervisor,
            mode=mode,
            log=log,
            recorder=recorder,
            ledger=ledger,
            approvals=approvals,
            turn_of=lambda ref: self._turns.get(ref),
            to_agent=to_agent,
            rejected=self.rejected,
            spawn=self._spawn,
            at_ms=at_ms,
        )
        own_line = supervisor.config.approval_hold_text if supervisor is not None else None
        approvals.hold = HoldLine(
            relay=relay,
            voice=voice,
            lines=lambda: hold_lines(self.language, own_line),
            somebody_speaks=self._somebody_speaks,
            said=self._hold_line_said,
        ).say

    # ------------------------------------------------------------------ frames from the agent

    def frame(self, raw: dict[str, Any]) -> None:
        """Take a decoded `mirror.*` frame. Never raises: what is wrong with it is told to the agent."""
        try:
            if self.hello is None and raw["event"] != "mirror.hello":
                raise frames.FrameError("no_hello", "send mirror.hello first", frames.reference(raw))
            self._take(frames.parse(raw))
        except frames.FrameError as problem:
            self.rejected(problem.code, problem.message, problem.ref)
        except Exception:
            # A defect of ours must not cost the caller the call.
            logger.exception("A mirror.* frame could not be handled")

    def rejected(self, code: str, message: str, ref: str | None = None) -> None:
        """Tell the agent, and the record, that a frame was not taken; of a flood, the record has one a second."""
        self._to_agent({"event": "mirror.error", "code": code, "message": message, "ref": ref})
        at_ms = self._at_ms()
        self._rejected += 1
        if self._rejected <= REJECTIONS_TOLD or at_ms - self._rejection_told_ms >= 1000:
            left_out = self._rejected - self._rejections_told - 1
            self._rejections_told, self._rejection_told_ms = self._rejected, at_ms
            message = f"{message} (and {left_out} more before it)" if left_out else message
            self._record(record.FrameRejected(code=code, message=message, at_ms=at_ms))

    def _take(self, parsed: frames.AgentFrame) -> None:
        if isinstance(parsed, frames.Hello):
            self._take_hello(parsed)
        elif isinstance(parsed, frames.Turn):
            self.take_turn(parsed)
        elif isinstance(parsed, frames.Delta):
            self.streamed.take(parsed)
        elif isinstance(parsed, frames.Tool):
            # A turn that is not reported yet is no error: many agents run their tools before they know what to say.
            turn = self._turns.get(parsed.turn_ref or "")
            heard = turn.payload.customer_text if turn is not None else " ".join(self._heard_customer)
            self.tools.ask(parsed, turn, parsed.customer_text or heard)
        elif isinstance(parsed, frames.ToolDone):
            self.tools.done(parsed)
        elif isinstance(parsed, frames.Audio):
            self._take_audio(parsed)
        elif isinstance(parsed, frames.Said):
            self._take_said(parsed)
        else:
            self._take_transcript(parsed)

    def agent_replaced(self) -> None:
        """The agent's socket broke. If another takes its place, that knows nothing of this one: neither its hello, nor
        its turns' ids; what it has to know it is told in `mirror.ready`."""
        self._replaced += 1
        self.hello = None
        self.agent_voice.lost()
        self.tools.agent_replaced()
        self._choose_voice()
        self.relay.agent_replaced(self._loop.time())
        # Ids of an agent are the socket's: the next one may begin at the same number.
        self._turns = {f"{ref} (socket {self._replaced})": state for ref, state in self._turns.items()}
        self._ready = {**self._ready, "resumed": True}

    def _take_hello(self, hello: frames.Hello) -> None:
        first = self.hello is None
        self.hello = hello
        self.relay.hello = True
        self.relay.marks = hello.marks
        self.agent_voice.offered = "say" in hello.wants and self.one_way is None
        self._choose_voice()
        changed = (hello.language or self.language, hello.voice or self._voice.voice)
        if changed != (self.language, self._voice.voice):
            self.language, self._voice.voice = changed
            self._voice.language = self.language
            self.arm()
        notes = self.notes.pending() if "notes" in hello.wants else []
        self._to_agent({"event": "mirror.ready", **self._ready, "notes": notes})
        if not first:
            return
        self._record(
            record.CallHello(
                sdk=hello.sdk,
                language=self.language,
                wants=sorted(hello.wants),
                marks=hello.marks,
                at_ms=self._at_ms(),
            )
        )
        self._probe()

    def _probe(self) -> None:
        sent_at = self._loop.time()
        if self.relay.clock.lead(sent_at) == 0.0:
            # Only an empty queue answers at once; with audio before it the answer says nothing about the wire.
            self.relay.checkpoint("probe", lambda at: self.relay.clock.measured(at - sent_at), sent_at)

    def _choose_voice(self) -> None:
        # The agent and Plivo speak words; of Mirror's own voice they have to be rendered.
        self._voice.by_words = self.agent_voice.usable if self.one_way is None else self.one_way.speaks

    def arm(self) -> None:
        """Render what an intervention says, before one is needed."""
        self._spawn(self._voice.arm(**self._arm_lines(self.language)))
        self._spawn(self.escalation.arm(self.language))

    def _take_transcript(self, transcript: frames.Transcript) -> None:
        self._record(
            record.TranscriptNoted(
                at_ms=self._at_ms(),
                role="customer",
                text=transcript.text,
                final=transcript.final,
                language=transcript.language or "",
            )
        )
        if transcript.final and transcript.text.strip() and not self._is_echo(transcript.text):
            self._heard_customer.append(transcript.text.strip())
            del self._heard_customer[:-20]

    def _is_echo(self, text: str) -> bool:
        """Whether the caller's transcript repeats what Mirror is saying right now."""
        said = self._running.spoken_words() if self._running is not None else set()
        words = words_of(text)
        return len(words) >= 3 and bool(said) and len([w for w in words if w in said]) >= 0.8 * len(words)

    def turn(self, ref: str) -> TurnState | None:
        """The turn that the agent reported under this id."""
        return self._turns.get(ref)

    def take_turn(self, turn: frames.Turn, *, growing: bool = False) -> TurnState:
        """Take a reported turn; ``growing``: there is more of its text to come, and whoever takes that has it judged.
        Raises `FrameError` when it was reported before."""
        if turn.ref in self._turns or turn.ref in self._turns_before:
            raise frames.FrameError("duplicate_turn", "turn_id: this turn was reported before", turn.ref)
        self.notes.answered(turn.seen)
        self.streamed.close()
        customer = turn.customer_text.strip() or " ".join(self._heard_customer)
        self._heard_customer.clear()
        now = self._loop.time()
        audio = TurnAudio(uuid7(), turn.ref, now, turn.seen, turn.text, growing=growing)
        language = turn.language or self.language
        if self._supervisor is None:
            payload = TurnPayload(customer, turn.text, turn.tool_calls, (), turn.ref, language)
        else:
            payload = self._supervisor.payload(
                customer_text=customer,
                agent_text=turn.text,
                tool_calls=turn.tool_calls,
                turn_id=turn.ref,
                language=language,
            )
        self.counts.turns += 1
        state = TurnState(audio, payload, self.counts.turns, self._loop.create_future())
        self._turns[turn.ref] = state
        while len(self._turns) > MAX_TURNS_KEPT:
            self._turns.pop(next(iter(self._turns)))
        if self._holds(payload, growing):
            audio.hold = Hold(self._hold_budget_s)
        if self.one_way is None:
            self.relay.turn_reported(audio)
        else:
            self.one_way.turn_begins(audio)
            self._spawn(self._turn_heard(audio))
        if self._supervisor is not None:
            # After the payload was made: a turn's history never contains the turn.
            if customer:
                self._supervisor.note_customer(customer)
            if turn.text.strip() and not growing:
                self._supervisor.note_agent(turn.text, turn_id=turn.ref)
        self._record(
            record.TurnReported(
                turn_id=audio.turn_id,
                ref=turn.ref,
                index=state.index,
                customer_text=customer,
                text=turn.text,
                tool_calls=[intent_fields(call) for call in turn.tool_calls],
                language=payload.language,
                at_ms=self._at_ms(),
            )
        )
        if not growing:
            self._spawn(self._judge(state))
        self.tools.ask_all(turn.tool_calls, state, customer)
        return state

    # ------------------------------------------------------------------ turns from outside the agent's socket

    async def report_turn(self, raw: dict[str, Any], wait_s: float) -> dict[str, Any]:
        """Take the fields of `mirror.turn` from a program that cannot speak on this socket.

        Returns, once it is in the journal, `{"taken": True, "verdict": …, "tools": […]}`: the verdict and the tools'
        are those that were known after at most ``wait_s``, None without. What cannot be taken is
        `{"taken": False, "code": …, "message": …}`, with `ended` when the call is over and `not_recorded` when the
        journal does not work. A turn that was reported before, with the same words, is answered and not taken again.
        """
        if self._moved:
            return {"taken": False, "code": "moved", "message": "the call goes on elsewhere"}
        if self._ended:
            return {"taken": False, "code": "ended", "message": "the call has ended"}
        try:
            parsed = frames.parse({**raw, "event": "mirror.turn"})
            assert isinstance(parsed, frames.Turn)
            state = self._turns.get(parsed.ref)
            if state is None and (before := self._turns_before.get(parsed.ref)) is not None:
                if before.text is not None and (before.text, before.tool_calls) != (parsed.text, parsed.tool_calls):
                    raise frames.FrameError(
                        "duplicate_turn", "turn_id: another turn was reported under this id", parsed.ref
                    )
                # It is in the record; what was said of it, the socket that took it has told.
                return {"taken": True, "verdict": None, "tools": []}
            if state is None:
                self._hear_from_outside()
                state = self.take_turn(parsed)
            elif (state.payload.agent_text, state.payload.tool_calls) != (parsed.text, parsed.tool_calls):
                raise frames.FrameError(
                    "duplicate_turn", "turn_id: another turn was reported under this id", parsed.ref
                )
        except frames.FrameError as problem:
            return {"taken": False, "code": problem.code, "message": problem.message}
        try:
            async with asyncio.timeout(COMMIT_WITHIN_S):
                await self._recorder.commit(self._log.call_id)
        except (JournalUnavailable, TimeoutError):
            return {"taken": False, "code": "not_recorded", "message": "the turn could not be recorded"}
        tools = self.tools.decisions(parsed.tool_calls)
        waited_for: set[asyncio.Future[Any]] = {state.judged, *tools}
        if wait_s > 0 and not all(future.done() for future in waited_for):
            everything = self._loop.create_task(_all_done(waited_for))
            either: set[asyncio.Future[None]] = {everything, self._over}
            await asyncio.wait(either, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            everything.cancel()
        return {
            "taken": True,
            "verdict": state.told or None,
            "tools": [tool_verdict_fields(tool.result()) for tool in tools if tool.done()],
        }

    def _hear_from_outside(self) -> None:
        """Whose audio is whose matters from now on, though the agent said no hello."""
        if not self.relay.hello:
            self.relay.hello = True
            self._probe()

    def _take_audio(self, audio: frames.Audio) -> None:
        if audio.say is not None:
            self._take_line_audio(audio.say, audio.state)
            return
        if not self.relay.marks:
            raise frames.FrameError("bad_field", "event: mirror.hello did not announce marks", audio.turn_ref)
        state = self._turns.get(audio.turn_ref or "")
        if state is None:
            raise frames.FrameError("unknown_id", "turn_id: no such turn was reported", audio.turn_ref)
        self.relay.audio_mark(state.audio, audio.state, audio.chars, self._loop.time())

    def _ask_to_say(self, say_id: str, role: str, text: str, deadline_ms: int) -> None:
        self._to_agent(
            {
                "event": "mirror.say",
                "id": say_id,
                "role": role,
                "text": text,
                "language": self.language,
                "deadline_ms": deadline_ms,
            }
        )

    def _take_line_audio(self, say_id: str, state: str) -> None:
        try:
            if state == "start":
                self.agent_voice.begins(say_id)
                if self._running is not None:
                    self._running.step("say_begun", self.agent_voice.role_of(say_id))
            elif state in ("end", "cut"):
                self.agent_voice.ends(say_id)
        except SayUnknown:
            raise frames.FrameError("unknown_id", "say: no such line was asked for", say_id) from None
        except SayExpired:
            raise frames.FrameError(
                "say_expired", "say: this line came too late and is not heard; speak for yourself", say_id
            ) from None

    def _take_said(self, said: frames.Said) -> None:
        try:
            role = self.agent_voice.role_of(said.say)
        except SayUnknown:
            raise frames.FrameError("unknown_id", "id: no such line was asked for", said.say) from None
        if self._running is not None:
            self._running.step("said", role)

    # ------------------------------------------------------------------ judging

    def _holds(self, payload: TurnPayload, growing: bool) -> bool:
        if self._supervisor is None or self.delivery == "stream_first":
            return False
        return self._supervisor.holds(payload, growing=growing)

    def ungoverned(self, turn: TurnState) -> Verdict:
        """The verdict where there is no policy to judge by."""
        return Verdict(turn.ref, JudgingState.FAILED, None, None, "", "", 1.0, 0, detail="no live policy")

    def risk_of(self, turn: TurnState) -> Risk:
        """What hangs on the verdict about this turn."""
        if self._mode == "shadow":
            return Risk.SHADOW
        return Risk.TURN if turn.audio.hold is None else Risk.HELD

    async def _judge(self, turn: TurnState) -> None:
        if self._supervisor is None:
            verdict = self.ungoverned(turn)
        else:
            with asking(self.risk_of(turn)):
                verdict = await self._supervisor.judge_turn(turn.payload)
        if verdict.violates:
            turn.violates_from = violation_starts(turn.audio.text, verdict.reason)
        self.judged(turn, verdict, self.decide(turn, verdict))

    def judged(self, turn: TurnState, verdict: Verdict, decided: tuple[bool, str | None]) -> None:
        """This is the turn's verdict, and what was `decided` about it: tell the record and the agent, and let what was
        held of the turn be heard."""
        acted, withheld = decided
        assert turn.verdict_id is not None
        self.counts.states[verdict.state] += 1
        self.counts.why[verdict.state] = verdict.detail
        self._record(
            record.TurnJudged(
                turn_id=turn.turn_id,
                verdict_id=turn.verdict_id,
                state=verdict.state.value,
                score=verdict.score,
                threshold=verdict.threshold,
                rule=verdict.rule,
                reason=verdict.reason,
                correction=verdict.correction,
                intervene=verdict.should_intervene,
                acted=acted,
                withheld=withheld,
                latency_ms=verdict.latency_ms,
                prompt_tokens=verdict.usage.prompt_tokens,
                completion_tokens=verdict.usage.completion_tokens,
                model=verdict.model,
                fallback=verdict.fallback,
                late=False,  # of answers after their deadline; one that came in time counts, whatever could be done
                detail=verdict.detail,
                at_ms=self._at_ms(),
            )
        )
        turn.told = {
            "turn_id": turn.ref,
            "state": verdict.state.value,
            "score": verdict.score,
            "intervene": verdict.should_intervene,
            "acted": acted,
            "withheld": withheld,
            "rule": verdict.rule,
            "reason": verdict.reason or verdict.detail,
            "latency_ms": verdict.latency_ms,
        }
        turn.clean.set()
        if not turn.judged.done():
            turn.judged.set_result(verdict)
        if not turn.audio.muted:
            self.relay.decide(turn.audio, self._loop.time())
        if self.hello is not None and "verdicts" in self.hello.wants and not self._ended:
            self._to_agent({"event": "mirror.verdict", **turn.told})

    def decide(self, turn: TurnState, verdict: Verdict) -> tuple[bool, str | None]:
        """Act on a verdict, or say why not: ``(acted, withheld)``."""
        turn.verdict_id = uuid7()
        if self._ended or (self._fate is not None and not verdict.should_intervene):
            return False, "late" if verdict.should_intervene else None
        if self._fate is not None:
            # Nobody hears anything now; should the stream come back, the agent has to know.
            turn.flagged = True
            self._note_only(turn, verdict, "late")
            return False, "late"
        if not verdict.should_intervene or self._supervisor is None:
            return False, None
        withheld = "shadow" if self._mode == "shadow" else self._supervisor.withheld(verdict)
        # Whatever is said about it now: a turn whose words broke a rule may not act.
        turn.flagged = True
        if withheld == "shadow":
            return False, withheld
        if self._running is not None:
            self.relay.mute(turn.audio, self._loop.time())
            self._running.joined(turn)
            return False, "in_progress"
        now = self._loop.time()
        if withheld == "limit" or self._supervisor.spent:
            return self._escalate(turn, verdict, now)
        if withheld is not None:
            return False, withheld
        self._choose_voice()
        if not self._armed:
            self._note_only(turn, verdict, "unarmed")
            return False, "unarmed"
        plan, begins_at, keep_s = self._plan(turn, now)
        if plan is Plan.NOTE_ONLY:
            self._note_only(turn, verdict, "late")
            return False, "late"
        if self._caller_speaks():
            self._cut_for_speaking_caller(turn, verdict, plan, now)
            return True, None
        self._act(turn, verdict, plan, begins_at, keep_s, now)
        return True, None

    def _plan(self, turn: TurnState, now: float) -> tuple[Plan, float | None, float]:
        """What the caller can hear of this turn decides: the plan, when its clear goes out, and how many seconds of
        the turn's beginning are heard all the same."""
        audio, clock = turn.audio, self.relay.clock
        if clock.end_at > now and self.relay.adopt_unreported(audio):
            # The agent reported this turn after its audio had begun: what is audible is what was reported.
            return Plan.CUT_NOW, None, 0.0
        if (taken := self.relay.taken_for(audio)) is not None:
            # Whose audio it is, nobody said. Better an innocent turn cut than a wrong one heard; the other is mute too.
            other = next((state for state in self._turns.values() if state.audio is taken), None)
            if other is not None:
                other.audio = audio
            taken.trade_names(audio)
            self.relay.mute(audio, now)
            turn.audio = audio = taken
        newer = any(other.audio.reported_at > audio.reported_at for other in self._turns.values())
        plan, begins_at = plan_for(self.relay, audio, now, newer=newer, caller_speaks=self._caller_speaks)
        if taken is None and plan in (Plan.CUT_NOW, Plan.CUT_WHEN_REACHED):
            spared = soft_cut(self.relay, audio, now, turn.violates_from)
            if spared is not None:
                return spared
        return plan, begins_at, 0.0

    @property
    def _unarmed_reason(self) -> str:
        silent = self.one_way is not None and not self.one_way.speaks
        return NO_ACCOUNT if silent else self._voice.unarmed_reason

    @property
    def _armed(self) -> bool:
        return self._voice.armed and (self.one_way is None or self.one_way.speaks)

    def _caller_speaks(self) -> bool:
        detector = BargeIn(self.relay.format, need_ms=BARGE_IN_MS)
        recent = [text for text in self.relay.recent_inbound if plivo_events.is_callers(text)]
        return any([detector.push(plivo_events.payload(text)) for text in recent][-1:])

    # ------------------------------------------------------------------ intervening

    def _escalate(self, turn: TurnState, verdict: Verdict, now: float) -> tuple[bool, str | None]:
        """One intervention would be one too many: do what the policy says instead."""
        if not self.escalation.possible:
            self._note_only(turn, verdict, "limit")
            return False, "limit"
        plan, begins_at, keep_s = self._plan(turn, now)
        if plan is Plan.NOTE_ONLY:
            plan = Plan.RETRACT  # heard long ago; the call is not the agent's any more all the same
        self._choose_voice()
        running = Running(self, turn, verdict, plan)
        speaks = not self._caller_speaks()
        running.intervention = self.escalation.intervention(running, begins_at, speaks=speaks)
        running.instead = self.escalation
        self._begin(running, keep_s, now)
        return True, None

    def _act(
        self, turn: TurnState, verdict: Verdict, plan: Plan, begins_at: float | None, keep_s: float, now: float
    ) -> None:
        assert self._supervisor is not None
        supervisor = self._supervisor
        self._match_level(turn.audio)
        opener = plan is Plan.RETRACT
        buffer = self._voice.opener_line() if opener else self._voice.buffer_line()
        fallback = self._voice.fallback_line()
        running = Running(self, turn, verdict, plan)
        # How long the words may take is known only when the buffer line plays; then the best that are rendered speak.
        lines = running.lines = CorrectionLines(
            ask=lambda candidate: supervisor.correct(turn.payload, verdict, on_candidate=candidate),
            voice=self._voice,
            fallback=fallback,
            step=running.step,
        )
        running.intervention = Intervention(
            plan=plan,
            sink=running,
            observer=running,
            buffer=buffer,
            fallback=fallback,
            correct=lines.best,
            so_far=lines.ready,
            lead_s=LEAD_S if self.agent_voice.usable else CORRECTION_BEFORE_END_S,
            begins_at=begins_at,
            reached=running.reached,
        )
        self._begin(running, keep_s, now)

    def _begin(self, running: Running, keep_s: float, now: float) -> None:
        turn, verdict = running.turn, running.verdict
        self.counts.interventions += 1
        if self._supervisor is not None:
            self._supervisor.note_intervention(verdict)
        if running.plan is Plan.REPLACE_HELD:
            self.relay.mute(turn.audio, now, keep_s)
        else:
            self.relay.take_over(turn.audio, now)
        self._running = running
        self._record(
            record.InterventionStarted(
                intervention_id=running.id,
                turn_id=turn.turn_id,
                verdict_id=turn.verdict_id,
                rule=verdict.rule,
                plan=running.plan.value,
                at_ms=self._at_ms(),
            )
        )
        self._spawn(self._intervene(running))

    async def _intervene(self, running: Running) -> None:
        barge_in = BargeIn(self.relay.format, need_ms=BARGE_IN_MS)

        def tap(text: str) -> None:
            need = BARGE_IN_WITH_CLEAR_MS if running.agent_cleared else None
            if plivo_events.is_callers(text) and barge_in.push(plivo_events.payload(text), need_ms=need):
                running.interrupt()

        self.relay.inbound_tap = tap
        assert running.intervention is not None
        report = running.intervention.report
        try:
            await running.intervention.run()
            if running.instead is not None and await running.instead.carry_out(running, report):
                # The call is not the agent's any more; nothing of it is heard until Plivo ends the stream.
                await asyncio.wait({self._over}, timeout=PLIVO_ENDS_WITHIN_S)
                if not self._over.done():
                    running.instead.finish()
                    await asyncio.wait({self._over})
            if self._fate is not None:
                report.outcome = await self._fate
            elif not self._ended:
                await self._hand_back(running, report)
        finally:
            self.relay.inbound_tap = None
            self._running = None
            if self._moved:
                # What was said and heard of it differs from what was told, if anything was.
                running.send_note(report)
            elif not self._ended:
                self.relay.hand_back(self._loop.time())
                running.step("handed_back")
            running.ended(report)
            self._spawn(self._turn_heard(running.turn.audio))
        if self._supervisor is not None and (said := running.said(report)):
            self._supervisor.note_mirror(said)

    async def _hand_back(self, running: Running, report: Report) -> None:
        """Drop what was generated before the note, judge what was generated after it, and tell the agent."""
        if running.note_sent_at is None:
            # No correction was spoken: the agent must know all the same before it goes on.
            running.send_note(report)
        assert running.note_sent_at is not None
        noted_at = running.note_sent_at
        for state in list(self._turns.values()):
            audio = state.audio
            if audio is running.turn.audio or audio.reported_at < running.turn.audio.reported_at or audio.muted:
                continue
            fresh = audio.seen == str(running.note_id) if audio.seen is not None else audio.reported_at >= noted_at
            if not fresh:
                self.relay.mute(audio, self._loop.time())
                running.dropped.append(audio.ref)
        self.relay.drop_unreported(noted_at, self._loop.time())
        fresh_turns = [
            state
            for state in self._turns.values()
            if state.audio.reported_at > running.turn.audio.reported_at and not state.audio.muted
        ]
        for state in fresh_turns:
            # Bounded by the engine's own deadline for a turn.
            await self._first_words_judged(state)
        if running.dropped or report.outcome is not Outcome.COMPLETED:
            running.send_note(report)
        if self._supervisor is not None:
            running.correct_history(self._supervisor)

    async def _first_words_judged(self, turn: TurnState) -> None:
        waiting = self._loop.create_task(turn.clean.wait())
        limit_s = None
        if turn.audio.growing and self._supervisor is not None:
            limit_s = self._supervisor.config.semantic_review_timeout_s
        either: set[asyncio.Future[Any]] = {waiting, self._over}
        await asyncio.wait(either, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    def _cut_for_speaking_caller(self, turn: TurnState, verdict: Verdict, plan: Plan, now: float) -> None:
        """The caller speaks: the turn is silenced, nothing is said over them, and the agent is told what to say."""
        self.relay.mute(turn.audio, now)
        if plan in (Plan.CUT_NOW, Plan.CUT_WHEN_REACHED):
            if self.one_way is None:
                self.relay.clear(lambda kind, at: None, now)
            else:
                self._spawn(self._silenced(self.one_way, turn.audio))
        self.counts.interventions += 1
        if self._supervisor is not None:
            self._supervisor.note_intervention(verdict)
        self._note_only(turn, verdict, "caller_speaking")
        self.relay.hand_back(now)

    async def _silenced(self, one_way: OneWay, audio: TurnAudio) -> None:
        await one_way.clear(audio)

    def _note_only(self, turn: TurnState, verdict: Verdict, outcome: str) -> None:
        """Nothing is said; the agent gets a note, and the record says why."""
        running = Running(self, turn, verdict, Plan.NOTE_ONLY)
        self._record(
            record.InterventionStarted(
                intervention_id=running.id,
                turn_id=turn.turn_id,
                verdict_id=turn.verdict_id,
                rule=verdict.rule,
                plan=Plan.NOTE_ONLY.value,
                at_ms=self._at_ms(),
            )
        )
        running.send_note(None)
        ended = partial(running.ended, None, outcome, self._unarmed_reason if outcome == "unarmed" else "")
        if outcome == "late" or turn.audio.heard_reported:
            ended()
        else:
            # How much of the violation is heard shows when the turn has played.
            self._playing_on[turn.turn_id] = ended

    def _somebody_speaks(self) -> bool:
        """Whether the caller or Mirror speaks, or the agent has words that nobody has heard yet."""
        if self._running is not None or self.relay.speaking or self._caller_speaks():
            return True
        return any(self.relay.queued(state.audio) for state in self._turns.values())

    def _hold_line_said(self, text: str) -> None:
        self._record(record.TranscriptNoted(at_ms=self._at_ms(), role="mirror", text=text, final=True))
        if self._supervisor is not None:
            self._supervisor.note_mirror(text)

    def _match_level(self, audio: TurnAudio) -> None:
        if not audio.audio:
            return
        newest = bytes(audio.audio[-int(LEVEL_FROM_S * 1000) * self.relay.format.bytes_per_ms :])
        level = rms_dbfs(self.relay.format.decode(newest), self.relay.format.sample_rate)
        if level is not None:
            self._voice.level_dbfs = level

    # ------------------------------------------------------------------ without an agent

    async def announce(self, text: str) -> bool:
        """Tell the caller something when no agent speaks any more; see `announcement.announce`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANNOUNCED_WITHIN_S):
                await self.intervention_over()
        return await announce(
            text, relay=self.relay, voice=self._voice, plivo=self.plivo_call, way_back=self.bidirectional
        )

    # ------------------------------------------------------------------ what the caller does

    def caller_pressed(self) -> None:
        """A DTMF key interrupts as a voice does."""
        if self._running is not None:
            self._running.interrupt()

    def agent_cleared(self) -> None:
        """The agent thinks that the caller speaks."""
        self.streamed.agent_cleared()
        if self._running is not None:
            self._running.agent_cleared = True

    def turn_started(self, audio: TurnAudio) -> None:
        """The first audio of a turn came."""
        if self._running is not None:
            self._running.moved.set()

    def turn_ended(self, audio: TurnAudio) -> None:
        """No more audio of this turn follows; record what was heard of it once it has played."""
        if self._running is not None:
            self._running.moved.set()
        self._spawn(self._turn_heard(audio))

    async def _turn_heard(self, audio: TurnAudio) -> None:
        while not self._ended:
            unplayed_s = max(0.0, (audio.ends_at or 0.0) - self._loop.time())
            queued = self.relay.queued(audio)
            await asyncio.wait({self._over}, timeout=unplayed_s + SETTLES_S)
            if not unplayed_s and not queued:
                break
        while self._running is not None and self._running.turn.audio is audio:
            # Its audio is needed until it is known how much of it was heard.
            await self._running.over.wait()
        if not audio.heard_reported:
            audio.heard_reported = True
            if (ended := self._playing_on.pop(audio.turn_id, None)) is not None:
                ended()
            self._match_level(audio)
            await self._report_heard(audio)

    def _hearing(self) -> float:
        """Loop time up to which the caller can have heard anything: now, or when they left."""
        return self._loop.time() if self._left_at is None else self._left_at

    async def _report_heard(self, audio: TurnAudio) -> None:
        heard, high_s = await asyncio.to_thread(self._heard, audio, self._hearing())
        audio_s = audio.received_s
        audio.audio.clear()
        self._record_hold(audio)
        self._record(
            record.TurnHeard(
                turn_id=audio.turn_id,
                audio_ms=round(audio_s * 1000),
                heard_ms=round(high_s * 1000),
                heard_text=heard.heard_text,
                uncertain_text=heard.uncertain_text,
                unheard_text=heard.unheard_text,
                basis=heard.basis,
                at_ms=self._at_ms(),
            )
        )

    def _record_hold(self, audio: TurnAudio) -> None:
        hold = audio.hold
        if hold is not None and hold.since is not None:
            held_s = hold.held_s if hold.held_s is not None else self._hearing() - hold.since
            held_ms = round(max(0.0, held_s) * 1000)
            if not held_ms:
                return
            heard = audio.runs.starts_at is not None
            self._record(
                record.TurnHeld(
                    turn_id=audio.turn_id,
                    held_ms=held_ms,
                    ended_by="discarded" if not heard else "verdict" if hold.by_verdict else "budget",
                    at_ms=self._at_ms(),
                )
            )

    def _heard(self, audio: TurnAudio, now: float) -> tuple[Heard, float]:
        """What was heard of a turn by ``now``, and at most how many seconds of it."""
        return heard_of(self.relay, audio, now) if self.one_way is None else self.one_way.heard(audio, now)

    # ------------------------------------------------------------------ the end

    def carry_on(self, carried: CarriedCall) -> None:
        """Go on with a call that lost its last socket. Before the agent is dialled."""
        if carried.language:
            self.language = self._voice.language = carried.language
        self.counts.turns = carried.turn_count
        self._turns_before = {turn.ref: turn for turn in carried.turns}
        self.notes = PendingNotes(carried.notes)
        self.tools.carry_on(carried.tools)
        if self._supervisor is not None:
            self._supervisor.carry_on(carried.memory)

    def line_lost(self) -> None:
        """The stream broke, and may come back: nothing is said to anybody until then."""
        self._fate = self._loop.create_future()
        self._left_at = self._loop.time() - self.relay.clock.one_way_s
        if self._running is not None and self._running.intervention is not None:
            self._running.intervention.stop(Outcome.CALLER_GONE)

    async def move(self) -> None:
        """The call goes on on another socket: end here within half a second. An intervention that runs has failed."""
        self._moved = True
        if self._fate is None:
            self._fate = self._loop.create_future()
        if not self._fate.done():
            self._fate.set_result(Outcome.FAILED)
        await self.end(hung_up=False, within_s=MOVES_WITHIN_S)

    def carried(self, carried: CarriedCall) -> CarriedCall:
        """What the socket that goes on has to know, added to what the session knows."""
        turns = [
            CarriedTurn(turn.ref, turn.turn_id, turn.payload.agent_text, turn.payload.tool_calls)
            for turn in self._turns.values()
        ]
        return replace(
            carried,
            language=self.language,
            turn_count=self.counts.turns,
            turns=(*self._turns_before.values(), *turns)[-MAX_TURNS_KEPT:],
            tools=self.tools.carried(),
            notes=tuple(self.notes.pending()),
            memory=self._supervisor.carried() if self._supervisor is not None else CarriedMemory(),
        )

    async def end(self, *, hung_up: bool, within_s: float = END_WAITS_S) -> None:
        """The call is over: stop what would speak, and give what is being judged ``within_s`` to be recorded.

        ``hung_up`` says that the caller ended it; otherwise an intervention that is still running has failed.
        """
        self._ended = True
        if self._fate is not None and not self._fate.done():
            self._fate.set_result(Outcome.CALLER_GONE if hung_up else Outcome.FAILED)
        self.tools.ended()
        self.streamed.close()
        # Plivo's goodbye was on its way for a while, too.
        if self._left_at is None:
            self._left_at = self._loop.time() - self.relay.clock.one_way_s
        self._over.set_result(None)
        if self._running is not None and self._running.intervention is not None:
            self._running.intervention.stop(Outcome.CALLER_GONE if hung_up else Outcome.FAILED)
        for state in self._turns.values():
            if state.audio.started:
                self._spawn(self._turn_heard(state.audio))
        until = self._loop.time() + within_s
        while self._tasks and self._loop.time() < until:
            # What ends may leave something to do, such as to tell what was heard.
            await asyncio.wait(self._tasks, timeout=until - self._loop.time())
        if late := set(self._tasks):
            for task in late:
                task.cancel()
            await asyncio.wait(late)
        for ended in self._playing_on.values():
            ended()
        for state in self._turns.values():
            if not state.judged.done():
                self.counts.states[JudgingState.FAILED] += 1

    @property
    def intervening(self) -> bool:
        """Whether Mirror is speaking, or about to."""
        return self._running is not None

    async def intervention_over(self) -> None:
        """Return when no intervention is running."""
        while self._running is not None:
            await self._running.over.wait()

    def coverage(self) -> tuple[str, str, float | None]:
        """State (`full`, `partial`, `none`), reason, and share of turns that were judged or skipped."""
        if self.hello is None and not self.counts.turns:
            return "none", "the agent sent no mirror.hello, so it reports no turns", None
        if not self.counts.turns:
            return "none", "the agent said hello and reported no turn", None
        states = self.counts.states
        covered = states[JudgingState.JUDGED] + states[JudgingState.SKIPPED]
        share = min(1.0, covered / self.counts.turns)
        if share >= 1.0:
            return "full", "", 1.0
        why = self.counts.why
        missing = ", ".join(
            f"{states[state]} {state.value}" + (f" ({why[state]})" if why.get(state) else "")
            for state in (JudgingState.TIMED_OUT, JudgingState.FAILED, JudgingState.SHED)
            if states[state]
        )
        return "partial", f"not judged: {missing}", share

    # ------------------------------------------------------------------ helpers

    def _record(self, event: EventData) -> None:
        self._log.add(event)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(_guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _all_done(futures: set[asyncio.Future[Any]]) -> None:
    await asyncio.wait(futures)


async def _guarded(work: Coroutine[Any, Any, None]) -> None:
    """Whatever fails beside the call must not end it, and must not be lost either."""
    try:
        await work
    except asyncio.CancelledError:
        raise
    except Exception:
        logger.exception("Supervising a call failed; the call goes on")
