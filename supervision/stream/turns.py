"""A turn that an agent reported, for as long as its call runs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from supervision.engine.adapters.turn_audio import TurnAudio
from supervision.engine.context import TurnPayload, Verdict
from supervision.engine.scorer.streaming import StreamedTurn


@dataclass(slots=True, eq=False)
class TurnState:
    """A reported turn and what became of it."""

    audio: TurnAudio
    payload: TurnPayload
    index: int
    judged: asyncio.Future[Verdict]
    flagged: bool = False  # its words broke a rule: its tools are denied
    verdict_id: UUID | None = None
    violates_from: int = 0  # of a flagged turn: the character at which the violation begins
    told: dict[str, Any] = field(default_factory=dict)  # `mirror.verdict`, once it is judged
    stream: StreamedTurn | None = None  # of a turn whose text arrives in pieces
    interventions: int = 0  # of the call, before this turn
    clean: asyncio.Event = field(default_factory=asyncio.Event)  # its first words, or all of them, are judged

    @property
    def turn_id(self) -> UUID:
        """Our id; the agent's is `ref`."""
        return self.audio.turn_id

    async def words_clean(self) -> bool | None:
        """Whether all words that this turn has said by now break no rule; None when they could not be judged. Returns
        when that is known."""
        if self.stream is None or self.judged.done():
            await asyncio.wait({self.judged})
        elif not self.flagged and await self.stream.decided() is None:
            return None
        return not self.flagged

    @property
    def ref(self) -> str:
        """The agent's `turn_id`."""
        return self.audio.ref
