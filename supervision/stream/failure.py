"""What becomes of a call whose agent cannot be reached, or goes away in its middle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class FailurePolicy:
    """An agent's own; see `supervision.models.Agent`. `transfer_url` is set when ``then`` is `transfer`."""

    redials: int = 0
    message: str = ""
    then: Literal["close", "hangup", "transfer"] = "close"
    transfer_url: str = ""


NO_FAILURE_POLICY: Final = FailurePolicy()
"""The stream is closed at once, with 1011."""
