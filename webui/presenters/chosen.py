"""The chosen turn of a call: what was said and heard of it, how it was judged, what Mirror did, and how fast."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from supervision.models import Call, Intervention, Label, Verdict
from supervision.selectors.call_pages import TurnRecord
from webui.presenters.calls import policy_version_words, policy_why
from webui.presenters.events import NoteView, note_view
from webui.presenters.evidence import EvidenceSpan, evidence_of
from webui.presenters.interventions import InterventionView
from webui.presenters.labels import LabelView, Refused, label_view
from webui.presenters.latency import Milestone, latency_of
from webui.presenters.pages import pieces_of
from webui.presenters.tools import ToolView
from webui.presenters.turns import TurnView, VerdictView

HOLD_ENDS = {
    "verdict": "until the verdict",
    "budget": "until the hold budget was used up",
    "discarded": "and then discarded: nothing of it was heard",
}


@dataclass(frozen=True, slots=True)
class ChosenVerdict:
    """A verdict with who gave it and how fast what followed was."""

    verdict: VerdictView
    judge: str
    latency: tuple[Milestone, ...]


@dataclass(frozen=True, slots=True)
class ChosenTurn:
    """See the module. Without a `turn` it shows what names none, of a call in which none was reported."""

    call_id: UUID
    live: bool
    turn: TurnView | None
    before_id: UUID | None
    after_id: UUID | None
    evidence: tuple[EvidenceSpan, ...]
    policy: str
    policy_why: str
    policy_at: tuple[UUID, int] | None
    """The policy and the number of its version, where they can still be looked at."""
    held: int | None
    held_why: str
    verdicts: tuple[ChosenVerdict, ...]
    tools: tuple[tuple[ToolView, LabelView | None], ...]
    interventions: tuple[tuple[InterventionView, LabelView], ...]
    notes: tuple[NoteView, ...]
    label: LabelView | None

    @property
    def empty(self) -> bool:
        return not (self.turn or self.tools or self.interventions or self.notes)


def chosen_turn(found: TurnRecord, *, refused: Refused | None = None) -> ChosenTurn:
    """What the panel of a turn shows; `refused` is of a label's form that could not be stored."""
    record = found.record
    pieces = pieces_of(record)
    turn = pieces.turns[0] if pieces.turns else None
    labels: list[Label] = found.labels
    rows = {row.id: row for row in record.interventions}
    in_time = sorted(record.verdicts, key=lambda verdict: (verdict.late, verdict.at_ms))
    return ChosenTurn(
        call_id=record.call.id,
        live=record.call.state == Call.State.LIVE,
        turn=turn,
        before_id=found.before_id,
        after_id=found.after_id,
        evidence=() if found.turn is None else _evidence(found.turn.text, in_time),
        policy=policy_version_words(record.call),
        policy_why=policy_why(record.call, ""),
        policy_at=_policy_at(record.call),
        held=found.held_ms,
        held_why=HOLD_ENDS.get(found.hold_ended_by, ""),
        verdicts=()
        if turn is None
        else tuple(
            ChosenVerdict(shown, _judge(row, record.judge_model), latency_of(row, _answer_to(row, rows.values())))
            for row, shown in zip(in_time, turn.verdicts, strict=True)
        ),
        tools=tuple((tool, _of_tool(tool, labels, refused)) for tool in pieces.tools),
        interventions=tuple(
            (shown, label_view("intervention", shown.id, labels, alarm=True, refused=refused))
            for shown in pieces.interventions
        ),
        notes=tuple(map(note_view, record.notes)),
        label=None
        if turn is None or pieces.interventions
        else label_view("turn", turn.id, labels, alarm=turn.violation, refused=refused),
    )


def _policy_at(call: Call) -> tuple[UUID, int] | None:
    if call.policy is None or call.policy.archived_at is not None or call.policy_version is None:
        return None
    return call.policy.id, call.policy_version


def _evidence(text: str, verdicts: Iterable[Verdict]) -> tuple[EvidenceSpan, ...]:
    reason = " ".join(verdict.reason for verdict in verdicts if verdict.intervene)
    return evidence_of(text, reason) if text else ()


def _answer_to(verdict: Verdict, interventions: Iterable[Intervention]) -> Intervention | None:
    return next((row for row in interventions if row.verdict_id == verdict.id), None)


def _judge(verdict: Verdict, judge_model: str) -> str:
    if verdict.state == "skipped":
        return ""
    tokens = verdict.prompt_tokens + verdict.completion_tokens
    words = [verdict.model or judge_model]
    if verdict.fallback:
        words.append("the second provider: the first did not answer")
    if tokens:
        words.append(f"{tokens:,} tokens".replace(",", "\u202f"))
    return " · ".join(word for word in words if word)


def _of_tool(tool: ToolView, labels: Iterable[Label], refused: Refused | None) -> LabelView | None:
    """Whoever reviews says something of tools that were blocked, or that could do what cannot be undone."""
    if not (tool.blocked or tool.irreversible):
        return None
    return label_view("tool_decision", tool.id, labels, alarm=tool.blocked, refused=refused)
