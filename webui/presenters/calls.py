"""A call in the list, and the head of its page: state, coverage, facts, banners."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from supervision.models import Call
from webui.formats import count_of, duration, sentence_of, share
from webui.presenters.pieces import Badge, Fact, Tone

# The model name of the demo's scripted judge: it answers from a script, no model judges.
SCRIPTED_JUDGE = "demo-script"


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which share of a call's turns ended as judged or skipped, and why it is not all of them."""

    text: str
    tone: Tone
    icon: str
    why: str


def coverage_of(call: Call) -> Coverage:
    """The coverage of an ended call as recorded; of a live one from its counts so far."""
    decided = call.judged_count + call.skipped_count
    missed = call.timed_out_count + call.failed_count + call.shed_count
    live = call.state == Call.State.LIVE
    value = call.coverage
    if value is None and decided + missed:
        value = decided / (decided + missed)
    if value is None or call.coverage_state == "none":
        why = call.coverage_reason or (
            "The agent has reported no turn yet." if live else "The agent reported no turns, so nothing was judged."
        )
        return Coverage("none", "plain" if live else "warn", "clock" if live else "alert", why)
    if value >= 1:
        return Coverage(share(value), "good", "check", call.coverage_reason or "Every reported turn was judged.")
    why = call.coverage_reason or f"{_missed_words(call)}: what the agent said in them was not checked."
    return Coverage(share(value), "warn", "alert", why)


def _missed_words(call: Call) -> str:
    parts = [
        (call.timed_out_count, "timed out"),
        (call.failed_count, "failed"),
        (call.shed_count, "shed under load"),
    ]
    missed = sum(count for count, _ in parts)
    return f"{count_of(missed, 'turn')} not judged ({', '.join(f'{count} {word}' for count, word in parts if count)})"


def outcome_of(call: Call) -> Badge:
    """How the call stands: live, or how it ended and by whom."""
    if call.state == Call.State.LIVE:
        return Badge("Live", "wave", "live")
    by = {"caller": "Caller hung up", "agent": "Agent ended it", "mirror": "Mirror ended it"}.get(call.ended_by, "")
    title = " · ".join(part for part in (by, call.reason) if part)
    if call.outcome == "failed":
        return Badge("Failed", "cross", "bad", title)
    return Badge(sentence_of(call.outcome or "ended"), "check", "plain", title)


def elapsed_ms(call: Call, now: datetime) -> int:
    """How long the call took, or has taken so far, in ms."""
    if call.duration_ms is not None:
        return call.duration_ms
    return max(0, (((call.ended_at or now) - call.started_at) // timedelta(milliseconds=1)))


@dataclass(frozen=True, slots=True)
class CallRow:
    """One row of the calls list."""

    id: UUID
    agent: str
    from_number: str
    to_number: str
    started_at: datetime
    live: bool
    elapsed_ms: int
    outcome: Badge
    coverage: Coverage
    turns: int
    interventions: int
    tools_blocked: int
    shadow: bool
    scripted: bool
    test: bool = False

    @property
    def dom_id(self) -> str:
        return f"call-{self.id.hex}"

    @property
    def order(self) -> str:
        return f"{self.started_at.timestamp():017.6f}-{self.id.hex}"

    @property
    def into(self) -> str:
        return "calls-live" if self.live else "calls-ended"


def call_row(call: Call, now: datetime, judge_model: str = "") -> CallRow:
    """Needs `agent` loaded. `judge_model` is the model that judged, empty when unknown."""
    return CallRow(
        id=call.id,
        agent=call.agent.name,
        from_number=call.from_number,
        to_number=call.to_number,
        started_at=call.started_at,
        live=call.state == Call.State.LIVE,
        elapsed_ms=elapsed_ms(call, now),
        outcome=outcome_of(call),
        coverage=coverage_of(call),
        turns=call.turn_count,
        interventions=call.intervention_count,
        tools_blocked=call.tools_blocked_count,
        shadow=call.mode == "shadow",
        scripted=judge_model == SCRIPTED_JUDGE,
        test=call.test,
    )


@dataclass(frozen=True, slots=True)
class Banner:
    tone: Literal["warn", "bad", "note"]
    icon: str
    title: str
    text: str


SCRIPTED_BANNER = Banner(
    "note",
    "info",
    "No model is judging: the demo’s script answers.",
    "Its scores and reasons come from a file. To have a model judge, store access to one under Credentials and choose "
    "it in the policy. The tenant of make run gets one when Mirror starts with OPENAI_API_KEY.",
)


@dataclass(frozen=True, slots=True)
class CallHead:
    id: UUID
    agent: str
    started_at: datetime
    from_number: str
    to_number: str
    live: bool
    agent_failed: bool
    outcome: Badge
    facts: tuple[Fact, ...]
    banners: tuple[Banner, ...]
    test: bool = False


def call_head(call: Call, now: datetime, judge_model: str = "") -> CallHead:
    """Needs `agent` and `policy` loaded."""
    live = call.state == Call.State.LIVE
    coverage = coverage_of(call)
    outcome = outcome_of(call)
    took = elapsed_ms(call, now)
    facts = [
        Fact("Duration", duration(took), "so far" if live else outcome.title, elapsed_ms=took if live else None),
        Fact("Coverage", coverage.text, coverage.why, coverage.tone, coverage.icon),
        Fact("Turns", str(call.turn_count), _turns_why(call)),
        _acted_fact("Interventions", call.intervention_count, "mirror", "mirror", live),
        _acted_fact("Tools blocked", call.tools_blocked_count, "bad", "ban", live),
        Fact("Policy", policy_version_words(call), policy_why(call, judge_model)),
        Fact("Agent leg", _agent_words(call), _agent_why(call), "bad" if call.agent_failure else "plain"),
    ]
    if call.dropped_media_ms:
        facts.append(
            Fact("Audio dropped", duration(call.dropped_media_ms), "the agent took it too slowly", "warn", "alert")
        )
    return CallHead(
        id=call.id,
        agent=call.agent.name,
        started_at=call.started_at,
        from_number=call.from_number,
        to_number=call.to_number,
        live=live,
        agent_failed=bool(call.agent_failure),
        outcome=outcome,
        facts=tuple(facts),
        banners=tuple(banners_of(call, judge_model)),
        test=call.test,
    )


def _acted_fact(name: str, count: int, tone: Tone, icon: str, live: bool) -> Fact:
    if not count:
        return Fact(name, "0", "none so far" if live else "")
    return Fact(name, str(count), "", tone, icon)


def _turns_why(call: Call) -> str:
    parts = [
        (call.judged_count, "judged"),
        (call.skipped_count, "skipped"),
        (call.timed_out_count, "timed out"),
        (call.failed_count, "failed"),
        (call.shed_count, "shed"),
    ]
    return ", ".join(f"{count} {word}" for count, word in parts if count)


def policy_version_words(call: Call) -> str:
    """The policy that judged the call, with its version."""
    if call.policy is None:
        return "none"
    return f"{call.policy.name} v{call.policy_version}" if call.policy_version else call.policy.name


def policy_why(call: Call, judge_model: str) -> str:
    """What the policy was to do, and who judged by it."""
    judge = f"judged by {judge_model}" if judge_model else ""
    if judge_model == SCRIPTED_JUDGE:
        judge = "answers from the demo's script"
    mode = {"live": "live: steps in", "shadow": "shadow: never steps in"}.get(call.mode, call.mode)
    return " · ".join(part for part in (mode, judge) if part)


def _agent_words(call: Call) -> str:
    if call.agent_failure:
        return "failed"
    if call.agent_connected_at_ms is None:
        return "dialling" if call.state == Call.State.LIVE else "never connected"
    return call.sdk or "connected"


def _agent_why(call: Call) -> str:
    if call.agent_failure:
        return call.agent_failure
    parts = [f"answered in {duration(call.dial_ms)}" if call.dial_ms is not None else ""]
    if call.agent_connected_at_ms is not None and call.hello_at_ms is None:
        parts.append("does not talk to Mirror: it reports no turns")
    return " · ".join(part for part in parts if part)


def banners_of(call: Call, judge_model: str) -> Iterable[Banner]:
    """What a viewer must know before believing anything else on the page."""
    if judge_model == SCRIPTED_JUDGE:
        yield SCRIPTED_BANNER
    if call.timed_out_count + call.failed_count + call.shed_count:
        yield Banner(
            "warn",
            "alert",
            f"Judging is degraded: {_missed_words(call)}.",
            "What the agent said in those turns was not checked. Their reasons stand beside each turn; "
            "check the judge's server and its key.",
        )
    if call.storage_limit:
        yield Banner(
            "warn",
            "alert",
            "What was said is not stored.",
            "The storage limit was reached when this call began. It was supervised as usual: verdicts, tool decisions "
            "and interventions are here, the words of its turns are not.",
        )
    if call.agent_failure:
        yield Banner("bad", "alert", "The agent failed.", sentence_of(call.agent_failure))
    if call.state == Call.State.ENDED and not call.turn_count and not call.agent_failure:
        yield Banner(
            "warn",
            "alert",
            "Nothing was supervised.",
            coverage_of(call).why + " The call was relayed as it was. Add supervision.client to the agent, so that it "
            "reports its turns.",
        )
