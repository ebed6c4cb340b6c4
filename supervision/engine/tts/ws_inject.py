"""The stream itself as Mirror's voice: audio goes out on the agent's own WebSocket, in order and acknowledged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class PlivoStreamTTSSink:
    """A bidirectional stream and a voice for it.

    `attach(tts_sink=PlivoStreamTTSSink(handler, my_tts))` is `attach(handler, tts_provider=my_tts)`. `handler` and
    `tts_provider` are what `Supervisor.attach` takes, which also checks them.
    """

    handler: Any
    tts_provider: Any
