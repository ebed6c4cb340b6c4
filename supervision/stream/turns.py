"""A turn that an agent reported, for as long as its call runs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from supervision.engine.adapters.relay import TurnAudio
from supervision.engine.context import TurnPayload, Verdict


@dataclass(slots=True, eq=False)
class TurnState:
    """A reported turn and what became of it."""

    audio: TurnAudio
    payload: TurnPayload
    index: int
    judged: asyncio.Future[Verdict]
    flagged: bool = False  # its words broke a rule: its tools are denied
    verdict_id: UUID | None = None
    told: dict[str, Any] = field(default_factory=dict)  # `mirror.verdict`, once it is judged

    @property
    def turn_id(self) -> UUID:
        """Our id; the agent's is `ref`."""
        return self.audio.turn_id

    @property
    def ref(self) -> str:
        """The agent's `turn_id`."""
        return self.audio.ref
