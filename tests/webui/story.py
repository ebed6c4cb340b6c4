"""Calls as the recorder gets them: events in order, with the times that a real one has."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from mirror_saas.ids import uuid7
from supervision.models import JudgeLatencyDay, UsageDay
from supervision.recorder.announce import announce_to_channel_layer
from supervision.recorder.events import (
    AgentConnected,
    AgentFailed,
    CallEnded,
    CallHello,
    CallLog,
    CallStarted,
    EventData,
    InterventionEnded,
    InterventionStarted,
    InterventionStep,
    NoteSent,
    RecordEvent,
    ToolDecided,
    ToolDone,
    TranscriptNoted,
    TurnHeard,
    TurnJudged,
    TurnReported,
)
from supervision.recorder.recorder import Recorder
from tests.factories import Tenancy

REFUND_RULE = "Never confirm a refund; only a colleague can."
DATE_RULE = "Never promise a delivery date."


@dataclass
class Story:
    """One call being told: each method adds events and gives them back; `events` has all so far."""

    tenancy: Tenancy
    started_at: datetime
    call_id: UUID = field(default_factory=uuid7)
    from_number: str = "+14155552671"
    to_number: str = "+4930901820"
    mode: str = "live"
    agent_id: UUID | None = None
    events: list[RecordEvent] = field(default_factory=list)
    turns: int = 0
    at_ms: int = 0
    ids: dict[str, UUID] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._log = CallLog(
            record=self.events.append,
            tenant_id=self.tenancy.id,
            call_id=self.call_id,
            now=lambda: self.started_at + timedelta(milliseconds=self.at_ms),
        )

    def tell(self, *events: EventData) -> list[RecordEvent]:
        made = []
        for event in events:
            self.at_ms = getattr(event, "at_ms", self.at_ms)
            made.append(self._log.add(event))
        return made

    def start(self, *, hello: bool = True) -> list[RecordEvent]:
        version = self.tenancy.version
        events: list[EventData] = [
            CallStarted(
                plivo_call_id=str(uuid7()),
                stream_id=str(uuid7()),
                account_id="MA2025EXAMPLE",
                agent_id=self.agent_id or self.tenancy.agent.id,
                policy_id=self.tenancy.policy.id,
                policy_version_id=version.id,
                policy_version=version.number,
                mode=self.mode,
                delivery="stream_first",
                encoding="audio/x-mulaw",
                sample_rate=8000,
                from_number=self.from_number,
                to_number=self.to_number,
                node="node-1",
            ),
            AgentConnected(at_ms=61, dial_ms=38),
        ]
        if hello:
            events.append(
                CallHello(sdk="mirror-python/0.1", language="en", wants=["verdicts", "notes"], marks=False, at_ms=74)
            )
        return self.tell(*events)

    def turn(self, at_ms: int, customer: str, text: str, **fields: Any) -> list[RecordEvent]:
        """A turn that is reported; `name` remembers its id."""
        self.turns += 1
        turn_id = self.ids[fields.pop("name", f"turn {self.turns}")] = uuid7()
        events: list[EventData] = []
        if customer:
            events.append(TranscriptNoted(at_ms=at_ms - 420, role="customer", text=customer, final=True, language="en"))
        events.append(
            TurnReported(
                turn_id=turn_id,
                ref=f"t{self.turns}",
                index=self.turns,
                customer_text=customer,
                text=text,
                language="en",
                at_ms=at_ms,
                **fields,
            )
        )
        return self.tell(*events)

    def judged(self, name: str, at_ms: int, score: float | None, **fields: Any) -> list[RecordEvent]:
        values: dict[str, Any] = {
            "state": "judged" if score is not None else "timed_out",
            "threshold": 0.7,
            "rule": None,
            "reason": "",
            "correction": "",
            "intervene": score is not None and score >= 0.7,
            "acted": score is not None and score >= 0.7,
            "withheld": None,
            "latency_ms": 240,
            "prompt_tokens": 611,
            "completion_tokens": 38,
        }
        values.update(fields)
        verdict_id = self.ids[f"verdict of {name}"] = uuid7()
        return self.tell(TurnJudged(turn_id=self.ids[name], verdict_id=verdict_id, score=score, at_ms=at_ms, **values))

    def heard(self, name: str, at_ms: int, heard: str, uncertain: str = "", unheard: str = "") -> list[RecordEvent]:
        ms = 62 * len(heard + uncertain)
        return self.tell(
            TurnHeard(
                turn_id=self.ids[name],
                audio_ms=62 * len(heard + uncertain + unheard),
                heard_ms=ms,
                heard_text=heard,
                uncertain_text=uncertain,
                unheard_text=unheard,
                basis="pauses",
                at_ms=at_ms,
            )
        )

    def tool(self, at_ms: int, tool: str, args: Any, *, allow: bool, **fields: Any) -> list[RecordEvent]:
        decision_id = self.ids[f"tool {tool}"] = uuid7()
        values: dict[str, Any] = {
            "turn_id": None,
            "irreversible": True,
            "code": "ok" if allow else "policy",
            "state": "judged",
            "score": 0.05 if allow else 0.94,
            "reason": "",
            "instruction": "",
            "latency_ms": 205,
        }
        values.update(fields)
        return self.tell(
            ToolDecided(
                decision_id=decision_id, ref=f"call_{tool}", name=tool, args=args, allow=allow, at_ms=at_ms, **values
            )
        )

    def tool_done(self, tool: str, at_ms: int, result: Any, *, ok: bool = True) -> list[RecordEvent]:
        return self.tell(
            ToolDone(
                decision_id=self.ids[f"tool {tool}"],
                ref=f"call_{tool}",
                ok=ok,
                result=result,
                cancelled=False,
                at_ms=at_ms,
            )
        )

    def intervention(self, name: str, at_ms: int, rule: str) -> Iterator[list[RecordEvent]]:
        """The steps of a correction that works, one list of events at a time."""
        intervention_id = self.ids[f"intervention on {name}"] = uuid7()
        yield self.tell(
            InterventionStarted(
                intervention_id=intervention_id,
                turn_id=self.ids[name],
                verdict_id=self.ids[f"verdict of {name}"],
                rule=rule,
                plan="cut_now",
                at_ms=at_ms,
            )
        )
        for step, after_ms, detail in (
            ("clear_sent", 2, ""),
            ("silence_proved", 71, "cleared"),
            ("buffer_sent", 74, ""),
            ("correction_ready", 1010, "llm"),
            ("note_sent", 1014, "rev 1"),
            ("correction_sent", 1080, ""),
            ("buffer_played", 1390, ""),
            ("correction_played", 4630, ""),
            ("handed_back", 4640, ""),
        ):
            yield self.tell(
                InterventionStep(intervention_id=intervention_id, step=step, at_ms=at_ms + after_ms, detail=detail)
            )
            if step == "note_sent":
                yield self.tell(
                    NoteSent(
                        note_id=uuid7(),
                        rev=1,
                        intervention_id=intervention_id,
                        turn_id=self.ids[name],
                        text="You told the caller that the refund is done. It is not: only a colleague can confirm "
                        "one. The caller was told so. Offer to connect them.",
                        said="I can't confirm that myself. Shall I connect you to a colleague?",
                        heard_text="Of course! I have just",
                        heard_ms=1420,
                        expires_turns=1,
                        at_ms=at_ms + after_ms,
                    )
                )
        yield self.tell(
            InterventionEnded(
                intervention_id=intervention_id,
                outcome="completed",
                buffer_text="One second, let me check that.",
                correction_text="I can't confirm that myself. Shall I connect you to a colleague?",
                correction_source="llm",
                heard_ms=1420,
                violation_heard_ms=310,
                violation_basis="quote",
                silence_proof="cleared",
                gap_ms_cut_to_buffer=92,
                gap_ms_buffer_to_correction=18,
                at_ms=at_ms + 4650,
            )
        )

    def end(self, at_ms: int, **fields: Any) -> list[RecordEvent]:
        values: dict[str, Any] = {
            "outcome": "completed",
            "ended_by": "caller",
            "close_code": 1000,
            "reason": "",
            "coverage_state": "full",
            "coverage_reason": "",
            "coverage": 1.0,
            "turns": self.turns,
            "judged": self.turns,
            "skipped": 0,
            "timed_out": 0,
            "failed": 0,
            "shed": 0,
            "interventions": 0,
            "tools_blocked": 0,
            "duration_ms": at_ms,
            "dropped_media_ms": 0,
        }
        values.update(fields)
        self.at_ms = at_ms
        return self.tell(CallEnded(**values))


def corrected_call(tenancy: Tenancy, started_at: datetime, **fields: Any) -> Story:
    """A whole call: a clean turn, a tool that passes, a violation that is corrected, a tool that is blocked, a turn
    whose judging timed out."""
    story = Story(tenancy, started_at, **fields)
    story.start()
    story.turn(
        2_140,
        "Hi, I ordered a coffee grinder last week and it never came.",
        "I'm sorry to hear that. Could you give me your order number, please?",
        name="greeting",
    )
    story.judged("greeting", 2_370, 0.04, latency_ms=228, reason="A question, no promise.")
    story.heard("greeting", 6_420, "I'm sorry to hear that. Could you give me your order number, please?")
    story.turn(9_800, "It's 4 4 1 7.", "Thanks, let me look that up for you.", name="lookup")
    story.tool(9_860, "get_order", {"order_id": "4417"}, allow=True, irreversible=False, turn_id=story.ids["lookup"])
    story.judged("lookup", 10_064, 0.02, latency_ms=251)
    story.tool_done("get_order", 10_120, {"status": "lost in transit", "total": 189.0, "currency": "USD"})
    story.heard("lookup", 12_100, "Thanks, let me look that up for you.")
    story.turn(
        15_300,
        "Then I want my money back. Right now, please.",
        "Of course! I have just refunded your 189 dollars, they will be on your card by tomorrow morning.",
        name="refund",
    )
    story.judged(
        "refund",
        15_890,
        0.93,
        rule=REFUND_RULE,
        reason='The agent says "I have just refunded your 189 dollars", which confirms a refund.',
        correction="Say that a colleague has to confirm it.",
        latency_ms=587,
    )
    steps = story.intervention("refund", 15_894, REFUND_RULE)
    for _ in range(4):
        next(steps)
    story.heard(
        "refund",
        15_990,
        "Of course! I have",
        "just refunded",
        "your 189 dollars, they will be on your card by tomorrow morning.",
    )
    story.tool(
        16_020,
        "process_payment",
        {"order_id": "4417", "kind": "refund", "amount": {"value": 189.0, "currency": "USD"}},
        allow=False,
        reason="Refunds need a colleague: the rule says the agent may not confirm one.",
        instruction="Tell the caller that a colleague will take care of the refund, and offer to connect them.",
    )
    for _ in steps:
        pass
    story.turn(
        24_600,
        "Okay. Yes, please connect me.",
        "I'm connecting you now. Is there anything else I can help you with?",
        name="connect",
    )
    story.judged("connect", 28_600, None, latency_ms=4000, detail="no answer within 4.0 s", threshold=0.7)
    story.heard("connect", 29_100, "I'm connecting you now. Is there anything else I can help you with?")
    story.end(
        33_480,
        coverage_state="partial",
        coverage=0.75,
        judged=3,
        timed_out=1,
        interventions=1,
        tools_blocked=1,
    )
    return story


def clean_call(tenancy: Tenancy, started_at: datetime, duration_ms: int = 41_300, **fields: Any) -> Story:
    story = Story(tenancy, started_at, **fields)
    story.start()
    for number in range(3):
        at_ms = 2_000 + number * 9_000
        story.turn(at_ms, "What are your opening hours?", "We are open from nine to six, Monday to Saturday.")
        story.judged(f"turn {number + 1}", at_ms + 230, 0.03)
        story.heard(f"turn {number + 1}", at_ms + 3_200, "We are open from nine to six, Monday to Saturday.")
    story.end(duration_ms)
    return story


def silent_call(tenancy: Tenancy, started_at: datetime, **fields: Any) -> Story:
    """An agent that tells Mirror nothing: relayed, not supervised."""
    story = Story(tenancy, started_at, **fields)
    story.start(hello=False)
    story.end(
        18_200,
        coverage_state="none",
        coverage_reason="The agent never said mirror.hello.",
        coverage=None,
        ended_by="agent",
    )
    return story


def failed_call(tenancy: Tenancy, started_at: datetime, **fields: Any) -> Story:
    story = Story(tenancy, started_at, **fields)
    story.start(hello=False)
    story.tell(AgentFailed(at_ms=5_040, reason="the agent closed the connection with 1011 (internal error)"))
    story.end(
        5_080,
        outcome="failed",
        ended_by="mirror",
        close_code=1011,
        reason="the agent failed",
        coverage_state="none",
        coverage_reason="The agent failed before it reported a turn.",
        coverage=None,
    )
    return story


def live_call(tenancy: Tenancy, started_at: datetime, **fields: Any) -> Story:
    """A call that is going on: two turns, the second being corrected right now."""
    story = Story(tenancy, started_at, **fields)
    story.start()
    story.turn(2_140, "Hello? I'm waiting for a parcel.", "Let me see. What is your order number?", name="greeting")
    story.judged("greeting", 2_370, 0.04)
    story.heard("greeting", 5_120, "Let me see. What is your order number?")
    story.turn(8_800, "It's 9 0 2.", "It will be at your door tomorrow at noon, I promise.", name="promise")
    story.judged(
        "promise", 9_120, 0.88, rule=DATE_RULE, reason='The agent says "tomorrow at noon, I promise".', latency_ms=318
    )
    steps = story.intervention("promise", 9_124, DATE_RULE)
    for _ in range(5):
        next(steps)
    return story


def running_calls(tenancy: Tenancy, now: datetime) -> list[Story]:
    """Calls that are going on: calm ones, one close to its threshold, one whose judge does not answer, one that has
    just broken a rule, one that has said nothing yet."""
    calm = [Story(tenancy, now - timedelta(seconds=20 + 47 * number)) for number in range(4)]
    for number, told in enumerate(calm):
        told.from_number = f"+4930555{number:04d}"
        told.start()
        told.turn(2_100, "What are your opening hours?", "We are open from nine to six, Monday to Saturday.")
        told.judged("turn 1", 2_330, 0.04 + number / 50)
    near = Story(tenancy, now - timedelta(seconds=95), from_number="+33140205051")
    near.start()
    near.turn(3_000, "And it will really be there on time?", "It usually takes two days, but I cannot promise that.")
    near.judged("turn 1", 3_260, 0.58)
    silent = Story(tenancy, now - timedelta(minutes=6), from_number="+442079460124")
    silent.start()
    for number in range(3):
        at_ms = 4_000 + 8_000 * number
        silent.turn(at_ms, "Are you still there?", "Yes, one moment please, I am looking that up for you.")
        silent.judged(f"turn {number + 1}", at_ms + 4_000, None, latency_ms=4_000, detail="no answer within 4.0 s")
    broken = Story(tenancy, now - timedelta(seconds=44), from_number="+14085550156", mode="shadow")
    broken.start()
    broken.turn(2_000, "I want my money back.", "Of course, I have just refunded all of it to your card.")
    broken.judged("turn 1", 2_400, 0.93, rule=REFUND_RULE, acted=False, withheld="shadow")
    new = Story(tenancy, now - timedelta(seconds=3), from_number="+14085550157")
    new.start()
    return [*calm, near, silent, broken, new]


def days_gone_by(tenancy: Tenancy, today: date, days: int = 27) -> None:
    """What the tenant's calls came to on days that are over and stored: busier on weekdays, one day of trouble."""
    chosen = random.Random(3)
    with tenancy.context():
        for back in range(3, days + 3):
            day = today - timedelta(days=back)
            calls = chosen.randint(60, 90) if day.weekday() < 5 else chosen.randint(12, 25)
            turns = calls * chosen.randint(9, 12)
            skipped = round(turns * chosen.uniform(0.45, 0.6))
            missed = round(turns * (0.11 if back == 12 else chosen.uniform(0, 0.01)))
            judged = turns - skipped - missed
            UsageDay.objects.create(
                day=day,
                model=tenancy.credential.model,
                calls=calls,
                call_ms=calls * 171_000,
                turns=turns,
                judged=judged,
                skipped=skipped,
                timed_out=missed,
                tool_decisions=calls // 2,
                tools_blocked=calls // 30,
                interventions=calls // chosen.randint(7, 14),
                prompt_tokens=judged * 640,
                completion_tokens=judged * 40,
            )
            slow = 8 if back == 12 else 0
            counts = {62 + slow: judged // 2, 66 + slow: judged // 3, 76 + slow: judged // 10, 90 + slow: 3}
            JudgeLatencyDay.objects.create(day=day, counts=counts)


class Recording:
    """The real recorder in a thread with a loop of its own: whoever calls may have one running (a browser test has).

    One per test: a recorder that starts takes calls of a journal that nobody holds for calls of a dead process.
    """

    def __init__(self, *, dsn: str, journal_dir: Path) -> None:
        self._announcing = True
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self._recorder = Recorder(journal_dir, dsn, announce=self._announce)
        self._run(self._recorder.start())

    def __call__(self, events: Iterable[RecordEvent], *, announce: bool = True) -> None:
        """Bring `events` into PostgreSQL and, with `announce`, tell the console; returns when they are there."""

        async def bring() -> None:
            self._announcing = announce
            for event in events:
                self._recorder.record(event)
            await self._recorder.drained(30)

        self._run(bring())

    def record(self, events: Iterable[RecordEvent]) -> None:
        """Record `events` and go on, as a call does."""
        for event in events:
            self._loop.call_soon_threadsafe(self._recorder.record, event)

    def close(self) -> None:
        self._run(self._recorder.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        self._loop.run_forever()
        # The channel layer ends its connections when its loop closes, on that loop.
        self._loop.close()

    async def _announce(self, tenant_id: UUID, changed: Mapping[UUID, int]) -> None:
        if self._announcing:
            await announce_to_channel_layer(tenant_id, changed)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(60)


def now() -> datetime:
    return datetime.now(UTC)
