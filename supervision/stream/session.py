"""One call: Plivo's socket, the agent's socket, and what runs between them.

Reading order of a call: `consumer.py` (who calls) → here (what is open) → `engine/adapters/relay.py` (which frame goes
where) → `supervised.py` (what is judged and said) → the recorder (what is kept).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import orjson

from mirror_saas.direct_frames import FAILED, DirectFrames
from supervision.audio.format import MediaFormat, MediaFormatError
from supervision.engine.adapters.relay import CallRelay
from supervision.engine.adapters.turn_audio import TurnAudio
from supervision.engine.alarm import Alarm
from supervision.plivo import events as plivo_events
from supervision.recorder import events as record
from supervision.recorder.events import CallLog
from supervision.recorder.recorder import JournalUnavailable
from supervision.stream.approvals import APPROVAL
from supervision.stream.carried import CarriedCall
from supervision.stream.dial import AgentClosed, AgentLeg, AgentUnreachable, handshake_headers, upstream_url
from supervision.stream.directory import AgentBinding
from supervision.stream.failure import FAILED_CLOSE, PLIVO_ENDS_WITHIN_S, Redials, failure_handle
from supervision.stream.plivo_leg import PlivoLeg, Send
from supervision.stream.plivo_rest import plivo_call
from supervision.stream.runtime import StreamRuntime
from supervision.stream.supervised import SupervisedCall
from supervision.stream.takeover import HAND_OVER, Taken
from tenants.limits_refused import Refused, refused

logger = logging.getLogger(__name__)

AGENT_CLOSE_WAITS_S: Final = 10.0  # how long an intervention may go on after the agent said goodbye
COMMIT_WITHIN_S: Final = 2.0  # for the call's last events to be on disk; the journal goes on trying
STOPPED_RETURN_WITHIN_S: Final = 2.0  # the same when Mirror was stopped: servers wait ten seconds for all in all
RETURN_WITHIN_S: Final = 5.0  # for Plivo to come back after its connection broke; then the call has ended
DISCONNECT_WAITS_S: Final = 5.0  # for Plivo to answer our close

KEY_REVOKED_CLOSE: Final = 1008
KEY_REVOKED_REASON: Final = "the stream key that the call came in with was revoked"
NORMAL_CLOSE: Final = (1000, 1001, 1005, None)

Receive = Callable[[], Awaitable[dict[str, Any]]]


class StartInvalid(ValueError):
    """A `start` event that a call cannot be built on; the message names the field."""


@dataclass(frozen=True, slots=True)
class CallStart:
    """Plivo's `start` event, checked; ``text`` is the frame as it came."""

    text: str
    call_id: str
    stream_id: str
    account_id: str
    media_format: MediaFormat
    bidirectional: bool = True  # False where `start` rules a way back out

    @classmethod
    def parse(cls, text: str) -> CallStart | None:
        """The `start` event in ``text``, or None when it is another frame. Raises :class:`StartInvalid`."""
        try:
            frame = orjson.loads(text)
        except ValueError:
            return None
        if not isinstance(frame, dict) or frame.get("event") != "start":
            return None
        start = frame.get("start")
        if not isinstance(start, dict):
            raise StartInvalid("start: must be an object")
        ids = {}
        for name in ("callId", "streamId"):
            value = start.get(name)
            if not isinstance(value, str) or not value or len(value) > 200:
                raise StartInvalid(f"start.{name}: must be a string")
            ids[name] = value
        account_id = start.get("accountId")
        try:
            media_format = MediaFormat.from_start(start.get("mediaFormat"))
        except MediaFormatError as problem:
            raise StartInvalid(str(problem)) from problem
        return cls(
            text=text,
            call_id=ids["callId"],
            stream_id=ids["streamId"],
            account_id=account_id[:200] if isinstance(account_id, str) else "",
            media_format=media_format,
            # Of a stream with a way back, Plivo sends the caller's track and no other.
            bidirectional=not isinstance(start.get("tracks"), list) or "outbound" not in start["tracks"],
        )


class CallSession:
    """A call from its `start` to its end. Build it, then :meth:`run` it."""

    def __init__(
        self,
        *,
        runtime: StreamRuntime,
        binding: AgentBinding,
        taken: Taken,
        start: CallStart,
        send: Send,
        frames: DirectFrames | None = None,
        query: str,
        subprotocols: list[str],
        from_number: str,
        to_number: str,
        test: bool = False,
    ) -> None:
        """`test`: no telephone and no account of Plivo's is behind it, so that nothing is asked of Plivo by REST."""
        carried = taken.carried
        self._runtime = runtime
        self._binding = binding
        self._carried = carried
        self.held = taken.held
        self._start = start
        self._query = query
        self._subprotocols = subprotocols
        self._test = test
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()
        self._began_at = datetime.now(UTC)
        if carried is not None:
            # As if the call had never had another socket.
            self._started_at -= carried.age_ms / 1000
            self._began_at = carried.started_at
            from_number, to_number = from_number or carried.from_number, to_number or carried.to_number
        self._numbers = (from_number, to_number)
        self.call_id: UUID = taken.held.call_id
        # Before anything of the call is recorded.
        runtime.redaction.learn(binding.tenant_id, binding.redaction)
        self._log = CallLog(
            record=runtime.recorder.record,
            tenant_id=binding.tenant_id,
            call_id=self.call_id,
            last_seq=record.first_seq(taken.held.epoch) - 1,
            without_said=binding.storage_full,
        )
        if binding.storage_full:
            refused(binding.tenant_id, Refused.STORAGE)
            logger.warning(
                "The record of tenant %s takes all that it may: what is said in call %s is not stored",
                binding.tenant_slug,
                self.call_id,
            )
        self._frames = frames
        self._plivo = PlivoLeg(send, frames)
        self._agent = AgentLeg(
            on_text=self._agent_text,
            on_binary=self._plivo.send_binary,
            on_closed=self._agent_closed,
            on_dropped=self._agent_slow,
            on_garbled=lambda message: self._rejected("bad_json", message),
        )
        self._relay = CallRelay(
            stream_id=start.stream_id,
            media_format=start.media_format,
            to_plivo=self._plivo.send_text,
            to_agent=self._agent.send_text,
            listener=self,
            loads=orjson.loads,
        )
        ledger = runtime.call_ledger(binding, start.call_id, self.call_id)
        supervisor = runtime.call_supervisor(binding, str(self.call_id), ledger)
        self._supervised = SupervisedCall(
            relay=self._relay,
            supervisor=supervisor,
            voice=runtime.call_voice(binding, start.media_format),
            log=self._log,
            recorder=runtime.recorder,
            ledger=ledger,
            approvals=runtime.call_approvals(binding, self._log, self.at_ms),
            mode=binding.mode,
            ready=runtime.ready(binding, start.call_id) | {"resumed": carried is not None},
            arm_lines=lambda language: runtime.arm_lines(binding, language),
            plivo_call=plivo_call(
                () if test else binding.plivo_accounts,
                account_id=start.account_id,
                call_id=start.call_id,
                request=runtime.plivo.request,
            ),
            bidirectional=binding.bidirectional and start.bidirectional,
            leaving=self._leaving,
            close=lambda: self._finish("mirror", "completed", 1000, self._reason),
            to_agent=self._tell_agent,
            at_ms=self.at_ms,
        )
        self._alarm = Alarm(self._woken)
        self._ended_by = "caller"
        self._outcome = "completed"
        self._close_code: int | None = None
        self._reason = ""
        self._cut = False
        self._dropped_s = 0.0
        self._dropped_reported_s = 0.0
        self._closing: asyncio.Task[None] | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._redials = Redials(binding.failure.redials)
        self._reading: asyncio.Timeout | None = None
        self._lost = False  # the stream broke without a goodbye of anybody's
        self._stopped = False  # Mirror was told to stop
        self._moved = asyncio.Event()
        self._moving: asyncio.Task[CarriedCall] | None = None
        if carried is not None:
            self._supervised.carry_on(carried)
        self._log.add(self._beginning(carried))

    def _beginning(self, carried: CarriedCall | None) -> record.CallStarted | record.CallResumed:
        """The first event of this socket."""
        binding, start = self._binding, self._start
        first = record.CallStarted(
            plivo_call_id=start.call_id,
            stream_id=start.stream_id,
            account_id=start.account_id,
            agent_id=binding.agent_id,
            policy_id=binding.policy_id,
            policy_version_id=binding.policy_version_id,
            policy_version=binding.policy_version,
            mode=binding.mode,
            delivery=self._supervised.delivery,
            encoding=start.media_format.encoding,
            sample_rate=start.media_format.sample_rate,
            from_number=self._numbers[0],
            to_number=self._numbers[1],
            node=self._runtime.node,
            storage_limit=binding.storage_full,
            test=self._test,
        )
        if carried is None:
            return first
        return record.CallResumed(
            **{name: getattr(first, name) for name in record.CallStarted.__slots__},
            epoch=self.held.epoch,
            after_seq=carried.last_seq,
            started_at=carried.started_at.isoformat(),
            at_ms=self.at_ms(),
        )

    @property
    def binding(self) -> AgentBinding:
        """What the call runs under, from its first socket to its last."""
        return self._binding

    def at_ms(self) -> int:
        """Milliseconds since the call's `start`, by a clock that never jumps."""
        return round((self._loop.time() - self._started_at) * 1000)

    # ------------------------------------------------------------------ the call's course

    async def run(self, receive: Receive, before: list[str]) -> None:
        """Relay until Plivo or the agent ends the call. ``before`` are frames that came before `start`, kept for the
        agent because nothing is ever dropped for being unknown."""
        self._agent.send_text(self._start.text)
        for text in before:
            self._relay.plivo_text(text, self._loop.time())
        self._supervised.arm()
        self._dialling = self._loop.create_task(self._dial())
        try:
            async with asyncio.timeout(0 if self._cut else None) as self._reading:
                await self._read(receive)
        except TimeoutError:
            if not self._cut:
                logger.warning("Plivo did not answer the close of a stream within %d s", DISCONNECT_WAITS_S)
        except asyncio.CancelledError:
            self._reading = None
            self._finish("mirror", "failed", 1012, "Mirror was stopped during the call")
            # Plivo may come back to another node, which then asks this one.
            self._lost = self._stopped = True
            raise
        finally:
            self._dialling.cancel()
            if self._closing is not None:
                self._closing.cancel()
            self._reading = None
            self._plivo.gone()
            if self._frames is not None:
                self._frames.release()
            self._agent.close(1000)
            self._alarm.cancel()
            await self._return_or_end()

    async def _read(self, receive: Receive) -> None:
        relay, now = self._relay, self._loop.time
        if self._frames is not None:
            self._frames.take(self._plivo_text, self._agent.send_binary)
        while True:
            message = await receive()
            kind = message["type"]
            if kind == "websocket.receive":
                text = message.get("text")
                if text is not None:
                    relay.plivo_text(text, now())
                elif message.get("bytes"):
                    self._agent.send_binary(message["bytes"])
            elif kind == "websocket.disconnect":
                if self._close_code is None:
                    code = message.get("code")  # some servers give a kind of their own
                    self._close_code = None if code is None else int(code)
                    if self._close_code not in NORMAL_CLOSE and self._ended_by == "caller":
                        self._lost = not relay.stopped
                        # Whether Plivo hangs up like this, nobody has written down; so it is told, and no failure.
                        self._reason = f"Plivo's connection ended with code {self._close_code}"
                return
            elif kind == FAILED:
                raise message["problem"]

    async def _dial(self) -> None:
        """Dial the agent, again while that may help and its policy allows it; else it has failed for good."""
        while (problem := await self._dialled()) is not None:
            if not problem.temporary or not await self._redials.wait():
                await self._agent_failed(f"the agent could not be reached: {problem}")
                return

    async def _dialled(self) -> AgentUnreachable | None:
        """Dial once; returns why it failed."""
        url = upstream_url(self._binding.upstream_url, self._query)
        began = self._loop.time()
        try:
            await self._agent.dial(
                url,
                headers=handshake_headers(
                    secret=self._binding.signing_secret,
                    call_id=self._start.call_id,
                    url=url,
                    tenant_headers=self._binding.headers,
                    plivo_tokens=self._binding.plivo_tokens or (),
                ),
                subprotocols=self._subprotocols,
            )
        except AgentUnreachable as problem:
            self._log.add(record.AgentFailed(at_ms=self.at_ms(), reason=str(problem)))
            return problem
        except Exception:
            logger.exception("Dialling an agent failed")
            self._log.add(record.AgentFailed(at_ms=self.at_ms(), reason="dialling failed inside Mirror"))
            self._finish("mirror", "failed", FAILED_CLOSE, "dialling the agent failed inside Mirror")
            return None
        self._redials.connected(self._loop.time())
        self._log.add(record.AgentConnected(at_ms=self.at_ms(), dial_ms=round((self._loop.time() - began) * 1000)))
        return None

    def _agent_closed(self, closed: AgentClosed) -> None:
        if closed.normal:
            self._closing = self._loop.create_task(self._close_after_intervention())
            return
        reason = f"the agent's socket ended with code {closed.code}"
        self._log.add(record.AgentFailed(at_ms=self.at_ms(), reason=reason))
        # Whoever answers next is told of the call as the first one was: `start` before everything else.
        self._agent.reopen(self._start.text)
        self._supervised.agent_replaced()
        self._dialling = self._loop.create_task(self._dial_again(closed, reason))

    async def _dial_again(self, closed: AgentClosed, reason: str) -> None:
        if closed.temporary and await self._redials.wait():
            await self._dial()
        else:
            await self._agent_failed(reason)

    async def _agent_failed(self, reason: str) -> None:
        """The agent has failed for good: what happens now, its policy says."""
        self._ended_by, self._outcome, self._reason = "agent", "failed", reason
        done = await failure_handle(
            self._binding.failure, tell=self._supervised.announce, plivo=self._supervised.plivo_call
        )
        self._reason = "; ".join(part for part in (reason, done.detail) if part)
        if done.plivo_ends_it:
            # Plivo would dial again what ends with a failure, so it is left to close.
            await asyncio.sleep(PLIVO_ENDS_WITHIN_S)
        self._finish("agent", "failed", 1000 if done.plivo_ends_it else FAILED_CLOSE, self._reason)

    async def _close_after_intervention(self) -> None:
        try:
            async with asyncio.timeout(AGENT_CLOSE_WAITS_S):
                await self._supervised.intervention_over()
        except TimeoutError:
            logger.info("An intervention outlived its agent's goodbye; the call is closed")
        self._finish("agent", "completed", 1000, "the agent closed the stream")

    def _leaving(self, reason: str) -> None:
        """Plivo is asked to end the call, so whoever ends its stream now, it is Mirror's doing; without a reason, it
        is not any more."""
        self._ended_by, self._reason = ("mirror", reason) if reason else ("caller", "")

    def _finish(self, ended_by: str, outcome: str, code: int, reason: str) -> None:
        """Close towards Plivo; its disconnect ends :meth:`run`."""
        if not self._plivo.closed:
            self._ended_by, self._outcome, self._close_code, self._reason = ended_by, outcome, code, reason
            self._plivo.close(code)
            if self._reading is not None:
                self._reading.reschedule(self._loop.time() + DISCONNECT_WAITS_S)

    def key_revoked(self) -> None:
        """End the call at once: whoever called with a key that is revoked hears and says nothing more."""
        logger.warning(
            "A call of agent %s was ended: the stream key that it came in with was revoked", self._binding.agent_id
        )
        self._finish("mirror", "failed", KEY_REVOKED_CLOSE, KEY_REVOKED_REASON)
        self._cut = True
        if self._reading is not None:
            self._reading.reschedule(self._loop.time())

    # ------------------------------------------------------------------ another socket of the same call

    def open(self) -> None:
        """From now on the call is reached from outside, and another socket of it finds this one."""
        self._runtime.mailbox.open(self._binding.tenant_id, self.call_id, self._from_outside)
        self._runtime.takeovers.add(self)

    async def hand_over(self) -> CarriedCall:
        """End this socket, for the call goes on on another one; how it stands is returned, to whoever asks."""
        if self._moving is None:
            self._moving = self._loop.create_task(self._hand_over())
        return await asyncio.shield(self._moving)

    async def _hand_over(self) -> CarriedCall:
        self._runtime.mailbox.close(self._binding.tenant_id, self.call_id)
        self._runtime.takeovers.gone(self)
        self._moved.set()
        self._plivo.close(1000)
        self._agent.close(1000)
        self._cut = True
        if self._reading is not None:
            self._reading.reschedule(self._loop.time())
        await self._supervised.move()
        self._note_dropped()
        last = self._log.add(record.CallMoved(at_ms=self.at_ms()))
        return self._supervised.carried(
            CarriedCall(
                call_id=self.call_id,
                epoch=self.held.epoch,
                started_at=self._began_at,
                age_ms=self.at_ms(),
                last_seq=last.seq,
                policy_version_id=self._binding.policy_version_id,
                mode=self._binding.mode,
                from_number=self._numbers[0],
                to_number=self._numbers[1],
            )
        )

    async def _return_or_end(self) -> None:
        """Both sockets are closed. If Plivo's broke, it may come again; else the call has ended."""
        ended_ms = self.at_ms()
        stopped: asyncio.CancelledError | None = None
        if self._lost and self._moving is None:
            self._supervised.line_lost()
            try:
                async with asyncio.timeout(STOPPED_RETURN_WITHIN_S if self._stopped else RETURN_WITHIN_S):
                    await self._moved.wait()
            except TimeoutError:
                pass  # the caller is gone
            except asyncio.CancelledError as error:
                stopped = error
        if self._moving is not None:
            await asyncio.wait({self._moving})
        else:
            self._runtime.mailbox.close(self._binding.tenant_id, self.call_id)
            await self._runtime.takeovers.remove(
                self, back=self._close_code not in NORMAL_CLOSE and not self._relay.stopped
            )
            await self._end(ended_ms)
        if stopped is not None:
            raise stopped

    async def _end(self, ended_ms: int) -> None:
        await self._supervised.end(hung_up=self._ended_by == "caller")
        self._note_dropped()
        counts = self._supervised.counts
        states = {state.value: number for state, number in counts.states.items()}
        coverage_state, coverage_reason, coverage = self._supervised.coverage()
        ended = record.CallEnded(
            outcome=self._outcome,
            ended_by=self._ended_by,
            close_code=self._close_code,
            reason=self._reason,
            coverage_state=coverage_state,
            coverage_reason=coverage_reason,
            coverage=coverage,
            turns=counts.turns,
            judged=states["judged"],
            skipped=states["skipped"],
            timed_out=states["timed_out"],
            failed=states["failed"],
            shed=states["shed"],
            interventions=counts.interventions,
            tools_blocked=self._supervised.tools.blocked,
            duration_ms=ended_ms,
            dropped_media_ms=round(self._dropped_s * 1000),
        )
        # This socket did not see all of a call that had another one before.
        self._log.add(ended if self._carried is None else ended.without_counts())
        try:
            async with asyncio.timeout(COMMIT_WITHIN_S):
                await self._runtime.recorder.commit(self.call_id)
        except (JournalUnavailable, TimeoutError):
            logger.error("The end of a call could not be journalled; its record is incomplete")

    async def _from_outside(self, message: dict[str, Any]) -> dict[str, Any]:
        """What came to this call's mailbox: a turn of `POST /calls/{id}/turns`, or another node that has the call."""
        if HAND_OVER in message:
            logger.info("A call goes on on another node")
            return {"carried": (await self.hand_over()).seal(self._binding.tenant_id)}
        if APPROVAL in message:
            return {"taken": self._supervised.tools.approval_look(UUID(message[APPROVAL]))}
        return await self._supervised.report_turn(message["turn"], message["wait_ms"] / 1000)

    # ------------------------------------------------------------------ RelayListener

    def _tell_agent(self, frame: dict[str, Any]) -> None:
        # What models write may hold half a character; a frame with one would break the agent's socket.
        self._agent.send_text(plivo_events.dump(frame).encode("utf-8", "replace").decode())

    def _plivo_text(self, text: str) -> None:
        self._relay.plivo_text(text, self._loop.time())

    def _agent_text(self, text: str) -> None:
        self._relay.agent_text(text, self._loop.time())

    def mirror_frame(self, frame: dict[str, Any]) -> None:
        self._supervised.frame(frame)

    def mirror_garbled(self, message: str) -> None:
        self._rejected("bad_json", message)

    def turn_started(self, turn: TurnAudio) -> None:
        self._supervised.turn_started(turn)

    def turn_ended(self, turn: TurnAudio) -> None:
        self._supervised.turn_ended(turn)

    def caller_pressed(self) -> None:
        self._supervised.caller_pressed()

    def agent_cleared(self) -> None:
        self._supervised.agent_cleared()

    def media_dropped(self, direction: str, seconds: float) -> None:
        """Count what was lost; shown once a second at most, so that a flood does not drown the record."""
        self._dropped_s += seconds
        if self._dropped_s - self._dropped_reported_s >= 1.0:
            self._note_dropped("outbound" if direction == "agent" else "inbound")

    def wake_at(self, when: float) -> None:
        self._alarm.set(when)

    def _woken(self) -> None:
        self._relay.pump(self._loop.time())

    def _agent_slow(self, frames: int) -> None:
        self.media_dropped("caller", frames * 0.02)

    def _note_dropped(self, direction: str = "inbound") -> None:
        lost = self._dropped_s - self._dropped_reported_s
        if lost > 0:
            self._dropped_reported_s = self._dropped_s
            self._log.add(record.MediaDropped(direction=direction, ms=round(lost * 1000), at_ms=self.at_ms()))

    def _rejected(self, code: str, message: str) -> None:
        self._supervised.rejected(code, message)


def now_unix() -> int:
    """Unix time in whole seconds."""
    return int(time.time())
