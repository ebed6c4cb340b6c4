"""A browser as a telephone: `/ws/test-call`, one test call for each socket.

browser → server: `place {agent, lines}` first, then `say {text}`, `press {digits}`, `heard {bytes}` and `hang_up`;
binary messages are what the microphone heard, in the call's format. `lines` are what a scripted caller says; null is
the microphone.
server → browser: `format {encoding, rate}`, `call {id}` once the call is recorded, `caller`, `agent` and `wire` for
what happens in it, `unrecorded` when its record does not come, `voice {problem}` when lines are beeped, `ended {words,
…}` or `refused {message}` at the end, `beat`; binary messages are what the caller hears, in the call's format.

It is a console socket: the same origin, session and membership are asked for, and asked for again while it is open, so
whoever is signed out or loses their role has hung up. The browser gets no key and chooses no id. A browser that does
not say that it has heard what it was sent misses what comes next; it never slows the call.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from mirror_saas.draining import drain
from supervision.errors import NotFound
from supervision.plivo.simulator import Event
from supervision.selectors.call_pages import call_seq
from supervision.selectors.calls import call_get
from supervision.services.placed_calls import call_place
from supervision.stream.directory import AgentBinding, DirectoryUnavailable
from supervision.stream.phone import MAX_LINE_CHARS, MAX_LINES, MAX_S, CallEnded, CallsLimitReached, Phone
from supervision.stream.runtime import stream_runtime
from tenants.actors import actor_context, actor_of_socket
from tenants.context import tenant_context
from tenants.models import User
from tenants.roles import Scope
from tenants.selectors.memberships import membership_get
from webui.consumers import BAD_MESSAGE, ConsoleConsumer, in_database_thread
from webui.live import ViewerGone
from webui.presenters.phone import ended_message, event_message

logger = logging.getLogger(__name__)

CAPABILITY: Final = Scope.CALLS_WRITE.value
MAX_TEXT_CHARS: Final = 32_768
MAX_AUDIO_BYTES: Final = 32_768
# A call costs this process a frame each way every 20 ms; they are here to try agents, not to load them.
MOST_OF_PROCESS: Final = 20
MOST_OF_TENANT: Final = 5
PUMP_S: Final = 0.04
# Audio that a browser may be behind.
BEHIND_S: Final = 5.0
MESSAGES_WAITING: Final = 500
LINES_WAITING: Final = 5
PLACED_WITHIN_S: Final = 20.0
RECORDED_WITHIN_S: Final = 20.0
RECORDED_STEP_S: Final = 0.1
HANGS_UP_WITHIN_S: Final = 20.0

DONE: Final = 1000

_running: Counter[UUID] = Counter()


class Refusal(Exception):
    """The call is not placed; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Placing:
    """What a browser asked for."""

    agent_id: UUID
    lines: tuple[str, ...] | None

    @classmethod
    def of(cls, request: dict[str, Any]) -> Placing:
        """Raises ValueError for what no page of ours sends, and Refusal for what a person can put right."""
        agent_id, lines = UUID(str(request["agent"])), request["lines"]
        if lines is None:
            return cls(agent_id, None)
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise ValueError("lines: must be null or a list of texts")
        said = tuple(filter(None, (" ".join(line.split()) for line in lines)))
        if not said:
            raise Refusal("Type at least one line for the caller to say.")
        if len(said) > MAX_LINES:
            raise Refusal(f"A script has {MAX_LINES} lines at most; this one has {len(said)}.")
        for number, line in enumerate(said, start=1):
            if len(line) > MAX_LINE_CHARS:
                raise Refusal(f"Line {number} has {len(line)} characters; {MAX_LINE_CHARS} are the most.")
        return cls(agent_id, said)


class PhoneConsumer(ConsoleConsumer):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self._phone: Phone | None = None
        self._calling: asyncio.Task[None] | None = None
        self._placing = False
        self._waits: asyncio.TimerHandle | None = None
        self._out: asyncio.Queue[dict[str, Any] | bytes | None] = asyncio.Queue(MESSAGES_WAITING)
        self._tasks: set[asyncio.Task[None]] = set()
        self._call_id: UUID | None = None
        self._lines_waiting = 0
        self._sent_bytes = 0
        self._heard_bytes = 0

    # -- from the browser -----------------------------------------------------------------------------------------

    async def _enter(self) -> None:
        await super()._enter()
        if not self.closed:
            self._may()
            self._start(self._write())
            loop = asyncio.get_running_loop()
            self._waits = loop.call_later(PLACED_WITHIN_S, lambda: self._start(self.close(BAD_MESSAGE)))

    async def websocket_receive(self, message: dict[str, Any]) -> None:
        if self.closed or self.viewer is None:
            return
        audio = message.get("bytes")
        if audio is not None:
            if self._phone is not None and len(audio) <= MAX_AUDIO_BYTES:
                self._phone.speak_live(audio)
            return
        try:
            text = message["text"]
            if len(text) > MAX_TEXT_CHARS:
                raise ValueError
            request = json.loads(text)
            await self._take(request["type"], request)
        except Refusal as refusal:
            self._put({"type": "refused", "message": str(refusal)})
            self._put(None)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            await self.close(BAD_MESSAGE)

    async def _take(self, kind: str, request: dict[str, Any]) -> None:
        phone = self._phone
        if kind == "place":
            if self._placing:
                raise ValueError
            self._placing = True
            if self._waits is not None:
                self._waits.cancel()
            placing = Placing.of(request)
            # Not awaited: what the browser says meanwhile, that it hangs up for one, is heard.
            self._calling = asyncio.create_task(self._guarded(lambda: self._place(placing)))
        elif kind == "hang_up":
            if phone is None:
                self._put(None)
            else:
                phone.hang_up()
        elif kind == "heard":
            self._heard_bytes = max(self._heard_bytes, int(request["bytes"]))
        elif kind == "press" and phone is not None:
            phone.press(str(request["digits"])[:32])
        elif kind == "say" and phone is not None:
            line = " ".join(str(request["text"]).split())[:MAX_LINE_CHARS]
            if line and self._lines_waiting < LINES_WAITING:
                self._start(self._say(phone, line))

    async def _say(self, phone: Phone, line: str) -> None:
        self._lines_waiting += 1
        try:
            await phone.say(line)
        finally:
            self._lines_waiting -= 1

    # -- the call ---------------------------------------------------------------------------------------------------

    async def _place(self, placing: Placing) -> None:
        try:
            binding = await in_database_thread(self._allowed, placing)
            await self._call(binding, placing)
        except Refusal as refusal:
            self._put({"type": "refused", "message": str(refusal)})
        except CallsLimitReached as limit:
            self._put({"type": "refused", "message": str(limit)})
        except CallEnded:
            logger.debug("A test call was hung up before it began")
        finally:
            self._put(None)

    def _allowed(self, placing: Placing) -> AgentBinding:
        """What the call runs under, asked and written down as the member who places it."""
        viewer = self._viewer_now()
        member = membership_get(user_id=viewer.user_id, tenant_id=viewer.tenant_id)
        if member is None or CAPABILITY not in viewer.capabilities:
            raise ViewerGone
        email = User.objects.values_list("email", flat=True).get(id=viewer.user_id)
        actor = actor_of_socket(self.scope, actor_id=viewer.user_id, label=email)
        try:
            with actor_context(actor), tenant_context(viewer.tenant_id):
                return call_place(tenant=member.tenant, agent_id=placing.agent_id, scripted=placing.lines is not None)
        except NotFound as error:
            raise Refusal("This agent does not exist, or was archived. Choose another one.") from error
        except DirectoryUnavailable as error:
            raise Refusal("The agent’s secrets cannot be opened. Give its headers and signing secret again.") from error

    async def _call(self, binding: AgentBinding, placing: Placing) -> None:
        tenant_id = binding.tenant_id
        if drain.draining:
            raise Refusal("Mirror is being stopped here. Call again in a minute.")
        if _running.total() >= MOST_OF_PROCESS or _running[tenant_id] >= MOST_OF_TENANT:
            raise Refusal(f"Other test calls run: {MOST_OF_TENANT} at a time are the most. Hang one of them up first.")
        _running[tenant_id] += 1
        try:
            runtime = await stream_runtime()
            await runtime.start()
            # A process that serves nothing but the console loads what calls need with its first one.
            await runtime.warm()
            phone = self._phone = Phone(
                runtime, binding, on_call=self._begun, on_event=self._happened, on_problem=self._beeped
            )
            media = phone.format
            self._put({"type": "format", "encoding": media.encoding, "rate": media.sample_rate})
            pump = self._start(self._pump(phone))
            try:
                record = await phone.run(placing.lines)
            finally:
                pump.cancel()
        finally:
            _running[tenant_id] -= 1
            if not _running[tenant_id]:
                del _running[tenant_id]
        why = await in_database_thread(self._why, self._call_id) if record.outcome == "failed" else ""
        self._put(ended_message(record, why=why, max_s=MAX_S))

    def _begun(self, call_id: UUID) -> None:
        self._call_id = call_id
        self._start(self._tell_recorded(call_id))

    async def _tell_recorded(self, call_id: UUID) -> None:
        """Say which call it is once the browser can follow it: the recorder writes a little later than calls run."""
        try:
            async with asyncio.timeout(RECORDED_WITHIN_S):
                while True:
                    if await in_database_thread(self._recorded, call_id):
                        break
                    await asyncio.sleep(RECORDED_STEP_S)
        except TimeoutError:
            self._put({"type": "unrecorded"})
        else:
            self._put({"type": "call", "id": str(call_id)})

    def _recorded(self, call_id: UUID) -> bool:
        assert self.viewer is not None
        with tenant_context(self.viewer.tenant_id):
            return call_seq(call_id=call_id) is not None

    def _why(self, call_id: UUID | None) -> str:
        """What the record says of a failed call; empty when it says nothing yet."""
        assert self.viewer is not None
        if call_id is None:
            return ""
        with tenant_context(self.viewer.tenant_id):
            try:
                call = call_get(call_id=call_id)
            except NotFound:
                return ""
            return str(call.reason or call.agent_failure).rstrip(".")

    def _happened(self, event: Event) -> None:
        message = event_message(event)
        if message is not None:
            self._put(message)

    def _beeped(self, problem: str) -> None:
        self._put({"type": "voice", "problem": problem})

    async def _pump(self, phone: Phone) -> None:
        """Send what the caller hears, as long as the browser keeps up."""
        most = int(BEHIND_S * 1000) * phone.format.bytes_per_ms
        while True:
            audio = phone.heard()
            if audio and self._sent_bytes - self._heard_bytes < most:
                self._sent_bytes += len(audio)
                self._put(audio)
            await asyncio.sleep(PUMP_S)

    # -- the socket -------------------------------------------------------------------------------------------------

    def _put(self, message: dict[str, Any] | bytes | None) -> None:
        """Send behind what waits; None closes. What finds no room is left out: the call does not wait for a browser."""
        if self._out.full():
            if message is not None:
                return
            self._out.get_nowait()
        self._out.put_nowait(message)

    async def _write(self) -> None:
        while (message := await self._out.get()) is not None:
            if isinstance(message, bytes):
                await self.send({"type": "websocket.send", "bytes": message})
            else:
                await self._send(message)
        await self.close(DONE)

    def _may(self) -> None:
        if self.viewer is not None and CAPABILITY not in self.viewer.capabilities:
            raise ViewerGone

    async def _check(self) -> None:
        await super()._check()
        self._may()

    def _start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _end(self) -> None:
        """The browser is gone, or was sent away: the caller has hung up."""
        await super()._end()
        if self._waits is not None:
            self._waits.cancel()
        if self._phone is not None:
            self._phone.hang_up()
        current = asyncio.current_task()
        if self._calling is not None and self._calling is not current:
            if self._phone is None:
                self._calling.cancel()
            await asyncio.wait({self._calling}, timeout=HANGS_UP_WITHIN_S)
            self._calling.cancel()
        for task in [task for task in self._tasks if task is not current]:
            task.cancel()
