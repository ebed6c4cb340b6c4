"""The agent as Mirror's voice: asked to say a line, and given up when it does not begin in time.

The caller then hears one voice all along. What is heard of a line is the audio that the agent sends between its begin
and its end; it takes its place behind what Mirror has said. A line that the agent does not begin by its deadline is
spoken by the speech provider instead, and one that comes later is not heard.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Final
from uuid import uuid4

from supervision.engine.adapters.relay import LINE_MAX_S, CallRelay
from supervision.engine.adapters.turn_audio import AgentLine
from supervision.engine.intervention.orchestrator import Line, Playing
from supervision.engine.tts.sink import estimated_s

BEGINS_WITHIN_S: Final = 0.5  # of the moment at which the line before it ends: until then the agent has to begin
LEAD_S: Final = 0.5  # how long before the buffer line's end the agent is asked to say the correction at the latest
GIVEN_UP_AFTER: Final = 2  # lines of a call that the agent did not begin: then it is not asked any more
REMEMBERED: Final = 32

Ask = Callable[[str, str, str, int], None]
"""`ask(id, role, text, deadline_ms)` asks the agent to say a line."""


class SayUnknown(Exception):
    """The agent names a line that it was not asked for, or that was long ago."""


class SayExpired(Exception):
    """The agent begins a line too late: it was given up, or what it was for is over."""


class _State(StrEnum):
    ASKED = "asked"
    BEGUN = "begun"
    GIVEN_UP = "given_up"
    OVER = "over"


class Saying:
    """A line that the agent was asked to say: a `Playing`, whoever speaks it in the end."""

    def __init__(
        self,
        line: Line,
        role: str,
        relay: CallRelay,
        *,
        otherwise: Callable[[Line], Playing],
        on_played: Callable[[], None],
    ) -> None:
        self.id = uuid4().hex
        self.line = line
        self.role = role
        self.state = _State.ASKED
        self.deadline: asyncio.TimerHandle | None = None
        self.rendering: asyncio.Task[Line] | None = None
        self._relay = relay
        self._otherwise = otherwise
        self._on_played = on_played
        self._instead: Playing | None = None
        self._awaited: asyncio.Future[None] | None = None  # kept, or its task could vanish
        self._audio = AgentLine(self._sent, self._acknowledged)
        self._starts_at = _now()
        self._ends_at: float | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._over.add_done_callback(_looked_at)
        self.before: Saying | None = None
        self.placed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when what comes after it may be queued."""

    @property
    def over(self) -> bool:
        """Whether nothing of it is awaited any more."""
        return self.state is _State.OVER

    @property
    def starts_at(self) -> float:
        """See `Playing`."""
        return self._instead.starts_at if self._instead is not None else self._starts_at

    @property
    def ends_at(self) -> float:
        """See `Playing`; estimated from the words until the agent says that the line has ended."""
        if self._instead is not None:
            return self._instead.ends_at
        if self._ends_at is not None:
            return self._ends_at
        expected_s = min(LINE_MAX_S, max(estimated_s(self.line.text), self._audio.received_s))
        return self._starts_at + expected_s

    async def played(self) -> None:
        """See `Playing`. Raises `TTSError` when nobody could speak it."""
        await asyncio.shield(self._over)

    def begin_by(self, at: float) -> None:
        """Nothing of it plays before this loop time, as long as it has not begun."""
        self._starts_at = at

    def begins(self, now: float) -> None:
        """The agent's audio from here on is this line."""
        self.state = _State.BEGUN
        self._settle()
        self._starts_at = max(now + self._relay.clock.one_way_s, now + self._relay.owed_s(now))
        self._relay.line_begins(self._audio, now)

    def ends(self, now: float) -> None:
        """All of its audio has come."""
        self._relay.line_ends(now)
        self._ends_at = now + self._relay.owed_s(now)
        self._place()

    def give_up(self) -> None:
        """Somebody else speaks it: what is rendered at once, else as soon as it is."""
        self.state = _State.GIVEN_UP
        if self.deadline is not None:
            self.deadline.cancel()
        if self.line.audio:
            self._speak_in_turn()
        elif self.rendering is not None:
            self.rendering.add_done_callback(self._rendered)

    def close(self) -> None:
        """Nobody waits for it any more."""
        if self.state in (_State.ASKED, _State.GIVEN_UP):
            self._settle()
        if self._awaited is not None:
            self._awaited.cancel()
        self.state = _State.OVER
        self._place()

    def _place(self) -> None:
        if not self.placed.done():
            self.placed.set_result(None)

    def _settle(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
        if self.rendering is not None:
            self.rendering.cancel()

    def _rendered(self, rendering: asyncio.Task[Line]) -> None:
        if rendering.cancelled() or self.state is not _State.GIVEN_UP:
            return
        if (problem := rendering.exception()) is not None:
            if not self._over.done():
                self._over.set_exception(problem)
            self._place()
            return
        self.line = rendering.result()
        self._speak_in_turn()

    def _speak_in_turn(self) -> None:
        if self.before is not None and not self.before.placed.done():
            self.before.placed.add_done_callback(lambda _: self._speak_in_turn())
        elif self.state is _State.GIVEN_UP and self._instead is None:
            self._instead = self._otherwise(self.line)
            self._awaited = asyncio.ensure_future(self._instead.played())
            self._awaited.add_done_callback(lambda _: self._finish())
            self._place()

    def _sent(self, at: float) -> None:
        self._starts_at = at

    def _acknowledged(self, at: float) -> None:
        self._on_played()
        self._finish()

    def _finish(self) -> None:
        if not self._over.done():
            self._over.set_result(None)


class AgentVoice:
    """The agent of one call as a voice. One event loop drives it."""

    def __init__(self, *, relay: CallRelay, ask: Ask, spoken: Callable[[Line], Awaitable[Line]]) -> None:
        """`spoken` renders a line for when the agent does not speak it; it raises `TTSError`."""
        self.offered = False
        """Whether the agent said that it can."""
        self._relay = relay
        self._ask = ask
        self._spoken = spoken
        self._missed = 0
        self._missed_now = False
        self._sayings: OrderedDict[str, Saying] = OrderedDict()

    @property
    def usable(self) -> bool:
        """Whether the next intervention speaks through the agent."""
        return self.offered and self._missed < GIVEN_UP_AFTER

    def say(
        self,
        line: Line,
        role: str,
        *,
        otherwise: Callable[[Line], Playing],
        on_played: Callable[[], None],
        step: Callable[[str, str], None],
    ) -> Playing:
        """Let the agent say `line`, behind what is being said; `otherwise` plays it, rendered, when the agent does not
        begin in time. `step` records what happened."""
        loop, now = asyncio.get_running_loop(), _now()
        saying = Saying(line, role, self._relay, otherwise=otherwise, on_played=on_played)
        saying.before = next((other for other in reversed(self._sayings.values()) if not other.over), None)
        free_s = max(self._relay.owed_s(now), saying.before.ends_at - now if saying.before is not None else 0.0)
        if not line.audio:
            # If the agent fails, nobody should wait for a rendering that only begins then.
            saying.rendering = asyncio.ensure_future(self._spoken(line))
            saying.rendering.add_done_callback(_seen)
        self._sayings[saying.id] = saying
        while len(self._sayings) > REMEMBERED:
            self._sayings.popitem(last=False)
        if not self.usable or self._missed_now:
            saying.begin_by(now + free_s)
            saying.give_up()
            return saying
        deadline_s = free_s + BEGINS_WITHIN_S
        saying.begin_by(now + deadline_s)
        saying.deadline = loop.call_later(deadline_s, self._expired, saying, step)
        step("say_asked", role)
        self._ask(saying.id, role, line.text, round(deadline_s * 1000))
        return saying

    def _expired(self, saying: Saying, step: Callable[[str, str], None]) -> None:
        if saying.state is _State.ASKED:
            self._missed += 1
            self._missed_now = True
            step("say_given_up", saying.role)
            # One voice to the end of an intervention.
            for other in list(self._sayings.values()):
                if other.state is _State.ASKED:
                    other.give_up()

    def begins(self, say_id: str) -> None:
        """The agent says that the audio which follows is this line. Raises `SayUnknown`, and `SayExpired` when it may
        not be heard any more: then that audio is discarded."""
        saying = self._known(say_id)
        if saying.state is _State.ASKED:
            saying.begins(_now())
        elif saying.state is not _State.BEGUN:
            self._relay.line_begins(AgentLine(discarded=True), _now())
            raise SayExpired

    def ends(self, say_id: str) -> None:
        """All audio of this line has come, or no more will. Raises `SayUnknown`."""
        saying = self._known(say_id)
        if saying.state is _State.BEGUN:
            saying.ends(_now())
            saying.state = _State.OVER
        elif saying.state is not _State.ASKED:
            self._relay.line_ends(_now())

    def role_of(self, say_id: str) -> str:
        """`buffer` or `correction`. Raises `SayUnknown`."""
        return self._known(say_id).role

    def lost(self) -> None:
        """The agent's socket is gone: what it has not begun is spoken otherwise at once."""
        self.offered = False
        self._missed_now = True
        for saying in self._sayings.values():
            if saying.state is _State.ASKED:
                saying.give_up()
            elif saying.state is _State.BEGUN:
                saying.ends(_now())
                saying.state = _State.OVER

    def close(self) -> None:
        """What was asked for is not wanted any more; the next intervention begins anew."""
        self._missed_now = False
        for saying in self._sayings.values():
            saying.close()

    def _known(self, say_id: str) -> Saying:
        saying = self._sayings.get(say_id)
        if saying is None:
            raise SayUnknown
        return saying


def _now() -> float:
    return asyncio.get_running_loop().time()


def _looked_at(future: asyncio.Future[None]) -> None:
    """Not everybody who has a line said waits for its end; its failure is in the intervention's report."""
    if not future.cancelled():
        future.exception()


def _seen(rendering: asyncio.Task[Line]) -> None:
    """A rendering that was not needed in the end may have failed."""
    if not rendering.cancelled():
        rendering.exception()
