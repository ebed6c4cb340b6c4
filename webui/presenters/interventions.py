"""Mirror stepping in: how it went, what was said, what it took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

from supervision.models import Intervention, Verdict
from webui.formats import duration, sentence_of
from webui.presenters.pieces import Badge, Fact, order_key
from webui.presenters.waterfall import STEPS, Waterfall, steps_of, waterfall_of

OUTCOMES: Mapping[str, Badge] = {
    "": Badge("Running", "wave", "live"),
    "completed": Badge("Corrected", "check", "mirror"),
    "interrupted": Badge("Caller cut in", "person", "warn", "The caller spoke, so Mirror stopped."),
    "caller_gone": Badge("Caller hung up", "phone", "warn"),
    "failed": Badge("Failed", "cross", "bad"),
    "late": Badge("Too late", "clock", "warn", "The words had been played; the agent got a note."),
    "unarmed": Badge("Unarmed", "alert", "warn", "No voice was ready in this language; the agent got a note."),
    "caller_speaking": Badge("Caller was speaking", "person", "warn", "Nothing was injected; the agent got a note."),
    "shadow": Badge("Shadow", "info", "plain", "Shadow mode watches and never acts."),
    "cooldown": Badge("Cooldown", "clock", "plain", "The same rule had just been acted on."),
    "limit": Badge("Limit reached", "alert", "warn", "This call has had its limit of interventions."),
}

# While a turn plays on that the agent only got a note about: how much of it is heard is not known yet.
NOTED = Badge("Note only", "note", "warn", "Nothing was played; the agent got a note.")

# Outcomes of interventions that were not carried out; they are counted apart.
NOT_ACTED = frozenset({"late", "unarmed", "caller_speaking", "shadow", "cooldown", "limit"})

PLANS = {
    "replace_held": "The words were still held at Mirror and were replaced.",
    "cut_when_reached": "The words were queued and were cut when playback reached them.",
    "cut_now": "The words were playing and were cut at once.",
    "retract": "The words had just been played and were taken back.",
    "note_only": "Nothing was played; the agent got a note.",
}

VIOLATION_BASES = {
    "quote": "of the words that the judge quoted",
    "clause": "of the turn from the clause on that broke the rule",
    "turn": "of the whole turn: the judge quoted no words of it",
}

PROOFS = {
    "cleared": "acknowledged by Plivo",
    "fence": "shown by a checkpoint",
    "unproven": "not proven",
    "not_needed": "not needed",
}


@dataclass(frozen=True, slots=True)
class Step:
    label: str
    since_ms: int
    at_ms: int
    detail: str


@dataclass(frozen=True, slots=True)
class InterventionView:
    id: UUID
    at_ms: int
    rule: str
    badge: Badge
    plan: str
    running: bool
    buffer_text: str
    correction_text: str
    correction_source: str
    figures: tuple[Fact, ...]
    waterfall: Waterfall
    steps: tuple[Step, ...]
    detail: str
    turn_id: UUID | None
    turn_number: int | None
    reason: str
    acted: bool

    @property
    def dom_id(self) -> str:
        return f"intervention-{self.id.hex}"

    @property
    def order(self) -> str:
        return order_key(self.at_ms, self.id)

    @property
    def turn_dom_id(self) -> str:
        return f"turn-{self.turn_id.hex}" if self.turn_id else ""

    @property
    def spoke(self) -> bool:
        return bool(self.buffer_text or self.correction_text)


def intervention_view(
    intervention: Intervention, *, turn_number: int | None = None, verdict: Verdict | None = None
) -> InterventionView:
    """An intervention with its timings; `turn_number` and `verdict` say what it answered to, where known."""
    source = {"llm": "written for this turn", "template": "template"}.get(
        intervention.correction_source, intervention.correction_source
    )
    noted = not intervention.outcome and intervention.plan == "note_only"
    return InterventionView(
        id=intervention.id,
        at_ms=intervention.at_ms,
        rule=intervention.rule or "",
        badge=NOTED if noted else OUTCOMES.get(intervention.outcome, Badge(sentence_of(intervention.outcome))),
        plan=PLANS.get(intervention.plan, sentence_of(intervention.plan)),
        running=not intervention.outcome and not noted,
        buffer_text=intervention.buffer_text,
        correction_text=intervention.correction_text,
        correction_source=source,
        figures=tuple(_figures(intervention)),
        waterfall=waterfall_of(intervention, verdict),
        steps=tuple(
            Step(
                STEPS.get(step["step"], sentence_of(step["step"])),
                step["at_ms"] - intervention.at_ms,
                step["at_ms"],
                detail_words(step.get("detail")),
            )
            for step in steps_of(intervention)
        ),
        detail=intervention.detail,
        turn_id=intervention.turn_id,
        turn_number=turn_number,
        acted=intervention.plan != "note_only" and intervention.outcome not in NOT_ACTED,
        reason=verdict.reason if verdict is not None else "",
    )


def detail_words(detail: object) -> str:
    if detail in (None, "", {}, []):
        return ""
    if isinstance(detail, Mapping):
        return ", ".join(f"{sentence_of(str(name)).lower()} {value}" for name, value in detail.items())
    return str(detail)


def _figures(intervention: Intervention) -> Iterable[Fact]:
    if intervention.violation_heard_ms is not None:
        none = intervention.violation_heard_ms == 0
        basis = VIOLATION_BASES.get(intervention.violation_basis, intervention.violation_basis)
        yield Fact(
            "Violation heard",
            "nothing" if none else duration(intervention.violation_heard_ms),
            basis,
            "good" if none else "bad",
            "check" if none else "alert",
        )
    if intervention.silence_proof:
        unproven = intervention.silence_proof == "unproven"
        yield Fact(
            "Silence",
            PROOFS.get(intervention.silence_proof, intervention.silence_proof),
            "",
            "warn" if unproven else "plain",
            "alert" if unproven else "",
        )
    if intervention.gap_ms_cut_to_buffer is not None:
        yield Fact("Gap, cut to buffer line", duration(intervention.gap_ms_cut_to_buffer))
    if intervention.gap_ms_buffer_to_correction is not None:
        yield Fact("Gap, buffer line to correction", duration(intervention.gap_ms_buffer_to_correction))
    if intervention.ended_at_ms is not None:
        yield Fact("Took", duration(intervention.ended_at_ms - intervention.at_ms))
