"""What people are mailed of that goes wrong: the kinds of alarms, and how long is waited between two mails.

Pure; alarms are raised by `supervision.recorder.outbox` and `supervision.services.alarms`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

# Of each kind, when it comes.
KINDS: Final[dict[str, str]] = {
    "coverage": "Turns are not judged while a call runs, or a call has ended with some of them not judged.",
    "call": "A call failed: its agent could not be reached or broke, or the process that carried it died.",
    "webhook": "Mirror switched a webhook off, because its receiver takes nothing any more.",
    "limit": "Calls were refused, or are not recorded any more, because a limit is reached.",
}
# What of a tenant's limits (tenants.limits_refused.Refused) is worth waking somebody.
LIMITS: Final = ("calls", "storage")

# The first mail goes out at once; while alarms go on, the next ones wait twice as long each time.
FIRST_QUIET: Final = timedelta(minutes=15)
MOST_QUIET: Final = timedelta(hours=4)
# Of mails that are older than this nothing is known any more: the next one goes out at once.
REMEMBERED: Final = timedelta(hours=24)
KEPT: Final = timedelta(days=30)


def alarm_kind(event_type: str, data: Mapping[str, Any]) -> str | None:
    """The kind of alarm that an event of a call is, by its type and data as webhooks have them; None for most."""
    if event_type == "coverage.alarm":
        return "coverage"
    if event_type == "call.ended" and data.get("outcome") == "failed":
        return "call"
    return None


_COVERAGE: Final = {
    "degraded": "three turns in a row were not judged",
    "low": "less than 80 % of its turns are judged",
    "ended": "the call has ended, and not every turn was judged",
}
_LIMITED: Final = {
    "calls": "Calls are refused: as many run at the same time as may.",
    "storage": "Calls are refused: their record takes all the space that it may.",
}


def alarm_text(kind: str, data: Mapping[str, Any], *, agents: Mapping[str, str]) -> str:
    """An alarm in words; `agents` are names of agents by id, among them the one that it is about, if any."""
    agent = agents.get(str(data.get("agent_id")), "An agent")
    match kind:
        case "coverage":
            return f"{agent}: {_COVERAGE.get(str(data.get('alarm')), 'not every turn was judged')}"
        case "call":
            return f"{agent}: the call failed"
        case "webhook":
            return f"{data.get('host')}: {data.get('reason')}"
    return _LIMITED.get(str(data.get("limit")), "A limit is reached.")


def quiet_time(mails: int) -> timedelta:
    """How long nothing is mailed after the newest of so many mails within a day: 15 min, 30 min, 1 h … 4 h."""
    if mails <= 0:
        return timedelta()
    return min(FIRST_QUIET * (1 << min(mails - 1, 16)), MOST_QUIET)
