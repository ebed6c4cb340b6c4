"""How fast Mirror was: from the end of a clause to the first word of the correction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from supervision.models import Intervention, Verdict
from webui.presenters.waterfall import step_times

_ACKNOWLEDGED: Mapping[str, str] = {
    "silence_proved": "silence proven",
    "cleared": "Plivo acknowledged",
    "fence": "its checkpoint played",
}


# Of turns that were not judged: what came instead.
_ANSWERED: Mapping[str, str] = {"timed_out": "Timed out", "failed": "Judging failed", "shed": "Shed"}


@dataclass(frozen=True, slots=True)
class Milestone:
    """A moment on the way. `since_ms` counts from the end of the clause, `took_ms` from the milestone before."""

    name: str
    since_ms: int
    took_ms: int | None
    how: str = ""


def latency_of(verdict: Verdict | None, intervention: Intervention | None = None) -> tuple[Milestone, ...]:
    """Clause end → judged → cleared → acknowledged → Mirror heard → correction heard, as far as it came.

    A clause is sent to the judge when it ends, so its end is the verdict's time less what the judge took. What was
    not recorded (nothing had to be cleared, nothing was spoken) is left out.
    """
    if verdict is None or verdict.latency_ms is None or verdict.state == "skipped":
        return ()
    begins = verdict.at_ms - verdict.latency_ms
    answered = _ANSWERED.get(verdict.state, "Judged")
    found: list[tuple[str, int, str]] = [("Clause end", begins, "sent to the judge"), (answered, verdict.at_ms, "")]
    if intervention is not None:
        found += _of_steps(intervention)
    milestones: list[Milestone] = []
    for name, at_ms, how in found:
        before = milestones[-1].since_ms if milestones else None
        since = at_ms - begins
        milestones.append(Milestone(name, since, None if before is None else since - before, how))
    return tuple(milestones)


def _of_steps(intervention: Intervention) -> list[tuple[str, int, str]]:
    first = step_times(intervention)
    found: list[tuple[str, int, str]] = []
    if "clear_sent" in first:
        found.append(("Cleared", first["clear_sent"], "clearAudio sent"))
    proofs = [(first[name], how) for name, how in _ACKNOWLEDGED.items() if name in first]
    if proofs:
        at_ms, how = min(proofs)
        found.append(("Acknowledged", at_ms, how))
    if "buffer_sent" in first:
        found.append(("Buffer line heard", first["buffer_sent"], "from its first frame on"))
    if "correction_sent" in first:
        # What is sent before the buffer line has played waits behind it.
        heard = max(first["correction_sent"], first.get("buffer_played", 0))
        found.append(("Correction heard", heard, "first audio"))
    return sorted(found, key=lambda each: each[1])
