"""Notes to the agent and the timeline: everything that was recorded, one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from supervision.models import AgentNote, CallEvent
from webui.formats import duration, score, sentence_of
from webui.presenters.interventions import OUTCOMES, PLANS, detail_words
from webui.presenters.pieces import Badge, Tone, order_key
from webui.presenters.turns import NOT_JUDGED
from webui.presenters.waterfall import STEPS


@dataclass(frozen=True, slots=True)
class NoteView:
    id: UUID
    at_ms: int
    rev: int
    text: str
    said: str
    heard_text: str
    dropped: tuple[str, ...]
    expires_turns: int | None

    @property
    def dom_id(self) -> str:
        return f"note-{self.id.hex}"

    @property
    def order(self) -> str:
        return order_key(self.at_ms, self.id)


def note_view(note: AgentNote) -> NoteView:
    return NoteView(
        id=note.id,
        at_ms=note.at_ms,
        rev=note.rev,
        text=note.text,
        said=note.said,
        heard_text=note.heard_text,
        dropped=tuple(str(turn) for turn in note.dropped),
        expires_turns=note.expires_turns,
    )


@dataclass(frozen=True, slots=True)
class EventView:
    seq: int
    at: datetime
    at_ms: int
    kind: str
    label: str
    tone: Tone
    icon: str
    summary: str

    @property
    def dom_id(self) -> str:
        return f"event-{self.seq}"

    @property
    def order(self) -> str:
        return f"{self.seq:012d}"


EVENT_LABELS: Mapping[str, tuple[str, str, Tone]] = {
    "call.started": ("Call started", "phone", "plain"),
    "call.moved": ("Stream lost", "phone", "warn"),
    "call.resumed": ("Stream came back", "phone", "warn"),
    "call.hello": ("Agent said hello", "robot", "plain"),
    "call.ended": ("Call ended", "phone", "plain"),
    "agent.connected": ("Agent connected", "robot", "plain"),
    "agent.failed": ("Agent failed", "cross", "bad"),
    "transcript.noted": ("Transcript", "person", "plain"),
    "turn.reported": ("Turn reported", "robot", "plain"),
    "turn.completed": ("Turn complete", "robot", "plain"),
    "turn.held": ("Turn held", "clock", "plain"),
    "turn.judged": ("Turn judged", "shield", "plain"),
    "turn.heard": ("Turn heard", "wave", "plain"),
    "tool.decided": ("Tool decided", "tool", "plain"),
    "tool.done": ("Tool done", "tool", "plain"),
    "approval.requested": ("Approval asked for", "person", "warn"),
    "approval.decided": ("Approval decided", "person", "plain"),
    "intervention.started": ("Intervention started", "mirror", "mirror"),
    "intervention.step": ("Intervention", "mirror", "mirror"),
    "intervention.ended": ("Intervention ended", "mirror", "mirror"),
    "note.sent": ("Note to the agent", "note", "mirror"),
    "frame.rejected": ("Frame rejected", "alert", "warn"),
    "media.dropped": ("Audio dropped", "alert", "warn"),
}


def event_view(event: CallEvent, started_at: datetime) -> EventView:
    label, icon, tone = EVENT_LABELS.get(event.kind, (sentence_of(event.kind), "dash", "plain"))
    data = event.data if isinstance(event.data, Mapping) else {}
    at_ms = data.get("at_ms")
    if not isinstance(at_ms, int):
        at_ms = (event.at - started_at) // timedelta(milliseconds=1)
    if event.kind == "turn.judged":
        if data.get("intervene"):
            tone, icon = "bad", "alert"
        elif data.get("state") in NOT_JUDGED:
            tone, icon = "warn", "alert"
        else:
            tone, icon = "good", "check"
    if event.kind == "tool.decided":
        tone, icon = ("good", "check") if data.get("allow") else ("bad", "ban")
    summarise = _SUMMARIES.get(event.kind)
    summary = summarise(data) if summarise is not None else ""
    return EventView(event.seq, event.at, at_ms, event.kind, label, tone, icon, summary)


Data = Mapping[str, Any]


def _joined(*parts: object) -> str:
    return " · ".join(str(part) for part in parts if part not in (None, ""))


def _said(words: object) -> str:
    text = str(words or "").strip()
    return f"“{text}”" if text else ""


def _judged(data: Data) -> str:
    state = str(data.get("state", ""))
    if state != "judged":
        return _joined(sentence_of(state), data.get("detail"))
    shown = f"{score(data.get('score'))} against {score(data.get('threshold'))}"
    withheld = f"withheld: {data['withheld']}" if data.get("withheld") else ""
    late = "late" if data.get("late") else ""
    return _joined(shown, data.get("rule"), withheld, late, duration(data.get("latency_ms")))


def _decided(data: Data) -> str:
    verb = "Allowed" if data.get("allow") else "Blocked"
    return _joined(data.get("name"), f"{verb} ({data.get('code')})", data.get("reason"))


def _done(data: Data) -> str:
    return _joined(data.get("ref"), "cancelled" if data.get("cancelled") else "ran" if data.get("ok") else "failed")


def _heard(data: Data) -> str:
    return f"{duration(data.get('heard_ms'))} of {duration(data.get('audio_ms'))} heard ({data.get('basis')})"


def _ended(data: Data) -> str:
    by = f"by the {data['ended_by']}" if data.get("ended_by") in ("caller", "agent") else "by Mirror"
    dropped = data.get("detail_dropped")
    left_out = f"{dropped} details left out of this record: the journal was nearly full" if dropped else ""
    return _joined(sentence_of(str(data.get("outcome", ""))), by, data.get("reason"), left_out)


def _intervention_ended(data: Data) -> str:
    heard = data.get("violation_heard_ms")
    return _joined(
        OUTCOMES.get(str(data.get("outcome")), Badge(sentence_of(str(data.get("outcome"))))).text,
        "" if heard is None else f"violation heard {duration(heard)}",
        _said(data.get("correction_text")),
    )


_SUMMARIES: Mapping[str, Callable[[Data], str]] = {
    "call.started": lambda data: _joined(
        data.get("mode"), data.get("delivery"), data.get("encoding"), data.get("sample_rate")
    ),
    "call.resumed": lambda data: _joined(f"socket {data.get('epoch')} of the call", data.get("node")),
    "call.hello": lambda data: _joined(data.get("sdk"), data.get("language"), "marks" if data.get("marks") else ""),
    "call.ended": _ended,
    "agent.connected": lambda data: f"in {duration(data.get('dial_ms'))}",
    "agent.failed": lambda data: str(data.get("reason", "")),
    "transcript.noted": lambda data: _joined(sentence_of(str(data.get("role", ""))), _said(data.get("text"))),
    "turn.reported": lambda data: _said(data.get("text")),
    "turn.completed": lambda data: _said(data.get("text")),
    "turn.held": lambda data: _joined(f"for {duration(data.get('held_ms'))}", data.get("ended_by")),
    "turn.judged": _judged,
    "turn.heard": _heard,
    "tool.decided": _decided,
    "tool.done": _done,
    "approval.requested": lambda data: _joined(data.get("name"), f"for {duration(data.get('within_ms'))} at most"),
    "approval.decided": lambda data: _joined(
        sentence_of(str(data.get("outcome", ""))),
        f"by {data['by']}" if data.get("by") else "",
        f"after {duration(data.get('waited_ms'))}",
        _said(data.get("note")),
    ),
    "intervention.started": lambda data: _joined(data.get("rule"), PLANS.get(str(data.get("plan")), data.get("plan"))),
    "intervention.step": lambda data: _joined(
        STEPS.get(str(data.get("step")), sentence_of(str(data.get("step")))), detail_words(data.get("detail"))
    ),
    "intervention.ended": _intervention_ended,
    "note.sent": lambda data: _joined(f"revision {data.get('rev')}", data.get("text")),
    "frame.rejected": lambda data: _joined(data.get("code"), data.get("message")),
    "media.dropped": lambda data: _joined(data.get("direction"), duration(data.get("ms"))),
}
