"""What becomes of a call whose agent cannot be reached, or goes away in its middle.

First it is dialled again, `start` first, as often as its policy says. Then it has failed for good: the caller is told
so, if there are words for it, and the stream is closed, or Plivo is asked to hang up or to go on with other XML.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal

from supervision.plivo.rest import PlivoRestError
from supervision.stream.plivo_rest import PlivoCall

logger = logging.getLogger(__name__)

REDIAL_AFTER_S: Final = (0.2, 0.5, 1.0, 2.0, 4.0)  # before the first time, the second, …
STEADY_S: Final = 30.0  # an agent that was there for so long has all its redials again
PLIVO_ENDS_WITHIN_S: Final = 3.0  # the stream of a call that was hung up or transferred; then Mirror closes it
FAILED_CLOSE: Final = 1011


@dataclass(frozen=True, slots=True)
class FailurePolicy:
    """An agent's own; see `supervision.models.Agent`. `transfer_url` is set when ``then`` is `transfer`."""

    redials: int = 0
    message: str = ""
    then: Literal["close", "hangup", "transfer"] = "close"
    transfer_url: str = ""


NO_FAILURE_POLICY: Final = FailurePolicy()
"""The stream is closed at once, with 1011."""


class Redials:
    """How often an agent is still dialled again, and when."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._used = 0
        self._connected_at: float | None = None

    def connected(self, now: float) -> None:
        """The agent was reached at this loop time."""
        self._connected_at = now

    async def wait(self) -> bool:
        """Wait until the agent may be dialled again; False, at once, when it may not be."""
        now = asyncio.get_running_loop().time()
        if self._connected_at is not None and now - self._connected_at >= STEADY_S:
            self._used = 0
        self._connected_at = None
        if self._used >= self._number:
            return False
        self._used += 1
        await asyncio.sleep(REDIAL_AFTER_S[min(self._used, len(REDIAL_AFTER_S)) - 1])
        return True


@dataclass(frozen=True, slots=True)
class FailureHandled:
    """What was done: `detail` for the record, and whether Plivo ends the stream by itself now."""

    detail: str
    plivo_ends_it: bool = False


async def failure_handle(
    policy: FailurePolicy, *, tell: Callable[[str], Awaitable[bool]], plivo: PlivoCall | None
) -> FailureHandled:
    """Do what the policy says about a call whose agent has failed for good. Never raises: what cannot be done is told
    in the detail, and the stream is closed.

    ``tell`` speaks to the caller and returns whether that was possible.
    """
    done = []
    if policy.message:
        done.append("the caller was told" if await tell(policy.message) else "the caller could not be told")
    if policy.then == "close":
        return FailureHandled("; ".join(done))
    done_word = "hung up" if policy.then == "hangup" else "transferred"
    problem: Exception | str = "no Plivo account is stored"
    if plivo is not None:
        try:
            await (plivo.hangup() if policy.then == "hangup" else plivo.transfer(policy.transfer_url))
            return FailureHandled("; ".join([*done, f"the call was {done_word}"]), plivo_ends_it=True)
        except (PlivoRestError, ValueError) as error:
            problem = error
    logger.warning("A call whose agent failed could not be %s: %s", done_word, problem)
    return FailureHandled("; ".join([*done, f"the call could not be {done_word}: {problem}"]))
