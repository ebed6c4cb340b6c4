"""The correction of one intervention as audio: rendered as soon as its words may be spoken.

Asking the model and rendering its words have to fit into the time that a buffer line fills. So every text that the
engine finds clean is rendered at once, while a better one is awaited, and whatever is ready when the time is up is
spoken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol

from supervision.engine.context import Correction
from supervision.engine.intervention.generator import OnCandidate
from supervision.engine.intervention.orchestrator import Line


class Renderer(Protocol):
    """Turns words into a line that can be played."""

    async def render(self, text: str, source: Literal["llm", "template"]) -> Line:
        """``text`` as a line; raises what its speech provider raises."""
        ...


class CorrectionLines:
    """What an intervention can say as its correction, besides the template that was rendered when the call began.

    ``ask`` is the engine's question (:meth:`CallSupervisor.correct`); ``fallback`` is that template, which needs no
    rendering again; ``step`` records what happened.
    """

    def __init__(
        self,
        *,
        ask: Callable[[OnCandidate], Awaitable[Correction]],
        voice: Renderer,
        fallback: Line,
        step: Callable[[str, str], None],
    ) -> None:
        self._ask = ask
        self._voice = voice
        self._fallback = fallback
        self._step = step
        self._rendering: list[asyncio.Task[Line | None]] = []  # each better than the one before
        self._details: dict[str, str] = {}

    async def best(self) -> Line | None:
        """The best line that there is when no better one can come; None when that is the fallback.

        Cancelled, or at its end, it leaves no rendering behind. Raises what ``ask`` raises.
        """
        try:
            made = await self._ask(self._candidate)
            self._explain(made)
            for rendering in reversed(self._rendering):
                if (line := await rendering) is not None:
                    return line
            return None
        finally:
            for rendering in self._rendering:
                rendering.cancel()

    def ready(self) -> Line | None:
        """The best line that is rendered by now, if there is one."""
        for rendering in reversed(self._rendering):
            if rendering.done() and not rendering.cancelled() and (line := rendering.result()) is not None:
                return line
        return None

    def detail(self, line: Line) -> str:
        """Why this is what was spoken; empty when it is what the model wrote."""
        return self._details.get(line.text, "")

    def _explain(self, made: Correction) -> None:
        self._details[made.text] = made.detail
        if made.source == "template":
            # The engine's templates take turns; another one than the fallback may not be rendered in time.
            self._details[self._fallback.text] = made.detail

    def _candidate(self, made: Correction) -> None:
        self._explain(made)
        if made.text and made.text != self._fallback.text:
            self._rendering.append(asyncio.create_task(self._rendered(made)))

    async def _rendered(self, made: Correction) -> Line | None:
        try:
            return await self._voice.render(made.text, made.source)
        except Exception as problem:
            # Whatever a speech provider fails with, the next best words are spoken.
            self._step("rendering_failed", type(problem).__name__)
            return None
