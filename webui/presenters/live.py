"""Running calls on the live page: a row each, and what is to be said of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from supervision.recorder.outbox import ALARM_SHARE, ALARM_TURNS, DEGRADED_TURNS
from supervision.selectors.live_calls import LiveCall, NewestTurn, NewestVerdict
from webui.formats import count_of, score, sentence_of
from webui.presenters.calls import SCRIPTED_JUDGE, Banner, Coverage, coverage_of, elapsed_ms
from webui.presenters.pieces import Badge
from webui.presenters.turns import NOT_JUDGED, VERDICT_BADGES

# A score that comes this near to its threshold, as a share of it, raises a call's risk.
NEAR: Final = 0.7

HIGH, RAISED, LOW, UNKNOWN = 3, 2, 1, 0
RISKS: Final[dict[int, Badge]] = {
    HIGH: Badge("High", "alert", "bad"),
    RAISED: Badge("Raised", "alert", "warn"),
    LOW: Badge("Low", "check", "good"),
    UNKNOWN: Badge("Unknown", "dash"),
}


@dataclass(frozen=True, slots=True)
class LiveRow:
    """One running call. Two rows that are equal look the same but for their time."""

    id: UUID
    agent_id: UUID
    agent: str
    from_number: str
    to_number: str
    started_at: datetime
    shadow: bool
    test: bool
    scripted: bool
    risk: int
    why: str
    """One line on what the risk rests on."""
    verdict: NewestVerdict | None
    turn: NewestTurn | None
    coverage: Coverage
    turns: int
    interventions: int
    tools_blocked: int
    degraded: bool
    unjudged: tuple[str, ...]
    """Of its newest turns, the states of those that were not judged."""
    judged_lately: int
    """How many of its newest turns were judged or skipped."""
    trouble: str
    """Why its newest turn was not judged, empty if it was."""
    elapsed_ms: int = field(compare=False)

    @property
    def dom_id(self) -> str:
        return f"live-{self.id.hex}"

    @property
    def badge(self) -> Badge:
        return RISKS[self.risk]

    @property
    def newest(self) -> str:
        """Sorts as text in the browser by when calls began."""
        return f"{self.started_at.timestamp():017.6f}-{self.id.hex}"

    @property
    def riskiest(self) -> str:
        """Sorts as text in the browser by risk, then by when calls began."""
        return f"{self.risk}-{self.newest}"


def live_row(live: LiveCall, now: datetime, judge_model: str = "") -> LiveRow:
    """A running call as its row. `judge_model` is the model that judges it, empty when unknown."""
    call, newest = live.call, live.verdicts[0] if live.verdicts else None
    risk, why = _risk(live)
    unjudged = tuple(verdict.state for verdict in live.verdicts if verdict.state in NOT_JUDGED)
    return LiveRow(
        id=call.id,
        agent_id=call.agent_id,
        agent=call.agent.name,
        from_number=call.from_number,
        to_number=call.to_number,
        started_at=call.started_at,
        shadow=call.mode == "shadow",
        test=call.test,
        scripted=judge_model == SCRIPTED_JUDGE,
        risk=risk,
        why=why,
        verdict=newest,
        turn=live.turn,
        coverage=coverage_of(call),
        turns=call.turn_count,
        interventions=call.intervention_count,
        tools_blocked=call.tools_blocked_count,
        degraded=_degraded(live),
        unjudged=unjudged,
        judged_lately=len(live.verdicts) - len(unjudged),
        trouble=newest.detail if newest is not None and newest.state in NOT_JUDGED else "",
        elapsed_ms=elapsed_ms(call, now),
    )


def _risk(live: LiveCall) -> tuple[int, str]:
    """How much a call needs somebody to look at it, by what was judged lately, and why."""
    call = live.call
    if live.acting_on is not None:
        return HIGH, f"Mirror is stepping in: {live.acting_on}" if live.acting_on else "Mirror is stepping in"
    violation = next((verdict for verdict in live.verdicts if verdict.state == "judged" and verdict.intervene), None)
    if violation is not None:
        return HIGH, violation.rule or "A rule was broken"
    if not live.verdicts:
        if call.agent_failure:
            return RAISED, "The agent failed"
        return UNKNOWN, "Nothing was judged so far"
    newest = live.verdicts[0]
    if newest.state in NOT_JUDGED:
        return RAISED, f"The newest turn was not judged: {VERDICT_BADGES[newest.state].text.lower()}"
    if call.intervention_count or call.tools_blocked_count:
        return RAISED, _earlier(call.intervention_count, call.tools_blocked_count)
    if newest.score is not None and newest.threshold and newest.score >= NEAR * newest.threshold:
        return RAISED, f"{score(newest.score)} is close to the threshold {score(newest.threshold)}"
    return LOW, ""


def _earlier(interventions: int, tools_blocked: int) -> str:
    parts = [
        count_of(interventions, "intervention") if interventions else "",
        count_of(tools_blocked, "blocked tool") if tools_blocked else "",
    ]
    return "Earlier: " + " and ".join(part for part in parts if part)


def _degraded(live: LiveCall) -> bool:
    """Whether judging of this call is degraded, by the rules of the alarm that webhooks tell of."""
    states = [verdict.state for verdict in live.verdicts]
    if len(states) >= DEGRADED_TURNS and all(state in NOT_JUDGED for state in states):
        return True
    call = live.call
    covered = call.judged_count + call.skipped_count
    closed = covered + call.timed_out_count + call.failed_count + call.shed_count
    return closed >= ALARM_TURNS and covered < ALARM_SHARE * closed


@dataclass(frozen=True, slots=True)
class LiveSummary:
    """What stands above the rows. `running` may be more than there are rows for."""

    running: int
    watched: int
    high: int
    raised: int
    degraded: Banner | None

    @property
    def more(self) -> int:
        return self.running - self.watched


def live_summary(rows: Collection[LiveRow], running: int) -> LiveSummary:
    """Of all running calls, whatever the page is filtered by."""
    risks = Counter(row.risk for row in rows)
    return LiveSummary(
        running=max(running, len(rows)),
        watched=len(rows),
        high=risks[HIGH],
        raised=risks[RAISED],
        degraded=degraded_banner(rows),
    )


def degraded_banner(rows: Collection[LiveRow]) -> Banner | None:
    """That judging is degraded: in a call, or in too many of the newest turns of all calls."""
    affected = [row for row in rows if row.degraded]
    states = Counter(state for row in rows for state in row.unjudged)
    missed, judged = sum(states.values()), sum(row.judged_lately for row in rows)
    spread = missed + judged >= ALARM_TURNS and judged < ALARM_SHARE * (missed + judged)
    if not affected and not spread:
        return None
    where = (
        f"in {len(affected)} of {count_of(len(rows), 'running call')}" if affected else f"in {_newest_turns(missed)}"
    )
    told = ", ".join(f"{count} {sentence_of(state).lower()}" for state, count in sorted(states.items()))
    lately = f" Of the newest turns: {told}." if told else ""
    because = _commonest(row.trouble for row in rows if row.trouble)
    return Banner(
        "bad" if not judged and missed else "warn",
        "alert",
        f"Judging is degraded {where}.",
        f"What agents say in turns that are not judged is not checked; the calls go on.{lately}"
        f"{f' Why: {because}.' if because else ''} Check the judge’s server and its key.",
    )


def _newest_turns(missed: int) -> str:
    return f"{count_of(missed, 'turn')} of the newest ones"


def _commonest(reasons: Iterable[str]) -> str:
    counted = Counter(reason.strip().rstrip(".") for reason in reasons)
    return counted.most_common(1)[0][0] if counted else ""
