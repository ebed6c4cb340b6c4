"""Turns of past calls as a judge was given them: what was said and done before each, as it is stored, redactions
included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from supervision.engine.context import ToolCallIntent, TurnPayload
from supervision.errors import NotFound
from supervision.models import Call, Intervention, ToolDecision, Turn, Verdict
from supervision.stream.from_record import memory_of_rows

# What goes with a turn; the engine keeps no more of a call itself.
MAX_TURNS: Final = 64
MAX_TOOLS: Final = 200


class TurnNotFound(NotFound):
    """The current tenant has no turn with this id."""

    def __init__(self) -> None:
        super().__init__("There is no such turn.")


@dataclass(frozen=True, slots=True)
class PastTurn:
    """A turn with what was said of it when it was spoken; `verdict` is None where nothing was."""

    turn: Turn
    verdict: Verdict | None


@dataclass(frozen=True, slots=True)
class TurnScene:
    """A past turn, its call, and the turn as a judge gets it."""

    past: PastTurn
    call: Call
    payload: TurnPayload


def past_turns(*, call_id: UUID, limit: int) -> list[PastTurn]:
    """The call's first turns, in order; none for a call that the tenant has not."""
    turns = list(Turn.objects.filter(call_id=call_id).order_by("index", "id")[:limit])
    return _with_verdicts(turns)


def turn_scene(*, turn_id: UUID) -> TurnScene:
    """A turn and what came before it in its call. Raises TurnNotFound."""
    turn = Turn.objects.select_related("call").filter(id=turn_id).first()
    if turn is None:
        raise TurnNotFound
    call = turn.call
    before = Turn.objects.filter(call_id=call.id, index__lt=turn.index).order_by("-index")
    rows = before.values("id", "ref", "customer_text", "text", "heard_text", "at_ms")[:MAX_TURNS]
    tools = ToolDecision.objects.filter(call_id=call.id, done_at_ms__lt=turn.at_ms).order_by("-at_ms", "-id")
    interventions = Intervention.objects.filter(call_id=call.id, at_ms__lt=turn.at_ms).order_by("at_ms", "id")
    done = tools.values("ref", "name", "args", "irreversible", "cancelled", "ok", "result", "done_at_ms")
    memory = memory_of_rows(
        list(rows),
        list(done[:MAX_TOOLS]),
        list(interventions.values("turn_id", "rule", "plan", "correction_text", "at_ms")),
        turn.at_ms,
    )
    payload = TurnPayload(
        customer_text=turn.customer_text,
        agent_text=turn.text,
        tool_calls=tuple(ToolCallIntent.of(tool) for tool in turn.tool_calls),
        history=tuple(entry for _, entry in memory.notes),
        turn_id=turn.ref,
        language=turn.language or call.language or "en",
    )
    (past,) = _with_verdicts([turn])
    return TurnScene(past, call, payload)


def _with_verdicts(turns: list[Turn]) -> list[PastTurn]:
    # The one that was in time; its late twin, if any, never counted.
    in_time = Verdict.objects.filter(turn_id__in=[turn.id for turn in turns], late=False).order_by("at_ms", "id")
    verdicts = {verdict.turn_id: verdict for verdict in in_time}
    return [PastTurn(turn, verdicts.get(turn.id)) for turn in turns]
