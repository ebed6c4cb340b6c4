"""A test call: somebody in the console is the caller, and a stand-in for Plivo in this process streams the call.

    phone = Phone(runtime, binding, on_call=…, on_event=…)
    running = asyncio.create_task(phone.run(lines))      # or None for a live microphone
    phone.speak_live(audio); phone.press("5"); phone.heard()
    phone.hang_up()
    record = await running

The stand-in speaks Plivo's wire to the very session that Plivo's streams get: dialling the agent, relaying, judging,
stepping in and recording are the same. What is left out is what admits Plivo: the stream key, the webhook and its
signature. So no key has to exist for such a call, and whoever places one cannot pass for a call of Plivo's that is
running: its ids are made here (ADR 0040).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

from supervision.audio.format import MediaFormat
from supervision.plivo.simulator import CallEnded, CallRecord, DirectLine, Event, Script, SimulatedCall, WireFormat
from supervision.plivo.simulator.connection import Closed, Message
from supervision.plivo.simulator.script import Step
from supervision.stream.caller_voice import CallerVoice
from supervision.stream.consumer import wait_for_start
from supervision.stream.directory import AgentBinding
from supervision.stream.limits import lease_name
from supervision.stream.owners import CallKey
from supervision.stream.runtime import StreamRuntime
from supervision.stream.session import CallSession
from tenants.limits_refused import Refused, refused

logger = logging.getLogger(__name__)

MAX_S: Final = 600.0
MAX_LINES: Final = 30
MAX_LINE_CHARS: Final = 300
# A scripted caller speaks when the agent has said something and been silent for so long: longer than the pause of an
# intervention, shorter than a person's patience. An agent that does not greet is spoken to all the same.
AGENT_SILENT_S: Final = 1.6
GREETING_WITHIN_S: Final = 8.0
ANSWER_WITHIN_S: Final = 30.0
# For the session to write down the call's end.
ENDS_WITHIN_S: Final = 15.0
# Plivo's account ids begin with MA; no account has this one.
ACCOUNT_ID: Final = "MATESTCALL0000000000"


class CallsLimitReached(Exception):
    """The tenant has as many calls as it may have at a time."""

    def __init__(self, limit: int | None) -> None:
        super().__init__(f"{limit} calls run now, which is this tenant’s limit. Wait until one of them has ended.")


class Phone:
    """One test call; see the module. Belongs to one event loop, and rings once."""

    def __init__(
        self,
        runtime: StreamRuntime,
        binding: AgentBinding,
        *,
        on_call: Callable[[UUID], None],
        on_event: Callable[[Event], None],
        on_problem: Callable[[str], None] = lambda problem: None,
    ) -> None:
        """`on_call` is told the call's id once it has begun, `on_event` what happens on Plivo's wire and at the
        caller's ear, `on_problem` why a line is beeped and not spoken."""
        self._runtime = runtime
        self._binding = binding
        self._on_call = on_call
        self._on_event = on_event
        self._on_problem = on_problem
        self._wire = WireFormat.parse(binding.audio_format)
        self.format = MediaFormat(self._wire.encoding, self._wire.sample_rate)
        # As Mirror's own lines in this call: the tenant's speech provider, else this process's.
        own = runtime.voices.of(binding.tts) if binding.tts is not None else None
        self._voice = CallerVoice(
            own[0] if own is not None else runtime.tts, language=binding.language or "en", media_format=self.format
        )
        self._call: SimulatedCall | None = None
        self._serving: asyncio.Task[None] | None = None
        self._cursor = (0, 0)
        self._hung_up = False

    async def run(self, lines: Sequence[str] | None) -> CallRecord:
        """Place the call and see it to its end. `lines` are spoken one after the other, each when the agent is silent;
        then the caller hangs up. With None the caller speaks live. Raises CallsLimitReached, and CallEnded when it was
        hung up before it began."""
        script = await self._script(lines) if lines is not None else None
        call = SimulatedCall(
            "",
            script.run if script is not None else None,
            media_format=self._wire,
            from_number="",
            to_number="",
            account_id=ACCOUNT_ID,
            bidirectional=self._binding.bidirectional,
            stream_timeout_s=MAX_S,
            on_event=self._on_event,
            line=self._connect,
        )
        lease = await self._runtime.calls.take(
            self._binding.tenant_id,
            limit=self._binding.limits.calls,
            call=lease_name(self._binding.agent_id, call.record.call_id),
        )
        if lease is None:
            refused(self._binding.tenant_id, Refused.CALLS)
            raise CallsLimitReached(self._binding.limits.calls)
        try:
            if self._hung_up:
                raise CallEnded("the caller hung up before the call began")
            self._call = call
            return await call.run()
        finally:
            if self._serving is not None:
                await asyncio.wait({self._serving}, timeout=ENDS_WITHIN_S)
                self._serving.cancel()
            await self._runtime.calls.release(lease)

    # -- the caller

    def speak_live(self, audio: bytes) -> None:
        """What the microphone heard, in the call's format. Lost before the call and after it."""
        if self._call is not None:
            self._call.speak_live(audio)

    async def say(self, text: str) -> None:
        """Speak a typed line behind what is being spoken. Lost when the call is over."""
        spoken = await self._voice.spoken(text[:MAX_LINE_CHARS])
        if spoken.problem:
            self._on_problem(spoken.problem)
        if self._call is not None:
            self._call.say(spoken.audio, label=text)

    def press(self, digits: str) -> None:
        """Press keys. Raises ValueError for what a telephone has no key for."""
        if self._call is not None and self._call.record.started_t is not None:
            self._call.press(digits)

    def hang_up(self) -> None:
        """End the call; one that has not begun does not begin, and nothing happens to one that is over."""
        self._hung_up = True
        if self._call is not None:
            self._call.hang_up()

    def heard(self) -> bytes:
        """What the caller has heard since the last time, in the call's format."""
        if self._call is None or self._call.record.started_t is None:
            return b""
        self._cursor, pieces = self._call.heard_since(self._cursor)
        return b"".join(audio for _, audio in pieces)

    async def _script(self, lines: Sequence[str]) -> Script:
        """The lines as steps, rendered before the call, so that rendering does not keep the agent waiting in it."""
        spoken = await asyncio.gather(*(self._voice.spoken(line) for line in lines))
        problem = next((each.problem for each in spoken if each.problem), "")
        if problem:
            self._on_problem(problem)
        steps = [
            Step(
                "say",
                line,
                where=f"line {number}",
                condition="agent_silent",
                seconds=AGENT_SILENT_S,
                timeout_s=GREETING_WITHIN_S if number == 1 else ANSWER_WITHIN_S,
                optional=True,
                audio=each.audio,
            )
            for number, (line, each) in enumerate(zip(lines, spoken, strict=True), start=1)
        ]
        end = Step(
            "hang_up",
            None,
            where="the end",
            condition="agent_silent",
            seconds=AGENT_SILENT_S,
            timeout_s=ANSWER_WITHIN_S,
            optional=True,
        )
        return Script(steps=(*steps, end), max_seconds=MAX_S)

    # -- Mirror's end

    def _connect(self, take: Callable[[DirectLine, Message | Closed], None]) -> DirectLine:
        line = DirectLine(take)
        self._serving = asyncio.get_running_loop().create_task(self._serve(line), name="mirror-test-call")
        return line

    async def _serve(self, line: DirectLine) -> None:
        """What StreamConsumer does for a stream of Plivo's, from its `start` on."""
        runtime, binding = self._runtime, self._binding
        try:
            before: list[str] = []
            start = await wait_for_start(line.receive, before)
            if start is None:
                return
            async with runtime.takeovers.claiming(CallKey(binding.tenant_id, binding.agent_id, start.call_id)) as take:
                session = CallSession(
                    runtime=runtime,
                    binding=binding,
                    taken=await take(),
                    start=start,
                    send=line.answer,
                    query="",
                    subprotocols=[],
                    from_number="",
                    to_number="",
                    test=True,
                )
                session.open()
            self._on_call(session.call_id)
            await session.run(line.receive, before)
        except Exception:
            logger.exception("A test call failed inside Mirror")
        finally:
            line.hang_up(1011, "Mirror ended the test call")


__all__ = ["MAX_LINES", "MAX_LINE_CHARS", "MAX_S", "CallEnded", "CallsLimitReached", "Phone"]
